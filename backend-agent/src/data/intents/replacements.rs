//! A machine takes the place of another one: the same gateway, with another key, and ephemeral ones that stayed away.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use tracing::warn;
use viworks_common::code::CloseCode;
use viworks_common::id::AgentId;
use viworks_common::ledger::session::{Successor, settle_older};
use viworks_common::rotation;
use viworks_common::rules::Complete;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::params;

use super::enrolments::{self, Enrolled};
use super::inbox::Post;
use super::row::{Reader, column};
use super::tx::{Tx, View};
use super::{agents, authorities, certificates, pins, sessions, settle, tickets};
use crate::data::{
    Actor, AuditOutcome, Gateway, GatewayRef, Letter, RedeemOutcome, Redemption, Replaced, Revoked,
    Settled, StoreError, StoreResult, StoredTicket, TicketRefusal,
};

/// Seconds for which nobody takes a gateway's place by its name alone after something was heard of it: two machines
/// that call themselves the same would take it from each other in turns, and one that has just enrolled is on its way.
const HEARD_LATELY_SECONDS: u64 = 60;

/// The epoch is above every one that was issued, so that nothing the machine before has is worth anything: a HELLO of
/// it is below the confirmed epoch, and its key below the generation that is accepted. Counters of orders go on.
/// What is known of the machine before says nothing of this one: neither what its agent can, nor of which master key
/// its secrets are, nor which pins and authorities it has: this one has those that it is given.
pub(super) const REPLACE: &str = "\
UPDATE gateways SET revoked_at = NULL, revoked_by = NULL, revoked_reason = NULL, issued = issued + 1,
       confirmed = issued + 1, key_generation = :generation, key_wanted = NULL, takes_keys = NULL, key_master = NULL,
       authorities = :digest, authorities_at = :given_at, pin_set_version = :version,
       last_agent_run_id = NULL, session_epoch = NULL, session_instance = NULL, favoured_run = NULL,
       favoured_until = NULL, take_overs = '[]', kept_epoch = NULL, last_seen_at = :now
WHERE tenant = :tenant AND agent_id = :agent_id
RETURNING agent_id, confirmed, key_generation";

/// Nobody of them has the identity any more, or a key of it: to give it to one of them would put the new machine out
/// and let nobody in.
pub(super) const END_FORKS: &str =
    "DELETE FROM forks WHERE tenant = :tenant AND agent_id = :agent_id";

/// Ephemeral gateways that were away for longer than they may be.
pub(super) const ABSENT: &str = "\
SELECT agent_id FROM gateways INDEXED BY gateways_ephemeral
WHERE tenant = :tenant AND ephemeral_ms IS NOT NULL AND revoked_at IS NULL AND session_epoch IS NULL
      AND coalesce(last_seen_at, created_at) + 1000 * ephemeral_ms <= :now
ORDER BY agent_id LIMIT :limit";

/// Gives a gateway to the machine that redeems a ticket which is for that.
pub(super) fn redeem(
    tx: &Tx<'_>,
    redemption: &Redemption,
    ticket: &StoredTicket,
) -> StoreResult<RedeemOutcome> {
    let refused = |refusal| Ok(RedeemOutcome::Refused(refusal));
    let agent_id = redemption.gateway.agent_id;
    tx.lock_telemetry([agent_id])?;
    tx.lock([agent_id])?;
    let Some(gateway) = agents::load(tx, &GatewayRef::Id(agent_id))? else {
        return refused(TicketRefusal::Unknown);
    };
    if gateway.name != redemption.gateway.name {
        // It was renamed since, and its certificate has the old name: it comes again.
        return Err(StoreError::Conflict {
            what: format!("the name of the gateway {agent_id}"),
        });
    }
    if ticket.replaces.is_none()
        && let Some(refusal) = judge(tx, &gateway, ticket)
    {
        return refused(refusal);
    }
    if gateway.revoked_at.is_some_and(|at| at > ticket.created_at) {
        // Whoever revoked it did not mean that a ticket of before brings it back.
        return refused(TicketRefusal::NameOfRevoked);
    }
    let Some(generation) = rotation::above(gateway.key_generation, gateway.key_wanted) else {
        return refused(TicketRefusal::KeysUsedUp);
    };
    if !tickets::take_use(tx, redemption.ticket)? {
        return refused(TicketRefusal::UsedUp);
    }
    let replaced = replace(tx, redemption, &gateway, ticket, generation)?;
    Ok(RedeemOutcome::Replaced(Box::new(replaced)))
}

/// What keeps a machine from taking a gateway's place by its name alone.
fn judge(tx: &Tx<'_>, gateway: &Gateway, ticket: &StoredTicket) -> Option<TicketRefusal> {
    let heard = gateway.last_seen_at.unwrap_or(gateway.created_at);
    let lately = Duration::from_secs(HEARD_LATELY_SECONDS);
    if !ticket.allow_replace {
        Some(TicketRefusal::NameTaken)
    } else if gateway.revoked_at.is_some() {
        Some(TicketRefusal::NameOfRevoked)
    } else if gateway.session.is_some() || heard.saturating_add(lately) > tx.now {
        Some(TicketRefusal::Connected)
    } else {
        None
    }
}

