//! Server-sent events of a run: what was, what is, then what comes, until it is finished.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue};
use viworks_api::{MissedOutput, NamedGateway, OutputBytes, ProblemCode, RunEvent};
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, ApiKeyId, CommandId, RunId};
use viworks_common::limits::PAGE_ROWS_MAX;
use viworks_common::time::Monotonic;
use viworks_common::wire::message::OutputStream;
use viworks_runtime::shares::Share;

use super::extract::{NoParams, Params, Segment};
use super::handlers::runs::{find, view};
use super::looks::Looks;
use super::problem::{ApiError, ApiResult};
use super::request::{Api, share};
use super::{ApiState, Shared};
use crate::auth::Principal;
use crate::command::bus::{Cursor, OutputChunk, RunChange, Step, Subscription, Written};
use crate::data::{Command, Page, Run};

/// Follows a run live. A client that reconnects with `Last-Event-ID` goes on where it was; one that fell behind gets
/// `missed` and every state as it stands. `missed` also names each range of output that does not come, where it would
/// have come, by command and stream; the stream ends after `finished`.
#[utoipa::path(get, path = "/v1/runs/{run}/events", operation_id = "followRun", tag = "runs",
    params(("run" = String, Path, format = Uuid, description = "The run's id"),
        ("Last-Event-ID" = String, Header, pattern = "^[0-9a-f]{16}-(0|[1-9][0-9]{0,18})$", description = "The id of the last event that was seen")),
    responses((status = 200, description = "Events; the data of each is a RunEvent", body = RunEvent, content_type = "text/event-stream")))]
pub(super) async fn stream(
    State(state): Api,
    Extension(principal): Extension<Principal>,
    Segment(run_id): Segment<RunId>,
    _params: Params<NoParams>,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let after = last_event_id(&headers)?;
    let place = share(&state, &state.streams, &principal, state.limits.heartbeat)?;
    find(&state, run_id).await?;
    let heartbeat = state.limits.heartbeat;
    let now = state.clock.now();
    let follower = Follower {
        state,
        key: principal.key_id,
        run_id,
        after,
        subscription: None,
        names: BTreeMap::new(),
        told: BTreeMap::new(),
        looked_at: now,
        looks: Looks::default(),
        found: BTreeMap::new(),
        from_the_start: after.is_none(),
        reached: BTreeMap::new(),
        written: BTreeMap::new(),
        ready: VecDeque::new(),
        done: false,
        _place: place,
    };
    let events = stream::unfold(follower, Follower::next);
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(heartbeat))
        .into_response();
    response.headers_mut().insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    Ok(response)
}

fn last_event_id(headers: &HeaderMap) -> ApiResult<Option<Cursor>> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("\u{fffd}");
    // What an event source sends before it has seen any id.
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_invalid| {
        ApiError::new(ProblemCode::InvalidHeader, "the Last-Event-ID is not valid").with(
            "Last-Event-ID",
            "not valid",
            Some("the id of an event of this stream".to_owned()),
        )
    })
}

/// Ranges named in one event: far below what a client reads as one.
const MISSED_TOGETHER: usize = 256;

/// Events that one client's queue takes from the ring at once.
const BATCH: usize = 64;

/// What a look into the ring brought.
enum Drained {
    /// Everything in between.
    All,
    /// Events were lost.
    Gap,
    /// The ring is gone.
    Forgotten,
}

/// What is ready for a client. Output is made into an event once its client has its turn: many may follow a run that
/// writes much.
enum Ready {
    Event(RunEvent),
    Output {
        change: Arc<RunChange>,
        gateway: NamedGateway,
    },
}

/// One client of one run.
struct Follower {
    state: Shared,
    key: ApiKeyId,
    run_id: RunId,
    /// The last event that the client has.
    after: Option<Cursor>,
    /// Where it is in the ring; none before the start and after the ring was lost.
    subscription: Option<Subscription>,
    names: BTreeMap<AgentId, NamedGateway>,
    /// The last state of each command that was made ready for the client.
    told: BTreeMap<CommandId, CommandState>,
    /// When the store was last asked whether something moved that nobody announced here.
    looked_at: Monotonic,
    /// Where such a look goes on.
    looks: Looks,
    /// What such a look found: an announcement that comes after all says nothing new.
    found: BTreeMap<CommandId, CommandState>,
    /// Whether the client has seen nothing before this stream; what another one brought it is not known here.
    from_the_start: bool,
    /// Behind the last byte of each output that was made ready.
    reached: BTreeMap<(CommandId, OutputStream), u64>,
    /// How much commands that ended wrote in all.
    written: BTreeMap<CommandId, (AgentId, Written)>,
    ready: VecDeque<(Option<Cursor>, Ready)>,
    done: bool,
    _place: Share<ApiKeyId>,
}

