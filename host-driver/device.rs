// SPDX-License-Identifier: GPL-2.0
//! `/dev/neapN`: what user space may ask of a function, as `uapi/neap.h` says.

use core::mem::{offset_of, size_of, MaybeUninit};
use core::sync::atomic::Ordering;

use kernel::{
    bindings,
    fs::File,
    ioctl::{_IOC_SIZE, _IOWR},
    miscdevice::{MiscDevice, MiscDeviceRegistration},
    mm::virt::VmaNew,
    page::PAGE_SIZE,
    prelude::*,
    sync::{rcu, Arc},
    uaccess::{UserPtr, UserSlice},
};
use neap_abi::hello::{Region, RegionKind, HELLO_BYTES};
use neap_abi::{Manage, ManagerLine, Reply, ReplyLine};

use crate::function::Function;
use crate::host::{host, now_ns, FUNCTIONS};
use crate::measure;
use crate::session::type_of;
use crate::window::Type;

/// How a structure of the uAPI is known: all integers, without padding.
///
/// # Safety
/// Any bits are a value of the type, and it has no padding.
unsafe trait Plain: Copy + Default {
    /// The size of the first version, in bytes.
    const FIRST_BYTES: usize;
}

/// As `struct neap_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    size: u32,
    uapi_version: u32,
    abi: u32,
    enclave: u32,
    cpus: u32,
    tasks: u32,
    level: u32,
    agent_state: u32,
    incarnation: u32,
    session: u32,
    link: u32,
    fault: u32,
    window_bytes: u64,
    vectors: u32,
    scheduler: u32,
}

/// As `struct neap_manage`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ManageAsked {
    size: u32,
    command: u32,
    policy: u32,
    image_bytes: u32,
    incarnation: u32,
    grace_us: u32,
    trial_us: u32,
    timeout_ms: u32,
    reply: u32,
    answered: u32,
    detail: u64,
}

/// As `struct neap_settings`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Settings {
    size: u32,
    watchdog_ms: u32,
    policy: u32,
    attach_anew: u32,
    kernel_after_ms: u32,
    reserved: u32,
}

/// As `struct neap_measure`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Measure {
    size: u32,
    what: u32,
    count: u32,
    taken: u32,
    samples: u64,
}

const _: () = assert!(size_of::<Info>() == 64 && offset_of!(Info, window_bytes) == 48);
const _: () = assert!(size_of::<ManageAsked>() == 48 && offset_of!(ManageAsked, detail) == 40);
const _: () = assert!(size_of::<Settings>() == 24);
const _: () = assert!(size_of::<Measure>() == 24);

// SAFETY: Integers only, and the sizes above leave no room for padding.
unsafe impl Plain for Info {
    const FIRST_BYTES: usize = 64;
}
// SAFETY: As above.
unsafe impl Plain for ManageAsked {
    const FIRST_BYTES: usize = 48;
}
// SAFETY: As above.
unsafe impl Plain for Settings {
    const FIRST_BYTES: usize = 24;
}
// SAFETY: As above.
unsafe impl Plain for Measure {
    const FIRST_BYTES: usize = 24;
}

const INFO: u32 = _IOWR::<Info>('N' as u32, 0x40);
const MANAGE: u32 = _IOWR::<ManageAsked>('N' as u32, 0x41);
const SETTINGS: u32 = _IOWR::<Settings>('N' as u32, 0x42);
const MEASURE: u32 = _IOWR::<Measure>('N' as u32, 0x43);
/// A command without its size, which may be another version's.
const SIZELESS: u32 = !(0x3fff << 16);

/// Reads a structure whose caller may know more or less of it than we do; the size that the caller gives.
fn read<T: Plain>(at: UserPtr) -> Result<(T, usize)> {
    let mut size = [0; 4];
    UserSlice::new(at, 4).reader().read_slice(&mut size)?;
    let size = u32::from_ne_bytes(size) as usize;
    if size < T::FIRST_BYTES || size > PAGE_SIZE {
        return Err(EINVAL);
    }
    let mut value = T::default();
    let bytes = size.min(size_of::<T>());
    // SAFETY: `T` is plain: any bytes may be written to it. `bytes` is no more than it has.
    let raw = unsafe {
        core::slice::from_raw_parts_mut(core::ptr::from_mut(&mut value).cast::<MaybeUninit<u8>>(), bytes)
    };
    UserSlice::new(at, bytes).reader().read_raw(raw)?;
    Ok((value, size))
}

/// Writes a structure back, as far as its caller knows it.
fn write<T: Plain>(at: UserPtr, value: &T, size: usize) -> Result {
    let bytes = size.min(size_of::<T>());
    // SAFETY: `T` is plain, without padding: all its bytes are values. `bytes` is no more than it has.
    let raw = unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast::<u8>(), bytes) };
    UserSlice::new(at, bytes).writer().write_slice(raw)
}

/// An open device.
pub(crate) struct Device {
    function: Arc<Function>,
    mapped: Mapped,
}

/// What one open file has mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapped(*mut bindings::address_space);

