//! What a connection does with the store's answers.

use std::time::Duration;

use viworks_common::code::CloseCode;
use viworks_common::key::MasterKey;
use viworks_common::limits::{FAVOUR_TIME, PROBE_TIMEOUT};
use viworks_common::wire::message::{
    BackendMessage, CommandRef, Credits, ResultAck, TelemetryAck, Welcome,
};

use super::super::core::{BackendStep, Core};
use super::super::network::ConnectionId;
use super::super::scenario::Rule;
use super::super::store_model::{
    AcceptOutcome, Admitted, ConfirmRequest, Confirmed, Holder, Refusal,
};
use super::connection::{Connection, Live, Order, refusal};
use super::intent::{Answer, Intent};
use super::{Backend, Instance};

/// Bytes of telemetry that may be under way: a few batches.
const TELEMETRY_CREDIT: u32 = 4 * 1024;
/// How many heartbeats may be missed.
const SILENCE: u32 = 3;

impl Instance {
    pub(super) fn answered(
        &mut self,
        wire: ConnectionId,
        intent: &Intent,
        answer: Answer,
        core: &mut Core,
    ) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        if let Intent::End(_) = intent {
            self.connections.remove(&wire);
            return;
        }
        if let Intent::Telemetry(..) = intent {
            if let Some(live) = &mut connection.live {
                live.committing = false;
            }
        } else {
            connection.waiting = false;
        }
        if connection.is_over() {
            return;
        }
        match answer {
            Answer::Admitted(decision) => match *decision {
                Ok(admitted) => self.admitted(wire, admitted, core),
                Err(refused) => connection.session.refuse(words(refused), core.now),
            },
            Answer::Confirmed(Some(confirmed)) => self.confirmed(wire, confirmed, core),
            Answer::Confirmed(None) => {
                let reason = "another session of this gateway came in between";
                let refuse = refusal(CloseCode::Superseded, reason);
                connection.session.refuse(refuse, core.now);
            }
            Answer::Fenced => {
                let reason = "the session is no longer the current one";
                connection
                    .session
                    .close(CloseCode::Superseded, reason, core.now);
            }
            Answer::Done if matches!(intent, Intent::Fork(_)) => self.forked(wire, core),
            Answer::Leased(_)
            | Answer::Accepted(_)
            | Answer::Completed(_)
            | Answer::Committed(_)
            | Answer::Done => connection.told(intent, answer, core),
        }
    }

    /// Of two processes with one identity, the one that is alive keeps it.
    fn admitted(&mut self, wire: ConnectionId, admitted: Admitted, core: &mut Core) {
        let over = self.event(BackendStep::ProbeOver(wire));
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let other_is_live = admitted.live_same_run == Some(false);
        let agent = connection.agent;
        if let Some(arrival) = &mut connection.arrival {
            arrival.admitted = Some(admitted);
        }
        if !other_is_live {
            return self.welcome(wire, core);
        }
        match self.manager.get(&agent).copied() {
            Some((live, _)) if core.rules.keep(Rule::ProbeBeforeTakeOver) => {
                if let Some(connection) = self.connections.get_mut(&wire) {
                    connection.waiting = true;
                }
                self.order(live, Order::Probe(wire), core);
                core.after(PROBE_TIMEOUT, over);
            }
            Some(_) | None => self.take_over(wire, core),
        }
    }

    /// Nobody answered in time.
    pub(super) fn probe_over(&mut self, wire: ConnectionId, core: &Core) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let undecided = connection
            .arrival
            .as_ref()
            .is_some_and(|it| it.admitted.is_some());
        if connection.waiting && undecided && !connection.is_over() {
            connection.waiting = false;
            self.take_over(wire, core);
        }
    }

    /// The live session answered: the newcomer is another machine.
    pub(super) fn probe_answered(&mut self, wire: ConnectionId, id: u64, core: &mut Core) {
        let connection = self.connections.get_mut(&wire);
        let Some(live) = connection.and_then(|it| it.live.as_mut()) else {
            return;
        };
        let Some(index) = live.probes.iter().position(|newcomer| newcomer.0 == id) else {
            return;
        };
        let newcomer = live.probes.remove(index);
        let Some(connection) = self.connections.get_mut(&newcomer) else {
            return;
        };
        // Its probe may be over already.
        let arrival = connection.arrival.take_if(|it| it.admitted.is_some());
        if let Some(arrival) = arrival {
            self.ask(newcomer, Intent::Fork(Box::new(arrival.request)), core);
        }
    }

    fn forked(&mut self, wire: ConnectionId, core: &mut Core) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let reason = "another machine with this identity is connected and alive";
        let refuse = refusal(CloseCode::IdentityFork, reason);
        connection.session.refuse(refuse, core.now);
        let agent = connection.agent;
        // Its next HELLO moves the ratchet past the copy.
        if let Some((live, _)) = self.manager.get(&agent).copied() {
            let holder = self.connections.get(&live).and_then(|it| it.live.as_ref());
            if let Some(run) = holder.map(|live| live.holder.run) {
                let until = core.now.saturating_add(FAVOUR_TIME);
                self.favoured.insert(agent, (run, until));
                if !core.turmoil && core.network.is_sound(live) {
                    core.recorder.protected(agent, run);
                }
            }
            self.order(live, Order::Drain, core);
        }
    }

    fn take_over(&mut self, wire: ConnectionId, core: &Core) {
        let Some(connection) = self.connections.get(&wire) else {
            return;
        };
        let agent = connection.agent;
        if self.may_take_over(agent, core.now) {
            return self.welcome(wire, core);
        }
        if let Some(connection) = self.connections.get_mut(&wire) {
            let mut refuse = refusal(
                CloseCode::RateLimited,
                "this identity changes hands too often",
            );
            refuse.retry_after_ms = Some(60_000);
            connection.session.refuse(refuse, core.now);
        }
    }

    fn welcome(&mut self, wire: ConnectionId, core: &Core) {
        let master = std::sync::Arc::clone(&self.master);
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let Some(arrival) = connection.arrival.take() else {
            return;
        };
        let Some(admitted) = arrival.admitted else {
            return;
        };
        connection.welcomed = Some(ConfirmRequest {
            agent: connection.agent,
            presented: admitted.presented,
            issued: admitted.issued,
            run: arrival.request.facts.agent_run_id,
            unreported: arrival.request.unreported,
        });
        let welcome = terms(connection, &admitted, &master, core);
        connection.session.welcome(welcome, core.now);
    }

    fn confirmed(&mut self, wire: ConnectionId, confirmed: Confirmed, core: &mut Core) {
        let Some(request) = self
            .connections
            .get_mut(&wire)
            .and_then(|it| it.welcomed.take())
        else {
            return;
        };
        let holder = Holder {
            agent: request.agent,
            epoch: request.issued,
            run: request.run,
        };
        self.look_for_eviction(holder, core);
        let registered = self.register(holder, wire, core);
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        if !registered {
            let refuse = refusal(CloseCode::Superseded, "a newer session is there");
            return connection.session.refuse(refuse, core.now);
        }
        let open = request.unreported.iter().copied().collect();
        connection.live = Some(Live::new(holder, open));
        connection.session.established(core.now);
        for (command_id, deadline) in confirmed.released {
            connection.go(command_id, deadline, core);
        }
        for command_id in confirmed.cancel_requested {
            let cancel = CommandRef { command_id };
            connection.send(BackendMessage::CommandCancel(cancel), core.now);
        }
        connection.nudged = true;
    }

    /// Invariant 7: a live original is never evicted by a copy.
    fn look_for_eviction(&self, newcomer: Holder, core: &mut Core) {
        let Some((wire, _)) = self.manager.get(&newcomer.agent) else {
            return;
        };
        let live = self.connections.get(wire).and_then(|it| it.live.as_ref());
        let Some(live) = live else { return };
        let evicted = live.holder.run != newcomer.run && !live.draining;
        if evicted && core.network.is_sound(*wire) {
            let run = live.holder.run;
            core.recorder
                .violated(|| format!("7: {run} was alive and evicted by {}", newcomer.run));
        }
    }
}

