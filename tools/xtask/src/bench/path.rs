//! `bench path`: instructions from message to doorbell.

/// Measures the decision path and checks it against `path_instructions_max`.
pub fn run(_json: bool) -> anyhow::Result<()> {
    anyhow::bail!("bench path is not in this version")
}
