//! Why an attempt to connect failed: a stable word, one sentence, what to do about it, and when to try again.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use viworks_common::code::CloseCode;
use viworks_common::limits::DETAIL_BYTES_MAX;
use viworks_common::pin::SpkiPin;
use viworks_common::renewal::Against;
use viworks_common::session::backoff::FailureClass;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_common::wire::SUBPROTOCOL;

use super::pinning::{PinMismatch, Unchained};

/// The alert for a certificate that has ended, by the TLS library's name.
const CERTIFICATE_EXPIRED: &str = "CertificateExpired";

/// The alert of a server that does not speak our version of TLS, by the same.
const PROTOCOL_VERSION: &str = "ProtocolVersion";

/// What to do about it.
pub(super) const RENEW: &str = "put a renewed certificate, and its key, where [identity] certificate_file and key_file point; they are read again before the next attempt, or at once with SIGHUP; with [outbound] door_url, the address of the backend's door, this gateway gets one by itself";

/// The same where the door is asked.
pub(super) const FROM_THE_DOOR: &str = "this gateway asks the door of the backend for another certificate by itself ([outbound] door_url; the condition certificate.door says what came of it); or put a renewed one, and its key, where [identity] certificate_file and key_file point";

/// What to do about an authority that is not known.
pub(super) const ADD_AUTHORITY: &str = "if the authority of the backend's certificate was replaced, set [outbound] door_url to the address of the backend's door, and this gateway gets the new one by itself; or add that to the file that [outbound] ca_file names";

/// The same where the door is asked.
pub(super) const AUTHORITIES_FROM_THE_DOOR: &str = "this gateway asks the door of the backend for the authorities by itself ([outbound] door_url; the condition authorities.door says what came of it); or add the new one to the file that [outbound] ca_file names";

/// The same where the door has just given what was asked for.
pub(super) const GIVEN_AT_THE_DOOR: &str = "nothing: the door of the backend has given what was missing, and the next attempt to connect uses it";

