//! Changes of runs between instances, by pub/sub and only while somebody watches: bounded, and lossy on purpose. What
//! is true stands in the database, which watchers look into every second whatever comes by this way.
//!
//! An instance that has a watcher says so to all, again and again; the others remember that for a while, and tell it
//! what changes, and at its first word what output they remember. Watchers notice what was lost by positions in the
//! output, and by the counts of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::ready;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tracing::debug;
use viworks_common::id::{InstanceId, RunId};
use viworks_common::time::Monotonic;
use viworks_runtime::clock::Timeline;
use viworks_runtime::lifecycle::Lifecycle;

use super::keeper::{Keeper, Published};
use super::replays::{Replays, Turn};
use super::scripts::{RUN_CHANNEL, WATCH_CHANNEL};
use super::told::Told;
use crate::command::bus::{Elsewhere, RunBus, RunChange};

/// Runs that one instance watches, and that it remembers others to watch.
const RUNS_MAX: usize = 1_024;

/// Changes that wait to be told; beyond, they are lost.
const WAITING_MAX: usize = 256;

/// How often it is said that a run is watched, and for how long that is believed.
const SAID_EVERY: Duration = Duration::from_secs(5);
const BELIEVED_FOR: Duration = Duration::from_secs(15);

/// Behind the run and the instance, in the first word of it: what came before is wanted as well. Earlier versions say
/// and read it without.
const FROM_THE_BEGINNING: &str = "begins";

/// A run that somebody watches for less is not worth a word: most end before. A word costs a look into the database, so
/// a backend that is busy must not be made busier by the waiting that follows from it.
const WORTH_A_WORD: Duration = Duration::from_millis(200);

/// The way of changes from here to others and back.
pub(super) struct Relay {
    keeper: Arc<Keeper>,
    bus: Arc<RunBus>,
    clock: Arc<Timeline>,
    /// Runs that others watch, and until when that is believed.
    wanted: Mutex<BTreeMap<RunId, Monotonic>>,
    /// Whether there are any: most of the time there are none, and nothing is to be looked up.
    any: AtomicBool,
    changes: mpsc::Sender<ToTell>,
    /// Somebody watches a run here.
    watching: Notify,
}

/// What others are to be told.
enum ToTell {
    /// A change of a run, and whether that ended it.
    Change(RunId, Arc<RunChange>, bool),
    /// The output of a run that is remembered.
    Remembered(RunId),
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Elsewhere for Relay {
    fn watch(&self) {
        self.watching.notify_one();
    }

    fn tell(&self, run_id: RunId, change: &Arc<RunChange>, run_finished: bool) {
        if !self.any.load(Ordering::Relaxed) || !self.is_wanted(run_id) {
            return;
        }
        self.leave(ToTell::Change(run_id, Arc::clone(change), run_finished));
    }
}

impl Relay {
    /// Starts it between `bus` and `keeper`; what others publish comes by `published`.
    pub(super) fn start(
        keeper: Arc<Keeper>,
        bus: Arc<RunBus>,
        clock: Arc<Timeline>,
        published: mpsc::Receiver<Published>,
        lifecycle: &Lifecycle,
    ) {
        let (changes, to_tell) = mpsc::channel(WAITING_MAX);
        let own = Arc::new(Self {
            keeper,
            bus,
            clock,
            wanted: Mutex::default(),
            any: AtomicBool::new(false),
            changes,
            watching: Notify::new(),
        });
        own.bus
            .tell_elsewhere(Arc::<Self>::clone(&own) as Arc<dyn Elsewhere>);
        let (hear, stop) = (Arc::clone(&own), lifecycle.clone());
        drop(lifecycle.spawn_critical("runs: hear", hear.hear(published, stop)));
        let (tell, stop) = (Arc::clone(&own), lifecycle.clone());
        drop(lifecycle.spawn_critical("runs: tell", tell.tell_all(to_tell, stop)));
        let stop = lifecycle.clone();
        drop(lifecycle.spawn_critical("runs: watch", own.say_what_is_watched(stop)));
    }

