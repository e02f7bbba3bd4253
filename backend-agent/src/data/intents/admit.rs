//! HELLO: who may open a session.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use viworks_common::admission::{
    Admission, HelloFacts, IdentityRow, admit as decide, is_left_behind,
};
use viworks_common::fork::Holder;
use viworks_common::ledger::session;
use viworks_common::limits::COUNTER_MAX;
use viworks_common::rules::Complete;
use viworks_common::telemetry::Position;
use viworks_runtime::sqlite::params;

use super::opening::{self, Identity};
use super::row::to_json;
use super::tx::Tx;
use super::{agents, audit, forks, settle, standing, telemetry};
use crate::data::{
    Actor, AdmitOutcome, AdmitRequest, Admitted, AuditOutcome, LiveSession, StoreResult,
    TelemetryLimits,
};

/// No order that a gateway claims to have seen raises its counter further: a lie cannot exhaust the numbers. Half of
/// them are left, more than a gateway can be sent in its life.
const ORDER_MAX: u64 = COUNTER_MAX / 2;

pub(super) const OPEN: &str = "\
INSERT INTO sessions (tenant, agent_id, epoch, session_id, agent_run_id, install_id, boot_id, peer_address,
                      fingerprint, agent_version, labels, pin_set_version, admitted_at)
VALUES (:tenant, :agent_id, :epoch, :session_id, :agent_run_id, :install_id, :boot_id, :peer_address,
        :fingerprint, :agent_version, :labels, :pin_set_version, :now)";

/// Sessions of one gateway whose history is kept.
pub(super) const SESSIONS_KEPT: u64 = 1_000;

/// Forgets the oldest sessions of a gateway that opened very many: all but the one that is live. One that was never
/// confirmed has no end, and cannot be confirmed after so many others.
pub(super) const FORGET_SESSIONS: &str = "\
DELETE FROM sessions
WHERE tenant = :tenant AND agent_id = :agent_id AND epoch <= :last
      AND epoch IS DISTINCT FROM (SELECT session_epoch FROM gateways WHERE tenant = :tenant AND agent_id = :agent_id)";

/// A HELLO that is accepted.
struct Accepted<'a> {
    request: &'a AdmitRequest,
    known: &'a Identity,
    presented: u64,
    issued: u64,
    after: IdentityRow,
    /// The highest order that the gateway saw, when the database does not know that much.
    rolled_back_to: Option<u64>,
}

/// Judges a HELLO. `limits` is what the gateway may have stored.
pub(super) fn admit(
    tx: &Tx<'_>,
    request: &AdmitRequest,
    limits: &TelemetryLimits,
) -> StoreResult<AdmitOutcome> {
    tx.lock_telemetry([request.agent_id])?;
    tx.lock([request.agent_id])?;
    let Some(known) = opening::identity(tx, request.agent_id, None)? else {
        return Ok(AdmitOutcome::Unknown);
    };
    // While the owner of an identity is on its way past a copy, nobody else may move its counters.
    let (standing, now) = (&known.standing, standing::clock(tx.now));
    if let Some(wait) = standing.favours_another(Complete, request.agent_run_id, now) {
        return Ok(AdmitOutcome::Favoured(wait));
    }
    let accepted = |presented, issued, after, rolled_back_to| Accepted {
        request,
        known: &known,
        presented,
        issued,
        after,
        rolled_back_to,
    };
    let accepted = match decide(&known.row, &facts(request, &known)) {
        Admission::Accept {
            presented,
            issued,
            row,
        } => accepted(presented, issued, row, None),
        Admission::RolledBack {
            presented,
            issued,
            row,
            highest_order,
        } => accepted(presented, issued, row, Some(highest_order)),
        Admission::Late => return Ok(AdmitOutcome::Late),
        Admission::Fork => {
            forks::record(tx, request)?;
            return Ok(AdmitOutcome::Fork);
        }
        Admission::BadToken => {
            refuse(tx, request, "bad_token")?;
            return Ok(AdmitOutcome::BadToken);
        }
        Admission::Revoked => {
            refuse(tx, request, "revoked")?;
            return Ok(AdmitOutcome::Revoked);
        }
        Admission::StaleKey => {
            // Whichever of two holders was given the later key, an operator has to find the copied disk.
            if is_left_behind(&known.row, &facts(request, &known)) {
                forks::record(tx, request)?;
            }
            refuse(tx, request, "stale_key")?;
            return Ok(AdmitOutcome::StaleKey);
        }
    };
    let admitted = open(tx, &accepted, limits)?;
    Ok(AdmitOutcome::Accepted(Box::new(admitted)))
}

