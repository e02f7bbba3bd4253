//! Telemetry, API keys, the audit log and the store's own state.

use std::collections::BTreeSet;

use viworks_common::id::{AgentId, AgentRunId, ApiKeyId, FieldName, StreamName};
pub use viworks_common::ledger::telemetry::{Commit as TelemetryCommit, Limits as TelemetryLimits};
use viworks_common::telemetry::steps::{Aggregate, Range, Step};
use viworks_common::telemetry::{Batch, Fields, Gap, MalformedBatch, RecordRefusal, TimeSource};
use viworks_common::time::Timestamp;
use viworks_common::timeline::shared::Stored;

use super::{Actor, Listing};

/// One batch of one gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryWrite {
    /// The gateway.
    pub agent_id: AgentId,
    /// The epoch of the session it came over.
    pub epoch: u64,
    /// The gateway's clock minus the backend's, in milliseconds, as last measured.
    pub skew_ms: Option<i64>,
    /// The batch.
    pub batch: Batch,
}

/// What became of one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TelemetryOutcome {
    /// Everything up to the position is stored, refused or in a gap.
    Committed(TelemetryCommit),
    /// The session's epoch is no longer the current one.
    Fenced,
    /// The batch contradicts itself; nothing of it was stored.
    Malformed(MalformedBatch),
}

impl TelemetryOutcome {
    /// Whether records were stored.
    #[must_use]
    pub const fn stores(&self) -> bool {
        matches!(self, Self::Committed(commit) if commit.stored > 0)
    }
}

/// Which records are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetryQuery {
    /// Of one stream, or of all.
    pub stream: Option<StreamName>,
    /// Observed at this time or later.
    pub from: Timestamp,
    /// Observed before this time.
    pub until: Timestamp,
    /// Whether the newest come first.
    pub newest_first: bool,
}

/// Where a page of records ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TelemetryCursor {
    /// When the last record was observed.
    pub observed_at: Timestamp,
    /// Its spool epoch.
    pub spool_epoch: AgentRunId,
    /// Its number.
    pub seq: u64,
}

/// Which numbers are wanted over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepQuery {
    /// Of one stream.
    pub stream: StreamName,
    /// The field that the numbers are in.
    pub field: FieldName,
    /// How long each step is.
    pub step: Step,
    /// What is told of each.
    pub aggregate: Aggregate,
    /// Which records.
    pub range: Range,
    /// Whether the newest steps come first.
    pub newest_first: bool,
    /// Records that one page looks at.
    pub rows_max: usize,
    /// Bytes of their fields.
    pub bytes_max: usize,
}

/// Where a page of steps ends: when its last step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepCursor(pub Timestamp);

/// One step that holds records with a number in the field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepValue {
    /// When it begins.
    pub at: Timestamp,
    /// What is told of it; none when that is beyond every number.
    pub value: Option<f64>,
    /// How many records with a number there are.
    pub records: u64,
}

/// Telemetry over time.
#[derive(Debug, Clone, PartialEq)]
pub enum Stepped {
    /// One page of steps. It may hold fewer than wanted, or none, and have a next one all the same.
    Page(Listing<StepValue, StepCursor>),
    /// A single step holds more records than one page looks at.
    TooManyRecords,
}

/// A place among the gaps of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GapCursor {
    /// The process that appended what is missing.
    pub spool_epoch: AgentRunId,
    /// The first missing number.
    pub from_seq: u64,
}

/// A place among the refusals of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefusalCursor {
    /// The process that appended what was refused; none for those that are one too many.
    pub spool_epoch: Option<AgentRunId>,
    /// Why.
    pub reason: RecordRefusal,
}

/// One stored record.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRecord {
    /// Its spool epoch.
    pub spool_epoch: AgentRunId,
    /// Its number.
    pub seq: u64,
    /// Its stream.
    pub stream: StreamName,
    /// When it was observed.
    pub observed_at: Timestamp,
    /// By whose clock.
    pub time_source: TimeSource,
    /// What the gateway's clock said, where that is something else.
    pub gateway_time: Option<Timestamp>,
    /// When it was stored.
    pub stored_at: Timestamp,
    /// Its fields.
    pub fields: Fields,
}

/// One stream of a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSummary {
    /// Its name.
    pub stream: StreamName,
    /// The time of its newest record.
    pub newest: Timestamp,
}

/// One stored gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredGap {
    /// The spool epoch.
    pub spool_epoch: AgentRunId,
    /// The range and why.
    pub gap: Gap,
    /// When it was stored.
    pub stored_at: Timestamp,
}

/// Records of a gateway that were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRefusal {
    /// Their spool epoch; none for those that were refused because of it.
    pub spool_epoch: Option<AgentRunId>,
    /// Why.
    pub reason: RecordRefusal,
    /// How many.
    pub records: u64,
    /// When the first of them was refused, if that is known.
    pub first_at: Option<Timestamp>,
    /// When the last of them was refused, if that is known.
    pub last_at: Option<Timestamp>,
}

