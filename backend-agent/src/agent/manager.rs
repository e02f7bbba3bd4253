//! Who is connected to this backend: supervises, supersedes, probes and drains sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use viworks_common::certificate::{Life, life};
use viworks_common::claims::{Claims, Entered, IDENTITIES_MAX, Newcomer, Probed};
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, AgentRunId, CommandId, GatewayName, InstanceId, SessionId};
use viworks_common::key::Identity;
use viworks_common::ledger::lease::Place;
use viworks_common::limits::PROBE_TIMEOUT;
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::time::{Monotonic, Timestamp};

use super::blocked::Blocked;
use super::doors::Doors;
use super::openings::{Openings, Presented};
use super::rates::{Pace, Rates};
use super::shelf::{Kept, Order, Shelf};
use crate::metrics::BackendMetrics;

/// How often a HELLO without the gateway's key is recorded.
const MINUTE: Duration = Duration::from_secs(60);

/// Gateways whose certificates are remembered at once; those beyond are not warned of here, but by themselves.
const CERTIFICATES_MAX: usize = 100_000;

/// Lines about what one gateway does wrong that the log takes.
const LINES: Quota = Quota {
    per_minute: 6,
    burst: 60,
};

/// What a gateway has left.
#[derive(Debug, Default)]
struct Paces {
    openings: Openings,
    lines: Bucket,
    /// Lines that were left out since the last.
    lines_left_out: u64,
    /// Shared with its sessions.
    rates: Arc<Mutex<Rates>>,
}

impl Paces {
    /// Whether it says nothing that a new one does not.
    fn is_full(&self, now: Monotonic) -> bool {
        self.openings.are_full(now)
            && self.lines.is_full(now)
            && Arc::strong_count(&self.rates) == 1
            && lock(&self.rates).are_full(now)
    }
}

/// What a gateway showed when it connected.
#[derive(Debug)]
struct Shown {
    name: GatewayName,
    not_before: Timestamp,
    not_after: Timestamp,
}

#[derive(Debug)]
struct Entry {
    session_id: SessionId,
    shelf: Arc<Shelf>,
}

/// Who is connected.
#[derive(Debug, Default)]
struct Connected {
    sessions: BTreeMap<AgentId, Entry>,
    /// Epochs whose confirmation is under way: the database may have them already.
    confirming: BTreeSet<(AgentId, u64)>,
    /// Which of several backends this one is.
    instance: Option<InstanceId>,
}

/// A session whose confirmation is under way; over when dropped.
#[derive(Debug)]
pub struct Confirming {
    manager: Arc<Manager>,
    which: (AgentId, u64),
}

impl Drop for Confirming {
    fn drop(&mut self) {
        lock(&self.manager.connected).confirming.remove(&self.which);
    }
}

/// The connected agents of this process.
#[derive(Debug)]
pub struct Manager {
    connected: Mutex<Connected>,
    /// Who keeps an identity. Locked after `connected`, never before it.
    claims: Mutex<Claims>,
    /// The names of gateways that connected, and the lives of the certificates that they did it with.
    certificates: Mutex<BTreeMap<AgentId, Shown>>,
    /// When something that costs its sender nothing was last recorded, by what it is, and how often it came since.
    recorded: Mutex<BTreeMap<(AgentId, &'static str), (Monotonic, u64)>>,
    /// What each gateway may still do, over all its sessions.
    paces: Mutex<BTreeMap<AgentId, Paces>>,
    /// Second holders of all identities.
    blocked: Mutex<Blocked>,
    /// Nudges of gateways that are not connected.
    missed_nudges: AtomicU64,
    /// Later agent keys for gateways that are not connected.
    missed_keys: AtomicU64,
    doors: Doors,
    metrics: BackendMetrics,
}

impl Manager {
    /// Nobody is connected.
    #[must_use]
    pub fn new(doors: Doors, metrics: BackendMetrics) -> Self {
        Self {
            connected: Mutex::default(),
            claims: Mutex::default(),
            certificates: Mutex::default(),
            recorded: Mutex::default(),
            paces: Mutex::default(),
            blocked: Mutex::default(),
            missed_nudges: AtomicU64::default(),
            missed_keys: AtomicU64::default(),
            doors,
            metrics,
        }
    }

