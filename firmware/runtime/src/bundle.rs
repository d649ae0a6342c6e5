//! The agents that come with the firmware, in its own image or handed on by its loader: their images, compressed (LZ4 blocks), one
//! behind the other.
//!
//! | bytes | |
//! | --- | --- |
//! | 4 | policy |
//! | 4 | bytes of the image |
//! | 4 | bytes of the block |
//! | | the block |

use alloc::vec;
use alloc::vec::Vec;

use spin::Once;

/// What the build put together; empty where it was given no agents.
static BUNDLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/bundle.bin"));
/// What the loader has handed on.
static HANDED: Once<&[u8]> = Once::new();
/// Bytes before a block.
const HEAD_BYTES: usize = 12;

/// One agent of the bundle, as it lies there.
#[derive(Clone, Copy)]
pub struct Bundled {
    policy: u32,
    image_bytes: usize,
    block: &'static [u8],
}

impl Bundled {
    /// The image, as it was before it was compressed; none if the block is damaged. Nothing is checked but that.
    pub fn image(&self) -> Option<Vec<u8>> {
        let mut image = vec![0; self.image_bytes.min(neap_abi::image::IMAGE_BYTES_MAX)];
        let bytes = lz4_flex::block::decompress_into(self.block, &mut image).ok()?;
        (bytes == image.len()).then_some(image)
    }
}

/// The agent for `policy`; none if the bundle has none.
pub fn find(policy: u32) -> Option<Bundled> {
    all().find(|bundled| bundled.policy == policy)
}

/// Takes what the loader has handed on into the bundle, behind what is in it. Once.
pub fn add(agents: &'static [u8]) {
    HANDED.call_once(|| agents);
}

/// All agents, of each part up to the first that is none.
pub fn all() -> impl Iterator<Item = Bundled> {
    within(BUNDLE).chain(within(HANDED.get().copied().unwrap_or_default()))
}

fn within(bundle: &'static [u8]) -> impl Iterator<Item = Bundled> {
    let mut rest = bundle;
    core::iter::from_fn(move || {
        let (head, behind) = rest.split_at_checked(HEAD_BYTES)?;
        let [policy, image_bytes, block_bytes] = core::array::from_fn(|word| {
            head.as_chunks::<4>().0.get(word).map_or(0, |bytes| u32::from_le_bytes(*bytes))
        });
        let (block, behind) = behind.split_at_checked(block_bytes as usize)?;
        rest = behind;
        Some(Bundled { policy, image_bytes: image_bytes as usize, block })
    })
}
