//! A Redis that is killed, stands still, is full or emptied: nobody waits, it is said, and it comes back by itself.

use viworks_backend_agent::command::queue::Told;
use viworks_runtime::clock::Clock as _;
use viworks_testkit::process::eventually;
use viworks_testkit::redis::Own;

use super::*;

/// How soon it has to be used again once it works.
const BACK: Duration = Duration::from_secs(5);

fn condition(instance: &Instance) -> Option<String> {
    let conditions = instance.conditions.list();
    let found = conditions.iter().find(|found| found.name == "queue.redis");
    found.map(|found| found.cause.clone())
}

fn state(instance: &Instance) -> String {
    let text = instance.metrics.encode().unwrap();
    let on = text.lines().find_map(|line| {
        let rest = line.strip_prefix("viworks_queue_redis_state{state=\"")?;
        rest.strip_suffix("\"} 1")
    });
    on.unwrap_or("none").to_owned()
}

/// Waits until it is asked again, and was looked after.
async fn back(instance: &Instance, key: &QueueKey) {
    let begun = SystemClock.now();
    eventually("it is used again", PATIENCE, async || {
        instance.queue.offer(key, &commands([9])).await.ok()
    })
    .await;
    let took = SystemClock.now().saturating_since(begun);
    assert!(took < BACK, "{took:?}");
    assert!(instance.called().await.look_everywhere);
    assert_eq!(
        (condition(instance), state(instance).as_str()),
        (None, "closed")
    );
}

/// Asks until it is left alone; answers how long the slowest answer took.
async fn left_alone(instance: &Instance, key: &QueueKey) -> Duration {
    let mut slowest = Duration::ZERO;
    eventually("it is left alone", PATIENCE, async || {
        let begun = SystemClock.now();
        let answer = instance.queue.offer(key, &commands([1])).await;
        slowest = slowest.max(SystemClock.now().saturating_since(begun));
        (answer.is_err() && condition(instance).is_some()).then_some(())
    })
    .await;
    slowest
}

#[tokio::test]
async fn a_server_that_is_killed_is_used_again_once_it_is_back() {
    for persistent in [false, true] {
        let lines = ["appendonly yes", "appendfsync always"];
        let lines = if persistent { &lines[..] } else { &[] };
        let Some(mut own) = Own::start_with(lines) else {
            return;
        };
        let a = Instance::at(&own.place().url()).await.unwrap();
        assert!(a.called().await.look_everywhere);
        assert_eq!((condition(&a), state(&a).as_str()), (None, "closed"));
        let (key, other) = (key_of(&tenant(), 1), key_of(&tenant(), 2));
        a.queue.offer(&key, &commands([1])).await.unwrap();
        own.kill();
        left_alone(&a, &other).await;
        let cause = condition(&a).unwrap();
        assert!(cause.contains(&own.place().port().to_string()), "{cause}");
        assert_ne!(state(&a), "closed");
        own.start_again();
        back(&a, &other).await;
        let kept = a.queue.take(&key, 10, at(0)).await.unwrap();
        assert_eq!(kept.len(), usize::from(persistent), "{kept:?}");
    }
}

/// What writes nothing is done by a server that takes no writes, and says nothing of it.
#[tokio::test]
async fn a_server_that_takes_no_writes_is_left_alone_though_it_answers_all_else() {
    let Some(own) = Own::start() else { return };
    let a = Instance::at(&own.place().url()).await.unwrap();
    assert!(a.called().await.look_everywhere);
    let key = key_of(&tenant(), 1);
    let room = |bytes| {
        let words = ["CONFIG", "SET", "maxmemory", bytes];
        own.place().ask::<String>(&words).unwrap();
    };
    room("1000");
    let cause = eventually("it is left alone", PATIENCE, async || {
        let nothing = a.queue.take(&key, 10, at(0)).await;
        assert!(nothing.is_ok() || condition(&a).is_some(), "{nothing:?}");
        condition(&a)
    })
    .await;
    assert!(cause.contains("maxmemory"), "{cause}");
    assert_ne!(state(&a), "closed");
    room("0");
    back(&a, &key).await;
}

