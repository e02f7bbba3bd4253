//! A model of the backend: the real session machines, driven as the listener's connections drive them, over the store's model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use viworks_common::admission::{Admission, HelloFacts};
use viworks_common::code::CloseCode;
use viworks_common::command::{self, Arguments, CommandEvent, CommandState};
use viworks_common::id::{CommandId, SessionId};
use viworks_common::key::{Binding, Identity, MasterKey, Secret};
use viworks_common::limits;
use viworks_common::session::{BackendEvent, BackendSession, BackendSessionConfig};
use viworks_common::telemetry::{Batch, Position};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{
    BackendMessage, Command, CommandRef, Credits, Drain, Go, HeartbeatAck, Hello, Permit, Refuse,
    ResultAck, TelemetryAck, Welcome,
};

use super::gateway::{Died, Surroundings, name_of};
use super::store::{Accepted, Holder, Store};

/// A newcomer that waits for the live session's answer to PROBE.
#[derive(Debug)]
struct Probing {
    until: Monotonic,
    old: u64,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) session: BackendSession,
    holder: Option<Holder>,
    presented: u64,
    unreported: BTreeSet<CommandId>,
    welcome: Option<Welcome>,
    probing: Option<Probing>,
    established: bool,
}

/// The backend.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) store: Store,
    pub(super) up: bool,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) live: Option<u64>,
    pub(super) identity: Identity,
    pub(super) master: Arc<MasterKey>,
    pub(super) binding: Binding,
}

impl Backend {
    pub(super) fn new(identity: Identity, master: Arc<MasterKey>, binding: Binding) -> Self {
        Self {
            store: Store::new(),
            up: true,
            connections: BTreeMap::new(),
            live: None,
            identity,
            master,
            binding,
        }
    }

    pub(super) fn crash(&mut self) {
        self.up = false;
        self.connections.clear();
        self.live = None;
    }

    pub(super) fn accept(&mut self, id: u64, s: &mut Surroundings<'_>) {
        let config = BackendSessionConfig {
            identity: self.identity.clone(),
            master: Arc::clone(&self.master),
            binding: self.binding.clone(),
            session_id: SessionId::from_uuid(s.rng.uuid()),
            server_nonce: s.rng.bytes(),
            server_time: Timestamp::default(),
            hello_timeout: Duration::from_secs(5),
            certificate_remaining: None,
        };
        let session = BackendSession::new(config, s.now);
        let connection = Connection {
            session,
            holder: None,
            presented: 0,
            unreported: BTreeSet::new(),
            welcome: None,
            probing: None,
            established: false,
        };
        self.connections.insert(id, connection);
    }

