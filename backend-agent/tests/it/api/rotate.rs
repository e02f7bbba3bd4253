//! Giving a gateway another key: asked for once, told to its session, and recorded.

use http::StatusCode;
use serde_json::json;

use super::harness::Backend;

const PATH: &str = "/v1/gateways/gw-1/rotate-key";

#[tokio::test]
async fn a_key_that_is_asked_for_twice_is_asked_for_once_and_its_session_is_told_again() {
    let backend = Backend::new().await;
    let agent_id = backend.register("gw-1").await;
    let shown = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(shown["key"], json!({ "generation": 1 }));
    for _asked in 0..2 {
        let answer = backend.post_text(PATH, "", &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let told = answer.json();
        assert_eq!(told["wanted"], 2);
        assert_eq!(
            told["gateway"]["key"],
            json!({ "generation": 1, "wanted": 2 })
        );
    }
    // If the first answer was lost between database and backend, the session was not told.
    assert_eq!(*backend.nudges.rekeyed.lock().unwrap(), [(agent_id, 2); 2]);
    let audit = backend.get("/v1/audit").await.json();
    let records = audit["items"].as_array().unwrap().iter();
    let records: Vec<_> = records
        .filter(|record| record["action"] == "gateway.rotate_key")
        .collect();
    let [record] = &records[..] else {
        panic!("{records:#?}")
    };
    assert_eq!(record["detail"], json!({ "generation": 2, "before": 1 }));
    assert!(record["request_id"].is_string(), "{record:#}");
}

#[tokio::test]
async fn nobody_who_is_revoked_or_unknown_gets_a_key() {
    let backend = Backend::new().await;
    backend.register("gw-1").await;
    let body = json!({ "reason": "stolen" });
    backend.post("/v1/gateways/gw-1/revoke", &body).await;
    let problem = backend.post_text(PATH, "", &[]).await;
    let told = problem.problem(409, "VW-N-002");
    let (detail, fix) = (told["detail"].to_string(), told["fix"].to_string());
    assert!(detail.contains("gw-1 is revoked"), "{detail}");
    assert!(fix.contains("viworks gateway replace gw-1"), "{fix}");
    let unknown = "/v1/gateways/gw-2/rotate-key";
    backend
        .post_text(unknown, "", &[])
        .await
        .problem(404, "VW-N-001");
    assert!(backend.nudges.rekeyed.lock().unwrap().is_empty());
}
