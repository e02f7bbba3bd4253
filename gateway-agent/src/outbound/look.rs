//! One attempt as far as CHALLENGE and no further, for `doctor`: before HELLO nothing happens to anybody's session.

use std::future::poll_fn;
use std::time::Duration;

use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use viworks_common::id::AgentId;
use viworks_common::session::{AgentEvent, AgentSession, AgentSessionConfig};
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::websocket::{Progress, Received, Socket};

use super::dial::Dialled;
use super::ending::{Ended, Seen, about_this};
use crate::material::Material;

/// Why a backend that took the upgrade said nothing that leads to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchallenged {
    /// In one sentence.
    pub cause: String,
    /// What to do about it; empty when there is nothing to do.
    pub fix: String,
}

impl Unchallenged {
    /// Of an attempt of this gateway.
    fn new(ended: Ended, agent_id: AgentId) -> Self {
        Self {
            cause: ended.cause,
            fix: about_this(ended.fix, agent_id),
        }
    }
}

/// Waits for CHALLENGE, at most `limit`, and hangs up. The backend's time, as it says it.
///
/// # Errors
///
/// When there is none, or one for another version or binding.
pub async fn challenge(
    dialled: Dialled,
    material: &Material,
    version_floor: u8,
    limit: Duration,
) -> Result<Timestamp, Unchallenged> {
    let mut session = AgentSession::new(
        AgentSessionConfig {
            identity: material.name.clone(),
            key: material.key.clone(),
            key_generation: material.key_generation,
            binding: dialled.binding,
            version_floor,
            opening_timeout: limit,
        },
        SystemClock.now(),
    );
    let mut socket = Socket::new(dialled.socket, limit, Progress::Taken);
    let next = poll_fn(|context| socket.poll_step(context, &mut session, SystemClock.now()));
    let read = timeout(limit, next).await;
    let received = read.unwrap_or_else(|_elapsed| {
        Received::Lost(format!("no CHALLENGE came within {} ms", limit.as_millis()))
    });
    let seen = Seen {
        state: session.state(),
        confirmed_for: None,
        told: None,
        left: None,
        presented: None,
    };
    let unchallenged = |ended| Unchallenged::new(ended, material.name.agent_id);
    let Received::Frame(frame) = received else {
        return Err(unchallenged(seen.lost(received)));
    };
    session.handle_frame(&frame, SystemClock.now());
    let server_time = match session.poll_event() {
        Some(AgentEvent::Challenged { server_time }) => server_time,
        _other => {
            let closed = session.closed().cloned();
            let nothing = || seen.lost(Received::Closed(None));
            let ended = closed.map_or_else(nothing, |closed| seen.closed(&closed));
            return Err(unchallenged(ended));
        }
    };
    let now = SystemClock.now();
    session.close("a look at the connection", now);
    let close = socket.close(
        &mut session,
        CloseCode::Normal,
        "a look at the connection",
        now,
    );
    // Whether the backend hears that is its own affair.
    drop(timeout(limit, close).await);
    Ok(server_time)
}
