//! Building the firmware, and what its ELF loads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use neap_abi::control::policy_id;
use object::elf::PT_LOAD;
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object};
use serde::Deserialize;

use crate::process::{self, Limits, Stream, Watch};
use crate::progress::Step;
use crate::{agent_image, paths, setup};

/// The firmware's target, as rustc names it.
pub const TARGET: &str = "aarch64-unknown-none";

/// The target of what UEFI starts: the loader.
pub const LOADER_TARGET: &str = "aarch64-unknown-uefi";

/// The firmware's profile, in the workspace's `Cargo.toml`.
pub const PROFILE: &str = "firmware";

/// Which image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The runtime with the FIFO agent: what `neap run` boots.
    Runtime,
    /// One program of `qemu-tests`, by its name (`s00_boot`).
    Test(String),
}

impl Kind {
    fn package(&self) -> &str {
        match self {
            Self::Runtime => "neap-runtime",
            Self::Test(_) => "neap-qemu-tests",
        }
    }

    fn bin(&self) -> &str {
        match self {
            Self::Runtime => "neap-runtime",
            Self::Test(name) => name,
        }
    }
}

/// A built image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareImage {
    /// The ELF, with its line tables and defmt's strings.
    pub elf: PathBuf,
    /// Bytes that its `PT_LOAD` segments hold in the file: what a loader copies. The budget's figure.
    pub loaded_bytes: u64,
    /// Bytes that the same segments take in memory: stacks and zeroed data too.
    pub memory_bytes: u64,
}

impl FirmwareImage {
    /// Reads the sizes of an ELF that stands already.
    pub fn open(elf: &Path) -> Result<Self> {
        let bytes = fs::read(elf).with_context(|| format!("{} can't be read", elf.display()))?;
        let (loaded_bytes, memory_bytes) =
            sizes(&bytes).with_context(|| format!("{} is no firmware", elf.display()))?;
        Ok(Self { elf: elf.to_path_buf(), loaded_bytes, memory_bytes })
    }
}

/// Builds an image, after making sure that the target is there. Shows what it does on stderr.
pub fn build(kind: &Kind) -> Result<FirmwareImage> {
    build_with(kind, &[])
}

/// As [`build`], with cargo features of the image's package.
pub fn build_with(kind: &Kind, features: &[&str]) -> Result<FirmwareImage> {
    let bundle = if *kind == Kind::Runtime { Some(bundle()?) } else { None };
    let mut options = vec!["--package", kind.package(), "--bin", kind.bin()];
    let features = features.join(",");
    if !features.is_empty() {
        options.extend(["--features", &features]);
    }
    let mut programs = build_programs(kind.bin(), &options, bundle.as_deref())?;
    let elf = programs.remove(kind.bin());
    let elf = elf.with_context(|| format!("cargo built no program {} in {}", kind.bin(), kind.package()))?;
    FirmwareImage::open(&elf)
}

/// Builds the loader, and returns the UEFI application's bytes.
pub fn loader() -> Result<Vec<u8>> {
    const BIN: &str = "neap-loader";
    setup::loader_target()?;
    let mut programs = build_for(LOADER_TARGET, "the loader", &["--package", BIN, "--bin", BIN], None)?;
    let file = programs.remove(BIN).with_context(|| format!("cargo built no program {BIN} in {BIN}"))?;
    fs::read(&file).with_context(|| format!("{} can't be read", file.display()))
}

/// Builds all programs of `qemu-tests`, by name.
pub fn build_tests() -> Result<BTreeMap<String, FirmwareImage>> {
    let programs =
        build_programs("qemu-tests", &["--package", Kind::Test(String::new()).package(), "--bins"], None)?;
    programs.into_iter().map(|(name, elf)| Ok((name, FirmwareImage::open(&elf)?))).collect()
}

/// The agents that are shipped, one a policy, by name.
pub const AGENTS: [&str; 5] = neap_host::policies::POLICIES;
/// Those that the firmware brings with it. The others are loaded: an image of 128 KiB has room for one.
const BUNDLED: [&str; 1] = [neap_host::policies::BUNDLED];

/// A built agent: its ELF and its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The ELF, with its line tables.
    pub elf: PathBuf,
    /// The image that the supervisor takes.
    pub image: PathBuf,
}

