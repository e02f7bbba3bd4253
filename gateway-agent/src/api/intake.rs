//! What each local user may hand in: so much a minute, and at once a fair share of the turns.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use serde::Serialize;
use tokio::sync::watch;
use viworks_common::human;
use viworks_common::rate::Lately;
use viworks_common::telemetry::intake::{Allowance, IntakeQuota, OverRate};
use viworks_runtime::clock::Clock;
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::shares::{Share, Shares};

use super::problem::Problem;
use super::{Peer, USERS_MAX};

/// Telemetry requests that are served at once; more are told to come back.
const TURNS_MAX: usize = 8;
/// Those of one user.
const TURNS_OF_USER_MAX: usize = 4;
/// Those that a user may always have, whatever others have.
const TURNS_FLOOR: usize = 1;

/// The condition while telemetry of local programs is refused for its amount.
const CROWDED: &str = "telemetry.intake";
/// How long after the last refusal that is told.
const CROWDED_TIME: Duration = Duration::from_secs(60);
const CROWDED_FIX: &str = "find the program of that user that hands in so much, and let it hand in less; if it has to, raise records_per_minute and bytes_per_minute of [intake]";

/// Requests that were refused for what their users had handed in before.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Refused {
    /// Beyond what their user may hand in.
    over_rate: u64,
    /// While as many were under way as may be, of the user or of all.
    busy: u64,
    /// While as many bytes of bodies were held as may be, of the user or of all.
    bodies_full: u64,
}

impl Refused {
    const fn all(self) -> u64 {
        self.over_rate
            .saturating_add(self.busy)
            .saturating_add(self.bodies_full)
    }
}

/// Keeps account of every user.
pub(super) struct Intakes {
    quota: watch::Receiver<IntakeQuota>,
    clock: Arc<dyn Clock>,
    conditions: Conditions,
    turns: Shares<Option<u32>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    users: BTreeMap<Option<u32>, Allowance>,
    /// All for whom there was no room among those who are told apart.
    others: Allowance,
    /// By which they were counted.
    counted_by: Option<IntakeQuota>,
    refused: Refused,
    lately: Lately,
}

impl State {
    /// What a user has left. Everybody begins anew with another quota: what was taken under the old one says nothing
    /// about it.
    fn of(&mut self, user: Option<u32>, quota: IntakeQuota, clock: &dyn Clock) -> &mut Allowance {
        if self.counted_by.replace(quota) != Some(quota) {
            self.users.clear();
            self.others = Allowance::default();
        }
        if self.users.len() >= USERS_MAX && !self.users.contains_key(&user) {
            let now = clock.now();
            self.users
                .retain(|_user, allowance| !allowance.is_whole(now));
        }
        if self.users.len() < USERS_MAX || self.users.contains_key(&user) {
            self.users.entry(user).or_default()
        } else {
            &mut self.others
        }
    }
}

impl Intakes {
    pub(super) fn new(
        quota: watch::Receiver<IntakeQuota>,
        clock: Arc<dyn Clock>,
        conditions: Conditions,
    ) -> Self {
        Self {
            quota,
            clock,
            conditions,
            turns: Shares::new(
                ("user", "telemetry requests"),
                TURNS_MAX,
                TURNS_OF_USER_MAX,
                TURNS_FLOOR,
            ),
            state: Mutex::default(),
        }
    }

    /// Lets somebody have a body of so many bytes decoded, and gives a turn for it. Nobody who is over the rate holds
    /// one.
    pub(super) fn enter(&self, peer: Peer, bytes: usize) -> Result<Share<Option<u32>>, Problem> {
        let Ok(turn) = self.turns.enter(peer.uid, 1) else {
            self.refused(
                peer,
                |refused| refused.busy += 1,
                "too many requests at once",
            );
            let detail = "send larger batches, one after the other";
            return Err(too_many("busy", "Too many requests at once", detail, 1));
        };
        self.take(peer, |allowance, quota, clock| {
            allowance.decode(quota, bytes, clock.now())
        })?;
        Ok(turn)
    }

    /// Lets somebody hand in the records that a body of so many bytes held.
    pub(super) fn hand_in(&self, peer: Peer, records: usize, bytes: usize) -> Result<(), Problem> {
        self.take(peer, |allowance, quota, clock| {
            allowance.hand_in(quota, records, bytes, clock.now())
        })
    }

    /// There was no room for the body of somebody's request.
    pub(super) fn bodies_full(&self, peer: Peer) {
        self.refused(
            peer,
            |refused| refused.bodies_full += 1,
            "too many bytes of bodies at once",
        );
    }

