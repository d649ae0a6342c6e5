//! The budgets: `budget.toml` in the checkout's root, one figure per line.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::paths;

/// What the measurements are held to.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Instructions from the load that sees a whole message to the doorbell store, at most.
    pub path_instructions_max: u64,
    /// As above, for a message that carries a refusal.
    pub path_refusal_instructions_max: u64,
    /// Modelled time of the same path with its doorbell, in nanoseconds, at most.
    pub path_modelled_ns_max: f64,
    /// Instructions of an agent's core for which nobody decides while a newcomer takes over, at most.
    pub blackout_instructions_max: u64,
    /// Bytes that runtime and agent load, at most.
    pub image_loaded_bytes_max: u64,
    /// Instructions from reset to the first decision, at most.
    pub boot_instructions_max: u64,
    /// Round trips of the message ring over its best peer's, between two cores, at least.
    pub queue_ratio_min: f64,
    /// Instructions of a decision with 256 CPUs and 10^6 tasks over those with 8 and 100, at most, for each policy.
    pub scale_ratio_max: f64,
}

impl Budget {
    /// Reads the checkout's budgets; an unknown, missing or mistyped figure is an error that names it.
    pub fn load() -> Result<Self> {
        let file = paths::root().join("budget.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a list of budgets", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        Ok(toml::from_str(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "path_instructions_max = 150\npath_refusal_instructions_max = 220\npath_modelled_ns_max = 150\nblackout_instructions_max = 300000\nimage_loaded_bytes_max = 131072\n\
                         boot_instructions_max = 3000000\nqueue_ratio_min = 1.2\nscale_ratio_max = 1.2\n";

    #[test]
    fn the_checkout_s_own_file_is_read() {
        let budget = Budget::load().unwrap();
        assert!(budget.path_instructions_max <= 160);
        assert!(budget.image_loaded_bytes_max <= 128 * 1024);
        assert!(budget.queue_ratio_min >= 1.2);
        assert!(budget.scale_ratio_max <= 1.2);
    }

    #[test]
    fn a_figure_that_is_missing_misspelt_or_mistyped_is_named() {
        assert!(Budget::parse(WHOLE).is_ok());
        let cases = [
            (WHOLE.replace("boot_instructions_max = 3000000\n", ""), "boot_instructions_max"),
            (format!("{WHOLE}path_max = 1\n"), "path_max"),
            (WHOLE.replace("150", "\"150\""), "path_instructions_max"),
            (WHOLE.replace("131072", "-1"), "image_loaded_bytes_max"),
        ];
        for (text, culprit) in cases {
            let error = Budget::parse(&text).unwrap_err();
            assert!(error.to_string().contains(culprit), "{culprit}: {error}");
        }
    }
}
