//! What `viworks telemetry` takes.

use std::time::Duration;

use clap::Args;

use viworks_common::telemetry::steps::{Aggregate, Step};

use super::value::{aggregate, rows, span, step};

/// Which records.
#[derive(Debug, Args)]
pub struct Telemetry {
    /// The gateway, by name or id
    #[arg(short, long, value_name = "NAME")]
    pub gateway: String,
    /// One stream, such as host.cpu; without it the streams are listed
    #[arg(long)]
    pub stream: Option<String>,
    /// How far back the records of the stream go
    #[arg(long, value_name = "SPAN", value_parser = span, default_value = "1h", requires = "stream")]
    pub since: Duration,
    /// Numbers over time instead of records: steps of this length, such as 5m, each from a multiple of it; one without
    /// a record is left out
    #[arg(long, value_name = "SPAN", value_parser = step, requires_all = ["stream", "field"])]
    pub step: Option<Step>,
    /// The field whose numbers are meant, with --step: of all records of the stream together, such as those of every
    /// network interface
    #[arg(long, value_name = "NAME", requires = "step")]
    pub field: Option<String>,
    /// What is told of the numbers of each step: avg, min, max, sum, count or last
    #[arg(long, value_name = "WHAT", value_parser = aggregate, default_value = "avg", requires = "step")]
    pub agg: Aggregate,
    /// Most records of the stream or steps, the newest of them [default: 50 records, every step]
    #[arg(long, value_name = "ROWS", value_parser = rows, requires = "stream")]
    pub limit: Option<usize>,
    /// Show the counted ranges that were dropped and the records that were refused, and why
    #[arg(long, conflicts_with_all = ["stream", "since", "limit", "step", "field", "agg"])]
    pub gaps: bool,
}
