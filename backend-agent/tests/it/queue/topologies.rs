//! A cluster, and a server that sentinels know: the same queue at other addresses.

use viworks_backend_agent::command::queue::Told;
use viworks_testkit::redis::Own;

use super::*;

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

#[tokio::test]
async fn a_cluster_is_used_as_one_server_is() {
    let Some(own) = Own::start_cluster() else {
        return;
    };
    works_at(&format!("redis-cluster://127.0.0.1:{}", own.place().port())).await;
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
