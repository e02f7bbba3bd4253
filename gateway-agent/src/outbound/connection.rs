//! Drives one session over one socket: one loop, one order, and every event matched once.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use viworks_common::code::CloseCode;
use viworks_common::id::AgentRunId;
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::session::backoff::FailureClass;
use viworks_common::session::{AgentEvent, AgentSession, Closed, SendRefusal};
use viworks_common::telemetry::{Batch, BatchColumns};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{AgentMessage, Catalogue, Heartbeat, Hello, Output, PinReport, Welcome};
use viworks_runtime::clock::{self, Clock};
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::random;

use crate::engine::Engine;
use crate::executor::LiveOutput;
use crate::journal::Journal;
use crate::spool::{Spool, SpoolError};
use crate::status::Status;

/// Below this much credit no batch is worth its framing.
const TELEMETRY_CREDIT_MIN: usize = 2 * 1024;
/// Frames written before the socket is flushed and the reader looked at.
const FRAMES_PER_FLUSH_MAX: usize = 16;
/// How long the close handshake may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// A WebSocket, encrypted or not.
pub trait Socket:
    Stream<Item = Result<Message, tungstenite::Error>> + Sink<Message, Error = tungstenite::Error> + Unpin + Send
{
}

impl<S> Socket for S where
    S: Stream<Item = Result<Message, tungstenite::Error>> + Sink<Message, Error = tungstenite::Error> + Unpin + Send
{
}

/// What a connection works with.
#[derive(Clone)]
pub struct Context {
    /// Commands.
    pub engine: Engine,
    /// The ratchet.
    pub journal: Journal,
    /// Telemetry.
    pub spool: Spool,
    /// Live output of running commands.
    pub live: Arc<Mutex<mpsc::Receiver<LiveOutput>>>,
    /// Changes of the catalogue.
    pub catalogue_changes: watch::Receiver<u64>,
    /// What people are shown.
    pub status: Status,
    /// Where pin sets are kept.
    pub pins: Arc<dyn PinKeeper>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Stopping.
    pub lifecycle: Lifecycle,
    /// A send without progress for this long closes.
    pub send_timeout: Duration,
}

/// Keeps pin sets across restarts.
pub trait PinKeeper: Send + Sync {
    /// The set in force.
    fn current(&self) -> PinSet;
    /// Takes a newer set into force, durably; the older one stays trusted until a session is confirmed on the newer.
    ///
    /// # Errors
    /// Why it was not taken.
    fn adopt(&self, offered: &PinSet, live: &SpkiPin) -> Result<(), String>;
    /// A session was confirmed on a server key.
    fn confirmed(&self, live: &SpkiPin);
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// What it says about the next attempt.
    pub class: FailureClass,
    /// One sentence for people.
    pub cause: String,
    /// What to do, when something should be done.
    pub fix: Option<String>,
    /// How long the session was confirmed.
    pub confirmed_for: Duration,
}

/// Runs the session to its end.
pub async fn drive(socket: impl Socket, session: AgentSession, hello: Hello, live_pin: SpkiPin, context: &Context) -> Ended {
    Connection {
        socket,
        session,
        hello: Some(hello),
        live_pin,
        context: context.clone(),
        uplink: None,
        waiting: None,
        unsent_output: None,
        in_flight: BTreeMap::new(),
        reading: None,
        spool_checked: u64::MAX,
        slot: Duration::ZERO,
        welcome: None,
        established_at: None,
        flushing_since: None,
        drain: None,
        refused: None,
        close_frame: None,
        skew_ms: None,
        round_trip: None,
    }
    .run()
    .await
}

type Reading = Pin<Box<dyn Future<Output = Result<Option<Batch>, SpoolError>> + Send>>;

struct Connection<S> {
    socket: S,
    session: AgentSession,
    hello: Option<Hello>,
    live_pin: SpkiPin,
    context: Context,
    /// What the engine has to say in this session.
    uplink: Option<mpsc::Receiver<AgentMessage>>,
    /// A message the session had no room for.
    waiting: Option<AgentMessage>,
    unsent_output: Option<LiveOutput>,
    /// Up to where each spool epoch was sent.
    in_flight: BTreeMap<AgentRunId, u64>,
    /// A look into the spool.
    reading: Option<Reading>,
    /// How much had been appended when the spool was last looked at; what was appended since is not known yet.
    spool_checked: u64,
    slot: Duration,
    welcome: Option<Box<Welcome>>,
    established_at: Option<Monotonic>,
    flushing_since: Option<Monotonic>,
    drain: Option<Duration>,
    refused: Option<(CloseCode, String, Option<Duration>)>,
    close_frame: Option<(u16, String)>,
    skew_ms: Option<i64>,
    round_trip: Option<Duration>,
}

