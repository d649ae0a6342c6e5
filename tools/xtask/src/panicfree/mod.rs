//! Whether the decision path can panic or allocate: answered by the release ELF, not by its sources.
//!
//! From the functions of the path on, every branch and call is followed, function by function. The check fails
//! where that reaches a panic or an allocation, and where it can't tell: a call through a register, a branch
//! to where no function is known. It fails too where it finds no function of the path, so that a renamed
//! function can't make it hold.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

mod decode;
pub mod module;
mod walk;

use decode::{Flow, adds_into, flow};

/// A function of the decision path: what its symbol's mangled name has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The crate.
    pub krate: &'static str,
    /// The function.
    pub function: &'static str,
}

/// The agents' loop, with each agent's policy in it: from the load of a line to the doorbell, all of the path is below it.
pub const ROOTS: [Root; 1] = [Root { krate: "neap_agent", function: "decision_loop" }];

/// What must not be reached, as demangled names have it, and what it is.
const FORBIDDEN: [(&str, &str); 13] = [
    ("core::panicking::", "a panic"),
    ("core::option::unwrap_failed", "a panic"),
    ("core::option::expect_failed", "a panic"),
    ("core::result::unwrap_failed", "a panic"),
    ("core::slice::index::slice_", "a panic"),
    ("core::slice::copy_from_slice_impl::", "a panic"),
    ("rust_begin_unwind", "the panic handler"),
    ("__rustc::rust_begin_unwind", "the panic handler"),
    ("__fortify_panic", "a panic"),
    ("__rust_alloc", "an allocation"),
    ("__rust_realloc", "an allocation"),
    ("alloc::", "an allocation"),
    ("linked_list_allocator::", "an allocation"),
];

/// Functions that may call through a register, and why that call is known to be harmless. None is.
const INDIRECT_ALLOWED: [(&str, &str); 0] = [];

/// What the check found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Functions that the path consists of.
    pub functions: usize,
    /// Where it breaks its promise.
    pub findings: Vec<Finding>,
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The calls that lead there, from the path's first function on.
    pub chain: Vec<String>,
    /// What is there.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.what)?;
        for (depth, function) in self.chain.iter().enumerate() {
            write!(out, "\n  {:depth$}{function}", "")?;
        }
        Ok(())
    }
}

/// Checks an ELF from `roots` on. Fails where it is no ELF, or has no function of one of the roots.
pub fn check(elf: &[u8], roots: &[Root]) -> Result<Report> {
    let program = Program::read(elf)?;
    let mut starts = Vec::new();
    for root in roots {
        let before = starts.len();
        starts.extend(
            program.functions.values().filter(|function| function.is(root)).map(|function| function.start),
        );
        if starts.len() == before {
            bail!(
                "no symbol of {}::{} in the ELF: was it inlined or renamed? The check needs it as a function of its own",
                root.krate,
                root.function
            );
        }
    }
    program.follow(&starts)
}

/// One function: what lies between its symbol and the symbol's end.
#[derive(Clone, Debug, Default)]
struct Function {
    start: u64,
    /// All symbols that stand for it, mangled: identical functions are folded into one.
    symbols: Vec<String>,
    /// Its instructions by address, without the data between them.
    code: Vec<(u64, u32)>,
    end: u64,
}

impl Function {
    fn is(&self, root: &Root) -> bool {
        self.symbols.iter().any(|symbol| symbol.contains(root.krate) && symbol.contains(root.function))
    }

    /// Names for people.
    fn name(&self) -> String {
        let names: Vec<String> = self.symbols.iter().map(|symbol| plain(symbol)).collect();
        names.join(" = ")
    }

    fn forbidden(&self) -> Option<&'static str> {
        forbidden(self.symbols.iter().map(String::as_str))
    }
}

/// A symbol's name for people, without its hash.
fn plain(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}

/// What a function must not be that has these symbols, if it is that.
fn forbidden<'a>(symbols: impl IntoIterator<Item = &'a str>) -> Option<&'static str> {
    symbols.into_iter().find_map(|symbol| {
        let name = plain(symbol);
        // Of a method's name, `<T as Trait>::f`, the type counts: the trait may be anybody's.
        let name = name.trim_start_matches(['<', '&']);
        FORBIDDEN.iter().find(|(start, _)| name.starts_with(start)).map(|&(_, what)| what)
    })
}

/// The functions of an ELF, by address.
#[derive(Clone, Debug, Default)]
struct Program {
    functions: BTreeMap<u64, Function>,
}

