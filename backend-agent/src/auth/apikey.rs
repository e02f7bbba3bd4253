//! Making, listing and revoking API keys, for the API and for the backend's own command line.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_api::{ApiKey, ApiKeyStatus, Kind, Scope};
use viworks_common::id::{ApiKeyId, Tenant};
use viworks_common::time::Timestamp;
use viworks_runtime::files::{Draft, FileError};
use viworks_runtime::{fault, random};
use zeroize::Zeroizing;

use super::ApiSecret;
use crate::data::{self, Actor, Listing, NewApiKey, Page, Store, StoreError};

/// Characters of a key's name.
pub const NAME_CHARS_MAX: usize = 64;

/// The longest validity: ten years. A key that must live longer has no end at all.
const LIFE_MAX: Duration = Duration::from_secs(3_650 * 24 * 3_600);

/// A key to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateKey {
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// How long it is valid; without an end when absent.
    pub expires_in: Option<Duration>,
}

/// Why no key was made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name is empty, too long or not printable.
    #[error("the name must have 1 to {NAME_CHARS_MAX} printable characters")]
    BadName,
    /// A key without scopes opens nothing.
    #[error("at least one scope is needed")]
    NoScope,
    /// A validity of nothing, or beyond every plan.
    #[error("the validity must be between a millisecond and ten years")]
    BadExpiry,
    /// The secret could not be written.
    #[error("failed to write the secret to {}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others could change where the secret goes.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store said no.
    #[error("failed to store the API key")]
    Store(#[from] StoreError),
}

/// Makes a key; the secret is given once, here.
///
/// # Errors
/// Why no key was made.
pub async fn issue(
    store: &dyn Store,
    tenant: &Tenant,
    request: CreateKey,
    actor: &Actor,
    now: Timestamp,
) -> Result<(ApiKey, ApiSecret), CreateError> {
    check(&request)?;
    let secret = ApiSecret::from_random(&random::bytes());
    let key = store_key(store, tenant, request, &secret, actor, now).await?;
    Ok((key, secret))
}

/// Makes a key and writes its secret into the new file `out`, readable by the owner only. An existing file is never
/// overwritten: it may hold a key that is in use. The file is there once its key is stored, whenever this is killed; a
/// key that is stored by then and has no file is listed, and nobody has used it.
///
/// # Errors
/// Why no key was made; no file is left behind.
pub async fn create(
    store: &dyn Store,
    tenant: &Tenant,
    request: CreateKey,
    actor: &Actor,
    out: &Path,
    now: Timestamp,
) -> Result<ApiKey, CreateError> {
    check(&request)?;
    let secret = ApiSecret::from_random(&random::bytes());
    // First the secret: one that opens nothing yet is harmless, a key whose secret nobody has is rubbish.
    let draft = write_secret(out, &secret)?;
    fault::point("api_key.written");
    let key = store_key(store, tenant, request, &secret, actor, now).await?;
    fault::point("api_key.stored");
    if let Err(error) = draft.keep() {
        // Best effort: the failure that matters is the one about to be returned.
        drop(revoke(store, tenant, key.id, actor, now).await);
        return Err(unwritten(out)(error));
    }
    Ok(key)
}

/// One page of the keys, latest first.
///
/// # Errors
/// As the store's.
pub async fn list(
    store: &dyn Store,
    tenant: &Tenant,
    page: Page<ApiKeyId>,
    now: Timestamp,
) -> Result<Listing<ApiKey, ApiKeyId>, StoreError> {
    let Listing { items, next } = store.list_api_keys(tenant, page).await?;
    let items = items.into_iter().map(|key| view(key, now)).collect();
    Ok(Listing { items, next })
}

/// Revokes a key; `None` when there is no such key.
///
/// # Errors
/// As the store's.
pub async fn revoke(
    store: &dyn Store,
    tenant: &Tenant,
    id: ApiKeyId,
    actor: &Actor,
    now: Timestamp,
) -> Result<Option<()>, StoreError> {
    store.revoke_api_key(tenant, id, actor, now).await
}

fn check(request: &CreateKey) -> Result<(), CreateError> {
    let length = request.name.chars().count();
    if !(1..=NAME_CHARS_MAX).contains(&length) || request.name.chars().any(char::is_control) {
        return Err(CreateError::BadName);
    }
    if request.scopes.is_empty() {
        return Err(CreateError::NoScope);
    }
    let possible = Duration::from_millis(1)..=LIFE_MAX;
    if request
        .expires_in
        .is_some_and(|span| !possible.contains(&span))
    {
        return Err(CreateError::BadExpiry);
    }
    Ok(())
}

async fn store_key(
    store: &dyn Store,
    tenant: &Tenant,
    request: CreateKey,
    secret: &ApiSecret,
    actor: &Actor,
    now: Timestamp,
) -> Result<ApiKey, StoreError> {
    let id = ApiKeyId::from_uuid(random::uuid_v7(now));
    let expires_at = request.expires_in.map(|span| now.saturating_add(span));
    let new = NewApiKey {
        id,
        name: request.name.clone(),
        sha256: secret.sha256(),
        scopes: request
            .scopes
            .iter()
            .map(|scope| scope.name().to_owned())
            .collect(),
        expires_at,
    };
    store.create_api_key(tenant, new, actor, now).await?;
    Ok(ApiKey {
        kind: Kind::ApiKey,
        id,
        name: request.name,
        scopes: request.scopes.into_iter().collect(),
        status: ApiKeyStatus::Active,
        created_at: now,
        expires_at,
        last_used_at: None,
    })
}

fn view(key: data::ApiKey, now: Timestamp) -> ApiKey {
    let status = if key.revoked_at.is_some() {
        ApiKeyStatus::Revoked
    } else if key.expires_at.is_some_and(|end| end <= now) {
        ApiKeyStatus::Expired
    } else {
        ApiKeyStatus::Active
    };
    ApiKey {
        kind: Kind::ApiKey,
        id: key.id,
        name: key.name,
        scopes: key
            .scopes
            .iter()
            .filter_map(|scope| scope.parse().ok())
            .collect(),
        status,
        created_at: key.created_at,
        expires_at: key.expires_at,
        last_used_at: key.last_used_at,
    }
}

fn write_secret(out: &Path, secret: &ApiSecret) -> Result<Draft, CreateError> {
    let line = Zeroizing::new(format!("{}\n", secret.expose()));
    Draft::write(out, line.as_bytes(), 0o600).map_err(unwritten(out))
}

fn unwritten(out: &Path) -> impl Fn(FileError) -> CreateError {
    move |error| match error.into_io() {
        Ok((_draft, source)) => CreateError::Write {
            path: out.to_owned(),
            source,
        },
        Err(error) => error.into(),
    }
}