/// Builds an agent by its name: one of [`AGENTS`], or one of those of `qemu-tests/attacks`.
pub fn agent(name: &str) -> Result<Agent> {
    let shipped = format!("neap-agent-{name}");
    let (package, bin) =
        if AGENTS.contains(&name) { (shipped.as_str(), shipped.as_str()) } else { ("neap-attacks", name) };
    let mut programs = build_programs(bin, &["--package", package, "--bin", bin], None)
        .with_context(|| format!("there is no agent `{name}` that could be built"))?;
    let elf = programs.remove(bin).with_context(|| format!("cargo built no program {bin} in {package}"))?;
    let image = pack(&elf, name)?;
    Ok(Agent { elf, image })
}

/// The image of an agent, built by its name.
pub fn agent_image(name: &str) -> Result<PathBuf> {
    Ok(agent(name)?.image)
}

/// Builds all agents of `qemu-tests/attacks`, by name.
pub fn build_attacks() -> Result<BTreeMap<String, Agent>> {
    let programs = build_programs("the attacks", &["--package", "neap-attacks", "--bins"], None)?;
    let packed = |(name, elf): (String, PathBuf)| {
        let image = pack(&elf, &name)?;
        Ok((name, Agent { elf, image }))
    };
    programs.into_iter().map(packed).collect()
}

/// Packs an agent's ELF into an image beside the others.
fn pack(elf: &Path, name: &str) -> Result<PathBuf> {
    let bytes = fs::read(elf).with_context(|| format!("{} can't be read", elf.display()))?;
    let image = agent_image::pack(&bytes, name).with_context(|| format!("agent {name}"))?;
    let path = paths::target_dir().join("agents").join(format!("{name}.img"));
    write_if_new(&path, &image)?;
    Ok(path)
}

/// Builds the bundle of agents and returns its file.
fn bundle() -> Result<PathBuf> {
    let bundle = BUNDLED.iter().map(|name| bundled(name)).collect::<Result<Vec<_>>>()?.concat();
    let path = paths::target_dir().join("agents").join("bundle");
    write_if_new(&path, &bundle)?;
    Ok(path)
}

/// Builds an agent, and returns it as a bundle has it.
pub fn bundled(name: &str) -> Result<Vec<u8>> {
    ensure!(
        AGENTS.contains(&name),
        "there is no agent {name} that a policy is found by: {} are",
        AGENTS.join(", ")
    );
    let image = agent_image(name)?;
    let image = fs::read(&image).with_context(|| format!("{} can't be read", image.display()))?;
    let block = compressed(&image)?;
    let head = [policy_id(name), image.len() as u32, block.len() as u32].map(u32::to_le_bytes);
    Ok([head.as_flattened(), &block].concat())
}

/// An LZ4 block, as the runtime's `bundle` reads it. It is made once and loaded by every card, so the compressor takes its time.
fn compressed(image: &[u8]) -> Result<Vec<u8>> {
    const LEVEL_MAX: i32 = 12;
    let mode = lz4::block::CompressionMode::HIGHCOMPRESSION(LEVEL_MAX);
    lz4::block::compress(image, Some(mode), false).context("an agent's image can't be compressed")
}

/// Writes a file, unless it says so already: what is built from it is then not built anew.
fn write_if_new(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    let directory = path.parent().context("a file has a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("{} can't be made", directory.display()))?;
    // Whole or not at all: others may build at the same time.
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    std::io::Write::write_all(&mut file, bytes)?;
    file.persist(path).with_context(|| format!("{} can't be written", path.display()))?;
    Ok(())
}

fn build_programs(what: &str, options: &[&str], bundle: Option<&Path>) -> Result<BTreeMap<String, PathBuf>> {
    setup::target()?;
    build_for(TARGET, what, options, bundle)
}

fn build_for(
    target: &str,
    what: &str,
    options: &[&str],
    bundle: Option<&Path>,
) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = cargo();
    command
        .current_dir(paths::root())
        .args(["build", "--message-format=json-render-diagnostics", "--target", target, "--profile", PROFILE])
        .args(short_paths(target))
        .args(options);
    match bundle {
        Some(bundle) => command.env("NEAP_BUNDLE", bundle),
        None => command.env_remove("NEAP_BUNDLE"),
    };
    let mut build = Build { step: None, what, programs: BTreeMap::new() };
    let finished = process::run(&mut command, Limits::total(1200), &mut build)?;
    if !finished.ok() {
        let remarks: Vec<&str> = finished.all.lines().filter(|line| !line.starts_with('{')).collect();
        bail!("{what} does not build for the card: {}\n{}", finished.verdict(), remarks.join("\n"));
    }
    if let Some(step) = build.step {
        step.done();
    }
    Ok(build.programs)
}

