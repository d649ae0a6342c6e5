//! The kernel command line: `neap.key=value` words. Words of others are left alone; one of ours that is unknown or
//! wrong is an error, because a knob that silently does nothing costs its user a day.

use core::num::NonZeroU32;

use heapless::String;

use crate::board::qemu_virt::ENCLAVES_MAX;

/// The longest word that an error quotes, in bytes.
const QUOTE_MAX: usize = 48;

/// What an agent does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// It polls for ever: what silicon is for.
    Spin,
    /// It polls this many times in vain and then sleeps until the host or a timer wakes it: what a
    /// simulator on a shared machine needs.
    Poll(NonZeroU32),
}

/// The typed command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootArgs {
    /// `neap.idle=spin` or `neap.idle=poll:N`; by default `poll:200`.
    pub idle: Idle,
    /// `neap.cores=A,B,…`: cores of each enclave's agent, in the order of the enclaves, 1 to 8; 1 where nothing is said.
    pub cores: [u8; ENCLAVES_MAX],
    /// `neap.exit=1`: a panic or an exception of the supervisor ends the simulator with an exit status. By
    /// default 0: the core parks.
    pub exit: bool,
}

/// Empty polls before sleeping, unless the command line says otherwise: some microseconds under TCG, which
/// two chatty peers rarely outwait and a shared machine does not miss.
const POLLS_BEFORE_SLEEP: NonZeroU32 = NonZeroU32::new(200).unwrap();

impl Default for BootArgs {
    fn default() -> Self {
        Self { idle: Idle::Poll(POLLS_BEFORE_SLEEP), cores: [1; ENCLAVES_MAX], exit: false }
    }
}

/// A word of ours that can't be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootArgError {
    /// No such key.
    #[error("unknown kernel argument `{0}`: known are neap.idle, neap.cores and neap.exit")]
    UnknownKey(String<QUOTE_MAX>),
    /// A value that its key does not take.
    #[error("kernel argument `{word}`: expected {expected}")]
    BadValue {
        /// The word, cut to some 50 bytes.
        word: String<QUOTE_MAX>,
        /// What its key takes.
        expected: &'static str,
    },
}

impl BootArgs {
    /// Reads a command line. A key given twice counts the last time.
    ///
    /// # Errors
    /// [`BootArgError`] for the first word that starts with `neap.` and is not as documented.
    pub fn parse(line: &str) -> Result<Self, BootArgError> {
        let mut args = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some(ours) = word.strip_prefix("neap.") else {
                continue;
            };
            let (key, value) = ours.split_once('=').unwrap_or((ours, ""));
            let bad = |expected| BootArgError::BadValue { word: quote(word), expected };
            match key {
                "idle" => {
                    args.idle =
                        match value.strip_prefix("poll:") {
                            None if value == "spin" => Idle::Spin,
                            Some(polls) => polls.parse().ok().map(Idle::Poll).ok_or_else(|| {
                                bad("a number of polls between 1 and 4294967295 after `poll:`")
                            })?,
                            None => return Err(bad("`spin` or `poll:N`")),
                        }
                }
                "cores" => {
                    let expected = "1 to 8 for each of at most 8 enclaves, as in `2,1,1`";
                    let mut places = args.cores.iter_mut();
                    for count in value.split(',') {
                        let count = count.parse().ok().filter(|count| (1..=8).contains(count));
                        match (places.next(), count) {
                            (Some(place), Some(count)) => *place = count,
                            _ => return Err(bad(expected)),
                        }
                    }
                }
                "exit" => {
                    args.exit = match value {
                        "0" => false,
                        "1" => true,
                        _ => return Err(bad("`0` or `1`")),
                    }
                }
                _ => return Err(BootArgError::UnknownKey(quote(word))),
            }
        }
        Ok(args)
    }
}

fn quote(word: &str) -> String<QUOTE_MAX> {
    let mut quoted = String::new();
    for char in word.chars() {
        if quoted.push(char).is_err() {
            break;
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_ours_are_obeyed_and_others_left_alone() {
        let args = BootArgs::parse("quiet neap.idle=poll:64 root=/dev/vda  neap.exit=1").unwrap();
        assert_eq!(args.idle, Idle::Poll(NonZeroU32::new(64).unwrap()));
        assert!(args.exit);
        assert_eq!(BootArgs::parse("neap.idle=poll:3 neap.idle=spin").unwrap().idle, Idle::Spin);
        assert_eq!(BootArgs::parse("neap.cores=2,1,8").unwrap().cores, [2, 1, 8, 1, 1, 1, 1, 1]);
        assert_eq!(BootArgs::parse(""), Ok(BootArgs::default()));
    }

    #[test]
    fn wrong_words_are_named() {
        for (line, culprit) in [
            ("neap.idle=sleep", "neap.idle=sleep"),
            ("neap.idle=poll:0", "neap.idle=poll:0"),
            ("neap.idle=poll:-1", "neap.idle=poll:-1"),
            ("neap.idle=poll:4294967296", "neap.idle=poll:4294967296"),
            ("neap.idle", "neap.idle"),
            ("neap.cores=0", "neap.cores=0"),
            ("neap.cores=1,9", "neap.cores=1,9"),
            ("neap.cores=1,", "neap.cores=1,"),
            ("neap.cores=1,1,1,1,1,1,1,1,1", "neap.cores=1,1,1,1,1,1,1,1,1"),
            ("x neap.exit=yes y", "neap.exit=yes"),
        ] {
            let error = BootArgs::parse(line).unwrap_err();
            assert!(
                matches!(&error, BootArgError::BadValue { word, .. } if word.as_str() == culprit),
                "{line}: {error}"
            );
        }
        let error = BootArgs::parse("neap.idel=spin").unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown kernel argument `neap.idel=spin`: known are neap.idle, neap.cores and neap.exit"
        );
        let long = std::format!("neap.{}", "ü".repeat(100));
        assert!(matches!(
            BootArgs::parse(&long),
            Err(BootArgError::UnknownKey(word)) if word.len() <= QUOTE_MAX && long.starts_with(word.as_str())
        ));
    }
}
