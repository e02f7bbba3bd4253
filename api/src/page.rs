//! What every document starts with: the API's version and the kind.

use serde::{Deserialize, Serialize};

/// The API's version, as it stands in every list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ApiVersion {
    /// Version 1.
    #[default]
    #[serde(rename = "viworks/v1")]
    V1,
}

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[expect(
    missing_docs,
    reason = "each variant is the name of the type that carries it"
)]
pub enum Kind {
    ApiKey,
    ApiKeyCreated,
    ApiKeyList,
    AuditList,
    AuthorityStatus,
    CatalogueCommand,
    CatalogueList,
    CertificateList,
    CertificateRevoked,
    Command,
    CommandList,
    DeadLetter,
    DeadLetterList,
    ForkList,
    ForkResolved,
    Gateway,
    GatewayKeyRotated,
    GatewayList,
    GatewayRevoked,
    Health,
    OrphanList,
    PinChanged,
    PinStatus,
    Run,
    RunCancelled,
    RunList,
    RunPlan,
    RunWait,
    SkippedList,
    TelemetryGapList,
    TelemetryList,
    TelemetryRefusalList,
    TelemetryStepList,
    TelemetryStreamList,
    Ticket,
    TicketCreated,
    TicketList,
}

/// A list that is answered page by page.
pub trait Paged {
    /// Appends the page that follows, and takes over its cursor.
    fn append(&mut self, following: Self);

    /// The rows that are here.
    fn rows(&self) -> usize;

    /// The cursor of the page that follows; none behind the last.
    fn next(&self) -> Option<&str>;
}

macro_rules! list {
    ($(#[$doc:meta])* $name:ident of $item:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub struct $name {
            /// The API's version.
            #[serde(rename = "apiVersion")]
            pub api_version: crate::ApiVersion,
            /// What this is.
            pub kind: crate::Kind,
            /// One page of rows.
            pub items: Vec<$item>,
            /// The `cursor` of the next page; absent on the last one.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub next: Option<String>,
        }

        impl $name {
            /// One page.
            #[must_use]
            pub const fn new(items: Vec<$item>, next: Option<String>) -> Self {
                Self { api_version: crate::ApiVersion::V1, kind: crate::Kind::$name, items, next }
            }
        }

        impl crate::Paged for $name {
            fn append(&mut self, following: Self) {
                self.items.extend(following.items);
                self.next = following.next;
            }

            fn rows(&self) -> usize {
                self.items.len()
            }

            fn next(&self) -> Option<&str> {
                self.next.as_deref()
            }
        }
    };
}

pub(super) use list;
