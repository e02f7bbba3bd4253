//! Machines become gateways: a challenge is answered, a ticket used and a gateway made in one transaction.
//!
//! Challenges are no rows: the backends recognise their own. What is kept is each that somebody with a ticket answered,
//! until none would take it any more.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};
use viworks_common::enrolment::NameRule;
use viworks_common::id::{AgentId, GatewayName, InstallId, TicketId};
use viworks_common::network::IpNetwork;
use viworks_common::time::Timestamp;
use viworks_runtime::fault;
use viworks_runtime::sqlite::{Row, params};

use super::row::Reader;
use super::tx::{Tx, View};
use super::{agents, authorities, certificates, pins, replacements, tickets};
use crate::data::{
    Actor, AnsweredChallenge, AuditOutcome, EnrolledBefore, Foreseen, Gateway, GatewayRef,
    RedeemOutcome, Redemption, RefusedRedemption, StoreError, StoreResult, StoredTicket,
    TicketRefusal,
};

/// Seconds until the same thing is recorded again that somebody with a ticket can do without end.
const RECORDED_EVERY_SECONDS: u64 = 3_600;

pub(super) const FORGET_CHALLENGES: &str =
    "DELETE FROM enrolment_challenges WHERE tenant = :tenant AND expires_at <= :now";

pub(super) const CONSUME: &str = "\
INSERT INTO enrolment_challenges (tenant, challenge, ticket_id, expires_at)
VALUES (:tenant, :challenge, :id, :expires_at) ON CONFLICT (tenant, challenge) DO NOTHING";

pub(super) const BY_KEY: &str = "\
SELECT ticket_id, agent_id, install_id, certificate, epoch FROM enrolments WHERE tenant = :tenant AND spki = :spki";

pub(super) const ADD: &str = "\
INSERT INTO enrolments (tenant, spki, ticket_id, agent_id, install_id, certificate, enrolled_at, epoch)
VALUES (:tenant, :spki, :id, :agent_id, :install_id, :certificate, :now, :epoch)";

/// Of a gateway that has not been connected so far, which pins and authorities it was given last.
pub(super) const GIVEN: &str = "\
UPDATE gateways SET pin_set_version = :version, authorities = :digest, authorities_at = :given_at
WHERE tenant = :tenant AND agent_id = :agent_id AND confirmed = :epoch";

pub(super) const FORGET: &str = "\
DELETE FROM enrolments WHERE tenant = :tenant AND ticket_id IN (
    SELECT t.ticket_id FROM tickets AS t WHERE t.tenant = :tenant AND t.expires_at <= :until)";

pub(super) const FORGET_OF: &str =
    "DELETE FROM enrolments WHERE tenant = :tenant AND ticket_id = :id";

/// What of a ticket keeps a machine with this key from becoming a gateway, as far as a look tells.
pub(super) fn foresee(
    view: &View<'_>,
    id: TicketId,
    spki: &[u8; 32],
    peer: IpAddr,
    now: Timestamp,
) -> StoreResult<Option<Foreseen>> {
    let Some(ticket) = tickets::by_id(view, id)? else {
        return Ok(None);
    };
    let refusal = if ticket.revoked_at.is_some() {
        Some(TicketRefusal::Revoked)
    } else if let Some(enrolled) = view.optional(BY_KEY, params! { spki }, read)? {
        // Nothing is signed for whoever has it and goes on asking.
        let gateway = agents::load(view, &GatewayRef::Id(enrolled.agent_id))?;
        let unused = gateway.is_some_and(|gateway| is_unused(&gateway, &enrolled));
        (!unused).then_some(TicketRefusal::KeyInUse)
    } else {
        judge(&ticket, peer, now)
    };
    Ok(Some(Foreseen { ticket, refusal }))
}

/// Makes a gateway of whoever answered the challenge.
pub(super) fn redeem(tx: &Tx<'_>, redemption: &Redemption) -> StoreResult<RedeemOutcome> {
    let id = redemption.ticket;
    // One after another: a ticket's last use goes to one alone, and a repetition sees the first.
    tickets::lock(tx, id)?;
    let outcome = try_redeem(tx, redemption)?;
    if let RedeemOutcome::Refused(refusal) = outcome {
        let stranger = Actor::stranger().at_address(Some(redemption.peer));
        let detail = json!({ "why": refusal.name() });
        tickets::note_refused(tx, id, refusal.name(), &detail, &stranger)?;
    }
    Ok(outcome)
}

