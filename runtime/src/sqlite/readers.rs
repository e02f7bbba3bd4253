//! Connections that only read, lent one at a time.
//!
//! The driver's own pool asks each connection whether it still lives, when it is lent and when it comes back. Each such
//! question is a journey to another thread, as long as the read itself, and a connection to a local file cannot be lost.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Error;

/// All readers of a database.
#[derive(Debug)]
pub(super) struct Readers {
    options: SqliteConnectOptions,
    wait: Duration,
    max: u32,
    room: Arc<Semaphore>,
    idle: Mutex<Vec<SqliteConnection>>,
}

impl Readers {
    /// At most `max` at once, each opened when it is first needed; who wants another waits for at most `wait`.
    pub(super) fn new(options: SqliteConnectOptions, max: u32, wait: Duration) -> Arc<Self> {
        let max = max.max(1);
        Arc::new(Self {
            options,
            wait,
            max,
            room: Arc::new(Semaphore::new(usize::try_from(max).unwrap_or(usize::MAX))),
            idle: Mutex::default(),
        })
    }

    /// Lends one.
    pub(super) async fn lend(self: &Arc<Self>) -> Result<Reader, Error> {
        let room = timeout(self.wait, Arc::clone(&self.room).acquire_owned())
            .await
            .map_err(|_elapsed| Error::ReadersBusy)?
            .map_err(|_closed| Error::Closed)?;
        let idle = self.idle().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        Ok(Reader {
            connection: Some(connection),
            readers: Arc::clone(self),
            _room: room,
        })
    }

    /// Lends no more and closes those that are not lent; waits a while for the others first.
    pub(super) async fn close(&self, wait: Duration) {
        let all = timeout(wait, self.room.acquire_many(self.max)).await;
        self.room.close();
        drop(all);
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            drop(connection.close().await);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<SqliteConnection>> {
        // Nothing can panic while it is held, and a stack of connections cannot be half changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that sees what is committed and cannot write. It goes back when it is dropped.
#[derive(Debug)]
pub struct Reader {
    connection: Option<SqliteConnection>,
    readers: Arc<Readers>,
    _room: OwnedSemaphorePermit,
}

impl Deref for Reader {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.connection
            .as_ref()
            .expect("a reader has its connection until it is dropped")
    }
}

impl DerefMut for Reader {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection
            .as_mut()
            .expect("a reader has its connection until it is dropped")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !self.readers.room.is_closed()
        {
            self.readers.idle().push(connection);
        }
    }
}
