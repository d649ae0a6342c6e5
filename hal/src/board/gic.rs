//! The interrupt controller: GICv2 with its message frame, or GICv3.
//!
//! A core sleeps until the host or its timer wakes it; it takes no interrupt exception for either. So each core
//! enables its own timer's interrupt and, on GICv2, has one message-signalled interrupt routed to it; when it wakes it
//! acknowledges what there is. GICv3 would need an ITS to receive messages from PCI; there, a core wakes by timer
//! only.
//!
//! Sources: GIC architecture specifications IHI 0048 (v2) and IHI 0069 (v3), the GICv2m section of Arm's Server Base
//! System Architecture.

use core::ops::Range;

/// Which controller, and where its registers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// GICv2.
    V2 {
        /// GICD.
        distributor: Range<u64>,
        /// GICC, banked: every core sees its own.
        cpu_interface: Range<u64>,
        /// The GICv2m frame, which turns a store into an SPI.
        message_frame: Option<Range<u64>>,
    },
    /// GICv3.
    V3 {
        /// GICD.
        distributor: Range<u64>,
        /// GICR, two frames of 64 KiB for each core.
        redistributors: Range<u64>,
    },
}

impl Layout {
    /// All its register blocks.
    pub fn registers(&self) -> impl Iterator<Item = Range<u64>> {
        let blocks = match self {
            Self::V2 { distributor, cpu_interface, message_frame } => {
                [Some(distributor.clone()), Some(cpu_interface.clone()), message_frame.clone()]
            }
            Self::V3 { distributor, redistributors } => {
                [Some(distributor.clone()), Some(redistributors.clone()), None]
            }
        };
        blocks.into_iter().flatten()
    }
}

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
pub use driver::{CoreInterface, Gic, GicError, MessageFrame, Target};

#[cfg(all(target_arch = "aarch64", target_os = "none", feature = "el1"))]
mod driver {
    use core::mem::offset_of;
    use core::ops::Range;
    use core::ptr::NonNull;

    use aarch64_cpu::registers::{MPIDR_EL1, Readable};
    use arm_gic::gicv2::registers::{Gicc, Gicd};
    use arm_gic::gicv2::{self, GicV2};
    use arm_gic::gicv3::{self, GicCpuInterface, GicV3, SgiTargetGroup};
    use arm_gic::{IntId, InterruptGroup, Trigger};
    use safe_mmio::fields::{ReadPure, ReadPureWrite};
    use safe_mmio::{UniqueMmioPointer, field, field_shared};
    use spin::mutex::SpinMutex;

    use super::Layout;
    use crate::cpu::barrier;
    use crate::cpu::timer::Timer;

    /// The lowest priority there is: nothing is masked by its priority.
    const NO_PRIORITY_MASK: u8 = 0xff;
    /// What an agent's core lets through while the agent runs: an abort, and nothing that could wait until it sleeps.
    const URGENT_ONLY: u8 = 0x80;
    /// Priority of an abort; lower numbers come first.
    const URGENT: u8 = 0x20;
    /// Priority of all that wakes a core.
    const USUAL: u8 = 0xa0;
    /// MPIDR_EL1's affinity fields.
    const AFFINITY: u64 = 0xff_00ff_ffff;

    /// What the controller can't do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
    pub enum GicError {
        /// The device tree put a register block at address 0.
        #[error("the interrupt controller's registers are at address 0, says the device tree")]
        NoAddress,
        /// The device tree's redistributor region is not one.
        #[error("no GICv3 redistributor answers at {0:#x}")]
        NoRedistributors(u64),
        /// No redistributor belongs to this core.
        #[error("no GICv3 redistributor for the core with MPIDR {0:#x}")]
        NoRedistributor(u64),
        /// An interrupt that can't be enabled or is not a shared one.
        #[error("interrupt {0} can't be enabled: not a shared interrupt of this controller")]
        BadInterrupt(u32),
    }

    enum Driver {
        V2 { gic: GicV2<'static>, distributor: u64, cpu_interface: NonNull<Gicc> },
        V3 { gic: GicV3<'static>, cores: usize },
    }

    // SAFETY: register addresses, good on every core; the lock around the driver keeps cores apart.
    unsafe impl Send for Driver {}

    /// The controller's shared half, the distributor.
    pub struct Gic {
        driver: SpinMutex<Driver>,
    }

    fn registers<T>(range: &Range<u64>) -> Result<NonNull<T>, GicError> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(range.start as usize)).ok_or(GicError::NoAddress)
    }