    fn is_wanted(&self, run_id: RunId) -> bool {
        let now = self.clock.now();
        let mut wanted = self.wanted();
        let is_wanted = wanted.get(&run_id).is_some_and(|until| *until > now);
        if !is_wanted && wanted.remove(&run_id).is_some() {
            self.any.store(!wanted.is_empty(), Ordering::Relaxed);
        }
        is_wanted
    }

    /// Somebody elsewhere watches a run, or begins to.
    fn want(&self, run_id: RunId, begins: bool) {
        let mut wanted = self.wanted();
        if !note(&mut wanted, run_id, self.clock.now()) {
            return;
        }
        // Whoever changes something meanwhile waits for this lock: it is remembered by then, or is told behind that.
        self.any.store(true, Ordering::Relaxed);
        if begins {
            self.leave(ToTell::Remembered(run_id));
        }
    }

    /// Leaves something to be told, or loses it.
    fn leave(&self, to_tell: ToTell) {
        if self.changes.try_send(to_tell).is_err() {
            self.keeper.metrics().narration_lost.inc();
        }
    }

    async fn hear(self: Arc<Self>, mut published: mpsc::Receiver<Published>, lifecycle: Lifecycle) {
        loop {
            let heard = tokio::select! {
                () = lifecycle.stopping() => return,
                heard = published.recv() => heard,
            };
            let Some(Published { channel, payload }) = heard else {
                return;
            };
            if channel == WATCH_CHANNEL {
                if let Some((run_id, instance, begins)) = read_word(&payload)
                    && instance != self.keeper.own().to_string()
                {
                    self.want(run_id, begins);
                }
            } else if let Some(run) = channel.strip_prefix(RUN_CHANNEL)
                && let Ok(run_id) = run.parse()
                && let Some(told) = Told::read(&payload)
                && told.from != self.keeper.own()
            {
                let from = told.from;
                let (change, run_finished) = told.change();
                self.bus.heard(from, run_id, change, run_finished);
            }
        }
    }

    async fn tell_all(self: Arc<Self>, mut to_tell: mpsc::Receiver<ToTell>, lifecycle: Lifecycle) {
        let mut replays = Replays::default();
        // What changed goes before what is told again, but not for ever.
        let mut changes = 0;
        loop {
            let next = tokio::select! {
                biased;
                () = lifecycle.stopping() => return,
                next = to_tell.recv(), if replays.is_empty() || changes < WAITING_MAX => next,
                () = ready(()), if !replays.is_empty() => {
                    changes = 0;
                    tokio::select! {
                        () = lifecycle.stopping() => return,
                        () = self.tell_remembered(&mut replays) => {}
                    }
                    continue;
                }
            };
            match next {
                Some(ToTell::Change(run_id, change, run_finished)) => {
                    changes += 1;
                    match replays.put_behind(run_id, &change, run_finished) {
                        Turn::Now => {
                            self.publish(run_id, &change, run_finished).await;
                        }
                        Turn::Later => {}
                        Turn::Never => {
                            self.keeper.metrics().narration_lost.inc();
                        }
                    }
                }
                Some(ToTell::Remembered(run_id)) => {
                    // Most runs wrote little, and are told again at once.
                    replays.begin(run_id);
                    changes = WAITING_MAX;
                }
                None => return,
            }
        }
    }

    /// Tells some of the output that is remembered of the run whose turn it is, up to what came while it was told; and
    /// when that is over, what changed meanwhile. What was told of that already is known where it is heard.
    async fn tell_remembered(&self, replays: &mut Replays) {
        let Some(mut replay) = replays.take() else {
            return;
        };
        let run_id = replay.run_id;
        let some = self.bus.remembered(run_id, replay.after, replay.next());
        let mut is_over = some.is_empty();
        if let Some((last, _change)) = some.last() {
            replay.told(some.len(), *last);
        }
        for (_place, change) in some {
            if !self.publish(run_id, &change, false).await {
                is_over = true;
                break;
            }
        }
        for (change, run_finished) in replays.put_back(replay, is_over) {
            self.publish(run_id, &change, run_finished).await;
        }
    }

