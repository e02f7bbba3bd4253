//! What `viworks gateway` takes.

use clap::Subcommand;
use viworks_api::GatewayStatus;

use super::value::status;

/// What to do with gateways.
#[derive(Debug, Subcommand)]
pub enum Gateway {
    /// List gateways
    Ls {
        /// Only those with this status
        #[arg(long, value_parser = status)]
        status: Option<GatewayStatus>,
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
    /// List results that a gateway reported of commands that the backend does not have; their output with -o json
    Orphans {
        /// Its name or id
        gateway: String,
    },
}
