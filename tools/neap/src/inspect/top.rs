//! `neap top`: enclaves, agents, cores, decisions, latency, outcomes, the watch and epitaphs, on a terminal or as one plain frame.
//!
//! 1. It shows one look at a time, as `neap status` takes it, and disturbs nobody.
//! 2. However it ends, the terminal is as it was before: by a key, a signal, an error or a panic. Where that is gone, so is the view.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use neap_host::ledger::{Quantiles, Span};
use neap_host::report::EpitaphReport;
use neap_host::window::Origin;
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, BorderType, Row, Table, Widget};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::scene::{Place, Scene};
use super::status;
use crate::measured::EnclaveMeasured;
use crate::report::{count, per_second, percent, time};

/// How often a terminal's view is renewed.
const RENEW: Duration = Duration::from_millis(500);
/// How soon a key or a signal is heard.
const LISTEN: Duration = Duration::from_millis(50);
/// The shortest time that a rate is taken over.
const RATE_S: f64 = 0.9;
/// Columns of a plain frame.
const PLAIN_COLUMNS: u16 = 120;

/// Shows what there is to see; with `once`, in one plain frame.
pub fn top(once: bool, device: Option<&Path>) -> Result<()> {
    let scene = Scene::look(device)?;
    if once {
        return crate::print(&plain(&picture(&scene, &Rates::default(), PLAIN_COLUMNS)));
    }
    ensure!(
        io::stdout().is_terminal() && io::stdin().is_terminal(),
        "a view that renews itself needs a terminal; --once prints one frame"
    );
    let over = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&over)).context("catching signals")?;
    }
    // It also sees to it that a panic restores the terminal first.
    let mut terminal = ratatui::try_init().context("preparing the terminal")?;
    let shown = show(&mut terminal, scene, device, &over);
    ratatui::try_restore().context("restoring the terminal")?;
    shown
}

fn show(
    terminal: &mut DefaultTerminal,
    mut scene: Scene,
    device: Option<&Path>,
    over: &AtomicBool,
) -> Result<()> {
    let mut rates = Rates::default();
    let mut lines_up = 0;
    let mut looked = Instant::now();
    rates.take(&scene, looked);
    while !over.load(Ordering::Relaxed) {
        terminal.draw(|frame| {
            let area = frame.area();
            let whole = picture(&scene, &rates, area.width);
            // It ends where its last line is the view's last.
            lines_up = lines_up.min(whole.area.height.saturating_sub(area.height));
            copy(&whole, lines_up, frame.buffer_mut());
        })?;
        while !over.load(Ordering::Relaxed) && looked.elapsed() < RENEW {
            match heard(LISTEN)? {
                Heard::Nothing => continue,
                Heard::Gone => return Ok(()),
                Heard::Something => {}
            }
            while event::poll(Duration::ZERO)? {
                match event::read()? {
                    Event::Key(key) if ends(key) => return Ok(()),
                    Event::Key(key) => lines_up = scrolled(lines_up, key.code),
                    _ => {}
                }
            }
            break;
        }
        if looked.elapsed() >= RENEW {
            looked = Instant::now();
            scene = Scene::look(device)?;
            rates.take(&scene, looked);
        }
    }
    Ok(())
}

/// What a terminal has to say.
enum Heard {
    Nothing,
    Something,
    /// Nobody is at it any more.
    Gone,
}

/// Listens for so long. What waits for keys must not do so at a terminal that is gone: it would look for them without an end.
fn heard(listen: Duration) -> Result<Heard> {
    let stdin = io::stdin();
    let mut terminal = [PollFd::new(&stdin, PollFlags::IN)];
    let listen = Timespec::try_from(listen).context("a time to listen")?;
    match rustix::event::poll(&mut terminal, Some(&listen)) {
        Ok(_) => {}
        // A signal; whoever listens again sees what it says.
        Err(Errno::INTR) => return Ok(Heard::Nothing),
        Err(error) => return Err(error).context("listening to the terminal"),
    }
    let told = terminal[0].revents();
    Ok(if told.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        Heard::Gone
    } else if told.contains(PollFlags::IN) {
        Heard::Something
    } else {
        Heard::Nothing
    })
}

