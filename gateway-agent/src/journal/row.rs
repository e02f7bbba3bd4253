//! Entries as rows: the only place that knows the columns.

use viworks_common::command::Outcome;
use viworks_common::journal::{Entry, EntryState};
use viworks_runtime::sqlite::{Column, Connection, Row, params};

use super::JournalError;

/// The columns that [`entry`] reads.
macro_rules! rows {
    () => {
        "SELECT command_id, ordinal, digest, name, arguments, idempotent, state, agent_run_id, outcome, timeout_ms \
         FROM entry "
    };
}

pub(super) const SELECT_ALL: &str = concat!(rows!(), "ORDER BY ordinal, command_id");
pub(super) const SELECT_ONE: &str = concat!(rows!(), "WHERE command_id = :command_id");

const INSERT: &str = "\
INSERT INTO entry (command_id, ordinal, digest, name, arguments, idempotent, state, agent_run_id, timeout_ms)
VALUES (:command_id, :order, :digest, :name, :arguments, :idempotent, :state, :agent_run_id, :timeout_ms)
ON CONFLICT DO NOTHING";

pub(super) fn insert(connection: &Connection, entry: &Entry) -> Result<(), JournalError> {
    let Entry {
        command_id,
        order,
        digest,
        name,
        idempotent,
        agent_run_id,
        timeout_ms,
        ..
    } = entry;
    let arguments = serde_json::to_string(&entry.arguments)
        .map_err(|_unserialisable| JournalError::Inconsistent("arguments"))?;
    let state = entry.state.name();
    let inserted = connection.execute(
        INSERT,
        params! { command_id, order, digest, name, arguments, idempotent, state, agent_run_id, timeout_ms },
    )?;
    super::moved_one(inserted, *command_id, "unknown")
}

pub(super) fn entry(row: &Row<'_>) -> Result<Entry, JournalError> {
    let arguments = row.text("arguments").unwrap_or_default();
    let state = row.text("state").unwrap_or_default();
    let outcome = row.text("outcome").map(serde_json::from_str);
    Ok(Entry {
        command_id: read(row, "command_id")?,
        order: read(row, "ordinal")?,
        digest: read(row, "digest")?,
        name: read(row, "name")?,
        arguments: serde_json::from_str(arguments).map_err(|_bad| inconsistent("arguments"))?,
        timeout_ms: read(row, "timeout_ms")?,
        idempotent: read(row, "idempotent")?,
        state: EntryState::from_name(state).ok_or_else(|| inconsistent("state"))?,
        agent_run_id: read(row, "agent_run_id")?,
        outcome: outcome
            .transpose()
            .map_err(|_bad| inconsistent("outcome"))?,
    })
}

/// What a column holds.
pub(super) fn read<T: Column>(row: &Row<'_>, column: &'static str) -> Result<T, JournalError> {
    row.get(column).ok_or_else(|| inconsistent(column))
}

pub(super) fn outcome_json(outcome: &Outcome) -> Result<String, JournalError> {
    serde_json::to_string(outcome).map_err(|_unserialisable| inconsistent("outcome"))
}

const fn inconsistent(what: &'static str) -> JournalError {
    JournalError::Inconsistent(what)
}
