//! `bench size`: what the firmware loads.

use anyhow::{Result, bail};

use crate::budget::Budget;
use crate::firmware::{self, Kind};

/// Measures what runtime and agent load, in bytes, and checks it against `image_loaded_bytes_max`.
pub fn run(json: bool) -> Result<()> {
    let allowed = Budget::load()?.image_loaded_bytes_max;
    let image = firmware::build(&Kind::Runtime)?;
    let (loaded, memory) = (image.loaded_bytes, image.memory_bytes);
    if json {
        println!(
            "{}",
            serde_json::json!({
                "loaded_bytes": loaded,
                "memory_bytes": memory,
                "loaded_bytes_max": allowed,
            })
        );
    } else {
        println!("loaded {loaded} B of {allowed} B ({:.0} %)", loaded as f64 * 100.0 / allowed as f64);
        println!("memory {memory} B");
    }
    if loaded > allowed {
        bail!("the image loads {loaded} B; budget.toml allows {allowed} B");
    }
    Ok(())
}
