//! A model of a gateway: its disk, and a process that follows the engine's steps with the real rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use viworks_common::command::{self, Arguments, Outcome, OutcomeState};
use viworks_common::id::{AgentRunId, BootId, CommandId, CommandName, InstallId};
use viworks_common::journal::{
    self, Entry, EntryState, Idempotent, LocalView, OnCancel, OnCommand, OnDrop, OnGo, OnRestart,
};
use viworks_common::key::{AgentKey, Binding, Identity};
use viworks_common::session::{AgentEvent, AgentSession, AgentSessionConfig};
use viworks_common::telemetry::{
    Batch, BatchColumns, FieldValue, Gap, GapReason, Position, Record,
};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{
    AgentMessage, Command, CommandAccepted, CommandRejected, CommandResult, CommandStarted,
    Heartbeat, Hello,
};

use super::Rules;
use super::recorder::Recorder;
use super::rng::Rng;

/// Records a spool holds before it gives up the oldest.
const SPOOL_RECORDS_MAX: usize = 12;
/// Records of one batch.
const BATCH_RECORDS: usize = 5;

/// What survives a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) epoch: u64,
    pub(super) token: String,
    pub(super) entries: BTreeMap<CommandId, Entry>,
    pub(super) low_water: u64,
    pub(super) highest_order: u64,
    pub(super) spool: BTreeMap<AgentRunId, Spooled>,
}

/// One spool epoch on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spooled {
    pub(super) acknowledged: u64,
    pub(super) last: u64,
    pub(super) records: BTreeSet<u64>,
}

/// One process of the agent.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) agent_run_id: AgentRunId,
    pub(super) session: Option<(u64, AgentSession)>,
    /// When running commands end.
    pub(super) running: BTreeMap<CommandId, Monotonic>,
    /// Until when an offer that waits may start.
    deadlines: BTreeMap<CommandId, Monotonic>,
    in_flight: BTreeMap<AgentRunId, u64>,
    pub(super) retry_at: Monotonic,
    pub(super) established: bool,
    low_water_offered: u64,
}

/// A host with a disk, perhaps with a running agent.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) name: char,
    pub(super) disk: Disk,
    /// What is on the disk for sure; differs from `disk` only where the rule that reports come after the write is off.
    pub(super) synced: Disk,
    pub(super) process: Option<Process>,
    pub(super) install_id: InstallId,
    pub(super) wall_offset: i64,
    /// The identity is held elsewhere, and an operator must decide.
    pub(super) refused: bool,
}

/// What a step needs of the world.
pub(super) struct Surroundings<'w> {
    pub(super) now: Monotonic,
    pub(super) rng: &'w mut Rng,
    pub(super) rules: &'w Rules,
    pub(super) recorder: &'w mut Recorder,
    pub(super) faults: bool,
}

/// The process died in the middle of a step.
#[derive(Debug)]
pub(super) struct Died;

impl Surroundings<'_> {
    fn dies(&mut self) -> bool {
        self.faults && self.rng.one_in(60)
    }
}

pub(super) fn name_of(idempotent: bool) -> CommandName {
    let name = if idempotent {
        "test.again"
    } else {
        "test.once"
    };
    name.parse().expect("a constant name is valid")
}

impl Gateway {
    pub(super) fn new(name: char, token: String, rng: &mut Rng) -> Self {
        let disk = Disk {
            epoch: 0,
            token,
            entries: BTreeMap::new(),
            low_water: 0,
            highest_order: 0,
            spool: BTreeMap::new(),
        };
        Self {
            name,
            synced: disk.clone(),
            disk,
            process: None,
            install_id: InstallId::from_uuid(rng.uuid()),
            wall_offset: 0,
            refused: false,
        }
    }

