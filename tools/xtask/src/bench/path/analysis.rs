//! From records to findings: which message each path belongs to, and what lies on it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use neap_meter::attempt::WHOLE_LINE;
use neap_meter::record::{Ending, Path, Record};

use super::program::{Barrier, Facts};

/// The kind under which messages that carry a refusal are counted, whatever else they say. They are the exception, and
/// what they take has a budget of its own.
pub const REFUSAL: &str = "refusal";

/// One message as the host sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The message kind's name.
    pub kind: &'static str,
    /// In steady state: to be measured. What comes before fills caches, tables and queues.
    pub steady: bool,
}

/// The path that one message took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured<'a> {
    /// The message kind's name.
    pub kind: &'static str,
    /// In steady state.
    pub steady: bool,
    /// The path.
    pub path: &'a Path,
}

/// Gives each message its path: message *n* lies in line *n* modulo the ring's length, and has exactly one.
///
/// # Errors
/// A message without a path, a path without a message (the agent decided after it had polled on, so that the
/// count would begin too late), or a path that began in the middle of a line or was cut.
pub fn attribute<'a>(records: &'a [Record], sent: &[Sent], ring_lines: u64) -> Result<Vec<Measured<'a>>> {
    let mut paths = records.iter().filter_map(|record| match record {
        Record::Path(path) => Some(path),
        _ => None,
    });
    let mut measured = Vec::with_capacity(sent.len());
    for (number, &Sent { kind, steady }) in sent.iter().enumerate() {
        let path = paths
            .next()
            .with_context(|| format!("message {number} ({kind}) left no path: was it taken at all?"))?;
        let line = number as u64 % ring_lines;
        if path.line != line {
            bail!(
                "a path starts at line {} where message {number} ({kind}) of line {line} is due: \
                 the agent decided after it had polled on",
                path.line
            );
        }
        if steady && path.words != WHOLE_LINE {
            bail!(
                "message {number} ({kind}): the path begins at a second look at the line (words {:#010b}), \
                 so it would be counted short",
                path.words
            );
        }
        if steady && path.is_cut() {
            bail!("message {number} ({kind}): {} instructions, more than a path keeps", path.instructions);
        }
        measured.push(Measured { kind, steady, path });
    }
    match paths.next() {
        None => Ok(measured),
        Some(path) => bail!("the agent decided at line {} without a message", path.line),
    }
}

/// Instructions of one kind of message with one ending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(Vec<u64>);

impl Counts {
    /// How many messages.
    pub fn n(&self) -> usize {
        self.0.len()
    }

    /// The shortest path.
    pub fn min(&self) -> u64 {
        self.0.iter().min().copied().unwrap_or(0)
    }

    /// The longest path.
    pub fn max(&self) -> u64 {
        self.0.iter().max().copied().unwrap_or(0)
    }

    /// The lower median.
    pub fn median(&self) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(0)
    }
}

/// What the steady state came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// By message kind and ending.
    pub kinds: BTreeMap<&'static str, BTreeMap<Ending, Counts>>,
    /// Exceptions taken on any path.
    pub traps: u64,
    /// DSBs on any path.
    pub dsbs: u64,
    /// Instructions of an allocator on any path.
    pub allocations: u64,
    /// The most DMBs on one path.
    pub dmbs_max: u64,
    /// The most doorbells on one path.
    pub doorbells_max: u64,
}

