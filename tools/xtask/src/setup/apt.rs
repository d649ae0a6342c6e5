//! Debian's package manager: installing, and reading suites that the machine does not follow.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Version;
use crate::paths;
use crate::process::{self, Limits};
use crate::progress::Step;

/// Installing: apt's own retries take a minute each.
const INSTALL: Limits = Limits { silence: Duration::from_secs(180), total: Duration::from_secs(1200) };
/// Fetching lists or one package.
const FETCH: Limits = Limits { silence: Duration::from_secs(60), total: Duration::from_secs(300) };

/// Whether this is a system with apt.
pub fn present() -> bool {
    paths::find_program("apt-get").is_some()
}

/// The newest version of `package` in the machine's own lists.
pub fn candidate(package: &str) -> Option<String> {
    let mut command = Command::new("apt-cache");
    command.args(["policy", package]).env("LC_ALL", "C");
    candidate_in(&process::output(&mut command, Limits::total(30)).ok()?)
}

fn candidate_in(policy: &str) -> Option<String> {
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
    Some(line.trim().to_owned()).filter(|version| version != "(none)")
}

/// Fetches the machine's own lists where they lack `package`.
pub fn refresh_for(package: &str) -> Result<()> {
    if candidate(package).is_some() {
        return Ok(());
    }
    let mut step = Step::start("fetching the lists of packages (apt-get update)");
    let done = process::run(as_root("apt-get")?.arg("update"), FETCH, &mut step)?;
    if !done.ok() {
        bail!("apt-get update: {}\n{}", done.verdict(), done.tail(10));
    }
    step.done();
    Ok(())
}

/// Installs a package from the machine's own suites, or from `suite` of them.
pub fn install(package: &str, from: Option<&Suite>) -> Result<()> {
    let mut command = as_root("apt-get")?;
    if let Some(suite) = from {
        command.args(suite.options()).args(["-t", &suite.name]);
    }
    command.args(["install", "-y", "--no-install-recommends", package]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    let mut step = Step::start(format!("installing {package} (apt-get install {package})"));
    let done = process::run(&mut command, INSTALL, &mut step)?;
    if !done.ok() {
        bail!("apt-get install {package}: {}\n{}", done.verdict(), done.tail(10));
    }
    step.done();
    Ok(())
}

/// `program`, as root: we are, or sudo lets us without a password.
pub fn as_root(program: &str) -> Result<Command> {
    if rustix::process::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    let mut probe = Command::new("sudo");
    probe.args(["-n", "true"]);
    if process::run(&mut probe, Limits::total(10), &mut ()).is_ok_and(|done| done.ok()) {
        let mut command = Command::new("sudo");
        command.args(["-n", "--", program]);
        return Ok(command);
    }
    bail!("{program} needs root, and sudo asks for a password")
}

/// A suite of the machine's Debian mirror, read beside the machine's own lists and leaving those alone.
pub struct Suite {
    /// As Debian names it: "bookworm-backports".
    pub name: String,
    dir: PathBuf,
}

impl Suite {
    /// Fetches the lists of `name`, with `base` beside it where packages of `name` lean on another suite.
    pub fn fetch(name: &str, base: Option<&str>) -> Result<Self> {
        let dir = paths::cache_dir().join("apt").join(name);
        for sub in ["lists/partial", "archives/partial"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).with_context(|| format!("{} can't be made", sub.display()))?;
        }
        let suite = Self { name: name.to_owned(), dir };
        let mut sources = String::new();
        for suite in [Some(name), base].into_iter().flatten() {
            sources.push_str(&format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?));
        }
        let list = suite.dir.join("sources.list");
        fs::write(&list, sources).with_context(|| format!("{} can't be written", list.display()))?;
        let mut step = Step::start(format!("fetching the list of {name} (apt-get update, kept apart)"));
        let mut command = Command::new("apt-get");
        command.args(suite.options()).arg("update");
        let done = process::run(&mut command, FETCH, &mut step)?;
        if !done.ok() {
            bail!("apt-get update for {name}: {}\n{}", done.verdict(), done.tail(10));
        }
        step.done();
        Ok(suite)
    }

    /// Every version of `package` in the suite.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let mut command = Command::new("apt-cache");
        command.args(self.options()).args(["madison", package]).env("LC_ALL", "C");
        Ok(versions_in(&process::output(&mut command, Limits::total(30))?))
    }

    /// Fetches one package, unpacks it, and returns where its tree lies.
    pub fn unpack(&self, package: &str, version: &str) -> Result<PathBuf> {
        let download = self.dir.join("download");
        let tree = self.dir.join("tree");
        for dir in [&download, &tree] {
            let _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
        }
        let mut step = Step::start(format!("fetching {package} {version} (apt-get download)"));
        let mut command = Command::new("apt-get");
        command.current_dir(&download).args(self.options());
        command.args(["download", &format!("{package}={version}")]);
        let done = process::run(&mut command, FETCH, &mut step)?;
        if !done.ok() {
            bail!("apt-get download {package}={version}: {}\n{}", done.verdict(), done.tail(10));
        }
        let deb = only_file(&download)?;
        process::output(Command::new("dpkg").arg("-x").arg(&deb).arg(&tree), Limits::total(120))?;
        fs::remove_file(&deb).with_context(|| format!("{} can't be removed", deb.display()))?;
        step.done();
        Ok(tree)
    }

    /// What makes apt use this suite's files and no others.
    fn options(&self) -> Vec<String> {
        let dir = self.dir.display();
        [
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={dir}/lists"),
            format!("Dir::Cache={dir}"),
            format!("Dir::Cache::archives={dir}/archives"),
            // The sandbox's user can't enter a cache below somebody's home.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect()
    }
}

