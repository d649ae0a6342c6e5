//! The firmware's ELFs, the runtime's and the agent's, by address: opcodes, exception vectors, and who a piece of code belongs to.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

/// Bytes of an exception vector table (Arm DDI 0487, D1.3.1.4): sixteen entries of [`ENTRY_BYTES`].
const VECTORS_BYTES: u64 = 2048;
const ENTRY_BYTES: u64 = 128;

/// ELFs that lie apart, ready to say what runs at an address.
pub struct Program {
    code: Vec<(u64, Vec<u8>)>,
    vectors: Vec<Range<u64>>,
    symbols: Vec<(u64, String)>,
    /// The line tables, each from the address on where its ELF begins, in order.
    lines: Vec<(u64, addr2line::Loader)>,
}

impl Program {
    /// Reads ELFs with line tables.
    ///
    /// # Errors
    /// No ELF, or none with exception vectors: then a trap would go unseen.
    pub fn open(elves: &[&Path]) -> Result<Self> {
        let mut program =
            Self { code: Vec::new(), vectors: Vec::new(), symbols: Vec::new(), lines: Vec::new() };
        for elf in elves {
            program.add(elf)?;
        }
        program.symbols.sort();
        program.lines.sort_by_key(|(start, _)| *start);
        let tables = program
            .symbols
            .iter()
            .filter(|(address, name)| name.contains("vectors") && address.is_multiple_of(VECTORS_BYTES));
        program.vectors = tables.map(|(address, _)| *address..address + VECTORS_BYTES).collect();
        if program.vectors.is_empty() {
            bail!("no ELF has a symbol of exception vectors: a trap on the path would go unseen");
        }
        Ok(program)
    }

    fn add(&mut self, elf: &Path) -> Result<()> {
        let bytes = fs::read(elf).with_context(|| format!("reading {}", elf.display()))?;
        let file = object::File::parse(&*bytes).with_context(|| format!("{} is no ELF", elf.display()))?;
        let mut start = u64::MAX;
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            start = start.min(section.address());
            self.code.push((section.address(), section.data()?.to_vec()));
        }
        let named = file
            .symbols()
            .filter(|symbol| symbol.is_definition())
            .filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned())))
            // Mapping symbols mark code and data; they name nothing.
            .filter(|(_, name)| !name.is_empty() && !name.starts_with('$'));
        self.symbols.extend(named);
        let lines = addr2line::Loader::new(elf)
            .map_err(|error| anyhow!("reading the line tables of {}: {error}", elf.display()))?;
        self.lines.push((start, lines));
        Ok(())
    }

    /// The instruction at `pc`.
    pub fn opcode(&self, pc: u64) -> Option<u32> {
        let (start, bytes) =
            self.code.iter().find(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&pc))?;
        let at = usize::try_from(pc - start).ok()?;
        Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    }

    /// Whether `pc` is where the core enters an exception vector.
    pub fn enters_vector(&self, pc: u64) -> bool {
        self.vectors.iter().any(|range| range.contains(&pc) && (pc - range.start).is_multiple_of(ENTRY_BYTES))
    }

    /// The functions that `pc` lies in, innermost first, inlined ones too.
    pub fn functions(&self, pc: u64) -> Vec<String> {
        let mut names = Vec::new();
        let lines = self.lines.iter().rev().find(|(start, _)| *start <= pc);
        if let Some(Ok(mut frames)) = lines.map(|(_, lines)| lines.find_frames(pc)) {
            while let Ok(Some(frame)) = frames.next() {
                if let Some(name) = frame.function.as_ref().and_then(|function| function.demangle().ok()) {
                    names.push(name.into_owned());
                }
            }
        }
        let after = self.symbols.partition_point(|(address, _)| *address <= pc);
        if let Some((_, name)) = self.symbols[..after].last() {
            names.push(format!("{:#}", rustc_demangle::demangle(name)));
        }
        names
    }
}

/// What the analysis asks of an address, each answer found once.
pub struct Facts<'a> {
    program: &'a Program,
    known: HashMap<u64, Fact>,
}

/// What an instruction means for the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fact {
    /// What its opcode does to order.
    pub barrier: Option<Barrier>,
    /// It enters a higher exception level: by a vector, or by HVC or SMC.
    pub trap: bool,
    /// It is a part of an allocator.
    pub allocation: bool,
}