/// What the decision about a HELLO is made from.
pub(super) fn facts(request: &AdmitRequest, known: &Identity) -> HelloFacts {
    let holder = Holder {
        install_id: request.install_id,
        boot_id: request.boot_id,
        agent_run_id: request.agent_run_id,
    };
    HelloFacts {
        epoch: request.epoch,
        token_valid: request.token_valid,
        agent_run_id: request.agent_run_id,
        key_generation: request.key_generation,
        highest_order: request.highest_order.min(ORDER_MAX),
        low_water: request.low_water.min(ORDER_MAX),
        confirmed_at_challenge: request.confirmed_at_challenge,
        kept: known
            .kept
            .is_some_and(|kept| kept.lets_in(&holder, known.row.confirmed)),
    }
}

fn refuse(tx: &Tx<'_>, request: &AdmitRequest, why: &str) -> StoreResult<()> {
    let (peer_address, epoch) = (&request.peer_address, request.epoch);
    let detail = json!({ "why": why, "peer_address": peer_address, "epoch": epoch });
    let (action, outcome) = ("session.open", AuditOutcome::Refused);
    audit::of_gateway(tx, request.agent_id, action, outcome, detail).map(drop)
}

/// Writes an accepted HELLO, and what it proves about the database.
fn open(tx: &Tx<'_>, accepted: &Accepted<'_>, limits: &TelemetryLimits) -> StoreResult<Admitted> {
    let Accepted {
        request,
        known,
        presented,
        issued,
        after,
        rolled_back_to,
    } = accepted;
    let agent_id = request.agent_id;
    opening::swap(tx, agent_id, &known.row, after)?;
    let params = params! {
        agent_id, epoch: issued, session_id: request.session_id, agent_run_id: request.agent_run_id,
        install_id: request.install_id, boot_id: request.boot_id, peer_address: request.peer_address,
        fingerprint: request.fingerprint, agent_version: request.agent_version, labels: to_json(&request.labels),
        pin_set_version: request.pin_set_version,
    };
    tx.execute(OPEN, params)?;
    if after.key_generation != known.row.key_generation {
        let (generation, before) = (after.key_generation, known.row.key_generation);
        let detail = json!({ "generation": generation, "before": before });
        let actor = Actor::gateway(agent_id);
        agents::note(tx, &actor, "gateway.key_in_use", agent_id, &detail)?;
    }
    if *issued > SESSIONS_KEPT {
        let last = issued - SESSIONS_KEPT;
        tx.execute(FORGET_SESSIONS, params! { agent_id, last })?;
    }
    let remembered = telemetry::settle_positions(tx, agent_id, &request.telemetry, limits)?;
    let low_water = match rolled_back_to {
        Some(highest_order) => settle_rolled_back(tx, request, *highest_order)?,
        None => after.low_water,
    };
    let refused = remembered.refused;
    let forgotten = remembered.missing > 0 || !refused.is_empty();
    if forgotten {
        let detail = json!({
            "epoch": request.epoch, "telemetry_records_missing": remembered.missing,
            "telemetry_records_refused": refused,
        });
        let (action, outcome) = ("telemetry.rolled_back", AuditOutcome::Noted);
        audit::of_gateway(tx, agent_id, action, outcome, detail)?;
    }
    Ok(Admitted {
        low_water,
        rolled_back: rolled_back_to.is_some() || forgotten,
        refused,
        ..admitted(request, known, (*presented, *issued), remembered.positions)
    })
}

/// What a HELLO comes to that is accepted and proves nothing about the database.
pub(super) fn admitted(
    request: &AdmitRequest,
    known: &Identity,
    (presented, issued): (u64, u64),
    committed: Vec<Position>,
) -> Admitted {
    Admitted {
        presented,
        issued,
        low_water: known.row.low_water,
        rolled_back: false,
        refused: BTreeMap::new(),
        committed,
        catalogue_known: known.catalogue_digest.as_deref() == Some(&request.catalogue_digest),
        live_session: known.live.map(|(session_id, epoch)| LiveSession {
            session_id,
            epoch,
            same_agent_run: known.live_run == Some(request.agent_run_id),
        }),
    }
}

/// The database forgot what happened since a backup: whatever may have run meanwhile can never be offered again.
fn settle_rolled_back(tx: &Tx<'_>, request: &AdmitRequest, highest_order: u64) -> StoreResult<u64> {
    let agent_id = request.agent_id;
    let unreported: BTreeSet<_> = request.unreported.iter().copied().collect();
    let open = settle::load_open(tx, agent_id, highest_order)?;
    let changes = session::settle_rolled_back(open, &unreported, tx.now);
    settle::write(tx, &changes, &Actor::system())?;
    let ended = changes.iter().filter(|change| change.ends()).count();
    let low_water = settle::raise_low_water(tx, agent_id)?;
    let detail = json!({ "epoch": request.epoch, "highest_order": highest_order, "ended": ended });
    let (action, outcome) = ("database.rolled_back", AuditOutcome::Noted);
    audit::of_gateway(tx, agent_id, action, outcome, detail)?;
    Ok(low_water)
}
