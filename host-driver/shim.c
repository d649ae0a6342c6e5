// SPDX-License-Identifier: GPL-2.0
/*
 * The module's C: kfuncs and their BTF set (Rust code has no BTF), the hook that a BPF program attaches to, because modules
 * may not kick CPUs of the extensible class themselves, tracepoints, a string parameter, and two threads' worth of kernel
 * services that have no Rust abstraction. Each kfunc hands over at once: the work is done in Rust.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/btf_ids.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/sort.h>
#include <linux/stop_machine.h>
#include <uapi/linux/sched/types.h>

#include "shim.h"

#define CREATE_TRACE_POINTS
#include "trace.h"

static char policy[16] = "fifo";
module_param_string(policy, policy, sizeof(policy), 0444);
MODULE_PARM_DESC(policy, "Policy that is asked for when a function attaches (default: fifo)");

static char cpus[256];
module_param_string(cpus, cpus, sizeof(cpus), 0444);
MODULE_PARM_DESC(cpus, "CPUs of each function, lists separated by slashes, as 0-3/4-7 (default: the first function has all)");

/* The function's list among them, in @mask; false if there is none, or it is no list. */
static bool list_of(u32 function, struct cpumask *mask, int *ret)
{
	char copy[sizeof(cpus)], *rest = copy, *list = NULL;
	u32 at;

	strscpy(copy, cpus, sizeof(copy));
	for (at = 0; at <= function; at++)
		list = strsep(&rest, "/");
	if (!list)
		return false;
	*ret = cpulist_parse(list, mask);
	return !*ret;
}

bool neap_has_cpu(u32 function, u32 cpu)
{
	cpumask_var_t mask;
	bool has = false;
	int ret;

	if (!cpus[0])
		return true;
	if (!zalloc_cpumask_var(&mask, GFP_KERNEL))
		return false;
	if (list_of(function, mask, &ret))
		has = cpumask_test_cpu(cpu, mask);
	free_cpumask_var(mask);
	return has;
}

static int check_cpus(void)
{
	cpumask_var_t mask;
	int ret = 0;
	u32 function;

	if (!zalloc_cpumask_var(&mask, GFP_KERNEL))
		return -ENOMEM;
	for (function = 0; cpus[0] && list_of(function, mask, &ret); function++)
		;
	free_cpumask_var(mask);
	if (ret)
		pr_err("cpus=%s: list %u is no list of CPUs; write it as 0-3/4-7\n", cpus, function);
	return ret;
}

const char *neap_policy(void)
{
	return policy;
}

bool neap_cpu_online(u32 cpu)
{
	return cpu_online(cpu);
}

pgprot_t neap_pgprot_noncached(pgprot_t protection)
{
	return pgprot_noncached(protection);
}

void neap_migrate_disable(void)
{
	migrate_disable();
}

void neap_migrate_enable(void)
{
	migrate_enable();
}

/* The CPUs that a task may use, as the wire has them: of a mask with gaps its lowest run; all as no CPU at all. */
static void affinity_of(const struct cpumask *mask, u32 *first, u32 *count)
{
	unsigned int cpu = cpumask_first(mask);

	*first = 0;
	*count = 0;
	if (cpumask_subset(cpu_possible_mask, mask) || cpu >= nr_cpu_ids)
		return;
	*first = cpu;
	*count = cpumask_next_zero(cpu, mask) - cpu;
}

__bpf_kfunc_start_defs();

/* A task asks for the class: its number, or a negative error. */
__bpf_kfunc s32 neap_enable(struct task_struct *p)
{
	u32 first, count;

	affinity_of(p->cpus_ptr, &first, &count);
	return neap_rs_enable(p->pid, task_cpu(p), first, count);
}

/* A task leaves the class; its number is free again. */
__bpf_kfunc void neap_disable(u32 task, s32 cpu, bool dead)
{
	neap_rs_disable(task, cpu, dead);
}

