//! The one writer: takes what waits, commits it together, answers everybody.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::warn;
use viworks_common::time::Monotonic;

use super::job::Job;
use super::pace::Pace;
use super::schema;
use super::{Connection, Error, Options};
use crate::clock::{Clock, SystemClock};
use crate::migrations::Migration;

/// A job, and the room that it takes while it waits.
pub(super) type Queued = (Box<dyn Job>, OwnedSemaphorePermit);

/// What can be asked of the writer.
pub(super) enum Message {
    /// Run and commit it.
    Write(Queued),
    /// The same, when others leave room for it.
    Bulk(Queued),
    /// Run it before anything is written; it only reads.
    Look(Queued),
    /// End.
    Close(oneshot::Sender<Result<(), Error>>),
}

/// The way to the writer. It has no bound of its own: every job holds a place in a room that has.
pub(super) type Sender = mpsc::Sender<Message>;

/// What the writer has done so far.
#[derive(Debug, Default)]
pub struct Counters {
    commits: AtomicU64,
    jobs_committed: AtomicU64,
    jobs_undone: AtomicU64,
    busy: AtomicBool,
}

impl Counters {
    /// Transactions committed, each one fsync.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Jobs whose effects were committed.
    #[must_use]
    pub fn jobs_committed(&self) -> u64 {
        self.jobs_committed.load(Ordering::Relaxed)
    }

    /// Jobs that failed and were undone.
    #[must_use]
    pub fn jobs_undone(&self) -> u64 {
        self.jobs_undone.load(Ordering::Relaxed)
    }

    /// Whether short writes came in lately that somebody waits for, as of the last commit.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    fn record(&self, committed: usize, undone: usize) {
        let add = |counter: &AtomicU64, count: usize| {
            counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        };
        add(&self.jobs_committed, committed);
        add(&self.jobs_undone, undone);
    }
}

pub(super) struct Writer {
    connection: Connection,
    messages: mpsc::Receiver<Message>,
    writes: VecDeque<Queued>,
    bulk: VecDeque<Queued>,
    looks: Vec<Queued>,
    /// Whom to tell that the file is closed, once that was asked for.
    closing: Option<oneshot::Sender<Result<(), Error>>>,
    /// Nobody can ask for anything any more.
    alone: bool,
    batch_jobs_max: usize,
    counters: Arc<Counters>,
    pace: Pace,
    /// For how many batches each job gets a savepoint.
    careful: u32,
    /// Jobs of this batch that changed something.
    changing: usize,
}

/// For how many batches each job gets a savepoint of its own once one of them failed: a savepoint keeps a copy of every
/// page that its job changes, which is a fifth of the writer's work, and jobs hardly ever fail.
const CAREFUL_BATCHES: u32 = 64;

/// What is to be done next.
enum Next {
    Together,
    Bulk(Queued),
}

/// The transaction is gone as a whole, with the effects of every job in it.
#[derive(Debug)]
struct GivenUp;

impl Writer {
    /// Opens the file on a thread of its own, which goes on as the writer.
    pub(super) async fn start(
        options: Options,
        migrations: &'static [Migration],
        counters: Arc<Counters>,
    ) -> Result<Sender, Error> {
        let (sender, messages) = mpsc::channel();
        let (reply, opened) = oneshot::channel();
        let path = options.path.clone();
        let work = move || match schema::open(&options, migrations) {
            Ok(connection) => {
                // Whoever opens it may have gone; then there is nothing to wait for either.
                drop(reply.send(Ok(())));
                let writer = Self {
                    connection,
                    messages,
                    writes: VecDeque::new(),
                    bulk: VecDeque::new(),
                    looks: Vec::new(),
                    closing: None,
                    alone: false,
                    batch_jobs_max: options.batch_jobs_max.max(1),
                    counters,
                    pace: Pace::default(),
                    careful: 0,
                    changing: 0,
                };
                writer.run();
            }
            Err(error) => drop(reply.send(Err(error))),
        };
        thread::Builder::new()
            .name("sqlite writer".to_owned())
            .spawn(work)
            .map_err(|error| Error::no_thread(path, error))?;
        opened.await.unwrap_or(Err(Error::Panicked))?;
        Ok(sender)
    }

