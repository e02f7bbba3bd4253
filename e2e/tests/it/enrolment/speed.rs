//! How long it takes from the wish for a ticket to the first answer of the gateway that comes of it.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;
use viworks_testkit::deployment::Start;

use super::{backend, folder, good_for, ticket};

/// Machines, one after another: one that the computer had no time for says nothing about the others.
const MACHINES: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_ticket_to_the_first_answer_takes_less_than_three_seconds() {
    let system = backend().await;
    let mut took = Vec::new();
    for n in 1..=MACHINES {
        let name = format!("gw-{n}");
        let begun = Instant::now();
        let ticket = ticket(&system, &json!({"uses": 1})).await;
        good_for(&system, &name, &ticket).await;
        let enrolled = begun.elapsed();
        let _gateway = system.start_gateway(&folder(&system, &name), Start::default());
        system.online(&name).await;
        let connected = begun.elapsed();
        let body = json!({"command": "gateway.info", "targets": {"gateways": [name]}});
        let run = system.post("/v1/runs", &body).await;
        let run = system.finished(run["id"].as_str().unwrap()).await;
        assert_eq!(run["counts"]["succeeded"], 1, "{run}");
        took.push((begun.elapsed(), enrolled, connected));
    }
    took.sort_unstable();
    eprintln!("answered, enrolled, connected after: {took:?}");
    let median = took[MACHINES / 2].0;
    assert!(median < Duration::from_secs(3), "{took:?}");
}
