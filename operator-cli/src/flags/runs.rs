//! What `viworks runs` takes.

use std::time::Duration;

use clap::Subcommand;

use super::value::{rows, span};

/// What to do with runs.
#[derive(Debug, Subcommand)]
pub enum Runs {
    /// List runs, latest first
    Ls {
        /// Most rows
        #[arg(long, value_name = "ROWS", value_parser = rows, default_value = "20")]
        limit: usize,
    },
    /// Show one run: its request, and what every gateway answered
    Show {
        /// The run's id, or its unique beginning
        id: String,
        /// Print all retained output of every gateway
        #[arg(long)]
        full: bool,
    },
    /// Follow a run until it is finished
    Wait {
        /// The run's id, or its unique beginning
        id: String,
        /// Stop waiting after this long (exit code 8)
        #[arg(long, value_name = "SPAN", value_parser = span, default_value = "1d")]
        timeout: Duration,
    },
    /// Cancel what has not finished
    Cancel {
        /// The run's id, or its unique beginning
        id: String,
    },
}
