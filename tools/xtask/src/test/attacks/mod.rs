//! Stage `attacks`: the release firmware on QEMU with three enclaves. Hostile agents run in one of them, one after the
//! other; each has to be refused for what it does, and neither the other two, which work all the time, nor the runtime
//! may notice.

mod ground;
mod images;
mod list;
mod traces;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use neap_abi::supervisor::{BindingKind, Books};
use neap_abi::{Cause, EpitaphRecord, Manage, ManagerLine, Reply, ReplyLine};
use neap_attacks::Told;
use neap_hal::cpu::mmu::TABLES_PER_SPACE;
use neap_host::event::Fault;
use neap_host::manager::ManageError;
use neap_host::report::{EpitaphReport, Report};
use neap_host::worker::with_host;

use super::Verdict;
use crate::firmware::{self, Agent, Kind};
use crate::ipu::Ipu;
use crate::progress::{Step, say};
use crate::setup;
use ground::{ATTACKED, CORES, Ground, HOST, PATIENCE, Session, Tasks, bootargs, bound, wait_for};
use list::{ATTACKS, Attack, End, Proof};

/// How long a decision may be owed where that is not what is tried.
const PATIENT: Duration = Duration::from_secs(10);
/// How long it may where it is. FIFO, which is in the same session, should not be blamed for a busy machine.
const HASTY: Duration = Duration::from_millis(500);
/// A trial that does not end by itself.
const LONG_TRIAL: Duration = Duration::from_secs(60);
/// One that ends before our patience does.
const SOME_TRIAL: Duration = Duration::from_secs(5);
/// One that ends soon.
const SHORT_TRIAL: Duration = Duration::from_millis(300);
/// How long an agent may take to give its core back that will not do so.
const GRACE: Duration = Duration::from_millis(20);
/// Tables lie before an agent's grant page, the root first.
const TABLES_BYTES: u64 = TABLES_PER_SPACE as u64 * neap_abi::image::PAGE_BYTES;

pub(super) fn run() -> Result<Verdict> {
    let qemu = setup::qemu()?;
    let image = firmware::build(&Kind::Runtime)?;
    let agents = firmware::build_attacks()?;
    let fifo = fs::read(firmware::agent("fifo")?.image)?;
    let mut verdict = Verdict::default();
    for name in agents.keys().filter(|name| !is_tried(name)) {
        verdict.fail(format!("{name} is in no list, so nothing tries it"));
    }
    let mut ipu = Ipu::boot_with(&qemu, &image.elf, CORES, ATTACKED + 1, &bootargs(), |_| String::new())?;
    let tasks = Tasks::default();
    let (fought, _) = with_host(&HOST, &tasks, |host| {
        let ground = Ground::new(host, &ipu, &image.elf)?;
        let fought = ground.while_neighbours_work(&tasks, || fight(&ground, &agents, &fifo, &mut verdict));
        host.drain(PATIENCE);
        let judged = ground.judge_neighbours();
        match (fought, judged) {
            (Err(error), Err(also)) => Err(error.context(format!("{also:#}"))),
            (fought, judged) => fought.and(judged),
        }
    });
    match fought {
        Ok(tasks) => {
            verdict.pass();
            verdict.remarks.push(format!("the neighbours ran {tasks} tasks meanwhile, each once, in order"));
        }
        Err(error) => verdict.fail(format!("{error:#}\nthe IPU's console said:\n{}", ipu.console())),
    }
    Ok(verdict)
}

fn is_tried(name: &str) -> bool {
    ATTACKS.iter().any(|attack| attack.name == name) || traces::AGENTS.contains(&name)
}

/// Makes all attacks; the first that succeeds ends the fight.
fn fight(
    ground: &Ground<'_>,
    agents: &BTreeMap<String, Agent>,
    fifo: &[u8],
    verdict: &mut Verdict,
) -> Result<()> {
    for attack in ATTACKS {
        let what = format!("{}: an agent {}", attack.name, attack.about);
        tried(verdict, &what, || make(ground, attack, &image(agents, attack.name)?))?;
    }
    traces::run(ground, agents, verdict)?;
    images::run(ground, fifo, verdict)
}

/// The image of a hostile agent.
fn image(agents: &BTreeMap<String, Agent>, name: &str) -> Result<Vec<u8>> {
    let agent = agents.get(name).with_context(|| format!("there is no program {name}"))?;
    fs::read(&agent.image).with_context(|| format!("{} can't be read", agent.image.display()))
}

