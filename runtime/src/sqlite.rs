//! An embedded SQLite database that is durable at every commit, with one writer and group commit.
//!
//! An fsync costs as much as dozens of writes, so writes do not get one each: [`Database::write`] queues a job, and the
//! writer, a thread of its own, takes everything that waits, runs each job inside its own savepoint of one transaction,
//! commits once, and only then answers everybody. A job that fails undoes itself and nothing else.
//!
//! A job is a plain function on the thread that has the connection: between its statements there is no journey to
//! another thread, so it reads like what it does. [`Connection`] prepares each statement once, and takes its parameters
//! by name.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::files;

mod connection;
mod error;
mod job;
mod pace;
mod readers;
mod schema;
mod value;
mod writer;

pub use connection::{Columns, Connection, Params, Row, Statement};
pub use error::{Constraint, Error};
pub use schema::{Looked, MigrateError, answers, examine, is_answered, look_over, standing};
pub use value::{Bind, Column, Value};
pub use writer::Counters;

pub use crate::migrations::Migration;
pub use crate::{migration, params};

use job::{Job, TypedJob};
use readers::Readers;
use writer::{Message, Sender, Writer};

/// Bulk writes that wait; further ones wait outside.
const BULK_JOBS_MAX: usize = 4;

/// How long [`Database::close`] waits for the jobs that were queued before it, and for readers.
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
    /// How many writes, how many looks, and how many reads may wait; further ones wait outside the queue.
    pub queue_depth_max: usize,
    /// How many writes share one commit.
    pub batch_jobs_max: usize,
    /// How many readers there are at once, each a thread.
    pub readers_max: u32,
    /// How long [`Database::look`] waits for the writer before it asks a reader.
    pub look_wait: Duration,
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
            look_wait: Duration::from_millis(100),
            read_timeout: Duration::from_secs(5),
        }
    }

    /// The same, bounded to `pages`.
    #[must_use]
    pub const fn max_page_count(mut self, pages: u32) -> Self {
        self.max_page_count = Some(pages);
        self
    }
}

/// An open database. Clones share it; it is closed with the last of them, if nobody has closed it before.
#[derive(Debug, Clone)]
pub struct Database {
    messages: Sender,
    /// Room for writes that wait, for those that take long, and for looks.
    room: Arc<Semaphore>,
    bulk_room: Arc<Semaphore>,
    look_room: Arc<Semaphore>,
    queue_depth_max: usize,
    look_wait: Duration,
    readers: Readers,
    counters: Arc<Counters>,
}

impl Database {
    /// Opens the file, brings its schema up to date and starts the writer.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened, has a schema that this program does not know, or the SQLite at hand is too old
    /// or does not take the settings that durability rests on.
    pub async fn open(options: Options, migrations: &'static [Migration]) -> Result<Self, Error> {
        files::prepare_database(&options.path)?;
        let queue_depth_max = options.queue_depth_max.max(1);
        let counters = Arc::new(Counters::default());
        let messages = Writer::start(options.clone(), migrations, Arc::clone(&counters)).await?;
        Ok(Self {
            messages: messages.clone(),
            room: Arc::new(Semaphore::new(queue_depth_max)),
            bulk_room: Arc::new(Semaphore::new(BULK_JOBS_MAX)),
            look_room: Arc::new(Semaphore::new(queue_depth_max)),
            queue_depth_max,
            look_wait: options.look_wait,
            readers: Readers::start(options, messages)?,
            counters,
        })
    }

