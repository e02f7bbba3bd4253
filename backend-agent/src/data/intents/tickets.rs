//! Enrolment tickets: made, listed, revoked and used; only the digest of a secret is ever stored.

use std::time::Duration;

use serde_json::{Value, json};
use viworks_common::id::TicketId;
use viworks_common::network::IpNetwork;
use viworks_runtime::sqlite::{Row, params};

use super::page::{listing, preceding, rows_wanted};
use super::row::{Reader, column, to_json};
use super::tx::{Tx, View};
use super::{audit, enrolments};
use crate::data::{
    Actor, AuditOutcome, Listing, NewTicket, Page, StoreError, StoreResult, StoredTicket,
};

/// Tickets that are kept at most.
const TICKETS_MAX: u64 = 2_000;

/// How long a ticket is kept behind its end.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Refusals of one ticket that the audit log has a record of; those beyond are counted.
const REFUSALS_NOTED_MAX: u64 = 100;

/// The columns that [`read`] reads.
macro_rules! rows {
    () => {
        "SELECT ticket_id, sha256, uses_max, uses, refusals, labels, naming, networks, created_at, created_by, \
         expires_at, revoked_at FROM tickets WHERE tenant = :tenant "
    };
}

pub(super) const CREATE: &str = "\
INSERT INTO tickets (tenant, ticket_id, sha256, uses_max, labels, naming, networks, created_at, created_by, expires_at)
VALUES (:tenant, :id, :sha256, :uses_max, :labels, :naming, :networks, :now, :created_by, :expires_at)
ON CONFLICT (tenant, ticket_id) DO NOTHING";

pub(super) const BY_ID: &str = concat!(rows!(), "AND ticket_id = :id");

pub(super) const LIST: &str = concat!(
    rows!(),
    "AND ticket_id < :before ORDER BY ticket_id DESC LIMIT :limit"
);

pub(super) const COUNT: &str = "SELECT count(*) AS tickets FROM tickets WHERE tenant = :tenant";

pub(super) const FORGET: &str =
    "DELETE FROM tickets WHERE tenant = :tenant AND expires_at <= :until";

pub(super) const REVOKE: &str = "\
UPDATE tickets SET revoked_at = coalesce(revoked_at, :now) WHERE tenant = :tenant AND ticket_id = :id";

pub(super) const USE: &str = "\
UPDATE tickets SET uses = uses + 1
WHERE tenant = :tenant AND ticket_id = :id AND uses < uses_max AND revoked_at IS NULL AND expires_at > :now";

pub(super) const REFUSED: &str =
    "UPDATE tickets SET refusals = refusals + 1 WHERE tenant = :tenant AND ticket_id = :id";

/// Makes a ticket; `false` when there are as many as may be.
pub(super) fn create(tx: &Tx<'_>, new: &NewTicket, actor: &Actor) -> StoreResult<bool> {
    tx.lock_name("tickets")?;
    let until = tx.now.saturating_sub(KEPT);
    enrolments::forget(tx, until)?;
    tx.execute(FORGET, params! { until })?;
    if tx.one(COUNT, &[], column::<u64>("tickets", "tickets"))? >= TICKETS_MAX {
        return Ok(false);
    }
    let NewTicket {
        id,
        sha256,
        uses_max,
        expires_at,
        ..
    } = new;
    let (labels, naming) = (to_json(&new.labels), to_json(&new.naming));
    let named: Vec<String> = new.networks.iter().map(IpNetwork::to_string).collect();
    let (networks, created_by) = (to_json(&named), actor.to_string());
    let made = tx.execute(
        CREATE,
        params! { id, sha256, uses_max, labels, naming, networks, created_by, expires_at },
    )?;
    if made == 0 {
        // Made before, and the answer to that was lost; or somebody else has the id.
        return match by_id(tx, *id)? {
            Some(known) if known.sha256 == *sha256 => Ok(true),
            Some(_) | None => Err(StoreError::Conflict {
                what: format!("ticket {id}"),
            }),
        };
    }
    let detail = json!({
        "uses": uses_max, "labels": new.labels, "naming": new.naming, "networks": named, "expires_at": expires_at,
    });
    note(tx, actor, "ticket.create", *id, AuditOutcome::Done, &detail)?;
    Ok(true)
}

/// The ticket with this id.
pub(super) fn by_id(view: &View<'_>, id: TicketId) -> StoreResult<Option<StoredTicket>> {
    view.optional(BY_ID, params! { id }, read)
}

/// The tickets, latest first.
pub(super) fn list(
    view: &View<'_>,
    page: Page<TicketId>,
) -> StoreResult<Listing<StoredTicket, TicketId>> {
    let (before, limit) = (preceding(page.after), rows_wanted(page.limit));
    let rows = view.page(LIST, params! { before, limit }, read)?;
    Ok(listing(rows, page.limit, |ticket| ticket.id))
}

/// Revokes a ticket; once is enough.
pub(super) fn revoke(tx: &Tx<'_>, id: TicketId, actor: &Actor) -> StoreResult<Option<()>> {
    if tx.execute(REVOKE, params! { id })? == 0 {
        return Ok(None);
    }
    let done = AuditOutcome::Done;
    note(tx, actor, "ticket.revoke", id, done, &json!({})).map(Some)
}

/// Takes one of a ticket's uses; `false` when there is none.
pub(super) fn take_use(tx: &Tx<'_>, id: TicketId) -> StoreResult<bool> {
    Ok(tx.execute(USE, params! { id })? == 1)
}

/// Counts a refusal, and records it as far as that has a bound.
pub(super) fn note_refused(
    tx: &Tx<'_>,
    id: TicketId,
    detail: &Value,
    actor: &Actor,
) -> StoreResult<()> {
    let Some(ticket) = by_id(tx, id)? else {
        return Ok(());
    };
    tx.execute(REFUSED, params! { id })?;
    if ticket.refusals >= REFUSALS_NOTED_MAX {
        return Ok(());
    }
    let refused = AuditOutcome::Refused;
    note(tx, actor, "ticket.redeem", id, refused, detail)
}

/// Notes in the audit log what was done with a ticket.
pub(super) fn note(
    tx: &Tx<'_>,
    actor: &Actor,
    action: &str,
    id: TicketId,
    outcome: AuditOutcome,
    detail: &Value,
) -> StoreResult<()> {
    audit::append(tx, actor, action, &format!("ticket:{id}"), outcome, detail)
}

fn read(row: &Row<'_>) -> StoreResult<StoredTicket> {
    let row = Reader::new("tickets", row);
    let networks = row.json::<Vec<String>>("networks")?;
    let networks = networks.iter().map(|text| text.parse().ok()).collect();
    let networks: Option<Vec<IpNetwork>> = networks;
    Ok(StoredTicket {
        id: row.get("ticket_id")?,
        sha256: row.get("sha256")?,
        uses_max: row.get("uses_max")?,
        uses: row.get("uses")?,
        refusals: row.get("refusals")?,
        labels: row.json("labels")?,
        naming: row.json("naming")?,
        networks: networks.ok_or_else(|| row.inconsistent("networks"))?,
        created_at: row.get("created_at")?,
        created_by: row.get("created_by")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
    })
}
