//! The retained output of commands, beside their rows.

use sqlx::SqliteConnection;
use viworks_common::command::{Outcome, RetainedOutput};
use viworks_common::id::{CommandId, Tenant};

use super::row::{Reader, int};
use crate::data::{CommandOutput, StoreResult};

pub(super) const KEEP: &str = "\
INSERT INTO command_outputs
    (tenant, command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, stderr_tail, stderr_cut)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO NOTHING";

pub(super) const LOAD: &str = "\
SELECT command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, stderr_tail, stderr_cut
FROM command_outputs WHERE tenant = ?1 AND command_id = ?2";

/// Keeps the output of the first outcome that is committed.
pub(super) async fn keep(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command_id: CommandId,
    outcome: &Outcome,
) -> StoreResult<()> {
    sqlx::query(KEEP)
        .bind(tenant.as_str())
        .bind(command_id.to_string())
        .bind(outcome.stdout.head.as_slice())
        .bind(outcome.stdout.tail.as_slice())
        .bind(int(outcome.stdout.cut_bytes))
        .bind(outcome.stderr.head.as_slice())
        .bind(outcome.stderr.tail.as_slice())
        .bind(int(outcome.stderr.cut_bytes))
        .execute(connection)
        .await?;
    Ok(())
}

/// What was kept.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command_id: CommandId,
) -> StoreResult<Option<CommandOutput>> {
    let row = sqlx::query(LOAD)
        .bind(tenant.as_str())
        .bind(command_id.to_string())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let reader = Reader::new("command_outputs", &row);
    Ok(Some(CommandOutput {
        stdout: RetainedOutput {
            head: reader.get("stdout_head")?,
            tail: reader.get("stdout_tail")?,
            cut_bytes: reader.count("stdout_cut")?,
        },
        stderr: RetainedOutput {
            head: reader.get("stderr_head")?,
            tail: reader.get("stderr_tail")?,
            cut_bytes: reader.count("stderr_cut")?,
        },
    }))
}