    /// A write: the process may die before it, or after it and before anybody is told.
    fn write(
        &mut self,
        s: &mut Surroundings<'_>,
        change: impl FnOnce(&mut Disk),
    ) -> Result<(), Died> {
        if s.dies() {
            return Err(Died);
        }
        change(&mut self.disk);
        // With the rule off, what is written reaches the disk some time later.
        if s.rules.journal_before_report || s.rng.one_in(3) {
            self.synced = self.disk.clone();
        }
        if s.dies() { Err(Died) } else { Ok(()) }
    }

    pub(super) fn crash(&mut self) {
        self.process = None;
        self.disk = self.synced.clone();
    }

    /// A new process: decides what the last one left.
    pub(super) fn start(&mut self, s: &mut Surroundings<'_>) {
        let agent_run_id = AgentRunId::from_uuid(s.rng.uuid());
        for entry in self.disk.entries.values_mut() {
            match journal::on_restart(entry) {
                OnRestart::Keep => {}
                OnRestart::AwaitPermitAgain => {
                    entry.state = EntryState::Accepted;
                    entry.agent_run_id = agent_run_id;
                }
                OnRestart::FinishIndeterminate => {
                    entry.state = EntryState::Finished;
                    entry.outcome = Some(Outcome::without_run(
                        OutcomeState::Indeterminate,
                        "interrupted",
                    ));
                }
            }
        }
        self.synced = self.disk.clone();
        self.process = Some(Process {
            agent_run_id,
            session: None,
            running: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            retry_at: s.now,
            established: false,
            low_water_offered: 0,
        });
        let name = self.name;
        s.recorder
            .note(|| format!("{:?} {name} starts as {agent_run_id}", s.now.as_duration()));
    }

    pub(super) fn connect(
        &mut self,
        connection: u64,
        identity: &Identity,
        key: &AgentKey,
        binding: &Binding,
        now: Monotonic,
    ) {
        let Some(process) = &mut self.process else {
            return;
        };
        let config = AgentSessionConfig {
            identity: identity.clone(),
            key: key.clone(),
            key_generation: 1,
            binding: binding.clone(),
            version_floor: 1,
            opening_timeout: Duration::from_secs(10),
        };
        process.session = Some((connection, AgentSession::new(config, now)));
        process.established = false;
        process.in_flight.clear();
    }

    fn hello(&self, process: &Process) -> Hello {
        let unreported = self
            .disk
            .entries
            .values()
            .filter(|entry| entry.state != EntryState::Reported);
        Hello {
            install_id: self.install_id,
            boot_id: BootId::from_uuid(*self.install_id.as_uuid()),
            agent_run_id: process.agent_run_id,
            epoch: self.disk.epoch,
            token: self.disk.token.clone(),
            agent_version: "0.0.0".to_owned(),
            version: 1,
            capabilities: Vec::new(),
            catalogue_digest: "0".repeat(64),
            labels: BTreeMap::new(),
            unreported: unreported.map(|entry| entry.command_id).collect(),
            highest_order: self.disk.highest_order,
            low_water: self.disk.low_water,
            pin_set_version: 0,
            telemetry: self
                .disk
                .spool
                .iter()
                .filter(|(_epoch, spooled)| spooled.acknowledged < spooled.last)
                .take(16)
                .map(|(spool_epoch, spooled)| Position {
                    spool_epoch: *spool_epoch,
                    seq: spooled.acknowledged,
                })
                .collect(),
        }
    }

    /// Takes a telemetry record in.
    pub(super) fn append(&mut self, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let epoch = process.agent_run_id;
        self.write(s, |disk| {
            let spooled = disk.spool.entry(epoch).or_default();
            spooled.last += 1;
            let last = spooled.last;
            spooled.records.insert(last);
            let waiting: usize = disk
                .spool
                .values()
                .map(|spooled| spooled.records.len())
                .sum();
            if waiting > SPOOL_RECORDS_MAX
                && let Some(spooled) = disk
                    .spool
                    .values_mut()
                    .find(|spooled| !spooled.records.is_empty())
            {
                spooled.records.pop_first();
            }
        })?;
        let last = self
            .disk
            .spool
            .get(&epoch)
            .map_or(0, |spooled| spooled.last);
        if self.synced == self.disk {
            s.recorder.spooled.insert((epoch, last));
        }
        Ok(())
    }

