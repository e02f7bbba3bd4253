//! What the end of a session means: when to try again, the cause in one sentence, and what to do about it.
//!
//! What a peer said authentically counts; a close frame is shown as words that nobody signed.

use std::time::Duration;

use viworks_common::code::CloseCode;
use viworks_common::id::AgentId;
use viworks_common::limits::DETAIL_BYTES_MAX;
use viworks_common::session::backoff::FailureClass;
use viworks_common::session::state::AgentState;
use viworks_common::session::{Closed, End, HELLO_UNPROVED};
use viworks_runtime::websocket::Received;

use super::failure::printable;

/// How a session, or an attempt at one, came to its end.
#[derive(Debug)]
pub(super) struct Ended {
    /// When to try again.
    pub(super) class: FailureClass,
    /// In one sentence.
    pub(super) cause: String,
    /// What to do about it; empty when there is nothing to do.
    pub(super) fix: &'static str,
    /// The code for it, where there is one.
    pub(super) code: Option<CloseCode>,
    /// Whether this was expected, so that nobody needs to look.
    pub(super) expected: bool,
    /// How long it was confirmed.
    pub(super) confirmed_for: Option<Duration>,
    /// The backend did not take HELLO for this gateway's.
    pub(super) unproved: bool,
}

impl Ended {
    /// Whether no session came about because of the agent key that was shown; `has_later` when this gateway has one
    /// of a later generation than that: then an authentic refusal may be of the generation.
    pub(super) const fn is_of_the_key(&self, has_later: bool) -> bool {
        let stale = has_later && matches!(self.code, Some(CloseCode::CertUntrusted));
        self.confirmed_for.is_none() && (self.unproved || stale)
    }

    /// Whether another certificate may fare better: no session came about because of the one that was shown, or it was
    /// revoked since, which may be about that one alone.
    pub(super) const fn is_of_the_certificate(&self) -> bool {
        let untrusted = matches!(self.code, Some(CloseCode::CertUntrusted));
        matches!(self.code, Some(CloseCode::Revoked)) || (untrusted && self.confirmed_for.is_none())
    }
}

/// What to do, with this gateway in the place of what stands for one: it knows its id, by which every verb finds it as
/// well as by its name. What another one is to be called is for whoever makes it to say.
pub(super) fn about_this(fix: &str, agent_id: AgentId) -> String {
    let own = agent_id.to_string();
    let parts = fix.split("NAME-2").map(|part| part.replace("NAME", &own));
    parts.collect::<Vec<_>>().join("ANOTHER-NAME")
}

/// What to do when HELLO is not taken for ours.
const WRONG_KEY: &str = "check that [identity] identity_file is the one that was issued with this certificate; where a proxy ends TLS, set binding = \"certificate\" on both ends; if the backend's master key was replaced, issue this gateway again";

/// What to do when HELLO is authentic and its token is not.
const WRONG_TOKEN: &str = "the state folder or the identity file belongs to another time or another gateway: put back the files that belong together, or revoke this gateway and issue its name again";

/// Why a connection is over, without what the session adds.
struct Closing {
    class: FailureClass,
    cause: String,
    fix: &'static str,
    code: Option<CloseCode>,
    unproved: bool,
}

impl Closing {
    /// By chance.
    const fn plain(cause: String) -> Self {
        Self {
            class: FailureClass::Transient,
            cause,
            fix: "",
            code: None,
            unproved: false,
        }
    }
}

/// What the connection knows when it is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    /// How far the session came.
    pub(super) state: AgentState,
    /// How long it was confirmed.
    pub(super) confirmed_for: Option<Duration>,
    /// What the backend said about the next attempt.
    pub(super) told: Option<FailureClass>,
    /// Why this end has left a session that was well.
    pub(super) left: Option<Left>,
    /// What HELLO said of the state folder.
    pub(super) presented: Option<Presented>,
}

/// Why this end leaves a session that is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// The backend asked to reconnect.
    Drained,
    /// Another configuration is in force that asks for another session.
    Outdated,
    /// Another certificate was issued, and a session of its own tries it.
    Renewed,
    /// A later agent key came, and a session of its own uses it.
    Rekeyed,
    /// The newest pin set leaves out the key that the server has in this session, and is taken over in another one.
    Repinned,
}

/// The epoch in HELLO.
#[derive(Debug, Clone, Copy)]
pub(super) struct Presented {
    /// Its number.
    pub(super) epoch: u64,
    /// No session has moved it since the gateway was issued.
    pub(super) as_issued: bool,
}

