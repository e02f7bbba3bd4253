//! API keys: only the digest of a secret is ever stored.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use sqlx::SqliteConnection;
use viworks_common::id::{ApiKeyId, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::sqlite::Constraint;

use super::page::{Fetched, rows_wanted};
use super::row::{Reader, to_json};
use super::{audit, conflict_or};
use crate::data::{Actor, ApiKey, AuditOutcome, Listing, NewApiKey, Page, StoreResult};

pub(super) const CREATE: &str = "\
INSERT INTO api_keys (tenant, id, name, sha256, scopes, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

pub(super) const BY_HASH: &str = "\
SELECT id, name, sha256, scopes, created_at, expires_at, revoked_at, last_used_at
FROM api_keys WHERE tenant = ?1 AND sha256 IN (SELECT unhex(value) FROM json_each(?2))";

pub(super) const LIST: &str = "\
SELECT id, name, sha256, scopes, created_at, expires_at, revoked_at, last_used_at
FROM api_keys WHERE tenant = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3";

pub(super) const BY_ID: &str = "\
SELECT id, name, sha256, scopes, created_at, expires_at, revoked_at, last_used_at
FROM api_keys WHERE tenant = ?1 AND id = ?2";

pub(super) const REVOKE: &str = "\
UPDATE api_keys SET revoked_at = coalesce(revoked_at, ?3) WHERE tenant = ?1 AND id = ?2";

pub(super) const TOUCH: &str = "\
UPDATE api_keys SET last_used_at = max(coalesce(last_used_at, 0), ?3) WHERE tenant = ?1 AND id = ?2";

/// Creates a key.
pub(super) async fn create(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    new: &NewApiKey,
    actor: &Actor,
    now: Timestamp,
) -> StoreResult<()> {
    sqlx::query(CREATE)
        .bind(tenant.as_str())
        .bind(new.id.to_string())
        .bind(&new.name)
        .bind(new.sha256.as_slice())
        .bind(to_json(&new.scopes))
        .bind(now.unix_micros())
        .bind(new.expires_at.map(Timestamp::unix_micros))
        .execute(&mut *connection)
        .await
        .map_err(conflict_or(
            &[Constraint::Unique, Constraint::PrimaryKey],
            || format!("API key {}", new.id),
        ))?;
    let detail = json!({ "name": new.name, "scopes": new.scopes, "expires_at": new.expires_at });
    let object = Actor::api_key(new.id).to_string();
    let record = audit::record(actor, "api_key.create", object, AuditOutcome::Done, detail);
    audit::append(connection, tenant, &record, now).await
}

/// The keys with these digests, each where its digest stands.
pub(super) async fn by_hash(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    digests: &[[u8; 32]],
) -> StoreResult<Vec<StoreResult<Option<ApiKey>>>> {
    let distinct: BTreeSet<_> = digests.iter().map(hex::encode).collect();
    let rows = sqlx::query(BY_HASH)
        .bind(tenant.as_str())
        .bind(to_json(&distinct))
        .fetch_all(connection)
        .await?;
    let mut found = BTreeMap::new();
    for row in &rows {
        let key = read(row)?;
        found.insert(key.sha256, key);
    }
    Ok(digests
        .iter()
        .map(|digest| Ok(found.get(digest).cloned()))
        .collect())
}

/// The key with this id.
pub(super) async fn by_id(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    id: ApiKeyId,
) -> StoreResult<Option<ApiKey>> {
    let row = sqlx::query(BY_ID)
        .bind(tenant.as_str())
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(read).transpose()
}

/// The keys, latest first.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    page: Page<ApiKeyId>,
) -> StoreResult<Listing<ApiKey, ApiKeyId>> {
    // Every id begins with a hexadecimal digit, which sorts before this.
    let before = page
        .after
        .map_or_else(|| "~".to_owned(), |after| after.to_string());
    let rows = sqlx::query(LIST)
        .bind(tenant.as_str())
        .bind(before)
        .bind(rows_wanted(page.limit))
        .fetch_all(connection)
        .await?;
    Fetched::new(rows, page.limit).listing(read, |key| key.id)
}

/// Revokes a key; once is enough.
pub(super) async fn revoke(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    actor: &Actor,
    id: ApiKeyId,
    now: Timestamp,
) -> StoreResult<Option<()>> {
    let done = sqlx::query(REVOKE)
        .bind(tenant.as_str())
        .bind(id.to_string())
        .bind(now.unix_micros())
        .execute(&mut *connection)
        .await?;
    if done.rows_affected() == 0 {
        return Ok(None);
    }
    let object = Actor::api_key(id).to_string();
    let record = audit::record(
        actor,
        "api_key.revoke",
        object,
        AuditOutcome::Done,
        json!({}),
    );
    audit::append(connection, tenant, &record, now).await?;
    Ok(Some(()))
}

/// Remembers a use.
pub(super) async fn touch(
    connection: &mut SqliteConnection,
    tenant: &Tenant,
    id: ApiKeyId,
    now: Timestamp,
) -> StoreResult<()> {
    sqlx::query(TOUCH)
        .bind(tenant.as_str())
        .bind(id.to_string())
        .bind(now.unix_micros())
        .execute(connection)
        .await?;
    Ok(())
}

fn read(row: &sqlx::sqlite::SqliteRow) -> StoreResult<ApiKey> {
    let reader = Reader::new("api_keys", row);
    Ok(ApiKey {
        id: reader.parse("id")?,
        name: reader.get("name")?,
        sha256: reader.digest("sha256")?,
        scopes: reader.json("scopes")?,
        created_at: reader.time("created_at")?,
        expires_at: reader.time_optional("expires_at")?,
        revoked_at: reader.time_optional("revoked_at")?,
        last_used_at: reader.time_optional("last_used_at")?,
    })
}
