//! Who asks by cgroup: all threads of some cgroups, and of those below them, are kept in the class.
//!
//! 1. The kernel tells nobody that a thread has come to a cgroup, so that is looked at. What a thread in the class starts
//!    is in the class from its first instruction; only what is moved into the cgroup waits for the next look.
//! 2. Who leaves the cgroup leaves the class, for the policy that it had, and so do all when the loader ends.
//! 3. Threads of the real-time classes have asked for something else, and stay there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::driver::class::{self, SCHED_EXT};

/// The file that names a cgroup's threads: unlike `cgroup.procs` it can be read in threaded ones too.
const THREADS: &str = "cgroup.threads";
/// A flag beside the policy: what the thread starts does not inherit it.
const RESET_ON_FORK: i32 = 0x4000_0000;

/// The policies of threads, as the kernel has them.
pub trait Policies {
    /// A thread's, with its flags.
    fn of(&self, thread: i32) -> io::Result<i32>;
    /// Gives it another.
    fn set(&mut self, thread: i32, policy: i32) -> io::Result<()>;
}

/// This machine's.
#[derive(Clone, Copy, Debug)]
pub struct Here;

impl Policies for Here {
    fn of(&self, thread: i32) -> io::Result<i32> {
        class::policy(thread)
    }

    fn set(&mut self, thread: i32, policy: i32) -> io::Result<()> {
        class::set_policy(thread, policy)
    }
}

/// The cgroups, and their threads as they were last seen.
pub struct Cgroups<P: Policies> {
    cgroups: Vec<PathBuf>,
    /// Each thread, with the policy that it gets back.
    threads: BTreeMap<i32, i32>,
    policies: P,
}

impl<P: Policies> Cgroups<P> {
    /// Checks that the directories are cgroups.
    pub fn new(cgroups: &[PathBuf], policies: P) -> Result<Self> {
        for cgroup in cgroups {
            if !cgroup.is_dir() {
                bail!("there is no cgroup {0}; make it first: mkdir {0}", cgroup.display());
            }
            let file = cgroup.join(THREADS);
            fs::read(&file).with_context(|| {
                format!(
                    "{} is no cgroup of version 2 ({} can't be read); those are below /sys/fs/cgroup",
                    cgroup.display(),
                    file.display()
                )
            })?;
        }
        Ok(Self { cgroups: cgroups.to_vec(), threads: BTreeMap::new(), policies })
    }

    /// Puts who has come into the class, and who has gone out of it. The first thread that could not be, and why.
    pub fn look(&mut self) -> Result<()> {
        let mut found = Vec::new();
        self.cgroups.iter().for_each(|cgroup| threads(cgroup, &mut found));
        let mut failed = Ok(());
        let mut now = BTreeMap::new();
        for thread in found {
            // One that is gone by now is nobody's concern.
            let Ok(policy) = self.policies.of(thread) else { continue };
            let before = self.threads.remove(&thread);
            let flags = policy & RESET_ON_FORK;
            match policy & !RESET_ON_FORK {
                SCHED_EXT => {}
                libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE => {
                    let done = self.policies.set(thread, SCHED_EXT | flags);
                    if let Some(error) = done.err().filter(|error| error.raw_os_error() != Some(libc::ESRCH))
                    {
                        failed = failed.and(Err(error).with_context(|| {
                            format!("thread {thread} can't be put into the class SCHED_EXT")
                        }));
                        continue;
                    }
                }
                _ => continue,
            }
            let usual = if policy & !RESET_ON_FORK == SCHED_EXT { libc::SCHED_OTHER | flags } else { policy };
            now.insert(thread, before.unwrap_or(usual));
        }
        let gone = std::mem::replace(&mut self.threads, now);
        self.release(gone);
        failed
    }

    fn release(&mut self, threads: BTreeMap<i32, i32>) {
        for (thread, policy) in threads {
            if self.policies.of(thread).is_ok_and(|now| now & !RESET_ON_FORK == SCHED_EXT) {
                // It may end in between.
                let _ = self.policies.set(thread, policy);
            }
        }
    }
}

impl<P: Policies> Drop for Cgroups<P> {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut self.threads);
        self.release(threads);
    }
}

