//! One session over one connection: one loop, one order, as the product's.

use std::collections::{BTreeSet, VecDeque};

use viworks_common::code::CloseCode;
use viworks_common::command::{Arguments, CommandState, digest, format_digest};
use viworks_common::id::{AgentId, CommandId};
use viworks_common::ledger::lease::Place;
use viworks_common::ledger::permit::{Accepted, Permit as Decision};
use viworks_common::limits::CHALLENGE_AGE_MAX;
use viworks_common::room::Room;
use viworks_common::rules::{Rule, Rulebook};
use viworks_common::session::state::BackendState;
use viworks_common::session::{BackendEvent, BackendSession, End};
use viworks_common::telemetry::{Batch, Position};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{
    BackendMessage, Command as Offer, CommandRef, Drain, Go, HeartbeatAck, Permit, Refuse,
    ResultAck, TelemetryAck,
};

use super::super::core::{BackendStep, Core, Owner};
use super::super::network::ConnectionId;
use super::super::store_model::{Command, ConfirmRequest, Fenced, Holder};
use super::opening::Arrival;
use super::{Instance, Tx};

/// How soon a second holder asks again while an operator may decide for it.
const FORK_RETRY_MS: u64 = 60_000;

/// What a session is asked to do from outside.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// Find out whether the gateway is alive, for a newcomer on another connection.
    Probe(ConnectionId),
    /// Let the gateway reconnect at once.
    Drain,
    /// Tell it the agent key of a later generation.
    Rekey(u32),
    /// Close: a newer session was confirmed.
    End,
}

/// A connection from its upgrade to its end.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) wire: ConnectionId,
    pub(super) agent: AgentId,
    /// The gateway's confirmed epoch when it was recognised.
    pub(super) confirmed_before: u64,
    pub(super) session: BackendSession,
    /// The generation of the agent key that HELLO was made with, and the latest one that was told.
    pub(super) key_in_use: u32,
    key_told: Option<u32>,
    pub(super) held: VecDeque<Vec<u8>>,
    pub(super) lost: bool,
    pub(super) over: bool,
    /// The store was asked, or a probe is out: the loop looks at nothing else meanwhile.
    pub(super) waiting: bool,
    pub(super) arrival: Option<Arrival>,
    /// Who probes the session that it may take over from.
    pub(super) probing: Option<Owner>,
    pub(super) welcomed: Option<ConfirmRequest>,
    /// The epoch that the store may have confirmed.
    pub(super) unsettled: Option<u64>,
    pub(super) live: Option<Live>,
    pub(super) orders: VecDeque<Order>,
    offered: VecDeque<Command>,
    cancelled: BTreeSet<CommandId>,
    nudged: bool,
    woken_at: Option<Monotonic>,
}

/// What a confirmed session has.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) holder: Holder,
    room: Room,
    /// Sent with their permit.
    permitted: BTreeSet<CommandId>,
    pub(super) draining: bool,
    batches: VecDeque<Batch>,
    committing: bool,
}

impl Live {
    pub(super) const fn new(holder: Holder, room: Room) -> Self {
        Self {
            holder,
            room,
            permitted: BTreeSet::new(),
            draining: false,
            batches: VecDeque::new(),
            committing: false,
        }
    }
}

impl Connection {
    pub(super) const fn new(
        wire: ConnectionId,
        agent: AgentId,
        confirmed_before: u64,
        session: BackendSession,
    ) -> Self {
        Self {
            wire,
            agent,
            confirmed_before,
            session,
            key_in_use: 0,
            key_told: None,
            held: VecDeque::new(),
            lost: false,
            over: false,
            waiting: false,
            arrival: None,
            probing: None,
            welcomed: None,
            unsettled: None,
            live: None,
            orders: VecDeque::new(),
            offered: VecDeque::new(),
            cancelled: BTreeSet::new(),
            nudged: false,
            woken_at: None,
        }
    }

    /// Whether it waits for what a probe brings.
    pub(super) const fn is_undecided(&self) -> bool {
        self.arrival.is_some() && !self.over
    }

    pub(super) fn nudge(&mut self) {
        self.nudged = true;
    }

    pub(super) fn refuse(&mut self, code: CloseCode, reason: &str, core: &Core) {
        // Whoever may be kept is not to wait for long after that.
        let is_judged = code == CloseCode::IdentityFork && core.scenario.decisions.resolves;
        let refuse = Refuse {
            code,
            reason: reason.to_owned(),
            retry_after_ms: is_judged.then_some(FORK_RETRY_MS),
        };
        self.session.refuse(refuse, core.now);
    }