/// What woke the loop.
enum Wake {
    Frame(Option<Result<Message, tungstenite::Error>>),
    Flushed(Result<(), tungstenite::Error>),
    Uplink(Option<AgentMessage>),
    Live(LiveOutput),
    Batch(Result<Option<Batch>, SpoolError>),
    Spooled,
    CatalogueChanged,
    Timer,
    Stopping,
}

impl<S: Socket> Connection<S> {
    async fn run(mut self) -> Ended {
        let lost = loop {
            let now = self.context.clock.now();
            if self.session.poll_timeout().is_some_and(|(due, _why)| due <= now) {
                self.session.handle_timeout(now);
            }
            while let Some(event) = self.session.poll_event() {
                self.handle(event).await;
            }
            if let Err(error) = self.transmit().await {
                break Some(describe(&error));
            }
            if self.session.closed().is_some() && self.flushing_since.is_none() {
                break None;
            }
            if self.stalled() {
                break Some(format!("a send made no progress for {} s", self.context.send_timeout.as_secs_f64()));
            }
            let wake = self.wait().await;
            if let Some(lost) = self.take(wake).await {
                break Some(lost);
            }
        };
        self.say_goodbye().await;
        self.ended(lost)
    }

    fn stalled(&self) -> bool {
        self.flushing_since.is_some_and(|since| self.context.clock.now().saturating_since(since) >= self.context.send_timeout)
    }

    /// The time at which something must be looked at, whatever happens.
    fn next_timer(&self) -> Monotonic {
        let session = self.session.poll_timeout().map(|(due, _why)| due);
        let stall = self.flushing_since.map(|since| since.saturating_add(self.context.send_timeout));
        let far = self.context.clock.now().saturating_add(Duration::from_secs(60));
        session.into_iter().chain(stall).min().unwrap_or(far)
    }

    async fn wait(&mut self) -> Wake {
        let timer = self.next_timer();
        let established = self.established_at.is_some() && self.session.closed().is_none();
        let wants_telemetry = established && self.reading.is_none() && self.session.telemetry_credit() >= TELEMETRY_CREDIT_MIN;
        if wants_telemetry && self.spool_checked != self.context.spool.appended_count() {
            self.spool_checked = self.context.spool.appended_count();
            self.reading = Some(self.read_spool());
        }
        let takes_uplink = established && self.waiting.is_none();
        let takes_output = established && self.unsent_output.is_none() && self.session.output_credit() > 0;
        let open = self.session.closed().is_none();
        let flushing = self.flushing_since.is_some();
        let Self { socket, uplink, reading, context, .. } = self;
        let Context { spool, live, catalogue_changes, clock, lifecycle, .. } = context;
        let io = std::future::poll_fn(|cx| {
            if flushing && let Poll::Ready(flushed) = Pin::new(&mut *socket).poll_flush(cx) {
                return Poll::Ready(Wake::Flushed(flushed));
            }
            if open { Pin::new(&mut *socket).poll_next(cx).map(Wake::Frame) } else { Poll::Pending }
        });
        tokio::select! {
            biased;
            wake = io => wake,
            () = clock::sleep_until(clock.as_ref(), timer) => Wake::Timer,
            () = lifecycle.stopping(), if open => Wake::Stopping,
            message = receive(uplink), if takes_uplink => Wake::Uplink(message),
            batch = poll_reading(reading), if reading.is_some() => Wake::Batch(batch),
            output = next_output(live), if takes_output => Wake::Live(output),
            () = changed(catalogue_changes), if established => Wake::CatalogueChanged,
            () = spool.appended(), if wants_telemetry && reading.is_none() => Wake::Spooled,
        }
    }

