//! The bounds of the operators' API.

use std::time::Duration;

use viworks_common::limits;
use viworks_common::rate::Quota;

/// Headers of a request.
const HEADERS_MAX: usize = 64;

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What one client, and all of them together, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiLimits {
    /// Connections at once; beyond, a newcomer takes the place of the stranger who has held one longest.
    pub connections_max: usize,
    /// Connections of one IPv4 address or IPv6 /64 network that have shown no valid key.
    pub per_source_max: usize,
    /// Connections that have shown the same key.
    pub per_key_max: usize,
    /// Event streams at once.
    pub streams_max: usize,
    /// Event streams of one key.
    pub streams_per_key_max: usize,
    /// Waits for a run's end of one key.
    pub waits_per_key_max: usize,
    /// How long a client may take to send a request's head, or idle between two.
    pub header_timeout: Duration,
    /// How long a client may leave untouched what is sent to it.
    pub send_timeout: Duration,
    /// How long a request may take, body included; waits and event streams have their own bounds.
    pub request_timeout: Duration,
    /// Headers of a request.
    pub headers_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Bytes of all requests' bodies together.
    pub bodies_bytes_max: usize,
    /// Bytes of all answers together that clients have not taken yet.
    pub answers_bytes_max: usize,
    /// The pause between two comments on a silent event stream.
    pub heartbeat: Duration,
    /// What one API key may ask for.
    pub quota: Quota,
    /// How often the store is asked by somebody who waits, in case a notice was lost.
    pub recheck: Duration,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            connections_max: 1_024,
            per_source_max: 256,
            per_key_max: 512,
            streams_max: 256,
            streams_per_key_max: 128,
            waits_per_key_max: 128,
            header_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            headers_max: HEADERS_MAX,
            head_bytes_max: HEAD_BYTES_MAX,
            body_bytes_max: limits::REQUEST_BODY_BYTES_MAX,
            bodies_bytes_max: 8 * 1024 * 1024,
            answers_bytes_max: 64 * 1024 * 1024,
            heartbeat: Duration::from_secs(15),
            quota: Quota {
                per_minute: 6_000,
                burst: 500,
            },
            recheck: Duration::from_secs(1),
        }
    }
}