    /// What the store answers; without an answer, the session ends. What is over hears nothing any more.
    pub(super) fn unfenced<T>(&mut self, answer: Result<T, Fenced>, now: Monotonic) -> Option<T> {
        if !self.over && answer.is_err() {
            let reason = "the session is no longer the current one";
            self.session.close(CloseCode::Superseded, reason, now);
        }
        answer.ok().filter(|_| !self.over)
    }

    /// Keeps room for a command that is being submitted.
    pub(super) fn keep(&mut self) -> Option<Place> {
        let live = self.live.as_mut().filter(|_| !self.over)?;
        live.room.keep().then_some(Place {
            epoch: live.holder.epoch,
            run: live.holder.run,
        })
    }

    pub(super) fn give_back(&mut self) {
        if let Some(live) = &mut self.live {
            self.nudged |= live.room.give_back(1);
        }
    }

    /// Puts a command there that was offered at its birth.
    pub(super) fn put(&mut self, offer: Command) {
        if let Some(live) = &mut self.live {
            live.room.put(offer.facts.command_id);
            self.offered.push_back(offer);
        }
    }

    /// Asks the gateway for the end of a command, in the next turn.
    pub(super) fn cancel(&mut self, command_id: CommandId) {
        self.cancelled.insert(command_id);
    }

    /// Sends what others put there; a cancel that came before it follows it.
    fn on_shelf(&mut self, core: &mut Core) {
        let offered = std::mem::take(&mut self.offered);
        let cancelled = std::mem::take(&mut self.cancelled);
        let Some(live) = &mut self.live else { return };
        let sent = offered.iter().map(|command| command.facts.command_id);
        let cancelled = live.room.follow(sent, cancelled);
        for command in offered {
            self.offer(command, core);
        }
        for command_id in cancelled {
            let cancel = CommandRef { command_id };
            self.send(BackendMessage::CommandCancel(cancel), core.now);
        }
    }

    /// Hands a message to the session. One that it does not take ends it: the next session settles everything.
    pub(super) fn send(&mut self, message: BackendMessage, now: Monotonic) {
        if self.session.send(message, now).is_err() && self.session.closed().is_none() {
            let reason = "the backend could not queue a message";
            self.session.close(CloseCode::Internal, reason, now);
        }
    }

