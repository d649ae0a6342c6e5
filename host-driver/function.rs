// SPDX-License-Identifier: GPL-2.0
//! A PCI function of an IPU: one enclave.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kernel::{
    bindings,
    cpu::CpuId,
    cpumask::CpumaskVar,
    device::Core,
    irq,
    miscdevice::{MiscDeviceOptions, MiscDeviceRegistration},
    new_mutex, pci,
    prelude::*,
    str::CString,
    sync::{Arc, Mutex},
};
use neap_mechanism::ENCLAVES_MAX;

use crate::beat::Watch;
use crate::debug;
use crate::device::{Device, Mappings};
use crate::host::{host, kick, now_ns, FUNCTIONS};
use crate::session::Place;
use crate::window::{Map, Type};

/// Offsets in the register page, BAR 0 (QEMU's ivshmem-spec.rst).
const POSITION_AT: usize = 0x8;
const DOORBELL_AT: usize = 0xc;
const REGISTERS_BYTES: usize = 0x10;

/// A function, for as long as anybody knows of it.
#[pin_data]
pub(crate) struct Function {
    /// Its number, and its enclave's.
    pub(crate) number: u8,
    /// Its address on the bus, in words.
    pub(crate) address: CString,
    /// Vectors, one a CPU.
    pub(crate) vectors: u32,
    /// Where its parts lie.
    pub(crate) place: Place,
    /// The interrupt that is being measured.
    pub(crate) heard: Heard,
    /// Held by who measures: there is one measured interrupt at a time.
    #[pin]
    pub(crate) measuring: Mutex<()>,
    /// Held by who manages: a line holds one request.
    #[pin]
    pub(crate) managing: Mutex<()>,
    /// What open files of the device have mapped. Taken under a user's address space's lock: its holder waits for no other.
    #[pin]
    pub(crate) mappings: Mutex<Mappings>,
    /// Everything about the agent. Its holder alone publishes sessions.
    #[pin]
    pub(crate) watch: Mutex<Watch>,
}

/// When a measured interrupt came.
pub(crate) struct Heard {
    /// The CPU whose interrupt is measured; [`NO_CPU`] while none is.
    pub(crate) cpu: AtomicU32,
    pub(crate) entered_ns: AtomicU64,
    pub(crate) left_ns: AtomicU64,
}

/// See [`Heard::cpu`].
pub(crate) const NO_CPU: u32 = u32::MAX;

// SAFETY: The place's address is used through volatile stores only, and the rest is synchronised.
unsafe impl Sync for Function {}

/// A CPU's vector.
struct Vector {
    cpu: u16,
    function: Arc<Function>,
}

impl irq::Handler for Vector {
    fn handle(&self) -> irq::IrqReturn {
        let heard = &self.function.heard;
        let measured = heard.cpu.load(Ordering::Acquire) == u32::from(self.cpu);
        if measured {
            heard.entered_ns.store(now_ns(), Ordering::Relaxed);
        }
        if let Some(host) = host() {
            // An interrupt's handler is a read-side section of RCU.
            let preempts = host.mechanism.rung(host, self.cpu);
            kick(self.cpu, preempts);
        }
        if measured {
            heard.left_ns.store(now_ns(), Ordering::Release);
        }
        irq::IrqReturn::Handled
    }
}

/// A bound function. In the order of their ends: who may use the function, then what it stands on.
pub(crate) struct Bound<'bound> {
    device: Option<Pin<KBox<MiscDeviceRegistration<Device>>>>,
    debug: Option<debug::Files>,
    function: Arc<Function>,
    handlers: KVec<Pin<KBox<irq::Registration<'bound, Vector>>>>,
    _vectors: KBox<pci::IrqVectorRegistration<'bound>>,
    _registers: Map,
    pdev: &'bound pci::Device,
}

/// The PCI driver.
pub(crate) struct NeapDriver;

kernel::pci_device_table!(
    PCI_TABLE,
    <NeapDriver as pci::Driver>::IdInfo,
    [
        // The virtual IPU: ivshmem-doorbell. Others by new_id.
        (pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, 0x1110), ()),
    ]
);

/// Names of the devices, by function.
const NAMES: [&CStr; ENCLAVES_MAX] =
    [c"neap0", c"neap1", c"neap2", c"neap3", c"neap4", c"neap5", c"neap6", c"neap7"];

extern "C" {
    fn neap_has_cpu(function: u32, cpu: u32) -> bool;
}

/// Finds a free number and keeps the function under it.
fn enrol(function: impl FnOnce(u8) -> Result<Arc<Function>>) -> Result<Arc<Function>> {
    let mut functions = FUNCTIONS.lock();
    let (number, place) =
        (0u8..).zip(functions.iter_mut()).find(|(_, place)| place.is_none()).ok_or(ENOSPC)?;
    let function = function(number)?;
    *place = Some(function.clone());
    Ok(function)
}