    /// Everything the session has to say, and what time brought.
    pub(super) fn step(&mut self, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let now = s.now;
        let due = |process: &Process| {
            process
                .running
                .iter()
                .find(|(_id, end)| **end <= now)
                .map(|(id, _end)| *id)
        };
        while let Some(id) = self.process.as_ref().and_then(due) {
            if let Some(process) = &mut self.process {
                process.running.remove(&id);
            }
            self.finish(
                id,
                Outcome {
                    exit_code: Some(0),
                    ..Outcome::without_run(OutcomeState::Succeeded, "ran")
                },
                s,
            )?;
        }
        self.expire(s)?;
        loop {
            let Some(process) = &mut self.process else {
                return Ok(());
            };
            let Some((_connection, session)) = &mut process.session else {
                return Ok(());
            };
            if session.poll_timeout().is_some_and(|(at, _why)| at <= s.now) {
                session.handle_timeout(s.now);
            }
            let Some(event) = session.poll_event() else {
                break;
            };
            self.handle(event, s)?;
        }
        self.pump(s);
        Ok(())
    }

    fn expire(&mut self, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let waiting = |id: &CommandId| {
            self.disk
                .entries
                .get(id)
                .is_some_and(|entry| entry.state == EntryState::Accepted)
        };
        let late: Vec<CommandId> = process
            .deadlines
            .iter()
            .filter(|(id, at)| **at <= s.now && waiting(id))
            .map(|(id, _at)| *id)
            .collect();
        for id in late {
            self.finish(
                id,
                Outcome::without_run(OutcomeState::Expired, "too late"),
                s,
            )?;
        }
        Ok(())
    }

    fn say(&mut self, message: AgentMessage, now: Monotonic) {
        if let Some((_connection, session)) = self
            .process
            .as_mut()
            .and_then(|process| process.session.as_mut())
        {
            // What a session does not take is said again in the next one.
            let _refused = session.send(message, now).is_err();
        }
    }

    fn finish(
        &mut self,
        id: CommandId,
        outcome: Outcome,
        s: &mut Surroundings<'_>,
    ) -> Result<(), Died> {
        let kept = outcome.clone();
        self.write(s, |disk| {
            if let Some(entry) = disk.entries.get_mut(&id) {
                entry.state = EntryState::Finished;
                entry.outcome = Some(kept);
            }
        })?;
        self.say(
            AgentMessage::CommandResult(CommandResult {
                command_id: id,
                outcome,
            }),
            s.now,
        );
        Ok(())
    }

