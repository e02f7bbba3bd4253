//! Telemetry of one gateway: records, numbers over time, streams, gaps.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use viworks_api::{
    GatewayRef, TelemetryAnswer, TelemetryGap, TelemetryGapList, TelemetryList, TelemetryRecord,
    TelemetryRefusal, TelemetryRefusalList, TelemetryStep, TelemetryStepList, TelemetryStream,
    TelemetryStreamList,
};
use viworks_common::human;
use viworks_common::id::{FieldName, StreamName};
use viworks_common::limits::{OBSERVED_FUTURE_MAX, STEP_BYTES_MAX, STEP_ROWS_MAX};
use viworks_common::telemetry::RecordRefusal;
use viworks_common::telemetry::steps::{Aggregate, Range, STEPS_MAX, Step};
use viworks_common::time::Timestamp;

use super::gateways;
use crate::api::extract::{CursorNumber, CursorTime, Params, listed, page};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::Api;
use crate::data::{
    GapCursor, RefusalCursor, StepCursor, StepQuery, StepValue, Stepped, StoredGap, StoredRecord,
    StoredRefusal, StreamSummary, TelemetryCursor, TelemetryQuery,
};

/// Which records.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct RecordParams {
    /// The gateway's id or name.
    #[param(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    gateway: GatewayRef,
    /// Only this stream.
    #[param(value_type = Option<String>)]
    stream: Option<StreamName>,
    /// Observed at this time or later, RFC 3339.
    from: Option<Timestamp>,
    /// Observed before this time, RFC 3339.
    to: Option<Timestamp>,
    /// Numbers over time instead of records, in steps of this length, such as `5m`: a number and `ms`, `s`, `m`, `h` or
    /// `d`. Each begins at a multiple of it since 1970; one without a record is absent. Needs `stream`, `field` and
    /// `from`, and no more than 10000 steps between `from` and `to`.
    #[param(value_type = Option<String>, pattern = "^[0-9]+(ms|s|m|h|d)$")]
    step: Option<Step>,
    /// With `step`: what is told of the numbers of each step; `avg` when absent.
    #[param(value_type = Option<String>, pattern = "^(avg|min|max|sum|count|last)$")]
    agg: Option<Aggregate>,
    /// With `step`: the field whose numbers are meant, of all records of the stream together, whatever their other
    /// fields say.
    #[param(value_type = Option<String>)]
    field: Option<FieldName>,
    /// `asc` (oldest first, the default) or `desc`.
    #[param(value_type = Option<String>)]
    order: Option<Order>,
    /// Where to go on: `next` of the page before.
    cursor: Option<String>,
    /// Most rows wanted, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Asc,
    Desc,
}

/// Which gateway.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::api) struct GatewayParams {
    /// The gateway's id or name.
    #[param(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    gateway: GatewayRef,
    /// Where to go on: `next` of the page before.
    cursor: Option<String>,
    /// Most rows wanted, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Stored records of a gateway, by time of observation; or, with a `step`, the numbers of one field over time.
#[utoipa::path(get, path = "/v1/telemetry", operation_id = "listTelemetry", tag = "telemetry",
    params(RecordParams),
    responses((status = 200, description = "One page", body = TelemetryAnswer)))]
pub(in crate::api) async fn records(
    state: Api,
    Params(params): Params<RecordParams>,
) -> ApiResult<Json<TelemetryAnswer>> {
    if let Some(step) = params.step {
        let Json(list) = numbers(state, step, params).await?;
        return Ok(Json(TelemetryAnswer::Steps(list)));
    }
    for (name, is_given) in [
        ("agg", params.agg.is_some()),
        ("field", params.field.is_some()),
    ] {
        if is_given {
            return Err(ApiError::parameter(
                name,
                "there is no step",
                "together with step",
            ));
        }
    }
    let Json(list) = plain(state, params).await?;
    Ok(Json(TelemetryAnswer::Records(list)))
}

