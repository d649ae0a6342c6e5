//! Workloads as scheduler people write them: rt-app's JSON, as far as it makes sense for tasks without locks.
//!
//! Understood are `tasks` with `instance`, `loop`, `delay`, `phases`, and in a task or a phase, in the order in which they
//! stand there, `run`, `runtime`, `sleep` and `timer` (µs); `global.duration` (s). Anything else that would change what runs is
//! an error that names it; what only changes where it runs or what is logged is passed over.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::load::Histogram;
use crate::world::{Load, Request};

/// Tasks, instances counted, that a file may have.
pub const THREADS_MAX: usize = 1024;
/// Keys that say nothing about how much a task runs or when.
const PASSED_OVER: [&str; 12] = [
    "policy",
    "priority",
    "nice",
    "cpus",
    "nodes_membind",
    "taskgroup",
    "util_min",
    "util_max",
    "dl-runtime",
    "dl-period",
    "dl-deadline",
    "name",
];

/// JSON whose members keep their order, which `run` and `sleep` need.
#[derive(Clone, Debug)]
enum Node {
    Members(Vec<(String, Node)>),
    Number(f64),
    Other,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Node::Members(members))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                while items.next_element::<Node>()?.is_some() {}
                Ok(Node::Other)
            }

            fn visit_str<E>(self, _: &str) -> Result<Node, E> {
                Ok(Node::Other)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
                Ok(Node::Other)
            }

            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Other)
            }

            fn visit_u64<E>(self, number: u64) -> Result<Node, E> {
                Ok(Node::Number(number as f64))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Node, E> {
                Ok(Node::Number(number as f64))
            }

            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Node, E> {
                if number.is_finite() { Ok(Node::Number(number)) } else { Err(E::custom("no number")) }
            }
        }
        deserializer.deserialize_any(Any).map_err(D::Error::custom)
    }
}

/// What a thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Run(u64),
    Sleep(u64),
    /// Sleeps until so long after the last time that it came here.
    Timer(u64),
}

/// A thread.
#[derive(Clone, Debug)]
struct Thread {
    name: String,
    acts: Vec<Act>,
    /// Rounds left; none for ever.
    rounds: Option<u64>,
    delay_ns: u64,
    at: usize,
    timer_ns: u64,
}

/// A file's threads.
#[derive(Debug)]
pub struct Workload {
    threads: Vec<Thread>,
    /// For how long it goes on, in ns; none until all have ended.
    pub duration_ns: Option<u64>,
    coming: Vec<Request>,
    /// From the time that a thread could run to the time that it had run.
    pub latency: Histogram,
    /// Activations that have ended, by task.
    pub ended: std::collections::BTreeMap<String, u64>,
}

fn ns(what: &str, node: &Node) -> Result<u64> {
    match node {
        Node::Number(us) if (0.0..=1e12).contains(us) => Ok((us * 1e3) as u64),
        _ => bail!("{what}: a number of µs, from 0 on, was wanted"),
    }
}

fn whole(what: &str, node: &Node) -> Result<i64> {
    match node {
        Node::Number(number) if number.fract() == 0.0 => Ok(*number as i64),
        _ => bail!("{what}: a whole number was wanted"),
    }
}

/// The file without its comments, which rt-app allows.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("/*") {
        out.push_str(before);
        rest = behind.split_once("*/").map_or("", |(_, after)| after);
    }
    out + rest
}

fn acts(what: &str, members: &[(String, Node)], into: &mut Vec<Act>) -> Result<()> {
    for (key, node) in members {
        let here = format!("{what}.{key}");
        // rt-app tells repeated keys apart by what follows: run0, run1.
        let kind = key.trim_end_matches(|c: char| c.is_ascii_digit());
        match kind {
            "run" | "runtime" => into.push(Act::Run(ns(&here, node)?)),
            "sleep" => into.push(Act::Sleep(ns(&here, node)?)),
            "timer" => {
                let Node::Members(timer) = node else { bail!("{here}: an object with a period was wanted") };
                let period = timer.iter().find(|(key, _)| key == "period");
                let (_, period) = period.with_context(|| format!("{here} has no period"))?;
                into.push(Act::Timer(ns(&format!("{here}.period"), period)?));
            }
            "loop" | "instance" | "delay" | "phases" => {}
            _ if PASSED_OVER.contains(&key.as_str()) => {}
            _ => bail!("{here} is not understood: run, runtime, sleep and timer are"),
        }
    }
    Ok(())
}

