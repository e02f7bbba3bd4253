//! Drives one session over one socket, in a fixed order: due timeout, events, messages, then wait for whatever comes.

mod trust;

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, OptionFuture};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tracing::{info, warn};
use viworks_common::command::format_digest;
use viworks_common::id::AgentRunId;
use viworks_common::pin::SpkiPin;
use viworks_common::rules::Complete;
use viworks_common::session::backoff::FailureClass;
use viworks_common::session::parting::Parting;
use viworks_common::session::{AgentEvent, AgentSession, AgentSessionConfig, SendRefusal};
use viworks_common::telemetry::{Batch, Position};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{
    AgentMessage, CERTIFICATE_RENEWAL, Catalogue, Heartbeat, Hello, KEEPS_TIMEOUT, KEY_ROTATION,
    KeyReport, Output, PIN_ROTATION, Permit, RESULT_REFUSALS, TELEMETRY_REFUSALS, TRUST_UPDATE,
    Welcome,
};
use viworks_runtime::clock::sleep_until;
use viworks_runtime::random;
use viworks_runtime::websocket::{Progress, Received, Socket};

use super::Parts;
use super::dial::Dialled;
use super::ending::{Ended, Left, Presented, Seen};
use super::live::Shares;
use super::refusals::Refusals;
use super::rekeying::Rekeying;
use super::renewing::{Done, Renewing};
use crate::catalogue;
use crate::config::Live;
use crate::engine::Input;
use crate::executor::LiveOutput;
use crate::material::{Material, Papers};
use crate::spool::SpoolError;

/// Messages of the engine that may wait for the session; a result can be large, so there are few.
const MESSAGES_MAX: usize = 32;

/// How often the spool is looked at for new records, and the drain for its end.
const TICK: Duration = Duration::from_millis(250);

/// How long a session waits for the last acknowledgement when the agent stops.
const DRAIN_TIME: Duration = Duration::from_secs(18);

/// Runs one session to its end.
///
/// `dialled_with` is the version of the pin set that was accepted, and `config` what the attempt was made by.
pub(super) async fn run(
    dialled: Dialled,
    dialled_with: u64,
    material: &Material,
    config: Arc<Live>,
    parts: &Parts,
    live: &mut mpsc::Receiver<LiveOutput>,
) -> Ended {
    let now = parts.clock.now();
    let outbound = &config.outbound;
    let send_timeout = outbound.timeouts.send;
    let session = AgentSessionConfig {
        identity: material.name.clone(),
        key: material.key.clone(),
        key_generation: material.key_generation,
        binding: dialled.binding,
        version_floor: outbound.version_floor,
        opening_timeout: outbound.timeouts.opening,
    };
    let (sender, messages) = mpsc::channel(MESSAGES_MAX);
    let mut connection = Connection {
        parts,
        config,
        session: AgentSession::new(session, now),
        socket: Socket::new(dialled.socket, send_timeout, Progress::Taken),
        pin: dialled.pin,
        dialled_with,
        messages,
        sender: Some(sender),
        announced: parts.catalogue.get(),
        held: None,
        welcome: None,
        confirmed_at: None,
        told: None,
        measured: (None, None),
        sent: BTreeMap::new(),
        committed: VecDeque::new(),
        look_again: true,
        draining_until: None,
        presented: None,
        left: None,
        shares: Shares::default(),
        refusals: Refusals::new(parts.spool.clone(), parts.conditions.clone(), now),
        papers: &material.shown,
        renewing: Renewing::new(parts.renewal.clone(), material, parts.lifecycle.clone()),
        rekeying: Rekeying::new(parts, material),
        slot: Duration::ZERO,
        parting: None,
    };
    let ended = connection.drive(live).await;
    // Its messages go nowhere now; the engine notices by the closed channel.
    connection.messages.close();
    ended
}

