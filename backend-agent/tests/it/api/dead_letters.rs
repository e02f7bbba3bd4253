//! Commands that could not be delivered: who may look at them, retry them and discard them.

use http::StatusCode;
use serde_json::{Value, json};
use viworks_api::Scope;
use viworks_backend_agent::data::Actor;
use viworks_common::id::AgentId;

use super::harness::{Backend, catalogue, now};

const RESTART: &str = "service.restart";

/// A restart that has died on the way to `gw-1`, and its gateway.
async fn bed() -> (Backend, AgentId, String) {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let body = json!({
        "command": RESTART, "arguments": {"unit": "ssh"}, "targets": "all",
        "deadline_ms": 90_000, "timeout_ms": 4_000, "reason": "a new key",
    });
    let answer = backend.post("/v1/runs", &body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let dead = backend.kill_queued(&holder).await;
    let [dead] = &dead[..] else {
        panic!("{dead:?}")
    };
    (backend, holder.agent_id, format!("/v1/dead-letters/{dead}"))
}

async fn actions(backend: &Backend, object: &str) -> Vec<Value> {
    let audit = backend.get("/v1/audit").await.json();
    let records = audit["items"].as_array().unwrap();
    records
        .iter()
        .filter(|record| record["object"] == object)
        .map(|record| record["action"].clone())
        .collect()
}

#[tokio::test]
async fn a_retry_is_a_run_of_its_own_that_knows_what_it_is_for() {
    let (backend, _gateway, path) = bed().await;
    let letter = backend.get(&path).await.json();
    assert_eq!(letter["state"], "open");
    assert_eq!(letter["gateway"]["name"], "gw-1");
    assert_eq!(letter["arguments"], json!({"unit": "ssh"}));
    let first = letter["run_id"].as_str().unwrap();
    let answer = backend.post_text(&format!("{path}/retry"), "", &[]).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let run = answer.json();
    let id = run["id"].as_str().unwrap();
    assert_eq!(answer.header("location"), format!("/v1/runs/{id}"));
    assert_ne!(id, first);
    assert_eq!(run["retry_of"], letter["id"]);
    let before = backend.get(&format!("/v1/runs/{first}")).await.json();
    assert_eq!(before["retry_of"], Value::Null);
    assert!(run["created_by_name"].is_string(), "{run}");
    for same in ["command", "arguments", "reason", "created_by_name"] {
        assert_eq!(run[same], before[same], "{same}");
    }
    assert!(run["deadline"].as_str() > before["deadline"].as_str());
    let commands = format!("/v1/runs/{id}/commands");
    let command = backend.get(&commands).await.json()["items"][0].clone();
    assert_eq!(
        (&command["state"], &command["timeout_ms"]),
        (&json!("queued"), &json!(4_000))
    );
    // The same again is the same run.
    let again = backend.post_text(&format!("{path}/retry"), "", &[]).await;
    assert_eq!(again.status, StatusCode::OK, "{}", again.text);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.json()["id"], run["id"]);
    let runs = backend.get("/v1/runs").await.json();
    assert_eq!(runs["items"].as_array().unwrap().len(), 2);
    let letter = backend.get(&path).await.json();
    assert_eq!(letter["state"], "retried");
    assert_eq!(letter["retry_run_id"], run["id"]);
    assert_eq!(letter["resolved_by"], run["created_by"]);
    assert_eq!(letter["resolved_by_name"], run["created_by_name"]);
    let refused = backend.post_text(&format!("{path}/discard"), "", &[]).await;
    let problem = refused.problem(409, "VW-N-002");
    let shows = format!("viworks runs show {}", run["id"].as_str().unwrap());
    assert!(problem["fix"].to_string().contains(&shows), "{problem:#}");
    let object = format!("command:{}", letter["id"].as_str().unwrap());
    assert_eq!(
        actions(&backend, &object).await,
        ["dead_letter.retry", "command.end"]
    );
}

#[tokio::test]
async fn a_retry_needs_what_the_submission_needed() {
    let (backend, _gateway, path) = bed().await;
    let retry = format!("{path}/retry");
    let as_key = async |scopes: &[Scope], path: &str| {
        let key = format!("Bearer {}", backend.key_with(scopes).await);
        let request = http::Request::post(path).header("authorization", key);
        backend
            .send(request.body(axum::body::Body::empty()).unwrap())
            .await
    };
    for scopes in [&[Scope::RunsRead][..], &[Scope::RunsWrite]] {
        as_key(scopes, &retry).await.problem(403, "VW-A-002");
    }
    let discard = format!("{path}/discard");
    as_key(&[Scope::RunsRead], &discard)
        .await
        .problem(403, "VW-A-002");
    assert_eq!(backend.get(&path).await.json()["state"], "open");
    let both = [Scope::RunsWrite, Scope::RunsWriteChange];
    assert_eq!(as_key(&both, &retry).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_gateway_that_takes_it_no_more_leaves_it_open_and_a_retry_that_was_made_stands() {
    for is_made in [true, false] {
        let (backend, gateway, path) = bed().await;
        let retry = format!("{path}/retry");
        if is_made {
            let made = backend.post_text(&retry, "", &[]).await;
            assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        }
        let actor = Actor::local("test");
        let revoked = backend
            .store
            .revoke_gateway(&backend.tenant, gateway, None, &actor, now());
        revoked.await.unwrap().unwrap();
        let answer = backend.post_text(&retry, "", &[]).await;
        let state = backend.get(&path).await.json()["state"].clone();
        if is_made {
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
            assert_eq!(state, "retried");
        } else {
            answer.problem(422, "VW-C-004");
            assert_eq!(state, "open");
        }
    }
}

#[tokio::test]
async fn what_is_discarded_is_listed_only_when_asked_for_and_not_retried() {
    let (backend, _gateway, path) = bed().await;
    backend.connect("gw-2", catalogue()).await;
    let listed = async |query: &str| {
        let list = backend
            .get(&format!("/v1/dead-letters{query}"))
            .await
            .json();
        list["items"].as_array().unwrap().len()
    };
    assert_eq!(listed("").await, 1);
    assert_eq!(listed("?gateway=gw-1").await, 1);
    assert_eq!(listed("?gateway=gw-2&resolved=true").await, 0);
    for _ in 0..2 {
        let answer = backend.post_text(&format!("{path}/discard"), "", &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let letter = answer.json();
        assert_eq!(letter["state"], "discarded");
        assert!(
            letter["resolved_by"]
                .as_str()
                .unwrap()
                .starts_with("api_key:")
        );
        assert_eq!(letter["resolved_by_name"], "test", "{letter}");
    }
    assert_eq!(listed("").await, 0);
    assert_eq!(listed("?resolved=true").await, 1);
    assert_eq!(listed("?gateway=gw-1&resolved=true").await, 1);
    let refused = backend.post_text(&format!("{path}/retry"), "", &[]).await;
    let problem = refused.problem(409, "VW-N-002");
    let fix = problem["fix"].to_string();
    assert!(fix.contains("viworks dlq show "), "{problem:#}");
    let runs = backend.get("/v1/runs").await.json();
    assert_eq!(runs["items"].as_array().unwrap().len(), 1);
}
