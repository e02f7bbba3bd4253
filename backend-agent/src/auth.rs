//! Who asks: API keys, the principal a request speaks for, and what it may do.

pub mod apikey;
pub mod bearer;
pub mod quota;
mod secret;
pub mod throttle;

use std::collections::BTreeSet;

use viworks_common::api::Scope;
use viworks_common::catalogue::Risk;
use viworks_common::id::ApiKeyId;

use crate::data::Actor;

pub use secret::ApiSecret;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The key it presented.
    pub key_id: ApiKeyId,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
}

impl Principal {
    /// Whether it may do what `scope` guards.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// As it stands in the audit trail.
    #[must_use]
    pub fn actor(&self, request_id: &str) -> Actor {
        Actor::api_key(self.key_id).on_request(request_id)
    }

    /// The risks of commands it may submit.
    #[must_use]
    pub fn risks(&self) -> BTreeSet<Risk> {
        [Risk::Read, Risk::Change, Risk::Danger]
            .into_iter()
            .filter(|risk| self.may(risk_scope(*risk)))
            .collect()
    }
}

/// The scope that a command of some risk needs beside `runs:write`.
#[must_use]
pub const fn risk_scope(risk: Risk) -> Scope {
    match risk {
        Risk::Read => Scope::RunsWrite,
        Risk::Change => Scope::RunsWriteChange,
        Risk::Danger => Scope::RunsWriteDanger,
    }
}
