//! Stores the batches of many gateways in short transactions, gateway after gateway, and answers what is committed.
//!
//! Bounded: batches wait as they travelled, within a budget of bytes for the whole process and a share of each session.
//! When the store is slow or away, sessions stop handing in more, nothing is acknowledged, and the gateways' credit
//! stops them. Commands do not pass through here, and while they come in, telemetry leaves the writer to them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, warn};
use viworks_common::id::{AgentId, GatewayName, Tenant};
use viworks_common::telemetry::RecordRefusal;
use viworks_common::time::Timestamp;
use viworks_common::wire::PackedBatch;
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::Conditions;
use viworks_runtime::fault;
use viworks_runtime::lifecycle::Lifecycle;

use super::composed::{Composed, Dropped, Room};
use super::doubts::{Proof, Verdict};
use super::line::Waiting;
use super::others::Others;
use super::pause::Pause;
pub use super::pending::{Answer, Standing};
use super::pending::{Malformed, Note, Pending, Stored, Written, tell};
use super::watch::{Watch, lock};
use super::withheld::GATEWAYS_MAX;
use crate::config::TelemetryConfig;
use crate::data::{
    Gateway, GatewayRef, Store, StoreError, StoreResult, TelemetryOutcome, TelemetryWrite, in_full,
};
use crate::metrics::BackendMetrics;

/// How often somebody looks whether what is told of refusals is over, while nothing comes in.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What is stored together while others write.
const ROOM_BUSY: Room = Room {
    records: 256,
    bytes: 64 * 1024,
};

/// Further tries of a gateway of which nobody knows why it fails, where there is no place to keep what is refused.
const OPEN_TRIES: u32 = 3;

/// Bytes that are stored together otherwise.
const BYTES_IDLE: usize = 512 * 1024;

/// Batches that are taken out of the channel before they are stored.
const LINE_BATCHES_MAX: usize = 1_024;

/// Where sessions hand in their batches. Clones share it.
#[derive(Clone)]
pub struct TelemetryProcessor {
    /// As many as the store writes at a time, each for its own gateways.
    lanes: Arc<[mpsc::Sender<Waiting<Note>>]>,
    budget: Arc<Semaphore>,
    watch: Arc<Mutex<Watch>>,
}

/// A place in the line, taken before a batch is handed in, so that the order of a session's batches is kept.
pub struct Place {
    permit: mpsc::OwnedPermit<Waiting<Note>>,
}

/// A batch to be stored.
#[derive(Debug)]
pub struct HandedIn {
    /// The gateway's name.
    pub gateway: GatewayName,
    /// The gateway.
    pub agent_id: AgentId,
    /// The epoch of the session it came over.
    pub epoch: u64,
    /// The gateway's clock minus the backend's, in milliseconds, as last measured.
    pub skew_ms: Option<i64>,
    /// The batch.
    pub batch: PackedBatch,
    /// Its share of the budget, given back when the batch is dealt with; none for the first batch of a session.
    pub share: Option<OwnedSemaphorePermit>,
    /// Where its session is told how it stands.
    pub standing: watch::Sender<Standing>,
}

struct Worker {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    metrics: BackendMetrics,
    config: TelemetryConfig,
    lifecycle: Lifecycle,
    pending: Pending,
    watch: Arc<Mutex<Watch>>,
}