    fn read_typer_affinity(gic: &mut GicV3<'static>, index: usize) -> Option<u64> {
        let typer = gic.gicr_typer(index).ok()?;
        Some(typer.core_mpidr())
    }

    impl Gic {
        /// The software-generated interrupt by which cores wake each other.
        pub const WAKE: u32 = 0;
        /// The software-generated interrupt by which the supervisor takes a core from its agent.
        pub const ABORT: u32 = 1;

        /// Sets the controller up, on the first of `cores` cores. Nothing is enabled yet.
        ///
        /// # Errors
        /// [`GicError`] when the layout can't be.
        ///
        /// # Safety
        /// `layout` must be the machine's, its registers mapped as such for as long as the image runs, and nobody else's.
        pub unsafe fn new(layout: &Layout, cores: usize) -> Result<Self, GicError> {
            let driver = match layout {
                Layout::V2 { distributor, cpu_interface, .. } => {
                    let gicd = registers::<Gicd>(distributor)?;
                    let gicc = registers::<Gicc>(cpu_interface)?;
                    Driver::V2 {
                        // SAFETY: the caller's promise. The CPU interface is banked: through this driver each core
                        // touches its own while it joins, and afterwards only through its `CoreInterface`.
                        gic: unsafe { GicV2::new(gicd.as_ptr(), gicc.as_ptr()) },
                        distributor: distributor.start,
                        cpu_interface: gicc,
                    }
                }
                Layout::V3 { distributor, redistributors } => {
                    // SAFETY: the caller's promise.
                    let gicd = unsafe { UniqueMmioPointer::new(registers(distributor)?) };
                    // SAFETY: the caller's promise.
                    let mut gic = unsafe { GicV3::new(gicd, registers(redistributors)?, cores) }
                        .map_err(|_| GicError::NoRedistributors(redistributors.start))?;
                    gic.setup(0);
                    Driver::V3 { gic, cores }
                }
            };
            Ok(Self { driver: SpinMutex::new(driver) })
        }

        /// Sets up the running core's half and enables its timer's interrupt.
        ///
        /// # Errors
        /// [`GicError::NoRedistributor`], [`GicError::BadInterrupt`].
        pub fn join(&self) -> Result<CoreInterface, GicError> {
            let timer = IntId::ppi(Timer::PPI);
            let wake = IntId::sgi(Self::WAKE);
            let abort = IntId::sgi(Self::ABORT);
            let refused = GicError::BadInterrupt(timer.raw_value());
            match &mut *self.driver.lock() {
                Driver::V2 { gic, distributor, cpu_interface } => {
                    gic.setup();
                    gic.set_priority_mask(NO_PRIORITY_MASK);
                    for (interrupt, priority) in [(timer, USUAL), (wake, USUAL), (abort, URGENT)] {
                        let id = interrupt.raw_value();
                        priority_register(*distributor, id).ok_or(GicError::NoAddress)?.write(priority);
                        gic.enable_interrupt(interrupt, true).map_err(|_| refused)?;
                    }
                    // The targets of interrupt 0 read as the reading core's own bit (IHI 0048 4.3.12).
                    let target = target_register(*distributor, 0).ok_or(GicError::NoAddress)?.read();
                    Ok(CoreInterface::V2 {
                        // SAFETY: as in `new`: from here on this core's bank is this pointer's.
                        registers: unsafe { UniqueMmioPointer::new(*cpu_interface) },
                        target,
                    })
                }
                Driver::V3 { gic, cores } => {
                    let mpidr = MPIDR_EL1.get() & AFFINITY;
                    let index = (0..*cores)
                        .find(|&index| read_typer_affinity(gic, index) == Some(mpidr))
                        .ok_or(GicError::NoRedistributor(mpidr))?;
                    gic.init_cpu(index);
                    GicCpuInterface::set_priority_mask(NO_PRIORITY_MASK);
                    GicCpuInterface::enable_group1(true);
                    for (interrupt, priority) in [(timer, USUAL), (wake, USUAL), (abort, URGENT)] {
                        gic.set_interrupt_priority(interrupt, Some(index), priority).map_err(|_| refused)?;
                        gic.enable_interrupt(interrupt, Some(index), true).map_err(|_| refused)?;
                    }
                    Ok(CoreInterface::V3 { mpidr })
                }
            }
        }

