//! The description as a contract: it has the operations that there are, and every status that one declares is reached.

use std::collections::BTreeSet;

use axum::body::Body;
use http::{Method, Request};
use serde_json::{Value, json};
use viworks_api::Scope;
use viworks_backend_agent::api::{Access, endpoints};
use viworks_backend_agent::data::Holder;
use viworks_common::pin::SpkiPin;
use viworks_common::rate::Quota;

use super::harness::{Backend, catalogue, now};
use super::{declared, full_disk};

/// A request for an operation whose path and body are the document's examples.
fn plain(backend: &Backend, method: &Method, template: &str, operation: &Value) -> Asked {
    let parameters = operation["parameters"].as_array();
    let mut path = template.to_owned();
    let mut needs_gateway = false;
    for parameter in parameters.into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap();
        if parameter["in"] == "path" {
            let example = parameter["example"].as_str().unwrap();
            path = path.replace(&format!("{{{name}}}"), example);
        }
        needs_gateway |= parameter["in"] == "query" && name == "gateway";
    }
    let body = operation.pointer("/requestBody/content/application~1json/example");
    Asked {
        method: method.clone(),
        path,
        query: if needs_gateway {
            "gateway=gw-none".to_owned()
        } else {
            String::new()
        },
        key: Some(backend.key().to_owned()),
        media_type: "application/json",
        headers: &[],
        body: body.map(Value::to_string).unwrap_or_default(),
    }
}

#[derive(Clone)]
struct Asked {
    method: Method,
    path: String,
    query: String,
    key: Option<String>,
    media_type: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: String,
}

impl Asked {
    async fn send(self, backend: &Backend) -> u16 {
        let mut request = Request::builder()
            .method(self.method)
            .uri(format!("{}?{}", self.path, self.query))
            .header("content-type", self.media_type);
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        if let Some(key) = self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Body::from(self.body)).unwrap();
        backend.send(request).await.status.as_u16()
    }
}

/// What no operation takes, whatever it does with it.
const ODD: &[(&[(&str, &str)], u16)] = &[
    (&[("host", "a"), ("host", "a")], 400),
    (&[("host", "a"), ("host", "b")], 400),
    (&[("host", "a, b")], 400),
    (&[("host", "user@a")], 400),
    (
        &[("transfer-encoding", "chunked"), ("content-length", "3")],
        400,
    ),
    (&[("content-encoding", "gzip")], 415),
    (&[("content-encoding", "identity, zstd")], 415),
    (
        &[("content-encoding", "identity"), ("content-encoding", "br")],
        415,
    ),
];

/// What the guard and the readers of input refuse, the same at every operation.
async fn refusals(backend: &Backend) {
    for (method, path, operation) in declared::operations() {
        let good = plain(backend, &method, path, operation);
        let unknown = Asked {
            query: "no_such_parameter=1".to_owned(),
            ..good.clone()
        };
        assert_eq!(unknown.send(backend).await, 422, "{path}");
        for (headers, status) in ODD {
            let odd = Asked {
                headers,
                ..good.clone()
            };
            assert_eq!(odd.send(backend).await, *status, "{path} {headers:?}");
        }
        if operation["security"] != json!([]) {
            let anonymous = Asked {
                key: None,
                ..good.clone()
            };
            assert_eq!(anonymous.send(backend).await, 401, "{path}");
            let scope = operation["security"][0]["apiKey"][0].as_str().unwrap();
            let others: Vec<_> = Scope::ALL
                .iter()
                .copied()
                .filter(|other| other.name() != scope)
                .collect();
            let weak = Asked {
                key: Some(backend.key_with(&others).await),
                ..good.clone()
            };
            assert_eq!(weak.send(backend).await, 403, "{path}");
        }
        if operation.get("requestBody").is_some() {
            for (media_type, body, status) in [
                ("application/json", "{".to_owned(), 400),
                ("application/json", " ".repeat(3_000_000), 413),
                ("text/plain", "{}".to_owned(), 415),
                ("application/json", "{}".to_owned(), 422),
            ] {
                let bad = Asked {
                    media_type,
                    body,
                    ..good.clone()
                };
                assert_eq!(bad.send(backend).await, status, "{path}");
            }
        }
        if operation["responses"].get("404").is_some() {
            assert_eq!(good.send(backend).await, 404, "{path}");
        }
    }
}

