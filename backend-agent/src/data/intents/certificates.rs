//! The certificates registered for gateways.

use std::time::Duration;

use serde_json::{Value, json};
use viworks_common::code::CloseCode;
use viworks_common::command::format_digest;
use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::inbox::Post;
use super::row::Reader;
use super::sessions::fence;
use super::tx::{Tx, View};
use super::{agents, earlier, sessions};
use crate::data::{
    Actor, Certificate, CertificateRef, CertificateRevocation, EarlierCertificate, GatewayRef,
    Letter, NewCertificate, RegisteredCertificate, Renewal, RenewalOutcome, RevokedCertificate,
    SignedBy, StoreError, StoreResult, WithdrawnCertificate,
};

pub(super) const REGISTER: &str = "\
INSERT INTO certificates (tenant, spki, agent_id, serial, not_after, fingerprint, issuer, registered_at)
VALUES (:tenant, :spki, :agent_id, :serial, :not_after, :fingerprint, :issuer, :now) ON CONFLICT DO NOTHING";

pub(super) const LOAD: &str = "\
SELECT c.serial, c.not_after, c.fingerprint, g.revoked_at IS NOT NULL OR c.revoked_at IS NOT NULL AS revoked,
       g.revoked_at IS NULL AS gateway_goes_on, g.confirmed,
       c.retired_at IS NOT NULL AS retired, c.replaced_at IS NOT NULL AS replaced,
       c.unproved IS NOT NULL AS unproved, c.issuer, c.shown_until, g.name AS gateway
FROM certificates AS c
JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id
WHERE c.tenant = :tenant AND c.spki = :spki AND c.agent_id = :agent_id";

/// What came of a key that is asked for.
pub(super) const BY_KEY: &str = "\
SELECT agent_id, not_after, fingerprint, unproved FROM certificates WHERE tenant = :tenant AND spki = :spki";

/// How many certificates a gateway got over its sessions since then, and how many were in no session so far.
pub(super) const RENEWALS: &str = "\
SELECT count(*) FILTER (WHERE renewed_at > :since) AS renewals,
       min(renewed_at) FILTER (WHERE renewed_at > :since) AS first, max(renewed_at) AS last,
       count(*) FILTER (WHERE unproved IS NOT NULL) AS unproved
FROM certificates WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const RENEW: &str = "\
INSERT INTO certificates (
    tenant, spki, agent_id, serial, not_after, fingerprint, issuer, registered_at, renewed_at, unproved)
VALUES (:tenant, :spki, :agent_id, :serial, :not_after, :fingerprint, :issuer, :now, :now, :pem)
ON CONFLICT DO NOTHING";

/// Of one that was registered before that was stored, or in whose place another one was signed by hand for its key;
/// not of one that came in its place at the door since.
pub(super) const SIGNED_BY: &str = "\
UPDATE certificates SET issuer = :issuer, shown_until = :shown_until
WHERE tenant = :tenant AND spki = :spki AND agent_id = :agent_id AND fingerprint = :registered";

pub(super) const PROVED: &str = "\
UPDATE certificates SET unproved = NULL
WHERE tenant = :tenant AND spki = :spki AND agent_id = :agent_id AND unproved IS NOT NULL";

pub(super) const RETIRE: &str = "\
UPDATE certificates SET retired_at = :now, unproved = NULL
WHERE tenant = :tenant AND agent_id = :agent_id AND spki <> :spki AND retired_at IS NULL
      AND registered_at <= (SELECT o.registered_at FROM certificates AS o WHERE o.tenant = :tenant AND o.spki = :spki)";

/// Whatever a gateway has, when another machine takes its place with this key: also what retired before belongs to a
/// machine that is not the gateway any more.
pub(super) const REPLACE: &str = "\
UPDATE certificates SET retired_at = coalesce(retired_at, :now), replaced_at = :now, unproved = NULL
WHERE tenant = :tenant AND agent_id = :agent_id AND spki <> :spki AND replaced_at IS NULL";

/// TLS refuses them by their end, long before they are forgotten; so are those that were in no session.
pub(super) const FORGET: &str = "\
DELETE FROM certificates
WHERE tenant = :tenant AND agent_id = :agent_id AND (retired_at IS NOT NULL OR unproved IS NOT NULL OR revoked_at IS NOT NULL)
      AND not_after < :until";

/// The columns that [`read_registered`] reads.
macro_rules! registered {
    ($rest:literal) => {
        concat!(
            "SELECT spki, serial, fingerprint, registered_at, coalesce(renewed_at, registered_at) AS issued_at, \
             not_after, revoked_at, retired_at, unproved IS NOT NULL AS unproved FROM certificates \
             WHERE tenant = :tenant AND agent_id = :agent_id ",
            $rest
        )
    };
}

