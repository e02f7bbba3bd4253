//! Measures the backend beside a bare reference in the same run: agents over real TLS and real sessions, and the
//! gateway agent that ships.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people: figures on standard output, progress on standard error"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::measure::{Measurement, Plan};
use crate::server::Role;

mod agent;
mod bare;
mod dial;
mod fleet;
mod gateway;
mod measure;
mod processor;
mod reference;
mod report;
mod server;
mod servers;
mod system;

/// Measure the backend beside a bare tokio-tungstenite + rustls reference, in the same run on this machine.
#[derive(Debug, Parser)]
#[command(name = "viworks-bench", version)]
struct Cli {
    /// Only these measurements; all of them when left out
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Measurement>,
    /// Small sizes: shows that everything works, and proves nothing about speed
    #[arg(long)]
    quick: bool,
    /// Agents of the largest fleet
    #[arg(long, value_name = "N")]
    agents: Option<usize>,
    /// Measure everything so many times, and report the median of each figure
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    repeat: u8,
    /// Write the figures as JSON to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    if let Some(arguments) = agent::arguments_of_this_process() {
        return viworks_gateway_agent::cli::main(&arguments);
    }
    viworks_runtime::tls::install_provider();
    match Role::of_this_process() {
        Some(Role::Ours) => viworks_backend_agent::cli::main(),
        Some(Role::Reference) => told(run(reference::serve())),
        None => told(run(measure_all(Cli::parse()))),
    }
}

fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(work)
}

fn told(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure_all(cli: Cli) -> anyhow::Result<()> {
    let mut plan = if cli.quick {
        Plan::quick()
    } else {
        Plan::full()
    };
    if let Some(agents) = cli.agents {
        plan.agents = agents.max(1);
    }
    server::raise_file_limit(plan.agents)?;
    let chosen = if cli.only.is_empty() {
        Measurement::ALL.to_vec()
    } else {
        cli.only
    };
    let mut runs = Vec::new();
    for _repetition in 0..cli.repeat {
        let mut figures = Vec::new();
        for measurement in &chosen {
            eprintln!("measuring {measurement:?} …");
            figures.extend(measure::run(*measurement, &plan).await?);
        }
        runs.push(figures);
    }
    let report = report::Report::new(runs);
    println!("{report}");
    if let Some(path) = cli.json {
        let json = serde_json::to_vec_pretty(&report)?;
        std::fs::write(&path, json)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
