//! Throwing a gateway out: what ends with it, who is told, and what is kept of why.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use viworks_api::Scope;
use viworks_backend_agent::data::{
    Actor, AnsweredChallenge, GatewayRef, LeaseLimits, NewCertificate, Reissue, ReissueOutcome,
};
use viworks_common::admission::Shown;

use super::harness::{Answer, Backend, catalogue, now};

/// A hang is a failure that says where.
const PATIENCE: Duration = Duration::from_secs(30);

/// The records of revocations in the audit trail.
async fn recorded(backend: &Backend) -> Vec<Value> {
    let audit = backend.get("/v1/audit").await.json();
    let records = audit["items"].as_array().unwrap().iter();
    let revocations = records.filter(|record| record["action"] == "gateway.revoke");
    revocations.cloned().collect()
}

#[tokio::test]
async fn a_gateway_that_is_thrown_out_takes_its_commands_with_it_and_followers_are_told() {
    let backend = Backend::with(|limits, _queue| limits.recheck = Duration::from_secs(3_600)).await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let begun = backend.submit_uptime().await;
    let limits = LeaseLimits {
        commands: 1,
        attempts_max: 20,
    };
    let leased = backend
        .store
        .lease_commands(&backend.tenant, &holder, limits, now());
    assert!(leased.await.unwrap().commands[0].permitted);
    let waiting = backend.submit_uptime().await;

    let wait = format!("/v1/runs/{waiting}/wait?timeout_ms=60000");
    let body = json!({"reason": " the machine was stolen\n"});
    let (waited, answer) = tokio::time::timeout(PATIENCE, async {
        tokio::join!(
            backend.get(&wait),
            backend.post("/v1/gateways/gw-1/revoke", &body)
        )
    })
    .await
    .unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let told = answer.json();
    assert_eq!(told["already"], false);
    assert_eq!(told["session_ended"], true);
    assert_eq!(
        (&told["cancelled"], &told["indeterminate"]),
        (&json!(1), &json!(1))
    );
    let gateway = &told["gateway"];
    assert_eq!(gateway["status"], "revoked");
    assert_eq!(gateway["session"], Value::Null);
    assert_eq!(gateway["queued_commands"], 0);
    assert_eq!(gateway["revocation"]["reason"], "the machine was stolen");
    let by = gateway["revocation"]["by"].as_str().unwrap();
    assert!(by.starts_with("api_key:"), "{told:#}");
    assert_eq!(gateway["revocation"]["by_name"], "test", "{told:#}");
    assert_eq!(
        *backend.nudges.revoked.lock().unwrap(),
        [holder.agent_id],
        "its session ends here as well"
    );

    // Nobody looks again for an hour: it was told.
    let waited = waited.json();
    assert_eq!(waited["finished"], true, "{waited:#}");
    assert_eq!(waited["run"]["counts"], json!({"cancelled": 1}));
    let counted = backend.metrics.encode().unwrap();
    for state in ["cancelled", "indeterminate"] {
        let line = format!("viworks_commands_final_total{{state=\"{state}\"}} 1\n");
        assert!(counted.contains(&line), "{line}{counted}");
    }
    let begun = backend.get(&format!("/v1/runs/{begun}")).await.json();
    assert_eq!(begun["counts"], json!({"indeterminate": 1}));
    let body = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1"]}});
    let refused = backend.post("/v1/runs", &body).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_run_for_a_gateway_that_was_revoked_since_the_last_one_names_it_as_it_was_named() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let body = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1"]}});
    let accepted = backend.post("/v1/runs", &body).await;
    assert_eq!(accepted.status, StatusCode::CREATED, "{}", accepted.text);
    // By another backend: what this one remembers of it says nothing of that.
    let (agent_id, actor) = (holder.agent_id, Actor::local("uid 0"));
    let revoked = backend
        .store
        .revoke_gateway(&backend.tenant, agent_id, None, &actor, now());
    revoked.await.unwrap().unwrap();
    for _again in 0..2 {
        let refused = backend.post("/v1/runs", &body).await;
        let problem = refused.problem(422, "VW-C-004");
        let error = &problem["errors"][0];
        assert_eq!(error["field"], "targets.gateways: gw-1", "{problem:#}");
        assert_eq!(error["problem"], "the gateway was revoked");
        assert!(!refused.text.contains(&agent_id.to_string()), "{problem:#}");
    }
}

