//! The bodies of all messages, as JSON; unknown and repeated fields are refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalogue::CatalogueEntry;
use crate::code::{CloseCode, RejectCode};
use crate::command::{Arguments, Outcome, base64_bytes};
use crate::id::{AgentRunId, BootId, CommandId, CommandName, InstallId};
use crate::key::BindingMode;
use crate::pin::PinSet;
use crate::telemetry::{BatchColumns, Position};
use crate::text::deserialize_told;
use crate::time::Timestamp;

/// The capability of an agent that keeps the `timeout_ms` of COMMAND. Another one refuses a field that it does not
/// know, and must not be sent it.
pub const KEEPS_TIMEOUT: &str = "command_timeout";

/// The capability of an agent that wants to know which records were refused.
pub const TELEMETRY_REFUSALS: &str = "telemetry_refusals";

/// The capability of an agent that wants to know which results were not kept.
pub const RESULT_REFUSALS: &str = "result_refusals";

/// The capability of an agent that can have its certificate renewed over an open session. It is told in WELCOME whether
/// the backend can, too: neither end sends the kinds for that to another one, which closes on a kind it does not know.
pub const CERTIFICATE_RENEWAL: &str = "certificate_renewal";

/// The capability of an agent that takes a pin set over an open session. Another one closes on a kind it does not know,
/// and is offered the set in its next WELCOME.
pub const PIN_ROTATION: &str = "pin_rotation";

/// The capability of an agent that takes another agent key over an open session. `KEY_UPDATE` is sent to nobody else,
/// and `KEY_REPORT` answers it.
pub const KEY_ROTATION: &str = "key_rotation";

/// The capability of an agent that takes the authorities of the server over an open session. It is sent none otherwise.
pub const TRUST_UPDATE: &str = "trust_update";

macro_rules! body {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident : $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
    };
}