/*
 * A task can run: 0 if its agent keeps it until it decides, 1 if the host is to queue it, 2 if the class is to be left. Its
 * process number may have changed: exec() gives a thread that of its process.
 */
__bpf_kfunc u32 neap_enqueue(u32 task, u32 pid, s32 cpu)
{
	return neap_rs_enqueue(task, pid, cpu);
}

/* A task is taken off its queue, for a change of its properties. */
__bpf_kfunc void neap_dequeue(u32 task)
{
	neap_rs_dequeue(task);
}

/* A task gives up its CPU by itself. */
__bpf_kfunc void neap_yields(u32 task)
{
	neap_rs_yields(task);
}

/* A task is about to leave its CPU. */
__bpf_kfunc void neap_stopping(s32 cpu)
{
	neap_rs_stopping(cpu);
}

/* A task can run no more: it sleeps, or its properties change. */
__bpf_kfunc void neap_quiescent(u32 task, s32 cpu, bool sleeps)
{
	neap_rs_quiescent(task, cpu, sleeps);
}

/* A task begins to run. */
__bpf_kfunc void neap_running(u32 task, s32 cpu)
{
	neap_rs_running(task, cpu);
}

/* The CPUs that a task may use have changed. */
__bpf_kfunc void neap_set_affinity(struct task_struct *p, u32 task, s32 cpu)
{
	u32 first, count;

	affinity_of(p->cpus_ptr, &first, &count);
	neap_rs_set_affinity(task, cpu, first, count);
}

/* A CPU has switched: to nothing (0), to a task of the class (1), to something else (2). */
__bpf_kfunc void neap_switch(s32 cpu, u32 to)
{
	neap_rs_switch(cpu, to);
}

/* A CPU has come, or goes. */
__bpf_kfunc void neap_online(s32 cpu, bool online)
{
	neap_rs_online(cpu, online);
}

/* What a CPU's slot holds for it: see enum neap_take. */
__bpf_kfunc s32 neap_take(s32 cpu)
{
	return neap_rs_take(cpu);
}

/* A member of what a CPU took. */
__bpf_kfunc void neap_member(s32 cpu, u32 member, struct neap_member *out)
{
	neap_rs_member(cpu, member, out);
}

/* A member can't be put in place: its process is gone, or may not run there. */
__bpf_kfunc void neap_bar(s32 cpu, u32 member, bool gone)
{
	neap_rs_bar(cpu, member, gone);
}

/* Commits what was put in place; if false, all of it is to be taken back. */
__bpf_kfunc bool neap_settle(s32 cpu)
{
	return neap_rs_settle(cpu);
}

/* Why the class is to be left: a fault's number. */
__bpf_kfunc u32 neap_cause(void)
{
	return neap_rs_cause();
}

/* The scheduler is there, or no more. */
__bpf_kfunc void neap_attached(bool attached)
{
	neap_rs_attached(attached);
}

__bpf_kfunc_end_defs();

BTF_KFUNCS_START(neap_kfunc_ids)
BTF_ID_FLAGS(func, neap_enable)
BTF_ID_FLAGS(func, neap_disable)
BTF_ID_FLAGS(func, neap_enqueue)
BTF_ID_FLAGS(func, neap_dequeue)
BTF_ID_FLAGS(func, neap_yields)
BTF_ID_FLAGS(func, neap_stopping)
BTF_ID_FLAGS(func, neap_quiescent)
BTF_ID_FLAGS(func, neap_running)
BTF_ID_FLAGS(func, neap_set_affinity)
BTF_ID_FLAGS(func, neap_switch)
BTF_ID_FLAGS(func, neap_online)
BTF_ID_FLAGS(func, neap_take)
BTF_ID_FLAGS(func, neap_member)
BTF_ID_FLAGS(func, neap_bar)
BTF_ID_FLAGS(func, neap_settle)
BTF_ID_FLAGS(func, neap_cause)
BTF_ID_FLAGS(func, neap_attached)
BTF_KFUNCS_END(neap_kfunc_ids)

