//! The first life of a connection: HELLO is judged and CONFIRM committed, or it ends without a session.

use std::sync::Arc;
use std::time::Duration;

use viworks_common::admission::HelloFacts;
use viworks_common::claims::{Newcomer, Verdict};
use viworks_common::code::CloseCode;
use viworks_common::fork;
use viworks_common::id::{AgentId, AgentRunId, SessionId};
use viworks_common::key::Secret;
use viworks_common::ledger::session::Older;
use viworks_common::limits::{HANDSHAKE_STEP_TIMEOUT, PROBE_TIMEOUT};
use viworks_common::room::Room;
use viworks_common::session::{BackendSession, BackendSessionConfig};
use viworks_common::wire::message::{BackendMessage, CommandRef, Credits, Hello, Refuse, Welcome};

use super::super::core::{BackendStep, Core};
use super::super::gateway::binding;
use super::super::network::ConnectionId;
use super::super::store_model::{AdmitRequest, Admitted, ConfirmRequest, Holder, Store};
use super::connection::{Connection, Live, Order};
use super::{Backend, Instance, Tx};

/// Bytes of telemetry that may be under way: a few batches.
const TELEMETRY_CREDIT: u32 = 4 * 1024;
/// How many heartbeats may be missed.
const SILENCE: u32 = 3;

/// An admitted HELLO, while it is decided who keeps the identity.
#[derive(Debug)]
pub(super) struct Arrival {
    request: AdmitRequest,
    admitted: Admitted,
}

impl Connection {
    /// The process that waits for a decision about its HELLO.
    pub(super) fn newcomer(&self) -> Option<AgentRunId> {
        let arrival = self.arrival.as_ref().filter(|_| !self.over)?;
        Some(arrival.request.facts.agent_run_id)
    }

    /// The epoch of the session that it may take over from.
    pub(super) fn asks_about(&self) -> Option<u64> {
        self.arrival.as_ref()?.admitted.live.map(|live| live.epoch)
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
        let session = BackendSession::new(config, core.now);
        let connection = Connection::new(wire, agent, store.confirmed(agent), session);
        self.connections.insert(wire, connection);
        self.turn(wire, core);
    }

    pub(super) fn on_hello(
        &mut self,
        connection: &mut Connection,
        hello: Hello,
        (fresh, key_generation): (bool, u8),
        core: &mut Core,
    ) {
        if !fresh {
            let reason = "this HELLO was used before, or is too old";
            return connection.refuse(CloseCode::Replay, reason, core);
        }
        let (agent, run) = (connection.agent, hello.agent_run_id);
        connection.key_in_use = u32::from(key_generation);
        let expected = self.master.token(&Backend::identity(agent), hello.epoch);
        let request = AdmitRequest {
            agent,
            facts: HelloFacts {
                epoch: hello.epoch,
                token_valid: Secret::from_hex(&hello.token).is_some_and(|it| it == expected),
                agent_run_id: run,
                key_generation: u32::from(key_generation),
                highest_order: hello.highest_order,
                low_water: hello.low_water,
                confirmed_at_challenge: connection.confirmed_before,
                // The store knows.
                kept: false,
            },
            party: fork::Holder {
                install_id: hello.install_id,
                boot_id: hello.boot_id,
                agent_run_id: run,
            },
            unreported: hello.unreported,
            telemetry: hello.telemetry,
        };
        let admit = move |tx: &mut Tx<'_>| Ok((tx.admit(&request), request));
        let then = |instance: &mut Self, connection: &mut Connection, answer, core: &mut _| {
            let (admitted, request) = answer;
            match admitted {
                Ok(admitted) => instance.admitted(connection, Arrival { request, admitted }, core),
                Err(code) => connection.refuse(code, "HELLO was not accepted", core),
            }
        };
        self.ask(connection, "HELLO", admit, then, core);
    }

