//! An embedded SQLite database that is durable at every commit, with one writer and group commit.
//!
//! An fsync costs as much as dozens of writes, so writes do not get one each: [`Database::write`] queues a job, and
//! the writer takes everything that waits, runs each job inside its own savepoint of one transaction, commits once,
//! and only then answers everybody. A job that fails undoes itself and nothing else.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection};
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::files;
use crate::lifecycle::Lifecycle;

mod error;
mod gathering;
mod job;
mod pace;
mod readers;
mod schema;
mod together;
mod writer;

pub use error::{Constraint, Error};
pub use futures_util::future::BoxFuture;
pub use readers::Reader;
pub use together::Together;
pub use writer::Counters;

use gathering::GatheringReader;
use job::{Job, TypedJob};
use readers::Readers;
use together::TogetherJob;
use writer::{Message, Writer};

/// Bulk writes that wait; further ones wait outside.
const BULK_JOBS_MAX: usize = 4;

/// How long [`Database::close`] waits for the jobs that were queued before it.
const CLOSE_TIME: Duration = Duration::from_secs(30);

/// How a database is opened. The durability is not an option.
#[derive(Debug, Clone)]
pub struct Options {
    /// The file; made if missing, for the owner only.
    pub path: PathBuf,
    /// The hard bound of the file in pages; at the bound writes fail with [`Error::Full`].
    pub max_page_count: Option<u32>,
    /// The size of a page in bytes, for a file that is made.
    pub page_size: u32,
    /// How long to wait for another process that has the file.
    pub busy_timeout: Duration,
    /// What the write-ahead log is cut to after a checkpoint.
    pub journal_bytes_max: u32,
    /// How many writes, and how many reads of those that are gathered, may wait; further ones wait outside the queue.
    pub queue_depth_max: usize,
    /// How many writes share one commit, and how many such reads are carried out together.
    pub batch_jobs_max: usize,
    /// How many readers there are at once.
    pub readers_max: u32,
    /// How long [`Database::read`] waits for a reader.
    pub read_timeout: Duration,
}

impl Options {
    /// The defaults for a file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_page_count: None,
            page_size: 4096,
            busy_timeout: Duration::from_secs(5),
            journal_bytes_max: 16 * 1024 * 1024,
            queue_depth_max: 1024,
            batch_jobs_max: 256,
            readers_max: 4,
            read_timeout: Duration::from_secs(5),
        }
    }

    /// The same, bounded to `pages`.
    #[must_use]
    pub const fn max_page_count(mut self, pages: u32) -> Self {
        self.max_page_count = Some(pages);
        self
    }

    fn connect(&self) -> SqliteConnectOptions {
        let mut options = SqliteConnectOptions::new()
            .filename(&self.path)
            .page_size(self.page_size)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(self.busy_timeout)
            .pragma("journal_size_limit", self.journal_bytes_max.to_string())
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging();
        if let Some(pages) = self.max_page_count {
            options = options.pragma("max_page_count", pages.to_string());
        }
        options
    }

    fn connect_read_only(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .read_only(true)
            .busy_timeout(self.busy_timeout)
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging()
    }
}

/// An open database. Clones share it.
#[derive(Debug, Clone)]
pub struct Database {
    messages: mpsc::Sender<Message>,
    /// Writes that take long and that nobody sits and waits for.
    bulk: mpsc::Sender<Box<dyn Job>>,
    reads: mpsc::Sender<Box<dyn Job>>,
    /// Held by whoever carries out reads of those that are gathered.
    turn: Arc<Mutex<()>>,
    readers: Arc<Readers>,
    counters: Arc<Counters>,
    writer: Lifecycle,
}

impl Database {
    /// Opens the file, brings its schema up to date and starts the writer.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, has a schema that this program does not know, or the SQLite at hand is too old
    /// or does not take the settings that durability rests on.
    pub async fn open(options: Options, migrator: &Migrator) -> Result<Self, Error> {
        files::prepare_database(&options.path)?;
        let mut connection = options.connect().connect().await?;
        schema::check_library(&mut connection).await?;
        schema::check_settings(&mut connection).await?;
        schema::migrate(&mut connection, migrator).await?;
        let readers = Readers::new(
            options.connect_read_only(),
            options.readers_max,
            options.read_timeout,
        );
        let (messages, queue) = mpsc::channel(options.queue_depth_max.max(1));
        let counters = Arc::new(Counters::default());
        // A life of its own: the writer must outlive every task that may still write during a shutdown.
        let writer = Lifecycle::new();
        let (bulk, bulk_queue) = mpsc::channel(BULK_JOBS_MAX);
        let task = Writer::new(
            connection,
            queue,
            bulk_queue,
            options.batch_jobs_max,
            Arc::clone(&counters),
        );
        drop(writer.spawn("sqlite writer", task.run()));
        let (reads, queue) = mpsc::channel(options.queue_depth_max.max(1));
        let turn = Arc::default();
        let task = GatheringReader::new(
            Arc::clone(&readers),
            queue,
            Arc::clone(&turn),
            options.batch_jobs_max,
        );
        drop(writer.spawn("sqlite reader", task.run(writer.clone())));
        Ok(Self {
            messages,
            bulk,
            reads,
            turn,
            readers,
            counters,
            writer,
        })
    }

