//! Stage `homes`: one trace of each policy, recorded in the simulator, gives the same decisions in all four homes, bit for bit.

use anyhow::{Context, Result};
use neap_abi::TxnFlags;
use neap_sim::policy::Chosen;
use neap_sim::trace::Recording;

use super::Verdict;
use crate::homes::{Home, Homes};
use crate::progress::Step;

/// Host CPUs, and the load's requests.
const CPUS: u16 = 6;
const REQUESTS: u64 = 1500;
const SEED: u64 = 20;

pub(super) fn run() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let mut homes = Homes::default();
    let (mut decisions, mut preemptions) = (0, 0);
    for policy in Chosen::ALL {
        let recording = Recording { policy, cpus: CPUS, requests: REQUESTS, seed: SEED };
        let trace = recording.take();
        let name = policy.name();
        if trace.decisions() < REQUESTS as usize {
            verdict.fail(format!("{name}: a trace of {} decisions shows nothing", trace.decisions()));
            break;
        }
        let all = trace.steps.iter().flat_map(|step| &step.decisions);
        let preempting = all.filter(|txn| txn.flags.has(TxnFlags::PREEMPT)).count();
        if preempting == 0 && [Chosen::Shinjuku, Chosen::MqShinjuku].contains(&policy) {
            verdict.fail(format!("{name}: a trace without a preemption shows nothing of its slices"));
            break;
        }
        decisions += trace.decisions();
        preemptions += preempting;
        for home in Home::ALL {
            let mut step = Step::start(format!("{name} in home {}", home.name()));
            let decided = homes
                .replay(home, &trace, &mut |_| step.tick())
                .with_context(|| format!("{name} in home {}", home.name()))?;
            match trace.differs_at(&decided) {
                None => {
                    step.done();
                    verdict.pass();
                }
                Some(at) => {
                    let there = decided.get(at);
                    verdict.fail(format!(
                        "{name} in home {}, message {at}, {:?}:\n  recorded {:?}\n  decided  {there:?}",
                        home.name(),
                        trace.steps.get(at).map(|step| step.message),
                        trace.steps.get(at).map(|step| &step.decisions),
                    ));
                    return Ok(verdict);
                }
            }
        }
    }
    verdict.remarks.push(format!(
        "{decisions} decisions, {preemptions} of them preemptions, the same in each of {} homes",
        Home::ALL.len()
    ));
    Ok(verdict)
}