static const struct btf_kfunc_id_set neap_kfunc_set = {
	.owner = THIS_MODULE,
	.set = &neap_kfunc_ids,
};

/* Attached to by the program that kicks. With interrupts off: a call nested in another on one CPU would be passed over. */
noinline void neap_kick_hook(s32 cpu, u32 preempt)
{
	asm volatile("" : : "r"(cpu), "r"(preempt) : "memory");
}

int neap_stop_machine(void *arg)
{
	return stop_machine(neap_rs_stopped, arg, NULL);
}

/* A task that waits, as neap-mechanism's Arrival. */
struct arrival {
	u64 since_ns;
	u32 task;
};

static int earlier(const void *one, const void *other)
{
	const struct arrival *a = one, *b = other;

	return a->since_ns < b->since_ns ? -1 : a->since_ns > b->since_ns;
}

void neap_sort_arrivals(void *arrivals, size_t count)
{
	sort(arrivals, count, sizeof(struct arrival), earlier, NULL);
}

/* Has a task be of another policy, all else as it is. */
static void set_policy(struct task_struct *p, int policy)
{
	struct sched_attr attr = {
		.size = sizeof(attr),
		.sched_policy = policy,
		.sched_nice = task_nice(p),
		.sched_flags = p->sched_reset_on_fork ? SCHED_FLAG_RESET_ON_FORK : 0,
	};

	sched_setattr_nocheck(p, &attr);
}

/* Lends a task of the extensible class to the kernel's own, until neap_take_back(); NULL if there is no such task. */
void *neap_lend(u32 pid)
{
	struct task_struct *p;

	rcu_read_lock();
	p = pid_task(find_pid_ns(pid, &init_pid_ns), PIDTYPE_PID);
	if (p)
		get_task_struct(p);
	rcu_read_unlock();
	if (!p)
		return NULL;
	if (p->policy != SCHED_EXT) {
		put_task_struct(p);
		return NULL;
	}
	set_policy(p, SCHED_NORMAL);
	return p;
}

void neap_take_back(void *task)
{
	struct task_struct *p = task;

	/* Whoever has given it another policy meanwhile knows better. */
	if (p->policy == SCHED_NORMAL)
		set_policy(p, SCHED_EXT);
	put_task_struct(p);
}

void neap_trace_message(u32 cpu, u32 kind, u32 task, u32 stamp, u32 txn, u32 outcome, u32 flags)
{
	trace_neap_message(cpu, kind, task, stamp, txn, outcome, flags);
}

void neap_trace_verdict(u32 cpu, u32 txn, u32 task, u32 stamp, u32 operation, u32 flags, u32 outcome)
{
	trace_neap_txn(cpu, txn, task, stamp, operation, flags, outcome);
}

static struct task_struct *beats;

/* Looks after agents once a ms. It may not starve behind the work that it watches over. */
static int beat(void *unused)
{
	sched_set_fifo_low(current);
	while (!kthread_should_stop()) {
		neap_rs_beat();
		usleep_range(1000, 1200);
	}
	return 0;
}

int neap_shim_init(void)
{
	int ret = check_cpus();

	if (!ret)
		ret = register_btf_kfunc_id_set(BPF_PROG_TYPE_STRUCT_OPS, &neap_kfunc_set);
	if (!ret)
		ret = register_btf_kfunc_id_set(BPF_PROG_TYPE_TRACING, &neap_kfunc_set);
	if (ret)
		return ret;
	beats = kthread_run(beat, NULL, "neap");
	return PTR_ERR_OR_ZERO(beats);
}

void neap_shim_exit(void)
{
	if (!IS_ERR_OR_NULL(beats))
		kthread_stop(beats);
	beats = NULL;
}
