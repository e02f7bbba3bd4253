//! The audit trail.

use viworks_api::{AuditList, AuditRecord};
use viworks_common::time::Timestamp;
use viworks_runtime::exit::ExitCode;

use super::Client;
use crate::failure::Failure;

/// Which records are wanted: those that are all that is said here.
#[derive(Debug, Default)]
pub struct Sought {
    /// By this gateway or on it.
    pub gateway: Option<String>,
    /// By this one.
    pub actor: Option<String>,
    /// On this.
    pub object: Option<String>,
    /// This action or family of actions.
    pub action: Option<String>,
    /// What ended like this.
    pub outcome: Option<String>,
    /// Recorded at this time or later.
    pub since: Option<Timestamp>,
}

impl Client {
    /// The latest records that are meant, at most so many.
    pub async fn audit(&self, sought: Sought, limit: usize) -> Result<AuditList, Failure> {
        let Sought {
            gateway,
            actor,
            object,
            action,
            outcome,
            since,
        } = sought;
        let query: Vec<(&str, String)> = [
            ("gateway", gateway),
            ("actor", actor),
            ("object", object),
            ("action", action),
            ("outcome", outcome),
            ("since", since.map(|since| since.to_string())),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
        self.list("/v1/audit", &query, limit).await
    }

    /// One record.
    pub async fn audit_record(&self, id: u64) -> Result<AuditRecord, Failure> {
        // A page begins behind its cursor, and the log goes down from there.
        let query = [
            ("cursor", id.saturating_add(1).to_string()),
            ("limit", "1".to_owned()),
        ];
        let page: AuditList = self.get("/v1/audit", &query).await?;
        let found = page.items.into_iter().find(|record| record.id == id);
        found.ok_or_else(|| {
            let what = format!("the audit trail has no record {id}");
            Failure::new(ExitCode::NotFound, what).with("see: viworks audit ls")
        })
    }
}