/// Who signs Debian's suites.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The code name of this Debian ("bookworm").
pub fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("/etc/os-release can't be read")?;
    codename_in(&text).context("/etc/os-release names no Debian code name")
}

fn codename_in(os_release: &str) -> Option<String> {
    let field = |name: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    field("VERSION_CODENAME").filter(|_| field("ID").is_some_and(|id| id == "debian"))
}

/// The mirror that this machine gets Debian from.
pub fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(RELEASE) $(REPO_URI)",
        "Created-By: Packages",
    ]);
    let targets = process::output(&mut command, Limits::total(30))?;
    mirror_in(&targets, &codename()?).context("apt's sources name no Debian mirror")
}

/// The mirror among lines of "suite uri": of the plain suite, since the others may live elsewhere.
fn mirror_in(targets: &str, codename: &str) -> Option<String> {
    let aliases = [codename, "stable", "oldstable", "testing"];
    targets.lines().find_map(|line| {
        let (suite, uri) = line.split_once(' ')?;
        (aliases.contains(&suite) && !uri.contains("security")).then(|| uri.trim().to_owned())
    })
}

/// How this machine's apt reaches its mirrors (proxies, certificates), as lines of an `apt.conf`.
pub fn ways() -> Result<Vec<String>> {
    let mut command = Command::new("apt-config");
    command.args(["dump", "--no-empty"]);
    Ok(ways_in(&process::output(&mut command, Limits::total(30))?))
}

fn ways_in(dump: &str) -> Vec<String> {
    let is_way = |line: &&str| {
        ["Acquire::http", "Acquire::https", "Acquire::Retries"].iter().any(|way| line.starts_with(way))
    };
    dump.lines().filter(is_way).map(str::to_owned).collect()
}

fn versions_in(madison: &str) -> Vec<String> {
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(|version| version.trim().to_owned())
        .collect()
}

/// The newest of some package versions, by upstream's number.
pub fn newest(versions: &[String]) -> Option<Version> {
    versions.iter().filter_map(|version| Version::of_package(version)).max()
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).with_context(|| format!("{} can't be read", dir.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", dir.display()))?;
    Ok(entry.with_context(|| format!("{} can't be read", dir.display()))?.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_read_and_none_is_none() {
        let policy = "qemu-system-arm:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n  Version table:\n";
        assert_eq!(candidate_in(policy).as_deref(), Some("1:7.2+dfsg-7"));
        assert_eq!(candidate_in("x:\n  Candidate: (none)\n"), None);
        assert_eq!(candidate_in(""), None);
    }

    #[test]
    fn the_mirror_is_the_plain_suite_s() {
        let targets = "bookworm-security http://a/debian-security/\nnodistro https://b/\n\
                       bookworm-updates http://c/debian/\nbookworm http://c/debian/\n";
        assert_eq!(mirror_in(targets, "bookworm").as_deref(), Some("http://c/debian/"));
        assert_eq!(
            mirror_in("stable http://d/debian-security/\nstable http://d/debian\n", "trixie").as_deref(),
            Some("http://d/debian")
        );
        assert_eq!(mirror_in("jammy http://e/ubuntu/\n", "bookworm"), None);
    }

    #[test]
    fn a_proxy_is_handed_on() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::http::Proxy \"http://p:3128\";\nAcquire::Languages \"none\";\n";
        assert_eq!(ways_in(dump), ["Acquire::http::Proxy \"http://p:3128\";"]);
    }

    #[test]
    fn only_debian_has_debian_s_code_names() {
        assert_eq!(codename_in("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename_in("ID=\"debian\"\nVERSION_CODENAME=\"trixie\"\n").as_deref(), Some("trixie"));
        assert_eq!(codename_in("ID=ubuntu\nVERSION_CODENAME=jammy\nID_LIKE=debian\n"), None);
    }

    #[test]
    fn madison_s_table_is_read() {
        let table =
            "  rust-src | 1.95.0+dfsg1-1~bpo13+1 | http://c/debian trixie-backports/main amd64 Packages\n";
        let versions = versions_in(table);
        assert_eq!(versions, ["1.95.0+dfsg1-1~bpo13+1"]);
        assert_eq!(newest(&versions), Some(Version::new(1, 95)));
        assert!(versions_in("N: Unable to locate package rust-src\n").is_empty());
    }
}