    /// Does what woke the loop; says so when the connection is lost.
    async fn take(&mut self, wake: Wake) -> Option<String> {
        let now = self.context.clock.now();
        match wake {
            Wake::Frame(None) => return Some("the backend closed the connection".to_owned()),
            Wake::Frame(Some(Err(error))) => return Some(describe(&error)),
            Wake::Frame(Some(Ok(message))) => return self.frame(message, now),
            Wake::Flushed(Err(error)) => return Some(describe(&error)),
            Wake::Flushed(Ok(())) => self.flushing_since = None,
            Wake::Uplink(Some(message)) => self.send(message),
            Wake::Uplink(None) => self.uplink = None,
            Wake::Live(output) => self.send_output(output),
            Wake::Batch(batch) => {
                self.reading = None;
                self.send_batch(batch);
            }
            Wake::Spooled | Wake::Timer => {}
            Wake::CatalogueChanged => self.send_catalogue(),
            Wake::Stopping => self.session.close("the agent stops", now),
        }
        None
    }

    fn frame(&mut self, message: Message, now: Monotonic) -> Option<String> {
        match message {
            Message::Binary(bytes) => self.session.handle_frame(&bytes, now),
            Message::Close(frame) => {
                self.close_frame = frame.map(|frame| (u16::from(frame.code), frame.reason.to_string()));
                return Some("the backend closed the session".to_owned());
            }
            // The library answers pings by itself; text is not part of the protocol.
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            Message::Text(_) => return Some("the backend sent a text message, which the protocol does not have".to_owned()),
        }
        None
    }

    /// Puts what the session has on the socket, as far as it goes without waiting.
    async fn transmit(&mut self) -> Result<(), tungstenite::Error> {
        if let Some(message) = self.waiting.take() {
            self.send(message);
        }
        if let Some(output) = self.unsent_output.take() {
            self.send_output(output);
        }
        if self.flushing_since.is_some() {
            return Ok(());
        }
        let now = self.context.clock.now();
        let mut written = 0;
        while written < FRAMES_PER_FLUSH_MAX {
            let Some(bytes) = self.session.poll_transmit(now) else { break };
            if written == 0 {
                std::future::poll_fn(|cx| Pin::new(&mut self.socket).poll_ready(cx)).await?;
            }
            Pin::new(&mut self.socket).start_send(Message::Binary(Bytes::from(bytes)))?;
            written += 1;
        }
        if written > 0 {
            self.flushing_since = Some(now);
        }
        Ok(())
    }

    async fn handle(&mut self, event: AgentEvent) {
        let now = self.context.clock.now();
        match event {
            AgentEvent::Challenged { server_time } => {
                self.note_skew(server_time, Duration::ZERO);
                if let Some(hello) = self.hello.take() {
                    self.session.hello(hello, random::bytes(), now);
                }
            }
            AgentEvent::Welcomed(welcome) => self.welcomed(welcome).await,
            AgentEvent::Established => self.established(now),
            AgentEvent::HeartbeatDue => self.heartbeat(now),
            AgentEvent::RoundTrip { rtt, server_time } => {
                self.round_trip = Some(rtt);
                self.note_skew(server_time, rtt / 2);
                self.context.status.measured(rtt, self.skew_ms);
            }
            AgentEvent::TelemetryAcknowledged(position) => {
                // There is more credit, and with it perhaps room for what did not fit.
                self.spool_checked = u64::MAX;
                if let Err(error) = self.context.spool.acknowledge(position).await {
                    tracing::error!(%error, "the spool could not be trimmed; its records are sent again");
                }
            }
            AgentEvent::Command(command) => {
                let deadline = self.deadline(command.deadline.as_of, command.deadline.remaining_ms);
                self.context.engine.offered(*command, deadline);
            }
            AgentEvent::Go(go) => {
                let deadline = self.deadline(go.permit.as_of, go.permit.remaining_ms);
                self.context.engine.permitted(go.command_id, deadline);
            }
            AgentEvent::Drop(command_id) => self.context.engine.dropped(command_id),
            AgentEvent::Cancel(command_id) => self.context.engine.cancelled(command_id),
            AgentEvent::ResultAcknowledged { command_id, low_water } => self.context.engine.acknowledged(command_id, low_water),
            AgentEvent::Draining { reconnect_after } => {
                self.drain = Some(reconnect_after);
                self.session.close("draining", now);
            }
            AgentEvent::Refused { code, reason, retry_after } => self.refused = Some((code, reason, retry_after)),
            AgentEvent::Closed(closed) => tracing::debug!(code = closed.name(), reason = closed.reason, "session closed"),
        }
    }

    /// A permit counts from when the frame it names was sent, so delay can only end it early.
    fn deadline(&self, as_of: u64, remaining_ms: u64) -> Monotonic {
        self.session.sent_at(as_of).saturating_add(Duration::from_millis(remaining_ms))
    }