#[tokio::test]
async fn nobody_waits_for_a_server_that_stands_still() {
    let Some(own) = Own::start() else { return };
    let a = Instance::at(&own.place().url()).await.unwrap();
    assert!(a.called().await.look_everywhere);
    let key = key_of(&tenant(), 1);
    own.pause();
    let slowest = left_alone(&a, &key).await;
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    // From here on an answer costs nothing.
    let begun = SystemClock.now();
    for _many in 0..1_000 {
        drop(a.queue.take(&key, 1, at(0)).await);
    }
    let took = SystemClock.now().saturating_since(begun);
    assert!(took < Duration::from_secs(1), "{took:?}");
    own.go_on();
    back(&a, &key).await;
}

#[tokio::test]
async fn a_server_that_is_slow_for_a_while_is_left_alone_for_a_while() {
    let Some(own) = Own::start() else { return };
    let a = Instance::at(&own.place().url()).await.unwrap();
    assert!(a.called().await.look_everywhere);
    let key = key_of(&tenant(), 1);
    let _paused: String = own
        .place()
        .ask(&["CLIENT", "PAUSE", "3000", "ALL"])
        .unwrap();
    left_alone(&a, &key).await;
    eventually("it is used again", PATIENCE, async || {
        a.queue.offer(&key, &commands([9])).await.ok()
    })
    .await;
    assert!(a.called().await.look_everywhere);
    assert_eq!(condition(&a), None);
}

#[tokio::test]
async fn a_server_that_is_full_is_named_so_and_used_again_once_there_is_room() {
    let Some(own) = Own::start() else { return };
    let a = Instance::at(&own.place().url()).await.unwrap();
    assert!(a.called().await.look_everywhere);
    let key = key_of(&tenant(), 1);
    let full = |bytes: &str| {
        let words = ["CONFIG", "SET", "maxmemory", bytes];
        own.place().ask::<String>(&words).unwrap();
    };
    full("1000");
    left_alone(&a, &key).await;
    let cause = condition(&a).unwrap();
    assert!(cause.contains("maxmemory"), "{cause}");
    full("0");
    back(&a, &key).await;
}

#[tokio::test]
async fn a_server_that_was_emptied_is_noticed_and_everything_looked_after() {
    let Some(own) = Own::start() else { return };
    let a = Instance::at(&own.place().url()).await.unwrap();
    let b = Instance::at(&own.place().url()).await.unwrap();
    assert!(a.called().await.look_everywhere);
    assert!(b.called().await.look_everywhere);
    let key = key_of(&tenant(), 1);
    assert_eq!(b.queue.attach(&key, 1).await, Ok(true));
    let offered = a.queue.offer(&key, &commands([1])).await;
    assert_eq!(offered, Ok(Told::Another));
    assert!(!b.called().await.look.is_empty());
    let begun = SystemClock.now();
    own.place().ask::<String>(&["FLUSHALL"]).unwrap();
    for instance in [&a, &b] {
        assert!(instance.called().await.look_everywhere);
    }
    let took = SystemClock.now().saturating_since(begun);
    assert!(took < BACK, "{took:?}");
    // Whoever has the session says so again, and is told again.
    assert_eq!(b.queue.attach(&key, 1).await, Ok(true));
    let offered = a.queue.offer(&key, &commands([2])).await;
    assert_eq!(offered, Ok(Told::Another));
    assert_eq!(condition(&a), None, "nothing is wrong with it");
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let Some(mut own) = Own::start() else { return };
    own.kill();
    let a = Instance::at(&own.place().url()).await.unwrap();
    let key = key_of(&tenant(), 1);
    assert!(condition(&a).is_some());
    assert!(a.queue.offer(&key, &commands([1])).await.is_err());
    own.start_again();
    back(&a, &key).await;
}

#[tokio::test]
async fn a_server_that_was_demoted_is_left_alone_until_it_takes_writes_again() {
    let Some(own) = Own::start() else { return };
    let other = Own::start().unwrap();
    let a = Instance::at(&own.place().url()).await.unwrap();
    assert!(a.called().await.look_everywhere);
    let key = key_of(&tenant(), 1);
    let port = other.place().port().to_string();
    let demote = ["REPLICAOF", "127.0.0.1", &port];
    own.place().ask::<String>(&demote).unwrap();
    left_alone(&a, &key).await;
    let cause = condition(&a).unwrap();
    assert!(
        cause.contains("READONLY") || cause.contains("read only"),
        "{cause}"
    );
    own.place()
        .ask::<String>(&["REPLICAOF", "NO", "ONE"])
        .unwrap();
    back(&a, &key).await;
}
