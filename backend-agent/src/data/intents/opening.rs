//! What HELLO and CONFIRM share: the identity they are about, and the compare-and-swap of its counters.

use viworks_common::admission::IdentityRow;
use viworks_common::claims::Standing;
use viworks_common::fork::{Apart, Holder, Kept};
use viworks_common::id::{AgentId, AgentRunId, InstanceId, SessionId};
use viworks_common::key::MASTER_ID_BYTES;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::row::Reader;
use super::tx::{Tx, View};
use super::{earlier, standing};
use crate::data::{KeyStanding, StoreError, StoreResult};

/// The columns of an identity that [`read`] reads, but for whether the session that is asked about is admitted.
macro_rules! columns {
    () => {
        "g.agent_id, g.confirmed, g.issued, g.key_generation, g.last_agent_run_id, g.revoked_at, g.next_order, g.low_water, \
         g.key_wanted, g.takes_keys, g.key_master, g.authorities, \
         g.session_epoch, g.session_instance, g.favoured_run, g.favoured_until, g.take_overs, s.session_id, s.agent_run_id, \
         g.kept_epoch, g.kept_install_id, g.kept_boot_id, g.kept_agent_run_id, g.kept_by, \
         c.digest AS catalogue_digest"
    };
}
pub(super) use columns;

/// The identity, its live session, and whether the session that is asked about is admitted and waits to be confirmed.
/// One is not any more whose certificate, or the present one of its key, was revoked since.
pub(super) const IDENTITY: &str = concat!(
    "SELECT ",
    columns!(),
    ", EXISTS (SELECT 1 FROM sessions AS n WHERE n.tenant = g.tenant AND n.agent_id = g.agent_id \
               AND n.epoch = :epoch AND n.session_id = :session_id AND n.ended_at IS NULL \
               AND NOT EXISTS (SELECT 1 FROM certificates AS k WHERE k.tenant = g.tenant AND k.agent_id = g.agent_id \
                               AND k.revoked_at IS NOT NULL AND (k.fingerprint = n.fingerprint OR k.spki = ",
    earlier::key_of_earlier!("g.agent_id", "n.fingerprint"),
    "))) AS admitted \
     FROM gateways AS g \
     LEFT JOIN sessions AS s ON s.tenant = g.tenant AND s.agent_id = g.agent_id AND s.epoch = g.session_epoch \
     LEFT JOIN catalogues AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id \
     WHERE g.tenant = :tenant AND g.agent_id = :agent_id"
);

/// The counters of an identity, as they are set. A holder that an operator keeps may come with an agent key of before.
/// It is to get one above all that were handed out, which the other holder may have: generations never begin anew.
macro_rules! counters {
    () => {
        "confirmed = :confirmed, issued = :issued, key_generation = :key_generation, \
         key_wanted = CASE WHEN :key_generation >= key_generation THEN key_wanted \
                           WHEN key_wanted > key_generation THEN key_wanted + 1 \
                           ELSE key_generation + 1 END, \
         last_agent_run_id = :last_agent_run_id, next_order = :next_order, low_water = :low_water, last_seen_at = :now"
    };
}
pub(super) use counters;

/// An identity that is not revoked, and whose counters are where they had been seen.
macro_rules! unmoved {
    () => {
        "WHERE tenant = :tenant AND agent_id = :agent_id AND confirmed = :seen_confirmed AND issued = :seen_issued \
         AND revoked_at IS NULL"
    };
}
pub(super) use unmoved;

pub(super) const SWAP: &str = concat!("UPDATE gateways SET ", counters!(), " ", unmoved!());

/// An identity as it is stored.
pub(super) struct Identity {
    pub(super) row: IdentityRow,
    /// Its confirmed session that has not ended.
    pub(super) live: Option<(SessionId, u64)>,
    /// The process of that session.
    pub(super) live_run: Option<AgentRunId>,
    /// Which of several backends has it.
    pub(super) live_instance: Option<InstanceId>,
    pub(super) standing: Standing,
    /// Whom an operator gave it to last.
    pub(super) kept: Option<Kept>,
    pub(super) catalogue_digest: Option<String>,
    /// The generation of the agent key that was asked for last, and whether its agent takes one over a session.
    key_wanted: Option<u32>,
    takes_keys: Option<bool>,
    key_master: Option<[u8; MASTER_ID_BYTES]>,
    /// The bundle of authorities that it has, by its digest, as it reported last.
    pub(super) authorities: Option<String>,
    /// The session that was asked about is admitted and waits to be confirmed.
    pub(super) admitted: bool,
}

impl Identity {
    /// What is known of its agent key.
    pub(super) const fn keys(&self) -> KeyStanding {
        KeyStanding {
            generation: self.row.key_generation,
            wanted: self.key_wanted,
            takes_one: self.takes_keys,
            master: self.key_master,
        }
    }
}

/// The identity of a gateway, with the epoch and the id of a session to ask about.
pub(super) fn identity(
    view: &View<'_>,
    agent_id: AgentId,
    session: Option<(u64, SessionId)>,
) -> StoreResult<Option<Identity>> {
    let (epoch, session_id) = session.unzip();
    view.optional(IDENTITY, params! { agent_id, epoch, session_id }, read)
}

/// Reads what [`columns`] names.
pub(super) fn read(row: &Row<'_>) -> StoreResult<Identity> {
    let row = Reader::new("gateways", row);
    let live = match row.get("session_epoch")? {
        Some(epoch) => Some((row.get("session_id")?, epoch)),
        None => None,
    };
    Ok(Identity {
        row: IdentityRow {
            confirmed: row.get("confirmed")?,
            issued: row.get("issued")?,
            key_generation: row.get("key_generation")?,
            last_agent_run_id: row.get("last_agent_run_id")?,
            revoked: row.get::<Option<Timestamp>>("revoked_at")?.is_some(),
            next_order: row.get("next_order")?,
            low_water: row.get("low_water")?,
        },
        live,
        live_run: row.get("agent_run_id")?,
        live_instance: row.get("session_instance")?,
        standing: standing::read(&row)?,
        kept: kept(&row)?,
        catalogue_digest: row.get("catalogue_digest")?,
        key_wanted: row.get("key_wanted")?,
        takes_keys: row.get("takes_keys")?,
        key_master: row.get("key_master")?,
        authorities: row.get("authorities")?,
        admitted: row.get("admitted")?,
    })
}

/// Whom an operator gave the identity to.
fn kept(row: &Reader<'_>) -> StoreResult<Option<Kept>> {
    let Some(epoch) = row.get("kept_epoch")? else {
        return Ok(None);
    };
    Ok(Some(Kept {
        epoch,
        holder: Holder {
            install_id: row.get("kept_install_id")?,
            boot_id: row.get("kept_boot_id")?,
            agent_run_id: row.get("kept_agent_run_id")?,
        },
        apart: row.word("kept_by", Apart::from_name)?,
    }))
}

/// Writes the counters, unless they are no longer where they had been seen.
pub(super) fn swap(
    tx: &Tx<'_>,
    agent_id: AgentId,
    seen: &IdentityRow,
    after: &IdentityRow,
) -> StoreResult<()> {
    let params = params! {
        agent_id, seen_confirmed: seen.confirmed, seen_issued: seen.issued, confirmed: after.confirmed,
        issued: after.issued, key_generation: after.key_generation, last_agent_run_id: after.last_agent_run_id,
        next_order: after.next_order, low_water: after.low_water,
    };
    match tx.execute(SWAP, params)? {
        1 => Ok(()),
        _ => Err(StoreError::Fenced),
    }
}
