//! What `viworks authority` takes.

use clap::Subcommand;

/// What to do with the authorities that gateways are given.
#[derive(Debug, Subcommand)]
pub enum Authority {
    /// Show which gateways have which authority, and who would be cut off without one of them
    #[command(
        after_help = "Examples:\n  viworks authority status\n  viworks authority status -o json\n\nThat no gateway needs one of them counts once no backend signs by it.\n\nEnds with 20 while a gateway lacks one of them, or is refused because none of them signed its certificate, and while another backend of the database gives other authorities."
    )]
    Status,
}
