//! Stored telemetry: records, numbers over time, streams, and what is missing of them.

use viworks_api::{
    TelemetryGapList, TelemetryList, TelemetryRefusalList, TelemetryStepList, TelemetryStreamList,
};
use viworks_common::telemetry::steps::{Aggregate, Step};
use viworks_common::time::Timestamp;

use super::{ALL, Client};
use crate::failure::Failure;

/// Which numbers are wanted over time.
#[derive(Debug, Clone, Copy)]
pub struct Numbers<'n> {
    /// The stream that they are in.
    pub stream: &'n str,
    /// The field that they are in.
    pub field: &'n str,
    /// How long each step is.
    pub step: Step,
    /// What is told of each.
    pub aggregate: Aggregate,
}

impl Client {
    /// Telemetry records of one stream since a time, the newest first and at most so many.
    pub async fn telemetry(
        &self,
        gateway: &str,
        stream: &str,
        from: Timestamp,
        limit: usize,
    ) -> Result<TelemetryList, Failure> {
        let query = [
            ("gateway", gateway.to_owned()),
            ("stream", stream.to_owned()),
            ("from", from.to_string()),
            // The newest is what is looked for; what the limit leaves out is old.
            ("order", "desc".to_owned()),
        ];
        self.list("/v1/telemetry", &query, limit).await
    }

    /// The numbers of one field over time, the newest steps first and at most so many.
    pub async fn telemetry_steps(
        &self,
        gateway: &str,
        numbers: &Numbers<'_>,
        from: Timestamp,
        limit: usize,
    ) -> Result<TelemetryStepList, Failure> {
        let query = [
            ("gateway", gateway.to_owned()),
            ("stream", numbers.stream.to_owned()),
            ("field", numbers.field.to_owned()),
            ("step", numbers.step.to_string()),
            ("agg", numbers.aggregate.name().to_owned()),
            ("from", from.to_string()),
            ("order", "desc".to_owned()),
        ];
        self.list("/v1/telemetry", &query, limit).await
    }

    /// The streams of one gateway.
    pub async fn telemetry_streams(&self, gateway: &str) -> Result<TelemetryStreamList, Failure> {
        let query = [("gateway", gateway.to_owned())];
        self.list("/v1/telemetry/streams", &query, ALL).await
    }

    /// What was refused of one gateway's telemetry.
    pub async fn telemetry_refusals(&self, gateway: &str) -> Result<TelemetryRefusalList, Failure> {
        let query = [("gateway", gateway.to_owned())];
        self.list("/v1/telemetry/refusals", &query, ALL).await
    }

    /// The reported gaps of one gateway.
    pub async fn telemetry_gaps(&self, gateway: &str) -> Result<TelemetryGapList, Failure> {
        let query = [("gateway", gateway.to_owned())];
        self.list("/v1/telemetry/gaps", &query, ALL).await
    }
}