    /// Which instance this process is.
    #[must_use]
    pub fn instance(&self) -> Option<InstanceId> {
        lock(&self.connected).instance
    }

    /// From here on this process is that instance. The sessions that it has are the one's before it: another backend
    /// took it for dead, and ended them.
    pub fn go_on_as(&self, instance: Option<InstanceId>) {
        let mut connected = lock(&self.connected);
        if connected.instance == instance {
            return;
        }
        connected.instance = instance;
        let turns = self.doors.anew();
        for (place, entry) in connected.sessions.values().enumerate() {
            let reason = "the backend was taken for dead by another one";
            let after = turns.delay(place);
            entry.shelf.end_for(CloseCode::Draining, reason, after);
        }
    }

    /// The confirmation of a session begins. Until this ends, nobody takes a session that the database has and that was
    /// not entered yet for one that nobody has.
    #[must_use]
    pub fn confirming(self: &Arc<Self>, agent_id: AgentId, epoch: u64) -> Confirming {
        let which = (agent_id, epoch);
        lock(&self.connected).confirming.insert(which);
        Confirming {
            manager: Arc::clone(self),
            which,
        }
    }

    /// Of the sessions that the database said this process has, those that it has not.
    #[must_use]
    pub fn missing(&self, stored: Vec<(AgentId, u64)>) -> BTreeSet<(AgentId, u64)> {
        let connected = lock(&self.connected);
        let has = |which: &(AgentId, u64)| {
            let entry = connected.sessions.get(&which.0);
            entry.is_some_and(|entry| entry.shelf.place().epoch == which.1)
                || connected.confirming.contains(which)
        };
        stored.into_iter().filter(|which| !has(which)).collect()
    }

    /// Enters a session that was confirmed for `instance`; an older one of the same gateway is closed. `false` when a
    /// newer one is there already, or this process is another instance by now.
    pub fn register(
        &self,
        identity: &Identity,
        session_id: SessionId,
        shelf: &Arc<Shelf>,
        instance: Option<InstanceId>,
    ) -> bool {
        let Place { epoch, .. } = shelf.place();
        let mut connected = lock(&self.connected);
        if connected.instance != instance {
            return false;
        }
        let connected = &mut connected.sessions;
        let entered = lock(&self.claims).enter(identity.agent_id, epoch);
        if entered == Entered::Overtaken {
            return false;
        }
        if let Some(other) = connected.get(&identity.agent_id) {
            other.shelf.end(
                CloseCode::Superseded,
                "a newer session of this gateway was confirmed",
            );
            // It may have been nudged, and is given nothing any more.
            shelf.nudge();
        }
        let entry = Entry {
            session_id,
            shelf: Arc::clone(shelf),
        };
        connected.insert(identity.agent_id, entry);
        self.count(connected);
        true
    }

    /// Removes a session that has ended; a newer one of the same gateway stays.
    pub fn remove(&self, agent_id: AgentId, session_id: SessionId) {
        let mut connected = lock(&self.connected);
        let connected = &mut connected.sessions;
        let entry = connected.get(&agent_id);
        if let Some(entry) = entry.filter(|entry| entry.session_id == session_id) {
            lock(&self.claims).leave(agent_id, entry.shelf.place().epoch);
            connected.remove(&agent_id);
            self.count(connected);
        }
    }

    /// How many sessions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.connected).sessions.len()
    }

    /// Whether nobody is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every gateway with a session here, and the epoch of that.
    #[must_use]
    pub fn held(&self) -> Vec<(AgentId, u64)> {
        let connected = lock(&self.connected);
        let held = connected.sessions.iter();
        held.map(|(agent_id, entry)| (*agent_id, entry.shelf.place().epoch))
            .collect()
    }

    /// Lets a connected gateway's session look for commands; `false` when it is not connected here.
    pub fn nudge(&self, agent_id: AgentId) -> bool {
        let connected = lock(&self.connected);
        let entry = connected.sessions.get(&agent_id);
        match entry {
            Some(entry) => entry.shelf.nudge(),
            None => {
                self.missed_nudges.fetch_add(1, Ordering::Relaxed);
            }
        }
        entry.is_some()
    }