struct Connection<'p> {
    parts: &'p Parts,
    /// What the session was begun with.
    config: Arc<Live>,
    session: AgentSession,
    socket: Socket<TlsStream<TcpStream>>,
    pin: SpkiPin,
    dialled_with: u64,
    messages: mpsc::Receiver<AgentMessage>,
    sender: Option<mpsc::Sender<AgentMessage>>,
    /// The catalogue that HELLO names, or the last CATALOGUE.
    announced: Arc<catalogue::Catalogue>,
    /// A message that the session had no room for.
    held: Option<AgentMessage>,
    welcome: Option<Box<Welcome>>,
    confirmed_at: Option<Monotonic>,
    /// What the backend said about the next attempt.
    told: Option<FailureClass>,
    /// Round trip in microseconds and skew in milliseconds.
    measured: (Option<u64>, Option<i64>),
    /// How far each spool epoch was sent in this session.
    sent: BTreeMap<AgentRunId, u64>,
    committed: VecDeque<Position>,
    look_again: bool,
    draining_until: Option<Monotonic>,
    /// The epoch in HELLO.
    presented: Option<u64>,
    /// Why this end leaves it although it is well.
    left: Option<Left>,
    /// How much live output went out of which command.
    shares: Shares,
    /// What the backend did not keep.
    refusals: Refusals,
    /// The certificate of this session.
    papers: &'p Papers,
    /// What becomes of it.
    renewing: Renewing,
    /// What becomes of the agent key.
    rekeying: Rekeying,
    /// The time within which the backend takes its gateways in again.
    slot: Duration,
    /// When this session is left because the newest pin set leaves out its server's key, or another one.
    parting: Option<Parting>,
}

/// What the loop waited for.
enum Woken {
    Network(Received),
    Message(AgentMessage),
    Live(LiveOutput),
    Batch(Result<Option<Batch>, SpoolError>),
    Catalogue,
    Configured,
    Trimmed(Result<(), SpoolError>),
    Renewal(Done),
    Tick,
    Due,
    Stopping,
}

