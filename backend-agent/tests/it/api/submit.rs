//! Submitting and cancelling runs.

use http::StatusCode;
use serde_json::{Value, json};
use viworks_api::Scope;
use viworks_common::catalogue::{ArgumentType, Risk};

use super::harness::{Backend, argument, catalogue, entry, now};

#[tokio::test]
async fn a_submission_makes_one_command_for_each_gateway_and_wakes_dispatch() {
    let backend = Backend::new().await;
    let first = backend.connect("gw-1", catalogue()).await;
    let second = backend.connect("gw-2", catalogue()).await;
    let body = json!({
        "command": "log.tail",
        "arguments": {"unit": "nginx"},
        "targets": {"gateways": ["gw-1", second.agent_id.to_string(), "gw-1"]},
    });
    let answer = backend.post("/v1/runs", &body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let run = answer.json();
    let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), path);
    assert_eq!(run["kind"], "Run");
    assert_eq!(run["arguments"], json!({"unit": "nginx", "lines": "50"}));
    assert_eq!(run["counts"], json!({"queued": 2}));
    let mut nudged = backend.nudges.agents.lock().unwrap().clone();
    nudged.sort();
    let mut expected = vec![first.agent_id, second.agent_id];
    expected.sort();
    assert_eq!(nudged, expected);
    let read = backend.get(&path).await.json();
    assert!(run["created_by_name"].is_string(), "{run}");
    // Only its states may have changed meanwhile.
    for same in ["id", "created_by", "created_by_name", "created_at"] {
        assert_eq!(read[same], run[same], "{same}");
    }
    let commands = backend
        .get(&format!("{path}/commands?limit=1"))
        .await
        .json();
    assert_eq!(commands["kind"], "CommandList");
    assert_eq!(commands["apiVersion"], "viworks/v1");
    assert_eq!(commands["items"].as_array().unwrap().len(), 1);
    let next = commands["next"].as_str().unwrap();
    let rest = backend
        .get(&format!("{path}/commands?limit=1&cursor={next}"))
        .await
        .json();
    assert_ne!(rest["items"][0]["id"], commands["items"][0]["id"]);
    let command = rest["items"][0]["id"].as_str().unwrap();
    let shown = backend
        .get(&format!("{path}/commands/{command}"))
        .await
        .json();
    assert_eq!(shown["state"], "queued");
    assert_eq!(shown["timeout_ms"], 30_000);
}

#[tokio::test]
async fn a_time_limit_can_only_become_shorter() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    for (wanted, kept) in [(5, 5), (99_000_000, 30_000)] {
        let body = json!({"command": "sys.uptime", "targets": "all", "timeout_ms": wanted});
        let run = backend.post("/v1/runs", &body).await.json();
        let path = format!("/v1/runs/{}/commands", run["id"].as_str().unwrap());
        let commands = backend.get(&path).await.json();
        assert_eq!(commands["items"][0]["timeout_ms"], kept);
    }
}

#[tokio::test]
async fn an_unknown_command_names_the_field() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    for targets in [json!("all"), json!({"gateways": ["gw-1"]})] {
        let body = json!({"command": "rm.everything", "targets": targets});
        let problem = backend
            .post("/v1/runs", &body)
            .await
            .problem(422, "VW-C-001");
        assert_eq!(problem["errors"][0]["field"], "command");
    }
}

#[tokio::test]
async fn bad_arguments_name_each_field_and_what_is_allowed() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let body = json!({
        "command": "log.tail",
        "arguments": {"unit": "no such unit!", "lines": 5_000, "colour": "red"},
        "targets": "all",
    });
    let problem = backend
        .post("/v1/runs", &body)
        .await
        .problem(422, "VW-C-002");
    let errors: Vec<_> = problem["errors"].as_array().unwrap().clone();
    let of = |field: &str| -> Value {
        errors
            .iter()
            .find(|error| error["field"] == field)
            .unwrap_or_else(|| panic!("no {field} in {problem}"))
            .clone()
    };
    for field in ["arguments.unit", "arguments.lines", "arguments.colour"] {
        assert!(
            !of(field)["allowed"].as_str().unwrap().is_empty(),
            "{problem}"
        );
    }
    assert!(
        of("arguments.lines")["allowed"]
            .as_str()
            .unwrap()
            .contains("1000"),
        "{problem}"
    );
    let body = json!({"command": "log.tail", "targets": "all"});
    let problem = backend
        .post("/v1/runs", &body)
        .await
        .problem(422, "VW-C-002");
    assert_eq!(problem["errors"][0]["field"], "arguments.unit");
}

