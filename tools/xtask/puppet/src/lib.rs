//! What a test and its puppet say to each other: a line of JSON for each order, and one or more in answer.
//!
//! The puppet is the only program of a Linux guest. It keeps workers, processes whose scheduling is what a test is about, and
//! tells them what to do through memory that they share with it, so that no worker runs but for its own work.

use serde::{Deserialize, Serialize};

/// Workers that a puppet can have at one time.
pub const WORKERS_MAX: usize = 64;

/// An order, with the number that its answer bears.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Which.
    pub number: u32,
    /// What.
    pub order: Order,
}

/// What the puppet can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// Runs a line of the shell to its end: its output and status.
    Shell(String),
    /// Reads a file.
    Read(String),
    /// Writes a file that is there, in one call.
    Write(String, String),
    /// Starts a worker.
    Start {
        /// Its number.
        worker: usize,
        /// Its class.
        class: Class,
        /// The CPUs that it may use; all if none.
        cpus: Vec<u16>,
        /// What it does first.
        word: Word,
    },
    /// Tells a worker what to do.
    Tell(usize, Word),
    /// Sends a worker a signal.
    Signal(usize, i32),
    /// Changes the CPUs that a worker may use.
    Allow(usize, Vec<u16>),
    /// Changes a worker's class.
    Class(usize, Class),
    /// How the workers are.
    Look,
    /// Starts a program that goes on, in a class; what it says is told as it comes.
    Daemon(String, Class, Vec<String>),
    /// How a program that was started so has ended, if it has.
    Ended(String),
    /// Sends such a program a signal, and waits for its end if it is one to end by.
    Stop(String, i32),
    /// Changes the driver's settings (`NEAP_IOC_SETTINGS`); 0 leaves one.
    Settings {
        /// The device.
        device: String,
        /// How long an agent may owe a decision, in ms.
        watchdog_ms: u32,
        /// How long the host's own rule decides before the kernel's class does, in ms.
        kernel_after_ms: u32,
        /// Whether to attach under another session.
        attach_anew: bool,
    },
    /// Switches the machine off.
    Off,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u32)]
pub enum Word {
    /// Waits for another word.
    Rest = 0,
    /// Works without end.
    Work = 1,
    /// Ends.
    End = 2,
    /// Works, and gives up its CPU after each round.
    Yield = 3,
    /// Works, and sleeps for a moment after each round.
    Nap = 4,
    /// Works for a round, and then waits for another word.
    Once = 5,
    /// Has the driver measure something, which keeps it on its CPU meanwhile.
    Measure = 6,
}

/// A scheduling class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// The kernel's own.
    Fair,
    /// Before all of the others.
    Fifo,
    /// The one that an IPU schedules.
    Ext,
}

/// What the puppet says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Said {
    /// It is there.
    Ready {
        /// The kernel's release.
        release: String,
        /// CPUs of the machine.
        cpus: u16,
    },
    /// An order was followed, or could not be.
    Done(u32, Result<Answer, String>),
    /// A daemon's line.
    Heard(String, String),
}

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// It was done.
    Done,
    /// A file's content.
    Text(String),
    /// A line of the shell has ended.
    Shell {
        /// Its status, as a shell has it.
        status: i32,
        /// What it wrote, to whatever stream.
        output: String,
    },
    /// A worker was started.
    Started {
        /// Its process number.
        pid: i32,
    },
    /// A program has ended so, or not yet: a signal as 128 and its number.
    Ended(Option<i32>),
    /// All workers.
    Workers(Vec<Worker>),
}

/// How a worker is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Its number.
    pub worker: usize,
    /// Its process number.
    pub pid: i32,
    /// Rounds that it has worked.
    pub rounds: u64,
    /// How it ended, if it has: a signal as 128 and its number.
    pub ended: Option<i32>,
}
