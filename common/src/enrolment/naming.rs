//! How a gateway is called that enrols by a ticket.

use serde::{Deserialize, Serialize};

use crate::id::{AgentId, GatewayName};
use crate::limits::GATEWAY_NAME_BYTES_MAX;

/// Digits of a gateway's id that tell it from another one of its name.
const ID_DIGITS: usize = 8;

/// Bytes of the longest beginning that all names of a ticket may have: one character of the machine's own and the end
/// of an id have room behind it.
pub const NAME_PREFIX_BYTES_MAX: usize = GATEWAY_NAME_BYTES_MAX - ID_DIGITS - 2;

/// What a ticket says about the names of its gateways.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameRule {
    /// The machine says how it is called.
    #[default]
    Free,
    /// Every name begins like this.
    Prefix(String),
    /// This one.
    Fixed(GatewayName),
}

/// Why there is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// The ticket is for another one.
    #[error("the ticket is for the gateway {0}: leave --name out")]
    OtherName(GatewayName),
    /// The name has another beginning.
    #[error(
        "the ticket is for names that begin with {0:?}: choose such a name with --name, or leave it out"
    )]
    OtherPrefix(String),
    /// What the machine calls itself can be no gateway's name.
    #[error(
        "this machine calls itself {0:?}, which can be no gateway's name: choose one with --name (1 to 63 lower-case letters, digits and inner hyphens)"
    )]
    NoHostName(String),
}

impl NameRule {
    /// How the gateway is to be called that asks for `wish`, or for nothing, on a machine that calls itself `host`.
    ///
    /// # Errors
    ///
    /// When the ticket does not allow the wish, or nothing makes a name.
    pub fn name(&self, wish: Option<&GatewayName>, host: &str) -> Result<GatewayName, NoName> {
        match (self, wish) {
            (Self::Fixed(name), None) => Ok(name.clone()),
            (Self::Fixed(name), Some(wish)) if wish == name => Ok(name.clone()),
            (Self::Fixed(name), Some(_other)) => Err(NoName::OtherName(name.clone())),
            (Self::Prefix(prefix), Some(wish)) if wish.as_str().starts_with(prefix.as_str()) => {
                Ok(wish.clone())
            }
            (Self::Prefix(prefix), Some(_other)) => Err(NoName::OtherPrefix(prefix.clone())),
            (Self::Free, Some(wish)) => Ok(wish.clone()),
            (Self::Prefix(prefix), None) => of_host(prefix, host),
            (Self::Free, None) => of_host("", host),
        }
    }
}

/// The first label of what a machine calls itself, behind a prefix that it does not have already.
fn of_host(prefix: &str, host: &str) -> Result<GatewayName, NoName> {
    let label = host
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let name = if label.starts_with(prefix) {
        label
    } else {
        format!("{prefix}{label}")
    };
    name.parse()
        .map_err(|_no_name| NoName::NoHostName(host.chars().take(80).collect()))
}

impl NameRule {
    /// A name like `taken` that no other gateway has: with the end of the id. `None` when the rule allows none.
    #[must_use]
    pub fn beside(&self, taken: &GatewayName, agent_id: AgentId) -> Option<GatewayName> {
        let prefix = match self {
            Self::Free => "",
            Self::Prefix(prefix) => prefix.as_str(),
            Self::Fixed(_) => return None,
        };
        let id = agent_id.to_string();
        let tail = format!("-{}", &id[id.len() - ID_DIGITS..]);
        let room = GATEWAY_NAME_BYTES_MAX - tail.len();
        let kept = &taken.as_str()[..taken.as_str().floor_char_boundary(room)];
        let name = format!("{}{tail}", kept.trim_end_matches('-'));
        name.parse().ok().filter(|_name| name.starts_with(prefix))
    }

