//! This machine's own enclaves: those of the IPU that its driver has found.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use neap_abi::Version;
use neap_host::device::{Device, Info};
use serde_json::{Value, json};

use crate::inspect::snapshot::{Snapshot, View};
use crate::inspect::{of_books, of_identity};
use crate::manage::Asked;

/// How long the IPU's supervisor may take over a request.
const PATIENCE: Duration = Duration::from_secs(60);
/// The policy that the driver asks agents for.
const POLICY: &str = "/sys/module/neap/parameters/policy";

/// The devices that are meant: the one that is named; else, where no instance runs, all that there are.
pub fn meant(device: Option<&Path>) -> Result<Vec<Device>> {
    let paths = match device {
        Some(path) => vec![path.to_owned()],
        None if Snapshot::running().is_some() => Vec::new(),
        None => Device::all(),
    };
    paths.iter().map(|path| Ok(Device::open(path)?)).collect()
}

/// Does what `neap agent` is asked.
pub fn carry_out(devices: &[Device], asked: &Asked) -> Result<Value> {
    let done = |device: &Device, incarnation: u32| {
        let enclave = device.info()?.enclave;
        Ok(json!({ "enclave": enclave, "incarnation": incarnation }))
    };
    match asked {
        Asked::List(None) => devices.iter().map(list).collect(),
        Asked::List(Some(one)) => Ok(vec![list(of(devices, *one)?)?].into()),
        Asked::Load { enclave, image } => {
            let device = of(devices, *enclave)?;
            done(device, load(device, image)?)
        }
        Asked::Replace { enclave, image, trial_ms } => {
            let device = of(devices, *enclave)?;
            if let Some(image) = image {
                load(device, image)?;
            }
            let trial = Duration::from_millis(*trial_ms);
            done(device, device.replace(&policy(), trial, PATIENCE)?.incarnation)
        }
        Asked::ReadDisk { .. } | Asked::WriteDisk { .. } => bail!("a device's disk is reached without that"),
        Asked::Watch { .. } | Asked::Seen { .. } => {
            bail!("a timeline is of a run's worker host; start one with `neap run`")
        }
        Asked::Kill { enclave, grace_us } => {
            let device = of(devices, *enclave)?;
            done(device, device.kill(Duration::from_micros(*grace_us), PATIENCE)?.incarnation)
        }
    }
}

/// The enclave's device. One that was named is meant whatever its enclave's number.
pub fn of(devices: &[Device], enclave: u16) -> Result<&Device> {
    if let ([device], 0) = (devices, enclave) {
        return Ok(device);
    }
    let path = Device::path_of(enclave);
    let device = devices.iter().find(|device| device.path() == path);
    device.with_context(|| format!("there is no enclave {enclave}: its device would be {}", path.display()))
}

fn load(device: &Device, image: &Path) -> Result<u32> {
    let bytes = fs::read(image).with_context(|| format!("{} can't be read", image.display()))?;
    ensure!(!bytes.is_empty(), "{} is empty", image.display());
    Ok(device.load(Some(&bytes), &policy(), PATIENCE)?.incarnation)
}

/// The policy that the driver asks agents for.
pub fn policy() -> String {
    fs::read_to_string(POLICY).map_or_else(|_| "fifo".to_owned(), |name| name.trim().to_owned())
}

fn list(device: &Device) -> Result<Value> {
    let info = device.info()?;
    let view = View::of_device(device.window()?);
    let agents = view.agents(&view.hello()?)?;
    Ok(json!({
        "enclave": info.enclave,
        "device": device.path(),
        "policy": policy(),
        "level": info.level_name(),
        "running": agents.running.as_ref().map(of_identity),
        "standby": agents.standby.as_ref().map(of_identity),
        "books": agents.books.as_ref().map(of_books),
    }))
}

/// How things stand by the driver's word.
pub fn of_info(info: &Info) -> Value {
    json!({
        "enclave": info.enclave,
        "decides": info.level_name(),
        "link": if info.link == 1 { "up" } else { "down" },
        "scheduler": if info.scheduler == 1 { "attached" } else { "detached" },
        "version": (info.abi != 0).then(|| Version::from_bits(info.abi).to_string()),
        "session": info.session,
        "incarnation": info.incarnation,
        "cpus": info.cpus,
        "vectors": info.vectors,
        "tasks": info.tasks,
        "window_bytes": info.window_bytes,
        "last_fault": info.fault_name(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_that_is_named_is_meant_whatever_runs() {
        let error = meant(Some(Path::new("/dev/neap77"))).unwrap_err().to_string();
        assert!(error.contains("/dev/neap77"), "{error}");
        let null = meant(Some(Path::new("/dev/null"))).unwrap();
        assert_eq!(of(&null, 0).unwrap().path(), Path::new("/dev/null"));
        let error = of(&null, 3).unwrap_err().to_string();
        assert!(error.contains("there is no enclave 3: its device would be /dev/neap3"), "{error}");
    }

    #[test]
    fn the_driver_s_word_reads_well() {
        let info = Info { link: 1, abi: 1 << 16 | 2, fault: 1, level: 1, ..Info::default() };
        let value = of_info(&info);
        assert_eq!((value["link"].as_str(), value["version"].as_str()), (Some("up"), Some("1.2")));
        assert_eq!(
            (value["last_fault"].as_str(), value["decides"].as_str()),
            (Some("agent_late"), Some("host"))
        );
        assert!(of_info(&Info::default())["version"].is_null());
    }
}
