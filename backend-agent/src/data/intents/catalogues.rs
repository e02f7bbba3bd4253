//! What each gateway allows, and what the fleet allows together.

use std::collections::BTreeMap;

use viworks_common::catalogue::{CatalogueEntry, Risk};
use viworks_common::id::{AgentId, CommandName};
use viworks_runtime::sqlite::{Row, params};

use super::link::Sql;
use super::page::{following, listing, rows_wanted};
use super::row::{Reader, to_json};
use super::sessions::fence;
use super::tx::{Tx, View};
use crate::data::{Listing, MergedCommand, Page, StoreResult, StoredCatalogue};

pub(super) const SAVE: &str = "\
INSERT INTO catalogues (tenant, agent_id, digest, reported_at, entries)
VALUES (:tenant, :agent_id, :digest, :now, :entries)
ON CONFLICT (tenant, agent_id) DO UPDATE SET digest = excluded.digest, reported_at = excluded.reported_at, entries = excluded.entries";

pub(super) const LOAD: &str = "\
SELECT agent_id, digest, reported_at, entries FROM catalogues WHERE tenant = :tenant AND agent_id = :agent_id";

/// One row for each command of the fleet. Whether a tool is there is a fact about a gateway, not another definition. Of
/// the definitions, the one that most gateways have is the row's: in SQLite the other columns are those of the maximum.
/// Without the limit, which is none, SQLite would look for the name in each gateway's report and not once for all that
/// are the same.
macro_rules! merged {
    ($which:literal, $rest:literal) => {
        Sql {
            sqlite: merged!(@sqlite $which, $rest),
            postgres: merged!(@postgres $which, $rest),
        }
    };
    (@sqlite $which:literal, $rest:literal) => {
        concat!(
            "\
SELECT name, definition AS entry, max(gateways), count(*) AS definitions, sum(available) AS available,
       sum(gateways) - sum(available) AS unavailable, sum(NOT idempotent) = 0 AS idempotent,
       json_object('read', sum(gateways * (risk = 'read')), 'change', sum(gateways * (risk = 'change')),
                   'danger', sum(gateways * (risk = 'danger'))) AS risks
FROM (SELECT name, definition, definition ->> 'risk' AS risk, definition ->> 'idempotent' AS idempotent,
             sum(gateways) AS gateways, sum(available) AS available
      FROM (SELECT entry ->> 'name' AS name, json_remove(entry, '$.unavailable') AS definition, gateways,
                   gateways * (entry ->> 'unavailable' IS NULL) AS available
            FROM (SELECT e.value AS entry, count(*) AS gateways
                  FROM catalogues AS c
                  JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id
                  JOIN json_each(c.entries) AS e
                  WHERE c.tenant = :tenant AND g.revoked_at IS NULL
                  GROUP BY e.value LIMIT -1))
      WHERE name ",
            $which,
            " GROUP BY name, definition)
GROUP BY name ",
            $rest
        )
    };
    (@postgres $which:literal, $rest:literal) => {
        concat!(
            "\
SELECT name, (array_agg(definition ORDER BY gateways DESC))[1]::json AS entry, count(*) AS definitions,
       sum(available)::bigint AS available, (sum(gateways) - sum(available))::bigint AS unavailable,
       bool_and(idempotent) AS idempotent,
       json_build_object('read', coalesce(sum(gateways) FILTER (WHERE risk = 'read'), 0),
                         'change', coalesce(sum(gateways) FILTER (WHERE risk = 'change'), 0),
                         'danger', coalesce(sum(gateways) FILTER (WHERE risk = 'danger'), 0)) AS risks
FROM (SELECT name, definition, definition ->> 'risk' AS risk, (definition ->> 'idempotent')::boolean AS idempotent,
             sum(gateways) AS gateways, sum(available) AS available
      FROM (SELECT (entry ->> 'name') COLLATE \"C\" AS name, entry - 'unavailable' AS definition, gateways,
                   CASE WHEN entry ->> 'unavailable' IS NULL THEN gateways ELSE 0 END AS available
            FROM (SELECT text::jsonb AS entry, gateways
                  FROM (SELECT e.value::text AS text, count(*) AS gateways
                        FROM catalogues AS c
                        JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id
                        CROSS JOIN json_array_elements(c.entries) AS e (value)
                        WHERE c.tenant = :tenant AND g.revoked_at IS NULL
                        GROUP BY e.value::text) AS distinct_texts) AS distinct_entries) AS named
      WHERE name ",
            $which,
            " GROUP BY name, definition) AS defined
GROUP BY name ",
            $rest
        )
    };
}

pub(super) const MERGE: Sql = merged!("> :after", "ORDER BY name LIMIT :limit");

pub(super) const MERGE_ONE: Sql = merged!("= :name", "");

/// Stores a report.
pub(super) fn save(
    tx: &Tx<'_>,
    agent_id: AgentId,
    epoch: u64,
    digest: &str,
    entries: &[CatalogueEntry],
) -> StoreResult<()> {
    fence(tx, agent_id, epoch)?;
    let entries = to_json(entries);
    tx.execute(SAVE, params! { agent_id, digest, entries })
        .map(drop)
}

/// The last report.
pub(super) fn load(view: &View<'_>, agent_id: AgentId) -> StoreResult<Option<StoredCatalogue>> {
    view.optional(LOAD, params! { agent_id }, |row| {
        let row = Reader::new("catalogues", row);
        Ok(StoredCatalogue {
            digest: row.get("digest")?,
            reported_at: row.get("reported_at")?,
            entries: row.json("entries")?,
        })
    })
}

/// One page of the commands of the fleet, by name.
pub(super) fn merged(
    view: &View<'_>,
    page: &Page<CommandName>,
) -> StoreResult<Listing<MergedCommand, CommandName>> {
    let (after, limit) = (following(page.after.as_ref()), rows_wanted(page.limit));
    let rows = view.page(MERGE, params! { after, limit }, read_merged)?;
    Ok(listing(rows, page.limit, |merged| {
        merged.entry.name.clone()
    }))
}

/// One command of the fleet.
pub(super) fn merged_one(
    view: &View<'_>,
    name: &CommandName,
) -> StoreResult<Option<MergedCommand>> {
    view.optional(MERGE_ONE, params! { name }, read_merged)
}

fn read_merged(row: &Row<'_>) -> StoreResult<MergedCommand> {
    let row = Reader::new("catalogues", row);
    let mut risks: BTreeMap<Risk, u64> = row.json("risks")?;
    risks.retain(|_risk, gateways| *gateways > 0);
    Ok(MergedCommand {
        entry: row.json("entry")?,
        definitions: row.get("definitions")?,
        idempotent: row.get("idempotent")?,
        risks,
        available: row.get("available")?,
        unavailable: row.get("unavailable")?,
    })
}