    /// Tells others a change; `false` when that was not possible.
    async fn publish(&self, run_id: RunId, change: &RunChange, run_finished: bool) -> bool {
        let told = Told::of(self.keeper.own(), change, run_finished);
        let channel = format!("{RUN_CHANNEL}{run_id}");
        let published = self.keeper.publish(&channel, &told.write()).await;
        if let Err(error) = &published {
            self.keeper.metrics().narration_lost.inc();
            debug!(%error, %run_id, "a change of a run was not told elsewhere");
        }
        published.is_ok()
    }

    /// Keeps the channels of runs that are watched here, and says which those are.
    async fn say_what_is_watched(self: Arc<Self>, lifecycle: Lifecycle) {
        let mut held = Held::default();
        let mut said = tokio::time::interval(SAID_EVERY);
        said.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let again = tokio::select! {
                () = lifecycle.stopping() => return,
                () = self.watching.notified() => false,
                _ = said.tick() => true,
            };
            let watched: BTreeSet<_> = self.bus.watched(RUNS_MAX).into_iter().collect();
            self.let_go(&mut held, &watched).await;
            if again {
                for run_id in &held.runs {
                    self.say(*run_id, false).await;
                }
            }
            let waited: Vec<_> = watched.intersection(&held.seen).copied().collect();
            for run_id in waited {
                if !held.runs.contains(&run_id) {
                    self.hold(&mut held, run_id).await;
                }
            }
            // One that could not be held is tried again with the next word.
            let is_new = !watched.is_subset(&held.seen);
            held.seen = watched;
            if is_new {
                tokio::time::sleep(WORTH_A_WORD).await;
                self.watching.notify_one();
            }
        }
    }

    /// Hears of a run from here on. What happened before is found by a look, and what was written before is told by
    /// whoever remembers it.
    async fn hold(&self, held: &mut Held, run_id: RunId) {
        let channel = format!("{RUN_CHANNEL}{run_id}");
        if self.keeper.subscribe(&channel).await.is_err() {
            return;
        }
        held.runs.insert(run_id);
        let begins = held.begins(run_id);
        if self.say(run_id, begins).await {
            held.begun.insert(run_id);
        }
        self.bus.look(run_id);
    }

    /// Tells others that a run is watched; `false` when that was not possible.
    async fn say(&self, run_id: RunId, begins: bool) -> bool {
        let text = word(run_id, self.keeper.own(), begins);
        let said = self.keeper.publish(WATCH_CHANNEL, text.as_bytes()).await;
        if let Err(error) = &said {
            debug!(%error, %run_id, "others were not told that a run is watched");
        }
        said.is_ok()
    }

    /// Leaves the channels of runs that nobody watches any more; those of a connection that is gone are left already.
    async fn let_go(&self, held: &mut Held, watched: &BTreeSet<RunId>) {
        held.is_on(self.keeper.connection());
        held.begun.retain(|run_id| watched.contains(run_id));
        let over: Vec<_> = held.runs.difference(watched).copied().collect();
        for run_id in over {
            held.runs.remove(&run_id);
            let channel = format!("{RUN_CHANNEL}{run_id}");
            if let Err(error) = self.keeper.unsubscribe(&channel).await {
                debug!(%error, %run_id, "a channel was not left");
            }
        }
    }