/// Every operation that needs a key, with a good request: what a fault behind the guard makes of it.
async fn guarded(backend: &Backend, expected: u16) {
    for (method, path, operation) in declared::operations() {
        if operation["security"] != json!([]) {
            let good = plain(backend, &method, path, operation);
            assert_eq!(good.send(backend).await, expected, "{path}");
        }
    }
}

async fn successes(backend: &Backend) {
    let holder = backend.connect("gw-1", catalogue()).await;
    for path in [
        "/livez",
        "/readyz",
        "/startupz",
        "/openapi.json",
        "/metrics",
    ] {
        assert_eq!(backend.get(path).await.status, 200, "{path}");
    }
    let body = json!({"command": "sys.uptime", "targets": "all"});
    let key = [("idempotency-key", "contract")];
    for status in [201, 200] {
        let answer = backend.post_text("/v1/runs", body.to_string(), &key).await;
        assert_eq!(answer.status, status, "{}", answer.text);
    }
    let answer = backend.post("/v1/runs?wait_ms=1", &body).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let run = backend.get("/v1/runs").await.json()["items"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let commands = backend
        .get(&format!("/v1/runs/{run}/commands"))
        .await
        .json();
    let command = commands["items"][0]["id"].as_str().unwrap();
    let cancel = format!("/v1/runs/{run}/cancel");
    assert_eq!(backend.post_text(&cancel, "", &[]).await.status, 200);
    dead_letters(backend, &holder).await;
    let made = backend
        .post(
            "/v1/apikeys",
            &json!({"name": "x", "scopes": ["runs:read"]}),
        )
        .await;
    assert_eq!(made.status, 201, "{}", made.text);
    let ticket = backend.post("/v1/tickets", &json!({"uses": 1})).await;
    assert_eq!(ticket.status, 201, "{}", ticket.text);
    let replace = json!({"expires_in_ms": 60_000});
    let place = backend.post("/v1/gateways/gw-1/replace", &replace).await;
    assert_eq!(place.status, 201, "{}", place.text);
    let ticket = ticket.json()["ticket"]["id"].as_str().unwrap().to_owned();
    let ticket = format!("/v1/tickets/{ticket}");
    pins(backend).await;
    for path in [
        "/v1/pins".to_owned(),
        "/v1/authorities".to_owned(),
        "/v1/tickets".to_owned(),
        ticket.clone(),
        "/v1/health".to_owned(),
        "/v1/gateways".to_owned(),
        format!("/v1/gateways/{}", holder.agent_id),
        format!("/v1/gateways/{}/forks", holder.agent_id),
        format!("/v1/gateways/{}/orphans", holder.agent_id),
        format!("/v1/runs/{run}"),
        format!("/v1/runs/{run}/skipped"),
        format!("/v1/runs/{run}/commands/{command}"),
        format!("/v1/runs/{run}/wait"),
        format!("/v1/runs/{run}/events"),
        "/v1/telemetry?gateway=gw-1".to_owned(),
        "/v1/telemetry/streams?gateway=gw-1".to_owned(),
        "/v1/telemetry/gaps?gateway=gw-1".to_owned(),
        "/v1/telemetry/refusals?gateway=gw-1".to_owned(),
        "/v1/catalogue".to_owned(),
        "/v1/catalogue/sys.uptime".to_owned(),
        "/v1/audit".to_owned(),
        "/v1/apikeys".to_owned(),
    ] {
        assert_eq!(backend.get(&path).await.status, 200, "{path}");
    }
    assert_eq!(backend.delete(&ticket).await.status, 204);
    let key = made.json()["key"]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        backend.delete(&format!("/v1/apikeys/{key}")).await.status,
        204
    );
    let body = json!({"command": "sys.uptime", "targets": "all", "expect_targets": 7});
    assert_eq!(backend.post("/v1/runs", &body).await.status, 409);
    assert_eq!(backend.post("/v1/runs/plan", &body).await.status, 409);
    let body = json!({"command": "sys.uptime", "targets": "all"});
    assert_eq!(backend.post("/v1/runs/plan", &body).await.status, 200);
    let gateway = backend.register("gw-2").await;
    let fingerprint = backend.certify(gateway, 7).await;
    let list = backend.get("/v1/gateways/gw-2/certificates").await;
    assert_eq!(list.status, 200, "{}", list.text);
    let rotate = "/v1/gateways/gw-2/rotate-key";
    assert_eq!(backend.post_text(rotate, "", &[]).await.status, 200);
    let body = json!({"reason": "stolen"});
    let path = format!("/v1/gateways/gw-2/certificates/{fingerprint}/revoke");
    let revoked = backend.post(&path, &body).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text);
    let revoked = backend.post("/v1/gateways/gw-2/revoke", &body).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text);
    let none = json!({"replace": true});
    let none = backend.post("/v1/gateways/gw-2/forks/resolve", &none).await;
    assert_eq!(none.status, 409, "{}", none.text);
    let second = backend.second_holder(holder.agent_id).await;
    let keep = json!({"keep": second});
    let kept = backend.post("/v1/gateways/gw-1/forks/resolve", &keep).await;
    assert_eq!(kept.status, 200, "{}", kept.text);
    assert_eq!(backend.post_text(rotate, "", &[]).await.status, 409);
    backend.readiness.latch("agents").set(false, "gone");
    for path in ["/readyz", "/startupz"] {
        assert_eq!(backend.get(path).await.status, 503, "{path}");
    }
}

