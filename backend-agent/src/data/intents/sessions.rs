//! Sessions that are open: the fence, heartbeats, and the end.

use viworks_common::code::CloseCode;
use viworks_common::id::AgentId;
use viworks_common::ledger::session;
use viworks_common::rules::Complete;
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::{Row, params};

use super::link::{Party, Sql};
use super::recent::Gateway;
use super::row::Reader;
use super::tx::{Tx, View};
use super::{instances, settle};
use crate::data::{Actor, Holder, SessionRecord, SessionTouch, StoreError, StoreResult};

/// Sessions that are ended in one transaction where that is not about all of them.
const AT_ONCE: usize = 200;

pub(super) const FENCE: &str = "\
SELECT agent_id, confirmed, revoked_at, low_water, session_epoch FROM gateways WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const ENDED: &str = "\
UPDATE sessions SET ended_at = :now, code = :code
WHERE tenant = :tenant AND agent_id = :agent_id AND epoch = :epoch AND ended_at IS NULL";

pub(super) const VACATE: &str = "\
UPDATE gateways SET session_epoch = NULL, session_instance = NULL, last_seen_at = :now
WHERE tenant = :tenant AND agent_id = :agent_id AND session_epoch = :epoch";

/// The sessions of this backend, or all where there is one.
pub(super) const OPEN: Sql = Sql {
    sqlite: "SELECT agent_id, session_epoch FROM gateways WHERE tenant = :tenant AND session_epoch IS NOT NULL",
    postgres: "SELECT agent_id, session_epoch FROM gateways WHERE tenant = :tenant AND session_instance = :own",
};

/// Sessions that no backend has: of a site that was moved while they were open.
pub(super) const UNOWNED: Sql = Sql::of_server(
    "\
SELECT agent_id, session_epoch FROM gateways
WHERE tenant = :tenant AND session_epoch IS NOT NULL AND session_instance IS NULL
ORDER BY agent_id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED",
);

pub(super) const VACATE_ALL: &str = "\
UPDATE gateways SET session_epoch = NULL, last_seen_at = :now WHERE tenant = :tenant AND session_epoch IS NOT NULL";

pub(super) const END_ALL: &str =
    "UPDATE sessions SET ended_at = :now, code = :code WHERE tenant = :tenant AND ended_at IS NULL";

/// Stores the figures of a session that is open.
pub(super) const TOUCH: &str = "\
UPDATE gateways SET last_seen_at = :now, round_trip_us = :round_trip_us, clock_skew_ms = :clock_skew_ms,
       spool_records = :spool_records, spool_bytes = :spool_bytes, commands_running = :commands_running
WHERE tenant = :tenant AND agent_id = :agent_id AND session_epoch = :epoch";

pub(super) const PINS: &str = "\
UPDATE gateways SET pin_set_version = :version WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const LIST: &str = "\
SELECT session_id, epoch, agent_run_id, peer_address, admitted_at, confirmed_at, ended_at, code
FROM sessions WHERE tenant = :tenant AND agent_id = :agent_id ORDER BY epoch DESC LIMIT :limit";

/// Refuses what is done on behalf of a session that is not its gateway's current one; answers the gateway's low-water
/// mark. The gateway is locked, so what this has seen holds until the transaction ends.
pub(super) fn fence(view: &View<'_>, agent_id: AgentId, epoch: u64) -> StoreResult<u64> {
    view.lock([agent_id])?;
    holds(view, agent_id, epoch)
}

/// The same where a lock is held that CONFIRM and revocation take as well.
pub(super) fn holds(view: &View<'_>, agent_id: AgentId, epoch: u64) -> StoreResult<u64> {
    let low_water = view.optional(FENCE, params! { agent_id }, |row| {
        low_water_of(&Reader::new("gateways", row), epoch)
    })?;
    low_water.flatten().ok_or(StoreError::Fenced)
}

/// The low-water mark of a gateway by its row, where a session of this epoch may write.
pub(super) fn low_water_of(row: &Reader<'_>, epoch: u64) -> StoreResult<Option<u64>> {
    let revoked = row.get::<Option<Timestamp>>("revoked_at")?.is_some();
    let may = session::may_write(Complete, row.get("confirmed")?, revoked, epoch);
    // One that was ended, perhaps by another backend that took this one for dead, writes nothing more.
    let open = row.get::<Option<u64>>("session_epoch")? == Some(epoch);
    Ok(if may && open {
        Some(row.get("low_water")?)
    } else {
        None
    })
}

