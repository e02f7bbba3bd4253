//! Changes of runs and live output, in process and bounded: what watchers hear, never what is true.
//!
//! Each run has a ring of its latest events. A watcher that comes back replays from where it was; one that fell behind
//! is told how much it missed and reads the store. Nothing here is durable, and a publisher never waits.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, CommandId, InstanceId, RunId};
use viworks_common::time::Timestamp;
use viworks_common::wire::message::OutputStream;

use crate::data::Run;

/// Runs that are remembered.
const RUNS_MAX: usize = 1_024;

/// Events of one run.
const RUN_EVENTS_MAX: usize = 8_192;

/// Events of all runs.
const EVENTS_MAX: usize = 32_768;

/// Bytes of live output of one run.
const RUN_OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of live output of all runs.
const OUTPUT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The bounds of a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusLimits {
    /// Runs that are remembered; the one that was silent for longest makes room.
    pub runs: usize,
    /// Events of one run.
    pub run_events: usize,
    /// Events of all runs; those of finished runs that nobody watches make room first.
    pub events: usize,
    /// Bytes of live output of one run.
    pub run_output_bytes: usize,
    /// Bytes of live output of all runs.
    pub output_bytes: usize,
}

impl Default for BusLimits {
    fn default() -> Self {
        Self {
            runs: RUNS_MAX,
            run_events: RUN_EVENTS_MAX,
            events: EVENTS_MAX,
            run_output_bytes: RUN_OUTPUT_BYTES_MAX,
            output_bytes: OUTPUT_BYTES_MAX,
        }
    }
}

/// A command moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandChange {
    /// When.
    pub at: Timestamp,
    /// Which command.
    pub command_id: CommandId,
    /// Its gateway.
    pub agent_id: AgentId,
    /// Where it is.
    pub state: CommandState,
    /// How often it was delivered, when that is at hand.
    pub attempt: Option<u32>,
    /// The exit code, when it exited.
    pub exit_code: Option<i32>,
    /// How long it ran, in milliseconds, when it ended.
    pub duration_ms: Option<u64>,
    /// Why, when there is more to say.
    pub reason: Option<String>,
    /// What it wrote, in bytes, when it ended.
    pub written: Option<Written>,
}

/// How much a command wrote in all, by which a watcher knows what it was not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// To its standard output.
    pub stdout: u64,
    /// To its standard error.
    pub stderr: u64,
}

/// A command wrote something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// When it arrived.
    pub at: Timestamp,
    /// Which command.
    pub command_id: CommandId,
    /// Its gateway.
    pub agent_id: AgentId,
    /// Which stream.
    pub stream: OutputStream,
    /// The position of the first byte in its stream.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

/// One event of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunChange {
    /// A command moved.
    Command(CommandChange),
    /// A command wrote something.
    Output(OutputChunk),
}

impl RunChange {
    const fn output_bytes(&self) -> usize {
        match self {
            Self::Command(_) => 0,
            Self::Output(chunk) => chunk.data.len(),
        }
    }
}

/// A place in the events of a run. The generation tells a restarted or forgotten ring from the one it was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    generation: u64,
    seq: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.generation, self.seq)
    }
}

/// Text that is no [`Cursor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of an event of this API")]
pub struct InvalidCursor;

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let (generation, seq) = text.split_once('-').ok_or(InvalidCursor)?;
        let parsed = Self {
            generation: u64::from_str_radix(generation, 16).map_err(|_digits| InvalidCursor)?,
            seq: seq.parse().map_err(|_digits| InvalidCursor)?,
        };
        if parsed.to_string() == text {
            Ok(parsed)
        } else {
            Err(InvalidCursor)
        }
    }
}

/// Of so many runs one is forgotten when room is needed.
const FORGOTTEN_TOGETHER: usize = 16;

/// Other processes in which changes are watched, and that change what is watched here.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// Somebody began to watch a run here.
    fn watch(&self);
    /// A run changed here. It never waits.
    fn tell(&self, run_id: RunId, change: &Arc<RunChange>, run_finished: bool);
}

