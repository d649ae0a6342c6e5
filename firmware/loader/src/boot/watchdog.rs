//! The i6300ESB watchdog (Intel 6300ESB I/O Controller Hub datasheet, chapter 16): it resets a machine whose image on trial
//! neither confirms itself nor gives up.

use neap_hal::board::pci::Address;
use uefi::boot;
use uefi::proto::pci::PciIoAddress;
use uefi::proto::pci::root_bridge::PciRootBridgeIo;

use super::disk::open;

/// How long an image may take until it is confirmed, in seconds.
pub const TRIAL_S: u32 = 30;

/// Vendor 8086, device 25ab.
const ID: u32 = 0x25ab_8086;
/// Configuration space: command, BAR 0, configuration, lock.
const COMMAND: u8 = 0x04;
const BAR0: u8 = 0x10;
const CONFIG: u8 = 0x60;
const LOCK: u8 = 0x68;
/// It answers to memory accesses.
const COMMAND_MEMORY: u16 = 1 << 1;
/// The reset is on (bit 5 clear), no interrupt comes before it, and the clock is that of 1 kHz (bit 2 clear).
const CONFIG_RESET: u16 = 0x3;
const LOCK_ENABLE: u8 = 1 << 1;
/// In BAR 0: what the two stages count from, and what restarts them. Each is written behind two words that unlock it.
const STAGE1: u64 = 0x0;
const STAGE2: u64 = 0x4;
const RELOAD: u64 = 0xc;
const UNLOCK: [u16; 2] = [0x80, 0x86];
const RELOAD_NOW: u16 = 1 << 8;

/// A watchdog that was found.
pub struct Watchdog {
    bridge: boot::ScopedProtocol<PciRootBridgeIo>,
    at: PciIoAddress,
}

impl Watchdog {
    /// Looks for one on bus 0.
    pub fn find() -> Option<Self> {
        for handle in boot::find_handles::<PciRootBridgeIo>().unwrap_or_default() {
            let Ok(mut bridge) = open::<PciRootBridgeIo>(handle) else { continue };
            for device in 0..32 {
                let at = PciIoAddress::new(0, device, 0);
                if bridge.pci().read_one::<u32>(at) == Ok(ID) {
                    return Some(Self { bridge, at });
                }
            }
        }
        None
    }

    /// What ends it, if a zero byte is stored there: its lock register, in the configuration space at `ecam`.
    pub fn end(&self, ecam: u64) -> u64 {
        ecam + Address::new(self.at.dev, self.at.fun).ecam_offset() + u64::from(LOCK)
    }

    /// Starts it. It counts in two stages of half the time each.
    pub fn arm(&mut self) -> uefi::Result {
        let register = |register| self.at.with_register(register);
        let (command, bar, config, lock) =
            (register(COMMAND), register(BAR0), register(CONFIG), register(LOCK));
        let on = self.bridge.pci().read_one::<u16>(command)? | COMMAND_MEMORY;
        self.bridge.pci().write_one(command, on)?;
        let base = u64::from(self.bridge.pci().read_one::<u32>(bar)? & !0xf);
        self.bridge.pci().write_one(config, CONFIG_RESET)?;
        for stage in [STAGE1, STAGE2] {
            self.unlock(base)?;
            // About a millisecond a count.
            self.bridge.memory().write_one(base + stage, TRIAL_S * 1024 / 2)?;
        }
        self.unlock(base)?;
        self.bridge.memory().write_one(base + RELOAD, RELOAD_NOW)?;
        self.bridge.pci().write_one(lock, LOCK_ENABLE)
    }

    fn unlock(&mut self, base: u64) -> uefi::Result {
        for word in UNLOCK {
            self.bridge.memory().write_one(base + RELOAD, word)?;
        }
        Ok(())
    }
}