pub(super) const LIST: &str = registered!("ORDER BY registered_at DESC, fingerprint LIMIT :limit");

/// Those that were issued over a session and may be used by whoever asked for them: with the key of the gateway, that
/// may have been somebody else.
pub(super) const UNPROVED: &str = registered!(
    "AND unproved IS NOT NULL AND not_after > :after ORDER BY registered_at DESC, fingerprint LIMIT 8"
);

/// By what a person copies from elsewhere, also of an earlier certificate of the key: other programs leave out the
/// zeros in front of a serial number.
pub(super) const MEANT: &str = registered!(
    "AND (fingerprint = :fingerprint OR ltrim(serial, '0') = ltrim(CAST(:serial AS text), '0') OR spki IN ( \
         SELECT e.spki FROM reissued AS e WHERE e.tenant = :tenant AND e.agent_id = :agent_id \
         AND (e.fingerprint = :fingerprint OR ltrim(e.serial, '0') = ltrim(CAST(:serial AS text), '0')))) \
     ORDER BY registered_at DESC LIMIT 2"
);

/// What is withdrawn is a key: also the earlier certificates of it.
pub(super) const WITHDRAWN: &str = "\
SELECT c.serial AS serial, coalesce(c.revoked_at, g.revoked_at, c.retired_at) AS since,
       c.revoked_at IS NOT NULL OR g.revoked_at IS NOT NULL AS revoked, c.not_after AS not_after
FROM certificates AS c
JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id
WHERE c.tenant = :tenant AND c.not_after > :after
      AND (c.revoked_at IS NOT NULL OR g.revoked_at IS NOT NULL OR c.retired_at IS NOT NULL)
UNION ALL
SELECT e.serial, coalesce(c.revoked_at, g.revoked_at, c.retired_at),
       c.revoked_at IS NOT NULL OR g.revoked_at IS NOT NULL, e.not_after
FROM reissued AS e
JOIN certificates AS c ON c.tenant = e.tenant AND c.spki = e.spki AND c.agent_id = e.agent_id
JOIN gateways AS g ON g.tenant = e.tenant AND g.agent_id = e.agent_id
WHERE e.tenant = :tenant AND e.not_after > :after
      AND (c.revoked_at IS NOT NULL OR g.revoked_at IS NOT NULL OR c.retired_at IS NOT NULL)
ORDER BY 3 DESC, 4 DESC, 1 LIMIT :limit";

/// Its text goes: whoever lost the answer does not get it again. A backend of before that is beside this one knows
/// nothing of revoked certificates, and refuses retired ones.
pub(super) const REVOKE: &str = "\
UPDATE certificates SET revoked_at = :now, retired_at = coalesce(retired_at, :now), unproved = NULL
WHERE tenant = :tenant AND agent_id = :agent_id AND spki = :spki AND revoked_at IS NULL";

/// A session that showed a certificate, or an earlier one for the same key. Of which key one was that nobody remembers
/// is not known, such as where a backend of before has issued the later one: a session that is ended in vain opens
/// again.
macro_rules! shown {
    () => {
        "tenant = :tenant AND agent_id = :agent_id AND (fingerprint = :fingerprint OR fingerprint IN ( \
             SELECT e.fingerprint FROM reissued AS e \
             WHERE e.tenant = :tenant AND e.agent_id = :agent_id AND e.spki = :spki) OR fingerprint NOT IN ( \
             SELECT c.fingerprint FROM certificates AS c WHERE c.tenant = :tenant AND c.agent_id = :agent_id \
             UNION ALL \
             SELECT e.fingerprint FROM reissued AS e WHERE e.tenant = :tenant AND e.agent_id = :agent_id))"
    };
}

/// The last confirmed one of these.
pub(super) const SHOWN: &str = concat!(
    "SELECT epoch FROM sessions WHERE ",
    shown!(),
    " AND confirmed_at IS NOT NULL ORDER BY epoch DESC LIMIT 1"
);

/// Also those that wait to be confirmed.
pub(super) const END_SHOWN: &str = concat!(
    "UPDATE sessions SET ended_at = :now, code = :code WHERE ",
    shown!(),
    " AND ended_at IS NULL"
);

/// How soon a gateway gets another certificate, and how many in an hour.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
const RENEWAL_SPAN: Duration = Duration::from_secs(3_600);
const RENEWALS_MAX: u64 = 6;

