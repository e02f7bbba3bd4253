//! The retained output of commands, beside their rows.

use viworks_common::command::{Outcome, OutcomeState, RetainedOutput};
use viworks_common::id::CommandId;
use viworks_runtime::sqlite::params;

use super::row::Reader;
use super::tx::{Tx, View};
use crate::data::{CommandOutput, StoreResult};

/// Of a command that its gateway told the outcome of.
pub(super) const LOAD: &str = "\
SELECT c.command_id, o.stdout_head, o.stdout_tail, o.stdout_cut, o.stderr_head, o.stderr_tail, o.stderr_cut
FROM commands AS c LEFT JOIN command_outputs AS o ON o.tenant = c.tenant AND o.command_id = c.command_id
WHERE c.tenant = :tenant AND c.command_id = :command_id
      AND (o.command_id IS NOT NULL OR c.state <> 'rejected' AND (c.result IS NOT NULL OR c.late_outcome IS NOT NULL))";

pub(super) const KEEP: &str = "\
INSERT INTO command_outputs
    (tenant, command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, stderr_tail, stderr_cut)
VALUES (:tenant, :command_id, :stdout_head, :stdout_tail, :stdout_cut, :stderr_head, :stderr_tail, :stderr_cut)
ON CONFLICT (tenant, command_id) DO UPDATE SET
    stdout_head = excluded.stdout_head, stdout_tail = excluded.stdout_tail, stdout_cut = excluded.stdout_cut,
    stderr_head = excluded.stderr_head, stderr_tail = excluded.stderr_tail, stderr_cut = excluded.stderr_cut";

/// Whether an outcome has any output; where there is none, no row says so. A command that its gateway refused on
/// arrival has none at all, which is not the same, so of a refusal that came as a result a row is kept.
pub(super) fn is_worth_keeping(outcome: &Outcome) -> bool {
    let none = RetainedOutput::default();
    outcome.stdout != none || outcome.stderr != none || outcome.state == OutcomeState::Rejected
}

/// Keeps the output of an outcome that is its command's result, if it has some.
pub(super) fn keep(tx: &Tx<'_>, command_id: CommandId, outcome: &Outcome) -> StoreResult<()> {
    if is_worth_keeping(outcome) {
        put(tx, command_id, outcome)?;
    }
    Ok(())
}

/// Puts the output of an outcome in place of what there is of an earlier one, also where it has none.
pub(super) fn put(tx: &Tx<'_>, command_id: CommandId, outcome: &Outcome) -> StoreResult<()> {
    let (stdout, stderr) = (&outcome.stdout, &outcome.stderr);
    let params = params! {
        command_id,
        stdout_head: stdout.head, stdout_tail: stdout.tail, stdout_cut: stdout.cut_bytes,
        stderr_head: stderr.head, stderr_tail: stderr.tail, stderr_cut: stderr.cut_bytes,
    };
    tx.execute(KEEP, params).map(drop)
}

/// What was kept.
pub(super) fn load(view: &View<'_>, command_id: CommandId) -> StoreResult<Option<CommandOutput>> {
    view.optional(LOAD, params! { command_id }, |row| {
        let row = Reader::new("command_outputs", row);
        let kept = |head, tail, cut| -> StoreResult<RetainedOutput> {
            Ok(RetainedOutput {
                head: row.get::<Option<Vec<u8>>>(head)?.unwrap_or_default(),
                tail: row.get::<Option<Vec<u8>>>(tail)?.unwrap_or_default(),
                cut_bytes: row.get::<Option<u64>>(cut)?.unwrap_or_default(),
            })
        };
        Ok(CommandOutput {
            stdout: kept("stdout_head", "stdout_tail", "stdout_cut")?,
            stderr: kept("stderr_head", "stderr_tail", "stderr_cut")?,
        })
    })
}