    fn wanted(&self) -> MutexGuard<'_, BTreeMap<RunId, Monotonic>> {
        // Nothing panics while it is held.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That an instance watches a run, or begins to.
fn word(run_id: RunId, own: InstanceId, begins: bool) -> String {
    if begins {
        format!("{run_id} {own} {FROM_THE_BEGINNING}")
    } else {
        format!("{run_id} {own}")
    }
}

/// Reads such a word: which run, who, and whether they begin to. More may be said by a later version.
fn read_word(payload: &[u8]) -> Option<(RunId, &str, bool)> {
    let mut parts = str::from_utf8(payload).ok()?.split(' ');
    let run_id = parts.next()?.parse().ok()?;
    let instance = parts.next()?;
    Some((run_id, instance, parts.next() == Some(FROM_THE_BEGINNING)))
}

/// Notes that a run is watched elsewhere. Where there is no room for it, beside those that are watched still, its
/// watchers have the database.
fn note(wanted: &mut BTreeMap<RunId, Monotonic>, run_id: RunId, now: Monotonic) -> bool {
    if wanted.len() >= RUNS_MAX && !wanted.contains_key(&run_id) {
        wanted.retain(|_run, until| *until > now);
    }
    let has_room = wanted.len() < RUNS_MAX || wanted.contains_key(&run_id);
    if has_room {
        wanted.insert(run_id, now.saturating_add(BELIEVED_FOR));
    }
    has_room
}

/// What an instance hears of at the moment.
#[derive(Default)]
struct Held {
    /// On which connection.
    connection: u64,
    runs: BTreeSet<RunId>,
    /// Those of which it was said that they begin to be watched, on whichever connection.
    begun: BTreeSet<RunId>,
    /// Watched when it last looked.
    seen: BTreeSet<RunId>,
}

impl Held {
    /// Nothing is held on a connection that is gone.
    fn is_on(&mut self, connection: u64) {
        if self.connection != connection {
            self.connection = connection;
            self.runs.clear();
        }
    }

    /// Whether what came before is wanted of a run. Once is enough: when Redis is back, all that is watched would be
    /// told again by all at once.
    fn begins(&self, run_id: RunId) -> bool {
        !self.begun.contains(&run_id)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_written_also_those_of_earlier_and_later_versions() {
        let run = RunId::from_uuid(Uuid::from_u128(1));
        let own = InstanceId::from_uuid(Uuid::from_u128(2));
        let name = own.to_string();
        for begins in [false, true] {
            let text = word(run, own, begins);
            assert_eq!(
                read_word(text.as_bytes()),
                Some((run, name.as_str(), begins))
            );
        }
        let later = format!("{run} {own} {FROM_THE_BEGINNING} more");
        assert_eq!(
            read_word(later.as_bytes()),
            Some((run, name.as_str(), true))
        );
        for text in ["", "x y", &run.to_string()] {
            assert_eq!(read_word(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn of_a_run_that_was_held_what_came_before_is_not_asked_for_again_when_redis_is_back() {
        let [run, other] = [1, 2].map(|n| RunId::from_uuid(Uuid::from_u128(n)));
        let mut held = Held::default();
        held.is_on(1);
        assert!(held.begins(run));
        held.runs.insert(run);
        held.begun.insert(run);
        held.is_on(2);
        assert!(
            held.runs.is_empty(),
            "its channels are those of a connection"
        );
        assert!(!held.begins(run) && held.begins(other));
    }

    #[test]
    fn runs_that_others_watch_are_bounded_and_make_room_when_they_are_no_longer_watched() {
        let run = |n: usize| RunId::from_uuid(Uuid::from_u128(u128::try_from(n).unwrap()));
        let mut wanted = BTreeMap::new();
        let begun = Monotonic::ORIGIN;
        for n in 0..RUNS_MAX {
            assert!(note(&mut wanted, run(n), begun));
        }
        assert!(!note(&mut wanted, run(RUNS_MAX), begun));
        assert!(note(&mut wanted, run(0), begun), "it is said again");
        assert_eq!(wanted.len(), RUNS_MAX);
        let later = begun.saturating_add(BELIEVED_FOR);
        assert!(note(&mut wanted, run(RUNS_MAX), later));
        assert_eq!(wanted.len(), 1);
    }
}
