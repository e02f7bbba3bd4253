//! Backends that share a database: each told of the others, and the sessions of those that are gone ended.

use std::time::Duration;

use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, InstanceId};
use viworks_runtime::sqlite::{Row, params};

use super::link::{Party, Sql};
use super::row::{Reader, to_json};
use super::tx::{Tx, View};
use super::{sessions, site};
use crate::data::{
    EndedInstances, GivenUpInstance, Instance, KeyHolder, MasterIds, Retention, StoreResult,
};

/// For how long a lease of the database is taken.
pub(in crate::data) const LEASE_SECONDS: u32 = 20;

/// Sessions that are ended in one transaction.
const SESSIONS_AT_ONCE: usize = 200;

pub(super) const LIST: Sql = Sql::of_server(
    "\
SELECT instance, name, sessions, draining, retention_days, rollup_days, authorities,
       CASE WHEN ended THEN 0
            ELSE greatest(0, 1000 * extract(epoch FROM lease_until - clock_timestamp()))::bigint END AS lease_ms
FROM instances ORDER BY name, instance",
);

/// Those that have their lease.
pub(super) const KEY_HOLDERS: Sql = Sql::of_server(
    "\
SELECT name, masters FROM instances
WHERE NOT ended AND lease_until BETWEEN clock_timestamp()
      AND clock_timestamp() + CAST(:seconds AS bigint) * interval '1 second'
ORDER BY name, instance",
);

/// An instance ends what another one was, once that one's lease ran out and its own held for as long as a lease all the
/// while: after a time in which nobody could renew anything, everybody has as long to do it. One that ends later than a
/// lease lasts was taken before somebody set the server's clock back, and is no better than one that ran out.
pub(super) const END: Sql = Sql::of_server(
    "\
UPDATE instances AS i SET ended = true FROM (
    SELECT d.instance, d.ended FROM instances AS d
    WHERE d.instance <> :own AND (d.ended OR (NOT d.lease_until BETWEEN clock_timestamp()
              AND clock_timestamp() + CAST(:seconds AS bigint) * interval '1 second' AND EXISTS (
          SELECT 1 FROM instances AS o WHERE o.instance = :own
          AND o.since < clock_timestamp() - CAST(:seconds AS bigint) * interval '1 second')))
    FOR NO KEY UPDATE OF d SKIP LOCKED) AS gone
WHERE i.instance = gone.instance
RETURNING i.instance, i.name, NOT gone.ended AS is_news,
          (NOT i.lease_until BETWEEN clock_timestamp()
              AND clock_timestamp() + CAST(:seconds AS bigint) * interval '1 second') AS ran_out,
          greatest(0, 1000 * (CAST(:seconds AS bigint) + extract(epoch FROM clock_timestamp() - i.lease_until)))::bigint
              AS unheard_ms",
);

/// What an earlier process with the same state folder was: that folder has one process at a time.
pub(super) const END_EARLIER: Sql = Sql::of_server(
    "UPDATE instances SET ended = true WHERE instance = :earlier AND instance <> :own",
);

/// What that one promised to keep is this one's promise until it tells its own.
pub(super) const INHERIT: Sql = Sql::of_server(
    "\
WITH told AS (DELETE FROM telemetry_promises WHERE instance = :earlier AND instance <> :own
              RETURNING records_days, rollup_days, untold_seconds, looked_at)
INSERT INTO telemetry_promises (instance, records_days, rollup_days, untold_seconds, looked_at)
SELECT :own, records_days, rollup_days, untold_seconds, looked_at FROM told
ON CONFLICT (instance) DO NOTHING",
);

/// A gateway that somebody else has locked has its turn another time.
pub(super) const SESSIONS: Sql = Sql::of_server(
    "\
SELECT agent_id, session_epoch FROM gateways
WHERE tenant = :tenant AND session_instance IN (SELECT * FROM json_array_elements_text(:dead))
ORDER BY agent_id LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED",
);

/// The sessions of each are looked for by themselves, or a plan for empty tables would read those of all instances.
pub(super) const FORGET: Sql = Sql::of_server(
    "\
DELETE FROM instances AS i
WHERE i.ended AND i.instance IN (SELECT * FROM json_array_elements_text(:dead))
      AND (SELECT g.session_instance FROM gateways AS g WHERE g.session_instance = i.instance LIMIT 1) IS NULL",
);

/// The instances that there are.
pub(super) fn list(view: &View<'_>) -> StoreResult<Vec<Instance>> {
    if view.party() == Party::Alone {
        return Ok(Vec::new());
    }
    view.all(LIST, &[], read)
}

