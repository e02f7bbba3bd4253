//! One session over one connection: one loop, one order, as the product's.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use viworks_common::admission::HelloFacts;
use viworks_common::code::CloseCode;
use viworks_common::command::{Arguments, digest, format_digest};
use viworks_common::id::{AgentId, CommandId, SessionId};
use viworks_common::key::Secret;
use viworks_common::ledger::lease::Place;
use viworks_common::limits::{CHALLENGE_AGE_MAX, HANDSHAKE_STEP_TIMEOUT};
use viworks_common::rules::{Rule, Rulebook};
use viworks_common::session::state::BackendState;
use viworks_common::session::{BackendEvent, BackendSession, BackendSessionConfig, End};
use viworks_common::telemetry::Batch;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{
    BackendMessage, Command, CommandRef, Drain, Go, HeartbeatAck, Hello, Permit, Refuse, ResultAck,
    TelemetryAck,
};

use super::super::core::{BackendStep, Core};
use super::super::gateway::binding;
use super::super::network::ConnectionId;
use super::super::store_model::{AdmitRequest, Admitted, ConfirmRequest, Holder, Leased, Store};
use super::intent::Intent;
use super::{Backend, Instance};

/// What a session is asked to do from outside.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// Find out whether the gateway is alive, for a newcomer on another connection.
    Probe(ConnectionId),
    /// Let the gateway reconnect at once.
    Drain,
    /// Ask the gateway to end a command.
    Cancel(CommandId),
    /// Close: a newer session was confirmed.
    End,
}

/// A connection from its upgrade to its end.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) agent: AgentId,
    /// The gateway's confirmed epoch when it was recognised.
    confirmed_before: u64,
    pub(super) session: BackendSession,
    held: VecDeque<Vec<u8>>,
    lost: bool,
    over: bool,
    /// The store was asked, or a probe is out: the loop looks at nothing else meanwhile.
    pub(super) waiting: bool,
    pub(super) arrival: Option<Arrival>,
    pub(super) welcomed: Option<ConfirmRequest>,
    pub(super) live: Option<Live>,
    orders: VecDeque<Order>,
    offered: VecDeque<Leased>,
    pub(super) nudged: bool,
    woken_at: Option<Monotonic>,
}

/// A HELLO that is being decided about.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) request: AdmitRequest,
    pub(super) admitted: Option<Admitted>,
}

/// What a confirmed session has.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) holder: Holder,
    pub(super) open: BTreeSet<CommandId>,
    /// Room for commands that are being submitted.
    kept: usize,
    /// Sent with their permit.
    permitted: BTreeSet<CommandId>,
    /// Cancelled before they were sent.
    early: BTreeSet<CommandId>,
    pub(super) more: bool,
    pub(super) draining: bool,
    batches: VecDeque<Batch>,
    pub(super) committing: bool,
    pub(super) probes: Vec<ConnectionId>,
}

impl Live {
    pub(super) const fn new(holder: Holder, open: BTreeSet<CommandId>) -> Self {
        Self {
            holder,
            open,
            kept: 0,
            permitted: BTreeSet::new(),
            early: BTreeSet::new(),
            more: false,
            draining: false,
            batches: VecDeque::new(),
            committing: false,
            probes: Vec::new(),
        }
    }
}

impl Connection {
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    /// Whether it waits for what a probe brings.
    pub(super) fn is_undecided(&self) -> bool {
        let admitted = self
            .arrival
            .as_ref()
            .is_some_and(|it| it.admitted.is_some());
        admitted && !self.over
    }

    pub(super) fn hold(&mut self, bytes: Vec<u8>) {
        self.held.push_back(bytes);
    }

    pub(super) const fn lose(&mut self) {
        self.lost = true;
    }

    pub(super) const fn nudge(&mut self) {
        self.nudged = true;
    }

    pub(super) fn order(&mut self, order: Order) {
        self.orders.push_back(order);
    }

    /// Keeps room for a command that is being submitted.
    pub(super) fn keep(&mut self, credit: usize) -> Option<Place> {
        if self.over {
            return None;
        }
        let live = self.live.as_mut()?;
        if live.draining || live.open.len() + live.kept >= credit {
            return None;
        }
        live.kept += 1;
        Some(Place {
            epoch: live.holder.epoch,
            run: live.holder.run,
        })
    }

    pub(super) fn give_back(&mut self) {
        if let Some(live) = &mut self.live {
            live.kept = live.kept.saturating_sub(1);
            self.nudged |= live.more;
        }
    }

