// SPDX-License-Identifier: GPL-2.0
/*
 * The sched_ext program: hands the scheduling events of tasks that ask for SCHED_EXT to the driver's kfuncs, and puts in
 * place what the driver took from a CPU's decision slot. It decides nothing. While no agent decides, tasks go into one
 * queue, first come, first served.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "GPL";

/* As in shim.h. */
#define KEEP -1
#define LEAVE -2
#define MEMBERS_MAX 16

/*
 * The host's own queue. Not the global one: that is looked at before dispatch() is asked, and what was rescued from an agent
 * would wait behind it for ever.
 */
#define HOST_DSQ 1

struct neap_member {
	s32 pid;
	s32 cpu;
	u64 slice_ns;
	u32 task;
	u32 flags;
};

#define PREEMPTS 1
#define KEEPS 2
#define IDLES 4

/* Custody, as neap_enqueue() returns it. */
#define AGENT 0

/* What neap_switch() is told. */
#define IDLE 0
#define OURS 1
#define OTHER 2

extern s32 neap_enable(struct task_struct *p) __ksym;
extern void neap_disable(u32 task, s32 cpu, bool dead) __ksym;
extern u32 neap_enqueue(u32 task, u32 pid, s32 cpu) __ksym;
extern void neap_dequeue(u32 task) __ksym;
extern void neap_yields(u32 task) __ksym;
extern void neap_stopping(s32 cpu) __ksym;
extern void neap_quiescent(u32 task, s32 cpu, bool sleeps) __ksym;
extern void neap_running(u32 task, s32 cpu) __ksym;
extern void neap_set_affinity(struct task_struct *p, u32 task, s32 cpu) __ksym;
extern void neap_switch(s32 cpu, u32 to) __ksym;
extern void neap_online(s32 cpu, bool online) __ksym;
extern s32 neap_take(s32 cpu) __ksym;
extern void neap_member(s32 cpu, u32 member, struct neap_member *out) __ksym;
extern void neap_bar(s32 cpu, u32 member, bool gone) __ksym;
extern bool neap_settle(s32 cpu) __ksym;
extern u32 neap_cause(void) __ksym;
extern void neap_attached(bool attached) __ksym;

/* libbpf strips the last "___" and what follows from a name, so one more is needed. */
extern bool scx_bpf_dsq_insert___v2___k(struct task_struct *p, u64 dsq_id, u64 slice, u64 enq_flags) __ksym;
extern bool scx_bpf_dsq_move_to_local___v2___k(u64 dsq_id, u64 enq_flags) __ksym;

/* A task's number in the driver's table, + 1. */
struct numbered {
	u32 task;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct numbered);
} tasks SEC(".maps");

/* Why the scheduler ended, for the loader. */
struct ended {
	s32 kind;
	s64 exit_code;
	char reason[128];
	char msg[1024];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct ended);
} neap_exit SEC(".maps");

/* Members that could not be put in place, and places that were taken back: for those who look. */
u64 nr_barred, nr_cancelled;

static u32 number_of(struct task_struct *p)
{
	struct numbered *entry = bpf_task_storage_get(&tasks, p, 0, 0);

	return entry ? entry->task : 0;
}

/* As enum neap_fault of the uAPI. */
static const char late[] = "agent_late", floods[] = "agent_floods", poisoned[] = "agent_poisoned", dead[] = "agent_dead",
		  down[] = "link_down", other[] = "other";

static void leave(void)
{
	static char text[] = "neap: %s: tasks go back to the kernel's class";
	u32 cause = neap_cause();
	const char *name = cause == 1 ? late : cause == 2 ? floods : cause == 3 ? poisoned : cause == 4 ? dead :
			   cause == 5 ? down : other;
	unsigned long long data[1] = { (unsigned long long)name };

	scx_bpf_exit_bstr(cause, text, data, sizeof(data));
}

