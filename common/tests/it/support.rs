//! Two machines over a pipe in memory, with a clock that only the test moves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use viworks_common::catalogue::{CatalogueEntry, Risk};
use viworks_common::code::{CloseCode, RejectCode};
use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::id::{AgentId, AgentRunId, BootId, CommandId, InstallId, SessionId, Tenant};
use viworks_common::key::{
    Binding, BindingMode, Identity, MasterKey, Schedule, Secret, SessionKeys,
};
use viworks_common::limits;
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::session::{
    AgentEvent, AgentSession, AgentSessionConfig, BackendEvent, BackendSession,
    BackendSessionConfig,
};
use viworks_common::telemetry::{BatchColumns, Position};
use viworks_common::time::{Monotonic, Timestamp};
use viworks_common::wire::message::*;

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) const SERVER_NONCE: [u8; 32] = [0x5e; 32];
pub(crate) const CLIENT_NONCE: [u8; 32] = [0xc1; 32];
pub(crate) const KEY_GENERATION: u8 = 3;

pub(crate) fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | n)
}

pub(crate) fn command_id(n: u128) -> CommandId {
    CommandId::from_uuid(uuid(n))
}

pub(crate) fn agent_run_id() -> AgentRunId {
    AgentRunId::from_uuid(uuid(0x11))
}

pub(crate) fn server_time() -> Timestamp {
    Timestamp::from_unix_micros(1_790_000_000_000_000)
}

pub(crate) fn master() -> MasterKey {
    MasterKey::new(Secret::from_bytes([0x4d; 32]))
}

pub(crate) fn identity() -> Identity {
    Identity {
        tenant: Tenant::default_tenant(),
        agent_id: AgentId::from_uuid(uuid(0xa1)),
    }
}

pub(crate) fn binding() -> Binding {
    Binding {
        mode: BindingMode::Exporter,
        value: [0xb1; 32],
    }
}

pub(crate) fn agent_config() -> AgentSessionConfig {
    AgentSessionConfig {
        identity: identity(),
        key: master().agent_key(&identity(), u32::from(KEY_GENERATION)),
        key_generation: KEY_GENERATION,
        binding: binding(),
        version_floor: 1,
        opening_timeout: Duration::from_secs(10),
    }
}

pub(crate) fn backend_config(server_nonce: [u8; 32]) -> BackendSessionConfig {
    BackendSessionConfig {
        identity: identity(),
        master: Arc::new(master()),
        binding: binding(),
        session_id: SessionId::from_uuid(uuid(0x5e55)),
        server_nonce,
        server_time: server_time(),
        hello_timeout: limits::HANDSHAKE_STEP_TIMEOUT,
        certificate_remaining: None,
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        install_id: InstallId::from_uuid(uuid(0x13)),
        boot_id: BootId::from_uuid(uuid(0x12)),
        agent_run_id: agent_run_id(),
        epoch: 6,
        token: master().token(&identity(), 6).expose_hex(),
        agent_version: "0.1.0".to_owned(),
        version: 1,
        capabilities: Vec::new(),
        catalogue_digest: hex::encode([0xca; 32]),
        labels: BTreeMap::from([("site".to_owned(), "berlin".to_owned())]),
        unreported: vec![command_id(0xc9)],
        highest_order: 17,
        low_water: 16,
        pin_set_version: 2,
        telemetry: vec![Position {
            spool_epoch: agent_run_id(),
            seq: 400,
        }],
    }
}

pub(crate) fn welcome() -> Welcome {
    Welcome {
        epoch: 7,
        token: master().token(&identity(), 7).expose_hex(),
        heartbeat_interval_ms: 15_000,
        silence_ms: 45_000,
        credits: Credits {
            commands: 4,
            telemetry_bytes: limits::TELEMETRY_IN_FLIGHT_BYTES_MAX,
            output_bytes: 10_000,
        },
        low_water: 16,
        committed: vec![Position {
            spool_epoch: agent_run_id(),
            seq: 420,
        }],
        catalogue_known: true,
        pins: None,
        server_time: server_time(),
        reconnect_slot_ms: 5_000,
        renews_certificates: false,
    }
}