fn replace(
    tx: &Tx<'_>,
    redemption: &Redemption,
    gateway: &Gateway,
    ticket: &StoredTicket,
    generation: u32,
) -> StoreResult<Replaced> {
    let Redemption {
        ticket: id,
        install_id,
        spki,
        certificate,
        peer,
        ..
    } = redemption;
    let agent_id = gateway.agent_id;
    let actor = &Actor::gateway(agent_id).at_address(Some(*peer));
    let version = pins::given(tx, redemption.gateway.pins.as_ref())?;
    let (digest, given_at) = authorities::given(tx, redemption.gateway.authorities.as_ref())?;
    let params = params! { agent_id, generation, version, digest, given_at };
    let (epoch, key_generation) = tx.one(REPLACE, params, |row| {
        let row = Reader::new("gateways", row);
        Ok((
            row.get::<u64>("confirmed")?,
            row.get::<u32>("key_generation")?,
        ))
    })?;
    tx.execute(END_FORKS, params! { agent_id })?;
    if let Some(session) = &gateway.session {
        if session.instance.is_some() {
            tx.post(Post {
                to: session.instance,
                agent_id,
                letter: Letter::Superseded {
                    epoch: session.epoch,
                },
            });
        }
        sessions::mark_ended(tx, agent_id, session.epoch, CloseCode::Superseded)?;
    }
    if let Some(first) = &redemption.gateway.certificate {
        certificates::register(tx, first, actor)?;
    }
    certificates::replace(tx, agent_id, spki)?;
    // By what it is for: a gateway that an operator gives another machine stays what it was.
    if ticket.replaces.is_none() {
        agents::came_of(tx, agent_id, ticket)?;
    }
    let ended = end_what_ran(tx, agent_id)?;
    tx.execute(
        enrolments::ADD,
        params! { spki, id, agent_id, install_id, certificate, epoch },
    )?;
    let detail = json!({
        "gateway": gateway.name, "agent_id": agent_id, "install_id": install_id, "use": ticket.uses + 1,
        "replaced": true,
    });
    tickets::note(tx, actor, "ticket.redeem", *id, AuditOutcome::Done, &detail)?;
    let detail = json!({
        "ticket": id, "install_id": install_id, "epoch": epoch, "key_generation": key_generation,
        "was_revoked": gateway.revoked_at.is_some(), "session_ended": gateway.session.is_some(),
        "ended": ended.len(),
    });
    agents::note(tx, actor, "gateway.replace", agent_id, &detail)?;
    Ok(Replaced {
        labels: agents::labels_of_operator(gateway),
        key_generation,
        epoch,
        ended,
    })
}

/// What was with the machine before is what an earlier process left without a trace: the new one has no journal of it.
fn end_what_ran(tx: &Tx<'_>, agent_id: AgentId) -> StoreResult<Vec<Settled>> {
    let open = settle::load_open(tx, agent_id, u64::MAX)?;
    let older = settle_older(Complete, open, &Successor::to_come(), tx.now);
    let mut ended = Vec::new();
    for change in &older.changes {
        let written = settle::write(tx, [change], &Actor::system())?;
        if change.ends() {
            ended.push(settle::settled(&change.command, written.run_finished));
        }
    }
    Ok(ended)
}

/// The same again, when this very redemption did it and the answer to that was lost: nobody else has its certificate.
pub(super) fn repeated(
    tx: &Tx<'_>,
    redemption: &Redemption,
    enrolled: &Enrolled,
) -> StoreResult<RedeemOutcome> {
    let gateway = agents::load(tx, &GatewayRef::Id(enrolled.agent_id))?;
    let is_same = enrolled.certificate == redemption.certificate;
    let unused = |gateway: &Gateway| {
        is_same && gateway.revoked_at.is_none() && gateway.confirmed == enrolled.epoch
    };
    let Some(gateway) = gateway.filter(unused) else {
        return Ok(RedeemOutcome::Refused(TicketRefusal::Challenge));
    };
    Ok(RedeemOutcome::Replaced(Box::new(Replaced {
        labels: agents::labels_of_operator(&gateway),
        key_generation: gateway.key_generation,
        epoch: enrolled.epoch,
        // Whoever follows them looks again.
        ended: Vec::new(),
    })))
}

/// Ephemeral gateways that stayed away: the first of them.
pub(super) fn absent(view: &View<'_>, limit: usize, now: Timestamp) -> StoreResult<Vec<AgentId>> {
    let read = column("gateways", "agent_id");
    view.all(ABSENT, params! { limit, now }, read)
}

/// Removes ephemeral gateways that stayed away, some at a time: they are revoked, and their names are free.
pub(super) fn remove_absent(tx: &Tx<'_>, limit: usize) -> StoreResult<Vec<(AgentId, Revoked)>> {
    let mut removed = Vec::new();
    let read = || column::<AgentId>("gateways", "agent_id");
    let found = tx.all(ABSENT, params! { limit }, read())?;
    // In this order everywhere, and all of them before anything is written.
    tx.lock_telemetry(found.iter().copied())?;
    tx.lock(found.iter().copied())?;
    let still = tx.all(ABSENT, params! { limit }, read())?;
    let still: BTreeSet<AgentId> = still.into_iter().collect();
    for agent_id in found.into_iter().filter(|found| still.contains(found)) {
        let Some(gateway) = agents::load(tx, &GatewayRef::Id(agent_id))? else {
            continue;
        };
        let actor = Actor::system();
        let reason = Some("it is ephemeral and stayed away for longer than it may");
        if let Some(revoked) = agents::revoke(tx, agent_id, reason, &actor)? {
            // It keeps its name, and does not hold up the others.
            if agents::try_release_name(tx, &gateway.name, &actor)?.is_some() {
                warn!(%agent_id, "a removed gateway keeps its name: every other one for it is taken");
            }
            removed.push((agent_id, revoked));
        }
    }
    Ok(removed)
}