    fn handle(&mut self, event: AgentEvent, s: &mut Surroundings<'_>) -> Result<(), Died> {
        match event {
            AgentEvent::Challenged { .. } => {
                let Some(process) = &self.process else {
                    return Ok(());
                };
                let hello = self.hello(process);
                let nonce = s.rng.bytes();
                if let Some((_connection, session)) = self
                    .process
                    .as_mut()
                    .and_then(|process| process.session.as_mut())
                {
                    session.hello(hello, nonce, s.now);
                }
            }
            AgentEvent::Welcomed(welcome) => {
                self.write(s, |disk| {
                    disk.epoch = welcome.epoch;
                    disk.token.clone_from(&welcome.token);
                    for position in &welcome.committed {
                        acknowledge(disk, *position);
                    }
                })?;
                self.synced = self.disk.clone();
                if let Some(process) = &mut self.process {
                    process.low_water_offered = welcome.low_water;
                    if let Some((_connection, session)) = &mut process.session {
                        session.confirm(s.now);
                    }
                }
            }
            AgentEvent::Established => self.announce(s)?,
            AgentEvent::HeartbeatDue => {
                let heartbeat = Heartbeat {
                    sent_at_ms: u64::try_from(s.now.as_duration().as_millis()).unwrap_or(u64::MAX),
                    round_trip_us: None,
                    clock_skew_ms: Some(self.wall_offset),
                    spool_records: 0,
                    spool_bytes: 0,
                    commands_running: 0,
                };
                self.say(AgentMessage::Heartbeat(heartbeat), s.now);
            }
            AgentEvent::TelemetryAcknowledged(position) => {
                self.write(s, |disk| acknowledge(disk, position))?;
            }
            AgentEvent::Command(command) => self.offered(*command, s)?,
            AgentEvent::Go(go) => {
                let deadline = self.deadline(go.permit.as_of, go.permit.remaining_ms);
                match journal::on_go(self.disk.entries.get(&go.command_id)) {
                    OnGo::Start => self.begin(go.command_id, deadline, s)?,
                    OnGo::ResendResult => self.resend(go.command_id, s.now),
                    OnGo::Ignore => {}
                }
            }
            AgentEvent::Drop(id) => match journal::on_drop(self.disk.entries.get(&id)) {
                OnDrop::Discard => self.write(s, |disk| {
                    if let Some(entry) = disk.entries.get_mut(&id) {
                        entry.state = EntryState::Reported;
                        entry.outcome =
                            Some(Outcome::without_run(OutcomeState::Cancelled, "dropped"));
                    }
                })?,
                OnDrop::Ignore => {}
            },
            AgentEvent::Cancel(id) => match journal::on_cancel(self.disk.entries.get(&id)) {
                OnCancel::FinishCancelled => self.finish(
                    id,
                    Outcome::without_run(OutcomeState::Cancelled, "asked"),
                    s,
                )?,
                OnCancel::End => {
                    let running = self
                        .process
                        .as_mut()
                        .is_some_and(|process| process.running.remove(&id).is_some());
                    if running {
                        self.finish(
                            id,
                            Outcome::without_run(OutcomeState::Cancelled, "ended"),
                            s,
                        )?;
                    }
                }
                OnCancel::ResendResult => self.resend(id, s.now),
                OnCancel::Ignore => {}
            },
            AgentEvent::ResultAcknowledged {
                command_id,
                low_water,
            } => {
                self.write(s, |disk| {
                    if let Some(entry) = disk.entries.get_mut(&command_id)
                        && entry.state == EntryState::Finished
                    {
                        entry.state = EntryState::Reported;
                    }
                })?;
                self.forget(low_water, s)?;
            }
            AgentEvent::Refused { code, .. } => {
                if code == viworks_common::code::CloseCode::IdentityFork {
                    s.recorder.forks += 1;
                    self.refused = true;
                }
            }
            AgentEvent::RoundTrip { .. } | AgentEvent::Draining { .. } | AgentEvent::Closed(_) => {}
        }
        Ok(())
    }

    fn deadline(&self, as_of: u64, remaining_ms: u64) -> Monotonic {
        let session = self
            .process
            .as_ref()
            .and_then(|process| process.session.as_ref());
        let sent = session.map_or(Monotonic::ORIGIN, |(_connection, session)| {
            session.sent_at(as_of)
        });
        sent.saturating_add(Duration::from_millis(remaining_ms))
    }

    fn announce(&mut self, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        process.established = true;
        let mark = process.low_water_offered;
        let running: BTreeSet<CommandId> = process.running.keys().copied().collect();
        let entries: Vec<Entry> = self.disk.entries.values().cloned().collect();
        for entry in entries {
            match entry.state {
                EntryState::Accepted => self.say_accepted(&entry, true, s.now),
                EntryState::Started if running.contains(&entry.command_id) => {
                    self.say_started(entry.command_id, s.now);
                }
                EntryState::Finished => self.resend(entry.command_id, s.now),
                EntryState::Started | EntryState::Reported => {}
            }
        }
        self.forget(mark, s)
    }

