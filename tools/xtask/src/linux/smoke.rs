//! `cargo xtask linux`: makes all that guests are booted from, boots one on each kernel, and says how long each step took.

use std::time::Duration;

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use neap_vipu::{Domain, Server, Window};

use super::{Boot, File, Flavour, Guest, Kit, Times, complaints, lint};
use crate::machine::WINDOW_BYTES;
use crate::progress::Step;

/// The guest's first program. It loads the module for a function behind which there is no IPU, lives through the function's
/// end, unloads the module, and says what it sees of all that.
const SMOKE: &str = r#"#!/bin/sh
mount -t proc proc /proc; mount -t devtmpfs dev /dev; mount -t sysfs sys /sys
exec > /dev/ttyS1
neap --version | sed 's/ .*//'
insmod /lib/neap/neap.ko && grep -o '^neap ' /proc/modules
function=$(dirname "$(grep -l 0x1110 /sys/bus/pci/devices/*/device)")
readlink "$function/driver" | grep -o 'neap$'
echo unplug
while [ -e "$function" ]; do sleep 0.1; done
rmmod neap && echo unloaded
uname -r
poweroff -f
"#;
/// Vectors of the function: more than the guest has CPUs.
const VECTORS: u16 = 4;
/// From power on to power off, under emulation.
const PATIENCE: Duration = Duration::from_secs(180);

/// Makes everything for the kernels of `flavours`, boots each, checks the driver's form, and prints the steps' times.
pub fn smoke(flavours: &[Flavour]) -> Result<()> {
    let mut times = Times::default();
    for flavour in flavours {
        let kit = Kit::ready(*flavour, &mut times)?;
        times.step(&format!("{} boot", flavour.name()), || boot(&kit))?;
    }
    let linted = times.step("lint", lint);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["step", "seconds"]);
    let sum = times.0.iter().map(|(_, took)| took).sum::<Duration>();
    for (name, took) in times.0.iter().map(|(name, took)| (name.as_str(), took)).chain([("sum", &sum)]) {
        table.add_row([name.to_owned(), format!("{:.1}", took.as_secs_f64())]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    linted
}

fn boot(kit: &Kit) -> Result<()> {
    let step =
        Step::start(format!("booting the {} kernel {}", kit.kernel.flavour.name(), kit.kernel.release));
    let directory = tempfile::Builder::new().prefix("neap-smoke-").tempdir()?;
    let socket = directory.path().join("enclave");
    let window = Window::create(&format!("neap-{}-smoke", std::process::id()), WINDOW_BYTES)?;
    let _server = Server::start(vec![Domain::new(&socket, window.descriptor()?, VECTORS)])?;
    let mut boot = Boot::new(2);
    boot.functions.push((socket, VECTORS));
    boot.words.push("rdinit=/smoke".to_owned());
    boot.files.push(File::program("smoke", SMOKE));
    let mut guest = kit.boot(&boot)?;
    for expected in ["neap", "neap", "neap", "unplug"] {
        expect(&mut guest, expected)?;
    }
    guest.unplug(0)?;
    for expected in ["unloaded", &kit.kernel.release] {
        expect(&mut guest, expected)?;
    }
    guest.wait(PATIENCE)?;
    let console = guest.console();
    let complaints = complaints(&console);
    ensure!(complaints.is_empty(), "the kernel complains:\n{}\n{}", complaints.join("\n"), guest.tail());
    step.done();
    Ok(())
}

fn expect(guest: &mut Guest, expected: &str) -> Result<()> {
    let report = guest.report(PATIENCE)?;
    ensure!(
        report.as_deref().map(str::trim_end) == Some(expected),
        "the guest reports {report:?} where `{expected}` is due\n{}",
        guest.tail()
    );
    Ok(())
}
