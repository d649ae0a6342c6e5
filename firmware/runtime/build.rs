//! Hands the linker its scripts (ours, by its path in the workspace, and defmt's), and the compiler the bundle of agents.

use std::env;
use std::fs;
use std::path::Path;

/// Names the file with the agents' images, one behind the other. Without it the bundle is empty, which is enough to
/// check and to lint.
const BUNDLE: &str = "NEAP_BUNDLE";

fn main() {
    // Asked for when it runs, not when it is compiled: a checkout may move, or share its target directory with another.
    println!("cargo::rerun-if-env-changed=CARGO_MANIFEST_DIR");
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&here).join("../../ld/runtime.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        println!("cargo::rustc-link-arg-bins=-T{}", script.display());
        println!("cargo::rustc-link-arg-bins=-Tdefmt.x");
    }
    println!("cargo::rerun-if-env-changed={BUNDLE}");
    let bundle = env::var_os(BUNDLE).map_or_else(Vec::new, |file| {
        println!("cargo::rerun-if-changed={}", Path::new(&file).display());
        fs::read(&file).unwrap_or_else(|error| panic!("{BUNDLE} {}: {error}", Path::new(&file).display()))
    });
    let out = env::var_os("OUT_DIR").unwrap_or_default();
    fs::write(Path::new(&out).join("bundle.bin"), bundle).expect("cargo's own directory can be written");
}
