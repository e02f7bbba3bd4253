//! What `viworks command` takes.

use clap::Subcommand;

/// What to do with the catalogue.
#[derive(Debug, Subcommand)]
pub enum Catalogue {
    /// List the commands that gateways allow
    Ls,
    /// Show one command: its arguments and where it can run
    Show {
        /// Its name
        name: String,
    },
}