#[tokio::test]
async fn targets_that_come_to_nothing_are_refused() {
    let backend = Backend::new().await;
    let all = json!({"command": "sys.uptime", "targets": "all"});
    backend
        .post("/v1/runs", &all)
        .await
        .problem(422, "VW-C-003");
    backend.register("gw-new").await;
    let problem = backend
        .post("/v1/runs", &all)
        .await
        .problem(422, "VW-C-003");
    assert!(
        problem["detail"].as_str().unwrap().contains("catalogue"),
        "{problem}"
    );
    let none = json!({"command": "sys.uptime", "targets": {"gateways": []}});
    backend
        .post("/v1/runs", &none)
        .await
        .problem(422, "VW-C-003");
    backend.connect("gw-1", catalogue()).await;
    let named = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1", "gw-x", "gw-y"]}});
    let problem = backend
        .post("/v1/runs", &named)
        .await
        .problem(422, "VW-C-004");
    assert_eq!(problem["errors"].as_array().unwrap().len(), 2);
    let early = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1", "gw-new"]}});
    let problem = backend
        .post("/v1/runs", &early)
        .await
        .problem(422, "VW-C-005");
    assert!(
        problem["errors"][0]["field"]
            .as_str()
            .unwrap()
            .contains("gw-new"),
        "{problem}"
    );
    assert_eq!(backend.get("/v1/runs").await.json()["items"], json!([]));
}

#[tokio::test]
async fn more_gateways_than_a_run_may_have_are_refused() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let names: Vec<String> = (0..=20_000).map(|number| format!("gw-{number}")).collect();
    let body = json!({"command": "sys.uptime", "targets": {"gateways": names}});
    let problem = backend
        .post("/v1/runs", &body)
        .await
        .problem(422, "VW-H-006");
    assert_eq!(problem["errors"][0]["allowed"], "at most 20000");
    assert_eq!(backend.get("/v1/runs").await.json()["items"], json!([]));
}

#[tokio::test]
async fn all_means_every_gateway_that_can() {
    let backend = Backend::new().await;
    backend.register("gw-new").await;
    backend
        .connect("gw-bare", vec![entry("sys.kernel", Risk::Read, vec![])])
        .await;
    let mut broken = catalogue();
    for entry in &mut broken {
        entry.unavailable = Some("uptime is not installed".to_owned());
    }
    backend.connect("gw-broken", broken).await;
    backend.connect("gw-1", catalogue()).await;
    let body = json!({"command": "sys.uptime", "targets": "all", "expect_targets": 1});
    let answer = backend.post("/v1/runs", &body).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let body = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-broken"]}});
    let problem = backend
        .post("/v1/runs", &body)
        .await
        .problem(422, "VW-C-005");
    let why = problem["errors"][0]["problem"].as_str().unwrap();
    assert!(why.contains("not installed"), "{problem}");
    let body = json!({"command": "sys.uptime", "targets": "all", "expect_targets": 4});
    backend
        .post("/v1/runs", &body)
        .await
        .problem(409, "VW-C-006");
}

