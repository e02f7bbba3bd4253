//! The audit trail as an operator searches it, and whom it names.

use serde_json::{Value, json};

use super::harness::{Backend, catalogue};

fn actions(list: &Value) -> Vec<&str> {
    let records = list["items"].as_array().unwrap().iter();
    records
        .map(|record| record["action"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn records_are_found_by_whom_and_what_they_are_about() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    backend.submit_uptime().await;
    backend.register("gw-2").await;
    let body = json!({"reason": "stolen"});
    let revoked = backend.post("/v1/gateways/gw-2/revoke", &body).await;
    assert!(revoked.status.is_success(), "{}", revoked.text);
    let revoke = vec!["gateway.revoke"];
    for (query, expected) in [
        ("gateway=gw-2&action=gateway.revoke", revoke.clone()),
        ("object=gw-2&action=gateway&actor=test", revoke.clone()),
        ("actor=test&action=run", vec!["run.submit"]),
        ("gateway=gw-1&action=gateway.revoke", vec![]),
        ("action=gateway.rev", vec![]),
        ("action=gateway.revoke&outcome=done", revoke.clone()),
        ("action=gateway.revoke&outcome=refused", vec![]),
        ("action=gateway.revoke&since=2000-01-01T00:00:00Z", revoke),
        ("since=2200-01-01T00:00:00Z", vec![]),
    ] {
        let list = backend.get(&format!("/v1/audit?{query}")).await.json();
        assert_eq!(actions(&list), expected, "{query}: {list:#}");
        assert_eq!(list["next"], Value::Null, "{query}: {list:#}");
    }
    let of_it = format!("/v1/audit?gateway={}", holder.agent_id);
    let list = backend.get(&of_it).await.json();
    assert_eq!(list, backend.get("/v1/audit?gateway=gw-1").await.json());
    assert!(!actions(&list).is_empty(), "{list:#}");

    let missing = backend.get("/v1/audit?gateway=gw-9").await;
    missing.problem(404, "VW-N-001");
    let long = format!("action={}", "x".repeat(257));
    for (query, field) in [
        ("actor=", "actor"),
        ("object=", "object"),
        (long.as_str(), "action"),
        ("action=gateway.", "action"),
        ("action=gateway.*", "action"),
        ("action=Gateway", "action"),
        ("outcome=well", "outcome"),
        ("since=yesterday", "since"),
    ] {
        let answer = backend.get(&format!("/v1/audit?{query}")).await;
        let problem = answer.problem(422, "VW-H-007");
        assert_eq!(problem["errors"][0]["field"], field, "{query}: {problem}");
    }
}

#[tokio::test]
async fn a_ticket_names_the_key_that_made_it() {
    let backend = Backend::new().await;
    let made = backend.post("/v1/tickets", &json!({"uses": 1})).await;
    assert!(made.status.is_success(), "{}", made.text);
    let made = made.json();
    assert_eq!(made["ticket"]["created_by_name"], "test", "{made:#}");
    let path = format!("/v1/tickets/{}", made["ticket"]["id"].as_str().unwrap());
    let shown = backend.get(&path).await.json();
    assert_eq!(shown, made["ticket"]);
    let listed = backend.get("/v1/tickets").await.json();
    assert_eq!(listed["items"][0], shown);
}