pub(crate) fn command(n: u128) -> Command {
    Command {
        command_id: command_id(n),
        order: 18,
        name: "service.restart".parse().unwrap(),
        arguments: BTreeMap::from([("unit".parse().unwrap(), "nginx.service".to_owned())]),
        digest: hex::encode(viworks_common::command::digest(
            &"service.restart".parse().unwrap(),
            &BTreeMap::from([("unit".parse().unwrap(), "nginx.service".to_owned())]),
        )),
        attempt: 1,
        traceparent: None,
        deadline: Permit {
            remaining_ms: 60_000,
            as_of: 2,
        },
        permitted: false,
        timeout_ms: None,
    }
}

pub(crate) fn batch(from_seq: u64, records: u64) -> BatchColumns {
    let count = usize::try_from(records).unwrap();
    BatchColumns {
        spool_epoch: agent_run_id(),
        from_seq,
        to_seq: from_seq + records - 1,
        gaps: Vec::new(),
        streams: vec!["host.cpu".parse().unwrap()],
        stream: vec![0; count],
        observed_at: vec![1; count],
        fields: BTreeMap::from([(
            "busy".parse().unwrap(),
            vec![Some(viworks_common::telemetry::FieldValue::Number(0.5)); count],
        )]),
    }
}

pub(crate) fn heartbeat(sent_at_ms: u64) -> Heartbeat {
    Heartbeat {
        sent_at_ms,
        round_trip_us: None,
        clock_skew_ms: None,
        spool_records: 0,
        spool_bytes: 0,
        commands_running: 0,
    }
}

pub(crate) fn output(bytes: usize) -> Output {
    Output {
        command_id: command_id(1),
        stream: OutputStream::Stdout,
        offset: 0,
        data: vec![b'x'; bytes],
    }
}

/// One message of every kind an agent may send.
pub(crate) fn agent_messages() -> Vec<AgentMessage> {
    let command_id = command_id(1);
    vec![
        AgentMessage::Hello(hello()),
        AgentMessage::Confirm(Confirm { epoch: 7 }),
        AgentMessage::Heartbeat(heartbeat(1)),
        AgentMessage::ProbeAck(Probe { id: 1 }),
        AgentMessage::Telemetry(batch(1, 3)),
        AgentMessage::CommandAccepted(CommandAccepted {
            command_id,
            idempotent: false,
            awaiting_permit: true,
        }),
        AgentMessage::CommandRejected(CommandRejected {
            command_id,
            code: RejectCode::NotAllowed,
            detail: "no such command".to_owned(),
        }),
        AgentMessage::CommandStarted(CommandStarted {
            command_id,
            started_at: server_time(),
        }),
        AgentMessage::Output(output(3)),
        AgentMessage::CommandResult(CommandResult {
            command_id,
            outcome: Outcome::without_run(OutcomeState::Expired, "too late"),
        }),
        AgentMessage::Catalogue(Catalogue {
            digest: hex::encode([1; 32]),
            commands: vec![CatalogueEntry {
                name: "sys.uptime".parse().unwrap(),
                title: "Uptime".to_owned(),
                risk: Risk::Read,
                idempotent: true,
                arguments: Vec::new(),
                timeout_ms: 1_000,
                output_bytes_max: 1_000,
                unavailable: None,
            }],
        }),
        AgentMessage::PinReport(PinReport { version: 2 }),
        AgentMessage::CertRequest(CertRequest {
            csr: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
                .to_owned(),
        }),
        AgentMessage::Event(Event {
            kind: "digest_mismatch".to_owned(),
            detail: "the same id with another digest".to_owned(),
        }),
        AgentMessage::Bye(Bye {
            reason: "stopping".to_owned(),
        }),
        AgentMessage::KeyReport(KeyReport { generation: 2 }),
        AgentMessage::TrustReport(TrustReport {
            digest: hex::encode([2; 32]),
            refused: None,
        }),
    ]
}

