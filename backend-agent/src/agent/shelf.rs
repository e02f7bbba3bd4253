//! Between the rest of the process and the session of a gateway: room that is kept for commands, and everything that is
//! put there for it.
//!
//! One lock and one notification serve for all of it: thousands of sessions are idle, and a channel for each kind would
//! cost each of them more than its state.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use viworks_common::code::CloseCode;
use viworks_common::id::CommandId;
use viworks_common::ledger::lease::Place;
use viworks_common::room::Room;

use crate::data::LeasedCommand;

/// Orders that may wait for one session.
const ORDERS_MAX: usize = 64;

/// What a session is asked to do from outside.
#[derive(Debug)]
pub enum Order {
    /// Find out whether the gateway is alive, and say so when it is.
    Probe(oneshot::Sender<()>),
    /// Let the gateway reconnect after this delay.
    Drain(Duration),
    /// Give the gateway the agent key of this generation.
    Rekey(u32),
}

/// Why a session must end at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The code.
    pub code: CloseCode,
    /// One sentence.
    pub reason: &'static str,
    /// When the gateway should come back, where that is for this process to say.
    pub after: Option<Duration>,
}

/// What a session and the rest of the process share.
#[derive(Debug)]
pub struct Shelf {
    place: Place,
    keeps_timeout: bool,
    changed: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    ending: Option<Ending>,
    orders: VecDeque<Order>,
    room: Room,
    /// Offered by committed transactions, to be sent.
    offered: VecDeque<LeasedCommand>,
    /// Whose end an operator asked for, to be sent.
    cancelled: BTreeSet<CommandId>,
    /// Whether commands may wait in the store.
    look: bool,
}

/// What waits for a session.
#[derive(Debug, Default)]
pub struct Taken {
    /// Why it must end; then nothing else matters.
    pub ending: Option<Ending>,
    /// What it is asked to do.
    pub orders: VecDeque<Order>,
    /// To be sent, in this order; their places are used up.
    pub offered: VecDeque<LeasedCommand>,
    /// To be sent behind them.
    pub cancelled: BTreeSet<CommandId>,
    /// Whether commands may wait in the store.
    pub look: bool,
}

impl Shelf {
    /// For a session whose gateway has `open` commands already. `keeps_timeout` says whether it keeps time limits below
    /// its catalogue's.
    #[must_use]
    pub fn new(
        place: Place,
        credit: usize,
        open: BTreeSet<CommandId>,
        keeps_timeout: bool,
    ) -> Self {
        Self {
            place,
            keeps_timeout,
            changed: Notify::new(),
            inner: Mutex::new(Inner {
                ending: None,
                orders: VecDeque::new(),
                room: Room::new(credit, open),
                offered: VecDeque::new(),
                cancelled: BTreeSet::new(),
                look: false,
            }),
        }
    }

    /// Which session it belongs to.
    #[must_use]
    pub const fn place(&self) -> Place {
        self.place
    }

    /// Keeps room for one command that is being submitted. `None` where it has to wait in the store.
    #[must_use]
    pub fn keep(self: &Arc<Self>, with_timeout: bool) -> Option<Kept> {
        let keeps_it = self.keeps_timeout || !with_timeout;
        (keeps_it && self.inner().room.keep()).then(|| Kept {
            shelf: Arc::clone(self),
            places: 1,
        })
    }

    /// Keeps all the room that there is, for what waits in the store. Without any, the session looks again when some is
    /// given back.
    #[must_use]
    pub fn keep_all(self: &Arc<Self>) -> Option<Kept> {
        let places = self.inner().room.keep_all();
        (places > 0).then(|| Kept {
            shelf: Arc::clone(self),
            places,
        })
    }

    /// More may wait than there was room for: the session looks again when some is given back.
    pub fn want(&self) {
        self.inner().room.want();
    }

    /// Ends the session.
    pub fn end(&self, code: CloseCode, reason: &'static str) {
        self.end_by(Ending {
            code,
            reason,
            after: None,
        });
    }

    /// Ends the session, and says when the gateway should come back.
    pub fn end_for(&self, code: CloseCode, reason: &'static str, after: Duration) {
        self.end_by(Ending {
            code,
            reason,
            after: Some(after),
        });
    }

    fn end_by(&self, ending: Ending) {
        self.inner().ending = Some(ending);
        self.changed.notify_one();
    }

    /// Gives an order; `false` when too many wait already: the session is stuck.
    pub fn order(&self, order: Order) -> bool {
        let mut inner = self.inner();
        if inner.orders.len() >= ORDERS_MAX {
            return false;
        }
        inner.orders.push_back(order);
        drop(inner);
        self.changed.notify_one();
        true
    }

    /// Lets the session look for commands in the store.
    pub fn nudge(&self) {
        self.inner().look = true;
        self.changed.notify_one();
    }

    /// Asks for the end of a command.
    pub fn cancel(&self, command_id: CommandId) {
        self.inner().cancelled.insert(command_id);
        self.changed.notify_one();
    }

    /// Offers nothing more.
    pub fn drain(&self) {
        self.inner().room.drain();
    }

    /// Waits until there may be something to take.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes what waits. A command whose end was asked for before it came is followed by that.
    pub fn take(&self) -> Taken {
        let mut inner = self.inner();
        let inner = &mut *inner;
        let offered = std::mem::take(&mut inner.offered);
        let cancelled = std::mem::take(&mut inner.cancelled);
        let sent = offered.iter().map(|command| command.command_id);
        let cancelled = inner.room.follow(sent, cancelled);
        Taken {
            ending: inner.ending.take(),
            orders: std::mem::take(&mut inner.orders),
            offered,
            cancelled,
            look: std::mem::take(&mut inner.look),
        }
    }

