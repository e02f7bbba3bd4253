//! What `viworks key` takes.

use clap::{ArgGroup, Subcommand};

/// What to do with the keys that gateways share with the backend.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Give gateways another key over their sessions; the one before is good until the other is in use
    #[command(
        group(ArgGroup::new("whose").required(true).args(["gateway", "all"])),
        after_help = "Examples:\n  viworks key rotate --all --dry-run\n  viworks key rotate --all\n  viworks key rotate gw-berlin-07"
    )]
    Rotate {
        /// Its name or id
        gateway: Option<String>,
        /// Every gateway that is not revoked
        #[arg(long)]
        all: bool,
        /// Say what would become of each, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// How many gateways use keys of which generation, and who is still to use a later one
    Status,
}
