//! The structures and numbers of `host-driver/uapi/neap.h`, which a test compares with these.

use rustix::ioctl::{Opcode, opcode};

/// `NEAP_UAPI_VERSION` that this program was written for.
pub const UAPI_VERSION: u32 = 1;

/// How things stand: `struct neap_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the header has the words")]
pub struct Info {
    pub size: u32,
    pub uapi_version: u32,
    pub abi: u32,
    pub enclave: u32,
    pub cpus: u32,
    pub tasks: u32,
    pub level: u32,
    pub agent_state: u32,
    pub incarnation: u32,
    pub session: u32,
    pub link: u32,
    pub fault: u32,
    pub window_bytes: u64,
    pub vectors: u32,
    pub scheduler: u32,
}

/// `struct neap_manage`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manage {
    pub size: u32,
    pub command: u32,
    pub policy: u32,
    pub image_bytes: u32,
    pub incarnation: u32,
    pub grace_us: u32,
    pub trial_us: u32,
    pub timeout_ms: u32,
    pub reply: u32,
    pub answered: u32,
    pub detail: u64,
}

/// Settings that can change while the driver runs: `struct neap_settings`. Zeros leave things as they are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the header has the words")]
pub struct Settings {
    pub size: u32,
    pub watchdog_ms: u32,
    pub policy: u32,
    pub attach_anew: u32,
    pub kernel_after_ms: u32,
    pub reserved: u32,
}

/// `struct neap_measure`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Measure {
    pub size: u32,
    pub what: u32,
    pub count: u32,
    pub taken: u32,
    pub samples: u64,
}

/// What can be measured: `enum neap_measured`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the header has the words")]
pub enum Measured {
    ReadUncached = 0,
    ReadWriteThrough = 1,
    ReadCached = 2,
    WriteUncached = 3,
    WriteCombining = 4,
    MsixSend = 5,
    MsixReceive = 6,
    MsixEndToEnd = 7,
    Clock = 8,
}

/// Faults by their number, from 1: `enum neap_fault`.
const FAULTS: [&str; 6] =
    ["agent_late", "agent_floods", "agent_poisoned", "agent_dead", "link_down", "host_cpu_hogged"];

/// Who decides, by its number.
const LEVELS: [&str; 3] = ["ipu", "host", "kernel"];

impl Info {
    /// Who decides: `ipu`, `host` or `kernel`.
    #[must_use]
    pub fn level_name(&self) -> &'static str {
        LEVELS.get(self.level as usize).copied().unwrap_or("unknown")
    }

    /// The last fault; none if there was none.
    #[must_use]
    pub fn fault_name(&self) -> Option<&'static str> {
        match self.fault {
            0 => None,
            fault => Some(FAULTS.get(fault as usize - 1).copied().unwrap_or("unknown")),
        }
    }
}

