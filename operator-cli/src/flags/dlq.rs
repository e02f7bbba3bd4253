//! What `viworks dlq` takes.

use clap::Subcommand;

/// What to do with commands that could not be delivered.
#[derive(Debug, Subcommand)]
pub enum Dlq {
    /// List commands that were delivered as often as they may be and never accepted
    Ls {
        /// Only those of this gateway: its name or id
        #[arg(short, long, value_name = "GATEWAY")]
        gateway: Option<String>,
        /// Also those that were retried or discarded
        #[arg(long)]
        all: bool,
    },
    /// Show one of them
    Show {
        /// The command's id, or its unique beginning
        id: String,
    },
    /// Run the same command on the same gateway again, as a run of its own; twice is once
    Retry {
        /// The command's id, or its unique beginning
        id: String,
    },
    /// Mark one as done with; nothing is sent
    Discard {
        /// The command's id, or its unique beginning
        id: String,
    },
}
