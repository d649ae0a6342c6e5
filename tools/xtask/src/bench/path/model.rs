//! Modelled time: a recorded path as straight-line assembly, through llvm-mca's neoverse-n1.
//!
//! What the model takes for granted: every load hits L1, every branch is predicted, no store is forwarded to
//! a later load, and a barrier costs an issue slot. So the figure is the core's own work on a warm path; what
//! the link adds is in the paper's figures alone. It is never a measurement, and never printed as one.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::setup::Llvm;

/// Clock of the IPU's cores, GHz (paper, section 7).
pub const CLOCK_GHZ: f64 = 3.0;
/// One store to the MSI-X generator's register, ns (paper, Table 2, row 3).
pub const DOORBELL_NS: f64 = 70.0;
/// Tide's agent: a decision opened and its MSI-X sent, write-back on the IPU, ns (paper, Table 3, row 1).
pub const TIDE_NS: f64 = 426.0;
/// On-host ghOSt: a decision opened and its interrupt sent, ns (paper, Table 3, row 3).
pub const GHOST_NS: f64 = 770.0;

/// What the figures rest on, beside every one of them.
pub const LABEL: &str = "modelled: llvm-mca, neoverse-n1, one pass, loads hit L1, branches predicted, \
                         plus the paper's 70 ns for the doorbell store";

/// Passes for the steady state: enough that the first one's fill weighs less than a hundredth.
const PASSES: u32 = 100;

/// The model's verdict on one path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Modelled {
    /// Cycles of a single pass, from the first instruction's dispatch to the last one's retirement.
    pub cycles: u32,
    /// Cycles a pass when passes follow each other without end.
    pub steady_cycles: f64,
    /// Instructions that the model knows nothing of, and left out.
    pub unmodelled: u32,
}

impl Modelled {
    /// Time from the message to the doorbell, ns.
    pub fn ns(&self) -> f64 {
        f64::from(self.cycles) / CLOCK_GHZ + DOORBELL_NS
    }
}

/// The firmware's instructions as text, by address.
pub struct Listing(HashMap<u64, String>);

impl Listing {
    /// Disassembles `elves`, which lie apart.
    ///
    /// # Errors
    /// `llvm-objdump` failed.
    pub fn of(elves: &[&Path], llvm: &Llvm) -> Result<Self> {
        let mut all = HashMap::new();
        for elf in elves {
            let mut command = Command::new(&llvm.objdump);
            command.args(["--disassemble", "--no-show-raw-insn", "--mcpu=neoverse-n1"]).arg(elf);
            let listing = Self::parse(&output(&mut command)?);
            if listing.0.is_empty() {
                bail!("{} finds no code in {}", llvm.objdump.display(), elf.display());
            }
            all.extend(listing.0);
        }
        Ok(Self(all))
    }

    fn parse(text: &str) -> Self {
        let instruction = |line: &str| {
            let (address, text) = line.split_once(':')?;
            let address = u64::from_str_radix(address.trim(), 16).ok()?;
            (!text.trim().is_empty()).then(|| (address, text.trim().to_owned()))
        };
        Self(text.lines().filter_map(instruction).collect())
    }

    /// The path through `pcs` as straight-line assembly.
    ///
    /// # Errors
    /// An address where the ELF has no code.
    pub fn straight(&self, pcs: &[u64]) -> Result<String> {
        let mut assembly = String::new();
        for pc in pcs {
            let text = self.0.get(pc).with_context(|| format!("{pc:#x} is not in the disassembly"))?;
            for line in straighten(text) {
                writeln!(assembly, "\t{line}")?;
            }
        }
        Ok(assembly)
    }
}

/// One disassembled instruction as llvm-mca takes it: without annotations, addresses or symbols, a branch as
/// one to the next instruction. A call is what it does to the core, a link and a branch, and a return a
/// branch by register, since llvm-mca would put 100 cycles on a call it thinks leaves the code.
fn straighten(text: &str) -> Vec<String> {
    const NEXT: &str = "#4";
    let text = text.split("//").next().unwrap_or_default().trim();
    let (mnemonic, operands) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let operands: Vec<_> = operands.split(',').map(str::trim).filter(|operand| !operand.is_empty()).collect();
    let first = operands.first().copied().unwrap_or_default();
    let link = || format!("adr x30, {NEXT}");
    let towards = |kept: usize| {
        let kept = operands.iter().take(kept).copied().chain([NEXT]).collect::<Vec<_>>();
        vec![format!("{mnemonic} {}", kept.join(", "))]
    };
    match mnemonic {
        "bl" => vec![link(), format!("b {NEXT}")],
        "blr" => vec![link(), format!("br {first}")],
        "ret" => vec![format!("br {}", if first.is_empty() { "x30" } else { first })],
        "b" => towards(0),
        "cbz" | "cbnz" | "adr" => towards(1),
        "adrp" => vec![format!("adrp {first}, #4096")],
        "tbz" | "tbnz" => towards(2),
        _ if mnemonic.starts_with("b.") || mnemonic.starts_with("bc.") => towards(0),
        // A literal load: its second operand is an address.
        "ldr" | "ldrsw" | "prfm" if operands.get(1).is_some_and(|operand| operand.starts_with("0x")) => {
            vec![format!("{mnemonic} {first}, #8")]
        }
        _ if mnemonic.starts_with('<') || mnemonic.starts_with('.') => vec!["nop".to_owned()],
        _ => vec![format!("{mnemonic} {}", operands.join(", ")).trim_end().to_owned()],
    }
}

