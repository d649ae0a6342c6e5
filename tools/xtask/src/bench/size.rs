//! `bench size`: what the firmware loads.

/// Measures the firmware's loaded bytes and checks them against `image_loaded_bytes_max`.
pub fn run(_json: bool) -> anyhow::Result<()> {
    anyhow::bail!("bench size is not in this version")
}
