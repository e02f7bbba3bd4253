//! The one writer: takes what waits, commits it together, answers everybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::Error;
use super::job::{Job, Verdict};

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
    batch_jobs_max: usize,
    counters: Arc<Counters>,
}

/// The transaction is gone as a whole, with the effects of every job in it.
#[derive(Debug)]
struct GivenUp;

impl Writer {
    pub(super) fn new(
        connection: SqliteConnection,
        queue: mpsc::Receiver<Message>,
        batch_jobs_max: usize,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            connection,
            queue,
            batch_jobs_max: batch_jobs_max.max(1),
            counters,
        }
    }

    pub(super) async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let mut batch = Vec::new();
            let mut next = Some(first);
            while let Some(Message::Job(job)) = next.take_if(|next| matches!(next, Message::Job(_)))
            {
                batch.push(job);
                if batch.len() < self.batch_jobs_max {
                    next = self.queue.try_recv().ok();
                }
            }
            if !batch.is_empty() {
                self.commit_together(batch).await;
            }
            match next {
                Some(Message::Checkpoint(reply)) => drop(reply.send(self.checkpoint().await)),
                Some(Message::Close(reply)) => return self.close(reply).await,
                Some(Message::Job(_)) | None => {}
            }
        }
        // Every handle is gone without a close; the log is checkpointed when the file is opened again.
        drop(self.connection.close().await);
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
                self.counters.record(kept, batch.len() - kept);
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
    async fn run_together(&mut self, batch: &mut [Box<dyn Job>]) -> Result<usize, GivenUp> {
        let mut kept = 0;
        let mut turn = "SAVEPOINT job";
        for job in batch {
            self.execute_all(turn).await.map_err(|_gone| GivenUp)?;
            turn = match job.run(&mut self.connection, true).await {
                Verdict::Keep => {
                    kept += 1;
                    "RELEASE job; SAVEPOINT job"
                }
                // What is rolled back to stays open.
                Verdict::Undo => "ROLLBACK TO job",
            };
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
        for mut job in batch {
            let fate = self.commit_alone(job.as_mut()).await;
            job.answer(fate);
        }
    }

    async fn commit_alone(&mut self, job: &mut dyn Job) -> Result<(), Error> {
        self.execute("BEGIN IMMEDIATE").await?;
        match job.run(&mut self.connection, false).await {
            Verdict::Keep => {
                let fate = self.commit().await;
                self.counters
                    .record(usize::from(fate.is_ok()), usize::from(fate.is_err()));
                fate
            }
            Verdict::Undo => {
                self.roll_back().await;
                self.counters.record(0, 1);
                Ok(())
            }
        }
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