/// A gateway with so many that were in no session gets one an hour: it uses none of them, whatever the reason.
const UNPROVED_MAX: u64 = 32;

/// Certificates that are not accepted any more, of all gateways, which are told of at once.
const WITHDRAWN_MAX: usize = 100_000;

/// Certificates of one gateway that are listed, the latest.
const LISTED: usize = 1_000;

pub(super) const REGISTERED: &str =
    "SELECT agent_id FROM certificates WHERE tenant = :tenant AND spki = :spki";

/// Whether a key is somebody's.
pub(super) fn is_registered(view: &View<'_>, spki: &[u8; 32]) -> StoreResult<bool> {
    let found = view.optional(REGISTERED, params! { spki }, |_row| Ok(()))?;
    Ok(found.is_some())
}

/// Has a key to itself until the transaction ends: of two that ask for one key at two backends at once, the second one
/// sees what came of the first. Before gateways are locked, so that nobody waits in a circle.
pub(super) fn lock(tx: &Tx<'_>, spki: &[u8; 32]) -> StoreResult<()> {
    tx.lock_name(&format!("key {}", format_digest(spki)))
}

/// Registers a key for one gateway, forever.
pub(super) fn register(tx: &Tx<'_>, new: &NewCertificate, actor: &Actor) -> StoreResult<()> {
    let NewCertificate {
        agent_id,
        spki,
        serial,
        not_after,
        fingerprint,
        issuer,
    } = new;
    if agents::load(tx, &GatewayRef::Id(*agent_id))?.is_none() {
        return Err(StoreError::Missing {
            what: format!("gateway {agent_id}"),
        });
    }
    let params = params! { spki, agent_id, serial, not_after, fingerprint, issuer };
    if tx.execute(REGISTER, params)? == 0 {
        // Registered before, and the answer to that was lost; or somebody else has the key.
        return match load(tx, *agent_id, spki)? {
            Some(known) if known.fingerprint == *fingerprint => Ok(()),
            Some(_) | None => Err(StoreError::Conflict {
                what: "a certificate for this key".to_owned(),
            }),
        };
    }
    let detail = json!({ "serial": serial, "not_after": not_after });
    agents::note(tx, actor, "certificate.register", *agent_id, &detail)
}

/// What came of a key before.
struct Known {
    agent_id: AgentId,
    not_after: Timestamp,
    fingerprint: [u8; 32],
    /// Its certificate, while no session was confirmed with that.
    unproved: Option<String>,
}

/// Registers a certificate that a gateway asked for over its session, beside the one in use.
pub(super) fn renew(tx: &Tx<'_>, renewal: &Renewal) -> StoreResult<RenewalOutcome> {
    let NewCertificate {
        agent_id,
        spki,
        serial,
        not_after,
        fingerprint,
        issuer,
    } = &renewal.certificate;
    lock(tx, spki)?;
    fence(tx, *agent_id, renewal.epoch)?;
    if let Some(known) = tx.optional(BY_KEY, params! { spki }, read_known)? {
        return Ok(match known.unproved {
            // This very intent did it, and the answer to that was lost.
            Some(_) if known.fingerprint == *fingerprint => RenewalOutcome::Issued,
            // One that has ended is of no use to anybody.
            Some(pem) if known.agent_id == *agent_id && known.not_after > tx.now => {
                RenewalOutcome::Before(pem)
            }
            Some(_) | None => RenewalOutcome::KeyInUse,
        });
    }
    if let Some(wait) = pause(tx, *agent_id, tx.now)? {
        return Ok(RenewalOutcome::TooSoon(wait));
    }
    let until = tx.now.saturating_sub(earlier::ENDED_KEPT);
    tx.execute(FORGET, params! { agent_id, until })?;
    earlier::forget(tx, *agent_id)?;
    let pem = &renewal.pem;
    let params = params! { spki, agent_id, serial, not_after, fingerprint, issuer, pem };
    if tx.execute(RENEW, params)? == 0 {
        // Who registers one for an operator, or is of an earlier version, locks nothing.
        return Ok(RenewalOutcome::KeyInUse);
    }
    let detail = json!({ "serial": serial, "not_after": not_after });
    let actor = Actor::gateway(*agent_id);
    agents::note(tx, &actor, "certificate.renew", *agent_id, &detail)?;
    Ok(RenewalOutcome::Issued)
}

