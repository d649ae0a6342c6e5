//! What a card boots: the runtime as arm64's boot protocol has it (`Image`), and the signed image around it.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use ed25519_dalek::{SigningKey, VerifyingKey};
use neap_abi::VERSION;
use neap_hal::board::bootargs::BootArgs;
use neap_loader::bound::bind;
use neap_loader::image::{Draft, Manifest, PartKind};
use object::elf::PT_LOAD;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object};

use crate::firmware::{self, Kind};
use crate::setup;

/// Boards that images are built for.
pub const BOARDS: [&str; 1] = ["qemu_virt"];
/// The card of the papers. Its registers are not public.
const MOUNT_EVANS: &str = "mount_evans";
/// What has to be known of a card before anything can be built for it.
const OF_A_CARD: [&str; 9] = [
    "its memory: where it begins, and how much of it is the agents'",
    "its cores: their MPIDRs, and by which call (PSCI over SMC or HVC) they are started",
    "its interrupt controller: the addresses of distributor and redistributors",
    "its console: the UART's kind and address",
    "its watchdog: registers, and who hears it",
    "the MMIO function that exposes its DRAM: where a window lies, and which registers choose it",
    "the DMA engine: registers, descriptors, and how a transfer's end is told",
    "the MSI-X generator: registers, and how a function and a vector are named",
    "how an image comes to its flash and is entered: by UEFI, or by a first stage of its own",
];
/// Where memory begins on them, and where the runtime is linked to: `ld/runtime.ld`.
const MEMORY: u64 = 0x4000_0000;
/// The page in front of the runtime that holds the header, so that the rest lies as it is linked.
const HEADER_PAGE: u64 = 4096;
/// The longest runtime, in bytes: more is no runtime.
const RUNTIME_BYTES_MAX: u64 = 8 << 20;

/// The header of arm64's `Image` (Documentation/arch/arm64/booting.rst), all but its first word.
const IMAGE_MAGIC: [u8; 4] = *b"ARM\x64";
/// Little-endian, 4 KiB pages, memory close to the beginning of DRAM.
const IMAGE_FLAGS: u64 = 0b0010;

/// The runtime's ELF as `Image`: what `-kernel` and `booti` take. Its first word branches over the header's page.
///
/// # Errors
/// No ELF, or none that is linked for a board here.
pub fn raw(elf: &[u8]) -> Result<Vec<u8>> {
    let file = ElfFile64::<Endianness>::parse(elf).context("the runtime is no 64-bit ELF")?;
    let endian = file.endian();
    let loads = || {
        let headers = file.elf_program_headers().iter();
        headers.filter(|header| header.p_type(endian) == PT_LOAD && header.p_memsz(endian) > 0)
    };
    let start =
        loads().map(|header| header.p_paddr(endian)).min().context("the runtime's ELF loads nothing")?;
    let end = loads().map(|header| header.p_paddr(endian) + header.p_memsz(endian)).max().unwrap_or(start);
    ensure!(file.entry() == start, "the runtime begins at {:#x}, and not where it is entered", start);
    let base = start.checked_sub(HEADER_PAGE).filter(|base| *base >= MEMORY);
    let base = base
        .with_context(|| format!("the runtime is linked to {start:#x}, where there is no room before it"))?;
    ensure!(end - start <= RUNTIME_BYTES_MAX, "the runtime takes {} bytes", end - start);
    let mut image = vec![0; HEADER_PAGE as usize];
    for header in loads() {
        let Ok(bytes) = header.data(endian, elf) else { bail!("a segment lies outside the runtime's ELF") };
        if bytes.is_empty() {
            continue;
        }
        let at = (header.p_paddr(endian) - base) as usize;
        image.resize(image.len().max(at + bytes.len()), 0);
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let branch = 0x1400_0000 | (HEADER_PAGE / 4) as u32;
    image[..4].copy_from_slice(&branch.to_le_bytes());
    for (at, value) in [(8, base - MEMORY), (16, end - base), (24, IMAGE_FLAGS)] {
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    image[56..60].copy_from_slice(&IMAGE_MAGIC);
    Ok(image)
}

/// Builds the runtime with these cargo features, as `Image`.
///
/// # Errors
/// It can't be built.
pub fn runtime(features: &[&str]) -> Result<Vec<u8>> {
    let elf = firmware::build_with(&Kind::Runtime, features)?.elf;
    raw(&fs::read(&elf).with_context(|| format!("{} can't be read", elf.display()))?)
}

/// A UEFI application that boots `image`, which `key` has signed, and no other.
///
/// # Errors
/// The loader can't be built.
pub fn application(key: &VerifyingKey, image: &[u8]) -> Result<Vec<u8>> {
    Ok(bind(&firmware::loader()?, key, image)?)
}

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Recipe<'a> {
    /// The board that it is for, one of [`BOARDS`].
    pub board: &'a str,
    /// Agents beside the one that the runtime brings, by name: the loader hands them to it, for hosts that ask for their policies.
    pub agents: &'a [String],
    /// The image's security version.
    pub security_version: u32,
    /// The runtime's command line.
    pub args: &'a str,
}

impl Recipe<'_> {
    /// Builds and signs it. Two checkouts of the same sources make the same bytes.
    ///
    /// # Errors
    /// What can't be built, by name.
    pub fn build(&self, key: &SigningKey) -> Result<Vec<u8>> {
        let &Recipe { board, agents, security_version, args } = self;
        ensure!(
            board != MOUNT_EVANS,
            "nothing is built for board {MOUNT_EVANS}: its register map is not public, and Neap guesses no address. Missing are\n  {}",
            OF_A_CARD.join("\n  ")
        );
        ensure!(BOARDS.contains(&board), "there is no board {board}; there are: {}", BOARDS.join(", "));
        // The runtime stops at a word that it does not know, and a card that stops is a journey.
        BootArgs::parse(args)?;
        setup::all()?;
        let runtime = runtime(&[])?;
        let mut built = Vec::new();
        for name in agents {
            built.push((name.as_str(), firmware::bundled(name)?));
        }
        let mut parts = vec![(PartKind::Runtime, "runtime", runtime.as_slice())];
        parts.extend(built.iter().map(|(name, bytes)| (PartKind::Agent, *name, bytes.as_slice())));
        let manifest = Manifest {
            neap: env!("CARGO_PKG_VERSION").to_owned(),
            abi: VERSION.to_string(),
            board: board.to_owned(),
            security_version,
            args: args.to_owned(),
            parts: Vec::new(),
        };
        Ok(Draft { manifest, parts }.sign(key)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_board_that_nothing_is_known_of_is_refused_with_what_is_missing() {
        let build = |board| {
            let recipe = Recipe { board, agents: &[], security_version: 1, args: "" };
            recipe.build(&SigningKey::from_bytes(&[1; 32])).unwrap_err().to_string()
        };
        let refusal = build(MOUNT_EVANS);
        assert!(OF_A_CARD.iter().all(|what| refusal.contains(what)), "{refusal}");
        assert_eq!(build("raspberry"), "there is no board raspberry; there are: qemu_virt");
    }
}
