//! The simulation holds every invariant, and notices when a rule is missing.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use viworks_common::rules::Rule;
use viworks_runtime::config::environment;
use viworks_testkit::sim::{self, Counts, Failure, Rules};

/// Worlds in an ordinary run.
const SEEDS: u64 = 10_000;
/// Worlds within which a missing rule must be noticed.
const SEEDS_WITHOUT_RULE: u64 = 40_000;

fn from_environment(name: &str, otherwise: u64) -> u64 {
    environment().get(name).map_or(otherwise, |text| {
        text.parse().expect("the variable holds a number")
    })
}

/// Runs worlds on every processor until one fails; the sum of what happened in them otherwise.
fn worlds(seeds: impl Iterator<Item = u64> + Send, rules: Rules) -> Result<Counts, Box<Failure>> {
    let seeds = Mutex::new(seeds);
    let total = Mutex::new(Ok(Counts::default()));
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let work = || {
        loop {
            let seed = seeds.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(seed) = seed else { return };
            let outcome = sim::run(seed, rules);
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            match (&mut *total, outcome) {
                (Ok(total), Ok(counts)) => total.add(&counts),
                (Ok(_), Err(failure)) => *total = Err(failure),
                (Err(_), _) => {}
            }
            if total.is_err() {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn must_hold(seeds: impl Iterator<Item = u64> + Send) -> Counts {
    match worlds(seeds, Rules::all()) {
        Ok(counts) => counts,
        Err(failure) => panic!(
            "{failure}\nadd {} to testkit/tests/it/seeds.txt",
            failure.seed
        ),
    }
}

#[test]
fn the_invariants_hold_in_every_world() {
    let known = include_str!("seeds.txt").lines();
    let known = known.filter(|line| !line.starts_with('#') && !line.is_empty());
    must_hold(known.map(|line| line.parse().expect("a seed on every line")));
    let start = from_environment("VIWORKS_SIM_START", 0);
    let count = from_environment("VIWORKS_SIM_SEEDS", SEEDS);
    let counts = must_hold(start..start + count);
    if count >= SEEDS {
        assert_eventful(&counts);
    }
}

/// Worlds in which nothing happens prove nothing.
fn assert_eventful(counts: &Counts) {
    for (what, happened) in counts.each() {
        assert!(
            happened >= 50,
            "{what} happened only {happened} times in {counts:#?}"
        );
    }
}

#[test]
fn equal_seeds_give_equal_worlds() {
    for seed in 0..20 {
        assert_eq!(
            sim::trace(seed, Rules::all()),
            sim::trace(seed, Rules::all())
        );
    }
}

#[test]
fn a_missing_rule_is_noticed() {
    for rule in Rule::ALL {
        let next = AtomicU64::new(0);
        let seeds = std::iter::from_fn(|| {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            (seed < SEEDS_WITHOUT_RULE).then_some(seed)
        });
        match worlds(seeds, Rules::without(*rule)) {
            Err(failure) => println!(
                "without {rule:?}: {} after {} worlds",
                failure.violation,
                next.load(Ordering::Relaxed)
            ),
            Ok(_) => panic!("nothing goes wrong in {SEEDS_WITHOUT_RULE} worlds without {rule:?}"),
        }
    }
}
