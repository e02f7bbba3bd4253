//! Live output and changes of runs between instances, while somebody watches.

use std::sync::atomic::{AtomicI64, Ordering};

use viworks_backend_agent::command::bus::{
    CommandChange, Heard, OutputChunk, RunChange, Step, Subscription,
};
use viworks_common::command::CommandState;
use viworks_common::id::RunId;
use viworks_common::time::Timestamp;
use viworks_common::wire::message::OutputStream;
use viworks_testkit::redis::Own;

use super::*;

fn run() -> RunId {
    RunId::from_uuid(random::uuid_v4())
}

fn chunk(offset: u64) -> OutputChunk {
    OutputChunk {
        at: Timestamp::from_unix_micros(1),
        command_id: commands([1])[0],
        agent_id: AgentId::from_uuid(Uuid::from_u128(2)),
        stream: OutputStream::Stdout,
        offset,
        data: b"text".to_vec(),
    }
}

fn ended() -> CommandChange {
    CommandChange {
        at: Timestamp::from_unix_micros(2),
        command_id: commands([1])[0],
        agent_id: AgentId::from_uuid(Uuid::from_u128(2)),
        state: CommandState::Succeeded,
        attempt: None,
        exit_code: Some(0),
        duration_ms: Some(1),
        reason: None,
        written: None,
    }
}

/// The next event that a watcher gets.
async fn next(watcher: &mut Subscription) -> RunChange {
    let event = async {
        loop {
            if let Step::Event(_place, change) = watcher.poll_next() {
                return (*change).clone();
            }
            watcher.changed().await;
        }
    };
    tokio::time::timeout(PATIENCE, event).await.unwrap()
}

/// When the next attempt began that is made up.
static ATTEMPTS: AtomicI64 = AtomicI64::new(-1_000_000);

/// Lets one instance tell until another hears it, which it does once both know that somebody watches.
async fn until_heard(from: &Instance, run: RunId, watcher: &mut Subscription) {
    let heard = async {
        loop {
            // Each is of an attempt of its own, before all that is told otherwise: what was heard before is left out.
            let at = Timestamp::from_unix_micros(ATTEMPTS.fetch_add(1, Ordering::Relaxed));
            from.bus.output(run, OutputChunk { at, ..chunk(0) });
            let pause = tokio::time::timeout(Duration::from_millis(50), watcher.changed());
            drop(pause.await);
            if let Step::Event(..) = watcher.poll_next() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.unwrap();
    // What was told until then.
    while let Ok(()) = tokio::time::timeout(Duration::from_millis(200), watcher.changed()).await {
        while let Step::Event(..) = watcher.poll_next() {}
    }
}

#[tokio::test]
async fn whoever_watches_here_hears_what_happens_there_and_nobody_else_does() {
    let Some(place) = server(Kind::Redis) else {
        return;
    };
    let (a, b, c) = (
        Instance::at(&place.url()).await.unwrap(),
        Instance::at(&place.url()).await.unwrap(),
        Instance::at(&place.url()).await.unwrap(),
    );
    let (run, other) = (run(), run());
    let mut watcher = a.bus.subscribe(run, None);
    // Two watch the same: neither hears itself.
    let mut second = b.bus.subscribe(run, None);
    until_heard(&b, run, &mut watcher).await;
    until_heard(&a, run, &mut second).await;
    while let Step::Event(..) = watcher.poll_next() {}
    b.bus.output(other, chunk(5));
    c.bus.output(run, chunk(7));
    assert_eq!(next(&mut watcher).await, RunChange::Output(chunk(7)));
    let mut seen = next(&mut second).await;
    // Its own come by the short way.
    while seen != RunChange::Output(chunk(7)) {
        let RunChange::Output(piece) = &seen else {
            panic!("{seen:?}")
        };
        // As it was told until it was heard, each time by an attempt of its own.
        assert_eq!(
            piece,
            &OutputChunk {
                at: piece.at,
                ..chunk(0)
            }
        );
        seen = next(&mut second).await;
    }
    b.bus.command_changed(run, ended(), true);
    assert_eq!(next(&mut watcher).await, RunChange::Command(ended()));
    let heard = tokio::time::timeout(PATIENCE, watcher.finished()).await;
    assert_eq!(heard.unwrap(), Heard::Finished(None));
    assert_eq!(watcher.poll_next(), Step::Pending, "once");
}

#[tokio::test]
async fn what_was_written_before_anybody_watched_elsewhere_is_told_first_and_once() {
    let Some(place) = server(Kind::Redis) else {
        return;
    };
    let (a, b, c) = (
        Instance::at(&place.url()).await.unwrap(),
        Instance::at(&place.url()).await.unwrap(),
        Instance::at(&place.url()).await.unwrap(),
    );
    let run = run();
    let written = |offset| RunChange::Output(chunk(offset));
    for offset in [0, 4, 8] {
        b.bus.output(run, chunk(offset));
    }
    let mut watcher = a.bus.subscribe(run, None);
    for offset in [0, 4, 8] {
        assert_eq!(next(&mut watcher).await, written(offset));
    }
    b.bus.output(run, chunk(12));
    assert_eq!(next(&mut watcher).await, written(12));
    // Another one begins; whoever heard it before hears it no second time.
    let mut late = c.bus.subscribe(run, None);
    for offset in [0, 4, 8, 12] {
        assert_eq!(next(&mut late).await, written(offset));
    }
    b.bus.output(run, chunk(16));
    for watcher in [&mut watcher, &mut late] {
        assert_eq!(next(watcher).await, written(16));
    }
}

#[tokio::test]
async fn nothing_is_told_of_a_run_that_nobody_watches_any_more() {
    let Some(own) = Own::start() else { return };
    let url = own.place().url();
    let (a, b) = (
        Instance::at(&url).await.unwrap(),
        Instance::at(&url).await.unwrap(),
    );
    let run = run();
    let mut watcher = a.bus.subscribe(run, None);
    until_heard(&b, run, &mut watcher).await;
    drop(watcher);
    let channels = || {
        let words = ["PUBSUB", "CHANNELS", "vw:o:*"];
        own.place().ask::<Vec<String>>(&words).unwrap()
    };
    viworks_testkit::process::eventually("the channel is left", PATIENCE, async || {
        channels().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_watcher_looks_into_the_store_once_it_hears_and_hears_again_after_a_cut() {
    let Some(mut own) = Own::start() else { return };
    let url = own.place().url();
    let (a, b) = (
        Instance::at(&url).await.unwrap(),
        Instance::at(&url).await.unwrap(),
    );
    let run = run();
    let mut watcher = a.bus.subscribe(run, None);
    // What happened before it could hear is not lost on it.
    let look = tokio::time::timeout(PATIENCE, watcher.finished()).await;
    assert_eq!(look.unwrap(), Heard::Look);
    until_heard(&b, run, &mut watcher).await;
    own.kill();
    // Nobody waits for whoever cannot be told; what is remembered of it is told when it is heard again.
    for offset in 0..10_000 {
        b.bus.output(run, chunk(offset));
    }
    own.start_again();
    until_heard(&b, run, &mut watcher).await;
}
