//! What `viworks ticket` takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use viworks_common::id::{GatewayName, TicketId};
use viworks_common::network::IpNetwork;

use super::value::{absence, label, name_prefix, network, ticket_life};

/// What to do with tickets.
#[derive(Debug, Subcommand)]
pub enum Ticket {
    /// Make a ticket; it is shown once, works at once, and is given to viworks-gateway-agent enroll
    #[command(
        after_help = "Examples:\n  viworks ticket create\n  viworks ticket create --uses 10 --ttl 1h -l site=berlin -l tier=edge\n  viworks ticket create --name gw-berlin-07 --from 192.0.2.0/24\n  viworks ticket create --out gw-berlin-07.ticket"
    )]
    Create(CreateTicket),
    /// List tickets
    Ls,
    /// Show one ticket
    Show {
        /// Its id
        ticket: TicketId,
    },
    /// Revoke a ticket; gateways that came of it stay
    Revoke {
        /// Its id
        ticket: TicketId,
        /// Nothing is asked, with or without it: scripts may say it as to the other verbs that revoke
        #[arg(short, long)]
        yes: bool,
    },
    /// Say what stands in a ticket, without its secret; asks no backend
    Inspect {
        /// The file that holds it; when left out it is asked for, or read from the standard input
        file: Option<PathBuf>,
    },
}

/// What a ticket is to be.
#[derive(Debug, Args)]
pub struct CreateTicket {
    /// How many gateways may come of it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub uses: u32,
    /// How long it is valid, such as 30m, 1h or 7d, at most 90d; gateways that came of it stay
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = ticket_life)]
    pub ttl: Duration,
    /// A label that its gateways get; as often as there are labels
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// The name of its one gateway; with one use only
    #[arg(long, value_name = "NAME", conflicts_with = "name_prefix")]
    pub name: Option<GatewayName>,
    /// What the names of its gateways begin with; machines add what they are called
    #[arg(long, value_name = "PREFIX", value_parser = name_prefix)]
    pub name_prefix: Option<String>,
    /// An address or network that machines must come from; as often as there are networks
    #[arg(long = "from", value_name = "NETWORK", value_parser = network)]
    pub networks: Vec<IpNetwork>,
    /// Let machines take the place of the gateway that has their name, where that is neither connected nor revoked
    #[arg(long)]
    pub allow_replace: bool,
    /// Remove its gateways after they were away for so long, such as 1h or 7d; 24h when no time is given
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "24h", value_parser = absence)]
    pub ephemeral: Option<Duration>,
    /// Where the ticket goes, a new file for its owner only; the standard output when left out
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
