//! A gateway whose certificate has ended gets another one at the door: a challenge is answered and the certificate
//! registered in one transaction, in place of the one before with the same key.

use std::net::IpAddr;

use serde_json::json;
use viworks_common::admission::{NotTheGateway, Shown, at_the_door};
use viworks_common::id::{AgentId, TicketId};
use viworks_common::renewal::has_lapsed;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::row::Reader;
use super::tx::{Tx, View};
use super::{agents, audit, certificates, earlier, enrolments, opening};
use crate::data::{
    Actor, AuditOutcome, GatewayRef, NewAuditRecord, NewCertificate, RefusedReissue, Reissue,
    ReissueOutcome, ReissueRefusal, StoreResult,
};

/// The records of what the door answered a gateway.
const RENEWED: &str = "certificate.renew_at_door";
/// The records of somebody who says at the door that it is a gateway, and does not have its key.
const UNPROVED: &str = "gateway.unproved_renewal";

pub(super) const BY_KEY: &str = "\
SELECT spki, agent_id, not_after, fingerprint, unproved, retired_at IS NOT NULL AS retired, revoked_at IS NOT NULL AS revoked
FROM certificates WHERE tenant = :tenant AND spki = :spki";

/// Until a session is confirmed with it, it is as one that was issued over a session: its text is kept, so that whoever
/// lost the answer gets it again.
pub(super) const REISSUE: &str = "\
UPDATE certificates SET serial = :serial, not_after = :not_after, fingerprint = :fingerprint, issuer = :issuer,
       shown_until = NULL, renewed_at = :now, unproved = :pem
WHERE tenant = :tenant AND spki = :spki AND agent_id = :agent_id AND retired_at IS NULL AND revoked_at IS NULL";

/// What is registered for a key.
struct Known {
    spki: [u8; 32],
    agent_id: AgentId,
    not_after: Timestamp,
    fingerprint: [u8; 32],
    /// Its certificate, while no session was confirmed with that.
    unproved: Option<String>,
    /// A session was confirmed with a later one, or it was revoked.
    retired: bool,
    /// It alone was revoked.
    revoked: bool,
}

/// Registers another certificate for a key whose own has ended.
pub(super) fn reissue(tx: &Tx<'_>, reissue: &Reissue) -> StoreResult<ReissueOutcome> {
    let agent_id = reissue.certificate.agent_id;
    tx.lock([agent_id])?;
    let outcome = try_reissue(tx, reissue)?;
    match &outcome {
        ReissueOutcome::Refused(refusal) => {
            note(tx, RENEWED, agent_id, reissue.peer, refusal.name())?;
        }
        ReissueOutcome::TooSoon(_) => note(tx, RENEWED, agent_id, reissue.peer, "too_soon")?,
        ReissueOutcome::Issued | ReissueOutcome::Before(_) => {}
    }
    Ok(outcome)
}

/// What comes of a key of this gateway, as far as a look tells; none where a certificate would be made.
pub(super) fn foresee(
    view: &View<'_>,
    agent_id: AgentId,
    spki: &[u8; 32],
    shown: Shown,
    times: (Timestamp, Timestamp),
) -> StoreResult<Option<ReissueOutcome>> {
    let known = view.optional(BY_KEY, params! { spki }, read)?;
    let known = known.filter(|known| known.agent_id == agent_id);
    Ok(judge(view, agent_id, known, shown, times)?.err())
}

/// Consumes the challenge, where one was answered, and records why nothing came of it, where nothing did; `false` when
/// it was consumed before, which is recorded instead.
pub(super) fn refuse(tx: &Tx<'_>, refused: &RefusedReissue) -> StoreResult<bool> {
    let RefusedReissue {
        agent_id,
        challenge,
        peer,
        why,
    } = refused;
    tx.lock([*agent_id])?;
    let Some(challenge) = challenge else {
        if let Some(why) = why {
            note(tx, UNPROVED, *agent_id, *peer, why)?;
        }
        return Ok(true);
    };
    let fresh = enrolments::consume(tx, named(*agent_id), challenge)?;
    let why = if fresh {
        *why
    } else {
        Some(ReissueRefusal::Challenge.name())
    };
    if let Some(why) = why {
        note(tx, RENEWED, *agent_id, *peer, why)?;
    }
    Ok(fresh)
}

/// A challenge that was answered is kept with the id that it was given for, whatever that names.
const fn named(agent_id: AgentId) -> TicketId {
    TicketId::from_uuid(*agent_id.as_uuid())
}

