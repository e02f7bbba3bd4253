//! Records of telemetry on their way to the server: their numbers, the days that they need, and one COPY for all.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use serde_json::json;
use viworks_common::id::Tenant;
use viworks_runtime::params;
use viworks_runtime::sqlite::{Constraint, Params};

use super::connection::Connection;
use super::days;
use super::error::Error;
use crate::data::intents::link::{Link as _, LinkError, Record};

/// Numbers that a connection remembers; beyond, it begins anew.
const KNOWN_MAX: usize = 200_000;

const AGENT: &str =
    "SELECT id FROM telemetry_agent_ids WHERE tenant = :tenant AND agent_id = :agent_id";
const NEW_AGENT: &str =
    "INSERT INTO telemetry_agent_ids (tenant, agent_id) VALUES (:tenant, :agent_id) RETURNING id";
const STREAM: &str = "SELECT id FROM telemetry_stream_ids WHERE agent = :agent AND stream = :name";
const NEW_STREAM: &str =
    "INSERT INTO telemetry_stream_ids (agent, stream) VALUES (:agent, :name) RETURNING id";
const EPOCH: &str =
    "SELECT id FROM telemetry_epoch_ids WHERE agent = :agent AND spool_epoch = :name";
const NEW_EPOCH: &str =
    "INSERT INTO telemetry_epoch_ids (agent, spool_epoch) VALUES (:agent, :name) RETURNING id";

const COPY: &str = "\
COPY telemetry (agent, stream, observed_at, epoch, seq, stored_at, fields, time_source, gateway_time)
FROM STDIN WITH (FORMAT binary)";

/// In the order of the key, so that two who do this wait for each other and never in a circle.
const INSERT: &str = "\
INSERT INTO telemetry (agent, stream, observed_at, epoch, seq, stored_at, fields, time_source, gateway_time)
SELECT r.agent, r.stream, timestamptz 'epoch' + r.observed_at * interval '1 microsecond', r.epoch, r.seq, r.stored_at,
       r.fields::json, r.time_source, r.gateway_time
FROM json_to_recordset(:rows) AS r (agent int, stream int, observed_at bigint, epoch int, seq bigint, stored_at bigint,
                                    fields text, time_source text, gateway_time bigint)
ORDER BY r.agent, r.stream, r.observed_at, r.epoch, r.seq
ON CONFLICT DO NOTHING";

/// What a connection knows of the tables: numbers never change, and a day is there until it is deleted.
#[derive(Debug, Default)]
pub(super) struct Known {
    agents: RefCell<HashMap<(String, String), i64>>,
    streams: RefCell<HashMap<(i64, String), i64>>,
    epochs: RefCell<HashMap<(i64, String), i64>>,
    pub(super) days: RefCell<BTreeSet<i64>>,
    /// The last COPY met a row that is there.
    careful: Cell<bool>,
}

impl Known {
    /// What was made in a transaction that came to nothing is not there.
    pub(super) fn forget(&self) {
        self.agents.borrow_mut().clear();
        self.streams.borrow_mut().clear();
        self.epochs.borrow_mut().clear();
        self.days.borrow_mut().clear();
    }
}

/// A record with the numbers of what it refers to.
struct Numbered<'r> {
    agent: i64,
    stream: i64,
    epoch: i64,
    record: &'r Record<'r>,
}

impl Connection {
    /// Appends records that are not there. Exactness is the position's, behind its lock; the key is the net
    /// beneath: where it catches one, the transaction is done again, row by row.
    pub(super) fn append(&self, tenant: &Tenant, records: &[Record<'_>]) -> Result<(), LinkError> {
        if records.is_empty() {
            return Ok(());
        }
        let numbered = self.number_all(tenant, records)?;
        let needed = records.iter().map(|record| days::of(record.observed_at));
        self.ensure_days(&needed.collect())?;
        if self.known.careful.get() {
            self.insert_each(&numbered)?;
            self.known.careful.set(false);
            return Ok(());
        }
        self.copy(COPY, binary(&numbered))
            .map_err(|error| LinkError::Postgres(self.again_if_known(error)))
    }

    /// What another way of doing the same would not meet.
    fn again_if_known(&self, error: Error) -> Error {
        if error.is_constraint(Constraint::PrimaryKey) {
            self.known.careful.set(true);
        } else if !error.is_constraint(Constraint::Check) {
            return error;
        }
        // Otherwise it was a day that this connection knew, and that was deleted meanwhile: it is forgotten with the
        // transaction.
        let Error::Constraint { source_error, .. } = error else {
            return error;
        };
        self.met(Error::Again(source_error))
    }

    fn insert_each(&self, numbered: &[Numbered<'_>]) -> Result<(), LinkError> {
        let rows = numbered.iter().map(|row| {
            let record = row.record;
            json!({
                "agent": row.agent, "stream": row.stream, "epoch": row.epoch, "seq": record.seq,
                "observed_at": record.observed_at.unix_micros(), "stored_at": record.stored_at.unix_micros(),
                "fields": record.fields, "time_source": source(record),
                "gateway_time": record.gateway_time.map(viworks_common::time::Timestamp::unix_micros),
            })
        });
        let rows = serde_json::Value::Array(rows.collect()).to_string();
        self.execute(INSERT.into(), params! { rows }, &[]).map(drop)
    }

    /// The numbers of all records; those of one gateway follow each other.
    fn number_all<'r>(
        &self,
        tenant: &Tenant,
        records: &'r [Record<'r>],
    ) -> Result<Vec<Numbered<'r>>, LinkError> {
        let mut numbered = Vec::with_capacity(records.len());
        let mut streams: HashMap<(i64, &str), i64> = HashMap::new();
        let mut of: Option<(&Record<'_>, i64, i64)> = None;
        for record in records {
            let same = of.filter(|(last, _agent, _epoch)| {
                (last.agent_id, last.spool_epoch) == (record.agent_id, record.spool_epoch)
            });
            let (_, agent, epoch) = match same {
                Some(same) => same,
                None => *of.insert(self.of_epoch(tenant, record)?),
            };
            let stream = match streams.get(&(agent, record.stream)) {
                Some(stream) => *stream,
                None => {
                    let stream = self.of_stream(agent, record.stream)?;
                    streams.insert((agent, record.stream), stream);
                    stream
                }
            };
            numbered.push(Numbered {
                agent,
                stream,
                epoch,
                record,
            });
        }
        Ok(numbered)
    }

