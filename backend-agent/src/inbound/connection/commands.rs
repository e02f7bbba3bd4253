//! What a session does about commands, catalogues and reports: into the store first, then onto the socket.

use std::collections::BTreeMap;

use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use viworks_common::code::{CloseCode, RejectCode};
use viworks_common::command::{CommandState, Outcome};
use viworks_common::id::{CommandId, RunId};
use viworks_common::limits::COMMANDS_UNREPORTED_MAX;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{
    BackendMessage, Catalogue, Command, CommandAccepted, CommandRef, CommandRejected,
    CommandResult, CommandStarted, Event, Go, Heartbeat, HeartbeatAck, Output, ResultAck,
};
use viworks_runtime::fault;

use super::super::judge::Judged;
use super::{Connection, Inbound, Judging, Live};
use crate::command::bus::{CommandChange, OutputChunk, Written};
use crate::data::{
    AcceptOutcome, Accepted, Actor, AuditOutcome, CompleteOutcome, HeartbeatFigures, Holder,
    LeasedCommand, NewAuditRecord, Rejected, SessionTouch, Settled,
};

/// How soon a gateway that was busy is asked again.
const BUSY_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// How long the start of a command waits for its end before it is stored by itself.
const STARTED_PAUSE: std::time::Duration = std::time::Duration::from_millis(25);

/// Why a command with a time limit is not offered to an agent that does not announce that it keeps one.
const TIMEOUT_NOT_KEPT: &str = "this gateway's agent is too old to keep a time limit below its catalogue's: submit the \
                                run without one, or update the agent";

/// Commands whose runs are remembered.
const RUNS_MAX: usize = 1_024;

/// Reports of one session that are audited; more are counted only.
const EVENTS_MAX: u32 = 100;

/// The runs of the commands a session deals with, for those who watch.
#[derive(Debug, Default)]
pub(super) struct Runs {
    known: BTreeMap<CommandId, RunId>,
    events: u32,
}

impl Runs {
    fn remember(&mut self, command_id: CommandId, run_id: RunId) {
        if self.known.len() < RUNS_MAX {
            self.known.insert(command_id, run_id);
        }
    }
}

impl Connection {
    fn live(&mut self) -> Option<(&mut Live, Holder)> {
        let live = self.live.as_mut()?;
        let holder = live.holder;
        Some((live, holder))
    }

    /// Offers what waits, as far as credit goes.
    pub(super) async fn offer_commands(&mut self) {
        let credit = usize::try_from(self.inbound.terms.command_credit).unwrap_or(usize::MAX);
        let Some((live, holder)) = self.live() else {
            return;
        };
        let room = credit.saturating_sub(live.open.len());
        if live.draining || room == 0 {
            live.more = true;
            return;
        }
        let leased = match self.inbound.dispatcher.take(&holder, room).await {
            Ok(leased) => leased,
            Err(error) => return self.fail(&error),
        };
        if let Some((live, _)) = self.live() {
            live.more = leased.commands.len() >= room;
        }
        for settled in &leased.dead {
            self.settled(settled, Some("it could not be delivered".to_owned()));
        }
        for command in leased.commands {
            let sent = if command.timeout_ms.is_some() && !self.keeps_timeout {
                self.withhold(&command).await
            } else {
                self.offer(command)
            };
            if !sent {
                return;
            }
        }
    }

    /// Refuses a command on behalf of a gateway that would not keep its time limit: run without it, it could run for
    /// longer than its operator was promised.
    async fn withhold(&mut self, command: &LeasedCommand) -> bool {
        let Some((_, holder)) = self.live() else {
            return false;
        };
        let (tenant, now) = (&self.peer.identity.tenant, self.inbound.clock.line());
        let rejected = Rejected {
            command_id: command.command_id,
            code: RejectCode::Unavailable,
            detail: TIMEOUT_NOT_KEPT.to_owned(),
            again_at: now,
        };
        let store = &self.inbound.store;
        match store.reject_command(tenant, &holder, rejected, now).await {
            Ok(Some(settled)) => self.settled(&settled, Some(TIMEOUT_NOT_KEPT.to_owned())),
            Ok(None) => {}
            Err(error) => {
                self.fail(&error);
                return false;
            }
        }
        // Its place is free again, and something else may wait.
        self.ask_again();
        true
    }

