//! The one table of bounds, and the relations between them that hold at compile time.

use std::time::Duration;

/// Bytes of a tenant's name.
pub const TENANT_BYTES_MAX: usize = 63;
/// Bytes of a gateway's name: one DNS label.
pub const GATEWAY_NAME_BYTES_MAX: usize = 63;
/// Bytes of a command's name.
pub const COMMAND_NAME_BYTES_MAX: usize = 64;
/// Bytes of an argument's name.
pub const ARGUMENT_NAME_BYTES_MAX: usize = 32;
/// Bytes of one argument's value.
pub const ARGUMENT_VALUE_BYTES_MAX: usize = 1_024;
/// Arguments of one command.
pub const ARGUMENTS_MAX: usize = 32;
/// Bytes of a telemetry stream's name.
pub const STREAM_NAME_BYTES_MAX: usize = 64;
/// Bytes of a telemetry field's name.
pub const FIELD_NAME_BYTES_MAX: usize = 64;
/// Fields of one telemetry record.
pub const RECORD_FIELDS_MAX: usize = 64;
/// Bytes of one text value in a telemetry record.
pub const FIELD_TEXT_BYTES_MAX: usize = 1_024;
/// Bytes of a trust domain.
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// Labels that a gateway reports about itself.
pub const LABELS_MAX: usize = 16;
/// Bytes of a label's key, and of its value.
pub const LABEL_BYTES_MAX: usize = 63;
/// Bytes of an agent's version.
pub const AGENT_VERSION_BYTES_MAX: usize = 64;
/// Abilities that one HELLO names.
pub const CAPABILITIES_MAX: usize = 32;
/// Bytes of the name of an ability.
pub const CAPABILITY_BYTES_MAX: usize = 64;
/// Bytes of the word that says what an EVENT is about.
pub const EVENT_KIND_BYTES_MAX: usize = 64;
/// The largest epoch, order, position, version or count of bytes that travels: every JSON reader keeps it exactly.
pub const COUNTER_MAX: u64 = (1 << 53) - 1;
/// Commands in one gateway's catalogue.
pub const CATALOGUE_COMMANDS_MAX: usize = 256;

/// Bytes of one WebSocket message on an established session.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of one WebSocket frame on an established session.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a message before CONFIRM, when nobody has proved anything.
pub const OPENING_MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a body after decompression, whatever its kind; each kind of the agent has a narrower bound of its own.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of a TELEMETRY or OUTPUT body after decompression.
pub const BULK_BODY_BYTES_MAX: usize = 32 * 1024;
/// Bytes of a `COMMAND_RESULT` body after decompression.
pub const RESULT_BODY_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a CATALOGUE body after decompression.
pub const CATALOGUE_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of any other body from an agent after decompression: these say little.
pub const SMALL_BODY_BYTES_MAX: usize = 16 * 1024;
/// Bytes of one TELEMETRY or OUTPUT message, so that a command never waits behind a backlog.
pub const BULK_MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a WebSocket read buffer; libraries default to 128 KiB for each connection.
pub const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Bytes a WebSocket may hold back before a write is refused.
pub const WRITE_BUFFER_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;

/// Commands handed to one gateway whose result the backend has not yet committed.
pub const COMMANDS_UNREPORTED_MAX: usize = 256;
/// How far above the low-water mark an order may be offered.
pub const ORDER_WINDOW: u64 = 4_096;
/// Telemetry positions named in one HELLO: as many epochs that wait, and as many that are delivered and remembered.
pub const TELEMETRY_POSITIONS_MAX: usize = 2 * SPOOL_EPOCHS_NAMED_MAX;
/// Spool epochs with something waiting that one HELLO names, and delivered ones that the spool remembers.
pub const SPOOL_EPOCHS_NAMED_MAX: usize = 16;
/// Records in one telemetry batch.
pub const BATCH_RECORDS_MAX: usize = 2_000;
/// Gaps reported in one telemetry batch.
pub const BATCH_GAPS_MAX: usize = 64;
/// Telemetry bytes sent and not yet acknowledged.
pub const TELEMETRY_IN_FLIGHT_BYTES_MAX: u32 = 256 * 1024;
/// Live output bytes a gateway may send before the backend raises the limit.
pub const OUTPUT_WINDOW_BYTES: u64 = 1024 * 1024;
/// Bytes of retained output of a command, both streams together.
pub const RETAINED_OUTPUT_BYTES_MAX: usize = 128 * 1024;
/// Messages waiting inside one session to be put on the socket.
pub const OUTBOX_MESSAGES_MAX: usize = 1_024;
/// Bytes of a certificate request, PEM: one for a key of P-256 has 400.
pub const CSR_BYTES_MAX: usize = 4 * 1024;

/// Bytes of the authorities that a gateway is given over a session, PEM.
pub const AUTHORITIES_BYTES_MAX: usize = 32 * 1024;

/// Authorities that a gateway is given over a session.
pub const AUTHORITIES_MAX: usize = 8;
/// Bytes of a certificate, PEM, with those of authorities below the root that may follow it.
pub const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a reason or detail that one end sends to the other.
pub const DETAIL_BYTES_MAX: usize = 512;
/// Frames whose sending time a gateway remembers to count deadlines from.
pub const SENT_TIMES_MAX: usize = 4_096;