/// Has the sources of other people's crates named without the directory where this machine keeps them: panics carry their
/// files' names, and the same image should come of the same sources anywhere.
fn short_paths(target: &str) -> Vec<String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.map(|home| home.join("registry/src"));
    let registries = sources.into_iter().flat_map(|sources| fs::read_dir(sources).into_iter().flatten());
    let flags: Vec<String> = registries
        .flatten()
        .map(|registry| format!("'--remap-path-prefix={}/='", registry.path().display()))
        .collect();
    if flags.is_empty() {
        return Vec::new();
    }
    vec!["--config".to_owned(), format!("target.{target}.rustflags=[{}]", flags.join(","))]
}

/// The cargo that runs us, else the one in `$PATH`.
///
/// It does not see whose `cargo run` we are: build scripts ask to be run again when that changes, and with them half the
/// workspace would be built anew by each command in turn.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.env_remove("CARGO_MANIFEST_DIR");
    cargo
}

/// What cargo tells while it builds.
struct Build<'a> {
    /// From the first crate that is really compiled: a build with nothing to do says nothing.
    step: Option<Step>,
    what: &'a str,
    programs: BTreeMap<String, PathBuf>,
}

/// One line of `--message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    executable: Option<PathBuf>,
    #[serde(default)]
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

impl Watch for Build<'_> {
    fn line(&mut self, stream: Stream, line: &str) {
        match stream {
            Stream::Err if line.trim_start().starts_with("Compiling") => {
                let what = self.what;
                let step =
                    self.step.get_or_insert_with(|| Step::start(format!("building {what} for the card")));
                step.note(line);
            }
            Stream::Err => {}
            Stream::Out => {
                if let Ok(Message { executable: Some(elf), target: Some(target) }) =
                    serde_json::from_str(line)
                {
                    self.programs.insert(target.name, elf);
                }
            }
        }
    }

    fn tick(&mut self) {
        if let Some(step) = &mut self.step {
            step.tick();
        }
    }
}

/// Loaded and memory bytes of an ELF's `PT_LOAD` segments.
fn sizes(bytes: &[u8]) -> Result<(u64, u64)> {
    let elf = ElfFile64::<Endianness>::parse(bytes).context("not a 64-bit ELF")?;
    let endian = elf.endian();
    if elf.architecture() != object::Architecture::Aarch64 {
        bail!("built for {:?}, not for the card's Aarch64", elf.architecture());
    }
    let mut sizes = (0u64, 0u64);
    for header in elf.elf_program_headers() {
        if header.p_type(endian) == PT_LOAD {
            sizes.0 = sizes.0.saturating_add(header.p_filesz(endian));
            sizes.1 = sizes.1.saturating_add(header.p_memsz(endian));
        }
    }
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit ELF header, and two `PT_LOAD` headers of (file, memory) bytes each.
    fn elf(machine: u16, segments: &[(u32, u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(2u16.to_le_bytes());
        bytes.extend(machine.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        for field in [0u64, 64, 0] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(0u32.to_le_bytes());
        for field in [64u16, 56, segments.len() as u16, 64, 0, 0] {
            bytes.extend(field.to_le_bytes());
        }
        for &(kind, file, memory) in segments {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(5u32.to_le_bytes());
            for field in [0u64, 0x4020_0000, 0x4020_0000, file, memory, 4096] {
                bytes.extend(field.to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn what_is_compressed_here_is_what_the_runtime_unpacks() {
        let image: Vec<u8> = (0..40_000u32).map(|at| ((at * at) >> 7) as u8 & 0x3f).collect();
        let block = compressed(&image).unwrap();
        assert!(block.len() < image.len());
        let mut unpacked = vec![0; image.len()];
        assert_eq!(lz4_flex::block::decompress_into(&block, &mut unpacked).unwrap(), image.len());
        assert_eq!(unpacked, image);
    }

    #[test]
    fn loaded_and_memory_sizes_are_told_apart() {
        let bytes = elf(183, &[(1, 100, 100), (1, 20, 4000), (6, 999, 999)]);
        assert_eq!(sizes(&bytes).unwrap(), (120, 4100));
    }

    #[test]
    fn what_is_no_firmware_is_refused_by_name() {
        let error = sizes(&elf(62, &[])).unwrap_err();
        assert!(error.to_string().contains("X86_64"), "{error}");
        assert!(sizes(b"#!/bin/sh").is_err());
        assert!(sizes(&[]).is_err());
        let whole = elf(183, &[(1, 100, 100)]);
        for length in 0..whole.len() {
            assert!(sizes(&whole[..length]).is_err(), "cut at {length}");
        }
    }
}