impl Connection<'_> {
    async fn drive(&mut self, live: &mut mpsc::Receiver<LiveOutput>) -> Ended {
        let clock = Arc::clone(&self.parts.clock);
        let mut changes = self.parts.catalogue.changes();
        self.announced = Arc::clone(&changes.borrow_and_update());
        let mut configured = self.parts.configured.changes();
        // What was taken over while the connection was made counts as well.
        configured.mark_changed();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut look: OptionFuture<BoxFuture<'static, _>> = None.into();
        let mut looking = false;
        let mut trim: OptionFuture<BoxFuture<'static, _>> = None.into();
        let mut trimming = false;
        loop {
            let now = clock.now();
            self.session.handle_timeout(now);
            while let Some(event) = self.session.poll_event() {
                self.event(event).await;
            }
            self.forward(clock.now());
            self.stop_if_drained(clock.now());
            if let Some(closed) = self.session.closed().cloned() {
                if let Some(what) = self.session.misplaced() {
                    let url = self.config.outbound.address();
                    let (security, reason) = (&self.parts.security, &closed.reason);
                    security.misplaced(what, &url, reason).await;
                }
                let code = closed.number().into();
                let reason = format!("{}: {}", closed.name(), closed.reason);
                self.socket
                    .close(&mut self.session, code, &reason, clock.now())
                    .await;
                return self.seen().closed(&closed);
            }
            if !looking && let Some(next) = self.look() {
                look = Some(next).into();
                looking = true;
            }
            if !trimming && let Some(position) = self.committed.pop_front() {
                let spool = self.parts.spool.clone();
                let work: BoxFuture<'static, _> =
                    Box::pin(async move { spool.acknowledge(position).await });
                trim = Some(work).into();
                trimming = true;
            }
            let due = self
                .session
                .poll_timeout()
                .map(|(due, _)| due)
                .into_iter()
                .chain(self.socket.stuck_at())
                .min();
            let (session, socket) = (&mut self.session, &mut self.socket);
            let room = self.held.is_none() && self.confirmed_at.is_some();
            let woken = tokio::select! {
                biased;
                received = poll_fn(|context| socket.poll_step(context, session, clock.now())) => Woken::Network(received),
                () = sleep_until(&*clock, due.unwrap_or_default()), if due.is_some() => Woken::Due,
                () = self.parts.lifecycle.stopping(), if self.draining_until.is_none() => Woken::Stopping,
                Some(message) = self.messages.recv(), if room => Woken::Message(message),
                Some(piece) = live.recv(), if self.confirmed_at.is_some() => Woken::Live(piece),
                Some(batch) = &mut look, if looking => Woken::Batch(batch),
                Ok(()) = changes.changed(), if self.confirmed_at.is_some() => Woken::Catalogue,
                Ok(()) = configured.changed() => Woken::Configured,
                Some(trimmed) = &mut trim, if trimming => Woken::Trimmed(trimmed),
                done = self.renewing.next() => Woken::Renewal(done),
                _ = tick.tick() => Woken::Tick,
            };
            match woken {
                Woken::Network(Received::Frame(bytes)) => {
                    self.session.handle_frame(&bytes, clock.now());
                }
                Woken::Network(other) => return self.seen().lost(other),
                Woken::Message(message) => self.held = Some(message),
                Woken::Live(piece) => self.output(piece),
                Woken::Batch(batch) => {
                    looking = false;
                    look = None.into();
                    self.batch(batch);
                }
                Woken::Trimmed(trimmed) => {
                    trimming = false;
                    trim = None.into();
                    if let Err(error) = trimmed {
                        warn!(%error, "the spool was not trimmed");
                    }
                }
                Woken::Catalogue => {
                    self.announced = Arc::clone(&changes.borrow_and_update());
                    self.announce_catalogue();
                }
                Woken::Configured => self.compare(&Arc::clone(&configured.borrow_and_update())),
                Woken::Renewal(done) => self.renewal_step(done),
                Woken::Tick => {
                    self.look_again = true;
                    self.renew();
                }
                Woken::Due => {
                    if self.socket.stuck_at().is_some_and(|due| due <= clock.now()) {
                        return self.seen().stuck();
                    }
                }
                Woken::Stopping => {
                    self.draining_until = Some(clock.now().saturating_add(DRAIN_TIME));
                }
            }
        }
    }

    async fn event(&mut self, event: AgentEvent) {
        match event {
            AgentEvent::Challenged { server_time } => self.hello(server_time).await,
            AgentEvent::Welcomed(welcome) => self.welcomed(welcome).await,
            AgentEvent::Established => self.established().await,
            AgentEvent::HeartbeatDue => self.heartbeat(),
            AgentEvent::RoundTrip { rtt, server_time } => {
                let skew = self.skew(server_time);
                self.measured.0 = Some(u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX));
                self.renewing.measured(server_time, self.parts.clock.now());
                self.parts.status.measured(rtt, skew);
            }
            AgentEvent::TelemetryRefused(refused) => self.refusals.telemetry(&refused),
            AgentEvent::TelemetryAcknowledged(position) => {
                self.look_again = true;
                // One entry per epoch: a later position covers an earlier one.
                self.committed
                    .retain(|waiting| waiting.spool_epoch != position.spool_epoch);
                self.committed.push_back(position);
            }
            AgentEvent::Command(command) => {
                let deadline = self.deadline(&command.deadline);
                self.tell(Input::Command(command, deadline));
            }
            AgentEvent::Go(go) => {
                let deadline = self.deadline(&go.permit);
                self.tell(Input::Go(go.command_id, deadline));
            }
            AgentEvent::Drop(command_id) => self.tell(Input::Drop(command_id)),
            AgentEvent::Cancel(command_id) => self.tell(Input::Cancel(command_id)),
            AgentEvent::ResultAcknowledged {
                command_id,
                low_water,
                kept,
            } => {
                if !kept {
                    self.refusals.result(command_id, self.parts.clock.now());
                }
                self.tell(Input::ResultAcknowledged {
                    command_id,
                    low_water,
                });
            }
            AgentEvent::CertificateAnswered(answer) => {
                self.renewing.answered(*answer, self.parts.clock.now());
            }
            AgentEvent::PinsOffered(offered) => self.take_pins(Some(*offered)).await,
            AgentEvent::AuthoritiesOffered(bundle) => self.take_authorities(bundle).await,
            AgentEvent::KeyOffered { generation, key } => {
                let not_after = self.papers.not_after;
                if let Some(generation) = self.rekeying.offered(generation, key, not_after).await {
                    self.control(AgentMessage::KeyReport(KeyReport { generation }));
                }
            }
            AgentEvent::Draining { reconnect_after } => {
                info!(?reconnect_after, "the backend asks to reconnect");
                self.told = Some(FailureClass::Told {
                    after: reconnect_after,
                });
                self.left = Some(Left::Drained);
                let now = self.parts.clock.now();
                self.forward(now);
                self.session.close("drained", now);
            }
            AgentEvent::Refused {
                code, retry_after, ..
            } => self.told = Some(FailureClass::of_refusal(code, retry_after)),
            // Seen by `closed`, after what is still to be sent.
            AgentEvent::Closed(_) => {}
        }
    }

    async fn hello(&mut self, server_time: Timestamp) {
        let skew = self.skew(server_time);
        if skew.unsigned_abs() > 5_000 {
            warn!(
                skew_ms = skew,
                "this gateway's clock and the backend's differ"
            );
        }
        match self.compose_hello().await {
            Ok(hello) => {
                self.presented = Some(hello.epoch);
                let nonce = random::bytes();
                self.session.hello(hello, nonce, self.parts.clock.now());
            }
            Err(reason) => {
                warn!(reason, "the state of this gateway cannot be read");
                self.session.close(&reason, self.parts.clock.now());
            }
        }
    }

    async fn compose_hello(&self) -> Result<Hello, String> {
        let parts = self.parts;
        let failed = |error: &dyn std::error::Error| error.to_string();
        let meta = parts.journal.meta().await.map_err(|error| failed(&error))?;
        let (epoch, token) = parts.identity.ratchet(&meta);
        let telemetry = parts
            .spool
            .positions()
            .await
            .map_err(|error| failed(&error))?;
        Ok(Hello {
            install_id: parts.identity.install_id,
            boot_id: parts.identity.boot_id,
            agent_run_id: parts.identity.agent_run_id,
            epoch,
            token,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            version: 1,
            capabilities: [
                KEEPS_TIMEOUT,
                TELEMETRY_REFUSALS,
                RESULT_REFUSALS,
                CERTIFICATE_RENEWAL,
                PIN_ROTATION,
                KEY_ROTATION,
                TRUST_UPDATE,
            ]
            .map(str::to_owned)
            .to_vec(),
            catalogue_digest: format_digest(&self.announced.digest()),
            labels: self.config.labels.clone(),
            unreported: parts
                .journal
                .unreported()
                .await
                .map_err(|error| failed(&error))?,
            highest_order: meta.highest_order,
            low_water: meta.low_water,
            pin_set_version: parts.pins.current().version,
            telemetry,
        })
    }

    async fn welcomed(&mut self, welcome: Box<Welcome>) {
        let stored = self
            .parts
            .journal
            .store_epoch(welcome.epoch, &welcome.token)
            .await;
        if let Err(error) = stored {
            warn!(%error, "the new epoch cannot be kept");
            let reason = format!("the new epoch cannot be kept: {error}");
            return self.session.close(&reason, self.parts.clock.now());
        }
        self.welcome = Some(welcome);
        self.session.confirm(self.parts.clock.now());
    }

    async fn established(&mut self) {
        let (Some(welcome), Some(messages)) = (self.welcome.take(), self.sender.take()) else {
            return;
        };
        let now = self.parts.clock.now();
        self.confirmed_at = Some(now);
        self.parts.lapsed.settle();
        self.parts
            .status
            .connected(welcome.epoch, self.parts.clock.wall());
        info!(epoch = welcome.epoch, "connected");
        self.slot = Duration::from_millis(welcome.reconnect_slot_ms);
        self.told = Some(FailureClass::Slot { within: self.slot });
        self.committed.extend(welcome.committed.iter().copied());
        self.tell(Input::Attach {
            messages,
            low_water: welcome.low_water,
        });
        self.renewing
            .begin(welcome.renews_certificates, welcome.server_time, now);
        self.settle_certificate(welcome.server_time).await;
        self.rekeying.confirmed(&self.parts.credentials);
        self.settle_pins(welcome.pins).await;
        if !welcome.catalogue_known {
            self.announce_catalogue();
        }
    }

    fn announce_catalogue(&mut self) {
        let catalogue = Catalogue {
            digest: format_digest(&self.announced.digest()),
            commands: self.announced.entries(),
        };
        self.control(AgentMessage::Catalogue(catalogue));
    }

    /// Ends a session that is well for another one, at once. What runs goes on, and is reported in that one.
    fn leave(&mut self, why: Left, reason: &str) {
        info!("{reason}: connecting anew");
        self.left = Some(why);
        self.told = Some(FailureClass::Told {
            after: Duration::ZERO,
        });
        let now = self.parts.clock.now();
        self.forward(now);
        self.session.close(reason, now);
    }

    fn heartbeat(&mut self) {
        let figures = self.parts.spool.figures();
        let now = self.parts.clock.now();
        self.refusals.forget(now);
        let heartbeat = Heartbeat {
            sent_at_ms: u64::try_from(now.as_duration().as_millis()).unwrap_or(u64::MAX),
            round_trip_us: self.measured.0,
            clock_skew_ms: self.measured.1,
            spool_records: figures.records,
            spool_bytes: figures.bytes,
            commands_running: self.parts.executor.running(),
        };
        self.control(AgentMessage::Heartbeat(heartbeat));
    }

    /// Sends what must not be held up by anything.
    fn control(&mut self, message: AgentMessage) {
        let name = message.name();
        if let Err(error) = self.session.send(message, self.parts.clock.now()) {
            warn!(%error, name, "a message was not taken by the session");
        }
    }

    fn skew(&mut self, server_time: Timestamp) -> i64 {
        let skew = self
            .parts
            .clock
            .wall()
            .unix_millis()
            .saturating_sub(server_time.unix_millis());
        self.measured.1 = Some(skew);
        skew
    }

    /// Until when a permit holds, on this gateway's own clock: delay can only end it early.
    fn deadline(&self, permit: &Permit) -> Monotonic {
        self.session
            .deadline(Complete, permit, self.parts.clock.now())
    }

    fn tell(&mut self, input: Input) {
        if !self.parts.engine.tell(input) {
            let reason = "the command engine is too far behind";
            self.session.close(reason, self.parts.clock.now());
        }
    }

    /// Moves messages of the engine into the session, as far as it has room.
    fn forward(&mut self, now: Monotonic) {
        if self.confirmed_at.is_none() {
            return;
        }
        while let Some(message) = self.held.take().or_else(|| self.messages.try_recv().ok()) {
            match self.session.send(message.clone(), now) {
                Ok(()) => {}
                Err(SendRefusal::Full | SendRefusal::NoCredit) => {
                    self.held = Some(message);
                    return;
                }
                // The journal keeps it for the next session.
                Err(SendRefusal::NotEstablished | SendRefusal::Draining) => return,
                Err(error @ (SendRefusal::TooLarge { .. } | SendRefusal::Reserved)) => {
                    warn!(%error, name = message.name(), "a message cannot be sent");
                }
            }
        }
    }

    /// Live output is best effort: without credit it is left out, the result has it.
    fn output(&mut self, piece: LiveOutput) {
        let bytes = u64::try_from(piece.data.len()).unwrap_or(u64::MAX);
        let credit = self.session.output_credit();
        if !self.shares.take(piece.command_id, bytes, credit) {
            return;
        }
        let message = AgentMessage::Output(Output {
            command_id: piece.command_id,
            stream: piece.stream,
            offset: piece.offset,
            data: piece.data,
        });
        let _left_out = self.session.send(message, self.parts.clock.now()).is_err();
    }

    /// The next look into the spool, when there may be something and it may be sent.
    fn look(&mut self) -> Option<BoxFuture<'static, Result<Option<Batch>, SpoolError>>> {
        let credit = self.session.telemetry_credit();
        if !self.look_again || credit == 0 {
            return None;
        }
        self.look_again = false;
        let (spool, sent) = (self.parts.spool.clone(), self.sent.clone());
        Some(Box::pin(
            async move { spool.next_batch(&sent, credit).await },
        ))
    }

    fn batch(&mut self, batch: Result<Option<Batch>, SpoolError>) {
        let batch = match batch {
            Ok(Some(batch)) => batch,
            Ok(None) => return,
            Err(error) => {
                warn!(%error, "the spool cannot be read");
                return;
            }
        };
        let (epoch, to_seq) = (batch.spool_epoch, batch.to_seq);
        let message = AgentMessage::Telemetry(batch.into());
        match self.session.send(message, self.parts.clock.now()) {
            Ok(()) => {
                self.sent.insert(epoch, to_seq);
                self.look_again = true;
            }
            // The next tick tries again.
            Err(SendRefusal::Full | SendRefusal::NoCredit | SendRefusal::NotEstablished)
            | Err(SendRefusal::Draining) => {}
            Err(error @ (SendRefusal::TooLarge { .. } | SendRefusal::Reserved)) => {
                warn!(%error, "a batch of telemetry cannot be sent");
            }
        }
    }

    /// Ends the session where it would not be the same with what is in force now. What runs goes on, and is reported in
    /// the next one; while the agent stops there is none, so this one stays.
    fn compare(&mut self, live: &Live) {
        let stays = self.left.is_some() || self.draining_until.is_some();
        if stays || self.config.keeps_its_session(live) {
            return;
        }
        self.leave(Left::Outdated, "another configuration is in force");
    }

    /// Ends the session once the agent stops and everything that ran is reported, or the time for that is over.
    fn stop_if_drained(&mut self, now: Monotonic) {
        let Some(until) = self.draining_until else {
            return;
        };
        let quiet =
            self.parts.engine.active() == 0 && self.held.is_none() && self.messages.is_empty();
        if quiet || now >= until || self.confirmed_at.is_none() {
            self.session.close("the agent stops", now);
        }
    }

    /// What is known at the end, for the words about it.
    fn seen(&self) -> Seen {
        let now = self.parts.clock.now();
        Seen {
            state: self.session.state(),
            confirmed_for: self.confirmed_at.map(|at| now.saturating_since(at)),
            told: self.told,
            left: self.left,
            presented: self.presented.map(|epoch| Presented {
                epoch,
                as_issued: self.parts.identity.is_first(epoch),
            }),
        }
    }
}
