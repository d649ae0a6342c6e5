/* SPDX-License-Identifier: GPL-2.0 */
/* What passes on the wire, for ftrace, perf and BPF: events/neap in tracefs. Numbers are those of neap-abi. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM neap

#if !defined(NEAP_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define NEAP_TRACE_H

#include <linux/tracepoint.h>

TRACE_EVENT(neap_message,
	TP_PROTO(u32 cpu, u32 kind, u32 task, u32 stamp, u32 txn, u32 outcome, u32 flags),
	TP_ARGS(cpu, kind, task, stamp, txn, outcome, flags),
	TP_STRUCT__entry(
		__field(u32, cpu)
		__field(u32, kind)
		__field(u32, task)
		__field(u32, stamp)
		__field(u32, txn)
		__field(u32, outcome)
		__field(u32, flags)
	),
	TP_fast_assign(
		__entry->cpu = cpu;
		__entry->kind = kind;
		__entry->task = task;
		__entry->stamp = stamp;
		__entry->txn = txn;
		__entry->outcome = outcome;
		__entry->flags = flags;
	),
	TP_printk("cpu=%u kind=%u task=%u stamp=%u txn=%u outcome=%u flags=%#x", __entry->cpu, __entry->kind,
		  __entry->task, __entry->stamp, __entry->txn, __entry->outcome, __entry->flags)
);

TRACE_EVENT(neap_txn,
	TP_PROTO(u32 cpu, u32 txn, u32 task, u32 stamp, u32 operation, u32 flags, u32 outcome),
	TP_ARGS(cpu, txn, task, stamp, operation, flags, outcome),
	TP_STRUCT__entry(
		__field(u32, cpu)
		__field(u32, txn)
		__field(u32, task)
		__field(u32, stamp)
		__field(u32, operation)
		__field(u32, flags)
		__field(u32, outcome)
	),
	TP_fast_assign(
		__entry->cpu = cpu;
		__entry->txn = txn;
		__entry->task = task;
		__entry->stamp = stamp;
		__entry->operation = operation;
		__entry->flags = flags;
		__entry->outcome = outcome;
	),
	TP_printk("cpu=%u txn=%u task=%u stamp=%u operation=%u flags=%#x outcome=%u", __entry->cpu, __entry->txn,
		  __entry->task, __entry->stamp, __entry->operation, __entry->flags, __entry->outcome)
);

#endif

#undef TRACE_INCLUDE_PATH
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_PATH .
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
