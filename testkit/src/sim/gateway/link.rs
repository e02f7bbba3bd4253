//! The way out: dial, hold one session, wait, dial again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use viworks_common::code::CloseCode;
use viworks_common::engine::Asked;
use viworks_common::id::{AgentRunId, BootId, InstallId};
use viworks_common::key::{Binding, BindingMode};
use viworks_common::limits;
use viworks_common::rules::{Rule, Rulebook};
use viworks_common::session::backoff::FailureClass;
use viworks_common::session::state::AgentState;
use viworks_common::session::{
    AgentEvent, AgentSession, AgentSessionConfig, Closed, End, SendRefusal,
};
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{
    AgentMessage, Heartbeat, Hello, KEEPS_TIMEOUT, Permit, Welcome,
};

use super::super::core::{Core, GatewayStep, Process as Dying};
use super::super::disk_model::Write;
use super::super::network::{ConnectionId, Received};
use super::{After, Host};

/// How long a copy waits that ignores what it is told.
const RUDE_WAIT: Duration = Duration::from_millis(300);

/// One session and its connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) wire: ConnectionId,
    session: AgentSession,
    /// Epoch and token are on their way to the disk: the loop looks at nothing else meanwhile.
    blocked: bool,
    held: VecDeque<Vec<u8>>,
    welcome: Option<Box<Welcome>>,
    established_at: Option<Monotonic>,
    told: Option<FailureClass>,
    sent: BTreeMap<AgentRunId, u64>,
    uplink: VecDeque<AgentMessage>,
    woken_at: Option<Monotonic>,
    lost: bool,
}

impl Link {
    pub(super) fn is_established(&self) -> bool {
        self.session.state() == AgentState::Established
    }
}

impl Host {
    fn link(&mut self) -> Option<&mut Link> {
        self.process.as_mut()?.link.as_mut()
    }

    pub(super) fn dial(&self, core: &mut Core) {
        let span = core.scenario.latency * 3;
        core.after(span, self.event(GatewayStep::Dialled));
    }

    /// The backend was reached, if it can be; then its end of the connection exists already.
    pub(super) fn dialled(&mut self, core: &mut Core) {
        let now = self.clock(core);
        let wire = if core.now < self.cut_off_until {
            None
        } else {
            core.reach_backend((self.id, self.generation), self.agent())
        };
        let Some(wire) = wire else {
            return self.wait(FailureClass::Transient, None, core);
        };
        let config = AgentSessionConfig {
            identity: self.identity.clone(),
            key: self.key.clone(),
            key_generation: 1,
            binding: binding(wire),
            version_floor: 1,
            opening_timeout: 2 * limits::HANDSHAKE_STEP_TIMEOUT,
        };
        if let Some(process) = &mut self.process {
            process.link = Some(Link {
                wire,
                session: AgentSession::new(config, now),
                blocked: false,
                held: VecDeque::new(),
                welcome: None,
                established_at: None,
                told: None,
                sent: BTreeMap::new(),
                uplink: VecDeque::new(),
                woken_at: None,
                lost: false,
            });
        }
        self.pump(core);
    }

    fn wait(&mut self, class: FailureClass, confirmed: Option<Duration>, core: &mut Core) {
        let random = core.random.number();
        let (id, event) = (self.id, self.event(GatewayStep::Dial));
        let Some(process) = &mut self.process else {
            return;
        };
        if let Some(span) = confirmed {
            process.backoff.confirmed_for(span);
        }
        let mut delay = process.backoff.next(class, random);
        if self.rude {
            delay = delay.min(RUDE_WAIT);
        }
        core.note(|| format!("{id:?} waits {delay:?} after {class:?}"));
        core.after(delay, event);
    }

