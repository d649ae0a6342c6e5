//! What the IPU wrote into the window, for the report of a run whose host is a guest.

use std::path::Path;

use anyhow::Result;
use neap_host::report::EpitaphReport;

use crate::inspect::snapshot::Snapshot;
use crate::measured::Measured;

/// Adds what the window tells. A window that tells nothing is a remark.
pub fn add_from_window(dir: &Path, measured: &mut Measured) {
    if let Err(error) = add(dir, measured) {
        measured.remarks.push(format!("of the IPU's books and epitaphs nothing is known: {error:#}"));
    }
}

fn add(dir: &Path, measured: &mut Measured) -> Result<()> {
    let snapshot = Snapshot::open(dir, true)?;
    let Some(view) = snapshot.views.first() else { return Ok(()) };
    let hello = view.hello()?;
    let agents = view.agents(&hello)?;
    let epitaphs: Vec<String> =
        view.epitaphs(&hello)?.iter().map(|record| EpitaphReport::of(record).in_words()).collect();
    measured.messages_unknown = view.agent(&hello)?.map_or(0, |agent| u64::from(agent.unknown));
    let Some(enclave) = measured.enclaves.first_mut() else { return Ok(()) };
    if let Some(agent) = agents.running {
        agent.name().clone_into(&mut enclave.agent);
    }
    if let Some(books) = agents.books {
        // A boot is a run: all that the supervisor has counted is of this one.
        enclave.incarnations = u64::from(books.started);
        enclave.crashes = u64::from(books.faults);
        measured.crashes = enclave.crashes;
        if enclave.crashes > 0 {
            let (crashes, started) = (enclave.crashes, enclave.incarnations);
            measured.remarks.push(format!("{crashes} agents of {started} crashed"));
        }
    }
    enclave.epitaphs.clone_from(&epitaphs);
    measured.epitaphs = epitaphs;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_is_not_there_is_a_remark() {
        let dir = tempfile::tempdir().unwrap();
        let mut measured = Measured::default();
        add_from_window(dir.path(), &mut measured);
        assert!(measured.remarks[0].contains("nothing is known"), "{:?}", measured.remarks);
    }
}
