//! What a connection is in each of its lives: a socket, the session on it, and who is at the other end.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as FrameCode;
use tracing::{debug, warn};
use viworks_common::code::CloseCode;
use viworks_common::id::SessionId;
use viworks_common::key::Identity;
use viworks_common::session::{BackendSession, Closed, Misplaced};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{BackendMessage, Permit, Refuse};
use viworks_runtime::clock;
use viworks_runtime::websocket::Received;

use super::super::limits::Admitted;
use super::super::opening::millis;
use super::super::{AgentSocket, Inbound};
use super::refusal;
use crate::agent::registry::Peer;
use crate::data::{GatewayRef, StoreError};

/// A connection to a gateway that is who it says.
pub(super) struct Line {
    pub(super) inbound: Arc<Inbound>,
    pub(super) socket: AgentSocket,
    pub(super) session: BackendSession,
    pub(super) session_id: SessionId,
    pub(super) peer: Peer,
    pub(super) address: SocketAddr,
    /// The place in the house, for as long as the connection lives.
    pub(super) admitted: Admitted,
    /// A write found that the session is not the current one; why is not known yet.
    pub(super) fenced: bool,
}

/// What the line did.
#[derive(Debug)]
pub(super) enum Sign {
    /// The network.
    Received(Received),
    /// The time until which somebody wanted to wait.
    Due,
}

impl Line {
    pub(super) fn now(&self) -> Monotonic {
        self.inbound.clock.now()
    }

    /// Moves what there is to say towards the network and waits for what comes back, or until the session or `wanted`
    /// is due. Nothing is read unless `reads`. May be dropped and asked again.
    pub(super) async fn next(&mut self, reads: bool, wanted: Option<Monotonic>) -> Sign {
        let Self {
            inbound,
            socket,
            session,
            ..
        } = self;
        let clock = &*inbound.clock;
        let deadline = session.poll_timeout().map(|(at, _)| at);
        let deadline = [deadline, socket.stuck_at(), wanted];
        let deadline = deadline.into_iter().flatten().min();
        let due = async {
            match deadline {
                Some(deadline) => clock::sleep_until(clock, deadline).await,
                None => std::future::pending().await,
            }
        };
        let received = poll_fn(|context| {
            if reads {
                socket.poll_step(context, session, clock.now())
            } else {
                socket.poll_write(context, session, clock.now())
            }
        });
        tokio::select! {
            biased;
            received = received => Sign::Received(received),
            () = due => Sign::Due,
        }
    }

    /// What is no message of ours ends the session.
    pub(super) fn on_foreign(&mut self, received: &Received) {
        let now = self.now();
        match received {
            Received::Text(_) | Received::Foreign(_) => self.session.close(
                CloseCode::BadEnvelope,
                "only binary WebSocket messages are spoken here",
                now,
            ),
            Received::TooLarge => {
                self.session
                    .close(CloseCode::TooLarge, "the message exceeds the limit", now);
            }
            Received::Frame(_) | Received::Closed(_) | Received::Lost(_) => {}
        }
    }

