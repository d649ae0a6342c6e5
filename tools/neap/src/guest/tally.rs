//! The driver's counters over a run: its figures, and when who decided.

use std::time::Instant;

use anyhow::Result;

use crate::driver::{Counters, Device, State};
use crate::measured::{EnclaveMeasured, FallbackMeasured, Measured};
use crate::report::Parameters;

/// Who decides while all is well.
const IPU: &str = "ipu";
/// What the counters of faults begin with.
const FAULTS: &str = "fault_";

/// A device's counters, looked at again and again.
#[derive(Debug)]
pub struct Tally {
    device: Device,
    began: Instant,
    counters: Counters,
    state: State,
    fallbacks: Vec<FallbackMeasured>,
    /// Why the device did not answer at some time.
    silent: Option<String>,
}

/// What became of the tasks, by the word of whoever made them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Made.
    pub created: u64,
    /// Come to their end.
    pub finished: u64,
    /// Never to come to it.
    pub lost: u64,
    /// Come to it more than once.
    pub doubled: u64,
}

impl Tally {
    /// Begins with `device`; an error if it does not count what is needed.
    pub fn begin(device: Device) -> Result<Self> {
        let (counters, state) = (device.counters()?, device.state()?);
        let tally =
            Self { device, began: Instant::now(), counters, state, fallbacks: Vec::new(), silent: None };
        // What lacks is told now, and not when the run is over.
        tally.figures()?;
        Ok(tally)
    }

    /// Since it began.
    pub fn elapsed_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// The newest counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Looks at the device. One that is gone has the counters that it last had.
    pub fn look(&mut self) {
        match self.device.counters().and_then(|counters| Ok((counters, self.device.state()?))) {
            Ok((counters, state)) => self.note(counters, state),
            Err(error) => {
                self.silent.get_or_insert(format!(
                    "after {:.1} s the driver told nothing more: {error:#}",
                    self.elapsed_s()
                ));
            }
        }
    }

    fn note(&mut self, counters: Counters, state: State) {
        let count = |of: &Counters, key| of.of(key).unwrap_or(0);
        let more = count(&counters, "fallbacks").saturating_sub(count(&self.counters, "fallbacks"));
        if more > 0 {
            let before = self.counters.group(FAULTS);
            let fault = counters.group(FAULTS).into_iter().find(|(name, n)| before.get(name) != Some(n));
            let fault = fault.map(|(name, _)| name).or_else(|| state.fault.clone()).unwrap_or_default();
            // It may be over already: then those below the IPU were the first to step in.
            let to = if state.level == IPU { "host".to_owned() } else { state.level.clone() };
            let words = in_words(&fault);
            let step = FallbackMeasured {
                at_us: self.began.elapsed().as_micros() as u64,
                from: self.state.level.clone(),
                to,
                fault,
                words,
            };
            self.fallbacks.extend((0..more).map(|_| step.clone()));
        }
        (self.counters, self.state) = (counters, state);
    }

    /// The figures that the driver has for a run of one enclave.
    pub fn figures(&self) -> Result<Measured> {
        let of = |key| self.counters.of(key);
        Ok(Measured {
            elapsed_s: self.elapsed_s(),
            decisions: of("decisions")?,
            outcomes: self.counters.group("outcome_"),
            prestage_hits: of("prestage_hits")?,
            prestage_misses: of("prestage_misses")?,
            resyncs: of("resyncs")?,
            messages: of("messages")?,
            messages_dropped: of("messages_dropped")?,
            doorbells: of("interrupts")?,
            agent_wakeups: of("rings")?,
            fallbacks: of("fallbacks")?,
            enclaves: vec![EnclaveMeasured {
                decisions: of("decisions")?,
                decisions_by_host: of("tasks_host")?,
                outcomes: self.counters.group("outcome_"),
                prestage_hits: of("prestage_hits")?,
                prestage_misses: of("prestage_misses")?,
                messages: of("messages")?,
                messages_dropped: of("messages_dropped")?,
                doorbells: of("interrupts")?,
                resyncs: of("resyncs")?,
                level: self.state.level.clone(),
                faults: self.counters.group(FAULTS),
                fallbacks: self.fallbacks.clone(),
                comebacks: of("comebacks")?,
                ..EnclaveMeasured::default()
            }],
            ..Measured::default()
        })
    }

    /// The run's record, of `tasks` and what else was measured of them in `work`.
    pub fn measured(&self, asked: &Parameters, tasks: &Tasks, work: Measured) -> Result<Measured> {
        let figures = self.figures()?;
        let enclaves = figures.enclaves.into_iter().map(|enclave| EnclaveMeasured {
            cpus: (0..asked.cpus).collect(),
            policy: asked.policy.clone(),
            requests_offered: work.requests_offered,
            tasks_created: tasks.created,
            tasks_finished: tasks.finished,
            tasks_lost: tasks.lost,
            tasks_doubled: tasks.doubled,
            complete: tasks.created == tasks.finished,
            request: crate::measured::Distribution { curve: Vec::new(), ..work.request.clone() },
            ..enclave
        });
        let enclaves: Vec<_> = enclaves.collect();
        let fault = || self.fallbacks.last().map(|step| step.words.clone());
        let ended = (self.state.level != IPU)
            .then(|| fault().unwrap_or_else(|| "the IPU's agent does not decide".to_owned()));
        let mut remarks: Vec<String> = enclaves.iter().flat_map(EnclaveMeasured::remarks).collect();
        remarks.extend(self.silent.clone());
        remarks.extend(work.remarks);
        Ok(Measured {
            requests_offered: work.requests_offered,
            values_wrong: work.values_wrong,
            request: work.request,
            queue_depth: work.queue_depth,
            command_status: work.command_status,
            troubles: work.troubles,
            tasks_created: tasks.created,
            tasks_finished: tasks.finished,
            tasks_lost: tasks.lost,
            tasks_doubled: tasks.doubled,
            agent_ended: ended,
            enclaves,
            remarks,
            ..figures
        })
    }
}