async fn plain(State(state): Api, params: RecordParams) -> ApiResult<Json<TelemetryList>> {
    let page = page(params.cursor.as_deref(), params.limit)?;
    let query = TelemetryQuery {
        stream: params.stream,
        from: params.from.unwrap_or(Timestamp::from_unix_micros(i64::MIN)),
        until: params.to.unwrap_or(Timestamp::from_unix_micros(i64::MAX)),
        newest_first: params.order == Some(Order::Desc),
    };
    check_order(query.from, query.until)?;
    let gateway = gateways::find(&state, params.gateway).await?;
    let listing = state
        .store
        .query_telemetry(&state.tenant, gateway.agent_id, &query, page)
        .await?;
    let view = |record: StoredRecord| TelemetryRecord {
        stream: record.stream,
        observed_at: record.observed_at,
        time_source: record.time_source,
        gateway_time: record.gateway_time,
        stored_at: record.stored_at,
        spool_epoch: record.spool_epoch,
        seq: record.seq,
        fields: record.fields,
    };
    Ok(listed(listing, view, TelemetryList::new))
}

fn check_order(from: Timestamp, until: Timestamp) -> ApiResult<()> {
    if from < until {
        return Ok(());
    }
    Err(ApiError::parameter(
        "to",
        "not after from",
        "a time after from",
    ))
}

/// What a question with a step has to say as well.
fn needed<T>(name: &str, given: Option<T>, what: &str) -> ApiResult<T> {
    given.ok_or_else(|| ApiError::parameter(name, "missing: step needs it", what))
}

async fn numbers(
    State(state): Api,
    step: Step,
    params: RecordParams,
) -> ApiResult<Json<TelemetryStepList>> {
    let gateway = gateways::find(&state, params.gateway).await?;
    let page = page::<StepCursor>(params.cursor.as_deref(), params.limit)?;
    if page
        .after
        .is_some_and(|StepCursor(at)| step.start_of(at) != at)
    {
        let allowed = "`next` of the page before, with the same step";
        return Err(ApiError::parameter("cursor", "not of this step", allowed));
    }
    let now = state.clock.wall();
    // Of what is in the future nothing is complete.
    let complete_to = params.to.map_or(now, |to| to.min(now));
    let query = StepQuery {
        stream: needed("stream", params.stream, "the name of a stream")?,
        field: needed("field", params.field, "the name of a field")?,
        step,
        aggregate: params.agg.unwrap_or(Aggregate::Avg),
        range: Range {
            from: needed("from", params.from, "a time, RFC 3339")?,
            // What is a little ahead of our clock counts as now.
            until: params
                .to
                .unwrap_or_else(|| now.saturating_add(OBSERVED_FUTURE_MAX)),
        },
        newest_first: params.order == Some(Order::Desc),
        rows_max: STEP_ROWS_MAX,
        bytes_max: STEP_BYTES_MAX,
    };
    let Range { from, until } = query.range;
    check_order(from, until)?;
    let steps = step.spanned(from, params.to.unwrap_or(now));
    if steps > STEPS_MAX {
        let steps = human::counted_all(steps, "step", "steps");
        let problem = format!("{steps} between from and to");
        let allowed = format!("a longer step or less time: at most {STEPS_MAX} steps");
        return Err(ApiError::parameter("step", &problem, allowed));
    }
    let stepped = state
        .store
        .telemetry_steps(&state.tenant, gateway.agent_id, &query, page)
        .await?;
    let Stepped::Page(listing) = stepped else {
        let mebibytes = STEP_BYTES_MAX / (1024 * 1024);
        let problem =
            format!("a single one holds more than {STEP_ROWS_MAX} records or {mebibytes} MiB");
        return Err(ApiError::parameter("step", &problem, "a shorter step"));
    };
    let view = |StepValue { at, value, records }| TelemetryStep {
        at,
        value,
        records,
        partial: at < from || step.end_of(at) > complete_to,
    };
    Ok(listed(listing, view, TelemetryStepList::new))
}

/// The streams of a gateway.
#[utoipa::path(get, path = "/v1/telemetry/streams", operation_id = "listTelemetryStreams", tag = "telemetry",
    params(GatewayParams),
    responses((status = 200, description = "One page", body = TelemetryStreamList)))]
pub(in crate::api) async fn streams(
    State(state): Api,
    Params(params): Params<GatewayParams>,
) -> ApiResult<Json<TelemetryStreamList>> {
    let page = page(params.cursor.as_deref(), params.limit)?;
    let gateway = gateways::find(&state, params.gateway).await?;
    let listing = state
        .store
        .telemetry_streams(&state.tenant, gateway.agent_id, page)
        .await?;
    let view = |summary: StreamSummary| TelemetryStream {
        stream: summary.stream,
        newest: summary.newest,
    };
    Ok(listed(listing, view, TelemetryStreamList::new))
}

