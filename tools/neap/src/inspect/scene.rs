//! What can be seen of an instance or of this machine's own IPU: one look at all, for everyone who shows it.
//!
//! A look reads windows and the figures that a run's host lays out ten times a second. It disturbs nobody.

use std::path::{Path, PathBuf};

use anyhow::Result;
use neap_abi::{AgentControl, EpitaphRecord, Hello};
use neap_host::device::{Device, Info};
use neap_host::manager::Agents;
use neap_host::window::Origin;

use super::snapshot::{Snapshot, View};
use crate::driver::agents;
use crate::enclaves::EnclaveAsked;
use crate::measured::EnclaveMeasured;
use crate::run::Notes;

/// A look.
#[derive(Debug)]
pub struct Scene {
    /// It, as the start of a sentence.
    pub what: &'static str,
    /// Whether it is of something that runs now.
    pub running: bool,
    /// The run's notes; none for this machine's own IPU.
    pub notes: Option<Notes>,
    /// How long the load has been on, in s.
    pub elapsed_s: f64,
    /// Its enclaves.
    pub places: Vec<Place>,
}

/// One enclave in it.
#[derive(Debug)]
pub struct Place {
    /// Its number.
    pub number: usize,
    /// Its host CPUs, as a range.
    pub cpus: String,
    /// Its policy.
    pub policy: String,
    /// What was asked for it; none for this machine's own.
    pub asked: Option<EnclaveAsked>,
    /// What its window says.
    pub seen: Seen,
    /// What its host has measured.
    pub host: Option<EnclaveMeasured>,
    /// Its device and what the driver says; none for a run's.
    pub driver: Option<(PathBuf, Info)>,
}

/// What one enclave's window says.
#[derive(Debug)]
pub struct Seen {
    /// The hello page, or what is wrong with it.
    pub hello: Result<Hello>,
    /// What booted, where a loader has said so.
    pub origin: Option<Origin>,
    /// The agent's control line.
    pub agent: Option<AgentControl>,
    /// The supervisor's lines.
    pub agents: Agents,
    /// The epitaphs: by core, and of each core the newest first.
    pub epitaphs: Vec<EpitaphRecord>,
}

impl Seen {
    /// Reads a window.
    pub fn in_view(view: &View) -> Result<Self> {
        let (hello, origin) = match view.greeting() {
            Ok((hello, origin)) => (Ok(hello), origin),
            Err(error) => (Err(error), None),
        };
        let (agent, agents, epitaphs) = match &hello {
            Ok(hello) => (view.agent(hello)?, view.agents(hello)?, view.epitaphs(hello)?),
            Err(_) => (None, Agents::default(), Vec::new()),
        };
        Ok(Self { hello, origin, agent, agents, epitaphs })
    }
}

impl Scene {
    /// Looks at `device`; without one at the running instance, this machine's own IPU or the last run.
    pub fn look(device: Option<&Path>) -> Result<Self> {
        let devices = agents::meant(device)?;
        if !devices.is_empty() {
            return Self::of_devices(&devices);
        }
        Self::of_run(Snapshot::find()?)
    }

    fn of_run(snapshot: Snapshot) -> Result<Self> {
        let what = snapshot.what();
        let Snapshot { running, notes, figures, views, .. } = snapshot;
        let place = |(number, (view, asked)): (usize, (&View, &EnclaveAsked))| {
            let host = figures.as_ref().and_then(|figures| figures.enclaves.get(number).cloned());
            Ok(Place {
                number,
                cpus: asked.range(),
                policy: asked.policy.clone(),
                asked: Some(asked.clone()),
                seen: Seen::in_view(view)?,
                host,
                driver: None,
            })
        };
        let places = views.iter().zip(&notes.parameters.enclaves).enumerate().map(place);
        let places = places.collect::<Result<_>>()?;
        let elapsed_s = figures.as_ref().map_or(0.0, |figures| figures.elapsed_s);
        Ok(Self { what, running, notes: Some(notes), elapsed_s, places })
    }

    fn of_devices(devices: &[Device]) -> Result<Self> {
        let place = |device: &Device| {
            let info = device.info()?;
            Ok(Place {
                number: info.enclave as usize,
                cpus: format!("{} of the host's", info.cpus),
                policy: agents::policy(),
                asked: None,
                seen: Seen::in_view(&View::of_device(device.window()?))?,
                host: counted(info.enclave),
                driver: Some((device.path().to_owned(), info)),
            })
        };
        let places = devices.iter().map(place).collect::<Result<_>>()?;
        Ok(Self { what: "This machine's IPU", running: true, notes: None, elapsed_s: 0.0, places })
    }

    /// On what it runs, for people.
    pub fn ran_on(&self) -> &str {
        self.notes.as_ref().map_or("driver", |notes| &notes.ran_on)
    }
}

