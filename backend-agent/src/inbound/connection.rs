//! Drives one session over one socket: one loop, one order, and each event handed to its feature once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode as FrameCode;
use tracing::{debug, info, warn};
use viworks_common::certificate::{Life, life};
use viworks_common::code::CloseCode;
use viworks_common::human;
use viworks_common::id::{CommandId, SessionId};
use viworks_common::key::{Binding, Identity};
use viworks_common::session::state::BackendState;
use viworks_common::session::{BackendEvent, BackendSession, BackendSessionConfig, Closed, End};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{
    BackendMessage, CommandRef, CommandStarted, Drain, Go, Hello, KEEPS_TIMEOUT, Permit,
    RESULT_REFUSALS, Refuse, TELEMETRY_REFUSALS,
};
use viworks_runtime::{clock, random};

use super::Inbound;
use super::judge::Judged;
use super::limits::{Admitted, Turn};
use super::opening::{Arrival, Decision, millis, security_event};
use super::socket::{AgentSocket, Received};
use crate::agent::manager::{Desk, Ending, Order};
use crate::agent::rates::Pace;
use crate::agent::registry::Peer;
use crate::data::{ConfirmOutcome, ConfirmRequest, Confirmed, GatewayRef, Holder, StoreError};

mod commands;
mod stream;

use stream::Stream;

/// One connection from its upgrade to its end.
pub(super) struct Connection {
    inbound: Arc<Inbound>,
    socket: AgentSocket,
    session: BackendSession,
    session_id: SessionId,
    peer: Peer,
    address: SocketAddr,
    /// The place in the house, for as long as the connection lives.
    admitted: Admitted,
    /// The place among the openings, until the session is established.
    opening: Option<Turn>,
    welcomed: Option<ConfirmRequest>,
    /// Whether the gateway keeps time limits below its catalogue's.
    keeps_timeout: bool,
    /// Whether HELLO asked for what is refused of its telemetry.
    tells_refusals: bool,
    /// Whether HELLO asked for which results are not kept.
    tells_not_kept: bool,
    live: Option<Live>,
    /// A write found that the session is not the current one; why is not known yet.
    fenced: bool,
}

/// What a confirmed session has.
struct Live {
    desk: Desk,
    holder: Holder,
    /// Commands that use up credit.
    open: BTreeSet<CommandId>,
    /// The store may have more than credit allowed.
    more: bool,
    /// Commands that started, and when that is stored: a result that comes before says it all.
    started: VecDeque<(Monotonic, CommandStarted)>,
    /// When what the gateway was too busy for may be offered again.
    again_at: Option<Monotonic>,
    /// Whose runs the commands are, for those who watch.
    runs: commands::Runs,
    pace: Pace,
    /// A catalogue that is being judged; a later one takes its place.
    judging: Option<Judging>,
    stream: Stream,
    output_received: u64,
    probes: BTreeMap<u64, oneshot::Sender<()>>,
    probe_id: u64,
    draining: bool,
}

/// A catalogue that is being judged.
struct Judging {
    /// As its gateway names it.
    digest: String,
    verdict: oneshot::Receiver<Judged>,
}

/// What happened next.
enum Step {
    Received(Received),
    Deadline,
    Stopping,
    Ending(Ending),
    Ordered(Order),
    Nudged,
    Judged(Option<Judged>),
    Telemetry(stream::Progress),
}

