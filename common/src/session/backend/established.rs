//! The backend's end after WELCOME: the terms it holds the agent to, and what waits for the agent.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::id::CommandId;
use crate::session::SendRefusal;
use crate::session::credit::TelemetryDebt;
use crate::session::link::Link;
use crate::session::outbox::{self, Outbox, Waiting};
use crate::wire::envelope::Packed;
use crate::wire::message::{AgentMessage, BackendMessage, Welcome};

/// Probes whose answer is still awaited.
const PROBES_AWAITED_MAX: usize = 16;

/// What of WELCOME the machine itself obeys, and holds the agent to.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) epoch: u64,
    pub(super) silence: Duration,
    pub(super) commands: usize,
    pub(super) commands_open: BTreeSet<CommandId>,
    pub(super) output_received: u64,
    pub(super) output_limit: u64,
    pub(super) telemetry: TelemetryDebt,
}

/// The confirmation is committed.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) link: Link,
    pub(super) terms: Terms,
    pub(super) outbox: Outbox<()>,
    pub(super) probes: VecDeque<u64>,
    pub(super) draining: bool,
}

impl Terms {
    pub(super) fn new(welcome: &Welcome, unreported: BTreeSet<CommandId>) -> Self {
        let bytes = welcome.credits.telemetry_bytes;
        Self {
            epoch: welcome.epoch,
            silence: Duration::from_millis(welcome.silence_ms),
            commands: usize::try_from(welcome.credits.commands).unwrap_or(usize::MAX),
            commands_open: unreported,
            output_received: 0,
            output_limit: welcome.credits.output_bytes,
            telemetry: TelemetryDebt::new(usize::try_from(bytes).unwrap_or(usize::MAX)),
        }
    }

    /// Counts a message; `false` when the agent had no credit for it.
    pub(super) fn grant(&mut self, message: &AgentMessage) -> bool {
        match message {
            AgentMessage::Output(output) => {
                let data = u64::try_from(output.data.len()).unwrap_or(u64::MAX);
                self.output_received = self.output_received.saturating_add(data);
                self.output_received <= self.output_limit
            }
            AgentMessage::CommandRejected(rejected) => {
                self.commands_open.remove(&rejected.command_id);
                true
            }
            AgentMessage::Hello(_)
            | AgentMessage::Confirm(_)
            // Charged as it travelled, see `TelemetryDebt`.
            | AgentMessage::Telemetry(_)
            | AgentMessage::Heartbeat(_)
            | AgentMessage::ProbeAck(_)
            | AgentMessage::CommandAccepted(_)
            | AgentMessage::CommandStarted(_)
            | AgentMessage::CommandResult(_)
            | AgentMessage::Catalogue(_)
            | AgentMessage::PinReport(_)
            | AgentMessage::CertRequest(_)
            | AgentMessage::Event(_)
            | AgentMessage::Bye(_)
            | AgentMessage::KeyReport(_)
            | AgentMessage::TrustReport(_) => true,
        }
    }
}

impl Established {
    pub(super) fn new(link: Link, terms: Terms) -> Self {
        Self {
            link,
            terms,
            outbox: Outbox::new(),
            probes: VecDeque::new(),
            draining: false,
        }
    }

    /// Whether a probe with this id is still awaited; it and all before it no longer are.
    pub(super) fn probe_answered(&mut self, id: u64) -> bool {
        let asked = self.probes.iter().position(|asked| *asked == id);
        asked.is_some_and(|index| self.probes.drain(..=index).next_back().is_some())
    }

    pub(super) fn transmit(&mut self) -> Option<Vec<u8>> {
        let Waiting { kind, body, .. } = self.outbox.pop()?;
        Some(self.link.seal(kind, &body))
    }

    pub(super) fn send(&mut self, message: &BackendMessage) -> Result<(), SendRefusal> {
        self.check(message)?;
        let priority = message.priority();
        let body = Packed::compressed(message.encode());
        outbox::check_size(priority, &body)?;
        let kind = message.kind();
        self.outbox.push(
            priority,
            Waiting {
                kind,
                body,
                note: (),
            },
        )?;
        self.account(message);
        Ok(())
    }

    fn check(&self, message: &BackendMessage) -> Result<(), SendRefusal> {
        match message {
            BackendMessage::Challenge(_)
            | BackendMessage::Welcome(_)
            | BackendMessage::Refuse(_) => Err(SendRefusal::Reserved),
            BackendMessage::Command(_) if self.draining => Err(SendRefusal::Draining),
            BackendMessage::Command(command) => {
                let open = &self.terms.commands_open;
                if open.len() < self.terms.commands || open.contains(&command.command_id) {
                    Ok(())
                } else {
                    Err(SendRefusal::NoCredit)
                }
            }
            BackendMessage::HeartbeatAck(_)
            | BackendMessage::Probe(_)
            | BackendMessage::TelemetryAck(_)
            | BackendMessage::Go(_)
            | BackendMessage::CommandDrop(_)
            | BackendMessage::CommandCancel(_)
            | BackendMessage::ResultAck(_)
            | BackendMessage::CertIssued(_)
            | BackendMessage::PinUpdate(_)
            | BackendMessage::Drain(_)
            | BackendMessage::KeyUpdate(_)
            | BackendMessage::TrustUpdate(_) => Ok(()),
        }
    }

    fn account(&mut self, message: &BackendMessage) {
        let terms = &mut self.terms;
        match message {
            BackendMessage::HeartbeatAck(ack) => {
                terms.output_limit = terms.output_limit.max(ack.output_bytes);
            }
            BackendMessage::Probe(probe) => {
                if self.probes.len() == PROBES_AWAITED_MAX {
                    self.probes.pop_front();
                }
                self.probes.push_back(probe.id);
            }
            BackendMessage::TelemetryAck(_) => terms.telemetry.answered(),
            BackendMessage::Command(command) => {
                terms.commands_open.insert(command.command_id);
            }
            BackendMessage::CommandDrop(dropped) => {
                terms.commands_open.remove(&dropped.command_id);
            }
            BackendMessage::ResultAck(ack) => {
                terms.commands_open.remove(&ack.command_id);
            }
            BackendMessage::Drain(_) => self.draining = true,
            BackendMessage::Challenge(_)
            | BackendMessage::Welcome(_)
            | BackendMessage::Refuse(_)
            | BackendMessage::Go(_)
            | BackendMessage::CommandCancel(_)
            | BackendMessage::CertIssued(_)
            | BackendMessage::PinUpdate(_)
            | BackendMessage::KeyUpdate(_)
            | BackendMessage::TrustUpdate(_) => {}
        }
    }
}
