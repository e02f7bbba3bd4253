//! The way out: dial, hold one session, wait, dial again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use viworks_common::code::CloseCode;
use viworks_common::engine::{Asked, Input};
use viworks_common::id::{AgentRunId, BootId, CommandId};
use viworks_common::key::{Binding, BindingMode};
use viworks_common::limits;
use viworks_common::rotation::{self, Candidate, RefusedKeys};
use viworks_common::rules::{Rule, Rulebook};
use viworks_common::session::backoff::FailureClass;
use viworks_common::session::state::AgentState;
use viworks_common::session::{
    AgentEvent, AgentSession, AgentSessionConfig, Closed, End, SendRefusal,
};
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{
    AgentMessage, Heartbeat, Hello, KEEPS_TIMEOUT, KEY_ROTATION, KeyReport, Welcome,
};

use super::super::core::{Core, GatewayStep, Process as Dying};
use super::super::disk_model::{HeldKey, Write};
use super::super::network::{ConnectionId, Received};
use super::super::spool_model::Spool;
use super::{Host, Process};

/// How long a copy waits that ignores what it is told.
const RUDE_WAIT: Duration = Duration::from_millis(300);

/// One session and its connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) wire: ConnectionId,
    session: AgentSession,
    /// The generation of the agent key that it shows.
    key_generation: u8,
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
    over: bool,
}

impl Link {
    const fn new(wire: ConnectionId, session: AgentSession, key_generation: u8) -> Self {
        Self {
            wire,
            session,
            key_generation,
            blocked: false,
            held: VecDeque::new(),
            welcome: None,
            established_at: None,
            told: None,
            sent: BTreeMap::new(),
            uplink: VecDeque::new(),
            woken_at: None,
            lost: false,
            over: false,
        }
    }

    pub(super) fn is_established(&self) -> bool {
        self.session.state() == AgentState::Established
    }

    /// Takes a message, for when the session has room.
    pub(super) fn pass_on(&mut self, message: AgentMessage) {
        self.uplink.push_back(message);
    }

    fn take(&mut self, bytes: &[u8], now: Monotonic, core: &mut Core) {
        self.session.handle_frame(bytes, now);
        if self.session.closed().is_none_or(|it| it.by != End::Agent) {
            core.recorder.accepted(self.wire, End::Agent, bytes);
        }
    }

    fn transmit(&mut self, now: Monotonic, core: &mut Core) {
        while let Some(bytes) = self.session.poll_transmit(now) {
            core.send(self.wire, End::Agent, bytes);
        }
    }

    fn arm(&mut self, host: &Host, core: &mut Core) {
        let Some((due, _)) = self.session.poll_timeout() else {
            return;
        };
        let due = host.truly(due);
        // An earlier awakening looks again.
        let woken_at = self.woken_at.filter(|at| *at > core.now);
        if woken_at.is_none_or(|at| at > due) {
            self.woken_at = Some(due);
            core.at(due, host.event(GatewayStep::Timer));
        }
    }

    fn heartbeat(&mut self, now: Monotonic) {
        let heartbeat = Heartbeat {
            sent_at_ms: u64::try_from(now.as_duration().as_millis()).unwrap_or(u64::MAX),
            round_trip_us: None,
            clock_skew_ms: None,
            spool_records: 0,
            spool_bytes: 0,
            commands_running: 0,
        };
        let heartbeat = AgentMessage::Heartbeat(heartbeat);
        // Its lane is full only when the connection is stuck, which silence will show.
        let _stuck = self.session.send(heartbeat, now).is_err();
    }

    /// Sends what the spool has and credit allows.
    fn look(&mut self, spool: &Spool, now: Monotonic) {
        if self.established_at.is_none() {
            return;
        }
        while let Some(batch) = spool.next_batch(&self.sent) {
            let (run, to_seq) = (batch.spool_epoch, batch.to_seq);
            let message = AgentMessage::Telemetry(batch.into());
            match self.session.send(message, now) {
                Ok(()) => self.sent.insert(run, to_seq),
                // The next acknowledgement brings credit.
                Err(_no_credit) => return,
            };
        }
    }

