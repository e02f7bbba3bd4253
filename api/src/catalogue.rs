//! The catalogue over all gateways: what may be run, and where.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gateway::NamedGateway;
use crate::page::{Kind, list};
use viworks_common::catalogue::{Argument, Risk};
use viworks_common::id::CommandName;

/// One gateway that has a command in its catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CatalogueGateway {
    /// Which gateway.
    pub gateway: NamedGateway,
    /// The damage that it can do there, as that gateway says.
    #[serde(default)]
    pub risk: Option<Risk>,
    /// Why it cannot run there, when it cannot.
    pub unavailable: Option<String>,
}

/// One command over all gateways whose catalogue is known. Gateways may define the same name differently: the definition
/// shown is the one that most of them have, with the strictest risk of all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CatalogueCommand {
    /// What this is.
    pub kind: Kind,
    /// Its name.
    pub name: CommandName,
    /// A few words for people.
    pub title: String,
    /// The greatest damage it can do on any of these gateways.
    pub risk: Risk,
    /// How many gateways say which risk; more than one deserves a look.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, u64>))]
    pub risks: BTreeMap<Risk, u64>,
    /// Whether every one of these gateways calls it idempotent.
    pub idempotent: bool,
    /// Its arguments.
    pub arguments: Vec<Argument>,
    /// Its time limit, in milliseconds.
    pub timeout_ms: u64,
    /// How many different definitions there are; more than one deserves a look.
    pub definitions: u64,
    /// Gateways that would run it.
    pub available: u64,
    /// Gateways that have it in their catalogue and cannot run it.
    pub unavailable: u64,
    /// Which gateways; only when one command is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<Vec<CatalogueGateway>>,
}

list! {
    /// Commands, by name.
    CatalogueList of CatalogueCommand
}
