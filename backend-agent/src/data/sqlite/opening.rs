//! What HELLO and CONFIRM share: the identities they are about, and the compare-and-swap of their counters.
//!
//! Gateways come back together, after a restart all at once. Both are therefore decided for many gateways with one look
//! at their identities and one script.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{Column, Row, SqliteConnection};
use viworks_common::admission::IdentityRow;
use viworks_common::id::{AgentId, AgentRunId, SessionId, Tenant};
use viworks_common::time::Timestamp;

use super::row::{Reader, int, to_json};
use crate::data::{StoreError, StoreResult};

/// For each `[agent_id, epoch, session_id]` the identity, and whether that session is admitted and waits to be
/// confirmed; nothing where there is no such gateway.
pub(super) const IDENTITIES: &str = "\
SELECT e.key AS number, g.confirmed, g.issued, g.key_generation, g.last_agent_run_id, g.revoked_at, g.next_order,
       g.low_water, g.session_epoch, s.session_id, s.agent_run_id, c.digest AS catalogue_digest,
       EXISTS (SELECT 1 FROM sessions AS n WHERE n.tenant = g.tenant AND n.agent_id = g.agent_id
               AND n.epoch = e.value ->> 1 AND n.session_id = e.value ->> 2 AND n.ended_at IS NULL) AS admitted
FROM json_each($2) AS e
CROSS JOIN gateways AS g ON g.tenant = $1 AND g.agent_id = e.value ->> 0
LEFT JOIN sessions AS s ON s.tenant = g.tenant AND s.agent_id = g.agent_id AND s.epoch = g.session_epoch
LEFT JOIN catalogues AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id";

/// The compare-and-swap of identities' counters, with whatever else changes in their rows. Parameter 2 is a document of
/// [`element`]s, which the limit keeps in one piece: it is to be walked, and each gateway to be found by its key.
macro_rules! swap {
    ($more:literal) => {
        concat!(
            "UPDATE gateways SET confirmed = e.value ->> 3, issued = e.value ->> 4, key_generation = e.value ->> 5, \
             last_agent_run_id = e.value ->> 6, next_order = e.value ->> 7, low_water = e.value ->> 8, \
             last_seen_at = e.value ->> 9",
            $more,
            " FROM (SELECT value ->> 0 AS id, value FROM json_each($2) LIMIT -1) AS e \
             WHERE tenant = $1 AND gateways.agent_id = e.id AND confirmed = e.value ->> 1 AND issued = e.value ->> 2 \
             AND revoked_at IS NULL RETURNING agent_id AS swapped; "
        )
    };
}
pub(super) use swap;

/// An identity as it is stored.
pub(super) struct Identity {
    pub(super) row: IdentityRow,
    /// Its confirmed session that has not ended.
    pub(super) live: Option<(SessionId, u64)>,
    /// The process of that session.
    pub(super) live_run: Option<AgentRunId>,
    pub(super) catalogue_digest: Option<String>,
    /// The session that was asked about is admitted and waits to be confirmed.
    pub(super) admitted: bool,
}

/// The identities of gateways by their places in `wanted`, each with the epoch and the id of a session to ask about.
pub(super) async fn identities(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    wanted: &[(AgentId, Option<(u64, SessionId)>)],
) -> StoreResult<BTreeMap<usize, Identity>> {
    let document: Vec<_> = wanted
        .iter()
        .map(|(agent_id, session)| {
            (
                agent_id,
                session.map(|(epoch, _)| int(epoch)),
                session.map(|(_, session_id)| session_id),
            )
        })
        .collect();
    let rows = sqlx::query(IDENTITIES)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(connection)
        .await?;
    rows.iter().map(read).collect()
}

fn read(row: &SqliteRow) -> StoreResult<(usize, Identity)> {
    let reader = Reader::new("gateways", row);
    let live = match reader.count_optional("session_epoch")? {
        Some(epoch) => Some((reader.parse("session_id")?, epoch)),
        None => None,
    };
    let identity = Identity {
        row: IdentityRow {
            confirmed: reader.count("confirmed")?,
            issued: reader.count("issued")?,
            key_generation: reader.small("key_generation")?,
            last_agent_run_id: reader.parse_optional("last_agent_run_id")?,
            revoked: reader.time_optional("revoked_at")?.is_some(),
            next_order: reader.count("next_order")?,
            low_water: reader.count("low_water")?,
        },
        live,
        live_run: reader.parse_optional("agent_run_id")?,
        catalogue_digest: reader.get("catalogue_digest")?,
        admitted: reader.get("admitted")?,
    };
    Ok((reader.index("number")?, identity))
}

/// The places of questions about gateways, in rounds that name each gateway once: the second question about one is to see
/// what came of the first.
pub(super) fn rounds(agents: impl Iterator<Item = AgentId>) -> Vec<Vec<usize>> {
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    let mut asked: BTreeMap<AgentId, usize> = BTreeMap::new();
    for (number, agent_id) in agents.enumerate() {
        let before = asked.entry(agent_id).or_default();
        match rounds.get_mut(*before) {
            Some(round) => round.push(number),
            None => rounds.push(vec![number]),
        }
        *before += 1;
    }
    rounds
}

/// One element of the document of a compare-and-swap; what else is to change follows after its ten values.
pub(super) fn element(
    agent_id: AgentId,
    before: &IdentityRow,
    after: &IdentityRow,
    now: Timestamp,
    more: impl IntoIterator<Item = Value>,
) -> Vec<Value> {
    let mut values = vec![
        json!(agent_id),
        json!(int(before.confirmed)),
        json!(int(before.issued)),
        json!(int(after.confirmed)),
        json!(int(after.issued)),
        json!(after.key_generation),
        json!(after.last_agent_run_id),
        json!(int(after.next_order)),
        json!(int(after.low_water)),
        json!(now.unix_micros()),
    ];
    values.extend(more);
    values
}

/// Refuses the whole unless every counter was where it had been seen.
pub(super) fn check_swapped(rows: &[SqliteRow], wanted: usize) -> StoreResult<()> {
    let swapped = rows.iter().filter(|row| row.column(0).name() == "swapped");
    if swapped.count() == wanted {
        Ok(())
    } else {
        Err(StoreError::Fenced)
    }
}