impl Seen {
    /// Sending made no progress for too long.
    pub(super) fn stuck(self) -> Ended {
        self.because(Closing::plain("sending made no progress".to_owned()))
    }

    /// The connection is over without the session having ended.
    pub(super) fn lost(self, received: Received) -> Ended {
        let cut = |reason: &str| Closing::plain(format!("the connection was lost: {reason}"));
        self.because(match received {
            Received::Closed(Some((number, reason))) => self.closed_by_frame(number, &reason),
            Received::Closed(None) => {
                Closing::plain("the backend closed the connection".to_owned())
            }
            Received::Text(_) => Closing::plain(
                "the backend sent something that the protocol does not have".to_owned(),
            ),
            Received::Foreign(violation) => cut(&violation.reason),
            Received::TooLarge => cut("a message is larger than any may be"),
            Received::Lost(reason) => cut(&reason),
            // A message is no end.
            Received::Frame(_) => Closing::plain(String::new()),
        })
    }

    /// What the backend said about the next attempt stands beside what ended by chance.
    fn because(self, closing: Closing) -> Ended {
        let class = match closing.class {
            FailureClass::Transient => self.told.unwrap_or(closing.class),
            FailureClass::PermanentAuthenticated
            | FailureClass::PermanentUnproved
            | FailureClass::Told { .. }
            | FailureClass::Slot { .. } => closing.class,
        };
        Ended {
            class,
            cause: closing.cause,
            fix: closing.fix,
            code: closing.code,
            expected: false,
            confirmed_for: self.confirmed_for,
            unproved: closing.unproved,
        }
    }

    /// What a close frame says that no REFUSE came before: shown as the server's words, because nobody signed them.
    fn closed_by_frame(self, number: u16, reason: &str) -> Closing {
        let named = reason.split(':').next().and_then(CloseCode::from_name);
        let code = named.filter(|code| code.number() == number);
        let hello_answered = self.state == AgentState::AwaitWelcome;
        let unproved = reason.contains(HELLO_UNPROVED) || reason.contains("authentication tag");
        if hello_answered && code == Some(CloseCode::BadEnvelope) && unproved {
            return Closing {
                class: FailureClass::PermanentUnproved,
                cause: format!(
                    "the backend does not accept this gateway's agent key: it closed the connection with {number} (not signed)"
                ),
                fix: WRONG_KEY,
                code,
                unproved: true,
            };
        }
        Closing {
            class: FailureClass::of_close_frame(number),
            cause: format!(
                "the backend closed the connection: {number} {} (not signed)",
                printable(reason, DETAIL_BYTES_MAX)
            ),
            fix: code.map_or("", |code| code.advice_for(reason)),
            code,
            unproved: false,
        }
    }

    /// The session has ended, by either end.
    pub(super) fn closed(self, closed: &Closed) -> Ended {
        let own = |code: CloseCode| {
            // CHALLENGE is not authenticated: whatever it leads to is not proved.
            if code.is_permanent() {
                FailureClass::PermanentUnproved
            } else {
                FailureClass::Transient
            }
        };
        let class = match (self.told, closed.by, closed.code) {
            (Some(told), _, _) => told,
            (None, End::Agent, Some(code)) => own(code),
            (None, End::Agent | End::Backend, _) => FailureClass::Transient,
        };
        let said = format!("{}: {}", closed.name(), closed.reason);
        let advice = closed.code;
        let advice = advice.map_or("", |code| code.advice_for(&closed.reason));
        let (code, cause, fix) = match (closed.by, closed.code) {
            (End::Backend, Some(CloseCode::IdentityFork)) => {
                (closed.code, said + &self.own_state(), advice)
            }
            // Behind a right key: what is wrong is what the key vouches for.
            (End::Backend, Some(CloseCode::BadEnvelope)) if self.confirmed_for.is_none() => {
                (closed.code, said, WRONG_TOKEN)
            }
            (End::Agent, None) if self.left == Some(Left::Drained) => {
                let draining = CloseCode::Draining;
                let cause = format!("{}: the backend asked to reconnect", draining.name());
                (Some(draining), cause, draining.advice())
            }
            (End::Agent, None) if self.left == Some(Left::Outdated) => {
                let cause = "another configuration is in force, and the gateway connects anew";
                (None, cause.to_owned(), "")
            }
            (End::Agent, None) if self.left == Some(Left::Renewed) => {
                let cause = "another certificate was issued, and the gateway connects with it";
                (None, cause.to_owned(), "")
            }
            (End::Agent, None) if self.left == Some(Left::Rekeyed) => {
                let cause = "a later agent key came, and the gateway connects with it";
                (None, cause.to_owned(), "")
            }
            (End::Agent, None) if self.left == Some(Left::Repinned) => {
                let cause = "a key of the server was retired, and the gateway connects anew, to trust it no longer";
                (None, cause.to_owned(), "")
            }
            (End::Agent | End::Backend, code) => (code, said, advice),
        };
        Ended {
            class,
            cause,
            fix,
            code,
            expected: self.left.is_some(),
            confirmed_for: self.confirmed_for,
            unproved: false,
        }
    }

