//! The plugin proper: QEMU's callbacks, turned into a recorder's events.
//!
//! Only functions whose signatures hold from QEMU 7.2 to 11 are used, with one exception: API version 7 gave
//! the translation callback other parameters, and its registration one more.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::api::BLOCK_FIRST;
use crate::args::MeterArgs;
use crate::attempt::Access;
use crate::record::Totals;
use crate::recorder::Recorder;

/// What this plugin declares: the version its build was told ([`crate::api::VERSION_VARIABLE`]).
const API: u32 = match option_env!("NEAP_QEMU_PLUGIN_API") {
    Some(digit) => match digit.as_bytes() {
        [digit @ b'0'..=b'9'] => (*digit - b'0') as u32,
        _ => panic!("NEAP_QEMU_PLUGIN_API is not one digit"),
    },
    None => 1,
};

/// vCPUs counted; `-M virt` takes more, a board of 16 cores does not.
const VCPUS_MAX: usize = 64;

/// `QEMU_PLUGIN_CB_NO_REGS`.
const NO_REGISTERS: c_int = 0;
/// `QEMU_PLUGIN_MEM_RW`.
const LOADS_AND_STORES: c_int = 3;

/// A translation block, an instruction of it, a physical address: QEMU's, valid during one callback.
type Handle = *mut c_void;
type TranslationCallback = extern "C" fn(Handle, Handle);
type ExitCallback = extern "C" fn(u64, *mut c_void);
type ExecuteCallback = extern "C" fn(c_uint, *mut c_void);
type AccessCallback = extern "C" fn(c_uint, u32, u64, *mut c_void);

// From QEMU's `include/qemu/qemu-plugin.h`. `register_vcpu_tb_trans_cb` is declared as of version 7: before,
// it took two parameters and, by the C ABI of every host QEMU runs on, never sees the third.
unsafe extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, call: TranslationCallback, data: *mut c_void);
    fn qemu_plugin_register_atexit_cb(id: u64, call: ExitCallback, data: *mut c_void);
    fn qemu_plugin_tb_n_insns(block: Handle) -> usize;
    fn qemu_plugin_tb_get_insn(block: Handle, index: usize) -> Handle;
    fn qemu_plugin_insn_vaddr(instruction: Handle) -> u64;
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        i: Handle,
        call: ExecuteCallback,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        i: Handle,
        call: AccessCallback,
        flags: c_int,
        rw: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_mem_is_store(info: u32) -> bool;
    fn qemu_plugin_mem_size_shift(info: u32) -> c_uint;
    fn qemu_plugin_get_hwaddr(info: u32, virtual_address: u64) -> Handle;
    fn qemu_plugin_hwaddr_is_io(address: Handle) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(address: Handle) -> u64;
}

/// The version of the API, read by QEMU before it installs the plugin.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = API as c_int;

/// The plugin's state: one, for QEMU loads it once.
static METER: OnceLock<Meter> = OnceLock::new();

struct Meter {
    core: u32,
    /// Each counter has one writer, its vCPU's thread, and a cache line of its own.
    executed: [Counter; VCPUS_MAX],
    /// Only the agent's vCPU takes this lock while the machine runs: it never waits.
    recorder: Mutex<Recorder<File>>,
}

#[repr(align(64))]
struct Counter(AtomicU64);

impl Meter {
    fn totals(&self) -> Totals {
        let mut instructions: Vec<_> =
            self.executed.iter().map(|counter| counter.0.load(Ordering::Relaxed)).collect();
        while instructions.pop_if(|count| *count == 0).is_some() {}
        Totals { instructions }
    }

    fn recorder(&self) -> std::sync::MutexGuard<'_, Recorder<File>> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Called by QEMU once, when it has loaded the plugin: 0, or a message on stderr and -1.
///
/// # Safety
/// `arguments` points to `count` C strings, which QEMU promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let words = (0..usize::try_from(count).unwrap_or(0)).map(|i| {
        // SAFETY: the caller's promise; the strings outlive the plugin.
        unsafe { CStr::from_ptr(*arguments.add(i)) }.to_str().unwrap_or("an argument that is not UTF-8")
    });
    match install(words) {
        Ok(()) => {
            // SAFETY: `id` is the one QEMU just handed out and the callbacks live as long as the process.
            unsafe {
                qemu_plugin_register_vcpu_tb_trans_cb(id, translate, ptr::null_mut());
                qemu_plugin_register_atexit_cb(id, exit, ptr::null_mut());
            }
            0
        }
        Err(error) => {
            eprintln!("neap-meter: {error}");
            -1
        }
    }
}

fn install<'a>(words: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let args = MeterArgs::parse(words).map_err(|error| Error::new(ErrorKind::InvalidInput, error))?;
    let file = File::create(&args.out)
        .map_err(|error| Error::new(error.kind(), format!("{}: {error}", args.out.display())))?;
    let recorder = Mutex::new(Recorder::new(&args, file)?);
    let executed = [const { Counter(AtomicU64::new(0)) }; VCPUS_MAX];
    METER
        .set(Meter { core: args.core, executed, recorder })
        .map_err(|_| Error::new(ErrorKind::AlreadyExists, "the plugin is loaded twice"))
}

/// A block was translated: hook every instruction. The two handles are (id, block), or from version 7 on
/// (block, our data).
extern "C" fn translate(first: Handle, second: Handle) {
    let block = if API >= BLOCK_FIRST { first } else { second };
    // SAFETY: `block` is QEMU's and valid during this call, so are the instructions it hands out; the data
    // of the callbacks is a number, never followed.
    unsafe {
        for index in 0..qemu_plugin_tb_n_insns(block) {
            let instruction = qemu_plugin_tb_get_insn(block, index);
            let pc = ptr::without_provenance_mut(qemu_plugin_insn_vaddr(instruction) as usize);
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, execute, NO_REGISTERS, pc);
            qemu_plugin_register_vcpu_mem_cb(
                instruction,
                access,
                NO_REGISTERS,
                LOADS_AND_STORES,
                ptr::null_mut(),
            );
        }
    }
}

extern "C" fn execute(vcpu: c_uint, pc: *mut c_void) {
    let Some(meter) = METER.get() else { return };
    if let Some(Counter(counter)) = meter.executed.get(vcpu as usize) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
    if vcpu == meter.core {
        meter.recorder().execute(pc.addr() as u64);
    }
}

extern "C" fn access(vcpu: c_uint, info: u32, virtual_address: u64, _data: *mut c_void) {
    let Some(meter) = METER.get().filter(|meter| vcpu == meter.core) else { return };
    // SAFETY: `info` and `virtual_address` are those of this callback, during which the handle is valid.
    let access = unsafe {
        let address = qemu_plugin_get_hwaddr(info, virtual_address);
        if address.is_null() {
            return;
        }
        Access {
            address: qemu_plugin_hwaddr_phys_addr(address),
            bytes: 1 << qemu_plugin_mem_size_shift(info).min(6),
            store: qemu_plugin_mem_is_store(info),
            device: qemu_plugin_hwaddr_is_io(address),
        }
    };
    meter.recorder().access(access, || meter.totals());
}

extern "C" fn exit(_id: u64, _data: *mut c_void) {
    let Some(meter) = METER.get() else { return };
    if let Err(error) = meter.recorder().finish(meter.totals()) {
        eprintln!("neap-meter: the records are incomplete: {error}");
    }
}
