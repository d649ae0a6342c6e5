//! `qemu-tests/cases.toml`: what is booted, on what machine, and how it has to end.

use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::paths;

/// One boot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Program of `qemu-tests`.
    pub bin: String,
    /// Cores.
    #[serde(default = "two")]
    pub smp: u32,
    /// The interrupt controller's architecture.
    #[serde(default = "two")]
    pub gic: u32,
    /// Words of the firmware's command line.
    #[serde(default)]
    pub args: Words,
    /// Enter at EL2.
    #[serde(default)]
    pub virtualization: bool,
    /// Vectors of one doorbell function, alone in its domain; 0 for none.
    #[serde(default)]
    pub ivshmem_vectors: u16,
    /// The status that it ends with.
    #[serde(default)]
    pub exit: i32,
    /// Bound of its time, in seconds.
    #[serde(default = "minute")]
    pub timeout_s: u64,
    /// What its console shows, in this order.
    #[serde(default)]
    pub expect: Words,
}

/// One word or several.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "OneOrMany")]
pub struct Words(pub Vec<String>);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for Words {
    fn from(words: OneOrMany) -> Self {
        match words {
            OneOrMany::One(word) if word.is_empty() => Self(Vec::new()),
            OneOrMany::One(word) => Self(vec![word]),
            OneOrMany::Many(words) => Self(words),
        }
    }
}

fn two() -> u32 {
    2
}

fn minute() -> u64 {
    60
}

impl Case {
    /// What tells this case from others of the same program.
    pub fn name(&self) -> String {
        let mut name = format!("{} ({} cores, GICv{}", self.bin, self.smp, self.gic);
        if self.virtualization {
            name += ", EL2";
        }
        if self.ivshmem_vectors > 0 {
            name += &format!(", {} vectors", self.ivshmem_vectors);
        }
        for word in &self.args.0 {
            name += &format!(", {word}");
        }
        name + ")"
    }

    /// Compares how it ended and what it said with what was wanted.
    pub fn judge(&self, exit: Option<i32>, console: &str) -> Result<()> {
        let mut rest = console;
        for wanted in &self.expect.0 {
            match rest.find(wanted.as_str()) {
                Some(at) => rest = &rest[at + wanted.len()..],
                None if console.contains(wanted.as_str()) => bail!("{wanted:?} came out of order"),
                None => bail!("{wanted:?} did not come"),
            }
        }
        match exit {
            Some(exit) if exit == self.exit => Ok(()),
            Some(exit) => bail!("it ended with status {exit}, not {}", self.exit),
            None => bail!("it was ended by a signal"),
        }
    }

    fn check(&self) -> Result<()> {
        if self.bin.is_empty()
            || !self.bin.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        {
            bail!("bin = {:?} is no name of a program", self.bin);
        }
        let bounds = [
            ("smp", u64::from(self.smp), 1, 16),
            ("gic", u64::from(self.gic), 2, 3),
            ("ivshmem_vectors", u64::from(self.ivshmem_vectors), 0, 1024),
            ("timeout_s", self.timeout_s, 1, 600),
        ];
        for (name, value, from, to) in bounds {
            if !(from..=to).contains(&value) {
                bail!("{}: {name} = {value} is not within {from} to {to}", self.bin);
            }
        }
        if self.gic == 2 && self.smp > 8 {
            bail!("{}: smp = {} needs gic = 3", self.bin, self.smp);
        }
        Ok(())
    }
}

/// Reads the checkout's cases.
pub fn load() -> Result<Vec<Case>> {
    let file = paths::root().join("qemu-tests/cases.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))?;
    parse(&text).with_context(|| file.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Case>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Cases {
        #[serde(default)]
        case: Vec<Case>,
    }
    let Cases { case: cases } = toml::from_str(text)?;
    if cases.is_empty() {
        bail!("no [[case]] in it");
    }
    cases.iter().try_for_each(Case::check)?;
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "[[case]]\nbin = \"s00_boot\"\nsmp = 16\ngic = 3\nargs = \"neap.a=1\"\nvirtualization = true\n\
                         ivshmem_vectors = 16\nexit = 3\ntimeout_s = 20\nexpect = [\"one\", \"two\"]\n";

    #[test]
    fn a_whole_case_and_one_with_nothing_but_its_name() {
        let cases = parse(&format!("{WHOLE}[[case]]\nbin = \"s01_cores\"\n")).unwrap();
        assert_eq!(cases[0].name(), "s00_boot (16 cores, GICv3, EL2, 16 vectors, neap.a=1)");
        assert_eq!((cases[0].exit, cases[0].timeout_s), (3, 20));
        assert_eq!(cases[0].expect.0, ["one", "two"]);
        assert_eq!(cases[1].name(), "s01_cores (2 cores, GICv2)");
        assert_eq!((cases[1].exit, cases[1].timeout_s), (0, 60));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("", "no [[case]]"),
            ("[[case]]\nsmp = 2\n", "bin"),
            ("[[case]]\nbin = \"a/b\"\n", "a/b"),
            ("[[case]]\nbin = \"a\"\nsmp = 0\n", "smp = 0"),
            ("[[case]]\nbin = \"a\"\nsmp = 16\n", "gic = 3"),
            ("[[case]]\nbin = \"a\"\ngic = 4\n", "gic = 4"),
            ("[[case]]\nbin = \"a\"\ntimeout_s = 0\n", "timeout_s = 0"),
            ("[[case]]\nbin = \"a\"\ncores = 2\n", "cores"),
            ("[[cases]]\nbin = \"a\"\n", "cases"),
        ];
        for (text, culprit) in cases {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(culprit), "{culprit}: {error}");
        }
    }

    #[test]
    fn status_words_and_their_order_are_all_judged() {
        let case = parse(WHOLE).unwrap().remove(0);
        case.judge(Some(3), "zero\none\ntwo\n").unwrap();
        let failing = [
            (Some(0), "one two", "status 0, not 3"),
            (None, "one two", "signal"),
            (Some(3), "two one", "out of order"),
            (Some(3), "one", "\"two\" did not come"),
            (Some(3), "", "\"one\" did not come"),
        ];
        for (exit, console, wanted) in failing {
            let error = case.judge(exit, console).unwrap_err().to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }
}
