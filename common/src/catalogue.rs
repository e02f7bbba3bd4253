//! The catalogue: which commands a gateway allows, and the grammar of their arguments.

mod arguments;
mod digest;
mod report;
mod shipped;
mod template;

pub use arguments::{ArgumentProblem, Grammar, check_arguments, check_entry};
pub use digest::catalogue_digest;
pub use report::{RefusedEntry, take_report_while};
pub use shipped::SHIPPED;
pub use template::{ArgvTemplate, ExpandRefusal, TemplateProblem};

use serde::{Deserialize, Serialize};

use crate::id::{ArgumentName, CommandName};
use crate::text::deserialize_told_option;

/// How much damage a command can do, as its author judged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Risk {
    /// Only looks.
    Read,
    /// Changes something that can be changed back.
    Change,
    /// Can cause an outage or lose data.
    Danger,
}

impl Risk {
    /// Every risk.
    pub const ALL: &[Self] = &[Self::Read, Self::Change, Self::Danger];

    /// The word in documents and in the store.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Change => "change",
            Self::Danger => "danger",
        }
    }

    /// The risk with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|risk| risk.name() == name)
    }
}

/// What a value of an argument must look like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ArgumentType {
    /// Text that matches the whole pattern (linear-time regular expression).
    String {
        /// The pattern; the whole value must match.
        pattern: String,
    },
    /// A whole number in decimal.
    Integer {
        /// The smallest value.
        min: i64,
        /// The largest value.
        max: i64,
    },
    /// One of a list.
    Choice {
        /// The list.
        values: Vec<String>,
    },
    /// `true` or `false`.
    Boolean,
}

/// One argument of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Argument {
    /// Its name.
    pub name: ArgumentName,
    /// One line for people.
    pub description: String,
    /// What a value must look like.
    pub value: ArgumentType,
    /// The value when none is given; without one the argument is required.
    pub default: Option<String>,
}

/// One command as a gateway reports it: what may be asked for, not how it is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CatalogueEntry {
    /// Its name.
    pub name: CommandName,
    /// A few words for people.
    pub title: String,
    /// How much damage it can do.
    pub risk: Risk,
    /// Whether running it twice does no harm.
    pub idempotent: bool,
    /// Its arguments.
    pub arguments: Vec<Argument>,
    /// Its time limit, in milliseconds.
    pub timeout_ms: u64,
    /// Bytes of output it may keep, both streams together.
    pub output_bytes_max: u64,
    /// Why it cannot run on this gateway, when it cannot.
    #[serde(deserialize_with = "deserialize_told_option", default)]
    pub unavailable: Option<String>,
}