/// The bus of one process.
#[derive(Debug)]
pub struct RunBus {
    limits: BusLimits,
    inner: Mutex<Inner>,
    elsewhere: OnceLock<Arc<dyn Elsewhere>>,
}

#[derive(Debug)]
struct Inner {
    channels: BTreeMap<RunId, Channel>,
    generation: u64,
    clock: u64,
    events: usize,
    output_bytes: usize,
}

#[derive(Debug)]
struct Channel {
    generation: u64,
    touched: u64,
    /// The sequence number of the first event in the ring; those before it are gone.
    first: u64,
    ring: VecDeque<Remembered>,
    output_bytes: usize,
    finished: bool,
    /// The run as it ended.
    outcome: Option<Arc<Run>>,
    /// What was heard last of each output from another process.
    heard: BTreeMap<(CommandId, OutputStream), HeardTo>,
    /// How often its watchers were asked to look into the store.
    looks: u64,
    /// Receivers wake on every change and end when the channel is dropped.
    changes: watch::Sender<()>,
}

/// One event of a ring.
#[derive(Debug)]
struct Remembered {
    change: Arc<RunChange>,
    /// Whether it came to this process, and was not told by another one, which tells it by itself.
    is_own: bool,
}

/// By how much the time of a piece may be before that of the one it goes on behind, when another process tells it: a
/// gateway can go from one to the other, and the time lines of two are a little apart. Each one's own never goes back.
const LINES_APART_MAX: Duration = Duration::from_secs(2);

/// Outputs of a run of which is known how far they were heard; the earliest command's makes room. What is told of that
/// again is heard again, at its place in the output, by which a watcher knows it.
const HEARD_MAX: usize = 16_384;

/// How far one output was heard from another process.
#[derive(Debug, Clone, Copy)]
struct HeardTo {
    /// Who told the last piece.
    from: InstanceId,
    /// When the last piece came there.
    at: Timestamp,
    /// Behind its last byte.
    reached: u64,
}

impl HeardTo {
    fn of(from: InstanceId, chunk: &OutputChunk) -> Self {
        let length = u64::try_from(chunk.data.len()).unwrap_or(u64::MAX);
        Self {
            from,
            at: chunk.at,
            reached: chunk.offset.saturating_add(length),
        }
    }

    /// Whether a piece goes on behind that, or belongs to an attempt that began later. Whatever is remembered there is
    /// told as often as somebody begins to watch somewhere, so most of it may have come before, and a piece of an
    /// earlier attempt may begin just where this one ends.
    fn is_before(self, from: InstanceId, chunk: &OutputChunk) -> bool {
        let earliest = if from == self.from {
            self.at
        } else {
            self.at.saturating_sub(LINES_APART_MAX)
        };
        chunk.at > self.at
            || (chunk.at == self.at && chunk.offset > self.reached)
            || (chunk.at >= earliest && chunk.offset == self.reached)
    }
}

impl Channel {
    fn next_seq(&self) -> u64 {
        self.first
            .saturating_add(u64::try_from(self.ring.len()).unwrap_or(u64::MAX))
    }

    /// Notes what another process tells; `false` for output that it told before.
    fn hear(&mut self, from: InstanceId, change: &RunChange) -> bool {
        let RunChange::Output(chunk) = change else {
            return true;
        };
        // What a run wrote that is over is in the store, and what was heard of it is not known any more.
        if self.finished {
            return false;
        }
        let which = (chunk.command_id, chunk.stream);
        let last = self.heard.get(&which);
        let is_new = last.is_none_or(|last| last.is_before(from, chunk));
        if is_new {
            if self.heard.len() >= HEARD_MAX && !self.heard.contains_key(&which) {
                self.heard.pop_first();
            }
            self.heard.insert(which, HeardTo::of(from, chunk));
        }
        is_new
    }

    /// Drops the oldest event and says how many output bytes that freed.
    fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.ring.pop_front() else {
            return 0;
        };
        self.first = self.first.saturating_add(1);
        let bytes = oldest.change.output_bytes();
        self.output_bytes = self.output_bytes.saturating_sub(bytes);
        bytes
    }
}

