//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use neap_abi::CPUS_MAX;
use neap_host::policies::BUNDLED;

use crate::enclaves::{self, EnclaveAsked};
use crate::inspect;
use crate::report::{HostKind, LoadKind, Parameters};
#[cfg(feature = "linux")]
use crate::scx::ScxCommand;
use crate::worker::{AgentOrder, Order};

/// How we are called: by cargo in a checkout, by ourselves where a package has put us.
fn called() -> &'static str {
    if std::env::var_os("CARGO").is_some() { "cargo neap" } else { "neap" }
}

/// Run scheduling policies as agents on the cores of an IPU.
#[derive(Debug, Parser)]
#[command(name = "neap", bin_name = called(), version, propagate_version = true, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot the firmware on a virtual IPU and let it schedule a key-value store's requests
    ///
    /// Sets up what is missing (QEMU, the firmware's target), builds the firmware, starts the
    /// virtual IPU and a worker host of --cpus threads, loads a key-value store, and drives it with
    /// Poisson arrivals of real GETs. Each request is a task: it runs when and where the firmware's
    /// agent decides. Values are checked, tasks are counted, and with FIFO its order is verified.
    ///
    /// With --enclave the host's CPUs are split into enclaves, each with an agent of its own. An agent
    /// that fails is ended and started again; until then the same policy on the host decides, or the
    /// host itself. What its failure cost is in the report.
    ///
    /// With --host linux the host is a Linux guest with the driver in its kernel, in a second QEMU: the
    /// requests are served by threads there, which sched_ext has the firmware schedule. In the place of
    /// that load any command may run, with all that it starts: neap run --host linux -- COMMAND.
    ///
    /// Exits with 0 when every promise was kept, whatever became of agents; with 1 when a task was
    /// lost or ran twice, an order or a value was wrong, or a part of the run died; with 130 after
    /// Ctrl-C; else with the command's own status. The report says which in any case.
    #[command(verbatim_doc_comment)]
    Run(RunOptions),
    /// Print the firmware's log (defmt) of the running instance, or of the last run
    Log {
        /// Go on until the instance ends
        #[arg(short, long)]
        follow: bool,
    },
    /// Load, replace and kill the agents of the running instance, or of this machine's own IPU
    ///
    /// Without --device the running instance is meant; where none runs, the IPU that this machine's
    /// driver has found.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Show hello pages, agents, bindings and epitaphs of the running instance, of this machine's own
    /// IPU, or of the last run
    Status {
        /// One JSON object instead of tables
        #[arg(long)]
        json: bool,
        /// The driver's device, e.g. /dev/neap0, instead of an instance
        #[arg(long, value_name = "DEVICE")]
        device: Option<PathBuf>,
    },
    /// Watch enclaves, agents, cores, decisions, latency, outcomes, faults and epitaphs; q ends it
    Top {
        /// Print one plain frame instead, for scripts
        #[arg(long)]
        once: bool,
        /// The driver's device, e.g. /dev/neap0, instead of an instance
        #[arg(long, value_name = "DEVICE")]
        device: Option<PathBuf>,
    },
    /// Print the same figures as OpenMetrics, or serve them to Prometheus
    Metrics {
        /// Serve them by HTTP under /metrics until Ctrl-C [default: this machine alone can reach it, 127.0.0.1:9464]
        #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = inspect::LOOPBACK)]
        listen: Option<SocketAddr>,
        /// The driver's device, e.g. /dev/neap0, instead of an instance
        #[arg(long, value_name = "DEVICE")]
        device: Option<PathBuf>,
    },
    /// Print what completes these commands in a shell: bash, elvish, fish, powershell or zsh
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Put the scheduler that asks the IPU into this machine's kernel
    #[cfg(feature = "linux")]
    #[command(subcommand)]
    Scx(ScxCommand),
    /// Be what a run's guest does; switches the machine off
    #[cfg(feature = "linux")]
    #[command(hide = true)]
    Guest {
        /// The file that says what it is to do
        order: PathBuf,
    },
    /// Run the same agents in virtual time: the papers' figures, a workload, or a search for faults
    ///
    /// Without more it runs the papers' figures, each published point beside the model's and Neap's. With
    /// --workload or --rate it runs a load under --policy; with --faults it lets things go wrong, seed by
    /// seed, and says in which seed something is lost. All of it is modelled, none of it measured.
    #[command(verbatim_doc_comment)]
    Sim(SimOptions),
    /// Make and show the keys that images are signed with
    #[command(subcommand)]
    Key(KeyCommand),
    /// Build, inspect and verify what a card boots
    #[command(subcommand)]
    Image(ImageCommand),
    /// Write an image into the slot of a card's disk that is not booted, to be tried at the next boot
    ///
    /// The image has to be one that the disk's loader would boot. What is written is read back; until all of
    /// it is there the disk boots what it booted before. An image that is not confirmed is booted once.
    #[command(verbatim_doc_comment)]
    Flash(FlashOptions),
    /// Record what an agent is told and decides, and replay it: in the simulator, on the host, on QEMU
    ///
    /// A trace is replayed message by message, by the messages' own clock, so that each policy decides the
    /// same wherever its agent runs, bit for bit. `neap run --trace FILE` records a run.
    ///
    /// With --perfetto it is the running instance that is watched, for --seconds: what runs on each host CPU,
    /// every message, txn and outcome, and who decides, as a timeline for ui.perfetto.dev.
    #[command(verbatim_doc_comment)]
    Trace(TraceOptions),
    /// Measure what this machine's own IPU costs it
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Check the driver on this machine
    #[command(subcommand, hide = true)]
    Check(CheckCommand),
    /// Be the worker host of a run
    #[command(hide = true)]
    Worker {
        /// What it is to do, in JSON: from our own hand, to our own hand
        order: Order,
    },
    /// Be the on-host agent of a run
    #[command(hide = true)]
    OnHostAgent {
        /// As the worker host's
        order: AgentOrder,
    },
}

