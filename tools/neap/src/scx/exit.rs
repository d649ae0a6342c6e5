//! Why a scheduler ended, as its own `exit` wrote it down.

/// The map in which it does: one entry of a kind, a code, a reason and a message.
pub const EXIT_MAP: &str = "neap_exit";

const REASON_BYTES: usize = 128;
const MESSAGE_BYTES: usize = 1024;
/// Where the fields are: `{ s32 kind; s64 exit_code; char reason[128]; char msg[1024]; }`.
const KIND: usize = 0;
const CODE: usize = 8;
const REASON: usize = 16;
const MESSAGE: usize = REASON + REASON_BYTES;

/// Why a scheduler ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The kernel's number for it; never 0.
    pub kind: i32,
    /// What the scheduler or the driver gave with it.
    pub code: i64,
    /// The kernel's words for the kind.
    pub reason: String,
    /// What there is to say beyond.
    pub message: String,
}

impl Exit {
    /// From the map's entry; none while the scheduler lives.
    pub fn of(entry: &[u8]) -> Option<Self> {
        let kind = i32::from_ne_bytes(entry.get(KIND..KIND + 4)?.try_into().ok()?);
        let code = i64::from_ne_bytes(entry.get(CODE..CODE + 8)?.try_into().ok()?);
        let reason = text(entry.get(REASON..REASON + REASON_BYTES)?);
        let message = text(entry.get(MESSAGE..MESSAGE + MESSAGE_BYTES)?);
        (kind != 0).then_some(Self { kind, code, reason, message })
    }

    /// In one line.
    pub fn in_words(&self) -> String {
        let Self { kind, code, reason, message } = self;
        let reason = if reason.is_empty() { format!("kind {kind}") } else { reason.clone() };
        let mut words = match message.as_str() {
            "" => reason,
            message => format!("{reason} ({message})"),
        };
        if *code != 0 {
            words.push_str(&format!(", code {code:#x}"));
        }
        words.replace('\n', " ")
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: i32, code: i64, reason: &str, message: &str) -> Vec<u8> {
        let mut bytes = vec![0; MESSAGE + MESSAGE_BYTES];
        bytes[KIND..4].copy_from_slice(&kind.to_ne_bytes());
        bytes[CODE..CODE + 8].copy_from_slice(&code.to_ne_bytes());
        bytes[REASON..REASON + reason.len()].copy_from_slice(reason.as_bytes());
        bytes[MESSAGE..MESSAGE + message.len()].copy_from_slice(message.as_bytes());
        bytes
    }

    #[test]
    fn an_end_is_one_line() {
        let stall =
            Exit::of(&entry(1026, 0, "runnable task stall", "cat[7] failed to run\nfor 5 s")).unwrap();
        assert_eq!(stall.in_words(), "runnable task stall (cat[7] failed to run for 5 s)");
        assert_eq!(Exit::of(&entry(66, 0x12, "", "")).unwrap().in_words(), "kind 66, code 0x12");
    }

    #[test]
    fn a_scheduler_that_lives_and_an_entry_that_is_none_say_nothing() {
        assert_eq!(Exit::of(&entry(0, 0, "", "")), None);
        assert_eq!(Exit::of(&[1, 0, 0, 0]), None);
        // A message without an end has all its bytes.
        let long = entry(64, 0, "", &"x".repeat(MESSAGE_BYTES));
        assert_eq!(Exit::of(&long).unwrap().message.len(), MESSAGE_BYTES);
    }
}
