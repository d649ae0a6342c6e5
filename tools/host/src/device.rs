//! `/dev/neapN`, the driver's word to user space: how a function of the IPU stands, its agents, its settings, its figures.
//!
//! The driver is the only one that writes to the function's lines. What is asked for here it carries out or refuses; nothing
//! that a caller hands over can do more than that.

mod uapi;
mod window;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memmap2::{MmapOptions, MmapRaw};
use neap_abi::control::policy_id;
use neap_abi::hello::REGION_ALIGN;
use neap_abi::image::IMAGE_BYTES_MAX;
use neap_abi::{Manage, RegionKind, Reply, ReplyLine};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};
use thiserror::Error;

use crate::card_disk::Sectors;
use crate::manager::{DISK_PATIENCE, ManageError, name};

pub use uapi::{Info, Measured, Settings, UAPI_VERSION};
pub use window::DeviceWindow;

/// Functions that a machine can have.
pub const DEVICES_MAX: u16 = 8;
/// Samples that can be taken at a time.
pub const SAMPLES_MAX: u32 = 65_536;

/// Why a device does not do as asked.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// It is not there.
    #[error(
        "there is no {}: load the driver (`modprobe neap`), and see whether the machine has an IPU's function \
         (`lspci -d 1af4:1110` for the virtual one)", path.display()
    )]
    Absent {
        /// The device.
        path: PathBuf,
    },
    /// It is not for us.
    #[error("{what}: {} is root's; run this with sudo", path.display())]
    Denied {
        /// The device.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
    },
    /// There is nothing behind it.
    #[error(
        "{what}: the IPU behind {} is gone, or has not answered yet; /sys/kernel/debug/neap says how the link stands, \
         and the kernel's log why", path.display()
    )]
    Gone {
        /// The device.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
    },
    /// The driver is of an earlier release.
    #[error("{what}: the driver behind {} does not know how; load that of this release", path.display())]
    Older {
        /// The device.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
    },
    /// Somebody else does it.
    #[error("{what}: somebody else is at it, through {}; wait and try again", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
    },
    /// The window or the CPU has no place for it.
    #[error("{what}: neither this IPU's window nor this CPU's vectors have a place for it")]
    Unsupported {
        /// What was to be done.
        what: &'static str,
    },
    /// An interrupt has not come.
    #[error("{what}: an interrupt of {} did not come; is its MSI-X enabled (`lspci -vv`)?", path.display())]
    Silent {
        /// The device.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
    },
    /// Whatever else the system says.
    #[error("{what} through {}: {reason}", path.display())]
    Other {
        /// The device.
        path: PathBuf,
        /// What was to be done.
        what: &'static str,
        /// What the system said.
        reason: io::Error,
    },
}

/// An open device.
#[derive(Debug)]
pub struct Device {
    file: File,
    path: PathBuf,
}

impl Device {
    /// The device of function `number`.
    #[must_use]
    pub fn path_of(number: u16) -> PathBuf {
        PathBuf::from(format!("/dev/neap{number}"))
    }

    /// The devices that there are.
    #[must_use]
    pub fn all() -> Vec<PathBuf> {
        (0..DEVICES_MAX).map(Self::path_of).filter(|path| path.exists()).collect()
    }