/// What to simulate.
#[derive(Clone, Debug, Args)]
pub struct SimOptions {
    /// Which figure: table3, ablation, fig4a, fig4b, fig6, link or all
    #[arg(long, default_value = "all", value_name = "NAME")]
    pub figure: String,
    /// Where all that is random comes from; of a search, the first seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One JSON object instead of tables
    #[arg(long)]
    pub json: bool,
    /// Write a page with the figures drawn
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// The policy that decides: fifo, fifo-per-core, shinjuku, mq-shinjuku or vm
    /// [default: fifo over a load of one's own; where things go wrong, each in turn]
    #[arg(long, value_name = "NAME", verbatim_doc_comment)]
    pub policy: Option<String>,
    /// Run the tasks of this file, in rt-app's JSON
    #[arg(long, value_name = "FILE", conflicts_with = "rate")]
    pub workload: Option<PathBuf>,
    /// Run GETs of 10 us, so many a second
    #[arg(long, value_name = "HZ", value_parser = rate)]
    pub rate: Option<f64>,
    /// With --rate: how many
    #[arg(long, default_value_t = 50_000, value_parser = RangedU64ValueParser::<u64>::new().range(1..=100_000_000))]
    pub requests: u64,
    /// With --rate: 0.5 % of them RANGE queries of 10 ms
    #[arg(long, requires = "rate")]
    pub dispersive: bool,
    /// Host CPUs under a load of one's own
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub cpus: u16,
    /// Let things go wrong, in so many seeds
    #[arg(long, value_name = "SEEDS", conflicts_with_all = ["workload", "rate"], value_parser = RangedU64ValueParser::<u64>::new().range(1..=100_000_000))]
    pub faults: Option<u64>,
}

/// What to do with keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key: FILE, which signs and is kept secret, and FILE.pub, which cards are given
    New {
        /// Where; nothing is ever written over
        file: PathBuf,
    },
    /// Show a key's public half and its name
    Show {
        /// Either half's file
        file: PathBuf,
    },
}

