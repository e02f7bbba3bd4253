//! The first life of a connection: HELLO is judged and CONFIRM committed, or it ends without a session.

use std::net::SocketAddr;
use std::sync::Arc;

use tracing::{debug, info, warn};
use viworks_common::certificate::{Life, life};
use viworks_common::code::CloseCode;
use viworks_common::human;
use viworks_common::id::SessionId;
use viworks_common::key::Binding;
use viworks_common::ledger::lease::Place;
use viworks_common::session::state::BackendState;
use viworks_common::session::{BackendEvent, BackendSession, BackendSessionConfig, Closed};
use viworks_common::wire::message::{
    CERTIFICATE_RENEWAL, Hello, KEEPS_TIMEOUT, KEY_ROTATION, PIN_ROTATION, RESULT_REFUSALS,
    TELEMETRY_REFUSALS, TRUST_UPDATE,
};
use viworks_runtime::fault;
use viworks_runtime::random;
use viworks_runtime::websocket::Received;

use super::super::fix;
use super::super::limits::{Admitted, Turn};
use super::super::opening::{Arrival, Decision, security_event};
use super::super::{AgentSocket, Inbound};
use super::ending::Ending;
use super::line::{Line, Sign};
use super::live::Live;
use super::{draining, lost, refusal};
use crate::agent::registry::Peer;
use crate::agent::shelf::Shelf;
use crate::data::{ConfirmOutcome, ConfirmRequest, Confirmed, Holder};
use crate::metrics::BackendMetrics;

/// A connection without a session.
pub(in crate::inbound) struct Opening {
    line: Line,
    /// The place among the openings.
    _turn: Turn,
    welcomed: Option<Welcomed>,
    /// The epoch that may be confirmed, as far as the database goes.
    unsettled: Option<u64>,
}

/// What HELLO announced that the gateway can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Announced {
    /// It keeps time limits below its catalogue's.
    pub(super) keeps_timeout: bool,
    /// It wants to know what is refused of its telemetry.
    pub(super) tells_refusals: bool,
    /// It wants to know which results are not kept.
    pub(super) tells_not_kept: bool,
    /// It can have its certificate renewed.
    pub(super) renews: bool,
    /// It takes pin sets over an open session.
    pub(super) rotates: bool,
    /// The version of the pin set that it trusts.
    pub(super) trusts: u64,
    /// The latest version that it knows of: that one, or the one that WELCOME offers.
    pub(super) offered: u64,
    /// It takes a later agent key.
    pub(super) takes_keys: bool,
    /// It takes the authorities of the server.
    pub(super) takes_authorities: bool,
}

struct Welcomed {
    request: ConfirmRequest,
    announced: Announced,
}

/// An opening that came to nothing.
pub(super) struct Refused {
    line: Line,
    closed: Closed,
    unsettled: Option<u64>,
}

impl Opening {
    pub(in crate::inbound) fn new(
        inbound: Arc<Inbound>,
        socket: AgentSocket,
        peer: Peer,
        binding: Binding,
        address: SocketAddr,
        (admitted, turn): (Admitted, Turn),
    ) -> Self {
        let session_id = SessionId::from_uuid(random::uuid_v4());
        let config = BackendSessionConfig {
            identity: peer.identity.clone(),
            master: Arc::clone(&inbound.master),
            binding,
            session_id,
            server_nonce: random::bytes(),
            server_time: inbound.clock.wall(),
            hello_timeout: inbound.terms.hello_timeout,
            certificate_remaining: Some(peer.remaining),
        };
        let session = BackendSession::new(config, inbound.clock.now());
        Self {
            line: Line {
                inbound,
                socket,
                session,
                session_id,
                peer,
                address,
                admitted,
                fenced: false,
            },
            _turn: turn,
            welcomed: None,
            unsettled: None,
        }
    }

    pub(super) fn metrics(&self) -> &BackendMetrics {
        &self.line.inbound.metrics
    }

    /// Runs it to its end.
    pub(super) async fn run(mut self: Box<Self>) -> Result<Box<Live>, Box<Refused>> {
        let metrics = self.metrics().clone();
        metrics.openings.inc();
        let outcome = self.settle().await;
        metrics.openings.dec();
        match outcome {
            Ok((confirmed, start)) => Ok(Box::new(self.begin(*confirmed, start).await)),
            Err(closed) => Err(Box::new(Refused {
                line: self.line,
                closed,
                unsettled: self.unsettled,
            })),
        }
    }

    async fn settle(&mut self) -> Result<(Box<Confirmed>, Start), Closed> {
        loop {
            while let Some(event) = self.line.session.poll_event() {
                if let Some(start) = Box::pin(self.on_event(event)).await {
                    return Ok(start);
                }
                Box::pin(self.line.settle_fence()).await;
            }
            if let Some(closed) = self.line.session.closed() {
                return Err(closed.clone());
            }
            let lifecycle = self.line.inbound.lifecycle.clone();
            let sign = tokio::select! {
                biased;
                () = lifecycle.stopping() => {
                    self.line.refuse(draining());
                    continue;
                }
                sign = self.line.next(true, None) => sign,
            };
            match sign {
                Sign::Received(Received::Lost(_) | Received::Closed(_)) => return Err(lost()),
                Sign::Received(Received::Frame(bytes)) => Box::pin(self.on_frame(&bytes)).await,
                Sign::Received(foreign) => self.line.on_foreign(&foreign),
                Sign::Due => self.line.on_due(),
            }
        }
    }