    fn forget(&mut self, low_water: u64, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let by_mark = s.rules.forget_by_low_water;
        let impatient = !by_mark && s.rng.one_in(2);
        self.write(s, |disk| {
            disk.low_water = disk.low_water.max(low_water);
            let mark = disk.low_water;
            disk.entries.retain(|_id, entry| {
                if by_mark {
                    !journal::may_forget(entry.state, entry.order, mark)
                } else {
                    !(impatient && entry.state >= EntryState::Finished)
                }
            });
        })
    }

    fn say_accepted(&mut self, entry: &Entry, awaiting_permit: bool, now: Monotonic) {
        let accepted = CommandAccepted {
            command_id: entry.command_id,
            idempotent: entry.idempotent,
            awaiting_permit,
        };
        self.say(AgentMessage::CommandAccepted(accepted), now);
    }

    fn say_started(&mut self, command_id: CommandId, now: Monotonic) {
        self.say(
            AgentMessage::CommandStarted(CommandStarted {
                command_id,
                started_at: Timestamp::default(),
            }),
            now,
        );
    }

    fn resend(&mut self, id: CommandId, now: Monotonic) {
        let outcome = self
            .disk
            .entries
            .get(&id)
            .and_then(|entry| entry.outcome.clone());
        if let Some(outcome) = outcome {
            self.say(
                AgentMessage::CommandResult(CommandResult {
                    command_id: id,
                    outcome,
                }),
                now,
            );
        }
    }

    fn offered(&mut self, offer: Command, s: &mut Surroundings<'_>) -> Result<(), Died> {
        let id = offer.command_id;
        let deadline = self.deadline(offer.deadline.as_of, offer.deadline.remaining_ms);
        let digest = command::digest(&offer.name, &offer.arguments);
        let idempotent = offer.name == name_of(true);
        let local = LocalView {
            verdict: Ok(Idempotent(idempotent || !s.rules.permit)),
            unreported: self
                .disk
                .entries
                .values()
                .filter(|entry| entry.state != EntryState::Reported)
                .count(),
            low_water: if s.rules.forget_by_low_water {
                self.disk.low_water
            } else {
                0
            },
            expired: s.now >= deadline,
        };
        match journal::on_command(
            self.disk.entries.get(&id),
            &digest,
            offer.order,
            offer.permitted,
            &local,
        ) {
            OnCommand::Accept { start, idempotent } => {
                let agent_run_id = self.process.as_ref().map(|process| process.agent_run_id);
                let Some(agent_run_id) = agent_run_id else {
                    return Ok(());
                };
                let entry = Entry {
                    command_id: id,
                    order: offer.order,
                    digest,
                    name: offer.name,
                    arguments: Arguments::new(),
                    idempotent,
                    state: EntryState::Accepted,
                    agent_run_id,
                    outcome: None,
                };
                let kept = entry.clone();
                self.write(s, |disk| {
                    disk.highest_order = disk.highest_order.max(kept.order);
                    disk.entries.insert(id, kept);
                })?;
                self.await_until(id, deadline);
                self.say_accepted(&entry, !start, s.now);
                if start {
                    self.begin(id, deadline, s)
                } else {
                    Ok(())
                }
            }
            OnCommand::Announce { start } => {
                self.await_until(id, deadline);
                if start {
                    return self.begin(id, deadline, s);
                }
                if let Some(entry) = self.disk.entries.get(&id).cloned() {
                    self.say_accepted(&entry, true, s.now);
                }
                Ok(())
            }
            OnCommand::ResendStarted => {
                self.say_started(id, s.now);
                Ok(())
            }
            OnCommand::ResendResult => {
                self.resend(id, s.now);
                Ok(())
            }
            OnCommand::Reject(code) => {
                let rejected = CommandRejected {
                    command_id: id,
                    code,
                    detail: code.to_string(),
                };
                self.say(AgentMessage::CommandRejected(rejected), s.now);
                Ok(())
            }
            OnCommand::SecurityEvent => {
                s.recorder
                    .broken(8, format!("{id:?} came with another digest"));
                Ok(())
            }
        }
    }

