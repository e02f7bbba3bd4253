//! What `viworks gateway` takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use viworks_api::{CertificateRef, GatewayStatus};
use viworks_common::id::{AgentRunId, TicketId};
use viworks_common::network::IpNetwork;

use super::value::{holder, network, reason, some_time, status, ticket_life};

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
        group(ArgGroup::new("decision").required(true).args(["keep", "replace"])),
        after_help = "Examples:\n  viworks gateway forks gw-berlin-07\n  viworks gateway resolve gw-berlin-07 --keep 01940f5e-0003-7000-8000-0000000000f3\n  viworks gateway resolve gw-berlin-07 --replace"
    )]
    Resolve {
        /// Its name or id
        gateway: String,
        /// Who keeps it: its process, or its installation, as forks shows them; a session of the other ends at once
        #[arg(long, value_name = "ID", value_parser = holder)]
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
    /// List a gateway's certificates: which are accepted, and which are retired or revoked
    Certificates {
        /// Its name or id
        gateway: String,
    },
    /// Throw a gateway out at once: its session and its commands end, and only `gateway replace` lets it in again
    #[command(
        group(ArgGroup::new("whom").required(true).args(["gateway", "of_ticket"])),
        after_help = "Examples:\n  viworks gateway revoke gw-berlin-07 --reason 'the machine was stolen'\n  viworks gateway revoke gw-berlin-07 --reason 'taken out of service' --yes -o json\n  viworks gateway revoke gw-berlin-07 --certificate 5f0e3c1b2a4d6e8f90a1b2c3d4e5f607 --reason 'its key was copied'\n  viworks gateway revoke --of-ticket 01940f5e-7000-7000-8000-0000000000d1 --reason 'the ticket leaked'"
    )]
    Revoke {
        /// Its name or id
        gateway: Option<String>,
        /// Every gateway that came of this ticket instead, after a list of them
        #[arg(long, value_name = "ID", conflicts_with = "certificate")]
        of_ticket: Option<TicketId>,
        /// Only this certificate, by its SHA-256 fingerprint or its serial number: the gateway goes on with others
        #[arg(long, value_name = "FINGERPRINT|SERIAL")]
        certificate: Option<CertificateRef>,
        /// Why; kept in the audit trail
        #[arg(long, value_name = "TEXT", value_parser = reason)]
        reason: String,
        /// Do not ask first; scripts need it
        #[arg(short, long)]
        yes: bool,
    },
    /// Make a ticket by which another machine takes a gateway's place: its name, labels and history, with a new key
    #[command(
        after_help = "Nothing changes before the ticket is redeemed. Then the machine before is cut off for good, and what of its commands may have run ends as indeterminate. A revoked gateway comes back by it.\n\nExamples:\n  viworks gateway replace gw-berlin-07\n  viworks gateway replace gw-berlin-07 --ttl 30m --from 192.0.2.0/24 --out gw-berlin-07.ticket"
    )]
    Replace(ReplaceGateway),
}

/// By what another machine takes a gateway's place.
#[derive(Debug, Args)]
pub struct ReplaceGateway {
    /// Its name or id
    pub gateway: String,
    /// How long the ticket is valid, such as 30m, 1h or 7d, at most 90d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = ticket_life)]
    pub ttl: Duration,
    /// An address or network that the machine must come from; as often as there are networks
    #[arg(long = "from", value_name = "NETWORK", value_parser = network)]
    pub networks: Vec<IpNetwork>,
    /// Where the ticket goes, a new file for its owner only; the standard output when left out
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
