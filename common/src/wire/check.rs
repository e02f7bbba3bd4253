//! What a message may say beyond the types of its fields: the receiver is as strict as an honest sender.
//!
//! A message that breaks one of these rules closes the session. Two things are settled more gently, because closing
//! would cost more than it protects: prose is escaped and cut (`text::told`), and a catalogue's entry that breaks a
//! rule of its own is refused by itself (`catalogue::take_report_while`).

use std::collections::BTreeSet;

use super::message::{
    AgentMessage, BackendMessage, Catalogue, CertIssued, Challenge, Command, CommandResult,
    Heartbeat, Hello, KeyUpdate, Output, Permit, TrustReport, Welcome,
};
use crate::id::{AgentVersion, Capability, EventKind, InvalidId, LabelKey, check_label_value};
use crate::limits;
use crate::telemetry::{BatchColumns, Position};

/// What is wrong with a message, in words that name the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Violation {
    field: &'static str,
    problem: String,
}

type Checked = Result<(), Violation>;

fn violation(field: &'static str, problem: impl Into<String>) -> Violation {
    Violation {
        field,
        problem: problem.into(),
    }
}

impl AgentMessage {
    /// Whether an honest agent can have sent this.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub(super) fn check(&self) -> Checked {
        match self {
            Self::Hello(hello) => check_hello(hello),
            Self::Confirm(confirm) => counter("epoch", confirm.epoch),
            Self::Heartbeat(heartbeat) => check_heartbeat(heartbeat),
            Self::Telemetry(batch) => check_batch(batch),
            Self::Output(output) => check_output(output),
            Self::CommandResult(result) => check_result(result),
            Self::Catalogue(catalogue) => check_catalogue(catalogue),
            Self::PinReport(report) => counter("version", report.version),
            Self::CertRequest(request) => most("csr", request.csr.len(), limits::CSR_BYTES_MAX),
            Self::Event(event) => id::<EventKind>("kind", &event.kind),
            Self::KeyReport(report) => generation(report.generation),
            Self::TrustReport(report) => check_trust_report(report),
            Self::ProbeAck(_)
            | Self::CommandAccepted(_)
            | Self::CommandRejected(_)
            | Self::CommandStarted(_)
            | Self::Bye(_) => Ok(()),
        }
    }
}

impl BackendMessage {
    /// Whether an honest backend can have sent this.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub(super) fn check(&self) -> Checked {
        match self {
            Self::Challenge(challenge) => check_challenge(challenge),
            Self::Welcome(welcome) => check_welcome(welcome),
            Self::TelemetryAck(ack) => position("position", &ack.position),
            Self::Command(command) => check_command(command),
            Self::Go(go) => permit("permit", &go.permit),
            Self::ResultAck(ack) => counter("low_water", ack.low_water),
            Self::CertIssued(issued) => check_issued(issued),
            // Whether it may follow the one in force is for the agent to judge: it takes it over or does without.
            Self::PinUpdate(offered) => counter("version", offered.version),
            Self::KeyUpdate(update) => check_key_update(update),
            // What is in it is for the agent to judge, as a pin set is.
            Self::TrustUpdate(update) => {
                most("bundle", update.bundle.len(), limits::AUTHORITIES_BYTES_MAX)
            }
            Self::Refuse(_)
            | Self::HeartbeatAck(_)
            | Self::Probe(_)
            | Self::CommandDrop(_)
            | Self::CommandCancel(_)
            | Self::Drain(_) => Ok(()),
        }
    }
}

fn check_hello(hello: &Hello) -> Checked {
    counter("epoch", hello.epoch)?;
    hex32("token", &hello.token)?;
    id::<AgentVersion>("agent_version", &hello.agent_version)?;
    most(
        "capabilities",
        hello.capabilities.len(),
        limits::CAPABILITIES_MAX,
    )?;
    for capability in &hello.capabilities {
        id::<Capability>("capabilities", capability)?;
    }
    hex32("catalogue_digest", &hello.catalogue_digest)?;
    most("labels", hello.labels.len(), limits::LABELS_MAX)?;
    for (key, value) in &hello.labels {
        id::<LabelKey>("labels", key)?;
        check_label_value(value).map_err(|invalid| invalid_id("labels", &invalid))?;
    }
    most(
        "unreported",
        hello.unreported.len(),
        limits::COMMANDS_UNREPORTED_MAX,
    )?;
    counter("highest_order", hello.highest_order)?;
    counter("low_water", hello.low_water)?;
    counter("pin_set_version", hello.pin_set_version)?;
    most(
        "telemetry",
        hello.telemetry.len(),
        limits::TELEMETRY_POSITIONS_MAX,
    )?;
    hello
        .telemetry
        .iter()
        .try_for_each(|known| position("telemetry", known))
}

fn check_heartbeat(heartbeat: &Heartbeat) -> Checked {
    counter("round_trip_us", heartbeat.round_trip_us.unwrap_or(0))?;
    let skew = heartbeat.clock_skew_ms.unwrap_or(0).unsigned_abs();
    counter("clock_skew_ms", skew)?;
    counter("spool_records", heartbeat.spool_records)?;
    counter("spool_bytes", heartbeat.spool_bytes)
}

/// What makes a batch malformed as a whole is checked when its columns are read; here only what bounds that.
pub(crate) fn check_batch(batch: &BatchColumns) -> Checked {
    counter("to_seq", batch.to_seq)?;
    most("stream", batch.stream.len(), limits::BATCH_RECORDS_MAX)?;
    most("streams", batch.streams.len(), limits::BATCH_RECORDS_MAX)?;
    most("gaps", batch.gaps.len(), limits::BATCH_GAPS_MAX)
}

