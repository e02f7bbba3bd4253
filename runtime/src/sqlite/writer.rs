//! The one writer: takes what waits, commits it together, answers everybody.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;
use viworks_common::time::Monotonic;

use super::Error;
use super::job::{Job, Verdict, gather};
use super::pace::Pace;
use crate::clock::{Clock, SystemClock, sleep_until};

/// What can be asked of the writer.
pub(super) enum Message {
    /// Run and commit it.
    Job(Box<dyn Job>),
    /// Move the log into the file.
    Checkpoint(oneshot::Sender<Result<(), Error>>),
    /// Checkpoint and end.
    Close(oneshot::Sender<Result<(), Error>>),
}

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
    connection: SqliteConnection,
    queue: mpsc::Receiver<Message>,
    bulk: mpsc::Receiver<Box<dyn Job>>,
    batch_jobs_max: usize,
    counters: Arc<Counters>,
    pace: Pace,
}

/// What is to be done next.
enum Next {
    Message(Message),
    Bulk(Box<dyn Job>),
    /// Every handle is gone.
    Gone,
}

/// The transaction is gone as a whole, with the effects of every job in it.
#[derive(Debug)]
struct GivenUp;

impl Writer {
    pub(super) fn new(
        connection: SqliteConnection,
        queue: mpsc::Receiver<Message>,
        bulk: mpsc::Receiver<Box<dyn Job>>,
        batch_jobs_max: usize,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            connection,
            queue,
            bulk,
            batch_jobs_max: batch_jobs_max.max(1),
            counters,
            pace: Pace::default(),
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            match self.next().await {
                Next::Message(first) => {
                    if let Some(close) = self.take_together(first).await {
                        return self.close(close).await;
                    }
                }
                Next::Bulk(job) => self.write_bulk(job).await,
                Next::Gone => break,
            }
        }
        // Every handle is gone without a close; the log is checkpointed when the file is opened again.
        drop(self.connection.close().await);
    }

    /// Short writes first; bulk when none waits and it has rested, or when it was passed over for too long.
    async fn next(&mut self) -> Next {
        if self.pace.is_bulk_due()
            && let Ok(job) = self.bulk.try_recv()
        {
            return Next::Bulk(job);
        }
        let Self {
            queue, bulk, pace, ..
        } = self;
        let rested = pace.rest_until();
        let bulk = async {
            sleep_until(&SystemClock, rested).await;
            bulk.recv().await
        };
        tokio::select! {
            biased;
            message = queue.recv() => message.map_or(Next::Gone, Next::Message),
            // Its senders go with those of the queue.
            Some(job) = bulk => Next::Bulk(job),
        }
    }

    /// Commits what waits together; answers whom to tell that the file is closed, when that was asked.
    async fn take_together(
        &mut self,
        first: Message,
    ) -> Option<oneshot::Sender<Result<(), Error>>> {
        let mut batch = Vec::new();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(Message::Job(job)) = next.take_if(|next| matches!(next, Message::Job(_))) {
            gather(&mut batch, job);
            taken += 1;
            if taken < self.batch_jobs_max {
                next = self.queue.try_recv().ok();
            }
        }
        if !batch.is_empty() {
            self.commit_together(batch).await;
            let now = SystemClock.now();
            self.pace.short(taken, now);
            self.note_pace(now);
        }
        match next {
            Some(Message::Checkpoint(reply)) => drop(reply.send(self.checkpoint().await)),
            Some(Message::Close(reply)) => return Some(reply),
            Some(Message::Job(_)) | None => {}
        }
        None
    }

    /// In a transaction of its own, so that nobody else waits for what it takes.
    async fn write_bulk(&mut self, job: Box<dyn Job>) {
        let begun = SystemClock.now();
        self.commit_each(vec![job]).await;
        let now = SystemClock.now();
        self.pace.bulk(begun, now);
        self.note_pace(now);
    }

    fn note_pace(&mut self, now: Monotonic) {
        let busy = self.pace.is_busy(now);
        self.counters.busy.store(busy, Ordering::Relaxed);
    }

    /// Commits the jobs in one transaction; if SQLite gives that up as a whole, in one each.
    async fn commit_together(&mut self, mut batch: Vec<Box<dyn Job>>) {
        if batch.len() == 1 {
            return self.commit_each(batch).await;
        }
        if let Err(error) = self.execute("BEGIN IMMEDIATE").await {
            return answer_all(batch, &Err(error));
        }
        match self.run_together(&mut batch).await {
            Ok(kept) => {
                let fate = self.commit().await;
                let kept = if fate.is_ok() { kept } else { 0 };
                let all: usize = batch.iter().map(|job| job.questions()).sum();
                self.counters.record(kept, all - kept);
                answer_all(batch, &fate);
            }
            Err(GivenUp) => {
                self.roll_back().await;
                self.commit_each(batch).await;
            }
        }
    }

    /// Runs every job in the open transaction; answers how many of them have effects.
    ///
    /// Each statement is a journey to the driver's thread and back, so the savepoint of one job ends in the same journey
    /// in which that of the next begins. After some errors, a full database among them, SQLite rolls the whole
    /// transaction back by itself. The savepoint is gone then, which is how it shows.
    async fn run_together(&mut self, batch: &mut Vec<Box<dyn Job>>) -> Result<usize, GivenUp> {
        let mut kept = 0;
        let mut turn = "SAVEPOINT job";
        let mut number = 0;
        while let Some(job) = batch.get_mut(number) {
            self.execute_all(turn).await.map_err(|_gone| GivenUp)?;
            let verdict = job.run(&mut self.connection, true).await;
            // What is rolled back to stays open.
            turn = "ROLLBACK TO job";
            match verdict {
                Verdict::Keep => {
                    kept += job.questions();
                    turn = "RELEASE job; SAVEPOINT job";
                }
                Verdict::Undo => {}
                Verdict::Split => {
                    let parts = batch.remove(number).split();
                    batch.splice(number..number, parts);
                    continue;
                }
            }
            number += 1;
        }
        if turn == "ROLLBACK TO job" {
            self.execute_all(turn).await.map_err(|_gone| GivenUp)?;
        }
        self.execute_all("RELEASE job")
            .await
            .map_err(|_gone| GivenUp)?;
        Ok(kept)
    }

    async fn commit_each(&mut self, batch: Vec<Box<dyn Job>>) {
        let mut waiting = VecDeque::from(batch);
        while let Some(mut job) = waiting.pop_front() {
            match self.commit_alone(job.as_mut()).await {
                Some(fate) => job.answer(fate),
                None => job
                    .split()
                    .into_iter()
                    .rev()
                    .for_each(|part| waiting.push_front(part)),
            }
        }
    }

    /// Commits one job; `None` when it is to be carried out in its parts.
    async fn commit_alone(&mut self, job: &mut dyn Job) -> Option<Result<(), Error>> {
        if let Err(error) = self.execute("BEGIN IMMEDIATE").await {
            return Some(Err(error));
        }
        let verdict = job.run(&mut self.connection, false).await;
        if verdict == Verdict::Keep {
            let fate = self.commit().await;
            let (kept, undone) = if fate.is_ok() {
                (job.questions(), 0)
            } else {
                (0, job.questions())
            };
            self.counters.record(kept, undone);
            return Some(fate);
        }
        self.roll_back().await;
        if verdict == Verdict::Split {
            return None;
        }
        self.counters.record(0, job.questions());
        Some(Ok(()))
    }

    async fn commit(&mut self) -> Result<(), Error> {
        let committed = self.execute("COMMIT").await;
        match &committed {
            Ok(()) => {
                self.counters.commits.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => self.roll_back().await,
        }
        committed
    }

    /// Ends the transaction without effects. Where SQLite has ended it already, that is an error without meaning; in
    /// any other case the next `BEGIN` fails and tells.
    async fn roll_back(&mut self) {
        drop(self.execute("ROLLBACK").await);
    }

    async fn checkpoint(&mut self) -> Result<(), Error> {
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)").await
    }

    async fn close(mut self, reply: oneshot::Sender<Result<(), Error>>) {
        // Jobs queued behind the close see their channel go and answer `Closed`.
        self.queue.close();
        while let Ok(job) = self.bulk.try_recv() {
            self.commit_each(vec![job]).await;
        }
        self.bulk.close();
        let checkpointed = self.checkpoint().await;
        let closed = self.connection.close().await.map_err(Error::from);
        if let Err(error) = &closed {
            warn!(%error, "failed to close the database");
        }
        drop(reply.send(checkpointed.and(closed)));
    }

    async fn execute_all(&mut self, sql: &'static str) -> Result<(), Error> {
        sqlx::raw_sql(sql).execute(&mut self.connection).await?;
        Ok(())
    }

    async fn execute(&mut self, sql: &'static str) -> Result<(), Error> {
        sqlx::query(sql).execute(&mut self.connection).await?;
        Ok(())
    }
}

fn answer_all(batch: Vec<Box<dyn Job>>, fate: &Result<(), Error>) {
    for job in batch {
        job.answer(fate.clone());
    }
}