body! {
    /// CHALLENGE, after its session id and server nonce: the backend speaks first.
    Challenge {
        /// The backend's wall clock, so that the gateway can report its skew.
        server_time: Timestamp,
        /// The lowest protocol version the backend speaks.
        version_min: u8,
        /// The highest protocol version the backend speaks.
        version_max: u8,
        /// How this listener binds sessions.
        binding: BindingMode,
    }
}
body! {
    /// HELLO, after its client nonce: who the gateway is and what it still holds.
    Hello {
        /// The installation.
        install_id: InstallId,
        /// The boot of the operating system.
        boot_id: BootId,
        /// The process.
        agent_run_id: AgentRunId,
        /// The last epoch made durable.
        epoch: u64,
        /// The ratchet token of that epoch, 64 hexadecimal digits.
        token: String,
        /// The agent's version.
        agent_version: String,
        /// The highest protocol version the agent speaks.
        version: u8,
        /// Optional abilities by name.
        capabilities: Vec<String>,
        /// SHA-256 of the catalogue, 64 hexadecimal digits.
        catalogue_digest: String,
        /// Labels from the gateway's own configuration.
        #[serde(deserialize_with = "crate::unique::map")]
        labels: BTreeMap<String, String>,
        /// Every command id the journal holds that the backend has not acknowledged as committed.
        unreported: Vec<CommandId>,
        /// The highest order the gateway ever saw.
        highest_order: u64,
        /// The highest low-water mark the gateway was told.
        low_water: u64,
        /// The version of the pin set in force.
        pin_set_version: u64,
        /// For each spool epoch with waiting records, the last position known to be committed.
        telemetry: Vec<Position>,
    }
}
body! {
    /// Limits of one session, absolute.
    Credits {
        /// Commands offered whose result is not committed.
        commands: u32,
        /// Telemetry bytes sent and not acknowledged.
        telemetry_bytes: u32,
        /// Live output bytes that may have been sent in this session; `HEARTBEAT_ACK` raises it.
        output_bytes: u64,
    }
}
body! {
    /// WELCOME: the session's terms. Nothing has an effect before CONFIRM.
    Welcome {
        /// The epoch to make durable.
        epoch: u64,
        /// The ratchet token of that epoch, 64 hexadecimal digits.
        token: String,
        /// How often the gateway sends HEARTBEAT, in milliseconds.
        heartbeat_interval_ms: u64,
        /// After how much silence either end closes, in milliseconds.
        silence_ms: u64,
        /// The session's limits.
        credits: Credits,
        /// Up to which order everything is final.
        low_water: u64,
        /// How far the named spool epochs are committed.
        committed: Vec<Position>,
        /// Whether the backend already has the catalogue with HELLO's digest.
        catalogue_known: bool,
        /// A newer pin set, when the gateway's is older.
        pins: Option<PinSet>,
        /// The backend's wall clock.
        server_time: Timestamp,
        /// A delay to draw the first reconnect from when the session is lost, in milliseconds.
        reconnect_slot_ms: u64,
        /// Whether the backend takes `CERT_REQUEST`; true to agents with the capability [`CERTIFICATE_RENEWAL`] alone,
        /// and left out when it is false.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        renews_certificates: bool,
    }
}
body! {
    /// CONFIRM: the new epoch and token are durable on the gateway.
    Confirm {
        /// The epoch of WELCOME.
        epoch: u64,
    }
}
body! {
    /// REFUSE: why the session does not come about. Authenticated, so a permanent code is believed at once.
    Refuse {
        /// The code.
        code: CloseCode,
        /// One sentence.
        #[serde(deserialize_with = "deserialize_told")]
        reason: String,
        /// How long to wait, in milliseconds, when the backend knows.
        retry_after_ms: Option<u64>,
    }
}
body! {
    /// HEARTBEAT: life, measurements and how full the gateway is.
    Heartbeat {
        /// Opaque to the backend, echoed: the gateway's monotonic clock in milliseconds.
        sent_at_ms: u64,
        /// The last measured round trip, in microseconds.
        round_trip_us: Option<u64>,
        /// The gateway's wall clock minus the backend's, in milliseconds, as last measured.
        clock_skew_ms: Option<i64>,
        /// Telemetry records waiting in the spool.
        spool_records: u64,
        /// Bytes of the spool on disk.
        spool_bytes: u64,
        /// Commands running.
        commands_running: u32,
    }
}
body! {
    /// `HEARTBEAT_ACK`.
    HeartbeatAck {
        /// HEARTBEAT's `sent_at_ms`.
        sent_at_ms: u64,
        /// The backend's wall clock.
        server_time: Timestamp,
        /// Live output bytes that may have been sent in this session.
        output_bytes: u64,
    }
}
body! {
    /// `TELEMETRY_ACK`: everything up to this position is committed.
    TelemetryAck {
        /// The committed position.
        position: Position,
        /// Records of the batch that are not stored, by reason; sent to agents with the capability
        /// [`TELEMETRY_REFUSALS`] alone, and left out when there are none.
        #[serde(
            default,
            skip_serializing_if = "BTreeMap::is_empty",
            deserialize_with = "crate::unique::map"
        )]
        refused: BTreeMap<String, u64>,
    }
}