impl Workload {
    /// From a file's text.
    ///
    /// # Errors
    /// What is no JSON, or asks for what there is not, by its name in the file.
    pub fn parse(text: &str) -> Result<Self> {
        let file: Node = serde_json::from_str(&without_comments(text)).context("no JSON")?;
        let Node::Members(file) = file else { bail!("no JSON object") };
        let (mut threads, mut duration_ns) = (Vec::new(), None);
        for (key, node) in &file {
            match (key.as_str(), node) {
                ("tasks", Node::Members(tasks)) => {
                    for (name, task) in tasks {
                        let Node::Members(members) = task else {
                            bail!("tasks.{name}: an object was wanted")
                        };
                        task_of(name, members, &mut threads)?;
                    }
                }
                ("global", Node::Members(global)) => {
                    for (key, node) in global {
                        if key == "duration" {
                            let seconds = whole("global.duration", node)?;
                            duration_ns = u64::try_from(seconds).ok().map(|seconds| seconds * 1_000_000_000);
                        }
                    }
                }
                ("tasks" | "global", _) => bail!("{key}: an object was wanted"),
                ("resources", _) => bail!("resources are not understood: tasks here share nothing"),
                _ => bail!("{key} is not understood: tasks and global are"),
            }
        }
        ensure!(!threads.is_empty(), "there are no tasks");
        ensure!(threads.len() <= THREADS_MAX, "{} tasks: at most {THREADS_MAX} fit", threads.len());
        let endless = threads.iter().find(|thread| thread.rounds.is_none());
        if let (Some(thread), None) = (endless, duration_ns) {
            bail!("{} loops for ever, and global.duration does not say for how long", thread.name);
        }
        let mut this = Self {
            threads,
            duration_ns,
            coming: Vec::new(),
            latency: Histogram::default(),
            ended: Default::default(),
        };
        for thread in 0..this.threads.len() {
            let from_ns = this.threads[thread].delay_ns;
            this.threads[thread].timer_ns = from_ns;
            let first = this.next_of(thread, from_ns);
            this.coming.extend(first);
        }
        this.coming.sort_by_key(|request| std::cmp::Reverse(request.at_ns));
        Ok(this)
    }

    /// Threads, instances counted.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads.len() as u32
    }

    /// A thread's next run.
    fn next_of(&mut self, number: usize, mut now_ns: u64) -> Option<Request> {
        let duration_ns = self.duration_ns.unwrap_or(u64::MAX);
        let thread = self.threads.get_mut(number)?;
        loop {
            if thread.at == thread.acts.len() {
                thread.at = 0;
                if let Some(rounds) = &mut thread.rounds {
                    *rounds -= 1;
                    if *rounds == 0 {
                        return None;
                    }
                }
            }
            let act = thread.acts[thread.at];
            thread.at += 1;
            match act {
                Act::Run(run_ns) if now_ns < duration_ns => {
                    let thread = number as u32;
                    return Some(Request { at_ns: now_ns, run_ns, class: 0, group: 0, blocks: 0, thread });
                }
                Act::Run(_) => return None,
                Act::Sleep(ns) => now_ns += ns,
                Act::Timer(period_ns) => {
                    thread.timer_ns += period_ns;
                    now_ns = now_ns.max(thread.timer_ns);
                    // One that came too late starts its periods anew.
                    thread.timer_ns = now_ns;
                }
            }
        }
    }
}