/// Tries one thing, and says what was found.
fn tried(verdict: &mut Verdict, what: &str, make: impl FnOnce() -> Result<String>) -> Result<()> {
    let step = Step::start(what);
    let found = make().with_context(|| what.to_owned())?;
    step.done();
    say(&format!("neap:   {found}"));
    verdict.pass();
    Ok(())
}

/// What an attack came to.
struct Made {
    told: Told,
    /// The epitaph of its agent, if it has one.
    record: Option<EpitaphRecord>,
    /// What the supervisor said to the request that brought the agent in; none if a later one took its place.
    answer: Option<ReplyLine>,
}

/// Makes one attack; what was found, in words.
fn make(ground: &Ground<'_>, attack: &Attack, image: &[u8]) -> Result<String> {
    let watchdog = match attack.end {
        End::Owes(_) | End::Silent | End::Half | End::Somehow | End::Watched(Fault::AgentLate) => HASTY,
        _ => PATIENT,
    };
    let since = ground.rounds();
    ground.listen(ATTACKED)?;
    let (made, report) = ground.session(watchdog, |session| commit(session, attack, image))?;
    ground.watch_neighbours(&since)?;
    judge(attack, &made, &report)?;
    for neighbour in 0..ATTACKED {
        let heard = ground.listen(neighbour)?;
        ensure!(heard.iter().all(|&rings| rings == 0), "heard beside enclave {neighbour}: {heard:?}");
    }
    // In its own domain it may ring whom it likes, and so it is known that it did.
    let heard = ground.listen(ATTACKED)?;
    ensure!(attack.name != "a32_ring_others" || !heard.contains(&0), "heard beside it: {heard:?}");
    Ok(in_words(attack, &made, &report))
}

/// Has an agent take over that attacks, and waits for its end.
fn commit(session: &mut Session<'_>, attack: &Attack, image: &[u8]) -> Result<Made> {
    let mut told = session.told(attack.variant)?;
    session.tell(&told, false)?;
    let before = session.books()?;
    let trial = match attack.end {
        End::Silent | End::Half => SHORT_TRIAL,
        End::Somehow => SOME_TRIAL,
        _ => LONG_TRIAL,
    };
    let request = take_over(session, image, attack.name, trial)?;
    wait_for("the attack begins", || {
        session.answer(request)?;
        Ok((session.books()?.started != before.started).then_some(()))
    })
    .with_context(|| session.standing())?;
    match attack.end {
        End::Itself | End::Silent | End::Half | End::Watched(_) => session.submit()?,
        End::Somehow => {
            session.meet()?;
            session.tell(&told, true)?;
            session.submit()?;
        }
        End::ItselfWhenTold => {
            // Its bindings are told with the books.
            let bindings = session.agents()?.bindings;
            told.own_tables = bound(&bindings, BindingKind::Grant)?.physical - TABLES_BYTES;
            session.tell(&told, true)?;
        }
        End::Owes(_) => {
            session.meet()?;
            session.tell(&told, true)?;
            session.watch(&before)?;
            session.submit()?;
        }
        End::Killed => {
            session.watch(&before)?;
            kill(session)?;
        }
    }
    let after = wait_for("the attack ends", || {
        session.answer(request)?;
        let books = session.books()?;
        Ok((books.rollbacks != before.rollbacks).then_some(books))
    })
    .with_context(|| session.standing())?;
    let without = attack.end == End::Half && after.epitaphs == before.epitaphs;
    let counted = |books: &Books| (books.rollbacks, books.epitaphs, books.replacements, books.given_up);
    let epitaphs = before.epitaphs + u32::from(!without);
    let expected = (before.rollbacks + 1, epitaphs, before.replacements, before.given_up);
    ensure!(counted(&after) == expected, "{:?} in the books, and not {expected:?}", counted(&after));
    let answer = session.answer(request)?;
    let record = if without { None } else { Some(session.epitaph(attack.name)?) };
    Ok(Made { told, record, answer })
}

/// Lays an agent out and asks for it to take over; the request's number.
fn take_over(session: &Session<'_>, image: &[u8], name: &str, trial: Duration) -> Result<u32> {
    session.with_manager(|manager| {
        manager.load(Some(image), "", PATIENCE)?;
        let standby = wait_for("the agent is laid out", || Ok(manager.list().standby))?;
        ensure!(standby.name() == name, "{} is laid out, and not {name}", standby.name());
        Ok(manager.ask(ManagerLine {
            command: Manage::Replace,
            request: 0,
            image_bytes: 0,
            grace_us: PATIENCE.as_micros() as u32,
            trial_us: trial.as_micros() as u32,
            policy: 0,
            incarnation: 0,
        }))
    })
}

