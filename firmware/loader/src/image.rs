//! A signed image: a header, a manifest, and the parts that the manifest names.
//!
//! | at | bytes | |
//! | --- | --- | --- |
//! | 0 | 8 | magic, `NEAP-IMG` |
//! | 8 | 4 | format, 1 |
//! | 12 | 4 | bytes of the manifest |
//! | 16 | 8 | bytes of the whole |
//! | 24 | 32 | the key: SHA-256 of its public half |
//! | 56 | 8 | zero |
//! | 64 | 64 | Ed25519's signature of the first 64 bytes and the manifest |
//! | 128 | | the manifest, JSON |
//!
//! Each part begins at a multiple of 4096; what lies between parts is zero. Numbers are little-endian.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How an image begins.
pub const MAGIC: [u8; 8] = *b"NEAP-IMG";
/// The format's number.
pub const FORMAT: u32 = 1;
/// The header's length in bytes.
pub const HEADER_BYTES: usize = 128;
/// Parts begin at multiples of this.
pub const ALIGN_BYTES: usize = 4096;
/// The longest image, in bytes: a slot holds one.
pub const IMAGE_BYTES_MAX: usize = 16 << 20;
/// The longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 64 << 10;
/// The part of the header that is signed.
const SIGNED_BYTES: usize = 64;

/// What an image is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Neap's version.
    pub neap: String,
    /// The ABI's, as "1.2".
    pub abi: String,
    /// The board that it is for.
    pub board: String,
    /// Moves when an older image must not be booted any more. Never goes back on a card.
    pub security_version: u32,
    /// The runtime's command line: `neap.key=value` words.
    pub args: String,
    /// What follows.
    pub parts: Vec<Part>,
}

/// One part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// Its name: an agent's policy, say.
    pub name: String,
    /// Where it begins in the image.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// SHA-256 of it, in hexadecimal digits.
    pub sha256: String,
}

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// The runtime, as arm64 boots it (`Image`).
    Runtime,
    /// An agent, as the runtime's bundle has it.
    Agent,
}

/// Why an image is not booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is none.
    Magic,
    /// Another release's.
    Format {
        /// Its format.
        format: u32,
    },
    /// Its end is missing, or there is more than its header says.
    Length {
        /// Bytes by its header.
        said: u64,
        /// Bytes that there are.
        there: u64,
    },
    /// Its manifest is longer than a manifest can be.
    ManifestLength {
        /// Bytes by its header.
        bytes: u32,
    },
    /// Its key is none of ours.
    Key {
        /// The key's first bytes.
        id: [u8; 4],
    },
    /// The signature is not of this header and manifest.
    Signature,
    /// What is signed can't be understood.
    Manifest {
        /// Why.
        why: String,
    },
    /// A part lies where none can.
    Place {
        /// Which.
        part: String,
    },
    /// A part is not what was signed.
    Hash {
        /// Which.
        part: String,
    },
    /// Something lies where nothing should.
    Padding {
        /// Where.
        offset: usize,
    },
    /// The disk does not give it.
    Unreadable {
        /// What the firmware says.
        why: String,
    },
    /// It is for another board.
    Board {
        /// Its.
        theirs: String,
        /// The one that it was to boot on.
        ours: String,
    },
    /// It is older than what was booted here.
    Downgrade {
        /// Its security version.
        theirs: u32,
        /// The least that is taken.
        least: u32,
    },
}

