//! This backend's lease of the database: a row that it renews by the server's clock, and without which it writes
//! nothing.
//!
//! Every transaction that writes begins by asking whether the lease still holds. One that ran out is renewed like any
//! other, as long as no other backend has ended it: after a time without the database all of them go on as they were.
//! A backend whose lease was ended goes on as another instance; what it knew of sessions is not true any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use sqlx::Row as _;
use tokio::sync::{oneshot, watch};
use viworks_common::id::InstanceId;
use viworks_runtime::random;

use super::connection::Connection;
use super::era::Era;
use super::error::Error;
use super::{Address, lock, promises};
use crate::data::intents::instances::LEASE_SECONDS;
use crate::data::intents::outage::Outage;
use crate::data::{InstanceLoad, MasterIds, Neighbour, Retention};

/// How often the lease is renewed, and how soon again where that failed.
const RENEW_EVERY: Duration = Duration::from_secs(5);
const RENEW_AGAIN: Duration = Duration::from_millis(500);

/// How long the server may take to renew it.
pub(super) const RENEW_TIME: Duration = Duration::from_secs(5);

/// Renewals after which the promise to keep telemetry is told again, and that of others looked at.
const PROMISE_EVERY: u32 = 6;

/// What the connections and the rest of the process know of the lease.
#[derive(Debug)]
pub(super) struct Held {
    instance: watch::Sender<Option<InstanceId>>,
    /// What the others are told.
    load: Mutex<InstanceLoad>,
    /// Which master keys it has, from when it says so.
    masters: Mutex<Option<MasterIds>>,
    /// Which bundle of authorities it gives gateways, from when it says so.
    authorities: Mutex<Option<String>>,
    /// The others, as they were at the last renewal.
    neighbours: watch::Sender<Vec<Neighbour>>,
    /// The longest that one of the others promised to keep telemetry, as it was then.
    promised: Mutex<Option<Retention>>,
    /// Somebody found that the lease does not hold, and nobody has looked since.
    doubted: AtomicBool,
    words: mpsc::Sender<Word>,
}

/// What the thread that looks after the lease is told.
#[derive(Debug)]
enum Word {
    Look,
    End(oneshot::Sender<()>),
}

impl Held {
    /// Which instance this is.
    pub(super) fn instance(&self) -> Option<InstanceId> {
        *self.instance.borrow()
    }

    fn load(&self) -> MutexGuard<'_, InstanceLoad> {
        // Nothing panics while it is held.
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn masters(&self) -> MutexGuard<'_, Option<MasterIds>> {
        // Nothing panics while it is held.
        self.masters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn authorities(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing panics while it is held.
        let authorities = self.authorities.lock();
        authorities.unwrap_or_else(PoisonError::into_inner)
    }

    fn promised(&self) -> MutexGuard<'_, Option<Retention>> {
        // Nothing panics while it is held.
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A transaction was refused for want of the lease: it is looked at at once.
    pub(super) fn doubt(&self) {
        if !self.doubted.swap(true, Ordering::AcqRel) {
            // Where nobody listens any more, the store is being closed.
            let _closing = self.words.send(Word::Look);
        }
    }
}

/// The lease, and the thread that looks after it.
#[derive(Debug)]
pub(super) struct Lease {
    held: Arc<Held>,
    /// Taken when it ends.
    open: Mutex<bool>,
}

impl Lease {
    /// Takes a lease on this connection, which also keeps moves away, and renews it from a thread of its own.
    pub(super) fn take(
        connection: Connection,
        address: Arc<Address>,
        era: Arc<Era>,
    ) -> Result<Self, Error> {
        let (words, told) = mpsc::channel();
        let held = Arc::new(Held {
            instance: watch::Sender::new(None),
            load: Mutex::default(),
            masters: Mutex::default(),
            authorities: Mutex::default(),
            neighbours: watch::Sender::default(),
            promised: Mutex::default(),
            doubted: AtomicBool::new(false),
            words,
        });
        let mut keeper = Keeper {
            held: Arc::clone(&held),
            address,
            kept: Some(connection),
            of: era.now(),
            era,
            outage: Outage::default(),
            told: None,
            renewals: 0,
        };
        keeper.renew()?;
        thread::Builder::new()
            .name("postgres lease".to_owned())
            .spawn(move || keeper.keep(&told))
            .map_err(|error| Error::NoThread(error.into()))?;
        Ok(Self {
            held,
            open: Mutex::new(true),
        })
    }

