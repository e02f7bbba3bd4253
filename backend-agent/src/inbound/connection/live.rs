//! The second life of a connection: a confirmed session, with one loop, one order, and each event handed to its
//! feature.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{debug, info};
use viworks_common::id::CommandId;
use viworks_common::session::{BackendEvent, Closed};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::{BackendMessage, CertIssued, CommandStarted, Drain};
use viworks_runtime::websocket::Received;

use super::super::judge::Judged;
use super::super::opening::{millis, security_event};
use super::super::skew::Skew;
use super::ending::Ending;
use super::line::{Line, Sign};
use super::lost;
use super::opening::{Announced, Start};
use super::rekeying::Rekeying;
use super::renewing::Issuing;
use super::reports::Judging;
use super::stream::{Progress, Stream};
use super::up::Runs;
use crate::agent::authorities::Giving;
use crate::agent::pins::Offers;
use crate::agent::rates::Pace;
use crate::agent::shelf::{Order, Shelf};
use crate::data::{Holder, LeasedCommand, StoreResult};

/// A confirmed session.
pub(super) struct Live {
    pub(super) line: Line,
    pub(super) holder: Holder,
    pub(super) announced: Announced,
    /// The room for commands, and what others put there.
    pub(super) shelf: Arc<Shelf>,
    /// Commands that were sent with their permit.
    pub(super) permitted: BTreeSet<CommandId>,
    /// Commands that started, and when that is stored: a result that comes before says it all.
    pub(super) started: VecDeque<(Monotonic, CommandStarted)>,
    /// When what the gateway was too busy for may be offered again.
    pub(super) again_at: Option<Monotonic>,
    /// Whose runs the commands are, for those who watch.
    pub(super) runs: Runs,
    pub(super) pace: Pace,
    /// A catalogue that is being judged; a later one takes its place.
    pub(super) judging: Option<Judging>,
    /// A certificate that is being issued.
    pub(super) issuing: Option<Issuing>,
    /// Pin sets that it is offered.
    pub(super) offers: Offers,
    /// The version of the pin set that it trusts, as it is stored.
    pub(super) trusts: u64,
    /// What becomes of its agent key.
    pub(super) rekeying: Rekeying,
    /// The authorities that it is given.
    pub(super) giving: Giving,
    /// The bundle of authorities that it has, by its digest, as it is stored.
    pub(super) has_bundle: Option<String>,
    pub(super) skew: Skew,
    pub(super) stream: Stream,
    pub(super) output_received: u64,
    /// Reports that were taken in.
    pub(super) events: u32,
    probes: BTreeMap<u64, oneshot::Sender<()>>,
    pub(super) probe_id: u64,
    /// When the gateway was heard last, and the commands that wait until it is heard again.
    pub(super) heard_at: Monotonic,
    pub(super) held: Vec<LeasedCommand>,
}

/// What happened next.
enum Step {
    Sign(Sign),
    Shelf,
    Judged(Option<Judged>),
    Issued(Option<StoreResult<CertIssued>>),
    Pins,
    Authorities,
    Telemetry(Progress),
}

impl Live {
    pub(super) fn new(line: Line, start: Start) -> Self {
        let Start {
            holder,
            shelf,
            announced,
            has_bundle,
            ..
        } = start;
        let inbound = &line.inbound;
        let heartbeats = inbound.terms.heartbeat_interval;
        let now = inbound.clock.now();
        Self {
            holder,
            announced,
            shelf,
            permitted: BTreeSet::new(),
            started: VecDeque::new(),
            again_at: None,
            runs: Runs::default(),
            pace: inbound.manager.pace(holder.agent_id, heartbeats, now),
            judging: None,
            issuing: None,
            offers: Offers::new(
                &inbound.pins,
                announced.rotates.then_some(announced.offered),
            ),
            trusts: announced.trusts,
            rekeying: Rekeying::default(),
            giving: Giving::new(&inbound.trust, announced.takes_authorities),
            has_bundle,
            skew: Skew::new(inbound.clock.is_apart()),
            stream: Stream::new(&holder, &line.peer.name),
            output_received: 0,
            events: 0,
            probes: BTreeMap::new(),
            probe_id: 0,
            heard_at: now,
            held: Vec::new(),
            line,
        }
    }

    /// Runs it to its end.
    pub(super) async fn run(mut self: Box<Self>) {
        let closed = loop {
            while let Some(event) = self.line.session.poll_event() {
                Box::pin(self.on_event(event)).await;
                Box::pin(self.line.settle_fence()).await;
            }
            if let Some(closed) = self.line.session.closed() {
                break closed.clone();
            }
            let step = self.next_step().await;
            if matches!(
                step,
                Step::Sign(Sign::Received(Received::Lost(_) | Received::Closed(_)))
            ) {
                break lost();
            }
            Box::pin(self.on_step(step)).await;
            Box::pin(self.line.settle_fence()).await;
        };
        Box::pin(self.finish(closed)).await;
    }