/// How long a gateway has to wait for another certificate, because of those that it got.
pub(super) fn pause(
    view: &View<'_>,
    agent_id: AgentId,
    now: Timestamp,
) -> StoreResult<Option<Duration>> {
    let since = now.saturating_sub(RENEWAL_SPAN);
    let (renewals, first, last, unproved) =
        view.one(RENEWALS, params! { agent_id, since }, |row| {
            let row = Reader::new("certificates", row);
            Ok((
                row.get::<u64>("renewals")?,
                row.get::<Option<Timestamp>>("first")?,
                row.get::<Option<Timestamp>>("last")?,
                row.get::<u64>("unproved")?,
            ))
        })?;
    let after = |at: Option<Timestamp>, span| {
        let left = at?.saturating_add(span).saturating_since(now);
        (!left.is_zero()).then_some(left)
    };
    let full = (renewals >= RENEWALS_MAX)
        .then(|| after(first, RENEWAL_SPAN))
        .flatten();
    let between = if unproved >= UNPROVED_MAX {
        RENEWAL_SPAN
    } else {
        RENEWAL_PAUSE
    };
    Ok(full.max(after(last, between)))
}

/// Notes that a session is confirmed with a certificate that was issued over one: every earlier one retires.
pub(super) fn prove(tx: &Tx<'_>, agent_id: AgentId, spki: &[u8; 32]) -> StoreResult<()> {
    if tx.execute(PROVED, params! { agent_id, spki })? == 0 {
        return Ok(());
    }
    let retired = tx.execute(RETIRE, params! { agent_id, spki })?;
    let (actor, detail) = (Actor::gateway(agent_id), json!({ "retired": retired }));
    agents::note(tx, &actor, "certificate.prove", agent_id, &detail)
}

/// Stores which authority signed the certificate that a session is confirmed with, and how long that is good.
pub(super) fn signed_by(tx: &Tx<'_>, agent_id: AgentId, by: &SignedBy) -> StoreResult<()> {
    let SignedBy {
        spki,
        registered,
        issuer,
        shown_until,
    } = by;
    let params = params! { agent_id, spki, registered, issuer, shown_until };
    tx.execute(SIGNED_BY, params).map(drop)
}

/// Retires every certificate of a gateway but the one of the machine that takes its place.
pub(super) fn replace(tx: &Tx<'_>, agent_id: AgentId, spki: &[u8; 32]) -> StoreResult<()> {
    tx.execute(REPLACE, params! { agent_id, spki }).map(drop)
}

/// The latest certificates of a gateway.
pub(super) fn list(view: &View<'_>, agent_id: AgentId) -> StoreResult<Vec<RegisteredCertificate>> {
    let params = params! { agent_id, limit: LISTED };
    view.all(LIST, params, |row| Ok(read_registered(row)?.1))
}

/// The certificates that are not accepted any more and end later than this.
pub(super) fn withdrawn(
    view: &View<'_>,
    after: Timestamp,
) -> StoreResult<Vec<WithdrawnCertificate>> {
    let params = params! { after, limit: WITHDRAWN_MAX };
    view.all(WITHDRAWN, params, |row| {
        let row = Reader::new("certificates", row);
        Ok(WithdrawnCertificate {
            serial: row.get("serial")?,
            since: row.get("since")?,
            revoked: row.get("revoked")?,
        })
    })
}