    /// What the connections know of it.
    pub(super) const fn held(&self) -> &Arc<Held> {
        &self.held
    }

    /// Which instance this is, from now on.
    pub(super) fn instance(&self) -> watch::Receiver<Option<InstanceId>> {
        self.held.instance.subscribe()
    }

    /// What the others are told with the next renewal.
    pub(super) fn note(&self, load: InstanceLoad) {
        let before = std::mem::replace(&mut *self.held.load(), load);
        if (before.draining, before.retention) != (load.draining, load.retention) {
            self.held.doubt();
        }
    }

    /// Which master keys this backend has; told at once, and with each renewal.
    pub(super) fn note_masters(&self, masters: MasterIds) {
        *self.held.masters() = Some(masters);
        self.held.doubt();
    }

    /// Which bundle of authorities this backend gives gateways; told at once where it is another one, and with each
    /// renewal.
    pub(super) fn note_authorities(&self, bundle: &str) {
        let before = self.held.authorities().replace(bundle.to_owned());
        if before.as_deref() != Some(bundle) {
            self.held.doubt();
        }
    }

    /// The others.
    pub(super) fn neighbours(&self) -> watch::Receiver<Vec<Neighbour>> {
        self.held.neighbours.subscribe()
    }

    /// The longest that one of the others promised to keep telemetry.
    pub(super) fn promised(&self) -> Option<Retention> {
        *self.held.promised()
    }

    /// Gives it back.
    pub(super) async fn give_back(&self) {
        // Nothing panics while it is held.
        let open = std::mem::take(&mut *self.open.lock().unwrap_or_else(PoisonError::into_inner));
        let (reply, gone) = oneshot::channel();
        if open && self.held.words.send(Word::End(reply)).is_ok() {
            drop(gone.await);
        }
    }
}

/// What the thread has.
struct Keeper {
    held: Arc<Held>,
    address: Arc<Address>,
    kept: Option<Connection>,
    /// Which time the connection is of.
    of: u64,
    era: Arc<Era>,
    outage: Outage,
    /// What was promised as which instance, and how often the lease was renewed since.
    told: Option<(InstanceId, Option<Retention>)>,
    renewals: u32,
}

impl Keeper {
    fn keep(mut self, told: &mpsc::Receiver<Word>) {
        let mut rest = RENEW_EVERY;
        loop {
            match told.recv_timeout(rest) {
                Ok(Word::End(reply)) => {
                    self.give_back();
                    // Whoever asked may have stopped waiting.
                    let _gone = reply.send(());
                    return;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(Word::Look) | Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.held.doubted.store(false, Ordering::Release);
                    rest = match self.renew() {
                        Ok(()) => {
                            if let Some(left_out) = self.outage.over() {
                                tracing::info!(
                                    left_out,
                                    "this backend's lease of the database is renewed again"
                                );
                            }
                            RENEW_EVERY
                        }
                        Err(error) => {
                            // A backend that writes nothing else finds out by this.
                            self.era.judge(self.of, &error);
                            if self.outage.is_news() {
                                tracing::warn!(%error, "this backend's lease of the database could not be renewed; it tries again");
                            }
                            self.held.doubted.store(true, Ordering::Release);
                            RENEW_AGAIN
                        }
                    };
                }
            }
        }
    }

