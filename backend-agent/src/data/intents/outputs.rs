//! The retained output of commands, beside their rows.

use viworks_common::command::{Outcome, RetainedOutput};
use viworks_common::id::CommandId;
use viworks_runtime::sqlite::params;

use super::row::Reader;
use super::tx::{Tx, View};
use crate::data::{CommandOutput, StoreResult};

pub(super) const LOAD: &str = "\
SELECT command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, stderr_tail, stderr_cut
FROM command_outputs WHERE tenant = :tenant AND command_id = :command_id";

pub(super) const KEEP: &str = "\
INSERT INTO command_outputs
    (tenant, command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, stderr_tail, stderr_cut)
VALUES (:tenant, :command_id, :stdout_head, :stdout_tail, :stdout_cut, :stderr_head, :stderr_tail, :stderr_cut)
ON CONFLICT DO NOTHING";

/// Keeps the output of the first outcome that is committed.
pub(super) fn keep(tx: &Tx<'_>, command_id: CommandId, outcome: &Outcome) -> StoreResult<()> {
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
        Ok(CommandOutput {
            stdout: RetainedOutput {
                head: row.get("stdout_head")?,
                tail: row.get("stdout_tail")?,
                cut_bytes: row.get("stdout_cut")?,
            },
            stderr: RetainedOutput {
                head: row.get("stderr_head")?,
                tail: row.get("stderr_tail")?,
                cut_bytes: row.get("stderr_cut")?,
            },
        })
    })
}