    /// Runs `job` in a transaction and returns what it returned, once that is durable. If the job returns an error,
    /// nothing of it remains; if this returns [`Error`]'s conversion instead of the job's own result, nothing of it
    /// was kept either, except after [`Error::Closed`], where it may have been.
    ///
    /// Dropping the returned future does not withdraw a job that is queued.
    ///
    /// The job must neither begin nor end transactions, and may handle only [`Error::Constraint`] by itself; after any
    /// other error of a statement the transaction may be gone, so it must pass that on. It is cloned so that it can
    /// run again, alone, if a neighbour in the same transaction makes SQLite give up the transaction as a whole; it
    /// may therefore run twice, with the effects of the first time undone, and must do nothing but use its connection.
    ///
    /// ```
    /// # use sqlx::migrate::Migrator;
    /// # use viworks_runtime::sqlite::{self, Database, Options};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sqlite::Error> {
    /// # let folder = tempfile::tempdir().expect("a temporary folder can be made");
    /// # let database = Database::open(Options::new(folder.path().join("a.db")), &Migrator::DEFAULT).await?;
    /// let name = "pump".to_owned();
    /// let id = database
    ///     .write(move |connection| {
    ///         Box::pin(async move {
    ///             sqlx::query("CREATE TABLE item (name TEXT)").execute(&mut *connection).await?;
    ///             let inserted = sqlx::query("INSERT INTO item VALUES (?)").bind(name).execute(connection).await?;
    ///             Ok::<_, sqlite::Error>(inserted.last_insert_rowid())
    ///         })
    ///     })
    ///     .await?;
    /// # assert_eq!(id, 1);
    /// # database.close().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The job's own, or why the transaction could not be made or committed.
    pub async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>>
            + Clone
            + Send
            + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(TypedJob::new(job, reply));
        self.send(Message::Job(job)).await?;
        answer
            .await
            .unwrap_or_else(|_gone| Err(Error::Closed.into()))
    }

    /// Like [`Self::write`], for what takes long and nobody sits and waits for. It gets a transaction of its own when no
    /// other write waits, and while others come in it rests between two of them.
    ///
    /// # Errors
    ///
    /// The job's own, or why the transaction could not be made or committed.
    pub async fn write_bulk<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>>
            + Clone
            + Send
            + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(TypedJob::new(job, reply));
        let sent = self.bulk.send(job).await;
        sent.map_err(|_returned| Error::Closed)?;
        answer
            .await
            .unwrap_or_else(|_gone| Err(Error::Closed.into()))
    }

    /// Like [`Self::write`], for an intent that many have at once: the questions of one `group` that wait at the same
    /// moment are handed to `work` together, so that their statements are executed once and not once for each.
    ///
    /// # Errors
    ///
    /// The question's own, or why the transaction could not be made or committed.
    pub async fn write_together<G, Q, T, E>(
        &self,
        group: G,
        question: Q,
        work: Together<G, Q, T, E>,
    ) -> Result<T, E>
    where
        G: Clone + Eq + Send + 'static,
        Q: Clone + Send + Sync + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(TogetherJob::new(group, question, work, reply));
        self.send(Message::Job(job)).await?;
        answer
            .await
            .unwrap_or_else(|_gone| Err(Error::Closed.into()))
    }

    /// Reads what many want at once: the questions of one `group` that wait at the same moment are handed to `work`
    /// together. Each sees at least what was committed before it was asked.
    ///
    /// # Errors
    ///
    /// The question's own, or as [`Self::read`].
    pub async fn read_together<G, Q, T, E>(
        &self,
        group: G,
        question: Q,
        work: Together<G, Q, T, E>,
    ) -> Result<T, E>
    where
        G: Clone + Eq + Send + 'static,
        Q: Clone + Send + Sync + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Box<dyn Job> = Box::new(TogetherJob::new(group, question, work, reply));
        if let Ok(_turn) = self.turn.try_lock() {
            // With nobody to share with, the way to the gathering reader and back would only take time.
            gathering::read(&mut *self.read().await?, job).await;
        } else {
            let sent = self.reads.send(job).await;
            sent.map_err(|_returned| Error::Closed)?;
        }
        answer
            .await
            .unwrap_or_else(|_gone| Err(Error::Closed.into()))
    }

    /// A connection that sees what is committed and cannot write.
    ///
    /// # Errors
    ///
    /// When all readers stay busy, or the file cannot be opened.
    pub async fn read(&self) -> Result<Reader, Error> {
        self.readers.lend().await
    }

    /// Moves the write-ahead log into the database file and cuts it, as far as readers allow.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Checkpoint(reply)).await?;
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Finishes the jobs that were queued before, checkpoints and closes the file. Later writes get
    /// [`Error::Closed`].
    ///
    /// # Errors
    ///
    /// When the checkpoint fails; what was committed is safe all the same.
    pub async fn close(&self) -> Result<(), Error> {
        // A reader that is still out keeps its file open; that must not keep the writer from closing.
        self.readers.close(CLOSE_TIME).await;
        let (reply, answer) = oneshot::channel();
        let closed = match self.send(Message::Close(reply)).await {
            Ok(()) => answer.await.unwrap_or(Err(Error::Closed)),
            // Somebody else closed it before.
            Err(_) => Ok(()),
        };
        self.writer.shutdown(CLOSE_TIME).await;
        closed
    }

    /// How many writes wait in the queue.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.messages.max_capacity() - self.messages.capacity()
    }

    /// What the writer has done so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    async fn send(&self, message: Message) -> Result<(), Error> {
        self.messages
            .send(message)
            .await
            .map_err(|_returned| Error::Closed)
    }
}

#[cfg(test)]
mod tests;