/// A step of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Name resolution.
    Resolve,
    /// TCP.
    Connect,
    /// TLS.
    Tls,
    /// HTTP and WebSocket.
    Upgrade,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolving the name",
            Self::Connect => "the TCP connection",
            Self::Tls => "the TLS handshake",
            Self::Upgrade => "the WebSocket upgrade",
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialFailure {
    /// The name has no address.
    #[error("the name {host:?} could not be resolved: {reason}")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// Nobody listens there.
    #[error("{address} refused the connection")]
    Refused {
        /// Host and port.
        address: String,
    },
    /// A step took too long.
    #[error("{} took longer than {} ms", step.name(), limit.as_millis())]
    Timeout {
        /// Which step.
        step: Step,
        /// How long it had.
        limit: Duration,
    },
    /// The network failed.
    #[error("{} failed: {reason}", step.name())]
    Network {
        /// In which step.
        step: Step,
        /// What the system said.
        reason: String,
    },
    /// The other end took the connection and hung up.
    #[error("{} failed: {reason}", step.name())]
    HungUp {
        /// In which step.
        step: Step,
        /// What the system said.
        reason: String,
    },
    /// The other end ended TLS with an alert.
    #[error("the server ended TLS with the alert {alert}")]
    TlsAlert {
        /// Which one.
        alert: String,
        /// Whether it speaks of this gateway's certificate.
        certificate: bool,
    },
    /// The chain is good, the key is not pinned.
    #[error("the server shows the key {seen}, which is not pinned")]
    PinMismatch {
        /// The key it shows.
        seen: SpkiPin,
    },
    /// The server's certificate has expired or is not valid yet, by this gateway's clock.
    #[error("the server's certificate is not valid at this gateway's time: {reason}")]
    CertificateTime {
        /// In words.
        reason: String,
    },
    /// The server's certificate is for another name.
    #[error("the server's certificate is for another name: {reason}")]
    CertificateName {
        /// In words.
        reason: String,
    },
    /// The server's certificate is of an authority that is not known here, and names a pinned key: it says to be ours.
    #[error(
        "the server's certificate is not trusted: its authority is not known here, and its key {seen} is pinned ({reason})"
    )]
    AuthorityUnknown {
        /// The key in its certificate.
        seen: SpkiPin,
        /// In words.
        reason: String,
    },
    /// Neither the authority of the server's certificate nor its key is known here.
    #[error(
        "the server's certificate is not trusted: its authority is not known here, and its key {seen} is not pinned either ({reason})"
    )]
    Stranger {
        /// The key in its certificate.
        seen: SpkiPin,
        /// In words.
        reason: String,
    },
    /// The server's certificate is otherwise bad.
    #[error("the server's certificate is not trusted: {reason}")]
    CertificateUntrusted {
        /// In words.
        reason: String,
    },
    /// Something else in TLS.
    #[error("TLS failed: {reason}")]
    Tls {
        /// In words.
        reason: String,
    },
    /// The server answered the upgrade with another status than 101.
    #[error("the server answered {code} instead of 101")]
    HttpStatus {
        /// The status.
        code: u16,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The server answered the upgrade with a refusal and said why. Nobody signed that, so it is believed for the next
    /// attempt and not for ever.
    #[error("the server says {said} (HTTP {status}, not signed)")]
    Declined {
        /// The status.
        status: u16,
        /// What it says.
        said: Said,
        /// `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The server ended the connection, and this gateway's certificate has ended by its own clock.
    #[error("this gateway's certificate ended at {not_after}: {consequence}")]
    CertificateEnded {
        /// The end of its life.
        not_after: Timestamp,
        /// What became of the attempt.
        consequence: String,
    },
    /// The server says that this gateway's certificate is out of its time, and by this gateway's clock it is not. TLS
    /// has one word for a certificate that ended and for one that is not valid yet.
    #[error(
        "the server says that this gateway's certificate is not valid at its time (TLS alert {CERTIFICATE_EXPIRED}); by this gateway's clock, {now}, it is: from {not_before} until {not_after}"
    )]
    CertificateDisputed {
        /// The begin of its life.
        not_before: Timestamp,
        /// The end of its life.
        not_after: Timestamp,
        /// The time here.
        now: Timestamp,
    },
    /// The server does not speak this protocol.
    #[error("the server did not agree to the subprotocol {SUBPROTOCOL}")]
    Subprotocol,
    /// The answer to the upgrade is no WebSocket.
    #[error("the server's answer is no WebSocket upgrade: {reason}")]
    NotWebSocket {
        /// In words.
        reason: String,
    },
}

/// A refusal in a server's own words, fit to be shown: bounded, and without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its code, such as `revoked`.
    pub code: String,
    /// One sentence.
    pub detail: String,
}