#[tokio::test]
async fn gateways_with_other_declarations_all_have_their_say() {
    let backend = Backend::new().await;
    let narrow = ArgumentType::Choice {
        values: vec!["nginx".to_owned()],
    };
    backend.connect("gw-1", catalogue()).await;
    let arguments = vec![argument("unit", narrow, None)];
    let narrow = vec![entry("service.restart", Risk::Danger, arguments)];
    backend.connect("gw-2", narrow).await;
    let mut body =
        json!({"command": "service.restart", "arguments": {"unit": "sshd"}, "targets": "all"});
    backend
        .post("/v1/runs", &body)
        .await
        .problem(422, "VW-C-002");
    body["arguments"]["unit"] = json!("nginx");
    // One gateway calls it dangerous, so it is.
    let problem = backend
        .post("/v1/runs", &body)
        .await
        .problem(422, "VW-H-006");
    assert_eq!(problem["errors"][0]["field"], "reason");
    body["reason"] = json!("new certificate");
    let run = backend.post("/v1/runs", &body).await.json();
    assert_eq!(run["reason"], "new certificate");
    assert_eq!(run["total"], 2);
}

#[tokio::test]
async fn the_risk_of_a_command_decides_which_scope_it_needs() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let submit = async |scopes: &[Scope], body: &Value| {
        let key = backend.key_with(scopes).await;
        let request = http::Request::post("/v1/runs")
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json")
            .body(axum::body::Body::from(body.to_string()));
        backend.send(request.unwrap()).await
    };
    let read = json!({"command": "sys.uptime", "targets": "all"});
    let change =
        json!({"command": "service.restart", "arguments": {"unit": "a"}, "targets": "all"});
    let danger = json!({"command": "sys.reboot", "targets": "all", "reason": "kernel"});
    let write = Scope::RunsWrite;
    assert_eq!(submit(&[write], &read).await.status, StatusCode::CREATED);
    for (body, scope) in [
        (&change, Scope::RunsWriteChange),
        (&danger, Scope::RunsWriteDanger),
    ] {
        let problem = submit(&[write], body).await.problem(403, "VW-A-002");
        assert!(problem["detail"].as_str().unwrap().contains(scope.name()));
        submit(&[scope], body).await.problem(403, "VW-A-002");
        let answer = submit(&[write, scope], body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    }
}

