//! Whether the host driver's kfuncs and interrupt handlers can panic: answered by `neap.ko`, not by its sources.
//!
//! They run under a runqueue's lock, or with interrupts off. From each of them on, every branch and call is followed, function by
//! function, through the relocations that the kernel's loader will apply. The check fails where that reaches a panic, where it
//! reaches a function of the kernel's that is not known to be fit for such a place, and where it can't tell.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, OpKind};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SectionKind, SymbolIndex, SymbolKind,
};

use super::{Report, forbidden, plain, walk};

/// Functions of the driver's that only threads call, and the machine when it stands still. All others with such a name are
/// checked, so that none is forgotten.
const THREADS: [&str; 13] = [
    "neap_cpu_online",
    "neap_has_cpu",
    "neap_lend",
    "neap_migrate_disable",
    "neap_migrate_enable",
    "neap_pgprot_noncached",
    "neap_policy",
    "neap_rs_attached",
    "neap_rs_beat",
    "neap_shim_exit",
    "neap_shim_init",
    "neap_stop_machine",
    "neap_take_back",
];

/// What else runs with interrupts off, as demangled names have it: the interrupts' handler, and what the watch has other CPUs do.
const HANDLERS: [&[&str]; 2] = [&["irq", "handle_irq_callback", "Vector"], &["beat::withhold"]];

/// Functions of the kernel's that may be called there, and why.
const KERNEL: [(&str, &str); 15] = [
    ("__fentry__", "where functions are traced"),
    ("__x86_return_thunk", "a return"),
    ("__stack_chk_fail", "the kernel's own guard of its stacks"),
    ("ktime_get_mono_fast_ns", "a clock that an NMI may read"),
    ("rust_helper_raw_smp_processor_id", "the number of the CPU"),
    ("rust_helper_local_interrupt_disable", "no more than its name says"),
    ("rust_helper_local_interrupt_enable", "no more than its name says"),
    ("__SCT__preempt_schedule_notrace", "the end of a tracepoint"),
    ("__cpu_online_mask", "a mask that is read"),
    ("_find_next_bit", "looks at a mask"),
    ("_find_first_bit", "looks at a mask"),
    ("_find_next_zero_bit", "looks at a mask"),
    ("__bitmap_subset", "looks at two masks"),
    ("memcpy", "copies bytes"),
    ("sort", "in place and bounded; of the stopped machine"),
];

/// Functions that may call through a register, and why that call is known to be harmless.
const INDIRECT: [(&str, &str); 1] =
    [("__traceiter_neap_", "whoever traces knows that the kernel traces here")];

/// A section's number.
type Section = usize;

/// One function of the module's.
#[derive(Debug)]
struct Function {
    name: String,
    section: Section,
    start: u64,
    end: u64,
}

impl Function {
    fn may_call_through_registers(&self) -> bool {
        INDIRECT.iter().any(|(allowed, _)| self.name.starts_with(allowed))
    }
}

/// Where a branch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// To a place of the module's.
    Inside(Section, u64),
    /// To a symbol of the kernel's.
    Kernel(SymbolIndex),
    /// To the address in a register or in memory.
    Indirect,
}

/// The module's code.
struct Module<'data> {
    file: object::File<'data>,
    functions: Vec<Function>,
    /// Functions by their place.
    places: BTreeMap<(Section, u64), usize>,
    /// Relocations by their place.
    relocations: BTreeMap<(Section, u64), (RelocationTarget, i64)>,
}

/// Checks the module in a file, from all of its functions on that run under a runqueue's lock or with interrupts off.
///
/// # Errors
/// The file is no module that can be checked.
pub fn check_file(ko: &Path) -> Result<Report> {
    let bytes = fs::read(ko).with_context(|| format!("{} can't be read", ko.display()))?;
    check(&bytes, &entries(&bytes)?)
}

