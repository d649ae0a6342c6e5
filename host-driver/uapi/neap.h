/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/neapN: one PCI function of an IPU, and so one enclave.
 *
 * Every structure begins with its own size in bytes, as the caller knows it. The driver fills in no more, and what a caller
 * knows that the driver does not is left as it was: either may be the older one. A size below the first version's is EINVAL.
 *
 * mmap: the offset is that in the window. The hello page, logs, epitaphs, the agent's control line and the supervisor's lines can
 * be mapped read-only and are uncached; the image region can be mapped for writing, write-combining. All else is EPERM.
 * When the function goes, so do its mappings: a look at one is SIGBUS from then on.
 *
 * ENODEV: the function is gone, or no IPU has answered yet. ENOTTY: the driver is older and does not know the command.
 */
#ifndef _UAPI_NEAP_H
#define _UAPI_NEAP_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define NEAP_UAPI_VERSION 1

/* How things stand. */
struct neap_info {
	__u32 size;
	__u32 uapi_version;	/* NEAP_UAPI_VERSION */
	__u32 abi;		/* major << 16 | minor, as negotiated; 0 before */
	__u32 enclave;		/* the function's number, from 0 */
	__u32 cpus;		/* host CPUs of the enclave */
	__u32 tasks;		/* task numbers are below this */
	__u32 level;		/* who decides: 0 the IPU, 1 the host's own rule, 2 the kernel's class */
	__u32 agent_state;	/* AgentState of neap-abi; ~0 before any */
	__u32 incarnation;
	__u32 session;
	__u32 link;		/* 1: attached, 0: not */
	__u32 fault;		/* the last fault, 0 for none: see enum neap_fault */
	__u64 window_bytes;
	__u32 vectors;
	__u32 scheduler;	/* 1: the sched_ext program is attached */
};

enum neap_fault {
	NEAP_FAULT_NONE = 0,
	NEAP_FAULT_AGENT_LATE = 1,
	NEAP_FAULT_AGENT_FLOODS = 2,
	NEAP_FAULT_AGENT_POISONED = 3,
	NEAP_FAULT_AGENT_DEAD = 4,
	NEAP_FAULT_LINK_DOWN = 5,
	NEAP_FAULT_HOST_CPU_HOGGED = 6,
};

/*
 * Asks the IPU's supervisor (Manage of neap-abi) and waits for its answer. EBUSY: another request is under way. ECANCELED:
 * the driver had to ask for something itself, and what became of this request is not known.
 */
struct neap_manage {
	__u32 size;
	__u32 command;
	__u32 policy;		/* the first four bytes of its name, little-endian; of the disk's commands the sector */
	__u32 image_bytes;	/* of what lies in the image region; 0 for the bundle's */
	__u32 incarnation;
	__u32 grace_us;
	__u32 trial_us;
	__u32 timeout_ms;	/* ETIMEDOUT after it */
	/* The answer. */
	__u32 reply;		/* Reply of neap-abi */
	__u32 answered;		/* the incarnation that it names */
	__u64 detail;
};

/* Settings that can change while it runs. */
struct neap_settings {
	__u32 size;
	__u32 watchdog_ms;	/* how long an agent may owe a decision; 0 leaves it */
	__u32 policy;		/* for the next attachment; 0 leaves it */
	__u32 attach_anew;	/* 1: attach under another session */
	__u32 kernel_after_ms;	/* how long the host's own rule decides before the kernel's class does; 0 leaves it */
	__u32 reserved;
};

/*
 * What neap_measure measures, on the caller's CPU with interrupts off where it can be. Nothing is written that anybody reads,
 * so it may be measured while an agent decides.
 */
enum neap_measured {
	NEAP_READ_UNCACHED = 0,		/* one 64-bit word of the hello page, uncached */
	NEAP_READ_WRITE_THROUGH = 1,	/* one line of a slot, flushed before */
	NEAP_READ_CACHED = 2,		/* the same line, cached */
	NEAP_WRITE_UNCACHED = 3,	/* one 64-bit word to the register page */
	NEAP_WRITE_COMBINING = 4,	/* one line behind the host's control line, and the drain */
	NEAP_MSIX_SEND = 5,		/* the store to the doorbell */
	NEAP_MSIX_RECEIVE = 6,		/* from the handler's entry to its end */
	NEAP_MSIX_END_TO_END = 7,	/* from the store to the entry of the same CPU's handler */
	NEAP_CLOCK = 8,			/* nothing: what two looks at the clock take, which is in all but the last two */
};

/*
 * Measures the link. samples points to `count` __u64, each in ns. EBUSY: somebody else measures. EOPNOTSUPP: the window or the
 * CPU has no place for it. ETIMEDOUT: an interrupt has not come.
 */
struct neap_measure {
	__u32 size;
	__u32 what;
	__u32 count;		/* 1 to 65536 */
	__u32 taken;		/* how many samples there are */
	__u64 samples;
};

#define NEAP_IOC_INFO		_IOWR('N', 0x40, struct neap_info)
#define NEAP_IOC_MANAGE		_IOWR('N', 0x41, struct neap_manage)
#define NEAP_IOC_SETTINGS	_IOWR('N', 0x42, struct neap_settings)
#define NEAP_IOC_MEASURE	_IOWR('N', 0x43, struct neap_measure)

#endif
