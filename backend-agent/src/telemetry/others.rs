//! While a lane stands, because the database seems to take nothing of anybody: whom to try of those that come next. If
//! something of one of them is stored, it is not the database that fails.

use std::collections::BTreeSet;

use viworks_common::id::AgentId;

use super::composed::{Composed, Room};
use crate::data::TelemetryWrite;

/// How often there is room for more where all that come next were tried.
const MORE_TIMES: usize = 64;

/// Whom to try.
#[derive(Debug)]
pub(super) struct Others {
    /// Of whom something stands in the lane: what comes next would be stored past it, and leave a gap.
    standing: BTreeSet<AgentId>,
    /// Who had a turn.
    tried: BTreeSet<AgentId>,
    /// How often there may be room for more yet.
    more: usize,
}

impl Others {
    /// All of whom there is nothing among these, which stand in the lane.
    pub(super) fn than_those_of(writes: &[TelemetryWrite]) -> Self {
        Self {
            standing: writes.iter().map(|write| write.agent_id).collect(),
            tried: BTreeSet::new(),
            more: MORE_TIMES,
        }
    }

    /// Whether a gateway may be tried, and had no turn yet.
    pub(super) fn may_be(&self, agent_id: AgentId) -> bool {
        !self.standing.contains(&agent_id) && !self.tried.contains(&agent_id)
    }

    /// A gateway has its turn.
    pub(super) fn took_turn(&mut self, agent_id: AgentId) {
        self.tried.insert(agent_id);
    }

    /// All that come next had their turn: they have another one, and there is `room` for somebody else, who may be the
    /// first one that does not fail.
    pub(super) fn begin_anew<T>(&mut self, next: &mut Composed<T>, room: Room) {
        self.tried.clear();
        if next.left.is_used_up() && self.more > 0 {
            self.more -= 1;
            next.left = room;
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use viworks_common::id::AgentRunId;
    use viworks_common::telemetry::Batch;

    use super::*;

    const ROOM: Room = Room {
        records: 10,
        bytes: 1_000,
    };

    const NONE: Room = Room {
        records: 0,
        bytes: 0,
    };

    fn agent(n: u128) -> AgentId {
        AgentId::from_uuid(Uuid::from_u128(n))
    }

    fn write(n: u128) -> TelemetryWrite {
        TelemetryWrite {
            agent_id: agent(n),
            epoch: 1,
            skew_ms: None,
            batch: Batch {
                spool_epoch: AgentRunId::from_uuid(Uuid::from_u128(1)),
                from_seq: 1,
                to_seq: 1,
                gaps: Vec::new(),
                records: Vec::new(),
            },
        }
    }

    #[test]
    fn each_has_its_turn_and_nobody_of_whom_something_stands() {
        let mut others = Others::than_those_of(&[write(1), write(2), write(1)]);
        assert_eq!(
            [1, 2, 3, 4].map(|n| others.may_be(agent(n))),
            [false, false, true, true]
        );
        others.took_turn(agent(3));
        assert!(!others.may_be(agent(3)) && others.may_be(agent(4)));
        others.took_turn(agent(4));
        let mut next = Composed::<()>::new(ROOM);
        others.begin_anew(&mut next, ROOM);
        assert_eq!(
            [1, 2, 3, 4].map(|n| others.may_be(agent(n))),
            [false, false, true, true]
        );
    }

    #[test]
    fn where_all_were_tried_there_is_room_for_more_so_many_times() {
        let mut others = Others::than_those_of(&[]);
        let mut next = Composed::<()>::new(ROOM);
        others.begin_anew(&mut next, NONE);
        assert_eq!(next.left, ROOM);
        for _time in 0..MORE_TIMES {
            next.left = NONE;
            others.begin_anew(&mut next, ROOM);
            assert_eq!(next.left, ROOM);
        }
        next.left = NONE;
        others.begin_anew(&mut next, ROOM);
        assert_eq!(next.left, NONE);
    }
}
