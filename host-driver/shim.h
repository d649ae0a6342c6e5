/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What crosses between the module's Rust and its C. C has only what Rust cannot name: kfuncs with their BTF, the hook
 * that a BPF program attaches to, tracepoints, and the stopped machine.
 */
#ifndef NEAP_SHIM_H
#define NEAP_SHIM_H

#include <linux/mm_types.h>
#include <linux/types.h>

/* What a CPU is to do about a look at its slot, as neap_take() returns it: a number of members, or one of these. */
enum neap_take {
	NEAP_NOTHING = 0,
	/* Let the task that runs go on, for the slice of member 0. */
	NEAP_KEEP = -1,
	/* Leave the extensible class: neap_cause() says why. */
	NEAP_LEAVE = -2,
};

/* A task that is to be put in place. */
struct neap_member {
	/* Its process number; 0 if there is none. */
	__s32 pid;
	/* The CPU, or -1 for the host's own queue. */
	__s32 cpu;
	/* How long it may run, in ns; all ones for as long as it likes. */
	__u64 slice_ns;
	/* Its number in the driver's table, + 1: a process number may be another's by now. */
	__u32 task;
	/* See enum neap_member_flags. */
	__u32 flags;
};

enum neap_member_flags {
	/* It may take the CPU from what runs there. */
	NEAP_PREEMPTS = 1,
	/* It runs there already and goes on, for its new slice. */
	NEAP_KEEPS = 2,
	/* There is no task: the CPU is to be left idle. */
	NEAP_IDLES = 4,
};

/* Rust, for C. */
s32 neap_rs_enable(u32 pid, s32 cpu, u32 first_cpu, u32 cpu_count);
void neap_rs_disable(u32 task, s32 cpu, bool dead);
u32 neap_rs_enqueue(u32 task, u32 pid, s32 cpu);
void neap_rs_dequeue(u32 task);
void neap_rs_yields(u32 task);
void neap_rs_stopping(s32 cpu);
void neap_rs_quiescent(u32 task, s32 cpu, bool sleeps);
void neap_rs_running(u32 task, s32 cpu);
void neap_rs_set_affinity(u32 task, s32 cpu, u32 first_cpu, u32 cpu_count);
void neap_rs_switch(s32 cpu, u32 to);
void neap_rs_online(s32 cpu, bool online);
s32 neap_rs_take(s32 cpu);
void neap_rs_member(s32 cpu, u32 member, struct neap_member *out);
void neap_rs_bar(s32 cpu, u32 member, bool gone);
bool neap_rs_settle(s32 cpu);
u32 neap_rs_cause(void);
void neap_rs_attached(bool attached);
int neap_rs_stopped(void *arg);
void neap_rs_beat(void);

/* C, for Rust. */
int neap_shim_init(void);
void neap_shim_exit(void);
void neap_kick_hook(s32 cpu, u32 preempt);
int neap_stop_machine(void *arg);
void neap_sort_arrivals(void *arrivals, size_t count);
void *neap_lend(u32 pid);
void neap_take_back(void *task);
const char *neap_policy(void);
bool neap_has_cpu(u32 function, u32 cpu);
bool neap_cpu_online(u32 cpu);
pgprot_t neap_pgprot_noncached(pgprot_t protection);
void neap_migrate_disable(void);
void neap_migrate_enable(void);
void neap_trace_message(u32 cpu, u32 kind, u32 task, u32 stamp, u32 txn, u32 outcome, u32 flags);
void neap_trace_verdict(u32 cpu, u32 txn, u32 task, u32 stamp, u32 operation, u32 flags, u32 outcome);

#endif
