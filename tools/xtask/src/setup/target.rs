//! The firmware's targets for the running toolchain: `core`, `alloc` and `compiler_builtins`, for the card and for its loader.
//!
//! Three sources, the first that has them: the cache of an earlier build for this very compiler; rustup; and
//! a build from the standard library's own sources, which Debian packages for each compiler it ships.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{apt, lock, memory};
use crate::firmware::{LOADER_TARGET, TARGET};
use crate::paths;
use crate::process::{self, Limits, Stream, Watch};
use crate::progress::Step;

/// The crates that make a target without an operating system.
const CRATES: [&str; 3] = ["core", "alloc", "compiler_builtins"];
/// Names what we put into a toolchain, so that we can take it out again and leave all else alone.
const OURS: &str = "neap-built";
/// Rustup behind a closed network waits much longer than a user would.
const RUSTUP: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(600) };
/// What is remembered when rustup can't fetch.
const RUSTUP_FAILED: &str = "rustup-target";

/// Makes sure that the running toolchain builds for the card.
pub fn target() -> Result<()> {
    ready(TARGET)
}

/// Makes sure that the running toolchain builds the loader.
pub fn loader_target() -> Result<()> {
    ready(LOADER_TARGET)
}

fn ready(target: &'static str) -> Result<()> {
    let toolchain = Toolchain::running(target)?;
    if toolchain.has_target()? {
        return Ok(());
    }
    let _lock = lock::take()?;
    if toolchain.has_target()? {
        return Ok(());
    }
    let cached = toolchain.cache();
    if cached.is_dir() {
        return toolchain.adopt(&cached);
    }
    let by_rustup = match by_rustup(&toolchain) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    crate::progress::say(&format!("neap: rustup did not bring {target}: {}", first_line(&by_rustup)));
    build(&toolchain, &cached).with_context(|| {
        format!(
            "{target} is missing, and rustup did not bring it ({}). \
             Run `rustup target add {target}` where rustup can fetch, or give the toolchain its sources: \
             the component rust-src, or Debian's package rust-src of version {}",
            first_line(&by_rustup),
            toolchain.version,
        )
    })?;
    toolchain.adopt(&cached)
}

fn first_line(error: &anyhow::Error) -> String {
    let text = error.to_string();
    let line = text.lines().find(|line| line.starts_with("error")).or(text.lines().next());
    line.unwrap_or_default().to_owned()
}

/// The compiler that builds this checkout.
struct Toolchain {
    /// The target in question, as rustc names it.
    target: &'static str,
    sysroot: PathBuf,
    /// "1.95.0".
    version: String,
    /// Changes with every compiler: libraries of one are of no use to another.
    key: u64,
}

impl Toolchain {
    fn running(target: &'static str) -> Result<Self> {
        let rustc = || {
            let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
            command.current_dir(paths::root());
            command
        };
        // One call for both: under rustup each costs a look at the toolchain's settings.
        let text = process::output(rustc().args(["-vV", "--print", "sysroot"]), Limits::total(60));
        let (verbose, sysroot) = match text.ok().and_then(|text| split(&text)) {
            Some(both) => both,
            None => (
                process::output(rustc().arg("-vV"), Limits::total(60))?,
                process::output(rustc().args(["--print", "sysroot"]), Limits::total(60))?,
            ),
        };
        let version = release(&verbose).context("rustc -vV names no release")?;
        let mut hasher = DefaultHasher::new();
        verbose.trim().hash(&mut hasher);
        Ok(Self { target, sysroot: PathBuf::from(sysroot.trim()), version, key: hasher.finish() })
    }

    /// Where the target's libraries lie.
    fn lib(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(self.target).join("lib")
    }

    /// Where they are kept for the next copy of this compiler.
    fn cache(&self) -> PathBuf {
        let name = match self.target {
            TARGET => format!("{}-{:016x}", self.version, self.key),
            other => format!("{}-{:016x}-{other}", self.version, self.key),
        };
        paths::cache_dir().join("target").join(name)
    }

    /// Whether all libraries are there; an error where there are two of one, which rustc refuses.
    fn has_target(&self) -> Result<bool> {
        let (lib, target) = (self.lib(), self.target);
        let mut names = libraries(&lib);
        if doubled(&names) {
            // Rustup brought its own after we had built ours: rustup's stay.
            withdraw(&lib)?;
            names = libraries(&lib);
        }
        if doubled(&names) {
            bail!(
                "{} holds more than one build of the same library, and rustc takes none of them:\n  {}\n\
                 Remove all but one build of each (rustup's are listed in {}), or run \
                 `rustup target remove {target}`, remove what is left in that directory, and try again",
                lib.display(),
                names.join("\n  "),
                self.sysroot.join("lib/rustlib").join(format!("manifest-rust-std-{target}")).display(),
            );
        }
        Ok(CRATES.iter().all(|name| names.iter().any(|file| is_of(file, name))))
    }