#[tokio::test]
async fn revoking_twice_is_revoking_once_and_the_first_reason_stays() {
    let backend = Backend::new().await;
    let agent_id = backend.register("gw-1").await;
    let mut answers = Vec::new();
    for (reference, reason) in [
        ("gw-1".to_owned(), "stolen"),
        (agent_id.to_string(), "another"),
    ] {
        let path = format!("/v1/gateways/{reference}/revoke");
        let answer = backend.post(&path, &json!({"reason": reason})).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        answers.push(answer.json());
    }
    assert_eq!(answers[0]["already"], false);
    assert_eq!(answers[1]["already"], true);
    assert_eq!(answers[0]["session_ended"], false);
    assert_eq!(answers[0]["gateway"], answers[1]["gateway"]);
    let shown = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(shown, answers[0]["gateway"]);
    assert_eq!(shown["revocation"]["reason"], "stolen");
    // If the first answer was lost between database and backend, the session was not told.
    assert_eq!(*backend.nudges.revoked.lock().unwrap(), [agent_id; 2]);
    let records = recorded(&backend).await;
    let [record] = &records[..] else {
        panic!("{records:#?}")
    };
    assert_eq!(record["detail"]["reason"], "stolen");
    assert_eq!(record["actor"], shown["revocation"]["by"]);
    assert!(record["request_id"].is_string(), "{record:#}");
    // A list has a row for each, and no more than the row.
    let listed = backend.get("/v1/gateways").await.json();
    assert_eq!(listed["items"][0]["status"], "revoked");
    assert_eq!(listed["items"][0]["revocation"], Value::Null);
}

#[tokio::test]
async fn a_revocation_at_the_hosts_own_command_line_is_shown_without_a_reason() {
    let backend = Backend::new().await;
    let agent_id = backend.register("gw-1").await;
    let actor = Actor::local("uid 0");
    let revoked = backend
        .store
        .revoke_gateway(&backend.tenant, agent_id, None, &actor, now());
    revoked.await.unwrap().unwrap();
    let shown = backend.get("/v1/gateways/gw-1").await.json();
    let expected = json!({"by": "local:uid 0", "by_name": null, "reason": null});
    assert_eq!(shown["revocation"], expected);
}

#[tokio::test]
async fn a_revocation_says_why_and_of_whom_or_changes_nothing() {
    let backend = Backend::new().await;
    backend.register("gw-1").await;
    let path = "/v1/gateways/gw-1/revoke";
    for body in [
        json!({}),
        json!({"reason": ""}),
        json!({"reason": " \n"}),
        json!({"reason": "x".repeat(513)}),
        json!({"reason": 7}),
    ] {
        let problem = backend.post(path, &body).await.problem(422, "VW-H-006");
        assert_eq!(problem["errors"][0]["field"], "reason", "{problem}");
    }
    let body = json!({"reason": "stolen", "force": true});
    backend.post(path, &body).await.problem(422, "VW-H-006");
    let body = json!({"reason": "stolen"});
    for nobody in ["gw-2", "no name"] {
        let path = format!("/v1/gateways/{}/revoke", nobody.replace(' ', "%20"));
        backend.post(&path, &body).await.problem(404, "VW-N-001");
    }
    let shown = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(shown["status"], "never");
    assert_eq!(recorded(&backend).await.len(), 0);
    let longest = json!({"reason": "x".repeat(512)});
    let answer = backend.post(path, &longest).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
}

/// Asks with another key.
async fn post_with(backend: &Backend, key: &str, path: &str, body: &Value) -> Answer {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json");
    let request = request.body(Body::from(body.to_string())).unwrap();
    backend.send(request).await
}

