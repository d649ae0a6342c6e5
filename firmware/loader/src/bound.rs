//! An image bound into the loader: one UEFI application that boots this image and no other, from wherever a firmware finds it.
//!
//! It is one more section of the loader, `.neap`: the public key that the image is signed with, and the image. That key proves
//! that the image is whole; whether the application itself is to be trusted is for UEFI's Secure Boot to say.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use ed25519_dalek::VerifyingKey;

/// The section's name.
const SECTION: [u8; 8] = *b".neap\0\0\0";
/// Initialised data, to be read.
const CHARACTERISTICS: u32 = 0x4000_0040;
/// A key's bytes, before the image.
pub const KEY_BYTES: usize = 32;
/// Bytes of a loaded application in which its headers lie.
pub const HEADERS_BYTES: usize = 4096;

/// Bytes of a section's header.
const SECTION_BYTES: usize = 40;
/// Bytes before the optional header: the signature, and COFF's header.
const COFF_BYTES: usize = 24;

/// Why an image can't be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbound {
    /// The loader is no UEFI application.
    NoApplication,
    /// There is no room for the section's header.
    Room,
    /// It has a section of that name.
    Twice,
}

impl fmt::Display for Unbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoApplication => "the loader is no UEFI application",
            Self::Room => "the loader's headers have no room for one section more, or the image is too long",
            Self::Twice => "an image is bound into it already",
        })
    }
}

impl core::error::Error for Unbound {}

/// Where the headers of a PE (Microsoft's PE format, "Optional Header" and "Section Table") have what matters here.
struct Headers {
    coff: usize,
    optional: usize,
    sections: Range<usize>,
}

impl Headers {
    fn of(bytes: &[u8]) -> Option<Self> {
        let coff = u32_at(bytes, 0x3c)? as usize;
        if bytes.get(..2)? != b"MZ" || bytes.get(coff..)?.get(..4)? != b"PE\0\0" {
            return None;
        }
        let optional = coff.checked_add(COFF_BYTES)?;
        // PE32+ alone: this is a 64-bit machine's.
        if u16_at(bytes, optional)? != 0x20b {
            return None;
        }
        let start = optional.checked_add(usize::from(u16_at(bytes, coff + 20)?))?;
        let end = start.checked_add(usize::from(u16_at(bytes, coff + 6)?) * SECTION_BYTES)?;
        (end <= bytes.len()).then_some(Self { coff, optional, sections: start..end })
    }

    fn find<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes[self.sections.clone()].chunks_exact(SECTION_BYTES).find(|section| section.starts_with(&SECTION))
    }
}

/// Where in a loaded application the image's key and the image lie, by its headers; none if nothing is bound into it.
#[must_use]
pub fn find(headers: &[u8]) -> Option<Range<usize>> {
    let section = Headers::of(headers)?.find(headers)?;
    let (bytes, start) = (u32_at(section, 8)? as usize, u32_at(section, 12)? as usize);
    Some(start..start.checked_add(bytes)?)
}

