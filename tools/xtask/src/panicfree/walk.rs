//! The walk that both checks make: from some functions on, by every way out of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::Result;

use super::{Finding, Report};

/// Follows every way out of `starts`, breadth first, so that each chain is a shortest one.
///
/// `ways` says where a function leads, and tells its second argument of what is wrong there; the same is told once for each
/// function. `name` names one for people.
///
/// # Errors
/// Those of `ways`.
pub fn follow<F: Ord + Copy>(
    starts: &[F],
    name: impl Fn(F) -> String,
    mut ways: impl FnMut(F, &mut dyn FnMut(String)) -> Result<Vec<F>>,
) -> Result<Report> {
    let mut reached_from: BTreeMap<F, Option<F>> = starts.iter().map(|&start| (start, None)).collect();
    let mut queue: VecDeque<F> = starts.iter().copied().collect();
    let mut findings = Vec::new();
    while let Some(at) = queue.pop_front() {
        let mut told = BTreeSet::new();
        let targets = ways(at, &mut |what| {
            if told.insert(what.clone()) {
                findings.push(Finding { chain: chain(&reached_from, at, &name), what });
            }
        })?;
        for target in targets {
            reached_from.entry(target).or_insert_with(|| {
                queue.push_back(target);
                Some(at)
            });
        }
    }
    Ok(Report { functions: reached_from.len(), findings })
}

fn chain<F: Ord + Copy>(
    reached_from: &BTreeMap<F, Option<F>>,
    to: F,
    name: impl Fn(F) -> String,
) -> Vec<String> {
    let before = |&at: &F| reached_from.get(&at).copied().flatten();
    let mut chain: Vec<String> = std::iter::successors(Some(to), before).map(name).collect();
    chain.reverse();
    chain
}
