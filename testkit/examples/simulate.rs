//! The long run of the simulation: `simulate --seeds 1000000 [--threads N] [--start N] [--failures N]`, or
//! `simulate --trace N` for everything that happens in one world.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use viworks_testkit::sim::{self, Counts, Rules};

/// Worlds between two lines of progress.
const PROGRESS: u64 = 10_000;

struct Plan {
    start: u64,
    seeds: u64,
    threads: u64,
    failures: u64,
    trace: Option<u64>,
}

fn main() -> ExitCode {
    match plan().map(|plan| obey(&plan)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn plan() -> anyhow::Result<Plan> {
    let mut plan = Plan {
        start: 0,
        seeds: 100_000,
        threads: std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64),
        failures: 1,
        trace: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        let number: u64 = value
            .parse()
            .with_context(|| format!("{name} {value} is not a number"))?;
        match name.as_str() {
            "--start" => plan.start = number,
            "--seeds" => plan.seeds = number,
            "--threads" => plan.threads = number.max(1),
            "--failures" => plan.failures = number,
            "--trace" => plan.trace = Some(number),
            _ => bail!(
                "unknown argument {name}; known are --seeds, --threads, --start, --failures, --trace"
            ),
        }
    }
    Ok(plan)
}

/// True when every invariant held.
fn obey(plan: &Plan) -> bool {
    if let Some(seed) = plan.trace {
        for line in sim::trace(seed, Rules::all()) {
            println!("{line}");
        }
        return true;
    }
    let next = AtomicU64::new(plan.start);
    let failures = AtomicU64::new(0);
    let total = Mutex::new(Counts::default());
    let end = plan.start.saturating_add(plan.seeds);
    let worlds = || {
        while failures.load(Ordering::Relaxed) < plan.failures {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            match sim::run(seed, Rules::all()) {
                Ok(counts) => total
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .add(&counts),
                Err(failure) => {
                    let found = failures.fetch_add(1, Ordering::Relaxed) + 1;
                    if found < plan.failures {
                        println!("seed {seed}: {}", failure.violation);
                    } else {
                        println!("{failure}");
                    }
                }
            }
            let done = seed + 1 - plan.start;
            if done.is_multiple_of(PROGRESS) {
                println!("{done} of {} worlds", plan.seeds);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(worlds);
        }
    });
    let failures = failures.into_inner();
    let (seeds, start) = (plan.seeds, plan.start);
    println!("{seeds} worlds from {start} on, {failures} with a violation");
    let total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{total:#?}");
    failures == 0
}
