//! Ten thousand worlds keep every invariant; with any one rule off, some world breaks one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use viworks_runtime::config::environment;
use viworks_testkit::sim::{Report, Rules, Violation, run};

const SEEDS: u64 = 10_000;
/// Worlds within which a missing rule must show.
const SEEDS_TO_NOTICE: u64 = 4_000;

fn number(variable: &str, default: u64) -> u64 {
    environment()
        .get(variable)
        .map_or(default, |text| text.parse().expect("a number of seeds"))
}

/// Runs seeds on all cores until one breaks an invariant.
fn search(start: u64, count: u64, rules: &Rules) -> (Report, Option<Box<Violation>>) {
    let next = AtomicU64::new(start);
    let found = Mutex::new(None);
    let total = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while found
                    .lock()
                    .expect("nothing panics while it holds it")
                    .is_none()
                {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= start + count {
                        return;
                    }
                    match run(seed, rules) {
                        Ok(report) => {
                            let mut total = total.lock().expect("nothing panics while it holds it");
                            total.starts += report.starts;
                            total.commands += report.commands;
                            total.indeterminate += report.indeterminate;
                            total.forks += report.forks;
                            total.records += report.records;
                        }
                        Err(violation) => {
                            found
                                .lock()
                                .expect("nothing panics while it holds it")
                                .get_or_insert(violation);
                        }
                    }
                }
            });
        }
    });
    (
        total.into_inner().expect("all threads have ended"),
        found.into_inner().expect("all threads have ended"),
    )
}

#[test]
fn seeds_that_once_failed_keep_every_invariant() {
    for line in include_str!("seeds.txt").lines() {
        let seed = line.split('#').next().unwrap_or("").trim();
        if seed.is_empty() {
            continue;
        }
        let seed = seed.parse().expect("seeds are numbers");
        if let Err(violation) = run(seed, &Rules::ALL) {
            panic!("{violation}");
        }
    }
}

#[test]
fn many_worlds_keep_every_invariant() {
    let (start, count) = (
        number("VIWORKS_SIM_START", 0),
        number("VIWORKS_SIM_SEEDS", SEEDS),
    );
    let (report, violation) = search(start, count, &Rules::ALL);
    if let Some(violation) = violation {
        panic!("{violation}");
    }
    // Worlds in which nothing happens prove nothing.
    assert!(
        report.starts > count && report.records > count,
        "{report:?}"
    );
    assert!(
        report.indeterminate > count / 100 && report.forks > count / 100,
        "{report:?}"
    );
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in 0..20 {
        assert_eq!(run(seed, &Rules::ALL), run(seed, &Rules::ALL));
    }
}

/// Whether some world breaks this very invariant.
fn breaks(invariant: u8, rules: &Rules) -> bool {
    (0..SEEDS_TO_NOTICE)
        .any(|seed| run(seed, rules).is_err_and(|violation| violation.invariant == invariant))
}

#[test]
fn without_the_permit_something_runs_twice() {
    assert!(breaks(
        1,
        &Rules {
            permit: false,
            ..Rules::ALL
        }
    ));
}

#[test]
fn with_a_permit_for_any_run_something_runs_twice() {
    assert!(breaks(
        1,
        &Rules {
            permit_bound_to_run: false,
            ..Rules::ALL
        }
    ));
}

#[test]
fn forgetting_by_impatience_loses_an_outcome_or_repeats_a_command() {
    let rules = Rules {
        forget_by_low_water: false,
        ..Rules::ALL
    };
    assert!(search(0, SEEDS_TO_NOTICE, &rules).1.is_some());
}

#[test]
fn acknowledging_before_the_commit_loses_telemetry() {
    assert!(breaks(
        5,
        &Rules {
            acknowledge_after_commit: false,
            ..Rules::ALL
        }
    ));
}

#[test]
fn without_the_fence_an_old_session_writes() {
    assert!(breaks(
        6,
        &Rules {
            epoch_fence: false,
            ..Rules::ALL
        }
    ));
}

#[test]
fn reporting_before_the_disk_breaks_an_invariant() {
    let rules = Rules {
        journal_before_report: false,
        ..Rules::ALL
    };
    assert!(search(0, SEEDS_TO_NOTICE, &rules).1.is_some());
}
