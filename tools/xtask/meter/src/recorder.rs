//! Writes records as they come about: what is in the file survives any end of QEMU.

use std::io::{self, Write};

use crate::args::MeterArgs;
use crate::attempt::{Access, Meaning, Segmenter};
use crate::record::{MAGIC, Path, Record, Switch, Totals};

/// The most paths in one file; the rest is counted in [`Record::LeftOut`]. A bench sends some hundred
/// messages a run: this only bounds the disk when a host runs beside the meter for hours.
pub const RECORDS_MAX: u64 = 1 << 20;

/// The agent's core as the plugin sees it, and the file.
#[derive(Debug)]
pub struct Recorder<W> {
    segmenter: Segmenter,
    file: W,
    frame: Vec<u8>,
    payload: Vec<u8>,
    polled: bool,
    decided: bool,
    enter: u64,
    /// Instructions of the agent's core.
    executed: u64,
    /// What they came to at the last decision, and at the last look for a message.
    last_decision: Option<u64>,
    last_look: u64,
    /// The last look before the core was lent to an agent that has made no decision yet, and when it was.
    entered: Option<(u64, u64)>,
    written: u64,
    left_out: u64,
    failure: Option<io::Error>,
}

impl<W: Write> Recorder<W> {
    /// A recorder into `file`, which is empty and is not buffered: each record is one write.
    ///
    /// # Errors
    /// What the file refuses its first bytes with.
    pub fn new(args: &MeterArgs, mut file: W) -> io::Result<Self> {
        file.write_all(MAGIC)?;
        Ok(Self {
            segmenter: Segmenter::new(args),
            file,
            frame: Vec::new(),
            payload: Vec::new(),
            polled: false,
            decided: false,
            enter: args.enter,
            executed: 0,
            last_decision: None,
            last_look: 0,
            entered: None,
            written: 0,
            left_out: 0,
            failure: None,
        })
    }

    /// The agent's core is about to execute the instruction at `pc`.
    pub fn execute(&mut self, pc: u64) {
        self.executed += 1;
        if pc == self.enter {
            self.entered = Some((self.last_look, self.executed));
        }
        self.segmenter.execute(pc);
    }

    /// The agent's core accessed memory; `totals` counts what all vCPUs have executed by now.
    pub fn access(&mut self, access: Access, totals: impl FnOnce() -> Totals) {
        match self.segmenter.access(access) {
            Meaning::RingLoad => self.last_look = self.executed,
            Meaning::Started(finished) => {
                self.last_look = self.executed;
                if !self.polled {
                    self.polled = true;
                    self.write(&Record::FirstPoll(totals()));
                }
                if let Some(path) = finished {
                    self.path(path);
                }
            }
            // A slot that is cleared before the first poll is no decision.
            Meaning::SlotStore if self.polled => {
                if !self.decided {
                    self.decided = true;
                    self.write(&Record::FirstDecision(totals()));
                }
                if let (Some(decision), Some((look, entered))) = (self.last_decision, self.entered.take()) {
                    let now = self.executed;
                    let switch =
                        Switch { blackout: now - look, silence: now - decision, start: now - entered };
                    self.write(&Record::Switch(switch));
                }
                self.last_decision = Some(self.executed);
            }
            _ => (),
        }
    }

    /// Closes the file with the totals. Says what failed, if anything did, since the beginning.
    ///
    /// # Errors
    /// The first write that failed.
    pub fn finish(&mut self, totals: Totals) -> io::Result<()> {
        if let Some(path) = self.segmenter.finish() {
            self.path(path);
        }
        if self.left_out > 0 {
            self.write(&Record::LeftOut(self.left_out));
        }
        self.write(&Record::End(totals));
        self.failure.take().map_or(Ok(()), Err)
    }

    fn path(&mut self, path: Path) {
        if self.written == RECORDS_MAX {
            self.left_out += 1;
            self.segmenter.recycle(path);
            return;
        }
        self.written += 1;
        let record = Record::Path(path);
        self.write(&record);
        if let Record::Path(path) = record {
            self.segmenter.recycle(path);
        }
    }

    fn write(&mut self, record: &Record) {
        self.frame.clear();
        record.encode(&mut self.payload, &mut self.frame);
        if self.failure.is_none() {
            self.failure = self.file.write_all(&self.frame).err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Ending, read};

    fn access(address: u64, bytes: u64, store: bool) -> Access {
        Access { address, bytes, store, device: false }
    }

    #[test]
    fn boot_is_counted_to_the_first_poll_and_the_first_decision() {
        let args = MeterArgs::parse(["out=x", "ring=0x1000-0x2000", "slots=0x4000-0x4400"]).unwrap();
        let mut file = Vec::new();
        let mut recorder = Recorder::new(&args, &mut file).unwrap();
        let totals = |count| Totals { instructions: vec![count, 2 * count] };
        recorder.access(access(0x4000, 8, true), || totals(1));
        recorder.execute(0x100);
        recorder.access(access(0x1000, 64, false), || totals(2));
        recorder.access(access(0x1000, 64, false), || totals(3));
        recorder.access(access(0x4040, 8, true), || totals(4));
        recorder.access(access(0x4080, 8, true), || totals(5));
        recorder.finish(totals(6)).unwrap();
        let records = read(&file).unwrap();
        let [Record::FirstPoll(poll), Record::FirstDecision(first), Record::Path(path), Record::End(end)] =
            &records[..]
        else {
            panic!("{records:?}")
        };
        assert_eq!([poll, first, end], [&totals(2), &totals(4), &totals(6)]);
        assert_eq!((path.ending, path.slot_stores, first.sum()), (Ending::Prestage, 2, 12));
    }

    #[test]
    fn from_one_agent_s_end_to_the_next_one_s_first_decision() {
        let args =
            MeterArgs::parse(["out=x", "ring=0x1000-0x2000", "slots=0x4000-0x4400", "enter=0x500"]).unwrap();
        let mut file = Vec::new();
        let mut recorder = Recorder::new(&args, &mut file).unwrap();
        let mut steps = |pcs: &[u64], store: bool| {
            for &pc in pcs {
                recorder.execute(pc);
            }
            recorder.access(access(if store { 0x4000 } else { 0x1000 }, 8, store), Totals::default);
        };
        // The first agent of all comes after nobody.
        steps(&[0x500, 0x100], false);
        steps(&[0x104], true);
        steps(&[0x108, 0x10c], true);
        // Two agents come; the first of them never decides.
        steps(&[0x110, 0x500, 0x100, 0x500, 0x100], false);
        steps(&[0x104], true);
        steps(&[0x108], true);
        recorder.finish(Totals::default()).unwrap();
        let switches: Vec<Switch> = read(&file)
            .unwrap()
            .into_iter()
            .filter_map(|record| if let Record::Switch(switch) = record { Some(switch) } else { None })
            .collect();
        assert_eq!(switches, [Switch { blackout: 9, silence: 6, start: 2 }]);
    }

    #[test]
    fn a_full_disk_is_reported_at_the_end() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let args = MeterArgs::parse(["out=x", "ring=0x1000-0x2000", "slots=0x4000-0x4400"]).unwrap();
        let mut recorder = Recorder::new(&args, Full(MAGIC.len())).unwrap();
        recorder.access(access(0x1000, 64, false), Totals::default);
        assert_eq!(recorder.finish(Totals::default()).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
