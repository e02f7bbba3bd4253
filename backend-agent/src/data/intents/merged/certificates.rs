//! What is known about the keys that many gateways present.

use std::collections::BTreeMap;

use viworks_common::id::AgentId;
use viworks_runtime::sqlite::params;

use super::super::arrays::{Arrays, Kind, listed, unnested};
use super::super::certificates;
use super::super::link::Sql;
use super::super::row::Reader;
use super::super::tx::View;
use crate::data::{Certificate, StoreResult};

/// What is asked about each.
macro_rules! columns {
    ($as:ident) => {
        $as!(agent_id text, spki bytea)
    };
}

const COLUMNS: &[(&str, Kind)] = columns!(listed);

/// The same as [`certificates::LOAD`], of many.
pub(in crate::data::intents) const FOUND: Sql = Sql::of_server(concat!(
    "SELECT a.item, c.* FROM ",
    columns!(unnested),
    " CROSS JOIN LATERAL (\
        SELECT k.serial, k.not_after, k.fingerprint, \
               g.revoked_at IS NOT NULL OR k.revoked_at IS NOT NULL AS revoked, \
               g.revoked_at IS NULL AS gateway_goes_on, g.confirmed, \
               k.retired_at IS NOT NULL AS retired, k.replaced_at IS NOT NULL AS replaced, \
               k.unproved IS NOT NULL AS unproved, k.issuer, k.shown_until, g.name AS gateway \
        FROM certificates AS k CROSS JOIN gateways AS g \
        WHERE k.tenant = :tenant AND k.spki = a.spki AND k.agent_id || '' = a.agent_id \
          AND g.tenant = :tenant AND g.agent_id = a.agent_id LIMIT 1) AS c"
));

/// A gateway, and the key that it presents.
pub(super) type Presented = (AgentId, [u8; 32]);

/// What is known of each. One that cannot be read has no answer, and goes its own way, which tells of it.
pub(super) fn load_all(
    view: &View<'_>,
    presented: &[Presented],
) -> StoreResult<Vec<Option<Option<Certificate>>>> {
    if presented.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows = Arrays::of(COLUMNS);
    for (agent_id, spki) in presented {
        rows.push(params! { agent_id, spki })?;
    }
    let found = view.all(FOUND, &rows.and(&[]), |row| {
        let item: usize = Reader::new("certificates", row).get("item")?;
        Ok((item.saturating_sub(1), certificates::read(row).ok()))
    })?;
    let mut found: BTreeMap<usize, Option<Certificate>> = found.into_iter().collect();
    let answers = (0..presented.len()).map(|place| match found.remove(&place) {
        None => Some(None),
        Some(read) => read.map(Some),
    });
    Ok(answers.collect())
}
