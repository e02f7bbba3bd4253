//! Why an attempt to connect failed: a stable word, one sentence, what to do about it, and when to try again.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error as TlsError};
use tokio_tungstenite::tungstenite::Error as WsError;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use viworks_common::pin::SpkiPin;
use viworks_common::session::backoff::FailureClass;

use super::pinning::PinMismatch;

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
    /// The server's certificate leads to another authority, or is otherwise bad.
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
    /// The server does not speak this protocol.
    #[error("the server did not agree to the subprotocol viworks.agent.v1")]
    Subprotocol,
    /// The answer to the upgrade is no WebSocket.
    #[error("the server's answer is no WebSocket upgrade: {reason}")]
    NotWebSocket {
        /// In words.
        reason: String,
    },
}

impl DialFailure {
    /// What to do about it, in one sentence.
    #[must_use]
    pub const fn fix(&self) -> &'static str {
        match self {
            Self::Dns { .. } => "check the host in [outbound] url and the gateway's DNS",
            Self::Refused { .. } => {
                "check that the backend runs and that the port in [outbound] url is its listener for agents"
            }
            Self::Timeout { .. } | Self::Network { .. } => {
                "check the network path: a firewall may drop this traffic"
            }
            Self::TlsAlert { certificate, .. } => {
                if *certificate {
                    "check that the gateway's certificate is valid and issued by the backend's own authority"
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
            Self::CertificateUntrusted { .. } => {
                "check that [outbound] ca_file is the authority of the backend's certificate"
            }
            Self::Tls { .. } => "check that the port speaks TLS 1.3 and is not intercepted",
            Self::HttpStatus { code, .. } => match *code {
                429 | 503 => "no action: the gateway tries again when it was told to",
                _ => "check that [outbound] url leads to the backend's listener for agents",
            },
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
            | Self::Tls { .. }
            | Self::NotWebSocket { .. } => FailureClass::Transient,
            Self::TlsAlert { certificate, .. } => {
                if *certificate {
                    FailureClass::PermanentUnproved
                } else {
                    FailureClass::Transient
                }
            }
            // The gateway's own verdict about a key: nobody on the path can take it back.
            Self::PinMismatch { .. } => FailureClass::PermanentAuthenticated,
            Self::CertificateTime { .. }
            | Self::CertificateName { .. }
            | Self::CertificateUntrusted { .. }
            | Self::Subprotocol => FailureClass::PermanentUnproved,
            Self::HttpStatus { code, retry_after } => {
                FailureClass::of_http_status(*code, *retry_after)
            }
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
            None => Self::Network {
                step,
                reason: error.to_string(),
            },
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
            other => Self::Tls {
                reason: other.to_string(),
            },
        }
    }

    /// What a failed upgrade means.
    #[must_use]
    pub(super) fn of_upgrade(error: &WsError) -> Self {
        match error {
            WsError::Http(answer) => Self::HttpStatus {
                code: answer.status().as_u16(),
                retry_after: answer
                    .headers()
                    .get("retry-after")
                    .and_then(|value| value.to_str().ok())
                    .and_then(|text| text.trim().parse().ok())
                    .map(Duration::from_secs),
            },
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