fn ends(key: KeyEvent) -> bool {
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

fn scrolled(lines_up: u16, key: KeyCode) -> u16 {
    match key {
        KeyCode::Down | KeyCode::Char('j') => lines_up.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => lines_up.saturating_sub(1),
        KeyCode::PageDown => lines_up.saturating_add(10),
        KeyCode::PageUp => lines_up.saturating_sub(10),
        _ => lines_up,
    }
}

/// Copies a picture, `lines_up` of whose lines have gone off above.
fn copy(whole: &Buffer, lines_up: u16, to: &mut Buffer) {
    for y in 0..to.area.height.min(whole.area.height.saturating_sub(lines_up)) {
        for x in 0..to.area.width.min(whole.area.width) {
            to[(x, y)] = whole[(x, y + lines_up)].clone();
        }
    }
}

/// A picture's text, without what only fills its lines.
fn plain(picture: &Buffer) -> String {
    let line = |y| (0..picture.area.width).map(|x| picture[(x, y)].symbol()).collect::<String>();
    let lines: Vec<String> = (0..picture.area.height).map(|y| line(y).trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Decisions per second, by enclave, over the last second or so.
#[derive(Debug, Default)]
struct Rates {
    since: BTreeMap<usize, (Instant, u64)>,
    per_s: BTreeMap<usize, f64>,
}

impl Rates {
    fn take(&mut self, scene: &Scene, now: Instant) {
        for place in &scene.places {
            let Some(decisions) = decisions(place) else { continue };
            let (since, before) = *self.since.entry(place.number).or_insert((now, decisions));
            let seconds = now.duration_since(since).as_secs_f64();
            // One that counts less is another run's.
            if seconds >= RATE_S || decisions < before {
                self.per_s.insert(place.number, per_second(decisions.saturating_sub(before), seconds));
                self.since.insert(place.number, (now, decisions));
            }
        }
    }

    /// Of an enclave; at first the mean of its run.
    fn of(&self, place: &Place, scene: &Scene) -> Option<f64> {
        let mean = || {
            let decided = decisions(place)?;
            (scene.elapsed_s > 0.0).then(|| per_second(decided, scene.elapsed_s))
        };
        self.per_s.get(&place.number).copied().or_else(mean)
    }
}

/// Decisions committed, by the host's word; else published, by the agent's.
fn decisions(place: &Place) -> Option<u64> {
    let host = place.host.as_ref().map(|host| host.decisions);
    host.or_else(|| place.seen.agent.as_ref().map(|agent| agent.decisions))
}

/// A table with a title; nothing of it is shown where it has no row.
struct Section {
    title: &'static str,
    head: Vec<&'static str>,
    rows: Vec<(Vec<String>, Style)>,
}

impl Section {
    fn new<const N: usize>(title: &'static str, head: [&'static str; N]) -> Self {
        Self { title, head: head.to_vec(), rows: Vec::new() }
    }

    fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push((cells.to_vec(), Style::new()));
    }

    /// One that should be seen first.
    fn alarm<const N: usize>(&mut self, cells: [String; N], color: Color) {
        self.rows.push((cells.to_vec(), Style::new().fg(color)));
    }

    fn height(&self) -> u16 {
        // The frame, and the names of the columns.
        if self.rows.is_empty() { 0 } else { u16::try_from(self.rows.len()).unwrap_or(u16::MAX - 3) + 3 }
    }

    fn render(&self, area: Rect, to: &mut Buffer) {
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|(cells, _)| cells.get(at)).map(String::as_str);
            let widest = cells.chain(self.head.get(at).copied()).map(|cell| cell.chars().count()).max();
            u16::try_from(widest.unwrap_or(0)).unwrap_or(u16::MAX)
        };
        let last = self.head.len().saturating_sub(1);
        // What does not fit is cut at the end, where sentences are.
        let widths = (0..=last).map(|at| match at == last {
            true => Constraint::Fill(1),
            false => Constraint::Length(width(at)),
        });
        let rows = self.rows.iter().map(|(cells, style)| Row::new(cells.clone()).style(*style));
        let head = Row::new(self.head.clone()).style(Style::new().add_modifier(Modifier::BOLD));
        let block = Block::bordered().border_type(BorderType::Rounded).title(self.title);
        Table::new(rows, widths).header(head).column_spacing(2).block(block).render(area, to);
    }
}