impl TelemetryProcessor {
    /// Starts the writers.
    #[must_use]
    pub fn start(
        store: Arc<dyn Store>,
        tenant: Tenant,
        clock: Arc<Timeline>,
        metrics: BackendMetrics,
        conditions: Conditions,
        config: TelemetryConfig,
        lifecycle: &Lifecycle,
    ) -> Self {
        let clock_of_watch = Arc::<Timeline>::clone(&clock);
        let watch = Watch::new(metrics.clone(), clock_of_watch, conditions);
        let watch = Arc::new(Mutex::new(watch));
        let count = store.telemetry_lanes();
        let shared = Arc::clone(&watch);
        let proof = Proof::default();
        let lane = move |_number| {
            let (waiting, received) = mpsc::channel(config.batches_waiting_max.div_ceil(count));
            let worker = Worker {
                store: Arc::clone(&store),
                tenant: tenant.clone(),
                clock: Arc::clone(&clock),
                metrics: metrics.clone(),
                config,
                lifecycle: lifecycle.clone(),
                pending: Pending::new(Arc::clone(&shared), proof.clone(), metrics.clone()),
                watch: Arc::clone(&shared),
            };
            drop(lifecycle.spawn_critical("telemetry", worker.run(received)));
            waiting
        };
        Self {
            lanes: (0..count).map(lane).collect(),
            budget: Arc::new(Semaphore::new(config.waiting_bytes_max)),
            watch,
        }
    }

    /// Tells of records that were refused before any batch came: a gateway's HELLO speaks of them.
    pub fn refused(
        &self,
        agent_id: AgentId,
        gateway: &GatewayName,
        refused: &BTreeMap<RecordRefusal, u64>,
    ) {
        lock(&self.watch).refused(agent_id, gateway, refused);
    }

    /// Waits for a place among the batches of a gateway. `None` when the backend is stopping.
    pub async fn place(self, agent_id: AgentId) -> Option<Place> {
        let lane = lane_of(agent_id, self.lanes.len());
        let waiting = self.lanes.get(lane)?.clone();
        let permit = waiting.reserve_owned().await.ok()?;
        Some(Place { permit })
    }

    /// A share of what may wait in this process, when there is room for it now.
    #[must_use]
    pub fn try_share(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let budget = Arc::clone(&self.budget);
        budget.try_acquire_many_owned(bytes).ok()
    }

    /// Waits for a share, in turn. `None` when the backend is stopping.
    pub async fn share(self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.budget.acquire_many_owned(bytes).await.ok()
    }
}

/// All batches of a gateway are in one lane, or they would overtake each other. The last digits of an id are random.
fn lane_of(agent_id: AgentId, lanes: usize) -> usize {
    let digits = agent_id.as_uuid().as_u128() % u128::try_from(lanes).unwrap_or(1).max(1);
    usize::try_from(digits).unwrap_or_default()
}

impl Place {
    /// Hands in a batch; the answer comes when it is committed, and never when the backend stops before that.
    #[must_use]
    pub fn hand_in(self, handed_in: HandedIn) -> oneshot::Receiver<Answer> {
        let (answer, outcome) = oneshot::channel();
        drop(self.permit.send(Waiting {
            agent_id: handed_in.agent_id,
            epoch: handed_in.epoch,
            skew_ms: handed_in.skew_ms,
            batch: handed_in.batch,
            note: Note::new(
                handed_in.gateway,
                handed_in.share,
                handed_in.standing,
                answer,
            ),
        }));
        outcome
    }
}

impl Worker {
    async fn run(mut self, mut received: mpsc::Receiver<Waiting<Note>>) {
        let mut ahead: Option<Composed<Note>> = None;
        loop {
            let Some(next) = self.retry(ahead.take(), 0).await else {
                return;
            };
            ahead = next;
            if self.pending.line.len() == 0 && ahead.is_none() {
                let look = Instant::now() + LOOK_EVERY;
                let until = self
                    .pending
                    .withheld
                    .next_due()
                    .map_or(look, |due| due.min(look));
                let first = tokio::select! {
                    biased;
                    first = received.recv() => first,
                    () = self.lifecycle.stopping() => received.try_recv().ok(),
                    () = tokio::time::sleep_until(until) => {
                        lock(&self.watch).look();
                        continue;
                    }
                };
                let Some(first) = first else { return };
                self.collect(first, &mut received).await;
            }
            lock(&self.watch).look();
            let composed = self.compose(ahead.take(), &mut received);
            let Some(next) = self.commit(composed, &mut received).await else {
                return;
            };
            ahead = Some(next).filter(|next| !next.is_empty());
        }
    }

