//! Results of commands that nobody knows: listed.

use viworks_common::id::AgentId;
use viworks_runtime::sqlite::{Row, params};

use super::page::{listing, preceding, rows_wanted};
use super::row::Reader;
use super::tx::View;
use crate::data::{Listing, Orphan, OrphanCursor, Page, StoreResult};

pub(super) const LIST: &str = "\
SELECT command_id, received_at, outcome FROM orphan_results INDEXED BY orphan_results_by_gateway
WHERE tenant = :tenant AND agent_id = :agent_id AND (received_at, command_id) < (:received_at, :command_id)
ORDER BY received_at DESC, command_id DESC LIMIT :limit";

/// Those of a gateway, the latest first.
pub(super) fn list(
    view: &View<'_>,
    agent_id: AgentId,
    page: Page<OrphanCursor>,
) -> StoreResult<Listing<Orphan, OrphanCursor>> {
    let received_at = page
        .after
        .map_or(i64::MAX, |after| after.received_at.unix_micros());
    let command_id = preceding(page.after.map(|after| after.command_id));
    let limit = rows_wanted(page.limit);
    let params = params! { agent_id, received_at, command_id, limit };
    let rows = view.page(LIST, params, read)?;
    Ok(listing(rows, page.limit, |orphan| OrphanCursor {
        received_at: orphan.received_at,
        command_id: orphan.command_id,
    }))
}

fn read(row: &Row<'_>) -> StoreResult<Orphan> {
    let row = Reader::new("orphan_results", row);
    Ok(Orphan {
        command_id: row.get("command_id")?,
        received_at: row.get("received_at")?,
        outcome: row.json("outcome")?,
    })
}