    /// Of two processes with one identity, the one that is alive keeps it.
    fn admitted(&mut self, connection: &mut Connection, arrival: Arrival, core: &mut Core) {
        let (known, run) = (arrival.admitted.live, arrival.request.facts.agent_run_id);
        let newcomer = self.claims.on_newcomer(known.map(|live| live.run == run));
        connection.arrival = Some(arrival);
        if newcomer == Newcomer::Welcome {
            return self.welcome(connection, core);
        }
        if let Some(known) = known.filter(|live| live.owner != self.owner()) {
            return self.ask_neighbour(connection, known, core);
        }
        let asked = connection.asks_about();
        let session = self.sessions.get(&connection.agent).copied();
        let session = session.filter(|(_, holder)| Some(holder.epoch) == asked);
        let Some((live, _)) = session else {
            // One that is about to be entered will answer for itself.
            let mut here = self.connections.values();
            let comes = here.any(|it| it.agent == connection.agent && it.unsettled == asked);
            return self.judge(connection, (self.owner(), (!comes).then_some(false)), core);
        };
        connection.waiting = true;
        connection.probing = Some(self.owner());
        let wire = connection.wire;
        self.order(live, Order::Probe(wire), core);
        core.after(PROBE_TIMEOUT, self.event(BackendStep::ProbeOver(wire)));
    }

    /// Nobody answered in time.
    pub(super) fn probe_over(&mut self, wire: ConnectionId, core: &mut Core) {
        if let Some(asker) = self.probes.remove(&wire) {
            return self.answer(asker, wire, false, core);
        }
        self.with(wire, |instance, connection| {
            let probing = connection.probing.take();
            if let Some(owner) = probing.filter(|_| connection.is_undecided()) {
                connection.waiting = false;
                if owner == instance.owner() {
                    instance.probed(connection, false, core);
                } else {
                    instance.judge(connection, (owner, None), core);
                }
            }
        });
        self.turn(wire, core);
    }

    /// A live session was found to be alive.
    pub(super) fn probe_answered(&mut self, newcomer: ConnectionId, core: &mut Core) {
        if let Some(asker) = self.probes.remove(&newcomer) {
            return self.answer(asker, newcomer, true, core);
        }
        self.with(newcomer, |instance, connection| {
            let probing = connection.probing.take().is_some();
            // Its probe may be over already.
            if connection.is_undecided() && probing {
                connection.waiting = false;
                instance.probed(connection, true, core);
                core.after(Duration::ZERO, instance.event(BackendStep::Turn(newcomer)));
            }
        });
    }

    /// The session of this process that a newcomer may take over from was probed.
    fn probed(&mut self, connection: &mut Connection, alive: bool, core: &mut Core) {
        self.judge(connection, (self.owner(), Some(alive)), core);
    }

