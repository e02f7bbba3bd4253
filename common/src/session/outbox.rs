//! Messages that wait for the socket, by priority: bulk never delays a command, and nothing grows without bound.

use std::collections::VecDeque;

use super::SendRefusal;
use crate::limits;
use crate::wire::envelope::{Packed, body_bytes_max};
use crate::wire::message::Priority;

const LANES: usize = 4;
const LANE_MESSAGES_MAX: usize = limits::OUTBOX_MESSAGES_MAX / LANES;
const LANE_BYTES_MAX: usize = limits::WRITE_BUFFER_BYTES_MAX;

/// A message that has no sequence number yet: that is given when it is sent.
#[derive(Debug)]
pub(super) struct Waiting<N> {
    pub(super) kind: u8,
    pub(super) body: Packed,
    /// What the machine wants to know again when the message is sent.
    pub(super) note: N,
}

#[derive(Debug)]
struct Lane<N> {
    messages: VecDeque<Waiting<N>>,
    bytes: usize,
}

/// One queue for each priority.
#[derive(Debug)]
pub(super) struct Outbox<N>([Lane<N>; LANES]);

const fn lane(priority: Priority) -> usize {
    match priority {
        Priority::Control => 0,
        Priority::Command => 1,
        Priority::Output => 2,
        Priority::Telemetry => 3,
    }
}

impl<N> Outbox<N> {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Lane {
            messages: VecDeque::new(),
            bytes: 0,
        }))
    }

    pub(super) fn push(
        &mut self,
        priority: Priority,
        message: Waiting<N>,
    ) -> Result<(), SendRefusal> {
        let lane = &mut self.0[lane(priority)];
        let bytes = message.body.message_bytes();
        if lane.messages.len() >= LANE_MESSAGES_MAX || lane.bytes + bytes > LANE_BYTES_MAX {
            return Err(SendRefusal::Full);
        }
        lane.bytes += bytes;
        lane.messages.push_back(message);
        Ok(())
    }

    /// The oldest message of the highest priority that has one.
    pub(super) fn pop(&mut self) -> Option<Waiting<N>> {
        let lane = self.0.iter_mut().find(|lane| !lane.messages.is_empty())?;
        let message = lane.messages.pop_front()?;
        lane.bytes -= message.body.message_bytes();
        Some(message)
    }
}

/// How large a message of a priority may be.
pub(super) const fn message_bytes_max(priority: Priority) -> usize {
    match priority {
        Priority::Control | Priority::Command => limits::MESSAGE_BYTES_MAX,
        Priority::Output | Priority::Telemetry => limits::BULK_MESSAGE_BYTES_MAX,
    }
}

/// Whether a message of `kind` may have `body`, once that is unpacked.
pub(super) const fn check_body(kind: u8, body: &Packed) -> Result<(), SendRefusal> {
    let (bytes, limit) = (body.body_bytes(), body_bytes_max(kind));
    if bytes > limit {
        return Err(SendRefusal::TooLarge { bytes, limit });
    }
    Ok(())
}

/// Whether `body` may travel at all with this priority.
pub(super) const fn check_size(priority: Priority, body: &Packed) -> Result<(), SendRefusal> {
    let (bytes, limit) = (body.message_bytes(), message_bytes_max(priority));
    if bytes > limit {
        return Err(SendRefusal::TooLarge { bytes, limit });
    }
    Ok(())
}