/// The loader with `image` bound into it, which `key` has signed.
///
/// # Errors
/// What is no loader, or has no room.
pub fn bind(loader: &[u8], key: &VerifyingKey, image: &[u8]) -> Result<Vec<u8>, Unbound> {
    let headers = Headers::of(loader).ok_or(Unbound::NoApplication)?;
    if headers.find(loader).is_some() {
        return Err(Unbound::Twice);
    }
    let field = |at: usize| u32_at(loader, headers.optional + at).ok_or(Unbound::NoApplication);
    let (memory_align, file_align) = (field(32)?, field(36)?);
    if !memory_align.is_power_of_two() || !file_align.is_power_of_two() {
        return Err(Unbound::NoApplication);
    }
    let up = |value: u32, align: u32| value.checked_next_multiple_of(align).ok_or(Unbound::Room);
    let first_section = field(60)? as usize;
    let free = headers.sections.end..headers.sections.end + SECTION_BYTES;
    if free.end > first_section.min(HEADERS_BYTES).min(loader.len()) {
        return Err(Unbound::Room);
    }
    let bytes = u32::try_from(KEY_BYTES + image.len()).map_err(|_| Unbound::Room)?;
    let address = up(field(56)?, memory_align)?;
    let at = up(u32::try_from(loader.len()).map_err(|_| Unbound::Room)?, file_align)?;
    let end = up(address.checked_add(bytes).ok_or(Unbound::Room)?, memory_align)?;
    let file_bytes = up(bytes, file_align)?;

    let mut bound = loader.to_vec();
    let mut put = |at: usize, bytes: &[u8]| bound[at..at + bytes.len()].copy_from_slice(bytes);
    let sections = (headers.sections.len() / SECTION_BYTES + 1) as u16;
    put(headers.coff + 6, &sections.to_le_bytes());
    put(headers.optional + 56, &end.to_le_bytes());
    let mut section = [0; SECTION_BYTES];
    section[..8].copy_from_slice(&SECTION);
    let words = [(8, bytes), (12, address), (16, file_bytes), (20, at), (36, CHARACTERISTICS)];
    for (to, word) in words {
        section[to..to + 4].copy_from_slice(&word.to_le_bytes());
    }
    put(free.start, &section);
    bound.resize(at as usize, 0);
    bound.extend_from_slice(key.as_bytes());
    bound.extend_from_slice(image);
    bound.resize((at + file_bytes) as usize, 0);
    Ok(bound)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..)?.get(..2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use ed25519_dalek::SigningKey;

    use super::*;

    /// A PE of one section and nothing else, whose headers end at `headers_bytes`.
    fn application(headers_bytes: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x800];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, b"MZ");
        put(0x3c, &0x80u32.to_le_bytes());
        put(0x80, b"PE\0\0");
        put(0x86, &1u16.to_le_bytes());
        put(0x94, &240u16.to_le_bytes());
        put(0x98, &0x20bu16.to_le_bytes());
        for (at, word) in [(32, 0x1000), (36, 0x200), (56, 0x3000), (60, headers_bytes)] {
            put(0x98 + at, &u32::to_le_bytes(word));
        }
        put(0x98 + 240, b".text\0\0\0");
        bytes
    }

    fn key() -> VerifyingKey {
        SigningKey::from_bytes(&[3; 32]).verifying_key()
    }

    #[test]
    fn what_is_bound_is_found_where_a_firmware_loads_it() {
        let loader = application(0x400);
        assert_eq!(find(&loader), None);
        let bound = bind(&loader, &key(), &[7; 5000]).unwrap();
        assert_eq!(find(&bound[..HEADERS_BYTES]), Some(0x3000..0x3000 + 5032));
        // A firmware copies it from where the section's header says.
        let section = &bound[0x98 + 240 + SECTION_BYTES..];
        let at = u32_at(section, 20).unwrap() as usize;
        assert_eq!(at, 0x800);
        assert_eq!(&bound[at..at + KEY_BYTES], key().as_bytes());
        assert!(bound[at + KEY_BYTES..][..5000].iter().all(|&byte| byte == 7));
        assert_eq!(u32_at(&bound, 0x98 + 56), Some(0x5000), "the application takes more memory");
        assert!(bound.len().is_multiple_of(0x200));
        assert_eq!(&bound[0x98 + 240 + 2 * SECTION_BYTES..0x800], &loader[0x98 + 240 + 2 * SECTION_BYTES..]);
    }

    #[test]
    fn what_can_not_be_bound_is_refused() {
        let loader = application(0x400);
        let bound = bind(&loader, &key(), b"image").unwrap();
        assert_eq!(bind(&bound, &key(), b"image"), Err(Unbound::Twice));
        assert_eq!(bind(&application(0x98 + 240 + 79), &key(), b"image"), Err(Unbound::Room));
        assert_eq!(bind(b"#!/bin/sh", &key(), b"image"), Err(Unbound::NoApplication));
        for length in 0..0x98 + 240 + SECTION_BYTES {
            assert!(bind(&loader[..length], &key(), b"image").is_err(), "cut at {length}");
            assert_eq!(find(&loader[..length]), None);
        }
        let mut odd = loader;
        odd[0x98 + 36] = 3;
        assert_eq!(bind(&odd, &key(), b"image"), Err(Unbound::NoApplication));
    }
}