fn check_output(output: &Output) -> Checked {
    let bytes = u64::try_from(output.data.len()).unwrap_or(u64::MAX);
    counter("offset", output.offset.saturating_add(bytes))
}

fn check_result(result: &CommandResult) -> Checked {
    let outcome = &result.outcome;
    counter("duration_ms", outcome.duration_ms)?;
    let mut kept = 0;
    for stream in [&outcome.stdout, &outcome.stderr] {
        kept += stream.head.len() + stream.tail.len();
        counter("cut_bytes", stream.cut_bytes)?;
    }
    most(
        "bytes of stdout and stderr",
        kept,
        limits::RETAINED_OUTPUT_BYTES_MAX,
    )
}

fn check_catalogue(catalogue: &Catalogue) -> Checked {
    hex32("digest", &catalogue.digest)?;
    most(
        "commands",
        catalogue.commands.len(),
        limits::CATALOGUE_COMMANDS_MAX,
    )?;
    let mut names = BTreeSet::new();
    for entry in &catalogue.commands {
        if !names.insert(&entry.name) {
            return Err(violation(
                "commands",
                format!("{} is named twice", entry.name),
            ));
        }
    }
    Ok(())
}

fn check_challenge(challenge: &Challenge) -> Checked {
    if challenge.version_min == 0 || challenge.version_max < challenge.version_min {
        let problem = format!("{} to {}", challenge.version_min, challenge.version_max);
        return Err(violation("version_min to version_max", problem));
    }
    Ok(())
}

fn check_welcome(welcome: &Welcome) -> Checked {
    counter("epoch", welcome.epoch)?;
    hex32("token", &welcome.token)?;
    if welcome.heartbeat_interval_ms == 0 {
        return Err(violation("heartbeat_interval_ms", "zero"));
    }
    if welcome.silence_ms < welcome.heartbeat_interval_ms {
        return Err(violation(
            "silence_ms",
            "shorter than heartbeat_interval_ms",
        ));
    }
    counter("silence_ms", welcome.silence_ms)?;
    counter("low_water", welcome.low_water)?;
    most(
        "committed",
        welcome.committed.len(),
        limits::TELEMETRY_POSITIONS_MAX,
    )?;
    welcome
        .committed
        .iter()
        .try_for_each(|known| position("committed", known))
}

/// The command itself, its name's meaning and its arguments are the catalogue's affair: it is rejected, not the
/// session.
fn check_command(command: &Command) -> Checked {
    if command.order == 0 {
        return Err(violation("order", "zero"));
    }
    counter("order", command.order)?;
    hex32("digest", &command.digest)?;
    if command.attempt == 0 {
        return Err(violation("attempt", "zero"));
    }
    if let Some(traceparent) = &command.traceparent
        && !is_traceparent(traceparent)
    {
        return Err(violation("traceparent", "not a W3C trace context"));
    }
    permit("deadline", &command.deadline)
}

fn check_trust_report(report: &TrustReport) -> Checked {
    hex32("digest", &report.digest)?;
    match &report.refused {
        Some(word) => id::<EventKind>("refused", word),
        None => Ok(()),
    }
}

fn check_key_update(update: &KeyUpdate) -> Checked {
    generation(update.generation)?;
    hex32("sealed", &update.sealed)
}

/// Generations of agent keys begin with the one of enrolment.
fn generation(number: u8) -> Checked {
    if number == 0 {
        return Err(violation("generation", "zero"));
    }
    Ok(())
}

/// Whether it is a certificate of ours is for the agent to find out: it takes it over or does without, and stays.
fn check_issued(issued: &CertIssued) -> Checked {
    match (&issued.certificate, &issued.refused) {
        (Some(certificate), None) => most(
            "certificate",
            certificate.len(),
            limits::CERTIFICATE_BYTES_MAX,
        ),
        (None, Some(refused)) => {
            id::<EventKind>("code", &refused.code)?;
            counter("retry_after_ms", refused.retry_after_ms)
        }
        (Some(_), Some(_)) | (None, None) => Err(violation(
            "certificate",
            "it goes with no refusal, or a refusal without it",
        )),
    }
}

/// Whether `text` has the shape of a W3C trace context.
#[must_use]
pub fn is_traceparent(text: &str) -> bool {
    let hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    text.bytes().all(hex) && text.split('-').map(str::len).eq([2, 32, 16, 2])
}

fn permit(field: &'static str, permit: &Permit) -> Checked {
    counter(field, permit.as_of)
}

fn position(field: &'static str, position: &Position) -> Checked {
    counter(field, position.seq)
}

fn counter(field: &'static str, value: u64) -> Checked {
    if value <= limits::COUNTER_MAX {
        Ok(())
    } else {
        let problem = format!("{value} is more than {}", limits::COUNTER_MAX);
        Err(violation(field, problem))
    }
}

fn most(field: &'static str, count: usize, most: usize) -> Checked {
    if count <= most {
        Ok(())
    } else {
        Err(violation(field, format!("{count} are more than {most}")))
    }
}

fn hex32(field: &'static str, text: &str) -> Checked {
    let hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() == 64 && text.bytes().all(hex) {
        Ok(())
    } else {
        Err(violation(field, "not 64 lower-case hexadecimal digits"))
    }
}

fn id<T: std::str::FromStr<Err = InvalidId>>(field: &'static str, text: &str) -> Checked {
    text.parse::<T>()
        .map(drop)
        .map_err(|invalid| invalid_id(field, &invalid))
}

fn invalid_id(field: &'static str, invalid: &InvalidId) -> Violation {
    violation(field, invalid.to_string())
}