/// All there is to see, however many lines it takes.
fn picture(scene: &Scene, rates: &Rates, columns: u16) -> Buffer {
    let sections = [
        enclaves(scene, rates),
        booted(scene),
        latency(scene),
        outcomes(scene),
        agents(scene),
        supervisors(scene),
        watch(scene),
        epitaphs(scene),
    ];
    let lines = sections.iter().map(Section::height).fold(1, u16::saturating_add);
    let mut buffer = Buffer::empty(Rect::new(0, 0, columns, lines));
    let run = match &scene.notes {
        Some(notes) => format!(", {:.1} s, pid {}", scene.elapsed_s, notes.pid),
        None => String::new(),
    };
    let title = format!("neap top · {}, on {}{run}", scene.what, scene.ran_on());
    Line::from(title).render(Rect::new(0, 0, columns, 1), &mut buffer);
    let mut y = 1;
    for section in &sections {
        let height = section.height();
        if height > 0 && y + height <= lines {
            section.render(Rect::new(0, y, columns, height), &mut buffer);
        }
        y += height;
    }
    buffer
}

fn enclaves(scene: &Scene, rates: &Rates) -> Section {
    let head = [
        "",
        "CPUs",
        "policy",
        "decides",
        "decisions",
        "per s",
        "prestage hits",
        "waiting",
        "messages",
        "resyncs",
    ];
    let mut section = Section::new(" enclaves ", head);
    for place in &scene.places {
        let of = |tell: fn(&EnclaveMeasured) -> String| place.host.as_ref().map_or_else(unknown, tell);
        let cells = [
            place.number.to_string(),
            place.cpus.clone(),
            place.policy.clone(),
            place.level().unwrap_or("-").to_owned(),
            decisions(place).map_or_else(unknown, count),
            rates.of(place, scene).map_or_else(unknown, |rate| count(rate.round() as u64)),
            of(|host| match host.prestage_hits + host.prestage_misses {
                0 => unknown(),
                all => percent(host.prestage_hits as f64 / all as f64),
            }),
            of(|host| count(host.queue_depth)),
            of(|host| count(host.messages)),
            of(|host| count(host.resyncs)),
        ];
        match place.level() {
            None | Some("ipu") => section.row(cells),
            Some(_) => section.alarm(cells, Color::Yellow),
        }
    }
    section
}

/// What a loader said that it booted; a refusal should be seen.
fn booted(scene: &Scene) -> Section {
    let mut section = Section::new(" booted ", ["", "slot", "refused"]);
    for place in &scene.places {
        let Some(Origin { slot, refused }) = &place.seen.origin else { continue };
        let cells = [place.number.to_string(), slot.clone(), refused.clone().unwrap_or_else(unknown)];
        match refused {
            Some(_) => section.alarm(cells, Color::Yellow),
            None => section.row(cells),
        }
    }
    section
}

/// Latency, stage by stage: one row for each that is known of an enclave, the ledger's first, in their order.
fn latency(scene: &Scene) -> Section {
    let mut section = Section::new(" latency ", ["", "stage", "p50", "p99"]);
    for (place, host) in hosts(scene) {
        for span in Span::ALL {
            let Quantiles { count: 1.., p50_ns, p99_ns, .. } = host.ledger.step(span) else { continue };
            let of = |ns: u64| time(ns as f64 / 1000.0);
            section.row([place.number.to_string(), span.name().replace('_', " "), of(p50_ns), of(p99_ns)]);
        }
        let stages = [
            ("message to commit, not prestaged", &host.round_trip),
            ("request, arrival to end", &host.request),
        ];
        for (stage, of) in stages.into_iter().filter(|(_, of)| of.p99 > 0.0) {
            section.row([place.number.to_string(), stage.to_owned(), time(of.p50), time(of.p99)]);
        }
    }
    section
}

fn outcomes(scene: &Scene) -> Section {
    let mut section = Section::new(" outcomes ", ["", "outcome", "txns"]);
    for (place, host) in hosts(scene) {
        for (outcome, txns) in &host.outcomes {
            section.row([place.number.to_string(), outcome.clone(), count(*txns)]);
        }
    }
    section
}

