//! API keys: made, listed, revoked, run out.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::json;
use viworks_api::Scope;
use viworks_backend_agent::auth::ApiSecret;
use viworks_backend_agent::auth::apikey::{self, CreateError, CreateKey};
use viworks_backend_agent::data::{Actor, Page};

use super::harness::{Answer, Backend, now};

async fn list_gateways(backend: &Backend, secret: &str) -> Answer {
    let request = Request::get("/v1/gateways").header("authorization", format!("Bearer {secret}"));
    backend.send(request.body(Body::empty()).unwrap()).await
}

fn wanted(scopes: &[Scope]) -> CreateKey {
    CreateKey {
        name: "ci".to_owned(),
        scopes: scopes.iter().copied().collect::<BTreeSet<_>>(),
        expires_in: None,
    }
}

#[tokio::test]
async fn a_made_key_opens_what_it_names_until_it_is_revoked() {
    let backend = Backend::new().await;
    let body = json!({"name": "ci", "scopes": ["gateways:read"]});
    let answer = backend.post("/v1/apikeys", &body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let made = answer.json();
    let secret = made["secret"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("vwk_"));
    assert_eq!(
        list_gateways(&backend, &secret).await.status,
        StatusCode::OK
    );
    let keys = backend.get("/v1/apikeys").await;
    assert!(!keys.text.contains(&secret), "a list shows no secret");
    assert_eq!(keys.json()["items"][0]["id"], made["key"]["id"]);
    assert_eq!(keys.json()["items"][0]["status"], "active");
    let path = format!("/v1/apikeys/{}", made["key"]["id"].as_str().unwrap());
    let request = backend
        .request(Method::DELETE, &path)
        .body(Body::empty())
        .unwrap();
    assert_eq!(backend.send(request).await.status, StatusCode::NO_CONTENT);
    list_gateways(&backend, &secret)
        .await
        .problem(401, "VW-A-001");
    let keys = backend.get("/v1/apikeys").await.json();
    assert_eq!(keys["items"][0]["status"], "revoked");
    let audit = backend.get("/v1/audit").await.text;
    assert!(!audit.contains(&secret), "the audit trail shows no secret");
}

#[tokio::test]
async fn a_key_ends_when_its_time_is_over() {
    let backend = Backend::new().await;
    let request = CreateKey {
        expires_in: Some(Duration::from_secs(60)),
        ..wanted(&[Scope::GatewaysRead])
    };
    let actor = Actor::local("test");
    let long_ago = now().saturating_sub(Duration::from_secs(61));
    let (_key, secret) = apikey::issue(
        &*backend.store,
        &backend.tenant,
        request.clone(),
        &actor,
        long_ago,
    )
    .await
    .unwrap();
    list_gateways(&backend, secret.expose())
        .await
        .problem(401, "VW-A-001");
    let (_key, secret) = apikey::issue(&*backend.store, &backend.tenant, request, &actor, now())
        .await
        .unwrap();
    assert_eq!(
        list_gateways(&backend, secret.expose()).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_key_cannot_grant_what_it_does_not_have() {
    let backend = Backend::new().await;
    let key = backend.key_with(&[Scope::ApikeysAdmin]).await;
    let body = json!({"name": "more", "scopes": ["apikeys:admin", "runs:write"]}).to_string();
    let request = Request::post("/v1/apikeys")
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json");
    let answer = backend.send(request.body(Body::from(body)).unwrap()).await;
    let problem = answer.problem(403, "VW-A-002");
    assert!(problem["detail"].as_str().unwrap().contains("runs:write"));
}

#[tokio::test]
async fn a_key_that_makes_no_sense_is_refused_by_field() {
    let backend = Backend::new().await;
    for (body, field) in [
        (json!({"name": "", "scopes": ["runs:read"]}), "name"),
        (json!({"name": "a\nb", "scopes": ["runs:read"]}), "name"),
        (
            json!({"name": "x".repeat(65), "scopes": ["runs:read"]}),
            "name",
        ),
        (json!({"name": "x", "scopes": []}), "scopes"),
        (
            json!({"name": "x", "scopes": ["runs:read", "root"]}),
            "scopes[1]",
        ),
        (
            json!({"name": "x", "scopes": ["runs:read"], "expires_in_ms": 0}),
            "expires_in_ms",
        ),
    ] {
        let problem = backend
            .post("/v1/apikeys", &body)
            .await
            .problem(422, "VW-H-006");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
}

#[tokio::test]
async fn the_first_key_comes_in_a_private_file_that_replaces_none() {
    let backend = Backend::new().await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("admin.key");
    let actor = Actor::local("root");
    let make = || {
        let request = wanted(&[Scope::GatewaysRead]);
        apikey::create(
            &*backend.store,
            &backend.tenant,
            request,
            &actor,
            &out,
            now(),
        )
    };
    let key = make().await.unwrap();
    let mode = std::fs::metadata(&out).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(ApiSecret::parse(text.trim_end()).is_some());
    assert_eq!(
        list_gateways(&backend, text.trim_end()).await.status,
        StatusCode::OK
    );
    assert!(matches!(make().await, Err(CreateError::Write { .. })));
    assert_eq!(std::fs::read_to_string(&out).unwrap(), text);
    let all = Page::first(1_000);
    let keys = apikey::list(&*backend.store, &backend.tenant, all, now())
        .await
        .unwrap()
        .items;
    assert_eq!(keys.iter().filter(|listed| listed.name == "ci").count(), 1);
    assert!(keys.iter().any(|listed| listed.id == key.id));
}

#[tokio::test]
async fn a_key_that_cannot_be_stored_leaves_no_file() {
    let backend = Backend::new().await;
    backend.store.close().await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("admin.key");
    let made = apikey::create(
        &*backend.store,
        &backend.tenant,
        wanted(&[Scope::GatewaysRead]),
        &Actor::local("root"),
        &out,
        now(),
    )
    .await;
    assert!(matches!(made, Err(CreateError::Store(_))), "{made:?}");
    assert!(!out.exists());
}

#[tokio::test]
async fn a_validity_of_nothing_or_beyond_ten_years_is_refused() {
    let backend = Backend::new().await;
    for expires_in_ms in [0, 315_360_000_001, u64::MAX] {
        let body = json!({"name": "x", "scopes": ["runs:read"], "expires_in_ms": expires_in_ms});
        let problem = backend
            .post("/v1/apikeys", &body)
            .await
            .problem(422, "VW-H-006");
        assert_eq!(problem["errors"][0]["field"], "expires_in_ms");
    }
    let body = json!({"name": "x", "scopes": ["runs:read"], "expires_in_ms": 315_360_000_000_u64});
    assert_eq!(backend.post("/v1/apikeys", &body).await.status, 201);
}

#[tokio::test]
async fn a_key_cannot_revoke_what_is_stronger_nor_make_what_outlives_it() {
    let backend = Backend::new().await;
    let weak = CreateKey {
        expires_in: Some(Duration::from_secs(3_600)),
        ..wanted(&[Scope::ApikeysAdmin, Scope::RunsRead])
    };
    let actor = Actor::local("test");
    let (own, secret) = apikey::issue(&*backend.store, &backend.tenant, weak, &actor, now())
        .await
        .unwrap();
    let ask = async |method: Method, path: String, body: String| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", secret.expose()))
            .header("content-type", "application/json");
        backend.send(request.body(Body::from(body)).unwrap()).await
    };
    let listed = backend.get("/v1/apikeys").await.json();
    let strong = listed["items"].as_array().unwrap().last().unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let answer = ask(
        Method::DELETE,
        format!("/v1/apikeys/{strong}"),
        String::new(),
    )
    .await;
    answer.problem(403, "VW-A-002");
    assert_eq!(
        backend.get("/v1/gateways").await.status,
        200,
        "it still opens"
    );
    // Nor one that may do the same for longer; each refusal leaves a record.
    let equal = wanted(&[Scope::ApikeysAdmin, Scope::RunsRead]);
    let (endless, _secret) = apikey::issue(&*backend.store, &backend.tenant, equal, &actor, now())
        .await
        .unwrap();
    let path = format!("/v1/apikeys/{}", endless.id);
    let answer = ask(Method::DELETE, path, String::new()).await;
    answer.problem(403, "VW-A-002");
    let audit = backend.get("/v1/audit").await.json();
    let refused = |record: &serde_json::Value| {
        record["action"] == "api_key.revoke" && record["outcome"] == "refused"
    };
    let records = audit["items"].as_array().unwrap();
    assert!(records.iter().any(refused), "{audit:#}");
    for (expires_in_ms, status) in [(None, 403), (Some(7_200_000), 403), (Some(60_000), 201)] {
        let body = json!({"name": "x", "scopes": ["runs:read"], "expires_in_ms": expires_in_ms});
        let answer = ask(Method::POST, "/v1/apikeys".to_owned(), body.to_string()).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    // What is not stronger it may revoke, itself included.
    let answer = ask(
        Method::DELETE,
        format!("/v1/apikeys/{}", own.id),
        String::new(),
    )
    .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text);
}
