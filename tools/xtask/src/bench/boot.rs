//! `bench boot`: instructions from reset to the first decision.

/// Measures the boot and checks it against `boot_instructions_max`.
pub fn run(_json: bool) -> anyhow::Result<()> {
    anyhow::bail!("bench boot is not in this version")
}
