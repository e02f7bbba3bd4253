//! HELLO: who may open a session, decided for many gateways together.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use sqlx::SqliteConnection;
use viworks_common::admission::{Admission, HelloFacts, IdentityRow, admit as decide};
use viworks_common::command::CommandEvent;
use viworks_common::id::Tenant;
use viworks_common::limits::COUNTER_MAX;
use viworks_common::time::Timestamp;

use super::opening::{self, Identity};
use super::row::{int, to_json};
use super::settle::{self, Note};
use super::{audit, forks, telemetry};
use crate::data::{
    Actor, AdmitOutcome, AdmitRequest, Admitted, AuditOutcome, LiveSession, StoreResult,
    TelemetryLimits,
};

/// No order that a gateway claims to have seen raises its counter further: a lie cannot exhaust the numbers. Half of them
/// are left, more than a gateway can be sent in its life.
const ORDER_MAX: u64 = COUNTER_MAX / 2;

/// What accepted HELLOs change.
pub(super) const ADMIT: &str = concat!(
    opening::swap!(""),
    "INSERT INTO sessions (tenant, agent_id, epoch, session_id, agent_run_id, install_id, boot_id, peer_address, \
                           fingerprint, agent_version, labels, pin_set_version, admitted_at) \
     SELECT $1, value ->> 0, value ->> 10, value ->> 11, value ->> 12, value ->> 13, value ->> 14, value ->> 15, \
            unhex(value ->> 16), value ->> 17, value ->> 18, value ->> 19, value ->> 9 FROM json_each($2)"
);

/// Sessions of one gateway whose history is kept.
const SESSIONS_KEPT: u64 = 1_000;

/// Forgets the oldest sessions of gateways that opened very many: `[agent_id, epoch]`.
pub(super) const FORGET_SESSIONS: &str = "\
DELETE FROM sessions WHERE (tenant, agent_id, epoch) IN (
    SELECT s.tenant, s.agent_id, s.epoch FROM json_each(?2) AS e
    CROSS JOIN sessions AS s ON s.tenant = ?1 AND s.agent_id = e.value ->> 0 AND s.epoch <= e.value ->> 1)
AND ended_at IS NOT NULL";

/// A HELLO to be judged.
#[derive(Debug, Clone)]
pub(super) struct Hello {
    pub(super) request: AdmitRequest,
    /// What the gateway may have stored.
    pub(super) limits: TelemetryLimits,
    pub(super) now: Timestamp,
}

/// A HELLO that is accepted.
struct Accepted<'a> {
    number: usize,
    hello: &'a Hello,
    known: &'a Identity,
    presented: u64,
    issued: u64,
    after: IdentityRow,
    /// The highest order that the gateway saw, when the database does not know that much.
    rolled_back_to: Option<u64>,
}

/// Judges HELLOs that came together.
pub(super) async fn admit(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    hellos: &[Hello],
) -> StoreResult<Vec<StoreResult<AdmitOutcome>>> {
    let mut answers = BTreeMap::new();
    for round in opening::rounds(hellos.iter().map(|hello| hello.request.agent_id)) {
        let one_each: Vec<_> = round
            .iter()
            .filter_map(|number| hellos.get(*number))
            .collect();
        let outcomes = admit_one_each(connection, tenant, &one_each).await?;
        answers.extend(round.into_iter().zip(outcomes));
    }
    Ok(answers.into_values().map(Ok).collect())
}

/// Judges HELLOs of different gateways.
async fn admit_one_each(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    hellos: &[&Hello],
) -> StoreResult<Vec<AdmitOutcome>> {
    let wanted: Vec<_> = hellos
        .iter()
        .map(|hello| (hello.request.agent_id, None))
        .collect();
    let identities = opening::identities(connection, tenant, &wanted).await?;
    let mut outcomes = BTreeMap::new();
    let mut accepted = Vec::new();
    for (number, hello) in hellos.iter().enumerate() {
        let Some(known) = identities.get(&number) else {
            outcomes.insert(number, AdmitOutcome::Unknown);
            continue;
        };
        let mut accept = |presented, issued, after, rolled_back_to| {
            accepted.push(Accepted {
                number,
                hello,
                known,
                presented,
                issued,
                after,
                rolled_back_to,
            });
        };
        let refused = match decide(&known.row, &facts(&hello.request)) {
            Admission::Accept {
                presented,
                issued,
                row,
            } => {
                accept(presented, issued, row, None);
                continue;
            }
            Admission::RolledBack {
                presented,
                issued,
                row,
                highest_order,
            } => {
                accept(presented, issued, row, Some(highest_order));
                continue;
            }
            Admission::Late => AdmitOutcome::Late,
            Admission::Fork => {
                forks::record(connection, tenant, &hello.request, hello.now).await?;
                AdmitOutcome::Fork
            }
            Admission::BadToken => {
                refuse(connection, tenant, hello, "bad_token").await?;
                AdmitOutcome::BadToken
            }
            Admission::Revoked => {
                refuse(connection, tenant, hello, "revoked").await?;
                AdmitOutcome::Revoked
            }
            Admission::StaleKey => {
                refuse(connection, tenant, hello, "stale_key").await?;
                AdmitOutcome::StaleKey
            }
        };
        outcomes.insert(number, refused);
    }
    for (number, admitted) in write(connection, tenant, &accepted).await? {
        outcomes.insert(number, AdmitOutcome::Accepted(Box::new(admitted)));
    }
    Ok(outcomes.into_values().collect())
}

fn facts(request: &AdmitRequest) -> HelloFacts {
    HelloFacts {
        epoch: request.epoch,
        token_valid: request.token_valid,
        agent_run_id: request.agent_run_id,
        key_generation: request.key_generation,
        highest_order: request.highest_order.min(ORDER_MAX),
        low_water: request.low_water.min(ORDER_MAX),
        confirmed_at_challenge: request.confirmed_at_challenge,
    }
}