    /// Tells the gateway the agent key of a later generation, once.
    pub(super) fn tell_key(&mut self, wanted: u32, now: Monotonic) {
        let is_later = wanted > self.key_in_use && self.key_told.is_none_or(|told| wanted > told);
        let generation = u8::try_from(wanted).ok().filter(|_| is_later);
        let update = generation.and_then(|generation| self.session.key_update(generation));
        if let Some(update) = update {
            self.key_told = Some(wanted);
            self.send(BackendMessage::KeyUpdate(update), now);
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

    fn offer(&mut self, command: Command, core: &mut Core) {
        let facts = command.facts;
        let (command_id, permitted) = (facts.command_id, facts.state == CommandState::Released);
        let deadline = self.permit(command_id, facts.deadline, core);
        if let Some(live) = &mut self.live {
            live.permitted.extend(permitted.then_some(command_id));
        }
        let arguments = Arguments::new();
        let offer = Offer {
            command_id,
            order: command.order,
            digest: format_digest(&digest(&command.name, &arguments)),
            name: command.name,
            arguments,
            attempt: facts.attempt,
            traceparent: None,
            deadline,
            permitted,
            timeout_ms: command.timeout_ms,
        };
        self.send(BackendMessage::Command(offer), core.now);
    }

    fn close_offer(&mut self, command: CommandId) {
        if let Some(live) = &mut self.live {
            live.permitted.remove(&command);
            self.nudged |= live.room.over(command);
        }
    }

    fn decided(&mut self, command_id: CommandId, permit: Decision, core: &mut Core) {
        let command = CommandRef { command_id };
        match permit {
            Decision::Go(deadline) => self.go(command_id, deadline, core),
            Decision::Drop => {
                self.close_offer(command_id);
                self.send(BackendMessage::CommandDrop(command), core.now);
            }
            Decision::Cancel => self.send(BackendMessage::CommandCancel(command), core.now),
            Decision::Wait => {}
        }
    }

    fn acknowledge(&mut self, command_id: CommandId, low_water: u64, core: &Core) {
        let ack = ResultAck {
            command_id,
            low_water,
            not_kept: false,
        };
        self.send(BackendMessage::ResultAck(ack), core.now);
    }

    fn acknowledge_telemetry(&mut self, position: Position, core: &Core) {
        let ack = TelemetryAck::of(position);
        self.send(BackendMessage::TelemetryAck(ack), core.now);
    }
}

impl Instance {
    /// Turns of the connection's loop, until it waits for something.
    pub(super) fn turn(&mut self, wire: ConnectionId, core: &mut Core) {
        self.with(wire, |instance, connection| {
            let is_awake = |it: &Connection| !it.over && !it.waiting;
            while is_awake(connection) && instance.go_on(connection, core) {}
        });
    }

    /// One turn. False when there was nothing to do.
    fn go_on(&mut self, connection: &mut Connection, core: &mut Core) -> bool {
        let now = core.now;
        if let Some(event) = connection.session.poll_event() {
            self.on_event(connection, event, core);
            return true;
        }
        while let Some(bytes) = connection.session.poll_transmit(now) {
            core.send(connection.wire, End::Backend, bytes);
        }
        let due = connection.session.poll_timeout().map(|(due, _)| due);
        if connection.session.closed().is_some() {
            self.finish(connection, core);
        } else if let Some(order) = connection.orders.pop_front() {
            obey(connection, order, now);
        } else if let Some(bytes) = connection.held.pop_front() {
            self.take(connection, &bytes, core);
        } else if connection.lost {
            self.finish(connection, core);
        } else if due.is_some_and(|due| due <= now) {
            connection.session.handle_timeout(now);
        } else if !connection.offered.is_empty() || !connection.cancelled.is_empty() {
            connection.on_shelf(core);
        } else if connection.nudged && connection.live.is_some() {
            connection.nudged = false;
            self.offer_commands(connection, core);
        } else {
            self.hand_in(connection, core);
            let woken_at = connection.woken_at.filter(|at| *at > now);
            if let Some(due) = due.filter(|due| woken_at.is_none_or(|at| at > *due)) {
                connection.woken_at = Some(due);
                core.at(due, self.event(BackendStep::Turn(connection.wire)));
            }
            return false;
        }
        true
    }

    fn take(&self, connection: &mut Connection, bytes: &[u8], core: &mut Core) {
        let session = &mut connection.session;
        if session.state() == BackendState::AwaitHello
            && BackendSession::peek_client_nonce(bytes).is_some_and(|it| self.nonces.contains(&it))
        {
            core.recorder.counts.replays += 1;
            let reason = "this HELLO was used before";
            return session.close(CloseCode::Replay, reason, core.now);
        }
        session.handle_frame(bytes, core.now);
        if session.closed().is_some_and(|closed| closed.code.is_some()) {
            core.recorder.counts.replays += 1;
        } else {
            core.recorder.accepted(connection.wire, End::Backend, bytes);
        }
    }

    fn finish(&mut self, connection: &mut Connection, core: &mut Core) {
        let wire = connection.wire;
        connection.over = true;
        let closed = connection.session.closed();
        core.note(|| format!("backend ends {wire:?}: {closed:?}"));
        core.hang_up(wire, End::Backend);
        let live = connection.live.as_ref().map(|live| live.holder.epoch);
        if let Some(epoch) = live.or(connection.unsettled) {
            let agent = connection.agent;
            self.remove(agent, wire);
            let end = move |tx: &mut Tx<'_>| tx.end_session(agent, epoch);
            let then = |_: &mut Self, connection: &mut Connection, (), _: &mut _| {
                connection.live = None;
            };
            self.ask_beside(wire, "the end", end, then, core);
        }
    }

    fn offer_commands(&mut self, connection: &mut Connection, core: &mut Core) {
        let Some(live) = &mut connection.live else {
            return;
        };
        let (holder, places) = (live.holder, live.room.keep_all());
        if places == 0 {
            return;
        }
        let lease = move |tx: &mut Tx<'_>| tx.lease(holder, places);
        let then =
            move |_: &mut Self, connection: &mut Connection, leased: Vec<Command>, core: &mut _| {
                if let Some(Live { room, .. }) = &mut connection.live {
                    if leased.len() >= places {
                        room.want();
                    }
                    for command in &leased {
                        room.put(command.facts.command_id);
                    }
                    connection.nudged |= room.give_back(places - leased.len());
                }
                for command in leased {
                    connection.offer(command, core);
                }
            };
        self.ask(connection, "a lease", lease, then, core);
    }

    /// One batch of a session is under way at a time, beside everything else.
    fn hand_in(&mut self, connection: &mut Connection, core: &mut Core) {
        let live = connection.live.as_mut().filter(|live| !live.committing);
        let Some((live, batch)) = live.and_then(|live| {
            let batch = live.batches.pop_front()?;
            Some((live, batch))
        }) else {
            return;
        };
        live.committing = true;
        let holder = live.holder;
        let commit = move |tx: &mut Tx<'_>| tx.commit_telemetry(holder, &batch);
        let then = |_: &mut Self, connection: &mut Connection, position, core: &mut Core| {
            if let Some(live) = &mut connection.live {
                live.committing = false;
            }
            let position = connection.unfenced(position, core.now);
            if let Some(position) = position.filter(|_| core.rules.keeps(Rule::AckAfterCommit)) {
                connection.acknowledge_telemetry(position, core);
            }
        };
        self.ask_beside(connection.wire, "telemetry", commit, then, core);
    }

    fn on_event(&mut self, connection: &mut Connection, event: BackendEvent, core: &mut Core) {
        let wire = connection.wire;
        core.note(|| format!("{wire:?} -> {event:?}"));
        let holder = connection.live.as_ref().map(|live| live.holder);
        match (event, holder) {
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
                self.on_hello(connection, *hello, (fresh, key_generation), core);
            }
            (BackendEvent::Confirmed { .. }, None) => self.on_confirm(connection, core),
            (BackendEvent::Heartbeat(heartbeat), Some(_)) => {
                let ack = HeartbeatAck {
                    sent_at_ms: heartbeat.sent_at_ms,
                    server_time: core.backend_wall(),
                    output_bytes: 0,
                };
                connection.send(BackendMessage::HeartbeatAck(ack), core.now);
            }
            (BackendEvent::ProbeAnswered { id }, Some(_)) => {
                self.probe_answered(ConnectionId(id), core);
            }
            (BackendEvent::Telemetry(batch), Some(_)) => {
                let batch = batch.open().ok().and_then(|it| Batch::try_from(it).ok());
                on_batch(connection, batch, core);
            }
            (BackendEvent::Accepted(it), Some(holder)) => {
                let id = it.command_id;
                let live = connection.live.as_ref();
                let known = live.is_some_and(|live| live.permitted.contains(&id));
                if known && it.idempotent && !it.awaiting_permit {
                    return;
                }
                let said = Accepted {
                    idempotent: it.idempotent,
                    awaiting_permit: it.awaiting_permit,
                };
                let accept = move |tx: &mut Tx<'_>| tx.accept(holder, id, said);
                let then =
                    move |_: &mut Self, connection: &mut Connection, permit, core: &mut _| {
                        connection.decided(id, permit, core);
                    };
                self.ask(connection, "accepted", accept, then, core);
            }
            (BackendEvent::Rejected(it), Some(holder)) => {
                let (id, code) = (it.command_id, it.code);
                let reject = move |tx: &mut Tx<'_>| tx.reject(holder, id, code);
                let then = move |_: &mut Self, connection: &mut Connection, (), _: &mut _| {
                    connection.close_offer(id);
                };
                self.ask(connection, "rejected", reject, then, core);
            }
            (BackendEvent::Started(it), Some(holder)) => {
                let start = move |tx: &mut Tx<'_>| tx.start(holder, it.command_id);
                self.ask(connection, "started", start, |_, _, (), _| {}, core);
            }
            (BackendEvent::Result(it), Some(holder)) => {
                let id = it.command_id;
                if !core.rules.keeps(Rule::AckAfterCommit) {
                    connection.acknowledge(id, 0, core);
                }
                let complete = move |tx: &mut Tx<'_>| tx.complete(holder, id, &it.outcome);
                let then =
                    move |_: &mut Self, connection: &mut Connection, mark, core: &mut Core| {
                        connection.close_offer(id);
                        if core.rules.keeps(Rule::AckAfterCommit) {
                            connection.acknowledge(id, mark, core);
                        }
                    };
                self.ask(connection, "a result", complete, then, core);
            }
            _ => {}
        }
    }
}

fn obey(connection: &mut Connection, order: Order, now: Monotonic) {
    match order {
        Order::Probe(newcomer) => {
            if connection.live.is_some() {
                connection.session.probe(newcomer.0, now);
            }
        }
        Order::Drain => {
            if let Some(live) = &mut connection.live {
                live.draining = true;
                live.room.drain();
            }
            let drain = Drain {
                reconnect_after_ms: 0,
            };
            connection.send(BackendMessage::Drain(drain), now);
        }
        Order::Rekey(wanted) => {
            if connection.live.is_some() {
                connection.tell_key(wanted, now);
            }
        }
        Order::End => {
            let reason = "a newer session of this gateway was confirmed";
            connection.session.close(CloseCode::Superseded, reason, now);
        }
    }
}

fn on_batch(connection: &mut Connection, batch: Option<Batch>, core: &mut Core) {
    let (Some(batch), Some(live)) = (batch, &mut connection.live) else {
        let malformed = || "5: a gateway sent a malformed batch".to_owned();
        return core.recorder.violated(malformed);
    };
    let position = Position {
        spool_epoch: batch.spool_epoch,
        seq: batch.to_seq,
    };
    live.batches.push_back(batch);
    if !core.rules.keeps(Rule::AckAfterCommit) {
        connection.acknowledge_telemetry(position, core);
    }
}