    fn offer(&mut self, leased: LeasedCommand) -> bool {
        let state = if leased.permitted {
            CommandState::Released
        } else {
            CommandState::Dispatched
        };
        let deadline = self.permit(leased.deadline);
        let command_id = leased.command_id;
        if let Some((live, _)) = self.live() {
            live.open.insert(command_id);
            live.pace.offered();
            live.runs.remember(command_id, leased.run_id);
        }
        self.moved(leased.run_id, command_id, state, Some(leased.attempt), None);
        self.send(BackendMessage::Command(Command {
            command_id,
            order: leased.order,
            name: leased.name,
            arguments: leased.arguments,
            digest: hex(&leased.digest),
            attempt: leased.attempt,
            traceparent: leased.traceparent,
            deadline,
            permitted: leased.permitted,
            timeout_ms: leased.timeout_ms,
        }))
    }

    pub(super) async fn on_accepted(&mut self, accepted: CommandAccepted) {
        let Some((_, holder)) = self.live() else {
            return;
        };
        let command_id = accepted.command_id;
        let accepted = Accepted {
            command_id,
            idempotent: accepted.idempotent,
            awaiting_permit: accepted.awaiting_permit,
        };
        let (tenant, now) = (&self.peer.identity.tenant, self.inbound.clock.line());
        match self
            .inbound
            .store
            .accept_command(tenant, &holder, accepted, now)
            .await
        {
            Ok(AcceptOutcome::Go { deadline }) => {
                fault::point("release.committed.before_go");
                if let Some(run_id) = self.known_run(command_id) {
                    self.moved(run_id, command_id, CommandState::Released, None, None);
                }
                let permit = self.permit(deadline);
                self.send(BackendMessage::Go(Go { command_id, permit }));
            }
            Ok(AcceptOutcome::Drop) => {
                self.close_offer(command_id);
                self.send(BackendMessage::CommandDrop(CommandRef { command_id }));
                self.offer_more().await;
            }
            Ok(AcceptOutcome::Cancel) => {
                self.send(BackendMessage::CommandCancel(CommandRef { command_id }));
            }
            Ok(AcceptOutcome::Wait) => {}
            Err(error) => self.fail(&error),
        }
    }

    pub(super) async fn on_rejected(&mut self, rejected: CommandRejected) {
        let Some((_, holder)) = self.live() else {
            return;
        };
        let (tenant, now) = (&self.peer.identity.tenant, self.inbound.clock.line());
        let command_id = rejected.command_id;
        let detail = rejected.detail;
        let rejected = Rejected {
            command_id,
            code: rejected.code,
            detail: detail.clone(),
            again_at: now.saturating_add(BUSY_PAUSE),
        };
        match self
            .inbound
            .store
            .reject_command(tenant, &holder, rejected, now)
            .await
        {
            Ok(Some(settled)) => {
                if settled.state == CommandState::Queued {
                    self.ask_again();
                }
                self.settled(&settled, Some(detail));
            }
            Ok(None) => debug!(%command_id, "a gateway rejects a command that nobody knows"),
            Err(error) => return self.fail(&error),
        }
        self.close_offer(command_id);
        self.offer_more().await;
    }

    /// Most commands are over in a moment; then their result says that they started, and a transaction is saved.
    pub(super) fn on_started(&mut self, started: CommandStarted) {
        let due = self.now().saturating_add(STARTED_PAUSE);
        if let Some((live, _)) = self.live() {
            live.started
                .retain(|(_, known)| known.command_id != started.command_id);
            // Nobody has more open; a report beyond that says nothing that matters.
            if live.started.len() < COMMANDS_UNREPORTED_MAX {
                live.started.push_back((due, started));
            }
        }
    }

    /// Stores what started and is not over yet.
    pub(super) async fn store_started(&mut self, now: Monotonic) {
        while let Some(started) = self.next_started(now) {
            self.start(started).await;
        }
    }