    /// Epoch and token are durable before the backend hears of it.
    async fn welcomed(&mut self, welcome: Box<Welcome>) {
        let now = self.context.clock.now();
        if let Err(error) = self.context.journal.store_epoch(welcome.epoch, &welcome.token).await {
            tracing::error!(%error, "the session's epoch could not be made durable");
            self.session.close("the epoch could not be made durable", now);
            return;
        }
        for position in &welcome.committed {
            if let Err(error) = self.context.spool.acknowledge(*position).await {
                tracing::error!(%error, "the spool could not be trimmed; its records are sent again");
            }
        }
        self.slot = Duration::from_millis(welcome.reconnect_slot_ms);
        self.welcome = Some(welcome);
        self.session.confirm(now);
    }

    fn established(&mut self, now: Monotonic) {
        let Some(welcome) = self.welcome.take() else { return };
        self.established_at = Some(now);
        self.context.pins.confirmed(&self.live_pin);
        self.context.status.connected(welcome.epoch);
        tracing::info!(epoch = welcome.epoch, "session established");
        self.uplink = Some(self.context.engine.connected(welcome.low_water));
        if !welcome.catalogue_known {
            self.send_catalogue();
        }
        let offered = welcome.pins;
        if let Some(offered) = &offered
            && let Err(reason) = self.context.pins.adopt(offered, &self.live_pin)
        {
            tracing::warn!(version = offered.version, reason, "the offered pin set was not adopted");
        }
        if offered.is_some() {
            self.send(AgentMessage::PinReport(PinReport { version: self.context.pins.current().version }));
        }
    }

    fn heartbeat(&mut self, now: Monotonic) {
        let figures = self.context.spool.figures();
        self.send(AgentMessage::Heartbeat(Heartbeat {
            sent_at_ms: u64::try_from(now.as_duration().as_millis()).unwrap_or(u64::MAX),
            round_trip_us: self.round_trip.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            clock_skew_ms: self.skew_ms,
            spool_records: figures.records,
            spool_bytes: figures.bytes,
            commands_running: self.context.engine.running(),
        }));
    }

    /// Nothing is accepted or refused because of it; it is reported.
    fn note_skew(&mut self, server_time: Timestamp, one_way: Duration) {
        let there = server_time.saturating_add(one_way).unix_millis();
        self.skew_ms = Some(self.context.clock.wall().unix_millis().saturating_sub(there));
    }

    fn send_catalogue(&mut self) {
        let catalogue = self.context.engine.catalogue();
        let digest = viworks_common::command::format_digest(&catalogue.digest());
        self.send(AgentMessage::Catalogue(Catalogue { digest, commands: catalogue.entries() }));
    }

    /// Hands a message to the session; one that has no room waits, and nothing more is taken meanwhile.
    fn send(&mut self, message: AgentMessage) {
        match self.session.send(message.clone(), self.context.clock.now()) {
            Ok(()) => {}
            Err(SendRefusal::Full | SendRefusal::NoCredit) => self.waiting = Some(message),
            // The session is over; what matters is said again in the next one.
            Err(SendRefusal::NotEstablished | SendRefusal::Draining) => {}
            Err(error @ (SendRefusal::TooLarge { .. } | SendRefusal::Reserved)) => {
                tracing::error!(kind = message.name(), %error, "a message could not be sent");
            }
        }
    }

    fn send_output(&mut self, output: LiveOutput) {
        let message = AgentMessage::Output(Output {
            command_id: output.command_id,
            stream: output.stream,
            offset: output.offset,
            data: output.data.clone(),
        });
        match self.session.send(message, self.context.clock.now()) {
            Ok(()) => {}
            Err(SendRefusal::Full | SendRefusal::NoCredit) => self.unsent_output = Some(output),
            // Live output is best effort; what is retained travels with the result.
            Err(SendRefusal::NotEstablished | SendRefusal::Draining | SendRefusal::TooLarge { .. } | SendRefusal::Reserved) => {}
        }
    }

    fn read_spool(&self) -> Reading {
        let spool = self.context.spool.clone();
        let in_flight = self.in_flight.clone();
        let credit = self.session.telemetry_credit();
        Box::pin(async move { spool.next_batch(&in_flight, credit).await })
    }