#[tokio::test]
async fn a_place_is_given_away_by_whoever_may_throw_out_and_let_in() {
    let backend = Backend::new().await;
    let agent_id = backend.register("gw-1").await;
    let path = "/v1/gateways/gw-1/replace";
    let body = json!({"expires_in_ms": 60_000, "networks": ["192.0.2.0/24"]});
    let made = backend.post(path, &body).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let ticket = &made.json()["ticket"];
    assert_eq!(ticket["replaces"], json!(agent_id.to_string()));
    assert_eq!(
        (&ticket["uses_max"], &ticket["name"]),
        (&json!(1), &json!("gw-1"))
    );
    assert_eq!(ticket["networks"], json!(["192.0.2.0/24"]));
    // The gateway is what it was until somebody redeems the ticket.
    let shown = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(shown["status"], "never");
    assert_eq!(backend.nudges.revoked.lock().unwrap().len(), 0);
    // Either scope alone is not enough, here and for any ticket that takes places.
    let taking = json!({"uses": 1, "allow_replace": true});
    for (scope, path, body, lacks) in [
        (Scope::GatewaysWrite, path, &body, "tickets:write"),
        (Scope::TicketsWrite, path, &body, "gateways:write"),
        (
            Scope::TicketsWrite,
            "/v1/tickets",
            &taking,
            "gateways:write",
        ),
    ] {
        let key = backend.key_with(&[scope]).await;
        let refused = post_with(&backend, &key, path, body).await;
        let told = refused.problem(403, "VW-A-002")["detail"].to_string();
        assert!(told.contains(lacks), "{told}");
    }
    let plain = backend.key_with(&[Scope::TicketsWrite]).await;
    let made = post_with(&backend, &plain, "/v1/tickets", &json!({"uses": 1})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    for (field, body) in [
        ("expires_in_ms", json!({"expires_in_ms": 0})),
        ("expires_in_ms", json!({"networks": []})),
        (
            "networks",
            json!({"expires_in_ms": 60_000, "networks": ["berlin"]}),
        ),
    ] {
        let problem = backend.post(path, &body).await.problem(422, "VW-H-006");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    for absence in [59_999_u64, 31_536_000_001] {
        let absent = json!({"uses": 1, "ephemeral_ms": absence});
        let problem = backend.post("/v1/tickets", &absent).await;
        let problem = problem.problem(422, "VW-H-006");
        assert_eq!(problem["errors"][0]["field"], "ephemeral_ms", "{problem}");
    }
}

#[tokio::test]
async fn gateways_are_listed_by_their_ticket() {
    let backend = Backend::new().await;
    backend.register("gw-1").await;
    let of_nobody = "/v1/gateways?ticket=01940f5e-7000-7000-8000-0000000000d1";
    assert_eq!(backend.get(of_nobody).await.json()["items"], json!([]));
    let wrong = backend.get("/v1/gateways?ticket=gw-1").await;
    wrong.problem(422, "VW-H-007");
}

#[tokio::test]
async fn one_certificate_is_revoked_and_its_gateway_goes_on_with_others() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    // That of its session, and one beside it.
    let shown = backend.certify(holder.agent_id, 7).await;
    let other = backend.certify(holder.agent_id, 8).await;
    let certificates = "/v1/gateways/gw-1/certificates";
    let states = async || {
        let listed = backend.get(certificates).await.json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let one = |item: &Value| (text(&item["fingerprint"]), text(&item["state"]));
        let items = listed["items"].as_array().unwrap().iter();
        items.map(one).collect::<BTreeMap<_, _>>()
    };
    let before = states().await;
    assert_eq!(before[&shown], "in_use");
    assert_eq!(before[&other], "in_use");

    let body = json!({"reason": " its key was copied\n"});
    // As other programs print a serial number.
    let path = format!("{certificates}/0A:07/revoke");
    for already in [false, true] {
        let answer = backend.post(&path, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let told = answer.json();
        assert_eq!(told["already"], already);
        assert_eq!(told["session_ended"], !already);
        assert_eq!(told["certificate"]["state"], "revoked");
        assert_eq!(told["certificate"]["fingerprint"], *shown);
        assert_eq!(told["gateway"]["name"], "gw-1");
    }
    // The second one also: if the first answer was lost, nobody has told the session.
    let cut = (holder.agent_id, holder.epoch);
    assert_eq!(*backend.nudges.cut.lock().unwrap(), [cut, cut]);
    assert_eq!(*backend.nudges.revoked.lock().unwrap(), []);
    let after = states().await;
    assert_eq!(after[&shown], "revoked");
    assert_eq!(after[&other], "in_use");
    let gateway = backend.get("/v1/gateways/gw-1").await.json();
    assert_eq!(gateway["status"], "offline", "{gateway}");
    let audit = backend.get("/v1/audit").await.json();
    let records = audit["items"].as_array().unwrap().iter();
    let records: Vec<_> = records
        .filter(|record| record["action"] == "certificate.revoke")
        .collect();
    let [record] = records[..] else {
        panic!("{records:#?}")
    };
    assert_eq!(record["detail"]["reason"], "its key was copied");
    assert_eq!(record["detail"]["fingerprint"], *shown);
    assert!(record["request_id"].is_string(), "{record:#}");
}

#[tokio::test]
async fn a_certificate_that_is_not_meant_stays_as_it_is() {
    let backend = Backend::new().await;
    let agent_id = backend.register("gw-1").await;
    let fingerprint = backend.certify(agent_id, 7).await;
    let body = json!({"reason": "copied"});
    let unknown = "ab".repeat(32);
    for nobody in [&*unknown, "0a08", "no-certificate", "a"] {
        let path = format!("/v1/gateways/gw-1/certificates/{nobody}/revoke");
        backend.post(&path, &body).await.problem(404, "VW-N-001");
    }
    let path = format!("/v1/gateways/gw-1/certificates/{fingerprint}/revoke");
    let problem = backend.post(&path, &json!({"reason": " "})).await;
    let problem = problem.problem(422, "VW-H-006");
    assert_eq!(problem["errors"][0]["field"], "reason", "{problem}");
    let listed = backend.get("/v1/gateways/gw-1/certificates").await.json();
    assert_eq!(listed["items"][0]["state"], "in_use");
    // A page at a time, as everywhere.
    backend.certify(agent_id, 8).await;
    let first = backend.get("/v1/gateways/gw-1/certificates?limit=1").await;
    let first = first.json();
    let next = first["next"].as_str().unwrap();
    let path = format!("/v1/gateways/gw-1/certificates?limit=1&cursor={next}");
    let second = backend.get(&path).await.json();
    assert_ne!(second["items"][0], first["items"][0]);
    assert_eq!(second["next"], Value::Null, "{second}");
}

/// A key that got another certificate at the door is found by the one before.
#[tokio::test]
async fn an_earlier_certificate_of_a_key_is_named_beside_the_present_one() {
    let backend = Backend::new().await;
    let agent_id = backend.register("gw-1").await;
    let (begun, later) = (now(), Duration::from_secs(3_600));
    let first = NewCertificate {
        agent_id,
        spki: [7; 32],
        serial: "0a07".to_owned(),
        not_after: begun.saturating_add(Duration::from_secs(60)),
        fingerprint: [7; 32],
        issuer: None,
    };
    let (store, tenant) = (&backend.store, &backend.tenant);
    let actor = Actor::local("test");
    let registered = store.register_certificate(tenant, first.clone(), &actor, begun);
    registered.await.unwrap();
    let gateway = store.gateway(tenant, &GatewayRef::Id(agent_id)).await;
    let gateway = gateway.unwrap().unwrap();
    let reissue = Reissue {
        challenge: AnsweredChallenge {
            challenge: [1; 32],
            expires_at: begun.saturating_add(later),
        },
        peer: "192.0.2.7".parse().unwrap(),
        shown: Shown {
            epoch: gateway.confirmed,
            token_valid: true,
            key_generation: gateway.key_generation,
        },
        wall: begun.saturating_add(later),
        certificate: NewCertificate {
            serial: "0a08".to_owned(),
            not_after: begun.saturating_add(later),
            fingerprint: [8; 32],
            ..first
        },
        pem: "certificate".to_owned(),
    };
    let reissued = store.reissue_certificate(tenant, reissue, begun).await;
    assert_eq!(reissued.unwrap(), ReissueOutcome::Issued);
    let body = json!({"reason": "copied"});
    let earlier = hex::encode([7_u8; 32]);
    let path = format!("/v1/gateways/gw-1/certificates/{earlier}/revoke");
    let told = backend.post(&path, &body).await.json();
    assert_eq!(told["certificate"]["serial"], "0a08", "{told}");
    assert_eq!(told["named"]["serial"], "0a07", "{told}");
    assert_eq!(told["named"]["fingerprint"], earlier);
    let path = "/v1/gateways/gw-1/certificates/0a08/revoke";
    let told = backend.post(path, &body).await.json();
    assert_eq!(told["already"], true);
    assert_eq!(told.get("named"), None, "{told}");
}