    /// What is stored next: what was composed ahead, and what came since then as far as there is room.
    fn compose(
        &mut self,
        ahead: Option<Composed<Note>>,
        received: &mut mpsc::Receiver<Waiting<Note>>,
    ) -> Composed<Note> {
        while self.pending.line.len() < LINE_BATCHES_MAX
            && let Ok(next) = received.try_recv()
        {
            self.pending.take(next);
        }
        let busy = self.store.is_busy();
        let Some(mut composed) = ahead else {
            return self.pending.line.compose(if busy {
                ROOM_BUSY
            } else {
                Room {
                    records: self.config.rows_max,
                    bytes: BYTES_IDLE,
                }
            });
        };
        // Whoever writes by now does not wait for more than was taken before.
        if !busy {
            self.pending.line.top_up(&mut composed);
        }
        composed
    }

    /// Everything that comes within the time of coalescing, up to what is stored together.
    async fn collect(
        &mut self,
        first: Waiting<Note>,
        received: &mut mpsc::Receiver<Waiting<Note>>,
    ) {
        let mut bytes = first.batch.body_bytes();
        self.pending.take(first);
        let pause = tokio::time::sleep(self.config.coalesce);
        tokio::pin!(pause);
        while bytes < BYTES_IDLE {
            let next = tokio::select! {
                biased;
                next = received.recv() => next,
                () = &mut pause => None,
            };
            let Some(next) = next else { break };
            bytes = bytes.saturating_add(next.batch.body_bytes());
            self.pending.take(next);
        }
    }

    /// Commits, however long that takes, and composes meanwhile what is next: neither the writer nor the unpacking
    /// waits for the other. `None` when the backend stops before it worked.
    async fn commit(
        &mut self,
        composed: Composed<Note>,
        received: &mut mpsc::Receiver<Waiting<Note>>,
    ) -> Option<Composed<Note>> {
        let Composed {
            writes,
            numbers,
            ending,
            dropped,
            ..
        } = composed;
        self.tell_dropped(dropped);
        let mut ahead: Option<Composed<Note>> = None;
        if writes.is_empty() {
            return Some(self.compose(ahead, received));
        }
        let writes: Arc<[_]> = writes.into();
        let (store, tenant) = (Arc::clone(&self.store), self.tenant.clone());
        let mut pause = Pause::new();
        let outcomes = loop {
            let (wall, now) = self.times();
            let begun = Instant::now();
            let stored = store.commit_telemetry(&tenant, Arc::clone(&writes), wall, now);
            // The first look at it hands it to the writer.
            let (stored, ()) = tokio::join!(stored, async {
                let taken = ahead.take();
                ahead = Some(self.compose(taken, received));
            });
            match stored {
                Ok(outcomes) => {
                    self.are_stored(&writes, &outcomes, begun);
                    break outcomes.into_iter().map(Some).collect();
                }
                Err(error) if error.is_about_what_was_given() || error.is_in_doubt() => {
                    debug!(
                        error = in_full(&error),
                        writes = writes.len(),
                        "telemetry is committed apart"
                    );
                    break self.commit_apart(&writes, &mut ahead, received).await?;
                }
                Err(error) => self.put_off(&error, writes.len(), &mut pause).await?,
            }
        };
        fault::point("telemetry.committed.before_acknowledgement");
        let mut next = ahead?;
        let written = Written {
            writes,
            numbers,
            ending,
        };
        self.pending.settle(written, outcomes, Some(&mut next));
        Some(next)
    }

