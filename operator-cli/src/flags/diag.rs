//! Flags of `diag`.

use std::path::PathBuf;

use clap::Subcommand;

/// What `diag` does.
#[derive(Debug, Subcommand)]
pub enum Diag {
    /// Collect what helps into one file, and list what is in it
    ///
    /// What looks like a secret is taken out, and nothing is in it that a command was given or said. The list is shown
    /// before anything is written.
    #[command(
        after_help = "Examples:\n  viworks diag collect\n  viworks diag collect --yes --out ticket-1234.tar.gz"
    )]
    Collect {
        /// Where it goes, a new file; a name with the time in this folder when left out
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Write it without asking
        #[arg(short, long)]
        yes: bool,
    },
}
