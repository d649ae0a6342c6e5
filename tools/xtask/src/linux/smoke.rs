//! `cargo xtask linux`: makes all that guests are booted from, boots one on each kernel, and says how long each step took.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};

use super::{Boot, File, Flavour, Kit, Times, complaints, lint};
use crate::progress::Step;

/// The guest's first program: loads the module, says so, and switches the guest off.
const SMOKE: &str = r#"#!/bin/sh
mount -t proc proc /proc; mount -t devtmpfs dev /dev; mount -t sysfs sys /sys
insmod /lib/neap/neap.ko && cat /proc/modules > /dev/ttyS1
neap --version > /dev/ttyS1
rmmod neap && uname -r > /dev/ttyS1
poweroff -f
"#;
/// From power on to power off, under emulation.
const PATIENCE: Duration = Duration::from_secs(180);

/// Makes everything for the kernels of `flavours`, boots each, and prints the steps' times.
pub fn smoke(flavours: &[Flavour]) -> Result<()> {
    let mut times = Times::default();
    for (index, flavour) in flavours.iter().enumerate() {
        let kit = Kit::ready(*flavour, &mut times)?;
        if index == 0 {
            times.step("clippy", lint)?;
        }
        times.step(&format!("{} boot", flavour.name()), || boot(&kit))?;
    }
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
    Ok(())
}

fn boot(kit: &Kit) -> Result<()> {
    let step =
        Step::start(format!("booting the {} kernel {}", kit.kernel.flavour.name(), kit.kernel.release));
    let mut boot = Boot::new(2);
    boot.words.push("rdinit=/smoke".to_owned());
    boot.files.push(File::program("smoke", SMOKE));
    let mut guest = kit.boot(&boot)?;
    let mut reports = Vec::new();
    while let Some(report) = guest.report(PATIENCE)? {
        reports.push(report);
    }
    guest.wait(PATIENCE)?;
    let modules = reports.first().context("the guest has reported nothing");
    let loaded = modules.with_context(|| guest.tail())?.starts_with("neap ");
    ensure!(loaded, "the guest has not loaded the module\n{}", guest.tail());
    ensure!(
        reports.len() == 3 && reports[1].starts_with("neap ") && reports[2] == kit.kernel.release,
        "the guest reports {reports:?}\n{}",
        guest.tail()
    );
    let console = guest.console();
    let complaints = complaints(&console);
    ensure!(complaints.is_empty(), "the kernel complains:\n{}\n{}", complaints.join("\n"), guest.tail());
    step.done();
    Ok(())
}
