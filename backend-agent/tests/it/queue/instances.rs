//! Several instances at one Redis: who is told, whose word counts, and what the one that died leaves behind.

use viworks_backend_agent::command::queue::{CommandQueue, Told};
use viworks_backend_agent::data::Hurry as _;
use viworks_testkit::process::eventually;

use super::*;

/// Instances at a server of all tests, and keys that are theirs.
async fn instances<const N: usize>() -> Option<(Tenant, [Instance; N])> {
    let url = server(Kind::Redis)?.url();
    let mut all = Vec::new();
    for _each in 0..N {
        let instance = Instance::at(&url).await.unwrap();
        // What it says of the beginning.
        assert!(instance.called().await.look_everywhere);
        all.push(instance);
    }
    let all = all.try_into().unwrap_or_else(|_| unreachable!("so many"));
    Some((tenant(), all))
}

fn length(key: &QueueKey) -> usize {
    let stream = format!("vw:{{{}:{}}}:q", key.tenant, key.agent_id);
    let place = server(Kind::Redis).unwrap();
    place.ask(&["XLEN", &stream]).unwrap()
}

#[tokio::test]
async fn an_offer_calls_the_instance_that_has_the_session_and_no_other() {
    let Some((tenant, [a, b, c])) = instances().await else {
        return;
    };
    let key = key_of(&tenant, 1);
    assert_eq!(a.queue.offer(&key, &commands([1])).await, Ok(Told::Nobody));
    assert_eq!(b.queue.attach(&key, 4).await, Ok(true));
    assert_eq!(a.queue.offer(&key, &commands([2])).await, Ok(Told::Another));
    let called = b.called().await;
    assert_eq!(called.look.into_iter().collect::<Vec<_>>(), [key.agent_id]);
    // The session is woken by whoever has it itself, and needs no hint.
    assert_eq!(b.queue.offer(&key, &commands([3])).await, Ok(Told::Own));
    assert_eq!(
        b.queue.take(&key, 10, at(0)).await.unwrap(),
        commands([1, 2])
    );
    b.queue.done(&key, &commands([1, 2])).await.unwrap();
    assert_eq!(length(&key), 0, "an empty stream goes");
    assert_eq!(a.queue.offer(&key, &commands([4])).await, Ok(Told::Another));
    b.called().await;
    // Whoever was not meant heard nothing.
    let quiet = tokio::time::timeout(Duration::from_millis(50), c.calls.next());
    assert!(quiet.await.is_err());
}

#[tokio::test]
async fn a_route_that_is_written_late_loses_to_the_later_epoch() {
    let Some((tenant, [a, b, c])) = instances().await else {
        return;
    };
    // Numbers that a script could not tell apart.
    for (n, later) in [(1, 5), (2, 10), (3, (1 << 60) + 1)] {
        let key = key_of(&tenant, n);
        assert_eq!(b.queue.attach(&key, later).await, Ok(true));
        assert_eq!(a.queue.attach(&key, later - 1).await, Ok(false));
        assert_eq!(b.queue.attach(&key, later).await, Ok(true), "said again");
        assert_eq!(c.queue.offer(&key, &commands([1])).await, Ok(Told::Another));
        let called = b.called().await;
        assert!(called.look.contains(&key.agent_id), "{called:?}");
        assert_eq!(a.queue.attach(&key, later + 1).await, Ok(true), "it moves");
        assert_eq!(b.queue.attach(&key, later).await, Ok(false));
    }
}