/// Records a refusal, as far as that has a bound; nothing of a gateway that there is not.
fn note(tx: &Tx<'_>, action: &str, agent_id: AgentId, peer: IpAddr, why: &str) -> StoreResult<()> {
    if agents::load(tx, &GatewayRef::Id(agent_id))?.is_none() {
        return Ok(());
    }
    let record = NewAuditRecord {
        actor: Actor::stranger().at_address(Some(peer)),
        action: action.to_owned(),
        object: Actor::gateway(agent_id).to_string(),
        outcome: AuditOutcome::Refused,
        detail: json!({ "why": why }),
    };
    audit::note(tx, agent_id, record).map(drop)
}

fn try_reissue(tx: &Tx<'_>, reissue: &Reissue) -> StoreResult<ReissueOutcome> {
    let refused = |refusal| Ok(ReissueOutcome::Refused(refusal));
    let Reissue {
        challenge,
        peer,
        shown,
        wall,
        certificate,
        pem,
    } = reissue;
    let NewCertificate {
        agent_id,
        spki,
        serial,
        not_after,
        fingerprint,
        issuer,
    } = certificate;
    let known = tx.optional(BY_KEY, params! { spki }, read)?;
    let known = known.filter(|known| known.agent_id == *agent_id);
    if !enrolments::consume(tx, named(*agent_id), challenge)? {
        // Unless this very intent did it, and the answer to that was lost: nobody else has that certificate.
        return match known {
            Some(known) if known.fingerprint == *fingerprint => Ok(ReissueOutcome::Issued),
            Some(_) | None => refused(ReissueRefusal::Challenge),
        };
    }
    let end = match judge(tx, *agent_id, known, *shown, (*wall, tx.now))? {
        Ok(end) => end,
        Err(other) => return Ok(other),
    };
    earlier::keep(tx, *agent_id, spki)?;
    tx.execute(
        REISSUE,
        params! { spki, agent_id, serial, not_after, fingerprint, issuer, pem },
    )?;
    // That of whoever comes back behind another holder may be good for long.
    let word = if end <= *wall { "ended" } else { "ends" };
    let detail = json!({ "serial": serial, "not_after": not_after, (word): end });
    let actor = Actor::gateway(*agent_id).at_address(Some(*peer));
    agents::note(tx, &actor, RENEWED, *agent_id, &detail)?;
    Ok(ReissueOutcome::Issued)
}

/// When the certificate ends in whose place there may be another one, for whoever shows this. Whether it has ended is
/// a matter of the wall clock, or the listener and the door could both refuse the same certificate; a pause is one of
/// the time line.
fn judge(
    view: &View<'_>,
    agent_id: AgentId,
    known: Option<Known>,
    shown: Shown,
    (wall, now): (Timestamp, Timestamp),
) -> StoreResult<Result<Timestamp, ReissueOutcome>> {
    let refused = |refusal| Ok(Err(ReissueOutcome::Refused(refusal)));
    let Some(identity) = opening::identity(view, agent_id, None)? else {
        return refused(ReissueRefusal::NotTheGateway(NotTheGateway::BadToken));
    };
    let awaited = identity
        .kept
        .is_some_and(|kept| kept.is_awaited(identity.row.confirmed));
    if let Err(other) = at_the_door(&identity.row, shown, awaited) {
        return refused(ReissueRefusal::NotTheGateway(other));
    }
    let Some(known) = known else {
        return refused(ReissueRefusal::UnknownKey);
    };
    // One that was revoked counts as retired as well, and that is not why.
    if known.revoked {
        return refused(ReissueRefusal::CertificateRevoked);
    }
    if known.retired {
        return refused(ReissueRefusal::RetiredKey);
    }
    if !has_lapsed(known.not_after, wall) {
        if let Some(pem) = known.unproved {
            return Ok(Err(ReissueOutcome::Before(pem)));
        }
        // The holder that an operator keeps may have lost the answer to it, or somebody with its files got it, and its
        // text is gone since the other came in.
        if !(awaited && earlier::has(view, agent_id, &known.spki)?) {
            return refused(ReissueRefusal::NotLapsed(known.not_after));
        }
    }
    let wait = certificates::pause(view, agent_id, now)?;
    Ok(wait.map_or(Ok(known.not_after), |wait| {
        Err(ReissueOutcome::TooSoon(wait))
    }))
}

fn read(row: &Row<'_>) -> StoreResult<Known> {
    let row = Reader::new("certificates", row);
    Ok(Known {
        spki: row.get("spki")?,
        agent_id: row.get("agent_id")?,
        not_after: row.get("not_after")?,
        fingerprint: row.get("fingerprint")?,
        unproved: row.get("unproved")?,
        retired: row.get("retired")?,
        revoked: row.get("revoked")?,
    })
}