    /// Tries again what the database refused of one gateway, if it is time for that: what takes long keeps others from
    /// their turns once each time. Places among the withheld that are free by that are those of so many first that are
    /// to be kept. `None` when the backend stops meanwhile; what was composed ahead otherwise.
    async fn retry(
        &mut self,
        mut ahead: Option<Composed<Note>>,
        to_be_kept: usize,
    ) -> Option<Option<Composed<Note>>> {
        if let Some((agent_id, mut parts)) = self.pending.withheld.due(Instant::now()) {
            // Where its session has ended, what is not acknowledged comes again with the next one.
            if self.pending.waits(agent_id, &mut parts) {
                let writes: Arc<[_]> = parts.writes.into();
                let own = self.commit_own(agent_id, Arc::clone(&writes), true).await?;
                let stored = own.outcomes(writes.len());
                let written = Written {
                    writes,
                    numbers: parts.numbers,
                    ending: parts.ending,
                };
                self.pending.settle(written, stored, ahead.as_mut());
            }
            self.pending.settle_withheld(agent_id);
        }
        self.pending.let_in(to_be_kept);
        Some(ahead)
    }

    /// Answers batches that are none. Whose session is not the current one any more learns that first; to find out
    /// keeps nobody else waiting. Who waits behind what the database refuses goes on waiting.
    fn tell_dropped(&mut self, dropped: Vec<Dropped<Note>>) {
        let malformed = self.pending.sort(dropped);
        if malformed.is_empty() {
            return;
        }
        let (store, tenant) = (Arc::clone(&self.store), self.tenant.clone());
        let lifecycle = self.lifecycle.clone();
        drop(self.lifecycle.spawn("malformed telemetry", async move {
            let mut known = BTreeMap::new();
            for Malformed {
                agent_id,
                epoch,
                note,
                reason,
            } in malformed
            {
                if let Entry::Vacant(news) = known.entry(agent_id) {
                    let which = GatewayRef::Id(agent_id);
                    news.insert(tokio::select! {
                        found = store.gateway(&tenant, &which) => found,
                        () = lifecycle.stopping() => return,
                    });
                }
                // Where the database cannot say, the session ends by what is known.
                let fenced = known.get(&agent_id).is_some_and(|found| match found {
                    Ok(found) => found.as_ref().is_none_or(|it| !has(it, epoch)),
                    Err(_) => false,
                });
                let answer = if fenced {
                    Answer::Fenced
                } else {
                    Answer::Malformed(reason)
                };
                tell(note, answer);
            }
        }));
    }

    /// What gateways' clocks are held against, and the moment on the time line.
    fn times(&self) -> (Timestamp, Timestamp) {
        let now = self.clock.line();
        // A clock that was set back does not make right gateways' records come from the future.
        (self.clock.wall().max(now), now)
    }