    /// Renews the lease, or takes a new one where another backend ended it.
    fn renew(&mut self) -> Result<(), Error> {
        let era = self.era.now();
        let kept = self.kept.take().filter(|_kept| self.of == era);
        let connection = match kept {
            Some(connection) => connection,
            None => {
                self.of = era;
                let connection = Connection::open(&self.address)?;
                lock::share(&connection)?;
                connection
            }
        };
        let held = &self.held;
        let load = *held.load();
        let kinds = Kinds {
            masters: *held.masters(),
            authorities: held.authorities().clone(),
        };
        let known = held.instance();
        let renewed = match known {
            Some(instance) => renew(&connection, instance, load, &kinds)?.then_some(instance),
            None => None,
        };
        let instance = match renewed {
            Some(instance) => instance,
            None => take(&connection, load, &kinds)?,
        };
        if let (Some(lost), None) = (known, renewed) {
            promises::hand_over(&connection, lost, instance)?;
        }
        let tells = Some((instance, load.retention));
        if self.told != tells || self.renewals >= PROMISE_EVERY {
            promises::look(&connection, instance, load.retention)?;
            (self.told, self.renewals) = (tells, 0);
        }
        self.renewals += 1;
        let (promised, neighbours) = others(&connection, instance)?;
        // In this order: whoever is not there any more has its promise here.
        *held.promised() = promised;
        held.neighbours.send_replace(neighbours);
        if renewed.is_none() {
            held.instance.send_replace(Some(instance));
            if let Some(lost) = known {
                tracing::warn!(%lost, %instance, "another backend ended this one's lease of the database; it goes on as a new instance, and its gateways connect again");
            }
        }
        self.kept = Some(connection);
        Ok(())
    }

    /// What has no session any more goes at once; the others find the rest.
    fn give_back(&mut self) {
        const GO: &str = "\
            DELETE FROM instances AS i WHERE i.instance = $1
                   AND NOT EXISTS (SELECT 1 FROM gateways AS g WHERE g.session_instance = i.instance)";
        const END: &str = "UPDATE instances SET ended = true WHERE instance = $1";
        let (Some(connection), Some(instance)) = (self.kept.take(), self.held.instance()) else {
            return;
        };
        let given = connection.with_within(RENEW_TIME, async |inner| {
            for statement in [GO, END] {
                let query = sqlx::query(statement).bind(instance.to_string());
                query.execute(&mut *inner).await?;
            }
            Ok(())
        });
        if let Err(error) = given {
            tracing::warn!(%error, "this backend's lease of the database could not be given back; it runs out by itself");
        }
        connection.close();
    }
}

/// Of what kind a backend is: what should be the same of all of them, and is told so that whoever differs is seen.
struct Kinds {
    masters: Option<MasterIds>,
    authorities: Option<String>,
}

/// Answers whether there was something to renew.
fn renew(
    connection: &Connection,
    instance: InstanceId,
    load: InstanceLoad,
    kinds: &Kinds,
) -> Result<bool, Error> {
    const RENEW: &str = "\
        UPDATE instances SET sessions = $2, connections_max = $3, openings_per_second = $4, draining = $5,
               retention_days = $7, rollup_days = $8, masters = $9, authorities = $10,
               lease_until = clock_timestamp() + make_interval(secs => $6),
               since = CASE WHEN lease_until BETWEEN clock_timestamp() AND clock_timestamp() + make_interval(secs => $6)
                            AND since <= clock_timestamp() THEN since ELSE clock_timestamp() END
        WHERE instance = $1 AND NOT ended";
    connection.with_within(RENEW_TIME, async |inner| {
        let query = sqlx::query(RENEW).bind(instance.to_string());
        let query = query
            .bind(stored(load.sessions))
            .bind(stored(load.connections_max));
        let query = query
            .bind(stored(load.openings_per_second))
            .bind(load.draining);
        let query = query.bind(f64::from(LEASE_SECONDS));
        let [records, rollups] = kept(load);
        let query = query.bind(records).bind(rollups);
        let query = query.bind(kinds.masters.map(MasterIds::to_bytes));
        let query = query.bind(kinds.authorities.as_deref());
        Ok(query.execute(inner).await?.rows_affected() == 1)
    })
}