#[tokio::test]
async fn a_repeated_submission_gets_the_first_ones_run() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let body = json!({"command": "sys.uptime", "targets": "all"}).to_string();
    let key = [("idempotency-key", "deploy-7")];
    let first = backend.post_text("/v1/runs", body.clone(), &key).await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(first.header("idempotency-replayed"), "");
    let second = backend.post_text("/v1/runs", body, &key).await;
    assert_eq!(second.status, StatusCode::OK);
    assert_eq!(second.header("idempotency-replayed"), "true");
    assert_eq!(second.json()["id"], first.json()["id"]);
    let other = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1"]}}).to_string();
    let answer = backend.post_text("/v1/runs", other, &key).await;
    answer.problem(422, "VW-C-007");
    let runs = backend.get("/v1/runs").await.json();
    assert_eq!(runs["items"].as_array().unwrap().len(), 1);
    assert_eq!(backend.nudges.agents.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_repeated_submission_gets_its_run_even_when_the_command_is_gone() {
    let backend = Backend::new().await;
    let holder = backend.connect("gw-1", catalogue()).await;
    let body = json!({"command": "sys.uptime", "targets": "all"}).to_string();
    let key = [("idempotency-key", "deploy-8")];
    let first = backend.post_text("/v1/runs", body.clone(), &key).await;
    backend
        .store
        .save_catalogue(
            &backend.tenant,
            holder.agent_id,
            holder.epoch,
            &"1".repeat(64),
            Vec::new(),
            now(),
        )
        .await
        .unwrap();
    let second = backend.post_text("/v1/runs", body.clone(), &key).await;
    assert_eq!(second.status, StatusCode::OK, "{}", second.text);
    assert_eq!(second.json()["id"], first.json()["id"]);
    // Without the key it is a new request, and the command is not there any more.
    let fresh = backend.post_text("/v1/runs", body, &[]).await;
    assert_eq!(fresh.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back_and_leaves_nothing_half_done() {
    let backend = Backend::with(|_limits, queue| queue.per_gateway = 1).await;
    backend.connect("gw-1", catalogue()).await;
    backend.connect("gw-2", catalogue()).await;
    let body = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1"]}});
    assert_eq!(
        backend.post("/v1/runs", &body).await.status,
        StatusCode::CREATED
    );
    let body = json!({"command": "sys.uptime", "targets": "all"});
    let answer = backend.post("/v1/runs", &body).await;
    let problem = answer.problem(429, "VW-Q-001");
    assert_eq!(problem["retry_after_ms"], 20_500);
    assert_eq!(answer.header("retry-after"), "21");
    let counts = backend.store.counts(&backend.tenant, now()).await.unwrap();
    assert_eq!(counts.open_commands.values().sum::<u64>(), 1);
    assert_eq!(counts.open_runs, 1);
}

fn named(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().unwrap().iter();
    errors
        .filter_map(|error| error["field"].as_str()?.strip_prefix("targets.gateways: "))
        .collect()
}

/// A catalogue in which the name of a unit can be nothing at all.
fn unfitting() -> Vec<viworks_common::catalogue::CatalogueEntry> {
    let nothing = ArgumentType::Choice {
        values: vec!["nothing-fits".to_owned()],
    };
    vec![
        entry("sys.uptime", Risk::Read, Vec::new()),
        entry(
            "log.tail",
            Risk::Read,
            vec![argument("unit", nothing, None)],
        ),
    ]
}

#[tokio::test]
async fn gateways_without_the_command_are_reported_as_skipped() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    backend
        .connect("gw-2", vec![entry("other.thing", Risk::Read, Vec::new())])
        .await;
    backend.register("gw-3").await;
    let body = json!({"command": "sys.uptime", "targets": "all"});
    let run = backend.post("/v1/runs", &body).await.json();
    assert_eq!((&run["total"], &run["skipped"]), (&json!(1), &json!(2)));
    let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    assert_eq!(backend.get(&path).await.json()["skipped"], 2);
    let mut listed = Vec::new();
    let mut page = backend.get(&format!("{path}/skipped?limit=1")).await.json();
    loop {
        assert_eq!(page["items"].as_array().unwrap().len(), 1);
        listed.push((
            page["items"][0]["gateway"]["name"]
                .as_str()
                .unwrap()
                .to_owned(),
            page["items"][0]["code"].as_str().unwrap().to_owned(),
        ));
        let Some(next) = page["next"].as_str() else {
            break;
        };
        let path = format!("{path}/skipped?limit=1&cursor={next}");
        page = backend.get(&path).await.json();
    }
    listed.sort();
    let of = |name: &str, code: &str| (name.to_owned(), code.to_owned());
    assert_eq!(
        listed,
        [
            of("gw-2", "not_in_catalogue"),
            of("gw-3", "never_connected")
        ]
    );
}

#[tokio::test]
async fn a_gateway_that_nothing_fits_is_named_and_can_be_left_out() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    backend.connect("gw-bad", unfitting()).await;
    let mut body = json!({"command": "log.tail", "arguments": {"unit": "nginx"}, "targets": "all"});
    let answer = backend.post("/v1/runs", &body).await;
    let problem = answer.problem(422, "VW-C-002");
    assert_eq!(named(&problem), ["gw-bad"], "{problem}");
    assert!(answer.text.contains("skip_unable"), "{problem}");
    body["targets"] = json!({"all_except": ["gw-bad"]});
    let run = backend.post("/v1/runs", &body).await.json();
    assert_eq!((&run["total"], &run["skipped"]), (&json!(1), &json!(0)));
    for targets in [json!("all"), json!({"gateways": ["gw-1", "gw-bad"]})] {
        body["targets"] = targets;
        body["skip_unable"] = json!(true);
        let run = backend.post("/v1/runs", &body).await.json();
        assert_eq!((&run["total"], &run["skipped"]), (&json!(1), &json!(1)));
        let path = format!("/v1/runs/{}/skipped", run["id"].as_str().unwrap());
        let listed = backend.get(&path).await.json();
        assert_eq!(listed["items"][0]["gateway"]["name"], "gw-bad");
        assert_eq!(listed["items"][0]["code"], "bad_arguments");
    }
}

#[tokio::test]
async fn leaving_out_a_gateway_that_does_not_exist_is_refused() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let body = json!({"command": "sys.uptime", "targets": {"all_except": ["gw-typo"]}});
    let problem = backend
        .post("/v1/runs", &body)
        .await
        .problem(422, "VW-C-004");
    assert_eq!(named(&problem), ["gw-typo"], "{problem}");
}