fn task_of(name: &str, members: &[(String, Node)], threads: &mut Vec<Thread>) -> Result<()> {
    let what = format!("tasks.{name}");
    let find = |key: &str| members.iter().find(|(member, _)| member == key).map(|(_, node)| node);
    let mut all = Vec::new();
    if let Some(Node::Members(phases)) = find("phases") {
        for (phase, node) in phases {
            let here = format!("{what}.phases.{phase}");
            let Node::Members(members) = node else { bail!("{here}: an object was wanted") };
            let rounds = members.iter().find(|(key, _)| key == "loop").map(|(_, node)| node);
            let rounds = rounds.map_or(Ok(1), |node| whole(&format!("{here}.loop"), node))?;
            ensure!((1..=10_000).contains(&rounds), "{here}.loop: 1 to 10000 rounds were wanted");
            let mut once = Vec::new();
            acts(&here, members, &mut once)?;
            (0..rounds).for_each(|_| all.extend_from_slice(&once));
        }
    }
    acts(&what, members, &mut all)?;
    ensure!(all.iter().any(|act| matches!(act, Act::Run(ns) if *ns > 0)), "{what} never runs");
    let rounds = match find("loop").map_or(Ok(-1), |node| whole(&format!("{what}.loop"), node))? {
        -1 => None,
        rounds => Some(
            u64::try_from(rounds)
                .ok()
                .filter(|&n| n > 0)
                .with_context(|| format!("{what}.loop: a number from 1 on, or -1 for ever, was wanted"))?,
        ),
    };
    let instances = find("instance").map_or(Ok(1), |node| whole(&format!("{what}.instance"), node))?;
    ensure!((0..=THREADS_MAX as i64).contains(&instances), "{what}.instance: 0 to {THREADS_MAX} were wanted");
    let delay_ns = find("delay").map_or(Ok(0), |node| ns(&format!("{what}.delay"), node))?;
    let thread = Thread { name: name.to_owned(), acts: all, rounds, delay_ns, at: 0, timer_ns: 0 };
    threads.extend((0..instances).map(|_| thread.clone()));
    Ok(())
}

impl Load for Workload {
    fn next_request(&mut self) -> Option<Request> {
        self.coming.pop()
    }

    fn finished(&mut self, request: &Request, now_ns: u64) -> Option<Request> {
        self.latency.record(now_ns - request.at_ns);
        if let Some(thread) = self.threads.get(request.thread as usize) {
            *self.ended.entry(thread.name.clone()).or_default() += 1;
        }
        self.next_of(request.thread as usize, now_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_threads() {
        let text = r#"{ /* two kinds */
            "tasks": {
                "periodic": { "instance": 2, "loop": 3, "run": 100, "timer": { "ref": "t", "period": 1000 } },
                "phased": { "loop": 1, "delay": 50, "phases": { "a": { "loop": 2, "sleep": 10, "run": 20 } } }
            },
            "global": { "duration": 1, "calibration": "CPU0" }
        }"#;
        let mut workload = Workload::parse(text).unwrap();
        assert_eq!((workload.threads(), workload.duration_ns), (3, Some(1_000_000_000)));
        let all: Vec<_> = std::iter::from_fn(|| workload.next_request()).collect();
        let of = |r: &Request| (r.thread, r.at_ns, r.run_ns);
        assert_eq!(all.iter().map(of).max(), Some((2, 60_000, 20_000)));
        // A period counts from the start, not from the run's end.
        let next = workload.finished(&all[0], 150_000).unwrap();
        assert_eq!((next.at_ns, next.run_ns), (1_000_000, 100_000));
        let phased = workload.finished(&all[2], 90_000).unwrap();
        assert_eq!(of(&phased), (2, 100_000, 20_000));
        assert!(workload.finished(&phased, 130_000).is_none());
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, says) in [
            ("[", "no JSON"),
            ("{}", "there are no tasks"),
            (
                r#"{"tasks":{"a":{"lock":"m","run":1}},"global":{"duration":1}}"#,
                "tasks.a.lock is not understood",
            ),
            (r#"{"tasks":{"a":{"run":1}}}"#, "a loops for ever"),
            (r#"{"tasks":{"a":{"sleep":1,"loop":1}}}"#, "tasks.a never runs"),
            (r#"{"tasks":{"a":{"run":"x","loop":1}}}"#, "tasks.a.run: a number"),
            (r#"{"tasks":{"a":{"run":1,"loop":0}}}"#, "tasks.a.loop"),
            (r#"{"tasks":{"a":{"run":1,"loop":1,"instance":5000}}}"#, "tasks.a.instance"),
            (r#"{"tasks":{"a":{"run":1,"loop":1,"timer":{}}}}"#, "tasks.a.timer has no period"),
            (r#"{"resources":{}}"#, "resources are not understood"),
        ] {
            let error = format!("{:#}", Workload::parse(text).unwrap_err());
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
