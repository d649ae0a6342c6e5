//! The rows of the paper's Tables 2 and 3, and what was measured for each.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use serde_json::{Value, json};

use super::place::Where;

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key in JSON, which stays.
    pub key: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Where the paper has it, with its figure from and to in ns; none where it has none.
    pub paper: Option<Paper>,
}

/// The paper's figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paper {
    /// The table.
    pub table: u32,
    /// Its row.
    pub row: u32,
    /// From and to, in ns.
    pub ns: (u32, u32),
}

const fn row(key: &'static str, name: &'static str) -> Row {
    Row { key, name, paper: None }
}

const fn of_paper(key: &'static str, name: &'static str, table: u32, row: u32, ns: (u32, u32)) -> Row {
    Row { key, name, paper: Some(Paper { table, row, ns }) }
}

pub const READ_UNCACHED: Row = of_paper("mmio_read_uncached", "MMIO 64-bit read, uncached", 2, 1, (750, 750));
pub const READ_WRITE_THROUGH: Row =
    row("mmio_line_read_write_through", "MMIO line read, write-through, flushed before");
pub const READ_CACHED: Row = row("mmio_line_read_cached", "MMIO line read, write-through, cached");
pub const WRITE_UNCACHED: Row =
    of_paper("mmio_write_uncached", "MMIO 64-bit write, uncached", 2, 2, (50, 50));
pub const WRITE_COMBINING: Row =
    row("mmio_line_write_combining", "MMIO line write, write-combining, drained");
pub const MSIX_SEND: Row =
    of_paper("msix_send_register", "MSI-X send, register write (from the host)", 2, 3, (70, 70));
pub const MSIX_SEND_IOCTL: Row =
    of_paper("msix_send_ioctl", "MSI-X send, ioctl and register write (not Neap's way)", 2, 4, (340, 340));
pub const MSIX_RECEIVE: Row =
    of_paper("msix_receive", "MSI-X receive, from the handler's entry to its end", 2, 5, (350, 350));
pub const MSIX_END_TO_END: Row =
    of_paper("msix_end_to_end", "MSI-X end to end, host to IPU's generator and back", 2, 6, (1600, 1600));
pub const DECISION: Row =
    of_paper("decision_and_msix", "open a decision in the agent and send MSI-X", 3, 1, (426, 426));
pub const SWITCH_MISS: Row =
    of_paper("context_switch_miss", "context switch, nothing prestaged", 3, 2, (6100, 6910));
pub const SWITCH_HIT: Row = of_paper("context_switch_hit", "context switch, prestaged", 3, 2, (3320, 4040));

/// All rows, in the order of the tables.
pub const ROWS: [Row; 12] = [
    READ_UNCACHED,
    READ_WRITE_THROUGH,
    READ_CACHED,
    WRITE_UNCACHED,
    WRITE_COMBINING,
    MSIX_SEND,
    MSIX_SEND_IOCTL,
    MSIX_RECEIVE,
    MSIX_END_TO_END,
    DECISION,
    SWITCH_MISS,
    SWITCH_HIT,
];

/// What was measured for a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The row.
    pub row: Row,
    /// In ns, in order; or why there are none.
    pub samples: Result<Vec<u64>, String>,
}

impl Found {
    /// From samples in any order.
    pub fn new(row: Row, samples: Result<Vec<u64>, String>) -> Self {
        let samples = samples.and_then(|mut samples| {
            samples.sort_unstable();
            if samples.is_empty() { Err("there was no sample".to_owned()) } else { Ok(samples) }
        });
        Self { row, samples }
    }

    /// The sample that `per_mille` of all are not above.
    fn quantile(samples: &[u64], per_mille: usize) -> u64 {
        let rank = (samples.len() * per_mille).div_ceil(1000).max(1);
        samples.get(rank - 1).copied().unwrap_or(0)
    }

    /// As JSON.
    pub fn json(&self, worth: Where) -> Value {
        let Row { name, paper, .. } = self.row;
        let quantile = |per_mille| self.samples.as_ref().ok().map(|all| Self::quantile(all, per_mille));
        json!({
            "name": name,
            "samples": self.samples.as_ref().map_or(0, Vec::len),
            "min_ns": quantile(0),
            "p50_ns": quantile(500),
            "p99_ns": quantile(990),
            "max_ns": quantile(1000),
            "where": worth,
            "why_not": self.samples.as_ref().err(),
            "paper": paper.map(|paper| json!({
                "table": paper.table,
                "row": paper.row,
                "from_ns": paper.ns.0,
                "to_ns": paper.ns.1,
            })),
        })
    }
}

/// A time in ns, with its thousands apart.
fn ns(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at != 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// All that was found, for people.
pub fn table(found: &[Found], worth: Where) -> String {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED.with_rounded_corners())
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(["", "p50 ns", "p99 ns", "paper ns", "paper's", "measured"]);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    for Found { row, samples } in found {
        let (paper, its) = row.paper.map_or_else(Default::default, |Paper { table, row, ns: (from, to) }| {
            let figure =
                if from == to { ns(from.into()) } else { format!("{}-{}", ns(from.into()), ns(to.into())) };
            (figure, format!("Table {table}, {row}"))
        });
        let quantile = |per_mille| {
            let quantile = |samples| ns(Found::quantile(samples, per_mille));
            samples.as_deref().map_or_else(|_| "-".to_owned(), quantile)
        };
        table.add_row([
            Cell::new(row.name),
            right(quantile(500)),
            right(quantile(990)),
            right(paper),
            Cell::new(its),
            Cell::new(samples.as_ref().map_or("not", |_| worth.name())),
        ]);
    }
    let mut lines = vec![table.to_string()];
    for Found { row, samples } in found {
        if let Err(why) = samples {
            lines.push(format!("{}: {why}", row.name));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_a_key_of_its_own() {
        let keys: BTreeSet<_> = ROWS.iter().map(|row| row.key).collect();
        assert_eq!(keys.len(), ROWS.len());
    }

    #[test]
    fn quantiles_are_samples() {
        let hundred: Vec<u64> = (1..=100).collect();
        let of = |per_mille| Found::quantile(&hundred, per_mille);
        assert_eq!((of(0), of(500), of(990), of(1000)), (1, 50, 99, 100));
        assert_eq!((Found::quantile(&[7], 990), Found::quantile(&[], 500)), (7, 0));
    }

    #[test]
    fn what_was_measured_and_what_was_not_both_show() {
        let found = [
            Found::new(READ_UNCACHED, Ok(vec![1_800, 700, 750])),
            Found::new(SWITCH_HIT, Err("no scheduler is attached".to_owned())),
            Found::new(MSIX_RECEIVE, Ok(Vec::new())),
        ];
        let json = found[0].json(Where::Emulated);
        assert_eq!((json["p50_ns"].as_u64(), json["p99_ns"].as_u64()), (Some(750), Some(1800)));
        assert_eq!(
            (json["where"].as_str(), json["paper"]["from_ns"].as_u64()),
            (Some("emulated"), Some(750))
        );
        let json = found[1].json(Where::Emulated);
        assert!(json["p50_ns"].is_null() && json["why_not"] == "no scheduler is attached");
        let text = table(&found, Where::Emulated);
        for words in
            ["1,800", "Table 2, 1", "emulated", "3,320-4,040", "context switch, prestaged: no scheduler"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(text.contains("there was no sample"), "{text}");
    }
}
