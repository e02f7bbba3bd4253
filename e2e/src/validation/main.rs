//! The self-contained go / no-go run: an installation of its own, the checks of `viworks validate` in it, and those
//! that only somebody may make who may kill everything.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people: the verdict on standard output, progress on standard error"
)]

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use futures_util::FutureExt;
use tokio::time::Instant;
use viworks_operator_cli::validation::{Check, Finding, Report, Verdict, junit};
use viworks_operator_cli::views::validation::table;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_testkit::binaries::Binaries;

use crate::breaks::Break;
use crate::scene::Scene;

mod breaks;
mod configuration;
mod live;
mod load;
mod recovery;
mod rollback;
mod scene;
mod start;

/// Validate an installation that is made for it, with nginx, PostgreSQL and Redis where they are installed, and say go
/// or no-go: 0 or 20.
#[derive(Debug, Parser)]
#[command(name = "production_validation", version)]
struct Cli {
    /// What could not be tried is a no-go as well
    #[arg(long)]
    strict: bool,
    /// A folder with the programs of the version before this one, for the rehearsal of a rollback [default: what
    /// cargo xtask skew built]
    #[arg(long, value_name = "DIR")]
    previous: Option<PathBuf>,
    /// Where the report is written: validation.json and validation.xml (JUnit)
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Only these checks
    #[arg(long, value_delimiter = ',', value_name = "CHECK")]
    only: Vec<String>,
    /// How many commands are timed
    #[arg(long, default_value_t = 50, value_name = "N")]
    commands: u32,
    /// How many telemetry records are handed in
    #[arg(long, default_value_t = 500, value_name = "N")]
    records: u32,
    /// The embedded database, and one backend with nothing in front of it
    #[arg(long)]
    embedded: bool,
    /// Arrange that a check has something to find: its result has to be NO-GO
    #[arg(long = "break", value_name = "CHECK", value_enum)]
    broken: Option<Break>,
}

impl Cli {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// A check that is made here: what it is called, what it is about, its limit.
const OWN: [(&str, &str, &str); 8] = [
    (
        "backend_configuration",
        "backend fails closed",
        "exit code 78",
    ),
    ("backend_start", "backend started", "< 2 s"),
    ("backend_recovery", "backend killed", "< 30 s, 0 lost"),
    ("redis_recovery", "Redis killed", "< 30 s, 0 lost"),
    ("postgres_recovery", "PostgreSQL killed", "< 30 s, 0 lost"),
    ("nginx_recovery", "nginx killed", "< 30 s, 0 lost"),
    ("rollback", "rollback", "data read"),
    (rollback::GATEWAY, "gateway rolled back", "command run"),
];

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started");
    let outcome = runtime.and_then(|runtime| runtime.block_on(validated(&cli)));
    match outcome {
        Ok(report) => {
            println!("{}", table(&report));
            match report.verdict {
                Verdict::Go => ExitCode::SUCCESS,
                Verdict::NoGo => ExitCode::from(20),
            }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn validated(cli: &Cli) -> anyhow::Result<Report> {
    let known = |name: &&String| {
        OWN.iter().any(|(own, _, _)| own == name) || live::NAMES.contains(&name.as_str())
    };
    if let Some(unknown) = cli.only.iter().find(|name| !known(name)) {
        anyhow::bail!(
            "there is no check {unknown}; there are {}, {}",
            live::NAMES.join(", "),
            OWN.map(|(name, _, _)| name).join(", ")
        );
    }
    eprintln!("building the programs …");
    let programs = if cfg!(debug_assertions) {
        Binaries::shipped()
    } else {
        Binaries::released()
    };
    eprintln!("starting an installation …");
    let (started_at, started) = (SystemClock.wall(), Instant::now());
    let mut scene = Scene::start(programs, cli.embedded, cli.broken).await?;
    let mut report = Report::new(&scene.words(), started_at);
    for check in live::checks(&mut scene, cli).await? {
        report.add(check);
    }
    let mut rehearsed = None;
    for (name, title, limit) in OWN {
        if !cli.wants(name) {
            continue;
        }
        eprintln!("{title} …");
        let begun = Instant::now();
        let check = async {
            match name {
                "backend_configuration" => configuration::check(&scene, cli.broken).await,
                "backend_start" => start::check(programs, cli.broken).await,
                // Of one rehearsal there are two findings.
                "rollback" | rollback::GATEWAY => {
                    let found = match rehearsed.take() {
                        Some(found) => found,
                        None => {
                            let previous = cli.previous.as_deref();
                            rollback::check(programs, previous, cli.broken).await
                        }
                    };
                    rehearsed.insert(found).of(name)
                }
                _ => recovery::check(&mut scene, name, cli.broken).await,
            }
        };
        // What the testkit cannot bring about is a finding here, and no end of everything.
        let found = AssertUnwindSafe(check).catch_unwind().await;
        let found = found.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
            Finding::fail(
                "not to its end",
                said.unwrap_or_default().lines().next().unwrap_or_default(),
                "the lines above say where it stood",
            )
        });
        report.add(Check::new(name, title, limit, found, begun.elapsed()));
    }
    scene.stop().await;
    report.took_in_all(started.elapsed());
    report.out_of(live::NAMES.len() + OWN.len());
    if cli.strict {
        report.be_strict();
    }
    if let Some(folder) = &cli.report {
        std::fs::create_dir_all(folder)?;
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(folder.join("validation.json"), json)?;
        std::fs::write(folder.join("validation.xml"), junit(&report))?;
    }
    Ok(report)
}
