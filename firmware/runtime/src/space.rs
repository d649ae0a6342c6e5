//! An agent, laid out: its pages, its address space, and what it is bound to. Everything that is mapped for an agent is
//! mapped here.

use alloc::vec::Vec;
use core::ops::Range;

use neap_abi::grant::{self, space};
use neap_abi::image::{PAGE_BYTES, Segment, rights};
use neap_abi::supervisor::{Binding, BindingKind, Identity};
use neap_abi::{Grant, ImageHeader};
use neap_hal::cpu::cache;
use neap_hal::cpu::mmu::{self, Access, Mapped, PlanError, Root, Space, TABLES_PER_SPACE};

use crate::pages::{Pages, Run};
use crate::window::Resume;

/// Where an enclave's shared parts lie, in physical addresses, whole pages each.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The message ring.
    pub messages: Range<u64>,
    /// The decision slots.
    pub slots: Range<u64>,
    /// The agent's control line.
    pub control: Range<u64>,
    /// The doorbell page: registers.
    pub doorbell: Range<u64>,
    /// The DMA channel's page. On this board it is memory that the engine looks at, and mapped as such.
    pub dma: Range<u64>,
    /// Bytes that DMA may move.
    pub buffer: Range<u64>,
}

/// An image, in pages of its own: it stays as it is while agents are made of it.
///
/// # Invariants
///
/// The run has `length` bytes at least, and is the image's alone, mapped for the runtime only.
#[derive(Debug)]
pub struct Image {
    run: Run,
    length: usize,
}

impl Image {
    /// An image of `length` bytes in `run`, as far as that goes; what stands there is whatever was left.
    pub fn new(run: Run, length: usize) -> Self {
        let room = (run.range().end - run.range().start) as usize;
        Self { run, length: length.min(room) }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: by the invariant; memory of the machine's is always some bytes.
        unsafe { core::slice::from_raw_parts(memory(self.run.range().start), self.length) }
    }

    /// Its bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and nobody else has the image.
        unsafe { core::slice::from_raw_parts_mut(memory(self.run.range().start), self.length) }
    }

    /// Gives its pages back.
    pub fn give_back(self, pages: &mut Pages) {
        pages.give_back(self.run);
    }
}

/// Why an agent can't be laid out.
#[derive(Debug)]
pub enum LayOutError {
    /// Too few pages are free.
    NoMemory,
    /// The tables.
    Map(PlanError),
}

/// An agent, laid out in pages of its own. [`LaidOut::give_back`] is its only end.
#[derive(Debug)]
pub struct LaidOut {
    /// Its image's header.
    pub header: ImageHeader,
    /// Its address space.
    pub space: Space,
    image: Image,
    run: Run,
    parts: Vec<(BindingKind, Mapped)>,
    segments: Range<usize>,
    grant: u64,
    /// Whether nobody has run in it since it was made as its image has it.
    fresh: bool,
}