    fn forward(&mut self, now: Monotonic) {
        if self.established_at.is_none() {
            return;
        }
        while let Some(message) = self.uplink.pop_front() {
            match self.session.send(message.clone(), now) {
                Ok(()) => {}
                Err(SendRefusal::Full | SendRefusal::NoCredit) => {
                    self.uplink.push_front(message);
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
}

impl Process {
    /// Lets the session do something for which it needs its process.
    fn with_link(&mut self, what: impl FnOnce(&mut Self, &mut Link)) {
        if let Some(mut link) = self.link.take() {
            what(self, &mut link);
            self.link = Some(link).filter(|link| !link.over);
        }
    }

    /// The backend was reached, if it can be; then its end of the connection exists already.
    pub(super) fn dialled(&mut self, host: &mut Host, core: &mut Core) {
        let wire = if core.now < host.cut_off_until {
            None
        } else {
            core.reach_backend((host.id, host.generation), host.agent())
        };
        let Some(wire) = wire else {
            return self.wait(FailureClass::Transient, None, host, core);
        };
        let (key_generation, key) = self.key_to_show(host);
        let config = AgentSessionConfig {
            identity: host.identity.clone(),
            key,
            key_generation,
            binding: binding(wire),
            version_floor: 1,
            opening_timeout: 2 * limits::HANDSHAKE_STEP_TIMEOUT,
        };
        let session = AgentSession::new(config, host.clock(core));
        self.link = Some(Link::new(wire, session, key_generation));
        self.pump(host, core);
    }

    /// The agent key to show, of all that it has.
    fn key_to_show(&self, host: &Host) -> HeldKey {
        let mut keys = vec![host.key.clone()];
        keys.extend(host.disk.image.keys.iter().cloned());
        keys.extend(self.unkept.iter().cloned());
        let candidate = |(generation, key): &HeldKey| Candidate {
            // Of no use to anybody but to tell them apart.
            digest: *key.secret().expose(),
            generation: *generation,
        };
        let candidates: Vec<Candidate> = keys.iter().map(candidate).collect();
        // The backend has one master key, which knows all of them.
        let place = rotation::choose(&candidates, &RefusedKeys::default());
        keys.swap_remove(place.unwrap_or_default())
    }

    fn wait(
        &mut self,
        class: FailureClass,
        confirmed: Option<Duration>,
        host: &Host,
        core: &mut Core,
    ) {
        let random = core.random.number();
        if let Some(span) = confirmed {
            self.backoff.confirmed_for(span);
        }
        let mut delay = self.backoff.next(class, random);
        if host.rude {
            delay = delay.min(RUDE_WAIT);
        }
        let id = host.id;
        core.note(|| format!("{id:?} waits {delay:?} after {class:?}"));
        core.after(delay, host.event(GatewayStep::Dial));
    }

    pub(super) fn arrival(&mut self, wire: ConnectionId, host: &mut Host, core: &mut Core) {
        let received = core.receive(wire, End::Agent);
        let link = self.link.as_mut().filter(|link| link.wire == wire);
        let (Some(received), Some(link)) = (received, link) else {
            return;
        };
        match received {
            Received::Frame(bytes) => link.held.push_back(bytes),
            Received::Lost => link.lost = true,
        }
        self.pump(host, core);
    }

    /// Turns of the connection's loop, until it waits for something.
    pub(super) fn pump(&mut self, host: &mut Host, core: &mut Core) {
        self.with_link(|process, link| while process.go_on(link, host, core) {});
    }

    /// One turn. False when there was nothing to do.
    fn go_on(&mut self, link: &mut Link, host: &mut Host, core: &mut Core) -> bool {
        if link.blocked || link.over {
            return false;
        }
        let now = host.clock(core);
        link.session.handle_timeout(now);
        if let Some(event) = link.session.poll_event() {
            self.on_event(link, event, host, core);
            return true;
        }
        link.forward(now);
        link.transmit(now, core);
        let closed = link.session.closed().cloned();
        if closed.is_some() {
            self.ended(link, closed.as_ref(), host, core);
        } else if let Some(bytes) = link.held.pop_front() {
            link.take(&bytes, now, core);
        } else if link.lost {
            self.ended(link, None, host, core);
        } else {
            link.arm(host, core);
            return false;
        }
        true
    }

    fn on_event(&mut self, link: &mut Link, event: AgentEvent, host: &mut Host, core: &mut Core) {
        let (id, now, rules) = (host.id, host.clock(core), core.rules);
        core.note(|| format!("{id:?} <- {event:?}"));
        match event {
            AgentEvent::Challenged { .. } => self.hello(link, host, core),
            AgentEvent::Welcomed(welcome) => welcomed(link, welcome, host, core),
            AgentEvent::Established => self.established(link, host, core),
            AgentEvent::HeartbeatDue => link.heartbeat(now),
            AgentEvent::RoundTrip { .. }
            | AgentEvent::TelemetryRefused(_)
            | AgentEvent::CertificateAnswered(_)
            | AgentEvent::PinsOffered(_)
            | AgentEvent::AuthoritiesOffered(_) => {}
            AgentEvent::KeyOffered { generation, key } => {
                self.key_offered(link, (generation, key), host, core);
            }
            AgentEvent::TelemetryAcknowledged(position) => {
                host.write(Write::Acknowledge(position), core);
            }
            AgentEvent::Command(command) => {
                let deadline = link.session.deadline(rules, &command.deadline, now);
                self.ask(
                    command.command_id,
                    Asked::Offer(command, deadline),
                    host,
                    core,
                );
            }
            AgentEvent::Go(go) => {
                let deadline = link.session.deadline(rules, &go.permit, now);
                self.ask(go.command_id, Asked::Go(deadline), host, core);
            }
            AgentEvent::Drop(id) => self.ask(id, Asked::Drop, host, core),
            AgentEvent::Cancel(id) => self.ask(id, Asked::Cancel, host, core),
            AgentEvent::ResultAcknowledged {
                command_id,
                low_water,
                ..
            } => self.ask(command_id, Asked::Acknowledged(low_water), host, core),
            AgentEvent::Draining { reconnect_after } => {
                let after = reconnect_after;
                link.told = Some(FailureClass::Told { after });
                link.session.close("drained", now);
            }
            AgentEvent::Refused {
                code, retry_after, ..
            } => {
                host.refused_as_fork = code == CloseCode::IdentityFork;
                host.key_refused = code == CloseCode::CertUntrusted;
                if host.key_refused {
                    core.recorder.key_refused(host.agent(), self.run);
                }
                link.told = Some(FailureClass::of_refusal(code, retry_after));
            }
            AgentEvent::Closed(_) => {}
        }
    }

    fn ask(&mut self, id: CommandId, asked: Asked, host: &Host, core: &mut Core) {
        self.engine.tell(Input::Asked(id, asked), host, core);
    }

    /// A later agent key is made durable; the next session shows it.
    fn key_offered(&mut self, link: &Link, new: HeldKey, host: &mut Host, core: &mut Core) {
        core.recorder.counts.keys += 1;
        if core.rules.keeps(Rule::KeyDurable) {
            let (wire, in_use) = (link.wire, link.key_generation);
            host.write(Write::Key { wire, in_use, new }, core);
        } else {
            self.unkept.push(new);
        }
    }

    /// A later agent key is durable.
    pub(super) fn key_kept(
        &mut self,
        wire: ConnectionId,
        generation: u8,
        host: &mut Host,
        core: &mut Core,
    ) {
        if let Some(link) = self.link.as_mut().filter(|link| link.wire == wire) {
            link.pass_on(AgentMessage::KeyReport(KeyReport { generation }));
            self.pump(host, core);
        }
    }

    fn hello(&self, link: &mut Link, host: &Host, core: &mut Core) {
        let (now, nonce) = (host.clock(core), core.random.bytes());
        let image = &host.disk.image;
        let one_of_all = || BootId::from_uuid(*host.agent().as_uuid());
        let boot_id = host.boot_id.unwrap_or_else(one_of_all);
        let hello = Hello {
            install_id: host.install_id,
            boot_id,
            agent_run_id: self.run,
            epoch: image.epoch,
            token: image.token.clone(),
            agent_version: "0.0.0".to_owned(),
            version: 1,
            capabilities: vec![KEEPS_TIMEOUT.to_owned(), KEY_ROTATION.to_owned()],
            catalogue_digest: "00".repeat(32),
            labels: BTreeMap::new(),
            unreported: image.unreported(),
            highest_order: image.highest_order,
            low_water: image.low_water,
            pin_set_version: 0,
            telemetry: image.spool.positions(),
        };
        link.session.hello(hello, nonce, now);
        link.transmit(now, core);
        // A process may end with its HELLO under way.
        core.dies(Dying::Gateway(host.id));
    }

    pub(super) fn epoch_kept(
        &mut self,
        wire: ConnectionId,
        kept: bool,
        host: &mut Host,
        core: &mut Core,
    ) {
        let now = host.clock(core);
        let Some(link) = self.link.as_mut().filter(|link| link.wire == wire) else {
            return;
        };
        link.blocked = false;
        if kept {
            link.session.confirm(now);
        } else {
            link.session.close("the new epoch cannot be kept", now);
        }
        self.pump(host, core);
    }

    fn established(&mut self, link: &mut Link, host: &mut Host, core: &mut Core) {
        host.forget_refusals();
        let Some(welcome) = link.welcome.take() else {
            return;
        };
        let now = host.clock(core);
        link.established_at = Some(now);
        link.told = Some(FailureClass::Slot {
            within: Duration::from_millis(welcome.reconnect_slot_ms),
        });
        for position in &welcome.committed {
            host.write(Write::Acknowledge(*position), core);
        }
        let attached = (Input::Attached(welcome.low_water), Some(link.wire));
        self.engine.take_turn(attached, host, core);
        link.look(&host.disk.image.spool, now);
    }

    /// The spool changed: there may be something to send.
    pub(super) fn look_again(&mut self, host: &mut Host, core: &mut Core) {
        let now = host.clock(core);
        if let Some(link) = &mut self.link {
            link.look(&host.disk.image.spool, now);
        }
        self.pump(host, core);
    }

    fn ended(&mut self, link: &mut Link, closed: Option<&Closed>, host: &Host, core: &mut Core) {
        let (id, wire) = (host.id, link.wire);
        link.over = true;
        core.note(|| format!("{id:?} lost {wire:?}: {closed:?}"));
        core.hang_up(wire, End::Agent);
        let is_permanent =
            |it: &Closed| it.by == End::Agent && it.code.is_some_and(CloseCode::is_permanent);
        let own = if closed.is_some_and(is_permanent) {
            FailureClass::PermanentUnproved
        } else {
            FailureClass::Transient
        };
        let now = host.clock(core);
        let confirmed = link.established_at.map(|at| now.saturating_since(at));
        self.wait(link.told.unwrap_or(own), confirmed, host, core);
    }
}

fn welcomed(link: &mut Link, welcome: Box<Welcome>, host: &mut Host, core: &mut Core) {
    let write = Write::Epoch(link.wire, welcome.epoch, welcome.token.clone());
    link.welcome = Some(welcome);
    link.blocked = core.rules.keeps(Rule::DurableBeforeConfirm);
    if !link.blocked {
        link.session.confirm(host.clock(core));
    }
    host.write(write, core);
}

/// What both ends of a connection are bound to: its own number.
pub(crate) fn binding(wire: ConnectionId) -> Binding {
    let mut value = [0; 32];
    value[..8].copy_from_slice(&wire.0.to_be_bytes());
    Binding {
        mode: BindingMode::Exporter,
        value,
    }
}