impl Findings {
    /// Looks at every steady path.
    ///
    /// # Errors
    /// A path through code that the ELF does not have.
    pub fn of(measured: &[Measured<'_>], facts: &mut Facts<'_>) -> Result<Self> {
        let mut findings = Self::default();
        for Measured { kind, path, .. } in measured.iter().filter(|measured| measured.steady) {
            let counts = findings.kinds.entry(kind).or_default().entry(path.ending).or_default();
            counts.0.push(path.instructions);
            let mut dmbs = 0;
            for &pc in &path.pcs {
                let fact = facts.of(pc)?;
                findings.traps += u64::from(fact.trap);
                findings.allocations += u64::from(fact.allocation);
                findings.dsbs += u64::from(fact.barrier == Some(Barrier::Dsb));
                dmbs += u64::from(fact.barrier == Some(Barrier::Dmb));
            }
            findings.dmbs_max = findings.dmbs_max.max(dmbs);
            findings.doorbells_max = findings.doorbells_max.max(path.doorbells);
        }
        Ok(findings)
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: Self) {
        for (kind, endings) in other.kinds {
            for (ending, counts) in endings {
                self.kinds.entry(kind).or_default().entry(ending).or_default().0.extend(counts.0);
            }
        }
        self.traps += other.traps;
        self.dsbs += other.dsbs;
        self.allocations += other.allocations;
        self.dmbs_max = self.dmbs_max.max(other.dmbs_max);
        self.doorbells_max = self.doorbells_max.max(other.doorbells_max);
    }

    /// The longest path with this ending, over all kinds but refusals.
    pub fn max(&self, ending: Ending) -> u64 {
        let kinds = self.kinds.iter().filter(|(kind, _)| **kind != REFUSAL);
        kinds.filter_map(|(_, endings)| endings.get(&ending)).map(Counts::max).max().unwrap_or(0)
    }

    /// The longest path of a message that carries a refusal.
    pub fn refusal_max(&self) -> u64 {
        self.kinds.get(REFUSAL).into_iter().flat_map(BTreeMap::values).map(Counts::max).max().unwrap_or(0)
    }
}

/// Whether runs of one script took the same paths, message by message.
pub fn repeatable(runs: &[Vec<Measured<'_>>]) -> bool {
    let shape = |run: &[Measured<'_>]| -> Vec<_> {
        run.iter()
            .filter(|measured| measured.steady)
            .map(|measured| (measured.kind, measured.path.ending, measured.path.instructions))
            .collect()
    };
    runs.windows(2).all(|pair| shape(&pair[0]) == shape(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(line: u64, ending: Ending, instructions: u64) -> Record {
        let pcs = (0..instructions).map(|i| 0x4020_0000 + 4 * i).collect();
        Record::Path(Path { line, words: WHOLE_LINE, ending, instructions, pcs, ..Path::default() })
    }

    fn sent(count: usize) -> Vec<Sent> {
        vec![Sent { kind: "task_new", steady: true }; count]
    }

    #[test]
    fn messages_get_their_paths_over_a_ring_s_end() {
        let records: Vec<_> = [0, 1, 2, 3, 0, 1].map(|line| path(line, Ending::Doorbell, 90 + line)).into();
        let measured = attribute(&records, &sent(6), 4).unwrap();
        assert_eq!(
            measured.iter().map(|m| m.path.instructions).collect::<Vec<_>>(),
            [90, 91, 92, 93, 90, 91]
        );
    }

    #[test]
    fn a_missing_a_stray_a_partial_and_a_cut_path_are_refused() {
        let refused =
            |records: &[Record], count| attribute(records, &sent(count), 4).unwrap_err().to_string();
        let whole = path(0, Ending::Doorbell, 90);
        assert!(refused(std::slice::from_ref(&whole), 2).contains("message 1 (task_new) left no path"));
        assert!(refused(&[whole.clone(), path(2, Ending::Doorbell, 9)], 2).contains("polled on"));
        assert!(
            refused(&[whole.clone(), path(1, Ending::Prestage, 9)], 1).contains("line 1 without a message")
        );
        let Record::Path(path) = whole else { unreachable!() };
        let partial = Record::Path(Path { words: 0b1, ..path.clone() });
        assert!(refused(&[partial], 1).contains("counted short"));
        let cut = Record::Path(Path { instructions: 1 << 20, ..path });
        assert!(refused(&[cut], 1).contains("1048576 instructions"));
    }

    #[test]
    fn counts_are_those_of_the_list() {
        let counts = Counts(vec![9, 1, 5, 7]);
        assert_eq!((counts.n(), counts.min(), counts.median(), counts.max()), (4, 1, 5, 9));
        assert_eq!(Counts::default().median(), 0);
    }

    #[test]
    fn one_different_instruction_in_one_run_is_seen() {
        let records: Vec<_> =
            [90, 90, 91].map(|instructions| vec![path(0, Ending::Doorbell, instructions)]).into();
        let runs: Vec<_> = records.iter().map(|records| attribute(records, &sent(1), 4).unwrap()).collect();
        assert!(repeatable(&runs[..2]));
        assert!(!repeatable(&runs));
    }

    #[test]
    fn refusals_are_counted_apart() {
        let mut findings = Findings::default();
        for (kind, count) in [("task_new", 100), (REFUSAL, 190)] {
            let endings = findings.kinds.entry(kind).or_default();
            endings.insert(Ending::Doorbell, Counts(vec![count]));
        }
        assert_eq!((findings.max(Ending::Doorbell), findings.refusal_max()), (100, 190));
    }
}