fn read(row: &Row<'_>) -> StoreResult<Instance> {
    let row = Reader::new("instances", row);
    let (records, rollups) = (row.get("retention_days")?, row.get("rollup_days")?);
    let retention = |(records_days, rollups_days)| Retention {
        records_days,
        rollups_days,
    };
    Ok(Instance {
        id: row.get("instance")?,
        name: row.get("name")?,
        lease: Duration::from_millis(row.get("lease_ms")?),
        sessions: row.get("sessions")?,
        draining: row.get("draining")?,
        retention: Option::zip(records, rollups).map(retention),
        authorities: row.get("authorities")?,
    })
}

/// The backends that are there, and which master keys each has. Where there is one alone, whether it runs is not known.
pub(super) fn key_holders(view: &View<'_>) -> StoreResult<Vec<KeyHolder>> {
    if view.party() == Party::Alone {
        let masters = site::masters(view)?;
        return Ok(vec![KeyHolder {
            name: None,
            masters,
        }]);
    }
    view.all(KEY_HOLDERS, params! { seconds: LEASE_SECONDS }, |row| {
        let row = Reader::new("instances", row);
        let told: Option<Vec<u8>> = row.get("masters")?;
        Ok(KeyHolder {
            name: row.get("name").map(Some)?,
            masters: told.and_then(|told| MasterIds::of_bytes(&told)),
        })
    })
}

/// One that is gone.
struct Dead {
    one: GivenUpInstance,
    is_news: bool,
    ran_out: bool,
}

fn read_dead(row: &Row<'_>) -> StoreResult<Dead> {
    let row = Reader::new("instances", row);
    let one = GivenUpInstance {
        id: row.get("instance")?,
        name: row.get("name")?,
        unheard: Duration::from_millis(row.get("unheard_ms")?),
    };
    Ok(Dead {
        one,
        is_news: row.get("is_news")?,
        ran_out: row.get("ran_out")?,
    })
}

/// Ends some of the sessions of instances that are gone, and forgets those that have none left. One that is taken for
/// gone just now is there for another look: if this answer is lost, that one tells of it.
pub(super) fn end_dead(tx: &Tx<'_>) -> StoreResult<EndedInstances> {
    let Some(own) = tx.party().instance() else {
        return Ok(EndedInstances::default());
    };
    let found = tx.all(END, params! { own, seconds: LEASE_SECONDS }, read_dead)?;
    if found.is_empty() {
        return Ok(EndedInstances::default());
    }
    let ids: Vec<InstanceId> = found.iter().map(|dead| dead.one.id).collect();
    let (news, known): (Vec<Dead>, Vec<Dead>) = found.into_iter().partition(|dead| dead.is_news);
    let told: Vec<InstanceId> = known.iter().map(|dead| dead.one.id).collect();
    let ran_out = known.into_iter().filter(|dead| dead.ran_out);
    let earlier = ran_out.map(|dead| dead.one).collect();
    let given_up: Vec<GivenUpInstance> = news.into_iter().map(|dead| dead.one).collect();
    let dead = to_json(&ids);
    let sessions = end_sessions(tx, SESSIONS, params! { dead, limit: SESSIONS_AT_ONCE })?;
    let dead = to_json(&told);
    let instances = tx.execute(FORGET, params! { dead })?;
    let left = ids.len().saturating_sub(instances);
    Ok(EndedInstances {
        more: sessions == SESSIONS_AT_ONCE || !given_up.is_empty(),
        given_up,
        earlier,
        left: u64::try_from(left).unwrap_or(u64::MAX),
        instances: u64::try_from(instances).unwrap_or(u64::MAX),
        sessions: u64::try_from(sessions).unwrap_or(u64::MAX),
    })
}

/// Ends the sessions that a statement finds; answers how many.
pub(super) fn end_sessions(
    tx: &Tx<'_>,
    sql: Sql,
    params: viworks_runtime::sqlite::Params<'_>,
) -> StoreResult<usize> {
    let found = tx.all(sql, params, |row| {
        let row = Reader::new("gateways", row);
        Ok((row.get::<AgentId>("agent_id")?, row.get("session_epoch")?))
    })?;
    for (agent_id, epoch) in &found {
        sessions::end(tx, *agent_id, *epoch, CloseCode::Internal)?;
    }
    Ok(found.len())
}

/// Notes that an earlier process of this very state folder is gone.
pub(super) fn end_earlier(tx: &Tx<'_>, earlier: InstanceId) -> StoreResult<()> {
    let Some(own) = tx.party().instance() else {
        return Ok(());
    };
    tx.execute(END_EARLIER, params! { earlier, own })?;
    tx.execute(INHERIT, params! { earlier, own }).map(drop)
}