    async fn next_step(&mut self) -> Step {
        let Self {
            line,
            shelf,
            started,
            again_at,
            judging,
            issuing,
            offers,
            giving,
            stream,
            ..
        } = self;
        let inbound = Arc::clone(&line.inbound);
        let started_at = started.front().map(|(due, _)| *due);
        let wanted = [*again_at, started_at, offers.due()];
        let wanted = wanted.into_iter().flatten().min();
        let reads = !stream.is_full();
        tokio::select! {
            biased;
            () = shelf.changed() => Step::Shelf,
            sign = line.next(reads, wanted) => Step::Sign(sign),
            judged = Judging::next(judging) => Step::Judged(judged),
            issued = Issuing::next(issuing) => Step::Issued(issued),
            () = offers.changed() => Step::Pins,
            () = giving.changed() => Step::Authorities,
            progress = stream.progress(&inbound.telemetry) => Step::Telemetry(progress),
        }
    }

    async fn on_step(&mut self, step: Step) {
        match step {
            Step::Sign(Sign::Received(Received::Frame(bytes))) => {
                let now = self.line.now();
                self.line.session.handle_frame(&bytes, now);
                self.heard_at = now;
                if let Some(action) = self.line.misplaced() {
                    let Line {
                        inbound,
                        peer,
                        address,
                        ..
                    } = &mut self.line;
                    security_event(inbound, peer, *address, action).await;
                }
                self.offer_held();
            }
            Step::Sign(Sign::Received(foreign)) => self.line.on_foreign(&foreign),
            Step::Sign(Sign::Due) => self.on_due().await,
            Step::Shelf => self.on_shelf().await,
            Step::Judged(judged) => self.on_judged(judged).await,
            Step::Issued(issued) => self.on_issued(issued),
            Step::Pins => self.on_pins(),
            Step::Authorities => self.give_authorities(),
            Step::Telemetry(progress) => self.on_telemetry(progress),
        }
    }

    async fn on_due(&mut self) {
        let now = self.line.now();
        if self.stream.is_full() {
            // Its silence is ours: nothing is read until there is room again.
            self.line.session.heard(now);
        }
        self.line.on_due();
        self.offer_pins(now);
        self.offer_again(now).await;
        self.store_started(now).await;
    }

    pub(super) fn on_order(&mut self, order: Order) {
        let now = self.line.now();
        match order {
            Order::Probe(answered) => {
                self.probe_id += 1;
                self.probes.retain(|_, asked| !asked.is_closed());
                self.probes.insert(self.probe_id, answered);
                self.line.session.probe(self.probe_id, now);
            }
            Order::Drain(after) => {
                self.shelf.drain();
                let reconnect_after_ms = millis(after);
                self.line
                    .send(BackendMessage::Drain(Drain { reconnect_after_ms }));
            }
            Order::Rekey(generation) => self.send_key(generation),
        }
    }

    /// Every event, once.
    async fn on_event(&mut self, event: BackendEvent) {
        if let Err(wait) = self.pace.allow(&event, self.line.now()) {
            let reason = "the gateway repeats itself too often";
            return self.line.slow_down(reason, wait);
        }
        match event {
            BackendEvent::Heartbeat(heartbeat) => self.on_heartbeat(&heartbeat),
            BackendEvent::ProbeAnswered { id } => self.on_probe_answered(id),
            BackendEvent::Telemetry(batch) => self.on_batch(batch),
            BackendEvent::Accepted(accepted) => self.on_accepted(accepted).await,
            BackendEvent::Rejected(rejected) => self.on_rejected(rejected).await,
            BackendEvent::Started(started) => self.on_started(started),
            BackendEvent::Output(output) => self.on_output(output).await,
            BackendEvent::Result(result) => self.on_result(*result).await,
            BackendEvent::Catalogue(catalogue) => self.on_catalogue(catalogue),
            BackendEvent::PinReport(report) => self.on_pin_report(report.version).await,
            BackendEvent::CertificateWanted(wanted) => self.on_certificate_wanted(wanted),
            BackendEvent::KeyReported(report) => self.on_key_report(&report),
            BackendEvent::TrustReported(report) => self.on_trust_report(&report).await,
            BackendEvent::Event(event) => self.on_gateway_event(&event).await,
            BackendEvent::Bye { reason } => {
                debug!(gateway = %self.line.peer.name, agent_id = %self.holder.agent_id, reason, "the gateway says goodbye");
            }
            // A session is opened once; how it ended, the loop asks by itself.
            BackendEvent::Hello { .. }
            | BackendEvent::Confirmed { .. }
            | BackendEvent::Closed(_) => {}
        }
    }

    fn on_probe_answered(&mut self, id: u64) {
        let asked = self.probes.remove(&id);
        if asked.is_some_and(|asked| asked.send(()).is_err()) {
            debug!("a probe was answered too late");
        }
    }

    /// The moment by which what is stored is dated.
    pub(super) fn line_now(&self) -> Timestamp {
        self.line.inbound.clock.line()
    }

    async fn finish(self: Box<Self>, closed: Closed) {
        let Self { line, holder, .. } = *self;
        let (gateway, agent_id) = (line.peer.name.clone(), holder.agent_id);
        let (address, code, reason) = (line.address, closed.name(), &closed.reason);
        info!(%gateway, %agent_id, %address, code, reason, "session ended");
        let (inbound, session_id) = (Arc::clone(&line.inbound), line.session_id);
        let ending = Ending::of(&line, holder.epoch);
        line.close(&closed).await;
        inbound.manager.remove(agent_id, session_id);
        ending.record(closed.code).await;
    }
}
