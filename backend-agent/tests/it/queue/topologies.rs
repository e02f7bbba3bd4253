//! A cluster, and a server that sentinels know: the same queue at other addresses.

use viworks_backend_agent::command::queue::Told;
use viworks_testkit::process::eventually;
use viworks_testkit::redis::{Cluster, Own};

use super::*;

/// A call that has not come by then was lost.
const HEARD_SOON: Duration = Duration::from_secs(3);

/// A session is said, by way of whichever node has it by now.
async fn attached(instance: &Instance, key: &QueueKey, epoch: u64) -> bool {
    let said = eventually("the session is said", PATIENCE, async || {
        instance.queue.attach(key, epoch).await.ok()
    });
    said.await
}

/// Two instances do with a queue what they do.
async fn works_at(url: &str) {
    let (a, b) = (
        Instance::at(url).await.unwrap(),
        Instance::at(url).await.unwrap(),
    );
    let tenant = tenant();
    // Gateways are all over the slots.
    for n in 1..20 {
        let key = key_of(&tenant, n);
        assert_eq!(a.queue.offer(&key, &commands([1])).await, Ok(Told::Nobody));
        assert_eq!(b.queue.attach(&key, 7).await, Ok(true));
        assert_eq!(a.queue.attach(&key, 6).await, Ok(false));
        assert_eq!(a.queue.offer(&key, &commands([2])).await, Ok(Told::Another));
        let heard = async { while !b.calls.next().await.look.contains(&key.agent_id) {} };
        tokio::time::timeout(PATIENCE, heard).await.unwrap();
        let taken = b.queue.take(&key, 10, at(0)).await.unwrap();
        assert_eq!(taken, commands([1, 2]));
        b.queue.done(&key, &taken).await.unwrap();
    }
}

/// The address of a cluster by one of its nodes.
fn address_of(cluster: &Cluster) -> String {
    format!("redis-cluster://127.0.0.1:{}", cluster.place(0).port())
}

fn stream_of(key: &QueueKey) -> String {
    format!("vw:{{{}:{}}}:q", key.tenant, key.agent_id)
}

#[tokio::test]
async fn a_cluster_is_used_as_one_server_is() {
    for nodes in [1, 3] {
        let Some(cluster) = Cluster::start(nodes) else {
            return;
        };
        works_at(&address_of(&cluster)).await;
    }
}

/// An offer at one instance is told to the other one and taken there. A call is lost where the way to its node is made
/// anew at that moment; it is a hint, and given again.
async fn passes(a: &Instance, b: &Instance, key: &QueueKey, number: u128) {
    let command = commands([number]);
    eventually("it is offered, told and heard", PATIENCE, async || {
        let told = a.queue.offer(key, &command).await;
        if told != Ok(Told::Another) {
            return None;
        }
        let heard = async { while !b.calls.next().await.look.contains(&key.agent_id) {} };
        tokio::time::timeout(HEARD_SOON, heard).await.ok()
    })
    .await;
    // What was taken is not given again, and a slot that has just moved may refuse the word that it is done.
    let mut is_there = false;
    eventually("it is taken", PATIENCE, async || {
        let taken = b.queue.take(key, 10, at(0)).await.ok()?;
        is_there |= taken.contains(&command[0]);
        b.queue.done(key, &taken).await.ok()?;
        is_there.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_slot_that_moves_to_another_node_is_followed() {
    let Some(cluster) = Cluster::start(3) else {
        return;
    };
    let url = address_of(&cluster);
    let (a, b) = (
        Instance::at(&url).await.unwrap(),
        Instance::at(&url).await.unwrap(),
    );
    // One that has keys when it moves, and one that is empty by then.
    for (n, with_keys) in [(1, true), (2, false)] {
        let key = key_of(&tenant(), n);
        let stream = stream_of(&key);
        if with_keys {
            assert!(attached(&b, &key, 1).await);
            passes(&a, &b, &key, 1).await;
        }
        let from = cluster.owner(&stream);
        let moving = cluster.begin_move(&stream, (from + 1) % 3);
        if !with_keys {
            // What is not there is asked of the new one, and made there.
            assert!(attached(&b, &key, 1).await);
            // Of two keys one is there and one is not, which a cluster has tried again until it has moved.
            let offered = a.queue.offer(&key, &commands([2])).await;
            assert!(
                matches!(offered, Err(QueueError::Unavailable { .. })),
                "{offered:?}"
            );
        }
        cluster.end_move(&moving);
        assert_ne!(cluster.owner(&stream), from);
        passes(&a, &b, &key, 3).await;
        assert!(attached(&a, &key, 2).await);
        assert!(!attached(&b, &key, 1).await, "it knows the later one");
    }
}

#[tokio::test]
async fn a_node_of_a_cluster_that_is_killed_is_waited_for() {
    let Some(mut cluster) = Cluster::start(3) else {
        return;
    };
    let url = address_of(&cluster);
    let (a, b) = (
        Instance::at(&url).await.unwrap(),
        Instance::at(&url).await.unwrap(),
    );
    // Gateways of all nodes.
    let tenant = tenant();
    let keys: Vec<_> = (1..20).map(|n| key_of(&tenant, n)).collect();
    let lost = cluster.owner(&stream_of(&keys[0]));
    cluster.kill(lost);
    eventually("it is not offered", PATIENCE, async || {
        a.queue.offer(&keys[0], &commands([1])).await.err()
    })
    .await;
    cluster.start_again(lost);
    for key in &keys {
        attached(&b, key, 1).await;
        passes(&a, &b, key, 5).await;
    }
}

#[tokio::test]
async fn sentinels_are_asked_where_the_server_is() {
    let Some(mut own) = Own::start() else { return };
    let sentinel = own.start_sentinel("site-1");
    let url = |name: &str| {
        let port = sentinel.place().port();
        format!("redis-sentinel://127.0.0.1:1,127.0.0.1:{port}/{name}")
    };
    works_at(&url("site-1")).await;
    let refused = Instance::at(&url("site-2")).await;
    let error = refused.map(drop).unwrap_err();
    assert!(error.is_lasting(), "{error}");
    // One that is away is waited for, wherever that is known from.
    own.kill();
    let a = Instance::at(&url("site-1")).await.unwrap();
    own.start_again();
    assert!(a.called().await.look_everywhere);
}

#[tokio::test]
async fn a_replica_that_sentinels_promote_is_used_from_then_on() {
    let Some(mut own) = Own::start() else { return };
    let replica = own.start_replica();
    let sentinel = own.start_sentinel("site-1");
    let place = sentinel.place();
    eventually("the sentinel knows the replica", PATIENCE, async || {
        let info: String = place.ask(&["INFO", "sentinel"]).ok()?;
        info.contains("slaves=1").then_some(())
    })
    .await;
    let url = format!("redis-sentinel://127.0.0.1:{}/site-1", place.port());
    let (a, b) = (
        Instance::at(&url).await.unwrap(),
        Instance::at(&url).await.unwrap(),
    );
    let key = key_of(&tenant(), 1);
    assert_eq!(b.queue.attach(&key, 1).await, Ok(true));
    passes(&a, &b, &key, 1).await;
    own.kill();
    // What was written last may be gone, so it is said again, as it is all the time.
    eventually("the session is said to the replica", PATIENCE, async || {
        b.queue.attach(&key, 1).await.ok()
    })
    .await;
    passes(&a, &b, &key, 2).await;
    let info: String = replica.place().ask(&["INFO", "replication"]).unwrap();
    assert!(info.contains("role:master"), "{info}");
    for instance in [&a, &b] {
        assert!(instance.conditions.list().is_empty());
    }
}