/// Models one path, given as [`Listing::straight`] returns it.
///
/// # Errors
/// `llvm-mca` failed, or refuses an instruction.
pub fn model(assembly: &str, llvm: &Llvm) -> Result<Modelled> {
    let given = u32::try_from(assembly.lines().count())?;
    let once = simulate(assembly, 1, llvm)?;
    let often = simulate(assembly, PASSES, llvm)?;
    Ok(Modelled {
        cycles: once.total_cycles,
        steady_cycles: f64::from(often.total_cycles) / f64::from(PASSES),
        unmodelled: given.saturating_sub(once.instructions),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct McaReport {
    code_regions: Vec<McaRegion>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct McaRegion {
    summary_view: McaSummary,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "PascalCase")]
struct McaSummary {
    total_cycles: u32,
    instructions: u32,
}

fn simulate(assembly: &str, passes: u32, llvm: &Llvm) -> Result<McaSummary> {
    let file = tempfile::Builder::new().prefix("neap-path-").suffix(".s").tempfile()?;
    fs::write(file.path(), assembly)?;
    let mca = || {
        let mut command = Command::new(&llvm.mca);
        command.args(["-mtriple=aarch64", "-mcpu=neoverse-n1", "-json"]);
        command.arg(format!("-iterations={passes}")).arg(file.path());
        command
    };
    // Before LLVM 20 there is no such option, and an instruction without a schedule is an error.
    let report =
        output(mca().arg("-skip-unsupported-instructions=lack-sched")).or_else(|_| output(&mut mca()))?;
    let report: McaReport = serde_json::from_str(&report).context("reading llvm-mca's report")?;
    let [region] = &report.code_regions[..] else { bail!("llvm-mca reported no single region") };
    Ok(region.summary_view)
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let done = command.output().with_context(|| format!("starting {}", program.display()))?;
    if !done.status.success() {
        bail!("{}: {}: {}", program.display(), done.status, String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8(done.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_lose_their_targets_and_calls_their_leaving() {
        let cases: [(&str, &[&str]); 16] = [
            ("b\t0x402000c4 <poll+0x38>", &["b #4"]),
            ("b.ne\t0x402000f8 <none>", &["b.ne #4"]),
            ("cbnz\tx15, 0x4020008c <poll>", &["cbnz x15, #4"]),
            ("tbz\tw8, #0x3, 0x40201000 <f+0x8>", &["tbz w8, #0x3, #4"]),
            ("bl\t0x402000c8 <core::fmt::write>", &["adr x30, #4", "b #4"]),
            ("blr\tx8", &["adr x30, #4", "br x8"]),
            ("ret", &["br x30"]),
            ("ret\tx17", &["br x17"]),
            ("adr\tx1, 0x40200100 <blk>", &["adr x1, #4"]),
            ("adrp\tx1, 0x40203000 <blk+0x8>", &["adrp x1, #4096"]),
            ("ldr\tx0, 0x40200200 <literal>", &["ldr x0, #8"]),
            ("ldr\tx0, [x1, #0x8]", &["ldr x0, [x1, #0x8]"]),
            ("mov\tx0, #0x48000000         // =1207959552", &["mov x0, #0x48000000"]),
            ("ldp\tx29, x30, [sp], #0x10", &["ldp x29, x30, [sp], #0x10"]),
            ("dmb\tishst", &["dmb ishst"]),
            ("<unknown>", &["nop"]),
        ];
        for (text, lines) in cases {
            assert_eq!(straighten(text), lines, "{text}");
        }
    }

    #[test]
    fn a_listing_is_read_by_address_and_a_path_follows_the_core() {
        let listing = Listing::parse(
            "\nfw:\tfile format elf64-littleaarch64\n\nDisassembly of section .text:\n\n\
             0000000040200000 <_start>:\n40200000:      \tsub\tx15, x15, #0x1\n\
             40200004:      \tcbnz\tx15, 0x40200000 <_start>\n40200008:      \tret\n",
        );
        let loop_twice = [0x4020_0000, 0x4020_0004, 0x4020_0000, 0x4020_0004, 0x4020_0008];
        let expected = "\tsub x15, x15, #0x1\n\tcbnz x15, #4\n".repeat(2) + "\tbr x30\n";
        assert_eq!(listing.straight(&loop_twice).unwrap(), expected);
        assert!(listing.straight(&[0x4020_000c]).unwrap_err().to_string().contains("0x4020000c"));
    }

    #[test]
    fn cycles_become_nanoseconds_with_the_doorbell() {
        let modelled = Modelled { cycles: 120, steady_cycles: 50.0, unmodelled: 0 };
        assert!((modelled.ns() - 110.0).abs() < 1e-9);
    }
}