/* Puts a task into the host's own queue, and has a CPU look at it. */
static void queue(struct task_struct *p, u64 enq_flags)
{
	s32 cpu;

	scx_bpf_dsq_insert___v2___k(p, HOST_DSQ, SCX_SLICE_DFL, enq_flags);
	cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

SEC("struct_ops/neap_select_cpu")
s32 BPF_PROG(neap_op_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	/* Where it wakes does not matter: where it runs is decided. */
	return prev_cpu;
}

SEC("struct_ops/neap_enqueue")
void BPF_PROG(neap_op_enqueue, struct task_struct *p, u64 enq_flags)
{
	u32 task = number_of(p), custody;

	if (!task) {
		/* The table is full: it is scheduled all the same. */
		queue(p, enq_flags);
		return;
	}
	custody = neap_enqueue(task - 1, p->pid, scx_bpf_task_cpu(p));
	if (custody == AGENT)
		return;
	queue(p, enq_flags);
	if (custody == 2)
		leave();
}

SEC("struct_ops/neap_dequeue")
void BPF_PROG(neap_op_dequeue, struct task_struct *p, u64 deq_flags)
{
	u32 task = number_of(p);

	/* Without flags it has been put in place; core scheduling runs it early, which running() tells. */
	if (task && (deq_flags & SCX_DEQ_SCHED_CHANGE))
		neap_dequeue(task - 1);
}

/* A member's task, to be released. Its process number may be another's by now. */
static __always_inline struct task_struct *task_of(const struct neap_member *member)
{
	struct task_struct *p = member->pid ? bpf_task_from_pid(member->pid) : NULL;

	if (p && number_of(p) != member->task) {
		bpf_task_release(p);
		p = NULL;
	}
	return p;
}

/* What was committed together with places: what runs goes on, and CPUs are left idle. */
static void carry_out_rest(s32 cpu, s32 count)
{
	struct neap_member member = {};
	struct task_struct *p;
	u32 i;

	bpf_for(i, 0, MEMBERS_MAX) {
		if (i >= count)
			break;
		neap_member(cpu, i, &member);
		if ((member.flags & IDLES) && member.cpu != cpu)
			scx_bpf_kick_cpu(member.cpu, SCX_KICK_PREEMPT);
		if (!(member.flags & KEEPS))
			continue;
		p = task_of(&member);
		if (p) {
			scx_bpf_task_set_slice(p, member.slice_ns);
			bpf_task_release(p);
		}
	}
}

/* Puts in place what a CPU took from its slot. False if it has nothing to run by it. */
static bool carry_out(s32 cpu, struct task_struct *prev)
{
	struct neap_member member = {};
	struct task_struct *p;
	u32 i, placed = 0;
	bool here = false;
	s32 count;

	count = neap_take(cpu);
	if (!count)
		return false;
	if (count == LEAVE) {
		leave();
		return false;
	}
	if (count == KEEP) {
		neap_member(cpu, 0, &member);
		/* One that exits may have been moved without a word. */
		return prev && number_of(prev) == member.task && scx_bpf_task_set_slice(prev, member.slice_ns);
	}
	/*
	 * First into place, then the verdict: a place holds only while its task has not been off its queue since, and a verdict
	 * only while its stamp has not moved, so that whatever comes in between makes one of the two void.
	 */
	bpf_for(i, 0, MEMBERS_MAX) {
		if (i >= count)
			break;
		neap_member(cpu, i, &member);
		if (member.flags & (KEEPS | IDLES)) {
			here |= member.flags & KEEPS && member.cpu == cpu;
			continue;
		}
		p = task_of(&member);
		if (!p) {
			neap_bar(cpu, i, true);
			continue;
		}
		if (member.cpu < 0) {
			/* Another CPU may be the one that may run it. */
			queue(p, 0);
		} else if (bpf_cpumask_test_cpu(member.cpu, p->cpus_ptr)) {
			scx_bpf_dsq_insert___v2___k(p, member.cpu == cpu ? SCX_DSQ_LOCAL : SCX_DSQ_LOCAL_ON | member.cpu,
						    member.slice_ns, member.flags & PREEMPTS ? SCX_ENQ_PREEMPT : 0);
			here |= member.cpu == cpu;
			placed++;
		} else {
			neap_bar(cpu, i, false);
			__sync_fetch_and_add(&nr_barred, 1);
		}
		bpf_task_release(p);
	}
	if (neap_settle(cpu)) {
		if (count > 1)
			carry_out_rest(cpu, count);
		return here;
	}
	bpf_for(i, 0, MEMBERS_MAX) {
		if (i >= placed)
			break;
		__sync_fetch_and_add(&nr_cancelled, 1);
		scx_bpf_dispatch_cancel();
	}
	return false;
}

SEC("struct_ops/neap_dispatch")
void BPF_PROG(neap_op_dispatch, s32 cpu, struct task_struct *prev)
{
	/* Neither the host's tasks nor the agent's may starve the other: who comes first is drawn. */
	bool first = scx_bpf_dsq_nr_queued(HOST_DSQ) > 0 && (bpf_get_prandom_u32() & 1);

	if (first && scx_bpf_dsq_move_to_local___v2___k(HOST_DSQ, 0))
		return;
	if (!carry_out(cpu, prev))
		scx_bpf_dsq_move_to_local___v2___k(HOST_DSQ, 0);
}

SEC("struct_ops/neap_running")
void BPF_PROG(neap_op_running, struct task_struct *p)
{
	u32 task = number_of(p);

	if (task)
		neap_running(task - 1, scx_bpf_task_cpu(p));
}

SEC("struct_ops/neap_stopping")
void BPF_PROG(neap_op_stopping, struct task_struct *p, bool runnable)
{
	neap_stopping(scx_bpf_task_cpu(p));
}

SEC("struct_ops/neap_quiescent")
void BPF_PROG(neap_op_quiescent, struct task_struct *p, u64 deq_flags)
{
	u32 task = number_of(p);

	if (task)
		neap_quiescent(task - 1, scx_bpf_task_cpu(p), deq_flags & SCX_DEQ_SLEEP);
}

SEC("struct_ops/neap_yield")
bool BPF_PROG(neap_op_yield, struct task_struct *from, struct task_struct *to)
{
	u32 task = number_of(from);

	if (!to && task)
		neap_yields(task - 1);
	if (!to)
		scx_bpf_task_set_slice(from, 0);
	return false;
}

SEC("struct_ops/neap_set_cpumask")
void BPF_PROG(neap_op_set_cpumask, struct task_struct *p, const struct cpumask *mask)
{
	u32 task = number_of(p);

	if (task)
		neap_set_affinity(p, task - 1, scx_bpf_task_cpu(p));
}

SEC("struct_ops/neap_enable")
void BPF_PROG(neap_op_enable, struct task_struct *p)
{
	struct numbered *entry = bpf_task_storage_get(&tasks, p, 0, 0);
	s32 task;

	if (!entry)
		return;
	task = neap_enable(p);
	entry->task = task < 0 ? 0 : task + 1;
}

SEC("struct_ops/neap_disable")
void BPF_PROG(neap_op_disable, struct task_struct *p)
{
	struct numbered *entry = bpf_task_storage_get(&tasks, p, 0, 0);

	if (!entry || !entry->task)
		return;
	neap_disable(entry->task - 1, scx_bpf_task_cpu(p), p->flags & 4 /* PF_EXITING */);
	entry->task = 0;
}

SEC("struct_ops.s/neap_init_task")
s32 BPF_PROG(neap_op_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	return bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE) ? 0 : -12 /* ENOMEM */;
}

