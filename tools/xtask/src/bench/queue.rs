//! `bench queue`: the message ring against its peers.

/// Measures the ring and checks its ratio against `queue_ratio_min`.
pub fn run(_json: bool) -> anyhow::Result<()> {
    anyhow::bail!("bench queue is not in this version")
}
