//! Renewal of this gateway's certificate over the open session: what was asked and answered, over all sessions, and
//! what people are told of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tracing::{info, warn};
use viworks_common::human;
use viworks_common::renewal::{Life, Plan};
use viworks_common::text;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{CertIssued, CertRefused};
use viworks_runtime::blocking::{self, Unanswered};
use viworks_runtime::clock::Clock;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::random;

use crate::renewed::{self, Origin, RenewedError, Wanted};

/// How long the disk may take for a file.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// The condition while a certificate that is to be renewed is not.
const RENEWAL: &str = "renewal";

const FIX_REFUSED: &str = "do what the backend says, or put a renewed certificate, and its key, where [identity] certificate_file and key_file point";
const FIX_NOT_TAKEN: &str = "look at the log of the backend, and of the proxy before it: its authority may be another one than the one that signs; this gateway goes on with the certificate of before, and asks again by itself";
const FIX_ANSWER: &str = "look at the log of the backend: its answer is not the certificate that was asked for; it is asked again by itself";
const FIX_CLOCKS: &str = "compare this machine's clock, and the backend's, with the right time; the certificate in use stays, and another one is asked for by itself";
const FIX_DISK: &str =
    "see the room and the rights of the state folder; it is tried again by itself";

/// Why a step came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// What came, or a file.
    #[error(transparent)]
    Renewed(#[from] RenewedError),
    /// A disk hangs.
    #[error("the state folder does not answer")]
    Unanswered(#[from] Unanswered),
}

impl RenewalError {
    const fn fix(&self) -> &'static str {
        match self {
            Self::Unanswered(_)
            | Self::Renewed(RenewedError::File(_) | RenewedError::Io { .. }) => FIX_DISK,
            Self::Renewed(
                RenewedError::Request(_)
                | RenewedError::NotOne(_)
                | RenewedError::Unnamed(_)
                | RenewedError::Other(_),
            ) => FIX_ANSWER,
            Self::Renewed(RenewedError::Untimely(_)) => FIX_CLOCKS,
        }
    }
}

/// What the backend said no to, and when that was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// When.
    pub at: Timestamp,
    /// Its word.
    pub code: String,
    /// In one sentence.
    pub detail: String,
}

/// What people are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RenewalStatus {
    /// Whether the backend issues certificates over a session; none before the first one.
    pub offered: Option<bool>,
    /// When the certificate in force is asked for anew.
    pub due: Timestamp,
    /// When the last request was made.
    pub asked_at: Option<Timestamp>,
    /// What the last request came to, if it was refused.
    pub last_refusal: Option<Refusal>,
    /// Seconds until it may ask again, while there is a pause.
    pub pause_s: Option<u64>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    offered: Option<bool>,
    asked_at: Option<Timestamp>,
    refusal: Option<Refusal>,
}

/// The renewal of this gateway's certificate. Clones share it.
#[derive(Clone)]
pub struct Renewal {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
    conditions: Conditions,
    clock: Arc<dyn Clock>,
}

fn drawn() -> u64 {
    u64::from_ne_bytes(random::bytes())
}

impl Renewal {
    /// Nothing was asked yet by this process; `folder` is the agent's own.
    #[must_use]
    pub fn new(folder: PathBuf, conditions: Conditions, clock: Arc<dyn Clock>) -> Self {
        Self {
            folder,
            state: Arc::new(Mutex::new(State {
                plan: Plan::new(drawn()),
                offered: None,
                asked_at: None,
                refusal: None,
            })),
            conditions,
            clock,
        }
    }

    /// The agent's own folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is told, while a certificate of this life is in force.
    #[must_use]
    pub fn status(&self, life: Life) -> RenewalStatus {
        let state = self.state();
        RenewalStatus {
            offered: state.offered,
            due: state.plan.due(life),
            asked_at: state.asked_at,
            last_refusal: state.refusal.clone(),
            pause_s: state.plan.pause(self.clock.now()).map(|it| it.as_secs()),
        }
    }

    /// A session begins with a certificate of this life, by the backend's wall clock. Notes whether that issues others
    /// over it.
    pub fn begin(&self, offered: bool, life: Life, wall: Timestamp) {
        let due = {
            let mut state = self.state();
            state.offered = Some(offered);
            state.plan.begin();
            state.plan.due(life)
        };
        if wall < due {
            self.conditions.clear(RENEWAL);
        }
    }

    /// Whether to ask now, when the backend's wall clock shows `wall`.
    #[must_use]
    pub fn may_ask(&self, life: Life, wall: Timestamp, now: Monotonic) -> bool {
        self.state().plan.may_ask(life, wall, now)
    }