    /// Something arrived on a connection.
    pub(crate) fn arrival(&mut self, wire: ConnectionId, core: &mut Core) {
        let Some(received) = core.receive(wire, End::Agent) else {
            return;
        };
        let Some(link) = self.link().filter(|link| link.wire == wire) else {
            return;
        };
        match received {
            Received::Frame(bytes) => link.held.push_back(bytes),
            Received::Lost => link.lost = true,
        }
        self.pump(core);
    }

    /// One turn of the connection's loop.
    pub(super) fn pump(&mut self, core: &mut Core) {
        loop {
            let now = self.clock(core);
            let Some(link) = self.link() else { return };
            if link.blocked {
                return;
            }
            link.session.handle_timeout(now);
            if let Some(event) = link.session.poll_event() {
                self.on_event(event, core);
                continue;
            }
            self.forward(now);
            self.transmit(core);
            let Some(link) = self.link() else { return };
            if let Some(closed) = link.session.closed().cloned() {
                return self.ended(Some(&closed), core);
            }
            if let Some(bytes) = link.held.pop_front() {
                self.take(&bytes, core);
                continue;
            }
            if link.lost {
                return self.ended(None, core);
            }
            return self.arm(core);
        }
    }

    fn take(&mut self, bytes: &[u8], core: &mut Core) {
        let now = self.clock(core);
        let Some(link) = self.link() else { return };
        link.session.handle_frame(bytes, now);
        let refused = link.session.closed().is_some_and(|it| it.by == End::Agent);
        if !refused {
            let wire = link.wire;
            core.recorder.accepted(wire, End::Agent, bytes);
        }
    }

    fn transmit(&mut self, core: &mut Core) {
        let now = self.clock(core);
        loop {
            let Some(link) = self.link() else { return };
            let wire = link.wire;
            let Some(bytes) = link.session.poll_transmit(now) else {
                return;
            };
            core.send(wire, End::Agent, bytes);
        }
    }

    fn arm(&mut self, core: &mut Core) {
        let Some(link) = self.link() else { return };
        let Some((due, _)) = link.session.poll_timeout() else {
            return;
        };
        let (woken_at, now) = (link.woken_at, core.now);
        let due = self.truly(due);
        // An earlier awakening looks again.
        if woken_at.is_none_or(|at| at > due || at <= now) {
            if let Some(link) = self.link() {
                link.woken_at = Some(due);
            }
            core.at(due, self.event(GatewayStep::Timer));
        }
    }

    fn on_event(&mut self, event: AgentEvent, core: &mut Core) {
        let id = self.id;
        core.note(|| format!("{id:?} <- {}", summary(&event)));
        match event {
            AgentEvent::Challenged { .. } => self.hello(core),
            AgentEvent::Welcomed(welcome) => self.welcomed(welcome, core),
            AgentEvent::Established => self.established(core),
            AgentEvent::HeartbeatDue => self.heartbeat(core),
            AgentEvent::RoundTrip { .. } | AgentEvent::TelemetryRefused(_) => {}
            AgentEvent::TelemetryAcknowledged(position) => {
                self.write(Write::Acknowledge(position), After::Nothing, core);
            }
            AgentEvent::Command(command) => {
                let deadline = self.deadline(&command.deadline, core);
                let id = command.command_id;
                self.ask(id, Asked::Offer(command, deadline), core);
            }
            AgentEvent::Go(go) => {
                let deadline = self.deadline(&go.permit, core);
                self.ask(go.command_id, Asked::Go(deadline), core);
            }
            AgentEvent::Drop(id) => self.ask(id, Asked::Drop, core),
            AgentEvent::Cancel(id) => self.ask(id, Asked::Cancel, core),
            AgentEvent::ResultAcknowledged {
                command_id,
                low_water,
                ..
            } => self.ask(command_id, Asked::Acknowledged(low_water), core),
            AgentEvent::Draining { reconnect_after } => {
                let now = self.clock(core);
                if let Some(link) = self.link() {
                    let after = reconnect_after;
                    link.told = Some(FailureClass::Told { after });
                    link.session.close("drained", now);
                }
            }
            AgentEvent::Refused {
                code, retry_after, ..
            } => {
                self.refused_as_fork = code == CloseCode::IdentityFork;
                if let Some(link) = self.link() {
                    link.told = Some(FailureClass::of_refusal(code, retry_after));
                }
            }
            AgentEvent::Closed(_) => {}
        }
    }

