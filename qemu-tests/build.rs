//! Hands the linker the runtime's script, by its path in the workspace, and defmt's to the program that links the
//! runtime.

use std::env;
use std::path::Path;

fn main() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ld/runtime.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        println!("cargo::rustc-link-arg-bins=-T{}", script.display());
        println!("cargo::rustc-link-arg-bin=s04_epitaph=-Tdefmt.x");
    }
}
