//! A terminal that a program is shown on, and that a test types at.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::PATIENCE;

/// The terminal, and the program on it, which ends with it.
pub struct Terminal {
    /// The end that a person would have; none once it is hung up.
    end: Option<File>,
    screen: vt100::Parser,
    program: Child,
}

impl Terminal {
    /// Starts a program on one of 120 columns and 50 rows.
    pub fn of(mut program: Command) -> Self {
        let end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&end).unwrap();
        unlockpt(&end).unwrap();
        let name = ptsname(&end, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let other = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let mut screen = vt100::Parser::default();
        size(&mut screen, &end, 120, 50);
        program.stdin(other.try_clone().unwrap()).stdout(other.try_clone().unwrap()).stderr(other);
        let program = program.env("TERM", "xterm-256color").spawn().unwrap();
        Self { end: Some(end.into()), screen, program }
    }

    /// Makes it that large.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let end = self.end.as_ref().unwrap();
        size(&mut self.screen, end, columns, rows);
    }

    /// Types.
    pub fn press(&mut self, keys: &[u8]) {
        self.end.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// Waits until the screen shows what is wanted.
    pub fn shows(&mut self, wanted: impl Fn(&str) -> bool) {
        let since = Instant::now();
        while !wanted(&self.screen.screen().contents()) {
            assert!(
                since.elapsed() < PATIENCE && self.hear(),
                "it shows this, which is not what was wanted:\n{}",
                self.screen.screen().contents()
            );
        }
    }

    /// Waits until the program has let go of it. Whether the terminal is as it was before.
    pub fn is_as_before(&mut self) -> bool {
        let since = Instant::now();
        while since.elapsed() < PATIENCE && self.hear() {}
        let screen = self.screen.screen();
        !screen.alternate_screen() && !screen.hide_cursor() && screen.contents().trim().is_empty()
    }

    /// Goes away, as a window that is closed.
    pub fn hang_up(&mut self) {
        self.end = None;
    }

    /// Waits until the program has ended. Whether it ended well.
    pub fn ended_well(&mut self) -> bool {
        let since = Instant::now();
        loop {
            if let Some(status) = self.program.try_wait().unwrap() {
                return status.success();
            }
            assert!(since.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes what is said within a while. False once nobody is at the other end any more.
    fn hear(&mut self) -> bool {
        let end = self.end.as_mut().unwrap();
        let while_ns = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        if poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&while_ns)).unwrap() == 0 {
            return true;
        }
        let mut bytes = [0; 4096];
        match end.read(&mut bytes) {
            Ok(count @ 1..) => {
                self.screen.process(&bytes[..count]);
                true
            }
            // It is an error when nobody is there.
            Ok(0) | Err(_) => false,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn size(screen: &mut vt100::Parser, end: impl std::os::fd::AsFd, columns: u16, rows: u16) {
    let [some_rows, some_columns] = [rows, columns].map(|count| NonZero::new(count).unwrap());
    screen.screen_mut().set_size(some_rows, some_columns);
    tcsetwinsize(end, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}
