//! From an `Authorization` header to a principal.

use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;
use tokio::time::timeout;
use viworks_api::Scope;
use viworks_common::id::Tenant;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::Timeline;

use super::principals::Principals;
use super::{ApiSecret, Principal};
use crate::data::{Store, StoreError};

/// How old the stored time of last use may be before it is written again.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);

/// How long the store may take to look up a key that it knew lately, where that would do.
const LOOK_TIME: Duration = Duration::from_secs(1);

/// What a key is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To do something or to read what is stored.
    Work,
    /// To see how this process is. That has an answer also while the store has none, so a key will do that the store
    /// knew lately.
    Watch,
}

/// Why a request has no principal.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// No `Authorization` header.
    #[error("the request has no bearer token")]
    Missing,
    /// The header, or the key in it, is not accepted. One answer for every cause: a caller learns nothing about keys.
    #[error("the bearer token is not accepted")]
    Refused,
    /// The store could not be asked.
    #[error("failed to look the API key up")]
    Store(#[from] StoreError),
}

/// Finds the principal behind a request.
///
/// # Errors
/// Why there is none.
pub async fn authenticate(
    store: &dyn Store,
    tenant: &Tenant,
    principals: &Principals,
    headers: &HeaderMap,
    purpose: Purpose,
    clock: &Timeline,
) -> Result<Principal, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(AuthError::Missing)?;
    // Two headers are two stories; a proxy and we might believe different ones.
    if values.next().is_some() {
        return Err(AuthError::Refused);
    }
    let secret = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _token)| scheme.eq_ignore_ascii_case("bearer"))
        .and_then(|(_scheme, token)| ApiSecret::parse(token))
        .ok_or(AuthError::Refused)?;
    let digest = secret.sha256();
    let began = clock.now();
    let principal = match principals.find(&digest, began) {
        Ok(principal) => principal,
        Err(lookup) => {
            let lately = match purpose {
                Purpose::Work => None,
                Purpose::Watch => principals.lately(&digest, began),
            };
            let looked = look_up(store, tenant, &digest, clock.line());
            let found = match lately {
                None => looked.await,
                Some(known) => match timeout(LOOK_TIME, looked).await {
                    Err(_) | Ok(Err(AuthError::Store(_))) => return in_force(known, clock),
                    Ok(found) => found,
                },
            };
            match found {
                Ok(principal) => {
                    principals.remember(lookup, digest, &principal, began);
                    principal
                }
                Err(error) => {
                    if matches!(error, AuthError::Refused) {
                        principals.forget_one(&digest);
                    }
                    return Err(error);
                }
            }
        }
    };
    in_force(principal, clock)
}

/// The same, unless its key has ended. Looked at each time: that may happen within the moment for which it is
/// remembered.
fn in_force(principal: Principal, clock: &Timeline) -> Result<Principal, AuthError> {
    let ended = principal.expires_at.is_some_and(|end| end <= clock.line());
    if ended {
        Err(AuthError::Refused)
    } else {
        Ok(principal)
    }
}

async fn look_up(
    store: &dyn Store,
    tenant: &Tenant,
    digest: &[u8; 32],
    now: Timestamp,
) -> Result<Principal, AuthError> {
    let found = store.api_key_by_hash(tenant, digest).await?;
    // The same steps for a known and an unknown key: an unknown one is compared with a digest that nothing has.
    let never = [0; 32];
    let stored = found.as_ref().map_or(&never, |key| &key.sha256);
    let equal = bool::from(stored.ct_eq(digest));
    let key = found.filter(|_key| equal).ok_or(AuthError::Refused)?;
    if key.revoked_at.is_some() {
        return Err(AuthError::Refused);
    }
    let stale = key
        .last_used_at
        .is_none_or(|last| now.saturating_since(last) >= TOUCH_INTERVAL);
    let ended = key.expires_at.is_some_and(|end| end <= now);
    if stale
        && !ended
        && let Err(error) = store.touch_api_key(tenant, key.id, now).await
    {
        // When a key was last used is nice to know; the request does not depend on it.
        tracing::warn!(key = %key.id, %error, "the time of last use of an API key was not stored");
    }
    Ok(Principal {
        key_id: key.id,
        name: key.name,
        expires_at: key.expires_at,
        address: None,
        // A scope that this version does not know opens nothing.
        scopes: key
            .scopes
            .iter()
            .filter_map(|scope| scope.parse::<Scope>().ok())
            .collect(),
    })
}