impl TelemetryAck {
    /// Everything is stored or in a gap.
    #[must_use]
    pub const fn of(position: Position) -> Self {
        Self {
            position,
            refused: BTreeMap::new(),
        }
    }
}
body! {
    /// A start permit: valid for `remaining_ms` from when the gateway sent its frame `as_of`. Delay can only end it
    /// early.
    Permit {
        /// Milliseconds left until the deadline.
        remaining_ms: u64,
        /// The sequence number of the last frame from the agent that the backend had processed.
        as_of: u64,
    }
}
body! {
    /// COMMAND: an offer. Only a permit allows a start.
    Command {
        /// The command.
        command_id: CommandId,
        /// Its number on this gateway, from 1 upwards.
        order: u64,
        /// Its name in the catalogue.
        name: CommandName,
        /// Its arguments.
        #[serde(deserialize_with = "crate::unique::map")]
        arguments: Arguments,
        /// SHA-256 of name and arguments, 64 hexadecimal digits.
        digest: String,
        /// Which delivery this is, from 1 upwards.
        attempt: u32,
        /// W3C trace context of the submission.
        traceparent: Option<String>,
        /// Time left until the deadline; valid as a permit only when `permitted`.
        deadline: Permit,
        /// Whether `deadline` is also the start permit (idempotent commands).
        permitted: bool,
        /// A time limit below the catalogue's, in milliseconds; only to an agent with [`KEEPS_TIMEOUT`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_ms: Option<u64>,
    }
}
body! {
    /// GO: the start permit.
    Go {
        /// The command.
        command_id: CommandId,
        /// How long it may still start.
        permit: Permit,
    }
}
body! {
    /// `COMMAND_ACCEPTED`: journalled and durable; repeated for every waiting entry after CONFIRM.
    CommandAccepted {
        /// The command.
        command_id: CommandId,
        /// Whether the gateway's own catalogue calls it idempotent.
        idempotent: bool,
        /// Whether the entry still waits for its permit; false when an inline permit is being used.
        awaiting_permit: bool,
    }
}
body! {
    /// `COMMAND_REJECTED`: refused on arrival, not journalled.
    CommandRejected {
        /// The command.
        command_id: CommandId,
        /// Why.
        code: RejectCode,
        /// One sentence.
        #[serde(deserialize_with = "deserialize_told")]
        detail: String,
    }
}
body! {
    /// `COMMAND_STARTED`: journalled as started.
    CommandStarted {
        /// The command.
        command_id: CommandId,
        /// By the gateway's wall clock.
        started_at: Timestamp,
    }
}
body! {
    /// OUTPUT: live and best effort.
    Output {
        /// The command.
        command_id: CommandId,
        /// Which stream.
        stream: OutputStream,
        /// The position of the first byte in its stream.
        offset: u64,
        /// The bytes.
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
    }
}
body! {
    /// `COMMAND_RESULT`: sent until `RESULT_ACK`.
    CommandResult {
        /// The command.
        command_id: CommandId,
        /// How it ended.
        outcome: Outcome,
    }
}
body! {
    /// `RESULT_ACK`: the result is committed.
    ResultAck {
        /// The command.
        command_id: CommandId,
        /// Up to which order everything is final.
        low_water: u64,
        /// The backend has no such command, and has kept as many results without one as it keeps: it is only counted.
        /// Sent to agents with the capability [`RESULT_REFUSALS`] alone, and left out otherwise.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        not_kept: bool,
    }
}
body! {
    /// A message about one command: `COMMAND_DROP` (never start it, forget the offer), `COMMAND_CANCEL` (end it).
    CommandRef {
        /// The command.
        command_id: CommandId,
    }
}
body! {
    /// CATALOGUE: what this gateway allows.
    Catalogue {
        /// SHA-256 over the entries, 64 hexadecimal digits.
        digest: String,
        /// The entries, by name.
        commands: Vec<CatalogueEntry>,
    }
}
body! {
    /// `PIN_REPORT`: the pin set version the gateway trusts.
    PinReport {
        /// The version.
        version: u64,
    }
}
body! {
    /// `CERT_REQUEST`: a certificate is wanted for a key that was made on the gateway and stays there. The same key may
    /// be asked for again when the answer was lost.
    CertRequest {
        /// PKCS #10 in PEM, without names and extensions.
        csr: String,
    }
}
body! {
    /// `CERT_ISSUED`: the certificate that was asked for, or why there is none; one of both.
    CertIssued {
        /// The certificate, PEM.
        certificate: Option<String>,
        /// Why there is none.
        refused: Option<CertRefused>,
    }
}
body! {
    /// Why no certificate was issued.
    CertRefused {
        /// A stable word; an agent that does not know it asks again later.
        code: String,
        /// One sentence.
        #[serde(deserialize_with = "deserialize_told")]
        detail: String,
        /// When to ask again at the earliest, in milliseconds.
        retry_after_ms: u64,
    }
}

