//! One backend has a database at a time, as long as it has this: a lock that the server drops with the connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use sqlx::Row as _;
use tokio::sync::oneshot;
use viworks_runtime::clock::{Clock as _, SystemClock};

use super::connection::Connection;
use super::error::Error;
use super::{Address, rest};
use crate::data::{StoreError, StoreResult};

/// How long a start waits for the backend before it, whose connection the server may not have missed yet.
const TAKE_TIME: Duration = Duration::from_secs(5);

/// How often the lock is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The lock. Whoever holds the database may write.
#[derive(Debug)]
pub(super) struct Instance {
    held: Arc<AtomicBool>,
    /// Ends the thread that looks after it, which answers once it has let go.
    end: Mutex<Option<mpsc::Sender<oneshot::Sender<()>>>>,
}

impl Instance {
    /// Takes the lock on this connection, and looks after it from a thread of its own.
    pub(super) fn take(connection: Connection, address: Arc<Address>) -> Result<Self, Error> {
        let begun = SystemClock.now();
        while let Some(holder) = try_lock(&connection)? {
            if SystemClock.now().saturating_since(begun) > TAKE_TIME {
                return Err(Error::InUse(holder));
            }
            rest(Duration::from_millis(100));
        }
        let held = Arc::new(AtomicBool::new(true));
        let (end, ended) = mpsc::channel::<oneshot::Sender<()>>();
        let flag = Arc::clone(&held);
        let keep = move || {
            let mut kept = Some(connection);
            loop {
                match ended.recv_timeout(LOOK_EVERY) {
                    Ok(reply) => {
                        if let Some(connection) = kept.take() {
                            connection.close();
                        }
                        // Whoever asked may have stopped waiting.
                        let _gone = reply.send(());
                        return;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => kept = look(kept, &address, &flag),
                }
            }
        };
        thread::Builder::new()
            .name("postgres instance".to_owned())
            .spawn(keep)
            .map_err(|error| Error::NoThread(error.into()))?;
        Ok(Self {
            held,
            end: Mutex::new(Some(end)),
        })
    }

    /// Refuses a write while another backend may have the database.
    pub(super) fn check(&self) -> StoreResult<()> {
        if self.held.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(StoreError::Unavailable(
            "the lock that says which backend has the database was lost, and is taken again".into(),
        ))
    }

    /// Lets the next backend have it.
    pub(super) async fn let_go(&self) {
        // Nothing panics while it is held.
        let end = self
            .end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(end) = end else { return };
        let (reply, gone) = oneshot::channel();
        if end.send(reply).is_ok() {
            drop(gone.await);
        }
    }
}

/// Looks whether the connection with the lock is still there; where it is gone, both are taken anew.
fn look(kept: Option<Connection>, address: &Address, held: &AtomicBool) -> Option<Connection> {
    if let Some(connection) = kept
        && connection.batch("SELECT 1").is_ok()
    {
        return Some(connection);
    }
    held.store(false, Ordering::Release);
    let taken = Connection::open(address).and_then(|connection| match try_lock(&connection)? {
        None => Ok(connection),
        Some(holder) => Err(Error::InUse(holder)),
    });
    match taken {
        Ok(connection) => {
            held.store(true, Ordering::Release);
            Some(connection)
        }
        Err(error) => {
            tracing::warn!(%error, "this backend does not have its database any more; it tries again");
            None
        }
    }
}

/// Takes the lock; who has it instead, if somebody does.
fn try_lock(connection: &Connection) -> Result<Option<String>, Error> {
    // The class of advisory locks that means "one backend"; intents use the form with one number.
    const LOCK: &str = "SELECT pg_try_advisory_lock(1448692050, 1) AS taken";
    const HOLDER: &str = "\
        SELECT coalesce(a.application_name, '') || ' from ' || coalesce(host(a.client_addr), 'this machine') AS holder
        FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.classid = 1448692050 AND l.objid = 1
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    connection.with(async |inner| {
        let taken = sqlx::query(LOCK).fetch_one(&mut *inner).await?;
        if taken.try_get::<bool, _>("taken")? {
            return Ok(None);
        }
        let holder = sqlx::query(HOLDER).fetch_optional(&mut *inner).await?;
        let holder = holder.map(|row| row.try_get("holder")).transpose()?;
        Ok(Some(holder.unwrap_or_else(|| "it just left".to_owned())))
    })
}
