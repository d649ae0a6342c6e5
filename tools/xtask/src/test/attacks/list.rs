//! The attacks that an agent can make, and what has to become of each.

use std::ops::Range;

use neap_abi::grant::space;
use neap_abi::image::PAGE_BYTES;
use neap_abi::{Cause, EpitaphRecord, Outcome};
use neap_attacks::Told;
use neap_attacks::told::ASKED;
use neap_host::event::Fault;

use super::ground::CORE;

/// One attack.
pub(super) struct Attack {
    /// The program of `qemu-tests/attacks`.
    pub name: &'static str,
    /// Which of its acts.
    pub variant: u64,
    /// What it does, as the end of a sentence.
    pub about: &'static str,
    /// How it comes to its end.
    pub end: End,
    /// What its epitaph has to say.
    pub proof: Proof,
    /// The verdict on its txns.
    pub outcome: Option<Outcome>,
}

/// How an attack comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By what it does.
    Itself,
    /// By what it does, once it is told where it lies.
    ItselfWhenTold,
    /// Its host waits for a decision in vain, after its neighbours' work was watched for a while, and says so.
    Owes(Fault),
    /// Its host sees through it.
    Watched(Fault),
    /// Its host sees through it or waits in vain, whichever comes first.
    Somehow,
    /// Its host kills it, after its neighbours' work was watched for a while.
    Killed,
    /// Nobody hears of it in time.
    Silent,
    /// As above, and its first core is given back or taken, whichever is sooner: it may end without an epitaph.
    Half,
}

/// What an epitaph has to say.
pub(super) struct Proof {
    /// The cause, unless it depends on who is first.
    pub cause: Option<Cause>,
    /// The exception's class.
    pub class: Option<u64>,
    /// Whether the syndrome is of a store, where it is of an access to data.
    pub store: Option<bool>,
    /// Where the address at fault lies; not looked at where it means nothing.
    pub far: fn(&Told) -> Range<u64>,
    /// The text; for any if none.
    pub text: Option<&'static str>,
    /// What else is to hold.
    pub also: fn(&EpitaphRecord) -> bool,
}

/// ESR_EL1's exception classes, and what they are called in epitaphs.
mod class {
    pub const UNDEFINED: (u64, &str) = (0x00, "unknown or undefined instruction");
    pub const REGISTER: (u64, &str) = (0x18, "trapped system register");
    pub const FETCH: (u64, &str) = (0x20, "instruction abort");
    pub const COUNTER_ASTRAY: (u64, &str) = (0x22, "misaligned program counter");
    pub const NOT_MAPPED: (u64, &str) = (0x24, "data abort: not mapped");
    pub const NOT_PERMITTED: (u64, &str) = (0x24, "data abort: not permitted");
    pub const BREAKPOINT: (u64, &str) = (0x3c, "breakpoint instruction");
}

/// How often an attack insists on a txn.
pub(super) const TIMES: u64 = 8;

/// An agent at its own addresses.
fn in_image(record: &EpitaphRecord) -> bool {
    (space::IMAGE..space::IMAGE + space::IMAGE_SPAN).contains(&record.epitaph.elr)
}

const PLAIN: Proof =
    Proof { cause: None, class: None, store: None, far: |_| 0..1, text: None, also: in_image };