    /// Puts a command there that was offered at its birth.
    pub(super) fn put(&mut self, offer: Leased) {
        if let Some(live) = &mut self.live {
            live.kept = live.kept.saturating_sub(1);
            live.open.insert(offer.id);
            self.offered.push_back(offer);
        }
    }

    fn cancel(&mut self, command_id: CommandId, now: Monotonic) {
        if let Some(live) = &mut self.live
            && !live.open.contains(&command_id)
            && live.kept > 0
        {
            live.early.insert(command_id);
        }
        let cancel = CommandRef { command_id };
        self.send(BackendMessage::CommandCancel(cancel), now);
    }

    /// Sends what others put there; a cancel that came before it follows it.
    fn offer_put(&mut self, core: &mut Core) {
        while let Some(offer) = self.offered.pop_front() {
            let id = offer.id;
            self.offer(offer, core);
            let early = |live: &mut Live| live.early.remove(&id);
            if self.live.as_mut().is_some_and(early) {
                self.cancel(id, core.now);
            }
        }
    }

    /// Hands a message to the session. One that it does not take ends it: the next session settles everything.
    pub(super) fn send(&mut self, message: BackendMessage, now: Monotonic) {
        if self.session.send(message, now).is_err() && self.session.closed().is_none() {
            let reason = "the backend could not queue a message";
            self.session.close(CloseCode::Internal, reason, now);
        }
    }

    /// Time left until `deadline`, counted from the last message that was processed.
    fn permit(&self, command: CommandId, deadline: Timestamp, core: &mut Core) -> Permit {
        let remaining = deadline.saturating_since(core.backend_now());
        let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        if let Some(live) = &self.live {
            let until = core.now.saturating_add(remaining);
            core.recorder.permitted(command, live.holder.run, until);
        }
        Permit {
            remaining_ms,
            as_of: self.session.last_processed(),
        }
    }

    pub(super) fn go(&mut self, command_id: CommandId, deadline: Timestamp, core: &mut Core) {
        let permit = self.permit(command_id, deadline, core);
        self.send(BackendMessage::Go(Go { command_id, permit }), core.now);
    }

    pub(super) fn offer(&mut self, leased: Leased, core: &mut Core) {
        let deadline = self.permit(leased.id, leased.deadline, core);
        if let Some(live) = &mut self.live {
            live.open.insert(leased.id);
            if leased.permitted {
                live.permitted.insert(leased.id);
            }
        }
        let arguments = Arguments::new();
        let command = Command {
            command_id: leased.id,
            order: leased.order,
            digest: format_digest(&digest(&leased.name, &arguments)),
            name: leased.name,
            arguments,
            attempt: leased.attempt,
            traceparent: None,
            deadline,
            permitted: leased.permitted,
            timeout_ms: leased.timeout_ms,
        };
        self.send(BackendMessage::Command(command), core.now);
    }

    pub(super) fn close_offer(&mut self, command: CommandId) {
        if let Some(live) = &mut self.live {
            live.open.remove(&command);
            live.permitted.remove(&command);
            self.nudged |= live.more;
        }
    }
}

impl Instance {
    pub(super) fn accept(&mut self, wire: ConnectionId, store: &Store, core: &mut Core) {
        let Some(known) = core.network.wire(wire) else {
            return;
        };
        let agent = known.agent_id;
        let config = BackendSessionConfig {
            identity: Backend::identity(agent),
            master: Arc::clone(&self.master),
            binding: binding(wire),
            session_id: SessionId::from_uuid(core.random.uuid()),
            server_nonce: core.random.bytes(),
            server_time: core.backend_wall(),
            hello_timeout: HANDSHAKE_STEP_TIMEOUT,
            certificate_remaining: None,
        };
        let connection = Connection {
            agent,
            confirmed_before: store.confirmed(agent),
            session: BackendSession::new(config, core.now),
            held: VecDeque::new(),
            lost: false,
            over: false,
            waiting: false,
            arrival: None,
            welcomed: None,
            live: None,
            orders: VecDeque::new(),
            offered: VecDeque::new(),
            nudged: false,
            woken_at: None,
        };
        self.connections.insert(wire, connection);
        self.turn(wire, core);
    }

