//! The keys that are trusted, as files have them: `neap-public-key ` and 64 hexadecimal digits, one key a line.

use ed25519_dalek::VerifyingKey;

/// How the line of a public key begins.
pub const PUBLIC: &str = "neap-public-key ";

/// 32 bytes from their hexadecimal digits.
#[must_use]
pub fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

/// The keys of a file; where a line is none, its number, from 1 on. Empty lines are passed over.
pub fn trusted(text: &str) -> impl Iterator<Item = Result<VerifyingKey, usize>> {
    let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(number, line)| {
        let bytes = line.strip_prefix(PUBLIC).and_then(from_hex);
        bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok()).ok_or(number + 1)
    })
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec::Vec;

    use ed25519_dalek::SigningKey;

    use super::*;
    use crate::image::hex;

    #[test]
    fn every_line_is_a_key_or_is_named() {
        let keys = [1, 2].map(|seed| SigningKey::from_bytes(&[seed; 32]).verifying_key());
        let [first, second] = keys.map(|key| format!("{PUBLIC}{}", hex(key.as_bytes())));
        let found: Vec<_> = trusted(&format!("{first}\r\n\n neap-public-key zz\n{second}")).collect();
        assert_eq!(found, [Ok(keys[0]), Err(3), Ok(keys[1])]);
        for wrong in ["", "neap-secret-key 12", &first[..first.len() - 1], &first.replace('0', "\u{e9}")] {
            assert!(trusted(wrong).all(|key| key.is_err()), "{wrong:?}");
        }
    }
}