    /// Of two processes with one identity, one keeps it.
    pub(super) fn judged(
        &mut self,
        connection: &mut Connection,
        verdict: Verdict,
        core: &mut Core,
    ) {
        let (agent, Some(run)) = (connection.agent, connection.newcomer()) else {
            return;
        };
        match verdict {
            Verdict::TakeOver => self.welcome(connection, core),
            Verdict::Fork => {
                connection.arrival = None;
                let own = self.owner();
                let record = move |tx: &mut Tx<'_>| {
                    tx.settle_fork(own, agent, run);
                    Ok(())
                };
                let then = |instance: &mut Self, connection: &mut Connection, (), core: &mut _| {
                    instance.forked(connection, core);
                };
                self.ask(connection, "fork", record, then, core);
            }
            Verdict::Favoured(wait) | Verdict::Exhausted(wait) | Verdict::Undecided(wait) => {
                connection.session.refuse(
                    Refuse {
                        code: CloseCode::RateLimited,
                        reason: "this identity is kept for another process".to_owned(),
                        retry_after_ms: u64::try_from(wait.as_millis()).ok(),
                    },
                    core.now,
                );
            }
        }
    }

    fn forked(&mut self, connection: &mut Connection, core: &mut Core) {
        let reason = "another machine with this identity is connected and alive";
        connection.refuse(CloseCode::IdentityFork, reason, core);
        self.protect(connection.agent, core);
    }

    /// Lets a live session reconnect: its next HELLO moves the ratchet past the copy that was refused.
    pub(super) fn protect(&mut self, agent: AgentId, core: &mut Core) {
        if let Some((live, holder)) = self.sessions.get(&agent).copied() {
            let is_put_out = core.recorder.is_put_out(holder.agent, holder.epoch);
            if !core.turmoil && core.network.is_sound(live) && !is_put_out {
                core.recorder.protected(holder.agent, holder.run);
            }
            self.order(live, Order::Drain, core);
        }
    }

    fn welcome(&self, connection: &mut Connection, core: &Core) {
        let Some(Arrival { request, admitted }) = connection.arrival.take() else {
            return;
        };
        let heartbeat = core.scenario.heartbeat;
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let (agent, epoch) = (connection.agent, admitted.issued);
        let token = self.master.token(&Backend::identity(agent), epoch);
        let welcome = Welcome {
            epoch,
            token: token.expose_hex(),
            heartbeat_interval_ms: millis(heartbeat),
            silence_ms: millis(heartbeat * SILENCE),
            credits: Credits {
                commands: core.scenario.command_credit,
                telemetry_bytes: TELEMETRY_CREDIT,
                output_bytes: 0,
            },
            low_water: admitted.low_water,
            committed: admitted.committed,
            catalogue_known: true,
            pins: None,
            server_time: core.backend_wall(),
            reconnect_slot_ms: 1_000,
            renews_certificates: false,
        };
        connection.session.welcome(welcome, core.now);
        connection.welcomed = Some(ConfirmRequest {
            holder: Holder {
                agent,
                epoch,
                run: request.facts.agent_run_id,
            },
            presented: admitted.presented,
            unreported: request.unreported,
            owner: self.owner(),
        });
    }

    pub(super) fn on_confirm(&mut self, connection: &mut Connection, core: &mut Core) {
        let Some(request) = connection.welcomed.take() else {
            return;
        };
        let credit = usize::try_from(core.scenario.command_credit).unwrap_or(usize::MAX);
        let open = request.unreported.iter().copied().collect();
        connection.unsettled = Some(request.holder.epoch);
        let live = Live::new(request.holder, Room::new(credit, open));
        let confirm = move |tx: &mut Tx<'_>| {
            let older = tx.confirm(&request);
            Ok(older.map(|older| (older, tx.pending_key(request.holder.agent))))
        };
        let then = move |instance: &mut Self, connection: &mut Connection, older, core: &mut _| {
            match older {
                Some(older) => instance.confirmed(connection, live, older, core),
                None => {
                    connection.unsettled = None;
                    let reason = "another session of this gateway came in between";
                    connection.refuse(CloseCode::Superseded, reason, core);
                }
            }
        };
        self.ask(connection, "CONFIRM", confirm, then, core);
    }

    fn confirmed(
        &mut self,
        connection: &mut Connection,
        live: Live,
        (older, wanted_key): (Older, Option<u32>),
        core: &mut Core,
    ) {
        self.look_for_eviction(live.holder.agent, live.holder.run, core);
        if !self.register(live.holder, connection.wire, core) {
            return connection.refuse(CloseCode::Superseded, "a newer session is there", core);
        }
        connection.live = Some(live);
        connection.session.established(core.now);
        for (command_id, deadline) in older.released {
            connection.go(command_id, deadline, core);
        }
        for command_id in older.cancel_requested {
            let cancel = CommandRef { command_id };
            connection.send(BackendMessage::CommandCancel(cancel), core.now);
        }
        if let Some(wanted) = wanted_key {
            connection.tell_key(wanted, core.now);
        }
        connection.nudge();
    }

    /// Invariant 7: a live original is never evicted by a copy, unless an operator has put it out.
    pub(super) fn look_for_eviction(&self, agent: AgentId, copy: AgentRunId, core: &mut Core) {
        let Some((wire, older)) = self.sessions.get(&agent) else {
            return;
        };
        let live = self.connections.get(wire).and_then(|it| it.live.as_ref());
        let is_put_out = core.recorder.is_put_out(agent, older.epoch);
        let evicted = older.run != copy && live.is_some_and(|it| !it.draining) && !is_put_out;
        if evicted && core.network.is_sound(*wire) {
            let run = older.run;
            core.recorder
                .violated(|| format!("7: {run} was alive and evicted by {copy}"));
        }
    }
}
