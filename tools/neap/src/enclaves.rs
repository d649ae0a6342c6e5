//! What `--enclave` asks for, and what cannot be.

use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use neap_abi::CPUS_MAX;
use neap_abi::image::CORES_MAX;
pub use neap_host::policies::POLICIES;
use serde::{Deserialize, Serialize};

/// Enclaves at most: the IPU's PCI device has as many functions.
pub const ENCLAVES_MAX: usize = 8;
/// Cores of the IPU at most.
pub const IPU_CORES_MAX: u16 = 16;

/// One enclave, as asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnclaveAsked {
    /// Its first host CPU.
    pub first_cpu: u16,
    /// Its last.
    pub last_cpu: u16,
    /// Its policy.
    pub policy: String,
    /// The agent to load, if not the bundle's for the policy: an image's file, or a name.
    pub agent: Option<String>,
    /// Cores that its agent can use, if its image is for as many.
    pub cores: u16,
}

impl EnclaveAsked {
    /// The enclave of `cpus` CPUs that there is without `--enclave`.
    pub fn only(cpus: u16, policy: &str) -> Self {
        Self {
            first_cpu: 0,
            last_cpu: cpus.saturating_sub(1),
            policy: policy.to_owned(),
            agent: None,
            cores: 1,
        }
    }

    /// Its CPUs' numbers.
    pub fn cpus(&self) -> std::ops::RangeInclusive<u16> {
        self.first_cpu..=self.last_cpu
    }

    /// How many CPUs.
    pub fn count(&self) -> u16 {
        self.last_cpu - self.first_cpu + 1
    }

    /// Its CPUs, as they are asked for.
    pub fn range(&self) -> String {
        range(self.first_cpu, self.last_cpu)
    }

    /// As an option that asks for the same.
    pub fn spec(&self) -> String {
        let agent = self.agent.as_ref().map_or_else(String::new, |agent| format!(",agent={agent}"));
        let cores = if self.cores == 1 { String::new() } else { format!(",cores={}", self.cores) };
        format!("cpus={},policy={}{agent}{cores}", self.range(), self.policy)
    }
}

fn range(first: u16, last: u16) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

impl FromStr for EnclaveAsked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut cpus, mut policy, mut agent, mut cores) = (None, None, None, None);
        for part in text.split(',') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("`{part}` is no key=value; an enclave is cpus=0-3,policy=fifo"));
            };
            let place = match key {
                "cpus" => &mut cpus,
                "policy" => &mut policy,
                "agent" => &mut agent,
                "cores" => &mut cores,
                _ => return Err(format!("`{key}` is unknown; an enclave has cpus, policy, agent and cores")),
            };
            if value.is_empty() {
                return Err(format!("`{key}` is empty; give it a value, or leave it out"));
            }
            if place.replace(value).is_some() {
                return Err(format!("`{key}` is there twice; give it once"));
            }
        }
        let Some(cpus) = cpus else { return Err("cpus is missing; give a range, as cpus=0-3".to_owned()) };
        let (first, last) = cpus.split_once('-').unwrap_or((cpus, cpus));
        let cpu = |text: &str| match text.parse::<u16>() {
            Ok(cpu) if cpu < CPUS_MAX => Ok(cpu),
            _ => Err(format!("cpus={cpus}: `{text}` is no CPU; they are 0 to {}", CPUS_MAX - 1)),
        };
        let (first_cpu, last_cpu) = (cpu(first)?, cpu(last)?);
        if first_cpu > last_cpu {
            return Err(format!("cpus={cpus} ends before it begins; give the lower CPU first"));
        }
        let policy = policy.unwrap_or(POLICIES[0]);
        if !POLICIES.contains(&policy) {
            return Err(format!("policy={policy} is unknown; there is {}", POLICIES.join(", ")));
        }
        let cores = match cores.map_or(Ok(1), str::parse) {
            Ok(cores @ 1..=CORES_MAX) => cores,
            _ => return Err(format!("cores={} is none of 1 to {CORES_MAX}", cores.unwrap_or_default())),
        };
        Ok(Self { first_cpu, last_cpu, policy: policy.to_owned(), agent: agent.map(str::to_owned), cores })
    }
}

/// Cores of the IPU that enclaves take: their agents', and one that supervises.
pub fn cores(enclaves: &[EnclaveAsked]) -> u16 {
    1 + enclaves.iter().map(|one| one.cores).sum::<u16>()
}