/// Memory of the runtime's by its physical address.
fn memory(address: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

impl LaidOut {
    /// Lays `image`, whose checked header is `header`, out for `cores` cores beside the runtime's `map`, bound to `shared`.
    ///
    /// # Errors
    /// Too little memory, or what can't be mapped; the image goes back.
    pub fn new(
        image: Image,
        header: ImageHeader,
        shared: &Shared,
        cores: u16,
        map: Root,
        asid: u8,
        pages: &mut Pages,
    ) -> Result<Self, (LayOutError, Image)> {
        let tables_bytes = TABLES_PER_SPACE as u64 * PAGE_BYTES;
        let all_bytes = tables_bytes + PAGE_BYTES + header.memory_bytes(cores);
        let Some(run) = pages.take((all_bytes / PAGE_BYTES) as u32) else {
            return Err((LayOutError::NoMemory, image));
        };
        let base = run.range().start;
        let grant = base + tables_bytes;
        let mut next = grant + PAGE_BYTES;
        let mut parts = Vec::new();
        for segment in header.segments() {
            let address = space::IMAGE + u64::from(segment.address);
            let bytes = segment.mapped_bytes();
            let mapped =
                Mapped { address: address..address + bytes, physical: next, access: access(segment) };
            parts.push((BindingKind::Memory, mapped));
            next += bytes;
        }
        let segments = 0..parts.len();
        for core in 0..u64::from(cores) {
            let end = space::STACK_END - core * space::STACK_SPACING;
            let address = end - u64::from(header.stack_bytes)..end;
            parts.push((BindingKind::Stack, Mapped { address, physical: next, access: Access::Write }));
            next += u64::from(header.stack_bytes);
        }
        let grant_page = space::GRANT..space::GRANT + PAGE_BYTES;
        parts.push((
            BindingKind::Grant,
            Mapped { address: grant_page, physical: grant, access: Access::Read },
        ));
        for (kind, address, range, access) in [
            (BindingKind::Messages, space::MESSAGES, &shared.messages, Access::Read),
            (BindingKind::Slots, space::SLOTS, &shared.slots, Access::Write),
            (BindingKind::Control, space::CONTROL, &shared.control, Access::Write),
            (BindingKind::Doorbell, space::DOORBELL, &shared.doorbell, Access::Registers),
            (BindingKind::Dma, space::DMA, &shared.dma, Access::Write),
            (BindingKind::Buffer, space::BUFFER, &shared.buffer, Access::Write),
        ] {
            let bytes = range.end - range.start;
            parts.push((kind, Mapped { address: address..address + bytes, physical: range.start, access }));
        }
        let mapped: Vec<Mapped> = parts.iter().map(|(_, mapped)| mapped.clone()).collect();
        // SAFETY: the tables are the run's first pages, which nobody else has; the number is the place's, whose last space
        // was forgotten when its pages went back.
        let space = unsafe { mmu::build_space(map, asid, base..grant, &mapped) };
        match space {
            Ok(space) => Ok(Self { header, space, image, run, parts, segments, grant, fresh: false }),
            Err(error) => {
                pages.give_back(run);
                Err((LayOutError::Map(error), image))
            }
        }
    }

    /// Makes it as fresh as its image: an agent that runs in it now is the first.
    ///
    /// Called while no core runs in the space.
    pub fn refresh(&mut self) {
        if core::mem::replace(&mut self.fresh, true) {
            return;
        }
        let image = self.image.bytes();
        for (segment, (_, mapped)) in
            self.header.segments().iter().zip(self.parts.get(self.segments.clone()).unwrap_or_default())
        {
            let start = segment.file_offset as usize;
            let bytes = image.get(start..start + segment.file_bytes as usize).unwrap_or_default();
            let whole = segment.mapped_bytes() as usize;
            // SAFETY: the segment's pages are the run's, `whole` bytes of them, and no core runs in the space; the header's
            // check has the file's bytes within the memory's.
            unsafe {
                let to = memory(mapped.physical);
                core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
                core::ptr::write_bytes(to.add(bytes.len()), 0, whole - bytes.len());
            }
            if mapped.access == Access::Execute {
                cache::publish_instructions(mapped.physical..mapped.physical + bytes.len() as u64);
            }
        }
        for (_, stack) in self.parts.iter().filter(|(kind, _)| *kind == BindingKind::Stack) {
            // SAFETY: as above.
            unsafe {
                core::ptr::write_bytes(memory(stack.physical), 0, self.header.stack_bytes as usize);
            }
        }
    }

    /// Writes the grant page, with nothing asked for: an agent is about to run.
    pub fn set_grant(&mut self, grant: &Grant) {
        self.fresh = false;
        let page = memory(self.grant).cast::<u64>();
        let words = grant.to_words();
        for word in 0..PAGE_BYTES as usize / 8 {
            let value = words.get(word).copied().unwrap_or(0);
            // SAFETY: the grant page is the run's; the agent that reads it does not run yet.
            unsafe { page.add(word).write_volatile(value) };
        }
    }

    /// Its grant page, for the core that enters it.
    #[must_use]
    pub fn grant_page(&self) -> GrantPage {
        GrantPage(self.grant)
    }

    /// The word by which the agent is asked for its core. It is the agent's to read, from another core.
    pub fn revoke(&self) -> &core::sync::atomic::AtomicU64 {
        let word =
            memory(self.grant).cast::<core::sync::atomic::AtomicU64>().wrapping_add(grant::REVOKE_WORD);
        // SAFETY: the grant page is the run's, aligned, and mapped for as long as `self` is; this word is reached as an
        // atomic by everybody.
        unsafe { &*word }
    }

    /// Where it starts.
    #[must_use]
    pub fn entry(&self) -> u64 {
        space::IMAGE + u64::from(self.header.entry)
    }

    /// Its pages, and those that hold its image.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.run.count() + self.image.run.count()
    }

    /// Its own memory, as the agent has it, and where it lies: what a text that it names may be copied from.
    #[must_use]
    pub fn own_memory(&self) -> OwnMemory {
        let mut parts = [const { (0..0, 0) }; OWN_PARTS];
        let own =
            self.parts.iter().filter(|(kind, _)| matches!(kind, BindingKind::Memory | BindingKind::Stack));
        for (place, (_, mapped)) in parts.iter_mut().zip(own) {
            *place = (mapped.address.clone(), mapped.physical);
        }
        OwnMemory(parts)
    }

    /// Which agent it is, as the agent `incarnation`; 0 if it has not run.
    #[must_use]
    pub fn identity(&self, incarnation: u32, on_trial: bool) -> Identity {
        Identity {
            name: self.header.name,
            image_crc: self.header.crc,
            on_trial,
            incarnation,
            version: self.header.version.to_bits(),
            policy: self.header.policy,
        }
    }

    /// What the agent is bound to.
    pub fn bindings(&self) -> impl Iterator<Item = Binding> + '_ {
        self.parts.iter().map(|(kind, mapped)| Binding {
            kind: *kind,
            rights: match mapped.access {
                Access::Execute => (rights::READ | rights::EXECUTE) as u8,
                Access::Read => rights::READ as u8,
                Access::Write | Access::Registers => (rights::READ | rights::WRITE) as u8,
            },
            device: mapped.access == Access::Registers,
            address: mapped.address.start,
            physical: mapped.physical,
            bytes: mapped.address.end - mapped.address.start,
        })
    }

    /// Gives all its pages back. Called while no core runs in the space.
    pub fn give_back(self, pages: &mut Pages) {
        self.space.forget();
        self.image.give_back(pages);
        pages.give_back(self.run);
    }
}