    fn deadline(&mut self, permit: &Permit, core: &Core) -> Monotonic {
        let now = self.clock(core);
        let rules = core.rules;
        self.link()
            .map_or(now, |link| link.session.deadline(rules, permit, now))
    }

    fn hello(&mut self, core: &mut Core) {
        let (now, nonce) = (self.clock(core), core.random.bytes());
        let image = &self.disk.image;
        let Some(process) = &self.process else { return };
        let hello = Hello {
            install_id: InstallId::from_uuid(*self.agent().as_uuid()),
            boot_id: BootId::from_uuid(*self.agent().as_uuid()),
            agent_run_id: process.run,
            epoch: image.epoch,
            token: image.token.clone(),
            agent_version: "0.0.0".to_owned(),
            version: 1,
            capabilities: vec![KEEPS_TIMEOUT.to_owned()],
            catalogue_digest: "00".repeat(32),
            labels: BTreeMap::new(),
            unreported: image.unreported(),
            highest_order: image.highest_order,
            low_water: image.low_water,
            pin_set_version: 0,
            telemetry: image.spool.positions(),
        };
        if let Some(link) = self.link() {
            link.session.hello(hello, nonce, now);
        }
        self.transmit(core);
        // A process may end with its HELLO under way.
        core.dies(Dying::Gateway(self.id));
    }

    fn welcomed(&mut self, welcome: Box<Welcome>, core: &mut Core) {
        let now = self.clock(core);
        let write = Write::Epoch(welcome.epoch, welcome.token.clone());
        let durable_first = core.rules.keeps(Rule::DurableBeforeConfirm);
        let Some(link) = self.link() else { return };
        let wire = link.wire;
        link.welcome = Some(welcome);
        link.blocked = durable_first;
        if !durable_first {
            link.session.confirm(now);
        }
        self.write(write, After::EpochKept(wire), core);
    }

    pub(super) fn epoch_kept(&mut self, wire: ConnectionId, kept: bool, core: &mut Core) {
        let now = self.clock(core);
        let Some(link) = self.link().filter(|link| link.wire == wire) else {
            return;
        };
        link.blocked = false;
        if kept {
            link.session.confirm(now);
        } else {
            link.session.close("the new epoch cannot be kept", now);
        }
        self.pump(core);
    }

    fn established(&mut self, core: &mut Core) {
        let now = self.clock(core);
        self.refused_as_fork = false;
        let Some(link) = self.link() else { return };
        let Some(welcome) = link.welcome.take() else {
            return;
        };
        link.established_at = Some(now);
        link.told = Some(FailureClass::Slot {
            within: Duration::from_millis(welcome.reconnect_slot_ms),
        });
        let wire = link.wire;
        for position in &welcome.committed {
            self.write(Write::Acknowledge(*position), After::Nothing, core);
        }
        self.attach(wire, welcome.low_water, core);
        self.look(now);
    }

    fn heartbeat(&mut self, core: &Core) {
        let now = self.clock(core);
        let heartbeat = Heartbeat {
            sent_at_ms: u64::try_from(now.as_duration().as_millis()).unwrap_or(u64::MAX),
            round_trip_us: None,
            clock_skew_ms: None,
            spool_records: 0,
            spool_bytes: 0,
            commands_running: 0,
        };
        if let Some(link) = self.link() {
            // Its lane is full only when the connection is stuck, which silence will show.
            let _stuck = link
                .session
                .send(AgentMessage::Heartbeat(heartbeat), now)
                .is_err();
        }
    }