fn agents(scene: &Scene) -> Section {
    let head = ["", "agent", "incarnation", "state", "core", "txns", "doorbells", "messages", "standby"];
    let mut section = Section::new(" agents ", head);
    for place in &scene.places {
        let Some(agent) = &place.seen.agent else {
            let why = place.seen.hello.as_ref().err().map_or("no agent yet".to_owned(), |e| format!("{e:#}"));
            section.row([place.number.to_string(), why]);
            continue;
        };
        let named = |identity: &Option<neap_abi::supervisor::Identity>| {
            identity.as_ref().map_or_else(unknown, |identity| identity.name().to_owned())
        };
        let state = status::state(agent);
        section.row([
            place.number.to_string(),
            named(&place.seen.agents.running),
            agent.incarnation.to_string(),
            if agent.asleep { format!("{state}, asleep") } else { state },
            agent.core.to_string(),
            count(agent.decisions),
            count(agent.doorbells),
            count(agent.credits.into()),
            named(&place.seen.agents.standby),
        ]);
    }
    section
}

fn supervisors(scene: &Scene) -> Section {
    let head =
        ["", "cores", "free", "lost", "pages", "free", "started", "faults", "restarts", "replaced", "aborts"];
    let mut section = Section::new(" supervisor's books ", head);
    for place in &scene.places {
        let Some(books) = &place.seen.agents.books else { continue };
        section.row([
            place.number.to_string(),
            books.cores.to_string(),
            books.cores_free.to_string(),
            books.cores_lost.to_string(),
            books.pages.to_string(),
            books.pages_free.to_string(),
            books.started.to_string(),
            books.faults.to_string(),
            books.restarts.to_string(),
            books.replacements.to_string(),
            books.aborts.to_string(),
        ]);
    }
    section
}

fn watch(scene: &Scene) -> Section {
    let mut section =
        Section::new(" the host's watch ", ["", "watchdog", "faults", "fallbacks", "comebacks", "last"]);
    for (place, host) in hosts(scene) {
        let faults: Vec<String> = host.faults.iter().map(|(fault, n)| format!("{n} {fault}")).collect();
        let last = host.fallbacks.last().map_or_else(unknown, |step| {
            format!("{:.1} s: {} to {}, {}", step.at_us as f64 / 1e6, step.from, step.to, step.words)
        });
        let cells = [
            place.number.to_string(),
            scene.notes.as_ref().map_or_else(unknown, |notes| format!("{} ms", notes.parameters.watchdog_ms)),
            if faults.is_empty() { "none".to_owned() } else { faults.join(", ") },
            host.fallbacks.len().to_string(),
            host.comebacks.to_string(),
            last,
        ];
        if faults.is_empty() {
            section.row(cells);
        } else {
            section.alarm(cells, Color::Red);
        }
    }
    section
}

fn epitaphs(scene: &Scene) -> Section {
    let mut section = Section::new(" epitaphs ", ["", "after boot", "cause", "in words"]);
    for place in &scene.places {
        for record in &place.seen.epitaphs {
            let at_s = record.epitaph.time_ns as f64 / 1e9;
            section.row([
                place.number.to_string(),
                format!("{at_s:.3} s"),
                record.epitaph.cause.name().to_owned(),
                EpitaphReport::of(record).in_words(),
            ]);
        }
    }
    section
}

/// The enclaves of whose host there are figures.
fn hosts(scene: &Scene) -> impl Iterator<Item = (&Place, &EnclaveMeasured)> {
    scene.places.iter().filter_map(|place| Some((place, place.host.as_ref()?)))
}