    /// Puts built libraries into the toolchain.
    fn adopt(&self, built: &Path) -> Result<()> {
        let lib = self.lib();
        fs::create_dir_all(&lib).with_context(|| {
            format!(
                "{} can't be made: the toolchain belongs to somebody else; use one of your own (rustup)",
                lib.display()
            )
        })?;
        let names = libraries(built);
        fs::write(lib.join(OURS), names.join("\n"))
            .with_context(|| format!("{} can't be written", lib.display()))?;
        for name in &names {
            // A reader never sees half a library: it appears under its name when it is whole.
            let half = lib.join(format!("{name}.part"));
            fs::copy(built.join(name), &half)
                .with_context(|| format!("{} can't be written", half.display()))?;
            fs::rename(&half, lib.join(name)).with_context(|| format!("{name} can't be put in place"))?;
        }
        if !self.has_target()? {
            bail!("{} does not hold {CRATES:?}; remove it and try again", built.display());
        }
        crate::progress::say(&format!("neap: {} is in {}", self.target, self.sysroot.display()));
        Ok(())
    }

    /// Sources of the standard library that came with the toolchain.
    fn own_sources(&self) -> Option<PathBuf> {
        Some(self.sysroot.join("lib/rustlib/src/rust/library"))
            .filter(|dir| dir.join("core/Cargo.toml").is_file())
    }
}

/// Takes out of a toolchain what we put there.
fn withdraw(lib: &Path) -> Result<()> {
    let list = lib.join(OURS);
    let Ok(names) = fs::read_to_string(&list) else { return Ok(()) };
    let ours = |name: &&str| CRATES.iter().any(|library| is_of(name, library));
    for name in names.lines().filter(ours) {
        let file = lib.join(name);
        if file.exists() {
            fs::remove_file(&file).with_context(|| format!("{} can't be removed", file.display()))?;
        }
    }
    fs::remove_file(&list).with_context(|| format!("{} can't be removed", list.display()))
}

/// The libraries of a directory, as file names; none where there is no such directory.
fn libraries(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| CRATES.iter().any(|library| is_of(name, library))).collect();
    names.sort();
    names
}

/// Whether `file` is "lib<name>-<hash>.rlib".
fn is_of(file: &str, name: &str) -> bool {
    let hash = file.strip_prefix("lib").and_then(|rest| rest.strip_prefix(name)?.strip_prefix('-'));
    hash.and_then(|hash| hash.strip_suffix(".rlib"))
        .is_some_and(|hash| hash.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn doubled(names: &[String]) -> bool {
    CRATES.iter().any(|library| names.iter().filter(|name| is_of(name, library)).count() > 1)
}

/// `rustc -vV --print sysroot` prints the sysroot first or last, by version.
fn split(text: &str) -> Option<(String, String)> {
    let (sysroot, verbose): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('/'));
    let [sysroot] = sysroot[..] else { return None };
    release(&verbose.join("\n")).map(|_| (verbose.join("\n"), sysroot.to_owned()))
}

fn release(verbose: &str) -> Option<String> {
    verbose.lines().find_map(|line| line.strip_prefix("release: ")).map(str::to_owned)
}

/// Asks rustup, with a bound.
fn by_rustup(toolchain: &Toolchain) -> Result<()> {
    if memory::failed_lately(RUSTUP_FAILED) {
        bail!("it could not fetch within the last hour");
    }
    if paths::find_program("rustup").is_none() {
        bail!("there is no rustup");
    }
    let mut command = Command::new("rustup");
    command.current_dir(paths::root()).args(["target", "add", toolchain.target]);
    let step = Step::start(format!("adding {} (rustup target add)", toolchain.target));
    let mut watch = Download { step, last: 0 };
    let done = process::run(&mut command, RUSTUP, &mut watch)?;
    if !done.ok() || !toolchain.has_target()? {
        memory::failed(RUSTUP_FAILED);
        let words = done.all.lines().find(|line| line.starts_with("error")).unwrap_or_default();
        bail!("{} {words}", done.verdict());
    }
    memory::worked(RUSTUP_FAILED);
    watch.step.done();
    Ok(())
}

/// Rustup downloads without a word: what grows in its directories is its sign of life.
pub(super) struct Download {
    pub(super) step: Step,
    pub(super) last: u64,
}

impl Watch for Download {
    fn line(&mut self, _stream: Stream, line: &str) {
        self.step.note(line);
    }

    fn life(&mut self) -> u64 {
        let home = std::env::var_os("RUSTUP_HOME").map(PathBuf::from);
        let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".rustup")));
        let Some(home) = home else { return 0 };
        let bytes = ["downloads", "tmp"].iter().map(|dir| bytes_in(&home.join(dir))).sum();
        if bytes != self.last {
            self.step.note(&format!("{} MiB", bytes >> 20));
            self.last = bytes;
        }
        bytes
    }

    fn tick(&mut self) {
        self.step.tick();
    }
}

