//! Stage `package`: the Debian package of the host driver holds what it should, and is installed and purged without a trace.

use anyhow::Result;

use super::{Counts, Verdict};
use crate::linux::package;

pub(super) fn run() -> Result<Verdict> {
    let built = package::build()?;
    let held = package::check(&built)?;
    let remark = format!("{}", built.deb.display());
    Ok(Verdict { counts: Counts::passed(held), remarks: vec![remark], failure: None })
}
