//! Scopes: what a credential may do, one word for each guarded thing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! scopes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// One permission. Scopes never imply each other: a key has exactly what it names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Scope { $($(#[$doc])* $variant,)* }

        impl Scope {
            /// Every scope.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The word in requests, answers and the store.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

scopes! {
    /// List and show gateways.
    GatewaysRead = "gateways:read";
    /// Revoke gateways: whoever has it throws machines out for good. With `tickets:write`: give their places to others.
    GatewaysWrite = "gateways:write";
    /// List and show runs, their commands, output and events.
    RunsRead = "runs:read";
    /// Submit commands that only look, and cancel runs.
    RunsWrite = "runs:write";
    /// With `runs:write`: submit commands that change something.
    RunsWriteChange = "runs:write:change";
    /// With `runs:write`: submit commands that can cause an outage or lose data.
    RunsWriteDanger = "runs:write:danger";
    /// Read telemetry.
    TelemetryRead = "telemetry:read";
    /// Read the catalogue.
    CatalogueRead = "catalogue:read";
    /// Read the audit trail.
    AuditRead = "audit:read";
    /// Read the metrics.
    MetricsRead = "metrics:read";
    /// Read the full health document.
    HealthRead = "health:read";
    /// Create, list and revoke API keys.
    ApikeysAdmin = "apikeys:admin";
    /// List and show enrolment tickets.
    TicketsRead = "tickets:read";
    /// Create and revoke enrolment tickets: whoever has one makes gateways.
    TicketsWrite = "tickets:write";
    /// Show the pins of the server's keys, and which gateways trust them.
    PinsRead = "pins:read";
    /// Stage, promote and retire keys of the server: whoever has it can cut gateways off.
    PinsWrite = "pins:write";
}

/// Text that is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown scope {text:?}; scopes are {}", Scope::ALL.iter().map(|scope| scope.name()).collect::<Vec<_>>().join(", "))]
pub struct InvalidScope {
    /// The refused text, cut to a printable length.
    pub text: String,
}

impl FromStr for Scope {
    type Err = InvalidScope;

    fn from_str(text: &str) -> Result<Self, InvalidScope> {
        Self::ALL
            .iter()
            .copied()
            .find(|scope| scope.name() == text)
            .ok_or_else(|| InvalidScope {
                text: text.chars().take(80).collect(),
            })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Scope {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .enum_values(Some(Self::ALL.iter().map(|scope| scope.name())))
            .description(Some("One permission; scopes never imply each other"))
            .build()
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Scope {}
