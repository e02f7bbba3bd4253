//! CONFIRM: from here on every older session is fenced; confirmed for many gateways together.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use sqlx::{Column, Row, SqliteConnection};
use viworks_common::admission::{Confirmation, IdentityRow, confirm as decide};
use viworks_common::code::CloseCode;
use viworks_common::command::{CommandEvent, CommandState};
use viworks_common::id::{AgentId, CommandId, Tenant};
use viworks_common::time::Timestamp;

use super::opening::{self, Identity};
use super::row::{int, to_json};
use super::sessions::requeue;
use super::settle::{self, CommandRow, Note};
use crate::data::{
    Actor, ConfirmOutcome, ConfirmRequest, Confirmed, LabelSource, OpenCommand, StoreResult,
};

/// What confirmations change: the session is its gateway's live one, what its HELLO said takes effect, and the one before
/// it has ended. The rows beside those of the compare-and-swap are the gateways' open commands.
pub(super) const CONFIRM: &str = concat!(
    opening::swap!(
        ", session_epoch = e.value ->> 10, \
         (agent_version, pin_set_version) = (SELECT n.agent_version, n.pin_set_version FROM sessions AS n \
             WHERE n.tenant = $1 AND n.agent_id = e.id AND n.epoch = e.value ->> 10), \
         round_trip_us = NULL, clock_skew_ms = NULL, spool_records = 0, spool_bytes = 0, commands_running = 0"
    ),
    "UPDATE sessions SET confirmed_at = e.value ->> 9 \
     FROM (SELECT value ->> 0 AS id, value FROM json_each($2) LIMIT -1) AS e \
     WHERE tenant = $1 AND sessions.agent_id = e.id AND epoch = e.value ->> 10; \
     UPDATE sessions SET ended_at = e.value ->> 9, code = $3 \
     FROM (SELECT value ->> 0 AS id, value FROM json_each($2) WHERE value ->> 11 IS NOT NULL LIMIT -1) AS e \
     WHERE tenant = $1 AND sessions.agent_id = e.id AND epoch = e.value ->> 11 AND ended_at IS NULL; \
     DELETE FROM labels WHERE tenant = $1 AND agent_id IN (SELECT value ->> 0 FROM json_each($2)) AND source = $4; \
     INSERT INTO labels (tenant, agent_id, key, source, value) \
     SELECT $1, n.agent_id, label.key, $4, label.value \
     FROM json_each($2) AS e \
     CROSS JOIN sessions AS n ON n.tenant = $1 AND n.agent_id = e.value ->> 0 AND n.epoch = e.value ->> 10 \
     CROSS JOIN json_each(n.labels) AS label; ",
    settle::open_of_gateways!()
);

/// A CONFIRM to be judged.
#[derive(Debug, Clone)]
pub(super) struct Confirm {
    pub(super) request: ConfirmRequest,
    pub(super) now: Timestamp,
}

/// A CONFIRM that counts.
struct Counted<'a> {
    number: usize,
    confirm: &'a Confirm,
    known: &'a Identity,
    after: IdentityRow,
}

/// Confirms epochs whose gateways said so together.
pub(super) async fn confirm(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    confirms: &[Confirm],
) -> StoreResult<Vec<StoreResult<ConfirmOutcome>>> {
    let mut answers = BTreeMap::new();
    for round in opening::rounds(confirms.iter().map(|confirm| confirm.request.agent_id)) {
        let one_each: Vec<_> = round
            .iter()
            .filter_map(|number| confirms.get(*number))
            .collect();
        let outcomes = confirm_one_each(connection, tenant, &one_each).await?;
        answers.extend(round.into_iter().zip(outcomes));
    }
    Ok(answers.into_values().map(Ok).collect())
}

/// Confirms epochs of different gateways.
async fn confirm_one_each(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    confirms: &[&Confirm],
) -> StoreResult<Vec<ConfirmOutcome>> {
    let wanted: Vec<_> = confirms
        .iter()
        .map(|Confirm { request, .. }| {
            let session = (request.issued, request.session_id);
            (request.agent_id, Some(session))
        })
        .collect();
    let identities = opening::identities(connection, tenant, &wanted).await?;
    let mut outcomes = BTreeMap::new();
    let mut counted = Vec::new();
    for (number, confirm) in confirms.iter().enumerate() {
        match identities
            .get(&number)
            .map(|known| (known, judge(known, &confirm.request)))
        {
            Some((known, Confirmation::Confirmed(after))) => {
                counted.push(Counted {
                    number,
                    confirm,
                    known,
                    after,
                });
            }
            Some((_, Confirmation::Superseded)) | None => {
                outcomes.insert(number, ConfirmOutcome::Superseded);
            }
        }
    }
    let mut open = write(connection, tenant, &counted).await?;
    for Counted {
        number,
        confirm,
        known,
        after,
    } in counted
    {
        let Confirm { request, now } = confirm;
        let commands = open.remove(&request.agent_id).unwrap_or_default();
        let mut confirmed =
            settle_older(connection, tenant, request, after.low_water, commands, *now).await?;
        confirmed.fenced = known.live.map(|(session_id, _)| session_id);
        outcomes.insert(number, ConfirmOutcome::Confirmed(Box::new(confirmed)));
    }
    Ok(outcomes.into_values().collect())
}