    /// Prepares a request, while so much is `left` of the life in use: its key is durable once there is one. Counts as
    /// asked, whatever comes of it.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn request(self, left: Duration) -> Result<String, RenewalError> {
        {
            let mut state = self.state();
            state.plan.asked(left, self.clock.now(), drawn());
            state.asked_at = Some(self.clock.wall());
        }
        let made = self.on_disk(|folder| renewed::request(&folder)).await;
        made.inspect_err(|error| self.tell("the key for it cannot be kept", error))
    }

    /// Deals with an answer, while so much is `left` of the life in use. When a certificate was issued and kept: the
    /// end of its life.
    pub async fn answered(
        self,
        answer: CertIssued,
        wanted: Wanted,
        left: Duration,
    ) -> Option<Timestamp> {
        if let Some(refused) = answer.refused {
            self.refused(refused, left).await;
        }
        let certificate = answer.certificate?;
        let wall = self.clock.wall();
        let keep = move |folder: PathBuf| renewed::keep(&folder, &wanted, wall, &certificate);
        match self.on_disk(keep).await {
            Ok(not_after) => {
                self.state().refusal = None;
                self.conditions.clear(RENEWAL);
                info!(%not_after, "the backend issued another certificate; a session of its own tries it");
                Some(not_after)
            }
            Err(error) => {
                self.tell("the certificate that was issued is not used", &error);
                None
            }
        }
    }

    async fn refused(&self, refused: CertRefused, left: Duration) {
        let now = self.clock.now();
        let (is_of_the_key, passes) = (refused.is_of_the_key(), refused.passes());
        let CertRefused {
            code,
            detail,
            retry_after_ms,
        } = refused;
        let pause = {
            let mut state = self.state();
            state
                .plan
                .refused(Duration::from_millis(retry_after_ms), left, now);
            state.refusal = Some(Refusal {
                at: self.clock.wall(),
                code: code.clone(),
                detail: detail.clone(),
            });
            state.plan.pause(now).unwrap_or_default()
        };
        let again = human::span(pause);
        info!(code, detail, again, "the backend issued no certificate");
        if !passes {
            let cause =
                format!("the backend does not renew this gateway's certificate: {code}: {detail}");
            self.conditions
                .raise(RENEWAL, Severity::Warn, &cause, FIX_REFUSED);
        }
        if is_of_the_key
            && let Err(error) = self.on_disk(|folder| renewed::forget_key(&folder)).await
        {
            self.tell("the key that is refused cannot be given up", &error);
        }
    }

    /// Settles what a session proves that was confirmed with a certificate of this origin: the one that was issued is
    /// the one in use from here on, or it is given up where it is among the `refused`. True when files were moved.
    ///
    /// What was in a session once is kept, although it is refused: it may be good again, as with the backend that
    /// confirmed it. And a backend that does not renew takes those that are retired, so that a session with an earlier
    /// one proves nothing there.
    pub async fn confirmed(
        &self,
        origin: Origin,
        life: Life,
        wall: Timestamp,
        refused: &[Origin],
    ) -> bool {
        if origin == Origin::Issued {
            self.state().plan.proved(life, wall, drawn());
            let (_, not_after) = life;
            return match self.on_disk(|folder| renewed::prove(&folder)).await {
                Ok(()) => {
                    self.conditions.clear(RENEWAL);
                    info!(%not_after, "the renewed certificate is in use");
                    true
                }
                Err(error) => {
                    // It is good where it is; the next session does this.
                    warn!(%error, "the renewed certificate could not be put in its place");
                    false
                }
            };
        }
        if refused.is_empty() {
            return false;
        }
        let cause = "a certificate that the backend issued was refused where it was shown, and this gateway is connected with the one before";
        self.conditions
            .raise(RENEWAL, Severity::Warn, cause, FIX_NOT_TAKEN);
        let gives_up = {
            let mut state = self.state();
            let gives_up = state.offered == Some(true) && refused.contains(&Origin::Issued);
            if gives_up {
                let (_, not_after) = life;
                let left = not_after.saturating_since(wall);
                state.plan.gave_up(left, self.clock.now(), drawn());
            }
            gives_up
        };
        if !gives_up {
            return false;
        }
        let given_up = self.on_disk(|folder| renewed::give_up(&folder)).await;
        if let Err(error) = &given_up {
            self.tell("the certificate that is refused cannot be given up", error);
        }
        given_up.is_ok()
    }

    fn tell(&self, what: &str, error: &RenewalError) {
        let error_text = text::in_full(error);
        let cause = format!("this gateway's certificate is not renewed: {what}: {error_text}");
        self.conditions
            .raise(RENEWAL, Severity::Warn, &cause, error.fix());
    }

    /// On a thread that may wait for the disk.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(PathBuf) -> Result<T, RenewedError> + Send + 'static,
    ) -> Result<T, RenewalError> {
        let folder = self.folder.clone();
        Ok(blocking::call("renewal", WRITE_TIME, move || work(folder)).await??)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use viworks_common::id::AgentId;
    use viworks_common::key::Identity as Name;
    use viworks_runtime::clock::SystemClock;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3_600);
    const LEFT: Duration = Duration::from_secs(30 * 24 * 3_600);

    fn at(days: u32) -> Timestamp {
        Timestamp::from_unix_micros(1_790_000_000_000_000).saturating_add(DAY * days)
    }

    fn wanted() -> Wanted {
        Wanted {
            name: Name {
                tenant: "default".parse().unwrap(),
                agent_id: AgentId::from_uuid(Uuid::from_u128(7)),
            },
            trust_domain: "viworks.test".parse().unwrap(),
            life: (at(0), at(90)),
        }
    }

    fn no(code: &str) -> CertIssued {
        CertIssued {
            certificate: None,
            refused: Some(CertRefused {
                code: code.to_owned(),
                detail: "because".to_owned(),
                retry_after_ms: 7_200_000,
            }),
        }
    }

    fn renewal() -> (tempfile::TempDir, Renewal) {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        let renewal = Renewal::new(folder.path().to_owned(), conditions, clock);
        (folder, renewal)
    }

    #[tokio::test]
    async fn a_refusal_is_shown_and_waited_for_and_only_what_does_not_pass_is_a_condition() {
        let (folder, renewal) = renewal();
        let key = folder.path().join(renewed::FILES[0]);
        for (code, is_told, keeps_key) in [
            (CertRefused::TOO_SOON, false, true),
            ("a_word_of_a_later_version", true, true),
            (CertRefused::KEY_IN_USE, true, false),
        ] {
            renewal.clone().request(LEFT).await.unwrap();
            let answered = renewal.clone().answered(no(code), wanted(), LEFT).await;
            assert_eq!(answered, None);
            let status = renewal.status(wanted().life);
            assert_eq!(status.last_refusal.unwrap().code, code);
            assert!(status.pause_s.unwrap() > 7_000, "{code}");
            assert!(!renewal.may_ask(wanted().life, at(89), renewal.clock.now()));
            assert_eq!(renewal.conditions.worst().is_some(), is_told, "{code}");
            assert_eq!(key.exists(), keeps_key, "{code}");
        }
        // Another certificate is there, which is not due.
        renewal.begin(true, wanted().life, at(1));
        assert_eq!(renewal.conditions.worst(), None);
    }

    #[tokio::test]
    async fn what_is_no_certificate_is_told_and_not_asked_for_again() {
        let (folder, renewal) = renewal();
        renewal.clone().request(LEFT).await.unwrap();
        let answer = CertIssued {
            certificate: Some("nothing".to_owned()),
            refused: None,
        };
        let answered = renewal.clone().answered(answer, wanted(), LEFT).await;
        assert_eq!(answered, None);
        assert_eq!(renewal.conditions.worst(), Some(Severity::Warn));
        for name in renewed::FILES {
            assert!(!folder.path().join(name).exists(), "{name}");
        }
    }

    #[tokio::test]
    async fn what_was_issued_and_is_refused_is_given_up_with_a_session_of_the_one_before() {
        let (folder, renewal) = renewal();
        let path = Origin::Issued.path(folder.path()).unwrap();
        std::fs::write(&path, "whatever").unwrap();
        let life = wanted().life;
        renewal.begin(true, life, at(70));
        let nothing = renewal.confirmed(Origin::Configured, life, at(70), &[]);
        assert!(!nothing.await && path.exists());
        let given_up = renewal.confirmed(Origin::Configured, life, at(70), &[Origin::Issued]);
        assert!(given_up.await && !path.exists());
        assert_eq!(renewal.conditions.worst(), Some(Severity::Warn));
        assert!(renewal.status(life).pause_s.unwrap() > 1_800);
    }

    #[tokio::test]
    async fn what_was_in_a_session_or_may_be_good_elsewhere_is_kept_although_it_is_refused() {
        for (renews, refused) in [
            (true, [Origin::Renewed, Origin::Before]),
            // A backend of an earlier version takes those that are retired.
            (false, [Origin::Issued, Origin::Renewed]),
        ] {
            let (folder, renewal) = renewal();
            let paths = refused.map(|origin| origin.path(folder.path()).unwrap());
            for path in &paths {
                std::fs::write(path, "whatever").unwrap();
            }
            let life = wanted().life;
            renewal.begin(renews, life, at(70));
            let given_up = renewal.confirmed(Origin::Configured, life, at(70), &refused);
            assert!(!given_up.await, "{renews}");
            assert!(paths.iter().all(|path| path.exists()), "{renews}");
            assert_eq!(renewal.conditions.worst(), Some(Severity::Warn));
            assert_eq!(renewal.status(life).pause_s, None);
        }
    }

    #[test]
    fn a_certificate_of_a_clock_that_is_wrong_sends_people_to_both_clocks() {
        let error = RenewalError::Renewed(RenewedError::Untimely("begins later"));
        assert!(error.to_string().contains("compare the clocks of both"));
        assert!(error.fix().contains("the backend's, with the right time"));
    }
}
