//! From an agent's ELF to the image that the supervisor takes.

use anyhow::{Context, Result, ensure};
use neap_abi::control::policy_id;
use neap_abi::grant::space;
use neap_abi::image::{HEADER_BYTES, ImageHeader, Segment, rights};
use neap_abi::{VERSION, Version};
use object::elf::{PF_R, PF_W, PF_X, PT_LOAD, ProgramFlags};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol};

/// The symbol by which the linker script says how large the stack is.
const STACK_SYMBOL: &str = "__agent_stack_bytes";
/// The symbol that says how many cores the agent can use; one where it is absent.
const CORES_SYMBOL: &str = "__agent_cores";
/// What segments are aligned to in the file.
const ALIGN: usize = 16;

/// Packs the ELF of an agent named `name`, whose policy is called the same.
pub fn pack(elf: &[u8], name: &str) -> Result<Vec<u8>> {
    pack_as(elf, name, VERSION)
}

/// As [`pack`], for an agent that was built for the ABI `version`.
pub fn pack_as(elf: &[u8], name: &str, version: Version) -> Result<Vec<u8>> {
    let file = ElfFile64::<Endianness>::parse(elf).context("not a 64-bit ELF")?;
    let endian = file.endian();
    let offset = |address: u64| {
        let offset = address.checked_sub(space::IMAGE).and_then(|offset| u32::try_from(offset).ok());
        offset
            .with_context(|| format!("{address:#x} is no address of an agent: was it linked by ld/agent.ld?"))
    };
    let mut image = vec![0; HEADER_BYTES];
    let mut segments = Vec::new();
    for header in file.elf_program_headers() {
        if header.p_type(endian) != PT_LOAD || header.p_memsz(endian) == 0 {
            continue;
        }
        let bytes =
            header.data(endian, elf).map_err(|()| anyhow::anyhow!("a segment lies outside the ELF"))?;
        image.resize(image.len().next_multiple_of(ALIGN), 0);
        let right =
            |flag: ProgramFlags, right| if header.p_flags(endian).0 & flag.0 != 0 { right } else { 0 };
        segments.push(Segment {
            address: offset(header.p_vaddr(endian))?,
            memory_bytes: u32::try_from(header.p_memsz(endian)).context("a segment is larger than 4 GiB")?,
            file_offset: image.len() as u32,
            file_bytes: bytes.len() as u32,
            rights: right(PF_R, rights::READ) | right(PF_W, rights::WRITE) | right(PF_X, rights::EXECUTE),
        });
        image.extend(bytes);
    }
    let absolute =
        |name: &str| file.symbols().find(|symbol| symbol.name() == Ok(name)).map(|symbol| symbol.address());
    let stack_bytes = absolute(STACK_SYMBOL).with_context(|| format!("no symbol {STACK_SYMBOL}"))? as u32;
    let entry = offset(file.entry())?;
    let header = ImageHeader::new(version, name, policy_id(name), entry, stack_bytes, &segments);
    let mut header = header.with_context(|| format!("`{name}` is too long a name, or too many segments"))?;
    header.cores = absolute(CORES_SYMBOL).unwrap_or(1) as u16;
    header.write(&mut image);
    let checked = ImageHeader::check(&image, version)?;
    ensure!(checked.name() == name, "the image is called {}", checked.name());
    Ok(image)
}