    pub(super) fn refusals(&self) -> Refused {
        self.lock().refused
    }

    /// Takes back what was told, once nobody was refused for a while.
    pub(super) fn look(&self) {
        let mut state = self.lock();
        let refused = state.refused.all();
        if state
            .lately
            .is_over(refused, CROWDED_TIME, self.clock.now())
        {
            self.conditions.clear(CROWDED);
        }
    }

    /// Root and the agent's own user could do anything to this agent; they have no rate.
    fn take(
        &self,
        peer: Peer,
        what: impl FnOnce(&mut Allowance, IntakeQuota, &dyn Clock) -> Result<(), OverRate>,
    ) -> Result<(), Problem> {
        if peer.may_run_commands() {
            return Ok(());
        }
        let quota = *self.quota.borrow();
        let taken = what(
            self.lock().of(peer.uid, quota, &*self.clock),
            quota,
            &*self.clock,
        );
        taken.map_err(|over| {
            self.refused(peer, |refused| refused.over_rate += 1, "too much in a minute");
            let detail = format!(
                "a user may hand in {} and {} bytes a minute, and {} has handed in more; nothing of this request was taken",
                human::counted_all(u64::from(quota.records.per_minute), "record", "records"),
                quota.bytes.per_minute,
                peer.actor()
            );
            let seconds = over.retry_after.as_millis().div_ceil(1_000).max(1);
            let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
            too_many("over_rate", "Too much telemetry", detail, seconds)
        })
    }

    fn refused(&self, peer: Peer, count: impl FnOnce(&mut Refused), why: &str) {
        let mut state = self.lock();
        count(&mut state.refused);
        let refused = state.refused.all();
        drop(state);
        let cause = format!(
            "telemetry of local programs is refused, {} since this process started; the last was of {}: {why}",
            human::counted_all(refused, "request", "requests"),
            peer.actor()
        );
        self.conditions
            .raise(CROWDED, Severity::Warn, &cause, CROWDED_FIX);
        self.look();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many(
    code: &'static str,
    title: &'static str,
    detail: impl Into<String>,
    seconds: u32,
) -> Problem {
    Problem::new(StatusCode::TOO_MANY_REQUESTS, code, title, detail)
        .retry_after(seconds)
        .held_back()
}

#[cfg(test)]
mod tests {
    use viworks_common::limits::BATCH_RECORDS_MAX;
    use viworks_runtime::clock::SystemClock;

    use super::*;

    #[test]
    fn requests_of_telemetry_at_once_are_bounded_and_a_newcomer_gets_one() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        let (_set, quota) = watch::channel(IntakeQuota::per_minute(3_000, 1024 * 1024));
        let intakes = Intakes::new(quota, clock, conditions.clone());
        let peer = |uid| Peer { uid: Some(uid) };
        let mut turns = Vec::new();
        for user in [50_001, 50_002, 50_003] {
            let mut own = 0;
            while let Ok(turn) = intakes.enter(peer(user), 1) {
                turns.push(turn);
                own += 1;
            }
            assert!((1..=TURNS_OF_USER_MAX).contains(&own), "{own} of {user}");
        }
        assert!(turns.len() <= TURNS_MAX, "{}", turns.len());
        assert_eq!(intakes.refusals().busy, 3);
        assert_eq!(conditions.list()[0].name, CROWDED);
        // However full it is, one more user gets a turn; and everybody once there is room again.
        assert!(intakes.enter(peer(50_004), 1).is_ok());
        turns.clear();
        assert!(intakes.enter(peer(50_001), 1).is_ok());
    }

    #[test]
    fn those_for_whom_there_is_no_room_share_what_one_may_hand_in() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let conditions = Conditions::new(Arc::clone(&clock));
        // The largest request at once, and then next to nothing.
        let (_set, quota) = watch::channel(IntakeQuota::per_minute(1, u32::MAX));
        let intakes = Intakes::new(quota, clock, conditions);
        let hands_in = |uid: usize| {
            let uid = u32::try_from(uid).ok();
            intakes.hand_in(Peer { uid }, BATCH_RECORDS_MAX, 1).is_ok()
        };
        for user in 0..USERS_MAX {
            assert!(hands_in(50_000 + user), "{user}");
        }
        assert!(hands_in(60_000), "the first of those who share");
        assert!(!hands_in(60_001), "it had all that they have");
        assert_eq!(intakes.lock().users.len(), USERS_MAX);
    }
}
