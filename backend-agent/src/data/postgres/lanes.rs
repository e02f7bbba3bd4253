//! Threads that each have a connection, and carry out together what came while they were busy: nobody waits so that
//! others may join, and under load one commit serves dozens. A gateway has the same lane each time, so that what is
//! remembered of it is true.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::Address;
use super::connection::{Connection, Trouble};
use super::dial::{Dial, Kept};
use super::era::Era;
use super::error::Error;
use super::lease::Held;
use crate::data::intents::merged::{self, Answer, Item};
use crate::data::intents::tx::View;
use crate::data::{StoreError, StoreResult};

/// Intents that wait for all lanes; further ones go their own way.
const WAITING_MAX: usize = 4_096;

/// Intents in one statement.
const TOGETHER_MAX: usize = 64;

/// How long closing waits for what is under way.
const CLOSE_TIME: Duration = Duration::from_secs(30);

/// The first thing that is said on a connection. An array is as long as it is: a plan for each would take several times
/// as long to make as to carry out.
const PLANNED_ONCE: &str = "SET plan_cache_mode = force_generic_plan";

/// Whether the way to the server works, where it rested: a statement that is lost on it may have been carried out.
const THERE: &str = "SELECT 1";

/// What a lane has for an intent: what it came to, or nothing where it has to go its own way.
type Outcome = StoreResult<Option<Answer>>;

/// The lanes. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    lanes: Arc<[mpsc::Sender<Option<Waiting>>]>,
    /// A permit for each intent that waits or is carried out.
    room: Arc<Semaphore>,
    /// A permit for each thread; the thread holds it.
    threads: Arc<Semaphore>,
    count: u32,
}

/// An intent, its place among those that wait, and whoever waits for it.
struct Waiting {
    item: Item,
    reply: oneshot::Sender<Outcome>,
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

impl Lanes {
    /// Starts `count` threads; each connects when it has something to do.
    pub(super) fn start(
        address: &Arc<Address>,
        lease: Option<&Arc<Held>>,
        era: &Arc<Era>,
        count: u32,
    ) -> Result<Self, Error> {
        let threads = Arc::new(Semaphore::new(usize::try_from(count).unwrap_or(usize::MAX)));
        let mut lanes = Vec::new();
        for _ in 0..count {
            // Room for every place, and for the word that there will be no more.
            let (lane, queue) = mpsc::channel(WAITING_MAX + 1);
            let permit = Arc::clone(&threads).try_acquire_owned();
            let thread = Lane {
                dial: Dial::new(address, lease, era),
                kept: None,
                era: None,
                queue,
                waiting: VecDeque::new(),
                ends: false,
            };
            thread::Builder::new()
                .name("postgres lane".to_owned())
                .spawn(move || {
                    thread.serve();
                    drop(permit);
                })
                .map_err(|error| Error::NoThread(error.into()))?;
            lanes.push(lane);
        }
        Ok(Self {
            lanes: lanes.into(),
            room: Arc::new(Semaphore::new(WAITING_MAX)),
            threads,
            count,
        })
    }

    /// Carries out an intent together with what else waits for its lane.
    pub(super) async fn run(&self, item: Item) -> Outcome {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            return Ok(None);
        };
        let number = item.agent_id.as_uuid().as_u128() % u128::from(self.count.max(1));
        let Some(lane) = usize::try_from(number)
            .ok()
            .and_then(|number| self.lanes.get(number))
        else {
            return Ok(None);
        };
        let (reply, outcome) = oneshot::channel();
        let waiting = Waiting {
            item,
            reply,
            _place: place,
        };
        if lane.try_send(Some(waiting)).is_err() {
            return Ok(None);
        }
        outcome
            .await
            .unwrap_or_else(|_gone| Err(Error::Closed.into()))
    }

    /// Whether there is something to do for somebody who waits.
    pub(super) fn is_busy(&self) -> bool {
        self.room.available_permits() < WAITING_MAX
    }

    /// Takes no more, finishes what came before, and closes the connections.
    pub(super) async fn close(&self) {
        self.room.close();
        for lane in self.lanes.iter() {
            drop(timeout(CLOSE_TIME, lane.send(None)).await);
        }
        drop(timeout(CLOSE_TIME, self.threads.acquire_many(self.count)).await);
    }
}

/// One thread.
struct Lane {
    dial: Dial,
    kept: Option<Kept>,
    /// The time that what is remembered is of.
    era: Option<u64>,
    queue: mpsc::Receiver<Option<Waiting>>,
    /// What has come, in its order.
    waiting: VecDeque<Waiting>,
    /// There will be no more.
    ends: bool,
}

impl Lane {
    fn serve(mut self) {
        while self.fill() {
            let together = take(&mut self.waiting);
            self.carry_out(together);
        }
        if let Some(kept) = self.kept {
            kept.connection.close();
        }
    }

    /// Waits for something to do, and takes all that has come; `false` when there will be nothing more.
    fn fill(&mut self) -> bool {
        if self.waiting.is_empty() && !self.ends {
            match self.queue.blocking_recv().flatten() {
                Some(first) => self.waiting.push_back(first),
                None => self.ends = true,
            }
        }
        while !self.ends {
            match self.queue.try_recv() {
                Ok(Some(next)) => self.waiting.push_back(next),
                Ok(None) => self.ends = true,
                Err(_nothing_more) => break,
            }
        }
        !self.waiting.is_empty()
    }

