//! Telemetry of one gateway: records, streams, gaps.

use std::fmt;
use std::str::FromStr;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use viworks_api::{
    GatewayRef, TelemetryGap, TelemetryGapList, TelemetryList, TelemetryRecord, TelemetryRefusal,
    TelemetryRefusalList, TelemetryStream, TelemetryStreamList,
};
use viworks_common::id::StreamName;
use viworks_common::telemetry::RecordRefusal;
use viworks_common::time::Timestamp;

use super::gateways;
use crate::api::extract::{Params, page};
use crate::api::problem::{ApiError, ApiResult};
use crate::api::request::Api;
use crate::data::{GapCursor, Page, RefusalCursor, TelemetryCursor, TelemetryQuery};

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

/// Stored records of a gateway, by time of observation.
#[utoipa::path(get, path = "/v1/telemetry", operation_id = "listTelemetry", tag = "telemetry",
    params(RecordParams),
    responses((status = 200, description = "One page", body = TelemetryList)))]
pub(in crate::api) async fn records(
    State(state): Api,
    Params(params): Params<RecordParams>,
) -> ApiResult<Json<TelemetryList>> {
    let after: Page<CursorText> = page(params.cursor.as_deref(), params.limit)?;
    let query = TelemetryQuery {
        stream: params.stream,
        from: params.from.unwrap_or(Timestamp::from_unix_micros(i64::MIN)),
        until: params.to.unwrap_or(Timestamp::from_unix_micros(i64::MAX)),
        newest_first: params.order == Some(Order::Desc),
    };
    if query.from >= query.until {
        return Err(ApiError::parameter(
            "to",
            "not after from",
            "a time after from",
        ));
    }
    let gateway = gateways::find(&state, params.gateway).await?;
    let page = Page {
        after: after.after.map(|cursor| cursor.0),
        limit: after.limit,
    };
    let listing = state
        .store
        .query_telemetry(&state.tenant, gateway.agent_id, &query, page)
        .await?;
    let items = listing
        .items
        .into_iter()
        .map(|record| TelemetryRecord {
            stream: record.stream,
            observed_at: record.observed_at,
            time_source: record.time_source,
            gateway_time: record.gateway_time,
            stored_at: record.stored_at,
            spool_epoch: record.spool_epoch,
            seq: record.seq,
            fields: record.fields,
        })
        .collect();
    Ok(Json(TelemetryList::new(
        items,
        listing.next.map(|cursor| CursorText(cursor).to_string()),
    )))
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
    let next = listing.next.map(|stream: StreamName| stream.to_string());
    let items = listing
        .items
        .into_iter()
        .map(|summary| TelemetryStream {
            stream: summary.stream,
            newest: summary.newest,
        })
        .collect();
    Ok(Json(TelemetryStreamList::new(items, next)))
}

/// What will never arrive from a gateway, and why.
#[utoipa::path(get, path = "/v1/telemetry/gaps", operation_id = "listTelemetryGaps", tag = "telemetry",
    params(GatewayParams),
    responses((status = 200, description = "One page", body = TelemetryGapList)))]
pub(in crate::api) async fn gaps(
    State(state): Api,
    Params(params): Params<GatewayParams>,
) -> ApiResult<Json<TelemetryGapList>> {
    let after: Page<GapText> = page(params.cursor.as_deref(), params.limit)?;
    let page = Page {
        after: after.after.map(|cursor| cursor.0),
        limit: after.limit,
    };
    let gateway = gateways::find(&state, params.gateway).await?;
    let listing = state
        .store
        .telemetry_gaps(&state.tenant, gateway.agent_id, page)
        .await?;
    let next = listing.next.map(|cursor| GapText(cursor).to_string());
    let items = listing
        .items
        .into_iter()
        .map(|stored| TelemetryGap {
            spool_epoch: stored.spool_epoch,
            from_seq: stored.gap.from_seq,
            to_seq: stored.gap.to_seq,
            records: stored
                .gap
                .to_seq
                .saturating_sub(stored.gap.from_seq)
                .saturating_add(1),
            reason: stored.gap.reason,
            reported_at: stored.stored_at,
        })
        .collect();
    Ok(Json(TelemetryGapList::new(items, next)))
}

/// Which records of a gateway were refused, and why.
#[utoipa::path(get, path = "/v1/telemetry/refusals", operation_id = "listTelemetryRefusals", tag = "telemetry",
    params(GatewayParams),
    responses((status = 200, description = "One page", body = TelemetryRefusalList)))]
pub(in crate::api) async fn refusals(
    State(state): Api,
    Params(params): Params<GatewayParams>,
) -> ApiResult<Json<TelemetryRefusalList>> {
    let after: Page<RefusalText> = page(params.cursor.as_deref(), params.limit)?;
    let page = Page {
        after: after.after.map(|cursor| cursor.0),
        limit: after.limit,
    };
    let gateway = gateways::find(&state, params.gateway).await?;
    let listing = state
        .store
        .telemetry_refusals(&state.tenant, gateway.agent_id, page)
        .await?;
    let next = listing.next.map(|cursor| RefusalText(cursor).to_string());
    let items = listing
        .items
        .into_iter()
        .map(|stored| TelemetryRefusal {
            spool_epoch: stored.spool_epoch,
            reason: stored.reason,
            records: stored.records,
            first_at: stored.first_at,
            last_at: stored.last_at,
        })
        .collect();
    Ok(Json(TelemetryRefusalList::new(items, next)))
}

/// A place among records as text: time, spool epoch and number.
struct CursorText(TelemetryCursor);

impl fmt::Display for CursorText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cursor = &self.0;
        write!(
            f,
            "{}_{}_{}",
            cursor.observed_at.unix_micros(),
            cursor.spool_epoch,
            cursor.seq
        )
    }
}

impl FromStr for CursorText {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('_');
        let mut next = || parts.next().ok_or(());
        let cursor = TelemetryCursor {
            observed_at: Timestamp::from_unix_micros(next()?.parse().map_err(|_digits| ())?),
            spool_epoch: next()?.parse().map_err(|_id| ())?,
            seq: next()?.parse().map_err(|_digits| ())?,
        };
        if parts.next().is_some() {
            return Err(());
        }
        Ok(Self(cursor))
    }
}

/// A place among gaps as text: spool epoch and number.
struct GapText(GapCursor);

impl fmt::Display for GapText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.0.spool_epoch, self.0.from_seq)
    }
}

impl FromStr for GapText {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (epoch, seq) = text.split_once('_').ok_or(())?;
        Ok(Self(GapCursor {
            spool_epoch: epoch.parse().map_err(|_id| ())?,
            from_seq: seq.parse().map_err(|_digits| ())?,
        }))
    }
}

/// A place among refusals as text: reason and, where there is one, spool epoch.
struct RefusalText(RefusalCursor);

impl fmt::Display for RefusalText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.0.reason.name();
        match self.0.spool_epoch {
            Some(epoch) => write!(f, "{reason}.{epoch}"),
            None => f.write_str(reason),
        }
    }
}

impl FromStr for RefusalText {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (reason, epoch) = text
            .split_once('.')
            .map_or((text, None), |(reason, epoch)| (reason, Some(epoch)));
        Ok(Self(RefusalCursor {
            spool_epoch: epoch.map(str::parse).transpose().map_err(|_id| ())?,
            reason: RecordRefusal::from_name(reason).ok_or(())?,
        }))
    }
}
