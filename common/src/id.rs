//! Typed identifiers and their text forms; an identifier that exists has a valid length and alphabet.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::limits;
use crate::text::is_line;

/// Text that is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {expected}")]
pub struct InvalidId {
    /// What was being read.
    pub kind: &'static str,
    /// The refused text, cut to a printable length.
    pub text: String,
    /// What would have been accepted.
    pub expected: &'static str,
}

impl InvalidId {
    fn new(kind: &'static str, text: &str, expected: &'static str) -> Self {
        Self {
            kind,
            text: text.chars().take(80).collect(),
            expected,
        }
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID drawn elsewhere.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            #[must_use]
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0.hyphenated(), f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, " {}"), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // One text form only, so that equal ids are equal strings in every log and table.
                let uuid = Uuid::try_parse(text).map_err(|_invalid| InvalidId::new($kind, text, "a hyphenated lower-case UUID"))?;
                if uuid.hyphenated().to_string() == text { Ok(Self(uuid)) } else { Err(InvalidId::new($kind, text, "a hyphenated lower-case UUID")) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

uuid_id!(
    /// One gateway's identity: a version 7 UUID, never reused.
    AgentId, "agent id"
);
uuid_id!(
    /// One process of a gateway agent: random, new at every start. A start permit is bound to it.
    AgentRunId, "agent run id"
);
uuid_id!(
    /// One installation of a gateway agent: random, written with its state folder.
    InstallId, "install id"
);
uuid_id!(
    /// One boot of the gateway's operating system, as the kernel reports it.
    BootId, "boot id"
);
uuid_id!(
    /// One submission by an operator: targets, a command name and its arguments (version 7 UUID).
    RunId, "run id"
);
uuid_id!(
    /// One command of a run on one gateway (version 7 UUID).
    CommandId, "command id"
);
uuid_id!(
    /// One session over one socket: drawn by the backend for its challenge.
    SessionId, "session id"
);
uuid_id!(
    /// One API key; the secret part is never an identifier.
    ApiKeyId, "API key id"
);
uuid_id!(
    /// One enrolment ticket; the secret part is never an identifier (version 7 UUID).
    TicketId, "ticket id"
);
uuid_id!(
    /// One process of the backend, drawn at its start; several share a database.
    InstanceId, "instance id"
);

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:expr, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name(String);

        impl $name {
            /// The text inside.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let valid: fn(&str) -> bool = $valid;
                if !text.is_empty() && text.len() <= $max && valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId::new($kind, text, $expected))
                }
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fn label(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.chars().all(|c| edge(c) || c == '-') && text.starts_with(edge) && text.ends_with(edge)
}

fn word(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

/// Whether `text` can be the value of a label; it may be empty.
///
/// # Errors
/// When it is too long or not one line.
pub fn check_label_value(text: &str) -> Result<(), InvalidId> {
    if is_line(text, limits::LABEL_BYTES_MAX) {
        Ok(())
    } else {
        let expected = "at most 63 bytes on one line";
        Err(InvalidId::new("label value", text, expected))
    }
}

fn dotted(text: &str) -> bool {
    text.split('.').all(|part| {
        part.starts_with(|c: char| c.is_ascii_lowercase())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-')
    })
}

text_id!(
    /// Who owns a row: `default` until tenancy is switched on.
    Tenant, "tenant", limits::TENANT_BYTES_MAX,
    "1 to 63 lower-case letters, digits and inner hyphens", label
);
text_id!(
    /// A gateway's name: unique within its tenant, can be changed, accepted wherever an id is.
    GatewayName, "gateway name", limits::GATEWAY_NAME_BYTES_MAX,
    "1 to 63 lower-case letters, digits and inner hyphens", |text| label(text) && Uuid::try_parse(text).is_err()
);
text_id!(
    /// A command's name in the catalogue, such as `service.restart`.
    CommandName, "command name", limits::COMMAND_NAME_BYTES_MAX,
    "1 to 64 characters: dot-separated words of lower-case letters, digits, hyphens and underscores that start with a letter", dotted
);
text_id!(
    /// The name of a command's argument, such as `unit`.
    ArgumentName, "argument name", limits::ARGUMENT_NAME_BYTES_MAX,
    "1 to 32 lower-case letters, digits and underscores that start with a letter",
    |text| text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
);
text_id!(
    /// A telemetry stream, such as `host.cpu`.
    StreamName, "stream name", limits::STREAM_NAME_BYTES_MAX,
    "1 to 64 characters: dot-separated words of lower-case letters, digits, hyphens and underscores that start with a letter", dotted
);
text_id!(
    /// One field of a telemetry record, such as `bytes_total`.
    FieldName, "field name", limits::FIELD_NAME_BYTES_MAX,
    "1 to 64 characters: dot-separated words of lower-case letters, digits, hyphens and underscores that start with a letter", dotted
);
text_id!(
    /// The key of a label that a gateway or an operator gives, such as `site`.
    LabelKey, "label key", limits::LABEL_BYTES_MAX,
    "1 to 63 bytes on one line, without an equals sign", |text| is_line(text, limits::LABEL_BYTES_MAX) && !text.contains('=')
);
text_id!(
    /// The version of an agent, such as `1.4.0` or `acme-agent 2`.
    AgentVersion, "agent version", limits::AGENT_VERSION_BYTES_MAX,
    "1 to 64 printable ASCII characters", |text| text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
);
text_id!(
    /// An ability that an agent announces.
    Capability, "capability", limits::CAPABILITY_BYTES_MAX, "1 to 64 lower-case letters, digits, dots, hyphens and underscores", word
);
text_id!(
    /// What an EVENT is about, such as `digest_mismatch`.
    EventKind, "event kind", limits::EVENT_KIND_BYTES_MAX, "1 to 64 lower-case letters, digits, dots, hyphens and underscores", word
);
text_id!(
    /// The trust domain in the URI name of every certificate, such as `viworks.example.com`.
    TrustDomain, "trust domain", limits::TRUST_DOMAIN_BYTES_MAX,
    "1 to 255 characters: dot-separated labels of lower-case letters, digits and inner hyphens", |text| text.split('.').all(|part| !part.is_empty() && label(part))
);

impl Tenant {
    /// The only tenant while tenancy is switched off.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_in_another_spelling_is_refused() {
        let id = AgentId::from_uuid(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_00ab));
        assert_eq!(id.to_string().parse::<AgentId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<AgentId>().is_err());
        assert!(
            id.as_uuid()
                .simple()
                .to_string()
                .parse::<AgentId>()
                .is_err()
        );
    }

    #[test]
    fn a_gateway_name_that_reads_as_an_id_is_refused() {
        assert!("gw-berlin-01".parse::<GatewayName>().is_ok());
        assert!(
            "01900000-0000-7000-8000-0000000000ab"
                .parse::<GatewayName>()
                .is_err()
        );
    }

    #[test]
    fn names_outside_their_alphabet_are_refused() {
        for text in ["", "-a", "a-", "A", "a b", "a/b", &"a".repeat(64)] {
            assert!(text.parse::<GatewayName>().is_err(), "{text:?}");
        }
        for text in ["", ".", "a.", ".a", "a..b", "A.b", "1.a", "a b"] {
            assert!(text.parse::<CommandName>().is_err(), "{text:?}");
        }
        assert!("service.restart".parse::<CommandName>().is_ok());
    }
}
