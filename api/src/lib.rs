//! The vocabulary of the operators' REST API v1, shared by the backend that answers and the command line that asks.
//!
//! Requests refuse unknown and repeated fields; answers may gain fields within v1, so readers ignore what they do not know.
//! Times are RFC 3339 in UTC, durations are whole milliseconds with the unit in the name, enums are lower-case words.

#![warn(missing_docs)]

mod apikey;
mod audit;
mod authority;
mod catalogue;
mod certificate;
mod dead_letter;
mod event;
mod gateway;
mod health;
mod orphan;
mod page;
mod pin;
mod problem;
mod run;
mod scope;
mod telemetry;
mod ticket;

pub use apikey::{ApiKey, ApiKeyCreated, ApiKeyList, ApiKeyRequest, ApiKeyStatus};
pub use audit::{AuditList, AuditRecord};
pub use authority::{
    Authority, AuthorityBackend, AuthorityGateway, AuthoritySigners, AuthorityStatus,
};
pub use catalogue::{CatalogueCommand, CatalogueGateway, CatalogueList};
pub use certificate::{
    CertificateList, CertificateRef, CertificateRevoked, CertificateState, EarlierCertificate,
    GatewayCertificate, InvalidCertificateRef,
};
pub use dead_letter::{DeadLetter, DeadLetterList, DeadLetterState};
pub use event::{MissedOutput, RunEvent};
pub use gateway::{
    Fork, ForkEnd, ForkHolder, ForkList, ForkResolved, Gateway, GatewayAuthorities, GatewayKey,
    GatewayKeyRotated, GatewayList, GatewayRef, GatewayRefusal, GatewayRevocation, GatewayRevoked,
    GatewaySession, GatewaySpool, GatewayStatus, KeptBy, Label, LabelSource, NamedGateway,
    REASON_BYTES_MAX, ResolveForkRequest, RevokeRequest, revocation_told,
};
pub use health::{Health, HealthCheck, HealthPast, HealthStatus, NotReady, NotReadyStatus};
pub use orphan::{OrphanList, OrphanResult};
pub use page::{ApiVersion, Kind, Paged};
pub use pin::{Pin, PinChanged, PinGateway, PinPromotion, PinRequest, PinState, PinStatus};
pub use problem::{FieldProblem, InvalidProblemCode, Problem, ProblemCode};
pub use run::{
    CommandList, CommandOutcome, CommandView, OutputBytes, OutputView, PlannedGateway,
    RequestedArguments, Run, RunCancelled, RunList, RunPlan, RunRequest, RunState, RunWait,
    SkipCode, SkippedGateway, SkippedList, Targets,
};
pub use scope::{InvalidScope, Scope};
pub use telemetry::{
    TelemetryAnswer, TelemetryGap, TelemetryGapList, TelemetryList, TelemetryRecord,
    TelemetryRefusal, TelemetryRefusalList, TelemetryStep, TelemetryStepList, TelemetryStream,
    TelemetryStreamList,
};
pub use ticket::{
    EPHEMERAL_MS_MAX, EPHEMERAL_MS_MIN, ReplaceRequest, TICKET_LIFE_MS_DEFAULT, TICKET_LIFE_MS_MAX,
    Ticket, TicketCreated, TicketList, TicketRequest, TicketStatus,
};

/// The media type of a problem document.
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";
/// The request header that makes a submission safe to repeat.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The answer's header that says that a repeated submission was answered with the first one's run.
pub const IDEMPOTENCY_REPLAYED: &str = "idempotency-replayed";
/// The header that names a request in answers, logs and the audit trail.
pub const REQUEST_ID: &str = "x-request-id";
/// How long a command may wait for its start when the submission does not say.
pub const DEADLINE_MS_DEFAULT: u64 = 15 * 60 * 1_000;
/// The longest time a submission may give a command to start.
pub const DEADLINE_MS_MAX: u64 = 30 * 24 * 3_600 * 1_000;
/// The longest a wait request is held open.
pub const WAIT_MS_MAX: u64 = 60_000;
/// How long a wait request is held open when the caller does not say.
pub const WAIT_MS_DEFAULT: u64 = 30_000;
