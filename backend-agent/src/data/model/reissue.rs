//! Certificates that gateways ask for at the door, because their own have ended.

use std::net::IpAddr;
use std::time::Duration;

use viworks_common::admission::{NotTheGateway, Shown};
use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;

use super::{AnsweredChallenge, NewCertificate};

/// A certificate for a gateway that has proved at the door that it has its key, and whose own has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reissue {
    /// The challenge that the proof answers.
    pub challenge: AnsweredChallenge,
    /// Where the gateway is.
    pub peer: IpAddr,
    /// What it shows of its state.
    pub shown: Shown,
    /// What the wall clock says: certificates end by that, as TLS judges them.
    pub wall: Timestamp,
    /// The certificate, as it is signed: for a key that is registered.
    pub certificate: NewCertificate,
    /// Its text, PEM.
    pub pem: String,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReissueOutcome {
    /// It is registered in place of the one before with the same key.
    Issued,
    /// There is one with which no session was confirmed so far: this is it, PEM.
    Before(String),
    /// The gateway got as many as it may; the next one after this time.
    TooSoon(Duration),
    /// There is none.
    Refused(ReissueRefusal),
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReissueRefusal {
    /// The challenge was answered before.
    Challenge,
    /// It is not the gateway that it says.
    NotTheGateway(NotTheGateway),
    /// The key is not registered for this gateway.
    UnknownKey,
    /// The certificate with the key was revoked, and its gateway was not.
    CertificateRevoked,
    /// A session was confirmed with a later certificate.
    RetiredKey,
    /// The certificate that is registered has not ended: this is its end.
    NotLapsed(Timestamp),
}

impl ReissueRefusal {
    /// The word for programs, the audit trail and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Challenge => "challenge",
            Self::NotTheGateway(NotTheGateway::Revoked) => "revoked",
            Self::NotTheGateway(NotTheGateway::StaleKey) => "stale_agent_key",
            Self::NotTheGateway(NotTheGateway::BadToken) => "bad_token",
            Self::UnknownKey => "unknown_key",
            Self::CertificateRevoked => "certificate_revoked",
            Self::RetiredKey => "retired_key",
            Self::NotLapsed(_) => "not_lapsed",
        }
    }
}

/// What the backend itself refuses at the door, as the audit trail has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedReissue {
    /// The gateway that is meant.
    pub agent_id: AgentId,
    /// The challenge that was answered; none where nobody has proved that it is the gateway.
    pub challenge: Option<AnsweredChallenge>,
    /// Where it comes from.
    pub peer: IpAddr,
    /// The word for programs; none where nothing is refused, and what was issued before is given again.
    pub why: Option<&'static str>,
}
