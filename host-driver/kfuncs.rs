// SPDX-License-Identifier: GPL-2.0
//! What the kfuncs hand over to, under a runqueue's lock: each finds the host and asks the mechanism.
//!
//! The runqueue's lock is held with interrupts off, which is a read-side section of RCU: sessions stay as long as that.

use core::sync::atomic::Ordering;

use neap_mechanism::cpu::Runs;
use neap_mechanism::events::Custody;
use neap_mechanism::Taken;

use crate::host::{host, Host};

/// As `struct neap_member` of `shim.h`.
#[repr(C)]
pub(crate) struct Member {
    pid: i32,
    cpu: i32,
    slice_ns: u64,
    task: u32,
    flags: u32,
}

/// As `enum neap_member_flags` of `shim.h`.
const PREEMPTS: u32 = 1;
const KEEPS: u32 = 2;
const IDLES: u32 = 4;

/// As `enum neap_take` of `shim.h`.
const NOTHING: i32 = 0;
const KEEP: i32 = -1;
const LEAVE: i32 = -2;

/// For as long as the task likes: only a slice of all ones lets the tick stop.
const FOR_EVER: u64 = u64::MAX;

fn cpu_of(cpu: i32) -> u16 {
    u16::try_from(cpu).unwrap_or(u16::MAX)
}

/// The calling CPU.
fn here() -> u16 {
    kernel::cpu::CpuId::current().as_u32() as u16
}

/// A task asks for the class.
#[no_mangle]
extern "C" fn neap_rs_enable(pid: u32, cpu: i32, first_cpu: u32, cpu_count: u32) -> i32 {
    let affinity = (first_cpu as u16, cpu_count as u16);
    let task = host().and_then(|host| host.mechanism.enable(pid, affinity, cpu_of(cpu)));
    task.map_or(-(kernel::bindings::ENOSPC as i32), |task| task as i32)
}

/// A task leaves the class.
#[no_mangle]
extern "C" fn neap_rs_disable(task: u32, cpu: i32, dead: bool) {
    if let Some(host) = host() {
        host.mechanism.disable(host, task, dead, cpu_of(cpu));
    }
}

/// A task can run: 0 the agent keeps it, 1 the host queues it, 2 the class is to be left.
#[no_mangle]
extern "C" fn neap_rs_enqueue(task: u32, pid: u32, cpu: i32) -> u32 {
    let Some(host) = host() else { return 1 };
    let custody = host.mechanism.enqueue(host, task, pid, cpu_of(cpu));
    match custody {
        Custody::Agent => 0,
        Custody::Host if leaves(host) => 2,
        Custody::Host => 1,
    }
}

fn leaves(host: &Host) -> bool {
    host.cause.load(Ordering::Relaxed) != 0
}

/// A task is taken off its queue.
#[no_mangle]
extern "C" fn neap_rs_dequeue(task: u32) {
    if let Some(host) = host() {
        host.mechanism.dequeue(task);
    }
}

/// A task gives up its CPU.
#[no_mangle]
extern "C" fn neap_rs_yields(task: u32) {
    if let Some(host) = host() {
        host.mechanism.yields(task);
    }
}

/// A task is about to leave its CPU.
#[no_mangle]
extern "C" fn neap_rs_stopping(cpu: i32) {
    if let Some(host) = host() {
        host.mechanism.stopping(host, cpu_of(cpu));
    }
}

/// A task can run no more.
#[no_mangle]
extern "C" fn neap_rs_quiescent(task: u32, cpu: i32, sleeps: bool) {
    if let Some(host) = host() {
        host.mechanism.quiescent(host, task, cpu_of(cpu), sleeps);
    }
}

/// A task begins to run.
#[no_mangle]
extern "C" fn neap_rs_running(task: u32, cpu: i32) {
    if let Some(host) = host() {
        host.mechanism.running(host, task, cpu_of(cpu));
    }
}

