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
use viworks_common::session::backoff::FailureClass;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_common::wire::SUBPROTOCOL;

use super::pinning::PinMismatch;

/// The alert for a certificate that has ended, by the TLS library's name.
const CERTIFICATE_EXPIRED: &str = "CertificateExpired";

/// What to do about it.
pub(super) const RENEW: &str = "put a renewed certificate, and its key, where [identity] certificate_file and key_file point; they are read again before the next attempt, or at once with SIGHUP";

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
            } | Self::Tls { .. }
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

    /// Whether another certificate may fare better, as far as anybody says so: TLS, the backend, or a proxy that looks
    /// at certificates itself. Where this one has ended, so have those before it.
    #[must_use]
    pub fn is_of_the_certificate(&self) -> bool {
        let refused = |status: u16| matches!(status, 400 | 401 | 403);
        match self {
            Self::TlsAlert { certificate, .. } => *certificate,
            Self::CertificateDisputed { .. } => true,
            Self::HttpStatus { code, .. } => refused(*code),
            Self::Declined { status, said, .. } => match said.known() {
                Some(code) => matches!(code, CloseCode::CertUntrusted | CloseCode::Revoked),
                None => refused(*status),
            },
            Self::Dns { .. }
            | Self::Refused { .. }
            | Self::Timeout { .. }
            | Self::Network { .. }
            | Self::PinMismatch { .. }
            | Self::CertificateTime { .. }
            | Self::CertificateName { .. }
            | Self::CertificateUntrusted { .. }
            | Self::CertificateEnded { .. }
            | Self::Tls { .. }
            | Self::Subprotocol
            | Self::NotWebSocket { .. } => false,
        }
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
            | Self::TlsAlert { .. }
            | Self::PinMismatch { .. }
            | Self::CertificateTime { .. }
            | Self::CertificateName { .. }
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
            Self::Timeout { .. } | Self::Network { .. } => {
                "check the network path: a firewall may drop this traffic"
            }
            Self::CertificateEnded { .. } => RENEW,
            Self::CertificateDisputed { .. } => {
                "compare both clocks with the right time: a backend whose clock is behind takes the certificate for one that is not valid yet, and nothing is wrong with it; if it is this gateway's clock that is behind, the certificate has ended: put a renewed one, and its key, where [identity] certificate_file and key_file point"
            }
            Self::TlsAlert { alert, certificate } => {
                if alert == CERTIFICATE_EXPIRED {
                    RENEW
                } else if *certificate {
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
            Self::Tls { .. } => {
                "check that the port in [outbound] url is the backend's listener for agents, which speaks TLS 1.3 (its API \
                 speaks plain HTTP), and is not intercepted"
            }
            Self::Declined { said, status, .. } => match said.known() {
                Some(code) => code.advice(),
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
        404 => "check the path of [outbound] url, which without one is /agent/v1/connect",
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
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_shown_without_what_would_forge_a_line() {
        let body = br#"{"code":"revoked","detail":"gone\nconnection   connected","status":403}"#;
        let said = Said::read(body).unwrap();
        assert_eq!(said.known(), Some(CloseCode::Revoked));
        let shown = said.to_string();
        assert!(!shown.contains('\n') && shown.contains("gone"), "{shown}");
        let long = format!(r#"{{"code":"{0}","detail":"{0}"}}"#, "x".repeat(10_000));
        let said = Said::read(long.as_bytes()).unwrap();
        assert_eq!((said.code.len(), said.detail.len()), (64, DETAIL_BYTES_MAX));
        for page in [
            "<html>403</html>",
            "",
            "{}",
            r#"{"code":""}"#,
            r#"{"code":7}"#,
        ] {
            assert_eq!(Said::read(page.as_bytes()), None, "{page}");
        }
    }

    #[test]
    fn a_certificate_that_has_ended_is_named_where_it_may_be_the_cause_and_nowhere_else() {
        let (past, now) = (
            Timestamp::from_unix_micros(1),
            Timestamp::from_unix_micros(2),
        );
        let cut = DialFailure::Network {
            step: Step::Upgrade,
            reason: "Broken pipe".to_owned(),
        };
        let named = cut.clone().with_certificate((past, past), now);
        assert!(
            named
                .to_string()
                .contains("certificate ended at 1970-01-01"),
            "{named}"
        );
        assert_eq!(named.class(), FailureClass::PermanentUnproved);
        assert!(named.fix().contains("SIGHUP"));
        assert_eq!(cut.clone().with_certificate((past, now), past), cut);
        let refused = DialFailure::Refused {
            address: "127.0.0.1:1".to_owned(),
        };
        assert_eq!(refused.clone().with_certificate((past, past), now), refused);
    }

    #[test]
    fn a_certificate_that_is_good_here_and_not_there_is_a_question_of_two_clocks() {
        let at = |micros| Timestamp::from_unix_micros(micros);
        let alert = DialFailure::TlsAlert {
            alert: CERTIFICATE_EXPIRED.to_owned(),
            certificate: true,
        };
        let named = alert.clone().with_certificate((at(1), at(3)), at(2));
        let (cause, fix) = (named.to_string(), named.fix());
        assert!(cause.contains("by this gateway's clock"), "{cause}");
        assert!(
            fix.contains("backend whose clock is behind") && fix.contains("renewed"),
            "{fix}"
        );
        assert_eq!(named.class(), FailureClass::PermanentUnproved);
        assert_eq!(named.code(), Some(CloseCode::CertUntrusted));
        let ended = alert.clone().with_certificate((at(1), at(2)), at(3));
        assert!(matches!(ended, DialFailure::CertificateEnded { .. }));
        // Those before it have ended as well.
        assert!(named.is_of_the_certificate() && !ended.is_of_the_certificate());
        assert_eq!(alert.clone().with_certificate((at(2), at(3)), at(1)), alert);
    }

    #[test]
    fn a_port_without_tls_is_told_from_a_fault_of_tls() {
        let plain = TlsError::InvalidMessage(InvalidMessage::InvalidContentType);
        let failure = DialFailure::of_tls(&plain);
        let (cause, fix) = (failure.to_string(), failure.fix());
        assert!(cause.contains("speaks no TLS"), "{cause}");
        assert!(
            fix.contains("listener for agents") && fix.contains("plain HTTP"),
            "{fix}"
        );
        assert_eq!(failure.class(), FailureClass::Transient);
    }

    #[test]
    fn a_server_that_cannot_serve_is_no_mistake_of_the_gateway() {
        for code in 500..=599 {
            let failure = DialFailure::HttpStatus {
                code,
                retry_after: None,
            };
            assert_eq!(failure.class(), FailureClass::Transient, "{code}");
            assert!(failure.fix().starts_with("no action"), "{code}");
        }
        let elsewhere = DialFailure::HttpStatus {
            code: 404,
            retry_after: None,
        };
        assert!(elsewhere.fix().contains("[outbound] url"));
    }

    /// What the page says about one line of its table, by a phrase of it.
    fn next_attempt(phrase: &str) -> String {
        let page = include_str!("../../../docs/protocol.md");
        let (_, section) = page.split_once("## Reconnecting").unwrap();
        let rows: Vec<&str> = section
            .lines()
            .filter(|line| line.starts_with('|') && line.contains(phrase))
            .collect();
        assert_eq!(rows.len(), 1, "{phrase:?} stands in one row");
        rows[0].split('|').nth(2).unwrap().trim().to_owned()
    }

    #[test]
    fn each_failure_waits_as_the_page_of_the_protocol_says() {
        let status = |code| FailureClass::of_http_status(code, None);
        let told = FailureClass::of_http_status(503, Some(Duration::from_secs(1)));
        let refuse = |code| FailureClass::of_refusal(code, None);
        let pin = DialFailure::PinMismatch {
            seen: SpkiPin::from_digest([7; 32]),
        };
        let alert = DialFailure::of_tls(&TlsError::AlertReceived(AlertDescription::UnknownCA));
        let network = DialFailure::Network {
            step: Step::Connect,
            reason: String::new(),
        };
        for (phrase, class) in [
            ("a transient failure", network.class()),
            ("`Retry-After`", told),
            ("a permanent code in REFUSE", refuse(CloseCode::Revoked)),
            ("a TLS alert", alert.class()),
            ("a key that is not pinned", pin.class()),
            ("HTTP 400, 401 or 403", status(400)),
            ("HTTP 400, 401 or 403", status(401)),
            ("HTTP 400, 401 or 403", status(403)),
            (
                "a close frame with a permanent code",
                FailureClass::of_close_frame(4403),
            ),
            (
                "an established session was lost without a word",
                FailureClass::Slot {
                    within: Duration::from_secs(1),
                },
            ),
        ] {
            let said = match class {
                FailureClass::Transient => "a ceiling of 1 s that doubles to 60 s",
                FailureClass::Told { .. } => "that delay, capped at 15 min",
                FailureClass::Slot { .. } => "`reconnect_slot_ms`, capped at 15 min",
                FailureClass::PermanentAuthenticated => "between 15 and 60 min",
                FailureClass::PermanentUnproved => {
                    "between half and all of a ceiling of 1 min that doubles to 60 min"
                }
            };
            let page = next_attempt(phrase);
            assert!(
                page.contains(said),
                "{phrase}: {class:?}, and the page says {page:?}"
            );
        }
    }
}