    /// Runs `job` in a transaction and returns what it returned, once that is durable. If the job returns an error,
    /// nothing of it remains; if this returns [`Error`]'s conversion instead of the job's own result, nothing of it
    /// was kept either, except after [`Error::Closed`], where it may have been.
    ///
    /// Dropping the returned future does not withdraw a job that is queued.
    ///
    /// The job must neither begin nor end transactions, and may handle only [`Error::Constraint`] by itself; after any
    /// other error of a statement the transaction may be gone, so it must pass that on. It may run twice: if a
    /// neighbour in the same transaction makes SQLite give up the transaction as a whole, it runs again, alone, with
    /// the effects of the first time undone. So it does nothing but use its connection.
    ///
    /// ```
    /// # use viworks_runtime::sqlite::{self, Database, Options, params};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), sqlite::Error> {
    /// # let folder = tempfile::tempdir().expect("a temporary folder can be made");
    /// # let database = Database::open(Options::new(folder.path().join("a.db")), &[]).await?;
    /// let name = "pump".to_owned();
    /// let stored = database
    ///     .write(move |connection| {
    ///         connection.execute("CREATE TABLE item (name TEXT)", &[])?;
    ///         connection.execute("INSERT INTO item (name) VALUES (:name)", params! { name })
    ///     })
    ///     .await?;
    /// # assert_eq!(stored, 1);
    /// # database.close().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The job's own, or why the transaction could not be made or committed.
    pub async fn write<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.send(&self.room, Message::Write, job).await
    }

    /// Like [`Self::write`], for what takes long and nobody sits and waits for. It gets a transaction of its own when
    /// no other write waits, and while others come in it rests between two of them.
    ///
    /// # Errors
    ///
    /// The job's own, or why the transaction could not be made or committed.
    pub async fn write_bulk<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.send(&self.bulk_room, Message::Bulk, job).await
    }

    /// Runs `job` on a reader: it sees one state of what is committed, at least what was before it was asked, and
    /// cannot write. Dropping the returned future withdraws it, unless it runs already.
    ///
    /// # Errors
    ///
    /// The job's own, [`Error::ReadersBusy`] when all readers stay busy, or why the file cannot be read.
    pub async fn read<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.readers.read(job).await
    }

    /// Like [`Self::read`], for a statement that reads a few rows, of somebody who is going to write about them: the
    /// writer is asked, before it writes what waits. It has their pages at hand then, where a reader forgets all it has
    /// with every commit. A writer that is held up for longer than a moment is not waited for: a reader answers then.
    ///
    /// # Errors
    ///
    /// As of [`Self::read`].
    pub async fn look<T, E, F>(&self, job: F) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + Sync + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let job = Arc::new(job);
        let asked = Arc::clone(&job);
        let looked = self.send(&self.look_room, Message::Look, move |connection| {
            asked(connection)
        });
        match timeout(self.look_wait, looked).await {
            Ok(looked) => looked,
            Err(_elapsed) => self.read(move |connection| job(connection)).await,
        }
    }

    /// Finishes the jobs that were queued before, moves the write-ahead log into the file and closes it. Later jobs get
    /// [`Error::Closed`].
    ///
    /// # Errors
    ///
    /// When the log cannot be moved; what was committed is safe all the same.
    pub async fn close(&self) -> Result<(), Error> {
        // A reader that is still out keeps its file open; that must not keep the writer from closing.
        self.readers.close(CLOSE_TIME).await;
        for (room, all) in [
            (&self.room, self.queue_depth_max),
            (&self.bulk_room, BULK_JOBS_MAX),
            (&self.look_room, self.queue_depth_max),
        ] {
            // Who came before has its turn at the room before this has all of it.
            let all = room.acquire_many(u32::try_from(all).unwrap_or(u32::MAX));
            drop(timeout(CLOSE_TIME, all).await);
            room.close();
        }
        let (reply, answer) = oneshot::channel();
        if self.messages.send(Message::Close(reply)).is_err() {
            // Somebody else closed it before.
            return Ok(());
        }
        match timeout(CLOSE_TIME, answer).await {
            Ok(Ok(closed)) => closed,
            // Somebody else closes it at the same moment.
            Ok(Err(_gone)) => Ok(()),
            Err(_elapsed) => Err(Error::Closed),
        }
    }

    /// How many writes wait in the queue.
    #[must_use]
    pub fn queue_depth(&self) -> usize {
        self.queue_depth_max - self.room.available_permits()
    }

    /// What the writer has done so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    async fn send<T, E, F>(
        &self,
        room: &Arc<Semaphore>,
        message: fn(writer::Queued) -> Message,
        job: F,
    ) -> Result<T, E>
    where
        F: Fn(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let place = Arc::clone(room).acquire_owned().await;
        let place = place.map_err(|_closed| Error::Closed)?;
        let (job, answer) = TypedJob::new(job);
        let job: Box<dyn Job> = Box::new(job);
        let sent = self.messages.send(message((job, place)));
        sent.map_err(|_returned| Error::Closed)?;
        answer
            .await
            .unwrap_or_else(|_gone| Err(Error::Closed.into()))
    }
}

#[cfg(test)]
mod tests;
