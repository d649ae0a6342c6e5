//! The worker host's ear for `neap agent` and `neap flash`: one request a line, one answer a line, one client at a time.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use neap_abi::supervisor::DISK_BYTES_MAX;
use neap_host::card_disk::Sectors as _;
use neap_host::sights::SIGHTS_MAX;
use neap_host::worker::{Enclave, Host, Work};
use serde_json::{Value, json};

use super::write_timeline;
use crate::inspect::{of_books, of_identity};
use crate::manage::{Answer, Asked, serve};

/// How long the IPU's supervisor may take over a request.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether all is over.
const LOOK: Duration = Duration::from_millis(20);

/// Answers clients on `socket` until `over`.
pub fn listen<W: Work>(host: &Host<'_, W>, socket: &Path, over: &dyn Fn() -> bool) -> Result<()> {
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
    listener.set_nonblocking(true).context("listening for managers")?;
    while !over() {
        match listener.accept() {
            // One who goes away in the middle has its reasons.
            Ok((stream, _)) => drop(serve(&stream, |asked| carry_out(host, asked).map(Answer::Done))),
            Err(_) => thread::sleep(LOOK),
        }
    }
    Ok(())
}

fn carry_out<W: Work>(host: &Host<'_, W>, asked: &Asked) -> Result<Value> {
    match asked {
        Asked::List(None) => Ok(host.enclaves().iter().map(|enclave| list(enclave)).collect()),
        Asked::List(Some(one)) => Ok(vec![list(&*enclave(host, *one)?)].into()),
        Asked::Load { enclave: of, image } => load(&*enclave(host, *of)?, image),
        Asked::Replace { enclave: of, image, trial_ms } => {
            replace(&*enclave(host, *of)?, image.as_deref(), Duration::from_millis(*trial_ms))
        }
        Asked::Kill { enclave: of, grace_us } => {
            let link = enclave(host, *of)?.link();
            let manager = link.manager().context(OLD)?;
            let reply = manager.kill(Duration::from_micros(*grace_us), PATIENCE)?;
            Ok(json!({ "enclave": of, "incarnation": reply.incarnation }))
        }
        Asked::ReadDisk { enclave: of, sector, bytes, file } => {
            let link = enclave(host, *of)?.link();
            let mut read = vec![0; (*bytes).min(DISK_BYTES_MAX)];
            let count = link.manager().context(OLD)?.read_sectors(*sector, &mut read)?;
            fs::write(file, read).with_context(|| format!("{} can't be written", file.display()))?;
            Ok(count.into())
        }
        Asked::WriteDisk { enclave: of, sector, file } => {
            let link = enclave(host, *of)?.link();
            link.manager().context(OLD)?.write_sectors(*sector, &contents(file)?)?;
            Ok(Value::Null)
        }
        Asked::Watch { seconds } => watch(host, *seconds),
        Asked::Seen { file } => seen(host, file),
    }
}

/// Has every enclave's sights kept from now on.
fn watch<W: Work>(host: &Host<'_, W>, seconds: f64) -> Result<Value> {
    let lasts = Duration::try_from_secs_f64(seconds).with_context(|| format!("{seconds} s is no time"))?;
    let enclaves = host.enclaves();
    let most = SIGHTS_MAX / enclaves.len().max(1);
    let refused = enclaves.iter().find(|enclave| !enclave.watch(most, lasts));
    ensure!(refused.is_none(), "this run is being watched already; try again when that is over");
    Ok(Value::Null)
}

/// Writes what they have kept.
fn seen<W: Work>(host: &Host<'_, W>, file: &Path) -> Result<Value> {
    let took = |enclave: &Arc<Enclave>| {
        let sights = enclave.take_sights()?;
        Some((enclave.id(), enclave.config().policy.clone(), Arc::new(sights)))
    };
    let seen: Vec<_> = host.enclaves().iter().filter_map(took).collect();
    ensure!(!seen.is_empty(), "nothing was watched, or its time is not over");
    Ok(serde_json::to_value(write_timeline(file, &seen)?)?)
}

const OLD: &str = "this IPU's agents can't be managed; use a release of 1.2 or later";

fn enclave<W: Work>(host: &Host<'_, W>, number: u16) -> Result<Arc<Enclave>> {
    let count = host.enclaves().len();
    host.enclave(number)
        .with_context(|| format!("there is no enclave {number}; this run has 0 to {}", count - 1))
}

fn contents(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("{} can't be read", file.display()))
}

/// Lays an image out.
fn load(enclave: &Enclave, image: &Path) -> Result<Value> {
    let bytes = contents(image)?;
    let link = enclave.link();
    let manager = link.manager().context(OLD)?;
    let reply = manager.load(Some(&bytes), &enclave.config().policy, PATIENCE)?;
    Ok(json!({ "enclave": enclave.id(), "incarnation": reply.incarnation }))
}

/// Has an agent take over: the image, or what is laid out, or the bundle's.
pub fn replace(enclave: &Enclave, image: Option<&Path>, trial: Duration) -> Result<Value> {
    if let Some(image) = image {
        load(enclave, image)?;
    }
    let link = enclave.link();
    let manager = link.manager().context(OLD)?;
    let reply = manager.replace(&enclave.config().policy, trial, PATIENCE)?;
    Ok(json!({ "enclave": enclave.id(), "incarnation": reply.incarnation }))
}

fn list(enclave: &Enclave) -> Value {
    let link = enclave.link();
    let agents = link.manager().map(|manager| manager.list()).unwrap_or_default();
    json!({
        "enclave": enclave.id(),
        "cpus": enclave.cpus(),
        "policy": enclave.config().policy,
        "level": enclave.snapshot().level.name(),
        "running": agents.running.as_ref().map(of_identity),
        "standby": agents.standby.as_ref().map(of_identity),
        "books": agents.books.as_ref().map(of_books),
    })
}
