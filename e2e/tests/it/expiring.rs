//! Certificates that end soon: listed, counted by the time that is left, and told apart by whether they are renewed.

use serde_json::Value;
use viworks_testkit::deployment::{PATIENCE, Start};
use viworks_testkit::process::eventually;

use super::desk::Desk;

fn names(list: &Value) -> Vec<&str> {
    let gateways = list["items"].as_array().unwrap().iter();
    let mut names: Vec<&str> = gateways
        .map(|gateway| gateway["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_end_soon_are_listed_with_the_reason_and_counted() {
    let mut desk = Desk::that_speaks("", Start::default()).await;
    let mut away = desk.gateways.pop().unwrap();
    assert!(away.stop(PATIENCE).await.success());
    eventually("the other one is away", PATIENCE, async || {
        let gateway = desk.system.get("/v1/gateways/gw-2").await;
        (gateway["status"] == "offline").then_some(())
    })
    .await;

    // They live for 90 days, and whoever is connected renews by itself.
    let within = |time| ["gateway", "ls", "--expires-within", time];
    let all = desk.json(&within("100d"), 0).await;
    assert_eq!(names(&all), ["gw-1", "gw-2"], "{all:#}");
    let none = desk.json(&within("80d"), 0).await;
    assert!(names(&none).is_empty(), "{none:#}");
    let expiring = ["gateway", "expiring", "--within", "100d"];
    let left = desk.json(&expiring, 0).await;
    assert_eq!(names(&left), ["gw-2"], "{left:#}");
    let told = desk.run(&expiring).await.ended_with(0);
    assert!(told.stdout.contains("it is away"), "{told:#?}");
    let counted = "1 certificate that ends within 100";
    assert!(told.stderr.contains(counted), "{told:#?}");
    let soon = desk.json(&["gateway", "expiring"], 0).await;
    assert!(names(&soon).is_empty(), "{soon:#}");

    eventually("both are counted", PATIENCE, async || {
        let metrics = desk.system.request("GET", "/metrics", None).await;
        let (_status, metrics) = metrics.ok()?;
        let metrics = metrics.as_str()?;
        let lines = [
            "viworks_gateway_certificates{left=\"more\"} 2",
            "viworks_gateway_certificates{left=\"30d\"} 0",
            "viworks_gateway_key_generations{generation=\"1\"} 2",
        ];
        lines
            .iter()
            .all(|line| metrics.lines().any(|it| it == *line))
            .then_some(())
    })
    .await;
}