fn judge(known: &Identity, request: &ConfirmRequest) -> Confirmation {
    if known.row.revoked || !known.admitted {
        return Confirmation::Superseded;
    }
    decide(
        &known.row,
        request.presented,
        request.issued,
        request.agent_run_id,
    )
}

/// Writes confirmations; answers the open commands of their gateways in their order.
async fn write(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    counted: &[Counted<'_>],
) -> StoreResult<BTreeMap<AgentId, Vec<CommandRow>>> {
    let mut open: BTreeMap<_, Vec<_>> = BTreeMap::new();
    if counted.is_empty() {
        return Ok(open);
    }
    let document: Vec<_> = counted.iter().map(Counted::document).collect();
    let rows = sqlx::query(CONFIRM)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .bind(CloseCode::Superseded.name())
        .bind(LabelSource::Gateway.name())
        .fetch_all(connection)
        .await?;
    opening::check_swapped(&rows, counted.len())?;
    for row in rows
        .iter()
        .filter(|row| row.column(0).name() == "command_id")
    {
        let command = CommandRow::read(row)?;
        open.entry(command.agent_id).or_default().push(command);
    }
    Ok(open)
}

impl Counted<'_> {
    fn document(&self) -> Vec<serde_json::Value> {
        let Confirm { request, now } = self.confirm;
        let sessions = [
            json!(int(request.issued)),
            json!(self.known.live.map(|(_, epoch)| int(epoch))),
        ];
        opening::element(
            request.agent_id,
            &self.known.row,
            &self.after,
            *now,
            sessions,
        )
    }
}

/// What older sessions and processes left behind.
async fn settle_older(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &ConfirmRequest,
    low_water: u64,
    open: Vec<CommandRow>,
    now: Timestamp,
) -> StoreResult<Confirmed> {
    let unreported: BTreeSet<CommandId> = request.unreported.iter().copied().collect();
    let mut confirmed = Confirmed {
        released: Vec::new(),
        cancel_requested: Vec::new(),
        ended_indeterminate: Vec::new(),
        low_water,
        waiting: false,
        fenced: None,
    };
    for mut command in open {
        let journalled = unreported.contains(&command.command_id);
        match command.state {
            CommandState::Dispatched => requeue(connection, tenant, &mut command, now).await?,
            CommandState::Released | CommandState::Running => {
                let here = command.released_to == Some(request.agent_run_id);
                // The same process without a trace of it: an inline permit that never arrived may be given again. One
                // that is not idempotent was journalled before its permit, so it is asked about once more.
                if !journalled && (!here || command.idempotent) {
                    run_gone(connection, tenant, &mut command, now).await?;
                }
                sort_open(&mut confirmed, &command, here);
            }
            CommandState::Queued
            | CommandState::Succeeded
            | CommandState::Failed
            | CommandState::TimedOut
            | CommandState::Rejected
            | CommandState::Expired
            | CommandState::Cancelled
            | CommandState::Dead
            | CommandState::Indeterminate => {}
        }
        confirmed.waiting |= command.state == CommandState::Queued;
        confirmed.low_water = command.low_water.unwrap_or(confirmed.low_water);
    }
    Ok(confirmed)
}

fn sort_open(confirmed: &mut Confirmed, command: &CommandRow, here: bool) {
    if command.state == CommandState::Indeterminate {
        confirmed.ended_indeterminate.push(command.command_id);
    } else if command.released_to.is_some() && command.cancel_requested {
        confirmed.cancel_requested.push(command.command_id);
    } else if command.state == CommandState::Released && here {
        confirmed.released.push(OpenCommand {
            command_id: command.command_id,
            deadline: command.deadline,
        });
    }
}

async fn run_gone(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command: &mut CommandRow,
    now: Timestamp,
) -> StoreResult<()> {
    let actor = Actor::system();
    // A command that goes back to the queue has no reason to end.
    let reason = (!command.idempotent).then_some(
        "the process of the gateway agent that held its permit is gone and left no trace of it",
    );
    let note = Note {
        reason,
        ..Note::default()
    };
    settle::apply(
        connection,
        tenant,
        command,
        CommandEvent::RunGone,
        note,
        &actor,
        now,
    )
    .await?;
    if command.state == CommandState::Queued && command.cancel_requested {
        let note = Note {
            reason: Some("cancelled by an operator"),
            ..Note::default()
        };
        let event = CommandEvent::CancelRequested;
        settle::apply(connection, tenant, command, event, note, &actor, now).await?;
    }
    Ok(())
}