        /// Ends the sleep of the core `target`, as soon as it sleeps; all stores before are visible to it then.
        pub fn wake(&self, target: Target) {
            self.send(Self::WAKE, target);
        }

        /// Interrupts the core `target`, whatever its agent does; all stores before are visible to it then.
        pub fn abort(&self, target: Target) {
            self.send(Self::ABORT, target);
        }

        fn send(&self, id: u32, target: Target) {
            let wake = IntId::sgi(id);
            match (&mut *self.driver.lock(), target) {
                (Driver::V2 { gic, .. }, Target::V2(mask)) => {
                    barrier::publish_before_doorbell();
                    gic.send_sgi(
                        wake,
                        gicv2::SgiTarget::List {
                            target_list_filter: gicv2::SgiTargetListFilter::CPUTargetList,
                            target_list: mask.into(),
                        },
                    );
                }
                (Driver::V3 { .. }, Target::V3(mpidr)) => {
                    // A store to a system register is ordered after memory by a DSB only.
                    barrier::complete_tables();
                    let [affinity0, affinity1, affinity2, _, affinity3, ..] = mpidr.to_le_bytes();
                    let target = gicv3::SgiTarget::List {
                        affinity3,
                        affinity2,
                        affinity1,
                        target_list: 1 << (affinity0 & 0xf),
                    };
                    // The only error is an interrupt that is not software-generated, which this one is.
                    let _ = GicCpuInterface::send_sgi(wake, target, SgiTargetGroup::CurrentGroup1);
                }
                // A target of another controller, which no core of this machine has given out.
                _ => {}
            }
        }

        /// Routes the shared, edge-triggered interrupt `id` to `core` and enables it.
        ///
        /// # Errors
        /// [`GicError::BadInterrupt`] when `id` is not a shared interrupt.
        pub fn route(&self, id: u32, core: &CoreInterface) -> Result<(), GicError> {
            let refused = GicError::BadInterrupt(id);
            let interrupt = IntId::try_from(id).map_err(|_| refused)?;
            if !interrupt.is_spi() {
                return Err(refused);
            }
            match (&mut *self.driver.lock(), core) {
                (Driver::V2 { gic, distributor, .. }, CoreInterface::V2 { target, .. }) => {
                    gic.set_trigger(interrupt, Trigger::Edge);
                    priority_register(*distributor, id).ok_or(refused)?.write(USUAL);
                    target_register(*distributor, id).ok_or(refused)?.write(*target);
                    gic.enable_interrupt(interrupt, true).map_err(|_| refused)
                }
                (Driver::V3 { gic, .. }, CoreInterface::V3 { mpidr }) => {
                    gic.set_trigger(interrupt, None, Trigger::Edge).map_err(|_| refused)?;
                    gic.set_interrupt_priority(interrupt, None, USUAL).map_err(|_| refused)?;
                    gic.distributor().set_routing(interrupt, Some(*mpidr)).map_err(|_| refused)?;
                    gic.enable_interrupt(interrupt, None, true).map_err(|_| refused)
                }
                _ => Err(refused),
            }
        }
    }

