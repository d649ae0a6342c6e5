//! Stage `docs`: what the documents promise is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Verdict;
use crate::firmware::cargo;
use crate::paths;
use crate::process::{self, Limits};

/// What no source and no document may hold: work left over, and somebody's own machine.
const FORBIDDEN: [&str; 7] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
];

pub(super) fn run() -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let root = paths::root();
    let files = tracked(&root)?;
    for document in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(root.join(document)).with_context(|| document.display().to_string())?;
        match broken_links(&root, document, &text) {
            broken if broken.is_empty() => verdict.pass(),
            broken => verdict.fail(format!("{}: {}", document.display(), broken.join("\n  "))),
        }
        for command in commands(&text) {
            match promised(&command) {
                Ok(()) => verdict.pass(),
                Err(error) => verdict.fail(format!("{}: {error:#}", document.display())),
            }
        }
    }
    if !files.contains(Path::new("README.md")) {
        verdict.fail("there is no README.md".to_owned());
    }
    let mut found = Vec::new();
    for file in &files {
        // What is not text has no words.
        let Ok(text) = fs::read_to_string(root.join(file)) else { continue };
        found.extend(forbidden(&text).map(|(line, word)| format!("{}:{line}: {word}", file.display())));
    }
    match found.is_empty() {
        true => verdict.pass(),
        false => verdict.fail(format!("words that do not belong here:\n  {}", found.join("\n  "))),
    }
    Ok(verdict)
}

/// The checkout's files, relative to its root: those that git tracks.
fn tracked(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "--cached", "--", "."]);
    let list =
        process::output(&mut git, Limits::total(60)).context("the checkout's files can't be listed")?;
    Ok(list.lines().map(PathBuf::from).filter(|file| root.join(file).is_file()).collect())
}

fn forbidden(text: &str) -> impl Iterator<Item = (usize, &'static str)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        FORBIDDEN.iter().find(|word| holds(line, word)).map(|word| (index + 1, *word))
    })
}

/// Whether a line holds a word; of a path's, where one begins: `/sys/kernel/root/ops` is on every machine.
fn holds(line: &str, word: &str) -> bool {
    let inside = |at: usize| line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
    line.match_indices(word).any(|(at, _)| !(word.starts_with('/') && inside(at)))
}

/// Links of a document that lead nowhere, or out of the checkout.
fn broken_links(root: &Path, document: &Path, text: &str) -> Vec<String> {
    let here = root.join(document);
    let mut broken = Vec::new();
    for link in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
        let file = if path.is_empty() { here.clone() } else { here.with_file_name("").join(path) };
        let inside = file.canonicalize().ok().zip(root.canonicalize().ok());
        if !inside.is_some_and(|(file, root)| file.starts_with(root)) {
            broken.push(format!("{link} leads nowhere"));
            continue;
        }
        let Some(anchor) = anchor else { continue };
        let headed =
            fs::read_to_string(&file).is_ok_and(|text| headings(&text).any(|heading| heading == anchor));
        if !headed {
            broken.push(format!("{link} names no heading"));
        }
    }
    broken
}

/// Targets of a document's inline links, outside its code.
fn links(text: &str) -> impl Iterator<Item = &str> {
    outside_fences(text).flat_map(|line| {
        line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link.trim())
    })
}

/// A document's headings, as a link's anchor spells them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    outside_fences(text).filter_map(|line| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len() && title.starts_with(' ')).then(|| {
            let kept = title.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
    })
}

fn outside_fences(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The `cargo neap` and `cargo xtask` commands of a document's code blocks.
fn commands(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut commands = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let line = line.strip_prefix("$ ").unwrap_or(line);
        if fenced && (line.starts_with("cargo neap") || line.starts_with("cargo xtask")) {
            let line = line.split(" #").next().unwrap_or_default();
            commands.insert(line.trim().to_owned());
        }
    }
    commands
}

/// Whether a command's help knows its subcommands and its options.
fn promised(command: &str) -> Result<()> {
    let mut words = command.split_whitespace().skip(1);
    let package = words.next().unwrap_or_default();
    let words: Vec<&str> = words.take_while(|word| !matches!(*word, "|" | ">" | "&&" | ";" | "--")).collect();
    let subcommands: Vec<&str> = words.iter().copied().take_while(|word| is_subcommand(word)).collect();
    let mut help = cargo();
    help.current_dir(paths::root()).args(["run", "--quiet", "--release", "--package", package, "--"]);
    help.args(&subcommands).arg("--help");
    let help = process::output(&mut help, Limits::total(1200)).with_context(|| format!("`{command}`"))?;
    for option in words.iter().filter(|word| word.starts_with("--")) {
        let option = option.split('=').next().unwrap_or(option);
        anyhow::ensure!(help.contains(option), "`{command}`: there is no {option}");
    }
    Ok(())
}

/// Whether a word is a subcommand, and no option's and no value.
fn is_subcommand(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# The house, in short\nSee [budget](budget.toml), [here](#the-house-in-short).\n\
                        ```\n$ cargo neap run --seconds 10 --json  # ten seconds\ncargo xtask test\nls [a](b)\n```\n\
                        cargo neap prose\n";

    #[test]
    fn commands_are_those_of_code_blocks() {
        let commands = commands(TEXT);
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        assert_eq!(commands, ["cargo neap run --seconds 10 --json", "cargo xtask test"]);
    }

    #[test]
    fn links_are_followed_and_code_is_not() {
        assert_eq!(links(TEXT).collect::<Vec<_>>(), ["budget.toml", "#the-house-in-short"]);
        let root = paths::root();
        let broken = |text: &str| broken_links(&root, Path::new("README.md"), text);
        assert!(broken_links(&root, Path::new("budget.toml"), "[b](Cargo.toml) [c](https://x/y)").is_empty());
        assert_eq!(broken("[a](nowhere.md)"), ["nowhere.md leads nowhere"]);
        assert_eq!(broken("[a](../..)"), ["../.. leads nowhere"]);
        assert_eq!(broken("[a](budget.toml#none)"), ["budget.toml#none names no heading"]);
    }

    #[test]
    fn headings_become_anchors() {
        let all: Vec<_> = headings("# The house, in short\n#no\n## `neap run`: more\n").collect();
        assert_eq!(all, ["the-house-in-short", "neap-run-more"]);
    }

    #[test]
    fn words_left_over_are_found_with_their_line() {
        let text = format!("fine\n// {}: later\n", concat!("TO", "DO"));
        assert_eq!(forbidden(&text).collect::<Vec<_>>(), [(2, concat!("TO", "DO"))]);
        assert_eq!(forbidden("all done, toads too").count(), 0);
        let own = format!("fine\nsee {}me/x", concat!("/ho", "me/"));
        assert_eq!(forbidden(&own).collect::<Vec<_>>(), [(2, concat!("/ho", "me/"))]);
        assert_eq!(forbidden(concat!("/sys/kernel/sched_ext", "/ro", "ot/ops")).count(), 0);
    }
}