// SAFETY: It is used by the kernel's own functions only, which lock it.
unsafe impl Send for Mapped {}
// SAFETY: As above.
unsafe impl Sync for Mapped {}

/// What open files of one function have mapped.
#[derive(Default)]
pub(crate) struct Mappings {
    files: KVec<Mapped>,
    /// The function is gone: nothing is mapped any more.
    closed: bool,
}

impl Drop for Device {
    fn drop(&mut self) {
        let files = &mut self.function.mappings.lock().files;
        if let Some(at) = files.iter().position(|one| *one == self.mapped) {
            let _ = files.remove(at);
        }
    }
}

impl Function {
    /// Takes from user space what it has mapped, for good.
    pub(crate) fn unmap(&self) {
        let mut mappings = self.mappings.lock();
        mappings.closed = true;
        for Mapped(mapped) in mappings.files.iter() {
            // SAFETY: Files leave the list, under its lock, before they end, and their address space with them. All of it.
            unsafe { bindings::unmap_mapping_range(*mapped, 0, 0, 1) };
        }
    }
}

#[vtable]
impl MiscDevice for Device {
    type Ptr = KBox<Self>;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        // SAFETY: A registered device has a name, which ends with a zero.
        let name = unsafe { CStr::from_char_ptr((*misc.as_raw()).name) };
        let number = name.to_bytes().last().map_or(usize::MAX, |digit| usize::from(digit.wrapping_sub(b'0')));
        let function = FUNCTIONS.lock().get(number).and_then(|place| place.clone()).ok_or(ENODEV)?;
        // SAFETY: An open file has an address space, which does not change.
        let mapped = Mapped(unsafe { (*file.as_ptr()).f_mapping });
        function.mappings.lock().files.push(mapped, GFP_KERNEL)?;
        Ok(KBox::new(Self { function, mapped }, GFP_KERNEL)?)
    }

    fn mmap(me: &Self, _file: &File, vma: &VmaNew) -> Result {
        me.map(vma)
    }

    fn ioctl(me: &Self, _file: &File, command: u32, argument: usize) -> Result<isize> {
        let at = UserPtr::from_addr(argument);
        if _IOC_SIZE(command) < 4 {
            return Err(ENOTTY);
        }
        match command & SIZELESS {
            c if c == INFO & SIZELESS => me.info(at),
            c if c == MANAGE & SIZELESS => me.manage(at),
            c if c == SETTINGS & SIZELESS => me.settings(at),
            c if c == MEASURE & SIZELESS => me.measure(at),
            _ => Err(ENOTTY),
        }?;
        Ok(0)
    }
}

impl Device {
    fn info(&self, at: UserPtr) -> Result {
        let (mut info, size) = read::<Info>(at)?;
        let host = host().ok_or(ENODEV)?;
        let enclave = host.mechanism.enclave(self.function.number).ok_or(ENODEV)?;
        let watch = self.function.watch.lock();
        if watch.left {
            return Err(ENODEV);
        }
        // The watch is held: the session stays.
        let session = host.session(self.function.number);
        let owned = host.mechanism.cpus().iter().filter(|cpu| cpu.owner() == Some(self.function.number));
        info = Info {
            uapi_version: 1,
            abi: session.map_or(0, |session| session.version.to_bits()),
            enclave: self.function.number.into(),
            cpus: owned.count() as u32,
            tasks: host.mechanism.tasks().len() as u32,
            level: enclave.level() as u32,
            agent_state: session
                .and_then(|session| session.agent())
                .map_or(u32::MAX, |agent| agent.state as u32),
            incarnation: watch.incarnation,
            session: session.map_or(0, |session| session.number),
            link: watch.is_attached().into(),
            fault: watch.fault.map_or(0, |fault| fault as u32),
            window_bytes: self.function.place.window.1,
            vectors: self.function.vectors,
            scheduler: host.attached.load(Ordering::Acquire).into(),
            ..info
        };
        drop(watch);
        write(at, &info, size)
    }

    fn manage(&self, at: UserPtr) -> Result {
        let (mut asked, size) = read::<ManageAsked>(at)?;
        let command = match asked.command {
            c if c == Manage::Load as u32 => Manage::Load,
            c if c == Manage::Replace as u32 => Manage::Replace,
            c if c == Manage::Kill as u32 => Manage::Kill,
            c if c == Manage::Audit as u32 => Manage::Audit,
            c if c == Manage::Unload as u32 => Manage::Unload,
            c if c == Manage::ReadDisk as u32 => Manage::ReadDisk,
            c if c == Manage::WriteDisk as u32 => Manage::WriteDisk,
            _ => return Err(EINVAL),
        };
        let line = ManagerLine {
            command,
            request: 0,
            image_bytes: asked.image_bytes,
            grace_us: asked.grace_us,
            trial_us: asked.trial_us,
            policy: asked.policy,
            incarnation: asked.incarnation,
        };
        let host = host().ok_or(ENODEV)?;
        let session = || host.session(self.function.number).ok_or(ENODEV);
        let _managing = self.function.managing.try_lock().ok_or(EBUSY)?;
        let request = {
            let watch = self.function.watch.lock();
            if watch.left {
                return Err(ENODEV);
            }
            session()?.manage(line)?
        };
        let until = now_ns() + u64::from(asked.timeout_ms) * 1_000_000;
        loop {
            let (answer, overtaken) = {
                let _watch = self.function.watch.lock();
                let session = session()?;
                (session.answer(request), session.requested() != request)
            };
            if let Some(ReplyLine { reply, detail, incarnation, .. }) = answer {
                if reply != Reply::Pending {
                    (asked.reply, asked.detail, asked.answered) = (reply as u32, detail, incarnation);
                    return write(at, &asked, size);
                }
            }
            if overtaken {
                return Err(ECANCELED);
            }
            if now_ns() >= until {
                return Err(ETIMEDOUT);
            }
            kernel::time::delay::fsleep(kernel::time::Delta::from_micros(500));
            if kernel::current!().signal_pending() {
                return Err(EINTR);
            }
        }
    }