    fn await_until(&mut self, id: CommandId, deadline: Monotonic) {
        if let Some(process) = &mut self.process {
            process.deadlines.insert(id, deadline);
        }
    }

    /// The start: deadline, journal, deadline again, and only then the process.
    fn begin(
        &mut self,
        id: CommandId,
        deadline: Monotonic,
        s: &mut Surroundings<'_>,
    ) -> Result<(), Died> {
        if s.now >= deadline {
            return self.finish(
                id,
                Outcome::without_run(OutcomeState::Expired, "too late"),
                s,
            );
        }
        let agent_run_id = self.process.as_ref().map(|process| process.agent_run_id);
        let Some(agent_run_id) = agent_run_id else {
            return Ok(());
        };
        self.write(s, |disk| {
            if let Some(entry) = disk.entries.get_mut(&id) {
                entry.state = EntryState::Started;
                entry.agent_run_id = agent_run_id;
            }
        })?;
        s.recorder.started(id, s.now);
        let name = self.name;
        s.recorder
            .note(|| format!("{:?} {name} starts {id:?}", s.now.as_duration()));
        let takes = Duration::from_millis(s.rng.below(400));
        if let Some(process) = &mut self.process {
            process.running.insert(id, s.now.saturating_add(takes));
        }
        self.say_started(id, s.now);
        Ok(())
    }

    /// Sends what the spool holds, as far as credit goes.
    fn pump(&mut self, s: &Surroundings<'_>) {
        let Some(process) = &mut self.process else {
            return;
        };
        let Some((_connection, session)) = &mut process.session else {
            return;
        };
        while process.established && session.telemetry_credit() > 4_096 {
            let in_flight = &process.in_flight;
            let next = self.disk.spool.iter().find_map(|(epoch, spooled)| {
                let from = in_flight
                    .get(epoch)
                    .copied()
                    .unwrap_or(0)
                    .max(spooled.acknowledged)
                    + 1;
                (from <= spooled.last).then(|| batch(*epoch, from, spooled))
            });
            let Some(batch) = next else { return };
            let (epoch, to) = (batch.spool_epoch, batch.to_seq);
            if session
                .send(AgentMessage::Telemetry(BatchColumns::from(batch)), s.now)
                .is_err()
            {
                return;
            }
            process.in_flight.insert(epoch, to);
        }
    }
}

fn acknowledge(disk: &mut Disk, position: Position) {
    if let Some(spooled) = disk.spool.get_mut(&position.spool_epoch) {
        spooled.acknowledged = spooled.acknowledged.max(position.seq.min(spooled.last));
        spooled.records = spooled.records.split_off(&(spooled.acknowledged + 1));
    }
}

/// Up to a few records from `from` on, with the gaps between them.
fn batch(epoch: AgentRunId, from: u64, spooled: &Spooled) -> Batch {
    let mut gaps: Vec<Gap> = Vec::new();
    let mut records = Vec::new();
    let mut to = from;
    for seq in from..=spooled.last {
        to = seq;
        if spooled.records.contains(&seq) {
            let observed_at = Timestamp::from_unix_micros(1_795_000_000_000_000);
            let fields = [(
                "n".parse().expect("a constant name is valid"),
                FieldValue::Integer(1),
            )]
            .into();
            records.push((
                seq,
                Record {
                    stream: "sim.n".parse().expect("a constant name is valid"),
                    observed_at,
                    fields,
                },
            ));
        } else if let Some(gap) = gaps.last_mut().filter(|gap| gap.to_seq + 1 == seq) {
            gap.to_seq = seq;
        } else {
            gaps.push(Gap {
                from_seq: seq,
                to_seq: seq,
                reason: GapReason::SpoolFull,
            });
        }
        if records.len() == BATCH_RECORDS {
            break;
        }
    }
    Batch {
        spool_epoch: epoch,
        from_seq: from,
        to_seq: to,
        gaps,
        records,
    }
}
