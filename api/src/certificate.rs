//! The certificates of one gateway, as an operator sees them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::NamedGateway;
use crate::page::{Kind, list};
use viworks_common::time::Timestamp;

/// Digits of a fingerprint, which is a SHA-256.
const FINGERPRINT_DIGITS: usize = 64;

/// The most digits of a serial number: 20 bytes, by RFC 5280.
const SERIAL_DIGITS_MAX: usize = 40;

/// A certificate named by an operator: by its fingerprint, or by its serial number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateRef {
    /// By the SHA-256 of the whole certificate: 64 hexadecimal digits.
    Fingerprint(String),
    /// By the serial number, in hexadecimal.
    Serial(String),
}

/// Text that names no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected the SHA-256 fingerprint of a certificate (64 hexadecimal digits) or its serial number in hexadecimal"
)]
pub struct InvalidCertificateRef;

impl FromStr for CertificateRef {
    type Err = InvalidCertificateRef;

    /// As other programs print them: with colons and with letters of either case.
    fn from_str(text: &str) -> Result<Self, InvalidCertificateRef> {
        if text.len() > 2 * FINGERPRINT_DIGITS {
            return Err(InvalidCertificateRef);
        }
        let digits: String = text.chars().filter(|letter| *letter != ':').collect();
        let digits = digits.to_ascii_lowercase();
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        match digits.len() {
            FINGERPRINT_DIGITS if is_hex => Ok(Self::Fingerprint(digits)),
            1..=SERIAL_DIGITS_MAX if is_hex => Ok(Self::Serial(digits)),
            _ => Err(InvalidCertificateRef),
        }
    }
}

impl fmt::Display for CertificateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fingerprint(digits) | Self::Serial(digits) => f.write_str(digits),
        }
    }
}

/// What a certificate is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CertificateState {
    /// Sessions are opened with it.
    InUse,
    /// It was issued over a session, and none was confirmed with it so far.
    ToBeProved,
    /// A session was confirmed with a later one: it is refused.
    Retired,
    /// It, or its gateway, was revoked: it is refused.
    Revoked,
}

impl CertificateState {
    /// The words on screen.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::InUse => "in use",
            Self::ToBeProved => "to be proved",
            Self::Retired => "retired",
            Self::Revoked => "revoked",
        }
    }
}

/// One certificate of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GatewayCertificate {
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of the whole certificate, 64 hexadecimal digits.
    pub fingerprint: String,
    /// When it was registered: one from the door later than the one whose place it took.
    pub registered_at: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    /// What it is good for.
    pub state: CertificateState,
    /// Since when it is retired or revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// A certificate in whose place its key got another one at the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EarlierCertificate {
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of the whole certificate, 64 hexadecimal digits.
    pub fingerprint: String,
    /// When it ends.
    pub not_after: Timestamp,
    /// When the other one was issued.
    pub reissued_at: Timestamp,
}

/// The answer to whoever revokes one certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CertificateRevoked {
    /// What this is.
    pub kind: Kind,
    /// Whether it had been revoked before: then nothing has changed, and the first reason stays.
    pub already: bool,
    /// Whether the gateway's session was opened with it, which is ended within a second on whichever backend has it.
    pub session_ended: bool,
    /// Its gateway, which goes on with its other certificates.
    pub gateway: NamedGateway,
    /// The certificate as it stands.
    pub certificate: GatewayCertificate,
    /// The one that was named, where its key has got another one at the door since: that is `certificate`, and every
    /// earlier one of the key is revoked with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named: Option<EarlierCertificate>,
    /// Others of the gateway that were issued over its session and have been in none so far, the latest first and eight
    /// at the most. They are good: whoever had the key of the revoked one may have asked for them.
    #[serde(default)]
    pub to_be_proved: Vec<GatewayCertificate>,
}

list! {
    /// Certificates of one gateway, the latest first.
    CertificateList of GatewayCertificate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_named_as_other_programs_print_it() {
        let digits = "ab".repeat(32);
        let colons = "AB:".repeat(31) + "AB";
        let expected = CertificateRef::Fingerprint(digits.clone());
        assert_eq!(digits.parse(), Ok(expected.clone()));
        assert_eq!(colons.parse(), Ok(expected));
        let serial = CertificateRef::Serial("0a1f".to_owned());
        assert_eq!("0A1F".parse(), Ok(serial.clone()));
        assert_eq!(serial.to_string(), "0a1f");
        let (long, longer) = ("a".repeat(41), "a".repeat(1_000));
        for odd in ["", "::", "0x0a", "gw-1", &*long, &*longer] {
            assert_eq!(
                odd.parse::<CertificateRef>(),
                Err(InvalidCertificateRef),
                "{odd}"
            );
        }
    }
}
