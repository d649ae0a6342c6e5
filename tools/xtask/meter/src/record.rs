//! The file of records: what the plugin writes and the bench reads.
//!
//! [`MAGIC`], then frames: a tag byte, the payload's length, the payload. Numbers are LEB128 varints; the
//! addresses of a path are zigzag deltas from one instruction to the next, in units of an instruction, so
//! straight-line code costs a byte each. A file cut in the middle of a frame, as by a killed QEMU, reads up
//! to its last whole frame.

/// First bytes of the file, with the format's version.
pub const MAGIC: &[u8; 8] = b"NEAPMTR\x02";

/// How a path ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Ending {
    /// At the doorbell: an idle host CPU was told.
    Doorbell,
    /// At the last store to a decision slot: a decision lies ready and no doorbell is due.
    Prestage,
    /// At the load of the next line: the message was taken in and led to no decision.
    #[default]
    Consumed,
}

impl Ending {
    /// The ending's name in the bench's output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Doorbell => "doorbell",
            Self::Prestage => "prestage",
            Self::Consumed => "none",
        }
    }
}

/// One message's walk through the agent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path {
    /// The line of the ring, counted from its start.
    pub line: u64,
    /// The 8-byte words of it that were loaded, as a mask: [`crate::attempt::WHOLE_LINE`] for a message.
    pub words: u8,
    /// How it ended.
    pub ending: Ending,
    /// Instructions from the first load to the end, both included.
    pub instructions: u64,
    /// Loads of the line.
    pub ring_loads: u64,
    /// Stores to decision slots, also those after the doorbell.
    pub slot_stores: u64,
    /// Doorbells.
    pub doorbells: u64,
    /// Loads from anywhere else.
    pub other_loads: u64,
    /// Stores to anywhere else.
    pub other_stores: u64,
    /// The address of each instruction, in order.
    pub pcs: Vec<u64>,
}

impl Path {
    /// Whether more instructions were executed than addresses kept.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        (self.pcs.len() as u64) < self.instructions
    }
}

/// Instructions executed since reset, by vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// One count for each vCPU.
    pub instructions: Vec<u64>,
}

impl Totals {
    /// Over all vCPUs.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.instructions.iter().sum()
    }
}

/// One frame of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// One message's walk.
    Path(Path),
    /// The totals when the agent first loaded from its ring: it is up and polls.
    FirstPoll(Totals),
    /// The totals at the first store to a decision slot: the first decision.
    FirstDecision(Totals),
    /// The totals when QEMU ended.
    End(Totals),
    /// So many paths were left out, because the file was full.
    LeftOut(u64),
    /// An agent that came after another has made its first decision.
    Switch(Switch),
}

/// From one agent's end to the next one's first decision, in instructions of their core. A core that sleeps executes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Switch {
    /// Since the agent before last looked for a message: until then it could have decided.
    pub blackout: u64,
    /// Since its last store to a decision slot. It may have had nothing to decide for long.
    pub silence: u64,
    /// Since the core was lent to the new agent.
    pub start: u64,
}

/// Why a file of records is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It does not begin with [`MAGIC`].
    #[error("this is no file of records of this meter's version: rebuild the plugin")]
    Magic,
    /// A frame's payload is not what its tag promises.
    #[error("the frame at byte {0} is malformed: the plugin and its reader differ; rebuild both")]
    Frame(usize),
}

const PATH: u8 = 1;
const FIRST_POLL: u8 = 2;
const FIRST_DECISION: u8 = 3;
const END: u8 = 4;
const LEFT_OUT: u8 = 5;
const SWITCH: u8 = 6;