/// A fault by its name, as a clause.
fn in_words(fault: &str) -> String {
    use neap_host::event::Fault;
    let known = [
        Fault::AgentDead,
        Fault::AgentLate,
        Fault::AgentFloods,
        Fault::AgentPoisoned,
        Fault::LinkDown,
        Fault::HostCpuHogged,
    ];
    let known = known.into_iter().find(|known| known.name() == fault);
    known.map_or_else(|| format!("the driver found `{fault}`"), |fault| fault.in_words().to_owned())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::driver::tests::Debugfs;

    const NAMES: [&str; 16] = [
        "messages",
        "decisions",
        "outcome_committed",
        "outcome_task_gone",
        "prestage_hits",
        "prestage_misses",
        "resyncs",
        "messages_dropped",
        "fallbacks",
        "comebacks",
        "fault_agent_dead",
        "fault_link_down",
        "tasks_enabled",
        "tasks_disabled",
        "tasks_host",
        "interrupts",
    ];

    /// A driver that says `level`, and of its counters those in `set`, the others being 0.
    pub fn driver(debugfs: &Debugfs, level: &str, set: &[(&str, u64)]) {
        let value = |name: &str| set.iter().find(|(of, _)| *of == name).map_or(0, |(_, value)| *value);
        let lines = NAMES.iter().chain(&["rings"]).map(|name| format!("{name} {}\n", value(name)));
        debugfs.says("0", "counters", &lines.collect::<String>());
        debugfs.says("0", "state", &format!("level {level}\nagent_state running\nlink up\nfault none\n"));
    }

    fn tally(debugfs: &Debugfs) -> Tally {
        Tally::begin(Device::all(debugfs.path()).remove(0)).unwrap()
    }

    #[test]
    fn counters_come_to_a_run_s_figures() {
        let debugfs = Debugfs::new();
        driver(&debugfs, "ipu", &[]);
        let mut tally = tally(&debugfs);
        driver(
            &debugfs,
            "ipu",
            &[("decisions", 700), ("outcome_committed", 690), ("interrupts", 9), ("tasks_host", 3)],
        );
        tally.look();
        let asked = crate::report::tests::example().parameters;
        let tasks = Tasks { created: 600, finished: 600, ..Tasks::default() };
        let work = Measured { requests_offered: 600, values_wrong: 1, ..Measured::default() };
        let m = tally.measured(&asked, &tasks, work).unwrap();
        assert_eq!((m.decisions, m.outcomes["committed"], m.outcomes.len(), m.doorbells), (700, 690, 1, 9));
        assert_eq!(
            (m.tasks_created, m.tasks_finished, m.requests_offered, m.values_wrong),
            (600, 600, 600, 1)
        );
        assert_eq!((m.agent_ended.as_ref(), m.remarks.len(), m.fallbacks), (None, 0, 0));
        let enclave = &m.enclaves[0];
        assert_eq!((enclave.cpus.len(), enclave.decisions_by_host, enclave.complete), (4, 3, true));
    }

    #[test]
    fn fallbacks_are_told_with_their_cause_however_short() {
        let debugfs = Debugfs::new();
        driver(&debugfs, "ipu", &[]);
        let mut tally = tally(&debugfs);
        // Over before anybody looked.
        driver(&debugfs, "ipu", &[("fallbacks", 1), ("comebacks", 1), ("fault_agent_dead", 1)]);
        tally.look();
        driver(
            &debugfs,
            "kernel",
            &[("fallbacks", 2), ("comebacks", 1), ("fault_agent_dead", 1), ("fault_link_down", 1)],
        );
        tally.look();
        tally.look();
        let asked = crate::report::tests::example().parameters;
        let m = tally.measured(&asked, &Tasks::default(), Measured::default()).unwrap();
        let steps: Vec<_> =
            m.enclaves[0].fallbacks.iter().map(|s| (s.to.as_str(), s.fault.as_str())).collect();
        assert_eq!(steps, [("host", "agent_dead"), ("kernel", "link_down")]);
        assert_eq!(m.agent_ended.unwrap(), "the IPU left the link");
        assert!(
            m.remarks.iter().any(|words| words.contains("the kernel's own scheduler decided")),
            "{:?}",
            m.remarks
        );
    }

    #[test]
    fn a_device_that_goes_away_leaves_its_last_figures() {
        let debugfs = Debugfs::new();
        driver(&debugfs, "ipu", &[("decisions", 5)]);
        let mut tally = tally(&debugfs);
        std::fs::remove_dir_all(debugfs.path().join("0")).unwrap();
        tally.look();
        let asked = crate::report::tests::example().parameters;
        let m = tally.measured(&asked, &Tasks::default(), Measured::default()).unwrap();
        assert_eq!(m.decisions, 5);
        assert!(m.remarks[0].contains("the driver told nothing more"), "{:?}", m.remarks);
    }

    #[test]
    fn a_driver_that_counts_too_little_is_told_at_once() {
        let debugfs = Debugfs::new();
        driver(&debugfs, "ipu", &[]);
        debugfs.says("0", "counters", "decisions 0\n");
        let error = Tally::begin(Device::all(debugfs.path()).remove(0)).unwrap_err().to_string();
        assert!(error.contains("another release"), "{error}");
    }
}