    /// Opens one.
    ///
    /// # Errors
    /// A device that is not there, or not for us.
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        let (path, what) = (path.to_owned(), "opening the device");
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(DeviceError::Absent { path }),
            Err(error) => Err(error_of(path, what, error)),
        }
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How things stand.
    ///
    /// # Errors
    /// A function that is gone.
    pub fn info(&self) -> Result<Info, DeviceError> {
        let mut info = Info { size: size_of::<Info>() as u32, ..Info::default() };
        // SAFETY: the command and the structure are a pair of the uAPI's.
        unsafe { self.ask::<{ uapi::IOC_INFO }, Info>("asking how things stand", &mut info) }?;
        Ok(info)
    }

    /// Changes settings; what is zero stays.
    ///
    /// # Errors
    /// A function that is gone.
    pub fn set(&self, settings: &Settings) -> Result<(), DeviceError> {
        let mut settings = Settings { size: size_of::<Settings>() as u32, ..*settings };
        // SAFETY: the command and the structure are a pair of the uAPI's.
        unsafe { self.ask::<{ uapi::IOC_SETTINGS }, Settings>("changing settings", &mut settings) }
    }

    /// Takes `count` samples of something on the calling CPU, in ns. The caller keeps itself there.
    ///
    /// # Errors
    /// A window that has no place for it, a CPU without a vector, an interrupt that does not come, a count that is none.
    pub fn measure(&self, what: Measured, count: u32) -> Result<Vec<u64>, DeviceError> {
        let mut samples = vec![0u64; count.min(SAMPLES_MAX) as usize];
        let mut asked = uapi::Measure {
            size: size_of::<uapi::Measure>() as u32,
            what: what as u32,
            count,
            taken: 0,
            samples: samples.as_mut_ptr().expose_provenance() as u64,
        };
        // SAFETY: the command and the structure are a pair of the uAPI's; the driver writes at most `count` samples, refuses a
        // count above `SAMPLES_MAX`, and is done with them when it returns.
        unsafe { self.ask::<{ uapi::IOC_MEASURE }, uapi::Measure>("measuring the link", &mut asked) }?;
        samples.truncate(asked.taken as usize);
        Ok(samples)
    }

    /// A command that the driver does not have and refuses at once: what a system call takes.
    ///
    /// # Errors
    /// A driver that has it.
    pub fn nothing(&self) -> Result<(), DeviceError> {
        const NOTHING: Opcode = rustix::ioctl::opcode::read_write::<u64>(b'N', 0x7f);
        // SAFETY: no driver takes it; one that did would find eight bytes to read and write.
        match unsafe { self.ask::<NOTHING, u64>("asking for nothing", &mut 0) } {
            Err(DeviceError::Older { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(DeviceError::Unsupported { what: "asking for nothing" }),
        }
    }

    /// Maps what of the window may be read.
    ///
    /// # Errors
    /// A function that is gone.
    pub fn window(&self) -> Result<DeviceWindow, DeviceError> {
        let bytes = self.info()?.window_bytes;
        DeviceWindow::new(&self.file, bytes)
            .map_err(|error| error_of(self.path.clone(), "mapping the window", error))
    }

    /// As [`Manager::load`](crate::manager::Manager::load), through the driver.
    ///
    /// # Errors
    /// As there, and what is wrong with the device.
    pub fn load(
        &self,
        image: Option<&[u8]>,
        policy: &str,
        timeout: Duration,
    ) -> Result<ReplyLine, ManageError> {
        let _turn = self.turn()?;
        let image_bytes = image.map_or(Ok(0), |image| self.lay(image))?;
        self.carry_out(Manage::Load, loading(image_bytes, policy), timeout)
    }

    /// As [`Device::load`], where somebody else has laid the image into the window.
    ///
    /// # Errors
    /// As there.
    pub fn load_laid(
        &self,
        image_bytes: u32,
        policy: &str,
        timeout: Duration,
    ) -> Result<ReplyLine, ManageError> {
        let _turn = self.turn()?;
        self.carry_out(Manage::Load, loading(image_bytes, policy), timeout)
    }

    /// As [`Manager::replace`](crate::manager::Manager::replace), through the driver.
    ///
    /// # Errors
    /// As there, and what is wrong with the device.
    pub fn replace(
        &self,
        policy: &str,
        trial: Duration,
        timeout: Duration,
    ) -> Result<ReplyLine, ManageError> {
        let _turn = self.turn()?;
        let asked =
            uapi::Manage { trial_us: us(trial), policy: policy_id(policy), ..asking(Manage::Replace) };
        self.carry_out(Manage::Replace, asked, timeout)
    }

    /// As [`Manager::kill`](crate::manager::Manager::kill), through the driver.
    ///
    /// # Errors
    /// As there, and what is wrong with the device.
    pub fn kill(&self, grace: Duration, timeout: Duration) -> Result<ReplyLine, ManageError> {
        let _turn = self.turn()?;
        let asked = uapi::Manage { grace_us: us(grace), ..asking(Manage::Kill) };
        self.carry_out(Manage::Kill, asked, timeout)
    }

    /// As [`Manager::audit`](crate::manager::Manager::audit), through the driver.
    ///
    /// # Errors
    /// As there, and what is wrong with the device.
    pub fn audit(&self, timeout: Duration) -> Result<ReplyLine, ManageError> {
        let _turn = self.turn()?;
        self.carry_out(Manage::Audit, asking(Manage::Audit), timeout)
    }

    /// As [`Manager::unload`](crate::manager::Manager::unload), through the driver.
    ///
    /// # Errors
    /// As there, and what is wrong with the device.
    pub fn unload(&self, timeout: Duration) -> Result<ReplyLine, ManageError> {
        let _turn = self.turn()?;
        self.carry_out(Manage::Unload, asking(Manage::Unload), timeout)
    }

    /// As [`Sectors::read_sectors`], where somebody else takes what was read out of the window.
    ///
    /// # Errors
    /// As there.
    pub fn read_laid(&self, sector: u32, bytes: u32) -> Result<ReplyLine, ManageError> {
        let _turn = self.turn()?;
        self.reach(Manage::ReadDisk, sector, bytes)
    }

    /// As [`Sectors::write_sectors`], where somebody else has laid into the window what is written.
    ///
    /// # Errors
    /// As there.
    pub fn write_laid(&self, sector: u32, bytes: u32) -> Result<ReplyLine, ManageError> {
        let _turn = self.turn()?;
        self.reach(Manage::WriteDisk, sector, bytes)
    }

    fn reach(&self, command: Manage, sector: u32, bytes: u32) -> Result<ReplyLine, ManageError> {
        let asked = uapi::Manage { policy: sector, image_bytes: bytes, ..asking(command) };
        self.carry_out(command, asked, DISK_PATIENCE)
    }

    /// Waits for its turn among all who manage through this device: an image and the request that names it belong together.
    fn turn(&self) -> Result<Turn<'_>, DeviceError> {
        let locked = self.file.lock();
        locked.map_err(|error| error_of(self.path.clone(), "waiting for its turn", error))?;
        Ok(Turn(&self.file))
    }

    /// Lays an image into the window; its size.
    fn lay(&self, image: &[u8]) -> Result<u32, ManageError> {
        let (bytes, max) = (image.len(), IMAGE_BYTES_MAX);
        if bytes > max {
            return Err(ManageError::TooLarge { bytes, max });
        }
        let map = self.staging(bytes)?;
        let words = image.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        for (at, word) in words.enumerate() {
            // SAFETY: the image is no longer than the mapping, which is whole pages and so whole words.
            unsafe { map.as_mut_ptr().cast::<u64>().add(at).write_volatile(word) };
        }
        // The driver drains the write-combining buffers before it names the image to the IPU.
        Ok(bytes as u32)
    }

    /// Maps the first bytes of where images are laid, and what it takes to whole pages.
    fn staging(&self, bytes: usize) -> Result<MmapRaw, DeviceError> {
        let what = "mapping where images are laid";
        let error = |error| error_of(self.path.clone(), what, error);
        let hello = self.window()?.hello().map_err(|problem| error(io::Error::other(problem)))?;
        let region = hello.region(RegionKind::Image, 0).filter(|region| bytes as u64 <= region.bytes);
        let region = region.ok_or(DeviceError::Unsupported { what })?;
        let length = bytes.next_multiple_of(REGION_ALIGN as usize).max(REGION_ALIGN as usize);
        MmapOptions::new().offset(region.offset).len(length).map_raw(&self.file).map_err(error)
    }

    fn carry_out(
        &self,
        command: Manage,
        asked: uapi::Manage,
        timeout: Duration,
    ) -> Result<ReplyLine, ManageError> {
        let what = name(command);
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let mut asked = uapi::Manage { timeout_ms, ..asked };
        // SAFETY: the command and the structure are a pair of the uAPI's.
        let done = unsafe { ioctl(&self.file, Updater::<{ uapi::IOC_MANAGE }, _>::new(&mut asked)) };
        match done {
            Ok(()) => {}
            Err(Errno::TIMEDOUT) => {
                return Err(ManageError::Silent { what, waited_ms: timeout.as_millis() });
            }
            Err(Errno::CANCELED) => return Err(ManageError::Superseded { what }),
            Err(error) => return Err(error_of(self.path.clone(), what, error.into()).into()),
        }
        match Reply::ALL.get(asked.reply as usize) {
            Some(&reply @ Reply::Done) => {
                Ok(ReplyLine { reply, request: 0, detail: asked.detail, incarnation: asked.answered })
            }
            Some(&reply) => Err(ManageError::Answered { what, reply, detail: asked.detail }),
            None => Err(ManageError::Answered { what, reply: Reply::UnknownCommand, detail: asked.detail }),
        }
    }

    /// Hands a structure to the driver and back.
    ///
    /// # Safety
    /// `COMMAND` takes a `T`, and what `T` points to is there as long as this takes.
    unsafe fn ask<const COMMAND: Opcode, T>(
        &self,
        what: &'static str,
        value: &mut T,
    ) -> Result<(), DeviceError> {
        // SAFETY: by this function's requirement.
        let done = unsafe { ioctl(&self.file, Updater::<COMMAND, T>::new(value)) };
        done.map_err(|error| error_of(self.path.clone(), what, error.into()))
    }
}