/// Bytes of a directory's own files and of those one level below.
fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => fs::read_dir(entry.path()).map_or(0, |inner| {
            inner.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
        }),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Builds the libraries from source, into `built`.
fn build(toolchain: &Toolchain, built: &Path) -> Result<()> {
    let sources = match toolchain.own_sources() {
        Some(sources) => sources,
        None => from_debian(&toolchain.version)?,
    };
    let work =
        tempfile::Builder::new().prefix("neap-target-").tempdir().context("a directory to build in")?;
    fs::create_dir(work.path().join("src"))?;
    fs::write(work.path().join("Cargo.toml"), MANIFEST)?;
    fs::write(work.path().join("src/lib.rs"), "#![no_std]\n")?;
    let target = toolchain.target;
    let mut step = Step::start(format!("building core and alloc for {target} from source, about a minute"));
    let mut command = crate::firmware::cargo();
    command
        .current_dir(work.path())
        .args(["build", "--release", "--target", target, "-Zbuild-std=core,alloc,compiler_builtins"])
        // The compiler is a stable one; building its own library is what this variable is for.
        .env("RUSTC_BOOTSTRAP", "1")
        // Where cargo looks for the library, so that the toolchain itself is not written to for a build.
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", &sources)
        // With bitcode, as rustup's: the firmware is optimised across crates.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .env("CARGO_TARGET_DIR", work.path().join("target"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET");
    let done = process::run(&mut command, Limits::total(900), &mut step)?;
    if !done.ok() {
        bail!("core and alloc do not build: {}\n{}", done.verdict(), done.tail(20));
    }
    keep(&work.path().join("target").join(target).join("release/deps"), built)?;
    step.done();
    Ok(())
}

/// The crate that is built for the sake of its dependencies.
const MANIFEST: &str = "[package]\nname = \"neap-target\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
                        [profile.release]\ncodegen-units = 1\npanic = \"abort\"\n";

/// Copies the libraries into the cache, which has all of them or none.
fn keep(deps: &Path, built: &Path) -> Result<()> {
    let names = libraries(deps);
    if names.len() != CRATES.len() || doubled(&names) {
        bail!("the build left {names:?} where one each of {CRATES:?} was expected");
    }
    let half = built.with_extension("part");
    let _ = fs::remove_dir_all(&half);
    fs::create_dir_all(&half).with_context(|| format!("{} can't be made", half.display()))?;
    for name in &names {
        fs::copy(deps.join(name), half.join(name)).with_context(|| format!("{name} can't be kept"))?;
    }
    fs::rename(&half, built).with_context(|| format!("{} can't be put in place", built.display()))
}

/// Fetches and unpacks Debian's sources of exactly this compiler.
fn from_debian(version: &str) -> Result<PathBuf> {
    if !apt::present() {
        bail!("this system has no apt-get to fetch the sources with");
    }
    let codename = apt::codename()?;
    let suites =
        [codename.clone(), format!("{codename}-backports"), "trixie-backports".into(), "testing".into()];
    let mut tried = Vec::new();
    for name in suites {
        if tried.contains(&name) {
            continue;
        }
        let found = apt::Suite::fetch(&name, None).and_then(|suite| {
            let versions = suite.versions("rust-src")?;
            Ok(versions.into_iter().find(|found| is_release(found, version)).map(|found| (suite, found)))
        });
        if let Ok(Some((suite, found))) = found {
            let sources = suite.unpack("rust-src", &found)?.join(format!("usr/src/rustc-{version}/library"));
            if !sources.join("core/Cargo.toml").is_file() {
                bail!("rust-src {found} has no {}", sources.display());
            }
            return Ok(sources);
        }
        tried.push(name);
    }
    bail!("Debian has no rust-src {version} in {}", tried.join(", "))
}