    /// What this gateway knows about its own part in a fork.
    fn own_state(self) -> String {
        match self.presented {
            Some(Presented {
                epoch,
                as_issued: true,
            }) => format!(
                "; the state folder here holds no session yet (epoch {epoch}, as issued): it was emptied or never moved here, or this is a copy of the files as issued"
            ),
            Some(Presented {
                epoch,
                as_issued: false,
            }) => format!("; the state folder here is at epoch {epoch}"),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::code::KEPT_ANOTHER;

    use super::*;

    #[test]
    fn what_is_to_be_done_names_this_gateway() {
        let id: AgentId = "01900000-0000-7000-8000-000000000013".parse().unwrap();
        let another = "cert_untrusted: another machine has this gateway's place";
        for (code, reason, words) in [
            (CloseCode::Revoked, "the gateway was revoked", "replace"),
            (CloseCode::Revoked, "the certificate was revoked", "replace"),
            (CloseCode::CertUntrusted, another, "show"),
            (
                CloseCode::CertUntrusted,
                "was replaced by a later one",
                "forks",
            ),
            (CloseCode::IdentityFork, KEPT_ANOTHER, "resolve"),
        ] {
            let told = about_this(code.advice_for(reason), id);
            let own = format!("viworks gateway {words} {id}");
            assert!(told.contains(&own), "{own}: {told}");
            let left = told.replace("--name ANOTHER-NAME,", "");
            assert!(!left.contains("NAME"), "{told}");
        }
        assert_eq!(about_this("", id), "");
    }

    #[test]
    fn another_certificate_is_tried_when_the_one_of_a_session_is_revoked() {
        let ended = |code, confirmed_for| Ended {
            class: FailureClass::PermanentAuthenticated,
            cause: String::new(),
            fix: "",
            code,
            expected: false,
            confirmed_for,
            unproved: false,
        };
        let long = Some(Duration::from_secs(60));
        for (code, confirmed_for, expected) in [
            (Some(CloseCode::Revoked), None, true),
            (Some(CloseCode::Revoked), long, true),
            (Some(CloseCode::CertUntrusted), None, true),
            (Some(CloseCode::CertUntrusted), long, false),
            (Some(CloseCode::IdentityFork), None, false),
            (None, None, false),
        ] {
            let found = ended(code, confirmed_for).is_of_the_certificate();
            assert_eq!(found, expected, "{code:?} {confirmed_for:?}");
        }
    }

    #[test]
    fn an_end_says_whether_its_certificate_alone_was_revoked_and_what_was_decided() {
        let seen = Seen {
            state: AgentState::Established,
            confirmed_for: Some(Duration::from_secs(60)),
            told: None,
            left: None,
            presented: None,
        };
        let fix = |reason: &str| {
            let signed = seen.closed(&Closed {
                code: Some(CloseCode::Revoked),
                reason: reason.to_owned(),
                by: End::Backend,
            });
            let framed = seen.closed_by_frame(4403, &format!("revoked: {reason}"));
            assert_eq!(signed.fix, framed.fix, "{reason}");
            signed.fix
        };
        let put_out = |reason: &str| {
            let closed = Closed {
                code: Some(CloseCode::IdentityFork),
                reason: reason.to_owned(),
                by: End::Backend,
            };
            seen.closed(&closed).fix
        };
        assert_eq!(put_out("a later session"), CloseCode::IdentityFork.advice());
        let decided = put_out(KEPT_ANOTHER);
        assert!(
            decided.contains("another holder of this identity was kept")
                && !decided.contains("decide who keeps"),
            "{decided}"
        );
        let whole = fix("the gateway was revoked");
        assert_eq!(whole, CloseCode::Revoked.advice());
        let alone = fix("the certificate of this session was revoked");
        assert!(
            alone.contains("the gateway itself was not")
                && alone.contains("viworks gateway replace NAME"),
            "{alone}"
        );
    }
}