    /// Counts a message that no gateway sends, and says by which name it goes on record.
    pub(super) fn misplaced(&self) -> Option<&'static str> {
        let misplaced = self.session.misplaced()?;
        self.inbound.metrics.refused(misplaced.name());
        Some(match misplaced {
            Misplaced::Foreign => "gateway.frame_foreign",
            Misplaced::OutOfTurn => "gateway.frame_replayed",
        })
    }

    /// Time went by: for the session, and for what could not be sent.
    pub(super) fn on_due(&mut self) {
        let now = self.now();
        if self.socket.stuck_at().is_some_and(|at| at <= now) {
            self.session
                .close(CloseCode::HeartbeatTimeout, "sending made no progress", now);
        }
        self.session.handle_timeout(now);
    }

    pub(super) fn refuse(&mut self, refuse: Refuse) {
        self.inbound.metrics.refused(refuse.code.name());
        let now = self.now();
        self.session.refuse(refuse, now);
    }

    /// Ends the session of a gateway that says too much, and says when it may go on.
    pub(super) fn slow_down(&mut self, reason: &str, wait: Duration) {
        self.inbound.metrics.refused("message_rate");
        self.refuse(Refuse {
            retry_after_ms: Some(millis(wait)),
            ..refusal(CloseCode::RateLimited, reason)
        });
    }

    /// Time left until `deadline`, counted from the last message that was processed.
    pub(super) fn permit(&self, deadline: Timestamp) -> Permit {
        Permit {
            remaining_ms: millis(deadline.saturating_since(self.inbound.clock.line())),
            as_of: self.session.last_processed(),
        }
    }

    /// Hands a message to the session. One that it does not take ends it: the next session settles everything.
    pub(super) fn send(&mut self, message: BackendMessage) -> bool {
        let (name, now) = (message.name(), self.now());
        match self.session.send(message, now) {
            Ok(()) => true,
            Err(refusal) => {
                if self.session.closed().is_none() {
                    warn!(gateway = %self.peer.name, agent_id = %self.peer.identity.agent_id, message = name, %refusal, "a message could not be queued");
                    self.session.close(
                        CloseCode::Internal,
                        "the backend could not queue a message",
                        now,
                    );
                }
                false
            }
        }
    }

    /// The store did not do it: a fenced session is over, and any other failure ends it, too, because nothing may be
    /// acknowledged that is not committed.
    pub(super) fn fail(&mut self, error: &StoreError) {
        match error {
            StoreError::Fenced => self.fenced = true,
            StoreError::Conflict { .. }
            | StoreError::Missing { .. }
            | StoreError::QueueFull { .. }
            | StoreError::ReportsBusy
            | StoreError::TooLong(_)
            | StoreError::Unavailable(_)
            | StoreError::Unfit(_)
            | StoreError::Held(_)
            | StoreError::Unknown(_)
            | StoreError::Full(_)
            | StoreError::Inconsistent { .. } => {
                if error.is_outage() {
                    debug!(gateway = %self.peer.name, agent_id = %self.peer.identity.agent_id, %error, "a session ends because of the store");
                } else {
                    warn!(gateway = %self.peer.name, agent_id = %self.peer.identity.agent_id, %error, "a session ends because of the store");
                }
                self.refuse(refusal(CloseCode::Internal, "the backend's store failed"));
            }
        }
    }

    /// Ends a session that a write found to be fenced, and says by what: a later session, or an operator.
    pub(super) async fn settle_fence(&mut self) {
        if !std::mem::take(&mut self.fenced) || self.session.closed().is_some() {
            return;
        }
        let Identity { tenant, agent_id } = &self.peer.identity;
        let which = GatewayRef::Id(*agent_id);
        let revoked = match self.inbound.store.gateway(tenant, &which).await {
            Ok(gateway) => gateway.is_some_and(|gateway| gateway.revoked_at.is_some()),
            Err(error) => {
                warn!(gateway = %self.peer.name, %agent_id, %error, "failed to find out why a session is fenced");
                false
            }
        };
        let certificate = self
            .inbound
            .store
            .certificate(tenant, *agent_id, &self.peer.spki);
        // What cannot be found out now is told to the gateway when it connects again.
        let certificate_revoked =
            matches!(certificate.await, Ok(Some(known)) if known.revoked && !revoked);
        self.refuse(if revoked {
            refusal(CloseCode::Revoked, "the gateway was revoked")
        } else if certificate_revoked {
            refusal(
                CloseCode::Revoked,
                "the certificate of this session was revoked",
            )
        } else {
            refusal(
                CloseCode::Superseded,
                "the session is no longer the current one",
            )
        });
    }

    /// Says why it ends, and closes.
    pub(super) async fn close(mut self, closed: &Closed) {
        if let Some(code) = closed.code {
            self.inbound.metrics.closed(code);
        }
        let now = self.now();
        let code = FrameCode::from(closed.number());
        let reason = format!("{}: {}", closed.name(), closed.reason);
        let farewell = self.socket.close(&mut self.session, code, &reason, now);
        farewell.await;
    }
}
