//! CONFIRM: from here on every older session is fenced.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use viworks_common::admission::{Confirmation, IdentityRow, confirm as decide};
use viworks_common::code::CloseCode;
use viworks_common::id::AgentId;
use viworks_common::ledger::session::{Successor, settle_older};
use viworks_common::rules::Complete;
use viworks_runtime::sqlite::params;

use super::inbox::Post;
use super::link::Sql;
use super::opening::{self, Identity};
use super::row::Reader;
use super::tx::Tx;
use super::{certificates, sessions, settle};
use crate::data::{
    Actor, ConfirmOutcome, ConfirmRequest, Confirmed, LabelSource, Letter, OpenCommand, StoreError,
    StoreResult,
};

/// The session is its gateway's live one, and what its HELLO said takes effect, unless the counters are no longer where
/// they had been seen.
pub(super) const TAKE_EFFECT: &str = concat!(
    "UPDATE gateways SET ",
    opening::counters!(),
    ", session_epoch = :epoch, session_instance = :instance, favoured_run = NULL, favoured_until = NULL, \
     (agent_version, pin_set_version) = (SELECT n.agent_version, n.pin_set_version FROM sessions AS n \
         WHERE n.tenant = :tenant AND n.agent_id = :agent_id AND n.epoch = :epoch), \
     round_trip_us = NULL, clock_skew_ms = NULL, spool_records = 0, spool_bytes = 0, commands_running = 0 ",
    opening::unmoved!()
);

pub(super) const CONFIRMED: &str = "\
UPDATE sessions SET confirmed_at = :now WHERE tenant = :tenant AND agent_id = :agent_id AND epoch = :epoch";

/// The labels that a session says its gateway has, beside each one that is stored as the gateway's own.
pub(super) const LABELS: &str = "\
SELECT n.labels AS announced, l.key AS key, l.value AS value
FROM sessions AS n
LEFT JOIN labels AS l ON l.tenant = n.tenant AND l.agent_id = n.agent_id AND l.source = :source
WHERE n.tenant = :tenant AND n.agent_id = :agent_id AND n.epoch = :epoch";

pub(super) const REMOVE_LABELS: &str =
    "DELETE FROM labels WHERE tenant = :tenant AND agent_id = :agent_id AND source = :source";

macro_rules! add_labels {
    ($each:literal) => {
        concat!(
            "INSERT INTO labels (tenant, agent_id, key, source, value) \
             SELECT n.tenant, n.agent_id, label.key, :source, label.value FROM sessions AS n CROSS JOIN ",
            $each,
            "(n.labels) AS label WHERE n.tenant = :tenant AND n.agent_id = :agent_id AND n.epoch = :epoch"
        )
    };
}

pub(super) const ADD_LABELS: Sql = Sql {
    sqlite: add_labels!("json_each"),
    postgres: add_labels!("json_each_text"),
};

/// Confirms an epoch, and settles what older sessions and processes left behind.
pub(super) fn confirm(tx: &Tx<'_>, request: &ConfirmRequest) -> StoreResult<ConfirmOutcome> {
    let (agent_id, epoch) = (request.agent_id, request.issued);
    let session = (request.issued, request.session_id);
    tx.lock_telemetry([agent_id])?;
    tx.lock([agent_id])?;
    let Some(known) = opening::identity(tx, agent_id, Some(session))? else {
        return Ok(ConfirmOutcome::Superseded);
    };
    let by_decision = known.kept.as_ref();
    let successor = Successor {
        run: request.agent_run_id,
        unreported: request.unreported.iter().copied().collect(),
        // Its own confirmation, which moves the epoch, is the one that follows the decision.
        by_decision: by_decision.is_some_and(|kept| kept.epoch == known.row.confirmed),
    };
    let mut low_water = if known.live == Some((request.session_id, epoch)) {
        // Confirmed before, and the answer to that was lost.
        known.row.low_water
    } else {
        let Confirmation::Confirmed(after) = judge(&known, request) else {
            return Ok(ConfirmOutcome::Superseded);
        };
        take_effect(tx, request, &known, &after)?;
        after.low_water
    };
    let open = settle::load_open(tx, agent_id, u64::MAX)?;
    let older = settle_older(Complete, open, &successor, tx.now);
    let mut ended = Vec::new();
    for change in &older.changes {
        let written = settle::write(tx, [change], &Actor::system())?;
        low_water = written.low_water.unwrap_or(low_water);
        if change.ends() {
            ended.push(settle::settled(&change.command, written.run_finished));
        }
    }
    let released = older.released.into_iter();
    let confirmed = Confirmed {
        released: released
            .map(|(command_id, deadline)| OpenCommand {
                command_id,
                deadline,
            })
            .collect(),
        cancel_requested: older.cancel_requested,
        ended,
        low_water,
        waiting: older.waiting,
        fenced: known
            .live
            .map(|(session_id, _)| session_id)
            .filter(|session_id| *session_id != request.session_id),
        instance: tx.party().instance(),
        keys: known.keys(),
        authorities: known.authorities,
    };
    Ok(ConfirmOutcome::Confirmed(Box::new(confirmed)))
}

/// Makes the session its gateway's live one.
fn take_effect(
    tx: &Tx<'_>,
    request: &ConfirmRequest,
    known: &Identity,
    after: &IdentityRow,
) -> StoreResult<()> {
    let (agent_id, epoch) = (request.agent_id, request.issued);
    let (seen, instance) = (&known.row, tx.party().instance());
    let params = params! {
        agent_id, epoch, instance, seen_confirmed: seen.confirmed, seen_issued: seen.issued, confirmed: after.confirmed,
        issued: after.issued, key_generation: after.key_generation, last_agent_run_id: after.last_agent_run_id,
        next_order: after.next_order, low_water: after.low_water,
    };
    if tx.execute(TAKE_EFFECT, params)? != 1 {
        return Err(StoreError::Fenced);
    }
    tx.execute(CONFIRMED, params! { agent_id, epoch })?;
    if let Some((_, older)) = known.live {
        sessions::mark_ended(tx, agent_id, older, CloseCode::Superseded)?;
        let elsewhere = known.live_instance.filter(|owner| Some(*owner) != instance);
        if elsewhere.is_some() {
            tx.post(Post {
                to: elsewhere,
                agent_id,
                letter: Letter::Superseded { epoch: older },
            });
        }
    }
    if let Some(spki) = &request.proves {
        certificates::prove(tx, agent_id, spki)?;
    }
    if let Some(by) = &request.signed_by {
        certificates::signed_by(tx, agent_id, by)?;
    }
    settle_labels(tx, agent_id, epoch)
}

/// Stores the labels that a session says its gateway has. Hardly ever are they others than before.
fn settle_labels(tx: &Tx<'_>, agent_id: AgentId, epoch: u64) -> StoreResult<()> {
    let source = LabelSource::Gateway.name();
    let (mut announced, mut stored) = (BTreeMap::new(), BTreeMap::new());
    tx.each(LABELS, params! { agent_id, source, epoch }, |row| {
        let row = Reader::new("sessions", row);
        if let Some(key) = row.get::<Option<String>>("key")? {
            stored.insert(key, row.get::<String>("value")?);
        }
        announced = row.json("announced")?;
        Ok(ControlFlow::Continue(()))
    })?;
    if announced != stored {
        tx.execute(REMOVE_LABELS, params! { agent_id, source })?;
        tx.execute(ADD_LABELS, params! { agent_id, source, epoch })?;
    }
    Ok(())
}

/// Whether a session may become its gateway's live one.
pub(super) fn judge(known: &Identity, request: &ConfirmRequest) -> Confirmation {
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