#[tokio::test]
async fn gateways_whose_queues_are_full_are_named_and_can_be_left_out() {
    let backend = Backend::with(|_limits, queue| queue.per_gateway = 1).await;
    for name in ["gw-1", "gw-2", "gw-3"] {
        backend.connect(name, catalogue()).await;
    }
    let full = json!({"command": "sys.uptime", "targets": {"gateways": ["gw-2", "gw-3"]}});
    assert_eq!(
        backend.post("/v1/runs", &full).await.status,
        StatusCode::CREATED
    );
    let mut body = json!({"command": "sys.uptime", "targets": "all"});
    let answer = backend.post("/v1/runs", &body).await;
    let problem = answer.problem(429, "VW-Q-001");
    let mut names = named(&problem);
    names.sort_unstable();
    assert_eq!(names, ["gw-2", "gw-3"], "{problem}");
    body["skip_unable"] = json!(true);
    let run = backend.post("/v1/runs", &body).await.json();
    assert_eq!((&run["total"], &run["skipped"]), (&json!(1), &json!(2)));
    let path = format!("/v1/runs/{}/skipped", run["id"].as_str().unwrap());
    let listed = backend.get(&path).await.json();
    let codes = listed["items"].as_array().unwrap().iter();
    assert!(codes.into_iter().all(|item| item["code"] == "queue_full"));
    let counts = backend.store.counts(&backend.tenant, now()).await.unwrap();
    assert_eq!(counts.open_commands.values().sum::<u64>(), 3);
    // Where nobody is left, the run is refused as before.
    backend
        .post("/v1/runs", &body)
        .await
        .problem(429, "VW-Q-001");
}

#[tokio::test]
async fn a_refusal_names_as_many_gateways_as_a_person_reads() {
    let backend = Backend::new().await;
    let names: Vec<_> = (0..60).map(|number| format!("gw-x{number}")).collect();
    backend.connect("gw-1", catalogue()).await;
    let body = json!({"command": "sys.uptime", "targets": {"gateways": names}});
    let answer = backend.post("/v1/runs", &body).await;
    let problem = answer.problem(422, "VW-C-004");
    assert_eq!(named(&problem).len(), 50);
    assert!(answer.text.contains("and 10 more gateways"), "{problem}");
}

#[tokio::test]
async fn a_cancelled_run_is_finished_and_its_gateways_are_told() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let run = backend.submit_uptime().await;
    let path = format!("/v1/runs/{run}/cancel");
    let answer = backend.post_text(&path, "", &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let done = answer.json();
    assert_eq!(
        (&done["cancelled"], &done["requested"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(done["run"]["state"], "finished");
    assert_eq!(done["run"]["counts"], json!({"cancelled": 1}));
    assert_eq!(backend.nudges.cancelled.lock().unwrap().len(), 1);
    let again = backend.post_text(&path, "", &[]).await.json();
    assert_eq!(
        (&again["cancelled"], &again["final_before"]),
        (&json!(0), &json!(1))
    );
    let missing = "/v1/runs/01900000-0000-7000-8000-0000000000ab/cancel";
    backend
        .post_text(missing, "", &[])
        .await
        .problem(404, "VW-N-001");
}

#[tokio::test]
async fn text_with_nul_is_refused_wherever_it_comes_from() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let body =
        json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1"]}, "reason": "a\0b"});
    let answer = backend.post("/v1/runs", &body).await;
    answer.problem(422, "VW-H-006");
    assert!(answer.text.contains("NUL"), "{}", answer.text);
    let answer = backend.get("/v1/gateways?label=a%00b=c").await;
    answer.problem(422, "VW-H-007");
    assert!(answer.text.contains("NUL"), "{}", answer.text);
}
