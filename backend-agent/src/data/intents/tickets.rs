//! Enrolment tickets: made, listed, revoked and used; only the digest of a secret is ever stored.

use std::time::Duration;

use serde_json::{Value, json};
use viworks_common::id::TicketId;
use viworks_common::network::IpNetwork;
use viworks_runtime::sqlite::{Row, params};

use super::link::Sql;
use super::page::{listing, preceding, rows_wanted};
use super::row::{Reader, to_json};
use super::tx::{Tx, View};
use super::{audit, enrolments};
use crate::data::model::api_key_word;
use crate::data::{
    Actor, AuditOutcome, Listing, NewTicket, Page, StoreError, StoreResult, StoredTicket,
    TicketBounds, TicketOutcome,
};

/// How long a ticket is kept behind its end.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Refusals of one ticket that the audit log has a record of; those beyond are counted, and recorded once an hour for
/// each reason.
const REFUSALS_NOTED_MAX: u64 = 100;

/// The columns that [`read`] reads.
macro_rules! rows {
    ($rest:literal) => {
        Sql {
            sqlite: rows!("instr", $rest),
            postgres: rows!("strpos", $rest),
        }
    };
    ($find:literal, $rest:literal) => {
        concat!(
            "SELECT t.ticket_id, t.sha256, t.uses_max, t.uses, t.refusals, t.labels, t.naming, t.networks, \
             t.created_at, t.created_by, \
             (SELECT k.name FROM api_keys AS k WHERE k.tenant = t.tenant AND ",
            $find,
            "(t.created_by, '",
            api_key_word!(),
            ":') = 1 AND k.id = substr(t.created_by, 1 + length('",
            api_key_word!(),
            ":'))) AS creator, \
             t.expires_at, t.revoked_at, t.replaces, t.allow_replace, t.ephemeral_ms \
             FROM tickets AS t WHERE t.tenant = :tenant ",
            $rest
        )
    };
}

pub(super) const CREATE: &str = "\
INSERT INTO tickets (tenant, ticket_id, sha256, uses_max, labels, naming, networks, created_at, created_by, expires_at,
                     replaces, allow_replace, ephemeral_ms)
VALUES (:tenant, :id, :sha256, :uses_max, :labels, :naming, :networks, :now, :created_by, :expires_at,
        :replaces, :allow_replace, :ephemeral_ms)
ON CONFLICT (tenant, ticket_id) DO NOTHING";

pub(super) const BY_ID: Sql = rows!("AND t.ticket_id = :id");

pub(super) const LIST: Sql =
    rows!("AND t.ticket_id < :before ORDER BY t.ticket_id DESC LIMIT :limit");

/// Those by which a gateway can still come.
macro_rules! live {
    () => {
        "(revoked_at IS NULL AND uses < uses_max AND expires_at > :now)"
    };
}

pub(super) const COUNT: &str = concat!(
    "SELECT count(*) FILTER (WHERE ",
    live!(),
    ") AS live, count(*) FILTER (WHERE ",
    live!(),
    " AND created_by = :created_by) AS own, count(*) AS kept FROM tickets WHERE tenant = :tenant"
);

pub(super) const OLDEST_ENDED: &str = concat!(
    "SELECT ticket_id FROM tickets WHERE tenant = :tenant AND NOT ",
    live!(),
    " ORDER BY ticket_id LIMIT :excess"
);

pub(super) const DELETE: &str = "DELETE FROM tickets WHERE tenant = :tenant AND ticket_id = :id";

pub(super) const FORGET: &str =
    "DELETE FROM tickets WHERE tenant = :tenant AND expires_at <= :until";

pub(super) const REVOKE: &str = "\
UPDATE tickets SET revoked_at = coalesce(revoked_at, :now) WHERE tenant = :tenant AND ticket_id = :id";

pub(super) const USE: &str = "\
UPDATE tickets SET uses = uses + 1
WHERE tenant = :tenant AND ticket_id = :id AND uses < uses_max AND revoked_at IS NULL AND expires_at > :now";

pub(super) const REFUSED: &str =
    "UPDATE tickets SET refusals = refusals + 1 WHERE tenant = :tenant AND ticket_id = :id";