/// What to do with images.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Build the firmware and agents, and sign them as one image; the same sources make the same bytes
    Build(BuildOptions),
    /// Show what an image says of itself
    Inspect {
        /// The image
        image: PathBuf,
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Check every byte of an image
    Verify {
        /// The image
        image: PathBuf,
        /// The key that it has to be signed with, either half's file
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Make a card's disk: the loader, the keys that it trusts, and two slots
    Disk(DiskOptions),
}

/// What disk to make.
#[derive(Clone, Debug, Args)]
pub struct DiskOptions {
    /// Where: a new file, or with --force a disk of which everything is lost
    #[arg(long, short, value_name = "FILE|DEVICE")]
    pub out: PathBuf,
    /// A key that its images may be signed with, either half's file; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    pub key: Vec<PathBuf>,
    /// The image for its first slot
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Write over what is there
    #[arg(long)]
    pub force: bool,
}

/// What to flash.
#[derive(Clone, Debug, Args)]
pub struct FlashOptions {
    /// The image, from `neap image build`
    pub image: PathBuf,
    /// The card's disk [default: that of the card that runs, by its window]
    #[arg(long, value_name = "FILE|DEVICE")]
    pub to: Option<PathBuf>,
    /// The enclave by whose window a card that runs is reached
    #[arg(long, default_value_t = 0, value_name = "N", conflicts_with = "to")]
    pub enclave: u16,
    /// The driver's device of that enclave, on a machine with a card [default: what runs, else what there is]
    #[arg(long, value_name = "/dev/neapN", conflicts_with = "to")]
    pub device: Option<PathBuf>,
    /// The board that it is in
    #[arg(long, default_value = "qemu_virt", value_name = "NAME")]
    pub board: String,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Also write to a disk that is mounted here
    #[arg(long)]
    pub force: bool,
}

/// What to build.
#[derive(Clone, Debug, Args)]
pub struct BuildOptions {
    /// Where to write it
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// The key that signs it, from `neap key new`
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The board that it is for
    #[arg(long, default_value = "qemu_virt", value_name = "NAME")]
    pub board: String,
    /// An agent beside the one that the runtime brings; may be repeated
    #[arg(long, value_name = "NAME")]
    pub agent: Vec<String>,
    /// Raise it when older images must not be booted any more
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub security_version: u32,
    /// The runtime's command line: "neap.idle=spin neap.cores=2,1"
    #[arg(long, default_value = "", value_name = "WORDS", allow_hyphen_values = true)]
    pub args: String,
    /// Write the runtime alone too, as arm64's Image: for `-kernel` and `booti`
    #[arg(long, value_name = "FILE")]
    pub raw: Option<PathBuf>,
    /// Write a UEFI application too, which boots this image and no other
    #[arg(long, value_name = "FILE")]
    pub uefi: Option<PathBuf>,
}

/// What to trace.
#[derive(Clone, Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct TraceOptions {
    #[command(subcommand)]
    pub command: Option<TraceCommand>,
    /// Watch the running instance, and write a timeline for Perfetto
    #[arg(long, value_name = "FILE", required = true)]
    pub perfetto: Option<PathBuf>,
    /// How long to watch
    #[arg(long, default_value_t = 5.0, allow_negative_numbers = true, value_parser = watched)]
    pub seconds: f64,
}

/// What to do with traces.
#[derive(Clone, Debug, Subcommand)]
pub enum TraceCommand {
    /// Record a dispersive load in the simulator, with what is decided after each message
    Record(RecordOptions),
    /// Replay a trace; exits with 1 where something else is decided than the trace has
    Replay(ReplayOptions),
}