/// What will never arrive from a gateway, and why.
#[utoipa::path(get, path = "/v1/telemetry/gaps", operation_id = "listTelemetryGaps", tag = "telemetry",
    params(GatewayParams),
    responses((status = 200, description = "One page", body = TelemetryGapList)))]
pub(in crate::api) async fn gaps(
    State(state): Api,
    Params(params): Params<GatewayParams>,
) -> ApiResult<Json<TelemetryGapList>> {
    let page = page(params.cursor.as_deref(), params.limit)?;
    let gateway = gateways::find(&state, params.gateway).await?;
    let listing = state
        .store
        .telemetry_gaps(&state.tenant, gateway.agent_id, page)
        .await?;
    let view = |StoredGap {
                    spool_epoch,
                    gap,
                    stored_at,
                }| TelemetryGap {
        spool_epoch,
        from_seq: gap.from_seq,
        to_seq: gap.to_seq,
        records: gap.to_seq.saturating_sub(gap.from_seq).saturating_add(1),
        reason: gap.reason,
        reported_at: stored_at,
    };
    Ok(listed(listing, view, TelemetryGapList::new))
}

/// Which records of a gateway were refused, and why.
#[utoipa::path(get, path = "/v1/telemetry/refusals", operation_id = "listTelemetryRefusals", tag = "telemetry",
    params(GatewayParams),
    responses((status = 200, description = "One page", body = TelemetryRefusalList)))]
pub(in crate::api) async fn refusals(
    State(state): Api,
    Params(params): Params<GatewayParams>,
) -> ApiResult<Json<TelemetryRefusalList>> {
    let page = page(params.cursor.as_deref(), params.limit)?;
    let gateway = gateways::find(&state, params.gateway).await?;
    let listing = state
        .store
        .telemetry_refusals(&state.tenant, gateway.agent_id, page)
        .await?;
    let view = |refusal: StoredRefusal| TelemetryRefusal {
        spool_epoch: refusal.spool_epoch,
        reason: refusal.reason,
        records: refusal.records,
        first_at: refusal.first_at,
        last_at: refusal.last_at,
    };
    Ok(listed(listing, view, TelemetryRefusalList::new))
}

/// As text: time, spool epoch and number.
impl fmt::Display for TelemetryCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}_{}_{}",
            self.observed_at.unix_micros(),
            self.spool_epoch,
            self.seq
        )
    }
}

impl FromStr for TelemetryCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('_');
        let mut next = || parts.next().ok_or(());
        let cursor = Self {
            observed_at: next()?.parse::<CursorTime>()?.0,
            spool_epoch: next()?.parse().map_err(|_id| ())?,
            seq: next()?.parse::<CursorNumber>()?.0,
        };
        if parts.next().is_some() {
            return Err(());
        }
        Ok(cursor)
    }
}

/// As text: microseconds.
impl fmt::Display for StepCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(at) = self;
        write!(f, "{}", at.unix_micros())
    }
}

impl FromStr for StepCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let CursorTime(at) = text.parse()?;
        Ok(Self(at))
    }
}

/// As text: spool epoch and number.
impl fmt::Display for GapCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.spool_epoch, self.from_seq)
    }
}

impl FromStr for GapCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, seq) = text.split_once('_').ok_or(())?;
        Ok(Self {
            spool_epoch: epoch.parse().map_err(|_id| ())?,
            from_seq: seq.parse::<CursorNumber>()?.0,
        })
    }
}

/// As text: reason and, where there is one, spool epoch.
impl fmt::Display for RefusalCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.name();
        match self.spool_epoch {
            Some(epoch) => write!(f, "{reason}.{epoch}"),
            None => f.write_str(reason),
        }
    }
}

impl FromStr for RefusalCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (reason, epoch) = text
            .split_once('.')
            .map_or((text, None), |(reason, epoch)| (reason, Some(epoch)));
        Ok(Self {
            spool_epoch: epoch.map(str::parse).transpose().map_err(|_id| ())?,
            reason: RecordRefusal::from_name(reason).ok_or(())?,
        })
    }
}