    /// Commits the writes of each gateway for themselves, since the database refused something of them: nobody else
    /// waits for whose are refused again. Where it seems to be the database that fails, one is tried at a time, another
    /// one after each pause, and one of those that come next and have nothing here: it would be stored past that.
    /// `None` when the backend stops before it worked.
    async fn commit_apart(
        &mut self,
        writes: &[TelemetryWrite],
        ahead: &mut Option<Composed<Note>>,
        received: &mut mpsc::Receiver<Waiting<Note>>,
    ) -> Option<Stored> {
        let mut outcomes = Vec::with_capacity(writes.len());
        let mut waiting = VecDeque::from_iter(by_gateway(writes));
        let mut others = Others::than_those_of(writes);
        let mut pause = Pause::new();
        // Those of them that need a place among the withheld.
        let mut newly = 0;
        while let Some((agent_id, places)) = waiting.pop_front() {
            let has_place = self.pending.withheld.takes_beside(agent_id, newly);
            let own = self.commit_own(agent_id, at(writes, &places), has_place);
            let own = own.await?;
            if let Own::Stands = own {
                self.rest(&mut pause).await?;
                if self.pending.doubts.open() > GATEWAYS_MAX {
                    waiting.push_back((agent_id, places));
                    let next = self.retry(ahead.take(), newly).await?;
                    let mut next = self.compose(next, received);
                    self.try_another(&mut next, &mut others).await;
                    *ahead = Some(next);
                    continue;
                }
            }
            newly += usize::from(own.needs_place() && !self.pending.withheld.has(agent_id));
            let own = own.outcomes(places.len());
            outcomes.extend(places.into_iter().zip(own));
        }
        outcomes.sort_unstable_by_key(|(place, _)| *place);
        Some(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
    }

    /// Commits what one gateway wants to have stored, unless the database does not take it. One that has no place among
    /// those that are withheld is tried a few times more: its session would be thrown out for what may be over in a
    /// moment. `None` when the backend stops before it worked.
    async fn commit_own(
        &mut self,
        agent_id: AgentId,
        writes: Arc<[TelemetryWrite]>,
        has_place: bool,
    ) -> Option<Own> {
        let mut pause = Pause::new();
        let mut tries = if has_place { 0 } else { OPEN_TRIES };
        loop {
            let begun = Instant::now();
            let error = match self.try_to_commit(&writes).await {
                Ok(outcomes) => {
                    self.are_stored(&writes, &outcomes, begun);
                    return Some(Own::Stored(outcomes));
                }
                Err(error) => error,
            };
            let verdict = if error.is_about_what_was_given() {
                Verdict::Given
            } else if error.is_in_doubt() {
                self.pending.doubts.failed(agent_id, Instant::now())
            } else {
                self.put_off(&error, writes.len(), &mut pause).await?;
                continue;
            };
            lock(&self.watch).failed(agent_id);
            if verdict != Verdict::Given && tries > 0 {
                tries -= 1;
                self.put_off(&error, writes.len(), &mut pause).await?;
                continue;
            }
            return Some(match verdict {
                Verdict::Given => {
                    lock(&self.watch).refuses(agent_id, error.refused_by(), &said(&error));
                    Own::Waits
                }
                Verdict::Open => {
                    let error = in_full(&error);
                    debug!(%agent_id, error, "telemetry of a gateway could not be committed; others are tried");
                    Own::Waits
                }
                Verdict::Database => {
                    self.tell_put_off(&error, writes.len());
                    lock(&self.watch).takes_nothing(&error.refused_by());
                    self.store.believe(error);
                    Own::Stands
                }
            });
        }
    }

    /// Tries one gateway of those that come next, each in its turn: if something of it is stored, it is not the
    /// database that fails. What is committed by that does not come next any more: it is counted and answered here, or
    /// it would be found to be known, and what was refused of it would be told to nobody.
    async fn try_another(&mut self, next: &mut Composed<Note>, others: &mut Others) {
        let by_gateway = by_gateway(&next.writes);
        let mut found = by_gateway.iter().filter(|(agent_id, _)| {
            others.may_be(**agent_id) && !self.pending.doubts.is_open(**agent_id)
        });
        let Some((agent_id, places)) = found.next() else {
            others.begin_anew(next, ROOM_BUSY);
            return;
        };
        let agent_id = *agent_id;
        others.took_turn(agent_id);
        let own = at(&next.writes, places);
        let begun = Instant::now();
        if let Ok(outcomes) = self.try_to_commit(&own).await {
            self.are_stored(&own, &outcomes, begun);
            let parts = next.take_out(agent_id, None);
            let written = Written {
                writes: own,
                numbers: parts.numbers,
                ending: parts.ending,
            };
            let stored = outcomes.into_iter().map(Some).collect();
            self.pending.settle(written, stored, Some(next));
        }
    }

    async fn try_to_commit(
        &self,
        writes: &Arc<[TelemetryWrite]>,
    ) -> StoreResult<Vec<TelemetryOutcome>> {
        let (wall, now) = self.times();
        let (store, writes) = (&self.store, Arc::clone(writes));
        store
            .commit_telemetry(&self.tenant, writes, wall, now)
            .await
    }

    /// A transaction that began then was committed.
    fn are_stored(
        &mut self,
        writes: &[TelemetryWrite],
        outcomes: &[TelemetryOutcome],
        begun: Instant,
    ) {
        let stores = outcomes.iter().any(TelemetryOutcome::stores);
        let of = writes.iter().map(|write| write.agent_id);
        lock(&self.watch).stored(of.clone(), stores);
        self.pending.doubts.committed(of, stores, begun);
    }

    /// Waits until it may work. `None` when the backend stops before that.
    async fn put_off(&self, error: &StoreError, batches: usize, pause: &mut Pause) -> Option<()> {
        self.tell_put_off(error, batches);
        self.rest(pause).await
    }

    fn tell_put_off(&self, error: &StoreError, batches: usize) {
        self.metrics
            .telemetry_refused
            .inc_by(u64::try_from(batches).unwrap_or(u64::MAX));
        // The store has told of it, or does once it is believed.
        if error.is_outage() || matches!(error, StoreError::Full(_)) {
            debug!(%error, batches, "telemetry could not be committed; it waits");
        } else {
            warn!(%error, batches, "telemetry could not be committed; it waits");
        }
    }

    /// Waits for the next attempt. `None` when the backend stops before that.
    async fn rest(&self, pause: &mut Pause) -> Option<()> {
        tokio::select! {
            () = self.lifecycle.stopping() => None,
            () = tokio::time::sleep(pause.next()) => Some(()),
        }
    }
}

/// What became of the writes of one gateway.
enum Own {
    Stored(Vec<TelemetryOutcome>),
    /// The database does not take them: they wait, and nobody else does.
    Waits,
    /// It seems to take nothing of anybody.
    Stands,
}

impl Own {
    /// Whether they wait.
    const fn needs_place(&self) -> bool {
        matches!(self, Self::Waits | Self::Stands)
    }

