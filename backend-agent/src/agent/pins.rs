//! The pins of the server's keys, as whoever offers them is to know them: what is stored, looked at again and again,
//! because another backend may have changed it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};
use viworks_common::id::Tenant;
use viworks_common::pin::rotation::{PINS_MIN, Rotation};
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::lifecycle::Lifecycle;

use crate::data::{Actor, OwnPins, PinsKnown, Store, StoreResult, in_full};
use crate::metrics::BackendMetrics;

/// How often it is looked whether another backend has changed the set.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How often it is said which key is shown, and counted who trusts what.
const TELL_EVERY: Duration = Duration::from_secs(20);

/// The condition while the server shows a key that the set does not have, or its configuration names other keys.
const PINS: &str = "pins";

const SAME_FIX: &str = "give every backend the same certificate key, next_key_file and pin_set_version in [agents] and \
                        restart those that were changed; to change the set, viworks pin stage and retire, or raise \
                        pin_set_version on all of them";

const PINS_FIX: &str = "put the certificate of a key back that viworks pin ls lists, and send SIGHUP; if there is none, \
                        stage the key that is shown, and see docs/certificate_management.md for gateways that do not \
                        connect any more";

const PROMOTE_FIX: &str = "viworks pin status says who they are; put the certificate of a promoted key back and send \
                           SIGHUP, or promote this one";

/// With what it works.
pub struct PinParts {
    /// Where the keys are.
    pub store: Arc<dyn Store>,
    /// Whose.
    pub tenant: Tenant,
    /// The time.
    pub clock: Arc<Timeline>,
    /// What is counted.
    pub metrics: BackendMetrics,
    /// Where it is told that something is wrong.
    pub conditions: Conditions,
    /// The configured set, and the key that the server shows.
    pub own: OwnPins,
}

/// The pins of the server's keys.
pub struct ServerPins {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    metrics: BackendMetrics,
    conditions: Conditions,
    own: Mutex<OwnPins>,
    known: watch::Sender<Arc<PinsKnown>>,
}

impl fmt::Debug for ServerPins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.known();
        f.debug_struct("ServerPins")
            .field("known", &known)
            .finish_non_exhaustive()
    }
}

impl ServerPins {
    /// What is configured; what is stored is not looked at yet.
    #[must_use]
    pub fn new(parts: PinParts) -> Self {
        let PinParts {
            store,
            tenant,
            clock,
            metrics,
            conditions,
            own,
        } = parts;
        let known = PinsKnown {
            rotation: Rotation::of(&own.configured, own.live, Vec::new()),
            shown: [own.live].into(),
            stepped: false,
        };
        let (known, _receiver) = watch::channel(Arc::new(known));
        Self {
            store,
            tenant,
            clock,
            metrics,
            conditions,
            own: Mutex::new(own),
            known,
        }
    }

    fn lock(&self) -> MutexGuard<'_, OwnPins> {
        // Nothing panics while it is held.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this backend brings to every question about pins.
    #[must_use]
    pub fn own(&self) -> OwnPins {
        self.lock().clone()
    }

    /// What was known at the last look.
    #[must_use]
    pub fn known(&self) -> Arc<PinsKnown> {
        Arc::clone(&self.known.borrow())
    }

