//! Tasks end when they are told to, and a stop waits for them.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const GRACE: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_tasks_that_finish_in_time() {
    let lifecycle = Lifecycle::new();
    let finished = Arc::new(AtomicBool::new(false));
    lifecycle.spawn("drains", {
        let (lifecycle, finished) = (lifecycle.clone(), Arc::clone(&finished));
        async move {
            lifecycle.stopping().await;
            tokio::time::sleep(GRACE / 2).await;
            finished.store(true, Ordering::Relaxed);
        }
    });
    let outcome = lifecycle.shutdown(GRACE).await;
    assert!(finished.load(Ordering::Relaxed));
    assert_eq!(
        outcome,
        Outcome {
            aborted: BTreeMap::new(),
            failure: None
        }
    );
    assert_eq!(outcome.exit_code(), ExitCode::Ok);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_does_not_end_is_dropped_after_the_grace_period_and_named() {
    let lifecycle = Lifecycle::new();
    let task = lifecycle.spawn("hangs", std::future::pending::<()>());
    let before = tokio::time::Instant::now();
    let outcome = lifecycle.shutdown(GRACE).await;
    assert_eq!(before.elapsed(), GRACE);
    assert_eq!(outcome.aborted, BTreeMap::from([("hangs", 1)]));
    assert_eq!(task.await, None);
}

#[tokio::test(start_paused = true)]
async fn an_abort_cuts_the_grace_period_short() {
    let lifecycle = Lifecycle::new();
    lifecycle.spawn("hangs", std::future::pending::<()>());
    let before = tokio::time::Instant::now();
    let (outcome, ()) = tokio::join!(lifecycle.shutdown(GRACE), async {
        tokio::time::sleep(GRACE / 4).await;
        lifecycle.abort();
    });
    assert_eq!(before.elapsed(), GRACE / 4);
    assert_eq!(outcome.aborted.len(), 1);
}

#[tokio::test]
async fn a_task_gives_its_output() {
    let lifecycle = Lifecycle::new();
    assert_eq!(lifecycle.spawn("adds", async { 40 + 2 }).await, Some(42));
}

#[tokio::test]
async fn a_contained_panic_ends_only_its_task() {
    let lifecycle = Lifecycle::new();
    let task = lifecycle.spawn("breaks", async { panic!("planted") });
    let output: Option<()> = task.await;
    assert_eq!(output, None);
    assert!(!lifecycle.is_stopping());
    assert_eq!(lifecycle.shutdown(GRACE).await.exit_code(), ExitCode::Ok);
}

#[tokio::test]
async fn a_panic_of_a_critical_task_stops_the_process_with_an_error() {
    let lifecycle = Lifecycle::new();
    lifecycle.spawn_critical("writer", async { panic!("planted {}", 1) });
    lifecycle.stopping().await;
    let outcome = lifecycle.shutdown(GRACE).await;
    assert_eq!(outcome.exit_code(), ExitCode::Error);
    assert_eq!(
        outcome.failure.unwrap().reason,
        "the task writer panicked: planted 1"
    );
}

#[tokio::test]
async fn the_first_failure_decides() {
    let lifecycle = Lifecycle::new();
    lifecycle.fail(ExitCode::Config, "first");
    lifecycle.fail(ExitCode::Error, "second");
    assert_eq!(lifecycle.failure().unwrap().code, ExitCode::Config);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_names_the_tasks_that_hang() {
    let lifecycle = Lifecycle::new();
    lifecycle.spawn("hangs", std::future::pending::<()>());
    assert_eq!(
        lifecycle.shutdown(GRACE).await.aborted,
        BTreeMap::from([("hangs", 1)])
    );
}

#[tokio::test]
async fn a_task_aborted_by_its_handle_does_not_stay_on_the_books() {
    let lifecycle = Lifecycle::new();
    let task = lifecycle.spawn("hangs", std::future::pending::<()>());
    task.abort();
    assert_eq!(task.await, None);
    assert!(lifecycle.shutdown(GRACE).await.aborted.is_empty());
}

#[tokio::test]
async fn signals_stop_the_process_and_a_second_one_hurries_it() {
    let lifecycle = Lifecycle::new();
    let mut signals = Signals::listen().unwrap();
    lifecycle.spawn("hangs", std::future::pending::<()>());
    let myself = rustix::process::getpid();

    rustix::process::kill_process(myself, rustix::process::Signal::TERM).unwrap();
    assert_eq!(
        lifecycle.wait_for_signal(&mut signals).await,
        StopCause::Signal(Signal::Terminate)
    );

    rustix::process::kill_process(myself, rustix::process::Signal::INT).unwrap();
    let hours = Duration::from_secs(36_000);
    let outcome = lifecycle
        .shutdown_unless_signalled(hours, &mut signals)
        .await;
    assert_eq!(outcome.aborted, BTreeMap::from([("hangs", 1)]));
}

#[test]
fn a_thread_that_hangs_does_not_keep_the_process() {
    let (release, hang) = std::sync::mpsc::channel::<()>();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    let answer = run_to_end(runtime, async move {
        drop(tokio::task::spawn_blocking(move || hang.recv()));
        42
    });
    // Without an end to the waiting this is never reached: what the thread waits for is still held here.
    assert_eq!(answer, 42);
    drop(release);
}

/// Asks until nobody is silent.
async fn all_answer(lifecycle: &Lifecycle) {
    while !lifecycle.silent().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_critical_task_that_stands_still_is_named_and_one_that_waits_is_not() {
    let lifecycle = Lifecycle::new();
    drop(lifecycle.spawn_critical("waits", std::future::pending::<()>()));
    assert_eq!(lifecycle.spawn_critical("ends", async {}).await, Some(()));
    let (told, go_on) = (
        Arc::new(tokio::sync::Notify::new()),
        std::sync::mpsc::channel(),
    );
    drop(lifecycle.spawn_critical("blocks", {
        let told = Arc::clone(&told);
        async move {
            told.notify_one();
            // Stands where nobody can reach it, as a task does that waits for a lock.
            go_on.1.recv().unwrap();
            std::future::pending::<()>().await;
        }
    }));
    told.notified().await;
    let _first = lifecycle.silent();
    let only_that = timeout(GRACE, async {
        while lifecycle.silent() != ["blocks"] {
            tokio::task::yield_now().await;
        }
    });
    only_that.await.unwrap();
    go_on.0.send(()).unwrap();
    timeout(GRACE, all_answer(&lifecycle)).await.unwrap();
}
