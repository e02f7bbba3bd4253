//! The retained output of commands, beside their rows.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use viworks_common::command::{Outcome, RetainedOutput};
use viworks_common::id::{CommandId, Tenant};

use super::row::{Reader, int};
use crate::data::{CommandOutput, StoreResult};

pub(super) const LOAD: &str = "\
SELECT command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, stderr_tail, stderr_cut
FROM command_outputs WHERE tenant = ?1 AND command_id = ?2";

/// Keeps the outputs of the first outcomes that are committed.
pub(super) async fn keep(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    outputs: &[(CommandId, &Outcome)],
) -> StoreResult<()> {
    // Eight parameters each, of 32,766 that a statement may have.
    for chunk in outputs.chunks(1_000) {
        let mut insert: QueryBuilder<Sqlite> = QueryBuilder::new(
            "INSERT INTO command_outputs \
             (tenant, command_id, stdout_head, stdout_tail, stdout_cut, stderr_head, stderr_tail, stderr_cut) ",
        );
        insert.push_values(chunk, |mut row, (command_id, outcome)| {
            row.push_bind(tenant.as_str().to_owned())
                .push_bind(command_id.to_string())
                .push_bind(outcome.stdout.head.to_vec())
                .push_bind(outcome.stdout.tail.to_vec())
                .push_bind(int(outcome.stdout.cut_bytes))
                .push_bind(outcome.stderr.head.to_vec())
                .push_bind(outcome.stderr.tail.to_vec())
                .push_bind(int(outcome.stderr.cut_bytes));
        });
        insert.push(" ON CONFLICT DO NOTHING");
        insert.build().execute(&mut *connection).await?;
    }
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
