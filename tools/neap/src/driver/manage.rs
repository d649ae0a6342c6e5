//! Managing an enclave's agents through the driver, which alone writes to the manager's line.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use neap_abi::control::policy_id;
use neap_abi::{Manage, Reply};
use neap_host::manager::ManageError;
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};

/// `struct neap_manage` of `host-driver/uapi/neap.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct NeapManage {
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

const _: () = assert!(size_of::<NeapManage>() == 48);

/// `NEAP_IOC_MANAGE`.
const IOC_MANAGE: rustix::ioctl::Opcode = opcode::read_write::<NeapManage>(b'N', 0x41);

/// How long the IPU's supervisor may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked of an enclave's supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Lay out what lies in the window's image region, or the bundle's agent for a policy.
    Load {
        /// Bytes of the image; 0 for the bundle's.
        image_bytes: u32,
        /// The policy.
        policy: &'a str,
    },
    /// Have what is laid out take over, else the bundle's agent for a policy.
    Replace {
        /// How long its trial may last.
        trial: Duration,
        /// The policy.
        policy: &'a str,
    },
    /// End the agent; it is started again.
    Kill {
        /// How long it may take to give its core back.
        grace: Duration,
    },
}

/// Asks it through the device's file, and waits. Returns the agent that runs then.
pub fn manage(node: &Path, request: Request<'_>) -> Result<u32> {
    let what = name(request);
    let device = OpenOptions::new().read(true).write(true).open(node);
    let device = device.with_context(|| format!("{what}: {} can't be opened", node.display()))?;
    let mut asked = of(request);
    // SAFETY: the opcode names the structure and its size, and the driver writes no more than `size` says.
    let done = unsafe { ioctl(&device, Updater::<IOC_MANAGE, NeapManage>::new(&mut asked)) };
    match done {
        Ok(()) => {}
        Err(Errno::TIMEDOUT) => {
            return Err(ManageError::Silent { what, waited_ms: PATIENCE.as_millis() }.into());
        }
        Err(Errno::NODEV) => bail!("{what}: {} has no IPU any more", node.display()),
        Err(error) => return Err(error).with_context(|| format!("{what} through {}", node.display())),
    }
    match Reply::ALL.get(asked.reply as usize) {
        Some(Reply::Done) => Ok(asked.answered),
        Some(&reply) => Err(ManageError::Answered { what, reply, detail: asked.detail }.into()),
        None => bail!("{what}: the supervisor's answer {} is of another release", asked.reply),
    }
}

const fn name(request: Request<'_>) -> &'static str {
    match request {
        Request::Load { .. } => "loading an agent",
        Request::Replace { .. } => "replacing the agent",
        Request::Kill { .. } => "killing the agent",
    }
}

fn of(request: Request<'_>) -> NeapManage {
    let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    let asked = NeapManage {
        size: size_of::<NeapManage>() as u32,
        timeout_ms: PATIENCE.as_millis() as u32,
        ..NeapManage::default()
    };
    match request {
        Request::Load { image_bytes, policy } => {
            NeapManage { command: Manage::Load as u32, image_bytes, policy: policy_id(policy), ..asked }
        }
        Request::Replace { trial, policy } => NeapManage {
            command: Manage::Replace as u32,
            trial_us: us(trial),
            policy: policy_id(policy),
            ..asked
        },
        Request::Kill { grace } => NeapManage { command: Manage::Kill as u32, grace_us: us(grace), ..asked },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_header_has_it() {
        let asked = of(Request::Kill { grace: Duration::from_millis(2) });
        assert_eq!((asked.size, asked.command, asked.grace_us, asked.timeout_ms), (48, 3, 2000, 60_000));
        let asked = of(Request::Replace { trial: Duration::from_secs(1), policy: "fifo" });
        assert_eq!(
            (asked.command, asked.trial_us, asked.policy),
            (2, 1_000_000, u32::from_le_bytes(*b"fifo"))
        );
        assert_eq!(IOC_MANAGE, 0xc030_4e41);
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let request = Request::Load { image_bytes: 0, policy: "fifo" };
        let error = manage(Path::new("/dev/neap77"), request).unwrap_err().to_string();
        assert!(error.contains("loading an agent: /dev/neap77"), "{error}");
    }
}
