//! What `viworks key` takes.

use clap::Subcommand;

/// What to do with the keys that gateways share with the backend.
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Give gateways another key over their sessions; the one before is good until the other is in use
    #[command(
        after_help = "Examples:\n  viworks key rotate --all --dry-run\n  viworks key rotate --all\n  viworks key rotate gw-berlin-07"
    )]
    Rotate {
        /// Its name or id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
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