    /// Keeps room for a command in the session of a gateway. `None` when it has none, or is not connected here.
    #[must_use]
    pub fn keep(&self, agent_id: AgentId, with_timeout: bool) -> Option<Kept> {
        let connected = lock(&self.connected);
        let entry = connected.sessions.get(&agent_id)?;
        entry.shelf.keep(with_timeout)
    }

    /// Asks a gateway to end a command, when it is connected here. Another is told when it connects.
    pub fn cancel(&self, agent_id: AgentId, command_id: CommandId) {
        if let Some(entry) = lock(&self.connected).sessions.get(&agent_id) {
            entry.shelf.cancel(command_id);
        }
    }

    /// How many nudges were for gateways that were not connected. Whoever reads it, looks for commands and is then
    /// entered has missed none while it stays the same.
    #[must_use]
    pub fn missed_nudges(&self) -> u64 {
        // Both this and the nudges are ordered by the lock.
        let _connected = lock(&self.connected);
        self.missed_nudges.load(Ordering::Relaxed)
    }

    /// Has a gateway's session give it the agent key of a generation. One that cannot take the order is stuck, and a
    /// gateway that is not connected here gets the key in its next session.
    pub fn rekey(&self, agent_id: AgentId, generation: u32) {
        let connected = lock(&self.connected);
        match connected.sessions.get(&agent_id) {
            Some(entry) => {
                let _ordered = entry.shelf.order(Order::Rekey(generation));
            }
            None => {
                self.missed_keys.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How many later keys were for gateways that were not connected, as [`Self::missed_nudges`] has it of nudges.
    #[must_use]
    pub fn missed_keys(&self) -> u64 {
        // As there.
        let _connected = lock(&self.connected);
        self.missed_keys.load(Ordering::Relaxed)
    }

    /// Ends a gateway's session at once, for example because it was revoked.
    pub fn end(&self, agent_id: AgentId, code: CloseCode, reason: &'static str) {
        if let Some(entry) = lock(&self.connected).sessions.get(&agent_id) {
            entry.shelf.end(code, reason);
        }
    }

    /// Ends the session of a gateway that was revoked, and forgets what was remembered of it: nobody is to be warned of
    /// a certificate that nothing accepts.
    pub fn revoked(&self, agent_id: AgentId) {
        self.end(agent_id, CloseCode::Revoked, "the gateway was revoked");
        lock(&self.certificates).remove(&agent_id);
    }

    /// Ends the session of this epoch: the certificate that it was opened with was revoked. Its gateway goes on with
    /// another one.
    pub fn certificate_revoked(&self, agent_id: AgentId, epoch: u64) {
        let connected = lock(&self.connected);
        let entry = connected.sessions.get(&agent_id);
        if let Some(entry) = entry.filter(|entry| entry.shelf.place().epoch == epoch) {
            let reason = "the certificate of this session was revoked";
            entry.shelf.end(CloseCode::Revoked, reason);
        }
    }

    /// Gives an order; `false` when the gateway is not connected here or its session is stuck.
    pub fn order(&self, agent_id: AgentId, order: Order) -> bool {
        let connected = lock(&self.connected);
        let entry = connected.sessions.get(&agent_id);
        entry.is_some_and(|entry| entry.shelf.order(order))
    }

    /// Whether the gateway of the confirmed session of an epoch answers, within [`PROBE_TIMEOUT`]. `None` when that
    /// session is not here: nothing is known of it then, whichever other session of the gateway is.
    pub async fn probe(&self, agent_id: AgentId, epoch: u64) -> Option<Probed> {
        let (answered, answer) = oneshot::channel();
        let shelf = {
            let connected = lock(&self.connected);
            if connected.confirming.contains(&(agent_id, epoch)) {
                // It is about to be entered, and will answer for itself.
                return Some(Probed::Unreachable);
            }
            let entry = connected.sessions.get(&agent_id);
            let entry = entry.filter(|entry| entry.shelf.place().epoch == epoch);
            Arc::clone(&entry?.shelf)
        };
        // One that takes no order is stuck.
        let answers = shelf.order(Order::Probe(answered))
            && matches!(
                tokio::time::timeout(PROBE_TIMEOUT, answer).await,
                Ok(Ok(()))
            );
        Some(self.heard(Some(answers), true))
    }

    /// What asking another backend about a session came to: what it answered, and whether it lives.
    pub fn heard(&self, answered: Option<bool>, owner_lives: bool) -> Probed {
        lock(&self.claims).heard(answered, owner_lives)
    }

    /// A newer session of a gateway was confirmed elsewhere: the one of this epoch is over.
    pub fn superseded(&self, agent_id: AgentId, epoch: u64) {
        let connected = lock(&self.connected);
        let entry = connected.sessions.get(&agent_id);
        if let Some(entry) = entry.filter(|entry| entry.shelf.place().epoch <= epoch) {
            let reason = "a newer session of this gateway was confirmed";
            entry.shelf.end(CloseCode::Superseded, reason);
        }
    }

    /// An operator gave an identity to another holder than the one that has it: sessions up to this epoch are over, and
    /// what was held against its processes may be wrong.
    pub fn given_away(&self, agent_id: AgentId, epoch: u64) {
        {
            let connected = lock(&self.connected);
            let entry = connected.sessions.get(&agent_id);
            if let Some(entry) = entry.filter(|entry| entry.shelf.place().epoch <= epoch) {
                let reason = "an operator gave this identity to its other holder";
                entry.shelf.end(CloseCode::Superseded, reason);
            }
        }
        if let Some(paces) = lock(&self.paces).get_mut(&agent_id) {
            paces.openings = Openings::default();
        }
    }

    /// What an admitted newcomer meets; `confirmed` says whether the confirmed session there is, if any, is of the same
    /// process.
    pub fn on_newcomer(&self, confirmed: Option<bool>) -> Newcomer {
        lock(&self.claims).on_newcomer(confirmed)
    }

    /// Uses up one opening of a session.
    ///
    /// # Errors
    /// When to try again.
    pub fn may_open(
        &self,
        agent_id: AgentId,
        presented: &Presented,
        now: Monotonic,
    ) -> Result<(), Duration> {
        self.paces(agent_id, now, |paces| paces.openings.take(presented, now))
    }

    /// An epoch was presented that its identity has left behind.
    pub fn left_behind(&self, agent_id: AgentId, epoch: u64, now: Monotonic) {
        self.paces(agent_id, now, |paces| paces.openings.left_behind(epoch));
    }

    /// A process turned out to be a second holder of an identity.
    pub fn forked(&self, agent_id: AgentId, run: AgentRunId, now: Monotonic) {
        self.paces(agent_id, now, |paces| paces.openings.forked(run));
    }

    /// A second holder of an identity is refused: how soon it may ask again whether somebody has decided.
    pub fn ask_again(&self, now: Monotonic) -> Duration {
        lock(&self.blocked).refused(now)
    }

    /// A session of this process is confirmed.
    pub fn confirmed(&self, agent_id: AgentId, run: AgentRunId, now: Monotonic) {
        self.doors.opened(now);
        self.paces(agent_id, now, |paces| paces.openings.confirmed(run));
    }

    /// Uses up one line that the log takes about a gateway, and says how many were left out since the last. `None` when
    /// this one is left out, too.
    pub fn may_log(&self, agent_id: AgentId, now: Monotonic) -> Option<u64> {
        self.paces(agent_id, now, |paces| match paces.lines.take(LINES, now) {
            Taken::Allowed { .. } => Some(std::mem::take(&mut paces.lines_left_out)),
            Taken::Refused { .. } => {
                paces.lines_left_out = paces.lines_left_out.saturating_add(1);
                None
            }
        })
    }

    /// What a gateway may say, in whichever of its sessions.
    #[must_use]
    pub fn pace(&self, agent_id: AgentId, heartbeats: Duration, now: Monotonic) -> Pace {
        let rates = self.paces(agent_id, now, |paces| Arc::clone(&paces.rates));
        Pace::new(rates, heartbeats)
    }

    fn paces<T>(&self, agent_id: AgentId, now: Monotonic, take: impl FnOnce(&mut Paces) -> T) -> T {
        let mut all = lock(&self.paces);
        if all.len() >= IDENTITIES_MAX && !all.contains_key(&agent_id) {
            all.retain(|_, paces| !paces.is_full(now));
        }
        // Only gateways that exist come this far, so their number is bounded by the registry.
        take(all.entry(agent_id).or_default())
    }

    /// Notes the name of a gateway, and the life of the certificate that it connected with.
    pub fn note_certificate(
        &self,
        agent_id: AgentId,
        name: &GatewayName,
        not_before: Timestamp,
        not_after: Timestamp,
    ) {
        let mut certificates = lock(&self.certificates);
        if certificates.len() < CERTIFICATES_MAX || certificates.contains_key(&agent_id) {
            let shown = Shown {
                name: name.clone(),
                not_before,
                not_after,
            };
            certificates.insert(agent_id, shown);
        }
    }

    /// The name of a gateway that connected to this process; its id otherwise.
    #[must_use]
    pub fn name_of(&self, agent_id: AgentId) -> String {
        let certificates = lock(&self.certificates);
        certificates
            .get(&agent_id)
            .map_or_else(|| agent_id.to_string(), |shown| shown.name.to_string())
    }

    /// The gateways whose certificate ends soon or has ended, the first to end first, of those that connected to this
    /// process.
    #[must_use]
    pub fn ending_certificates(&self, now: Timestamp) -> Vec<(GatewayName, Timestamp)> {
        let certificates = lock(&self.certificates);
        let ending = certificates.values().filter(|shown| {
            matches!(
                life(shown.not_before, shown.not_after, now),
                Life::EndsSoon { .. } | Life::Ended
            )
        });
        let mut ending: Vec<_> = ending
            .map(|shown| (shown.name.clone(), shown.not_after))
            .collect();
        ending.sort_unstable_by(|(name, to), (other, later)| (to, name).cmp(&(later, other)));
        ending
    }

    /// Whether something that costs its sender nothing, such as a HELLO that was not made with the gateway's key, is to
    /// be recorded, and how many were not before it: one a minute for each gateway.
    pub fn records(&self, agent_id: AgentId, what: &'static str, now: Monotonic) -> Option<u64> {
        let mut all = lock(&self.recorded);
        if let Some((last, left_out)) = all.get_mut(&(agent_id, what)) {
            if now.saturating_since(*last) < MINUTE {
                *left_out = left_out.saturating_add(1);
                return None;
            }
            *last = now;
            return Some(std::mem::take(left_out));
        }
        if all.len() >= IDENTITIES_MAX {
            all.retain(|_, (last, _)| now.saturating_since(*last) < MINUTE);
        }
        if all.len() >= IDENTITIES_MAX {
            return None;
        }
        all.insert((agent_id, what), (now, 0));
        Some(0)
    }

    /// How fast this instance takes gateways in.
    #[must_use]
    pub const fn doors(&self) -> &Doors {
        &self.doors
    }

    /// Asks every gateway to reconnect, one after another, as fast as the other instances have room for them.
    pub fn drain_all(&self) {
        let connected = &lock(&self.connected).sessions;
        let waves = self.doors.waves(connected.len());
        for (place, entry) in connected.values().enumerate() {
            let after = waves.delay(place);
            if !entry.shelf.order(Order::Drain(after)) {
                let reason = "the backend is stopping";
                entry.shelf.end_for(CloseCode::Draining, reason, after);
            }
        }
    }

    /// When a gateway that found no room should come back; `draw` is random.
    pub fn turned_away(&self, draw: u64, now: Monotonic) -> Duration {
        self.doors.turned_away(self.len(), draw, now)
    }

    /// The delay within which a gateway of this house reconnects first when its connection is lost.
    #[must_use]
    pub fn reconnect_slot(&self) -> Duration {
        self.doors.slot(self.len())
    }

    fn count(&self, connected: &BTreeMap<AgentId, Entry>) {
        self.metrics
            .sessions
            .set(i64::try_from(connected.len()).unwrap_or(i64::MAX));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