/// Revokes one certificate, and ends the session that was opened with it; the others of its gateway go on.
pub(super) fn revoke(
    tx: &Tx<'_>,
    agent_id: AgentId,
    which: &CertificateRef,
    reason: &str,
    actor: &Actor,
) -> StoreResult<CertificateRevocation> {
    tx.lock_telemetry([agent_id])?;
    tx.lock([agent_id])?;
    let Some(gateway) = agents::load(tx, &GatewayRef::Id(agent_id))? else {
        return Ok(CertificateRevocation::Unknown);
    };
    let (fingerprint, serial) = which.parts();
    let params = params! { agent_id, fingerprint, serial };
    let mut meant = tx.all(MEANT, params, read_registered)?;
    let Some((spki, mut certificate)) = meant.pop() else {
        return Ok(CertificateRevocation::Unknown);
    };
    if !meant.is_empty() {
        return Ok(CertificateRevocation::Ambiguous);
    }
    let named = if is(&certificate, which) {
        None
    } else {
        earlier::meant(tx, agent_id, &spki, which)?
    };
    let fingerprint = certificate.fingerprint;
    let shown_by = params! { agent_id, fingerprint, spki };
    let shown: Option<u64> = tx.optional(SHOWN, shown_by, |row| {
        Reader::new("sessions", row).get("epoch")
    })?;
    let already = certificate.revoked_at.is_some();
    let live = gateway
        .session
        .filter(|session| Some(session.epoch) == shown);
    if !already {
        tx.execute(REVOKE, params! { agent_id, spki })?;
        let code = CloseCode::Revoked.name();
        tx.execute(END_SHOWN, params! { agent_id, fingerprint, spki, code })?;
        certificate.revoked_at = Some(tx.now);
        certificate.retired_at = certificate.retired_at.or(Some(tx.now));
        certificate.unproved = false;
        // `audit` keeps it for good.
        let detail = told(&certificate, named.as_ref(), reason);
        agents::note(tx, actor, "certificate.revoke", agent_id, &detail)?;
    }
    // The one that was meant is none of them any more.
    let after = tx.now;
    let unproved = tx.all(UNPROVED, params! { agent_id, after }, read_registered)?;
    let session_ended = live.is_some();
    if let Some(session) = live {
        if session.instance.is_some() {
            tx.post(Post {
                to: session.instance,
                agent_id,
                letter: Letter::CertificateRevoked {
                    epoch: session.epoch,
                },
            });
        }
        sessions::end(tx, agent_id, session.epoch, CloseCode::Revoked)?;
    }
    Ok(CertificateRevocation::Revoked(Box::new(
        RevokedCertificate {
            already,
            session_ended,
            // Also of one that is over: if the answer to that was lost, nobody has told the session here.
            epoch: shown,
            certificate,
            named,
            unproved: unproved.into_iter().map(|(_spki, other)| other).collect(),
        },
    )))
}

/// Whether it is this one that is named, rather than an earlier one of its key.
fn is(certificate: &RegisteredCertificate, which: &CertificateRef) -> bool {
    match which {
        CertificateRef::Fingerprint(fingerprint) => certificate.fingerprint == *fingerprint,
        CertificateRef::Serial(serial) => {
            certificate.serial.trim_start_matches('0') == serial.trim_start_matches('0')
        }
    }
}

/// What is recorded of a revocation; which earlier certificate was named, where one was.
fn told(
    certificate: &RegisteredCertificate,
    named: Option<&EarlierCertificate>,
    reason: &str,
) -> Value {
    let (serial, fingerprint) = (&certificate.serial, hex::encode(certificate.fingerprint));
    match named {
        None => json!({ "serial": serial, "fingerprint": fingerprint, "reason": reason }),
        Some(named) => {
            let earlier = json!({
                "serial": named.serial, "fingerprint": hex::encode(named.fingerprint),
            });
            json!({ "serial": serial, "fingerprint": fingerprint, "reason": reason, "named": earlier })
        }
    }
}

/// A certificate with its key (SHA-256).
fn read_registered(row: &Row<'_>) -> StoreResult<([u8; 32], RegisteredCertificate)> {
    let row = Reader::new("certificates", row);
    let certificate = RegisteredCertificate {
        serial: row.get("serial")?,
        fingerprint: row.get("fingerprint")?,
        registered_at: row.get("registered_at")?,
        issued_at: row.get("issued_at")?,
        not_after: row.get("not_after")?,
        revoked_at: row.get("revoked_at")?,
        retired_at: row.get("retired_at")?,
        unproved: row.get("unproved")?,
    };
    Ok((row.get("spki")?, certificate))
}

fn read_known(row: &Row<'_>) -> StoreResult<Known> {
    let row = Reader::new("certificates", row);
    Ok(Known {
        agent_id: row.get("agent_id")?,
        not_after: row.get("not_after")?,
        fingerprint: row.get("fingerprint")?,
        unproved: row.get("unproved")?,
    })
}

/// What is known about a key presented for a gateway.
pub(super) fn load(
    view: &View<'_>,
    agent_id: AgentId,
    spki: &[u8; 32],
) -> StoreResult<Option<Certificate>> {
    view.optional(LOAD, params! { agent_id, spki }, read)
}

/// Reads what [`LOAD`] selects.
pub(super) fn read(row: &Row<'_>) -> StoreResult<Certificate> {
    let row = Reader::new("certificates", row);
    Ok(Certificate {
        gateway: row.get("gateway")?,
        serial: row.get("serial")?,
        not_after: row.get("not_after")?,
        fingerprint: row.get("fingerprint")?,
        issuer: row.get("issuer")?,
        shown_until: row.get("shown_until")?,
        revoked: row.get("revoked")?,
        gateway_goes_on: row.get("gateway_goes_on")?,
        retired: row.get("retired")?,
        replaced: row.get("replaced")?,
        unproved: row.get("unproved")?,
        confirmed: row.get("confirmed")?,
    })
}
