//! What `viworks context` takes.

use clap::Subcommand;

/// What to do with contexts.
#[derive(Debug, Subcommand)]
pub enum Context {
    /// List the contexts; the selected one is marked
    Ls,
    /// Select a context for the commands that name none
    Use {
        /// Its name
        name: String,
    },
    /// Forget a context; the backend and the key stay what they are
    Rm {
        /// Its name
        name: String,
    },
}