/// A key that the connected gateway does not trust, promoted by force, and as many as a set may have.
async fn pins(backend: &Backend) {
    let pin = |n: u8| json!({"pin": SpkiPin::from_digest([n; 32]), "reason": "a drill"});
    let take = async |step: &str, body: &Value| {
        let answer = backend.post(&format!("/v1/pins/{step}"), body).await;
        (answer.status.as_u16(), answer.text)
    };
    for (step, status) in [("promote", 409), ("retire", 404), ("stage", 200)] {
        let (found, text) = take(step, &pin(1)).await;
        assert_eq!(found, status, "{step}: {text}");
    }
    let (refused, text) = take("promote", &pin(1)).await;
    assert_eq!(refused, 409, "{text}");
    assert!(text.contains("gateways: gw-1"), "{text}");
    let mut forced = pin(1);
    forced["force"] = json!(true);
    let (promoted, text) = take("promote", &forced).await;
    assert_eq!(promoted, 200, "{text}");
    let (retired, text) = take("retire", &pin(1)).await;
    assert_eq!(retired, 200, "{text}");
    let status = backend.get("/v1/pins").await.json();
    let pins = status["pins"].as_array().unwrap();
    let shown = pins.iter().find(|pin| pin["shown"] == true).unwrap();
    let shown = json!({ "pin": shown["pin"], "reason": "a drill" });
    let (refused, text) = take("retire", &shown).await;
    assert_eq!(refused, 409, "{text}");
    let mut last = 200;
    for n in 2..10 {
        last = take("stage", &pin(n)).await.0;
    }
    assert_eq!(last, 409);
}