impl Program {
    fn read(elf: &[u8]) -> Result<Self> {
        let file = object::File::parse(elf).context("not an ELF")?;
        if file.architecture() != object::Architecture::Aarch64 {
            bail!("built for {:?}, not for the card's Aarch64", file.architecture());
        }
        let mut program = Self::default();
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let bytes = section.data().context("a section's bytes are not in the file")?;
            let (from, to) = (section.address(), section.address().saturating_add(bytes.len() as u64));
            let inside = file
                .symbols()
                .filter(|symbol| symbol.section_index() == Some(section.index()) && symbol.address() < to);
            let (mut functions, mut marks) = (BTreeMap::<u64, (u64, Vec<String>)>::new(), BTreeMap::new());
            for symbol in inside {
                let name = symbol.name().unwrap_or_default();
                // Mapping symbols (AAELF64, 5.5.5) tell data from code.
                if name == "$x" || name.starts_with("$x.") || name == "$d" || name.starts_with("$d.") {
                    marks.insert(symbol.address(), name.starts_with("$d"));
                } else if !matches!(symbol.kind(), SymbolKind::Section | SymbolKind::File) && !name.is_empty()
                {
                    let entry = functions.entry(symbol.address()).or_default();
                    entry.0 = entry.0.max(symbol.size());
                    entry.1.push(name.to_owned());
                }
            }
            let starts: Vec<u64> = functions.keys().copied().chain([to]).collect();
            for ((start, (size, symbols)), next) in functions.into_iter().zip(starts.into_iter().skip(1)) {
                // Assembly's symbols have no size: theirs is all up to the next.
                let end = if size == 0 { next } else { start.saturating_add(size).min(to) };
                let code = (start..end)
                    .step_by(4)
                    .filter(|at| !marks.range(..=at).next_back().is_some_and(|(_, &data)| data))
                    .filter_map(|at| {
                        let offset = usize::try_from(at.checked_sub(from)?).ok()?;
                        let word = bytes.get(offset..offset.checked_add(4)?)?;
                        Some((at, u32::from_le_bytes(word.try_into().ok()?)))
                    })
                    .collect();
                program.functions.insert(start, Function { start, symbols, code, end });
            }
        }
        Ok(program)
    }

    fn at(&self, address: u64) -> Option<&Function> {
        let (_, function) = self.functions.range(..=address).next_back()?;
        (address < function.end).then_some(function)
    }

    /// Follows every way out of `starts`.
    fn follow(&self, starts: &[u64]) -> Result<Report> {
        let name = |start| self.functions.get(&start).map_or_else(|| format!("{start:#x}"), Function::name);
        walk::follow(starts, name, |start, find| Ok(self.ways(start, find)))
    }

    /// Where a function leads; what is wrong with it goes to `find`.
    fn ways(&self, start: u64, find: &mut dyn FnMut(String)) -> Vec<u64> {
        let Some(function) = self.functions.get(&start) else { return Vec::new() };
        if let Some(what) = function.forbidden() {
            find(format!("{what} can be reached"));
            return Vec::new();
        }
        let mut targets = Vec::new();
        for (index, &(address, word)) in function.code.iter().enumerate() {
            match flow(address, word) {
                Flow::Next => {}
                Flow::To(target) => match self.at(target) {
                    Some(callee) => targets.push(callee.start),
                    None => {
                        find(format!("{address:#x} branches to {target:#x}, where no function is known"));
                    }
                },
                Flow::CallRegister(register) => {
                    let name = function.name();
                    if !INDIRECT_ALLOWED.iter().any(|(allowed, _)| name.contains(allowed)) {
                        find(format!("{address:#x} calls through x{register}: it can't be told what"));
                    }
                }
                Flow::JumpRegister(register) => {
                    let before = &function.code[index.saturating_sub(4)..index];
                    if !before.iter().any(|&(_, word)| adds_into(word, register)) {
                        find(format!("{address:#x} jumps through x{register}: it can't be told where"));
                    }
                }
            }
        }
        // Falling off the end leads into the next function; a return, a branch or a trap does not.
        if let Some(next) = function.falls_through().and_then(|address| self.at(address)) {
            targets.push(next.start);
        }
        targets
    }
}

impl Function {
    /// Where its last instruction goes on to, if it is one that goes on.
    fn falls_through(&self) -> Option<u64> {
        let &(address, word) = self.code.last()?;
        let ends = matches!(word & 0xfc00_0000, 0x1400_0000 | 0x9400_0000) // B; BL, to what does not return
            || word & 0xfe00_0000 == 0xd600_0000 // BR, BLR, RET, ERET
            || word & 0xffe0_0000 == 0xd420_0000 // BRK
            || word & 0xffff_0000 == 0 // UDF
            || word == 0xd503_201f; // NOP: padding
        (!ends).then_some(address + 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RET: u32 = 0xd65f_03c0;
    const NOP: u32 = 0xd503_201f;

    /// Functions of at most 64 instructions each, one every 256 bytes from 0x1000 on.
    fn program(functions: &[(&str, &[u32])]) -> Program {
        let place = |index: usize| 0x1000 + 256 * index as u64;
        let functions = functions.iter().enumerate().map(|(index, (name, words))| {
            let start = place(index);
            let code: Vec<_> =
                words.iter().enumerate().map(|(at, &word)| (start + 4 * at as u64, word)).collect();
            let end = start + 4 * words.len() as u64;
            (start, Function { start, symbols: vec![(*name).to_owned()], code, end })
        });
        Program { functions: functions.collect() }
    }

    /// BL from the function at `from`, instruction `index`, to the function at `to`.
    fn bl(from: usize, index: usize, to: usize) -> u32 {
        0x9400_0000 | (((to as i64 - from as i64) * 64 - index as i64) as u32 & 0x03ff_ffff)
    }

    /// B, likewise.
    fn b(from: usize, index: usize, to: usize) -> u32 {
        bl(from, index, to) & 0x7fff_ffff
    }

    const PANIC: &str = "_ZN4core9panicking9panic_fmt17h0123456789abcdefE";

    #[test]
    fn a_panic_is_found_with_its_chain() {
        let program = program(&[
            ("decision_loop", &[NOP, bl(0, 1, 1), RET]),
            ("take", &[b(1, 0, 3)]),
            ("unreached", &[RET]),
            ("slow", &[NOP, NOP, bl(3, 2, 4)]),
            (PANIC, &[RET]),
        ]);
        let report = program.follow(&[0x1000]).unwrap();
        assert_eq!(report.functions, 4);
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].chain, ["decision_loop", "take", "slow", "core::panicking::panic_fmt"]);
        assert!(report.findings[0].to_string().contains("a panic can be reached"));
    }

