//! A soak: real gateways and a real backend for an hour under faults, and an exact account at the end.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people: the account on standard output, progress on standard error"
)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use tokio::time::{Instant, sleep};
use viworks_runtime::random::uniform;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::Deployment;
use viworks_testkit::proxy::Proxy;

use crate::account::Account;
use crate::backends::Backends;
use crate::fleet::Fleet;
use crate::memory::Memory;
use crate::operator::Operator;
use crate::servers::Servers;

mod account;
mod backends;
mod faults;
mod fleet;
mod memory;
mod operator;
mod servers;

/// Run the shipped programs for a long time while processes are killed and stopped and connections cut, then account
/// for every command and every record.
#[derive(Debug, Parser)]
#[command(name = "soak", version)]
struct Cli {
    /// How long faults are injected
    #[arg(long, default_value_t = 60.0, value_parser = minutes)]
    minutes: f64,
    /// Gateways, each a process of the shipped agent
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(2..=1_000))]
    agents: u16,
    /// Two backends on a PostgreSQL server of their own, which is killed as well
    #[arg(long)]
    postgres: bool,
    /// A Redis server between them, which is killed as well
    #[arg(long, requires = "postgres")]
    redis: bool,
    /// What the faults and their times follow from, as an earlier soak said it [default: by chance]
    #[arg(long)]
    seed: Option<u64>,
}

fn minutes(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_text| "not a number".to_owned())?;
    if (0.2..=10_080.0).contains(&number) {
        Ok(number)
    } else {
        Err("0.2 to 10080 are possible".to_owned())
    }
}

/// How long the system may take to come to rest when the faults have ended.
const REST_WITHIN: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started");
    let outcome = runtime.and_then(|runtime| runtime.block_on(soak(&Cli::parse())));
    match outcome {
        Ok(account) => {
            println!("{account}");
            if account.holds() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn soak(cli: &Cli) -> anyhow::Result<Account> {
    eprintln!("building the programs …");
    let programs = if cfg!(debug_assertions) {
        Binaries::shipped()
    } else {
        Binaries::released()
    };
    let mut servers = Servers::start(cli.postgres, cli.redis)?;
    let system = match &servers.database {
        Some(own) => {
            own.server().make_empty("viworks");
            Deployment::on(programs, own.server().database("viworks"))
        }
        None => Deployment::new(programs),
    };
    // Where the backend listens is known when it runs.
    let relay = Proxy::before("").await?;
    let mut fleet = Fleet::issue(&system, usize::from(cli.agents), &relay.address());
    let mut backends = Backends::of(system, &servers);
    backends.start(&relay).await;
    fleet.start_all(backends.first())?;
    let apis = backends.apis();
    let operator = Operator::new(backends.first().path(), apis)?;
    operator.all_online(fleet.size()).await?;
    // Faults that hit nothing would prove nothing.
    if relay.carried() < fleet.size() {
        bail!(
            "of {} gateways only {} are connected through the relay that cuts connections",
            fleet.size(),
            relay.carried()
        );
    }

    let minutes = Duration::from_secs_f64(cli.minutes * 60.0);
    eprintln!(
        "{} gateways are online; faults for {} minutes …",
        fleet.size(),
        cli.minutes
    );
    let seed = cli.seed.unwrap_or_else(|| uniform(0..u64::from(u32::MAX)));
    let over = AtomicBool::new(false);
    let folders = fleet.folders();
    let until = Instant::now() + minutes;
    let mut memory = Memory::default();
    let (faults, (), submitted, fed) = tokio::join!(
        async {
            let faults = faults::inject(
                &mut backends,
                &mut servers,
                &mut fleet,
                &relay,
                (until, seed),
                &mut memory,
            )
            .await;
            over.store(true, Ordering::Relaxed);
            // Whoever is asked for an answer must be able to give one.
            fleet.repair().and(faults)
        },
        tell(until, &over),
        operator.submit_until(&over),
        fleet::feed_until(&folders, &over),
    );
    let (faults, submitted) = (faults?, submitted?);

    eprintln!("the faults are over; waiting for the last commands and records …");
    rest(backends.first(), &fleet).await?;
    let memory = memory.verdict();
    backends.stop().await?;
    let account = Account::take(backends.first(), &fleet, submitted, fed, faults, memory);
    fleet.stop_all().await;
    Ok(account)
}

/// Says every few minutes that the work goes on.
async fn tell(until: Instant, over: &AtomicBool) {
    let mut next = Instant::now() + Duration::from_secs(300);
    while !over.load(Ordering::Relaxed) {
        sleep(Duration::from_secs(1)).await;
        if Instant::now() >= next {
            let left = until.saturating_duration_since(Instant::now());
            eprintln!("{} minutes left", left.as_secs().div_ceil(60));
            next += Duration::from_secs(300);
        }
    }
}

/// Waits until every command is final and every record is acknowledged.
async fn rest(system: &Deployment, fleet: &Fleet) -> anyhow::Result<()> {
    let deadline = Instant::now() + REST_WITHIN;
    let mut undelivered: Vec<_> = (0..fleet.size()).collect();
    loop {
        undelivered = fleet.undelivered(&undelivered).await;
        let open = system.open_commands();
        if open == 0 && undelivered.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!(
                "after {REST_WITHIN:?} of rest {open} commands are open, and the gateways {undelivered:?} have records to deliver"
            );
        }
        sleep(Duration::from_millis(500)).await;
    }
}
