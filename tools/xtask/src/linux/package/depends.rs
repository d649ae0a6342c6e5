//! Which packages a program needs, and how new they must be: by the lists of symbols that Debian's libraries bring with
//! them, as `dpkg-shlibdeps` does it, for a root that is not the machine's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::read::elf::ElfFile64;
use object::read::{ImportFlags, NameOrOrdinal};
use object::{Endianness, Object};

/// A library of a package.
#[derive(Debug, Default)]
struct Library {
    package: String,
    /// The package's version that first had a symbol, by `name@VERSION`.
    since: BTreeMap<String, String>,
}

/// The packages of the root in `dir` that `program` needs, as a `Depends` line has them.
pub(super) fn of(program: &[u8], dir: &Path) -> Result<Vec<String>> {
    let info = dir.join("var/lib/dpkg/info");
    let mut lists = String::new();
    for entry in fs::read_dir(&info).with_context(|| format!("{} can't be read", info.display()))? {
        let path = entry.with_context(|| format!("{} can't be read", info.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "symbols") {
            let list =
                fs::read_to_string(&path).with_context(|| format!("{} can't be read", path.display()))?;
            lists += &list;
        }
    }
    depends(program, &libraries(&lists))
}

/// The libraries of some lists, by their names in programs.
fn libraries(lists: &str) -> BTreeMap<&str, Library> {
    let mut libraries: BTreeMap<&str, Library> = BTreeMap::new();
    let mut last = None;
    for line in lists.lines() {
        let mut words = line.split_whitespace();
        match (line.chars().next(), words.next(), words.next()) {
            // Alternatives, and what else is told of a library.
            (None | Some('|' | '*'), ..) => {}
            (Some(' '), Some(symbol), Some(since)) => {
                if let Some(library) = last.and_then(|name| libraries.get_mut(name)) {
                    library.since.insert(symbol.to_owned(), since.to_owned());
                }
            }
            (Some(_), Some(name), Some(package)) => {
                libraries.entry(name).or_default().package = package.to_owned();
                last = Some(name);
            }
            _ => {}
        }
    }
    libraries
}

fn depends(program: &[u8], libraries: &BTreeMap<&str, Library>) -> Result<Vec<String>> {
    let program = ElfFile64::<Endianness>::parse(program).context("the program is no ELF of 64 bits")?;
    let mut newest: BTreeMap<&str, Option<&str>> = BTreeMap::new();
    for library in program.import_libraries()? {
        let name = String::from_utf8_lossy(library?.name()).into_owned();
        let library = libraries.get(name.as_str());
        let library = library.with_context(|| format!("no package of the root brings {name}"))?;
        newest.entry(&library.package).or_default();
    }
    for import in program.imports()? {
        let import = import?;
        let (NameOrOrdinal::Name(name), ImportFlags::Elf { version: Some(version), .. }) =
            (import.name(), import.flags())
        else {
            continue;
        };
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (soname, symbol) = (text(import.library()), format!("{}@{}", text(name), text(version)));
        let library = libraries.get(soname.as_str());
        let since = library.and_then(|library| Some((library, library.since.get(&symbol)?)));
        let (library, since) =
            since.with_context(|| format!("no package of the root brings {symbol} of {soname}"))?;
        let newest = newest.entry(&library.package).or_default();
        if newest.is_none_or(|newest| numbers(newest) < numbers(since)) {
            *newest = Some(since);
        }
    }
    let line = |(package, newest): (&str, Option<&str>)| match newest {
        Some(version) => format!("{package} (>= {version})"),
        None => package.to_owned(),
    };
    Ok(newest.into_iter().map(line).collect())
}

/// What versions of one package are ordered by: the epoch, then all numbers.
fn numbers(version: &str) -> (u64, Vec<u64>) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let numbers = rest.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok());
    (epoch.parse().unwrap_or(0), numbers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTS: &str = "libc.so.6 libc6 #MINVER#\n| libc6 (>> 2.41), libc6 (<< 2.42)\n* Build-Depends-Package: libc6-dev\n \
                         read@GLIBC_2.2.5 2.2.5\n pthread_create@GLIBC_2.34 2.34\nlibz.so.1 zlib1g #MINVER#\n \
                         inflate@Base 1:1.1.4\n";

    #[test]
    fn lists_name_packages_and_since_when_they_have_a_symbol() {
        let libraries = libraries(LISTS);
        assert_eq!(libraries["libc.so.6"].package, "libc6");
        assert_eq!(libraries["libc.so.6"].since["pthread_create@GLIBC_2.34"], "2.34");
        assert_eq!(libraries["libz.so.1"].since["inflate@Base"], "1:1.1.4");
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        for (older, newer) in
            [("2.4", "2.34"), ("2.34", "2.34.1"), ("9.9", "1:1.1.4"), ("1:1.2.3.4", "1:1.2.11")]
        {
            assert!(numbers(older) < numbers(newer), "{older} {newer}");
        }
    }

    #[test]
    fn this_very_program_needs_a_c_library_that_must_be_there() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = depends(&own, &libraries("")).unwrap_err().to_string();
        assert!(error.contains("no package of the root brings lib"), "{error}");
    }
}
