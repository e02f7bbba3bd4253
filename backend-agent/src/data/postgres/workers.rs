//! Threads that each have a connection, and carry out one transaction after another.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use viworks_runtime::random;

use super::connection::{Begin, Connection, Trouble};
use super::dial::{Dial, Kept};
use super::era::Era;
use super::error::Error;
use super::lease::Held;
use super::{Address, rest};

/// Transactions that wait for a connection; further ones wait outside.
const WAITING_MAX: usize = 1_024;

/// How often a transaction that met another one is done again.
const AGAIN_MAX: u32 = 12;

/// How long closing waits for what is under way.
const CLOSE_TIME: Duration = Duration::from_secs(30);

/// A transaction, whatever its types are.
trait Job: Send {
    /// Carries it out outside of a transaction; answers whether there is an outcome, which then stands.
    fn run_at_once(&mut self, _connection: &Connection) -> bool {
        false
    }

    /// Carries it out; answers whether it worked.
    fn run(&mut self, connection: &Connection) -> bool;

    /// Gives whoever waits its outcome, or the reason why that did not come to pass.
    fn answer(self: Box<Self>, fate: Result<(), Error>);

    fn is_abandoned(&self) -> bool;
}

struct TypedJob<F, T, E> {
    work: F,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> TypedJob<F, T, E> {
    fn new(work: F) -> (Self, oneshot::Receiver<Result<T, E>>) {
        let (reply, answer) = oneshot::channel();
        let job = Self {
            work,
            outcome: None,
            reply,
        };
        (job, answer)
    }
}

impl<F, T, E> Job for TypedJob<F, T, E>
where
    F: Fn(&Connection) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run(&mut self, connection: &Connection) -> bool {
        // What it leaves half done is undone with its transaction.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.work)(connection)))
            .unwrap_or_else(|_payload| Err(Error::Panicked.into()));
        let worked = outcome.is_ok();
        self.outcome = Some(outcome);
        worked
    }

    fn answer(self: Box<Self>, fate: Result<(), Error>) {
        let outcome = match (fate, self.outcome) {
            (Ok(()), Some(outcome)) => outcome,
            (Ok(()), None) => Err(Error::Closed.into()),
            (Err(error), _) => Err(error.into()),
        };
        // Nobody waits any more; the effects stand all the same.
        drop(self.reply.send(outcome));
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

/// What may be carried out by one statement that commits by itself.
struct AtOnce<G, F, T, E> {
    at_once: G,
    job: TypedJob<F, T, E>,
}

impl<G, F, T, E> Job for AtOnce<G, F, T, E>
where
    G: Fn(&Connection) -> Result<Option<T>, E> + Send,
    F: Fn(&Connection) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run_at_once(&mut self, connection: &Connection) -> bool {
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.at_once)(connection)))
            .unwrap_or_else(|_payload| Err(Error::Panicked.into()));
        self.job.outcome = outcome.transpose();
        self.job.outcome.is_some()
    }

    fn run(&mut self, connection: &Connection) -> bool {
        self.job.run(connection)
    }

    fn answer(self: Box<Self>, fate: Result<(), Error>) {
        Box::new(self.job).answer(fate);
    }

    fn is_abandoned(&self) -> bool {
        self.job.is_abandoned()
    }
}

/// What a pool is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Read,
    /// It reads much, for so long at most.
    Report,
    Write,
}

/// What no report needs that reads as little as it may: `intents::store::REPORT_TIME`.
const REPORT_TIME: &str = "SET statement_timeout = '10s'";

/// Connections for one purpose. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Workers {
    jobs: mpsc::Sender<Option<Waiting>>,
    /// A permit for each job that waits or runs.
    room: Arc<Semaphore>,
    /// A permit for each thread; the thread holds it.
    threads: Arc<Semaphore>,
    count: u32,
}

/// A job and its place among those that wait or run.
struct Waiting {
    job: Box<dyn Job>,
    _place: OwnedSemaphorePermit,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts `count` threads; each connects when it has something to do.
    pub(super) fn start(
        address: &Arc<Address>,
        name: &str,
        purpose: Purpose,
        lease: Option<&Arc<Held>>,
        era: &Arc<Era>,
        count: u32,
    ) -> Result<Self, Error> {
        // Room for every place, and for the word to each thread that there will be no more.
        let words = usize::try_from(count).unwrap_or(usize::MAX);
        let (jobs, queue) = mpsc::channel(WAITING_MAX.saturating_add(words));
        let queue = Arc::new(Mutex::new(queue));
        let threads = Arc::new(Semaphore::new(usize::try_from(count).unwrap_or(usize::MAX)));
        for _ in 0..count {
            let permit = Arc::clone(&threads).try_acquire_owned();
            let worker = Worker {
                dial: Dial::new(address, lease, era),
                purpose,
                queue: Arc::clone(&queue),
            };
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || {
                    worker.serve();
                    drop(permit);
                })
                .map_err(|error| Error::NoThread(error.into()))?;
        }
        Ok(Self {
            jobs,
            room: Arc::new(Semaphore::new(WAITING_MAX)),
            threads,
            count,
        })
    }

    /// Carries out one transaction. It may run more than once, each time with nothing left of the time before.
    pub(super) async fn run<T, E, F>(&self, wait: Duration, work: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (job, answer) = TypedJob::new(work);
        self.answered(wait, Box::new(job), answer).await
    }

    /// The same, where one statement outside of a transaction may do.
    pub(super) async fn run_at_once<T, E, G, F>(
        &self,
        wait: Duration,
        at_once: G,
        work: F,
    ) -> Result<T, E>
    where
        G: Fn(&Connection) -> Result<Option<T>, E> + Send + 'static,
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (job, answer) = TypedJob::new(work);
        let job = AtOnce { at_once, job };
        self.answered(wait, Box::new(job), answer).await
    }

    async fn answered<T, E: From<Error>>(
        &self,
        wait: Duration,
        job: Box<dyn Job>,
        answer: oneshot::Receiver<Result<T, E>>,
    ) -> Result<T, E> {
        let room = timeout(wait, Arc::clone(&self.room).acquire_owned()).await;
        let place = room
            .map_err(|_elapsed| Error::Busy)?
            .map_err(|_closed| Error::Closed)?;
        let waiting = Waiting { job, _place: place };
        self.jobs
            .try_send(Some(waiting))
            .map_err(|_full_or_gone| Error::Closed)?;
        let answered = answer.await;
        answered.unwrap_or_else(|_gone| Err(Error::Closed.into()))
    }

    /// Whether there is something to do for somebody who waits.
    pub(super) fn is_busy(&self) -> bool {
        self.room.available_permits() < WAITING_MAX
    }

    /// Takes no more, finishes what came before, and closes the connections.
    pub(super) async fn close(&self) {
        self.room.close();
        for _ in 0..self.count {
            drop(timeout(CLOSE_TIME, self.jobs.send(None)).await);
        }
        drop(timeout(CLOSE_TIME, self.threads.acquire_many(self.count)).await);
    }
}