/// What to record.
#[derive(Clone, Debug, Args)]
pub struct RecordOptions {
    /// Where to write it
    pub file: PathBuf,
    /// The policy that decides: fifo, fifo-per-core, shinjuku, mq-shinjuku or vm
    #[arg(long, default_value = "fifo", value_name = "NAME")]
    pub policy: String,
    /// Host CPUs
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub cpus: u16,
    /// Requests of the load
    #[arg(long, default_value_t = 1000, value_parser = RangedU64ValueParser::<u64>::new().range(1..=1_000_000))]
    pub requests: u64,
    /// Where all that is random comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// What to replay.
#[derive(Clone, Debug, Args)]
pub struct ReplayOptions {
    /// The trace
    pub file: PathBuf,
    /// Where: sim, thread (this process, without a link), on-host, qemu or all
    #[arg(long, default_value = "all", value_name = "HOME")]
    pub home: String,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What to do with agents.
#[derive(Clone, Debug, Subcommand)]
pub enum AgentCommand {
    /// List the agents of every enclave, running and laid out
    List {
        /// Only this enclave's
        #[arg(long)]
        enclave: Option<u16>,
        /// One JSON object instead of a table
        #[arg(long)]
        json: bool,
        /// The driver's device, e.g. /dev/neap0, instead of an instance
        #[arg(long, value_name = "DEVICE")]
        device: Option<PathBuf>,
    },
    /// Lay an agent out beside the one that runs
    Load {
        /// An image's file, or the name of an agent that is built from the checkout
        agent: String,
        #[command(flatten)]
        to: AgentOptions,
    },
    /// Have an agent take over from the one that runs, without a stop
    ///
    /// It is on trial until its first decision: one that faults, or owes that for too long, is rolled
    /// back, and the agent before it runs again.
    Replace {
        /// As for `load`; without it, the agent that is laid out, else the bundle's for the policy
        agent: Option<String>,
        /// How long its trial may last
        #[arg(long, default_value_t = 1000, value_name = "MS", value_parser = RangedU64ValueParser::<u64>::new().range(1..=60_000))]
        trial_ms: u64,
        #[command(flatten)]
        to: AgentOptions,
    },
    /// End the agent that runs; it is started again
    Kill {
        /// How long it may take to give its core back by itself
        #[arg(long, default_value_t = 1000, value_name = "US", value_parser = RangedU64ValueParser::<u64>::new().range(0..=60_000_000))]
        grace_us: u64,
        #[command(flatten)]
        to: AgentOptions,
    },
}

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Tables 2 and 3 of the paper: MMIO, MSI-X and context switches, beside the paper's figures
    ///
    /// The driver takes the samples of MMIO and MSI-X, each with interrupts off where it can be; what
    /// is written nobody reads, so an agent may decide meanwhile. MSI-X is rung from the host through
    /// the function's doorbell to the CPU that rings, on every CPU in turn.
    ///
    /// Context switches are real ones of threads under SCHED_EXT, from the moment before one blocks to
    /// the next one's first instruction. They need an attached scheduler (`neap scx attach`). Two threads
    /// on one CPU leave the agent nothing to do ahead of time; more than there are CPUs make it prestage.
    /// Which of both a switch was the driver's counters tell, not the number of threads.
    ///
    /// Under emulation every row says so: such figures show that all works, and no nanosecond.
    #[command(verbatim_doc_comment)]
    Link(LinkOptions),
}

/// Options of `neap bench link`.
#[derive(Clone, Debug, Args)]
pub struct LinkOptions {
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// The driver's device [default: /dev/neap0]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<PathBuf>,
    /// Samples of each row
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(10..=u64::from(neap_host::device::SAMPLES_MAX)))]
    pub samples: u32,
    /// Context switches, of each of the two kinds [default: a fifth of the samples]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=100_000))]
    pub switches: Option<u32>,
}

/// What to check of the driver.
#[derive(Clone, Debug, Subcommand)]
pub enum CheckCommand {
    /// The memory types of the window's regions, as the kernel lists them
    Types {
        /// The driver's device [default: /dev/neap0]
        #[arg(long, value_name = "DEVICE")]
        device: Option<PathBuf>,
    },
    /// The driver's uAPI under hostile arguments; takes the function from its driver and gives it back
    Uapi {
        /// The driver's device [default: /dev/neap0]
        #[arg(long, value_name = "DEVICE")]
        device: Option<PathBuf>,
    },
}

/// Which agent.
#[derive(Clone, Debug, Args)]
pub struct AgentOptions {
    /// The enclave, counted from 0 in the order of `neap run`'s options
    #[arg(long, default_value_t = 0)]
    pub enclave: u16,
    /// One JSON object instead of a sentence
    #[arg(long)]
    pub json: bool,
    /// The driver's device, e.g. /dev/neap0, instead of an instance
    #[arg(long, value_name = "DEVICE", conflicts_with = "enclave")]
    pub device: Option<PathBuf>,
}

