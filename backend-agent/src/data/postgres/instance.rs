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

/// How long the server may take to answer that look.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// How often the lock is looked after.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What is known of the lock.
#[derive(Debug, Default)]
struct State {
    held: AtomicBool,
    /// Another backend had the database meanwhile: what this one knows of sessions is not true any more.
    passed_on: AtomicBool,
}

/// The lock. Whoever holds the database may write.
#[derive(Debug)]
pub(super) struct Instance {
    state: Arc<State>,
    /// Ends the thread that looks after it, which answers once it has let go.
    end: Mutex<Option<mpsc::Sender<oneshot::Sender<()>>>>,
}

impl Instance {
    /// Takes the lock on this connection, and looks after it from a thread of its own.
    pub(super) fn take(connection: Connection, address: Arc<Address>) -> Result<Self, Error> {
        let begun = SystemClock.now();
        while let Some(holder) = try_lock(&connection)? {
            if SystemClock.now().saturating_since(begun) > TAKE_TIME {
                return Err(Error::InUse(holder.name));
            }
            rest(Duration::from_millis(100));
        }
        let state = Arc::new(State::default());
        state.held.store(true, Ordering::Release);
        let mut own = pid(&connection)?;
        let (end, ended) = mpsc::channel::<oneshot::Sender<()>>();
        let flag = Arc::clone(&state);
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
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        kept = look(kept, &address, &flag, &mut own);
                    }
                }
            }
        };
        thread::Builder::new()
            .name("postgres instance".to_owned())
            .spawn(keep)
            .map_err(|error| Error::NoThread(error.into()))?;
        Ok(Self {
            state,
            end: Mutex::new(Some(end)),
        })
    }

    /// Refuses a write while another backend may have the database.
    pub(super) fn check(&self) -> StoreResult<()> {
        if self.state.passed_on.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable(
                "another backend had this database meanwhile; restart this one, where it is the one that is wanted".into(),
            ));
        }
        if self.state.held.load(Ordering::Acquire) {
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

/// Looks whether the connection with the lock is still there; where it is gone, both are taken anew. `own` is the
/// process of the server that has the lock for us.
fn look(
    kept: Option<Connection>,
    address: &Address,
    state: &State,
    own: &mut i32,
) -> Option<Connection> {
    if let Some(connection) = kept
        && connection.batch_within("SELECT 1", LOOK_TIME).is_ok()
    {
        return Some(connection);
    }
    state.held.store(false, Ordering::Release);
    let taken = Connection::open(address).and_then(|connection| {
        match try_lock(&connection)? {
            None => Ok(connection),
            // The server has not missed our own one yet.
            Some(holder) if holder.pid == *own => Err(Error::Busy),
            Some(holder) => {
                state.passed_on.store(true, Ordering::Release);
                Err(Error::InUse(holder.name))
            }
        }
    });
    let taken = taken.and_then(|connection| {
        *own = pid(&connection)?;
        Ok(connection)
    });
    match taken {
        Ok(connection) => {
            state.held.store(true, Ordering::Release);
            Some(connection)
        }
        Err(error) => {
            tracing::warn!(%error, "this backend does not have its database at the moment; it tries again");
            None
        }
    }
}

/// Who has the lock.
struct Holder {
    pid: i32,
    name: String,
}

/// The process of the server that a connection is with.
fn pid(connection: &Connection) -> Result<i32, Error> {
    connection.with(async |inner| {
        let row = sqlx::query("SELECT pg_backend_pid() AS pid")
            .fetch_one(inner)
            .await?;
        Ok(row.try_get("pid")?)
    })
}

/// Takes the lock; who has it instead, if somebody does.
fn try_lock(connection: &Connection) -> Result<Option<Holder>, Error> {
    // The class of advisory locks that means "one backend"; intents use the form with one number.
    const LOCK: &str = "SELECT pg_try_advisory_lock(1448692050, 1) AS taken";
    const HOLDER: &str = "\
        SELECT a.pid, coalesce(a.application_name, '') || ' from ' || coalesce(host(a.client_addr), 'this machine')
               || ', process ' || a.pid || ' of the server' AS holder
        FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
        WHERE l.locktype = 'advisory' AND l.classid = 1448692050 AND l.objid = 1
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    connection.with(async |inner| {
        let taken = sqlx::query(LOCK).fetch_one(&mut *inner).await?;
        if taken.try_get::<bool, _>("taken")? {
            return Ok(None);
        }
        let holder = sqlx::query(HOLDER).fetch_optional(&mut *inner).await?;
        let Some(row) = holder else {
            let name = "it just left".to_owned();
            return Ok(Some(Holder { pid: 0, name }));
        };
        Ok(Some(Holder {
            pid: row.try_get("pid")?,
            name: row.try_get("holder")?,
        }))
    })
}
