//! Records of telemetry on their way to the server: the days that they need, and one COPY for all.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;
use viworks_common::id::Tenant;
use viworks_runtime::params;
use viworks_runtime::sqlite::Constraint;

use super::connection::Connection;
use super::days;
use super::error::Error;
use super::numbers::{Numbered, Numbers};
use crate::data::intents::link::{Link as _, LinkError, Record};

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

/// What a connection knows of the tables.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) numbers: Numbers,
    /// Days that have a table until somebody deletes it.
    pub(super) days: RefCell<BTreeSet<i64>>,
    /// A table whose leaving somebody began and did not finish, in the way of the last transaction.
    pub(super) leaving: RefCell<Option<String>>,
    /// The last COPY met a row that is there.
    careful: Cell<bool>,
}

impl Known {
    /// What was made in a transaction that came to nothing is not there.
    pub(super) fn forget(&self) {
        self.numbers.forget();
        self.days.borrow_mut().clear();
    }
}

impl Connection {
    /// Appends records that are not there. Exactness is the position's, behind its lock; the key is the net
    /// beneath: where it catches one, the transaction is done again, row by row.
    pub(super) fn append(&self, tenant: &Tenant, records: &[Record<'_>]) -> Result<(), LinkError> {
        if records.is_empty() {
            return Ok(());
        }
        let numbered = self.number_all(tenant, records)?;
        let mut needed = BTreeMap::new();
        for record in records {
            let stored = days::of(record.stored_at);
            let first = needed.entry(days::of(record.observed_at));
            first
                .and_modify(|known: &mut i64| *known = stored.min(*known))
                .or_insert(stored);
        }
        // What is looked for in this transaction is there until it ends.
        let remembered = self.remembers_any(&needed);
        self.ensure_days(&needed)?;
        let appended = if self.known.careful.get() {
            self.insert_each(&numbered)
        } else {
            let copied = self.copy(COPY, binary(&numbered));
            copied.map_err(LinkError::Postgres)
        };
        appended.map_err(|error| self.again_if_known(error, remembered))?;
        self.known.careful.set(false);
        Ok(())
    }

    /// Whether the table of one of these days is taken to be there from before this transaction.
    fn remembers_any(&self, days: &BTreeMap<i64, i64>) -> bool {
        let known = self.known.days.borrow();
        days.keys().any(|day| known.contains(day))
    }

    /// What another way of doing the same would not meet.
    fn again_if_known(&self, error: LinkError, remembered: bool) -> LinkError {
        let LinkError::Postgres(Error::Constraint {
            kind,
            name,
            source_error,
        }) = &error
        else {
            return error;
        };
        match kind {
            // The careful way passes by what is there.
            Constraint::PrimaryKey if !self.known.careful.get() => self.known.careful.set(true),
            // Perhaps a day that this connection remembered, and that was deleted meanwhile: it is forgotten with the
            // transaction, so the next one looks.
            Constraint::Check if remembered && name.is_empty() => {}
            // Where nothing was remembered, or the rule has a name, it is one that somebody added, which says the same
            // again: of one gateway's records, and of no others.
            Constraint::Check
            | Constraint::PrimaryKey
            | Constraint::Unique
            | Constraint::ForeignKey
            | Constraint::NotNull
            | Constraint::Other => return error,
        }
        LinkError::Postgres(self.met(Error::Again(Arc::clone(source_error))))
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