    /// GICD_ITARGETSR, one byte for each interrupt (IHI 0048 4.3.12).
    fn target_register(distributor: u64, id: u32) -> Option<UniqueMmioPointer<'static, ReadPureWrite<u8>>> {
        byte_register(distributor, offset_of!(Gicd, itargetsr), id)
    }

    /// GICD_IPRIORITYR, one byte for each interrupt (IHI 0048 4.3.11). (The driver's own setter would write the bytes of
    /// three neighbours too.)
    fn priority_register(distributor: u64, id: u32) -> Option<UniqueMmioPointer<'static, ReadPureWrite<u8>>> {
        byte_register(distributor, offset_of!(Gicd, ipriorityr), id)
    }

    fn byte_register(
        distributor: u64,
        block: usize,
        id: u32,
    ) -> Option<UniqueMmioPointer<'static, ReadPureWrite<u8>>> {
        const INTERRUPTS: u32 = 1020;
        if id >= INTERRUPTS {
            return None;
        }
        let address = distributor as usize + block + id as usize;
        let register = NonNull::new(core::ptr::with_exposed_provenance_mut(address))?;
        // SAFETY: inside the distributor's registers, which `Gic::new`'s caller vouched for; the driver that holds the
        // rest of them, and this function's callers the lock, never touches this block.
        Some(unsafe { UniqueMmioPointer::new(register) })
    }

    /// A core's own half of the controller.
    pub enum CoreInterface {
        /// GICv2: its bank of GICC, and its bit in the distributor.
        V2 {
            /// GICC.
            registers: UniqueMmioPointer<'static, Gicc>,
            /// Its bit in GICD_ITARGETSR.
            target: u8,
        },
        /// GICv3: system registers.
        V3 {
            /// Its affinity.
            mpidr: u64,
        },
    }

    /// A core, as [`Gic::wake`] names it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Target {
        /// GICv2: its bit.
        V2(u8),
        /// GICv3: its affinity.
        V3(u64),
    }

    impl CoreInterface {
        /// This core's name for others.
        pub fn target(&self) -> Target {
            match self {
                Self::V2 { target, .. } => Target::V2(*target),
                Self::V3 { mpidr } => Target::V3(*mpidr),
            }
        }

        /// Lets only an abort through, from now on.
        pub fn restrict(&mut self) {
            self.mask_below(URGENT_ONLY);
        }

        /// Lets all interrupts through, from now on.
        pub fn open(&mut self) {
            self.mask_below(NO_PRIORITY_MASK);
        }

        fn mask_below(&mut self, priority: u8) {
            match self {
                Self::V2 { registers, .. } => {
                    let mut registers = registers.reborrow();
                    field!(registers, pmr).write(priority.into());
                }
                Self::V3 { .. } => GicCpuInterface::set_priority_mask(priority),
            }
        }

        /// Acknowledges one pending interrupt and ends it: its number, or `None` when none is pending. A
        /// level-triggered one, as the timer's, comes back unless its cause was removed before.
        pub fn take(&mut self) -> Option<u32> {
            match self {
                Self::V2 { registers, .. } => {
                    let mut registers = registers.reborrow();
                    let acknowledged = field!(registers, iar).read();
                    let id = acknowledged & 0x3ff;
                    if id >= IntId::SPECIAL_SECURE.raw_value() {
                        return None;
                    }
                    field!(registers, eoir).write(acknowledged);
                    Some(id)
                }
                Self::V3 { .. } => {
                    let id = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)?;
                    GicCpuInterface::end_interrupt(id, InterruptGroup::Group1);
                    Some(id.raw_value())
                }
            }
        }
    }

    /// The GICv2m frame: a store of an interrupt's number to [`MessageFrame::address`] raises it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct MessageFrame {
        /// The doorbell for PCI functions, MSI_SETSPI.
        pub address: u64,
        /// The first interrupt that it raises.
        pub first: u32,
        /// How many it raises.
        pub count: u32,
    }

    #[repr(C)]
    struct MessageRegisters {
        _reserved_0: [u32; 2],
        /// MSI_TYPER: first SPI in bits 25:16, number of SPIs in bits 9:0.
        typer: ReadPure<u32>,
        _reserved_1: [u32; 13],
        /// MSI_SETSPI_NS.
        setspi: u32,
    }

    const _: () = assert!(offset_of!(MessageRegisters, typer) == 0x08);
    const _: () = assert!(offset_of!(MessageRegisters, setspi) == 0x40);

    impl MessageFrame {
        /// The controller's frame, if it has one.
        ///
        /// # Safety
        /// `layout` must be the machine's, with its registers mapped as such.
        pub unsafe fn find(layout: &Layout) -> Option<Self> {
            let Layout::V2 { message_frame: Some(frame), .. } = layout else {
                return None;
            };
            let registers = registers::<MessageRegisters>(frame).ok()?;
            // SAFETY: the caller's promise; reading MSI_TYPER has no effect.
            let registers = unsafe { UniqueMmioPointer::new(registers) };
            let typer = field_shared!(registers, typer).read();
            Some(Self {
                address: frame.start + offset_of!(MessageRegisters, setspi) as u64,
                first: typer >> 16 & 0x3ff,
                count: typer & 0x3ff,
            })
        }
    }
}
