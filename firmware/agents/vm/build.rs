//! Hands the linker the agents' script, by its path in the workspace.

use std::env;
use std::path::Path;

fn main() {
    // Asked for when it runs, not when it is compiled: a checkout may move, or share its target directory with another.
    println!("cargo::rerun-if-env-changed=CARGO_MANIFEST_DIR");
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
    let script = Path::new(&here).join("../../../ld/agent.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none") {
        println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    }
}
