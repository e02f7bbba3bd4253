//! SPKI pins: which server keys a gateway trusts, in sets that overlap while they rotate.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub mod rotation;

/// Most pins one set may hold.
pub const PINS_MAX: usize = 8;

/// SHA-256 of a DER `SubjectPublicKeyInfo`, written `sha256/` and its Base64 (RFC 7469's notion of a pin).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpkiPin([u8; 32]);

impl SpkiPin {
    /// Wraps a digest.
    #[must_use]
    pub const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256/{}", STANDARD.encode(self.0))
    }
}

/// Text that is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pin {0:?} is not valid: expected sha256/ and the Base64 of 32 bytes")]
pub struct InvalidPin(String);

impl FromStr for SpkiPin {
    type Err = InvalidPin;

    fn from_str(text: &str) -> Result<Self, InvalidPin> {
        let invalid = || InvalidPin(text.chars().take(80).collect());
        let encoded = text.strip_prefix("sha256/").ok_or_else(invalid)?;
        let bytes = STANDARD.decode(encoded).map_err(|_not_base64| invalid())?;
        Ok(Self(bytes.try_into().map_err(|_wrong_length| invalid())?))
    }
}

impl Serialize for SpkiPin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SpkiPin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// The pins of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinSet {
    /// Grows with every change; a lower one is ignored.
    pub version: u64,
    /// Any of these keys is trusted.
    pub pins: BTreeSet<SpkiPin>,
}

/// Why an offered pin set is not adopted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinSetRefusal {
    /// Its version is not above the one in force.
    #[error("the offered version is not newer")]
    NotNewer,
    /// Fewer than two pins leave no way out when a key is lost.
    #[error("fewer than two pins were offered")]
    TooFew,
    /// More pins than a set may hold.
    #[error("too many pins were offered")]
    TooMany,
    /// It would cut off the very connection it came over.
    #[error("the key of the live connection is not among the offered pins")]
    LiveKeyMissing,
}

impl PinSet {
    /// Whether `key` is pinned. Pins are public, so no constant-time comparison is needed.
    #[must_use]
    pub fn contains(&self, key: &SpkiPin) -> bool {
        self.pins.contains(key)
    }

    /// Whether `offered` may follow this set on a connection whose server key is `live`.
    ///
    /// # Errors
    /// The first rule that `offered` breaks.
    pub fn accepts(&self, offered: &Self, live: &SpkiPin) -> Result<(), PinSetRefusal> {
        if offered.version <= self.version {
            Err(PinSetRefusal::NotNewer)
        } else if offered.pins.len() < 2 {
            Err(PinSetRefusal::TooFew)
        } else if offered.pins.len() > PINS_MAX {
            Err(PinSetRefusal::TooMany)
        } else if !offered.contains(live) {
            Err(PinSetRefusal::LiveKeyMissing)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(n: u8) -> SpkiPin {
        SpkiPin::from_digest([n; 32])
    }

    fn set(version: u64, pins: &[u8]) -> PinSet {
        PinSet {
            version,
            pins: pins.iter().copied().map(pin).collect(),
        }
    }

    #[test]
    fn a_pin_survives_its_text_form() {
        assert_eq!(pin(9).to_string().parse::<SpkiPin>().unwrap(), pin(9));
        assert!("sha1/AAAA".parse::<SpkiPin>().is_err());
        assert!("sha256/AAAA".parse::<SpkiPin>().is_err());
    }

    #[test]
    fn a_set_that_would_cut_the_gateway_off_is_refused() {
        let current = set(3, &[1, 2]);
        assert_eq!(current.accepts(&set(4, &[2, 3]), &pin(2)), Ok(()));
        assert_eq!(
            current.accepts(&set(3, &[2, 3]), &pin(2)),
            Err(PinSetRefusal::NotNewer)
        );
        assert_eq!(
            current.accepts(&set(4, &[2]), &pin(2)),
            Err(PinSetRefusal::TooFew)
        );
        assert_eq!(
            current.accepts(&set(4, &[2, 3]), &pin(1)),
            Err(PinSetRefusal::LiveKeyMissing)
        );
        assert_eq!(
            current.accepts(&set(4, &[1, 2, 3, 4, 5, 6, 7, 8, 9]), &pin(1)),
            Err(PinSetRefusal::TooMany)
        );
    }
}