/// A barrier (Arm DDI 0487, C6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// Data synchronization: waits for all accesses to complete.
    Dsb,
    /// Data memory: orders accesses, waits for none.
    Dmb,
}

impl Barrier {
    /// What `opcode` is, if it is a barrier.
    pub fn of(opcode: u32) -> Option<Self> {
        // CRm, in bits 11:8, is the domain; FEAT_XS's nXS variant of DSB has its own op2 and CRm<1:0>.
        let any_domain = opcode & 0xffff_f0ff;
        match any_domain {
            0xd503_309f => Some(Self::Dsb),
            0xd503_30bf => Some(Self::Dmb),
            _ if opcode & 0xffff_f3ff == 0xd503_323f => Some(Self::Dsb),
            _ => None,
        }
    }
}

/// HVC or SMC: a trap that no vector of ours sees.
fn calls_up(opcode: u32) -> bool {
    matches!(opcode & 0xffe0_001f, 0xd400_0002 | 0xd400_0003)
}

fn allocates(function: &str) -> bool {
    [
        "linked_list_allocator::",
        "__rust_alloc",
        "__rust_realloc",
        "__rust_dealloc",
        "__rg_alloc",
        "alloc::alloc::",
    ]
    .iter()
    .any(|part| function.contains(part))
}

impl<'a> Facts<'a> {
    /// About `program`.
    pub fn new(program: &'a Program) -> Self {
        Self { program, known: HashMap::new() }
    }

    /// What the instruction at `pc` means.
    ///
    /// # Errors
    /// The ELF has no code there: the records are another image's.
    pub fn of(&mut self, pc: u64) -> Result<Fact> {
        if let Some(fact) = self.known.get(&pc) {
            return Ok(*fact);
        }
        let opcode = self
            .program
            .opcode(pc)
            .with_context(|| format!("the path runs through {pc:#x}, where the ELF has no code"))?;
        let fact = Fact {
            barrier: Barrier::of(opcode),
            trap: self.program.enters_vector(pc) || calls_up(opcode),
            allocation: self.program.functions(pc).iter().any(|function| allocates(function)),
        };
        self.known.insert(pc, fact);
        Ok(fact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dsb_is_told_from_every_other_barrier() {
        // dsb sy, ish, ishst, oshst, nshld; ssbb and pssbb; dsb synxs, oshnxs.
        for opcode in [
            0xd503_3f9f,
            0xd503_3b9f,
            0xd503_3a9f,
            0xd503_329f,
            0xd503_359f,
            0xd503_309f,
            0xd503_349f,
            0xd503_3e3f,
            0xd503_323f,
        ] {
            assert_eq!(Barrier::of(opcode), Some(Barrier::Dsb), "{opcode:#x}");
        }
        // dmb sy, ish, ishst, oshld.
        for opcode in [0xd503_3fbf, 0xd503_3bbf, 0xd503_3abf, 0xd503_31bf] {
            assert_eq!(Barrier::of(opcode), Some(Barrier::Dmb), "{opcode:#x}");
        }
        // isb, sb, clrex, nop, wfi, stlr x0, [x1], msr daifset, #2.
        for opcode in
            [0xd503_3fdf, 0xd503_30ff, 0xd503_3f5f, 0xd503_201f, 0xd503_207f, 0xc89f_fc20, 0xd503_42df]
        {
            assert_eq!(Barrier::of(opcode), None, "{opcode:#x}");
        }
    }

    #[test]
    fn calls_to_firmware_are_traps_and_calls_within_are_not() {
        // hvc #0, smc #0, hvc #0xffff; svc #0 (our vector sees it), brk #1, eret, bl.
        assert!([0xd400_0002, 0xd400_0003, 0xd41f_ffe2].into_iter().all(calls_up));
        assert!(![0xd400_0001, 0xd420_0020, 0xd69f_03e0, 0x9400_0001].into_iter().any(calls_up));
    }

    #[test]
    fn allocators_are_known_by_name() {
        assert!(allocates("linked_list_allocator::hole::HoleList::allocate_first_fit"));
        assert!(allocates("__rust_alloc"));
        assert!(!allocates("neap_agent::Agent::allocate_cpu"));
    }
}
