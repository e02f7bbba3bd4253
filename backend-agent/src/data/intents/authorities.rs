//! The authorities that gateways are given: what is in each bundle, which gateways have which, and whose certificates
//! they signed.

use std::ops::ControlFlow;

use viworks_common::id::AgentId;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::link::Sql;
use super::page::following;
use super::row::{Reader, column, to_json};
use super::sessions::fence;
use super::tx::{Tx, View};
use crate::data::{
    AuthorityBundle, AuthorityTrust, BUNDLE_KEPT_FOR, BundleHolders, Signed, SignedFor,
    StoreResult, Tally, Unaware,
};

pub(super) const NOTE: &str = "\
INSERT INTO authority_bundles (tenant, digest, authority, noted_at) VALUES (:tenant, :digest, :authority, :now)
ON CONFLICT (tenant, digest, authority) DO UPDATE SET noted_at = excluded.noted_at";

/// What is noted of a bundle, and not about to be forgotten.
pub(super) const FRESH: &str = "\
SELECT authority FROM authority_bundles WHERE tenant = :tenant AND digest = :digest AND noted_at > :since";

/// Those that a gateway has stay: what is in them decides whether it would be cut off.
pub(super) const FORGET: &str = "\
DELETE FROM authority_bundles
WHERE tenant = :tenant AND noted_at <= :since AND digest NOT IN (
    SELECT g.authorities FROM gateways AS g
    WHERE g.tenant = :tenant AND g.revoked_at IS NULL AND g.authorities IS NOT NULL)";

pub(super) const REPORT: &str = "\
UPDATE gateways SET authorities = :digest, authorities_at = :now WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const BUNDLES: &str =
    "SELECT digest, authority FROM authority_bundles WHERE tenant = :tenant";

pub(super) const TRUST: &str = "\
SELECT authorities, count(*) AS gateways, count(session_epoch) AS connected FROM gateways
WHERE tenant = :tenant AND revoked_at IS NULL GROUP BY authorities";

pub(super) const UNAWARE: &str = "\
SELECT g.agent_id, g.name, g.authorities, g.authorities_at, g.session_epoch IS NOT NULL AS connected, g.last_seen_at
FROM gateways AS g
WHERE g.tenant = :tenant AND g.agent_id > :after AND g.revoked_at IS NULL
  AND (NOT :reported OR g.authorities IS NOT NULL) AND NOT EXISTS (
    SELECT 1 FROM authority_bundles AS b
    WHERE b.tenant = :tenant AND b.digest = g.authorities AND b.authority = :authority)
ORDER BY g.agent_id LIMIT :limit";

/// The certificates with which gateways get in at this moment, by the wall clock, as far as what signed them is
/// trusted. One with which no session was confirmed so far counts where its gateway has no other. Where another one was
/// signed by hand for a registered key, that counts as well which was shown.
macro_rules! is_good {
    () => {
        "g.revoked_at IS NULL AND c.retired_at IS NULL AND c.revoked_at IS NULL \
           AND (c.not_after > :wall OR c.shown_until > :wall) \
           AND (c.unproved IS NULL OR NOT EXISTS ( \
             SELECT 1 FROM certificates AS o \
             WHERE o.tenant = c.tenant AND o.agent_id = c.agent_id AND o.unproved IS NULL AND o.retired_at IS NULL \
               AND o.revoked_at IS NULL AND (o.not_after > :wall OR o.shown_until > :wall))) "
    };
}

/// Those of all gateways.
macro_rules! good {
    () => {
        concat!(
            "FROM gateways AS g JOIN certificates AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id \
             WHERE g.tenant = :tenant AND ",
            is_good!()
        )
    };
}

pub(in crate::data) const SIGNED: &str = concat!(
    "SELECT c.issuer, count(DISTINCT g.agent_id) AS gateways, \
     count(DISTINCT CASE WHEN g.session_epoch IS NOT NULL THEN g.agent_id END) AS connected ",
    good!(),
    "GROUP BY c.issuer"
);

pub(in crate::data) const SIGNED_FOR: &str = concat!(
    "SELECT g.agent_id, g.name, g.session_epoch IS NOT NULL AS connected, g.last_seen_at, \
     max(CASE WHEN c.shown_until > c.not_after THEN c.shown_until ELSE c.not_after END) AS not_after ",
    good!(),
    "AND c.issuer IS NOT DISTINCT FROM :issuer \
     GROUP BY g.agent_id, g.name, g.session_epoch, g.last_seen_at ORDER BY g.agent_id LIMIT :limit"
);

/// What signed those of some gateways, as far as that is known. The limits have each looked up by its key; of a gateway
/// there are hardly ever two that are good.
pub(super) const SIGNERS: Sql = Sql {
    sqlite: concat!(
        "SELECT g.agent_id, c.issuer FROM json_each(:gateways) AS r \
         CROSS JOIN gateways AS g ON g.tenant = :tenant AND g.agent_id = r.value \
         CROSS JOIN certificates AS c ON c.tenant = :tenant AND c.agent_id = g.agent_id \
         WHERE c.issuer IS NOT NULL AND ",
        is_good!()
    ),
    postgres: concat!(
        "SELECT s.agent_id, s.issuer FROM json_array_elements_text(:gateways) AS r (agent_id) \
         CROSS JOIN LATERAL (SELECT agent_id, revoked_at FROM gateways \
             WHERE tenant = :tenant AND agent_id = r.agent_id LIMIT 1) AS g \
         CROSS JOIN LATERAL (SELECT c.agent_id, c.issuer FROM certificates AS c \
             WHERE c.tenant = :tenant AND c.agent_id = g.agent_id AND c.issuer IS NOT NULL AND ",
        is_good!(),
        "LIMIT 100) AS s"
    ),
};

