//! The secret of an API key: its text form, its checksum and its digest.

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// What scanners for leaked secrets look for.
const PREFIX: &str = "vwk_";
const RANDOM_DIGITS: usize = 64;
const CHECKSUM_DIGITS: usize = 8;

/// `vwk_`, 256 random bits and a checksum, both in hexadecimal. The checksum finds typing errors and tells a key from
/// similar text without asking the store.
#[derive(Clone)]
pub struct ApiSecret(Zeroizing<String>);

impl ApiSecret {
    /// The secret made of `random`.
    #[must_use]
    pub fn from_random(random: &[u8; 32]) -> Self {
        let digits = Zeroizing::new(hex::encode(random));
        let mut text = Zeroizing::new(String::with_capacity(
            PREFIX.len() + RANDOM_DIGITS + CHECKSUM_DIGITS,
        ));
        text.push_str(PREFIX);
        text.push_str(&digits);
        let checksum = checksum(&text);
        text.push_str(&checksum);
        Self(text)
    }

    /// Reads a presented secret; `None` for anything that cannot be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PREFIX)?;
        let plain = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() != RANDOM_DIGITS + CHECKSUM_DIGITS || !digits.bytes().all(plain) {
            return None;
        }
        let (body, given) = text.split_at(PREFIX.len() + RANDOM_DIGITS);
        (checksum(body) == given).then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The text its holder presents.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the store keeps of it.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl std::fmt::Debug for ApiSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiSecret(..)")
    }
}

fn checksum(body: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"viworks API key checksum\0");
    hash.update(body.as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, ..] = digest;
    format!("{:08x}", u32::from_be_bytes([a, b, c, d]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_reads_back_and_a_changed_digit_does_not() {
        let secret = ApiSecret::from_random(&[0x5a; 32]);
        let text = secret.expose().to_owned();
        assert_eq!(text.len(), 76);
        assert_eq!(ApiSecret::parse(&text).unwrap().sha256(), secret.sha256());
        for at in PREFIX.len()..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(ApiSecret::parse(&changed).is_none(), "digit {at}");
        }
    }

    #[test]
    fn text_that_cannot_be_a_secret_is_refused() {
        let upper = ApiSecret::from_random(&[0xab; 32]).expose().to_uppercase();
        for text in ["", "vwk_", "vwk_00", "ghp_0000", &upper] {
            assert!(ApiSecret::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = ApiSecret::from_random(&[1; 32]);
        assert_eq!(format!("{secret:?}"), "ApiSecret(..)");
    }
}
