//! The long run of the simulation: `cargo run --release -p viworks-testkit --example simulate -- --seeds 1000000`.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use viworks_testkit::sim::{Rules, run};

fn argument(name: &str, default: u64) -> Result<u64, String> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == name) {
        None => Ok(default),
        Some(at) => {
            let text = arguments
                .get(at + 1)
                .ok_or_else(|| format!("{name} needs a number"))?;
            text.parse()
                .map_err(|error| format!("{name} {text}: {error}"))
        }
    }
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool"
)]
fn main() -> ExitCode {
    let cores = std::thread::available_parallelism()
        .map_or(2, |cores| u64::try_from(cores.get()).unwrap_or(2));
    let (seeds, start, threads) = match (
        argument("--seeds", 100_000),
        argument("--start", 0),
        argument("--threads", cores),
    ) {
        (Ok(seeds), Ok(start), Ok(threads)) => (seeds, start, threads),
        (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
            eprintln!("error: {error}\nusage: simulate [--seeds N] [--start N] [--threads N]");
            return ExitCode::from(2);
        }
    };
    println!(
        "seeds {start} to {} on {threads} threads",
        start + seeds - 1
    );
    let next = AtomicU64::new(start);
    let found = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while found.lock().is_ok_and(|found| found.is_none()) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= start + seeds {
                        return;
                    }
                    if (seed - start) % 10_000 == 9_999 {
                        println!("{} worlds", seed - start + 1);
                    }
                    if let Err(violation) = run(seed, &Rules::ALL)
                        && let Ok(mut found) = found.lock()
                    {
                        found.get_or_insert(violation);
                    }
                }
            });
        }
    });
    match found.into_inner() {
        Ok(None) => {
            println!("every world kept every invariant");
            ExitCode::SUCCESS
        }
        Ok(Some(violation)) => {
            println!("{violation}");
            ExitCode::FAILURE
        }
        Err(_poisoned) => ExitCode::FAILURE,
    }
}
