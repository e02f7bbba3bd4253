//! Another certificate from the door of the backend, for a gateway whose own has ended, and the authorities of the
//! server's, for one that does not know them: it was away for longer than its certificate lived, or while they were
//! replaced, and gets no session to ask over.
//!
//! The door gives a certificate for the key that the gateway has, and the authorities under a MAC of their own. They
//! are kept as what comes over a session is, and tried by the next attempt to connect.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use tokio::time::sleep;
use tracing::{info, warn};
use viworks_common::enrolment::{
    CLOCK_OFF_MAX, EnrolmentChallenge, GivenAuthorities, LapsedAnswer, LapsedExchange,
    LapsedRenewal, LapsedRequest, RENEW_PATH, WireChallenge, clock_suits,
};
use viworks_common::human;
use viworks_common::id::AgentId;
use viworks_common::pin::SpkiPin;
use viworks_common::renewal::{AtDoor, has_lapsed, pause_at_door};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_runtime::blocking;
use viworks_runtime::clock::Clock;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::{fault, random};

use super::door::{self, Door, DoorFailure};
use super::ending::about_this;
use super::errand::Errand;
use crate::config::door_place;
use crate::credentials::Credentials;
use crate::identity::Identity;
use crate::journal::Journal;
use crate::material::{Material, Papers};
use crate::renewed::{self, RenewedError, Wanted};
use crate::trust::{self, TrustRefusal};

/// How long the disk may take for the file.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// Within which time somebody asks: gateways that were switched on together do not come together.
const SPREAD_MS: u64 = 2_000;

/// The word of a backend that gives no certificate because the one that there is is good.
const NOT_LAPSED: &str = "not_lapsed";

/// The word of a backend for a key whose certificate was revoked, and whose gateway was not.
const CERTIFICATE_REVOKED: &str = "certificate_revoked";

/// The word of a backend for a gateway that was revoked.
const REVOKED: &str = "revoked";

/// A difference of clocks that is told beside what may come of it.
const SKEW_TOLD: Duration = Duration::from_secs(60);

const FIX_WAIT: &str = "nothing, while it is asked";
const FIX_REACH: &str = "check [outbound] door_url, and that the backend has a door there (listen in its [enrolment]); it is asked again by itself";
const FIX_PIN: &str = "if the backend's key was changed on purpose, add its pin to [outbound] pins; otherwise somebody is in between: a proxy in front of the door must pass TLS through";
const FIX_REVOKED: &str = "if the machine still belongs to the fleet, and no other certificate of its own lets it in, let it in again: viworks gateway replace NAME, then viworks-gateway-agent enroll";
const FIX_REVOKED_GATEWAY: &str = "if the machine still belongs to the fleet, let it in again: viworks gateway replace NAME, then viworks-gateway-agent enroll";
const FIX_REFUSED: &str = "do what the backend says; it is asked again by itself";
const FIX_CLOCK: &str =
    "set this machine's clock, and keep it set (chrony, systemd-timesyncd); nothing else is wrong";
const FIX_FORGED: &str = "something on the way changes what the backend answers: ask whoever runs the backend; it is asked again by itself";
const FIX_KEY: &str =
    "have a certificate signed by hand for a new ECDSA P-256 key in PKCS #8 form, and register it";
const FIX_STATE: &str =
    "see the room and the rights of the state folder; it is tried again by itself";
const FIX_ANSWER: &str = "compare this machine's clock, and the backend's, with the right time, and look at the log of the backend; it is asked again by itself";
const FIX_OTHERS: &str = "whoever has read the public key can show a certificate with it: compare first with what the backend shows on its own host (openssl s_client, or its certificate_file). If it is the same, have its authority given as well: put it beside the others into the file that client_ca_file in [agents] of the backend names; or add it to the file that [outbound] ca_file names here";
const FIX_BY_HAND: &str = "compare first with what the backend shows on its own host (openssl s_client, or its certificate_file): whoever has read the public key can show a certificate with it. If it is the same, add its authority to the file that [outbound] ca_file names";

/// What is asked with.
pub struct Asking<'a> {
    /// The door.
    pub url: &'a str,
    /// What is asked for.
    pub errand: Errand,
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

    fn disk() -> Self {
        Self::here("the state folder does not answer".to_owned(), FIX_STATE)
    }
}

