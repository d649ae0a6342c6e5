//! `neap bench link`: Tables 2 and 3 of the paper on this machine, through its driver.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use neap_host::device::{Device, Info, Measured};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Map, Value, json};

use super::place::{Place, Where};
use super::rows::{self, Found, ROWS, Row, table};
use super::switch::{self, Counted, Switches};
use crate::args::LinkOptions;
use crate::driver::{self, DEBUGFS, class};
use crate::print;

/// What the driver measures, by row.
const DRIVEN: [(Row, Measured); 8] = [
    (rows::READ_UNCACHED, Measured::ReadUncached),
    (rows::READ_WRITE_THROUGH, Measured::ReadWriteThrough),
    (rows::READ_CACHED, Measured::ReadCached),
    (rows::WRITE_UNCACHED, Measured::WriteUncached),
    (rows::WRITE_COMBINING, Measured::WriteCombining),
    (rows::MSIX_SEND, Measured::MsixSend),
    (rows::MSIX_RECEIVE, Measured::MsixReceive),
    (rows::MSIX_END_TO_END, Measured::MsixEndToEnd),
];

/// Samples that a CPU takes at least, so that each vector has rung.
const OF_A_CPU_MIN: u32 = 4;

/// Measures and prints.
pub fn link(options: &LinkOptions) -> Result<()> {
    let path = options.device.clone().unwrap_or_else(|| Device::path_of(0));
    let device = Device::open(&path)?;
    let place = Place::of(&device)?;
    let info = device.info()?;
    ensure!(
        info.link == 1,
        "no agent has answered behind {}: /sys/kernel/debug/neap/{}/state says how the link stands, and the kernel's log why",
        path.display(),
        info.enclave
    );
    let mut bench = Bench::new(device, info, &place, options)?;
    let found = bench.all()?;
    if options.json {
        return print(&format!("{:#}", bench.json(&found, &place, &path)));
    }
    print(&table(&found, place.worth))?;
    print(&format!(
        "{}, function {} ({}){}; each look at the clock takes {} ns, which are taken off",
        path.display(),
        place.function,
        place.id,
        place.machine.as_ref().map_or_else(String::new, |name| format!(", in a machine of {name}")),
        bench.clock_ns
    ))
}

struct Bench {
    device: Device,
    info: Info,
    options: LinkOptions,
    /// The CPUs that we may use and that have a vector.
    cpus: Vec<usize>,
    all: CpuSet,
    settle: Duration,
    /// What two looks at the clock take.
    clock_ns: u64,
    switches: Switches,
}

