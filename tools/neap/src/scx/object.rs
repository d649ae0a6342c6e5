//! The BPF object: its programs and its `struct_ops` map, in the kernel for as long as they are held.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Error, Result, anyhow, bail};
use libbpf_rs::{
    Link, MapCore, MapFlags, MapType, Object, ObjectBuilder, PrintLevel, ProgramType, set_print,
};

use super::exit::{EXIT_MAP, Exit};
use super::kernel::Kernel;

/// The map that is the scheduler.
const OPS_MAP: &str = "neap_ops";
/// Lines of libbpf's that are kept: of a program that the verifier refuses it prints thousands.
const WORDS_MAX: usize = 40;

/// A scheduler in its place, with the programs beside it.
pub struct Attached {
    // In the order of their ends: the scheduler first, then what serves it, then what they all stand on.
    scheduler: Link,
    beside: Vec<Link>,
    object: Object,
}

impl Attached {
    /// Loads the object in `file` and attaches all of it: what serves the scheduler first, so that nothing is missed.
    pub fn new(file: &Path) -> Result<Self> {
        if !file.is_file() {
            bail!("there is no BPF object {}; name it with --object", file.display());
        }
        set_print(Some((PrintLevel::Warn, keep)));
        take();
        let explained = |what: &str, error: libbpf_rs::Error| explained(what, file, error.into(), &take());
        let open = ObjectBuilder::default().open_file(file).map_err(|error| explained("read", error))?;
        let mut object = open.load().map_err(|error| explained("load", error))?;
        let mut beside = Vec::new();
        for program in object.progs_mut().filter(|program| program.prog_type() != ProgramType::StructOps) {
            let name = program.name().to_string_lossy().into_owned();
            let link = program.attach().map_err(|error| explained(&format!("attach {name} of"), error))?;
            beside.push(link);
        }
        let ops = object.maps_mut().find(|map| map.name() == OPS_MAP && map.map_type() == MapType::StructOps);
        let Some(mut ops) = ops else {
            bail!("{} holds no scheduler called {OPS_MAP}; build it from host-driver/bpf", file.display());
        };
        let scheduler = ops.attach_struct_ops().map_err(|error| explained("attach", error))?;
        Ok(Self { scheduler, beside, object })
    }

    /// Whether the kernel has ended it.
    pub fn has_ended(&self, kernel: &Kernel) -> bool {
        self.exit().is_some() || !kernel.scheduler_is_there()
    }

    /// Why it ended, in one line.
    pub fn why(&self) -> String {
        self.exit().map_or_else(|| "the kernel tells no reason".to_owned(), |exit| exit.in_words())
    }

    /// Takes all of it out of the kernel.
    pub fn detach(self) {
        let Self { scheduler, beside, object } = self;
        drop(scheduler);
        drop(beside);
        drop(object);
    }

    fn exit(&self) -> Option<Exit> {
        let map = self.object.maps().find(|map| map.name() == EXIT_MAP)?;
        let entry = map.lookup(&0u32.to_ne_bytes(), MapFlags::ANY).ok()??;
        Exit::of(&entry)
    }
}

/// What libbpf has said since it was last asked.
static WORDS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn keep(_level: PrintLevel, words: String) {
    let mut kept = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    kept.extend(words.lines().map(|line| line.trim().trim_start_matches("libbpf: ").to_owned()));
    let more = kept.len().saturating_sub(WORDS_MAX);
    kept.drain(..more);
}

fn take() -> Vec<String> {
    std::mem::take(&mut *WORDS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// An error of libbpf's with what it comes from, if that is known, else with all that libbpf said.
fn explained(what: &str, file: &Path, error: Error, words: &[String]) -> Error {
    let file = file.display();
    let error = match reason(words, Kernel::here().driver_is_there()) {
        Some(reason) => anyhow!(reason),
        None if words.is_empty() => error,
        None => error.context(words.join("\n  ")),
    };
    error.context(format!("can't {what} {file}"))
}

/// What libbpf's words come to, where there is something that the user can do.
fn reason(words: &[String], driver_is_there: bool) -> Option<String> {
    let missing = words.iter().find_map(|line| {
        // extern (func ksym) 'neap_read_txn': not found in kernel or module BTFs
        let (_, rest) = line.split_once("extern (func ksym) '")?;
        rest.contains("not found").then(|| rest.split('\'').next().unwrap_or_default().to_owned())
    });
    let hook = words.iter().find_map(|line| {
        // prog 'neap_on_irq': failed to find kernel BTF type ID of 'neap_irq_hook': -ESRCH
        let (_, rest) = line.split_once("failed to find kernel BTF type ID of '")?;
        Some(rest.split('\'').next().unwrap_or_default().to_owned())
    });
    let name = missing.or(hook)?;
    Some(if !name.starts_with("neap_") {
        format!("this kernel has no function {name}; use a kernel of 7.3 or later")
    } else if driver_is_there {
        format!(
            "the driver that is loaded has no function {name}: driver and object are of different releases"
        )
    } else {
        format!("the kernel has no function {name}: the driver is not loaded; load it first: modprobe neap")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str, driver: bool) -> Option<String> {
        reason(&["something else".to_owned(), line.to_owned()], driver)
    }

    #[test]
    fn what_libbpf_misses_is_told_with_its_remedy() {
        let kfunc = "extern (func ksym) 'neap_read_txn': not found in kernel or module BTFs";
        assert!(of(kfunc, false).unwrap().contains("neap_read_txn: the driver is not loaded"));
        assert!(of(kfunc, true).unwrap().contains("different releases"));
        let hook = "prog 'neap_on_irq': failed to find kernel BTF type ID of 'neap_irq_hook': -ESRCH";
        assert!(of(hook, false).unwrap().contains("neap_irq_hook: the driver is not loaded"));
        let old = "extern (func ksym) 'scx_bpf_dsq_insert': not found in kernel or module BTFs";
        assert!(of(old, true).unwrap().contains("kernel of 7.3 or later"));
        assert_eq!(of("failed to load object", true), None);
    }

    #[test]
    fn an_object_that_is_not_there_is_named() {
        let error = Attached::new(Path::new("/no/such.bpf.o")).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("/no/such.bpf.o") && error.contains("--object"), "{error}");
    }
}
