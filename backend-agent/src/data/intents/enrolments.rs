//! Machines become gateways: a challenge is answered, a ticket used and a gateway made in one transaction.

use serde_json::json;
use viworks_common::id::{AgentId, InstallId, TicketId};
use viworks_common::network::IpNetwork;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::row::Reader;
use super::tx::Tx;
use super::{agents, certificates, tickets};
use crate::data::{
    Actor, AuditOutcome, ChallengeOutcome, EnrolledBefore, Gateway, GatewayRef, RedeemOutcome,
    Redemption, StoreResult, StoredTicket, TicketRefusal,
};

/// Challenges of one ticket that may wait at a time.
const OF_TICKET_MAX: u64 = 1_000;
/// Challenges of all tickets that may wait at a time.
const WAITING_MAX: u64 = 10_000;

pub(super) const FORGET_CHALLENGES: &str =
    "DELETE FROM enrolment_challenges WHERE tenant = :tenant AND expires_at <= :now";

pub(super) const WAITING: &str = "\
SELECT count(*) AS waiting, count(*) FILTER (WHERE ticket_id = :id) AS of_ticket
FROM enrolment_challenges WHERE tenant = :tenant";

pub(super) const CHALLENGE: &str = "\
INSERT INTO enrolment_challenges (tenant, challenge, ticket_id, expires_at)
VALUES (:tenant, :challenge, :id, :expires_at) ON CONFLICT (tenant, challenge) DO NOTHING";

pub(super) const CONSUME: &str = "\
DELETE FROM enrolment_challenges
WHERE tenant = :tenant AND challenge = :challenge AND ticket_id = :id AND expires_at > :now";

pub(super) const BY_KEY: &str = "\
SELECT ticket_id, agent_id, install_id, certificate FROM enrolments WHERE tenant = :tenant AND spki = :spki";

pub(super) const ADD: &str = "\
INSERT INTO enrolments (tenant, spki, ticket_id, agent_id, install_id, certificate, enrolled_at)
VALUES (:tenant, :spki, :id, :agent_id, :install_id, :certificate, :now)";

pub(super) const FORGET: &str = "\
DELETE FROM enrolments WHERE tenant = :tenant AND ticket_id IN (
    SELECT t.ticket_id FROM tickets AS t WHERE t.tenant = :tenant AND t.expires_at <= :until)";

/// Keeps a challenge for one redemption.
pub(super) fn challenge(
    tx: &Tx<'_>,
    id: TicketId,
    challenge: &[u8; 32],
    expires_at: Timestamp,
) -> StoreResult<ChallengeOutcome> {
    tx.execute(FORGET_CHALLENGES, &[])?;
    if tickets::by_id(tx, id)?.is_none() {
        return Ok(ChallengeOutcome::Unknown);
    }
    let count = |row: &Row<'_>| {
        let row = Reader::new("enrolment_challenges", row);
        Ok((row.get::<u64>("waiting")?, row.get::<u64>("of_ticket")?))
    };
    let (waiting, of_ticket) = tx.one(WAITING, params! { id }, count)?;
    if waiting >= WAITING_MAX || of_ticket >= OF_TICKET_MAX {
        return Ok(ChallengeOutcome::Full);
    }
    tx.execute(CHALLENGE, params! { challenge, id, expires_at })?;
    Ok(ChallengeOutcome::Kept)
}

/// Makes a gateway of whoever answered the challenge.
pub(super) fn redeem(tx: &Tx<'_>, redemption: &Redemption) -> StoreResult<RedeemOutcome> {
    let id = redemption.ticket;
    // One after another: a ticket's last use goes to one alone, and a repetition sees the first.
    tx.lock_name(&format!("ticket {id}"))?;
    let outcome = try_redeem(tx, redemption)?;
    if let RedeemOutcome::Refused(refusal) = outcome {
        let stranger = Actor::stranger().at_address(Some(redemption.peer));
        let detail = json!({ "why": refusal.name() });
        tickets::note_refused(tx, id, &detail, &stranger)?;
    }
    Ok(outcome)
}