impl Sectors for Device {
    fn read_sectors(&self, sector: u32, to: &mut [u8]) -> io::Result<u64> {
        let _turn = self.turn().map_err(io::Error::other)?;
        let reply = self.reach(Manage::ReadDisk, sector, to.len() as u32).map_err(io::Error::other)?;
        let map = self.staging(to.len()).map_err(io::Error::other)?;
        for (at, chunk) in to.chunks_mut(8).enumerate() {
            // SAFETY: the mapping has at least as many bytes, and whole words.
            let word = unsafe { map.as_ptr().cast::<u64>().add(at).read_volatile() };
            chunk.copy_from_slice(&word.to_ne_bytes()[..chunk.len()]);
        }
        Ok(reply.detail)
    }

    fn write_sectors(&self, sector: u32, bytes: &[u8]) -> io::Result<()> {
        let _turn = self.turn().map_err(io::Error::other)?;
        let bytes = self.lay(bytes).map_err(io::Error::other)?;
        self.reach(Manage::WriteDisk, sector, bytes).map(drop).map_err(io::Error::other)
    }
}

/// One's turn; it is over when this is dropped.
struct Turn<'d>(&'d File);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // If it can't be given back, the file's end gives it back.
        let _ = self.0.unlock();
    }
}

fn asking(command: Manage) -> uapi::Manage {
    let size = size_of::<uapi::Manage>() as u32;
    uapi::Manage { size, command: command as u32, ..uapi::Manage::default() }
}