    fn send_batch(&mut self, batch: Result<Option<Batch>, SpoolError>) {
        let batch = match batch {
            Ok(Some(batch)) => batch,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "the spool could not be read");
                return;
            }
        };
        let (spool_epoch, to_seq) = (batch.spool_epoch, batch.to_seq);
        match self.session.send(AgentMessage::Telemetry(BatchColumns::from(batch)), self.context.clock.now()) {
            Ok(()) => {
                self.in_flight.insert(spool_epoch, to_seq);
                // There may be more behind it.
                self.spool_checked = u64::MAX;
            }
            // Read again once there is room.
            Err(SendRefusal::Full | SendRefusal::NoCredit) => self.spool_checked = u64::MAX,
            Err(SendRefusal::NotEstablished | SendRefusal::Draining) => {}
            Err(error @ (SendRefusal::TooLarge { .. } | SendRefusal::Reserved)) => {
                tracing::error!(%error, "a telemetry batch could not be sent");
            }
        }
    }

    /// What the session still has to say, and the close frame; the peer gets a bounded time to take them.
    async fn say_goodbye(&mut self) {
        let closed = self.session.closed().cloned();
        let now = self.context.clock.now();
        let goodbye = async {
            while let Some(bytes) = self.session.poll_transmit(now) {
                self.socket.send(Message::Binary(Bytes::from(bytes))).await?;
            }
            let frame = closed.map(|closed| CloseFrame { code: closed.number().into(), reason: closed.name().into() });
            self.socket.send(Message::Close(frame)).await?;
            self.socket.close().await
        };
        // The other end may be gone already; there is nothing to do about it.
        let _said = tokio::time::timeout(CLOSE_WITHIN, goodbye).await;
    }

    fn ended(self, lost: Option<String>) -> Ended {
        let now = self.context.clock.now();
        let confirmed_for = self.established_at.map(|at| now.saturating_since(at)).unwrap_or_default();
        let (class, cause, fix) = self.classify(lost);
        Ended { class, cause, fix, confirmed_for }
    }

    fn classify(&self, lost: Option<String>) -> (FailureClass, String, Option<String>) {
        if let Some((code, reason, retry_after)) = &self.refused {
            return (FailureClass::of_refusal(*code, *retry_after), format!("refused: {code}: {reason}"), Some(code.advice().to_owned()));
        }
        if let Some(after) = self.drain {
            return (FailureClass::Told { after }, "the backend asked to reconnect".to_owned(), None);
        }
        if let Some((number, reason)) = &self.close_frame {
            let code = CloseCode::from_name(reason);
            let class = if self.established_at.is_some() { self.lost_class() } else { FailureClass::of_close_frame(*number) };
            return (class, format!("closed by the backend: {number} {reason}"), code.map(|code| code.advice().to_owned()));
        }
        match (self.session.closed(), lost) {
            (Some(Closed { code: Some(code), reason, .. }), _) => {
                (self.lost_class(), format!("{code}: {reason}"), Some(code.advice().to_owned()))
            }
            (Some(Closed { code: None, reason, .. }), _) => (self.lost_class(), reason.clone(), None),
            (None, lost) => (self.lost_class(), lost.unwrap_or_else(|| "the connection was lost".to_owned()), None),
        }
    }

    /// A lost session comes back within the slot it was given, so that a fleet does not come back at once.
    fn lost_class(&self) -> FailureClass {
        if self.established_at.is_some() && !self.slot.is_zero() { FailureClass::Slot { within: self.slot } } else { FailureClass::Transient }
    }
}

fn describe(error: &tungstenite::Error) -> String {
    format!("the connection was lost: {error}")
}

async fn receive(uplink: &mut Option<mpsc::Receiver<AgentMessage>>) -> Option<AgentMessage> {
    match uplink {
        Some(messages) => messages.recv().await,
        None => std::future::pending().await,
    }
}

async fn poll_reading(reading: &mut Option<Reading>) -> Result<Option<Batch>, SpoolError> {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}

async fn next_output(live: &Mutex<mpsc::Receiver<LiveOutput>>) -> LiveOutput {
    let output = live.lock().await.recv().await;
    match output {
        Some(output) => output,
        None => std::future::pending().await,
    }
}

async fn changed(catalogue_changes: &mut watch::Receiver<u64>) {
    if catalogue_changes.changed().await.is_err() {
        // Nobody reloads any more.
        std::future::pending::<()>().await;
    }
}
