//! Entries as rows: the only place that knows the columns.

use std::sync::Arc;

use sqlx::SqliteConnection;
use viworks_common::command::Outcome;
use viworks_common::journal::{Entry, EntryState};

use super::JournalError;

/// The columns of an entry, in the order of the queries below.
pub(super) type Row = (
    String,
    i64,
    Vec<u8>,
    String,
    String,
    bool,
    String,
    String,
    Option<String>,
    Option<i64>,
);

pub(super) const SELECT_ALL: &str = "SELECT command_id, ordinal, digest, name, arguments, idempotent, state, agent_run_id, outcome, timeout_ms FROM entry ORDER BY ordinal, command_id";
pub(super) const SELECT_ONE: &str = "SELECT command_id, ordinal, digest, name, arguments, idempotent, state, agent_run_id, outcome, timeout_ms FROM entry WHERE command_id = ?";

/// A new entry, ready to be bound; shared because a job may have to run twice.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    entry: Arc<Entry>,
    pub(super) ordinal: i64,
}

impl Stored {
    pub(super) fn new(entry: &Entry) -> Self {
        Self {
            ordinal: stored(entry.order),
            entry: Arc::new(entry.clone()),
        }
    }
}

pub(super) async fn insert(
    connection: &mut SqliteConnection,
    stored: &Stored,
    entries_max: u32,
) -> Result<(), JournalError> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM entry")
        .fetch_one(&mut *connection)
        .await?;
    if count >= i64::from(entries_max) {
        return Err(JournalError::Full(entries_max));
    }
    let entry = &stored.entry;
    let arguments = serde_json::to_string(&entry.arguments)
        .map_err(|_unserialisable| JournalError::Inconsistent("arguments"))?;
    let inserted = sqlx::query(
        "INSERT INTO entry (command_id, ordinal, digest, name, arguments, idempotent, state, agent_run_id, timeout_ms) VALUES (?, ?, ?, ?, ?, ?, 'accepted', ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(entry.command_id.to_string())
    .bind(stored.ordinal)
    .bind(entry.digest.to_vec())
    .bind(entry.name.as_str())
    .bind(arguments)
    .bind(entry.idempotent)
    .bind(entry.agent_run_id.to_string())
    .bind(entry.timeout_ms.map(self::stored))
    .execute(connection)
    .await?;
    super::moved_one(&inserted, entry.command_id, "unknown")
}

pub(super) fn entry(row: Row) -> Result<Entry, JournalError> {
    let (id, ordinal, digest, name, arguments, idempotent, state, run, outcome, timeout_ms) = row;
    Ok(Entry {
        command_id: id.parse().map_err(|_bad| inconsistent("a command id"))?,
        order: restored(ordinal)?,
        digest: digest.try_into().map_err(|_bad| inconsistent("a digest"))?,
        name: name
            .parse()
            .map_err(|_bad| inconsistent("a command name"))?,
        arguments: serde_json::from_str(&arguments).map_err(|_bad| inconsistent("arguments"))?,
        timeout_ms: timeout_ms.map(restored).transpose()?,
        idempotent,
        state: EntryState::from_name(&state).ok_or_else(|| inconsistent("a state"))?,
        agent_run_id: run
            .parse()
            .map_err(|_bad| inconsistent("an agent run id"))?,
        outcome: outcome
            .map(|json| serde_json::from_str(&json))
            .transpose()
            .map_err(|_bad| inconsistent("an outcome"))?,
    })
}

pub(super) fn outcome_json(outcome: &Outcome) -> Result<Arc<str>, JournalError> {
    serde_json::to_string(outcome)
        .map(Arc::from)
        .map_err(|_unserialisable| inconsistent("an outcome"))
}

/// Orders and epochs as SQLite stores them.
pub(super) fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Orders and epochs as SQLite returns them.
pub(super) fn restored(number: i64) -> Result<u64, JournalError> {
    u64::try_from(number).map_err(|_negative| inconsistent("a negative number"))
}

const fn inconsistent(what: &'static str) -> JournalError {
    JournalError::Inconsistent(what)
}