#[tokio::test]
async fn of_racing_offers_as_many_succeed_as_there_is_room_for() {
    let Some((tenant, [a, b])) = instances().await else {
        return;
    };
    let key = key_of(&tenant, 1);
    let offers = (0..40_u128).map(|n| {
        let (queue, key) = (if n % 2 == 0 { &a.queue } else { &b.queue }, &key);
        async move { queue.offer(key, &commands([n])).await }
    });
    let answers = futures_util::future::join_all(offers).await;
    let accepted = answers.iter().filter(|answer| answer.is_ok()).count();
    let full = QueueError::Full {
        scope: Scope::Agent,
        limit: 3,
    };
    let refused = answers
        .iter()
        .filter(|answer| **answer == Err(full.clone()));
    assert_eq!((accepted, refused.count(), length(&key)), (3, 37, 3));
    let text = format!(
        "{}{}",
        a.metrics.encode().unwrap(),
        b.metrics.encode().unwrap()
    );
    let counted: u64 = text
        .lines()
        .filter_map(|line| line.strip_prefix("viworks_queue_redis_refused_total "))
        .map(|count| count.parse::<u64>().unwrap())
        .sum();
    assert_eq!(counted, 37);
}

#[tokio::test]
async fn what_an_instance_took_and_left_is_handed_to_the_next_session() {
    let Some((tenant, [a, b])) = instances().await else {
        return;
    };
    let key = key_of(&tenant, 1);
    a.queue.offer(&key, &commands([1, 2])).await.unwrap();
    assert_eq!(a.queue.take(&key, 1, at(0)).await.unwrap(), commands([1]));
    drop(a);
    assert_eq!(b.queue.take(&key, 10, at(0)).await.unwrap(), commands([2]));
    assert_eq!(b.queue.attach(&key, 1).await, Ok(true));
    let taken = b.queue.take(&key, 10, at(0)).await.unwrap();
    assert!(taken.contains(&commands([1])[0]), "{taken:?}");
    b.queue.done(&key, &commands([1, 2])).await.unwrap();
    assert_eq!(length(&key), 0);
}

#[tokio::test]
async fn what_others_write_or_take_away_does_no_harm() {
    let Some((tenant, [a])) = instances().await else {
        return;
    };
    let key = key_of(&tenant, 1);
    let stream = format!("vw:{{{}:{}}}:q", key.tenant, key.agent_id);
    let place = server(Kind::Redis).unwrap();
    let ask = |words: &[&str]| place.ask::<::redis::Value>(words).unwrap();
    // An entry that is no hint, and one that is gone beneath its reader.
    ask(&["XADD", &stream, "*", "c", "rubbish"]);
    let entry: String = place.ask(&["XADD", &stream, "*", "x", "y"]).unwrap();
    a.queue.offer(&key, &commands([1])).await.unwrap();
    let taken = a.queue.take(&key, 10, at(0)).await.unwrap();
    assert!(taken.contains(&commands([1])[0]), "{taken:?}");
    ask(&["XDEL", &stream, &entry]);
    a.queue.done(&key, &taken).await.unwrap();
    assert_eq!(length(&key), 0);
    // A group that somebody removed.
    a.queue.offer(&key, &commands([2])).await.unwrap();
    ask(&["XGROUP", "DESTROY", &stream, "d"]);
    assert_eq!(a.queue.take(&key, 10, at(0)).await.unwrap(), commands([2]));
    a.queue.done(&key, &commands([2])).await.unwrap();
    // What means nothing on the channel is not heard, and what follows is.
    let channel = format!("vw:i:{}", a.id);
    for text in ["", "dance", "look me"] {
        ask(&["PUBLISH", &channel, text]);
    }
    ask(&["PUBLISH", &channel, &format!("look {}", key.agent_id)]);
    let called = a.called().await;
    assert_eq!(called.look.len(), 1);
    // A key of another kind where the stream should be is an answer like any other.
    ask(&["SET", &stream, "text"]);
    let answer = a.queue.offer(&key, &commands([3])).await;
    assert!(
        matches!(answer, Err(QueueError::Unavailable { .. })),
        "{answer:?}"
    );
    ask(&["DEL", &stream]);
    eventually("it is usable again", PATIENCE, async || {
        a.queue.offer(&key, &commands([3])).await.ok()
    })
    .await;
}