impl Manifest {
    /// The manifest that an image says it has, and the key's name, without a look at whether that is true.
    ///
    /// # Errors
    /// What is no image.
    pub fn alleged(bytes: &[u8]) -> Result<(Self, [u8; 32]), Refusal> {
        let there = bytes.len() as u64;
        let header = bytes.get(..HEADER_BYTES).ok_or(Refusal::Length { said: HEADER_BYTES as u64, there })?;
        if header[..8] != MAGIC {
            return Err(Refusal::Magic);
        }
        let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
        let manifest =
            bytes[HEADER_BYTES..].get(..length as usize).filter(|_| length as usize <= MANIFEST_BYTES_MAX);
        let manifest = manifest.ok_or(Refusal::ManifestLength { bytes: length })?;
        let manifest =
            serde_json::from_slice(manifest).map_err(|error| Refusal::Manifest { why: error.to_string() })?;
        let mut key = [0; 32];
        key.copy_from_slice(&header[24..56]);
        Ok((manifest, key))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("it is no image of Neap's; build one with `neap image build`"),
            Self::Format { format } => {
                write!(f, "its format is {format}, and this release knows {FORMAT}: build it anew")
            }
            Self::Length { said, there } => {
                write!(
                    f,
                    "it has {there} bytes, and says that it has {said}: it was cut short, or was not written whole"
                )
            }
            Self::ManifestLength { bytes } => {
                write!(f, "its manifest is said to have {bytes} bytes, of {MANIFEST_BYTES_MAX} at most")
            }
            Self::Key { id } => {
                write!(f, "it is signed with key {}, which is none of those that are trusted here", hex(id))
            }
            Self::Signature => {
                f.write_str("its signature is not of this manifest: it was changed after it was signed")
            }
            Self::Manifest { why } => write!(f, "its manifest can't be understood: {why}"),
            Self::Place { part } => write!(f, "part {part} lies where no part can"),
            Self::Hash { part } => write!(f, "part {part} is not what was signed"),
            Self::Padding { offset } => write!(f, "byte {offset} belongs to nothing, and is not zero"),
            Self::Unreadable { why } => write!(f, "it can't be read from the disk: {why}"),
            Self::Board { theirs, ours } => write!(f, "it is for board {theirs}, and this is {ours}"),
            Self::Downgrade { theirs, least } => {
                write!(f, "its security version is {theirs}, and {least} is the least that is taken here")
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// The name of a key in an image: SHA-256 of its public half.
#[must_use]
pub fn key_id(key: &VerifyingKey) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Bytes in hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

/// What an image is made of: its manifest without parts, and each part's kind, name and bytes.
#[derive(Clone, Debug)]
pub struct Draft<'a> {
    /// The manifest; its parts are filled in.
    pub manifest: Manifest,
    /// The parts, in the order in which they lie.
    pub parts: Vec<(PartKind, &'a str, &'a [u8])>,
}

impl Draft<'_> {
    /// The image, signed. The same draft and key give the same bytes.
    ///
    /// # Errors
    /// More than an image can hold.
    pub fn sign(mut self, key: &SigningKey) -> Result<Vec<u8>, Refusal> {
        // The offsets depend on the manifest's length, and that on the offsets' digits: they are counted from a place that any
        // manifest ends before.
        let mut offset = (HEADER_BYTES + self.manifest_bytes_most()).next_multiple_of(ALIGN_BYTES);
        self.manifest.parts = Vec::new();
        for (kind, name, bytes) in &self.parts {
            self.manifest.parts.push(Part {
                kind: *kind,
                name: (*name).to_string(),
                offset: offset as u64,
                bytes: bytes.len() as u64,
                sha256: hex(&Sha256::digest(bytes)),
            });
            offset = (offset + bytes.len()).next_multiple_of(ALIGN_BYTES);
        }
        let length = |said| Refusal::Length { said, there: IMAGE_BYTES_MAX as u64 };
        if offset > IMAGE_BYTES_MAX {
            return Err(length(offset as u64));
        }
        let manifest = serde_json::to_vec(&self.manifest)
            .map_err(|error| Refusal::Manifest { why: error.to_string() })?;
        let manifest_bytes = manifest.len() as u32;
        if manifest.len() > MANIFEST_BYTES_MAX {
            return Err(Refusal::ManifestLength { bytes: manifest_bytes });
        }
        let mut image = vec![0; offset];
        image[..8].copy_from_slice(&MAGIC);
        image[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        image[12..16].copy_from_slice(&manifest_bytes.to_le_bytes());
        image[16..24].copy_from_slice(&(offset as u64).to_le_bytes());
        image[24..56].copy_from_slice(&key_id(&key.verifying_key()));
        image[HEADER_BYTES..HEADER_BYTES + manifest.len()].copy_from_slice(&manifest);
        let signature = key.sign(&signed(&image[..SIGNED_BYTES], &manifest));
        image[SIGNED_BYTES..HEADER_BYTES].copy_from_slice(&signature.to_bytes());
        for (part, (_, _, bytes)) in self.manifest.parts.iter().zip(&self.parts) {
            let from = part.offset as usize;
            image[from..from + bytes.len()].copy_from_slice(bytes);
        }
        Ok(image)
    }

    /// A manifest of these parts has no more bytes.
    fn manifest_bytes_most(&self) -> usize {
        let Manifest { neap, abi, board, args, .. } = &self.manifest;
        let names: usize = self.parts.iter().map(|(_, name, _)| 6 * name.len() + 256).sum();
        6 * (neap.len() + abi.len() + board.len() + args.len()) + names + 256
    }
}

fn signed(header: &[u8], manifest: &[u8]) -> Vec<u8> {
    let mut signed = header.to_vec();
    signed.extend_from_slice(manifest);
    signed
}

/// An image that has been found good.
#[derive(Clone, Debug)]
pub struct Verified<'a> {
    /// Its manifest.
    pub manifest: Manifest,
    bytes: &'a [u8],
}

impl<'a> Verified<'a> {
    /// Checks every byte of `bytes`, which is an image or begins with one and goes on with zeros, as a slot does. Its key has to be
    /// one of `keys`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(bytes: &'a [u8], keys: &[VerifyingKey]) -> Result<Self, Refusal> {
        let there = bytes.len() as u64;
        let header = bytes.get(..HEADER_BYTES).ok_or(Refusal::Length { said: HEADER_BYTES as u64, there })?;
        if header[..8] != MAGIC {
            return Err(Refusal::Magic);
        }
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (format, manifest_bytes) = (word(8), word(12));
        if format != FORMAT {
            return Err(Refusal::Format { format });
        }
        let said = u64::from(word(16)) | u64::from(word(20)) << 32;
        if said > there || said > IMAGE_BYTES_MAX as u64 || !said.is_multiple_of(ALIGN_BYTES as u64) {
            return Err(Refusal::Length { said, there });
        }
        let (image, rest) = bytes.split_at(said as usize);
        let end = HEADER_BYTES + (manifest_bytes as usize).min(usize::MAX - HEADER_BYTES);
        let manifest = image.get(HEADER_BYTES..end).filter(|manifest| manifest.len() <= MANIFEST_BYTES_MAX);
        let manifest = manifest.ok_or(Refusal::ManifestLength { bytes: manifest_bytes })?;
        let id = &header[24..56];
        let key = keys.iter().find(|key| key_id(key) == id);
        let key = key.ok_or(Refusal::Key { id: [id[0], id[1], id[2], id[3]] })?;
        let mut signature = [0; 64];
        signature.copy_from_slice(&header[SIGNED_BYTES..]);
        key.verify_strict(&signed(&header[..SIGNED_BYTES], manifest), &Signature::from_bytes(&signature))
            .map_err(|_| Refusal::Signature)?;
        // From here on all that is read is as it was signed.
        let manifest: Manifest =
            serde_json::from_slice(manifest).map_err(|error| Refusal::Manifest { why: error.to_string() })?;
        let mut from = end;
        for part in &manifest.parts {
            let place = || Refusal::Place { part: part.name.clone() };
            let offset = usize::try_from(part.offset).map_err(|_| place())?;
            let bytes = usize::try_from(part.bytes).map_err(|_| place())?;
            let to = offset.checked_add(bytes).ok_or_else(place)?;
            if offset < from || !offset.is_multiple_of(ALIGN_BYTES) {
                return Err(place());
            }
            let is = image.get(offset..to).ok_or_else(place)?;
            if hex(&Sha256::digest(is)) != part.sha256 {
                return Err(Refusal::Hash { part: part.name.clone() });
            }
            is_zero(image, from, offset)?;
            from = to;
        }
        is_zero(image, from, image.len())?;
        is_zero(&bytes[bytes.len() - rest.len()..], 0, rest.len())
            .map_err(|_| Refusal::Length { said, there })?;
        Ok(Self { manifest, bytes: image })
    }