impl Inner {
    fn channel(&mut self, run_id: RunId, limits: &BusLimits) -> &mut Channel {
        self.clock += 1;
        if !self.channels.contains_key(&run_id) {
            if self.channels.len() >= limits.runs.max(1) {
                self.make_room();
            }
            self.generation = self.generation.wrapping_add(1);
        }
        let (generation, touched) = (self.generation, self.clock);
        let channel = self.channels.entry(run_id).or_insert_with(|| Channel {
            generation,
            touched,
            first: 1,
            ring: VecDeque::new(),
            output_bytes: 0,
            finished: false,
            outcome: None,
            heard: BTreeMap::new(),
            looks: 0,
            changes: watch::Sender::new(()),
        });
        channel.touched = touched;
        channel
    }

    /// Forgets the run that is missed least: unwatched before watched, finished before open, the most silent first.
    /// While it looks at all of them, it forgets some more that are finished and that nobody watches.
    fn make_room(&mut self) {
        let mut runs: Vec<_> = self
            .channels
            .iter()
            .map(|(run_id, channel)| {
                let watched = channel.changes.receiver_count() > 0;
                (watched, !channel.finished, channel.touched, *run_id)
            })
            .collect();
        let some = runs.len() / FORGOTTEN_TOGETHER;
        if some < runs.len() {
            runs.select_nth_unstable(some);
        }
        runs.truncate(some + 1);
        let least = runs.iter().min().copied();
        for (watched, open, touched, run_id) in runs {
            let is_least = least == Some((watched, open, touched, run_id));
            if !is_least && (watched || open) {
                continue;
            }
            if let Some(channel) = self.channels.remove(&run_id) {
                self.events = self.events.saturating_sub(channel.ring.len());
                self.output_bytes = self.output_bytes.saturating_sub(channel.output_bytes);
            }
        }
    }
}

impl RunBus {
    /// An empty bus; `generation` is random, so that places taken from an earlier process are recognised.
    #[must_use]
    pub const fn new(limits: BusLimits, generation: u64) -> Self {
        Self {
            limits,
            inner: Mutex::new(Inner {
                channels: BTreeMap::new(),
                generation,
                clock: 0,
                events: 0,
                output_bytes: 0,
            }),
            elsewhere: OnceLock::new(),
        }
    }

