//! The key-value store: redb in memory, every value known from its key.

use anyhow::{Context, Result, bail};
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, TableDefinition};

use super::mix;

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("store");
/// Bytes in a value.
const VALUE_BYTES: usize = 96;
/// Keys written in one transaction while loading.
const BATCH: u64 = 10_000;

/// A loaded store.
pub struct Store {
    database: Database,
    keys: u64,
    seed: u64,
}

impl Store {
    /// Loads `keys` keys whose values follow from `seed`; tells `progress` how many are in, batch by batch.
    pub fn load(keys: u64, seed: u64, mut progress: impl FnMut(u64)) -> Result<Self> {
        let database = Database::builder()
            .set_cache_size(keys as usize * VALUE_BYTES * 4)
            .create_with_backend(InMemoryBackend::new())
            .context("making the store")?;
        let mut next = 0;
        while next < keys {
            let end = keys.min(next + BATCH);
            let write = database.begin_write()?;
            {
                let mut table = write.open_table(TABLE)?;
                for key in next..end {
                    table.insert(key, value_of(seed, key).as_slice())?;
                }
            }
            write.commit().context("loading the store")?;
            next = end;
            progress(next);
        }
        Ok(Self { database, keys, seed })
    }

    /// One GET in a transaction of its own; an error when the key does not hold what was put there.
    pub fn get_and_check(&self, key: u64) -> Result<()> {
        let read = self.database.begin_read()?;
        let table = read.open_table(TABLE)?;
        let Some(value) = table.get(key)? else { bail!("key {key} is missing from the store") };
        if value.value() != value_of(self.seed, key) {
            bail!("key {key} holds a value that was never put there");
        }
        Ok(())
    }

    /// How many keys, from 0 on.
    pub fn keys(&self) -> u64 {
        self.keys
    }
}

/// What `key` must hold.
fn value_of(seed: u64, key: u64) -> [u8; VALUE_BYTES] {
    let mut value = [0; VALUE_BYTES];
    for (i, word) in value.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mix(seed, key, i as u64).to_le_bytes());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Store {
        /// As if it had `keys` keys.
        pub fn claiming(self, keys: u64) -> Self {
            Self { keys, ..self }
        }
    }

    #[test]
    fn every_key_holds_its_value() {
        let mut told = Vec::new();
        let store = Store::load(25_000, 7, |keys| told.push(keys)).unwrap();
        assert_eq!(told, [10_000, 20_000, 25_000]);
        for key in (0..25_000).step_by(97) {
            store.get_and_check(key).unwrap();
        }
        assert!(store.get_and_check(25_000).unwrap_err().to_string().contains("25000"));
    }

    #[test]
    fn a_wrong_value_is_told() {
        let mut store = Store::load(10, 7, |_| {}).unwrap();
        store.seed = 8;
        assert!(store.get_and_check(3).unwrap_err().to_string().contains("key 3"));
    }
}
