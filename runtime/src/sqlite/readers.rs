//! Connections that only read, each on a thread of its own.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::OpenFlags;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::warn;

use super::job::{Job, TypedJob};
use super::writer::Sender;
use super::{Connection, Error, Options};

/// All readers of a database. The threads end with the last handle.
#[derive(Debug, Clone)]
pub(super) struct Readers(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[derive(Debug)]
struct Shared {
    options: Options,
    /// Room for reads that wait.
    room: Arc<Semaphore>,
    /// A permit for each reader that there may be; its thread holds it.
    threads: Arc<Semaphore>,
    state: Mutex<State>,
    wake: Condvar,
    /// The writer stays as long as somebody may ask it for something, so it closes the file after every reader has:
    /// only who closes it last and may write takes the log away.
    _writer: Sender,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Readers that have nothing to do.
    idle: usize,
    numbers: u64,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("waiting", &self.waiting.len())
            .field("idle", &self.idle)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

struct Waiting {
    number: u64,
    job: Box<dyn Job>,
    /// Its place among those that wait.
    _place: OwnedSemaphorePermit,
}

impl Readers {
    /// Starts the first; others start when reads wait.
    pub(super) fn start(options: Options, writer: Sender) -> Result<Self, Error> {
        let threads = usize::try_from(options.readers_max.max(1)).unwrap_or(usize::MAX);
        let shared = Arc::new(Shared {
            room: Arc::new(Semaphore::new(options.queue_depth_max.max(1))),
            threads: Arc::new(Semaphore::new(threads)),
            state: Mutex::default(),
            wake: Condvar::new(),
            _writer: writer,
            options,
        });
        // There is one from here on, whatever the system has to spare later.
        shared.start_one()?;
        Ok(Self(Arc::new(Handle(shared))))
    }

    /// Runs `job` on a reader.
    pub(super) async fn read<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let shared = &self.0.0;
        let (job, mut answer) = TypedJob::new(job);
        let mut number = None;
        let answered = timeout(shared.options.read_timeout, async {
            let place = Arc::clone(&shared.room).acquire_owned().await;
            let place = place.map_err(|_closed| Error::Closed)?;
            number = Some(shared.enqueue(Box::new(job), place)?);
            Ok::<_, Error>((&mut answer).await)
        })
        .await;
        let answered = match answered {
            Ok(answered) => answered?,
            // One that runs already is waited for: how long a read takes is not bounded here.
            Err(_elapsed) if number.is_some_and(|number| !shared.withdraw(number)) => answer.await,
            Err(_elapsed) => return Err(Error::ReadersBusy.into()),
        };
        answered.unwrap_or_else(|_gone| Err(Error::Closed.into()))
    }

    /// Takes no more reads, and waits a while until those before are answered and the file is closed.
    pub(super) async fn close(&self, wait: Duration) {
        let shared = &self.0.0;
        shared.close();
        let all = shared
            .threads
            .acquire_many(shared.options.readers_max.max(1));
        drop(timeout(wait, all).await);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing can panic while it is held, and a queue cannot be half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(
        self: &Arc<Self>,
        job: Box<dyn Job>,
        place: OwnedSemaphorePermit,
    ) -> Result<u64, Error> {
        let mut state = self.state();
        if state.closed {
            return Err(Error::Closed);
        }
        state.numbers += 1;
        let number = state.numbers;
        state.waiting.push_back(Waiting {
            number,
            job,
            _place: place,
        });
        let more = state.waiting.len() > state.idle;
        drop(state);
        self.wake.notify_one();
        if more && let Err(error) = self.start_one() {
            // Those that there are will come to it.
            warn!(%error, "no further reader of the database");
        }
        Ok(number)
    }

    /// Takes a read back; false if it runs already.
    fn withdraw(&self, number: u64) -> bool {
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|waiting| waiting.number != number);
        state.waiting.len() < before
    }

    /// Starts one more reader, if there may be one.
    fn start_one(self: &Arc<Self>) -> Result<(), Error> {
        let Ok(permit) = Arc::clone(&self.threads).try_acquire_owned() else {
            return Ok(());
        };
        let shared = Arc::clone(self);
        let work = move || {
            // It closes its file as it ends, and only then lets go of the rest.
            shared.serve();
            drop(permit);
        };
        thread::Builder::new()
            .name("sqlite reader".to_owned())
            .spawn(work)
            .map(drop)
            .map_err(|error| Error::no_thread(self.options.path.clone(), error))
    }

    /// The life of one reader.
    fn serve(&self) {
        let mut kept = None;
        while let Some(mut job) = self.next() {
            let connection = match kept.take().map_or_else(|| self.open(), Ok) {
                Ok(connection) => connection,
                Err(error) => {
                    job.answer(Err(error));
                    continue;
                }
            };
            let begun = connection.execute("BEGIN", &[]);
            let fate = begun.map(|_nothing| {
                job.run(&connection);
            });
            // There is nothing to keep; this lets go of what was seen.
            if connection.execute("ROLLBACK", &[]).is_ok() {
                kept = Some(connection);
            }
            job.answer(fate);
        }
    }

    /// The next read that somebody still waits for; `None` when there will be no more.
    fn next(&self) -> Option<Box<dyn Job>> {
        let mut state = self.state();
        loop {
            while let Some(Waiting { job, .. }) = state.waiting.pop_front() {
                if !job.is_abandoned() {
                    return Some(job);
                }
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn open(&self) -> Result<Connection, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let inner = rusqlite::Connection::open_with_flags(&self.options.path, flags)?;
        Connection::new(inner, &self.options)
    }

    fn close(&self) {
        self.state().closed = true;
        self.room.close();
        self.wake.notify_all();
    }
}
