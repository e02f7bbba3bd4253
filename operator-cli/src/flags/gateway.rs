//! What `viworks gateway` takes.

use clap::Subcommand;
use viworks_api::{CertificateRef, GatewayStatus};

use super::value::{reason, status};

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
    /// List a gateway's certificates: which are accepted, and which are retired or revoked
    Certificates {
        /// Its name or id
        gateway: String,
    },
    /// Throw a gateway out, at once and for good: its session ends, and its commands with it
    #[command(
        after_help = "Examples:\n  viworks gateway revoke gw-berlin-07 --reason 'the machine was stolen'\n  viworks gateway revoke gw-berlin-07 --reason 'taken out of service' --yes -o json\n  viworks gateway revoke gw-berlin-07 --certificate 5f0e3c1b2a4d6e8f90a1b2c3d4e5f607 --reason 'its key was copied'"
    )]
    Revoke {
        /// Its name or id
        gateway: String,
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
}
