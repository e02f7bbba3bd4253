//! What each gateway allows, and what the fleet allows together.

use viworks_common::catalogue::CatalogueEntry;
use viworks_common::id::AgentId;
use viworks_runtime::sqlite::params;

use super::row::{Reader, to_json};
use super::sessions::fence;
use super::tx::{Tx, View};
use crate::data::{MergedEntry, StoreResult, StoredCatalogue};

pub(super) const SAVE: &str = "\
INSERT INTO catalogues (tenant, agent_id, digest, reported_at, entries)
VALUES (:tenant, :agent_id, :digest, :now, :entries)
ON CONFLICT DO UPDATE SET digest = excluded.digest, reported_at = excluded.reported_at, entries = excluded.entries";

pub(super) const LOAD: &str = "\
SELECT agent_id, digest, reported_at, entries FROM catalogues WHERE tenant = :tenant AND agent_id = :agent_id";

pub(super) const MERGE: &str = "\
SELECT entry.value AS entry, count(*) AS gateways
FROM catalogues AS c
JOIN gateways AS g ON g.tenant = c.tenant AND g.agent_id = c.agent_id
JOIN json_each(c.entries) AS entry
WHERE c.tenant = :tenant AND g.revoked_at IS NULL
GROUP BY entry.value
ORDER BY entry.value ->> 'name', gateways DESC";

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

/// Every distinct entry of the fleet.
pub(super) fn merged(view: &View<'_>) -> StoreResult<Vec<MergedEntry>> {
    view.all(MERGE, &[], |row| {
        let row = Reader::new("catalogues", row);
        Ok(MergedEntry {
            entry: row.json("entry")?,
            gateways: row.get("gateways")?,
        })
    })
}