    fn next_started(&mut self, now: Monotonic) -> Option<CommandStarted> {
        let (live, _) = self.live()?;
        let (due, _) = live.started.front()?;
        if *due > now {
            return None;
        }
        live.started.pop_front().map(|(_, started)| started)
    }

    async fn start(&mut self, started: CommandStarted) {
        let Some((_, holder)) = self.live() else {
            return;
        };
        let (tenant, now) = (&self.peer.identity.tenant, self.inbound.clock.line());
        let CommandStarted {
            command_id,
            started_at,
        } = started;
        match self
            .inbound
            .store
            .start_command(tenant, &holder, command_id, started_at, now)
            .await
        {
            Ok(true) => {
                if let Some(run_id) = self.known_run(command_id) {
                    self.moved(run_id, command_id, CommandState::Running, None, None);
                }
            }
            Ok(false) => {}
            Err(error) => self.fail(&error),
        }
    }

    pub(super) async fn on_result(&mut self, result: CommandResult) {
        let Some((live, holder)) = self.live() else {
            return;
        };
        live.started
            .retain(|(_, started)| started.command_id != result.command_id);
        let (tenant, now) = (&self.peer.identity.tenant, self.inbound.clock.line());
        let CommandResult {
            command_id,
            outcome,
        } = result;
        let summary = Summary::of(&outcome);
        let completed = self
            .inbound
            .store
            .complete_command(tenant, &holder, command_id, outcome, now)
            .await;
        let completed = match completed {
            Ok(completed) => completed,
            Err(error) => return self.fail(&error),
        };
        fault::point("result.committed.before_acknowledgement");
        let low_water = completed.low_water();
        let not_kept = matches!(completed, CompleteOutcome::Orphan { kept: false, .. });
        match completed {
            CompleteOutcome::Completed { settled, .. } => self.completed(&settled, summary),
            CompleteOutcome::LateOutcome { .. } | CompleteOutcome::Repeated { .. } => {}
            CompleteOutcome::Orphan { kept, .. } => self.orphan(command_id, kept),
        }
        self.close_offer(command_id);
        // One too many of them ended the session: nothing is offered to it any more.
        if self.session.closed().is_some() {
            return;
        }
        self.send(BackendMessage::ResultAck(ResultAck {
            command_id,
            low_water,
            not_kept: not_kept && self.tells_not_kept,
        }));
        self.offer_more().await;
    }

    /// The database was restored to before a command, or its gateway made it up.
    fn orphan(&mut self, command_id: CommandId, kept: bool) {
        let (now, agent_id) = (self.now(), self.peer.identity.agent_id);
        let Inbound {
            metrics, manager, ..
        } = &*self.inbound;
        metrics.refused(if kept {
            "orphan_result"
        } else {
            "orphan_result_not_kept"
        });
        if let Some(left_out) = manager.may_log(agent_id, now) {
            info!(gateway = %self.peer.name, %agent_id, %command_id, kept, left_out, "the result of a command that the database does not have");
        }
        let within = self.live().map(|(live, _)| live.pace.unknown(now));
        if let Some(Err(wait)) = within {
            self.slow_down("results of too many commands that nobody knows", wait);
        }
    }

    pub(super) async fn on_output(&mut self, output: Output) {
        let bytes = u64::try_from(output.data.len()).unwrap_or(u64::MAX);
        let Some((live, _)) = self.live() else { return };
        live.output_received = live.output_received.saturating_add(bytes);
        let Some(run_id) = self.find_run(output.command_id).await else {
            let now = self.now();
            if let Some((live, _)) = self.live()
                && let Err(wait) = live.pace.unknown(now)
            {
                self.slow_down("output of too many commands that nobody knows", wait);
            }
            return;
        };
        let chunk = OutputChunk {
            at: self.inbound.clock.line(),
            command_id: output.command_id,
            agent_id: self.peer.identity.agent_id,
            stream: output.stream,
            offset: output.offset,
            data: output.data,
        };
        self.inbound.bus.output(run_id, chunk);
    }

