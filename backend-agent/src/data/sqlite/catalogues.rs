//! What each gateway allows, and what the fleet allows together.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use viworks_common::id::{AgentId, CommandName, Tenant};
use viworks_common::time::Timestamp;

use super::row::{CHUNK_ROWS, Reader, to_json};
use super::sessions::{current, unless_fenced};
use crate::data::{GatewayRef, MergedEntry, StoreResult, StoredCatalogue, Target};

pub(super) const LOAD: &str = "SELECT agent_id, digest, reported_at, entries FROM catalogues WHERE tenant = ?1 AND agent_id = ?2";

pub(super) const MERGE: &str = "\
SELECT entry.value AS entry, count(*) AS gateways
FROM catalogues AS c
JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id
JOIN json_each(c.entries) AS entry
WHERE c.tenant = ?1 AND g.revoked_at IS NULL
GROUP BY entry.value
ORDER BY entry.value ->> 'name', gateways DESC";

pub(super) const TARGETS_ALL: &str = "\
SELECT g.agent_id, g.name, g.revoked_at, c.digest IS NOT NULL AS reported,
       (SELECT entry.value FROM json_each(c.entries) AS entry WHERE entry.value ->> 'name' = ?2) AS entry
FROM gateways AS g LEFT JOIN catalogues AS c ON c.tenant = g.tenant AND c.agent_id = g.agent_id
WHERE g.tenant = ?1 AND g.revoked_at IS NULL
ORDER BY g.agent_id";

/// For each `[command, agent_ids, names]` the gateways that are named.
pub(super) const TARGETS_SELECTED: &str = "\
SELECT s.number, g.agent_id, g.name, g.revoked_at, c.digest IS NOT NULL AS reported,
       (SELECT entry.value FROM json_each(c.entries) AS entry WHERE entry.value ->> 'name' = s.command) AS entry
FROM (SELECT q.key AS number, q.value ->> 0 AS command, i.value AS agent_id
      FROM json_each($2) AS q CROSS JOIN json_each(q.value, '$[1]') AS i
      UNION SELECT q.key, q.value ->> 0, b.agent_id
      FROM json_each($2) AS q CROSS JOIN json_each(q.value, '$[2]') AS e
      CROSS JOIN gateways AS b ON b.tenant = $1 AND b.name = e.value) AS s
CROSS JOIN gateways AS g ON g.tenant = $1 AND g.agent_id = s.agent_id
LEFT JOIN catalogues AS c ON c.tenant = $1 AND c.agent_id = g.agent_id
ORDER BY s.number, g.agent_id";

/// What a gateway reports that it allows.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) agent_id: AgentId,
    pub(super) epoch: u64,
    pub(super) digest: String,
    /// The entries, as a document.
    pub(super) entries: String,
    pub(super) now: Timestamp,
}

/// Stores reports.
pub(super) async fn save(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    reports: &[Report],
) -> StoreResult<Vec<StoreResult<()>>> {
    let sessions: Vec<_> = reports
        .iter()
        .map(|report| (report.agent_id, report.epoch))
        .collect();
    let current = current(connection, tenant, &sessions).await?;
    let kept: Vec<_> = reports
        .iter()
        .enumerate()
        .filter(|(number, _)| current.contains(number))
        .map(|(_, report)| report)
        .collect();
    for some in kept.chunks(CHUNK_ROWS) {
        let mut insert: QueryBuilder<Sqlite> = QueryBuilder::new(
            "INSERT INTO catalogues (tenant, agent_id, digest, reported_at, entries) ",
        );
        insert.push_values(some, |mut row, report| {
            row.push_bind(tenant.as_str().to_owned())
                .push_bind(report.agent_id.to_string())
                .push_bind(report.digest.clone())
                .push_bind(report.now.unix_micros())
                .push_bind(report.entries.clone());
        });
        insert.push(
            " ON CONFLICT DO UPDATE SET digest = excluded.digest, reported_at = excluded.reported_at, \
             entries = excluded.entries",
        );
        insert.build().execute(&mut *connection).await?;
    }
    Ok(unless_fenced(&current, reports.len()))
}

/// The last report.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    agent_id: AgentId,
) -> StoreResult<Option<StoredCatalogue>> {
    let row = sqlx::query(LOAD)
        .bind(tenant.as_str())
        .bind(agent_id.to_string())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let reader = Reader::new("catalogues", &row);
    Ok(Some(StoredCatalogue {
        digest: reader.get("digest")?,
        reported_at: reader.time("reported_at")?,
        entries: reader.json("entries")?,
    }))
}