    /// The outcome of each of so many writes.
    fn outcomes(self, writes: usize) -> Stored {
        match self {
            Self::Stored(outcomes) => outcomes.into_iter().map(Some).collect(),
            Self::Waits | Self::Stands => vec![None; writes],
        }
    }
}

/// What the database said where it refused something: it is not unavailable.
fn said(error: &StoreError) -> String {
    if let StoreError::Unavailable(cause) = error {
        in_full(&**cause)
    } else {
        in_full(error)
    }
}

/// Whether a gateway has a session of this epoch.
fn has(gateway: &Gateway, epoch: u64) -> bool {
    let session = gateway.session.as_ref();
    gateway.revoked_at.is_none() && session.is_some_and(|session| session.epoch == epoch)
}

/// Those of the writes that are at these places.
fn at(writes: &[TelemetryWrite], places: &[usize]) -> Arc<[TelemetryWrite]> {
    let at = |place: &usize| writes.get(*place).cloned();
    places.iter().filter_map(at).collect()
}

/// Which of some writes are of which gateway, in their order.
fn by_gateway(writes: &[TelemetryWrite]) -> BTreeMap<AgentId, Vec<usize>> {
    let mut places = BTreeMap::<AgentId, Vec<usize>>::new();
    for (place, write) in writes.iter().enumerate() {
        places.entry(write.agent_id).or_default().push(place);
    }
    places
}

#[cfg(test)]
mod tests {
    use viworks_runtime::clock::{Clock, SystemClock};
    use viworks_runtime::metrics::Metrics;

    use super::*;

    impl TelemetryProcessor {
        /// One that nobody serves: what is handed in waits in what comes beside it.
        pub(crate) fn unserved(waiting_bytes_max: usize) -> (Self, impl Sized) {
            let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            let conditions = Conditions::new(Arc::clone(&clock));
            let watch = Watch::new(BackendMetrics::register(&metrics), clock, conditions);
            let (lane, waiting) = mpsc::channel(64);
            let processor = Self {
                lanes: [lane].into(),
                budget: Arc::new(Semaphore::new(waiting_bytes_max)),
                watch: Arc::new(Mutex::new(watch)),
            };
            (processor, waiting)
        }
    }
}
