//! API keys: only the digest of a secret is ever stored.

use serde_json::json;
use viworks_common::id::ApiKeyId;
use viworks_runtime::sqlite::{Constraint, Row, params};

use super::audit;
use super::link::conflict_or;
use super::page::{listing, preceding, rows_wanted};
use super::row::{Reader, to_json};
use super::tx::{Tx, View};
use crate::data::{Actor, ApiKey, AuditOutcome, Listing, NewApiKey, Page, StoreError, StoreResult};

/// The columns that [`read`] reads.
macro_rules! rows {
    () => {
        "SELECT id, name, sha256, scopes, created_at, expires_at, revoked_at, last_used_at \
         FROM api_keys WHERE tenant = :tenant "
    };
}

/// The name of the key in a column that says by whom something was done, such as `api_key:01…`; null where it was
/// somebody else, or the key is not known.
macro_rules! name_of_key {
    ($table:literal, $column:literal) => {
        concat!(
            "(SELECT k.name FROM api_keys AS k WHERE k.tenant = ",
            $table,
            ".tenant AND substr(",
            $column,
            ", 1, length('",
            crate::data::api_key_word!(),
            ":')) = '",
            crate::data::api_key_word!(),
            ":' AND k.id = substr(",
            $column,
            ", 1 + length('",
            crate::data::api_key_word!(),
            ":')))"
        )
    };
}
pub(super) use name_of_key;

pub(super) const CREATE: &str = "\
INSERT INTO api_keys (tenant, id, name, sha256, scopes, created_at, expires_at)
VALUES (:tenant, :id, :name, :sha256, :scopes, :now, :expires_at) ON CONFLICT (tenant, id) DO NOTHING";

pub(super) const BY_HASH: &str = concat!(rows!(), "AND sha256 = :sha256");

pub(super) const BY_ID: &str = concat!(rows!(), "AND id = :id");

pub(super) const LIST: &str = concat!(rows!(), "AND id < :before ORDER BY id DESC LIMIT :limit");

pub(super) const REVOKE: &str = "\
UPDATE api_keys SET revoked_at = coalesce(revoked_at, :now) WHERE tenant = :tenant AND id = :id";

pub(super) const TOUCH: &str = "\
UPDATE api_keys SET last_used_at = CASE WHEN last_used_at > :now THEN last_used_at ELSE :now END WHERE tenant = :tenant AND id = :id";

/// Creates a key.
pub(super) fn create(tx: &Tx<'_>, new: &NewApiKey, actor: &Actor) -> StoreResult<()> {
    let NewApiKey {
        id,
        name,
        sha256,
        expires_at,
        ..
    } = new;
    let scopes = to_json(&new.scopes);
    let conflict = || format!("API key {id}");
    let made = tx.try_execute(CREATE, params! { id, name, sha256, scopes, expires_at });
    if made.map_err(conflict_or(&[Constraint::Unique], conflict))? == 0 {
        // Made before, and the answer to that was lost; or somebody else has the id.
        return match by_id(tx, *id)? {
            Some(known) if known.sha256 == *sha256 => Ok(()),
            Some(_) | None => Err(StoreError::Conflict { what: conflict() }),
        };
    }
    let detail = json!({ "name": new.name, "scopes": new.scopes, "expires_at": new.expires_at });
    note(tx, actor, "api_key.create", *id, &detail)
}

/// The key with this digest.
pub(super) fn by_hash(view: &View<'_>, sha256: &[u8; 32]) -> StoreResult<Option<ApiKey>> {
    view.optional(BY_HASH, params! { sha256 }, read)
}

/// The key with this id.
pub(super) fn by_id(view: &View<'_>, id: ApiKeyId) -> StoreResult<Option<ApiKey>> {
    view.optional(BY_ID, params! { id }, read)
}

/// The keys, latest first.
pub(super) fn list(
    view: &View<'_>,
    page: Page<ApiKeyId>,
) -> StoreResult<Listing<ApiKey, ApiKeyId>> {
    let (before, limit) = (preceding(page.after), rows_wanted(page.limit));
    let rows = view.page(LIST, params! { before, limit }, read)?;
    Ok(listing(rows, page.limit, |key| key.id))
}

/// Revokes a key; once is enough.
pub(super) fn revoke(tx: &Tx<'_>, id: ApiKeyId, actor: &Actor) -> StoreResult<Option<()>> {
    if tx.execute(REVOKE, params! { id })? == 0 {
        return Ok(None);
    }
    note(tx, actor, "api_key.revoke", id, &json!({})).map(Some)
}

/// Remembers a use.
pub(super) fn touch(tx: &Tx<'_>, id: ApiKeyId) -> StoreResult<()> {
    tx.execute(TOUCH, params! { id }).map(drop)
}

fn note(
    tx: &Tx<'_>,
    actor: &Actor,
    action: &str,
    id: ApiKeyId,
    detail: &serde_json::Value,
) -> StoreResult<()> {
    let object = Actor::api_key(id).to_string();
    audit::append(tx, actor, action, &object, AuditOutcome::Done, detail)
}

fn read(row: &Row<'_>) -> StoreResult<ApiKey> {
    let row = Reader::new("api_keys", row);
    Ok(ApiKey {
        id: row.get("id")?,
        name: row.get("name")?,
        sha256: row.get("sha256")?,
        scopes: row.json("scopes")?,
        created_at: row.get("created_at")?,
        expires_at: row.get("expires_at")?,
        revoked_at: row.get("revoked_at")?,
        last_used_at: row.get("last_used_at")?,
    })
}