    /// A command is over, and its credit comes back; says whether somebody waits for that.
    pub fn over(&self, command_id: CommandId) -> bool {
        self.inner().room.over(command_id)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room in a session; what is not used is given back.
#[derive(Debug)]
pub struct Kept {
    shelf: Arc<Shelf>,
    places: usize,
}

impl Kept {
    /// Whose room it is.
    #[must_use]
    pub fn place(&self) -> Place {
        self.shelf.place
    }

    /// How many commands it is for.
    #[must_use]
    pub const fn places(&self) -> usize {
        self.places
    }

    /// Ends the session that it is in.
    pub fn end(self, code: CloseCode, reason: &'static str) {
        self.shelf.end(code, reason);
    }

    /// Puts a command there that a committed transaction offered.
    pub fn put(mut self, command: LeasedCommand) {
        self.used(command.command_id, |inner| inner.offered.push_back(command));
        self.shelf.changed.notify_one();
    }

    /// The session itself sends this one.
    pub fn sent(&mut self, command_id: CommandId) {
        self.used(command_id, |_| ());
    }

    fn used(&mut self, command_id: CommandId, then: impl FnOnce(&mut Inner)) {
        let Some(left) = self.places.checked_sub(1) else {
            return;
        };
        self.places = left;
        let mut inner = self.shelf.inner();
        inner.room.put(command_id);
        then(&mut inner);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut inner = self.shelf.inner();
        let look = inner.room.give_back(self.places);
        inner.look |= look;
        drop(inner);
        if look {
            self.shelf.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;
    use viworks_common::id::{AgentRunId, RunId};
    use viworks_common::time::Timestamp;

    use super::*;

    fn id(n: u128) -> CommandId {
        CommandId::from_uuid(Uuid::from_u128(n))
    }

    fn command(n: u128) -> LeasedCommand {
        LeasedCommand {
            command_id: id(n),
            run_id: RunId::from_uuid(Uuid::from_u128(n)),
            order: 1,
            name: "sys.info".parse().unwrap(),
            arguments: Default::default(),
            digest: [0; 32],
            attempt: 1,
            traceparent: None,
            deadline: Timestamp::from_unix_micros(0),
            permitted: true,
            timeout_ms: None,
        }
    }

    fn shelf(credit: usize, open: &[u128]) -> Arc<Shelf> {
        let place = Place {
            epoch: 3,
            run: AgentRunId::from_uuid(Uuid::from_u128(9)),
        };
        let open = open.iter().copied().map(id).collect();
        Arc::new(Shelf::new(place, credit, open, false))
    }

    fn is_nudged(shelf: &Shelf) -> bool {
        shelf.changed().now_or_never().is_some()
    }

    #[test]
    fn credit_bounds_what_is_open_and_what_is_under_way_together() {
        let shelf = shelf(3, &[1]);
        let first = shelf.keep(false).unwrap();
        let rest = shelf.keep_all().unwrap();
        assert_eq!((first.places(), rest.places()), (1, 1));
        assert!(shelf.keep(false).is_none());
        first.put(command(2));
        drop(rest);
        assert!(shelf.keep(false).is_some());
        assert_eq!(shelf.take().offered.len(), 1);
    }

    #[test]
    fn a_session_that_takes_no_orders_is_given_so_many_and_no_more() {
        let shelf = shelf(1, &[]);
        let order = || shelf.order(Order::Drain(Duration::ZERO));
        assert!((0..ORDERS_MAX).all(|_each| order()));
        assert!(!order());
        assert_eq!(shelf.take().orders.len(), ORDERS_MAX);
        assert!(order());
    }

    #[test]
    fn who_found_no_room_looks_again_when_some_is_given_back() {
        let shelf = shelf(1, &[]);
        let kept = shelf.keep(false).unwrap();
        assert!(shelf.keep_all().is_none());
        assert!(!is_nudged(&shelf));
        drop(kept);
        assert!(is_nudged(&shelf));
        assert!(shelf.take().look);
        let kept = shelf.keep(false).unwrap();
        kept.put(command(1));
        assert!(shelf.keep_all().is_none());
        assert!(shelf.over(id(1)), "its end makes room");
        assert!(!shelf.over(id(1)), "nobody waits any more");
    }

    #[test]
    fn a_limit_that_the_gateway_would_not_keep_and_a_session_that_ends_get_no_room() {
        let shelf = shelf(1, &[]);
        assert!(shelf.keep(true).is_none());
        assert!(shelf.keep(false).is_some());
        shelf.drain();
        assert!(shelf.keep(false).is_none());
        assert!(shelf.keep_all().is_none());
    }

    #[test]
    fn a_command_that_was_cancelled_before_it_came_is_followed_by_its_cancel() {
        let shelf = shelf(2, &[]);
        let kept = shelf.keep(false).unwrap();
        shelf.cancel(id(5));
        assert_eq!(shelf.take().cancelled, [id(5)].into());
        kept.put(command(5));
        let taken = shelf.take();
        assert_eq!(taken.offered.len(), 1);
        assert_eq!(taken.cancelled, [id(5)].into(), "once more, behind it");
        shelf.cancel(id(6));
        assert_eq!(shelf.take().cancelled, [id(6)].into());
        let kept = shelf.keep(false).unwrap();
        kept.put(command(6));
        assert!(
            shelf.take().cancelled.is_empty(),
            "nothing was under way then"
        );
    }
}
