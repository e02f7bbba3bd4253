//! What a careless or hostile caller sends.

use axum::body::Body;
use http::{Method, Request};
use serde_json::json;

use super::harness::{Backend, catalogue};

#[tokio::test]
async fn an_unknown_path_and_an_unknown_method_are_problems() {
    let backend = Backend::new().await;
    backend.get("/v1/nothing").await.problem(404, "VW-H-002");
    backend.get("/").await.problem(404, "VW-H-002");
    let request = backend
        .request(Method::PUT, "/v1/runs")
        .body(Body::empty())
        .unwrap();
    let answer = backend.send(request).await;
    answer.problem(405, "VW-H-003");
    let allowed: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
    assert!(
        allowed.contains(&"GET") && allowed.contains(&"POST"),
        "{allowed:?}"
    );
}

#[tokio::test]
async fn what_is_not_an_id_does_not_exist() {
    let backend = Backend::new().await;
    let id = "01900000-0000-7000-8000-0000000000ab";
    for path in [
        "/v1/gateways/GW".to_owned(),
        "/v1/gateways/gw-none".to_owned(),
        "/v1/runs/1".to_owned(),
        format!("/v1/runs/{id}"),
        format!("/v1/runs/{id}/commands"),
        format!("/v1/runs/{id}/commands/{id}"),
        format!("/v1/runs/{id}/wait"),
        format!("/v1/runs/{id}/events"),
        "/v1/catalogue/no.such".to_owned(),
        "/v1/telemetry?gateway=gw-none".to_owned(),
    ] {
        backend.get(&path).await.problem(404, "VW-N-001");
    }
}

#[tokio::test]
async fn an_unknown_or_repeated_query_parameter_is_named() {
    let backend = Backend::new().await;
    for (path, field) in [
        ("/v1/gateways?colour=red", "colour"),
        ("/v1/gateways?limit=1&limit=2", "limit"),
        ("/v1/gateways?limit=0", "limit"),
        ("/v1/gateways?limit=1001", "limit"),
        ("/v1/gateways?limit=many", "limit"),
        ("/v1/gateways?online=maybe", "online"),
        ("/v1/gateways?label=x", "label"),
        ("/v1/gateways?cursor=x", "cursor"),
        ("/v1/telemetry", "gateway"),
        ("/v1/telemetry?gateway=gw-1&from=yesterday", "from"),
        ("/v1/telemetry?gateway=gw-1&cursor=1_2", "cursor"),
        ("/v1/health?verbose=1", "verbose"),
        ("/livez?x=1", "x"),
    ] {
        let problem = backend.get(path).await.problem(422, "VW-H-007");
        assert_eq!(problem["errors"][0]["field"], field, "{path}: {problem}");
    }
}