impl Connection {
    pub(super) fn new(
        inbound: Arc<Inbound>,
        socket: AgentSocket,
        peer: Peer,
        binding: Binding,
        address: SocketAddr,
        (admitted, opening): (Admitted, Turn),
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
            inbound,
            socket,
            session,
            session_id,
            peer,
            address,
            admitted,
            opening: Some(opening),
            welcomed: None,
            keeps_timeout: false,
            tells_refusals: false,
            tells_not_kept: false,
            live: None,
            fenced: false,
        }
    }

    /// Runs it to its end. What happens now and then is boxed: thousands of sessions wait, and would carry its size.
    pub(super) async fn run(mut self: Box<Self>) {
        self.inbound.metrics.connections.inc();
        self.inbound.metrics.openings.inc();
        let closed = loop {
            while let Some(event) = self.session.poll_event() {
                Box::pin(self.on_event(event)).await;
                Box::pin(self.settle_fence()).await;
            }
            if let Some(closed) = self.session.closed() {
                break closed.clone();
            }
            let step = self.next_step().await;
            if matches!(step, Step::Received(Received::Lost)) {
                break lost();
            }
            Box::pin(self.on_step(step)).await;
            Box::pin(self.settle_fence()).await;
        };
        Box::pin(self.finish(closed)).await;
    }

    async fn next_step(&mut self) -> Step {
        let Self {
            inbound,
            socket,
            session,
            live,
            ..
        } = self;
        let clock = &*inbound.clock;
        let deadline = session.poll_timeout().map(|(at, _)| at);
        let again_at = live.as_ref().and_then(|live| live.again_at);
        let started_at = live.as_ref().and_then(|live| live.started.front());
        let started_at = started_at.map(|(due, _)| *due);
        let deadline = [deadline, socket.stuck_at(), again_at, started_at];
        let deadline = deadline.into_iter().flatten().min();
        let due = async {
            match deadline {
                Some(deadline) => clock::sleep_until(clock, deadline).await,
                None => std::future::pending().await,
            }
        };
        let reads = live.as_ref().is_none_or(|live| !live.stream.is_full());
        let received = poll_fn(|context| {
            if reads {
                socket.poll_step(context, session, clock.now())
            } else {
                socket.poll_write(context, session, clock.now())
            }
        });
        let Some(live) = live else {
            return tokio::select! {
                biased;
                () = inbound.lifecycle.stopping() => Step::Stopping,
                received = received => Step::Received(received),
                () = due => Step::Deadline,
            };
        };
        let Live {
            desk,
            stream,
            judging,
            ..
        } = live;
        tokio::select! {
            biased;
            ending = next_ending(&mut desk.ending) => Step::Ending(ending),
            Some(order) = desk.orders.recv() => Step::Ordered(order),
            received = received => Step::Received(received),
            () = due => Step::Deadline,
            () = desk.nudged.notified() => Step::Nudged,
            judged = next_judged(judging) => Step::Judged(judged),
            progress = stream.progress(&inbound.telemetry) => Step::Telemetry(progress),
        }
    }

    async fn on_step(&mut self, step: Step) {
        let now = self.now();
        match step {
            Step::Received(Received::Frame(bytes)) => self.on_frame(&bytes, now).await,
            Step::Received(Received::Text(_) | Received::Foreign(_)) => {
                self.session.close(
                    CloseCode::BadEnvelope,
                    "only binary WebSocket messages are spoken here",
                    now,
                );
            }
            Step::Received(Received::TooLarge) => {
                self.session
                    .close(CloseCode::TooLarge, "the message exceeds the limit", now);
            }
            Step::Received(Received::Lost) => {}
            Step::Deadline => {
                if self.socket.stuck_at().is_some_and(|at| at <= now) {
                    self.session.close(
                        CloseCode::HeartbeatTimeout,
                        "sending made no progress",
                        now,
                    );
                }
                if self.live.as_ref().is_some_and(|live| live.stream.is_full()) {
                    // Its silence is ours: nothing is read until there is room again.
                    self.session.heard(now);
                }
                self.session.handle_timeout(now);
                self.offer_again(now).await;
                self.store_started(now).await;
            }
            Step::Stopping => self.refuse(draining()),
            Step::Ending(ending) => self.refuse(Refuse {
                code: ending.code,
                reason: ending.reason.to_owned(),
                retry_after_ms: None,
            }),
            Step::Ordered(order) => self.on_order(order, now),
            Step::Nudged => self.offer_commands().await,
            Step::Judged(judged) => self.on_judged(judged).await,
            Step::Telemetry(progress) => self.on_telemetry(progress),
        }
    }

    async fn on_frame(&mut self, bytes: &[u8], now: Monotonic) {
        // Before the MAC is checked, and without remembering anything: a replay costs nothing more than this.
        if self.session.state() == BackendState::AwaitHello
            && let Some(nonce) = BackendSession::peek_client_nonce(bytes)
            && self
                .inbound
                .replay
                .contains(self.peer.identity.agent_id, &nonce)
        {
            let action = "gateway.hello_replayed";
            security_event(&self.inbound, &self.peer, self.address, action).await;
            self.session
                .close(CloseCode::Replay, "this HELLO was used before", now);
            return;
        }
        self.session.handle_frame(bytes, now);
        if self.session.hello_was_unproved() {
            // Somebody has the gateway's certificate and not its key: files that were mixed up, or a thief.
            self.inbound.metrics.refused("wrong_agent_key");
            let action = "gateway.wrong_agent_key";
            security_event(&self.inbound, &self.peer, self.address, action).await;
        }
    }

    fn on_order(&mut self, order: Order, now: Monotonic) {
        let Some(live) = &mut self.live else { return };
        match order {
            Order::Probe(answered) => {
                live.probe_id += 1;
                live.probes.retain(|_, asked| !asked.is_closed());
                live.probes.insert(live.probe_id, answered);
                self.session.probe(live.probe_id, now);
            }
            Order::Drain(after) => {
                live.draining = true;
                let reconnect_after_ms = millis(after);
                self.send(BackendMessage::Drain(Drain { reconnect_after_ms }));
            }
            Order::Cancel(command_id) => {
                self.send(BackendMessage::CommandCancel(CommandRef { command_id }));
            }
        }
    }

    /// Every event, once.
    async fn on_event(&mut self, event: BackendEvent) {
        let now = self.now();
        if let Some(live) = &self.live
            && let Err(wait) = live.pace.allow(&event, now)
        {
            return self.slow_down("the gateway repeats itself too often", wait);
        }
        match event {
            BackendEvent::Hello {
                hello,
                client_nonce,
                key_generation,
                challenge_age,
            } => {
                let arrival = Arrival {
                    inbound: &self.inbound,
                    peer: &self.peer,
                    address: self.address,
                    session_id: self.session_id,
                    hello: &hello,
                    client_nonce,
                    key_generation,
                    challenge_age,
                };
                let decision = Box::pin(arrival.decide()).await;
                self.answer_hello(&hello, decision);
            }
            BackendEvent::Confirmed { epoch } => self.on_confirmed(epoch).await,
            BackendEvent::Heartbeat(heartbeat) => self.on_heartbeat(&heartbeat),
            BackendEvent::ProbeAnswered { id } => self.on_probe_answered(id),
            BackendEvent::Telemetry(batch) => self.on_batch(batch),
            BackendEvent::Accepted(accepted) => self.on_accepted(accepted).await,
            BackendEvent::Rejected(rejected) => self.on_rejected(rejected).await,
            BackendEvent::Started(started) => self.on_started(started),
            BackendEvent::Output(output) => self.on_output(output).await,
            BackendEvent::Result(result) => self.on_result(*result).await,
            BackendEvent::Catalogue(catalogue) => self.on_catalogue(catalogue),
            BackendEvent::PinReport(report) => self.on_pin_report(report.version).await,
            BackendEvent::Event(event) => self.on_gateway_event(&event).await,
            BackendEvent::Bye { reason } => {
                debug!(gateway = %self.peer.name, agent_id = %self.peer.identity.agent_id, reason, "the gateway says goodbye");
            }
            // The loop asks `closed` itself.
            BackendEvent::Closed(_) => {}
        }
    }

    fn answer_hello(&mut self, hello: &Hello, decision: Decision) {
        let now = self.now();
        match decision {
            Decision::Welcome(welcome, admitted) => {
                let announces = |name: &str| hello.capabilities.iter().any(|known| known == name);
                self.keeps_timeout = announces(KEEPS_TIMEOUT);
                self.tells_refusals = announces(TELEMETRY_REFUSALS);
                self.tells_not_kept = announces(RESULT_REFUSALS);
                self.welcomed = Some(ConfirmRequest {
                    agent_id: self.peer.identity.agent_id,
                    session_id: self.session_id,
                    presented: admitted.presented,
                    issued: admitted.issued,
                    agent_run_id: hello.agent_run_id,
                    unreported: hello.unreported.clone(),
                });
                self.session.welcome(*welcome, now);
            }
            Decision::Refuse(refuse) => self.refuse(refuse),
        }
    }

    fn refuse(&mut self, refuse: Refuse) {
        self.inbound.metrics.refused(refuse.code.name());
        let now = self.now();
        self.session.refuse(refuse, now);
    }

    /// Ends the session of a gateway that says too much, and says when it may go on.
    fn slow_down(&mut self, reason: &str, wait: Duration) {
        self.inbound.metrics.refused("message_rate");
        self.refuse(Refuse {
            code: CloseCode::RateLimited,
            reason: reason.to_owned(),
            retry_after_ms: Some(millis(wait)),
        });
    }

    async fn on_confirmed(&mut self, epoch: u64) {
        let Some(request) = self.welcomed.take() else {
            return;
        };
        let holder = Holder {
            agent_id: request.agent_id,
            epoch,
            agent_run_id: request.agent_run_id,
        };
        let open = request.unreported.iter().copied().collect();
        let tenant = &self.peer.identity.tenant;
        let now = self.inbound.clock.line();
        let missed = self.inbound.manager.missed_nudges();
        let confirmed = match self
            .inbound
            .store
            .confirm_session(tenant, request, now)
            .await
        {
            Ok(ConfirmOutcome::Confirmed(confirmed)) => confirmed,
            // By a later session, or because it was revoked meanwhile.
            Ok(ConfirmOutcome::Superseded) => {
                self.fenced = true;
                return;
            }
            Err(error) => return self.fail(&error),
        };
        let manager = &self.inbound.manager;
        let Some(desk) = manager.register(
            &self.peer.identity,
            self.session_id,
            epoch,
            holder.agent_run_id,
        ) else {
            return self.refuse(superseded());
        };
        let peer = &self.peer;
        manager.note_certificate(holder.agent_id, &peer.name, peer.not_before, peer.not_after);
        let ends = life(peer.not_before, peer.not_after, self.inbound.clock.wall());
        if let Life::EndsSoon { left } = ends {
            warn!(gateway = %peer.name, agent_id = %holder.agent_id, not_after = %peer.not_after, "a gateway's certificate ends in {}", human::span(left));
        }
        let heartbeats = self.inbound.terms.heartbeat_interval;
        self.live = Some(Live {
            desk,
            holder,
            open,
            more: false,
            started: VecDeque::new(),
            again_at: None,
            runs: commands::Runs::default(),
            pace: manager.pace(holder.agent_id, heartbeats, self.inbound.clock.now()),
            judging: None,
            stream: Stream::new(&holder, &self.peer.name, self.tells_refusals),
            output_received: 0,
            probes: BTreeMap::new(),
            probe_id: 0,
            draining: false,
        });
        self.opening = None;
        self.admitted.vouch();
        self.inbound.metrics.openings.dec();
        let now = self.now();
        self.session.established(now);
        if self.inbound.lifecycle.is_stopping() {
            // Everybody else has been told to come back; this one came too late for that.
            return self.refuse(draining());
        }
        info!(gateway = %self.peer.name, agent_id = %holder.agent_id, epoch, address = %self.address, "gateway connected");
        self.resume(&confirmed);
        // What was submitted after the confirmation and before the session was entered is known by its missed nudge.
        if confirmed.waiting || self.inbound.manager.missed_nudges() != missed {
            self.offer_commands().await;
        }
    }

    /// What this process of the gateway was permitted or told before, it is told again.
    fn resume(&mut self, confirmed: &Confirmed) {
        let ended = u64::try_from(confirmed.ended_indeterminate.len()).unwrap_or(u64::MAX);
        if ended > 0 {
            use viworks_common::command::CommandState::Indeterminate;
            warn!(gateway = %self.peer.name, agent_id = %self.peer.identity.agent_id, commands = ended, "an earlier process of the gateway is gone without a trace of its commands");
            self.inbound.metrics.commands_final(Indeterminate, ended);
        }
        for command in &confirmed.released {
            let permit = self.permit(command.deadline);
            let command_id = command.command_id;
            self.send(BackendMessage::Go(Go { command_id, permit }));
        }
        for &command_id in &confirmed.cancel_requested {
            self.send(BackendMessage::CommandCancel(CommandRef { command_id }));
        }
    }

    fn on_probe_answered(&mut self, id: u64) {
        let asked = self.live.as_mut().and_then(|live| live.probes.remove(&id));
        if asked.is_some_and(|asked| asked.send(()).is_err()) {
            debug!("a probe was answered too late");
        }
    }

    /// Time left until `deadline`, counted from the last message that was processed.
    fn permit(&self, deadline: Timestamp) -> Permit {
        Permit {
            remaining_ms: millis(deadline.saturating_since(self.inbound.clock.line())),
            as_of: self.session.last_processed(),
        }
    }

    /// Hands a message to the session. One that it does not take ends it: the next session settles everything.
    fn send(&mut self, message: BackendMessage) -> bool {
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
    fn fail(&mut self, error: &StoreError) {
        match error {
            StoreError::Fenced => self.fenced = true,
            StoreError::Conflict { .. }
            | StoreError::Missing { .. }
            | StoreError::QueueFull { .. }
            | StoreError::Unavailable(_)
            | StoreError::Full(_)
            | StoreError::Inconsistent { .. } => {
                warn!(gateway = %self.peer.name, agent_id = %self.peer.identity.agent_id, %error, "a session ends because of the store");
                self.refuse(Refuse {
                    code: CloseCode::Internal,
                    reason: "the backend's store failed".to_owned(),
                    retry_after_ms: None,
                });
            }
        }
    }

    /// Ends a session that a write found to be fenced, and says by what: a later session, or an operator.
    async fn settle_fence(&mut self) {
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
        self.refuse(if revoked {
            Refuse {
                code: CloseCode::Revoked,
                reason: "the gateway was revoked".to_owned(),
                retry_after_ms: None,
            }
        } else {
            Refuse {
                code: CloseCode::Superseded,
                reason: "the session is no longer the current one".to_owned(),
                retry_after_ms: None,
            }
        });
    }

    fn now(&self) -> Monotonic {
        self.inbound.clock.now()
    }

    async fn finish(mut self: Box<Self>, closed: Closed) {
        let metrics = &self.inbound.metrics;
        metrics.connections.dec();
        if self.opening.is_some() {
            metrics.openings.dec();
        }
        if let Some(code) = closed.code {
            metrics.closed(code);
        }
        let agent_id = self.peer.identity.agent_id;
        let (address, code, reason) = (self.address, closed.name(), &closed.reason);
        // The one line about it. Whoever never got a session is somebody to look at, unless the line was cut.
        if self.live.is_some() || closed.code == Some(CloseCode::HeartbeatTimeout) {
            info!(gateway = %self.peer.name, %agent_id, %address, code, reason, "session ended");
        } else if let Some(left_out) = self.inbound.manager.may_log(agent_id, self.now()) {
            warn!(gateway = %self.peer.name, %agent_id, %address, code, reason, left_out, "refused a session");
        }
        let now = self.now();
        let code = FrameCode::from(closed.number());
        let reason = format!("{}: {}", closed.name(), closed.reason);
        let farewell = self.socket.close(&mut self.session, code, &reason, now);
        farewell.await;
        let Some(live) = self.live else { return };
        self.inbound.manager.remove(agent_id, self.session_id);
        let code = closed.code.unwrap_or(CloseCode::Draining);
        let tenant = &self.peer.identity.tenant;
        let now = self.inbound.clock.line();
        let ended = self
            .inbound
            .store
            .end_session(tenant, agent_id, live.holder.epoch, code, now);
        if let Err(error) = ended.await {
            warn!(gateway = %self.peer.name, %agent_id, %error, "failed to record the end of a session; the next one settles it");
        }
    }
}

/// What became of the catalogue that is being judged; none when it took too long.
async fn next_judged(judging: &mut Option<Judging>) -> Option<Judged> {
    match judging {
        Some(judging) => (&mut judging.verdict).await.ok(),
        None => std::future::pending().await,
    }
}

async fn next_ending(ending: &mut tokio::sync::watch::Receiver<Option<Ending>>) -> Ending {
    let superseded = || Ending {
        code: CloseCode::Superseded,
        reason: "the session was removed",
    };
    match ending.wait_for(Option::is_some).await {
        Ok(ending) => ending.clone().unwrap_or_else(superseded),
        Err(_gone) => superseded(),
    }
}

fn superseded() -> Refuse {
    Refuse {
        code: CloseCode::Superseded,
        reason: "another session of this gateway came in between".to_owned(),
        retry_after_ms: None,
    }
}

fn draining() -> Refuse {
    Refuse {
        code: CloseCode::Draining,
        reason: "the backend is stopping".to_owned(),
        retry_after_ms: None,
    }
}

fn lost() -> Closed {
    Closed {
        code: Some(CloseCode::HeartbeatTimeout),
        reason: "the connection was lost".to_owned(),
        by: End::Agent,
    }
}