/// The CPUs that a task may use have changed.
#[no_mangle]
extern "C" fn neap_rs_set_affinity(task: u32, cpu: i32, first_cpu: u32, cpu_count: u32) {
    if let Some(host) = host() {
        host.mechanism.set_affinity(host, task, (first_cpu as u16, cpu_count as u16), cpu_of(cpu));
    }
}

/// A CPU has switched.
#[no_mangle]
extern "C" fn neap_rs_switch(cpu: i32, to: u32) {
    if let Some(host) = host() {
        let to = match to {
            0 => Runs::Idle,
            1 => Runs::Ours,
            _ => Runs::Other,
        };
        host.mechanism.switch(host, cpu_of(cpu), to);
    }
}

/// A CPU has come, or goes.
#[no_mangle]
extern "C" fn neap_rs_online(cpu: i32, online: bool) {
    let Some(host) = host() else { return };
    host.mechanism.set_online(cpu_of(cpu), online);
    // No runqueue's lock is held here.
    let _off = kernel::interrupt::local_interrupt_disable();
    if online {
        host.mechanism.announce(host, cpu_of(cpu));
    } else {
        host.mechanism.withhold(host, cpu_of(cpu));
    }
}

/// What a CPU's slot holds for it.
#[no_mangle]
extern "C" fn neap_rs_take(cpu: i32) -> i32 {
    let Some(host) = host() else { return NOTHING };
    match host.mechanism.take(host, cpu_of(cpu)) {
        Taken::Nothing if leaves(host) => LEAVE,
        Taken::Nothing => NOTHING,
        Taken::Keep => KEEP,
        Taken::Members(count) | Taken::Rescue(count) => count as i32,
    }
}

/// A member of what a CPU took.
///
/// # Safety
/// `out` is valid for a write.
#[no_mangle]
unsafe extern "C" fn neap_rs_member(cpu: i32, member: u32, out: *mut Member) {
    let found = host().and_then(|host| found(host, cpu_of(cpu), member));
    let nobody = Member { pid: 0, cpu: -1, slice_ns: 0, task: 0, flags: 0 };
    // SAFETY: By this function's requirement.
    unsafe { out.write(found.unwrap_or(nobody)) };
}

fn found(host: &Host, cpu: u16, member: u32) -> Option<Member> {
    if let Some((pid, task)) = host.mechanism.rescued(cpu, member) {
        return Some(Member { pid: pid as i32, cpu: -1, slice_ns: 0, task: task.wrapping_add(1), flags: 0 });
    }
    let member = host.mechanism.member(cpu, member)?;
    let slice_ns = match member.slice_ns {
        0 if member.tickless => FOR_EVER,
        0 => host.mechanism.turn_ns(),
        slice_ns => slice_ns,
    };
    let flag = |is: bool, flag: u32| if is { flag } else { 0 };
    let flags = flag(member.preempts, PREEMPTS) | flag(member.keeps, KEEPS) | flag(member.idles, IDLES);
    let task = member.task.wrapping_add(1);
    Some(Member { pid: member.pid as i32, cpu: member.cpu.into(), slice_ns, task, flags })
}

/// A member can't be put in place.
#[no_mangle]
extern "C" fn neap_rs_bar(cpu: i32, member: u32, gone: bool) {
    if let Some(host) = host() {
        host.mechanism.bar(cpu_of(cpu), member, gone);
    }
}

/// Commits what was put in place.
#[no_mangle]
extern "C" fn neap_rs_settle(cpu: i32) -> bool {
    host().is_some_and(|host| host.mechanism.settle(host, cpu_of(cpu)))
}

/// Why the class is to be left.
#[no_mangle]
extern "C" fn neap_rs_cause() -> u32 {
    host().map_or(0, |host| host.cause.load(Ordering::Relaxed))
}

/// The scheduler is there, or no more.
#[no_mangle]
extern "C" fn neap_rs_attached(attached: bool) {
    if let Some(host) = host() {
        host.attached.store(attached, Ordering::Release);
    }
}

/// Takes the calling CPU out of the agents' hands: what lies in its slot is refused. With interrupts off.
pub(crate) fn withhold_here() {
    if let Some(host) = host() {
        host.mechanism.withhold(host, here());
    }
}