impl CertRefused {
    /// The key that is asked for is registered already and cannot be had again.
    pub const KEY_IN_USE: &str = "key_in_use";
    /// The agent had as many as it may have for now.
    pub const TOO_SOON: &str = "too_soon";
    /// Something that is to pass keeps the backend from it.
    pub const UNAVAILABLE: &str = "unavailable";
    /// The backend has no key to sign with.
    pub const NO_AUTHORITY: &str = "no_authority";

    /// Whether nobody has to do anything about it.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.code == Self::TOO_SOON || self.code == Self::UNAVAILABLE
    }

    /// Whether another key may fare better than this one.
    #[must_use]
    pub fn is_of_the_key(&self) -> bool {
        self.code == Self::KEY_IN_USE || self.code.starts_with("csr_")
    }
}
body! {
    /// `KEY_UPDATE`: the agent key of a later generation. The agent keeps it, and makes its next HELLO with it.
    KeyUpdate {
        /// Which generation; never zero.
        generation: u8,
        /// The key, covered by one that only the ends of this session know: 64 hexadecimal digits.
        sealed: String,
    }
}
body! {
    /// `KEY_REPORT`: the agent key that the next HELLO is made with is durable.
    KeyReport {
        /// Which generation it is of; never zero.
        generation: u8,
    }
}
body! {
    /// `TRUST_UPDATE`: the authorities that the server's certificates are of, now or soon.
    TrustUpdate {
        /// Certificates, PEM, at most [`AUTHORITIES_MAX`](crate::limits::AUTHORITIES_MAX).
        bundle: String,
    }
}
body! {
    /// `TRUST_REPORT`: what became of the authorities that were offered.
    TrustReport {
        /// SHA-256 of the bundle that is durable and trusted, of none if there is none; 64 hexadecimal digits.
        digest: String,
        /// Why the one that was offered is not, as a stable word.
        refused: Option<String>,
    }
}
body! {
    /// EVENT: something an operator should see, such as a security event.
    Event {
        /// A stable word.
        kind: String,
        /// One sentence.
        #[serde(deserialize_with = "deserialize_told")]
        detail: String,
    }
}
body! {
    /// BYE: the gateway ends the session on purpose.
    Bye {
        /// One sentence.
        #[serde(deserialize_with = "deserialize_told")]
        reason: String,
    }
}
body! {
    /// DRAIN: finish what is under way and reconnect after the given delay.
    Drain {
        /// In milliseconds.
        reconnect_after_ms: u64,
    }
}
body! {
    /// PROBE and `PROBE_ACK`: is this session alive?
    Probe {
        /// Echoed.
        id: u64,
    }
}

/// Which of a command's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What goes first on the socket, from first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Opening, heartbeats, probes, acknowledgements.
    Control,
    /// Commands and results.
    Command,
    /// Live output.
    Output,
    /// Telemetry.
    Telemetry,
}

macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident($body:ty) = $kind:literal, $priority:ident;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $name { $($(#[$variant_doc])* $variant($body),)* }

        impl $name {
            /// Every kind of this direction with its name.
            pub const KINDS: &[(u8, &'static str)] = &[$(($kind, stringify!($variant)),)*];

            /// The kind byte of the envelope.
            #[must_use]
            pub const fn kind(&self) -> u8 {
                match self { $(Self::$variant(_) => $kind,)* }
            }

            /// The message's name.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => stringify!($variant),)* }
            }

            /// Its rank on the socket.
            #[must_use]
            pub const fn priority(&self) -> Priority {
                match self { $(Self::$variant(_) => Priority::$priority,)* }
            }

            /// The JSON body.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                match self { $(Self::$variant(body) => serde_json::to_vec(body).expect("message bodies have string keys and finite numbers"),)* }
            }

            /// Reads the body of a message of kind `kind`; `None` for an unknown kind.
            ///
            /// # Errors
            /// When the body is no JSON of that kind, or something in it is not what this protocol allows.
            pub fn decode(kind: u8, body: &[u8]) -> Option<Result<Self, serde_json::Error>> {
                let decoded = match kind {
                    $($kind => serde_json::from_slice::<$body>(body).map(Self::$variant),)*
                    _ => return None,
                };
                Some(decoded.and_then(|message| {
                    message.check().map_err(serde::de::Error::custom)?;
                    // What a gateway is called and allows is kept as text; prose is made harmless where it is kept.
                    if matches!(kind, HELLO | CATALOGUE) && crate::text::json_holds_nul(body) {
                        return Err(serde::de::Error::custom("text with a NUL character"));
                    }
                    Ok(message)
                }))
            }
        }
    };
}

const HELLO: u8 = 0x02;
const CATALOGUE: u8 = 0x18;

messages! {
    /// Everything an agent may send.
    AgentMessage {
        /// Opens the session; body behind 32 bytes of client nonce.
        Hello(Hello) = 0x02, Control;
        /// Completes the opening.
        Confirm(Confirm) = 0x04, Control;
        /// Life.
        Heartbeat(Heartbeat) = 0x10, Control;
        /// Answers PROBE.
        ProbeAck(Probe) = 0x11, Control;
        /// A batch.
        Telemetry(BatchColumns) = 0x12, Telemetry;
        /// An offer is durable.
        CommandAccepted(CommandAccepted) = 0x13, Command;
        /// An offer is refused.
        CommandRejected(CommandRejected) = 0x14, Command;
        /// A start is durable.
        CommandStarted(CommandStarted) = 0x15, Command;
        /// Live output.
        Output(Output) = 0x16, Output;
        /// An outcome is durable.
        CommandResult(CommandResult) = 0x17, Command;
        /// What this gateway allows.
        Catalogue(Catalogue) = 0x18, Command;
        /// Which pin set is trusted.
        PinReport(PinReport) = 0x19, Control;
        /// Another certificate is wanted.
        CertRequest(CertRequest) = 0x1a, Control;
        /// Something to show an operator.
        Event(Event) = 0x1b, Control;
        /// The end, on purpose.
        Bye(Bye) = 0x1c, Control;
        /// Which agent key is durable.
        KeyReport(KeyReport) = 0x1d, Control;
        /// Which authorities are durable.
        TrustReport(TrustReport) = 0x1e, Control;
    }
}

messages! {
    /// Everything the backend may send.
    BackendMessage {
        /// Speaks first; body behind 16 bytes of session id and 32 of server nonce.
        Challenge(Challenge) = 0x01, Control;
        /// The session's terms.
        Welcome(Welcome) = 0x03, Control;
        /// No session.
        Refuse(Refuse) = 0x05, Control;
        /// Answers HEARTBEAT.
        HeartbeatAck(HeartbeatAck) = 0x30, Control;
        /// Is this session alive?
        Probe(Probe) = 0x31, Control;
        /// Telemetry is committed.
        TelemetryAck(TelemetryAck) = 0x32, Control;
        /// An offer.
        Command(Command) = 0x33, Command;
        /// A start permit.
        Go(Go) = 0x34, Command;
        /// Never start it.
        CommandDrop(CommandRef) = 0x35, Command;
        /// End it.
        CommandCancel(CommandRef) = 0x36, Command;
        /// A result is committed.
        ResultAck(ResultAck) = 0x37, Control;
        /// The certificate that was asked for, or none.
        CertIssued(CertIssued) = 0x38, Control;
        /// A newer pin set; only to an agent with [`PIN_ROTATION`].
        PinUpdate(PinSet) = 0x39, Control;
        /// Reconnect elsewhere or later.
        Drain(Drain) = 0x3a, Control;
        /// A later agent key; only to an agent with [`KEY_ROTATION`].
        KeyUpdate(KeyUpdate) = 0x3b, Control;
        /// The authorities of the server; only to an agent with [`TRUST_UPDATE`].
        TrustUpdate(TrustUpdate) = 0x3c, Control;
    }
}