fn probe<'bound>(pdev: &'bound pci::Device<Core<'_>>) -> Result<Bound<'bound>> {
    pdev.enable_device_mem()?;
    pdev.set_master();
    let registers_at = pdev.resource_start(0)?;
    let registers = Map::new(registers_at, REGISTERS_BYTES, Type::Uncached)?;
    let register = |at: usize| registers.address().wrapping_byte_add(at).cast::<u32>();
    // SAFETY: The register page is mapped, and the offset inside it.
    let peer = unsafe { core::ptr::read_volatile(register(POSITION_AT)) } as u16;
    let window = (pdev.resource_start(2)?, pdev.resource_len(2)?);
    if window.1 == 0 {
        dev_err!(pdev, "BAR 2 has no window: is this an ivshmem-plain, or a function of something else?\n");
        return Err(ENODEV);
    }
    let place = Place { window, registers: registers_at, doorbell: register(DOORBELL_AT), peer };
    let address = CString::try_from_fmt(fmt!("{}", pdev.as_ref().name()))?;

    let cpus = kernel::cpu::nr_cpu_ids().min(u32::from(neap_abi::CPUS_MAX));
    let types = pci::IrqTypes::default().with(pci::IrqType::MsiX);
    let vectors = KBox::new(pdev.alloc_irq_vectors(1, cpus, types)?, GFP_KERNEL)?;
    // SAFETY: The allocation does not move, and `Bound` ends the handlers before the vectors.
    let kept: &'bound pci::IrqVectorRegistration<'bound> =
        unsafe { &*core::ptr::from_ref::<pci::IrqVectorRegistration<'bound>>(&*vectors) };
    let count = kept.len() as u32;
    // Before the function has a number: what fails from then on gives it back.
    let handlers = KVec::with_capacity(count as usize, GFP_KERNEL)?;
    let function = enrol(|number| {
        let heard =
            Heard { cpu: AtomicU32::new(NO_CPU), entered_ns: AtomicU64::new(0), left_ns: AtomicU64::new(0) };
        Arc::pin_init(
            pin_init!(Function {
                number,
                address,
                vectors: count,
                place,
                heard,
                measuring <- new_mutex!(()),
                managing <- new_mutex!(()),
                mappings <- new_mutex!(Mappings::default()),
                watch <- new_mutex!(Watch::new()),
            }),
            GFP_KERNEL,
        )
    })?;
    let mut bound = Bound {
        device: None,
        debug: None,
        function: function.clone(),
        handlers,
        _vectors: vectors,
        _registers: registers,
        pdev,
    };
    for cpu in 0..count {
        let request: irq::IrqRequest<'bound> = kept.index(cpu as usize)?.into();
        let mut mask = CpumaskVar::new_zero(GFP_KERNEL)?;
        if let Some(cpu) = CpuId::from_u32(cpu) {
            mask.set(cpu);
        }
        // Before the handler, so that no interrupt comes to another CPU.
        // SAFETY: The interrupt is ours, and the mask outlives the call.
        kernel::error::to_result(unsafe { bindings::irq_set_affinity(request.irq(), mask.as_raw()) })?;
        // SAFETY: The registration is kept in `Bound`, which is dropped.
        let registration = unsafe {
            irq::Registration::new(
                request,
                // In an interrupt, whatever the kernel is told: it is a read-side section of RCU.
                irq::Flags::NO_THREAD,
                c"neap",
                Ok::<_, Error>(Vector { cpu: cpu as u16, function: function.clone() }),
            )
        };
        bound.handlers.push(KBox::pin_init(registration, GFP_KERNEL)?, GFP_KERNEL)?;
    }
    if let Some(host) = host() {
        for cpu in 0..count as u16 {
            // SAFETY: The parameter is a string that ends with a zero and does not change; this may sleep.
            if unsafe { neap_has_cpu(function.number.into(), cpu.into()) } {
                host.mechanism.give_cpu(cpu, function.number);
            }
        }
    }
    bound.debug = Some(debug::Files::new(&function)?);
    let name = NAMES.get(usize::from(function.number)).copied().ok_or(ENOSPC)?;
    bound.device =
        Some(KBox::pin_init(MiscDeviceRegistration::register(MiscDeviceOptions { name }), GFP_KERNEL)?);
    dev_info!(pdev, "neap{}: window of {} bytes, {} vectors\n", function.number, window.1, count);
    Ok(bound)
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        // Nobody opens it any more; who has it open is told that it is gone.
        self.device = None;
        self.debug = None;
        self.function.leave();
        if let Some(place) = FUNCTIONS.lock().get_mut(usize::from(self.function.number)) {
            *place = None;
        }
        self.handlers.clear();
        self.function.unmap();
        dev_info!(self.pdev, "neap{}: gone\n", self.function.number);
    }
}

impl pci::Driver for NeapDriver {
    type IdInfo = ();
    type Data<'bound> = Bound<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        probe(pdev)
    }
}
