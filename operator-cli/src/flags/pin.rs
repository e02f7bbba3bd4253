//! What `viworks pin` takes.

use clap::{Args, Subcommand};
use viworks_common::pin::SpkiPin;

use super::value::reason;

/// What to do with the pins of the server's keys.
#[derive(Debug, Subcommand)]
pub enum Pin {
    /// List the keys of the server: those that gateways are to trust, and those that were retired
    Ls,
    /// Show which gateways have confirmed which key, and who would be cut off
    Status,
    /// Have every gateway trust one more key; the server may not show it yet
    #[command(
        after_help = "Example:\n  viworks pin stage sha256/Lw8kYzQy0bYt2nW1xqJwRk3hCwqv5rP0m3c1oH8eYgE="
    )]
    Stage(PinStep),
    /// Let the server show a staged key; refused while that would cut a gateway off
    #[command(
        after_help = "Examples:\n  viworks pin promote sha256/Lw8kYzQy0bYt2nW1xqJwRk3hCwqv5rP0m3c1oH8eYgE=\n  viworks pin promote sha256/Lw8kYzQy0bYt2nW1xqJwRk3hCwqv5rP0m3c1oH8eYgE= --force --reason 'gw-oslo-04 was sold'"
    )]
    Promote {
        /// The pin, sha256/ and 44 characters
        pin: SpkiPin,
        /// Whatever gateways are cut off by it
        #[arg(long, requires = "reason")]
        force: bool,
        /// Why; kept in the audit trail
        #[arg(long, value_name = "TEXT", value_parser = reason)]
        reason: Option<String>,
    },
    /// Have no gateway trust a key any more; refused while a backend shows it
    Retire(PinStep),
}

/// A key, and why something is done with it.
#[derive(Debug, Args)]
pub struct PinStep {
    /// The pin, sha256/ and 44 characters
    pub pin: SpkiPin,
    /// Why; kept in the audit trail
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: Option<String>,
}