    fn settings(&self, at: UserPtr) -> Result {
        let (settings, _) = read::<Settings>(at)?;
        if settings.attach_anew > 1 || settings.reserved != 0 {
            return Err(EINVAL);
        }
        let mut watch = self.function.watch.lock();
        if watch.left {
            return Err(ENODEV);
        }
        if settings.watchdog_ms != 0 {
            watch.set_watchdog_ms(settings.watchdog_ms);
        }
        if settings.kernel_after_ms != 0 {
            watch.kernel_after_ms = settings.kernel_after_ms;
        }
        if settings.policy != 0 {
            watch.policy = settings.policy;
        }
        watch.attach_anew |= settings.attach_anew == 1;
        Ok(())
    }

    fn measure(&self, at: UserPtr) -> Result {
        let (mut asked, size) = read::<Measure>(at)?;
        if !(1..=65_536).contains(&asked.count) {
            return Err(EINVAL);
        }
        let samples = measure::measure(&self.function, asked.what, asked.count)?;
        let to = UserPtr::from_addr(usize::try_from(asked.samples).map_err(|_| EFAULT)?);
        let mut writer = UserSlice::new(to, samples.len() * 8).writer();
        for sample in samples.iter() {
            writer.write_slice(&sample.to_ne_bytes())?;
        }
        asked.taken = samples.len() as u32;
        write(at, &asked, size)
    }

    /// The region that a mapping of `bytes` from `offset` on lies in, with whether it may be written.
    fn region(&self, offset: u64, bytes: u64) -> Result<(Type, bool)> {
        let end = offset.checked_add(bytes).ok_or(EINVAL)?;
        if offset == 0 && end <= HELLO_BYTES as u64 {
            return Ok((Type::Uncached, false));
        }
        let host = host().ok_or(ENODEV)?;
        let _session_stays = rcu::read_lock();
        let session = host.session(self.function.number).ok_or(ENODEV)?;
        let holds = |region: &Region| {
            let pages = region.bytes.next_multiple_of(PAGE_SIZE as u64);
            region.offset <= offset && end <= region.offset.saturating_add(pages)
        };
        let region = session.hello.regions().find(holds).ok_or(EPERM)?;
        match region.kind {
            RegionKind::Image => Ok((type_of(region.kind), true)),
            RegionKind::Log | RegionKind::Epitaph | RegionKind::AgentControl | RegionKind::Supervisor => {
                Ok((type_of(region.kind), false))
            }
            _ => Err(EPERM),
        }
    }

    fn map(&self, vma: &VmaNew) -> Result {
        let raw = vma.as_ptr();
        // SAFETY: The area is being set up, and is ours to read.
        let page = unsafe { (*raw).vm_pgoff };
        let offset = (page as u64).checked_mul(PAGE_SIZE as u64).ok_or(EINVAL)?;
        // Held until it is mapped: whoever has the function leave takes it away again (`Function::unmap`). Not the watch, whose
        // holder may wait for who waits for this address space, whose lock our caller has.
        let mappings = self.function.mappings.lock();
        if mappings.closed {
            return Err(ENODEV);
        }
        let (kind, writable) = self.region(offset, (vma.end() - vma.start()) as u64)?;
        if !writable {
            if vma.writable() {
                return Err(EPERM);
            }
            vma.try_clear_maywrite()?;
        }
        // SAFETY: As above; nobody else changes an area that is being set up.
        let mapped = unsafe {
            let protection = (*raw).vm_page_prot;
            (*raw).vm_page_prot = match kind {
                Type::WriteCombining => bindings::pgprot_writecombine(protection),
                Type::WriteThrough => bindings::pgprot_writethrough(protection),
                Type::Uncached => uncached(protection),
            };
            let (at, bytes) = self.function.place.window;
            bindings::vm_iomap_memory(raw, at, bytes as usize)
        };
        kernel::error::to_result(mapped)
    }
}

/// The protection of uncached memory, as `pgprot_noncached`, which is a macro.
fn uncached(protection: bindings::pgprot_t) -> bindings::pgprot_t {
    // SAFETY: No precondition.
    unsafe { neap_pgprot_noncached(protection) }
}

extern "C" {
    fn neap_pgprot_noncached(protection: bindings::pgprot_t) -> bindings::pgprot_t;
}
