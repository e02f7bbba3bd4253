//! The bounds of the operators' API.

use std::time::Duration;

use viworks_common::limits;
use viworks_common::rate::Quota;

/// What one client, and all of them together, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiLimits {
    /// Connections at once; more wait in the kernel's backlog.
    pub connections_max: usize,
    /// Event streams at once.
    pub streams_max: usize,
    /// How long a client may take to send a request's head, or idle between two.
    pub header_timeout: Duration,
    /// How long a request may take, body included; waits and event streams have their own bounds.
    pub request_timeout: Duration,
    /// Headers of a request.
    pub headers_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
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
            streams_max: 256,
            header_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            headers_max: 64,
            head_bytes_max: 16 * 1024,
            body_bytes_max: limits::REQUEST_BODY_BYTES_MAX,
            heartbeat: Duration::from_secs(15),
            quota: Quota {
                per_minute: 6_000,
                burst: 500,
            },
            recheck: Duration::from_secs(1),
        }
    }
}
