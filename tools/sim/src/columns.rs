//! What is compared: on-host ghOSt, Tide as published (and on the way there), and Neap, as costs in virtual time.

use crate::parameters::Parameters;

/// What a host and its agent cost, in ns.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Kernel work in a switch before the decision is read: the prefetch has as long.
    pub before_ns: u64,
    /// Kernel work after it, until the task runs.
    pub after_ns: u64,
    /// What the protocol adds to a switch.
    pub protocol_ns: u64,
    /// What a CPU waits for to read a decision that was not prefetched.
    pub read_ns: u64,
    /// Until a posted line, or the sample of a read, is on the other side.
    pub transit_ns: u64,
    /// What writing a line costs the CPU.
    pub write_ns: u64,
    /// What an agent spends on a message before it decides.
    pub message_ns: u64,
    /// What it spends on a line that says no more than a verdict. In Tide and ghOSt that is no message but a word of the
    /// transaction, which the agent looks at.
    pub outcome_ns: u64,
    /// What it reads uncached of a switch, besides.
    pub uncached_ns: u64,
    /// What it spends on a decision, without its doorbell.
    pub open_ns: u64,
    /// What it spends on a doorbell.
    pub send_ns: u64,
    /// From the doorbell's store to the CPU's interrupt.
    pub ring_transit_ns: u64,
    /// What the CPU spends on an interrupt.
    pub receive_ns: u64,
    /// What the application does around a request.
    pub request_ns: u64,
    /// Whether decisions are made ahead of time and prefetched.
    pub prestages: bool,
    /// Lines read uncached on a CPU's way to a prestaged decision.
    pub uncached_reads: u32,
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// ghOSt on the host, in host memory.
    Ghost,
    /// The same without pre-staging.
    GhostUnstaged,
    /// Tide before any of its optimisations (section 4).
    TideBaseline,
    /// With write-back PTEs on the IPU.
    TideWb,
    /// And write-combining and write-through PTEs on the host.
    TideCached,
    /// And pre-staging and prefetching: Tide as published.
    Tide,
    /// Neap, all of it.
    Neap,
    /// Neap without one of its causes.
    NeapWithout(Cause),
    /// Tide over a coherent link, its IPU at so many tenths of a GHz.
    Coherent(u32),
}

/// What makes Neap faster than Tide, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its agent rings by a register's store: no ioctl.
    NoIoctl,
    /// Its agent is a loop at EL0 without Linux.
    BareMetal,
    /// A line proves itself whole: no flag behind a fence.
    SelfProving,
    /// One line carries the event and the outcome.
    OneLine,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NoIoctl, Self::BareMetal, Self::SelfProving, Self::OneLine];

    /// Its name on outputs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoIoctl => "no_ioctl",
            Self::BareMetal => "bare_metal_agent",
            Self::SelfProving => "self_proving_lines",
            Self::OneLine => "one_line_per_switch",
        }
    }
}

impl Column {
    /// Its costs.
    #[must_use]
    pub fn costs(self, p: &Parameters) -> Costs {
        let kernel = p.ns("ghost_switch") - 2 * p.ns("coherent_line");
        let before_ns = kernel / 2;
        let tide = Costs {
            before_ns,
            after_ns: kernel - before_ns,
            protocol_ns: p.ns("tide_protocol") - p.ns("mmio_write"),
            read_ns: p.ns("mmio_read"),
            transit_ns: p.ns("posted_transit"),
            write_ns: p.ns("mmio_write"),
            message_ns: p.ns("tide_agent_message"),
            outcome_ns: p.ns("neap_agent_poll"),
            uncached_ns: 0,
            open_ns: p.ns("tide_open_and_send") - p.ns("msix_send_ioctl"),
            send_ns: p.ns("msix_send_ioctl"),
            ring_transit_ns: p.ns("msix_transit"),
            receive_ns: p.ns("msix_receive"),
            request_ns: p.ns("request_overhead"),
            prestages: true,
            uncached_reads: 0,
        };
        match self {
            Self::Tide => tide,
            Self::TideCached => {
                // Its rows hold no more protocol than the writes and reads that they name.
                Costs { prestages: false, protocol_ns: 0, uncached_reads: 1, ..tide }
            }
            Self::TideWb | Self::TideBaseline => {
                let words = p.ns("tide_words_read");
                let cached = Self::TideCached.costs(p);
                let wb = Costs {
                    read_ns: words * p.ns("mmio_read"),
                    write_ns: p.ns("tide_words_written") * p.ns("mmio_write"),
                    uncached_reads: words as u32,
                    ..cached
                };
                if self == Self::TideWb {
                    return wb;
                }
                Costs {
                    uncached_ns: p.ns("tide_agent_message_uncached"),
                    open_ns: p.ns("tide_open_and_send_uncached") - p.ns("msix_send_ioctl"),
                    ..wb
                }
            }
            Self::Ghost | Self::GhostUnstaged => {
                let line = p.ns("coherent_line");
                let send_ns = p.ns("ghost_open_and_send") / 2;
                let ghost = Costs {
                    protocol_ns: 2 * line,
                    read_ns: line,
                    transit_ns: line,
                    write_ns: 0,
                    // A request is two messages and a decision.
                    message_ns: p.ns("tide_agent_message"),
                    outcome_ns: line,
                    open_ns: p.ns("ghost_open_and_send") - send_ns,
                    send_ns,
                    ring_transit_ns: p.ns("ghost_interrupt") / 2,
                    receive_ns: p.ns("ghost_interrupt") / 2,
                    ..tide
                };
                if self == Self::GhostUnstaged {
                    return Costs { prestages: false, protocol_ns: line, ..ghost };
                }
                let open_ns = p.ns("ghost_open_and_send") - send_ns;
                Costs { message_ns: (p.ns("ghost_agent_request") - open_ns) / 2, ..ghost }
            }
            Self::Neap => Costs {
                protocol_ns: p.ns("clflush"),
                message_ns: p.ns("neap_agent_poll"),
                open_ns: p.ns("neap_agent_message"),
                send_ns: p.ns("msix_send"),
                ..tide
            },
            Self::NeapWithout(cause) => {
                let neap = Self::Neap.costs(p);
                // Of what Tide's protocol costs above Neap's, the paper says no more than the sum: two thirds are put to
                // the message's entry, fence and flag, one to the outcome's own write.
                let above = tide.protocol_ns - neap.protocol_ns;
                match cause {
                    Cause::NoIoctl => Costs { send_ns: tide.send_ns, ..neap },
                    Cause::BareMetal => Costs { message_ns: tide.message_ns, open_ns: tide.open_ns, ..neap },
                    Cause::SelfProving => Costs { protocol_ns: neap.protocol_ns + above * 2 / 3, ..neap },
                    Cause::OneLine => Costs { protocol_ns: neap.protocol_ns + above / 3, ..neap },
                }
            }
            Self::Coherent(tenths_ghz) => {
                let line = p.ns("upi_line");
                let slower = p.get("ipu_ghz") / (f64::from(tenths_ghz) / 10.0);
                let scaled = |ns: u64| (ns as f64 * slower) as u64;
                Costs {
                    protocol_ns: 2 * line,
                    read_ns: line,
                    transit_ns: line,
                    write_ns: 0,
                    message_ns: scaled(tide.message_ns),
                    open_ns: scaled(tide.open_ns),
                    send_ns: scaled(p.ns("ghost_open_and_send") / 2),
                    ring_transit_ns: p.ns("ghost_interrupt"),
                    ..tide
                }
            }
        }
    }
}