/// One thread.
struct Worker {
    dial: Dial,
    purpose: Purpose,
    queue: Arc<Mutex<mpsc::Receiver<Option<Waiting>>>>,
}

impl Worker {
    fn serve(mut self) {
        let mut kept: Option<Kept> = None;
        let first = (self.purpose == Purpose::Report).then_some(REPORT_TIME);
        while let Some(Waiting { mut job, _place }) = self.next() {
            let mut attempt = 0;
            let fate = loop {
                attempt += 1;
                // What reads is of use to nobody then; what writes may be wanted all the same.
                if job.is_abandoned() && (self.purpose != Purpose::Write || attempt > 1) {
                    break Err(Error::Closed);
                }
                let had = match self.dial.connection(kept.take(), first) {
                    Ok(had) => had,
                    Err(error) => break Err(error),
                };
                let (fate, usable) = match self.at_once(&had.connection, job.as_mut()) {
                    Some(done) => done,
                    None => self.transact(&had.connection, job.as_mut()),
                };
                if let Fate::Lost(error) = &fate {
                    self.dial.judge(&had, error);
                }
                if usable {
                    kept = Some(had);
                }
                match fate {
                    Fate::Done => break Ok(()),
                    Fate::Failed(error) => break Err(error),
                    Fate::Again(error) if attempt >= AGAIN_MAX => break Err(error),
                    Fate::Again(_) => rest(pause(attempt)),
                    // Nothing of it was committed; a server that restarted takes it on a new connection.
                    Fate::Lost(error) if attempt > 2 => break Err(error),
                    Fate::Lost(_) => {}
                }
            };
            job.answer(fate);
        }
        if let Some(kept) = kept {
            kept.connection.close();
        }
    }

    /// The next job; `None` when there will be no more.
    fn next(&self) -> Option<Waiting> {
        // Nothing panics while it is held. Whoever waits for it has the next one.
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.blocking_recv().flatten()
    }

    fn begin(&self) -> Begin {
        let party = self.dial.party();
        match self.purpose {
            Purpose::Read | Purpose::Report => Begin::Read(party),
            Purpose::Write => Begin::Write(party),
        }
    }

    /// What needs no transaction, and whether the connection can be used again.
    fn at_once(&self, connection: &Connection, job: &mut dyn Job) -> Option<(Fate, bool)> {
        connection.begin_none(self.dial.party());
        let done = job.run_at_once(connection);
        match connection.trouble() {
            Some(Trouble::Unknown(error)) => Some((Fate::Failed(error), false)),
            Some(Trouble::Lost(error)) => Some((Fate::Lost(error), false)),
            // Nothing of it remains; a transaction waits for its turn.
            Some(Trouble::Again(_)) => None,
            None => done.then_some((Fate::Done, true)),
        }
    }

    /// One transaction, and whether the connection can be used again.
    fn transact(&self, connection: &Connection, job: &mut dyn Job) -> (Fate, bool) {
        match connection.begin(self.begin()) {
            Ok(()) => {}
            Err(error @ Error::NoLease(_)) => {
                // By then it was renewed, or there is a new one.
                self.dial.doubt();
                return (Fate::Again(error), connection.roll_back());
            }
            Err(error) => return (Fate::Lost(error), false),
        }
        if job.run(connection) {
            return match connection.commit() {
                Ok(()) => (Fate::Done, true),
                Err(error @ Error::Again(_)) => (Fate::Again(error), true),
                // A read changed nothing, whatever became of it.
                Err(Error::Unknown(_)) if self.purpose != Purpose::Write => (Fate::Done, false),
                Err(error) => {
                    // A rule that looks at the end only: the server has undone it, and goes on.
                    let usable = error.is_an_answer();
                    (Fate::Failed(error), usable)
                }
            };
        }
        match connection.trouble() {
            // There is nothing to say to it any more.
            Some(Trouble::Lost(error)) => (Fate::Lost(error), false),
            Some(Trouble::Unknown(error)) => (Fate::Failed(error), false),
            Some(Trouble::Again(error)) => (Fate::Again(error), connection.roll_back()),
            // Its own answer stands.
            None => (Fate::Done, connection.roll_back()),
        }
    }
}

enum Fate {
    Done,
    Failed(Error),
    Again(Error),
    Lost(Error),
}

/// Longer each time, and never the same for two that met.
fn pause(attempt: u32) -> Duration {
    let most = 4_u64 << attempt.min(6);
    Duration::from_millis(random::uniform(1..most + 1))
}