    /// Turns of the connection's loop, until it waits for something.
    pub(super) fn turn(&mut self, wire: ConnectionId, core: &mut Core) {
        loop {
            let now = core.now;
            let Some(connection) = self.connections.get_mut(&wire) else {
                return;
            };
            if connection.over || connection.waiting {
                return;
            }
            if let Some(event) = connection.session.poll_event() {
                self.on_event(wire, event, core);
                continue;
            }
            while let Some(bytes) = connection.session.poll_transmit(now) {
                core.send(wire, End::Backend, bytes);
            }
            if connection.session.closed().is_some() {
                return self.finish(wire, core);
            }
            if let Some(order) = connection.orders.pop_front() {
                self.obey(wire, order, core);
            } else if let Some(bytes) = connection.held.pop_front() {
                self.take(wire, &bytes, core);
            } else if connection.lost {
                return self.finish(wire, core);
            } else if connection
                .session
                .poll_timeout()
                .is_some_and(|(due, _)| due <= now)
            {
                connection.session.handle_timeout(now);
            } else if !connection.offered.is_empty() {
                connection.offer_put(core);
            } else if connection.nudged && connection.live.is_some() {
                connection.nudged = false;
                self.offer_commands(wire, core);
            } else {
                self.hand_in(wire, core);
                return self.arm(wire, core);
            }
        }
    }

    fn take(&mut self, wire: ConnectionId, bytes: &[u8], core: &mut Core) {
        let now = core.now;
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        if connection.session.state() == BackendState::AwaitHello
            && BackendSession::peek_client_nonce(bytes).is_some_and(|it| self.nonces.contains(&it))
        {
            core.recorder.counts.replays += 1;
            let reason = "this HELLO was used before";
            return connection.session.close(CloseCode::Replay, reason, now);
        }
        connection.session.handle_frame(bytes, now);
        let refused = connection
            .session
            .closed()
            .is_some_and(|closed| closed.code.is_some());
        if refused {
            core.recorder.counts.replays += 1;
        } else {
            core.recorder.accepted(wire, End::Backend, bytes);
        }
    }

    fn arm(&mut self, wire: ConnectionId, core: &mut Core) {
        let event = self.event(BackendStep::Timer(wire));
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let Some((due, _)) = connection.session.poll_timeout() else {
            return;
        };
        if connection
            .woken_at
            .is_none_or(|at| at > due || at <= core.now)
        {
            connection.woken_at = Some(due);
            core.at(due, event);
        }
    }

