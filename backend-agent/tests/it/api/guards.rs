//! Every endpoint and every scope; and what every answer carries.

use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::json;
use viworks_api::Scope;
use viworks_backend_agent::api::{Access, Endpoint, endpoints};
use viworks_common::rate::Quota;
use viworks_runtime::conditions::Severity;

use super::harness::Backend;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

/// A request that the endpoint's guard sees; what comes behind the guard does not matter here.
fn request(endpoint: &Endpoint, key: Option<&str>) -> Request<Body> {
    let path = endpoint
        .path
        .split('/')
        .map(|part| if part.starts_with('{') { "0" } else { part })
        .collect::<Vec<_>>()
        .join("/");
    let mut request = Request::builder().method(endpoint.method.clone()).uri(path);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    request.body(Body::empty()).unwrap()
}

fn guarded() -> Vec<(Endpoint, Scope)> {
    endpoints()
        .into_iter()
        .filter_map(|endpoint| match endpoint.access {
            Access::Public => None,
            Access::Scope(scope) => Some((endpoint, scope)),
        })
        .collect()
}

#[tokio::test]
async fn no_guarded_endpoint_answers_without_a_credential() {
    let backend = Backend::new().await;
    let unknown = viworks_backend_agent::auth::ApiSecret::from_random(&[9; 32]);
    assert!(guarded().len() > 15);
    for (endpoint, _scope) in guarded() {
        for key in [None, Some(unknown.expose()), Some("vwk_1"), Some("")] {
            let answer = backend.send(request(&endpoint, key)).await;
            answer.problem(401, "VW-A-001");
            assert!(
                answer.header("www-authenticate").starts_with("Bearer"),
                "{endpoint:?}"
            );
        }
    }
}

#[tokio::test]
async fn no_guarded_endpoint_answers_to_all_other_scopes_together() {
    let backend = Backend::new().await;
    for (endpoint, scope) in guarded() {
        let others: Vec<_> = Scope::ALL
            .iter()
            .copied()
            .filter(|other| *other != scope)
            .collect();
        let key = backend.key_with(&others).await;
        let answer = backend.send(request(&endpoint, Some(&key))).await;
        let problem = answer.problem(403, "VW-A-002");
        assert!(
            problem["detail"].as_str().unwrap().contains(scope.name()),
            "{endpoint:?}"
        );
    }
}

#[tokio::test]
async fn every_guarded_endpoint_answers_to_its_scope_alone() {
    let backend = Backend::new().await;
    for (endpoint, scope) in guarded() {
        let key = backend.key_with(&[scope]).await;
        let answer = backend.send(request(&endpoint, Some(&key))).await;
        let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        assert!(
            !refused.contains(&answer.status),
            "{endpoint:?}: {}",
            answer.text
        );
    }
}

#[tokio::test]
async fn every_scope_opens_something() {
    let used: Vec<_> = guarded()
        .into_iter()
        .map(|(_endpoint, scope)| scope)
        .collect();
    for scope in Scope::ALL {
        // These two come on top of `runs:write`, by the risk of the command.
        let by_risk = matches!(scope, Scope::RunsWriteChange | Scope::RunsWriteDanger);
        assert!(by_risk || used.contains(scope), "{scope}");
    }
}

#[tokio::test]
async fn probes_and_the_description_are_public() {
    let backend = Backend::new().await;
    for path in ["/livez", "/readyz", "/startupz", "/openapi.json"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(backend.send(request).await.status, StatusCode::OK, "{path}");
    }
    backend
        .readiness
        .latch("agents")
        .set(false, "not listening");
    for (path, status) in [("/livez", 200), ("/readyz", 503), ("/startupz", 503)] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = backend.send(request).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        // A name tells whoever balances load what it is about; what it means takes a key.
        assert_eq!(answer.text.contains("agents"), status == 503, "{path}");
        assert!(!answer.text.contains("not listening"), "{path}: {}", answer.text);
    }
    let (name, cause) = ("agents.socket", "the address 192.0.2.7 is not there");
    backend.conditions.raise(name, Severity::Fail, cause, "add it");
    let request = Request::get("/readyz").body(Body::empty()).unwrap();
    let wanted = json!({"status": "not_ready", "reasons": [name]});
    assert_eq!(backend.send(request).await.json(), wanted);
}

