//! Another certificate from the door of the backend, for a gateway whose own has ended: it was away for longer than
//! that lived, and gets no session to ask over.
//!
//! The door gives a certificate for the key that the gateway has, and nothing else. It is kept as one that was issued
//! over a session is, and tried by the next attempt to connect.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rcgen::KeyPair;
use rustls::pki_types::PrivateKeyDer;
use tokio::time::sleep;
use tracing::{info, warn};
use viworks_common::enrolment::{
    CLOCK_OFF_MAX, EnrolmentChallenge, LapsedAnswer, LapsedExchange, LapsedRenewal, LapsedRequest,
    RENEW_PATH,
};
use viworks_common::human;
use viworks_common::pin::SpkiPin;
use viworks_common::renewal::{AtDoor, has_lapsed, pause_at_door};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_runtime::blocking;
use viworks_runtime::clock::Clock;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::{fault, random};

use super::door::{self, Door, DoorFailure};
use crate::config::door_place;
use crate::credentials::Credentials;
use crate::identity::Identity;
use crate::journal::Journal;
use crate::material::{Material, Papers};
use crate::renewed::{self, RenewedError, Wanted};

/// The condition while the certificate has ended and there is no other one.
pub const CONDITION: &str = "certificate.door";

/// How long the disk may take for the file.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Within which time somebody asks: gateways that were switched on together do not come together.
const SPREAD_MS: u64 = 2_000;

/// A difference of clocks that is told beside what may come of it.
const SKEW_TOLD: Duration = Duration::from_secs(60);

const FIX_WAIT: &str = "nothing, while it is asked";
const FIX_REACH: &str = "check [outbound] door_url, and that the backend has a door there (listen in its [enrolment]); it is asked again by itself";
const FIX_PIN: &str = "if the backend's key was changed on purpose, add its pin to [outbound] pins; otherwise somebody is in between: a proxy in front of the door must pass TLS through";
const FIX_REFUSED: &str = "do what the backend says; it is asked again by itself";
const FIX_CLOCK: &str =
    "set this machine's clock, and keep it set (chrony, systemd-timesyncd); nothing else is wrong";
const FIX_FORGED: &str = "something on the way changes what the backend answers: ask whoever runs the backend; it is asked again by itself";
const FIX_KEY: &str =
    "have a certificate signed by hand for a new ECDSA P-256 key in PKCS #8 form, and register it";
const FIX_STATE: &str =
    "see the room and the rights of the state folder; it is tried again by itself";
const FIX_ANSWER: &str = "compare this machine's clock, and the backend's, with the right time, and look at the log of the backend; it is asked again by itself";

/// What is asked with.
pub struct Asking<'a> {
    /// The door.
    pub url: &'a str,
    /// The keys that it may show.
    pub pins: BTreeSet<SpkiPin>,
    /// The certificates and keys of the gateway.
    pub material: &'a Material,
    /// Where it is noted that its agent key was refused.
    pub credentials: &'a Credentials,
    /// Who it is.
    pub identity: &'a Identity,
    /// Where its ratchet is.
    pub journal: &'a Journal,
}

/// Why nothing came of it.
struct Vain {
    came: AtDoor,
    cause: String,
    fix: &'static str,
    /// Whether another key that the gateway has may fare better.
    is_of_the_key: bool,
    /// Whether another agent key may.
    is_of_the_agent_key: bool,
}

impl Vain {
    fn here(cause: String, fix: &'static str) -> Self {
        Self {
            came: AtDoor::Refused(None),
            cause,
            fix,
            is_of_the_key: false,
            is_of_the_agent_key: false,
        }
    }
}

impl From<DoorFailure> for Vain {
    fn from(failure: DoorFailure) -> Self {
        let unheard = |fix| Self {
            came: AtDoor::Unheard,
            ..Self::here(failure.to_string(), fix)
        };
        match &failure {
            DoorFailure::OtherServer { .. } => unheard(FIX_PIN),
            DoorFailure::Unreached { .. } | DoorFailure::Unanswered { .. } => unheard(FIX_REACH),
            DoorFailure::Refused {
                code,
                detail,
                retry_after,
                for_certain,
            } => Self {
                // What the backend cannot do at the moment it can soon.
                came: if *for_certain {
                    AtDoor::Refused(*retry_after)
                } else {
                    AtDoor::Unheard
                },
                cause: format!("the backend refuses: {code}: {detail}"),
                fix: FIX_REFUSED,
                is_of_the_key: matches!(code.as_str(), "unknown_key" | "retired_key"),
                is_of_the_agent_key: matches!(code.as_str(), "bad_proof" | "stale_agent_key"),
            },
        }
    }
}