    fn finish(&mut self, wire: ConnectionId, core: &mut Core) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        connection.over = true;
        let closed = connection.session.closed().cloned();
        core.note(|| format!("backend ends {wire:?}: {closed:?}"));
        core.hang_up(wire, End::Backend);
        let agent = connection.agent;
        let holder = connection.live.as_ref().map(|live| live.holder);
        if let Some(holder) = holder {
            self.remove(agent, wire);
            self.ask(wire, Intent::End(holder), core);
        } else {
            self.connections.remove(&wire);
        }
    }

    fn obey(&mut self, wire: ConnectionId, order: Order, core: &Core) {
        let now = core.now;
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        match order {
            Order::Probe(newcomer) => {
                if let Some(live) = &mut connection.live {
                    live.probes.push(newcomer);
                    connection.session.probe(newcomer.0, now);
                }
            }
            Order::Drain => {
                if let Some(live) = &mut connection.live {
                    live.draining = true;
                }
                let drain = Drain {
                    reconnect_after_ms: 0,
                };
                connection.send(BackendMessage::Drain(drain), now);
            }
            Order::Cancel(command_id) => connection.cancel(command_id, now),
            Order::End => {
                let reason = "a newer session of this gateway was confirmed";
                connection.session.close(CloseCode::Superseded, reason, now);
            }
        }
    }

    fn offer_commands(&mut self, wire: ConnectionId, core: &mut Core) {
        let credit = usize::try_from(core.scenario.command_credit).unwrap_or(usize::MAX);
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let Some(live) = &mut connection.live else {
            return;
        };
        let room = credit.saturating_sub(live.open.len() + live.kept);
        if live.draining || room == 0 {
            live.more = true;
            return;
        }
        let holder = live.holder;
        connection.waiting = true;
        self.ask(wire, Intent::Lease(holder, room), core);
    }

    /// One batch of a session is under way at a time, beside everything else.
    fn hand_in(&mut self, wire: ConnectionId, core: &mut Core) {
        let connection = self.connections.get_mut(&wire);
        let Some(live) = connection.and_then(|it| it.live.as_mut()) else {
            return;
        };
        if live.committing {
            return;
        }
        if let Some(batch) = live.batches.pop_front() {
            live.committing = true;
            let holder = live.holder;
            self.ask(wire, Intent::Telemetry(holder, Box::new(batch)), core);
        }
    }

    fn on_event(&mut self, wire: ConnectionId, event: BackendEvent, core: &mut Core) {
        let now = core.now;
        core.note(|| format!("{wire:?} -> {event:?}"));
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let holder = connection.live.as_ref().map(|live| live.holder);
        let intent = match (event, holder) {
            (
                BackendEvent::Hello {
                    hello,
                    client_nonce,
                    challenge_age,
                    key_generation,
                },
                None,
            ) => {
                let fresh = challenge_age <= CHALLENGE_AGE_MAX && self.nonces.insert(client_nonce);
                return self.on_hello(wire, &hello, u32::from(key_generation), fresh, core);
            }
            (BackendEvent::Confirmed { .. }, None) => {
                let Some(request) = connection.welcomed.clone() else {
                    return;
                };
                Intent::Confirm(Box::new(request))
            }
            (BackendEvent::Heartbeat(heartbeat), Some(_)) => {
                let ack = HeartbeatAck {
                    sent_at_ms: heartbeat.sent_at_ms,
                    server_time: core.backend_wall(),
                    output_bytes: 0,
                };
                return connection.send(BackendMessage::HeartbeatAck(ack), now);
            }
            (BackendEvent::ProbeAnswered { id }, Some(_)) => {
                return self.probe_answered(wire, id, core);
            }
            (BackendEvent::Telemetry(batch), Some(_)) => {
                let batch = batch.open().ok().and_then(|it| Batch::try_from(it).ok());
                return self.on_batch(wire, batch, core);
            }
            (BackendEvent::Accepted(it), Some(holder)) => {
                let live = connection.live.as_ref();
                let known = live.is_some_and(|live| live.permitted.contains(&it.command_id));
                if known && it.idempotent && !it.awaiting_permit {
                    return;
                }
                Intent::Accept(holder, it.command_id, it.idempotent, it.awaiting_permit)
            }
            (BackendEvent::Rejected(it), Some(holder)) => {
                Intent::Reject(holder, it.command_id, it.code)
            }
            (BackendEvent::Started(it), Some(holder)) => Intent::Start(holder, it.command_id),
            (BackendEvent::Result(it), Some(holder)) => {
                if !core.rules.keeps(Rule::AckAfterCommit) {
                    let ack = ResultAck {
                        command_id: it.command_id,
                        low_water: 0,
                        not_kept: false,
                    };
                    connection.send(BackendMessage::ResultAck(ack), now);
                }
                Intent::Complete(holder, it.command_id, Box::new(it.outcome))
            }
            _ => return,
        };
        connection.waiting = true;
        self.ask(wire, intent, core);
    }

    fn on_batch(&mut self, wire: ConnectionId, batch: Option<Batch>, core: &mut Core) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let Some(batch) = batch else {
            core.recorder
                .violated(|| "5: a gateway sent a malformed batch".to_owned());
            return;
        };
        if !core.rules.keeps(Rule::AckAfterCommit) {
            let position = viworks_common::telemetry::Position {
                spool_epoch: batch.spool_epoch,
                seq: batch.to_seq,
            };
            let ack = TelemetryAck::of(position);
            connection.send(BackendMessage::TelemetryAck(ack), core.now);
        }
        if let Some(live) = &mut connection.live {
            live.batches.push_back(batch);
        }
    }

    fn on_hello(
        &mut self,
        wire: ConnectionId,
        hello: &Hello,
        key_generation: u32,
        fresh: bool,
        core: &mut Core,
    ) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        if !fresh {
            let refuse = refusal(
                CloseCode::Replay,
                "this HELLO was used before, or is too old",
            );
            return connection.session.refuse(refuse, core.now);
        }
        let (agent, run) = (connection.agent, hello.agent_run_id);
        let favours_another = self.claims.favours_another(agent, run, core.now).is_some();
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        if favours_another {
            let reason = "another machine with this identity is about to reconnect";
            let refuse = refusal(CloseCode::RateLimited, reason);
            return connection.session.refuse(refuse, core.now);
        }
        let identity = Backend::identity(connection.agent);
        let expected = self.master.token(&identity, hello.epoch);
        let request = AdmitRequest {
            agent: connection.agent,
            facts: HelloFacts {
                epoch: hello.epoch,
                token_valid: Secret::from_hex(&hello.token).is_some_and(|it| it == expected),
                agent_run_id: hello.agent_run_id,
                key_generation,
                highest_order: hello.highest_order,
                low_water: hello.low_water,
                confirmed_at_challenge: connection.confirmed_before,
            },
            unreported: hello.unreported.clone(),
            telemetry: hello.telemetry.clone(),
        };
        connection.arrival = Some(Arrival {
            request: request.clone(),
            admitted: None,
        });
        connection.waiting = true;
        self.ask(wire, Intent::Admit(Box::new(request)), core);
    }
}

pub(super) fn refusal(code: CloseCode, reason: &str) -> Refuse {
    Refuse {
        code,
        reason: reason.to_owned(),
        retry_after_ms: None,
    }
}