    fn run(mut self) {
        while let Some(next) = self.next() {
            match next {
                Next::Together => self.write_together(),
                Next::Bulk((job, place)) => {
                    drop(place);
                    self.write_bulk(job);
                }
            }
        }
        self.close();
    }

    /// Short writes first; bulk when none waits and it has rested, or when it was passed over for too long. `None` when
    /// everything is done and there will be no more.
    fn next(&mut self) -> Option<Next> {
        loop {
            while let Ok(message) = self.messages.try_recv() {
                self.sort(message);
            }
            self.look();
            let rest = self.pace.rest_until().saturating_since(SystemClock.now());
            let ending = self.alone || self.closing.is_some();
            let room_for_bulk = self.writes.is_empty() && (rest.is_zero() || ending);
            if (room_for_bulk || self.pace.is_bulk_due())
                && let Some(job) = self.bulk.pop_front()
            {
                return Some(Next::Bulk(job));
            }
            if !self.writes.is_empty() {
                return Some(Next::Together);
            }
            if ending {
                return None;
            }
            let received = if self.bulk.is_empty() {
                self.messages.recv().map_err(RecvTimeoutError::from)
            } else {
                self.messages.recv_timeout(rest)
            };
            match received {
                Ok(message) => self.sort(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.alone = true,
            }
        }
    }

    fn sort(&mut self, message: Message) {
        // Who comes after the close sees its channel go and answers `Closed`.
        if self.closing.is_some() {
            return;
        }
        match message {
            Message::Write(job) => self.writes.push_back(job),
            Message::Bulk(job) => self.bulk.push_back(job),
            Message::Look(job) => self.looks.push(job),
            Message::Close(reply) => self.closing = Some(reply),
        }
    }

    /// Answers who only wants to know something. Several see one state, whose lock is taken once.
    fn look(&mut self) {
        let mut looks = std::mem::take(&mut self.looks);
        looks.retain(|(job, _place)| !job.is_abandoned());
        let begun = looks.len() > 1 && self.execute("BEGIN").is_ok();
        for (mut job, _place) in looks {
            // What went wrong is in its answer.
            job.run(&self.connection);
            job.answer(Ok(()));
        }
        if begun {
            self.roll_back();
        }
    }

    /// Commits what waits together.
    fn write_together(&mut self) {
        let taken = self.writes.len().min(self.batch_jobs_max);
        // Their places are free again from here on.
        let batch: Vec<_> = self
            .writes
            .drain(..taken)
            .map(|(job, _place)| job)
            .collect();
        self.changing = 0;
        self.commit_together(batch);
        let now = SystemClock.now();
        let waits = !self.bulk.is_empty();
        self.pace.short(self.changing, waits, now);
        self.note_pace(now);
    }

    /// In a transaction of its own, so that nobody else waits for what it takes.
    fn write_bulk(&mut self, job: Box<dyn Job>) {
        let begun = SystemClock.now();
        self.commit_alone(job);
        let now = SystemClock.now();
        self.pace.bulk(begun, now);
        self.note_pace(now);
    }

    fn note_pace(&mut self, now: Monotonic) {
        let busy = self.pace.is_busy(now);
        self.counters.busy.store(busy, Ordering::Relaxed);
    }

    /// Commits the jobs in one transaction. If one of them fails, they are run again with a savepoint for each; if
    /// SQLite gives the transaction up as a whole, in one each.
    fn commit_together(&mut self, mut batch: Vec<Box<dyn Job>>) {
        if batch.len() > 1 {
            if let Err(error) = self.execute("BEGIN IMMEDIATE") {
                return answer_all(batch, &Err(error));
            }
            if let Ok(kept) = self.run_together(&mut batch) {
                let fate = self.commit();
                let kept = if fate.is_ok() { kept } else { 0 };
                self.counters.record(kept, batch.len() - kept);
                return answer_all(batch, &fate);
            }
            self.roll_back();
            self.changing = 0;
        }
        for job in batch {
            self.commit_alone(job);
        }
    }

    /// Runs every job in the open transaction; answers how many of them have effects.
    fn run_together(&mut self, batch: &mut [Box<dyn Job>]) -> Result<usize, GivenUp> {
        if self.careful == 0 {
            if batch.iter_mut().all(|job| self.run_job(job.as_mut())) {
                return Ok(batch.len());
            }
            self.careful = CAREFUL_BATCHES;
            self.changing = 0;
            self.roll_back();
            self.execute("BEGIN IMMEDIATE").map_err(|_error| GivenUp)?;
        }
        self.careful -= 1;
        self.run_each(batch)
    }

    /// After some errors, a full database among them, SQLite rolls the whole transaction back by itself.
    fn run_each(&mut self, batch: &mut [Box<dyn Job>]) -> Result<usize, GivenUp> {
        let given_up = |_error| GivenUp;
        let mut kept = 0;
        for job in batch {
            self.execute("SAVEPOINT job").map_err(given_up)?;
            let worked = self.run_job(job.as_mut());
            if self.connection.inner().is_autocommit() {
                return Err(GivenUp);
            }
            if worked {
                kept += 1;
            } else {
                self.execute("ROLLBACK TO job").map_err(given_up)?;
            }
            self.execute("RELEASE job").map_err(given_up)?;
        }
        Ok(kept)
    }

    /// Runs a job in the open transaction; answers whether it worked.
    fn run_job(&mut self, job: &mut dyn Job) -> bool {
        let changes = || self.connection.inner().total_changes();
        let before = changes();
        let worked = job.run(&self.connection);
        // What only looks whether there is something to do, as upkeep does each second, keeps bulk from nothing.
        self.changing += usize::from(changes() != before);
        worked
    }

    fn commit_alone(&mut self, mut job: Box<dyn Job>) {
        if let Err(error) = self.execute("BEGIN IMMEDIATE") {
            return job.answer(Err(error));
        }
        let fate = if self.run_job(job.as_mut()) {
            let fate = self.commit();
            let kept = usize::from(fate.is_ok());
            self.counters.record(kept, 1 - kept);
            fate
        } else {
            self.roll_back();
            self.counters.record(0, 1);
            Ok(())
        };
        job.answer(fate);
    }

    fn commit(&self) -> Result<(), Error> {
        let committed = self.execute("COMMIT");
        match &committed {
            Ok(()) => {
                self.counters.commits.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => self.roll_back(),
        }
        committed
    }

    /// Ends the transaction without effects. Where SQLite has ended it already, that is an error without meaning; in
    /// any other case the next `BEGIN` fails and tells.
    fn roll_back(&self) {
        drop(self.execute("ROLLBACK"));
    }

    fn execute(&self, sql: &'static str) -> Result<(), Error> {
        self.connection.execute(sql, &[]).map(drop)
    }

    /// Moves the log into the file and closes that.
    fn close(self) {
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let moved: Result<_, Error> = self.connection.all(checkpoint, &[], |_row| Ok(()));
        let closed = self.connection.into_inner().close();
        let closed = closed.map_err(|(_connection, error)| Error::from(error));
        if let Err(error) = &closed {
            warn!(%error, "failed to close the database");
        }
        if let Some(reply) = self.closing {
            // Nobody waits for it any more.
            drop(reply.send(moved.and(closed)));
        }
    }
}

fn answer_all(batch: Vec<Box<dyn Job>>, fate: &Result<(), Error>) {
    for job in batch {
        job.answer(fate.clone());
    }
}