/// Options of `neap run`.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// What the host is: worker threads of this machine, or Linux with the driver, in a second QEMU
    #[arg(long, value_enum, default_value_t, value_name = "HOST")]
    pub host: HostKind,
    /// How long the load lasts, or how long a command may take
    /// [default: 10; for a command, as long as it takes]
    #[arg(long, allow_negative_numbers = true, value_parser = seconds)]
    pub seconds: Option<f64>,
    /// Which policy decides
    #[arg(long, default_value = "fifo", value_parser = enclaves::POLICIES)]
    pub policy: String,
    /// Host CPUs, each a thread of the worker host or a CPU of the guest
    /// [default: 4; with --host linux 2]
    #[arg(long, value_parser = RangedU64ValueParser::<u16>::new().range(1..=u64::from(CPUS_MAX)))]
    pub cpus: Option<u16>,
    /// An enclave of its own for some host CPUs, in place of --cpus and --policy; may be repeated
    ///
    /// cpus=0-3,policy=fifo[,agent=NAME_OR_FILE][,cores=N]: agent is an image's file, or the name of
    /// an agent that is built from the checkout, which takes over from the bundle's; cores is how many
    /// cores of the IPU it has, if its image is for as many. The rate is shared out by the number of
    /// CPUs.
    #[arg(long, value_name = "SPEC", conflicts_with_all = ["cpus", "policy"])]
    pub enclave: Vec<EnclaveAsked>,
    /// How long an agent may owe a decision before it is ended
    #[arg(long, default_value_t = 20, value_name = "MS", value_parser = RangedU64ValueParser::<u64>::new().range(1..=60_000))]
    pub watchdog_ms: u64,
    /// End the agent when the load is that old; another is started in its place
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = age)]
    pub kill_agent_after: Option<f64>,
    /// What the requests are: GETs, or the paper's dispersive load of 99.5 % GETs and 0.5 % long RANGE queries
    /// [default: gets; dispersive for shinjuku and mq-shinjuku]
    #[arg(long, value_enum, value_name = "LOAD")]
    pub load: Option<LoadKind>,
    /// Mean arrivals per second [default: 8000; with --host linux 300]
    #[arg(long, allow_negative_numbers = true, value_parser = rate)]
    pub rate: Option<f64>,
    /// Where keys, arrivals and values come from: the same seed gives the same load
    /// [default: a random one, reported]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keys in the store [default: 100000; with --host linux 20000]
    #[arg(long, value_parser = RangedU64ValueParser::<u64>::new().range(1..=20_000_000))]
    pub keys: Option<u64>,
    /// Requests whose task blocks for 100 to 300 µs between two GETs (TASK_BLOCKED, TASK_WAKEUP) [default: 5]
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true, value_parser = percent)]
    pub blocking: Option<f64>,
    /// Requests whose task yields between two GETs (TASK_YIELD) [default: 5]
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true, value_parser = percent)]
    pub yielding: Option<f64>,
    /// Cores of the IPU; core 0 supervises. One more than the enclaves' agents have at least
    #[arg(long, default_value_t = 2, value_parser = RangedU64ValueParser::<u16>::new().range(2..=u64::from(enclaves::IPU_CORES_MAX)))]
    pub cores: u16,
    /// Run the very same agent as a process on the host instead of in QEMU
    #[arg(long)]
    pub on_host: bool,
    /// Boot the card from a disk of its own (`neap image disk`), by UEFI, in place of the firmware of this checkout
    ///
    /// What UEFI keeps lies beside it, in DISK.variables. What cores its enclaves have stands in the
    /// image (`neap image build --args neap.cores=...`).
    #[arg(long, value_name = "DISK", conflicts_with = "on_host")]
    pub disk: Option<PathBuf>,
    /// Print one JSON object instead of a table; what a command writes goes to stderr then
    #[arg(long)]
    pub json: bool,
    /// Write a page with latency curves and the timeline of queue depth
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Write what the first enclave's agent is told, for `neap trace replay`; its policy goes by the messages' time then
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write a timeline for Perfetto: what ran where, and the messages, txns and outcomes that made it so
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// A command to run in the guest in place of the store and its load, with its own options
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl RunOptions {
    /// What no single option can tell.
    pub fn check(&self) -> anyhow::Result<()> {
        let (blocking, yielding) = (self.blocking_percent(), self.yielding_percent());
        let both = blocking + yielding;
        anyhow::ensure!(
            both <= 100.0,
            "--blocking {blocking} and --yielding {yielding} are {both} % together; a request does one or the other: \
             stay at or below 100"
        );
        self.check_host()?;
        enclaves::check(&self.enclaves(), self.on_host)
    }

    fn check_host(&self) -> anyhow::Result<()> {
        if self.host == HostKind::Worker {
            anyhow::ensure!(
                self.command.is_empty(),
                "{} is to run under the firmware's scheduling, which takes a kernel: add --host linux",
                self.command[0]
            );
            return Ok(());
        }
        anyhow::ensure!(
            self.policy == BUNDLED,
            "--host linux has the driver attach for the policy that the firmware brings, which is {BUNDLED}; have \
             another take over with `neap agent replace {}`",
            self.policy
        );
        for (option, given) in [("--trace", self.trace.is_some()), ("--perfetto", self.perfetto.is_some())] {
            anyhow::ensure!(!given, "{option} is of the worker host: leave --host linux out");
        }
        anyhow::ensure!(
            self.load != Some(LoadKind::Dispersive),
            "--load dispersive is of the worker host: leave --host linux out"
        );
        anyhow::ensure!(
            !self.on_host,
            "--host linux has its driver speak with an IPU, and --on-host is a run without one: leave one of them out"
        );
        anyhow::ensure!(
            self.enclave.is_empty(),
            "--host linux has one enclave, of all the guest's CPUs: use --cpus in place of --enclave"
        );
        let of_the_load = [
            ("--rate", self.rate.is_some()),
            ("--seed", self.seed.is_some()),
            ("--keys", self.keys.is_some()),
            ("--blocking", self.blocking.is_some()),
            ("--yielding", self.yielding.is_some()),
        ];
        for (option, given) in of_the_load {
            anyhow::ensure!(
                !given || self.command.is_empty(),
                "{option} is of the store's load, and the load is {}: leave one of them out",
                self.command[0]
            );
        }
        Ok(())
    }

    /// The enclaves: those asked for, or one of all CPUs.
    pub fn enclaves(&self) -> Vec<EnclaveAsked> {
        if self.enclave.is_empty() {
            return vec![EnclaveAsked::only(self.cpus.unwrap_or(self.usual(4, 2)), &self.policy)];
        }
        self.enclave.clone()
    }

    /// All of it, with what was left open.
    pub fn parameters(&self) -> Parameters {
        let enclaves = self.enclaves();
        let mut policies: Vec<&str> = enclaves.iter().map(|enclave| enclave.policy.as_str()).collect();
        policies.dedup();
        let is_command = !self.command.is_empty();
        Parameters {
            host: self.host,
            policy: policies.join(", "),
            cpus: enclaves.iter().map(EnclaveAsked::count).sum(),
            watchdog_ms: self.watchdog_ms,
            // Each enclave's agent has cores of its own, beside the supervisor's.
            cores: self.cores.max(enclaves::cores(&enclaves)),
            // 32 bits are easy to type again, and exact in every reader of JSON.
            seed: self.seed.unwrap_or_else(|| u64::from(rand::random::<u32>())),
            seconds: self.seconds.unwrap_or(if is_command { 0.0 } else { 10.0 }),
            rate: if is_command { 0.0 } else { self.rate.unwrap_or(self.usual(8000.0, 300.0)) },
            keys: if is_command { 0 } else { self.keys.unwrap_or(self.usual(100_000, 20_000)) },
            blocking_percent: if is_command { 0.0 } else { self.blocking_percent() },
            yielding_percent: if is_command { 0.0 } else { self.yielding_percent() },
            load: self.load(&enclaves),
            on_host: self.on_host,
            kill_agent_after_s: self.kill_agent_after,
            command: self.command.clone(),
            enclaves,
        }
    }

    /// What is usual on this kind of host.
    fn usual<T>(&self, worker: T, linux: T) -> T {
        match self.host {
            HostKind::Worker => worker,
            HostKind::Linux => linux,
        }
    }

    /// A policy for dispersive loads has one, unless another is asked for.
    fn load(&self, enclaves: &[EnclaveAsked]) -> LoadKind {
        let dispersive = enclaves.iter().any(|enclave| enclave.policy.ends_with("shinjuku"));
        let usual = if dispersive && self.host == HostKind::Worker && self.command.is_empty() {
            LoadKind::Dispersive
        } else {
            LoadKind::Gets
        };
        self.load.unwrap_or(usual)
    }

    fn blocking_percent(&self) -> f64 {
        self.blocking.unwrap_or(5.0)
    }

    fn yielding_percent(&self) -> f64 {
        self.yielding.unwrap_or(5.0)
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    within(text, 0.1, 86_400.0, "seconds")
}

fn watched(text: &str) -> Result<f64, String> {
    within(text, 0.1, 600.0, "seconds")
}

fn age(text: &str) -> Result<f64, String> {
    within(text, 0.0, 86_400.0, "seconds")
}

fn rate(text: &str) -> Result<f64, String> {
    within(text, 0.1, 1e6, "requests per second")
}

fn percent(text: &str) -> Result<f64, String> {
    within(text, 0.0, 100.0, "percent")
}

fn within(text: &str, least: f64, most: f64, unit: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("give {least} to {most} {unit}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn options(line: &str) -> Result<RunOptions, String> {
        let words = ["neap", "run"].into_iter().chain(line.split_whitespace());
        match Arguments::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Run(options) => Ok(options),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_help() {
        let run = options("").unwrap();
        run.check().unwrap();
        assert_eq!((run.seed, run.json, run.host), (None, false, HostKind::Worker));
        let asked = run.parameters();
        assert_eq!((asked.seconds, asked.cpus, asked.keys, asked.cores), (10.0, 4, 100_000, 2));
        assert_eq!((asked.policy.as_str(), asked.on_host, asked.rate), ("fifo", false, 8000.0));
        assert_eq!((asked.blocking_percent, asked.yielding_percent), (5.0, 5.0));
        let linux = options("--host linux").unwrap();
        linux.check().unwrap();
        let asked = linux.parameters();
        assert_eq!((asked.cpus, asked.rate, asked.keys), (2, 300.0, 20_000));
    }

    #[test]
    fn a_command_takes_the_load_s_place_and_keeps_its_own_options() {
        let run = options("--host linux --kill-agent-after 2.5 -- stress-ng --cpu 4 --timeout 5s").unwrap();
        run.check().unwrap();
        assert_eq!(run.command, ["stress-ng", "--cpu", "4", "--timeout", "5s"]);
        let asked = run.parameters();
        assert_eq!((asked.seconds, asked.rate, asked.keys), (0.0, 0.0, 0));
        assert_eq!(asked.kill_agent_after_s, Some(2.5));
        assert_eq!(options("--host linux --seconds 30 -- true").unwrap().parameters().seconds, 30.0);
    }

    #[test]
    fn what_makes_no_sense_under_linux_is_refused_with_what_does() {
        for (line, words) in [
            (
                "-- stress-ng",
                "stress-ng is to run under the firmware's scheduling, which takes a kernel: add --host linux",
            ),
            ("--host linux --on-host", "leave one of them out"),
            ("--host linux --enclave cpus=0-1", "use --cpus in place of --enclave"),
            ("--host linux --rate 5 -- true", "--rate is of the store's load, and the load is true"),
            ("--host linux --yielding 5 -- true", "--yielding is of the store's load"),
        ] {
            let error = options(line).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
        assert!(options("--host freebsd").unwrap_err().contains("possible values: worker, linux"));
    }

    #[test]
    fn enclaves_are_as_many_as_asked_for() {
        let run = options("--enclave cpus=0-3,policy=fifo --enclave cpus=4-7").unwrap();
        run.check().unwrap();
        let cpus: Vec<_> = run.enclaves().iter().map(EnclaveAsked::cpus).collect();
        assert_eq!(cpus, [0..=3, 4..=7]);
        assert_eq!(options("--cpus 3").unwrap().enclaves(), [EnclaveAsked::only(3, "fifo")]);
        let both = options("--enclave cpus=0-3 --enclave cpus=3").unwrap().check().unwrap_err();
        assert!(both.to_string().contains("share CPU 3"), "{both}");
    }

    #[test]
    fn what_can_not_be_is_refused_with_what_can() {
        for (line, remedy) in [
            ("--seconds 0", "0.1 to 86400 seconds"),
            ("--seconds nan", "0.1 to 86400 seconds"),
            ("--seconds -3", "seconds"),
            ("--rate -5", "0.1 to 1000000 requests per second"),
            ("--rate 0", "0.1 to 1000000 requests per second"),
            ("--rate inf", "requests per second"),
            ("--cpus 0", "1..=256"),
            ("--cpus 257", "1..=256"),
            ("--cores 1", "2..=16"),
            ("--keys 0", "1..=20000000"),
            ("--blocking 101", "0 to 100 percent"),
            ("--policy lifo", "possible values: fifo, fifo-per-core, shinjuku, mq-shinjuku, vm"),
            ("--sed 3", "--seed"),
            ("--watchdog-ms 0", "1..=60000"),
            ("--enclave cpus=0-3,core=4", "`core` is unknown"),
            ("--enclave cpus=0-3 --cpus 4", "cannot be used with"),
            ("--enclave cpus=0-3 --policy fifo", "cannot be used with"),
        ] {
            let error = options(line).unwrap_err();
            assert!(error.contains(remedy), "{line}: {error}");
        }
        let error = options("--blocking 60 --yielding 60").unwrap().check().unwrap_err().to_string();
        assert!(error.contains("120 %") && error.contains("at or below 100"), "{error}");
    }
}