impl Connection {
    /// What concerns nobody but this session.
    fn told(&mut self, intent: &Intent, answer: Answer, core: &mut Core) {
        let now = core.now;
        let acknowledge = core.rules.keep(Rule::AckAfterCommit);
        match (intent, answer) {
            (Intent::Lease(_, room), Answer::Leased(leased)) => {
                if let Some(live) = &mut self.live {
                    live.more = leased.len() >= *room;
                }
                for command in leased {
                    self.offer(command, core);
                }
            }
            (Intent::Accept(_, id, ..), Answer::Accepted(outcome)) => {
                let command_id = *id;
                let command = CommandRef { command_id };
                match outcome {
                    AcceptOutcome::Go(deadline) => self.go(command_id, deadline, core),
                    AcceptOutcome::Drop => {
                        self.close_offer(command_id);
                        self.send(BackendMessage::CommandDrop(command), now);
                    }
                    AcceptOutcome::Cancel => {
                        self.send(BackendMessage::CommandCancel(command), now);
                    }
                    AcceptOutcome::Wait => {}
                }
            }
            (Intent::Reject(_, id, _), _) => self.close_offer(*id),
            (Intent::Complete(_, id, _), Answer::Completed(low_water)) => {
                let command_id = *id;
                self.close_offer(command_id);
                let ack = ResultAck {
                    command_id,
                    low_water,
                    not_kept: false,
                };
                if acknowledge {
                    self.send(BackendMessage::ResultAck(ack), now);
                }
            }
            (Intent::Telemetry(..), Answer::Committed(position)) if acknowledge => {
                self.send(
                    BackendMessage::TelemetryAck(TelemetryAck::of(position)),
                    now,
                );
            }
            _ => {}
        }
    }
}

fn terms(connection: &Connection, admitted: &Admitted, master: &MasterKey, core: &Core) -> Welcome {
    let heartbeat = core.scenario.heartbeat;
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let token = master.token(&Backend::identity(connection.agent), admitted.issued);
    Welcome {
        epoch: admitted.issued,
        token: token.expose_hex(),
        heartbeat_interval_ms: millis(heartbeat),
        silence_ms: millis(heartbeat * SILENCE),
        credits: Credits {
            commands: core.scenario.command_credit,
            telemetry_bytes: TELEMETRY_CREDIT,
            output_bytes: 0,
        },
        low_water: admitted.low_water,
        committed: admitted.committed.clone(),
        catalogue_known: true,
        pins: None,
        server_time: core.backend_wall(),
        reconnect_slot_ms: 1_000,
    }
}

fn words(refused: Refusal) -> viworks_common::wire::message::Refuse {
    match refused {
        Refusal::Late => refusal(
            CloseCode::Superseded,
            "a newer session of this process exists",
        ),
        Refusal::Fork => refusal(
            CloseCode::IdentityFork,
            "another machine with this identity has moved on",
        ),
        Refusal::BadToken => refusal(CloseCode::BadEnvelope, "HELLO was not accepted"),
        Refusal::Revoked => refusal(CloseCode::Revoked, "this gateway was revoked"),
        Refusal::StaleKey => refusal(CloseCode::CertUntrusted, "this agent key was superseded"),
    }
}