impl Record {
    /// Appends the record's frame to `to`. `payload` is scratch, overwritten.
    pub fn encode(&self, payload: &mut Vec<u8>, to: &mut Vec<u8>) {
        payload.clear();
        let tag = match self {
            Self::Path(path) => {
                encode_path(path, payload);
                PATH
            }
            Self::FirstPoll(totals) => encode_totals(totals, FIRST_POLL, payload),
            Self::FirstDecision(totals) => encode_totals(totals, FIRST_DECISION, payload),
            Self::End(totals) => encode_totals(totals, END, payload),
            Self::LeftOut(count) => {
                varint(*count, payload);
                LEFT_OUT
            }
            Self::Switch(switch) => {
                varint(switch.blackout, payload);
                varint(switch.silence, payload);
                varint(switch.start, payload);
                SWITCH
            }
        };
        to.push(tag);
        varint(payload.len() as u64, to);
        to.extend_from_slice(payload);
    }

    fn decode(tag: u8, payload: &[u8]) -> Option<Self> {
        let mut bytes = payload;
        let record = match tag {
            PATH => Self::Path(decode_path(&mut bytes)?),
            FIRST_POLL => Self::FirstPoll(decode_totals(&mut bytes)?),
            FIRST_DECISION => Self::FirstDecision(decode_totals(&mut bytes)?),
            END => Self::End(decode_totals(&mut bytes)?),
            LEFT_OUT => Self::LeftOut(take_varint(&mut bytes)?),
            SWITCH => Self::Switch(Switch {
                blackout: take_varint(&mut bytes)?,
                silence: take_varint(&mut bytes)?,
                start: take_varint(&mut bytes)?,
            }),
            _ => return None,
        };
        bytes.is_empty().then_some(record)
    }
}

/// Reads a whole file; a last frame that was not written out is left off.
///
/// # Errors
/// [`RecordError`] if the bytes are not a meter's.
pub fn read(file: &[u8]) -> Result<Vec<Record>, RecordError> {
    let mut bytes = file.strip_prefix(MAGIC).ok_or(RecordError::Magic)?;
    let mut records = Vec::new();
    while let Some((&tag, mut rest)) = bytes.split_first() {
        let at = file.len() - bytes.len();
        let Some(payload) = take_varint(&mut rest)
            .and_then(|length| rest.split_at_checked(usize::try_from(length).unwrap_or(usize::MAX)))
        else {
            break;
        };
        records.push(Record::decode(tag, payload.0).ok_or(RecordError::Frame(at))?);
        bytes = payload.1;
    }
    Ok(records)
}

fn encode_path(path: &Path, to: &mut Vec<u8>) {
    to.push(path.words);
    to.push(path.ending as u8);
    let counts = [
        path.line,
        path.instructions,
        path.ring_loads,
        path.slot_stores,
        path.doorbells,
        path.other_loads,
        path.other_stores,
        path.pcs.len() as u64,
    ];
    counts.into_iter().for_each(|count| varint(count, to));
    let mut expected = 0_u64;
    for &pc in &path.pcs {
        varint(zigzag(pc.wrapping_sub(expected) as i64), to);
        expected = pc.wrapping_add(4);
    }
}

fn decode_path(bytes: &mut &[u8]) -> Option<Path> {
    let words = take_byte(bytes)?;
    let ending = match take_byte(bytes)? {
        0 => Ending::Doorbell,
        1 => Ending::Prestage,
        2 => Ending::Consumed,
        _ => return None,
    };
    let mut counts = [0; 8];
    for count in &mut counts {
        *count = take_varint(bytes)?;
    }
    let [line, instructions, ring_loads, slot_stores, doorbells, other_loads, other_stores, length] = counts;
    let length = usize::try_from(length).ok().filter(|&length| length <= bytes.len())?;
    let mut pcs = Vec::with_capacity(length);
    let mut expected = 0_u64;
    for _ in 0..length {
        let pc = expected.wrapping_add(unzigzag(take_varint(bytes)?) as u64);
        pcs.push(pc);
        expected = pc.wrapping_add(4);
    }
    Some(Path {
        line,
        words,
        ending,
        instructions,
        ring_loads,
        slot_stores,
        doorbells,
        other_loads,
        other_stores,
        pcs,
    })
}

