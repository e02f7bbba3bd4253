//! Changes of runs and live output, in process and bounded: what watchers hear, never what is true.
//!
//! Each run has a ring of its latest events. A watcher that comes back replays from where it was; one that fell behind
//! is told how much it missed and reads the store. Nothing here is durable, and a publisher never waits.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, CommandId, RunId};
use viworks_common::time::Timestamp;
use viworks_common::wire::message::OutputStream;

use crate::data::Run;

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
            runs: 1_024,
            run_events: 8_192,
            events: 32_768,
            run_output_bytes: 1024 * 1024,
            output_bytes: 8 * 1024 * 1024,
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

/// The bus of one process.
#[derive(Debug)]
pub struct RunBus {
    limits: BusLimits,
    inner: Mutex<Inner>,
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
    ring: VecDeque<Arc<RunChange>>,
    output_bytes: usize,
    finished: bool,
    /// The run as it ended.
    outcome: Option<Arc<Run>>,
    /// Receivers wake on every change and end when the channel is dropped.
    changes: watch::Sender<()>,
}

impl Channel {
    fn next_seq(&self) -> u64 {
        self.first
            .saturating_add(u64::try_from(self.ring.len()).unwrap_or(u64::MAX))
    }

    /// Drops the oldest event and says how many output bytes that freed.
    fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.ring.pop_front() else {
            return 0;
        };
        self.first = self.first.saturating_add(1);
        let bytes = oldest.output_bytes();
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
        }
    }

    /// A command of the run moved; `run_finished` when that made the whole run final.
    pub fn command_changed(&self, run_id: RunId, change: CommandChange, run_finished: bool) {
        self.publish(run_id, RunChange::Command(change), run_finished, None);
    }

    /// A command of the run moved, which made the whole run final: `run`, as it was committed.
    pub fn run_ended(&self, run_id: RunId, change: CommandChange, run: Run) {
        self.publish(run_id, RunChange::Command(change), true, Some(run));
    }

    /// A command of the run wrote something.
    pub fn output(&self, run_id: RunId, chunk: OutputChunk) {
        self.publish(run_id, RunChange::Output(chunk), false, None);
    }

    fn publish(&self, run_id: RunId, change: RunChange, run_finished: bool, run: Option<Run>) {
        let mut inner = self.lock();
        let limits = &self.limits;
        let bytes = change.output_bytes();
        let channel = inner.channel(run_id, limits);
        channel.ring.push_back(Arc::new(change));
        channel.output_bytes = channel.output_bytes.saturating_add(bytes);
        channel.finished |= run_finished;
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
    changes: watch::Receiver<()>,
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
        let Some(change) = channel.ring.get(index) else {
            return Step::Pending;
        };
        let cursor = Cursor {
            generation: self.generation,
            seq: self.next,
        };
        self.next = self.next.saturating_add(1);
        Step::Event(cursor, Arc::clone(change))
    }

    /// Waits until there may be more, or the run is forgotten.
    pub async fn changed(&mut self) {
        // An error means that the channel is gone, which `poll_next` reports.
        drop(self.changes.changed().await);
    }

    /// Waits until the run is known to be finished, or is forgotten; the run as it ended, if that is at hand.
    pub async fn finished(&mut self) -> Option<Arc<Run>> {
        loop {
            self.changes.mark_unchanged();
            {
                let inner = self.bus.lock();
                let channel = inner.channels.get(&self.run_id);
                let own = channel.filter(|channel| channel.generation == self.generation);
                match own {
                    None => return None,
                    Some(channel) if channel.finished => return channel.outcome.clone(),
                    Some(_) => {}
                }
            }
            if self.changes.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    fn run(number: u128) -> RunId {
        RunId::from_uuid(Uuid::from_u128(number))
    }

    fn chunk(offset: u64, bytes: usize) -> OutputChunk {
        OutputChunk {
            at: Timestamp::from_unix_micros(0),
            command_id: CommandId::from_uuid(Uuid::from_u128(1)),
            agent_id: AgentId::from_uuid(Uuid::from_u128(2)),
            stream: OutputStream::Stdout,
            offset,
            data: vec![b'x'; bytes],
        }
    }

    fn change(state: CommandState) -> CommandChange {
        CommandChange {
            at: Timestamp::from_unix_micros(0),
            command_id: CommandId::from_uuid(Uuid::from_u128(1)),
            agent_id: AgentId::from_uuid(Uuid::from_u128(2)),
            state,
            attempt: Some(1),
            exit_code: None,
            duration_ms: None,
            reason: None,
            written: None,
        }
    }

    fn offsets(subscription: &mut Subscription) -> Vec<u64> {
        let mut found = Vec::new();
        while let Step::Event(_cursor, event) = subscription.poll_next() {
            if let RunChange::Output(chunk) = event.as_ref() {
                found.push(chunk.offset);
            }
        }
        found
    }

    fn small() -> Arc<RunBus> {
        let limits = BusLimits {
            runs: 2,
            run_events: 4,
            events: 100,
            run_output_bytes: 100,
            output_bytes: 150,
        };
        Arc::new(RunBus::new(limits, 7))
    }

    #[test]
    fn many_runs_stay_within_one_bound_and_finished_ones_that_nobody_watches_go_first() {
        let limits = BusLimits {
            runs: 1_000,
            run_events: 10,
            events: 100,
            ..BusLimits::default()
        };
        let bus = Arc::new(RunBus::new(limits, 7));
        let mut watched = bus.subscribe(run(1), None);
        bus.command_changed(run(1), change(CommandState::Succeeded), true);
        bus.command_changed(run(2), change(CommandState::Running), false);
        for number in 3..200 {
            for _event in 0..20 {
                bus.command_changed(run(number), change(CommandState::Succeeded), true);
                assert!(bus.lock().events <= 100);
            }
        }
        let held: usize = {
            let inner = bus.lock();
            inner
                .channels
                .values()
                .map(|channel| channel.ring.len())
                .sum()
        };
        assert_eq!(bus.lock().events, held, "the count is what is held");
        assert!(
            matches!(watched.poll_next(), Step::Event(..)),
            "it is watched"
        );
        let mut running = bus.subscribe(run(2), None);
        assert!(
            matches!(running.poll_next(), Step::Event(..)),
            "it is not finished"
        );
    }

    #[test]
    fn a_watcher_that_comes_back_replays_from_where_it_was() {
        let bus = small();
        bus.output(run(1), chunk(0, 1));
        bus.output(run(1), chunk(1, 1));
        let mut first = bus.subscribe(run(1), None);
        let Step::Event(cursor, _event) = first.poll_next() else {
            panic!("no event")
        };
        drop(first);
        bus.output(run(1), chunk(2, 1));
        let cursor = cursor.to_string().parse().unwrap();
        let mut second = bus.subscribe(run(1), Some(cursor));
        assert!(second.resumed());
        assert_eq!(offsets(&mut second), [1, 2]);
    }

    #[test]
    fn a_place_of_an_earlier_process_is_not_resumed() {
        let earlier = small();
        earlier.output(run(1), chunk(0, 1));
        let Step::Event(cursor, _event) = earlier.subscribe(run(1), None).poll_next() else {
            panic!("no event")
        };
        let bus = Arc::new(RunBus::new(BusLimits::default(), 99));
        bus.output(run(1), chunk(5, 1));
        let mut watcher = bus.subscribe(run(1), Some(cursor));
        assert!(!watcher.resumed());
        assert_eq!(offsets(&mut watcher), [5]);
    }

    #[test]
    fn a_watcher_that_falls_behind_is_told_how_much_it_missed() {
        let bus = small();
        let mut watcher = bus.subscribe(run(1), None);
        for offset in 0..7 {
            bus.output(run(1), chunk(offset, 1));
        }
        assert_eq!(watcher.poll_next(), Step::Missed(3));
        assert_eq!(offsets(&mut watcher), [3, 4, 5, 6]);
        assert_eq!(watcher.poll_next(), Step::Pending);
    }

    #[test]
    fn output_of_one_run_is_bounded_in_bytes() {
        let bus = small();
        for offset in 0..3 {
            bus.output(run(1), chunk(offset, 40));
        }
        assert_eq!(offsets(&mut bus.subscribe(run(1), None)), [1, 2]);
    }

    #[test]
    fn output_of_all_runs_is_bounded_in_bytes() {
        let bus = small();
        bus.output(run(1), chunk(0, 90));
        let mut watcher = bus.subscribe(run(2), None);
        bus.output(run(2), chunk(0, 90));
        assert!(bus.lock().output_bytes <= 150);
        assert_eq!(offsets(&mut watcher), [0]);
        assert_eq!(offsets(&mut bus.subscribe(run(1), None)), Vec::<u64>::new());
    }

    #[test]
    fn the_most_silent_run_makes_room_and_its_watcher_learns_it() {
        let bus = small();
        let mut watcher = bus.subscribe(run(1), None);
        bus.output(run(2), chunk(0, 1));
        bus.output(run(3), chunk(0, 1));
        bus.output(run(1), chunk(1, 1));
        assert_eq!(
            offsets(&mut watcher),
            [1],
            "a watched run outlives silent ones"
        );
        let _second = bus.subscribe(run(4), None);
        let _third = bus.subscribe(run(5), None);
        assert_eq!(watcher.poll_next(), Step::Forgotten);
    }

    #[test]
    fn a_run_is_under_way_from_its_first_event_to_its_last() {
        let bus = small();
        let watcher = bus.subscribe(run(1), None);
        assert!(!watcher.is_under_way(), "nothing is known of it");
        bus.command_changed(run(1), change(CommandState::Running), false);
        assert!(watcher.is_under_way());
        bus.command_changed(run(1), change(CommandState::Succeeded), true);
        assert!(!watcher.is_under_way());
        let _second = bus.subscribe(run(2), None);
        let _third = bus.subscribe(run(3), None);
        assert!(!watcher.is_under_way(), "it was forgotten");
    }

    #[test]
    fn room_is_made_for_some_runs_at_once_and_by_none_that_is_open_or_watched() {
        let limits = BusLimits {
            runs: 160,
            ..BusLimits::default()
        };
        let bus = Arc::new(RunBus::new(limits, 7));
        let watched: Vec<_> = (0..5)
            .map(|number| bus.subscribe(run(number), None))
            .collect();
        for number in 0..160 {
            bus.command_changed(run(number), change(CommandState::Running), number % 2 == 0);
        }
        bus.command_changed(run(1_000), change(CommandState::Running), false);
        let inner = bus.lock();
        assert_eq!(inner.channels.len(), 160 - 11 + 1);
        let gone: Vec<_> = (0..160)
            .filter(|number| !inner.channels.contains_key(&run(*number)))
            .collect();
        let silent: Vec<_> = (6..=26).step_by(2).collect();
        assert_eq!(gone, silent);
        drop((inner, watched));
    }

    #[test]
    fn a_waiter_wakes_when_the_last_command_is_final_and_not_before() {
        let bus = small();
        let mut watcher = bus.subscribe(run(1), None);
        bus.command_changed(run(1), change(CommandState::Running), false);
        assert!(watcher.finished().now_or_never().is_none());
        bus.command_changed(run(1), change(CommandState::Succeeded), true);
        assert!(watcher.finished().now_or_never().is_some());
    }

    #[test]
    fn text_that_is_no_place_is_refused() {
        for text in [
            "",
            "-",
            "1",
            "zz-1",
            "1-1",
            "00000000000000ff-01",
            "00000000000000ff--1",
        ] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
