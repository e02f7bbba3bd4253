//! The gateway's end after CONFIRM: what waits, what is in flight, and what may still be sent.

use std::collections::VecDeque;
use std::time::Duration;

use super::sent_times::SentTimes;
use crate::id::AgentRunId;
use crate::limits;
use crate::session::SendRefusal;
use crate::session::credit::TelemetryWindow;
use crate::session::link::Link;
use crate::session::outbox::{self, Outbox, Waiting};
use crate::time::Monotonic;
use crate::wire::envelope::Packed;
use crate::wire::message::{AgentMessage, HeartbeatAck, Welcome};

/// No interval that the backend asks for may make the gateway spin.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// Heartbeats whose answer is still awaited; the silence limit ends a session long before there are more.
const HEARTBEATS_AWAITED_MAX: usize = 16;

/// What of WELCOME the machine itself obeys.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    pub(super) epoch: u64,
    pub(super) heartbeat_interval: Duration,
    pub(super) silence: Duration,
    pub(super) telemetry_bytes: usize,
    pub(super) output_bytes: u64,
}

impl From<&Welcome> for Terms {
    fn from(welcome: &Welcome) -> Self {
        let interval = |ms| Duration::from_millis(ms).max(INTERVAL_MIN);
        let granted = welcome
            .credits
            .telemetry_bytes
            .min(limits::TELEMETRY_IN_FLIGHT_BYTES_MAX);
        Self {
            epoch: welcome.epoch,
            heartbeat_interval: interval(welcome.heartbeat_interval_ms),
            silence: interval(welcome.silence_ms),
            telemetry_bytes: usize::try_from(granted).unwrap_or(usize::MAX),
            output_bytes: welcome.credits.output_bytes,
        }
    }
}

/// CONFIRM was sent.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) link: Link,
    pub(super) outbox: Outbox<Charge>,
    pub(super) heartbeat_interval: Duration,
    pub(super) silence: Duration,
    pub(super) telemetry: TelemetryWindow,
    pub(super) output_sent: u64,
    pub(super) output_limit: u64,
    pub(super) heartbeats: VecDeque<(u64, Monotonic)>,
    pub(super) sent: SentTimes,
    pub(super) draining: bool,
}

/// What a message costs, and what must be noted when it goes onto the socket.
#[derive(Debug, Clone, Copy)]
pub(super) enum Charge {
    /// Control, acknowledgements and results need no credit.
    Free,
    Heartbeat {
        sent_at_ms: u64,
    },
    Telemetry {
        spool_epoch: AgentRunId,
        to_seq: u64,
    },
    Output {
        bytes: u64,
    },
}

impl Charge {
    fn of(message: &AgentMessage) -> Result<Self, SendRefusal> {
        match message {
            AgentMessage::Hello(_) | AgentMessage::Confirm(_) | AgentMessage::Bye(_) => {
                Err(SendRefusal::Reserved)
            }
            AgentMessage::Heartbeat(heartbeat) => Ok(Self::Heartbeat {
                sent_at_ms: heartbeat.sent_at_ms,
            }),
            AgentMessage::Telemetry(batch) => Ok(Self::Telemetry {
                spool_epoch: batch.spool_epoch,
                to_seq: batch.to_seq,
            }),
            AgentMessage::Output(output) => Ok(Self::Output {
                bytes: u64::try_from(output.data.len()).unwrap_or(u64::MAX),
            }),
            AgentMessage::ProbeAck(_)
            | AgentMessage::CommandAccepted(_)
            | AgentMessage::CommandRejected(_)
            | AgentMessage::CommandStarted(_)
            | AgentMessage::CommandResult(_)
            | AgentMessage::Catalogue(_)
            | AgentMessage::PinReport(_)
            | AgentMessage::CertRequest(_)
            | AgentMessage::Event(_)
            | AgentMessage::KeyReport(_)
            | AgentMessage::TrustReport(_) => Ok(Self::Free),
        }
    }
}

impl Established {
    pub(super) fn new(link: Link, terms: &Terms, sent: SentTimes) -> Self {
        Self {
            link,
            outbox: Outbox::new(),
            heartbeat_interval: terms.heartbeat_interval,
            silence: terms.silence,
            telemetry: TelemetryWindow::new(terms.telemetry_bytes, terms.heartbeat_interval / 2),
            output_sent: 0,
            output_limit: terms.output_bytes,
            heartbeats: VecDeque::new(),
            sent,
            draining: false,
        }
    }

    pub(super) const fn output_credit(&self) -> u64 {
        self.output_limit.saturating_sub(self.output_sent)
    }

    /// The round trip, when the answer is to a heartbeat that is still awaited.
    pub(super) fn heartbeat_acknowledged(
        &mut self,
        ack: &HeartbeatAck,
        now: Monotonic,
    ) -> Option<Duration> {
        self.output_limit = self.output_limit.max(ack.output_bytes);
        let answered = self
            .heartbeats
            .iter()
            .position(|(sent_at_ms, _)| *sent_at_ms == ack.sent_at_ms)?;
        // Older ones will not be answered any more: everything arrives in order.
        let (_, sent_at) = self.heartbeats.drain(..=answered).next_back()?;
        Some(now.saturating_since(sent_at))
    }

    pub(super) fn send(&mut self, message: &AgentMessage) -> Result<(), SendRefusal> {
        let charge = Charge::of(message)?;
        let body = Packed::compressed(message.encode());
        let priority = message.priority();
        outbox::check_size(priority, &body)?;
        outbox::check_body(message.kind(), &body)?;
        let wire_bytes = body.wire_bytes();
        let granted = match charge {
            Charge::Free | Charge::Heartbeat { .. } => true,
            Charge::Telemetry { .. } => wire_bytes <= self.telemetry.credit(),
            Charge::Output { bytes } => bytes <= self.output_credit(),
        };
        if !granted {
            return Err(SendRefusal::NoCredit);
        }
        let waiting = Waiting {
            kind: message.kind(),
            body,
            note: charge,
        };
        self.outbox.push(priority, waiting)?;
        match charge {
            Charge::Free | Charge::Heartbeat { .. } => {}
            Charge::Telemetry {
                spool_epoch,
                to_seq,
            } => self.telemetry.queued(spool_epoch, to_seq, wire_bytes),
            Charge::Output { bytes } => self.output_sent += bytes,
        }
        Ok(())
    }

    pub(super) fn transmit(&mut self, now: Monotonic) -> Option<Vec<u8>> {
        let Waiting { kind, body, note } = self.outbox.pop()?;
        let sealed = self.link.seal(kind, &body);
        self.sent.push(now);
        match note {
            Charge::Free | Charge::Output { .. } => {}
            Charge::Heartbeat { sent_at_ms } => {
                if self.heartbeats.len() == HEARTBEATS_AWAITED_MAX {
                    self.heartbeats.pop_front();
                }
                self.heartbeats.push_back((sent_at_ms, now));
            }
            Charge::Telemetry { .. } => self.telemetry.sent(now),
        }
        Some(sealed)
    }
}