#[tokio::test]
async fn the_description_is_the_committed_one_and_guards_every_operation() {
    let document = viworks_backend_agent::api::openapi::document();
    if viworks_runtime::config::environment().get("VIWORKS_GOLDEN") == Some("write") {
        std::fs::write(GOLDEN, &document).unwrap();
    }
    let committed = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    assert!(
        document == committed,
        "docs/openapi.json is not what the code describes; VIWORKS_GOLDEN=write writes it"
    );
    let api: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(api["openapi"], "3.1.0");
    for endpoint in endpoints() {
        let method = endpoint.method.as_str().to_lowercase();
        let operation = &api["paths"][&endpoint.path][&method];
        let expected = match endpoint.access {
            Access::Public => serde_json::json!([]),
            Access::Scope(scope) => serde_json::json!([{"apiKey": [scope.name()]}]),
        };
        assert_eq!(operation["security"], expected, "{endpoint:?}");
    }
}

#[tokio::test]
async fn every_answer_names_its_request_and_is_not_to_be_stored() {
    let backend = Backend::new().await;
    for path in ["/livez", "/v1/gateways", "/nowhere"] {
        let request = backend
            .request(Method::GET, path)
            .header("x-request-id", "client-7.a_B");
        let answer = backend.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.header("x-request-id"), "client-7.a_B");
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("x-frame-options"), "DENY");
        assert_eq!(answer.header("referrer-policy"), "no-referrer");
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    }
    for id in ["a b", "<script>", &"x".repeat(65), ""] {
        let request = backend
            .request(Method::GET, "/livez")
            .header("x-request-id", id);
        let answer = backend.send(request.body(Body::empty()).unwrap()).await;
        assert!(answer.header("x-request-id").starts_with("req_"), "{id:?}");
    }
}

#[tokio::test]
async fn a_refused_request_is_in_the_audit_trail() {
    let backend = Backend::new().await;
    let key = backend.key_with(&[Scope::RunsRead]).await;
    let request = Request::get("/v1/gateways")
        .header("authorization", format!("Bearer {key}"))
        .header("x-request-id", "refused-1");
    backend
        .send(request.body(Body::empty()).unwrap())
        .await
        .problem(403, "VW-A-002");
    let audit = backend.get("/v1/audit?limit=1").await.json();
    let record = &audit["items"][0];
    assert_eq!(record["outcome"], "refused", "{audit}");
    assert_eq!(record["request_id"], "refused-1");
    assert_eq!(record["object"], "scope:gateways:read");
}

#[tokio::test]
async fn every_guarded_endpoint_says_what_its_key_has_left_and_stops_there() {
    let quota = Quota {
        per_minute: 1,
        burst: 1,
    };
    let backend = Backend::with(|limits, _queue| limits.quota = quota).await;
    for (endpoint, scope) in guarded() {
        let key = backend.key_with(&[scope]).await;
        let first = backend.send(request(&endpoint, Some(&key))).await;
        assert_ne!(first.status, StatusCode::TOO_MANY_REQUESTS, "{endpoint:?}");
        assert_eq!(
            first.header("ratelimit"),
            "\"burst\";r=0;t=60",
            "{endpoint:?}"
        );
        assert!(
            first
                .header("ratelimit-policy")
                .starts_with("\"key\";q=1;w=60")
        );
        let second = backend.send(request(&endpoint, Some(&key))).await;
        second.problem(429, "VW-H-011");
        let wait: u64 = second.header("retry-after").parse().unwrap();
        assert!((1..=60).contains(&wait), "{endpoint:?}: {wait}");
        // Another key is not concerned.
        let other = backend.key_with(&[scope]).await;
        let answer = backend.send(request(&endpoint, Some(&other))).await;
        assert_ne!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{endpoint:?}");
    }
}