/// Default interval between heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// Default silence after which either end closes.
pub const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Default time for each of TLS, upgrade and HELLO.
pub const HANDSHAKE_STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// A HELLO whose CHALLENGE is older than this is dropped before anything is written.
pub const CHALLENGE_AGE_MAX: Duration = Duration::from_secs(10);
/// How long an old session may take to answer PROBE before a newcomer takes over.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Take-overs of one agent per minute before both ends wait.
pub const TAKE_OVERS_PER_MINUTE_MAX: usize = 3;
/// How long the identity of a process that was alive when a copy spoke is kept for it: longer than any backoff.
pub const FAVOUR_TIME: Duration = Duration::from_secs(90);
/// A send that makes no progress for this long closes the connection.
pub const SEND_PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a draining session may take to finish what is under way.
pub const DRAIN_TIME: Duration = Duration::from_secs(DRAIN_SECONDS);
/// The same as a number.
pub const DRAIN_SECONDS: u64 = 10;
/// The first reconnect delay's upper end.
pub const BACKOFF_BASE: Duration = Duration::from_secs(1);
/// The largest delay after transient failures.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// The largest delay a server may ask for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(15 * 60);
/// The shortest delay after a permanent refusal.
pub const PERMANENT_BACKOFF_MIN: Duration = Duration::from_secs(15 * 60);
/// The longest delay after a permanent refusal.
pub const PERMANENT_BACKOFF_MAX: Duration = Duration::from_secs(60 * 60);
/// A session confirmed for this long resets the backoff.
pub const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(60);
/// How far in the past the time of a telemetry record is believed.
pub const OBSERVED_PAST_MAX: Duration = Duration::from_secs(400 * 24 * 3_600);
/// How far in the future the time of a telemetry record is believed.
pub const OBSERVED_FUTURE_MAX: Duration = Duration::from_secs(3_600);
/// A gateway's clock that differs from the backend's by this much is corrected by what was measured.
pub const SKEW_CORRECTED_FROM: Duration = Duration::from_secs(60);

/// Gateways that one run may target.
pub const RUN_TARGETS_MAX: usize = 20_000;
/// Bytes of an operator's request body.
pub const REQUEST_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Rows on one page of an operator's listing.
pub const PAGE_ROWS_MAX: usize = 1_000;
/// Bytes of stored text on one page of an operator's listing; it ends with the row that reaches them.
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;
/// Records that one page of telemetry over time looks at.
pub const STEP_ROWS_MAX: usize = 500_000;
/// Bytes of their fields.
pub const STEP_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Rows on a page when the caller does not say.
pub const PAGE_ROWS_DEFAULT: usize = 100;
/// Bytes of an `Idempotency-Key`.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// The bounds of one WebSocket: what it takes in, and what it holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketBounds {
    /// Bytes of one message.
    pub message: usize,
    /// Bytes of one frame.
    pub frame: usize,
    /// Bytes that wait to be written before a write is refused.
    pub write_buffer: usize,
}

impl SocketBounds {
    /// Those of every session.
    pub const SESSION: Self = Self {
        message: MESSAGE_BYTES_MAX,
        frame: FRAME_BYTES_MAX,
        write_buffer: WRITE_BUFFER_BYTES_MAX,
    };

    /// Bounds for an outside suite that sends messages of this size, each possibly as one frame, and wants them back.
    #[must_use]
    pub const fn of_messages(bytes: usize) -> Self {
        Self {
            message: bytes,
            frame: bytes,
            write_buffer: bytes.saturating_mul(2).saturating_add(MESSAGE_BYTES_MAX),
        }
    }
}

const _: () = {
    assert!(SILENCE_MAX.as_millis() >= 3 * HEARTBEAT_INTERVAL.as_millis());
    assert!(FRAME_BYTES_MAX <= MESSAGE_BYTES_MAX);
    assert!(OPENING_MESSAGE_BYTES_MAX <= FRAME_BYTES_MAX);
    assert!(BULK_MESSAGE_BYTES_MAX <= OPENING_MESSAGE_BYTES_MAX);
    // A result carries both retained streams as base64 with their framing.
    assert!(RETAINED_OUTPUT_BYTES_MAX * 4 / 3 + 64 * 1024 <= RESULT_BODY_BYTES_MAX);
    assert!(RESULT_BODY_BYTES_MAX <= MESSAGE_BYTES_MAX && MESSAGE_BYTES_MAX <= BODY_BYTES_MAX);
    assert!(CATALOGUE_BODY_BYTES_MAX <= BODY_BYTES_MAX);
    // Whatever travels without compression is within the bounds of its kind.
    assert!(BULK_MESSAGE_BYTES_MAX <= BULK_BODY_BYTES_MAX);
    assert!(DETAIL_BYTES_MAX * 6 + 1_024 <= SMALL_BODY_BYTES_MAX);
    // Every unreported id (a UUID with its JSON quotes) fits into HELLO beside the rest.
    assert!(
        COMMANDS_UNREPORTED_MAX * 39
            + TELEMETRY_POSITIONS_MAX * 100
            + LABELS_MAX * (2 * LABEL_BYTES_MAX + 6)
            + 1_024
            <= OPENING_MESSAGE_BYTES_MAX
    );
    assert!((COMMANDS_UNREPORTED_MAX as u64) < ORDER_WINDOW);
    assert!(BACKOFF_MAX.as_secs() < PERMANENT_BACKOFF_MIN.as_secs());
    // Whoever is favoured reconnects within it.
    assert!(BACKOFF_MAX.as_secs() < FAVOUR_TIME.as_secs());
    assert!(PAGE_ROWS_DEFAULT <= PAGE_ROWS_MAX);
};