/// Adds the threads of a cgroup and of those below it. One that is removed meanwhile has none.
fn threads(cgroup: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(cgroup.join(THREADS)).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            threads(&entry.path(), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Threads with their policies; one that is not there has ended, and one in `stubborn` can't be moved.
    #[derive(Clone, Default)]
    struct Fake {
        policies: Rc<RefCell<BTreeMap<i32, i32>>>,
        stubborn: Option<i32>,
    }

    impl Policies for Fake {
        fn of(&self, thread: i32) -> io::Result<i32> {
            let found = self.policies.borrow().get(&thread).copied();
            found.ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
        }

        fn set(&mut self, thread: i32, policy: i32) -> io::Result<()> {
            if self.stubborn == Some(thread) {
                return Err(io::Error::from_raw_os_error(libc::EPERM));
            }
            *self.policies.borrow_mut().get_mut(&thread).unwrap() = policy;
            Ok(())
        }
    }

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.0.path().join("neap/below")).unwrap();
            tree.holds("neap", &[]);
            tree.holds("neap/below", &[]);
            tree
        }

        fn holds(&self, cgroup: &str, threads: &[i32]) {
            let text: String = threads.iter().map(|thread| format!("{thread}\n")).collect();
            fs::write(self.0.path().join(cgroup).join(THREADS), text).unwrap();
        }

        fn neap(&self) -> [PathBuf; 1] {
            [self.0.path().join("neap")]
        }
    }

    #[test]
    fn who_comes_is_in_the_class_and_who_goes_has_its_policy_back() {
        let tree = Tree::new();
        let fake = Fake::default();
        let all = [
            (10, libc::SCHED_OTHER),
            (11, libc::SCHED_BATCH | RESET_ON_FORK),
            (12, libc::SCHED_FIFO),
            (13, SCHED_EXT),
            (14, libc::SCHED_IDLE),
        ];
        fake.policies.borrow_mut().extend(all);
        let of = |thread: i32| fake.policies.borrow()[&thread];
        let mut cgroups = Cgroups::new(&tree.neap(), fake.clone()).unwrap();
        tree.holds("neap", &[10, 11, 12]);
        tree.holds("neap/below", &[13, 99]);
        cgroups.look().unwrap();
        assert_eq!(
            [10, 11, 12, 13, 14].map(of),
            [SCHED_EXT, SCHED_EXT | RESET_ON_FORK, libc::SCHED_FIFO, SCHED_EXT, libc::SCHED_IDLE]
        );
        // To another of its cgroups, out of them, and ended.
        tree.holds("neap", &[14]);
        tree.holds("neap/below", &[10]);
        fake.policies.borrow_mut().remove(&13);
        cgroups.look().unwrap();
        assert_eq!([10, 11, 14].map(of), [SCHED_EXT, all[1].1, SCHED_EXT]);
        // What left the class by itself is put back into it, and gets the policy that it had first.
        fake.policies.borrow_mut().insert(14, libc::SCHED_OTHER);
        cgroups.look().unwrap();
        assert_eq!(of(14), SCHED_EXT);
        drop(cgroups);
        assert_eq!([10, 12, 14].map(of), [libc::SCHED_OTHER, libc::SCHED_FIFO, libc::SCHED_IDLE]);
    }

    #[test]
    fn a_thread_that_can_t_be_moved_is_named_and_the_others_are() {
        let tree = Tree::new();
        let fake = Fake { stubborn: Some(10), ..Fake::default() };
        fake.policies.borrow_mut().extend([(10, libc::SCHED_OTHER), (11, libc::SCHED_OTHER)]);
        let mut cgroups = Cgroups::new(&tree.neap(), fake.clone()).unwrap();
        tree.holds("neap", &[10, 11]);
        let error = cgroups.look().unwrap_err().to_string();
        assert!(error.contains("thread 10"), "{error}");
        assert_eq!(fake.policies.borrow()[&11], SCHED_EXT);
    }

    #[test]
    fn what_is_no_cgroup_is_named_with_its_remedy() {
        let tree = Tree::new();
        let error = |path: PathBuf| Cgroups::new(&[path], Here).map(|_| ()).unwrap_err().to_string();
        assert!(error(tree.0.path().join("none")).contains("mkdir"));
        assert!(error(tree.0.path().to_owned()).contains("no cgroup of version 2"));
    }
}
