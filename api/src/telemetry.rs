//! Stored telemetry: records, streams and gaps of one gateway.

use serde::{Deserialize, Serialize, Serializer};

use crate::page::list;
use viworks_common::id::{AgentRunId, StreamName};
use viworks_common::telemetry::{Fields, GapReason, RecordRefusal, TimeSource};
use viworks_common::time::Timestamp;

/// One stored record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TelemetryRecord {
    /// Its stream.
    pub stream: StreamName,
    /// When it was observed.
    pub observed_at: Timestamp,
    /// Whose clock says so.
    #[serde(default = "by_the_gateway")]
    pub time_source: TimeSource,
    /// What the gateway's clock said, where that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_time: Option<Timestamp>,
    /// When it was stored.
    pub stored_at: Timestamp,
    /// The process of the gateway agent that took it in.
    pub spool_epoch: AgentRunId,
    /// Its number in that process; with the gateway and the process the record's key.
    pub seq: u64,
    /// What was observed.
    #[cfg_attr(feature = "openapi", schema(value_type = std::collections::BTreeMap<String, serde_json::Value>))]
    pub fields: Fields,
}

/// What it was before there was anything else.
const fn by_the_gateway() -> TimeSource {
    TimeSource::Gateway
}

list! {
    /// Records of one stream, by time.
    TelemetryList of TelemetryRecord
}

/// One step of telemetry over time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TelemetryStep {
    /// When it begins, a multiple of its length since 1970-01-01T00:00:00Z.
    pub at: Timestamp,
    /// What was asked of the numbers in it; absent when that is beyond every number.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "shortly"
    )]
    pub value: Option<f64>,
    /// How many records with a number it holds.
    pub records: u64,
    /// Whether only a part of it was asked for, or has passed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// A whole number without a fraction, as long as every one of them is itself.
#[expect(clippy::ref_option, reason = "serde hands the field over as it is")]
fn shortly<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it is whole and within i64"
        )]
        Some(value) if value.fract() == 0.0 && value.abs() <= EXACT => {
            serializer.serialize_i64(*value as i64)
        }
        Some(value) => serializer.serialize_f64(*value),
        None => serializer.serialize_none(),
    }
}

list! {
    /// The numbers of one field over time: the steps that hold records, by time.
    TelemetryStepList of TelemetryStep
}

/// Records, or steps where the question has a `step`; `kind` says which.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TelemetryAnswer {
    /// Without a `step`.
    Records(TelemetryList),
    /// With a `step`.
    Steps(TelemetryStepList),
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for TelemetryAnswer {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        let one = utoipa::openapi::Ref::from_schema_name;
        // An empty list is both, but for its kind.
        utoipa::openapi::schema::AnyOfBuilder::new()
            .item(one("TelemetryList"))
            .item(one("TelemetryStepList"))
            .description(Some(
                "Records, or steps where the question has a `step`; `kind` says which",
            ))
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for TelemetryAnswer {
    fn schemas(
        schemas: &mut Vec<(
            String,
            utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>,
        )>,
    ) {
        fn add<T: utoipa::ToSchema>(
            schemas: &mut Vec<(
                String,
                utoipa::openapi::RefOr<utoipa::openapi::schema::Schema>,
            )>,
        ) {
            schemas.push((T::name().into_owned(), T::schema()));
            T::schemas(schemas);
        }
        add::<TelemetryList>(schemas);
        add::<TelemetryStepList>(schemas);
    }
}

/// One stream that a gateway delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TelemetryStream {
    /// Its name.
    pub stream: StreamName,
    /// When its newest record was observed.
    pub newest: Timestamp,
}

list! {
    /// The streams of a gateway, by name.
    TelemetryStreamList of TelemetryStream
}

/// A counted range of records that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TelemetryGap {
    /// The process of the gateway agent that had taken the records in.
    pub spool_epoch: AgentRunId,
    /// The first dropped number.
    pub from_seq: u64,
    /// The last dropped number.
    pub to_seq: u64,
    /// How many records that are.
    pub records: u64,
    /// Why.
    pub reason: GapReason,
    /// When the backend committed the report.
    pub reported_at: Timestamp,
}

list! {
    /// The gaps of a gateway.
    TelemetryGapList of TelemetryGap
}

/// Records that were not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TelemetryRefusal {
    /// The process of the gateway agent that had taken the records in; absent for all those of processes that are one too
    /// many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_epoch: Option<AgentRunId>,
    /// Why.
    pub reason: RecordRefusal,
    /// How many records.
    pub records: u64,
    /// When the first of them was refused; absent when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_at: Option<Timestamp>,
    /// When the last of them was refused; absent when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_at: Option<Timestamp>,
}

list! {
    /// What was refused of a gateway's telemetry.
    TelemetryRefusalList of TelemetryRefusal
}