/// A grant page.
///
/// # Invariants
///
/// The page of an agent that is laid out, and stays so until its core has told its end.
#[derive(Debug, Clone, Copy)]
pub struct GrantPage(u64);

impl GrantPage {
    /// Says where the agent, which does not run yet, is to go on.
    pub fn set_resume(self, resume: Resume) {
        let word = memory(self.0).cast::<u64>().wrapping_add(grant::RESUME_WORD);
        // SAFETY: by the invariant a mapped page of the agent's pages, and the agent does not run.
        unsafe { word.write_volatile(u64::from(resume.taken) | u64::from(resume.resyncs) << 32) };
    }
}

fn access(segment: &Segment) -> Access {
    // The header's check has let nothing through that is both.
    if segment.rights & rights::EXECUTE != 0 {
        Access::Execute
    } else if segment.rights & rights::WRITE != 0 {
        Access::Write
    } else {
        Access::Read
    }
}

/// Segments and stacks.
const OWN_PARTS: usize = neap_abi::image::SEGMENTS_MAX + neap_abi::image::CORES_MAX as usize;

/// An agent's own memory, for who has to read what it names.
#[derive(Debug, Clone)]
pub struct OwnMemory([(Range<u64>, u64); OWN_PARTS]);

impl OwnMemory {
    /// Copies what the agent alleges to have at `address`, at most as much as `to` holds; nothing where that is not its own
    /// memory. Returns how much.
    pub fn copy(&self, address: u64, bytes: u64, to: &mut [u8]) -> usize {
        let length = bytes.min(to.len() as u64);
        let Some(end) = address.checked_add(length) else { return 0 };
        let part = self.0.iter().find(|(range, _)| range.start <= address && end <= range.end);
        let Some((range, physical)) = part else { return 0 };
        let from = memory(physical + (address - range.start));
        for (at, place) in to.iter_mut().take(length as usize).enumerate() {
            // SAFETY: inside the agent's own pages, as checked; bytes, whatever they are.
            *place = unsafe { from.add(at).read_volatile() };
        }
        length as usize
    }
}