    fn carry_out(&mut self, together: Vec<Waiting>) {
        let (items, replies): (Vec<Item>, Vec<_>) = together
            .into_iter()
            .map(|waiting| (waiting.item, (waiting.reply, waiting._place)))
            .unzip();
        let mut outcomes = self.outcomes(&items).into_iter();
        for (reply, place) in replies {
            // Nobody waits any more; the effects stand all the same.
            drop(reply.send(outcomes.next().unwrap_or(Ok(None))));
            drop(place);
        }
    }

    /// What becomes of intents that go together. Where the server cannot be used, each finds out by itself.
    fn outcomes(&mut self, items: &[Item]) -> Vec<Outcome> {
        let Ok(kept) = self.dial.connection(self.kept.take(), Some(PLANNED_ONCE)) else {
            return Vec::new();
        };
        if self
            .era
            .replace(kept.era)
            .is_some_and(|era| era != kept.era)
            && let Some(first) = items.first()
        {
            first.forget_all();
        }
        kept.connection.begin_none(self.dial.party());
        if !kept.connection.is_fresh() && kept.connection.batch(THERE).is_err() {
            return Vec::new();
        }
        let written = write(&kept.connection, items);
        match kept.connection.trouble() {
            Some(Trouble::Unknown(error)) => {
                self.dial.judge(&kept, &error);
                let unknown = |_item| Err(StoreError::from(error.clone()));
                return items.iter().map(unknown).collect();
            }
            Some(Trouble::Lost(error)) => {
                self.dial.judge(&kept, &error);
                return Vec::new();
            }
            Some(Trouble::Again(_)) | None => {}
        }
        self.kept = Some(kept);
        match written {
            Ok(answers) => answers.into_iter().map(Ok).collect(),
            // It was written, or was not: what was answered could not be read.
            Err(StoreError::Unknown(why)) => {
                let why = why.to_string();
                let unknown = |_item| Err(StoreError::Unknown(why.clone().into()));
                items.iter().map(unknown).collect()
            }
            // What the server refused as a whole was not written; alone, the one that it is about is told so.
            Err(_refused) => Vec::new(),
        }
    }
}

/// Carries intents out on a connection.
fn write(connection: &Connection, items: &[Item]) -> StoreResult<Vec<Option<Answer>>> {
    let Some(first) = items.first() else {
        return Ok(Vec::new());
    };
    let items: Vec<&Item> = items.iter().collect();
    let view = View::new(connection, &first.tenant);
    match catch_unwind(AssertUnwindSafe(|| merged::write(&view, &items))) {
        Ok(Err(unread @ StoreError::Inconsistent { .. })) => {
            Err(StoreError::Unknown(unread.into()))
        }
        Ok(written) => written,
        Err(_payload) => Err(StoreError::Unknown(Error::Panicked.into())),
    }
}

/// Takes what can go together with the first: of its kind and tenant, each about another gateway, and nothing before
/// what came earlier about the same one. The others stay, in their order.
fn take(waiting: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let Some(first) = waiting.front() else {
        return Vec::new();
    };
    let (kind, tenant) = (first.item.kind(), first.item.tenant.clone());
    let (mut taken, mut left, mut gateways) = (Vec::new(), VecDeque::new(), BTreeSet::new());
    for next in waiting.drain(..) {
        let goes = next.item.kind() == kind && next.item.tenant == tenant;
        let is_first_of_gateway = gateways.insert(next.item.agent_id);
        if goes && is_first_of_gateway && taken.len() < TOGETHER_MAX {
            taken.push(next);
        } else {
            left.push_back(next);
        }
    }
    *waiting = left;
    taken
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use viworks_runtime::sqlite::params;
    use viworks_testkit::postgres;

    use super::*;
    use crate::data::intents::link::Link as _;

    /// The server would go on to plan anew where it takes that for cheaper.
    #[tokio::test]
    async fn a_lane_s_statements_are_planned_once() {
        const ASKED: &str = "SELECT number FROM unnest(CAST(:numbers AS bigint[])) AS n (number)";
        const PLANS: &str = "\
            SELECT custom_plans, generic_plans FROM pg_prepared_statements WHERE statement LIKE 'SELECT number%'";
        let Some(server) = postgres::server() else {
            return;
        };
        let address = Arc::new(Address::parse(&server.url("postgres"), None, None).unwrap());
        let plans = tokio::task::spawn_blocking(move || {
            let mut dial = Dial::new(&address, None, &Arc::default());
            let kept = dial.connection(None, Some(PLANNED_ONCE)).unwrap();
            let ask = |question: &'static str, params, counts: &mut Vec<i64>| {
                let asked = kept
                    .connection
                    .query(question.into(), params, &[], &mut |row| {
                        counts.extend(
                            ["custom_plans", "generic_plans"]
                                .map(|plans| row.get(plans).unwrap_or(0)),
                        );
                        ControlFlow::Continue(())
                    });
                asked.unwrap();
            };
            let mut plans = Vec::new();
            for _ in 0..7 {
                ask(ASKED, params! { numbers: None::<i64> }, &mut Vec::new());
            }
            ask(PLANS, &[], &mut plans);
            kept.connection.close();
            plans
        });
        assert_eq!(plans.await.unwrap(), [0, 7]);
    }
}