fn try_redeem(tx: &Tx<'_>, redemption: &Redemption) -> StoreResult<RedeemOutcome> {
    let refused = |refusal| Ok(RedeemOutcome::Refused(refusal));
    let Redemption {
        ticket: id,
        challenge,
        install_id,
        gateway,
        spki,
        certificate,
        ..
    } = redemption;
    if tx.execute(CONSUME, params! { challenge, id })? == 0 {
        return refused(TicketRefusal::Challenge);
    }
    let Some(ticket) = tickets::by_id(tx, *id)? else {
        return refused(TicketRefusal::Unknown);
    };
    if ticket.revoked_at.is_some() {
        return refused(TicketRefusal::Revoked);
    }
    if let Some(enrolled) = tx.optional(BY_KEY, params! { spki }, read)? {
        return again(tx, redemption, enrolled);
    }
    if let Some(refusal) = judge(&ticket, redemption, tx.now) {
        return refused(refusal);
    }
    if certificates::is_registered(tx, spki)? {
        return refused(TicketRefusal::KeyInUse);
    }
    if !tickets::take_use(tx, *id)? {
        return refused(TicketRefusal::UsedUp);
    }
    let agent_id = gateway.agent_id;
    let actor = &Actor::gateway(agent_id).at_address(Some(redemption.peer));
    agents::create(tx, gateway, actor)?;
    tx.execute(ADD, params! { spki, id, agent_id, install_id, certificate })?;
    let detail = json!({
        "gateway": gateway.name, "agent_id": agent_id, "install_id": install_id, "use": ticket.uses + 1,
    });
    tickets::note(tx, actor, "ticket.redeem", *id, AuditOutcome::Done, &detail)?;
    Ok(RedeemOutcome::Enrolled)
}

/// What of the ticket itself keeps a new gateway from coming of it.
fn judge(ticket: &StoredTicket, redemption: &Redemption, now: Timestamp) -> Option<TicketRefusal> {
    let allowed = |network: &IpNetwork| network.contains(redemption.peer);
    if ticket.expires_at <= now {
        Some(TicketRefusal::Expired)
    } else if !ticket.networks.is_empty() && !ticket.networks.iter().any(allowed) {
        Some(TicketRefusal::OtherNetwork)
    } else if ticket.uses >= ticket.uses_max {
        Some(TicketRefusal::UsedUp)
    } else {
        None
    }
}

/// What came of a key before.
struct Enrolled {
    ticket_id: TicketId,
    agent_id: AgentId,
    install_id: InstallId,
    certificate: String,
}

/// The same gateway for the same installation, which cannot have had the answer: it was never connected.
fn again(tx: &Tx<'_>, redemption: &Redemption, enrolled: Enrolled) -> StoreResult<RedeemOutcome> {
    let gateway = agents::load(tx, &GatewayRef::Id(enrolled.agent_id))?;
    let same =
        enrolled.ticket_id == redemption.ticket && enrolled.install_id == redemption.install_id;
    let unused = |gateway: &Gateway| gateway.revoked_at.is_none() && gateway.confirmed == 0 && same;
    let Some(gateway) = gateway.filter(unused) else {
        return Ok(RedeemOutcome::Refused(TicketRefusal::KeyInUse));
    };
    let detail = json!({ "gateway": gateway.name, "agent_id": gateway.agent_id, "again": true });
    let (id, actor) = (redemption.ticket, Actor::gateway(gateway.agent_id));
    let actor = &actor.at_address(Some(redemption.peer));
    tickets::note(tx, actor, "ticket.redeem", id, AuditOutcome::Done, &detail)?;
    Ok(RedeemOutcome::Before(EnrolledBefore {
        agent_id: gateway.agent_id,
        name: gateway.name,
        key_generation: gateway.key_generation,
        certificate: enrolled.certificate,
    }))
}

/// Forgets what came of tickets that ended before this time.
pub(super) fn forget(tx: &Tx<'_>, until: Timestamp) -> StoreResult<()> {
    tx.execute(FORGET, params! { until }).map(drop)
}

fn read(row: &Row<'_>) -> StoreResult<Enrolled> {
    let row = Reader::new("enrolments", row);
    Ok(Enrolled {
        ticket_id: row.get("ticket_id")?,
        agent_id: row.get("agent_id")?,
        install_id: row.get("install_id")?,
        certificate: row.get("certificate")?,
    })
}
