//! What `viworks telemetry` takes.

use std::time::Duration;

use clap::Args;

use super::value::{rows, span};

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
    /// Most records of the stream, the newest of them
    #[arg(long, value_name = "ROWS", value_parser = rows, default_value = "50", requires = "stream")]
    pub limit: usize,
    /// Show the counted ranges that were dropped and the records that were refused, and why
    #[arg(long, conflicts_with_all = ["stream", "since", "limit"])]
    pub gaps: bool,
}