    /// Whether names can begin with this text, and there is room behind it for what tells them apart.
    #[must_use]
    pub fn is_prefix(text: &str) -> bool {
        text.len() <= NAME_PREFIX_BYTES_MAX && format!("{text}x").parse::<GatewayName>().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn name(text: &str) -> GatewayName {
        text.parse().unwrap()
    }

    #[test]
    fn a_name_is_the_tickets_the_wish_or_the_machines() {
        let prefix = NameRule::Prefix("gw-".to_owned());
        let fixed = NameRule::Fixed(name("gw-1"));
        let edge = name("edge");
        for (rule, wish, host, called) in [
            (NameRule::Free, None, "Edge-7.site.example", "edge-7"),
            (NameRule::Free, Some(&edge), "other", "edge"),
            (prefix.clone(), None, "edge", "gw-edge"),
            (prefix.clone(), None, "gw-edge", "gw-edge"),
            (fixed.clone(), None, "other", "gw-1"),
            (fixed.clone(), Some(&name("gw-1")), "other", "gw-1"),
        ] {
            assert_eq!(rule.name(wish, host), Ok(name(called)), "{rule:?} {host}");
        }
        assert_eq!(
            prefix.name(Some(&edge), "x"),
            Err(NoName::OtherPrefix("gw-".to_owned()))
        );
        assert_eq!(
            fixed.name(Some(&edge), "x"),
            Err(NoName::OtherName(name("gw-1")))
        );
        let host = "(none)".to_owned();
        assert_eq!(
            NameRule::Free.name(None, &host),
            Err(NoName::NoHostName(host))
        );
    }

    #[test]
    fn a_name_beside_another_is_never_too_long_and_keeps_the_beginning() {
        let id = AgentId::from_uuid(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_12ab_cdef));
        let beside = |rule: &NameRule, taken: &str| rule.beside(&name(taken), id);
        assert_eq!(beside(&NameRule::Free, "edge"), Some(name("edge-12abcdef")));
        let long = beside(&NameRule::Free, &"a".repeat(63)).unwrap();
        assert_eq!(long.as_str().len(), 63);
        let prefix = "a".repeat(NAME_PREFIX_BYTES_MAX - 1) + "-";
        let rule = NameRule::Prefix(prefix.clone());
        for host in ["b", "-b", "host-seven"] {
            let taken = rule.name(None, host).unwrap();
            let name = rule.beside(&taken, id).unwrap();
            assert!(name.as_str().starts_with(&prefix), "{name}");
        }
        assert_eq!(beside(&NameRule::Fixed(name("gw-1")), "gw-1"), None);
        let long = NameRule::Prefix("b".repeat(62));
        assert_eq!(long.beside(&name(&"b".repeat(63)), id), None);
    }

    proptest! {
        #[test]
        fn whatever_a_machine_calls_itself_the_rule_holds(
            prefix in "[a-z0-9]{0,3}[a-z0-9-]{0,60}", host in "[a-zA-Z0-9.-]{0,30}|.{0,80}", id in any::<u128>(),
        ) {
            prop_assume!(NameRule::is_prefix(&prefix));
            let rule = NameRule::Prefix(prefix.clone());
            if let Ok(taken) = rule.name(None, &host) {
                prop_assert!(taken.as_str().starts_with(&prefix));
                let other = rule.beside(&taken, AgentId::from_uuid(Uuid::from_u128(id))).unwrap();
                prop_assert!(other.as_str().starts_with(&prefix));
                prop_assert_ne!(other, taken);
            }
        }
    }

    #[test]
    fn a_prefix_is_the_beginning_of_a_name() {
        for (text, good) in [
            ("gw-", true),
            ("gw", true),
            ("", true),
            ("-gw", false),
            ("GW", false),
        ] {
            assert_eq!(NameRule::is_prefix(text), good, "{text:?}");
        }
        assert!(NameRule::is_prefix(&"a".repeat(NAME_PREFIX_BYTES_MAX)));
        assert!(!NameRule::is_prefix(&"a".repeat(NAME_PREFIX_BYTES_MAX + 1)));
    }
}