/// Notes what is in a bundle that is given now, and forgets those that nobody has or gives.
pub(super) fn note(tx: &Tx<'_>, bundle: &AuthorityBundle) -> StoreResult<()> {
    write(tx, bundle)?;
    let since = tx.now.saturating_sub(BUNDLE_KEPT_FOR);
    tx.execute(FORGET, params! { since }).map(drop)
}

fn write(tx: &Tx<'_>, bundle: &AuthorityBundle) -> StoreResult<()> {
    // Backends that start at once write the same rows.
    tx.lock_name("authorities")?;
    let digest = &bundle.digest;
    for authority in &bundle.authorities {
        tx.execute(NOTE, params! { digest, authority })?;
    }
    Ok(())
}

/// Which bundle a gateway has that becomes one with this, if it gets one, and since when. What is in it is stored with
/// that: the files of the answer may be newer than what any backend gives, and of a bundle that nobody knows whoever
/// has it counts as having nothing.
pub(super) fn given<'b>(
    tx: &Tx<'_>,
    bundle: Option<&'b AuthorityBundle>,
) -> StoreResult<(Option<&'b str>, Option<Timestamp>)> {
    let Some(bundle) = bundle else {
        return Ok((None, None));
    };
    let (digest, since) = (
        bundle.digest.as_str(),
        tx.now.saturating_sub(BUNDLE_KEPT_FOR / 2),
    );
    // What a backend gives is noted over and over: those that enrol at once do not wait for each other because of it.
    let read = column::<String>("authority_bundles", "authority");
    let fresh = tx.all(FRESH, params! { digest, since }, read)?;
    if fresh.len() < bundle.authorities.len() {
        write(tx, bundle)?;
    }
    Ok((Some(digest), Some(tx.now)))
}

/// Stores which bundle a gateway has, on behalf of its session.
pub(super) fn report(
    tx: &Tx<'_>,
    agent_id: AgentId,
    epoch: u64,
    digest: Option<&str>,
) -> StoreResult<()> {
    fence(tx, agent_id, epoch)?;
    tx.execute(REPORT, params! { agent_id, digest }).map(drop)
}

/// Which bundles gateways have, and what is in them.
pub(super) fn trust(view: &View<'_>) -> StoreResult<AuthorityTrust> {
    let mut trust = AuthorityTrust::default();
    view.each(BUNDLES, &[], |row| {
        let row = Reader::new("authority_bundles", row);
        let bundle = trust.bundles.entry(row.get("digest")?).or_default();
        bundle.insert(row.get("authority")?);
        Ok(ControlFlow::Continue(()))
    })?;
    trust.holders = view.all(TRUST, &[], |row| {
        let row = Reader::new("gateways", row);
        Ok(BundleHolders {
            digest: row.get("authorities")?,
            gateways: row.get("gateways")?,
            connected: row.get("connected")?,
        })
    })?;
    Ok(trust)
}

/// How many gateways have a good certificate of which authority.
pub(super) fn signed(view: &View<'_>, wall: Timestamp) -> StoreResult<Vec<Signed>> {
    view.all(SIGNED, params! { wall }, read_signed)
}

/// Reads what [`SIGNED`] selects.
pub(in crate::data) fn read_signed(row: &Row<'_>) -> StoreResult<Signed> {
    let row = Reader::new("certificates", row);
    Ok(Signed {
        issuer: row.get("issuer")?,
        tally: Tally {
            gateways: row.get("gateways")?,
            connected: row.get("connected")?,
        },
    })
}

/// The first so many gateways that have a good certificate of one authority; of none, those of which it is not known.
pub(super) fn signed_for(
    view: &View<'_>,
    issuer: Option<[u8; 32]>,
    wall: Timestamp,
    limit: usize,
) -> StoreResult<Vec<SignedFor>> {
    let params = params! { issuer, wall, limit };
    view.all(SIGNED_FOR, params, read_signed_for)
}

/// Reads what [`SIGNED_FOR`] selects.
pub(in crate::data) fn read_signed_for(row: &Row<'_>) -> StoreResult<SignedFor> {
    let row = Reader::new("certificates", row);
    Ok(SignedFor {
        agent_id: row.get("agent_id")?,
        name: row.get("name")?,
        not_after: row.get("not_after")?,
        connected: row.get("connected")?,
        last_seen_at: row.get("last_seen_at")?,
    })
}

/// Which authorities signed the good certificates of some gateways, as far as that is known.
pub(super) fn signers(
    view: &View<'_>,
    gateways: &[AgentId],
    wall: Timestamp,
) -> StoreResult<Vec<(AgentId, [u8; 32])>> {
    if gateways.is_empty() {
        return Ok(Vec::new());
    }
    let gateways = to_json(gateways);
    view.all(SIGNERS, params! { gateways, wall }, |row| {
        let row = Reader::new("certificates", row);
        Ok((row.get("agent_id")?, row.get("issuer")?))
    })
}

/// The first so many gateways behind one that do not have an authority; only those that reported what they have, where
/// that is asked for.
pub(super) fn unaware(
    view: &View<'_>,
    authority: &str,
    reported: bool,
    (after, limit): (Option<AgentId>, usize),
) -> StoreResult<Vec<Unaware>> {
    let after = following(after);
    let wanted = params! { after, authority, reported, limit };
    view.all(UNAWARE, wanted, |row| {
        let row = Reader::new("gateways", row);
        Ok(Unaware {
            agent_id: row.get("agent_id")?,
            name: row.get("name")?,
            authorities: row.get("authorities")?,
            authorities_at: row.get("authorities_at")?,
            connected: row.get("connected")?,
            last_seen_at: row.get("last_seen_at")?,
        })
    })
}