/// One that is retried twice and then is not to be discarded, one the other way round, and one that no gateway takes.
async fn dead_letters(backend: &Backend, holder: &Holder) {
    for _ in 0..3 {
        backend.submit_uptime().await;
    }
    let dead = backend.kill_queued(holder).await;
    assert_eq!(backend.get("/v1/dead-letters").await.status, 200);
    let letter = format!("/v1/dead-letters/{}", dead[0]);
    assert_eq!(backend.get(&letter).await.status, 200);
    for (which, verb, status) in [
        (0, "retry", 201),
        (0, "retry", 200),
        (0, "discard", 409),
        (1, "discard", 200),
        (1, "retry", 409),
    ] {
        let path = format!("/v1/dead-letters/{}/{verb}", dead[which]);
        let answer = backend.post_text(&path, "", &[]).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
    }
    let (digest, nothing) = ("1".repeat(64), Vec::new());
    backend
        .store
        .save_catalogue(
            &backend.tenant,
            holder.agent_id,
            holder.epoch,
            &digest,
            nothing,
            now(),
        )
        .await
        .unwrap();
    let path = format!("/v1/dead-letters/{}/retry", dead[2]);
    assert_eq!(backend.post_text(&path, "", &[]).await.status, 422);
    backend
        .store
        .save_catalogue(
            &backend.tenant,
            holder.agent_id,
            holder.epoch,
            &"0".repeat(64),
            catalogue(),
            now(),
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn every_declared_status_of_every_operation_is_reached() {
    let well = Backend::new().await;
    refusals(&well).await;
    successes(&well).await;
    let hasty = Backend::with(|limits, _queue| {
        limits.quota = Quota {
            per_minute: 1,
            burst: 1,
        };
    })
    .await;
    hasty.get("/v1/gateways").await;
    guarded(&hasty, 429).await;
    let away = Backend::new().await;
    away.store.close().await;
    guarded(&away, 503).await;
    let faulty = Backend::new().await;
    faulty.spoil_keys();
    guarded(&faulty, 500).await;
    let doorless = Backend::without_a_door().await;
    let refused = doorless.post("/v1/tickets", &json!({"uses": 1})).await;
    let told = refused.problem(409, "VW-N-002")["detail"].to_string();
    assert!(told.contains("set listen in [enrolment]"), "{told}");
    doorless.register("gw-1").await;
    let replace = json!({"expires_in_ms": 60_000});
    let refused = doorless.post("/v1/gateways/gw-1/replace", &replace).await;
    refused.problem(409, "VW-N-002");
    let mut reached = full_disk::outcomes().await;
    for backend in [well, hasty, away, faulty, doorless] {
        reached.extend(backend.seen());
    }
    let missing: Vec<_> = declared::outcomes().difference(&reached).cloned().collect();
    assert!(missing.is_empty(), "no request produces {missing:?}");
}

#[tokio::test]
async fn a_status_that_nothing_produces_and_one_that_is_not_declared_are_noticed() {
    let backend = Backend::new().await;
    refusals(&backend).await;
    let reached = backend.seen();
    let declared = declared::outcomes();
    assert!(reached.contains(&("listRuns".to_owned(), 422)));
    assert!(!reached.contains(&("submitRun".to_owned(), 507)));
    assert!(declared.contains(&("submitRun".to_owned(), 507)));
    let mut answer = backend.get("/v1/runs").await;
    let check = |answer: &_| declared::check(&Method::GET, "/v1/runs", answer);
    assert_eq!(check(&answer).unwrap(), Some(("listRuns".to_owned(), 200)));
    answer.text = answer.text.replace("RunList", "Rubbish");
    assert!(check(&answer).is_err(), "another body");
    answer.status = http::StatusCode::IM_A_TEAPOT;
    assert!(check(&answer).is_err(), "another status");
}

#[test]
fn the_description_and_the_table_of_routes_have_the_same_operations() {
    let described: BTreeSet<_> = declared::operations()
        .map(|(method, path, _operation)| (method.to_string(), path.to_owned()))
        .collect();
    let routed: BTreeSet<_> = endpoints()
        .into_iter()
        .map(|endpoint| (endpoint.method.to_string(), endpoint.path))
        .collect();
    assert_eq!(described, routed);
    assert_eq!(endpoints().len(), routed.len(), "no operation twice");
    for endpoint in endpoints() {
        let public = ["/livez", "/readyz", "/startupz", "/openapi.json"];
        let is_public = endpoint.access == Access::Public;
        assert_eq!(
            is_public,
            public.contains(&endpoint.path.as_str()),
            "{endpoint:?}"
        );
    }
    let ids: BTreeSet<_> = declared::operations()
        .map(|(_method, _path, operation)| declared::id(operation))
        .collect();
    assert_eq!(ids.len(), routed.len(), "ids are unique");
}
