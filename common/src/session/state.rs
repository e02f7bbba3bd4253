//! The states of both machines, and the one rule about which message kinds are legal in each.

use crate::wire::message::{AgentMessage, BackendMessage};

/// Where the gateway's end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AgentState {
    /// Connected; the backend speaks first.
    AwaitChallenge,
    /// CHALLENGE was read; the driver prepares HELLO.
    Challenged,
    /// HELLO was sent.
    AwaitWelcome,
    /// WELCOME was read; the driver makes epoch and token durable.
    Welcomed,
    /// CONFIRM was sent.
    Established,
    /// DRAIN was read: as established, for a while.
    Draining,
    /// Over.
    Closed,
}

impl AgentState {
    /// Every state.
    pub const ALL: &[Self] = &[
        Self::AwaitChallenge,
        Self::Challenged,
        Self::AwaitWelcome,
        Self::Welcomed,
        Self::Established,
        Self::Draining,
        Self::Closed,
    ];

    /// Its name in logs and in `docs/protocol.md`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AwaitChallenge => "await_challenge",
            Self::Challenged => "challenged",
            Self::AwaitWelcome => "await_welcome",
            Self::Welcomed => "welcomed",
            Self::Established => "established",
            Self::Draining => "draining",
            Self::Closed => "closed",
        }
    }

    /// Whether the backend may send `message` now.
    #[must_use]
    pub const fn allows(self, message: &BackendMessage) -> bool {
        match message {
            BackendMessage::Challenge(_) => matches!(self, Self::AwaitChallenge),
            BackendMessage::Welcome(_) => matches!(self, Self::AwaitWelcome),
            BackendMessage::Refuse(_) => matches!(
                self,
                Self::AwaitWelcome | Self::Welcomed | Self::Established | Self::Draining
            ),
            BackendMessage::HeartbeatAck(_)
            | BackendMessage::Probe(_)
            | BackendMessage::TelemetryAck(_)
            | BackendMessage::Command(_)
            | BackendMessage::Go(_)
            | BackendMessage::CommandDrop(_)
            | BackendMessage::CommandCancel(_)
            | BackendMessage::ResultAck(_)
            | BackendMessage::CertIssued(_)
            | BackendMessage::PinUpdate(_)
            | BackendMessage::Drain(_)
            | BackendMessage::KeyUpdate(_)
            | BackendMessage::TrustUpdate(_) => {
                matches!(self, Self::Established | Self::Draining)
            }
        }
    }
}

/// Where the backend's end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendState {
    /// CHALLENGE is out.
    AwaitHello,
    /// HELLO was verified; the driver decides about admission.
    Deciding,
    /// WELCOME is out.
    AwaitConfirm,
    /// CONFIRM was verified; the driver commits it. What arrives meanwhile waits and has no effect.
    Confirming,
    /// The confirmation is committed.
    Established,
    /// DRAIN is out: as established, without new offers.
    Draining,
    /// Over.
    Closed,
}

impl BackendState {
    /// Every state.
    pub const ALL: &[Self] = &[
        Self::AwaitHello,
        Self::Deciding,
        Self::AwaitConfirm,
        Self::Confirming,
        Self::Established,
        Self::Draining,
        Self::Closed,
    ];

    /// Its name in logs and in `docs/protocol.md`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AwaitHello => "await_hello",
            Self::Deciding => "deciding",
            Self::AwaitConfirm => "await_confirm",
            Self::Confirming => "confirming",
            Self::Established => "established",
            Self::Draining => "draining",
            Self::Closed => "closed",
        }
    }

    /// Whether the agent may send `message` now.
    #[must_use]
    pub const fn allows(self, message: &AgentMessage) -> bool {
        match message {
            AgentMessage::Hello(_) => matches!(self, Self::AwaitHello),
            AgentMessage::Confirm(_) => matches!(self, Self::AwaitConfirm),
            AgentMessage::Heartbeat(_)
            | AgentMessage::ProbeAck(_)
            | AgentMessage::Telemetry(_)
            | AgentMessage::CommandAccepted(_)
            | AgentMessage::CommandRejected(_)
            | AgentMessage::CommandStarted(_)
            | AgentMessage::Output(_)
            | AgentMessage::CommandResult(_)
            | AgentMessage::Catalogue(_)
            | AgentMessage::PinReport(_)
            | AgentMessage::CertRequest(_)
            | AgentMessage::Event(_)
            | AgentMessage::Bye(_)
            | AgentMessage::KeyReport(_)
            | AgentMessage::TrustReport(_) => self.takes_traffic(),
        }
    }

    /// Whether the opening is over, as far as the agent can know.
    #[must_use]
    pub const fn takes_traffic(self) -> bool {
        matches!(self, Self::Confirming | Self::Established | Self::Draining)
    }
}