pub(super) const IOC_INFO: Opcode = opcode::read_write::<Info>(b'N', 0x40);
pub(super) const IOC_MANAGE: Opcode = opcode::read_write::<Manage>(b'N', 0x41);
pub(super) const IOC_SETTINGS: Opcode = opcode::read_write::<Settings>(b'N', 0x42);
pub(super) const IOC_MEASURE: Opcode = opcode::read_write::<Measure>(b'N', 0x43);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The header itself, read as text: so no C compiler is needed, and none of its search paths can hide another copy.
    const HEADER: &str = include_str!("../../../../host-driver/uapi/neap.h");

    /// Its text without comments.
    fn code() -> String {
        let mut rest = HEADER;
        let mut code = String::new();
        while let Some((before, after)) = rest.split_once("/*") {
            code.push_str(before);
            rest = after.split_once("*/").expect("a comment ends").1;
        }
        code + rest
    }

    fn body(kind: &str, name: &str) -> String {
        let code = code();
        let begin = format!("{kind} {name} {{");
        let (_, after) = code.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
        after.split_once("};").expect("it ends").0.to_owned()
    }

    /// A structure's fields with their offsets and sizes, and its size, as C lays it out.
    fn laid_out(name: &str) -> (Vec<(String, usize, usize)>, usize) {
        let (mut fields, mut at, mut align) = (Vec::new(), 0usize, 1);
        for field in body("struct", name).split(';').map(str::trim).filter(|field| !field.is_empty()) {
            let (kind, field) = field.split_once(' ').expect("a type and a name");
            let bytes = match kind {
                "__u32" => 4,
                "__u64" => 8,
                other => panic!("{name}.{field} is of type {other}: not of a fixed size"),
            };
            at = at.next_multiple_of(bytes);
            fields.push((field.to_owned(), at, bytes));
            (at, align) = (at + bytes, align.max(bytes));
        }
        (fields, at.next_multiple_of(align))
    }

    /// An enumeration's names and numbers, without `prefix`.
    fn numbers(name: &str, prefix: &str) -> BTreeMap<String, u32> {
        let body = body("enum", name);
        let each = body.split(',').map(str::trim).filter(|each| !each.is_empty());
        each.map(|each| {
            let (name, number) = each.split_once(" = ").expect("a name and a number");
            let name = name.strip_prefix(prefix).expect("its prefix");
            (name.to_lowercase(), number.trim().parse().expect("a number"))
        })
        .collect()
    }

    fn define(name: &str) -> String {
        let code = code();
        let line = code.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
    }

    #[test]
    fn structures_are_those_of_the_header() {
        macro_rules! same {
            ($name:literal, $kind:ident, $($field:ident: $bytes:literal),+) => {
                // A field that is not listed does not build.
                let $kind { $($field: _),+ } = $kind::default();
                let ours = vec![
                    $((stringify!($field).to_owned(), std::mem::offset_of!($kind, $field), $bytes)),+
                ];
                assert_eq!(laid_out($name), (ours, size_of::<$kind>()), "{}", $name);
            };
        }
        same!(
            "neap_info", Info, size: 4, uapi_version: 4, abi: 4, enclave: 4, cpus: 4, tasks: 4, level: 4, agent_state: 4,
            incarnation: 4, session: 4, link: 4, fault: 4, window_bytes: 8, vectors: 4, scheduler: 4
        );
        same!(
            "neap_manage", Manage, size: 4, command: 4, policy: 4, image_bytes: 4, incarnation: 4, grace_us: 4,
            trial_us: 4, timeout_ms: 4, reply: 4, answered: 4, detail: 8
        );
        same!(
            "neap_settings", Settings, size: 4, watchdog_ms: 4, policy: 4, attach_anew: 4, kernel_after_ms: 4,
            reserved: 4
        );
        same!("neap_measure", Measure, size: 4, what: 4, count: 4, taken: 4, samples: 8);
    }

    #[test]
    fn commands_are_those_of_the_header() {
        let commands = [
            ("NEAP_IOC_INFO", "neap_info", IOC_INFO),
            ("NEAP_IOC_MANAGE", "neap_manage", IOC_MANAGE),
            ("NEAP_IOC_SETTINGS", "neap_settings", IOC_SETTINGS),
            ("NEAP_IOC_MEASURE", "neap_measure", IOC_MEASURE),
        ];
        for (name, structure, ours) in commands {
            let words = define(name);
            let inside = words.strip_prefix("_IOWR(").and_then(|words| words.strip_suffix(')'));
            let parts: Vec<&str> = inside.expect("_IOWR").split(',').map(str::trim).collect();
            let [group, number, kind] = parts[..] else { panic!("{words}") };
            assert_eq!((group, kind), ("'N'", format!("struct {structure}").as_str()), "{name}");
            let number = u32::from_str_radix(number.trim_start_matches("0x"), 16).unwrap();
            // As _IOC() has it: direction 2 bits, size 14, group 8, number 8.
            let theirs = 3 << 30 | (laid_out(structure).1 as u32) << 16 | u32::from(b'N') << 8 | number;
            assert_eq!(ours, theirs, "{name}");
        }
        assert_eq!(define("NEAP_UAPI_VERSION"), UAPI_VERSION.to_string());
    }

    #[test]
    fn enumerations_are_those_of_the_header() {
        let measured = [
            ("read_uncached", Measured::ReadUncached),
            ("read_write_through", Measured::ReadWriteThrough),
            ("read_cached", Measured::ReadCached),
            ("write_uncached", Measured::WriteUncached),
            ("write_combining", Measured::WriteCombining),
            ("msix_send", Measured::MsixSend),
            ("msix_receive", Measured::MsixReceive),
            ("msix_end_to_end", Measured::MsixEndToEnd),
            ("clock", Measured::Clock),
        ];
        let ours: BTreeMap<_, _> =
            measured.into_iter().map(|(name, what)| (name.to_owned(), what as u32)).collect();
        assert_eq!(numbers("neap_measured", "NEAP_"), ours);
        let mut faults: BTreeMap<_, _> = FAULTS.iter().map(|name| (*name).to_owned()).zip(1..).collect();
        faults.insert("none".to_owned(), 0);
        assert_eq!(numbers("neap_fault", "NEAP_FAULT_"), faults);
    }

    #[test]
    fn what_a_newer_driver_says_is_no_panic() {
        let info = Info { level: 9, fault: 77, ..Info::default() };
        assert_eq!((info.level_name(), info.fault_name()), ("unknown", Some("unknown")));
        let info = Info { level: 2, fault: 5, ..Info::default() };
        assert_eq!((info.level_name(), info.fault_name()), ("kernel", Some("link_down")));
        assert_eq!(Info::default().fault_name(), None);
    }
}
