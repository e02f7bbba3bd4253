//! What is known of many gateways that open sessions at the same moment.

use std::collections::BTreeMap;

use viworks_common::id::{AgentId, SessionId};
use viworks_runtime::sqlite::{Row, params};

use super::super::arrays::{Arrays, Kind, listed, unnested};
use super::super::earlier;
use super::super::link::Sql;
use super::super::opening::{self, Identity};
use super::super::row::Reader;
use super::super::tx::View;
use crate::data::StoreResult;

/// What is asked about each.
macro_rules! columns {
    ($as:ident) => {
        $as!(agent_id text, epoch bigint, session_id text)
    };
}

const COLUMNS: &[(&str, Kind)] = columns!(listed);

/// Each row is looked up by its key, which the limits leave to no planner; so does the least order, of which only the
/// index of a gateway's open commands knows.
pub(in crate::data::intents) const FOUND: Sql = Sql::of_server(concat!(
    "SELECT a.item, g.version, ",
    opening::columns!(),
    ", n.labels IS NOT NULL AS admitted, n.labels AS announced, \
     (SELECT json_object_agg(l.key, l.value) FROM labels AS l \
      WHERE l.tenant = :tenant AND l.agent_id = a.agent_id AND l.source = 'gateway') AS labelled, \
     (SELECT min(o.order_no) FROM commands AS o \
      WHERE o.tenant = :tenant AND o.agent_id = a.agent_id AND o.finished_at IS NULL) IS NOT NULL AS waits \
     FROM ",
    columns!(unnested),
    " CROSS JOIN LATERAL (SELECT i.*, ",
    version!("i"),
    " AS version FROM gateways AS i WHERE i.tenant = :tenant AND i.agent_id = a.agent_id LIMIT 1) AS g \
     LEFT JOIN LATERAL (SELECT k.digest FROM catalogues AS k \
         WHERE k.tenant = :tenant AND k.agent_id = a.agent_id LIMIT 1) AS c ON true \
     LEFT JOIN LATERAL (SELECT o.session_id, o.agent_run_id FROM sessions AS o \
         WHERE o.tenant = :tenant AND o.agent_id = a.agent_id AND o.epoch = g.session_epoch LIMIT 1) AS s ON true \
     LEFT JOIN LATERAL (SELECT o.labels FROM sessions AS o \
         WHERE o.tenant = :tenant AND o.agent_id = a.agent_id AND o.epoch = a.epoch AND o.session_id = a.session_id \
           AND o.ended_at IS NULL \
           AND NOT EXISTS (SELECT 1 FROM certificates AS k WHERE k.tenant = :tenant AND k.agent_id = a.agent_id \
                           AND k.revoked_at IS NOT NULL AND (k.fingerprint = o.fingerprint OR k.spki = ",
    earlier::key_of_earlier!("a.agent_id", "o.fingerprint"),
    ")) LIMIT 1) AS n ON true"
));

/// Labels by their keys.
type Labels = BTreeMap<String, String>;

/// An identity, and what else a session of it depends on.
pub(super) struct Found {
    pub(super) known: Identity,
    /// Which version of the gateway's row it is of.
    pub(super) version: i64,
    /// The labels that the session says the gateway has.
    pub(super) announced: Labels,
    /// The labels that are stored as the gateway's own.
    pub(super) labelled: Labels,
    /// Whether a command of it is not final.
    pub(super) waits: bool,
}

/// A gateway, and a session of it to ask about.
pub(super) type Asked = (AgentId, Option<(u64, SessionId)>);

/// What there is of each, by its number.
pub(super) fn found(
    view: &View<'_>,
    asked: impl Iterator<Item = Asked>,
) -> StoreResult<BTreeMap<usize, Found>> {
    let mut rows = Arrays::of(COLUMNS);
    for (agent_id, session) in asked {
        let (epoch, session_id) = session.unzip();
        rows.push(params! { agent_id, epoch, session_id })?;
    }
    // One that cannot be read goes its usual way, which tells of it, and holds up no other.
    let found = view.all(FOUND, &rows.and(&[]), |row| Ok(read(row).ok()))?;
    Ok(found.into_iter().flatten().collect())
}

fn read(row: &Row<'_>) -> StoreResult<(usize, Found)> {
    let known = opening::read(row)?;
    let row = Reader::new("gateways", row);
    let item: usize = row.get("item")?;
    let labels = |column| match row.get::<Option<String>>(column)? {
        Some(_) => row.json::<Labels>(column),
        None => Ok(Labels::new()),
    };
    let found = Found {
        known,
        version: row.get("version")?,
        announced: labels("announced")?,
        labelled: labels("labelled")?,
        waits: row.get("waits")?,
    };
    Ok((item.saturating_sub(1), found))
}