/// Makes a ticket, unless there are as many as may be.
pub(super) fn create(
    tx: &Tx<'_>,
    new: &NewTicket,
    bounds: TicketBounds,
    actor: &Actor,
) -> StoreResult<TicketOutcome> {
    tx.lock_name("tickets")?;
    let created_by = actor.to_string();
    let until = tx.now.saturating_sub(KEPT);
    enrolments::forget(tx, until)?;
    tx.execute(FORGET, params! { until })?;
    let Counted { live, own, kept } = tx.one(COUNT, params! { created_by }, counted)?;
    forget_oldest(tx, kept.saturating_sub(live), bounds.ended)?;
    if live >= bounds.live {
        return Ok(TicketOutcome::Full);
    }
    if own >= bounds.of_one {
        return Ok(TicketOutcome::FullOfOne);
    }
    let NewTicket {
        id,
        sha256,
        uses_max,
        expires_at,
        replaces,
        allow_replace,
        ..
    } = new;
    let ephemeral_ms = new.ephemeral.map(millis);
    let (labels, naming) = (to_json(&new.labels), to_json(&new.naming));
    let named: Vec<String> = new.networks.iter().map(IpNetwork::to_string).collect();
    let networks = to_json(&named);
    let made = tx.execute(
        CREATE,
        params! {
            id, sha256, uses_max, labels, naming, networks, created_by, expires_at, replaces, allow_replace, ephemeral_ms,
        },
    )?;
    if made == 0 {
        // Made before, and the answer to that was lost; or somebody else has the id.
        return match by_id(tx, *id)? {
            Some(known) if known.sha256 == *sha256 => Ok(TicketOutcome::Made),
            Some(_) | None => Err(StoreError::Conflict {
                what: format!("ticket {id}"),
            }),
        };
    }
    let detail = json!({
        "uses": uses_max, "labels": new.labels, "naming": new.naming, "networks": named, "expires_at": expires_at,
        "replaces": replaces, "allow_replace": allow_replace, "ephemeral_ms": ephemeral_ms,
    });
    note(tx, actor, "ticket.create", *id, AuditOutcome::Done, &detail)?;
    Ok(TicketOutcome::Made)
}

/// A span as it is stored.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// How many tickets there are.
struct Counted {
    /// By which a gateway can still come.
    live: u64,
    /// Of these, those of whoever asks.
    own: u64,
    /// All.
    kept: u64,
}

fn counted(row: &Row<'_>) -> StoreResult<Counted> {
    let row = Reader::new("tickets", row);
    Ok(Counted {
        live: row.get("live")?,
        own: row.get("own")?,
        kept: row.get("kept")?,
    })
}

/// Forgets the oldest of the ended ones beyond so many.
fn forget_oldest(tx: &Tx<'_>, ended: u64, ended_max: u64) -> StoreResult<()> {
    let excess = ended.saturating_sub(ended_max);
    if excess == 0 {
        return Ok(());
    }
    let id = |row: &Row<'_>| Reader::new("tickets", row).get::<TicketId>("ticket_id");
    for id in tx.all(OLDEST_ENDED, params! { excess }, id)? {
        // Whoever redeems it at this moment is through, or finds none.
        lock(tx, id)?;
        enrolments::forget_of(tx, id)?;
        tx.execute(DELETE, params! { id })?;
    }
    Ok(())
}

/// Keeps others waiting that use or end this ticket.
pub(super) fn lock(tx: &Tx<'_>, id: TicketId) -> StoreResult<()> {
    tx.lock_name(&format!("ticket {id}"))
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
    lock(tx, id)?;
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
    why: &str,
    detail: &Value,
    actor: &Actor,
) -> StoreResult<()> {
    let Some(ticket) = by_id(tx, id)? else {
        return Ok(());
    };
    tx.execute(REFUSED, params! { id })?;
    let is_news = || enrolments::is_news(tx, id, &[b"refused", why.as_bytes()]);
    if ticket.refusals >= REFUSALS_NOTED_MAX && !is_news()? {
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
        replaces: row.get("replaces")?,
        allow_replace: row.get("allow_replace")?,
        ephemeral: row
            .get::<Option<u64>>("ephemeral_ms")?
            .map(Duration::from_millis),
        created_at: row.get("created_at")?,
        created_by: row.get("created_by")?,
        creator: row.get("creator")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
    })
}
