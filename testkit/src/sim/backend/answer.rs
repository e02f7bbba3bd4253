//! What a connection does with the store's answers.

use std::time::Duration;

use viworks_common::claims::{Newcomer, Probed, Verdict};
use viworks_common::code::CloseCode;
use viworks_common::key::MasterKey;
use viworks_common::ledger::permit::Permit;
use viworks_common::ledger::session::Older;
use viworks_common::limits::PROBE_TIMEOUT;
use viworks_common::rules::{Rule, Rulebook};
use viworks_common::wire::message::{
    BackendMessage, CommandRef, Credits, ResultAck, TelemetryAck, Welcome,
};

use super::super::core::{BackendStep, Core};
use super::super::network::ConnectionId;
use super::super::store_model::{Admitted, ConfirmRequest, Holder, Refusal};
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
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let newcomer = self.claims.on_newcomer(admitted.live_same_run);
        let agent = connection.agent;
        if let Some(arrival) = &mut connection.arrival {
            arrival.admitted = Some(admitted);
        }
        if newcomer == Newcomer::Welcome {
            return self.welcome(wire, core);
        }
        let Some((live, _)) = self.manager.get(&agent).copied() else {
            return self.probed(wire, Probed::Silent, core);
        };
        if let Some(connection) = self.connections.get_mut(&wire) {
            connection.waiting = true;
        }
        self.order(live, Order::Probe(wire), core);
        core.after(PROBE_TIMEOUT, self.event(BackendStep::ProbeOver(wire)));
    }

    /// Nobody answered in time.
    pub(super) fn probe_over(&mut self, wire: ConnectionId, core: &mut Core) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        if connection.waiting && connection.is_undecided() {
            connection.waiting = false;
            self.probed(wire, Probed::Silent, core);
        }
    }

    /// The live session answered.
    pub(super) fn probe_answered(&mut self, wire: ConnectionId, id: u64, core: &mut Core) {
        let connection = self.connections.get_mut(&wire);
        let Some(live) = connection.and_then(|it| it.live.as_mut()) else {
            return;
        };
        let Some(index) = live.probes.iter().position(|newcomer| newcomer.0 == id) else {
            return;
        };
        let newcomer = live.probes.remove(index);
        // Its probe may be over already.
        if let Some(connection) = self.connections.get_mut(&newcomer)
            && connection.is_undecided()
        {
            connection.waiting = false;
            self.probed(newcomer, Probed::Alive, core);
            core.after(Duration::ZERO, self.event(BackendStep::Turn(newcomer)));
        }
    }

    /// Of two processes with one identity, one keeps it.
    fn probed(&mut self, wire: ConnectionId, probed: Probed, core: &mut Core) {
        let Some(connection) = self.connections.get_mut(&wire) else {
            return;
        };
        let Some(arrival) = &connection.arrival else {
            return;
        };
        let (agent, run) = (connection.agent, arrival.request.facts.agent_run_id);
        match self.claims.on_probed(agent, run, probed, core.now) {
            Verdict::TakeOver => self.welcome(wire, core),
            Verdict::Fork => {
                let arrival = connection.arrival.take();
                connection.waiting = true;
                if let Some(arrival) = arrival {
                    self.ask(wire, Intent::Fork(Box::new(arrival.request)), core);
                }
            }
            Verdict::Favoured(wait) | Verdict::Exhausted(wait) => {
                let reason =
                    "this identity is kept for another process, or changes hands too often";
                let mut refuse = refusal(CloseCode::RateLimited, reason);
                refuse.retry_after_ms = u64::try_from(wait.as_millis()).ok();
                connection.session.refuse(refuse, core.now);
            }
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
            if let Some(run) = holder.map(|live| live.holder.run)
                && !core.turmoil
                && core.network.is_sound(live)
            {
                core.recorder.protected(agent, run);
            }
            self.order(live, Order::Drain, core);
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

    fn confirmed(&mut self, wire: ConnectionId, confirmed: Older, core: &mut Core) {
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
        let acknowledge = core.rules.keeps(Rule::AckAfterCommit);
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
                    Permit::Go(deadline) => self.go(command_id, deadline, core),
                    Permit::Drop => {
                        self.close_offer(command_id);
                        self.send(BackendMessage::CommandDrop(command), now);
                    }
                    Permit::Cancel => {
                        self.send(BackendMessage::CommandCancel(command), now);
                    }
                    Permit::Wait => {}
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