/// Every distinct entry of the fleet.
pub(super) async fn merged(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
) -> StoreResult<Vec<MergedEntry>> {
    let rows = sqlx::query(MERGE)
        .bind(tenant.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter()
        .map(|row| {
            let reader = Reader::new("catalogues", row);
            Ok(MergedEntry {
                entry: reader.json("entry")?,
                gateways: reader.count("gateways")?,
            })
        })
        .collect()
}

/// Every gateway that is not revoked.
pub(super) async fn resolve_all(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    command: &CommandName,
) -> StoreResult<Vec<Target>> {
    let rows = sqlx::query(TARGETS_ALL)
        .bind(tenant.as_str())
        .bind(command.as_str())
        .fetch_all(connection)
        .await?;
    rows.iter().map(read_target).collect()
}

/// What is left of `targets`; a gateway that is to be left out and does not exist is unknown, for it is a misspelling.
pub(super) fn without(targets: Vec<Target>, left_out: &[GatewayRef]) -> Vec<Target> {
    let mut unmet: BTreeSet<&GatewayRef> = left_out.iter().collect();
    let wanted: BTreeSet<&GatewayRef> = unmet.clone();
    let mut kept = Vec::with_capacity(targets.len());
    for target in targets {
        let named = match &target {
            Target::Known { agent_id, name, .. } => {
                let by = [GatewayRef::Id(*agent_id), GatewayRef::Name(name.clone())];
                let named = by.iter().any(|reference| wanted.contains(reference));
                for reference in &by {
                    unmet.remove(reference);
                }
                named
            }
            Target::Unknown(_) => false,
        };
        if !named {
            kept.push(target);
        }
    }
    kept.extend(unmet.into_iter().cloned().map(Target::Unknown));
    kept
}

/// Gateways that are named for a command.
pub(super) type Named = (CommandName, Vec<GatewayRef>);

/// The gateways that several name, in the order they were named, each once.
pub(super) async fn resolve(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    wanted: &[Named],
) -> StoreResult<Vec<StoreResult<Vec<Target>>>> {
    let document: Vec<_> = wanted
        .iter()
        .map(|(command, named)| {
            let (mut ids, mut names) = (Vec::new(), Vec::new());
            for reference in named {
                match reference {
                    GatewayRef::Id(id) => ids.push(id),
                    GatewayRef::Name(name) => names.push(name),
                }
            }
            (command, ids, names)
        })
        .collect();
    let rows = sqlx::query(TARGETS_SELECTED)
        .bind(tenant.as_str())
        .bind(to_json(&document))
        .fetch_all(connection)
        .await?;
    let mut found: BTreeMap<usize, Vec<Target>> = BTreeMap::new();
    for row in &rows {
        let number = Reader::new("gateways", row).index("number")?;
        found.entry(number).or_default().push(read_target(row)?);
    }
    let answers = wanted.iter().enumerate().map(|(number, (_, named))| {
        let found = found.remove(&number).unwrap_or_default();
        Ok(in_the_order_named(named, found))
    });
    Ok(answers.collect())
}

fn in_the_order_named(wanted: &[GatewayRef], found: Vec<Target>) -> Vec<Target> {
    let mut ids = BTreeMap::new();
    let mut targets_by_id = BTreeMap::new();
    for target in found {
        if let Target::Known { agent_id, name, .. } = &target {
            ids.insert(GatewayRef::Id(*agent_id), *agent_id);
            ids.insert(GatewayRef::Name(name.clone()), *agent_id);
            targets_by_id.insert(*agent_id, target);
        }
    }
    let mut targets = Vec::with_capacity(wanted.len());
    for reference in wanted {
        match ids.get(reference) {
            // Named a second time, it is gone from the map.
            Some(id) => targets.extend(targets_by_id.remove(id)),
            None => targets.push(Target::Unknown(reference.clone())),
        }
    }
    targets
}

fn read_target(row: &sqlx::sqlite::SqliteRow) -> StoreResult<Target> {
    let reader = Reader::new("gateways", row);
    Ok(Target::Known {
        agent_id: reader.parse("agent_id")?,
        name: reader.parse("name")?,
        revoked: reader.time_optional("revoked_at")?.is_some(),
        reported: reader.get("reported")?,
        entry: reader.json_optional("entry")?,
    })
}