#[tokio::test]
async fn a_cursor_that_no_page_gave_is_refused_in_every_listing() {
    const ID: &str = "01940f5e-7c00-7000-8000-000000000001";
    let backend = Backend::new().await;
    let _gateway = backend.connect("gw-1", catalogue()).await;
    let steps = "/v1/telemetry?gateway=gw-1&stream=s&field=f&step=1s&from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:09Z&cursor=";
    let upper = ID.to_uppercase();
    for (list, cursors) in [
        (
            "/v1/audit?cursor=",
            vec!["-1".to_owned(), "01".to_owned(), "%2B1".to_owned()],
        ),
        (
            "/v1/audit?cursor=",
            vec![(1_u64 << 63).to_string(), u64::MAX.to_string()],
        ),
        (
            steps,
            vec![i64::MAX.to_string(), i64::MIN.to_string(), "+0".to_owned()],
        ),
        (
            "/v1/telemetry?gateway=gw-1&cursor=",
            vec![
                format!("{}_{ID}_1", i64::MIN),
                format!("{}_{ID}_1", i64::MAX),
                format!("0_{ID}_{}", 1_u64 << 63),
                format!("00_{ID}_1"),
                format!("0_{upper}_1"),
            ],
        ),
        (
            "/v1/telemetry/gaps?gateway=gw-1&cursor=",
            vec![format!("{ID}_{}", u64::MAX), format!("{ID}_01")],
        ),
        (
            "/v1/telemetry/refusals?gateway=gw-1&cursor=",
            vec![format!("too_old.{upper}"), "unknown".to_owned()],
        ),
        (
            "/v1/gateways/gw-1/orphans?cursor=",
            vec![format!("{}_{ID}", i64::MIN), format!("-0_{ID}")],
        ),
        ("/v1/gateways?cursor=", vec![upper.clone(), String::new()]),
        ("/v1/runs?cursor=", vec![upper.clone(), String::new()]),
        ("/v1/apikeys?cursor=", vec![upper.clone(), String::new()]),
        (
            "/v1/dead-letters?cursor=",
            vec![upper.clone(), String::new()],
        ),
        ("/v1/catalogue?cursor=", vec![String::new()]),
        (
            "/v1/telemetry/streams?gateway=gw-1&cursor=",
            vec![String::new()],
        ),
    ] {
        for cursor in cursors {
            let path = format!("{list}{cursor}");
            let problem = backend.get(&path).await.problem(422, "VW-H-007");
            assert_eq!(problem["errors"][0]["field"], "cursor", "{path}: {problem}");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let backend = Backend::new().await;
    let plain = backend
        .request(Method::POST, "/v1/runs")
        .header("content-type", "text/plain");
    let answer = backend.send(plain.body(Body::from("{}")).unwrap()).await;
    answer.problem(415, "VW-H-005");
    let untyped = backend.request(Method::POST, "/v1/runs");
    backend
        .send(untyped.body(Body::from("{}")).unwrap())
        .await
        .problem(415, "VW-H-005");
    for text in ["", "{", "{}x", "\u{0}", "[1,", "{\"a\":1,}"] {
        let answer = backend.post_text("/v1/runs", text, &[]).await;
        answer.problem(400, "VW-H-001");
    }
    for text in [r#"["sys.uptime", {}, "all"]"#, "7", "null"] {
        let answer = backend.post_text("/v1/runs", text, &[]).await;
        let problem = answer.problem(422, "VW-H-006");
        assert_eq!(problem["errors"][0]["field"], "body");
    }
    // Two readers of one text could understand two things.
    for (path, text, field) in [
        (
            "/v1/tickets",
            r#"{"uses": 1, "labels": {"site": "berlin", "site": "oslo"}}"#,
            "labels",
        ),
        (
            "/v1/runs",
            r#"{"command": "sys.uptime", "targets": "all", "targets": "all"}"#,
            "targets",
        ),
    ] {
        let answer = backend.post_text(path, text, &[]).await;
        let problem = answer.problem(422, "VW-H-006");
        let told = problem["errors"][0].to_string();
        assert!(told.contains(field), "{problem}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_or_without_a_length() {
    let backend = Backend::with(|limits, _queue| limits.body_bytes_max = 1_000).await;
    let big = vec![b' '; 1_001];
    let answer = backend.post_text("/v1/runs", big.clone(), &[]).await;
    answer.problem(413, "VW-H-004");
    let chunks =
        futures_util::stream::iter(big.chunks(100).map(<[u8]>::to_vec).collect::<Vec<_>>());
    let chunks = futures_util::StreamExt::map(chunks, Ok::<_, std::io::Error>);
    let answer = backend
        .post_text("/v1/runs", Body::from_stream(chunks), &[])
        .await;
    answer.problem(413, "VW-H-004");
}

#[tokio::test]
async fn a_submission_that_is_not_right_names_the_field_and_what_is_allowed() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    for (text, field, allowed) in [
        (r#"{"targets":"all"}"#, "command", ""),
        (r#"{"command":"sys.uptime"}"#, "targets", ""),
        (
            r#"{"command":"sys.uptime","targets":"all","mode":1}"#,
            "mode",
            "deadline_ms",
        ),
        (
            r#"{"command":"sys.uptime","command":"x","targets":"all"}"#,
            "command",
            "",
        ),
        (
            r#"{"command":"SYS","targets":"all"}"#,
            "command",
            "lower-case",
        ),
        (
            r#"{"command":"sys.uptime","targets":"some"}"#,
            "targets",
            "`all`",
        ),
        (
            r#"{"command":"sys.uptime","targets":{"gateways":["gw-1","G W"]}}"#,
            "targets.gateways[1]",
            "lower-case",
        ),
        (
            r#"{"command":"sys.uptime","targets":"all","deadline_ms":"1s"}"#,
            "deadline_ms",
            "u64",
        ),
        (
            r#"{"command":"sys.uptime","targets":"all","deadline_ms":1}"#,
            "deadline_ms",
            "100 to",
        ),
        (
            r#"{"command":"sys.uptime","targets":"all","timeout_ms":0}"#,
            "timeout_ms",
            "1 millisecond",
        ),
        (
            r#"{"command":"sys.uptime","targets":"all","arguments":{"a":null}}"#,
            "arguments.a",
            "text, a number or a boolean",
        ),
        (
            r#"{"command":"sys.uptime","targets":"all","arguments":[]}"#,
            "arguments",
            "an object",
        ),
    ] {
        let problem = backend
            .post_text("/v1/runs", text, &[])
            .await
            .problem(422, "VW-H-006");
        let error = &problem["errors"][0];
        assert_eq!(error["field"], field, "{text}: {problem}");
        let said = error["allowed"].as_str().unwrap_or_default();
        assert!(said.contains(allowed), "{text}: {problem}");
    }
    assert!(backend.nudges.agents.lock().unwrap().is_empty());
    assert_eq!(backend.get("/v1/runs").await.json()["items"], json!([]));
}

#[tokio::test]
async fn headers_that_are_not_right_are_named() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let body = json!({"command": "sys.uptime", "targets": "all"});
    let long = "k".repeat(256);
    for key in ["", long.as_str()] {
        let answer = backend
            .post_text("/v1/runs", body.to_string(), &[("idempotency-key", key)])
            .await;
        let problem = answer.problem(422, "VW-H-008");
        assert_eq!(problem["errors"][0]["field"], "Idempotency-Key");
    }
    let run = backend.submit_uptime().await;
    let request = backend
        .request(Method::GET, &format!("/v1/runs/{run}/events"))
        .header("last-event-id", "seven");
    let answer = backend.send(request.body(Body::empty()).unwrap()).await;
    answer.problem(422, "VW-H-008");
}

#[tokio::test]
async fn two_credentials_are_none() {
    let backend = Backend::new().await;
    let key = backend.key_with(viworks_api::Scope::ALL).await;
    let bearer = format!("Bearer {key}");
    let request = Request::get("/v1/gateways")
        .header("authorization", &bearer)
        .header("authorization", &bearer);
    let answer = backend.send(request.body(Body::empty()).unwrap()).await;
    answer.problem(401, "VW-A-001");
    let request =
        Request::get("/v1/gateways").header("authorization", key.replace("vwk_", "Basic "));
    let answer = backend.send(request.body(Body::empty()).unwrap()).await;
    answer.problem(401, "VW-A-001");
}