/// One message of every kind the backend may send.
pub(crate) fn backend_messages() -> Vec<BackendMessage> {
    let command_id = command_id(1);
    vec![
        BackendMessage::Challenge(Challenge {
            server_time: server_time(),
            version_min: 1,
            version_max: 1,
            binding: BindingMode::Exporter,
        }),
        BackendMessage::Welcome(welcome()),
        BackendMessage::Refuse(refuse(CloseCode::Revoked)),
        BackendMessage::HeartbeatAck(HeartbeatAck {
            sent_at_ms: 1,
            server_time: server_time(),
            output_bytes: 20_000,
        }),
        BackendMessage::Probe(Probe { id: 1 }),
        BackendMessage::TelemetryAck(TelemetryAck {
            position: Position {
                spool_epoch: agent_run_id(),
                seq: 3,
            },
            refused: [("stream_limit".to_owned(), 2)].into(),
        }),
        BackendMessage::Command(command(1)),
        BackendMessage::Go(Go {
            command_id,
            permit: Permit {
                remaining_ms: 1_000,
                as_of: 2,
            },
        }),
        BackendMessage::CommandDrop(CommandRef { command_id }),
        BackendMessage::CommandCancel(CommandRef { command_id }),
        BackendMessage::ResultAck(ResultAck {
            command_id,
            low_water: 18,
            not_kept: false,
        }),
        BackendMessage::CertIssued(CertIssued {
            certificate: None,
            refused: Some(CertRefused {
                code: "no_authority".to_owned(),
                detail: "this backend has no key of an authority".to_owned(),
                retry_after_ms: 86_400_000,
            }),
        }),
        BackendMessage::PinUpdate(PinSet {
            version: 3,
            pins: [1, 2].map(|n| SpkiPin::from_digest([n; 32])).into(),
        }),
        BackendMessage::Drain(Drain {
            reconnect_after_ms: 500,
        }),
        BackendMessage::KeyUpdate(KeyUpdate {
            generation: 2,
            sealed: hex::encode([1; 32]),
        }),
        BackendMessage::TrustUpdate(TrustUpdate {
            bundle: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
        }),
    ]
}

pub(crate) fn refuse(code: CloseCode) -> Refuse {
    Refuse {
        code,
        reason: "refused by the test".to_owned(),
        retry_after_ms: Some(2_000),
    }
}

/// How far the drivers of both ends play along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Until {
    Challenged,
    Deciding,
    Welcomed,
    Confirming,
    Established,
}