#[tokio::test]
async fn an_instance_is_told_of_its_inbox_by_the_name_that_it_has() {
    let Some((_tenant, [a, b])) = instances().await else {
        return;
    };
    let name = || InstanceId::from_uuid(random::uuid_v4());
    let (first, second) = (name(), name());
    for known in [first, second] {
        b.known_as.send_replace(Some(known));
        let told = async {
            loop {
                a.queue.hurry(known);
                let pause = Duration::from_millis(50);
                if tokio::time::timeout(pause, b.inbox.notified())
                    .await
                    .is_ok()
                {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, told).await.unwrap();
    }
}

/// A value that is no text.
const NO_TEXT: [u8; 3] = [0xff, 0xfe, 0x00];

#[tokio::test]
async fn whatever_others_write_into_the_keys_of_a_gateway_is_no_failure_of_the_server() {
    let Some((tenant, [a])) = instances().await else {
        return;
    };
    let place = server(Kind::Redis).unwrap();
    let ask = |words: &[&[u8]]| place.ask_bytes::<::redis::Value>(words).unwrap();
    let stream_of = |key: &QueueKey| format!("vw:{{{}:{}}}:q", key.tenant, key.agent_id);
    let route_of = |key: &QueueKey| format!("vw:{{{}:{}}}:r", key.tenant, key.agent_id);
    // Each of these is met more often than a server may fail, and then another gateway is served.
    let well = async |what: &str| {
        let other = key_of(&tenant, 99);
        let offered = a.queue.offer(&other, &commands([1])).await;
        assert_eq!(offered, Ok(Told::Nobody), "after {what}");
        a.queue.done(&other, &[]).await.unwrap();
        place
            .ask::<i64>(&["DEL", &stream_of(&other)])
            .expect("it is deleted");
    };

    let key = key_of(&tenant, 1);
    let stream = stream_of(&key);
    for _often in 0..5 {
        ask(&[b"XADD", stream.as_bytes(), b"*", b"c", &NO_TEXT]);
        ask(&[b"XADD", stream.as_bytes(), b"*", &NO_TEXT, &NO_TEXT]);
        a.queue.offer(&key, &commands([1])).await.unwrap();
        let taken = a.queue.take(&key, 10, at(0)).await.unwrap();
        assert!(taken.contains(&commands([1])[0]), "{taken:?}");
        a.queue.done(&key, &taken).await.unwrap();
        assert_eq!(length(&key), 0, "what means nothing is cleared away");
    }
    well("entries that are no text").await;

    let key = key_of(&tenant, 2);
    let stream = stream_of(&key);
    let last = b"18446744073709551615-18446744073709551615";
    ask(&[b"XADD", stream.as_bytes(), last, b"c", b"x"]);
    for _often in 0..5 {
        let answer = a.queue.offer(&key, &commands([1])).await;
        assert!(matches!(answer, Err(QueueError::Unavailable { .. })));
    }
    well("a stream that takes nothing more").await;

    let key = key_of(&tenant, 3);
    for _often in 0..5 {
        ask(&[b"SET", stream_of(&key).as_bytes(), &NO_TEXT]);
        assert!(a.queue.offer(&key, &commands([1])).await.is_err());
        assert!(a.queue.take(&key, 10, at(0)).await.is_err());
        ask(&[b"DEL", route_of(&key).as_bytes()]);
        ask(&[b"RPUSH", route_of(&key).as_bytes(), b"x"]);
        assert!(a.queue.attach(&key, 1).await.is_err());
    }
    well("keys of another kind").await;

    let key = key_of(&tenant, 4);
    for _often in 0..5 {
        ask(&[b"SET", route_of(&key).as_bytes(), &NO_TEXT]);
        assert_eq!(a.queue.offer(&key, &[]).await, Ok(Told::Nobody));
        assert_eq!(a.queue.attach(&key, 1).await, Ok(true));
        ask(&[b"SET", route_of(&key).as_bytes(), b"\xff\xfe|7"]);
        assert_eq!(a.queue.offer(&key, &[]).await, Ok(Told::Another));
    }
    well("routes that are no text").await;
    assert!(a.conditions.list().is_empty());
}