    /// Tells what changes here to other processes as well, from now on.
    pub fn tell_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        // There is one such connection, made at the start.
        let _second = self.elsewhere.set(elsewhere);
    }

    /// Something of the run changed in another process, which matters only to those who watch it here.
    pub fn heard(&self, from: InstanceId, run_id: RunId, change: RunChange, run_finished: bool) {
        let mut inner = self.lock();
        let channel = inner.channels.get_mut(&run_id);
        let watched = channel.filter(|channel| channel.changes.receiver_count() > 0);
        let is_new = watched.is_some_and(|channel| channel.hear(from, &change));
        drop(inner);
        if is_new {
            let change = Remembered {
                change: Arc::new(change),
                is_own: false,
            };
            self.publish(run_id, change, run_finished, None);
        }
    }

    /// Output of a run that came to this process and is remembered, behind `after` or from the oldest, at most so many
    /// pieces; each with its place. Nothing when that is all there is. What this process was itself told by another one
    /// is that one's to tell.
    #[must_use]
    pub fn remembered(
        &self,
        run_id: RunId,
        after: Option<Cursor>,
        limit: usize,
    ) -> Vec<(Cursor, Arc<RunChange>)> {
        let inner = self.lock();
        let Some(channel) = inner.channels.get(&run_id) else {
            return Vec::new();
        };
        let generation = channel.generation;
        let own = after.filter(|cursor| cursor.generation == generation);
        // Another ring has none of what was told of the one before.
        let begin = own.map_or(channel.first, |cursor| cursor.seq.saturating_add(1));
        let skipped = begin.saturating_sub(channel.first);
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let places = (begin.max(channel.first)..).map(|seq| Cursor { generation, seq });
        places
            .zip(channel.ring.iter().skip(skipped))
            .filter(|(_place, it)| it.is_own && matches!(*it.change, RunChange::Output(_)))
            .take(limit)
            .map(|(place, it)| (place, Arc::clone(&it.change)))
            .collect()
    }

    /// The runs that somebody watches and that are not known to be finished, at most so many.
    #[must_use]
    pub fn watched(&self, limit: usize) -> Vec<RunId> {
        let inner = self.lock();
        let open = inner.channels.iter();
        open.filter(|(_run, channel)| !channel.finished && channel.changes.receiver_count() > 0)
            .map(|(run_id, _channel)| *run_id)
            .take(limit)
            .collect()
    }

    /// Lets the watchers of a run look into the store: something may have happened without a word.
    pub fn look(&self, run_id: RunId) {
        if let Some(channel) = self.lock().channels.get_mut(&run_id) {
            channel.looks = channel.looks.wrapping_add(1);
            channel.changes.send_replace(());
        }
    }

    /// The same of every run: something happened without a word, and nobody knows to which.
    pub fn look_at_all(&self) {
        for channel in self.lock().channels.values_mut() {
            channel.looks = channel.looks.wrapping_add(1);
            channel.changes.send_replace(());
        }
    }

    /// A command of the run moved; `run_finished` when that made the whole run final.
    pub fn command_changed(&self, run_id: RunId, change: CommandChange, run_finished: bool) {
        self.announce(run_id, RunChange::Command(change), run_finished, None);
    }

    /// A command of the run moved, which made the whole run final: `run`, as it was committed.
    pub fn run_ended(&self, run_id: RunId, change: CommandChange, run: Run) {
        self.announce(run_id, RunChange::Command(change), true, Some(run));
    }

    /// A command of the run wrote something.
    pub fn output(&self, run_id: RunId, chunk: OutputChunk) {
        self.announce(run_id, RunChange::Output(chunk), false, None);
    }

    fn announce(&self, run_id: RunId, change: RunChange, run_finished: bool, run: Option<Run>) {
        let change = Arc::new(change);
        // In this order: whoever begins to watch elsewhere is told what is remembered, and what is told from then on.
        let own = Remembered {
            change: Arc::clone(&change),
            is_own: true,
        };
        self.publish(run_id, own, run_finished, run);
        if let Some(elsewhere) = self.elsewhere.get() {
            elsewhere.tell(run_id, &change, run_finished);
        }
    }

    fn publish(&self, run_id: RunId, event: Remembered, run_finished: bool, run: Option<Run>) {
        let mut inner = self.lock();
        let limits = &self.limits;
        let bytes = event.change.output_bytes();
        let channel = inner.channel(run_id, limits);
        channel.ring.push_back(event);
        channel.output_bytes = channel.output_bytes.saturating_add(bytes);
        channel.finished |= run_finished;
        if channel.finished {
            channel.heard.clear();
        }
        // For those who wait now; whoever comes later looks at the store.
        if channel.changes.receiver_count() > 0 && run.is_some() {
            channel.outcome = run.map(Arc::new);
        }
        let (mut freed, mut dropped) = (0_usize, 0_usize);
        while channel.ring.len() > limits.run_events.max(1)
            || channel.output_bytes > limits.run_output_bytes
        {
            freed = freed.saturating_add(channel.drop_oldest());
            dropped += 1;
        }
        channel.changes.send_replace(());
        inner.events = inner.events.saturating_add(1).saturating_sub(dropped);
        inner.output_bytes = inner
            .output_bytes
            .saturating_add(bytes)
            .saturating_sub(freed);
        while !inner.channels.is_empty()
            && (inner.output_bytes > limits.output_bytes || inner.events > limits.events)
        {
            inner.make_room();
        }
    }

    /// Follows a run from behind `after`; from the oldest remembered event when that place is not known (any more).
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, run_id: RunId, after: Option<Cursor>) -> Subscription {
        if let Some(elsewhere) = self.elsewhere.get() {
            elsewhere.watch();
        }
        let mut inner = self.lock();
        let channel = inner.channel(run_id, &self.limits);
        let known = after.filter(|cursor| {
            cursor.generation == channel.generation
                && cursor.seq < channel.next_seq()
                && cursor.seq.saturating_add(1) >= channel.first
        });
        Subscription {
            bus: Arc::clone(self),
            run_id,
            generation: channel.generation,
            next: known.map_or(channel.first, |cursor| cursor.seq.saturating_add(1)),
            head: channel.next_seq(),
            resumed: known.is_some(),
            looks: channel.looks,
            changes: channel.changes.subscribe(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete before anything that can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a watcher gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// An event and the place behind it.
    Event(Cursor, Arc<RunChange>),
    /// The watcher fell behind the ring by so many events.
    Missed(u64),
    /// Nothing more at the moment.
    Pending,
    /// The bus had to forget this run; subscribe again.
    Forgotten,
}

/// One watcher of one run.
#[derive(Debug)]
pub struct Subscription {
    bus: Arc<RunBus>,
    run_id: RunId,
    generation: u64,
    next: u64,
    head: u64,
    resumed: bool,
    looks: u64,
    changes: watch::Receiver<()>,
}

/// What a wait for the end of a run brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The run is finished; as it ended, if that is at hand.
    Finished(Option<Arc<Run>>),
    /// The bus had to forget the run.
    Forgotten,
    /// Something may have happened without a word: the store knows.
    Look,
}

impl Subscription {
    /// Whether it goes on exactly where the watcher had been.
    #[must_use]
    pub const fn resumed(&self) -> bool {
        self.resumed
    }

    /// Whether the next event was in the ring when the subscription began.
    #[must_use]
    pub const fn is_replaying(&self) -> bool {
        self.next < self.head
    }

    /// Whether the run was seen to move and not seen to end.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        let inner = self.bus.lock();
        inner
            .channels
            .get(&self.run_id)
            .is_some_and(|channel| channel.next_seq() > 1 && !channel.finished)
    }

    /// What there is, without waiting.
    pub fn poll_next(&mut self) -> Step {
        self.changes.mark_unchanged();
        let inner = self.bus.lock();
        let Some(channel) = inner
            .channels
            .get(&self.run_id)
            .filter(|channel| channel.generation == self.generation)
        else {
            return Step::Forgotten;
        };
        if self.next < channel.first {
            let missed = channel.first - self.next;
            self.next = channel.first;
            return Step::Missed(missed);
        }
        let index = usize::try_from(self.next - channel.first).unwrap_or(usize::MAX);
        let Some(event) = channel.ring.get(index) else {
            return Step::Pending;
        };
        let cursor = Cursor {
            generation: self.generation,
            seq: self.next,
        };
        self.next = self.next.saturating_add(1);
        Step::Event(cursor, Arc::clone(&event.change))
    }

    /// Waits until there may be more, or the run is forgotten.
    pub async fn changed(&mut self) {
        // An error means that the channel is gone, which `poll_next` reports.
        drop(self.changes.changed().await);
    }

    /// Whether somebody asked, since this was last asked, that the store be looked into.
    pub fn asked_to_look(&mut self) -> bool {
        let looks = {
            let inner = self.bus.lock();
            inner
                .channels
                .get(&self.run_id)
                .map(|channel| channel.looks)
        };
        let asked = looks.is_some_and(|looks| looks != self.looks);
        self.looks = looks.unwrap_or(self.looks);
        asked
    }

    /// Waits until the run is known to be finished, is forgotten, or should be looked for.
    pub async fn finished(&mut self) -> Heard {
        loop {
            self.changes.mark_unchanged();
            {
                let inner = self.bus.lock();
                let channel = inner.channels.get(&self.run_id);
                let own = channel.filter(|channel| channel.generation == self.generation);
                match own {
                    None => return Heard::Forgotten,
                    Some(channel) if channel.finished => {
                        return Heard::Finished(channel.outcome.clone());
                    }
                    Some(channel) if channel.looks != self.looks => {
                        self.looks = channel.looks;
                        return Heard::Look;
                    }
                    Some(_) => {}
                }
            }
            if self.changes.changed().await.is_err() {
                return Heard::Forgotten;
            }
        }
    }
}
