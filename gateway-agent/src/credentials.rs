//! The certificates and keys in force: read again when their files may have been renewed, and watched for their end.
//! Of several certificates, the one is shown that was issued last and not refused.

use std::sync::{Arc, Mutex as Lock, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tracing::info;
use viworks_common::certificate::{Life, life};
use viworks_common::human;
use viworks_common::renewal::{Against, RefusedOnes};
use viworks_common::rotation::RefusedKeys;
use viworks_runtime::blocking::Worker;
use viworks_runtime::clock::{Clock, sleep_until};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::config::Problems;
use viworks_runtime::lifecycle::Lifecycle;

use crate::config::Config;
use crate::material::Material;
use crate::renewed::Origin;

/// How often the files are looked at while nothing else asks for them.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long reading them may take.
const READ_TIME: Duration = Duration::from_secs(5);

/// The condition while the certificate ends soon, or has ended.
const CERTIFICATE: &str = "certificate";
const RENEW: &str = "the backend issues another one over the connection from two thirds of its life on, unless status says why not; or put a renewed certificate, and its key, where [identity] certificate_file and key_file point; they are taken over within seconds, or at once with SIGHUP";

/// What to do once it has ended.
const ENDED: &str = "the backend's door issues another one where [outbound] door_url has its address (the condition certificate.door says what came of it); or put a renewed certificate, and its key, where [identity] certificate_file and key_file point; they are taken over within seconds, or at once with SIGHUP";

/// The condition while files that came later cannot be used.
const NOT_YET: &str = "compare this machine's clock with the right time; if the clock is right, wait for the certificate, \
                       or put one that is valid where [identity] certificate_file points";
const RELOAD: &str = "reload.certificate";
const RELOAD_FIX: &str = "mend the files; check-config lists every problem";

/// The material in force. Clones share it.
#[derive(Clone)]
pub struct Credentials {
    /// Reads the files for all who ask, on one thread, however long a disk hangs.
    reader: Arc<Mutex<Worker<(), Result<Material, Problems>>>>,
    current: watch::Sender<Arc<Material>>,
    refused: Arc<Lock<RefusedOnes>>,
    refused_keys: Arc<Lock<RefusedKeys>>,
    conditions: Conditions,
    clock: Arc<dyn Clock>,
}

impl Credentials {
    /// Begins with what the start has read.
    #[must_use]
    pub fn new(
        config: Config,
        material: Material,
        conditions: Conditions,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let config = Arc::new(config);
        let reader = Worker::new("credentials", move || {
            let config = Arc::clone(&config);
            move |()| Material::load(&config)
        });
        let own = Self {
            reader: Arc::new(Mutex::new(reader)),
            current: watch::Sender::new(Arc::new(material)),
            refused: Arc::default(),
            refused_keys: Arc::default(),
            conditions,
            clock,
        };
        own.tell_life();
        own
    }

    /// What is in force at this moment.
    #[must_use]
    pub fn get(&self) -> Arc<Material> {
        Arc::clone(&self.current.borrow())
    }

    /// Reads the files again. What cannot be used changes nothing and is told. True when something else is in force
    /// now.
    pub async fn refresh(&self) -> bool {
        // A disk may hang: then those read before are good enough to dial with.
        let loaded = self.reader.lock().await.ask((), READ_TIME).await;
        let changed = match loaded {
            Ok(Ok(material)) => self.take_over(material),
            Ok(Err(problems)) => {
                self.refuse(&problems.in_one_line());
                false
            }
            Err(error) => {
                self.refuse(&error.to_string());
                false
            }
        };
        self.tell_life();
        changed
    }

    fn refused_ones(&self) -> MutexGuard<'_, RefusedOnes> {
        // Nothing panics while it is held.
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keys_refused(&self) -> MutexGuard<'_, RefusedKeys> {
        // As above.
        let locked = self.refused_keys.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the agent key that was shown, by its SHA-256, was refused. True when another one is shown from here
    /// on that was not.
    pub fn key_refused(&self, shown: [u8; 32]) -> bool {
        let mut material = Material::clone(&self.get());
        let mut refused = self.keys_refused();
        if material.keys.len() < 2 {
            return false;
        }
        refused.note(shown);
        material.show_key(&refused);
        let fresh = !refused.has(&material.key_digest());
        self.current.send_replace(Arc::new(material));
        fresh
    }

    /// Notes that a backend gave this agent key, by its SHA-256, in a session: whatever spoke against it before is of
    /// another backend, or of another time. Otherwise it would be given in every session, and shown in none.
    pub fn key_offered(&self, offered: &[u8; 32]) {
        self.keys_refused().forget(offered);
    }

    /// Notes that a session was confirmed with this agent key, by its SHA-256. True when a later one is refused.
    pub fn key_taken(&self, shown: &[u8; 32]) -> bool {
        let all = self.get().key_candidates();
        let mut refused = self.keys_refused();
        refused.forget(shown);
        let taken = all.iter().find(|one| one.digest == *shown);
        let later = |taken: u8| {
            let mut all = all.iter();
            all.any(|one| one.generation > taken && refused.has(&one.digest))
        };
        taken.is_some_and(|taken| later(taken.generation))
    }

    /// Notes that the certificate that was shown was refused, and as what. True when another one is shown from here on
    /// that was not.
    pub fn refused(&self, shown: &[u8; 32], against: Against) -> bool {
        let mut material = Material::clone(&self.get());
        let mut refused = self.refused_ones();
        if material.all.len() < 2 {
            return false;
        }
        match against {
            Against::Refused => refused.note(*shown),
            Against::Retired => refused.retired(*shown, &material.candidates()),
        }
        material.show(&refused);
        let fresh = !refused.has(&material.shown.fingerprint);
        self.current.send_replace(Arc::new(material));
        fresh
    }

    /// Forgets which ones were refused: what spoke against them may be mended.
    pub fn forget_refused(&self) {
        *self.refused_ones() = RefusedOnes::default();
        *self.keys_refused() = RefusedKeys::default();
    }

    /// Notes that a session was confirmed with this certificate. Answers which of those that were issued over sessions
    /// later than it were refused: the backend does not know them.
    pub fn taken(&self, shown: &[u8; 32]) -> Vec<Origin> {
        let material = self.get();
        let mut refused = self.refused_ones();
        refused.forget(shown);
        let taken = material.all.iter().find(|one| one.fingerprint == *shown);
        let Some(taken) = taken else {
            return Vec::new();
        };
        let others = material.all.iter();
        let others = others.filter(|one| {
            one.origin != Origin::Configured
                && one.life() > taken.life()
                && refused.has(&one.fingerprint)
        });
        others.map(|one| one.origin).collect()
    }

    fn take_over(&self, mut material: Material) -> bool {
        let before = self.get();
        if material.name != before.name {
            self.refuse(
                "they belong to another gateway; an agent changes who it is only by a restart",
            );
            return false;
        }
        if let Some(unread) = material.unread.first() {
            self.refuse(&unread.line());
        } else {
            self.conditions.clear(RELOAD);
        }
        {
            let mut refused = self.refused_ones();
            refused.keep(&material.candidates());
            material.show(&refused);
        }
        {
            let mut refused = self.keys_refused();
            refused.keep(&material.key_candidates());
            material.show_key(&refused);
        }
        let is_same = same(&before, &material);
        if !is_same {
            info!(not_after = %material.shown.not_after, origin = material.shown.origin.name(), "certificate, key or authority were renewed; the next connection uses them");
        }
        self.current.send_replace(Arc::new(material));
        !is_same
    }

    fn refuse(&self, problems: &str) {
        let cause = format!(
            "the files of certificate, key or authority cannot be used, and those read before stay in force: {problems}"
        );
        self.conditions
            .raise(RELOAD, Severity::Warn, &cause, RELOAD_FIX);
    }

    fn tell_life(&self) {
        let material = self.get();
        let (not_before, not_after) = material.shown.life();
        let now = self.clock.wall();
        let found = life(not_before, not_after, now);
        let Some(cause) = human::life(found, not_before, not_after, now) else {
            return self.conditions.clear(CERTIFICATE);
        };
        let (severity, fix) = match found {
            Life::Good | Life::EndsSoon { .. } => (Severity::Warn, RENEW),
            Life::Ended => (Severity::Fail, ENDED),
            Life::NotYet => (Severity::Fail, NOT_YET),
        };
        let cause = format!("this gateway's certificate {cause}");
        self.conditions.raise(CERTIFICATE, severity, &cause, fix);
    }

    /// Looks at the files until the agent stops; each change is counted in `reloads`, so that a gateway that waits
    /// because of its certificate dials at once.
    pub async fn watch(self, reloads: watch::Sender<u64>, lifecycle: Lifecycle) {
        loop {
            let next = self.clock.now().saturating_add(INTERVAL);
            tokio::select! {
                () = lifecycle.stopping() => return,
                () = sleep_until(&*self.clock, next) => {}
            }
            if self.refresh().await {
                reloads.send_modify(|count| *count += 1);
            }
        }
    }
}

fn same(before: &Material, after: &Material) -> bool {
    before.shown.fingerprint == after.shown.fingerprint
        && before.shown.tls.chain == after.shown.tls.chain
        && before.shown.tls.key == after.shown.tls.key
        && before.key_generation == after.key_generation
        && before.key.secret() == after.key.secret()
        && before.roots.roots == after.roots.roots
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustls::RootCertStore;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
    use uuid::Uuid;
    use viworks_common::id::{AgentId, Tenant};
    use viworks_common::key::{AgentKey, Identity as Name, Secret};
    use viworks_common::time::Timestamp;
    use viworks_runtime::clock::SystemClock;
    use viworks_runtime::config::Environment;
    use viworks_runtime::tls;

    use super::*;
    use crate::keyring::Held;
    use crate::material::Papers;

    fn held(generation: u8) -> Held {
        Held {
            generation,
            key: AgentKey::new(Secret::from_bytes([generation; 32])),
        }
    }

    /// Of a gateway with two agent keys.
    fn credentials() -> Credentials {
        let papers = Papers {
            origin: Origin::Configured,
            path: "gateway.crt".into(),
            tls: tls::Identity {
                chain: vec![CertificateDer::from(vec![1])],
                key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(vec![1])),
            },
            fingerprint: [1; 32],
            not_before: Timestamp::from_unix_micros(0),
            not_after: Timestamp::from_unix_micros(4_000_000_000_000_000),
        };
        let first = held(1);
        let mut material = Material {
            name: Name {
                tenant: Tenant::default_tenant(),
                agent_id: AgentId::from_uuid(Uuid::from_u128(1)),
            },
            key: first.key.clone(),
            key_generation: first.generation,
            keys: vec![first, held(2)],
            first_epoch: 0,
            first_token: Secret::from_bytes([9; 32]),
            trust_domain: "viworks.test".parse().unwrap(),
            all: vec![papers.clone()],
            shown: papers,
            unread: Vec::new(),
            roots: Arc::new(RootCertStore::empty()),
            configured_roots: Arc::new(RootCertStore::empty()),
        };
        material.show_key(&RefusedKeys::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let nowhere = Path::new("/nonexistent/gateway.toml");
        let (config, _problems) = Config::read_to_ask(nowhere, &Environment::default());
        let conditions = Conditions::new(Arc::clone(&clock));
        Credentials::new(config, material, conditions, clock)
    }

    #[test]
    fn an_agent_key_that_is_given_again_is_shown_again_whoever_refused_it() {
        let own = credentials();
        let [first, second] = [held(1), held(2)].map(|held| held.digest());
        let shown = || own.get().key_generation;
        assert_eq!(shown(), 2);
        assert!(own.key_refused(second));
        assert_eq!(shown(), 1);
        assert!(own.key_taken(&first), "a later one is refused");
        own.key_offered(&second);
        assert!(!own.key_taken(&first));
        assert!(own.key_refused(first));
        assert_eq!(shown(), 2);
    }
}
