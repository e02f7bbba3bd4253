//! Events that wait for the driver, bounded so that a driver that does not drain them cannot be used to fill memory.

use std::collections::VecDeque;

use crate::limits;

/// Bytes of the bodies behind waiting events, unpacked where they are unpacked.
const WAITING_BYTES_MAX: usize = 2 * limits::MESSAGE_BYTES_MAX;

#[derive(Debug)]
pub(super) struct Inbox<E> {
    events: VecDeque<(E, usize)>,
    bytes: usize,
}

impl<E> Inbox<E> {
    pub(super) const fn new() -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Whether another frame may be taken in.
    pub(super) fn has_room(&self) -> bool {
        self.events.len() < limits::OUTBOX_MESSAGES_MAX && self.bytes < WAITING_BYTES_MAX
    }

    /// Adds an event that is behind `bytes` bytes; zero for one that no frame caused.
    pub(super) fn push(&mut self, event: E, bytes: usize) {
        self.bytes += bytes;
        self.events.push_back((event, bytes));
    }

    pub(super) fn pop(&mut self) -> Option<E> {
        let (event, bytes) = self.events.pop_front()?;
        self.bytes -= bytes;
        Some(event)
    }

    /// Forgets what has not been handed out: it must not have an effect any more.
    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }
}
