//! Hands the linker the runtime's script, by its path in the workspace, and defmt's to the program that links the
//! runtime.

use std::env;
use std::path::Path;

fn main() {
    // Asked for when it runs, not when it is compiled: a checkout may move, or share its target directory with another.
    println!("cargo::rerun-if-env-changed=CARGO_MANIFEST_DIR");
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&here).join("../ld/runtime.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        println!("cargo::rustc-link-arg-bins=-T{}", script.display());
        // Every policy at once.
        println!("cargo::rustc-link-arg-bin=s07_scale=--defsym=__image_bytes_max=0x40000");
        println!("cargo::rustc-link-arg-bin=s04_epitaph=-Tdefmt.x");
    }
}
