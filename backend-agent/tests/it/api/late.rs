//! What gateways say of commands that have ended without it.

use http::StatusCode;
use serde_json::{Value, json};
use viworks_backend_agent::data::{LeaseLimits, Rejected};
use viworks_common::code::RejectCode;
use viworks_common::command::{Outcome, OutcomeState};

use super::harness::{Backend, catalogue, now};

#[tokio::test]
async fn an_outcome_that_came_after_the_end_says_so() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let asked = json!({
        "command": "service.restart", "arguments": {"unit": "ssh.service"}, "targets": "all",
    });
    let answer = backend.post("/v1/runs", &asked).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let run = answer.json()["id"].as_str().unwrap().to_owned();
    let limits = LeaseLimits {
        commands: 1,
        attempts_max: 20,
    };
    let (store, tenant) = (&backend.store, &backend.tenant);
    let leased = store.lease_commands(tenant, &holder, limits, now());
    let command_id = leased.await.unwrap().commands[0].command_id;
    let shown = async || {
        let one = format!("/v1/runs/{run}/commands/{command_id}");
        let one = backend.get(&one).await.json();
        let listed = backend.get(&format!("/v1/runs/{run}/commands")).await;
        let listed = listed.json()["items"][0].clone();
        for field in ["late", "late_state"] {
            assert_eq!(one["outcome"][field], listed["outcome"][field], "{field}");
        }
        one
    };

    let rejected = Rejected {
        command_id,
        code: RejectCode::NotAllowed,
        detail: "not here".to_owned(),
        again_at: now(),
    };
    let rejected = store.reject_command(tenant, &holder, rejected, now());
    assert!(rejected.await.unwrap().unwrap().moved);
    let refused = shown().await;
    assert_eq!(refused["state"], "rejected", "{refused:#}");
    assert_eq!(refused["outcome"]["reject_code"], "not_allowed");
    let told = refused["outcome"].as_object().unwrap();
    assert!(!told.contains_key("late") && !told.contains_key("late_state"));

    // Its journal was an older one: it did run.
    let ran = Outcome {
        started_at: Some(now()),
        exit_code: Some(0),
        ..Outcome::without_run(OutcomeState::Succeeded, "")
    };
    let completed = store.complete_command(tenant, &holder, command_id, ran, now());
    completed.await.unwrap();
    let late = shown().await;
    assert_eq!(late["state"], "rejected", "{late:#}");
    assert_eq!(late["reason"], "not here");
    assert_eq!(late["outcome"]["late"], true, "{late:#}");
    assert_eq!(late["outcome"]["late_state"], "succeeded");
    assert_eq!(late["outcome"]["exit_code"], 0);
    assert_eq!(late["outcome"]["reject_code"], Value::Null);
}
