//! The audit trail as an operator reads it.

use serde::{Deserialize, Serialize};

use crate::page::list;
use viworks_common::time::Timestamp;

/// One audit record: who did what to what, and how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// Its number: ascending, without reuse.
    pub id: u64,
    /// When it was committed.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// The name of the API key or gateway that it was, where that is known.
    #[serde(default)]
    pub actor_name: Option<String>,
    /// What was done, a stable word such as `run.submit`.
    pub action: String,
    /// On what, such as `gateway:01…`.
    pub object: String,
    /// The name of the API key or gateway that it is, where that is known.
    #[serde(default)]
    pub object_name: Option<String>,
    /// How it ended: `done`, `refused` or `noted`.
    pub outcome: String,
    /// The request that led to it, as in the log.
    pub request_id: Option<String>,
    /// Everything else worth knowing.
    #[cfg_attr(feature = "openapi", schema(value_type = serde_json::Value))]
    pub detail: serde_json::Value,
}

list! {
    /// Audit records, latest first.
    AuditList of AuditRecord
}
