//! Certificates of gateways: registered, listed, renewed and revoked.

use std::time::Duration;

use viworks_common::id::{AgentId, GatewayName};
use viworks_common::time::Timestamp;

/// A certificate's key to be registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCertificate {
    /// The gateway it is for.
    pub agent_id: AgentId,
    /// SHA-256 of the DER SubjectPublicKeyInfo.
    pub spki: [u8; 32],
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: Timestamp,
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    /// The authority that signed it: SHA-256 of its name and its key, where that is known.
    pub issuer: Option<[u8; 32]>,
}

/// Which authority signed the certificate that a gateway shows, where something else is stored of it, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedBy {
    /// The certificate's key (SHA-256).
    pub spki: [u8; 32],
    /// The certificate (SHA-256) that was registered for the key when this was found out: of another one that came in
    /// its place at the door since, it says nothing.
    pub registered: [u8; 32],
    /// SHA-256 of the name and the key of the authority.
    pub issuer: [u8; 32],
    /// Until when what is shown is good, where it is another one than the registered.
    pub shown_until: Option<Timestamp>,
}

/// A registered certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The name of its gateway.
    pub gateway: GatewayName,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// When it ends.
    pub not_after: Timestamp,
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    /// The authority that signed it: SHA-256 of its name and its key, where that is known.
    pub issuer: Option<[u8; 32]>,
    /// Until when the one is good that was shown last for its key, where that is another one.
    pub shown_until: Option<Timestamp>,
    /// Whether it, or its gateway, was revoked.
    pub revoked: bool,
    /// Whether its gateway was not.
    pub gateway_goes_on: bool,
    /// Whether a session was confirmed with a later one.
    pub retired: bool,
    /// Whether another machine took the gateway's place since.
    pub replaced: bool,
    /// Whether it was issued over a session, and none was confirmed with it so far.
    pub unproved: bool,
    /// The gateway's confirmed epoch: who presents it later and is too late may only have been overtaken.
    pub confirmed: u64,
}

/// How much of its life a certificate has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLeft {
    /// None.
    Ended,
    /// A day at the most.
    Day,
    /// Seven days at the most.
    Week,
    /// Thirty days at the most.
    Month,
    /// More.
    More,
}

impl TimeLeft {
    /// The word in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Day => "1d",
            Self::Week => "7d",
            Self::Month => "30d",
            Self::More => "more",
        }
    }
}

/// When the certificates of the gateways end that are not revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateEnds {
    /// How many have so much time left.
    pub left: [(TimeLeft, u64); 5],
    /// How many gateways have which generation of the agent key, the latest first.
    pub generations: Vec<(u32, u64)>,
    /// Gateways that are away and whose certificate ends soon or has ended.
    pub away: u64,
    /// The first few of them, and when theirs ends.
    pub first: Vec<(GatewayName, Timestamp)>,
}

/// A certificate of a gateway, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredCertificate {
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    /// When its key was registered.
    pub registered_at: Timestamp,
    /// When it was issued: one from the door later than its key was registered.
    pub issued_at: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    /// When it alone was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
    /// When a session was confirmed with a later one, if one was.
    pub retired_at: Option<Timestamp>,
    /// Whether it was issued over a session, and none was confirmed with it so far.
    pub unproved: bool,
}

/// A certificate that is not accepted any more, although it has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithdrawnCertificate {
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// Since when.
    pub since: Timestamp,
    /// Whether it, or its gateway, was revoked; otherwise a later one has taken its place.
    pub revoked: bool,
}

/// One certificate of a gateway, by what a person has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateRef {
    /// SHA-256 of the whole certificate.
    Fingerprint([u8; 32]),
    /// The serial number, in hexadecimal.
    Serial(String),
}

impl CertificateRef {
    /// The fingerprint, or the serial number.
    #[must_use]
    pub const fn parts(&self) -> (Option<&[u8; 32]>, Option<&String>) {
        match self {
            Self::Fingerprint(fingerprint) => (Some(fingerprint), None),
            Self::Serial(serial) => (None, Some(serial)),
        }
    }
}

/// A certificate in whose place its key got another one at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarlierCertificate {
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    /// When it ends.
    pub not_after: Timestamp,
    /// When the other one was issued.
    pub reissued_at: Timestamp,
}

/// What revoking one certificate came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateRevocation {
    /// It is revoked.
    Revoked(Box<RevokedCertificate>),
    /// The gateway has none that is meant.
    Unknown,
    /// It has more than one with this serial number.
    Ambiguous,
}

/// What revoking one certificate did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokedCertificate {
    /// Whether it had been revoked before.
    pub already: bool,
    /// Whether the gateway's session was opened with it, and ended.
    pub session_ended: bool,
    /// The epoch of the last session that showed it: whoever has that cuts it.
    pub epoch: Option<u64>,
    /// The certificate as it stands: the present one of the key, whichever was named.
    pub certificate: RegisteredCertificate,
    /// The one that was named, where the key has got another one in its place since.
    pub named: Option<EarlierCertificate>,
    /// Others of its gateway that were issued over a session, and none was confirmed with so far: they are good.
    pub unproved: Vec<RegisteredCertificate>,
}

/// A certificate that a gateway asked for over its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The epoch of the session.
    pub epoch: u64,
    /// The certificate, as it is signed.
    pub certificate: NewCertificate,
    /// Its text, PEM.
    pub pem: String,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenewalOutcome {
    /// It is registered beside the one in use.
    Issued,
    /// The key was asked for before: this is its certificate, PEM.
    Before(String),
    /// The key belongs to a certificate that was in use, or to another gateway.
    KeyInUse,
    /// The gateway got as many as it may; the next one after this time.
    TooSoon(Duration),
}