impl Follower {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some((cursor, ready)) = self.ready.pop_front() {
                self.after = cursor.or(self.after);
                let event = self.event_of(ready).await?;
                return Some((Ok(encode(cursor, &event)), self));
            }
            if self.done || self.state.stopping.is_cancelled() {
                return None;
            }
            if let Err(error) = self.fill().await {
                // The client sees the stream end and comes back to a status.
                tracing::warn!(?error, run = %self.run_id, "an event stream ended early");
                return None;
            }
        }
    }

    /// The event; nothing when the process stops before its turn.
    async fn event_of(&self, ready: Ready) -> Option<RunEvent> {
        let (change, gateway) = match ready {
            Ready::Event(event) => return Some(event),
            Ready::Output { change, gateway } => (change, gateway),
        };
        let RunChange::Output(chunk) = &*change else {
            return None;
        };
        tokio::select! {
            () = self.state.stopping.cancelled() => return None,
            () = self.state.narration.next(self.key, chunk.data.len()) => {}
        }
        Some(RunEvent::Output {
            at: chunk.at,
            command_id: chunk.command_id,
            gateway,
            stream: chunk.stream,
            offset: chunk.offset,
            data: OutputBytes::new(&chunk.data),
        })
    }

    /// Gets at least one event ready, or ends.
    async fn fill(&mut self) -> ApiResult<()> {
        let state = Arc::clone(&self.state);
        loop {
            let Some(mut subscription) = self.subscription.take() else {
                self.catch_up().await?;
                if self.ready.is_empty() {
                    continue;
                }
                return Ok(());
            };
            match self.drain(&mut subscription) {
                Drained::All => {}
                Drained::Gap => self.restate().await?,
                // The next round takes a new place.
                Drained::Forgotten => return Ok(()),
            }
            let now = state.clock.now();
            let due = now.saturating_since(self.looked_at) >= state.limits.recheck
                || subscription.asked_to_look();
            if self.ready.is_empty() || due {
                let run = find(&state, self.run_id).await?;
                if run.is_finished() {
                    self.finish(run, &mut subscription).await?;
                } else if due {
                    self.looked_at = now;
                    self.look_for_silent_moves(&run).await?;
                }
            }
            if !self.ready.is_empty() || state.stopping.is_cancelled() {
                self.subscription = Some(subscription);
                return Ok(());
            }
            let rest = now.saturating_since(self.looked_at);
            tokio::select! {
                () = state.stopping.cancelled() => {}
                () = tokio::time::sleep(state.limits.recheck.saturating_sub(rest)) => {}
                () = subscription.changed() => {}
            }
            self.subscription = Some(subscription);
        }
    }

    /// The run is finished: what is left in the ring, states that nobody announced, and the end.
    async fn finish(&mut self, run: Run, subscription: &mut Subscription) -> ApiResult<()> {
        loop {
            let before = self.ready.len();
            self.drain(subscription);
            if self.ready.len() == before {
                break;
            }
        }
        self.restate().await?;
        self.tell_missing_ends();
        let run = Box::new(view(run));
        self.ready
            .push_back((None, Ready::Event(RunEvent::Finished { run })));
        self.done = true;
        Ok(())
    }

    /// Commands whose gateways are connected to another instance move without a word here, and so does what another
    /// process ends: the counts of the run tell. One look reads so many of its commands, however many it has.
    async fn look_for_silent_moves(&mut self, run: &Run) -> ApiResult<()> {
        let mut told = BTreeMap::<CommandState, u64>::new();
        for state in self.told.values() {
            *told.entry(*state).or_default() += 1;
        }
        if told == run.states {
            return Ok(());
        }
        // Of one that came back it is not known here what it was told: it is told everything once.
        let commands = if told.values().sum::<u64>() < run.states.values().sum() {
            self.load().await?
        } else {
            let Some(page) = self.looks.next(&self.told) else {
                return Ok(());
            };
            let (store, tenant) = (&self.state.store, &self.state.tenant);
            let listing = store.run_commands(tenant, self.run_id, page).await?;
            if let Some(last) = listing.items.last() {
                self.looks.reached(last.command_id);
            }
            listing.items
        };
        for command in commands {
            let (id, state) = (command.command_id, command.state);
            if self.state_as_it_is(command) {
                self.found.insert(id, state);
            }
        }
        Ok(())
    }

    /// Gets every state ready that the client was not told.
    async fn restate(&mut self) -> ApiResult<()> {
        for command in self.load().await? {
            self.state_as_it_is(command);
        }
        Ok(())
    }

    /// Gets the state of a command ready, unless the client was told it.
    fn state_as_it_is(&mut self, command: Command) -> bool {
        if let Some(written) = written(&command) {
            self.written
                .insert(command.command_id, (command.agent_id, written));
        }
        let known = self.told.insert(command.command_id, command.state);
        let is_news = known != Some(command.state);
        if is_news {
            self.ready
                .push_back((None, Ready::Event(as_event(command))));
        }
        is_news
    }

    /// Takes a place in the ring, and gets ready what a client needs before live events make sense: remembered output,
    /// then every state as it stands.
    async fn catch_up(&mut self) -> ApiResult<()> {
        let bus = Arc::clone(self.state.commands.bus());
        let mut subscription = bus.subscribe(self.run_id, self.after);
        // The store is read behind the subscription, so that nothing falls between the two.
        self.load().await?;
        if !subscription.resumed() {
            if self.after.take().is_some() {
                self.missed(0, Vec::new());
            }
            self.replay_output(&mut subscription);
            self.restate().await?;
        }
        self.subscription = Some(subscription);
        Ok(())
    }

    fn replay_output(&mut self, subscription: &mut Subscription) {
        while subscription.is_replaying() {
            match subscription.poll_next() {
                Step::Event(cursor, change) => {
                    if matches!(*change, RunChange::Output(_)) {
                        self.push(cursor, change);
                    }
                }
                Step::Missed(events) => self.missed(events, Vec::new()),
                Step::Pending | Step::Forgotten => return,
            }
        }
    }

    /// Reads the run's commands and remembers their gateways' names.
    async fn load(&mut self) -> ApiResult<Vec<Command>> {
        let state = Arc::clone(&self.state);
        let mut all = Vec::new();
        let mut page = Page::first(PAGE_ROWS_MAX);
        loop {
            let listing = state
                .store
                .run_commands(&state.tenant, self.run_id, page)
                .await?;
            for command in &listing.items {
                self.names
                    .entry(command.agent_id)
                    .or_insert_with(|| NamedGateway {
                        id: command.agent_id,
                        name: command.gateway.clone(),
                    });
            }
            all.extend(listing.items);
            match listing.next {
                Some(next) => page = Page::after(next, PAGE_ROWS_MAX),
                None => return Ok(all),
            }
        }
    }

    /// Moves what there is into the client's queue, a batch at a time: the rest stays in the ring, which is bounded.
    fn drain(&mut self, subscription: &mut Subscription) -> Drained {
        for _event in 0..BATCH {
            match subscription.poll_next() {
                Step::Event(cursor, change) => self.push(cursor, change),
                Step::Missed(events) => {
                    self.missed(events, Vec::new());
                    return Drained::Gap;
                }
                Step::Forgotten => return Drained::Forgotten,
                Step::Pending => break,
            }
        }
        Drained::All
    }

    fn push(&mut self, cursor: Cursor, change: Arc<RunChange>) {
        let agent_id = match &*change {
            RunChange::Command(change) => {
                if let Some(written) = change.written {
                    self.written
                        .insert(change.command_id, (change.agent_id, written));
                }
                match self.found.get(&change.command_id) {
                    Some(found) if change.state <= *found => return,
                    Some(_) => drop(self.found.remove(&change.command_id)),
                    None => {}
                }
                self.told.insert(change.command_id, change.state);
                change.agent_id
            }
            RunChange::Output(chunk) => chunk.agent_id,
        };
        // Every command of the run was read before the first event.
        let Some(gateway) = self.names.get(&agent_id).cloned() else {
            return;
        };
        let ready = match &*change {
            RunChange::Command(change) => Ready::Event(RunEvent::Command {
                at: change.at,
                command_id: change.command_id,
                gateway,
                state: change.state,
                attempt: change.attempt,
                exit_code: change.exit_code,
                duration_ms: change.duration_ms,
                reason: change.reason.clone(),
                stdout_bytes: change.written.map(|written| written.stdout),
                stderr_bytes: change.written.map(|written| written.stderr),
            }),
            RunChange::Output(chunk) => {
                self.tell_hole_before(chunk, &gateway);
                Ready::Output { change, gateway }
            }
        };
        self.ready.push_back((Some(cursor), ready));
    }

    fn missed(&mut self, events: u64, output: Vec<MissedOutput>) {
        let missed = RunEvent::Missed { events, output };
        self.ready.push_back((None, Ready::Event(missed)));
    }

    /// Says what lies between a piece and the one before it: a bound on its way, or this client, lost it.
    fn tell_hole_before(&mut self, chunk: &OutputChunk, gateway: &NamedGateway) {
        let place = (chunk.command_id, chunk.stream);
        let reached = match self.reached.get(&place) {
            // A command that was run again begins again.
            Some(reached) if chunk.offset < *reached => 0,
            Some(reached) => *reached,
            None if self.from_the_start => 0,
            None => chunk.offset,
        };
        let bytes = u64::try_from(chunk.data.len()).unwrap_or(u64::MAX);
        self.reached
            .insert(place, chunk.offset.saturating_add(bytes));
        if chunk.offset > reached {
            let hole = MissedOutput {
                command_id: chunk.command_id,
                gateway: gateway.clone(),
                stream: chunk.stream,
                offset: reached,
                bytes: chunk.offset - reached,
            };
            self.missed(0, vec![hole]);
        }
    }

    /// Says what commands wrote behind the last piece that came.
    fn tell_missing_ends(&mut self) {
        let mut holes = Vec::new();
        for (command_id, (agent_id, written)) in &self.written {
            let Some(gateway) = self.names.get(agent_id) else {
                continue;
            };
            for (stream, total) in [
                (OutputStream::Stdout, written.stdout),
                (OutputStream::Stderr, written.stderr),
            ] {
                let reached = match self.reached.get(&(*command_id, stream)) {
                    Some(reached) => *reached,
                    None if self.from_the_start => 0,
                    None => continue,
                };
                if total > reached {
                    holes.push(MissedOutput {
                        command_id: *command_id,
                        gateway: gateway.clone(),
                        stream,
                        offset: reached,
                        bytes: total - reached,
                    });
                }
            }
        }
        for some in holes.chunks(MISSED_TOGETHER) {
            self.missed(0, some.to_vec());
        }
    }
}

