//! Links with agents on the host, and work to be scheduled by them.
#![allow(dead_code)] // Each test takes what it needs.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use neap_host::onhost::{self, Settings};
use neap_host::worker::{Enclave, Step, Work};
use neap_vipu::{Domain, Server, Window};

/// Vectors of each peer.
pub const VECTORS: u16 = 16;
/// How long anything may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A domain with its server and window; gone when dropped.
pub struct Link {
    _server: Server,
    pub window: Window,
    pub socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Link {
    pub fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("link");
        let window = Window::create_in(directory.path(), name, 16 << 20).unwrap();
        let server =
            Server::start(vec![Domain::new(&socket, window.descriptor().unwrap(), VECTORS)]).unwrap();
        Self { _server: server, window, socket, _directory: directory }
    }

    /// Runs `host` beside an agent.
    pub fn with_agent<T>(&self, settings: Settings, host: impl FnOnce(&Path) -> T) -> T {
        with_agents(&[(self, settings)], || host(&self.socket))
    }
}

/// Runs `host` beside an agent on each link.
pub fn with_agents<T>(links: &[(&Link, Settings)], host: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let agents: Vec<_> = links
            .iter()
            .map(|(link, settings)| {
                scope.spawn(|| onhost::run(&link.socket, *settings, || over.load(Ordering::Relaxed)))
            })
            .collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(host));
        over.store(true, Ordering::Relaxed);
        for agent in agents {
            agent.join().unwrap().unwrap();
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Some requests yield, some block, all count their steps.
#[derive(Default)]
pub struct Counting(pub AtomicU64);

impl Work for Counting {
    fn step(&self, request: u64, step: u32) -> Step {
        self.0.fetch_add(1, Ordering::Relaxed);
        match (request % 10, step) {
            (3, 0) => Step::Yield,
            (7, 0) => Step::Block { for_us: 300 },
            _ => Step::Done,
        }
    }
}

/// Submits so many requests, a few at a time.
pub fn submit_all(enclave: &Enclave, requests: u64) {
    for request in 0..requests {
        while enclave.submit(request).is_err() {
            std::thread::yield_now();
        }
        if request % 64 == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