impl From<RenewedError> for Vain {
    fn from(error: RenewedError) -> Self {
        let fix = match error {
            RenewedError::File(_) | RenewedError::Io { .. } => FIX_STATE,
            RenewedError::Request(_) => FIX_KEY,
            RenewedError::NotOne(_)
            | RenewedError::Unnamed(_)
            | RenewedError::Other(_)
            | RenewedError::Untimely(_) => FIX_ANSWER,
        };
        Self::here(
            format!("the certificate that was issued is not used: {error}"),
            fix,
        )
    }
}

#[derive(Debug, Default)]
struct State {
    /// How often it was asked since the last session.
    asked: u32,
    /// When it may be asked again.
    from: Monotonic,
    /// Which of its keys is asked for, the latest first.
    place: usize,
}

/// What becomes of a certificate that has ended. Clones share it.
#[derive(Clone)]
pub struct Lapsed {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
    conditions: Conditions,
    clock: Arc<dyn Clock>,
}

/// The certificates that a gateway has, the one that was issued last first.
fn latest_first(material: &Material) -> Vec<&Papers> {
    let mut all: Vec<&Papers> = material.all.iter().collect();
    all.sort_by_key(|papers| Reverse(papers.life()));
    all
}

/// Whether no certificate of a gateway that was issued later than any other is good any more, by its own clock.
#[must_use]
pub fn has_ended(material: &Material, wall: Timestamp) -> bool {
    let latest = latest_first(material).into_iter().next();
    latest.is_some_and(|latest| latest.not_after < wall)
}

/// How far this machine's clock is off, where that is worth telling.
fn skew(own: Timestamp, backends: Timestamp) -> Option<String> {
    let (ahead, behind) = (
        own.saturating_since(backends),
        backends.saturating_since(own),
    );
    let (off, direction) = if ahead.is_zero() {
        (behind, "behind")
    } else {
        (ahead, "ahead of")
    };
    let span = human::span(off);
    (off > SKEW_TOLD).then(|| format!("this machine's clock is {span} {direction} the backend's"))
}

/// Refuses where it is a clock that is wrong, and not the certificate that has ended.
fn clocks_agree(not_after: Timestamp, own: Timestamp, backends: Timestamp) -> Result<(), Vain> {
    let off = skew(own, backends);
    let because = |what: &str| {
        let off = off
            .clone()
            .map_or_else(String::new, |off| format!(": {off}"));
        Vain::here(format!("{what}{off}"), FIX_CLOCK)
    };
    if !has_lapsed(not_after, backends) {
        return Err(because(
            "this gateway's certificate has not ended by the backend's clock, and none is asked for",
        ));
    }
    let apart = own
        .saturating_since(backends)
        .max(backends.saturating_since(own));
    if apart > CLOCK_OFF_MAX {
        return Err(because("certificates of today are not good by both clocks"));
    }
    Ok(())
}

/// The pair of a private key. Only one that can be written as it is can stand beside another certificate.
fn pair(key: &PrivateKeyDer<'_>) -> Result<KeyPair, Vain> {
    let other = || {
        let cause =
            "the key of the certificate that ended is in another form than ECDSA P-256 in PKCS #8";
        Vain::here(cause.to_owned(), FIX_KEY)
    };
    if !matches!(key, PrivateKeyDer::Pkcs8(_)) {
        return Err(other());
    }
    KeyPair::try_from(key).map_err(|_unreadable| other())
}