impl From<TrustRefusal> for Vain {
    fn from(refusal: TrustRefusal) -> Self {
        let fix = match refusal {
            TrustRefusal::NotKept(_) => FIX_STATE,
            TrustRefusal::Unreadable
            | TrustRefusal::Empty
            | TrustRefusal::NotOnlyCertificates
            | TrustRefusal::TooLarge
            | TrustRefusal::TooMany
            | TrustRefusal::NotAnAuthority => FIX_BY_HAND,
        };
        let cause = format!("the authorities that it gave are not taken over: {refusal}");
        Self::here(cause, fix)
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
                authorities: _,
            } => Self {
                // What the backend cannot do at the moment it can soon.
                came: if *for_certain {
                    AtDoor::Refused(*retry_after)
                } else {
                    AtDoor::Unheard
                },
                cause: format!("the backend refuses: {code}: {detail}"),
                fix: match code.as_str() {
                    REVOKED => FIX_REVOKED_GATEWAY,
                    CERTIFICATE_REVOKED => FIX_REVOKED,
                    _ => FIX_REFUSED,
                },
                is_of_the_key: matches!(
                    code.as_str(),
                    "unknown_key" | "retired_key" | CERTIFICATE_REVOKED
                ),
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

/// Whether that is what was asked for: `is_other` when the authorities that came are others than those of before, none
/// when none came.
fn suffices(errand: Errand, is_other: Option<bool>) -> Result<(), Vain> {
    match (errand, is_other) {
        (Errand::Certificate, _) | (Errand::Authorities, Some(true)) => Ok(()),
        (Errand::Authorities, Some(false)) => {
            let cause = "those that it gives are here already";
            Err(Vain::here(cause.to_owned(), FIX_OTHERS))
        }
        (Errand::Authorities, None) => {
            let cause = "it gives none: the backend is of an earlier version, or has more than gateways take";
            Err(Vain::here(cause.to_owned(), FIX_BY_HAND))
        }
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
    /// What the door gave since the last session.
    gave: Option<Errand>,
}

/// What becomes of a certificate that has ended, and of an authority that is not known. One set of pauses is kept for
/// both. Clones share it.
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

/// What the clock of the backend behind a door says. Its challenge is left unanswered.
///
/// # Errors
///
/// Why it does not say.
pub async fn clock_at(door: &mut Door, agent_id: AgentId) -> Result<Timestamp, String> {
    let challenge = door::json(&LapsedRequest::Challenge { agent_id });
    let answered = door.post(RENEW_PATH, challenge, None).await;
    let (answer, _proof) = answered.map_err(|failure| failure.to_string())?;
    let EnrolmentChallenge { time, .. } = door::read(&answer)?;
    Ok(time)
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

/// Refuses where no session would be opened by this clock, whatever is known of the server.
fn clock_is_right(
    own: Timestamp,
    backends: Timestamp,
    good_for: Option<(Timestamp, Timestamp)>,
) -> Result<(), Vain> {
    if clock_suits(own, backends, good_for) {
        return Ok(());
    }
    let off = skew(own, backends).unwrap_or_else(|| "the clocks differ".to_owned());
    let cause = format!("the server's certificate is not good by this machine's clock: {off}");
    Err(Vain::here(cause, FIX_CLOCK))
}

/// Takes over the authorities that came for this request. True when they are others than those of before.
async fn take_over(
    folder: &Path,
    configured: &Arc<RootCertStore>,
    exchange: &LapsedExchange,
    request: &[u8],
    given: &GivenAuthorities,
) -> Result<bool, Vain> {
    let Some(bundle) = exchange.given(request, given) else {
        let cause = "the authorities that came are not the backend's";
        return Err(Vain::here(cause.to_owned(), FIX_FORGED));
    };
    let (folder, bundle) = (folder.to_owned(), bundle.to_owned());
    let configured = Arc::clone(configured);
    let take = move || trust::take(&folder, &configured, bundle.as_bytes()).outcome;
    let taken = blocking::call("authorities", WRITE_TIME, take).await;
    let taken = taken.map_err(|_unanswered| Vain::disk())?;
    let is_new = taken?;
    if is_new {
        info!(
            "the door gave other authorities of the server's certificate; the next attempt to connect accepts them"
        );
    }
    Ok(is_new)
}

/// The pair of a private key. Only one that can be written as it is can stand beside another certificate.
fn pair(key: &PrivateKeyDer<'_>) -> Result<KeyPair, Vain> {
    let other = || {
        let cause =
            "the key of this gateway's certificate is in another form than ECDSA P-256 in PKCS #8";
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

    /// A session is confirmed: whichever certificate it is with, no other one is needed to come in, and no authority.
    pub fn settle(&self) {
        for errand in [Errand::Certificate, Errand::Authorities] {
            self.conditions.clear(errand.condition());
        }
        self.forget();
    }

    /// The files may be others: what was said is of no matter any more.
    pub fn forget(&self) {
        *self.state() = State::default();
    }

    /// Says that the door is asked again only after a pause, where nothing is told of that yet: what it gave did not
    /// help, or it was asked for something else before.
    pub fn waits(&self, url: &str, errand: Errand, material: &Material, pause: Duration) {
        if let Some(latest) = latest_first(material).into_iter().next() {
            self.tell_pause(url, errand, latest.not_after, pause);
        }
    }

    fn tell_pause(&self, url: &str, errand: Errand, not_after: Timestamp, pause: Duration) {
        let condition = errand.condition();
        let mut told = self.conditions.list().into_iter();
        if told.any(|known| known.name == condition) {
            return;
        }
        let amiss = self.in_words(errand, not_after);
        let (wanted, again) = (errand.wanted(), human::span(pause));
        let (cause, fix) = if self.state().gave == Some(errand) {
            let cause = format!(
                "{amiss}; the door at {url} gave {wanted}, and that did not help; asking again in {again}"
            );
            let fix = match errand {
                Errand::Certificate => FIX_ANSWER,
                Errand::Authorities => FIX_OTHERS,
            };
            (cause, fix)
        } else {
            let cause = format!("{amiss}; asking the door at {url} for {wanted} in {again}");
            (cause, FIX_WAIT)
        };
        self.conditions
            .raise(condition, Severity::Fail, &cause, fix);
    }

    /// Asks the door. True when what is asked for was given and is kept.
    pub async fn ask(&self, asking: &Asking<'_>) -> bool {
        let all = latest_first(asking.material);
        let place = self.state().place;
        let papers = all.get(place % all.len().max(1)).copied();
        let Some(papers) = papers.cloned() else {
            return false;
        };
        let (url, errand) = (asking.url, asking.errand);
        let amiss = self.in_words(errand, papers.not_after);
        let (condition, wanted) = (errand.condition(), errand.wanted());
        let cause = format!("{amiss}; asking the door at {url} for {wanted}");
        self.conditions
            .raise(condition, Severity::Fail, &cause, FIX_WAIT);
        sleep(Duration::from_millis(random::uniform(0..SPREAD_MS))).await;
        let came = self.ask_once(&papers, asking).await;
        let came = came.and_then(|is_other| suffices(errand, is_other));
        let now = self.clock.now();
        let mut state = self.state();
        state.asked = state.asked.saturating_add(1);
        let random = u64::from_ne_bytes(random::bytes());
        let Err(vain) = came else {
            // Where it is not taken either, nobody asks for one after the other.
            let came = AtDoor::Refused(None);
            state.from = now.saturating_add(pause_at_door(came, state.asked, random));
            state.gave = Some(errand);
            drop(state);
            self.conditions.clear(condition);
            return true;
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
        let (again, missed) = (human::span(pause), errand.missed());
        let cause =
            format!("{amiss}; the door at {url} gave {missed}: {cause}; asking again in {again}");
        let fix = about_this(fix, asking.material.name.agent_id);
        self.conditions
            .raise(condition, Severity::Fail, &cause, &fix);
        false
    }

    fn in_words(&self, errand: Errand, not_after: Timestamp) -> String {
        if errand == Errand::Authorities {
            "the server's certificate is of an authority that this gateway does not know".to_owned()
        } else if not_after < self.clock.wall() {
            format!("this gateway's certificate ended at {not_after}")
        } else {
            format!(
                "the backend says that this gateway's certificate, until {not_after}, has ended"
            )
        }
    }

    /// Whether the authorities that came are others than those of before; none when none came.
    async fn ask_once(&self, papers: &Papers, asking: &Asking<'_>) -> Result<Option<bool>, Vain> {
        let (agent_id, errand) = (asking.material.name.agent_id, asking.errand);
        let key = pair(&papers.tls.key).map_err(|vain| match errand {
            Errand::Certificate => vain,
            Errand::Authorities => Vain {
                fix: FIX_BY_HAND,
                ..vain
            },
        })?;
        let csr = renewed::request_for(&key)?;
        let (host, port) = door_place(asking.url).ok_or_else(|| {
            let cause = "that is no address of a door".to_owned();
            Vain::here(cause, FIX_REACH)
        })?;
        let mut door = Door::open(asking.pins.clone(), &host, port).await?;
        let challenge = door::json(&LapsedRequest::Challenge { agent_id });
        let (answer, _proof) = door.post(RENEW_PATH, challenge, None).await?;
        let EnrolmentChallenge { challenge, time } =
            door::read(&answer).map_err(|reason| unread(&reason))?;
        let wall = self.clock.wall();
        match errand {
            Errand::Certificate => clocks_agree(papers.not_after, wall, time)?,
            Errand::Authorities => clock_is_right(wall, time, door.good_for)?,
        }
        let request = request(asking, challenge, csr).await?;
        let exchange = LapsedExchange::new(&asking.material.key, agent_id, &challenge);
        let proof = exchange.prove(&request);
        fault::point("door.asking");
        let posted = door.post(RENEW_PATH, request.clone(), Some(proof)).await;
        let (answer, proof) = match posted {
            Ok(answered) => answered,
            Err(failure) => return self.refused(failure, asking, &exchange, &request).await,
        };
        fault::point("door.answered");
        if !proof.is_some_and(|proof| exchange.authenticates(&request, &answer, &proof)) {
            return Err(Vain::here(
                "its answer is not the backend's".to_owned(),
                FIX_FORGED,
            ));
        }
        let LapsedAnswer {
            certificate,
            authorities,
            ..
        } = door::read(&answer).map_err(|reason| unread(&reason))?;
        let given = authorities.as_ref();
        let is_other = self.take_beside(asking, &exchange, &request, given).await?;
        let wanted = Wanted {
            name: asking.material.name.clone(),
            trust_domain: asking.material.trust_domain.clone(),
            life: papers.life(),
        };
        let folder = self.folder.clone();
        let keep = move || renewed::keep_reissued(&folder, &wanted, wall, &certificate, &key);
        let kept = blocking::call("renewal", WRITE_TIME, keep).await;
        let kept = kept.map_err(|_unanswered| Vain::disk())?;
        match (kept.map_err(Vain::from), errand) {
            (Ok(not_after), _) => {
                let url = asking.url;
                info!(%not_after, url, "the door issued another certificate; the next attempt to connect shows it");
            }
            (Err(vain), Errand::Certificate) => return Err(vain),
            // Nobody asked for one: most likely it is the one that is in use.
            (Err(vain), Errand::Authorities) => {
                let cause = vain.cause;
                info!(
                    cause,
                    "the certificate that came with the authorities is left"
                );
            }
        }
        Ok(is_other)
    }

    /// What comes of a refusal of a certificate: for a gateway that asks for the authorities, these may be all that it
    /// needs.
    async fn refused(
        &self,
        failure: DoorFailure,
        asking: &Asking<'_>,
        exchange: &LapsedExchange,
        request: &[u8],
    ) -> Result<Option<bool>, Vain> {
        let (mut given, mut is_good) = (None, false);
        if let DoorFailure::Refused {
            code, authorities, ..
        } = &failure
        {
            given = authorities.as_deref();
            is_good = code == NOT_LAPSED;
        }
        let is_other = self.take_beside(asking, exchange, request, given).await?;
        // Nobody asked for a certificate where the one that there is is good.
        if asking.errand == Errand::Authorities && (is_other.is_some() || is_good) {
            return Ok(is_other);
        }
        Err(failure.into())
    }

    /// Takes over the authorities that came beside an answer, or a refusal, where there are some. Whoever asked for a
    /// certificate goes on without them.
    async fn take_beside(
        &self,
        asking: &Asking<'_>,
        exchange: &LapsedExchange,
        request: &[u8],
        given: Option<&GivenAuthorities>,
    ) -> Result<Option<bool>, Vain> {
        let Some(given) = given else {
            return Ok(None);
        };
        let configured = &asking.material.configured_roots;
        let taken = take_over(&self.folder, configured, exchange, request, given).await;
        match (taken, asking.errand) {
            (Err(vain), Errand::Certificate) => {
                let (cause, fix) = (vain.cause, vain.fix);
                warn!(
                    cause,
                    fix, "the authorities that came with a certificate are left"
                );
                Ok(None)
            }
            (taken, Errand::Certificate | Errand::Authorities) => taken.map(Some),
        }
    }
}

fn unread(reason: &str) -> Vain {
    let cause = format!("what it answers cannot be read ({reason}): it is of another version");
    Vain::here(cause, FIX_REACH)
}

/// The request, as it goes out.
async fn request(
    asking: &Asking<'_>,
    challenge: WireChallenge,
    csr: String,
) -> Result<Vec<u8>, Vain> {
    let meta = asking.journal.meta().await.map_err(|error| {
        let cause = format!("the state of this gateway cannot be read: {error}");
        Vain::here(cause, FIX_STATE)
    })?;
    let (epoch, token) = asking.identity.ratchet(&meta);
    let version = env!("CARGO_PKG_VERSION").parse();
    Ok(door::json(&LapsedRequest::Renew(LapsedRenewal {
        agent_id: asking.material.name.agent_id,
        challenge,
        csr,
        key_generation: asking.material.key_generation,
        epoch,
        token,
        agent_version: version.expect("the version of this program is one"),
    })))
}

#[cfg(test)]
mod tests;