fn unknown() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::scene::tests::example;
    use super::*;

    fn line<'a>(text: &'a str, has: &str) -> &'a str {
        text.lines().find(|line| line.contains(has)).unwrap_or_else(|| panic!("no {has} in\n{text}"))
    }

    #[test]
    fn a_frame_has_all_there_is_to_see() {
        let text = plain(&picture(&example(), &Rates::default(), PLAIN_COLUMNS));
        assert!(
            text.starts_with("neap top · The running instance, on QEMU 7.2.22, TCG, 10.0 s, pid 77\n"),
            "{text}"
        );
        let first = line(&text, "0-3");
        for cell in ["fifo", "ipu", "33,020", "3,302", "75.0 %", "17", "99,000"] {
            assert!(first.contains(cell), "{cell}: {first}");
        }
        let second = line(&text, "shinjuku  on_host");
        assert!(second.contains("1,200") && second.contains("120"), "{second}");
        assert!(line(&text, "seen to decided").contains("0.3 µs   1.2 µs"), "{text}");
        assert!(!text.contains("published to taken"), "nobody has told of it: {text}");
        assert!(line(&text, "not confirmed").contains("A"), "{text}");
        assert!(line(&text, "message to commit").contains("30.0 µs  300 µs"), "{text}");
        assert!(line(&text, "task_stale").contains("8"));
        assert!(line(&text, "running  ").contains("12,400"));
        assert!(line(&text, "dead").contains("shinjuku"));
        let watch = line(&text, "20 ms     1 agent_late");
        assert!(watch.contains("1.5 s: ipu to on_host, the agent owed"), "{watch}");
        let epitaph = line(&text, "1.500 s");
        assert!(
            epitaph.contains("late") && epitaph.contains("agent shinjuku (incarnation 1, core 2)"),
            "{epitaph}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= usize::from(PLAIN_COLUMNS)));
    }

    #[test]
    fn what_nobody_has_told_is_no_number() {
        let mut scene = example();
        for place in &mut scene.places {
            (place.host, place.seen.agent) = (None, None);
        }
        let text = plain(&picture(&scene, &Rates::default(), PLAIN_COLUMNS));
        assert!(line(&text, "0-3").matches(" - ").count() >= 5, "{text}");
        assert!(line(&text, "nobody has looked").contains('0'), "{text}");
        assert!(!text.contains("latency") && !text.contains("outcomes"), "{text}");
    }

    #[test]
    fn rates_are_of_the_last_second_and_begin_anew_with_another_run() {
        let (mut scene, mut rates, begin) = (example(), Rates::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        let decided = |scene: &mut Scene, decisions| {
            scene.places[0].host.as_mut().unwrap().decisions = decisions;
        };
        decided(&mut scene, 1000);
        rates.take(&scene, at(0));
        assert_eq!(rates.of(&scene.places[0], &scene), Some(100.0));
        decided(&mut scene, 1500);
        rates.take(&scene, at(500));
        assert_eq!(rates.of(&scene.places[0], &scene), Some(150.0));
        decided(&mut scene, 3000);
        rates.take(&scene, at(1000));
        assert_eq!(rates.of(&scene.places[0], &scene), Some(2000.0));
        decided(&mut scene, 10);
        rates.take(&scene, at(1500));
        assert_eq!(rates.of(&scene.places[0], &scene), Some(0.0));
    }

    #[test]
    fn a_small_terminal_shows_a_part_that_keys_move() {
        let whole = picture(&example(), &Rates::default(), 60);
        let mut terminal = Terminal::new(TestBackend::new(60, 5)).unwrap();
        for lines_up in [0, 7, whole.area.height - 5] {
            let shown = terminal.draw(|frame| copy(&whole, lines_up, frame.buffer_mut())).unwrap();
            let (shown, all) = (plain(shown.buffer), plain(&whole));
            let wanted: Vec<&str> = all.lines().skip(lines_up.into()).take(5).collect();
            assert_eq!(shown.lines().collect::<Vec<_>>(), wanted);
        }
        assert_eq!([KeyCode::Down, KeyCode::Up, KeyCode::PageDown].map(|key| scrolled(1, key)), [2, 0, 11]);
        assert_eq!((scrolled(0, KeyCode::Up), scrolled(3, KeyCode::Tab)), (0, 3));
    }

    #[test]
    fn q_escape_and_control_c_end_it() {
        let key = |code, modifiers| ends(KeyEvent::new(code, modifiers));
        let none = KeyModifiers::NONE;
        assert!(key(KeyCode::Char('q'), none) && key(KeyCode::Esc, none));
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL) && !key(KeyCode::Char('c'), none));
    }
}
