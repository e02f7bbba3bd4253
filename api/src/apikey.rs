//! API keys: credentials for programs and for the first operator.

use serde::{Deserialize, Serialize};

use crate::page::{Kind, list};
use crate::scope::Scope;
use viworks_common::id::ApiKeyId;
use viworks_common::time::Timestamp;

/// A request for a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiKeyRequest {
    /// What it is for: 1 to 64 characters, shown in lists and in the audit trail.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 64))]
    pub name: String,
    /// What it may do; a key cannot grant what it does not have itself.
    #[cfg_attr(feature = "openapi", schema(min_items = 1))]
    pub scopes: Vec<Scope>,
    /// How long it is valid, in milliseconds, at most ten years; without an end when absent.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 315360000000_u64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// Whether a key opens anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ApiKeyStatus {
    /// It is accepted.
    Active,
    /// Its time is over.
    Expired,
    /// Somebody revoked it.
    Revoked,
}

/// One key, without its secret, which nobody has but its holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiKey {
    /// What this is.
    pub kind: Kind,
    /// Its id.
    pub id: ApiKeyId,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Whether it opens anything.
    pub status: ApiKeyStatus,
    /// When it was made.
    pub created_at: Timestamp,
    /// Until when it is valid; without an end when absent.
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to within a minute.
    pub last_used_at: Option<Timestamp>,
}

list! {
    /// API keys, latest first.
    ApiKeyList of ApiKey
}

/// A fresh key: the only time its secret is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiKeyCreated {
    /// What this is.
    pub kind: Kind,
    /// The key.
    pub key: ApiKey,
    /// What the holder presents as a bearer token.
    pub secret: String,
}

impl std::fmt::Debug for ApiKeyCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeyCreated")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
