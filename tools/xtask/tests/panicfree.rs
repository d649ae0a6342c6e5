//! The panic check on programs that the compiler made: it holds for a clean one and fails for each way to panic.

use std::fs;
use std::process::Command;

use xtask::panicfree::{Report, Root, check};

const ROOTS: [Root; 1] = [Root { krate: "path", function: "decision_loop" }];

/// Compiles `body` as the path's loop and checks the ELF.
fn report(body: &str) -> anyhow::Result<Report> {
    xtask::setup::target()?;
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("path.rs");
    fs::write(&source, format!("{FRAME}\n{body}\n"))?;
    let elf = dir.path().join("path");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args([
            "--edition=2024",
            "--target=aarch64-unknown-none",
            "-Copt-level=3",
            "-Cpanic=abort",
            "-Clto=fat",
        ])
        .args(["-Csymbol-mangling-version=v0", "-Clink-arg=--entry=decision_loop", "-Awarnings", "-o"])
        .args([&elf, &source])
        .current_dir(xtask::paths::root())
        .status()?;
    assert!(status.success(), "{body} does not compile");
    check(&fs::read(&elf)?, &ROOTS)
}

const FRAME: &str = "#![no_std]
#![no_main]
#[panic_handler]
fn on_panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
#[unsafe(no_mangle)]
pub extern \"C\" fn entry(data: &'static [u8; 64], index: usize) -> u8 {
    decision_loop(data, index)
}
#[used]
static KEEP: extern \"C\" fn(&'static [u8; 64], usize) -> u8 = entry;
";

fn looped(expression: &str) -> String {
    format!("#[inline(never)]\nfn decision_loop(data: &[u8], index: usize) -> u8 {{ {expression} }}")
}

#[test]
fn a_loop_that_can_t_panic_passes() {
    let report = report(&looped("data.get(index).copied().unwrap_or(0)")).unwrap();
    assert_eq!(report.findings, []);
    assert!(report.functions >= 1);
}

#[test]
fn an_index_an_unwrap_a_division_and_a_sum_of_slices_are_found() {
    for expression in [
        "data[index]",
        "data.get(index).copied().unwrap()",
        "(100 / index) as u8",
        "data[index..][..4].iter().sum()",
        "{ if index > 64 { panic!(\"{index}\") } 0 }",
    ] {
        let report = report(&looped(expression)).unwrap();
        assert!(!report.findings.is_empty(), "{expression}");
        let chain = &report.findings[0].chain;
        assert!(chain[0].contains("decision_loop"), "{expression}: {chain:?}");
        assert!(chain.last().unwrap().starts_with("core::"), "{expression}: {chain:?}");
    }
}

#[test]
fn a_call_through_a_pointer_is_found() {
    let body = "#[inline(never)]\nfn decision_loop(data: &[u8], index: usize) -> u8 {
        let pointer: fn(&[u8]) -> u8 = unsafe { core::ptr::read_volatile(&raw const HOOK) };
        pointer(data).wrapping_add(index as u8)
    }
    fn hook(_: &[u8]) -> u8 { 3 }
    static mut HOOK: fn(&[u8]) -> u8 = hook;";
    let report = report(body).unwrap();
    assert!(report.findings.iter().any(|finding| finding.what.contains("calls through")), "{report:?}");
}

#[test]
fn a_path_that_is_not_there_is_an_error() {
    let error = report("#[inline(always)]\nfn decision_loop(_: &[u8], _: usize) -> u8 { 0 }").unwrap_err();
    assert!(error.to_string().contains("no symbol of path::decision_loop"), "{error}");
}