/// The functions of a module that run under a runqueue's lock or with interrupts off, by their symbols.
///
/// # Errors
/// It is no module, or a handler is not found.
pub fn entries(ko: &[u8]) -> Result<Vec<String>> {
    let module = Module::read(ko)?;
    let mut entries: Vec<String> = Vec::new();
    for function in &module.functions {
        let name = &function.name;
        let ours = name.starts_with("neap_") && !THREADS.contains(&name.as_str());
        // The part that the compiler has split off runs in threads.
        if ours && !name.contains('.') && module.is_text(function.section) {
            entries.push(name.clone());
        }
    }
    for parts in HANDLERS {
        let handles = |function: &&Function| {
            let plain = plain(&function.name);
            !function.name.starts_with("__pfx_") && parts.iter().all(|part| plain.contains(part))
        };
        let found: Vec<_> = module.functions.iter().filter(handles).map(|found| found.name.clone()).collect();
        if found.is_empty() {
            bail!("no function of {} in the module: was it renamed?", parts.join("…"));
        }
        entries.extend(found);
    }
    entries.sort();
    entries.dedup();
    Ok(entries)
}

/// Checks a module from the functions `entries` on. Fails where it is no module, or has no such function.
///
/// # Errors
/// As above.
pub fn check(ko: &[u8], entries: &[String]) -> Result<Report> {
    let module = Module::read(ko)?;
    let mut starts = Vec::new();
    for entry in entries {
        let at = module.functions.iter().position(|function| function.name == *entry);
        starts.push(at.with_context(|| format!("the module has no function {entry}"))?);
    }
    module.follow(&starts)
}