    #[test]
    fn what_is_not_reached_does_not_count() {
        let program = program(&[
            ("decision_loop", &[b(0, 0, 1)]),
            ("take", &[0x3600_0000 | 2 << 5, RET, b(1, 2, 0)]), // tbz to its own RET + 1
            (PANIC, &[RET]),
        ]);
        assert_eq!(program.follow(&[0x1000]).unwrap(), Report { functions: 2, findings: vec![] });
    }

    #[test]
    fn conditional_branches_out_of_a_function_count() {
        // cbz w0, +64 instructions: the next function.
        let program = program(&[("decision_loop", &[0x3400_0000 | 64 << 5, RET]), (PANIC, &[RET])]);
        assert_eq!(program.follow(&[0x1000]).unwrap().findings.len(), 1);
    }

    #[test]
    fn calls_through_registers_are_findings() {
        let program = program(&[("decision_loop", &[0xf940_0c21, 0xd63f_0020, RET])]);
        let report = program.follow(&[0x1000]).unwrap();
        assert!(report.findings[0].what.contains("0x1004 calls through x1"), "{report:?}");
    }

    #[test]
    fn jump_tables_are_told_from_tail_calls() {
        let table = program(&[("decision_loop", &[0x8b0c_096b, 0xd61f_0160])]);
        assert!(table.follow(&[0x1000]).unwrap().findings.is_empty());
        let tail_call = program(&[("decision_loop", &[0xf940_0c21, 0xd61f_0020])]);
        assert!(tail_call.follow(&[0x1000]).unwrap().findings[0].what.contains("jumps through x1"));
    }

    #[test]
    fn a_branch_to_nowhere_is_a_finding() {
        let program = program(&[("decision_loop", &[0x1400_0100])]);
        assert!(program.follow(&[0x1000]).unwrap().findings[0].what.contains("no function is known"));
    }

    #[test]
    fn falling_into_the_next_function_is_followed() {
        let mut program = program(&[("decision_loop", &[0xf940_0c21]), (PANIC, &[RET])]);
        assert!(program.follow(&[0x1000]).unwrap().findings.is_empty());
        let panic = program.functions.remove(&0x1100).unwrap();
        program
            .functions
            .insert(0x1004, Function { start: 0x1004, code: vec![(0x1004, RET)], end: 0x1008, ..panic });
        assert_eq!(program.follow(&[0x1000]).unwrap().findings.len(), 1);
    }

    #[test]
    fn recursion_ends() {
        let program =
            program(&[("decision_loop", &[bl(0, 0, 1), RET]), ("take", &[bl(1, 0, 0), bl(1, 1, 1), RET])]);
        assert_eq!(program.follow(&[0x1000]).unwrap().functions, 2);
    }

    #[test]
    fn allocations_count_and_names_that_only_look_alike_do_not() {
        let forbidden =
            |name: &str| Function { symbols: vec![name.to_owned()], ..Default::default() }.forbidden();
        assert_eq!(forbidden("_ZN5alloc7raw_vec12handle_error17h0123456789abcdefE"), Some("an allocation"));
        assert_eq!(forbidden("__rust_alloc"), Some("an allocation"));
        assert_eq!(forbidden("_ZN4core6option13unwrap_failed17h0123456789abcdefE"), Some("a panic"));
        assert_eq!(forbidden("rust_begin_unwind"), Some("the panic handler"));
        assert_eq!(forbidden("_ZN10neap_agent5alloc4take17h0123456789abcdefE"), None);
        assert_eq!(forbidden("decision_loop"), None);
    }

    #[test]
    fn bytes_that_are_no_firmware_are_refused() {
        for bytes in [&b""[..], b"\x7fELF", &[0xff; 4096]] {
            assert!(check(bytes, &ROOTS).is_err());
        }
    }
}