    /// Checks also that it is for this board and no older than it may be.
    ///
    /// # Errors
    /// As [`Verified::check`].
    pub fn for_board(self, board: &str, security_version_least: u32) -> Result<Self, Refusal> {
        let Manifest { board: theirs, security_version, .. } = &self.manifest;
        if theirs != board {
            return Err(Refusal::Board { theirs: theirs.clone(), ours: board.to_string() });
        }
        if *security_version < security_version_least {
            return Err(Refusal::Downgrade { theirs: *security_version, least: security_version_least });
        }
        Ok(self)
    }

    /// A part's bytes.
    #[must_use]
    pub fn part(&self, part: &Part) -> &'a [u8] {
        let (offset, bytes) = (part.offset as usize, part.bytes as usize);
        self.bytes.get(offset..).and_then(|rest| rest.get(..bytes)).unwrap_or_default()
    }

    /// The image, without what follows it in a slot.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

fn is_zero(image: &[u8], from: usize, to: usize) -> Result<(), Refusal> {
    let between = image.get(from..to).unwrap_or_default();
    match between.iter().position(|byte| *byte != 0) {
        Some(at) => Err(Refusal::Padding { offset: from + at }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn draft<'a>(runtime: &'a [u8], agent: &'a [u8]) -> Draft<'a> {
        let manifest = Manifest {
            neap: "0.1.0".to_string(),
            abi: "1.2".to_string(),
            board: "qemu_virt".to_string(),
            security_version: 3,
            args: "neap.idle=spin".to_string(),
            parts: Vec::new(),
        };
        let parts = vec![(PartKind::Runtime, "runtime", runtime), (PartKind::Agent, "fifo", agent)];
        Draft { manifest, parts }
    }

    fn image() -> Vec<u8> {
        draft(&[1; 5000], &[2; 100]).sign(&key(7)).unwrap()
    }

    fn check(bytes: &[u8]) -> Result<Verified<'_>, Refusal> {
        Verified::check(bytes, &[key(8).verifying_key(), key(7).verifying_key()])
    }

    #[test]
    fn what_was_signed_is_good_and_the_same_each_time() {
        let image = image();
        assert_eq!(image, self::image());
        let good = check(&image).unwrap();
        let [runtime, agent] = &good.manifest.parts[..] else { panic!("{:?}", good.manifest) };
        assert_eq!((good.part(runtime), good.part(agent)), (&[1; 5000][..], &[2; 100][..]));
        assert!(good.clone().for_board("qemu_virt", 3).is_ok());
        let refused = |board, least| good.clone().for_board(board, least).unwrap_err().to_string();
        assert_eq!(refused("sbsa", 3), "it is for board qemu_virt, and this is sbsa");
        assert!(refused("qemu_virt", 4).contains("its security version is 3, and 4 is the least"));
    }

    #[test]
    fn the_command_line_is_signed_whatever_it_holds() {
        let mut draft = draft(&[1; 5000], &[2; 100]);
        draft.manifest.args = "\u{1}\"".repeat(5000);
        let image = draft.clone().sign(&key(7)).unwrap();
        assert_eq!(check(&image).unwrap().manifest.args, draft.manifest.args);
        let mut changed = image.clone();
        let at = image.windows(8).position(|bytes| bytes == b"\"args\":\"").unwrap() + 12;
        changed[at] ^= 1;
        assert_eq!(check(&changed).unwrap_err(), Refusal::Signature);
    }

    #[test]
    fn in_a_slot_zeros_follow_and_nothing_else() {
        let mut slot = image();
        let bytes = slot.len();
        slot.resize(bytes + 8192, 0);
        assert_eq!(check(&slot).unwrap().bytes().len(), bytes);
        slot[bytes + 77] = 1;
        assert!(matches!(check(&slot), Err(Refusal::Length { .. })));
    }

    #[test]
    fn a_stranger_s_key_is_named() {
        let image = draft(&[1], &[2]).sign(&key(9)).unwrap();
        let refused = check(&image).unwrap_err();
        assert!(matches!(refused, Refusal::Key { .. }), "{refused}");
        assert!(refused.to_string().contains("none of those that are trusted"));
    }

    #[test]
    fn parts_that_one_is_not_meant_to_have_are_refused_though_signed() {
        let mut image = image();
        // Signed by a key of ours, but by somebody's own tool: a part within the manifest.
        let end = HEADER_BYTES + u32::from_le_bytes(image[12..16].try_into().unwrap()) as usize;
        let mut manifest: Manifest = serde_json::from_slice(&image[HEADER_BYTES..end]).unwrap();
        manifest.parts[0].offset = 0;
        let text = serde_json::to_vec(&manifest).unwrap();
        image[HEADER_BYTES..end].fill(0);
        image[HEADER_BYTES..HEADER_BYTES + text.len()].copy_from_slice(&text);
        image[12..16].copy_from_slice(&(text.len() as u32).to_le_bytes());
        let signature = key(7).sign(&signed(&image[..SIGNED_BYTES], &text));
        image[SIGNED_BYTES..HEADER_BYTES].copy_from_slice(&signature.to_bytes());
        assert_eq!(check(&image).unwrap_err(), Refusal::Place { part: "runtime".to_string() });
    }

    #[test]
    fn any_cut_is_refused() {
        let image = image();
        for bytes in (0..image.len()).step_by(97) {
            assert!(check(&image[..bytes]).is_err(), "{bytes} bytes");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn any_flipped_bit_is_refused(at in 0usize..1 << 20, bit in 0u8..8) {
            let mut image = image();
            let at = at % image.len();
            image[at] ^= 1 << bit;
            prop_assert!(check(&image).is_err(), "byte {}, bit {}", at, bit);
        }

        #[test]
        fn nothing_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600), begins: bool) {
            let mut bytes = bytes;
            if begins && bytes.len() >= 12 {
                bytes[..8].copy_from_slice(&MAGIC);
                bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
            }
            prop_assert!(check(&bytes).is_err());
        }
    }
}
