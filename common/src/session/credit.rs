//! Credit for telemetry: bytes in flight, narrowed on links that take long to acknowledge.

use std::collections::VecDeque;
use std::time::Duration;

use crate::id::AgentRunId;
use crate::limits;
use crate::telemetry::Position;
use crate::time::Monotonic;

/// A timely acknowledgement widens the window by this fraction of its limit.
const WIDEN_BY: usize = 32;

#[derive(Debug)]
struct Flight {
    spool_epoch: AgentRunId,
    to_seq: u64,
    bytes: usize,
    sent_at: Option<Monotonic>,
}

/// What may be in flight: at most the granted limit, less while acknowledgements take longer than `late_after`.
#[derive(Debug)]
pub(super) struct TelemetryWindow {
    limit: usize,
    window: usize,
    in_flight: usize,
    late_after: Duration,
    flights: VecDeque<Flight>,
    narrowed_at: Option<Monotonic>,
}

impl TelemetryWindow {
    pub(super) const fn new(limit: usize, late_after: Duration) -> Self {
        Self {
            limit,
            window: limit,
            in_flight: 0,
            late_after,
            flights: VecDeque::new(),
            narrowed_at: None,
        }
    }

    /// Bytes that may be taken on now.
    pub(super) const fn credit(&self) -> usize {
        self.window.saturating_sub(self.in_flight)
    }

    /// Counts a batch that was queued; it must fit the credit.
    pub(super) fn queued(&mut self, spool_epoch: AgentRunId, to_seq: u64, bytes: usize) {
        self.in_flight += bytes;
        self.flights.push_back(Flight {
            spool_epoch,
            to_seq,
            bytes,
            sent_at: None,
        });
    }

    /// Notes that the oldest queued batch went onto the socket.
    pub(super) fn sent(&mut self, now: Monotonic) {
        if let Some(flight) = self.flights.iter_mut().find(|f| f.sent_at.is_none()) {
            flight.sent_at = Some(now);
        }
    }

    /// Releases what `position` covers and adapts the window to how long that took.
    pub(super) fn acknowledged(&mut self, position: Position, now: Monotonic) {
        let mut oldest: Option<Monotonic> = None;
        let mut released = 0;
        self.flights.retain(|flight| {
            let covered =
                flight.spool_epoch == position.spool_epoch && flight.to_seq <= position.seq;
            if covered {
                released += flight.bytes;
                oldest = match (oldest, flight.sent_at) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
            !covered
        });
        self.in_flight -= released;
        let Some(sent_at) = oldest else { return };
        if now.saturating_since(sent_at) > self.late_after {
            self.narrow(sent_at, now);
        } else {
            self.window = (self.window + self.limit / WIDEN_BY).min(self.limit);
        }
    }

    /// Halves the window, once for everything that was under way when it was last halved.
    fn narrow(&mut self, sent_at: Monotonic, now: Monotonic) {
        if self.narrowed_at.is_some_and(|at| sent_at < at) {
            return;
        }
        // One message must always fit, or nothing would ever be acknowledged again.
        let floor = limits::BULK_MESSAGE_BYTES_MAX.min(self.limit);
        self.window = (self.window / 2).max(floor);
        self.narrowed_at = Some(now);
    }
}

/// What the backend holds an agent to: telemetry received and not acknowledged, as it travelled. Batches are neither
/// unpacked nor parsed while they wait, so this is what they cost; they are answered one by one, in their order.
#[derive(Debug)]
pub(super) struct TelemetryDebt {
    limit: usize,
    bytes: usize,
    batches: VecDeque<usize>,
}

impl TelemetryDebt {
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: 0,
            batches: VecDeque::new(),
        }
    }

    /// Counts a batch; `false` when the agent had no credit for it.
    pub(super) fn received(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        self.batches.push_back(bytes);
        self.bytes <= self.limit
    }

    /// The oldest batch is answered.
    pub(super) fn answered(&mut self) {
        self.bytes -= self.batches.pop_front().unwrap_or(0);
    }
}