/// Checks what no single enclave can tell.
pub fn check(enclaves: &[EnclaveAsked], on_host: bool) -> Result<()> {
    ensure!(
        enclaves.len() <= ENCLAVES_MAX,
        "{} enclaves, and the IPU has a function for {ENCLAVES_MAX}: leave some out",
        enclaves.len()
    );
    ensure!(
        cores(enclaves) <= IPU_CORES_MAX,
        "the enclaves' agents take {} cores, and the IPU has {IPU_CORES_MAX}, one of which supervises: give some fewer",
        cores(enclaves) - 1
    );
    for (at, one) in enclaves.iter().enumerate() {
        ensure!(
            one.cores == 1 || !on_host,
            "cores={} is of the IPU; leave it out, or run without --on-host",
            one.cores
        );
        if let Some(agent) = one.agent.as_ref().filter(|_| on_host) {
            bail!("agent={agent} is an image for the IPU; leave it out, or run without --on-host");
        }
        for other in &enclaves[..at] {
            let (first, last) = (one.first_cpu.max(other.first_cpu), one.last_cpu.min(other.last_cpu));
            ensure!(
                first > last,
                "enclaves cpus={} and cpus={} share CPU {}: a CPU has one enclave",
                other.range(),
                one.range(),
                range(first, last)
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> EnclaveAsked {
        text.parse().unwrap()
    }

    #[test]
    fn an_enclave_reads_as_it_is_written() {
        let enclave = asked("cpus=4-7,policy=fifo,agent=wild_store");
        assert_eq!((enclave.cpus(), enclave.count()), (4..=7, 4));
        assert_eq!(enclave.agent.as_deref(), Some("wild_store"));
        assert_eq!(asked(&enclave.spec()), enclave);
        let wide = asked("cpus=0,cores=2");
        assert_eq!((wide.cores, cores(&[wide.clone(), asked("cpus=1")])), (2, 4));
        assert_eq!(asked(&wide.spec()), wide);
        let one = asked("cpus=255");
        assert_eq!((one.spec(), one.count()), ("cpus=255,policy=fifo".to_owned(), 1));
        assert_eq!(EnclaveAsked::only(4, "fifo"), asked("cpus=0-3,policy=fifo"));
    }

    #[test]
    fn what_can_not_be_is_refused_by_name() {
        for (text, words) in [
            ("policy=fifo", "cpus is missing"),
            ("cpus=0-3,cpu=4", "`cpu` is unknown"),
            ("cpus=0-3,cpus=4", "`cpus` is there twice"),
            ("cpus=0-3,fifo", "`fifo` is no key=value"),
            ("cpus=", "`cpus` is empty"),
            ("cpus=3-0", "ends before it begins"),
            ("cpus=0-256", "`256` is no CPU; they are 0 to 255"),
            ("cpus=0-3-5", "`3-5` is no CPU"),
            ("cpus=a", "`a` is no CPU"),
            ("cpus=-1", "`` is no CPU"),
            ("cpus=0,cores=0", "cores=0 is none of 1 to 8"),
            ("cpus=0,cores=9", "cores=9 is none of 1 to 8"),
            ("cpus=0,cores=many", "cores=many is none of 1 to 8"),
            ("cpus=0,policy=lifo", "policy=lifo is unknown; there is fifo"),
        ] {
            let error = text.parse::<EnclaveAsked>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn enclaves_share_no_cpu() {
        let refused = |enclaves: &[EnclaveAsked], on_host| check(enclaves, on_host).unwrap_err().to_string();
        check(&[asked("cpus=0-3"), asked("cpus=8-9"), asked("cpus=4")], false).unwrap();
        let both = [asked("cpus=0-3"), asked("cpus=2-5")];
        assert_eq!(
            refused(&both, false),
            "enclaves cpus=0-3 and cpus=2-5 share CPU 2-3: a CPU has one enclave"
        );
        let many: Vec<_> = (0..9).map(|cpu| asked(&format!("cpus={cpu}"))).collect();
        assert!(refused(&many, false).contains("a function for 8"));
        let wide = ["cpus=0,cores=8", "cpus=1,cores=8"].map(asked);
        assert!(refused(&wide, false).contains("take 16 cores, and the IPU has 16"));
        assert!(refused(&wide[..1], true).contains("without --on-host"));
        let image = [asked("cpus=0,agent=x")];
        check(&image, false).unwrap();
        assert!(refused(&image, true).contains("without --on-host"));
    }
}