fn written(command: &Command) -> Option<Written> {
    let result = command.result.as_ref()?;
    Some(Written {
        stdout: result.stdout_bytes?,
        stderr: result.stderr_bytes?,
    })
}

/// A command's state as the store has it.
fn as_event(command: Command) -> RunEvent {
    let result = command.result.as_ref();
    RunEvent::Command {
        at: command
            .finished_at
            .or(command.released_at)
            .unwrap_or(command.created_at),
        command_id: command.command_id,
        gateway: NamedGateway {
            id: command.agent_id,
            name: command.gateway,
        },
        state: command.state,
        attempt: Some(command.attempt),
        exit_code: result.and_then(|result| result.exit_code),
        duration_ms: result.map(|result| result.duration_ms),
        reason: command
            .reason
            .or_else(|| result.and_then(|result| result.reason.clone())),
        stdout_bytes: result.and_then(|result| result.stdout_bytes),
        stderr_bytes: result.and_then(|result| result.stderr_bytes),
    }
}

fn encode(cursor: Option<Cursor>, event: &RunEvent) -> Event {
    let data = serde_json::to_string(event).expect("an event has string keys and finite numbers");
    let framed = Event::default().event(event.name()).data(data);
    match cursor {
        Some(cursor) => framed.id(cursor.to_string()),
        None => framed,
    }
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState").finish_non_exhaustive()
    }
}