    async fn on_frame(&mut self, bytes: &[u8]) {
        let Line {
            inbound,
            session,
            peer,
            address,
            ..
        } = &mut self.line;
        let now = inbound.clock.now();
        // Before the MAC is checked, and without remembering anything: a replay costs nothing more than this.
        if session.state() == BackendState::AwaitHello
            && let Some(nonce) = BackendSession::peek_client_nonce(bytes)
            && inbound.replay.contains(peer.identity.agent_id, &nonce)
        {
            security_event(inbound, peer, *address, "gateway.hello_replayed").await;
            session.close(CloseCode::Replay, "this HELLO was used before", now);
            return;
        }
        session.handle_frame(bytes, now);
        if session.hello_was_unproved() {
            // Somebody has the gateway's certificate and not its key: files that were mixed up, or a thief.
            inbound.metrics.refused("wrong_agent_key");
            security_event(inbound, peer, *address, "gateway.wrong_agent_key").await;
        }
        if let Some(action) = self.line.misplaced() {
            let Line {
                inbound,
                peer,
                address,
                ..
            } = &mut self.line;
            security_event(inbound, peer, *address, action).await;
        }
    }

    /// What a session begins with, once its confirmation is committed.
    async fn on_event(&mut self, event: BackendEvent) -> Option<(Box<Confirmed>, Start)> {
        match event {
            BackendEvent::Hello {
                hello,
                client_nonce,
                key_generation,
                challenge_age,
            } => {
                let arrival = Arrival {
                    inbound: &self.line.inbound,
                    peer: &self.line.peer,
                    address: self.line.address,
                    session_id: self.line.session_id,
                    hello: &hello,
                    client_nonce,
                    key_generation,
                    challenge_age,
                };
                let decision = Box::pin(arrival.decide()).await;
                self.answer_hello(&hello, decision);
                None
            }
            BackendEvent::Confirmed { epoch } => self.confirm(epoch).await,
            BackendEvent::Bye { reason } => {
                debug!(gateway = %self.line.peer.name, agent_id = %self.line.peer.identity.agent_id, reason, "the gateway says goodbye");
                None
            }
            // The session keeps them back until it is established; how it ended, the loop asks by itself.
            BackendEvent::Heartbeat(_)
            | BackendEvent::ProbeAnswered { .. }
            | BackendEvent::Telemetry(_)
            | BackendEvent::Accepted(_)
            | BackendEvent::Rejected(_)
            | BackendEvent::Started(_)
            | BackendEvent::Output(_)
            | BackendEvent::Result(_)
            | BackendEvent::Catalogue(_)
            | BackendEvent::PinReport(_)
            | BackendEvent::CertificateWanted(_)
            | BackendEvent::KeyReported(_)
            | BackendEvent::TrustReported(_)
            | BackendEvent::Event(_)
            | BackendEvent::Closed(_) => None,
        }
    }

    fn answer_hello(&mut self, hello: &Hello, decision: Decision) {
        let now = self.line.now();
        match decision {
            Decision::Welcome(welcome, admitted) => {
                let announces = |name: &str| hello.capabilities.iter().any(|known| known == name);
                let announced = Announced {
                    keeps_timeout: announces(KEEPS_TIMEOUT),
                    tells_refusals: announces(TELEMETRY_REFUSALS),
                    tells_not_kept: announces(RESULT_REFUSALS),
                    renews: announces(CERTIFICATE_RENEWAL),
                    rotates: announces(PIN_ROTATION),
                    trusts: hello.pin_set_version,
                    offered: welcome
                        .pins
                        .as_ref()
                        .map_or(hello.pin_set_version, |offered| offered.version),
                    takes_keys: announces(KEY_ROTATION),
                    takes_authorities: announces(TRUST_UPDATE),
                };
                let request = ConfirmRequest {
                    agent_id: self.line.peer.identity.agent_id,
                    session_id: self.line.session_id,
                    presented: admitted.presented,
                    issued: admitted.issued,
                    agent_run_id: hello.agent_run_id,
                    unreported: hello.unreported.clone(),
                    proves: self.line.peer.unproved,
                    signed_by: self.line.peer.signed_by,
                };
                self.welcomed = Some(Welcomed { request, announced });
                self.line.session.welcome(*welcome, now);
            }
            Decision::Refuse(refuse) => self.line.refuse(refuse),
        }
    }