    pub(super) fn on_heartbeat(&mut self, heartbeat: &Heartbeat) {
        let window = self.inbound.terms.output_window_bytes;
        let Some((live, holder)) = self.live() else {
            return;
        };
        let output_bytes = live.output_received.saturating_add(window);
        live.stream.skew_ms = heartbeat.clock_skew_ms;
        self.inbound.heartbeats.note(SessionTouch {
            agent_id: holder.agent_id,
            epoch: holder.epoch,
            figures: HeartbeatFigures {
                round_trip_us: heartbeat.round_trip_us,
                clock_skew_ms: heartbeat.clock_skew_ms,
                spool_records: heartbeat.spool_records,
                spool_bytes: heartbeat.spool_bytes,
                commands_running: heartbeat.commands_running,
            },
        });
        self.send(BackendMessage::HeartbeatAck(HeartbeatAck {
            sent_at_ms: heartbeat.sent_at_ms,
            server_time: self.inbound.clock.wall(),
            output_bytes,
        }));
    }

    /// Has a catalogue judged, while the session goes on: a catalogue can take long, and only its own gateway may have to
    /// wait for it.
    pub(super) fn on_catalogue(&mut self, catalogue: Catalogue) {
        let judge = self.inbound.judge.clone();
        let Some((live, _)) = self.live() else {
            return;
        };
        let Catalogue { digest, commands } = catalogue;
        let (verdict, judged) = oneshot::channel();
        live.judging = Some(Judging {
            digest,
            verdict: judged,
        });
        let task = judge.run(commands, verdict);
        drop(self.inbound.lifecycle.spawn("catalogue", task));
    }

    /// Keeps a catalogue that was judged.
    pub(super) async fn on_judged(&mut self, judged: Option<Judged>) {
        let Some((live, holder)) = self.live() else {
            return;
        };
        let Some(Judging { digest, .. }) = live.judging.take() else {
            return;
        };
        let Some((commands, refused)) = judged else {
            let reason = "the backend could not judge the catalogue in time";
            let now = self.now();
            return self.session.close(CloseCode::Internal, reason, now);
        };
        for _entry in &refused {
            self.inbound.metrics.refused("catalogue_entry");
        }
        if let Some(first) = refused.first() {
            // The first says what is wrong; `command show` tells of all.
            warn!(gateway = %self.peer.name, agent_id = %holder.agent_id, entries = refused.len(), command = %first.name, problem = first.problem, "entries of the gateway's catalogue are refused");
        }
        let (tenant, now) = (&self.peer.identity.tenant, self.inbound.clock.line());
        let saved = self
            .inbound
            .store
            .save_catalogue(
                tenant,
                holder.agent_id,
                holder.epoch,
                &digest,
                commands,
                now,
            )
            .await;
        if let Err(error) = saved {
            self.fail(&error);
        }
    }

    pub(super) async fn on_pin_report(&mut self, version: u64) {
        let Some((_, holder)) = self.live() else {
            return;
        };
        let tenant = &self.peer.identity.tenant;
        let reported = self
            .inbound
            .store
            .report_pins(tenant, holder.agent_id, holder.epoch, version)
            .await;
        if let Err(error) = reported {
            self.fail(&error);
        }
    }

    pub(super) async fn on_gateway_event(&mut self, event: &Event) {
        let Some((live, holder)) = self.live() else {
            return;
        };
        live.runs.events = live.runs.events.saturating_add(1);
        if live.runs.events > EVENTS_MAX {
            return self.inbound.metrics.refused("gateway_events");
        }
        let (kind, detail) = (&event.kind, &event.detail);
        let record = NewAuditRecord {
            actor: Actor::gateway(holder.agent_id),
            action: "gateway.event".to_owned(),
            object: Actor::gateway(holder.agent_id).to_string(),
            outcome: AuditOutcome::Noted,
            detail: serde_json::json!({ "kind": kind, "detail": detail }),
        };
        let (tenant, now) = (&self.peer.identity.tenant, self.inbound.clock.line());
        let (store, agent_id) = (&self.inbound.store, holder.agent_id);
        match store.note_gateway(tenant, agent_id, record, now).await {
            Ok(true) => {
                warn!(gateway = %self.peer.name, %agent_id, kind, detail, "a gateway reports");
            }
            // Kept for good, so bounded over all sessions of a gateway, too.
            Ok(false) => self.inbound.metrics.refused("gateway_events"),
            Err(error) => self.fail(&error),
        }
    }