SEC("struct_ops/neap_cpu_online")
void BPF_PROG(neap_op_cpu_online, s32 cpu)
{
	neap_online(cpu, true);
}

SEC("struct_ops/neap_cpu_offline")
void BPF_PROG(neap_op_cpu_offline, s32 cpu)
{
	neap_online(cpu, false);
}

SEC("struct_ops.s/neap_init")
s32 BPF_PROG(neap_op_init)
{
	s32 ret = scx_bpf_create_dsq(HOST_DSQ, -1);

	if (!ret)
		neap_attached(true);
	return ret;
}

SEC("struct_ops.s/neap_exit")
void BPF_PROG(neap_op_exit, struct scx_exit_info *ei)
{
	u32 zero = 0;
	struct ended *ended = bpf_map_lookup_elem(&neap_exit, &zero);

	neap_attached(false);
	if (!ended)
		return;
	ended->exit_code = ei->exit_code;
	bpf_probe_read_kernel_str(ended->reason, sizeof(ended->reason), ei->reason);
	bpf_probe_read_kernel_str(ended->msg, sizeof(ended->msg), ei->msg);
	ended->kind = ei->kind;
}

SEC(".struct_ops.link")
struct sched_ext_ops neap_ops = {
	.select_cpu	= (void *)neap_op_select_cpu,
	.enqueue	= (void *)neap_op_enqueue,
	.dequeue	= (void *)neap_op_dequeue,
	.dispatch	= (void *)neap_op_dispatch,
	.running	= (void *)neap_op_running,
	.stopping	= (void *)neap_op_stopping,
	.quiescent	= (void *)neap_op_quiescent,
	.yield		= (void *)neap_op_yield,
	.set_cpumask	= (void *)neap_op_set_cpumask,
	.enable		= (void *)neap_op_enable,
	.disable	= (void *)neap_op_disable,
	.init_task	= (void *)neap_op_init_task,
	.cpu_online	= (void *)neap_op_cpu_online,
	.cpu_offline	= (void *)neap_op_cpu_offline,
	.init		= (void *)neap_op_init,
	.exit		= (void *)neap_op_exit,
	.dispatch_max_batch = MEMBERS_MAX,
	.timeout_ms	= 30000,
	.flags		= SCX_OPS_SWITCH_PARTIAL | SCX_OPS_ENQ_LAST,
	.name		= "neap",
};

/* A CPU has switched: what waits there to be told is told. */
SEC("tp_btf/sched_switch")
int BPF_PROG(neap_on_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	u32 to = next->pid == 0 ? IDLE : next->policy == 7 /* SCHED_EXT */ ? OURS : OTHER;

	neap_switch(bpf_get_smp_processor_id(), to);
	return 0;
}

/* The driver wants a CPU to look at its slot. */
SEC("fentry/neap_kick_hook")
int BPF_PROG(neap_on_kick, s32 cpu, u32 preempt)
{
	scx_bpf_kick_cpu(cpu, preempt ? SCX_KICK_PREEMPT : SCX_KICK_IDLE);
	return 0;
}