impl<'data> Module<'data> {
    fn read(ko: &'data [u8]) -> Result<Self> {
        let file = object::File::parse(ko).context("not an ELF")?;
        if file.architecture() != object::Architecture::X86_64
            || file.kind() != object::ObjectKind::Relocatable
        {
            bail!("{:?} for {:?}, not a module for x86-64", file.kind(), file.architecture());
        }
        let (mut functions, mut places) = (Vec::new(), BTreeMap::new());
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
            let (Some(SectionIndex(section)), Ok(name)) = (symbol.section_index(), symbol.name()) else {
                continue;
            };
            let (start, end) = (symbol.address(), symbol.address().saturating_add(symbol.size()));
            let known = places.get(&(section, start)).copied();
            // Of several names of one place the longest is the most telling; aliases have the same code.
            match known {
                Some(at) => {
                    let function: &mut Function = &mut functions[at];
                    function.end = function.end.max(end);
                }
                None => {
                    places.insert((section, start), functions.len());
                    functions.push(Function { name: name.to_owned(), section, start, end });
                }
            }
        }
        let mut relocations = BTreeMap::new();
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            for (offset, relocation) in section.relocations() {
                relocations.insert((section.index().0, offset), (relocation.target(), relocation.addend()));
            }
        }
        Ok(Self { file, functions, places, relocations })
    }

    /// Whether a section's code stays when the module has been loaded.
    fn is_text(&self, section: Section) -> bool {
        let name = self
            .file
            .section_by_index(SectionIndex(section))
            .ok()
            .and_then(|section| section.name().ok().map(str::to_owned));
        name.is_some_and(|name| name.starts_with(".text") || name.starts_with(".noinstr.text"))
    }

    fn at(&self, section: Section, address: u64) -> Option<usize> {
        let (_, &at) = self.places.range(..=(section, address)).next_back()?;
        let function = self.functions.get(at)?;
        let inside = function.section == section
            && (address < function.end || address == function.start && function.end == function.start);
        inside.then_some(at)
    }

    /// Where the relocation within an instruction leads.
    fn relocated(&self, section: Section, instruction: &Instruction) -> Option<Target> {
        let (from, to) = (instruction.ip(), instruction.next_ip());
        let mut inside = self.relocations.range((section, from)..(section, to));
        let (&(_, place), &(target, addend)) = inside.next()?;
        // A branch is relative to what follows it: the addend takes that off.
        let offset = addend.wrapping_add((to - place) as i64);
        Some(match target {
            RelocationTarget::Symbol(index) => {
                let symbol = self.file.symbol_by_index(index).ok()?;
                match symbol.section_index() {
                    Some(SectionIndex(section)) => {
                        Target::Inside(section, symbol.address().wrapping_add_signed(offset))
                    }
                    None => Target::Kernel(index),
                }
            }
            RelocationTarget::Section(SectionIndex(section)) => Target::Inside(section, offset as u64),
            _ => Target::Indirect,
        })
    }

    /// Every way out of a function.
    fn targets(&self, function: &Function) -> Result<Vec<(u64, Target)>> {
        let section = self.file.section_by_index(SectionIndex(function.section))?;
        let bytes = section.data().context("a section's bytes are not in the file")?;
        let (from, to) = (usize::try_from(function.start)?, usize::try_from(function.end)?);
        let code =
            bytes.get(from..to).with_context(|| format!("{} ends after its section", function.name))?;
        let mut decoder = Decoder::with_ip(64, code, function.start, DecoderOptions::NONE);
        let (mut targets, mut instruction) = (Vec::new(), Instruction::default());
        let mut falls_through = None;
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            if instruction.is_invalid() {
                bail!("{}: {:#x} is no instruction", function.name, instruction.ip());
            }
            falls_through = None;
            match instruction.flow_control() {
                FlowControl::Next => falls_through = Some(instruction.next_ip()),
                FlowControl::Return | FlowControl::Interrupt | FlowControl::Exception => {}
                FlowControl::ConditionalBranch
                | FlowControl::UnconditionalBranch
                | FlowControl::Call
                | FlowControl::XbeginXabortXend => {
                    let target = self.relocated(function.section, &instruction).or_else(|| {
                        let near = matches!(
                            instruction.op0_kind(),
                            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
                        );
                        near.then(|| Target::Inside(function.section, instruction.near_branch_target()))
                    });
                    targets.push((instruction.ip(), target.unwrap_or(Target::Indirect)));
                    if instruction.flow_control() == FlowControl::ConditionalBranch {
                        falls_through = Some(instruction.next_ip());
                    }
                }
                FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                    targets.push((instruction.ip(), Target::Indirect));
                }
            }
        }
        if let Some(next) = falls_through.filter(|&next| self.at(function.section, next).is_some()) {
            targets.push((function.end, Target::Inside(function.section, next)));
        }
        Ok(targets)
    }

    /// Follows every way out of `starts`.
    fn follow(&self, starts: &[usize]) -> Result<Report> {
        walk::follow(starts, |at| plain(&self.functions[at].name), |at, find| self.ways(at, find))
    }

    /// Where a function leads; what is wrong with it goes to `find`.
    fn ways(&self, at: usize, find: &mut dyn FnMut(String)) -> Result<Vec<usize>> {
        let function = &self.functions[at];
        let mut inside = Vec::new();
        if let Some(what) = forbidden([function.name.as_str()]) {
            find(format!("{what} can be reached"));
            return Ok(inside);
        }
        for (address, target) in self.targets(function)? {
            match target {
                Target::Inside(section, place) => match self.at(section, place) {
                    Some(callee) => inside.push(callee),
                    None => find(format!("{address:#x} branches to where no function is known")),
                },
                Target::Kernel(symbol) => {
                    let symbol = self.file.symbol_by_index(symbol)?;
                    self.judge(function, symbol.name().unwrap_or_default(), find);
                }
                Target::Indirect => {
                    if !function.may_call_through_registers() {
                        find(format!("{address:#x} calls through a register: it can't be told what"));
                    }
                }
            }
        }
        Ok(inside)
    }

    /// Whether the module's code may call what is not its own.
    fn judge(&self, function: &Function, name: &str, find: &mut dyn FnMut(String)) {
        if let Some(what) = forbidden([name]) {
            find(format!("{what} can be reached: {}", plain(name)));
        } else if name.starts_with("__x86_indirect_thunk_") {
            if !function.may_call_through_registers() {
                find("a call through a register: it can't be told what".to_owned());
            }
        } else if !KERNEL.iter().any(|(allowed, _)| *allowed == name) {
            find(format!("{} of the kernel's is called, which is not known to be fit for it", plain(name)));
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use std::process::Command;

    /// What rustc makes of `source`, as one object.
    fn object(source: &str) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("source.rs"), directory.path().join("module.o"));
        fs::write(&from, format!("#![no_std]\n{source}")).unwrap();
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--crate-type=rlib", "--emit=obj", "--target=x86_64-unknown-linux-gnu", "-Cpanic=abort"]);
        rustc.args([
            "-Copt-level=2",
            "-Coverflow-checks=on",
            "-Ccodegen-units=1",
            "-Crelocation-model=static",
        ]);
        let done = rustc.arg("-o").arg(&to).arg(&from).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        fs::read(to).unwrap()
    }

    fn findings(source: &str, entry: &str) -> Vec<String> {
        let report = check(&object(source), &[entry.to_owned()]).unwrap();
        report.findings.iter().map(ToString::to_string).collect()
    }

    const HELPERS: &str = "
        #[no_mangle] #[inline(never)] pub extern \"C\" fn sum(a: u64, b: u64) -> u64 { a + b }
        #[no_mangle] #[inline(never)] pub extern \"C\" fn wraps(a: u64, b: u64) -> u64 { a.wrapping_add(b) }
        #[no_mangle] pub extern \"C\" fn neap_rs_beat(a: u64) -> u64 { sum(a, a) }
        extern \"C\" { fn mutex_lock(a: u64) -> u64; fn ktime_get_mono_fast_ns() -> u64; }";

    #[test]
    fn a_panic_is_found_behind_calls() {
        let source = format!(
            "{HELPERS}\n#[no_mangle] pub extern \"C\" fn neap_a(a: u64) -> u64 {{ sum(wraps(a, 1), 3) ^ 1 }}"
        );
        let found = findings(&source, "neap_a");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a panic can be reached") && found[0].contains("panic_const_add_overflow"));
        assert!(found[0].contains("\n  neap_a\n   sum"), "{}", found[0]);
    }

    #[test]
    fn what_is_not_reached_does_not_count_and_what_is_known_may_be_called() {
        let source = format!(
            "{HELPERS}\n#[no_mangle] pub extern \"C\" fn neap_a(a: u64) -> u64 {{ wraps(a, unsafe {{ ktime_get_mono_fast_ns() }}) }}"
        );
        assert!(findings(&source, "neap_a").is_empty());
    }

    #[test]
    fn a_function_of_the_kernel_that_may_sleep_is_found() {
        let source = format!(
            "{HELPERS}\n#[no_mangle] pub extern \"C\" fn neap_a(a: u64) -> u64 {{ (unsafe {{ mutex_lock(a) }}) ^ 1 }}"
        );
        assert!(findings(&source, "neap_a")[0].contains("mutex_lock of the kernel's is called"));
    }

    #[test]
    fn a_call_through_a_register_is_found() {
        let source = format!(
            "{HELPERS}\n#[no_mangle] pub extern \"C\" fn neap_a(f: extern \"C\" fn(u64) -> u64) -> u64 {{ f(1) ^ 1 }}"
        );
        assert!(findings(&source, "neap_a")[0].contains("calls through a register"));
    }

    #[test]
    fn a_bound_is_a_panic_and_a_function_that_is_not_there_an_error() {
        let source = format!(
            "{HELPERS}\n#[no_mangle] pub extern \"C\" fn neap_a(a: &[u64; 4], at: usize) -> u64 {{ a[at] }}"
        );
        assert!(findings(&source, "neap_a")[0].contains("panic_bounds_check"));
        assert!(check(&object(&source), &["neap_b".to_owned()]).is_err());
        assert!(entries(&object(&source)).unwrap_err().to_string().contains("handle_irq_callback"));
        assert!(check(b"\x7fELF", &[]).is_err());
    }
}
