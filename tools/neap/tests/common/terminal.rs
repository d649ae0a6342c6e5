//! A terminal that a program is shown on, and that a test types at.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::PATIENCE;

/// The terminal's end that a person would have.
pub struct Terminal {
    end: File,
    /// The program's end, until it is started there.
    other: Option<OwnedFd>,
    said: Receiver<Vec<u8>>,
    screen: vt100::Parser,
}

impl Terminal {
    /// One of 120 columns and 50 rows.
    pub fn open() -> Self {
        let end = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&end).unwrap();
        unlockpt(&end).unwrap();
        let name = ptsname(&end, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let other = rustix::fs::open(name, flags, Mode::empty()).unwrap();
        let end = File::from(end);
        let mut from = end.try_clone().unwrap();
        let (say, said) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // It ends with an error when nobody is at the other end any more.
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if say.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut terminal = Self { end, other: Some(other), said, screen: vt100::Parser::default() };
        terminal.resize(120, 50);
        terminal
    }

    /// Starts a program there.
    pub fn start(&mut self, mut program: Command) -> Child {
        let other = self.other.take().unwrap();
        program.stdin(other.try_clone().unwrap()).stdout(other.try_clone().unwrap()).stderr(other);
        program.env("TERM", "xterm-256color").spawn().unwrap()
    }

    /// Makes it that large.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let [some_rows, some_columns] = [rows, columns].map(|count| NonZero::new(count).unwrap());
        self.screen.screen_mut().set_size(some_rows, some_columns);
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.end.as_fd(), size).unwrap();
    }

    /// Types.
    pub fn press(&mut self, keys: &[u8]) {
        self.end.write_all(keys).unwrap();
    }

    /// Waits until the screen shows what is wanted.
    pub fn shows(&mut self, wanted: impl Fn(&str) -> bool) {
        let since = Instant::now();
        while !wanted(&self.screen.screen().contents()) {
            let left = PATIENCE.saturating_sub(since.elapsed());
            let Ok(bytes) = self.said.recv_timeout(left) else {
                panic!("it shows this, which is not what was wanted:\n{}", self.screen.screen().contents())
            };
            self.screen.process(&bytes);
        }
    }

    /// Waits until the program has let go of it. Whether its own screen, if it had one, is gone.
    pub fn is_as_before(&mut self) -> bool {
        let since = Instant::now();
        while let Ok(bytes) = self.said.recv_timeout(PATIENCE.saturating_sub(since.elapsed())) {
            self.screen.process(&bytes);
        }
        let screen = self.screen.screen();
        !screen.alternate_screen() && !screen.hide_cursor() && screen.contents().trim().is_empty()
    }
}