impl Lapsed {
    /// Nothing was asked yet by this process; `folder` is the agent's own.
    #[must_use]
    pub fn new(folder: PathBuf, conditions: Conditions, clock: Arc<dyn Clock>) -> Self {
        Self {
            folder,
            state: Arc::default(),
            conditions,
            clock,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long it is until it may be asked again; none when it is time.
    #[must_use]
    pub fn pause(&self) -> Option<Duration> {
        let left = self.state().from.saturating_since(self.clock.now());
        (!left.is_zero()).then_some(left)
    }

    /// A session is confirmed: whichever certificate it is with, no other one is needed to come in.
    pub fn settle(&self) {
        self.conditions.clear(CONDITION);
        self.forget();
    }

    /// The files may be others: what was said is of no matter any more.
    pub fn forget(&self) {
        *self.state() = State::default();
    }

    /// Asks the door for another certificate. True when one was issued and kept.
    pub async fn ask(&self, asking: &Asking<'_>) -> bool {
        let all = latest_first(asking.material);
        let place = self.state().place;
        let papers = all.get(place % all.len().max(1)).copied();
        let Some(papers) = papers.cloned() else {
            return false;
        };
        let ended = self.in_words(papers.not_after);
        let url = asking.url;
        let cause = format!("{ended}; asking the door at {url} for another one");
        self.conditions
            .raise(CONDITION, Severity::Fail, &cause, FIX_WAIT);
        sleep(Duration::from_millis(random::uniform(0..SPREAD_MS))).await;
        let came = self.ask_once(&papers, asking).await;
        let now = self.clock.now();
        let mut state = self.state();
        state.asked = state.asked.saturating_add(1);
        let random = u64::from_ne_bytes(random::bytes());
        let vain = match came {
            Ok(not_after) => {
                // Where it is not taken either, nobody asks for one after the other.
                let came = AtDoor::Refused(None);
                state.from = now.saturating_add(pause_at_door(came, state.asked, random));
                drop(state);
                self.conditions.clear(CONDITION);
                info!(%not_after, url, "the door issued another certificate; the next attempt to connect shows it");
                return true;
            }
            Err(vain) => vain,
        };
        let pause = pause_at_door(vain.came, state.asked, random);
        state.from = now.saturating_add(pause);
        if vain.is_of_the_key {
            state.place = state.place.wrapping_add(1);
        }
        drop(state);
        // As HELLO does, which such a gateway does not come to.
        if vain.is_of_the_agent_key && asking.credentials.key_refused(asking.material.key_digest())
        {
            let generation = asking.material.key_generation;
            warn!(
                generation,
                "this agent key is refused at the door; another one that this gateway has is tried"
            );
        }
        let Vain { cause, fix, .. } = vain;
        let again = human::span(pause);
        let cause = format!(
            "{ended}; the door at {url} gave no other one: {cause}; asking again in {again}"
        );
        self.conditions
            .raise(CONDITION, Severity::Fail, &cause, fix);
        false
    }

    fn in_words(&self, not_after: Timestamp) -> String {
        if not_after < self.clock.wall() {
            format!("this gateway's certificate ended at {not_after}")
        } else {
            format!(
                "the backend says that this gateway's certificate, until {not_after}, has ended"
            )
        }
    }

    async fn ask_once(&self, papers: &Papers, asking: &Asking<'_>) -> Result<Timestamp, Vain> {
        let agent_id = asking.material.name.agent_id;
        let key = pair(&papers.tls.key)?;
        let csr = renewed::request_for(&key)?;
        let (host, port) = door_place(asking.url).ok_or_else(|| {
            let cause = "that is no address of a door".to_owned();
            Vain::here(cause, FIX_REACH)
        })?;
        let mut door = Door::open(asking.pins.clone(), &host, port).await?;
        let challenge = door::json(&LapsedRequest::Challenge { agent_id });
        let (answer, _proof) = door.post(RENEW_PATH, challenge, None).await?;
        let unread = |reason: String| {
            let cause =
                format!("what it answers cannot be read ({reason}): it is of another version");
            Vain::here(cause, FIX_REACH)
        };
        let EnrolmentChallenge { challenge, time } = door::read(&answer).map_err(unread)?;
        let wall = self.clock.wall();
        clocks_agree(papers.not_after, wall, time)?;
        let meta = asking.journal.meta().await.map_err(|error| {
            let cause = format!("the state of this gateway cannot be read: {error}");
            Vain::here(cause, FIX_STATE)
        })?;
        let (epoch, token) = asking.identity.ratchet(&meta);
        let version = env!("CARGO_PKG_VERSION").parse();
        let request = door::json(&LapsedRequest::Renew(LapsedRenewal {
            agent_id,
            challenge,
            csr,
            key_generation: asking.material.key_generation,
            epoch,
            token,
            agent_version: version.expect("the version of this program is one"),
        }));
        let exchange = LapsedExchange::new(&asking.material.key, agent_id, &challenge);
        let proof = exchange.prove(&request);
        fault::point("door.asking");
        let (answer, proof) = door.post(RENEW_PATH, request.clone(), Some(proof)).await?;
        fault::point("door.answered");
        if !proof.is_some_and(|proof| exchange.authenticates(&request, &answer, &proof)) {
            return Err(Vain::here(
                "its answer is not the backend's".to_owned(),
                FIX_FORGED,
            ));
        }
        let LapsedAnswer { certificate, .. } = door::read(&answer).map_err(unread)?;
        let wanted = Wanted {
            name: asking.material.name.clone(),
            trust_domain: asking.material.trust_domain.clone(),
            life: papers.life(),
        };
        let folder = self.folder.clone();
        let keep = move || renewed::keep_reissued(&folder, &wanted, wall, &certificate, &key);
        let kept = blocking::call("renewal", WRITE_TIME, keep).await;
        let kept = kept.map_err(|_unanswered| {
            Vain::here("the state folder does not answer".to_owned(), FIX_STATE)
        })?;
        Ok(kept?)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ECDSA_P256_SHA256;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn at(hours: u32) -> Timestamp {
        Timestamp::from_unix_micros(1_790_000_000_000_000).saturating_add(HOUR * hours)
    }

    #[test]
    fn a_clock_that_is_wrong_asks_for_nothing_and_is_told_by_how_much() {
        // Ended by both.
        assert!(clocks_agree(at(100), at(200), at(200)).is_ok());
        assert!(clocks_agree(at(100), at(210), at(200)).is_ok());
        // Only by the gateway's own, which is a year ahead.
        let vain = clocks_agree(at(100), at(8_800), at(40)).unwrap_err();
        assert!(vain.cause.contains("has not ended"), "{}", vain.cause);
        assert!(vain.cause.contains("365 d"), "{}", vain.cause);
        assert!(vain.cause.contains("ahead of the backend's"));
        assert_eq!(vain.fix, FIX_CLOCK);
        // Ended, and no certificate of today is good by this clock.
        let vain = clocks_agree(at(100), at(10), at(200)).unwrap_err();
        assert!(
            vain.cause.contains("behind the backend's"),
            "{}",
            vain.cause
        );
        assert_eq!(vain.came, AtDoor::Refused(None));
    }

    #[test]
    fn what_is_said_at_the_door_decides_when_it_is_asked_again_and_for_which_key() {
        let refused = |code: &str, for_certain| {
            Vain::from(DoorFailure::Refused {
                code: code.to_owned(),
                detail: "because".to_owned(),
                retry_after: Some(HOUR),
                for_certain,
            })
        };
        assert_eq!(refused("revoked", true).came, AtDoor::Refused(Some(HOUR)));
        assert_eq!(refused("unavailable", false).came, AtDoor::Unheard);
        for (code, of_the_key) in [
            ("retired_key", true),
            ("unknown_key", true),
            ("revoked", false),
        ] {
            assert_eq!(refused(code, true).is_of_the_key, of_the_key, "{code}");
        }
        for (code, of_the_agent_key) in [
            ("bad_proof", true),
            ("stale_agent_key", true),
            ("bad_token", false),
            ("retired_key", false),
        ] {
            let vain = refused(code, true);
            assert_eq!(vain.is_of_the_agent_key, of_the_agent_key, "{code}");
        }
        let other = Vain::from(DoorFailure::OtherServer {
            place: "door.test:8082".to_owned(),
            seen: SpkiPin::from_digest([7; 32]),
        });
        assert_eq!((other.came, other.fix), (AtDoor::Unheard, FIX_PIN));
    }

    #[test]
    fn the_key_of_a_certificate_can_be_written_beside_another_one() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let read = pair(&der).unwrap_or_else(|vain| panic!("{}", vain.cause));
        assert_eq!(read.serialize_der(), key.serialize_der());
    }
}