const fn exception((class, text): (u64, &'static str)) -> Proof {
    Proof { cause: Some(Cause::Synchronous), class: Some(class), text: Some(text), ..PLAIN }
}

const fn load(what: (u64, &'static str), far: fn(&Told) -> Range<u64>) -> Proof {
    Proof { store: Some(false), far, ..exception(what) }
}

const fn store(what: (u64, &'static str), far: fn(&Told) -> Range<u64>) -> Proof {
    Proof { store: Some(true), far, ..exception(what) }
}

const fn fetch(far: fn(&Told) -> Range<u64>) -> Proof {
    Proof { far, also: |record| record.epitaph.elr == record.epitaph.far, ..exception(class::FETCH) }
}

/// It happened on the agent's second core.
const fn beside(proof: Proof) -> Proof {
    Proof { also: is_beside, ..proof }
}

fn is_beside(record: &EpitaphRecord) -> bool {
    record.epitaph.core == CORE + 1
}

/// What an agent is condemned for is its cause; where it was then is still told.
const fn condemned(cause: Cause, text: &'static str) -> Proof {
    Proof { cause: Some(cause), text: Some(text), ..PLAIN }
}

const fn panics(text: &'static str) -> Proof {
    Proof {
        cause: Some(Cause::Panic),
        text: Some(text),
        also: |record| record.epitaph.line > 0 && record.epitaph.file().contains("attacks/src/"),
        ..PLAIN
    }
}

const LATE: Proof = condemned(Cause::Late, "it owed its host a decision for too long");
const POISON: Proof = condemned(Cause::Poison, "it broke the protocol");
const ABORT: Proof = condemned(Cause::Abort, "it did not give its core back");

const fn at(address: u64) -> Range<u64> {
    address..address + 1
}

const fn itself(name: &'static str, variant: u64, about: &'static str, proof: Proof) -> Attack {
    Attack { name, variant, about, end: End::Itself, proof, outcome: None }
}

const fn ended(name: &'static str, variant: u64, about: &'static str, end: End, proof: Proof) -> Attack {
    Attack { end, ..itself(name, variant, about, proof) }
}

const fn refused(
    name: &'static str,
    variant: u64,
    about: &'static str,
    outcome: Outcome,
    text: &'static str,
) -> Attack {
    Attack { outcome: Some(outcome), ..itself(name, variant, about, panics(text)) }
}

/// All attacks, in this order.
pub(super) const ATTACKS: &[Attack] = &[
    itself("a01_load_unmapped", 0, "loads from address 0", load(class::NOT_MAPPED, |_| at(0))),
    itself(
        "a02_store_runtime_text",
        0,
        "stores to the runtime's text",
        store(class::NOT_PERMITTED, |told| at(told.runtime_text)),
    ),
    itself(
        "a03_store_runtime_data",
        0,
        "stores to the runtime's data",
        store(class::NOT_PERMITTED, |told| at(told.runtime_data)),
    ),
    itself(
        "a04_load_neighbour_window",
        0,
        "loads from a neighbour's window",
        load(class::NOT_PERMITTED, |told| at(told.neighbour_window)),
    ),
    itself(
        "a05_store_neighbour_doorbell",
        0,
        "stores to a neighbour's doorbell",
        store(class::NOT_PERMITTED, |told| at(told.neighbour_doorbell + 0xc)),
    ),
    itself(
        "a06_store_own_text",
        0,
        "stores to its own text",
        store(class::NOT_PERMITTED, |_| at(space::IMAGE)),
    ),
    itself(
        "a07_store_message_ring",
        0,
        "stores to its message ring",
        store(class::NOT_PERMITTED, |_| at(space::MESSAGES)),
    ),
    itself(
        "a08_store_grant_page",
        0,
        "stores to its grant page",
        store(class::NOT_PERMITTED, |_| space::GRANT..space::GRANT + PAGE_BYTES),
    ),
    itself(
        "a09_jump_own_data",
        0,
        "executes its own data",
        fetch(|_| space::IMAGE..space::IMAGE + space::IMAGE_SPAN),
    ),
    itself(
        "a10_jump_own_stack",
        0,
        "executes its own stack",
        fetch(|_| at(space::STACK_END - neap_attacks::STACK_BYTES)),
    ),
    itself("a11_jump_runtime_text", 0, "executes the runtime's text", fetch(|told| at(told.runtime_text))),
    itself("a12_jump_unmapped", 0, "executes what is not mapped", fetch(|_| at(space::END))),
    itself(
        "a13_stack_overflow",
        0,
        "overflows its stack",
        store(class::NOT_MAPPED, |_| {
            let stack = space::STACK_END - neap_attacks::STACK_BYTES;
            stack - PAGE_BYTES..stack
        }),
    ),
    itself("a14_panic", 0, "panics", panics("deliberate, on core 3")),
    ended("a15_hang", 0, "loops and decides nothing", End::Owes(Fault::AgentLate), LATE),
    ended("a15_hang", 1, "loops and has never said that it runs", End::Silent, ABORT),
    itself("a16_mask_interrupts", 0, "masks interrupts", exception(class::REGISTER)),
    ended("a17_wait_for_ever", 0, "waits for an interrupt, for ever", End::Owes(Fault::AgentLate), LATE),
    ended("a17_wait_for_ever", 1, "waits for an event, for ever", End::Owes(Fault::AgentLate), LATE),
    ended(
        "a18_refuse_revocation",
        0,
        "keeps its core though it sees that it is asked for it",
        End::Killed,
        Proof { also: |record| in_image(record) && record.epitaph.registers[0] == ASKED, ..ABORT },
    ),
    itself("a19_translation_registers", 0, "sets TTBR0_EL1", exception(class::UNDEFINED)),
    itself("a19_translation_registers", 1, "sets VBAR_EL1", exception(class::UNDEFINED)),
    itself("a20_control_registers", 0, "sets SCTLR_EL1", exception(class::UNDEFINED)),
    itself("a20_control_registers", 1, "reads SCTLR_EL1", exception(class::UNDEFINED)),
    itself("a20_control_registers", 2, "returns to EL1", exception(class::UNDEFINED)),
    itself("a21_timers_and_counters", 0, "sets the runtime's timer", exception(class::REGISTER)),
    itself("a21_timers_and_counters", 1, "sets the physical timer", exception(class::REGISTER)),
    itself("a21_timers_and_counters", 2, "reads the physical counter", exception(class::REGISTER)),
    itself("a21_timers_and_counters", 3, "reads the cycle counter", exception(class::REGISTER)),
    itself("a21_timers_and_counters", 4, "sets the performance counters", exception(class::REGISTER)),
    itself("a22_unknown_call", 0, "makes system call 3", {
        let proof = condemned(Cause::Call, "a system call that there is not");
        Proof { class: Some(0x15), also: |record| record.epitaph.line == 3, ..proof }
    }),
    itself("a22_unknown_call", 1, "makes system call 65535", {
        let proof = condemned(Cause::Call, "a system call that there is not");
        Proof { class: Some(0x15), also: |record| record.epitaph.line == 0xffff, ..proof }
    }),
    itself("a23_higher_levels", 0, "calls a hypervisor", exception(class::UNDEFINED)),
    itself("a23_higher_levels", 1, "calls a monitor", exception(class::UNDEFINED)),
    itself("a24_end_simulator", 0, "ends the simulator by semihosting", exception(class::UNDEFINED)),
    itself("a25_maintenance", 0, "has all translations forgotten", exception(class::UNDEFINED)),
    itself("a25_maintenance", 1, "empties the instruction cache", exception(class::UNDEFINED)),
    itself("a25_maintenance", 2, "throws data away by set and way", exception(class::UNDEFINED)),
    itself("a25_maintenance", 3, "throws data away by address", exception(class::UNDEFINED)),
    itself("a26_undefined", 0, "executes an undefined instruction", exception(class::UNDEFINED)),
    itself("a27_breakpoint", 0, "executes a breakpoint", exception(class::BREAKPOINT)),
    itself("a28_foreign_last_words", 0, "panics with the runtime's text", LAST_WORDS),
    itself("a28_foreign_last_words", 1, "panics with a neighbour's memory", LAST_WORDS),
    itself("a28_foreign_last_words", 2, "panics with its grant", LAST_WORDS),
    itself("a28_foreign_last_words", 3, "panics with what is not mapped", LAST_WORDS),
    itself("a28_foreign_last_words", 4, "panics with the end of all addresses", LAST_WORDS),
    itself("a28_foreign_last_words", 5, "panics with all memory from its own on", OWN_LAST_WORDS),
    itself("a28_foreign_last_words", 6, "panics with memory that begins before its own", LAST_WORDS),
    itself("a29_exit_unasked", 0, "gives its core back unasked", {
        Proof { also: |_| true, ..condemned(Cause::Exit, "it gave its core back unasked") }
    }),
    itself("a30_registers_misused", 0, "stores to its doorbell out of line", MISUSE),
    itself("a30_registers_misused", 1, "stores to a register that there is not", MISUSE),
    itself("a30_registers_misused", 2, "uses its doorbell page as a lock", MISUSE),
    ended(
        "a31_flood",
        0,
        "rings its host and never decides",
        End::Watched(Fault::AgentFloods),
        condemned(Cause::Flood, "it rang without deciding"),
    ),
    ended("a31_flood", 1, "rings the runtime's vectors without end", End::Killed, ABORT),
    itself("a32_ring_others", 0, "rings whomever a doorbell can name", panics("rang them all")),
    refused(
        "a33_foreign_cpu",
        0,
        "decides for a neighbour's CPU",
        Outcome::NotPermitted,
        "8 times not_permitted",
    ),
    refused(
        "a34_foreign_task",
        0,
        "decides for a neighbour's task",
        Outcome::NotPermitted,
        "8 times not_permitted",
    ),
    refused("a35_false_txns", 0, "decides on a task's stale stamp", Outcome::TaskStale, "8 times task_stale"),
    refused("a35_false_txns", 1, "decides on a CPU's stale stamp", Outcome::CpuStale, "8 times cpu_stale"),
    refused(
        "a35_false_txns",
        2,
        "decides for a CPU that there is not",
        Outcome::InvalidCpu,
        "8 times invalid_cpu",
    ),
    refused(
        "a35_false_txns",
        3,
        "decides for a task that can't be",
        Outcome::InvalidTask,
        "8 times invalid_task",
    ),
    refused(
        "a35_false_txns",
        4,
        "decides what nobody understands",
        Outcome::UnknownOperation,
        "8 times unknown_operation",
    ),
    refused(
        "a35_false_txns",
        5,
        "decides with flags that nobody knows",
        Outcome::InvalidFlags,
        "8 times invalid_flags",
    ),
    Attack {
        outcome: Some(Outcome::Poisoned),
        ..ended(
            "a36_false_books",
            0,
            "says that it has taken lines that were never written",
            End::Watched(Fault::AgentPoisoned),
            POISON,
        )
    },
    Attack {
        outcome: Some(Outcome::Poisoned),
        ..ended(
            "a36_false_books",
            1,
            "numbers a txn other than its tag",
            End::Watched(Fault::AgentPoisoned),
            POISON,
        )
    },
    Attack {
        outcome: Some(Outcome::NoAgent),
        ..ended(
            "a36_false_books",
            2,
            "decides in the name of the agent before it",
            End::Watched(Fault::AgentLate),
            LATE,
        )
    },
    ended(
        "a37_garbage_in_control_line",
        0,
        "says random things of itself",
        End::Somehow,
        Proof { cause: None, ..PLAIN },
    ),
    ended(
        "a37_garbage_in_control_line",
        1,
        "says that it is the next agent, again and again",
        End::Owes(Fault::AgentLate),
        LATE,
    ),
    ended(
        "a37_garbage_in_control_line",
        2,
        "says that it is the next agent",
        End::Owes(Fault::AgentLate),
        LATE,
    ),
    ended("a37_garbage_in_control_line", 3, "says that it has ended", End::Owes(Fault::AgentDead), LATE),
    itself(
        "a38_dma_out_of_bounds",
        0,
        "has DMA move what is not its own",
        // Destination, source, source, destination, alignment, size, and a vector that nobody has.
        panics("[5, 4, 4, 5, 2, 3, 8]"),
    ),
    ended("a39_scribble", 0, "scribbles over all that it may write to", End::Owes(Fault::AgentLate), LATE),
    ended("a42_store_own_tables", 0, "stores to its own translation tables", End::ItselfWhenTold, {
        store(class::NOT_PERMITTED, |told| at(told.own_tables))
    }),
    itself(
        "a43_store_interrupt_controller",
        0,
        "stores to the interrupt controller",
        store(class::NOT_PERMITTED, |told| at(told.interrupt_controller)),
    ),
    itself(
        "a44_store_unbound",
        0,
        "stores to its manager's line",
        store(class::NOT_PERMITTED, |told| at(told.own_manager)),
    ),
    itself(
        "a44_store_unbound",
        1,
        "stores before its control line",
        store(class::NOT_MAPPED, |_| at(space::CONTROL - PAGE_BYTES)),
    ),
    itself(
        "a44_store_unbound",
        2,
        "stores behind its control line",
        store(class::NOT_MAPPED, |_| at(space::CONTROL + PAGE_BYTES)),
    ),
    ended("a45_sleep_for_ever", 0, "sleeps whenever it is woken", End::Killed, ABORT),
    itself(
        "a46_jump_out_of_line",
        0,
        "executes what is out of line",
        Proof { far: |_| at(space::IMAGE + 2), ..exception(class::COUNTER_ASTRAY) },
    ),
    itself("a47_second_core", 0, "runs on two cores, as it may", panics("the second core has run")),
    itself(
        "a47_second_core",
        1,
        "loads from address 0 on its second core",
        beside(load(class::NOT_MAPPED, |_| at(0))),
    ),
    itself(
        "a47_second_core",
        2,
        "panics on its second core",
        beside(panics("deliberate, on the second core")),
    ),
    itself(
        "a47_second_core",
        3,
        "overflows its second stack",
        beside(store(class::NOT_MAPPED, |_| {
            let stack = space::STACK_END - space::STACK_SPACING - neap_attacks::STACK_BYTES;
            stack - PAGE_BYTES..stack
        })),
    ),
    itself("a47_second_core", 4, "gives its second core back unasked", {
        Proof { also: |_| true, ..condemned(Cause::Exit, "it gave its core back unasked") }
    }),
    itself("a47_second_core", 5, "makes system call 99 on its second core", {
        Proof {
            class: Some(0x15),
            also: is_beside,
            ..condemned(Cause::Call, "a system call that there is not")
        }
    }),
    ended("a47_second_core", 6, "keeps both its cores", End::Killed, ABORT),
    ended("a47_second_core", 7, "keeps its second core when it is asked for both", End::Half, ABORT),
];

/// What is no proper use of a register ends the agent, unless the machine does not mind. QEMU does not where no register
/// is, and up to 8.2 not if the address is out of line.
const MISUSE: Proof = Proof {
    far: |_| 0..space::DOORBELL + PAGE_BYTES,
    also: |record| match record.epitaph.cause {
        Cause::Synchronous => record.epitaph.far >= space::DOORBELL,
        cause => cause == Cause::Panic && record.epitaph.text() == "the machine does not mind",
    },
    ..PLAIN
};

/// Words that are not an agent's own are not copied, whatever it says; its line, which is a number, is.
const LAST_WORDS: Proof = Proof {
    cause: Some(Cause::Panic),
    class: Some(0x15),
    text: Some(""),
    also: |record| record.epitaph.file().is_empty() && record.epitaph.line == 28,
    ..PLAIN
};
/// What begins in its own memory is copied as far as an epitaph goes.
const OWN_LAST_WORDS: Proof = Proof { text: None, ..LAST_WORDS };