    /// The spool changed: there may be something to send.
    pub(super) fn look_again(&mut self, core: &mut Core) {
        let now = self.clock(core);
        self.look(now);
        self.pump(core);
    }

    fn look(&mut self, now: Monotonic) {
        let spool = &self.disk.image.spool;
        let process = self.process.as_mut();
        let Some(link) = process.and_then(|process| process.link.as_mut()) else {
            return;
        };
        if link.established_at.is_none() {
            return;
        }
        while let Some(batch) = spool.next_batch(&link.sent) {
            let (run, to_seq) = (batch.spool_epoch, batch.to_seq);
            let message = AgentMessage::Telemetry(batch.into());
            match link.session.send(message, now) {
                Ok(()) => link.sent.insert(run, to_seq),
                // The next acknowledgement brings credit.
                Err(_no_credit) => return,
            };
        }
    }

    /// Takes a message for a session, if that is still the current one.
    pub(super) fn pass_on(&mut self, wire: ConnectionId, message: AgentMessage, core: &mut Core) {
        if let Some(link) = self.link().filter(|link| link.wire == wire) {
            link.uplink.push_back(message);
            self.pump(core);
        }
    }

    fn forward(&mut self, now: Monotonic) {
        let Some(link) = self.link() else { return };
        if link.established_at.is_none() {
            return;
        }
        while let Some(message) = link.uplink.pop_front() {
            match link.session.send(message.clone(), now) {
                Ok(()) => {}
                Err(SendRefusal::Full | SendRefusal::NoCredit) => {
                    link.uplink.push_front(message);
                    return;
                }
                // The journal keeps it for the next session.
                Err(
                    SendRefusal::NotEstablished
                    | SendRefusal::Draining
                    | SendRefusal::TooLarge { .. }
                    | SendRefusal::Reserved,
                ) => return,
            }
        }
    }

    fn ended(&mut self, closed: Option<&Closed>, core: &mut Core) {
        let now = self.clock(core);
        let Some(link) = self.process.as_mut().and_then(|it| it.link.take()) else {
            return;
        };
        let id = self.id;
        core.note(|| format!("{id:?} lost {:?}: {closed:?}", link.wire));
        core.hang_up(link.wire, End::Agent);
        let own = match closed {
            Some(Closed {
                code: Some(code),
                by: End::Agent,
                ..
            }) if code.is_permanent() => FailureClass::PermanentUnproved,
            Some(_) | None => FailureClass::Transient,
        };
        let confirmed = link.established_at.map(|at| now.saturating_since(at));
        self.wait(link.told.unwrap_or(own), confirmed, core);
    }
}

/// What both ends of a connection are bound to: its own number.
#[must_use]
pub(crate) fn binding(wire: ConnectionId) -> Binding {
    let mut value = [0; 32];
    value[..8].copy_from_slice(&wire.0.to_be_bytes());
    Binding {
        mode: BindingMode::Exporter,
        value,
    }
}

fn summary(event: &AgentEvent) -> String {
    match event {
        AgentEvent::Welcomed(welcome) => format!(
            "Welcomed epoch {} low water {} committed {:?}",
            welcome.epoch, welcome.low_water, welcome.committed
        ),
        AgentEvent::Command(command) => format!(
            "Command {} order {} attempt {} permitted {}",
            command.command_id, command.order, command.attempt, command.permitted
        ),
        AgentEvent::Challenged { .. }
        | AgentEvent::Established
        | AgentEvent::HeartbeatDue
        | AgentEvent::RoundTrip { .. }
        | AgentEvent::TelemetryAcknowledged(_)
        | AgentEvent::TelemetryRefused(_)
        | AgentEvent::Go(_)
        | AgentEvent::Drop(_)
        | AgentEvent::Cancel(_)
        | AgentEvent::ResultAcknowledged { .. }
        | AgentEvent::Draining { .. }
        | AgentEvent::Refused { .. }
        | AgentEvent::Closed(_) => format!("{event:?}"),
    }
}
