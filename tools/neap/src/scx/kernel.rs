//! What the running kernel has to have.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rustix::process::geteuid;

/// Where the kernel shows its schedulers.
const SCHED_EXT: &str = "kernel/sched_ext";

/// The kernel, as its files show it.
#[derive(Clone, Debug)]
pub struct Kernel {
    sys: PathBuf,
}

impl Kernel {
    /// This machine's.
    pub fn here() -> Self {
        Self { sys: PathBuf::from("/sys") }
    }

    /// Checks that a scheduler can be attached: the first thing that is wrong, with its remedy.
    pub fn check(&self) -> Result<()> {
        if !geteuid().is_root() {
            bail!("attaching a scheduler needs root; run this with sudo");
        }
        self.check_files()
    }

    fn check_files(&self) -> Result<()> {
        if !self.has("kernel") {
            bail!("{} is empty; mount it: mount -t sysfs sys /sys", self.sys.display());
        }
        if !self.has("kernel/btf/vmlinux") {
            bail!(
                "this kernel has no type information (/sys/kernel/btf/vmlinux); use one with CONFIG_DEBUG_INFO_BTF"
            );
        }
        if !self.has(Path::new(SCHED_EXT).join("state")) {
            bail!("this kernel has no sched_ext; use one of 7.3 or later with CONFIG_SCHED_CLASS_EXT");
        }
        match self.other().as_deref() {
            None => Ok(()),
            Some("neap") => bail!("the scheduler neap is attached already; end its `neap scx attach` first"),
            Some(name) => bail!("another scheduler is attached, {name}; end the program that holds it first"),
        }
    }

    /// The name of a scheduler that is in the place already.
    fn other(&self) -> Option<String> {
        if !self.scheduler_is_there() {
            return None;
        }
        let name = self.word(Path::new(SCHED_EXT).join("root").join("ops")).unwrap_or_default();
        Some(if name.is_empty() { "without a name".to_owned() } else { name })
    }

    /// Whether some scheduler is attached.
    pub fn scheduler_is_there(&self) -> bool {
        self.word(Path::new(SCHED_EXT).join("state")).is_some_and(|state| state != "disabled")
    }

    /// Whether the driver is loaded.
    pub fn driver_is_there(&self) -> bool {
        self.has("module/neap")
    }

    fn has(&self, file: impl AsRef<Path>) -> bool {
        self.sys.join(file).exists()
    }

    fn word(&self, file: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.sys.join(file)).ok().map(|text| text.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kernel: &Kernel) -> String {
        kernel.check_files().unwrap_err().to_string()
    }

    #[test]
    fn what_the_kernel_lacks_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel { sys: dir.path().to_owned() };
        let put = |place: &str, file: &str, text: &str| {
            let place = dir.path().join(place);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join(file), text).unwrap();
        };
        assert!(error(&kernel).contains("mount -t sysfs"));
        put("kernel", "other", "");
        assert!(error(&kernel).contains("CONFIG_DEBUG_INFO_BTF"));
        put("kernel/btf", "vmlinux", "");
        assert!(error(&kernel).contains("CONFIG_SCHED_CLASS_EXT"));
        put(SCHED_EXT, "state", "disabled\n");
        kernel.check_files().unwrap();
        put(SCHED_EXT, "state", "enabled\n");
        put("kernel/sched_ext/root", "ops", "simple\n");
        assert!(error(&kernel).contains("another scheduler is attached, simple"));
        put("kernel/sched_ext/root", "ops", "neap\n");
        assert!(error(&kernel).contains("attached already"));
        assert!(!kernel.driver_is_there());
    }
}