    /// A gateway that was busy is asked again by this session, not only by the reconciler.
    fn ask_again(&mut self) {
        let at = self.now().saturating_add(BUSY_PAUSE);
        if let Some((live, _)) = self.live() {
            live.again_at.get_or_insert(at);
        }
    }

    pub(super) async fn offer_again(&mut self, now: Monotonic) {
        let due = |live: &mut Live| live.again_at.take_if(|at| *at <= now);
        if self.live.as_mut().and_then(due).is_some() {
            self.offer_commands().await;
        }
    }

    fn close_offer(&mut self, command_id: CommandId) {
        if let Some((live, _)) = self.live() {
            live.open.remove(&command_id);
            live.runs.known.remove(&command_id);
        }
    }

    /// Credit came back: what did not fit before may fit now.
    async fn offer_more(&mut self) {
        if self.live().is_some_and(|(live, _)| live.more) {
            self.offer_commands().await;
        }
    }

    fn known_run(&mut self, command_id: CommandId) -> Option<RunId> {
        self.live()?.0.runs.known.get(&command_id).copied()
    }

    /// The run of a command that may have been offered in an earlier session.
    async fn find_run(&mut self, command_id: CommandId) -> Option<RunId> {
        if let Some(run_id) = self.known_run(command_id) {
            return Some(run_id);
        }
        let tenant = &self.peer.identity.tenant;
        let found = self.inbound.store.command(tenant, command_id).await;
        let run_id = found
            .ok()
            .flatten()
            .filter(|command| command.agent_id == self.peer.identity.agent_id)?
            .run_id;
        self.live()?.0.runs.remember(command_id, run_id);
        Some(run_id)
    }

    fn moved(
        &self,
        run_id: RunId,
        command_id: CommandId,
        state: CommandState,
        attempt: Option<u32>,
        reason: Option<String>,
    ) {
        let change = self.change(command_id, state, attempt, reason);
        self.inbound.bus.command_changed(run_id, change, false);
    }

    fn settled(&self, settled: &Settled, reason: Option<String>) {
        if settled.state.is_final() {
            self.inbound.metrics.commands_final(settled.state, 1);
        }
        let change = self.change(settled.command_id, settled.state, None, reason);
        let bus = &self.inbound.bus;
        bus.command_changed(settled.run_id, change, settled.run_finished);
    }

    fn completed(&self, settled: &Settled, summary: Summary) {
        self.inbound.metrics.commands_final(settled.state, 1);
        let change = CommandChange {
            exit_code: summary.exit_code,
            duration_ms: Some(summary.duration_ms),
            written: Some(summary.written),
            ..self.change(settled.command_id, settled.state, None, summary.reason)
        };
        let bus = &self.inbound.bus;
        bus.command_changed(settled.run_id, change, settled.run_finished);
    }

    fn change(
        &self,
        command_id: CommandId,
        state: CommandState,
        attempt: Option<u32>,
        reason: Option<String>,
    ) -> CommandChange {
        let at: Timestamp = self.inbound.clock.line();
        CommandChange {
            at,
            command_id,
            agent_id: self.peer.identity.agent_id,
            state,
            attempt,
            exit_code: None,
            duration_ms: None,
            reason,
            written: None,
        }
    }
}

/// What watchers hear of an outcome.
struct Summary {
    exit_code: Option<i32>,
    duration_ms: u64,
    reason: Option<String>,
    written: Written,
}

impl Summary {
    fn of(outcome: &Outcome) -> Self {
        Self {
            exit_code: outcome.exit_code,
            duration_ms: outcome.duration_ms,
            reason: outcome.reason.clone(),
            written: Written {
                stdout: outcome.stdout.total_bytes(),
                stderr: outcome.stderr.total_bytes(),
            },
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
        text
    })
}