/// Consumes the challenge and records why nothing came of it; `false` when it was consumed before, which is recorded
/// instead.
pub(super) fn refuse(tx: &Tx<'_>, refused: &RefusedRedemption) -> StoreResult<bool> {
    let id = refused.ticket;
    tickets::lock(tx, id)?;
    let fresh = consume(tx, id, &refused.challenge)?;
    let (why, detail) = if fresh {
        let RefusedRedemption { why, told, .. } = refused;
        (*why, json!({ "why": why, "told": told }))
    } else {
        let why = TicketRefusal::Challenge.name();
        (why, json!({ "why": why }))
    };
    let stranger = Actor::stranger().at_address(Some(refused.peer));
    tickets::note_refused(tx, id, why, &detail, &stranger)?;
    Ok(fresh)
}

/// Consumes a challenge; `false` when it was consumed before.
pub(super) fn consume(
    tx: &Tx<'_>,
    id: TicketId,
    answered: &AnsweredChallenge,
) -> StoreResult<bool> {
    tx.execute(FORGET_CHALLENGES, &[])?;
    let AnsweredChallenge {
        challenge,
        expires_at,
    } = answered;
    Ok(tx.execute(CONSUME, params! { challenge, id, expires_at })? == 1)
}

/// Whether `what` about a ticket is to be recorded: for the first time in an hour. It is kept as a challenge is that
/// nobody gave.
pub(super) fn is_news(tx: &Tx<'_>, id: TicketId, what: &[&[u8]]) -> StoreResult<bool> {
    let mut digest = Sha256::new_with_prefix(b"viworks enrolment record\0");
    digest.update(id.as_uuid().as_bytes());
    for part in what {
        digest.update(part);
        digest.update([0_u8]);
    }
    let record = AnsweredChallenge {
        challenge: digest.finalize().into(),
        expires_at: tx
            .now
            .saturating_add(Duration::from_secs(RECORDED_EVERY_SECONDS)),
    };
    consume(tx, id, &record)
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
        peer,
        ..
    } = redemption;
    if !consume(tx, *id, challenge)? {
        // Unless this very intent did it, and the answer to that was lost: nobody else has the new gateway's id.
        let enrolled = tx.optional(BY_KEY, params! { spki }, read)?;
        return match enrolled {
            Some(enrolled) if redemption.replaces => {
                replacements::repeated(tx, redemption, &enrolled)
            }
            Some(enrolled) if enrolled.agent_id == gateway.agent_id => Ok(RedeemOutcome::Enrolled),
            Some(_) | None => refused(TicketRefusal::Challenge),
        };
    }
    let Some(ticket) = tickets::by_id(tx, *id)? else {
        return refused(TicketRefusal::Unknown);
    };
    if ticket.revoked_at.is_some() {
        return refused(TicketRefusal::Revoked);
    }
    certificates::lock(tx, spki)?;
    if let Some(enrolled) = tx.optional(BY_KEY, params! { spki }, read)? {
        return again(tx, redemption, &ticket, enrolled);
    }
    if let Some(refusal) = judge(&ticket, *peer, tx.now) {
        return refused(refusal);
    }
    if certificates::is_registered(tx, spki)? {
        return refused(TicketRefusal::KeyInUse);
    }
    let is_for_one = ticket.replaces.is_some_and(|one| one != gateway.agent_id);
    if is_for_one || (ticket.replaces.is_some() && !redemption.replaces) {
        return refused(TicketRefusal::Unknown);
    }
    if redemption.replaces {
        return replacements::redeem(tx, redemption, &ticket);
    }
    if let Some(refusal) = judge_name(tx, &ticket, &gateway.name)? {
        if redemption.has_other_name {
            // Everything is undone, the challenge as well: it comes again with the other name.
            return Err(StoreError::Conflict {
                what: format!("gateway name {}", gateway.name),
            });
        }
        return refused(refusal);
    }
    if !tickets::take_use(tx, *id)? {
        return refused(TicketRefusal::UsedUp);
    }
    let agent_id = gateway.agent_id;
    let actor = &Actor::gateway(agent_id).at_address(Some(*peer));
    agents::create(tx, gateway, actor)?;
    agents::came_of(tx, agent_id, &ticket)?;
    let epoch = 0_u64;
    tx.execute(
        ADD,
        params! { spki, id, agent_id, install_id, certificate, epoch },
    )?;
    let detail = json!({
        "gateway": gateway.name, "agent_id": agent_id, "install_id": install_id, "use": ticket.uses + 1,
    });
    tickets::note(tx, actor, "ticket.redeem", *id, AuditOutcome::Done, &detail)?;
    fault::point("store.redeem.before_commit");
    Ok(RedeemOutcome::Enrolled)
}

/// What of the ticket itself keeps a new gateway from coming of it.
fn judge(ticket: &StoredTicket, peer: IpAddr, now: Timestamp) -> Option<TicketRefusal> {
    if ticket.expires_at <= now {
        Some(TicketRefusal::Expired)
    } else if !is_allowed(ticket, peer) {
        Some(TicketRefusal::OtherNetwork)
    } else if ticket.uses >= ticket.uses_max {
        Some(TicketRefusal::UsedUp)
    } else {
        None
    }
}