/// Both machines, what they said, and what they sent.
pub(crate) struct Pair {
    pub(crate) agent: AgentSession,
    pub(crate) backend: BackendSession,
    pub(crate) now: Monotonic,
    pub(crate) until: Until,
    pub(crate) agent_events: Vec<AgentEvent>,
    pub(crate) backend_events: Vec<BackendEvent>,
    pub(crate) to_agent: Vec<Vec<u8>>,
    pub(crate) to_backend: Vec<Vec<u8>>,
    /// Called with the running number of every frame, before it is delivered.
    pub(crate) tamper: Box<dyn FnMut(usize, &mut Vec<u8>)>,
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self::with(agent_config(), backend_config(SERVER_NONCE))
    }

    pub(crate) fn with(agent: AgentSessionConfig, backend: BackendSessionConfig) -> Self {
        let now = Monotonic::from_duration(Duration::from_secs(1_000));
        Self {
            agent: AgentSession::new(agent, now),
            backend: BackendSession::new(backend, now),
            now,
            until: Until::Established,
            agent_events: Vec::new(),
            backend_events: Vec::new(),
            to_agent: Vec::new(),
            to_backend: Vec::new(),
            tamper: Box::new(|_, _| {}),
        }
    }

    pub(crate) fn established() -> Self {
        let mut pair = Self::new();
        pair.pump();
        assert!(pair.agent.closed().is_none() && pair.backend.closed().is_none());
        pair.agent_events.clear();
        pair.backend_events.clear();
        pair
    }

    /// Opens as far as `until` and no further.
    pub(crate) fn opened(until: Until) -> Self {
        let mut pair = Self::new();
        pair.until = until;
        pair.pump();
        pair
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now.saturating_add(by);
        self.agent.handle_timeout(self.now);
        self.backend.handle_timeout(self.now);
    }

    /// Delivers until both ends are silent.
    pub(crate) fn pump(&mut self) {
        loop {
            let mut quiet = true;
            while let Some(mut frame) = self.backend.poll_transmit(self.now) {
                quiet = false;
                (self.tamper)(self.to_agent.len() + self.to_backend.len(), &mut frame);
                self.agent.handle_frame(&frame, self.now);
                self.to_agent.push(frame);
            }
            while let Some(mut frame) = self.agent.poll_transmit(self.now) {
                quiet = false;
                (self.tamper)(self.to_agent.len() + self.to_backend.len(), &mut frame);
                self.backend.handle_frame(&frame, self.now);
                self.to_backend.push(frame);
            }
            quiet &= !self.answer_agent();
            quiet &= !self.answer_backend();
            if quiet {
                return;
            }
        }
    }

    fn answer_agent(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.agent.poll_event() {
            any = true;
            match &event {
                AgentEvent::Challenged { .. } if self.until > Until::Challenged => {
                    self.agent.hello(hello(), CLIENT_NONCE, self.now);
                }
                AgentEvent::Welcomed(_) if self.until > Until::Welcomed => {
                    self.agent.confirm(self.now);
                }
                _ => {}
            }
            self.agent_events.push(event);
        }
        any
    }

    fn answer_backend(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.backend.poll_event() {
            any = true;
            match &event {
                BackendEvent::Hello { .. } if self.until > Until::Deciding => {
                    self.backend.welcome(welcome(), self.now);
                }
                BackendEvent::Confirmed { .. } if self.until > Until::Confirming => {
                    self.backend.established(self.now);
                }
                _ => {}
            }
            self.backend_events.push(event);
        }
        any
    }

    /// The keys of this session, from what went over the wire.
    pub(crate) fn keys(&self) -> SessionKeys {
        self.schedule()
            .session_keys(&self.to_agent[0], &self.to_backend[0])
    }

    pub(crate) fn hello_key(&self) -> Secret {
        self.schedule().hello_key(&self.to_agent[0])
    }

    fn schedule(&self) -> Schedule {
        let key = master().agent_key(&identity(), u32::from(KEY_GENERATION));
        Schedule::new(&SERVER_NONCE, &key, identity(), &binding())
    }

    pub(crate) fn agent_code(&self) -> Option<u16> {
        self.agent.closed().map(|closed| closed.number())
    }

    pub(crate) fn backend_code(&self) -> Option<u16> {
        self.backend.closed().map(|closed| closed.number())
    }

    pub(crate) fn send_agent(&mut self, message: AgentMessage) {
        self.agent.send(message, self.now).unwrap();
        self.pump();
    }

    pub(crate) fn send_backend(&mut self, message: BackendMessage) {
        self.backend.send(message, self.now).unwrap();
        self.pump();
    }
}

/// The backend has committed an agent's telemetry up to this record.
pub(crate) fn acknowledge(pair: &mut Pair, seq: u64) {
    let spool_epoch = agent_run_id();
    let position = Position { spool_epoch, seq };
    pair.send_backend(BackendMessage::TelemetryAck(TelemetryAck::of(position)));
}

/// The sequence number in an envelope.
pub(crate) fn sequence(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame[4..12].try_into().unwrap())
}

/// An envelope with any header, under any key.
pub(crate) fn forge(kind: u8, flags: u8, sequence: u64, body: &[u8], key: &Secret) -> Vec<u8> {
    let mut bytes = vec![1, kind, flags, 0];
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(body);
    let tag = key.tag(&[&bytes]);
    bytes.extend_from_slice(&tag);
    bytes
}