    fn of_epoch<'r>(
        &self,
        tenant: &Tenant,
        record: &'r Record<'r>,
    ) -> Result<(&'r Record<'r>, i64, i64), LinkError> {
        let key = (tenant.as_str().to_owned(), record.agent_id.to_owned());
        let (tenant, agent_id, name) = (tenant.as_str(), record.agent_id, record.spool_epoch);
        let params = params! { tenant, agent_id };
        let agent = self.numbered(&self.known.agents, key, (AGENT, NEW_AGENT), params)?;
        let key = (agent, name.to_owned());
        let params = params! { agent, name };
        let epoch = self.numbered(&self.known.epochs, key, (EPOCH, NEW_EPOCH), params)?;
        Ok((record, agent, epoch))
    }

    fn of_stream(&self, agent: i64, name: &str) -> Result<i64, LinkError> {
        let key = (agent, name.to_owned());
        let params = params! { agent, name };
        self.numbered(&self.known.streams, key, (STREAM, NEW_STREAM), params)
    }

    /// The number of something, which is given one where it has none. Whoever appends for a gateway has its
    /// telemetry to itself, so nobody else gives it one at the same moment.
    fn numbered<K: std::hash::Hash + Eq>(
        &self,
        known: &RefCell<HashMap<K, i64>>,
        key: K,
        (find, give): (&'static str, &'static str),
        params: Params<'_>,
    ) -> Result<i64, LinkError> {
        if let Some(id) = known.borrow().get(&key) {
            return Ok(*id);
        }
        let id = match self.id(find, params)? {
            Some(id) => id,
            None => {
                let given = self.id(give, params)?;
                given.ok_or_else(|| LinkError::Postgres(Error::Closed))?
            }
        };
        let mut known = known.borrow_mut();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(key, id);
        Ok(id)
    }

    fn id(&self, sql: &'static str, params: Params<'_>) -> Result<Option<i64>, LinkError> {
        let mut id = None;
        self.query(sql.into(), params, &[], &mut |row| {
            id = row.get::<i64>("id");
            ControlFlow::Break(())
        })?;
        Ok(id)
    }
}

/// Whose clock a record's time is by; the gateway's is not written down.
fn source<'r>(record: &Record<'r>) -> Option<&'r str> {
    (record.time_source != "gateway").then_some(record.time_source)
}

/// Microseconds between 1970 and 2000, which the server counts from.
pub(super) const FROM_1970_TO_2000: i64 = 946_684_800_000_000;

/// The rows as the server takes them: <https://www.postgresql.org/docs/current/sql-copy.html>.
fn binary(numbered: &[Numbered<'_>]) -> Vec<u8> {
    const COLUMNS: i16 = 9;
    let mut bytes = Vec::with_capacity(numbered.len() * 160 + 32);
    bytes.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
    bytes.extend_from_slice(&[0; 8]);
    for row in numbered {
        let record = row.record;
        let observed = record.observed_at.unix_micros();
        let observed = observed.saturating_sub(FROM_1970_TO_2000);
        bytes.extend_from_slice(&COLUMNS.to_be_bytes());
        int(&mut bytes, row.agent);
        int(&mut bytes, row.stream);
        field(&mut bytes, Some(&observed.to_be_bytes()));
        int(&mut bytes, row.epoch);
        let seq = i64::try_from(record.seq).unwrap_or(i64::MAX);
        field(&mut bytes, Some(&seq.to_be_bytes()));
        let stored = record.stored_at.unix_micros();
        field(&mut bytes, Some(&stored.to_be_bytes()));
        field(&mut bytes, Some(record.fields.as_bytes()));
        field(&mut bytes, source(record).map(str::as_bytes));
        let gateway = record.gateway_time.map(|at| at.unix_micros().to_be_bytes());
        field(&mut bytes, gateway.as_ref().map(<[u8; 8]>::as_slice));
    }
    bytes.extend_from_slice(&(-1_i16).to_be_bytes());
    bytes
}

/// A number that the server gave out as one of four bytes.
fn int(bytes: &mut Vec<u8>, number: i64) {
    let number = i32::try_from(number).unwrap_or(i32::MAX);
    field(bytes, Some(&number.to_be_bytes()));
}

fn field(bytes: &mut Vec<u8>, value: Option<&[u8]>) {
    let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(value.unwrap_or_default());
}