    async fn confirm(&mut self, epoch: u64) -> Option<(Box<Confirmed>, Start)> {
        let Welcomed { request, announced } = self.welcomed.take()?;
        let line = &mut self.line;
        let holder = Holder {
            agent_id: request.agent_id,
            epoch,
            agent_run_id: request.agent_run_id,
        };
        let open = request.unreported.iter().copied().collect();
        let (tenant, now) = (&line.peer.identity.tenant, line.inbound.clock.line());
        let missed = line.inbound.manager.missed_nudges();
        let missed_keys = line.inbound.manager.missed_keys();
        let _confirming = line.inbound.manager.confirming(holder.agent_id, epoch);
        self.unsettled = Some(epoch);
        let confirmed = line.inbound.store.confirm_session(tenant, request, now);
        let confirmed = match confirmed.await {
            Ok(ConfirmOutcome::Confirmed(confirmed)) => confirmed,
            // By a later session, or because it was revoked meanwhile.
            Ok(ConfirmOutcome::Superseded) => {
                self.unsettled = None;
                line.fenced = true;
                return None;
            }
            Err(error) => {
                line.fail(&error);
                return None;
            }
        };
        fault::point("session.confirmed.before_entry");
        let place = Place {
            epoch,
            run: holder.agent_run_id,
        };
        let credit = usize::try_from(line.inbound.terms.command_credit).unwrap_or(usize::MAX);
        let shelf = Arc::new(Shelf::new(place, credit, open, announced.keeps_timeout));
        let manager = &line.inbound.manager;
        let (identity, instance) = (&line.peer.identity, confirmed.instance);
        if !manager.register(identity, line.session_id, &shelf, instance) {
            line.refuse(refusal(
                CloseCode::Superseded,
                "another session of this gateway came in between",
            ));
            return None;
        }
        manager.confirmed(
            holder.agent_id,
            holder.agent_run_id,
            line.inbound.clock.now(),
        );
        line.inbound.dispatcher.entered(holder.agent_id, epoch);
        // What was submitted after the confirmation and before the session was entered is known by its missed nudge.
        let look = confirmed.waiting || manager.missed_nudges() != missed;
        let start = Start {
            holder,
            shelf,
            announced,
            look,
            look_for_key: manager.missed_keys() != missed_keys,
            has_bundle: confirmed.authorities.clone(),
        };
        Some((confirmed, start))
    }

    async fn begin(mut self, confirmed: Confirmed, start: Start) -> Live {
        let (look, look_for_key) = (start.look, start.look_for_key);
        let (agent_id, epoch) = (start.holder.agent_id, start.holder.epoch);
        let line = &mut self.line;
        let Line {
            inbound,
            peer,
            address,
            ..
        } = &*line;
        let manager = &inbound.manager;
        manager.note_certificate(agent_id, &peer.name, peer.not_before, peer.not_after);
        let ends = life(peer.not_before, peer.not_after, inbound.clock.wall());
        if let Life::EndsSoon { left } = ends {
            warn!(gateway = %peer.name, %agent_id, not_after = %peer.not_after, "a gateway's certificate ends in {}", human::span(left));
        }
        info!(gateway = %peer.name, %agent_id, epoch, %address, "gateway connected");
        line.admitted.vouch();
        let now = line.now();
        line.session.established(now);
        let stopping = line.inbound.lifecycle.is_stopping();
        let mut live = Live::new(self.line, start);
        if stopping {
            // Everybody else has been told to come back; this one came too late for that.
            live.line.refuse(draining());
            return live;
        }
        live.resume(&confirmed);
        live.settle_key(confirmed.keys, look_for_key).await;
        live.settle_bundle().await;
        if look {
            live.offer_commands().await;
        }
        live
    }
}

/// What a live session starts with.
pub(super) struct Start {
    pub(super) holder: Holder,
    pub(super) shelf: Arc<Shelf>,
    pub(super) announced: Announced,
    look: bool,
    /// A later agent key may have been asked for since the confirmation.
    look_for_key: bool,
    /// The bundle of authorities that the gateway has, by its digest, as it is stored.
    pub(super) has_bundle: Option<String>,
}

impl Refused {
    /// Says why, here and there. Whoever never got a session is somebody to look at, unless the line was cut. What was
    /// confirmed all the same, or may have been, is no session that anybody has.
    pub(super) async fn finish(self) {
        let Self {
            line,
            closed,
            unsettled,
        } = self;
        let ending = unsettled.map(|epoch| Ending::of(&line, epoch));
        let agent_id = line.peer.identity.agent_id;
        let (address, code, reason) = (line.address, closed.name(), &closed.reason);
        if closed.code == Some(CloseCode::HeartbeatTimeout) {
            // Nothing was heard any more, or somebody only wanted to see how far it gets.
            info!(gateway = %line.peer.name, %agent_id, %address, "a gateway left before its session was confirmed");
        } else if let Some(left_out) = line.inbound.manager.may_log(agent_id, line.now()) {
            let fix = fix::of_opening(closed.code, reason);
            let fix = fix::about(fix, Some(&line.peer.name));
            warn!(gateway = %line.peer.name, %agent_id, %address, code, reason, fix, left_out, "refused a session");
        }
        line.close(&closed).await;
        if let Some(ending) = ending {
            ending.record(closed.code).await;
        }
    }
}
