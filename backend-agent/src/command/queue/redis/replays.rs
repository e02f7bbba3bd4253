//! Output that is told again from the oldest on, because somebody elsewhere began to watch: some of it at a time, so
//! that no other run waits for it.

use std::collections::VecDeque;
use std::sync::Arc;

use viworks_common::id::RunId;

use crate::command::bus::{Cursor, RunChange};

/// Remembered pieces that are told of a run for one who begins to watch it, the oldest ones. Who watches is told that
/// it missed what lies between these and what changes from then on.
const PIECES_MAX: usize = 1_024;

/// Remembered pieces that are told before others have their turn.
const TOLD_TOGETHER: usize = 64;

/// Changes of such runs that wait until what came before them is told; beyond, they are lost.
const BEHIND_MAX: usize = 256;

/// A change of a run, and whether that ended it.
pub(super) type Behind = (Arc<RunChange>, bool);

/// One run that is told again.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) run_id: RunId,
    /// The last piece that was told.
    pub(super) after: Option<Cursor>,
    left: usize,
    behind: Vec<Behind>,
}

impl Replay {
    /// How many pieces may be told next; zero when it is over.
    pub(super) fn next(&self) -> usize {
        self.left.min(TOLD_TOGETHER)
    }

    /// Notes that so many were told, up to this one.
    pub(super) fn told(&mut self, pieces: usize, last: Cursor) {
        self.after = Some(last);
        self.left = self.left.saturating_sub(pieces);
    }
}

/// When a change of a run is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// At once: what came before was told.
    Now,
    /// Behind what came before.
    Later,
    /// Never: too much waits.
    Never,
}

/// All runs that are told again.
#[derive(Debug, Default)]
pub(super) struct Replays {
    all: VecDeque<Replay>,
}

impl Replays {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Somebody begins to watch a run: it is next. One that is told again already is begun anew, for all together.
    pub(super) fn begin(&mut self, run_id: RunId) {
        let known = self.all.iter().position(|replay| replay.run_id == run_id);
        let known = known.and_then(|at| self.all.remove(at));
        let behind = known.map(|replay| replay.behind).unwrap_or_default();
        self.all.push_front(Replay {
            run_id,
            after: None,
            left: PIECES_MAX,
            behind,
        });
    }

    /// A change of a run that is told again comes behind that: a piece that came before its turn would make those
    /// before it look as if they had been told.
    pub(super) fn put_behind(
        &mut self,
        run_id: RunId,
        change: &Arc<RunChange>,
        run_finished: bool,
    ) -> Turn {
        let waiting: usize = self.all.iter().map(|replay| replay.behind.len()).sum();
        let mut all = self.all.iter_mut();
        match all.find(|replay| replay.run_id == run_id) {
            None => Turn::Now,
            Some(_full) if waiting >= BEHIND_MAX => Turn::Never,
            Some(replay) => {
                replay.behind.push((Arc::clone(change), run_finished));
                Turn::Later
            }
        }
    }

    /// Whose turn it is. It is put back, or over.
    pub(super) fn take(&mut self) -> Option<Replay> {
        self.all.pop_front()
    }

    /// Another one is next. What is over brings what waits behind it.
    pub(super) fn put_back(&mut self, replay: Replay, is_over: bool) -> Vec<Behind> {
        if is_over || replay.left == 0 {
            return replay.behind;
        }
        self.all.push_back(replay);
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use viworks_common::command::CommandState;
    use viworks_common::id::{AgentId, CommandId};
    use viworks_common::time::Timestamp;

    use super::*;
    use crate::command::bus::CommandChange;

    fn run(number: u128) -> RunId {
        RunId::from_uuid(Uuid::from_u128(number))
    }

    fn change() -> Arc<RunChange> {
        Arc::new(RunChange::Command(CommandChange {
            at: Timestamp::from_unix_micros(0),
            command_id: CommandId::from_uuid(Uuid::from_u128(1)),
            agent_id: AgentId::from_uuid(Uuid::from_u128(2)),
            state: CommandState::Running,
            attempt: None,
            exit_code: None,
            duration_ms: None,
            reason: None,
            written: None,
        }))
    }

    fn place(text: &str) -> Cursor {
        text.parse().unwrap()
    }

    #[test]
    fn each_run_has_its_turn_and_one_that_is_asked_for_again_is_told_once() {
        let mut replays = Replays::default();
        for number in [1, 2, 1, 1] {
            replays.begin(run(number));
        }
        let mut first = replays.take().unwrap();
        assert_eq!((first.run_id, first.next()), (run(1), TOLD_TOGETHER));
        first.told(TOLD_TOGETHER, place("0000000000000007-64"));
        assert!(replays.put_back(first, false).is_empty());
        let second = replays.take().unwrap();
        assert_eq!(second.run_id, run(2));
        assert!(replays.put_back(second, true).is_empty());
        let first = replays.take().unwrap();
        assert_eq!(first.after, Some(place("0000000000000007-64")));
        replays.put_back(first, false);
        // Who begins later wants the oldest as well.
        replays.begin(run(1));
        let again = replays.take().unwrap();
        assert_eq!(again.after, None);
        assert!(replays.is_empty());
    }

    #[test]
    fn a_run_that_writes_faster_than_it_is_told_is_not_followed_for_ever() {
        let mut replays = Replays::default();
        replays.begin(run(1));
        let mut turns = 0;
        while let Some(mut replay) = replays.take() {
            let pieces = replay.next();
            assert_eq!(pieces, TOLD_TOGETHER);
            replay.told(pieces, place("0000000000000007-1"));
            replays.put_back(replay, false);
            turns += 1;
        }
        assert_eq!(turns * TOLD_TOGETHER, PIECES_MAX);
    }

    #[test]
    fn what_changes_meanwhile_is_told_behind_it_and_other_runs_wait_for_nothing() {
        let mut replays = Replays::default();
        replays.begin(run(1));
        assert_eq!(replays.put_behind(run(2), &change(), false), Turn::Now);
        assert_eq!(replays.put_behind(run(1), &change(), true), Turn::Later);
        for _more in 1..BEHIND_MAX {
            assert_eq!(replays.put_behind(run(1), &change(), false), Turn::Later);
        }
        assert_eq!(replays.put_behind(run(1), &change(), false), Turn::Never);
        assert_eq!(replays.put_behind(run(2), &change(), false), Turn::Now);
        replays.begin(run(1));
        let replay = replays.take().unwrap();
        let behind = replays.put_back(replay, true);
        assert_eq!(behind.len(), BEHIND_MAX);
        assert!(behind.first().is_some_and(|(_change, finished)| *finished));
        assert_eq!(replays.put_behind(run(1), &change(), false), Turn::Now);
    }
}
