//! What instances publish to each other. Nothing follows from a message but a look, so a forged one does no harm.

use std::fmt;

use viworks_common::id::AgentId;

/// What an instance is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// Commands may wait for this gateway.
    Look(AgentId),
    /// There is something in the inbox.
    Inbox,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Look(agent_id) => write!(f, "look {agent_id}"),
            Self::Inbox => f.write_str("inbox"),
        }
    }
}

impl Message {
    /// Reads one; `None` for what a later version says, or somebody else.
    pub(super) fn read(text: &str) -> Option<Self> {
        if text == "inbox" {
            return Some(Self::Inbox);
        }
        let agent_id = text.strip_prefix("look ")?;
        Some(Self::Look(agent_id.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_anything_else_is_not() {
        let look = Message::Look(AgentId::from_uuid(Uuid::from_u128(3)));
        for message in [look, Message::Inbox] {
            assert_eq!(Message::read(&message.to_string()), Some(message));
        }
        for text in ["", "look", "look x", "dance", "look 3 4"] {
            assert_eq!(Message::read(text), None, "{text}");
        }
    }
}
