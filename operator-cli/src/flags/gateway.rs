//! What `viworks gateway` takes.

use std::time::Duration;

use clap::Subcommand;
use viworks_api::GatewayStatus;
use viworks_common::id::AgentRunId;

use super::value::{reason, some_time, status};

/// What to do with gateways.
#[derive(Debug, Subcommand)]
pub enum Gateway {
    /// List gateways
    Ls {
        /// Only those with this status
        #[arg(long, value_parser = status)]
        status: Option<GatewayStatus>,
        /// Only those whose certificate ends within this time, such as 30d
        #[arg(long, value_name = "TIME", value_parser = some_time)]
        expires_within: Option<Duration>,
    },
    /// List the gateways whose certificate ends soon and is not renewed by itself, and why it is not
    Expiring {
        /// Within this time
        #[arg(long, value_name = "TIME", default_value = "30d", value_parser = some_time)]
        within: Duration,
    },
    /// Show one gateway
    Show {
        /// Its name or id
        gateway: String,
    },
    /// Show every second holder of a gateway's identity beside the one that was accepted
    Forks {
        /// Its name or id
        gateway: String,
    },
    /// Decide which of two holders keeps a gateway's identity
    #[command(
        after_help = "Examples:\n  viworks gateway forks gw-berlin-07\n  viworks gateway resolve gw-berlin-07 --keep 01940f5e-0003-7000-8000-0000000000f3\n  viworks gateway resolve gw-berlin-07 --replace"
    )]
    Resolve {
        /// Its name or id
        gateway: String,
        /// Who keeps it: its process, or its installation, as forks shows them; a session of the other ends at once
        #[arg(
            long,
            value_name = "ID",
            required_unless_present = "replace",
            conflicts_with = "replace"
        )]
        keep: Option<AgentRunId>,
        /// The one that was accepted goes on, and the other gets an identity of its own
        #[arg(long)]
        replace: bool,
    },
    /// List results that a gateway reported of commands that the backend does not have; their output with -o json
    Orphans {
        /// Its name or id
        gateway: String,
    },
    /// Throw a gateway out, at once and for good: its session ends, and its commands with it
    #[command(
        after_help = "Examples:\n  viworks gateway revoke gw-berlin-07 --reason 'the machine was stolen'\n  viworks gateway revoke gw-berlin-07 --reason 'taken out of service' --yes -o json"
    )]
    Revoke {
        /// Its name or id
        gateway: String,
        /// Why; kept in the audit trail
        #[arg(long, value_name = "TEXT", value_parser = reason)]
        reason: String,
        /// Do not ask first; scripts need it
        #[arg(short, long)]
        yes: bool,
    },
}
