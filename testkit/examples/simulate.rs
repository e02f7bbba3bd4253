//! The long run of the simulation: `simulate --seeds 1000000 --threads 2 [--start N]`, or `simulate --trace N`.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, bail};
use viworks_testkit::sim::{self, Counts, Rules};

/// Worlds between two lines of progress.
const PROGRESS: u64 = 10_000;

fn main() -> anyhow::Result<()> {
    let (mut start, mut seeds, mut threads) = (0, 100_000, 2);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        let number: u64 = value
            .parse()
            .with_context(|| format!("{name} {value} is not a number"))?;
        match name.as_str() {
            "--start" => start = number,
            "--seeds" => seeds = number,
            "--threads" => threads = number.max(1),
            "--trace" => {
                sim::trace(number, Rules::all())
                    .iter()
                    .for_each(|line| println!("{line}"));
                return Ok(());
            }
            _ => bail!("unknown argument {name}; known are --seeds, --threads, --start, --trace"),
        }
    }
    run(start, seeds, threads)
}

fn run(start: u64, seeds: u64, threads: u64) -> anyhow::Result<()> {
    let next = AtomicU64::new(start);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Counts::default());
    let end = start.saturating_add(seeds);
    let worlds = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return Ok(());
            }
            match sim::run(seed, Rules::all()) {
                Ok(counts) => {
                    if let Ok(mut total) = total.lock() {
                        total.add(&counts);
                    }
                }
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(failure);
                }
            }
            if (seed + 1 - start).is_multiple_of(PROGRESS) {
                println!("{} of {seeds} worlds", seed + 1 - start);
            }
        }
        Ok(())
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(worlds)).collect();
        running.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
    });
    for thread in ended {
        match thread {
            Ok(result) => result?,
            Err(_panicked) => bail!("a world panicked"),
        }
    }
    println!("{seeds} worlds from {start} on, every invariant holds");
    if let Ok(total) = total.lock() {
        println!("{:#?}", *total);
    }
    Ok(())
}