fn encode_totals(totals: &Totals, tag: u8, to: &mut Vec<u8>) -> u8 {
    totals.instructions.iter().for_each(|&count| varint(count, to));
    tag
}

fn decode_totals(bytes: &mut &[u8]) -> Option<Totals> {
    let mut instructions = Vec::new();
    while !bytes.is_empty() {
        instructions.push(take_varint(bytes)?);
    }
    Some(Totals { instructions })
}

fn varint(mut value: u64, to: &mut Vec<u8>) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

fn take_byte(bytes: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(first)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(bytes)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, RngExt, SeedableRng};

    /// A number with any count of leading zeros: short and long varints alike.
    fn any(random: &mut impl Rng) -> u64 {
        random.random::<u64>() >> random.random_range(0..64)
    }

    fn any_record(random: &mut impl Rng) -> Record {
        let totals =
            |random: &mut _| Totals { instructions: (0..any(random) % 17).map(|_| any(random)).collect() };
        match random.random_range(0..9) {
            0 => Record::FirstPoll(totals(random)),
            1 => Record::FirstDecision(totals(random)),
            2 => Record::End(totals(random)),
            3 => Record::LeftOut(any(random)),
            4 => Record::Switch(Switch { blackout: any(random), silence: any(random), start: any(random) }),
            _ => Record::Path(Path {
                line: any(random),
                words: random.random(),
                ending: [Ending::Doorbell, Ending::Prestage, Ending::Consumed][random.random_range(0..3)],
                instructions: any(random),
                ring_loads: any(random),
                slot_stores: any(random),
                doorbells: any(random),
                other_loads: any(random),
                other_stores: any(random),
                pcs: (0..random.random_range(0..300)).map(|_| any(random)).collect(),
            }),
        }
    }

    fn encode(records: &[Record]) -> Vec<u8> {
        let (mut file, mut payload) = (MAGIC.to_vec(), Vec::new());
        records.iter().for_each(|record| record.encode(&mut payload, &mut file));
        file
    }

    #[test]
    fn what_is_written_is_read_back() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        for _ in 0..200 {
            let count = random.random_range(0..12);
            let records: Vec<_> = (0..count).map(|_| any_record(&mut random)).collect();
            assert_eq!(read(&encode(&records)).as_ref(), Ok(&records));
        }
    }

    #[test]
    fn a_file_cut_anywhere_reads_up_to_its_last_whole_frame() {
        let first =
            Record::Path(Path { pcs: vec![0x4020_0000, 0x4020_0004, 0x4020_0000], ..Path::default() });
        let records = [first, Record::LeftOut(300)];
        let (one, file) = (encode(&records[..1]).len(), encode(&records));
        for length in MAGIC.len()..=file.len() {
            let whole = usize::from(length >= one) + usize::from(length == file.len());
            assert_eq!(read(&file[..length]).unwrap(), records[..whole], "{length} bytes");
        }
    }

    #[test]
    fn straight_line_code_costs_a_byte_an_instruction() {
        let pcs: Vec<_> = (0..1000).map(|i| 0x4020_0000 + 4 * i).collect();
        let length = encode(&[Record::Path(Path { pcs, ..Path::default() })]).len();
        assert!(length < 1040, "{length}");
    }

    #[test]
    fn bytes_that_are_no_records_are_refused_or_cut_and_never_panic() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        assert_eq!(read(b"not a meter's"), Err(RecordError::Magic));
        assert_eq!(read(&[&MAGIC[..], &[9, 0]].concat()), Err(RecordError::Frame(8)));
        for _ in 0..2000 {
            let mut file = encode(&[any_record(&mut random), any_record(&mut random)]);
            let at = random.random_range(MAGIC.len()..file.len());
            file[at] = random.random();
            let _ = read(&file);
        }
    }
}