/// Whether a session was the gateway's when that was seen last. Of one that was revoked nothing is remembered.
pub(super) fn may_write(gateway: &Gateway, holder: &Holder) -> bool {
    session::may_write(Complete, gateway.confirmed, false, holder.epoch)
        && gateway.found.scene.session_epoch == Some(holder.epoch)
}

/// Ends a session; only what still belongs to it is touched.
pub(super) fn end(
    tx: &Tx<'_>,
    agent_id: AgentId,
    epoch: u64,
    code: CloseCode,
) -> StoreResult<bool> {
    tx.lock([agent_id])?;
    mark_ended(tx, agent_id, epoch, code)?;
    if tx.execute(VACATE, params! { agent_id, epoch })? == 0 {
        return Ok(false);
    }
    for standing in settle::load_open(tx, agent_id, u64::MAX)? {
        let lost = session::lose(standing, tx.now);
        settle::write(tx, &lost, &Actor::system())?;
    }
    Ok(true)
}

pub(super) fn mark_ended(
    tx: &Tx<'_>,
    agent_id: AgentId,
    epoch: u64,
    code: CloseCode,
) -> StoreResult<()> {
    let code = code.name();
    tx.execute(ENDED, params! { agent_id, epoch, code })
        .map(drop)
}

/// Ends what the process before this one left open; of several backends, some of what none of them has.
pub(super) fn end_abandoned(tx: &Tx<'_>) -> StoreResult<u64> {
    if tx.party() != Party::Alone {
        let ended = instances::end_sessions(tx, UNOWNED, params! { limit: AT_ONCE })?;
        return Ok(u64::try_from(ended).unwrap_or(u64::MAX));
    }
    let vacated = tx.execute(VACATE_ALL, &[])?;
    tx.execute(END_ALL, params! { code: CloseCode::Internal.name() })?;
    settle::each(tx, settle::LOAD_DISPATCHED, &[], |standing| {
        session::lose(standing, tx.now)
    })?;
    Ok(u64::try_from(vacated).unwrap_or(u64::MAX))
}

/// The sessions that this backend has, as the database has it. A tool has none.
pub(super) fn open(view: &View<'_>) -> StoreResult<Vec<(AgentId, u64)>> {
    let read = |row: &Row<'_>| {
        let row = Reader::new("gateways", row);
        Ok((row.get("agent_id")?, row.get("session_epoch")?))
    };
    match view.party() {
        Party::Alone => view.all(OPEN, &[], read),
        Party::Beside => Ok(Vec::new()),
        Party::Instance(own) => view.all(OPEN, params! { own }, read),
    }
}

/// Stores heartbeats; those of fenced sessions change nothing.
pub(super) fn touch(tx: &Tx<'_>, touches: &[SessionTouch]) -> StoreResult<()> {
    // In one order, so that two who do this do not wait for each other in a circle.
    let mut in_order: Vec<&SessionTouch> = touches.iter().collect();
    in_order.sort_by_key(|touch| touch.agent_id);
    for SessionTouch {
        agent_id,
        epoch,
        figures,
    } in in_order
    {
        let params = params! {
            agent_id, epoch,
            round_trip_us: figures.round_trip_us, clock_skew_ms: figures.clock_skew_ms,
            spool_records: figures.spool_records, spool_bytes: figures.spool_bytes,
            commands_running: figures.commands_running,
        };
        tx.execute(TOUCH, params)?;
    }
    Ok(())
}

/// Stores the version of a trusted pin set.
pub(super) fn report_pins(
    view: &View<'_>,
    agent_id: AgentId,
    epoch: u64,
    version: u64,
) -> StoreResult<()> {
    fence(view, agent_id, epoch)?;
    view.execute(PINS, params! { agent_id, version }).map(drop)
}

/// The latest sessions.
pub(super) fn list(
    view: &View<'_>,
    agent_id: AgentId,
    limit: usize,
) -> StoreResult<Vec<SessionRecord>> {
    view.all(LIST, params! { agent_id, limit }, read)
}

fn read(row: &Row<'_>) -> StoreResult<SessionRecord> {
    let row = Reader::new("sessions", row);
    let code = match row.get::<Option<String>>("code")? {
        Some(_name) => Some(row.word("code", CloseCode::from_name)?),
        None => None,
    };
    Ok(SessionRecord {
        session_id: row.get("session_id")?,
        epoch: row.get("epoch")?,
        agent_run_id: row.get("agent_run_id")?,
        peer_address: row.get("peer_address")?,
        admitted_at: row.get("admitted_at")?,
        confirmed_at: row.get("confirmed_at")?,
        ended_at: row.get("ended_at")?,
        code,
    })
}