async fn refuse(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    hello: &Hello,
    why: &str,
) -> StoreResult<()> {
    let request = &hello.request;
    let detail =
        json!({ "why": why, "peer_address": request.peer_address, "epoch": request.epoch });
    audit::of_gateway(
        connection,
        tenant,
        request.agent_id,
        "session.open",
        AuditOutcome::Refused,
        detail,
        hello.now,
    )
    .await?;
    Ok(())
}

/// Writes accepted HELLOs, and what they prove about the database; answers them by their places.
async fn write(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    accepted: &[Accepted<'_>],
) -> StoreResult<Vec<(usize, Admitted)>> {
    let Some(now) = accepted.iter().map(|accepted| accepted.hello.now).max() else {
        return Ok(Vec::new());
    };
    let document: Vec<_> = accepted.iter().map(Accepted::document).collect();
    let rows = sqlx::query(ADMIT)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(&mut *connection)
        .await?;
    opening::check_swapped(&rows, accepted.len())?;
    let old: Vec<_> = accepted
        .iter()
        .filter(|accepted| accepted.issued > SESSIONS_KEPT)
        .map(|accepted| {
            let last = int(accepted.issued - SESSIONS_KEPT);
            (accepted.hello.request.agent_id, last)
        })
        .collect();
    if !old.is_empty() {
        sqlx::query(FORGET_SESSIONS)
            .bind(tenant.as_str())
            .bind(to_json(&old))
            .execute(&mut *connection)
            .await?;
    }
    let named: Vec<_> = accepted
        .iter()
        .map(|accepted| {
            let request = &accepted.hello.request;
            (request.agent_id, request.telemetry.as_slice())
        })
        .collect();
    let limits = accepted
        .first()
        .map(|it| it.hello.limits)
        .unwrap_or_default();
    let positions = telemetry::settle_positions(connection, tenant, &named, limits, now).await?;
    let mut answers = Vec::with_capacity(accepted.len());
    for (accepted, positions) in accepted.iter().zip(positions) {
        let admitted = admitted(connection, tenant, accepted, positions).await?;
        answers.push((accepted.number, admitted));
    }
    Ok(answers)
}

impl Accepted<'_> {
    fn document(&self) -> Vec<serde_json::Value> {
        let Hello { request, now, .. } = self.hello;
        let session = [
            json!(int(self.issued)),
            json!(request.session_id),
            json!(request.agent_run_id),
            json!(request.install_id),
            json!(request.boot_id),
            json!(request.peer_address),
            json!(hex::encode(request.fingerprint)),
            json!(request.agent_version),
            json!(to_json(&request.labels)),
            json!(int(request.pin_set_version)),
        ];
        opening::element(
            request.agent_id,
            &self.known.row,
            &self.after,
            *now,
            session,
        )
    }
}

/// The answer to an accepted HELLO; what it proves to be forgotten is settled and noted.
async fn admitted(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    accepted: &Accepted<'_>,
    positions: telemetry::Settled,
) -> StoreResult<Admitted> {
    let Hello { request, now, .. } = accepted.hello;
    let mut low_water = accepted.after.low_water;
    if let Some(highest_order) = accepted.rolled_back_to {
        low_water = settle_rolled_back(connection, tenant, request, highest_order, *now).await?;
    }
    let refused = positions.refused;
    let rolled_back = positions.missing > 0 || !refused.is_empty();
    if rolled_back {
        let detail = json!({
            "epoch": request.epoch, "telemetry_records_missing": positions.missing,
            "telemetry_records_refused": refused,
        });
        audit::of_gateway(
            connection,
            tenant,
            request.agent_id,
            "telemetry.rolled_back",
            AuditOutcome::Noted,
            detail,
            *now,
        )
        .await?;
    }
    let known = accepted.known;
    Ok(Admitted {
        presented: accepted.presented,
        issued: accepted.issued,
        low_water,
        rolled_back: accepted.rolled_back_to.is_some() || rolled_back,
        refused,
        committed: positions.positions,
        catalogue_known: known.catalogue_digest.as_deref() == Some(&request.catalogue_digest),
        live_session: known.live.map(|(session_id, epoch)| LiveSession {
            session_id,
            epoch,
            same_agent_run: known.live_run == Some(request.agent_run_id),
        }),
    })
}

/// The database forgot what happened since a backup: whatever may have run meanwhile can never be offered again.
async fn settle_rolled_back(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    request: &AdmitRequest,
    highest_order: u64,
    now: Timestamp,
) -> StoreResult<u64> {
    let unreported: BTreeSet<_> = request.unreported.iter().copied().collect();
    let mut ended = 0_u64;
    for mut command in
        settle::load_open(connection, tenant, request.agent_id, highest_order).await?
    {
        if unreported.contains(&command.command_id) {
            continue;
        }
        let reason = Note {
            reason: Some("the backend's database was rolled back past it"),
            ..Note::default()
        };
        let event = CommandEvent::RolledBack;
        settle::apply(
            connection,
            tenant,
            &mut command,
            event,
            reason,
            &Actor::system(),
            now,
        )
        .await?;
        ended += u64::from(command.state.is_final());
    }
    let low_water = settle::raise_low_water(connection, tenant, request.agent_id).await?;
    let detail = json!({ "epoch": request.epoch, "highest_order": highest_order, "ended": ended });
    audit::of_gateway(
        connection,
        tenant,
        request.agent_id,
        "database.rolled_back",
        AuditOutcome::Noted,
        detail,
        now,
    )
    .await?;
    Ok(low_water)
}