    /// A commit: the process may die before it, or after it and before anybody is told.
    fn commit<T>(
        &mut self,
        s: &mut Surroundings<'_>,
        change: impl FnOnce(&mut Store, &mut Surroundings<'_>) -> T,
    ) -> Result<T, Died> {
        if s.faults && s.rng.one_in(90) {
            return Err(Died);
        }
        let answer = change(&mut self.store, s);
        if s.faults && s.rng.one_in(90) {
            Err(Died)
        } else {
            Ok(answer)
        }
    }

    /// Everything one connection has to do.
    pub(super) fn step(&mut self, id: u64, s: &mut Surroundings<'_>) -> Result<(), Died> {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else {
                return Ok(());
            };
            if connection
                .session
                .poll_timeout()
                .is_some_and(|(at, _why)| at <= s.now)
            {
                connection.session.handle_timeout(s.now);
            }
            let Some(event) = connection.session.poll_event() else {
                break;
            };
            self.handle(id, event, s)?;
        }
        self.settle_probe(id, s);
        Ok(())
    }

    fn settle_probe(&mut self, id: u64, s: &Surroundings<'_>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection
            .probing
            .as_ref()
            .is_some_and(|probing| probing.until <= s.now)
        {
            // Silence: the newcomer takes over.
            connection.probing = None;
            if let Some(welcome) = connection.welcome.clone() {
                connection.session.welcome(welcome, s.now);
            }
        }
    }

    fn handle(
        &mut self,
        id: u64,
        event: BackendEvent,
        s: &mut Surroundings<'_>,
    ) -> Result<(), Died> {
        match event {
            BackendEvent::Hello { hello, .. } => self.hello(id, &hello, s)?,
            BackendEvent::Confirmed { .. } => self.confirmed(id, s)?,
            BackendEvent::ProbeAnswered { .. } => self.probe_answered(id, s),
            BackendEvent::Heartbeat(heartbeat) => {
                let ack = HeartbeatAck {
                    sent_at_ms: heartbeat.sent_at_ms,
                    server_time: Timestamp::default(),
                    output_bytes: 1 << 20,
                };
                self.send(id, BackendMessage::HeartbeatAck(ack), s.now);
            }
            BackendEvent::Telemetry(columns) => self.telemetry(id, columns.try_into().ok(), s)?,
            BackendEvent::Accepted(accepted) => self.accepted(
                id,
                accepted.command_id,
                accepted.idempotent,
                accepted.awaiting_permit,
                s,
            )?,
            BackendEvent::Rejected(rejected) => {
                self.write(
                    id,
                    rejected.command_id,
                    CommandEvent::Rejected(rejected.code),
                    s,
                )?;
            }
            BackendEvent::Started(started) => {
                self.write(id, started.command_id, CommandEvent::Started, s)?;
            }
            BackendEvent::Result(result) => {
                let Some(holder) = self
                    .connections
                    .get(&id)
                    .and_then(|connection| connection.holder)
                else {
                    return Ok(());
                };
                let done = self.commit(s, |store, s| {
                    store.complete(
                        result.command_id,
                        &result.outcome,
                        holder,
                        s.rules,
                        s.recorder,
                    )
                })?;
                if done {
                    let low_water = self.store.identity.low_water;
                    self.send(
                        id,
                        BackendMessage::ResultAck(ResultAck {
                            command_id: result.command_id,
                            low_water,
                        }),
                        s.now,
                    );
                } else {
                    self.fence(id, s.now);
                }
            }
            BackendEvent::Output(_)
            | BackendEvent::Catalogue(_)
            | BackendEvent::PinReport(_)
            | BackendEvent::Event(_)
            | BackendEvent::Bye { .. } => {}
            BackendEvent::Closed(_) => {
                if self.live == Some(id) {
                    self.live = None;
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, id: u64, message: BackendMessage, now: Monotonic) {
        if let Some(connection) = self.connections.get_mut(&id) {
            // What finds no room or credit is offered again from the store.
            let _refused = connection.session.send(message, now).is_err();
        }
    }

    fn fence(&mut self, id: u64, now: Monotonic) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.session.close(
                CloseCode::Superseded,
                "a newer session serves this gateway",
                now,
            );
        }
    }

    fn write(
        &mut self,
        id: u64,
        command: CommandId,
        event: CommandEvent,
        s: &mut Surroundings<'_>,
    ) -> Result<(), Died> {
        let Some(holder) = self
            .connections
            .get(&id)
            .and_then(|connection| connection.holder)
        else {
            return Ok(());
        };
        let done = self.commit(s, |store, s| {
            store.event(command, event, holder, s.rules, s.recorder)
        })?;
        if !done {
            self.fence(id, s.now);
        }
        Ok(())
    }

    fn refuse(&mut self, id: u64, code: CloseCode, now: Monotonic) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.session.refuse(
                Refuse {
                    code,
                    reason: code.name().to_owned(),
                    retry_after_ms: None,
                },
                now,
            );
        }
    }

    fn hello(&mut self, id: u64, hello: &Hello, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let expected = self.master.token(&self.identity, hello.epoch);
        let facts = HelloFacts {
            epoch: hello.epoch,
            token_valid: Secret::from_hex(&hello.token).is_some_and(|token| token == expected),
            agent_run_id: hello.agent_run_id,
            key_generation: 1,
            highest_order: hello.highest_order,
            low_water: hello.low_water,
        };
        let unreported: BTreeSet<CommandId> = hello.unreported.iter().copied().collect();
        let known = unreported.clone();
        let admission = self.commit(s, move |store, s| store.admit(&facts, &known, s.recorder))?;
        let (presented, issued) = match admission {
            Admission::Accept {
                presented, issued, ..
            }
            | Admission::RolledBack {
                presented, issued, ..
            } => (presented, issued),
            Admission::Fork => {
                self.refuse(id, CloseCode::IdentityFork, s.now);
                return Ok(());
            }
            Admission::Late => {
                self.refuse(id, CloseCode::Superseded, s.now);
                return Ok(());
            }
            Admission::BadToken | Admission::Revoked | Admission::StaleKey => {
                self.refuse(id, CloseCode::BadEnvelope, s.now);
                return Ok(());
            }
        };
        let welcome = self.welcome(issued, hello);
        let live = self
            .live
            .and_then(|live| Some((live, self.connections.get(&live)?.holder?)));
        let rival = live
            .filter(|(_id, holder)| holder.agent_run_id != hello.agent_run_id)
            .map(|(id, _holder)| id);
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        connection.holder = Some(Holder {
            epoch: issued,
            agent_run_id: hello.agent_run_id,
        });
        connection.presented = presented;
        connection.unreported = unreported;
        connection.welcome = Some(welcome.clone());
        if let Some(old) = rival {
            connection.probing = Some(Probing {
                until: s.now.saturating_add(limits::PROBE_TIMEOUT),
                old,
            });
            if let Some(old) = self.connections.get_mut(&old) {
                old.session.probe(id, s.now);
            }
        } else {
            connection.session.welcome(welcome, s.now);
        }
        Ok(())
    }

    fn welcome(&self, issued: u64, hello: &Hello) -> Welcome {
        let committed = hello
            .telemetry
            .iter()
            .filter_map(|position| {
                let seq = self.store.positions.get(&position.spool_epoch).copied()?;
                Some(Position {
                    spool_epoch: position.spool_epoch,
                    seq,
                })
            })
            .collect();
        Welcome {
            epoch: issued,
            token: self.master.token(&self.identity, issued).expose_hex(),
            heartbeat_interval_ms: 2_000,
            silence_ms: 6_000,
            credits: Credits {
                commands: 256,
                telemetry_bytes: 64 * 1024,
                output_bytes: 1 << 20,
            },
            low_water: self.store.identity.low_water,
            committed,
            catalogue_known: true,
            pins: None,
            server_time: Timestamp::default(),
            reconnect_slot_ms: 0,
        }
    }

    /// The old session lives: the newcomer is a copy, and the live one moves its ratchet on.
    fn probe_answered(&mut self, old: u64, s: &Surroundings<'_>) {
        let newcomer = self
            .connections
            .iter()
            .find(|(_id, connection)| {
                connection
                    .probing
                    .as_ref()
                    .is_some_and(|probing| probing.old == old)
            })
            .map(|(id, _connection)| *id);
        let Some(newcomer) = newcomer else { return };
        if let Some(connection) = self.connections.get_mut(&newcomer) {
            connection.probing = None;
        }
        self.store.forks += 1;
        self.refuse(newcomer, CloseCode::IdentityFork, s.now);
        self.send(
            old,
            BackendMessage::Drain(Drain {
                reconnect_after_ms: 0,
            }),
            s.now,
        );
    }

    fn confirmed(&mut self, id: u64, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let Some(connection) = self.connections.get(&id) else {
            return Ok(());
        };
        let Some(holder) = connection.holder else {
            return Ok(());
        };
        let (presented, unreported) = (connection.presented, connection.unreported.clone());
        let done = self.commit(s, move |store, s| {
            store.confirm(presented, holder, &unreported, s.recorder)
        })?;
        if !done {
            self.fence(id, s.now);
            return Ok(());
        }
        // Without the fence, the old session is as one that another instance holds: nobody closes it in time.
        if let Some(old) = self.live.filter(|old| *old != id && s.rules.epoch_fence) {
            self.fence(old, s.now);
        }
        self.live = Some(id);
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.established = true;
            connection.session.established(s.now);
        }
        let released: Vec<(CommandId, Monotonic, bool)> = self
            .store
            .commands
            .iter()
            .filter(|(_id, row)| {
                row.state == CommandState::Released && row.agent_run_id == Some(holder.agent_run_id)
            })
            .map(|(id, row)| (*id, row.deadline, row.cancel))
            .collect();
        for (command_id, deadline, cancel) in released {
            if cancel {
                self.send(
                    id,
                    BackendMessage::CommandCancel(CommandRef { command_id }),
                    s.now,
                );
            } else {
                self.go(id, command_id, deadline, s.now);
            }
        }
        self.dispatch(s)
    }

    fn permit(&self, id: u64, deadline: Monotonic, now: Monotonic) -> Permit {
        let as_of = self
            .connections
            .get(&id)
            .map_or(0, |connection| connection.session.last_processed());
        let left = deadline.saturating_since(now);
        Permit {
            remaining_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            as_of,
        }
    }

    fn go(&mut self, id: u64, command_id: CommandId, deadline: Monotonic, now: Monotonic) {
        let permit = self.permit(id, deadline, now);
        self.send(id, BackendMessage::Go(Go { command_id, permit }), now);
    }

    fn accepted(
        &mut self,
        id: u64,
        command: CommandId,
        idempotent: bool,
        awaiting: bool,
        s: &mut Surroundings<'_>,
    ) -> Result<(), Died> {
        let Some(holder) = self
            .connections
            .get(&id)
            .and_then(|connection| connection.holder)
        else {
            return Ok(());
        };
        let answer = self.commit(s, move |store, s| {
            store.accept(command, idempotent, holder, s.now, s.rules, s.recorder)
        })?;
        match answer {
            None => self.fence(id, s.now),
            Some(Accepted::Go(deadline)) if awaiting => self.go(id, command, deadline, s.now),
            Some(Accepted::Go(_)) => {}
            Some(Accepted::Cancel) => self.send(
                id,
                BackendMessage::CommandCancel(CommandRef {
                    command_id: command,
                }),
                s.now,
            ),
            Some(Accepted::Drop) => self.send(
                id,
                BackendMessage::CommandDrop(CommandRef {
                    command_id: command,
                }),
                s.now,
            ),
        }
        Ok(())
    }

    fn telemetry(
        &mut self,
        id: u64,
        batch: Option<Batch>,
        s: &mut Surroundings<'_>,
    ) -> Result<(), Died> {
        let Some(holder) = self
            .connections
            .get(&id)
            .and_then(|connection| connection.holder)
        else {
            return Ok(());
        };
        let Some(batch) = batch else {
            s.recorder.broken(5, "a batch arrived malformed".to_owned());
            return Ok(());
        };
        let epoch = batch.spool_epoch;
        if !s.rules.acknowledge_after_commit {
            let early = TelemetryAck {
                position: Position {
                    spool_epoch: epoch,
                    seq: batch.to_seq,
                },
            };
            self.send(id, BackendMessage::TelemetryAck(early), s.now);
            if s.faults && s.rng.one_in(4) {
                // The commit that was to follow fails.
                return Ok(());
            }
        }
        let position = self.commit(s, move |store, s| {
            store.commit_telemetry(&batch, holder, s.rules)
        })?;
        match position {
            Some(seq) => {
                let ack = TelemetryAck {
                    position: Position {
                        spool_epoch: epoch,
                        seq,
                    },
                };
                self.send(id, BackendMessage::TelemetryAck(ack), s.now);
            }
            None => self.fence(id, s.now),
        }
        Ok(())
    }

    /// Offers what waits to the live session.
    pub(super) fn dispatch(&mut self, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let Some(id) = self.live else { return Ok(()) };
        let Some(holder) = self
            .connections
            .get(&id)
            .filter(|connection| connection.established)
            .and_then(|connection| connection.holder)
        else {
            return Ok(());
        };
        let leased = self.commit(s, move |store, s| {
            store.lease(holder, s.now, 8, s.rules, s.recorder)
        })?;
        for command_id in leased {
            let Some(row) = self.store.commands.get(&command_id) else {
                continue;
            };
            let (order, attempt, deadline) = (row.order, row.attempt, row.deadline);
            let (name, permitted) = (name_of(row.idempotent), row.state == CommandState::Released);
            let digest = command::format_digest(&command::digest(&name, &Arguments::new()));
            let offer = Command {
                command_id,
                order,
                name,
                arguments: Arguments::new(),
                digest,
                attempt,
                traceparent: None,
                deadline: self.permit(id, deadline, s.now),
                permitted,
            };
            self.send(id, BackendMessage::Command(offer), s.now);
        }
        Ok(())
    }
}