    /// What is known, and every change of it.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<PinsKnown>> {
        self.known.subscribe()
    }

    /// The set for a gateway that trusts this version, if it is a newer one.
    #[must_use]
    pub fn newer_than(&self, version: u64) -> Option<PinSet> {
        newer_than(&self.known.borrow(), version)
    }

    /// The pins for a machine that becomes a gateway, where the files have these, the shown key first. Without the key
    /// that is shown it could not even ask.
    #[must_use]
    pub fn for_newcomers(&self, files: &[SpkiPin]) -> PinSet {
        self.known().for_newcomers(files)
    }

    /// Whether the server may show another key than before: one that was promoted; before the first step, the one that
    /// the configuration names as the next.
    #[must_use]
    pub fn may_show(&self, pin: &SpkiPin) -> bool {
        let (own, known) = (self.own(), self.known());
        let is_configured = !known.stepped && own.configured.contains(pin);
        *pin == own.live || is_configured || known.rotation.may_show(pin)
    }

    /// Stores what is configured, unless another backend did so or somebody took a step, and looks at what is stored.
    ///
    /// # Errors
    ///
    /// When the store cannot be asked.
    pub async fn begin(&self) -> StoreResult<()> {
        let (own, now) = (self.own(), self.clock.line());
        let version = own.configured.version;
        let actor = Actor::system();
        let noted = self.store.note_pins(&self.tenant, own, &actor, now);
        if noted.await? {
            info!(version, "the configured pin set is stored");
        }
        self.refresh().await.map(drop)
    }

    /// Looks at what is stored.
    ///
    /// # Errors
    ///
    /// When the store cannot be asked; what was known stays.
    pub async fn refresh(&self) -> StoreResult<Arc<PinsKnown>> {
        let now = self.clock.line();
        let known = self.store.pins(&self.tenant, self.own(), now).await?;
        self.judge(&known);
        let version = known.rotation.set().version;
        let changed = self.known.send_if_modified(|current| {
            let changed = **current != known;
            if changed {
                *current = Arc::new(known);
            }
            changed
        });
        if changed {
            info!(version, "the pin set or its standing has changed");
        }
        Ok(self.known())
    }

    fn judge(&self, known: &PinsKnown) {
        let OwnPins { configured, live } = self.own();
        let set = known.rotation.set();
        if !known.stepped && set.contains(&live) && !configured.pins.is_subset(&set.pins) {
            let cause = format!(
                "the configuration of this backend names other keys than version {} of the pin set, which was stored \
                 first and counts: no gateway is told to trust them",
                set.version
            );
            return self
                .conditions
                .raise(PINS, Severity::Warn, &cause, SAME_FIX);
        }
        if known.rotation.may_show(&live) {
            return self.conditions.clear(PINS);
        }
        if set.contains(&live) {
            let cause = format!(
                "the server shows the key {live}, which was not promoted: gateways that do not trust it yet are cut off"
            );
            return self
                .conditions
                .raise(PINS, Severity::Warn, &cause, PROMOTE_FIX);
        }
        let cause = format!(
            "the server shows the key {live}, which is not in version {} of the pin set: gateways that follow the set do \
             not connect",
            set.version
        );
        self.conditions
            .raise(PINS, Severity::Fail, &cause, PINS_FIX);
    }

    /// The server shows this key from now on.
    pub async fn shows(&self, live: SpkiPin) {
        self.lock().live = live;
        self.tell().await;
        self.look().await;
    }

    async fn look(&self) {
        if let Err(error) = self.refresh().await {
            // Health says what is wrong with the store.
            debug!(error = in_full(&error), "the pins could not be looked at");
        }
    }

    /// Says which key is shown, and counts who trusts what.
    async fn tell(&self) {
        let (live, now) = (self.lock().live, self.clock.line());
        if let Err(error) = self.store.show_pin(&self.tenant, live, now).await {
            debug!(
                error = in_full(&error),
                "which key is shown could not be noted"
            );
        }
        match self.store.pin_trust(&self.tenant).await {
            Ok(trust) => self
                .metrics
                .pin_trust(&trust, self.known.borrow().rotation.set().version),
            Err(error) => debug!(
                error = in_full(&error),
                "who trusts what could not be counted"
            ),
        }
    }

    /// Looks until the backend stops.
    pub async fn run(self: Arc<Self>, lifecycle: Lifecycle) {
        let (mut looks, mut tells) = (interval(LOOK_EVERY), interval(TELL_EVERY));
        for ticks in [&mut looks, &mut tells] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                () = lifecycle.stopping() => return,
                _ = looks.tick() => self.look().await,
                _ = tells.tick() => self.tell().await,
            }
        }
    }
}

/// The set of what is known, if it is newer than this version and may be offered.
fn newer_than(known: &PinsKnown, version: u64) -> Option<PinSet> {
    let set = known.rotation.set();
    (set.pins.len() >= PINS_MIN && version < set.version).then_some(set)
}

/// Pin sets over one open session.
pub struct Offers {
    known: watch::Receiver<Arc<PinsKnown>>,
    /// The version that the gateway has or was offered; none for one that takes none over an open session.
    told: Option<u64>,
    due: Option<Monotonic>,
}

impl Offers {
    /// To a gateway that has, or was offered, this version.
    #[must_use]
    pub fn new(pins: &ServerPins, told: Option<u64>) -> Self {
        let mut known = pins.subscribe();
        // What changed since it was welcomed is news to it.
        known.mark_changed();
        Self {
            known,
            told,
            due: None,
        }
    }

    /// When a set is to be offered that is known by now.
    #[must_use]
    pub const fn due(&self) -> Option<Monotonic> {
        self.due
    }

    /// Waits until what is known has changed.
    pub async fn changed(&mut self) {
        if self.told.is_none() || self.known.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Plans to offer what is known at this moment, if it is newer.
    pub fn plan(&mut self, at: Monotonic) {
        let newer = |told| newer_than(&self.known.borrow(), told).is_some();
        if self.due.is_none() && self.told.is_some_and(newer) {
            self.due = Some(at);
        }
    }

    /// The set to offer now, if one is due.
    pub fn take(&mut self, now: Monotonic) -> Option<PinSet> {
        self.due.take_if(|due| *due <= now)?;
        let set = newer_than(&self.known.borrow(), self.told?)?;
        self.told = Some(set.version);
        Some(set)
    }
}