/// An API key to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// A name for people.
    pub name: String,
    /// SHA-256 of the secret.
    pub sha256: [u8; 32],
    /// What it may do.
    pub scopes: BTreeSet<String>,
    /// When it ends, if it does.
    pub expires_at: Option<Timestamp>,
}

/// An API key as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// A name for people.
    pub name: String,
    /// SHA-256 of the secret.
    pub sha256: [u8; 32],
    /// What it may do.
    pub scopes: BTreeSet<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it ends, if it does.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, as far as that was stored.
    pub last_used_at: Option<Timestamp>,
}

/// How an audited action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AuditOutcome {
    /// It was done.
    Done,
    /// It was refused.
    Refused,
    /// It was reported, such as a security event.
    Noted,
}

impl AuditOutcome {
    /// Every outcome.
    pub const ALL: &[Self] = &[Self::Done, Self::Refused, Self::Noted];

    /// The word in the audit log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Noted => "noted",
        }
    }

    /// The outcome with a name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|outcome| outcome.name() == name)
    }
}

/// An audit record to be appended.
#[derive(Debug, Clone, PartialEq)]
pub struct NewAuditRecord {
    /// Who.
    pub actor: Actor,
    /// What, a stable dotted word such as `gateway.revoke`.
    pub action: String,
    /// On what, such as `gateway:01…`.
    pub object: String,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// What else there is to know.
    pub detail: serde_json::Value,
}

/// One audit record.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditRecord {
    /// Its place in the log: strictly increasing.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The name of the key or gateway that acted, where that is known.
    pub actor_name: Option<String>,
    /// The name of the key or gateway that was acted on, where that is known.
    pub object_name: Option<String>,
    /// What was recorded.
    pub record: NewAuditRecord,
}

/// Which audit records are wanted: those that are all that is said here, and all where nothing is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// By this gateway or on it.
    pub agent_id: Option<AgentId>,
    /// By this one: as the log has it, or the name of an API key or gateway.
    pub actor: Option<String>,
    /// On this: as the log has it, or the name of an API key or gateway.
    pub object: Option<String>,
    /// This action, or all of a family: `gateway` for `gateway.revoke`.
    pub action: Option<String>,
    /// What ended like this.
    pub outcome: Option<AuditOutcome>,
    /// Recorded at this time or later.
    pub since: Option<Timestamp>,
}

/// What upkeep deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Idempotency keys.
    pub idempotency_keys: u64,
    /// Ended sessions.
    pub sessions: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Those of them that went before anybody had decided about them.
    pub dead_letters_dropped: u64,
}

impl Purged {
    /// Whether there may be more of a kind than the `limit` of one step.
    #[must_use]
    pub fn has_reached(&self, limit: usize) -> bool {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        let Self {
            idempotency_keys,
            sessions,
            dead_letters,
            dead_letters_dropped: _,
        } = *self;
        idempotency_keys.max(sessions).max(dead_letters) >= limit
    }
}

/// What one step of the telemetry's upkeep deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgedTelemetry {
    /// Whole days, where each is a table of its own.
    pub days: u64,
    /// Records, where they are deleted one by one.
    pub records: u64,
    /// Streams of which nothing is left.
    pub streams: u64,
    /// Gaps, and counts of refused records, that speak of what is kept no longer.
    pub losses: u64,
    /// The last gateway that is done.
    pub after: Option<AgentId>,
    /// Whether there is more to do.
    pub more: bool,
}

/// What is stored of the time line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoredLine {
    /// Where it was last.
    pub line: Stored,
    /// What the clock of the server shows, where several processes share one.
    pub server: Option<Timestamp>,
}

/// Whether the store works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreHealth {
    /// Which store: `sqlite`.
    pub kind: &'static str,
    /// The last applied migration.
    pub schema_version: i64,
    /// Why it does not work, when it does not.
    pub problem: Option<String>,
    /// Whether writes found no room lately, although it works otherwise.
    pub full: bool,
    /// Whether telemetry of nobody found any lately, as far as can be seen: a rule may say so of some gateways', too.
    pub full_for_telemetry: bool,
    /// What the schema lacks that no statement fails without: what makes it fast, or keeps mistakes out.
    pub lacks: Option<String>,
    /// What a statement lately found to be lacking, although nothing is found to be when it is looked for.
    pub refused: Option<String>,
    /// Who holds locks that statements lately waited for in vain.
    pub held: Option<String>,
}

/// What counters of open commands were off by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recounted {
    /// By how many the tenant's was short; negative where it had too many.
    pub short: i64,
    /// Gateways whose own was not right.
    pub gateways: u64,
}

/// What one step of rolling up telemetry did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolledUp {
    /// Days of gateways that were rolled up.
    pub days: u64,
    /// Rows that were older than they are kept.
    pub forgotten: u64,
    /// When there is nothing more to do: spool epochs of which a record was found to be there twice.
    pub twice: u64,
    /// Whether there is more to do.
    pub more: bool,
}