fn loading(image_bytes: u32, policy: &str) -> uapi::Manage {
    uapi::Manage { image_bytes, policy: policy_id(policy), ..asking(Manage::Load) }
}

fn us(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// A system's error with its culprit and its remedy.
fn error_of(path: PathBuf, what: &'static str, reason: io::Error) -> DeviceError {
    match Errno::from_io_error(&reason) {
        Some(Errno::NODEV | Errno::NXIO) => DeviceError::Gone { path, what },
        Some(Errno::PERM | Errno::ACCESS) => DeviceError::Denied { path, what },
        Some(Errno::NOTTY) => DeviceError::Older { path, what },
        Some(Errno::BUSY) => DeviceError::Busy { path, what },
        Some(Errno::OPNOTSUPP) => DeviceError::Unsupported { what },
        Some(Errno::TIMEDOUT) => DeviceError::Silent { path, what },
        _ => DeviceError::Other { path, what, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_or_no_device_is_named_with_a_remedy() {
        let absent = Device::open(Path::new("/dev/neap77")).unwrap_err().to_string();
        assert!(absent.contains("/dev/neap77") && absent.contains("modprobe neap"), "{absent}");
        let other = Device::open(Path::new("/dev/null")).unwrap();
        let error = other.info().unwrap_err().to_string();
        assert!(error.contains("/dev/null does not know how; load that of this release"), "{error}");
    }

    #[test]
    fn what_the_driver_says_is_put_into_words() {
        let words =
            |errno: Errno| error_of("/dev/neap0".into(), "measuring the link", errno.into()).to_string();
        for (errno, expected) in [
            (Errno::NODEV, "the IPU behind /dev/neap0 is gone"),
            (Errno::ACCESS, "run this with sudo"),
            (Errno::BUSY, "somebody else is at it"),
            (Errno::TIMEDOUT, "an interrupt of /dev/neap0 did not come"),
            (Errno::INVAL, "measuring the link through /dev/neap0: Invalid argument"),
        ] {
            assert!(words(errno).contains(expected), "{}", words(errno));
        }
    }

    #[test]
    fn devices_take_turns() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let [one, other] = [(); 2].map(|()| Device::open(file.path()).unwrap());
        let turn = one.turn().unwrap();
        assert!(other.file.try_lock().is_err());
        drop(turn);
        drop(other.turn().unwrap());
    }
}