/// Kills an agent that is on trial and does not give its core back.
fn kill(session: &Session<'_>) -> Result<()> {
    let killed = session.with_manager(|manager| Ok(manager.kill(GRACE, PATIENCE)))?;
    let aborted = Cause::Abort as u64;
    ensure!(
        matches!(killed, Err(ManageError::Answered { reply: Reply::RolledBack, detail, .. }) if detail == aborted),
        "the kill came to {killed:?}"
    );
    Ok(())
}

impl Session<'_> {
    /// The answer to the request for a hostile agent to take over, so far. It can't be that it stayed.
    fn answer(&self, request: u32) -> Result<Option<ReplyLine>> {
        let answer = self.with_manager(|manager| Ok(manager.answer(request)))?;
        let refused = |answer: &ReplyLine| !matches!(answer.reply, Reply::Pending | Reply::RolledBack);
        ensure!(!answer.as_ref().is_some_and(refused), "the supervisor says {answer:?}");
        Ok(answer)
    }

    /// Has the neighbours work for a while beside an attack that has begun since `before`.
    fn watch(&self, before: &Books) -> Result<()> {
        self.ground.watch_neighbours(&self.ground.rounds())?;
        ensure!(self.books()?.rollbacks == before.rollbacks, "the attack is over before its time");
        Ok(())
    }
}

/// Compares what an attack came to with what it should.
fn judge(attack: &Attack, made: &Made, report: &Report) -> Result<()> {
    let Made { told, record, answer } = made;
    let Proof { cause, class, store, far, text, also } = &attack.proof;
    let Some(record) = record else { return Ok(()) };
    let epitaph = &record.epitaph;
    let mut wrong = Vec::new();
    let mut check = |what, holds: bool| {
        if !holds {
            wrong.push(what);
        }
    };
    check("the cause", cause.is_none_or(|cause| cause == epitaph.cause));
    check("the exception's class", class.is_none_or(|class| epitaph.esr >> 26 & 0x3f == class));
    check("load or store", store.is_none_or(|store| (epitaph.esr >> 6 & 1 == 1) == store));
    check("the address at fault", far(told).contains(&epitaph.far));
    check("the text", text.is_none_or(|text| epitaph.text() == text));
    check("something about it", also(record));
    if attack.end == End::Itself {
        let detail = epitaph.cause as u64;
        let rolled_back = |answer: &ReplyLine| (answer.reply, answer.detail) == (Reply::RolledBack, detail);
        check("the supervisor's answer", answer.as_ref().is_some_and(rolled_back));
    }
    if let Some(outcome) = attack.outcome {
        let times = if attack.end == End::Itself { list::TIMES } else { 1 };
        check("the outcome", report.outcomes.get(outcome.name()).is_some_and(|&count| count >= times));
    }
    let fault = match attack.end {
        End::Owes(fault) | End::Watched(fault) => Some(fault),
        _ => None,
    };
    if let Some(fault) = fault {
        check("what the host noticed", report.faults.get(fault.name()) == Some(&1));
    }
    ensure!(
        wrong.is_empty(),
        "not as expected: {}; {answer:?}, outcomes {:?}, faults {:?}; {}",
        wrong.join(", "),
        report.outcomes,
        report.faults,
        EpitaphReport::of(record).in_words()
    );
    Ok(())
}

/// What an attack came to.
fn in_words(attack: &Attack, made: &Made, report: &Report) -> String {
    let Some(record) = &made.record else { return "it gave its first core back".to_owned() };
    let epitaph = &record.epitaph;
    let text = if epitaph.text().is_empty() { "no word of it is its own" } else { epitaph.text() };
    let mut words = format!("{}: {text}", epitaph.cause.name());
    if epitaph.cause == Cause::Synchronous {
        words += &format!(" (ESR {:#x}, FAR {:#x}, ELR {:#x})", epitaph.esr, epitaph.far, epitaph.elr);
    }
    if let Some(outcome) = attack.outcome {
        let count = report.outcomes.get(outcome.name()).copied().unwrap_or(0);
        words += &format!("; {count} times {} by the host", outcome.name());
    }
    words
}
