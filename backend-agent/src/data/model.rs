//! What goes into the store and what comes out of it.

mod authorities;
mod certificate;
mod command;
mod dead_letter;
mod enrolment;
mod fork;
mod gateway;
mod instance;
mod pins;
mod record;
mod reissue;

use std::fmt;
use std::net::IpAddr;

use viworks_common::id::{AgentId, ApiKeyId};

pub use authorities::*;
pub use certificate::*;
pub use command::*;
pub use dead_letter::*;
pub use enrolment::*;
pub use fork::*;
pub use gateway::*;
pub use instance::*;
pub use pins::*;
pub use record::*;
pub use reissue::*;

/// How a database becomes that of a master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteClaim {
    /// If it is nobody's yet.
    First,
    /// Whoever it belonged to: its key was replaced.
    Replaced,
}

/// The word for the bearer of an API key, for statements as well.
macro_rules! api_key_word {
    () => {
        "api_key"
    };
}
pub(in crate::data) use api_key_word;

/// The word for a gateway, for statements as well.
macro_rules! gateway_word {
    () => {
        "gateway"
    };
}
pub(in crate::data) use gateway_word;

/// What kind of principal did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActorKind {
    /// The bearer of an API key.
    ApiKey,
    /// A gateway.
    Gateway,
    /// Somebody at the backend's own command line.
    Local,
    /// The backend itself.
    System,
    /// Nobody that could be identified.
    Anonymous,
}

impl ActorKind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::ApiKey,
        Self::Gateway,
        Self::Local,
        Self::System,
        Self::Anonymous,
    ];

    /// The word in the audit log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApiKey => api_key_word!(),
            Self::Gateway => gateway_word!(),
            Self::Local => "local",
            Self::System => "system",
            Self::Anonymous => "anonymous",
        }
    }

    /// The kind with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }
}

/// Who does something, and in answer to which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// What kind of principal.
    pub kind: ActorKind,
    /// Its id within that kind.
    pub id: String,
    /// The request it made, as in the log and in the answer's header.
    pub request_id: Option<String>,
    /// Where that request came from. The audit log has it among what else there is to know, as `peer`.
    pub address: Option<IpAddr>,
}

impl Actor {
    /// The backend itself.
    #[must_use]
    pub fn system() -> Self {
        Self::new(ActorKind::System, "backend")
    }

    /// Somebody at the backend's own command line.
    #[must_use]
    pub fn local(user: &str) -> Self {
        Self::new(ActorKind::Local, user)
    }

    /// A gateway.
    #[must_use]
    pub fn gateway(agent_id: AgentId) -> Self {
        Self::new(ActorKind::Gateway, agent_id.to_string())
    }

    /// The bearer of an API key.
    #[must_use]
    pub fn api_key(id: ApiKeyId) -> Self {
        Self::new(ActorKind::ApiKey, id.to_string())
    }

    /// A machine that presents an enrolment ticket and is nobody yet.
    #[must_use]
    pub fn stranger() -> Self {
        Self::new(ActorKind::Anonymous, "enrolment")
    }

    /// The same principal, answering for one request.
    #[must_use]
    pub fn on_request(mut self, request_id: impl Into<String>) -> Self {
        self.request_id = Some(request_id.into());
        self
    }

    /// The same principal, asking from this address.
    #[must_use]
    pub const fn at_address(mut self, address: Option<IpAddr>) -> Self {
        self.address = address;
        self
    }

    fn new(kind: ActorKind, id: impl Into<String>) -> Self {
        Self {
            kind,
            id: id.into(),
            request_id: None,
            address: None,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.id)
    }
}

/// Which rows of a listing: at most `limit` behind the row with the key `after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page<K> {
    /// The last key of the page before; none for the first page.
    pub after: Option<K>,
    /// Most rows wanted; held to [`viworks_common::limits::PAGE_ROWS_MAX`].
    pub limit: usize,
}

impl<K> Page<K> {
    /// The first page.
    #[must_use]
    pub const fn first(limit: usize) -> Self {
        Self { after: None, limit }
    }

    /// The page behind `after`.
    #[must_use]
    pub const fn after(after: K, limit: usize) -> Self {
        Self {
            after: Some(after),
            limit,
        }
    }
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing<T, K> {
    /// The rows.
    pub items: Vec<T>,
    /// The key to continue behind, when there is more.
    pub next: Option<K>,
}