impl Bench {
    fn new(device: Device, info: Info, place: &Place, options: &LinkOptions) -> Result<Self> {
        let all = sched_getaffinity(None).context("asking which CPUs we may use")?;
        let vectors = info.vectors as usize;
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU.min(vectors)).filter(|cpu| all.is_set(*cpu)).collect();
        if cpus.is_empty() {
            bail!("none of the CPUs that we may use has a vector of {}", device.path().display());
        }
        // An emulated agent shares its core with all else.
        let settle = Duration::from_millis(if place.worth == Where::Emulated { 10 } else { 1 });
        let options = options.clone();
        Ok(Self { device, info, options, cpus, all, settle, clock_ns: 0, switches: Switches::default() })
    }

    fn all(&mut self) -> Result<Vec<Found>> {
        self.clock_ns = median(self.device.measure(Measured::Clock, self.options.samples)?);
        let mut found = Vec::new();
        for (row, what) in DRIVEN {
            found.push(Found::new(row, self.driven(what).map_err(|error| format!("{error:#}"))));
        }
        let sent = found.iter().find(|found| found.row == rows::MSIX_SEND);
        let sent = sent.map_or_else(|| Err(String::new()), |found| found.samples.clone());
        found.push(Found::new(rows::MSIX_SEND_IOCTL, sent.and_then(|sent| self.by_ioctl(&sent))));
        let elsewhere = "it happens on the IPU: `cargo xtask bench path` counts and models it".to_owned();
        found.push(Found::new(rows::DECISION, Err(elsewhere)));
        let switched = self.switches();
        let of = |samples: &[u64]| match &switched {
            Err(why) => Err(format!("{why:#}")),
            Ok(()) if samples.is_empty() => Err("the agent left no such switch".to_owned()),
            Ok(()) => Ok(samples.to_vec()),
        };
        found.push(Found::new(rows::SWITCH_MISS, of(&self.switches.misses)));
        found.push(Found::new(rows::SWITCH_HIT, of(&self.switches.hits)));
        found.sort_by_key(|found| ROWS.iter().position(|row| *row == found.row));
        Ok(found)
    }

    /// What the driver measures: interrupts on every CPU, memory on the first.
    fn driven(&self, what: Measured) -> Result<Vec<u64>> {
        let (interrupt, timed_by_handler) = match what {
            Measured::MsixSend => (true, false),
            Measured::MsixReceive | Measured::MsixEndToEnd => (true, true),
            _ => (false, false),
        };
        let cpus = if interrupt { self.cpus.as_slice() } else { &self.cpus[..1] };
        let each = self.options.samples.div_ceil(cpus.len() as u32).max(OF_A_CPU_MIN);
        let mut samples = Vec::new();
        for cpu in cpus {
            switch::stay_on(*cpu).with_context(|| format!("going to CPU {cpu}"))?;
            let taken = self.device.measure(what, each);
            sched_setaffinity(None, &self.all).context("going back to all CPUs")?;
            samples.extend(taken.with_context(|| format!("on CPU {cpu}"))?);
        }
        let clock_ns = if timed_by_handler { 0 } else { self.clock_ns };
        Ok(samples.into_iter().map(|sample| sample.saturating_sub(clock_ns)).collect())
    }

    /// What a send takes that goes through a system call, as those of the paper's IPU do.
    fn by_ioctl(&self, sent: &[u64]) -> Result<Vec<u64>, String> {
        sent.iter()
            .map(|sent| {
                let start = Instant::now();
                self.device.nothing().map_err(|error| error.to_string())?;
                Ok(sent + u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX / 2))
            })
            .collect()
    }

    fn switches(&mut self) -> Result<()> {
        ensure!(self.info.scheduler == 1, "no scheduler is attached: run `neap scx attach` beside this");
        ensure!(self.info.level == 0, "the agent does not decide, but the {}", self.info.level_name());
        let count = self.options.switches.unwrap_or((self.options.samples / 5).max(10));
        let (Some(&cpu), Some(&other)) = (self.cpus.last(), self.cpus.first()) else {
            bail!("there is no CPU")
        };
        ensure!(cpu != other, "it takes two CPUs: one that switches, and one that looks");
        let driver = driver::Device::of(Path::new(DEBUGFS), self.info.enclave);
        let counted = || counted(&driver);
        switch::stay_on(other).context("leaving the CPU that switches")?;
        // What starts us may have put us there, and our own switches are not to be counted.
        class::leave().context("leaving SCHED_EXT")?;
        // FIFO prestages once more tasks wait than there are CPUs.
        let deep = self.info.cpus as usize + 2;
        let mut done = Ok(());
        for threads in [2, deep] {
            done = done.and_then(|()| {
                switch::measure(&mut self.switches, cpu, threads, count, self.settle, &counted)
            });
        }
        sched_setaffinity(None, &self.all).context("going back to all CPUs")?;
        if done.is_err() {
            // It may have been the agent's fault, which the driver has noticed.
            thread::sleep(self.settle);
            let level = self.device.info()?.level_name();
            return done.with_context(|| format!("who decides is now: the {level}"));
        }
        Ok(())
    }

    fn json(&self, found: &[Found], place: &Place, path: &Path) -> Value {
        let rows: Map<String, Value> =
            found.iter().map(|found| (found.row.key.to_owned(), found.json(place.worth))).collect();
        json!({
            "bench": "link",
            "device": path,
            "place": place,
            "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
            "parameters": {
                "samples": self.options.samples,
                "cpus": self.cpus,
                "settle_us": self.settle.as_micros() as u64,
            },
            "clock_ns": self.clock_ns,
            "switches_unclear": self.switches.unclear,
            "rows": rows,
        })
    }
}

fn median(mut samples: Vec<u64>) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}

/// What the driver has counted.
fn counted(driver: &driver::Device) -> Result<Counted> {
    let counters = driver.counters()?;
    Ok(Counted { hits: counters.of("prestage_hits")?, misses: counters.of("prestage_misses")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_measured_or_explained() {
        let mut keys: Vec<&str> = DRIVEN.iter().map(|(row, _)| row.key).collect();
        for row in [rows::MSIX_SEND_IOCTL, rows::DECISION, rows::SWITCH_MISS, rows::SWITCH_HIT] {
            keys.push(row.key);
        }
        keys.sort_unstable();
        let mut all: Vec<&str> = ROWS.iter().map(|row| row.key).collect();
        all.sort_unstable();
        assert_eq!(keys, all);
    }

    #[test]
    fn a_machine_without_the_driver_is_told_so() {
        let options =
            LinkOptions { json: true, device: Some("/dev/neap77".into()), samples: 10, switches: None };
        let error = link(&options).unwrap_err().to_string();
        assert!(error.contains("modprobe neap"), "{error}");
    }
}