/// Takes a lease as a new instance.
fn take(connection: &Connection, load: InstanceLoad, kinds: &Kinds) -> Result<InstanceId, Error> {
    const TAKE: &str = "\
        INSERT INTO instances (instance, name, sessions, connections_max, openings_per_second, draining, lease_until,
                               retention_days, rollup_days, masters, authorities)
        VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $7), $8, $9, $10, $11)";
    let instance = InstanceId::from_uuid(random::uuid_v4());
    let machine = rustix::system::uname();
    let machine = machine.nodename().to_string_lossy().into_owned();
    let name = format!("{machine}, process {}", std::process::id());
    connection.with_within(RENEW_TIME, async |inner| {
        let query = sqlx::query(TAKE).bind(instance.to_string()).bind(name);
        let query = query
            .bind(stored(load.sessions))
            .bind(stored(load.connections_max));
        let query = query
            .bind(stored(load.openings_per_second))
            .bind(load.draining);
        let [records, rollups] = kept(load);
        let query = query.bind(f64::from(LEASE_SECONDS));
        let query = query.bind(records).bind(rollups);
        let query = query.bind(kinds.masters.map(MasterIds::to_bytes));
        let query = query.bind(kinds.authorities.as_deref());
        query.execute(inner).await?;
        Ok(instance)
    })
}

/// What the others promised to keep at most, and those that have their lease, as both are at one moment: whoever is not
/// there any more has left its promise.
fn others(
    connection: &Connection,
    own: InstanceId,
) -> Result<(Option<Retention>, Vec<Neighbour>), Error> {
    const OTHERS: &str = "\
        SELECT p.records_days AS promised_records, p.rollup_days AS promised_rollups,
               i.instance, i.sessions, i.connections_max, i.openings_per_second, i.draining, i.retention_days, i.rollup_days
        FROM (SELECT CASE WHEN min(records_days) = 0 THEN 0 ELSE max(records_days) END AS records_days,
                     max(rollup_days) AS rollup_days
              FROM telemetry_promises WHERE instance <> $1 AND untold_seconds <= $3) AS p
        LEFT JOIN instances AS i ON i.instance <> $1 AND NOT i.ended
             AND i.lease_until BETWEEN clock_timestamp() AND clock_timestamp() + make_interval(secs => $2)
        ORDER BY i.instance";
    connection.with_within(RENEW_TIME, async |inner| {
        let query = sqlx::query(OTHERS).bind(own.to_string());
        let query = query.bind(f64::from(LEASE_SECONDS));
        let query = query.bind(promises::LASTS_SECONDS);
        let (mut promised, mut all) = (None, Vec::new());
        for row in query.fetch_all(inner).await? {
            let (records, rollups) = ("promised_records", "promised_rollups");
            promised = retention(row.try_get(records)?, row.try_get(rollups)?);
            // An id that is none was not written by a backend; none at all, where there is no other one.
            let Some(Ok(id)) = row
                .try_get::<Option<String>, _>("instance")?
                .map(|it| it.parse())
            else {
                continue;
            };
            let number = |column| -> Result<u64, Error> {
                Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or_default())
            };
            let load = InstanceLoad {
                sessions: number("sessions")?,
                connections_max: number("connections_max")?,
                openings_per_second: number("openings_per_second")?,
                draining: row.try_get("draining")?,
                retention: retention(row.try_get("retention_days")?, row.try_get("rollup_days")?),
            };
            all.push(Neighbour { id, load });
        }
        Ok((promised, all))
    })
}

/// For how long an instance keeps telemetry, as it is stored.
fn kept(load: InstanceLoad) -> [Option<i64>; 2] {
    let days = |of: fn(Retention) -> u64| load.retention.map(|retention| stored(of(retention)));
    [days(|it| it.records_days), days(|it| it.rollups_days)]
}

/// The same as it was read.
fn retention(records: Option<i64>, rollups: Option<i64>) -> Option<Retention> {
    Some(Retention {
        records_days: u64::try_from(records?).ok()?,
        rollups_days: u64::try_from(rollups?).ok()?,
    })
}

/// A count as it is stored.
pub(super) fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
