//! Who asks: API keys, the principal a request speaks for, and what it may do.

pub mod apikey;
pub mod bearer;
pub mod principals;
pub mod quota;
mod secret;

use std::collections::BTreeSet;
use std::net::IpAddr;

use viworks_api::Scope;
use viworks_common::catalogue::Risk;
use viworks_common::id::ApiKeyId;
use viworks_common::time::Timestamp;

use crate::data::Actor;

pub use secret::ApiSecret;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The key it presented.
    pub key_id: ApiKeyId,
    /// The key's name.
    pub name: String,
    /// What it may do.
    pub scopes: BTreeSet<Scope>,
    /// When its key ends, if it does.
    pub expires_at: Option<Timestamp>,
    /// Where it asks from, once a request has been read.
    pub address: Option<IpAddr>,
}

impl Principal {
    /// Whether it may do what `scope` guards.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Why a key with these scopes that ends then, or never, is stronger than this one, when it is: it may do what this
    /// one may not, or for longer. A scope that this version does not know is one that it has not.
    pub fn is_weaker_than<'s>(
        &self,
        scopes: impl IntoIterator<Item = &'s str>,
        expires_at: Option<Timestamp>,
    ) -> Option<String> {
        let own: BTreeSet<&str> = self.scopes.iter().map(|scope| scope.name()).collect();
        if let Some(scope) = scopes.into_iter().find(|scope| !own.contains(scope)) {
            return Some(format!("this needs the scope {scope}, as that key has it"));
        }
        let outlives = |own| expires_at.is_none_or(|end| end > own);
        self.expires_at
            .is_some_and(outlives)
            .then(|| "that key ends later than this one".to_owned())
    }

    /// As it stands in the audit trail.
    #[must_use]
    pub fn actor(&self, request_id: &str) -> Actor {
        Actor::api_key(self.key_id)
            .on_request(request_id)
            .at_address(self.address)
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