impl Said {
    /// Reads a problem document (RFC 9457). None when the body is something else, for example a proxy's page.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let problem: serde_json::Value = serde_json::from_slice(body).ok()?;
        let text = |name: &str| problem.get(name).and_then(serde_json::Value::as_str);
        let code = text("code")?;
        if code.is_empty() {
            return None;
        }
        Some(Self {
            code: printable(code, CODE_BYTES_MAX),
            detail: printable(text("detail").unwrap_or_default(), DETAIL_BYTES_MAX),
        })
    }

    /// The code, if it is one of ours.
    #[must_use]
    pub fn known(&self) -> Option<CloseCode> {
        CloseCode::from_name(&self.code)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

/// Longer than every code there is.
const CODE_BYTES_MAX: usize = 64;

/// Words of somebody who proved nothing, cut and without what would do more than appear.
pub(super) fn printable(words: &str, bytes_max: usize) -> String {
    let end = words.floor_char_boundary(bytes_max);
    text::line(&words[..end]).into_owned()
}

impl DialFailure {
    /// The same failure with what the gateway knows about itself: a server that turns away a certificate which has
    /// ended does not always get to say so.
    #[must_use]
    pub fn with_certificate(
        self,
        (not_before, not_after): (Timestamp, Timestamp),
        now: Timestamp,
    ) -> Self {
        let may_be_why = matches!(
            self,
            Self::TlsAlert {
                certificate: true,
                ..
            } | Self::Network {
                step: Step::Tls | Step::Upgrade,
                ..
            } | Self::HungUp { .. }
                | Self::Tls { .. }
        );
        if may_be_why && not_after < now {
            Self::CertificateEnded {
                not_after,
                consequence: self.to_string(),
            }
        } else if matches!(&self, Self::TlsAlert { alert, .. } if alert == CERTIFICATE_EXPIRED)
            && not_before <= now
        {
            Self::CertificateDisputed {
                not_before,
                not_after,
                now,
            }
        } else {
            self
        }
    }

    /// Whether another certificate may fare better. Of one that was in a session, somebody has to say so: TLS, or the
    /// backend. Of one that is still to be `proved`, everything counts that may be a proxy's way of saying it. One that
    /// has ended may have a companion that lives longer.
    #[must_use]
    pub fn is_of_the_certificate(&self, proved: bool) -> bool {
        let refused = |status: u16| !proved && matches!(status, 400 | 401 | 403);
        match self {
            Self::TlsAlert { certificate, .. } => *certificate || !proved,
            Self::CertificateDisputed { .. } | Self::CertificateEnded { .. } => true,
            Self::HttpStatus { code, .. } => refused(*code),
            Self::Declined { status, said, .. } => match said.known() {
                Some(code) => matches!(code, CloseCode::CertUntrusted | CloseCode::Revoked),
                None => refused(*status),
            },
            Self::Network { step, .. } | Self::HungUp { step, .. } => {
                !proved && matches!(step, Step::Tls | Step::Upgrade)
            }
            Self::Tls { .. } => !proved,
            Self::Dns { .. }
            | Self::Refused { .. }
            | Self::Timeout { .. }
            | Self::PinMismatch { .. }
            | Self::CertificateTime { .. }
            | Self::CertificateName { .. }
            | Self::AuthorityUnknown { .. }
            | Self::Stranger { .. }
            | Self::CertificateUntrusted { .. }
            | Self::Subprotocol
            | Self::NotWebSocket { .. } => false,
        }
    }

    /// What it says against the certificate, if it is of that.
    #[must_use]
    pub fn against(&self) -> Against {
        if let Self::Declined { said, .. } = self
            && let Some(code) = said.known()
            && code.is_of_a_retired_one(&said.detail)
        {
            return Against::Retired;
        }
        Against::Refused
    }

    /// The code for it, where there is one.
    #[must_use]
    pub fn code(&self) -> Option<CloseCode> {
        match self {
            Self::Declined { said, .. } => said.known(),
            Self::CertificateEnded { .. }
            | Self::CertificateDisputed { .. }
            | Self::TlsAlert {
                certificate: true, ..
            } => Some(CloseCode::CertUntrusted),
            Self::Subprotocol => Some(CloseCode::ProtocolTooOld),
            Self::Dns { .. }
            | Self::Refused { .. }
            | Self::Timeout { .. }
            | Self::Network { .. }
            | Self::HungUp { .. }
            | Self::TlsAlert { .. }
            | Self::PinMismatch { .. }
            | Self::CertificateTime { .. }
            | Self::CertificateName { .. }
            | Self::AuthorityUnknown { .. }
            | Self::Stranger { .. }
            | Self::CertificateUntrusted { .. }
            | Self::Tls { .. }
            | Self::HttpStatus { .. }
            | Self::NotWebSocket { .. } => None,
        }
    }

    /// What to do about it, in one sentence.
    #[must_use]
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Dns { .. } => "check the host in [outbound] url and the gateway's DNS",
            Self::Refused { .. } => {
                "check that the backend runs and that the port in [outbound] url is its listener for agents"
            }
            Self::Timeout {
                step: Step::Resolve,
                ..
            } => "check the gateway's DNS: its name server does not answer",
            Self::Timeout {
                step: Step::Tls, ..
            } => {
                "something takes the connection and does not speak: check that the port in [outbound] url is the backend's listener for agents, and the network path: a firewall may drop this traffic"
            }
            Self::Timeout {
                step: Step::Upgrade,
                ..
            } => {
                "the path is there and TLS is right: a proxy, or the backend behind it, does not answer; look whether the backend runs, and into their logs"
            }
            Self::HungUp { .. } => {
                "something takes the connection and hangs up: check that [outbound] url leads to the backend's listener for agents, or to the proxy in front of it where the backend expects one; the backend's log says why"
            }
            Self::Timeout {
                step: Step::Connect,
                ..
            }
            | Self::Network { .. } => "check the network path: a firewall may drop this traffic",
            Self::CertificateEnded { .. } => RENEW,
            Self::CertificateDisputed { .. } => {
                "compare both clocks with the right time: a backend whose clock is behind takes the certificate for one that is not valid yet, and nothing is wrong with it; if it is this gateway's clock that is behind, the certificate has ended: put a renewed one, and its key, where [identity] certificate_file and key_file point"
            }
            Self::TlsAlert { alert, certificate } => {
                if alert == CERTIFICATE_EXPIRED {
                    RENEW
                } else if *certificate {
                    "check that the gateway's certificate is valid and issued by the backend's own authority"
                } else if alert == PROTOCOL_VERSION {
                    "what is there does not speak TLS 1.3, as the backend does: a proxy ends TLS there; have it take TLS 1.3 or pass TLS through, or check the port in [outbound] url"
                } else {
                    "look at the backend's log at the same time"
                }
            }
            Self::PinMismatch { .. } => {
                "if the backend's key was changed on purpose, add its pin to [outbound] pins; otherwise somebody is in between"
            }
            Self::CertificateTime { .. } => {
                "check the gateway's clock, then the backend's certificate"
            }
            Self::CertificateName { .. } => {
                "set [outbound] server_name to the name in the certificate, or have it issued for this host"
            }
            Self::AuthorityUnknown { .. } => ADD_AUTHORITY,
            Self::Stranger { .. } => {
                "this is somebody else's server: check that [outbound] url leads to the backend, and that nothing in between ends TLS; where key and authority of the backend were replaced on purpose, set [outbound] pins and ca_file to those that it has now"
            }
            Self::CertificateUntrusted { .. } => {
                "check that [outbound] ca_file is the authority of the backend's certificate"
            }
            Self::Tls { .. } => {
                "check that the port in [outbound] url is the backend's listener for agents, which speaks TLS 1.3 (its API \
                 speaks plain HTTP), and is not intercepted"
            }
            Self::Declined { said, status, .. } => match said.known() {
                Some(code) => code.advice_for(&said.detail),
                None => fix_of_status(*status),
            },
            Self::HttpStatus { code, .. } => fix_of_status(*code),
            Self::Subprotocol | Self::NotWebSocket { .. } => {
                "check that [outbound] url leads to the backend and that no proxy strips the upgrade"
            }
        }
    }

    /// What it means for the next attempt.
    #[must_use]
    pub const fn class(&self) -> FailureClass {
        match self {
            Self::Dns { .. }
            | Self::Refused { .. }
            | Self::Timeout { .. }
            | Self::Network { .. }
            | Self::HungUp { .. }
            | Self::Tls { .. }
            | Self::NotWebSocket { .. } => FailureClass::Transient,
            Self::TlsAlert { certificate, .. } => {
                if *certificate {
                    FailureClass::PermanentUnproved
                } else {
                    FailureClass::Transient
                }
            }
            // A key that is not pinned proves only that somebody else answered, who may be gone at the next attempt.
            Self::PinMismatch { .. }
            | Self::CertificateDisputed { .. }
            | Self::CertificateTime { .. }
            | Self::CertificateName { .. }
            | Self::AuthorityUnknown { .. }
            | Self::Stranger { .. }
            | Self::CertificateUntrusted { .. }
            | Self::CertificateEnded { .. }
            | Self::Subprotocol => FailureClass::PermanentUnproved,
            Self::Declined {
                status,
                retry_after,
                ..
            } => FailureClass::of_http_status(*status, *retry_after),
            Self::HttpStatus { code, retry_after } => {
                FailureClass::of_http_status(*code, *retry_after)
            }
        }
    }

    /// What it means that the authority of a server's certificate is not known.
    #[must_use]
    pub(super) fn of_unchained(unchained: Unchained) -> Self {
        let Unchained {
            seen,
            is_pinned,
            reason,
        } = unchained;
        if is_pinned {
            Self::AuthorityUnknown { seen, reason }
        } else {
            Self::Stranger { seen, reason }
        }
    }

    /// What a failure on an open TLS connection means.
    #[must_use]
    pub fn of_io(error: &io::Error, step: Step) -> Self {
        let tls = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<TlsError>());
        match tls {
            Some(error) => Self::of_tls(error),
            None => Self::of_network(error, step),
        }
    }

    /// Of a network that fails, somebody who hangs up is another cause than a path that is not there.
    fn of_network(error: &io::Error, step: Step) -> Self {
        let reason = error.to_string();
        let hung_up = matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        );
        if hung_up {
            Self::HungUp { step, reason }
        } else {
            Self::Network { step, reason }
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the TLS library adds errors and alerts; what is not named here is reported by its words"
    )]
    fn of_tls(error: &TlsError) -> Self {
        match error {
            TlsError::AlertReceived(alert) => Self::TlsAlert {
                alert: format!("{alert:?}"),
                certificate: matches!(
                    alert,
                    AlertDescription::BadCertificate
                        | AlertDescription::UnsupportedCertificate
                        | AlertDescription::CertificateRevoked
                        | AlertDescription::CertificateExpired
                        | AlertDescription::CertificateUnknown
                        | AlertDescription::CertificateRequired
                        | AlertDescription::UnknownCA
                        | AlertDescription::AccessDenied
                        // An authority of the same name with another key, as after setting a backend up anew.
                        | AlertDescription::DecryptError
                ),
            },
            TlsError::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<PinMismatch>() {
                    Some(mismatch) => Self::PinMismatch {
                        seen: mismatch.seen,
                    },
                    None => Self::CertificateUntrusted {
                        reason: other.to_string(),
                    },
                }
            }
            TlsError::InvalidCertificate(reason) => {
                let text = reason.to_string();
                match reason {
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. } => {
                        Self::CertificateTime { reason: text }
                    }
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. } => {
                        Self::CertificateName { reason: text }
                    }
                    _ => Self::CertificateUntrusted { reason: text },
                }
            }
            TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => Self::Tls {
                reason: "what answers there speaks no TLS, but plain HTTP or something else"
                    .to_owned(),
            },
            other => Self::Tls {
                reason: other.to_string(),
            },
        }
    }

    /// What a failed upgrade means.
    #[must_use]
    pub(super) fn of_upgrade(error: &WsError) -> Self {
        match error {
            WsError::Http(answer) => {
                let status = answer.status().as_u16();
                let retry_after = answer
                    .headers()
                    .get("retry-after")
                    .and_then(|value| value.to_str().ok())
                    .and_then(|text| text.trim().parse().ok())
                    .map(Duration::from_secs);
                match answer.body().as_deref().and_then(Said::read) {
                    Some(said) => Self::Declined {
                        status,
                        said,
                        retry_after,
                    },
                    None => Self::HttpStatus {
                        code: status,
                        retry_after,
                    },
                }
            }
            WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => Self::Subprotocol,
            WsError::Io(error) => Self::of_io(error, Step::Upgrade),
            WsError::ConnectionClosed
            | WsError::AlreadyClosed
            | WsError::Tls(_)
            | WsError::Capacity(_)
            | WsError::Protocol(_)
            | WsError::WriteBufferFull(_)
            | WsError::Utf8(_)
            | WsError::AttackAttempt
            | WsError::Url(_)
            | WsError::HttpFormat(_) => Self::NotWebSocket {
                reason: error
                    .source()
                    .map_or_else(|| error.to_string(), ToString::to_string),
            },
        }
    }
}

const fn fix_of_status(status: u16) -> &'static str {
    match status {
        429 | 503 => {
            "no action: the gateway tries again when it was told to; if that does not end, check that the backend runs, \
             and where a proxy in front of it forwards to"
        }
        404 => {
            "check the path of [outbound] url, which without one is /agent/v1/connect, and its port: where the answer \
             speaks of machines that become gateways, it is that of the door, which belongs to door_url"
        }
        200..=399 => {
            "something in between answers and does not pass the upgrade on: check that [outbound] url leads to the \
             backend's listener for agents, and that a proxy in front of it passes Upgrade and Connection on"
        }
        500..=599 => {
            "no action here: the backend, or a proxy in front of it, cannot serve at the moment, and the gateway tries \
             again; if it lasts, look into their logs"
        }
        400 | 401 | 403 => {
            "look in the backend's log for this gateway's address; a proxy in between may refuse it, too"
        }
        _ => "check that [outbound] url leads to the backend's listener for agents",
    }
}

#[cfg(test)]
mod tests;