/// What the driver has counted of an enclave; only root may read it.
#[cfg(feature = "linux")]
fn counted(enclave: u32) -> Option<EnclaveMeasured> {
    use crate::driver::{DEBUGFS, Device};
    let tally = crate::guest::tally::Tally::begin(Device::of(Path::new(DEBUGFS), enclave)).ok()?;
    tally.figures().ok()?.enclaves.into_iter().next()
}

/// This program is none for machines with a card.
#[cfg(not(feature = "linux"))]
fn counted(_: u32) -> Option<EnclaveMeasured> {
    None
}

impl Place {
    /// Who decides, where the host says so.
    pub fn level(&self) -> Option<&str> {
        let driver = self.driver.as_ref().map(|(_, info)| info.level_name());
        driver
            .or_else(|| self.host.as_ref().map(|host| host.level.as_str()).filter(|level| !level.is_empty()))
    }
}

#[cfg(test)]
pub mod tests {
    use anyhow::anyhow;
    use neap_abi::supervisor::{Books, Identity};
    use neap_abi::{AgentState, Cause, Epitaph, Message, MessageKind};

    use neap_host::ledger::{Quantiles, Span};

    use super::*;
    use crate::measured::{Distribution, FallbackMeasured, LedgerMeasured};
    use crate::report::tests::example as record;

    /// A run of two enclaves, of which the second has had trouble.
    pub fn example() -> Scene {
        let mut notes =
            Notes { pid: 77, ran_on: "QEMU 7.2.22, TCG".to_owned(), parameters: record().parameters };
        notes.parameters.enclaves =
            vec!["cpus=0-3".parse().unwrap(), "cpus=4,policy=shinjuku".parse().unwrap()];
        let fallback = FallbackMeasured {
            at_us: 1_500_000,
            from: "ipu".to_owned(),
            to: "on_host".to_owned(),
            fault: "agent_late".to_owned(),
            words: "the agent owed a decision for too long".to_owned(),
        };
        let latency = |us: f64| Distribution { p50: us, p99: 10.0 * us, ..Distribution::default() };
        let figures = |trouble: bool| EnclaveMeasured {
            decisions: if trouble { 1200 } else { 33_020 },
            decisions_on_host: if trouble { 40 } else { 0 },
            outcomes: [("committed".to_owned(), 33_020), ("task_stale".to_owned(), 8)].into(),
            prestage_hits: 3,
            prestage_misses: 1,
            messages: 99_000,
            queue_depth: 17,
            resyncs: 1,
            level: if trouble { "on_host" } else { "ipu" }.to_owned(),
            faults: trouble.then(|| ("agent_late".to_owned(), 1)).into_iter().collect(),
            fallbacks: trouble.then(|| fallback.clone()).into_iter().collect(),
            round_trip: latency(30.0),
            ledger: LedgerMeasured {
                steps: [(
                    Span::SeenToDecided.name().to_owned(),
                    Quantiles { count: 9, p50_ns: 300, p99_ns: 1200, max_ns: 1300 },
                )]
                .into(),
                ..LedgerMeasured::default()
            },
            request: latency(60.0),
            ..EnclaveMeasured::default()
        };
        let place = |number: usize| {
            let trouble = number == 1;
            let asked = notes.parameters.enclaves[number].clone();
            let mut name = [0; neap_abi::image::NAME_BYTES];
            name[..asked.policy.len()].copy_from_slice(asked.policy.as_bytes());
            let mut epitaph = Epitaph::new(Cause::Late, 2);
            epitaph.time_ns = 1_500_000_000;
            let last_message = Some(Message::new(MessageKind::TaskNew, 4).to_payload());
            let record =
                EpitaphRecord { epitaph, incarnation: 1, image_crc: 0, number: 1, name, last_message };
            let state = if trouble { AgentState::Dead } else { AgentState::Running };
            let agent = AgentControl {
                state,
                core: 1 + number as u8,
                incarnation: 1 + number as u32,
                decisions: 33_100,
                doorbells: 12_400,
                ..AgentControl::NOTHING
            };
            let books =
                Books { cores: 3, faults: number as u32, restarts: number as u32, ..Books::default() };
            let seen = Seen {
                hello: Err(anyhow!("nobody has looked")),
                origin: trouble.then(|| Origin {
                    slot: "A".to_owned(),
                    refused: Some("B: it was tried once and was not confirmed".to_owned()),
                }),
                agent: Some(agent),
                agents: Agents {
                    running: Some(Identity { name, incarnation: 1, ..Identity::default() }),
                    books: Some(books),
                    ..Agents::default()
                },
                epitaphs: trouble.then_some(record).into_iter().collect(),
            };
            Place {
                number,
                cpus: asked.range(),
                policy: asked.policy.clone(),
                asked: Some(asked),
                seen,
                host: Some(figures(trouble)),
                driver: None,
            }
        };
        let places = vec![place(0), place(1)];
        Scene { what: "The running instance", running: true, notes: Some(notes), elapsed_s: 10.0, places }
    }
}