/// Whether a package's version is of that compiler: "1.95.0+dfsg1-1~bpo13+1" is 1.95.0, "1.95.01-1" is not.
fn is_release(package: &str, version: &str) -> bool {
    package
        .strip_prefix(version)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERBOSE: &str =
        "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nrelease: 1.95.0\nLLVM version: 22.1.2";

    fn toolchain(sysroot: &Path) -> Toolchain {
        Toolchain { target: TARGET, sysroot: sysroot.to_path_buf(), version: "1.95.0".into(), key: 1 }
    }

    fn put(lib: &Path, names: &[&str]) {
        fs::create_dir_all(lib).unwrap();
        for name in names {
            fs::write(lib.join(name), name).unwrap();
        }
    }

    const ONE: [&str; 3] = ["libcore-1a.rlib", "liballoc-1a.rlib", "libcompiler_builtins-1a.rlib"];
    const TWO: [&str; 3] = ["libcore-2b.rlib", "liballoc-2b.rlib", "libcompiler_builtins-2b.rlib"];

    #[test]
    fn rustc_s_answer_is_split_wherever_the_sysroot_stands() {
        for text in [format!("/a/b c\n{VERBOSE}\n"), format!("{VERBOSE}\n/a/b c\n")] {
            assert_eq!(split(&text).unwrap(), (VERBOSE.to_owned(), "/a/b c".to_owned()));
        }
        assert_eq!(split(VERBOSE), None);
        assert_eq!(split("/a\n"), None);
        assert_eq!(release(VERBOSE).as_deref(), Some("1.95.0"));
    }

    #[test]
    fn debian_s_version_must_be_the_compiler_s() {
        assert!(is_release("1.95.0+dfsg1-1~bpo13+1", "1.95.0"));
        assert!(is_release("1.95.0-1", "1.95.0"));
        assert!(!is_release("1.95.01-1", "1.95.0"));
        assert!(!is_release("1.95.0.1-1", "1.95.0"));
        assert!(!is_release("1.85.0+dfsg3-1", "1.95.0"));
    }

    #[test]
    fn a_target_is_there_when_all_its_libraries_are() {
        let sysroot = tempfile::tempdir().unwrap();
        let toolchain = toolchain(sysroot.path());
        assert!(!toolchain.has_target().unwrap());
        put(&toolchain.lib(), &ONE[..2]);
        assert!(!toolchain.has_target().unwrap());
        put(&toolchain.lib(), &["libcompiler_builtins-1a.rmeta", "libcorelib-3.rlib"]);
        assert!(!toolchain.has_target().unwrap());
        put(&toolchain.lib(), &ONE);
        assert!(toolchain.has_target().unwrap());
    }

    #[test]
    fn targets_lie_apart_in_toolchain_and_cache() {
        let sysroot = tempfile::tempdir().unwrap();
        let card = toolchain(sysroot.path());
        let loader = Toolchain { target: LOADER_TARGET, ..toolchain(sysroot.path()) };
        put(&card.lib(), &ONE);
        assert!(card.has_target().unwrap() && !loader.has_target().unwrap());
        assert_ne!(card.cache(), loader.cache());
    }

    #[test]
    fn two_builds_of_one_library_are_named_with_the_remedy() {
        let sysroot = tempfile::tempdir().unwrap();
        let toolchain = toolchain(sysroot.path());
        put(&toolchain.lib(), &ONE);
        put(&toolchain.lib(), &TWO[..1]);
        let error = toolchain.has_target().unwrap_err().to_string();
        for part in ["libcore-1a.rlib", "libcore-2b.rlib", "rustup target remove", "Remove all but one"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(toolchain.lib().join(TWO[0]).exists(), "what is not ours is not removed");
    }

    #[test]
    fn rustup_s_libraries_replace_ours() {
        let (sysroot, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let toolchain = toolchain(sysroot.path());
        put(cache.path(), &ONE);
        toolchain.adopt(cache.path()).unwrap();
        put(&toolchain.lib(), &TWO);
        assert!(toolchain.has_target().unwrap());
        assert_eq!(libraries(&toolchain.lib()), {
            let mut two = TWO;
            two.sort();
            two
        });
        assert!(!toolchain.lib().join(OURS).exists());
    }

    #[test]
    fn an_incomplete_build_is_not_kept() {
        let (deps, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let built = cache.path().join("1.95.0-1");
        put(deps.path(), &ONE[..2]);
        assert!(keep(deps.path(), &built).is_err());
        put(deps.path(), &ONE);
        keep(deps.path(), &built).unwrap();
        assert_eq!(libraries(&built).len(), 3);
        assert!(!cache.path().join("1.95.0-1.part").exists() && !built.with_extension("part").exists());
    }

    #[test]
    fn a_doctored_list_removes_nothing_but_libraries() {
        let sysroot = tempfile::tempdir().unwrap();
        let lib = sysroot.path().join("lib");
        put(&lib, &ONE);
        fs::write(sysroot.path().join("precious"), "").unwrap();
        fs::write(lib.join(OURS), "../precious\nlibcore-../../precious.rlib\nlibcore-1a.rlib").unwrap();
        withdraw(&lib).unwrap();
        assert!(sysroot.path().join("precious").exists());
        assert!(!lib.join("libcore-1a.rlib").exists() && lib.join("liballoc-1a.rlib").exists());
    }
}