fn is_allowed(ticket: &StoredTicket, peer: IpAddr) -> bool {
    let allowed = |network: &IpNetwork| network.contains(peer);
    ticket.networks.is_empty() || ticket.networks.iter().any(allowed)
}

/// What keeps a gateway of this ticket from being called so. The name of a revoked one is free for a ticket that is for
/// this name: a machine that was put out would come back under its name by any other one that it still has.
fn judge_name(
    tx: &Tx<'_>,
    ticket: &StoredTicket,
    name: &GatewayName,
) -> StoreResult<Option<TicketRefusal>> {
    tx.lock_name(&format!("gateway {name}"))?;
    let holder = agents::load(tx, &GatewayRef::Name(name.clone()))?;
    let is_meant = matches!(&ticket.naming, NameRule::Fixed(fixed) if fixed == name);
    Ok(match holder {
        None => None,
        Some(holder) if holder.revoked_at.is_none() => Some(TicketRefusal::NameTaken),
        Some(_revoked) if is_meant => None,
        Some(_revoked) => Some(TicketRefusal::NameOfRevoked),
    })
}

/// What came of a key before.
pub(super) struct Enrolled {
    ticket_id: TicketId,
    pub(super) agent_id: AgentId,
    install_id: InstallId,
    pub(super) certificate: String,
    /// The epoch that the gateway began with.
    pub(super) epoch: u64,
}

/// Whether no machine can have had the answer: none of it was connected.
fn is_unused(gateway: &Gateway, enrolled: &Enrolled) -> bool {
    gateway.revoked_at.is_none() && gateway.confirmed == enrolled.epoch
}

/// The same gateway for the same installation, which cannot have had the answer: it was never connected.
fn again(
    tx: &Tx<'_>,
    redemption: &Redemption,
    ticket: &StoredTicket,
    enrolled: Enrolled,
) -> StoreResult<RedeemOutcome> {
    let gateway = agents::load(tx, &GatewayRef::Id(enrolled.agent_id))?;
    let same =
        enrolled.ticket_id == redemption.ticket && enrolled.install_id == redemption.install_id;
    let unused = |gateway: &Gateway| same && is_unused(gateway, &enrolled);
    let Some(gateway) = gateway.filter(unused) else {
        return Ok(RedeemOutcome::Refused(TicketRefusal::KeyInUse));
    };
    // Its end is no matter: the gateway came of it in time. Where it is answered is.
    if !is_allowed(ticket, redemption.peer) {
        return Ok(RedeemOutcome::Refused(TicketRefusal::OtherNetwork));
    }
    let version = pins::given(tx, redemption.gateway.pins.as_ref())?;
    let (digest, given_at) = authorities::given(tx, redemption.gateway.authorities.as_ref())?;
    if version != gateway.pin_set_version || digest != gateway.authorities.as_deref() {
        // The answer has the pins and authorities of this moment, and not those of the one that was lost.
        let (agent_id, epoch) = (gateway.agent_id, enrolled.epoch);
        let params = params! { version, digest, given_at, agent_id, epoch };
        tx.execute(GIVEN, params)?;
    }
    let id = redemption.ticket;
    if is_news(tx, id, &[b"again", &redemption.spki])? {
        let detail =
            json!({ "gateway": gateway.name, "agent_id": gateway.agent_id, "again": true });
        let actor = Actor::gateway(gateway.agent_id).at_address(Some(redemption.peer));
        let done = AuditOutcome::Done;
        tickets::note(tx, &actor, "ticket.redeem", id, done, &detail)?;
    }
    Ok(RedeemOutcome::Before(EnrolledBefore {
        agent_id: gateway.agent_id,
        labels: agents::labels_of_operator(&gateway),
        name: gateway.name,
        key_generation: gateway.key_generation,
        epoch: enrolled.epoch,
        certificate: enrolled.certificate,
    }))
}

/// Forgets what came of tickets that ended before this time.
pub(super) fn forget(tx: &Tx<'_>, until: Timestamp) -> StoreResult<()> {
    tx.execute(FORGET, params! { until }).map(drop)
}

/// Forgets what came of a ticket.
pub(super) fn forget_of(tx: &Tx<'_>, id: TicketId) -> StoreResult<()> {
    tx.execute(FORGET_OF, params! { id }).map(drop)
}

fn read(row: &Row<'_>) -> StoreResult<Enrolled> {
    let row = Reader::new("enrolments", row);
    Ok(Enrolled {
        ticket_id: row.get("ticket_id")?,
        agent_id: row.get("agent_id")?,
        install_id: row.get("install_id")?,
        certificate: row.get("certificate")?,
        epoch: row.get("epoch")?,
    })
}
