//! What `viworks validate` takes.

use std::path::PathBuf;

use clap::Args;

use crate::validation::CheckName;

pub(super) const HELP: &str = "\
It is given a gateway of its own, which nothing else has used; on the backend's host:
  viworks-backend-agent pki issue-gateway validation-1 \\
    --config /etc/viworks/backend/backend.toml --out validation-1
It starts an agent for it here, runs commands there alone, and hands in telemetry \
of it alone. Afterwards the gateway is used up: revoke it; a key with the scope \
gateways:write does so as the last check. One security event, a second holder of \
its identity, belongs to the run.

Ends with 0 for GO and 20 for NO-GO.

Examples:
  viworks validate --gateway validation-1
  viworks validate --gateway validation-1 --report reports -o json
  viworks validate --gateway validation-1 --only round_trip,data_flow";

/// What is validated, and how thoroughly.
#[derive(Debug, Args)]
pub struct Validate {
    /// The folder of a gateway that was issued for this validation and never ran
    #[arg(long, value_name = "DIR")]
    pub gateway: PathBuf,
    /// The gateway agent that is started for it [default: beside this program]
    #[arg(long, value_name = "FILE")]
    pub agent: Option<PathBuf>,
    /// The door by which machines become gateways [default: the one in the gateway's folder]
    #[arg(long, value_name = "URL")]
    pub door: Option<String>,
    /// Where the report is written as well: validation.json and validation.xml (JUnit)
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// How many commands are timed
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    pub commands: u32,
    /// How many telemetry records are handed in
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    pub records: u32,
    /// Only these checks
    #[arg(long, value_delimiter = ',', value_name = "CHECK")]
    pub only: Vec<CheckName>,
}
