//! Waiting for runs and following them live.

use std::time::Duration;

use futures_util::StreamExt;
use http::StatusCode;
use serde_json::{Value, json};
use viworks_backend_agent::command::bus::{CommandChange, OutputChunk};
use viworks_backend_agent::data::{Holder, LeaseLimits};
use viworks_common::command::CommandState;
use viworks_common::id::{CommandId, RunId};
use viworks_common::wire::message::OutputStream;
use viworks_testkit::process::eventually;

use super::harness::{Backend, catalogue, now};

/// A hang is a failure that says where.
const PATIENCE: Duration = Duration::from_secs(30);

async fn next(
    events: &mut (impl futures_util::Stream<Item = (String, String, Value)> + Unpin),
) -> Option<(String, String, Value)> {
    tokio::time::timeout(PATIENCE, events.next()).await.unwrap()
}

async fn one_run(backend: &Backend) -> (Holder, RunId, CommandId) {
    let holder = backend.connect("gw-1", catalogue()).await;
    let run = backend.submit_uptime().await;
    let commands = backend
        .get(&format!("/v1/runs/{run}/commands"))
        .await
        .json();
    let command = commands["items"][0]["id"].as_str().unwrap();
    (holder, run.parse().unwrap(), command.parse().unwrap())
}

fn output(holder: &Holder, command_id: CommandId, offset: u64, text: &str) -> OutputChunk {
    OutputChunk {
        at: now(),
        command_id,
        agent_id: holder.agent_id,
        stream: OutputStream::Stdout,
        offset,
        data: text.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn a_wait_ends_with_the_time_it_was_given() {
    let backend = Backend::new().await;
    let (_holder, run, _command) = one_run(&backend).await;
    for millis in [0, 50] {
        let path = format!("/v1/runs/{run}/wait?timeout_ms={millis}");
        let answer = tokio::time::timeout(PATIENCE, backend.get(&path))
            .await
            .unwrap()
            .json();
        assert_eq!(answer["finished"], false);
        assert_eq!(answer["run"]["state"], "running");
    }
    let answer = backend
        .get(&format!("/v1/runs/{run}/wait?timeout_ms=60001"))
        .await;
    answer.problem(422, "VW-H-007");
}

#[tokio::test]
async fn a_wait_ends_when_the_run_does() {
    let backend = Backend::with(|limits, _queue| limits.recheck = Duration::from_secs(3_600)).await;
    let (_holder, run, _command) = one_run(&backend).await;
    let path = format!("/v1/runs/{run}/wait?timeout_ms=60000");
    let cancel = format!("/v1/runs/{run}/cancel");
    let (waited, _cancelled) = tokio::time::timeout(PATIENCE, async {
        tokio::join!(backend.get(&path), backend.post_text(&cancel, "", &[]))
    })
    .await
    .unwrap();
    assert_eq!(waited.json()["finished"], true);
}

fn uptime() -> Value {
    json!({"command": "sys.uptime", "targets": {"gateways": ["gw-1"]}})
}

#[tokio::test]
async fn a_submission_that_waits_is_answered_with_the_end_of_its_run() {
    let backend = Backend::with(|limits, _queue| limits.recheck = Duration::from_secs(3_600)).await;
    backend.connect("gw-1", catalogue()).await;
    let cancel = async {
        // Whoever waits is not the only one who knows the run.
        let run = loop {
            let runs = backend.get("/v1/runs").await.json();
            if let Some(id) = runs["items"][0]["id"].as_str() {
                break id.to_owned();
            }
            tokio::task::yield_now().await;
        };
        let path = format!("/v1/runs/{run}/cancel");
        backend.post_text(&path, "", &[]).await
    };
    let body = uptime();
    let (answer, _cancelled) = tokio::time::timeout(PATIENCE, async {
        tokio::join!(backend.post("/v1/runs?wait_ms=60000", &body), cancel)
    })
    .await
    .unwrap();
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let run = answer.json();
    assert_eq!(run["state"], "finished");
    assert_eq!(run["counts"], json!({"cancelled": 1}));
}

#[tokio::test]
async fn a_submission_that_waited_in_vain_says_where_to_wait_on() {
    let backend = Backend::new().await;
    backend.connect("gw-1", catalogue()).await;
    let answer = backend.post("/v1/runs?wait_ms=1", &uptime()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text);
    let run = answer.json();
    assert_eq!(run["state"], "running");
    let path = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), path);
    assert_eq!(
        answer.header("link"),
        format!("<{path}/wait>; rel=\"monitor\"")
    );
    let waited = backend.get(&format!("{path}/wait?timeout_ms=1")).await;
    assert_eq!(waited.json()["finished"], false);
    for wrong in ["60001", "-1", "soon", ""] {
        let path = format!("/v1/runs?wait_ms={wrong}");
        let answer = backend.post(&path, &uptime()).await;
        answer.problem(422, "VW-H-007");
    }
    let runs = backend.get("/v1/runs").await.json();
    assert_eq!(
        runs["items"].as_array().unwrap().len(),
        1,
        "nothing else was sent"
    );
}

#[tokio::test]
async fn a_wait_notices_an_end_that_nobody_announced() {
    let backend = Backend::new().await;
    let (_holder, run, _command) = one_run(&backend).await;
    let path = format!("/v1/runs/{run}/wait?timeout_ms=60000");
    let actor = viworks_backend_agent::data::Actor::local("test");
    let silently = backend
        .store
        .cancel_run(&backend.tenant, run, &actor, now());
    let (waited, _cancelled) = tokio::time::timeout(PATIENCE, async {
        tokio::join!(backend.get(&path), silently)
    })
    .await
    .unwrap();
    assert_eq!(waited.json()["finished"], true);
}

#[tokio::test]
async fn a_wait_ends_when_the_backend_stops() {
    let backend = Backend::with(|limits, _queue| limits.recheck = Duration::from_secs(3_600)).await;
    let (_holder, run, _command) = one_run(&backend).await;
    let path = format!("/v1/runs/{run}/wait?timeout_ms=60000");
    let stop = async { backend.stopping.cancel() };
    let (waited, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(backend.get(&path), stop) })
            .await
            .unwrap();
    assert_eq!(waited.json()["finished"], false);
}

#[tokio::test]
async fn a_follower_sees_states_live_output_and_the_end() {
    let backend = Backend::new().await;
    let (holder, run, command) = one_run(&backend).await;
    backend
        .bus
        .output(run, output(&holder, command, 0, "early "));
    let mut events = backend
        .follow(&format!("/v1/runs/{run}/events"), None)
        .await;
    let (event, id, data) = next(&mut events).await.unwrap();
    assert_eq!(
        (event.as_str(), data["data"]["text"].as_str()),
        ("output", Some("early "))
    );
    assert!(!id.is_empty());
    let (event, _id, data) = next(&mut events).await.unwrap();
    assert_eq!(event, "command");
    assert_eq!(data["state"], "queued");
    assert_eq!(data["gateway"]["name"], "gw-1");
    backend.bus.output(run, output(&holder, command, 6, "late"));
    let (_event, _id, data) = next(&mut events).await.unwrap();
    assert_eq!(
        (data["offset"].as_u64(), data["data"]["text"].as_str()),
        (Some(6), Some("late"))
    );
    backend
        .post_text(&format!("/v1/runs/{run}/cancel"), "", &[])
        .await;
    let (event, _id, data) = next(&mut events).await.unwrap();
    assert_eq!(
        (event.as_str(), &data["state"]),
        ("command", &json!("cancelled"))
    );
    let (event, _id, data) = next(&mut events).await.unwrap();
    assert_eq!(
        (event.as_str(), &data["run"]["state"]),
        ("finished", &json!("finished"))
    );
    assert!(
        next(&mut events).await.is_none(),
        "the stream ends with the run"
    );
}

#[tokio::test]
async fn a_follower_is_told_each_range_of_output_that_does_not_come() {
    let backend = Backend::new().await;
    let (holder, run, command) = one_run(&backend).await;
    // A beginning that nobody remembers, and a hole behind the first piece.
    for (offset, text) in [(5, "first"), (10, "second"), (1_000, "third")] {
        backend
            .bus
            .output(run, output(&holder, command, offset, text));
    }
    let mut change = CommandChange {
        at: now(),
        command_id: command,
        agent_id: holder.agent_id,
        state: CommandState::Running,
        attempt: None,
        exit_code: None,
        duration_ms: None,
        reason: None,
        written: None,
    };
    let mut events = backend
        .follow(&format!("/v1/runs/{run}/events"), None)
        .await;
    let mut heard = Vec::new();
    let mut ended = false;
    while let Some((event, _id, data)) = next(&mut events).await {
        match event.as_str() {
            "missed" => {
                assert_eq!(data["events"], 0, "{data}");
                for hole in data["output"].as_array().unwrap() {
                    assert_eq!(hole["command_id"], command.to_string());
                    assert_eq!(
                        (&hole["gateway"]["name"], &hole["stream"]),
                        (&json!("gw-1"), &json!("stdout"))
                    );
                    heard.push(format!("-{}+{}", hole["offset"], hole["bytes"]));
                }
            }
            "output" => heard.push(data["data"]["text"].as_str().unwrap().to_owned()),
            "command" if !ended => {
                ended = true;
                change.written = Some(viworks_backend_agent::command::bus::Written {
                    stdout: 2_000,
                    stderr: 0,
                });
                backend.bus.command_changed(run, change.clone(), false);
                backend
                    .post_text(&format!("/v1/runs/{run}/cancel"), "", &[])
                    .await;
            }
            _ => {}
        }
    }
    assert_eq!(
        heard,
        ["-0+5", "first", "second", "-16+984", "third", "-1005+995"]
    );
}

#[tokio::test]
async fn a_follower_that_comes_back_goes_on_where_it_was() {
    let backend = Backend::new().await;
    let (holder, run, command) = one_run(&backend).await;
    for (offset, text) in [(0, "a"), (1, "b"), (2, "c")] {
        backend
            .bus
            .output(run, output(&holder, command, offset, text));
    }
    let path = format!("/v1/runs/{run}/events");
    let mut events = backend.follow(&path, None).await;
    let (_event, id, _data) = next(&mut events).await.unwrap();
    drop(events);
    let mut events = backend.follow(&path, Some(&id)).await;
    for text in ["b", "c"] {
        let (_event, _id, data) = next(&mut events).await.unwrap();
        assert_eq!(data["data"]["text"], text);
    }
}

#[tokio::test]
async fn a_follower_from_before_a_restart_is_told_and_gets_every_state() {
    let backend = Backend::new().await;
    let (_holder, run, _command) = one_run(&backend).await;
    let path = format!("/v1/runs/{run}/events");
    let mut events = backend.follow(&path, Some("00000000000000ff-12")).await;
    let (event, _id, _data) = next(&mut events).await.unwrap();
    assert_eq!(event, "missed");
    let (event, _id, data) = next(&mut events).await.unwrap();
    assert_eq!(
        (event.as_str(), &data["state"]),
        ("command", &json!("queued"))
    );
}

#[tokio::test]
async fn a_follower_of_a_finished_run_gets_its_states_and_the_end() {
    let backend = Backend::new().await;
    let (_holder, run, _command) = one_run(&backend).await;
    let actor = viworks_backend_agent::data::Actor::local("test");
    let cancelled = backend
        .store
        .cancel_run(&backend.tenant, run, &actor, now())
        .await;
    assert!(cancelled.unwrap().is_some());
    let mut events = backend
        .follow(&format!("/v1/runs/{run}/events"), None)
        .await;
    for expected in ["command", "finished"] {
        let (event, _id, _data) = next(&mut events).await.unwrap();
        assert_eq!(event, expected);
    }
    assert!(next(&mut events).await.is_none());
}

#[tokio::test]
async fn a_follower_is_told_what_another_instance_moved_without_a_word() {
    let backend = Backend::new().await;
    let (holder, run, command) = one_run(&backend).await;
    let mut events = backend
        .follow(&format!("/v1/runs/{run}/events"), None)
        .await;
    let (_event, _id, data) = next(&mut events).await.unwrap();
    assert_eq!(data["state"], "queued");
    let limits = LeaseLimits {
        commands: 1,
        attempts_max: 5,
    };
    let leased = backend
        .store
        .lease_commands(&backend.tenant, &holder, limits, now());
    let permitted = leased.await.unwrap().commands[0].permitted;
    let state = if permitted {
        CommandState::Released
    } else {
        CommandState::Dispatched
    };
    let (_event, _id, data) = next(&mut events).await.unwrap();
    assert_eq!(data["state"], state.name());
    // What is announced after all says nothing new, until it does.
    for state in [state, CommandState::Running] {
        let change = CommandChange {
            at: now(),
            command_id: command,
            agent_id: holder.agent_id,
            state,
            attempt: None,
            exit_code: None,
            duration_ms: None,
            reason: None,
            written: None,
        };
        backend.bus.command_changed(run, change, false);
    }
    let (_event, _id, data) = next(&mut events).await.unwrap();
    assert_eq!(data["state"], "running");
}

#[tokio::test]
async fn event_streams_are_bounded() {
    let backend = Backend::with(|limits, _queue| limits.streams_max = 1).await;
    let (_holder, run, _command) = one_run(&backend).await;
    let path = format!("/v1/runs/{run}/events");
    let first = backend.follow(&path, None).await;
    let answer = backend.get(&path).await;
    answer.problem(503, "VW-H-010");
    assert!(!answer.header("retry-after").is_empty());
    let health = backend.get("/v1/health").await;
    assert!(health.text.contains("api.full"), "{}", health.text);
    drop(first);
    let mut second = backend.follow(&path, None).await;
    assert!(next(&mut second).await.is_some());
}

#[tokio::test]
async fn a_key_that_took_all_its_event_streams_leaves_room_for_others() {
    let backend = Backend::with(|limits, _queue| limits.streams_per_key_max = 1).await;
    let (_holder, run, _command) = one_run(&backend).await;
    let path = format!("/v1/runs/{run}/events");
    let _first = backend.follow(&path, None).await;
    let answer = backend.get(&path).await;
    answer.problem(503, "VW-H-010");
    assert!(answer.text.contains("this key"), "{}", answer.text);
    let other = backend.key_with(&[viworks_api::Scope::RunsRead]).await;
    let request = http::Request::get(&path)
        .header("authorization", format!("Bearer {other}"))
        .body(axum::body::Body::empty())
        .unwrap();
    let answer = tower::ServiceExt::oneshot(backend.router.clone(), request);
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_key_that_waits_as_often_as_it_may_leaves_room_for_others() {
    let backend = Backend::with(|limits, _queue| {
        limits.waits_per_key_max = 1;
        // It asks until the other one waits.
        limits.quota.burst = 1_000_000;
    })
    .await;
    let (_holder, run, _command) = one_run(&backend).await;
    let path = format!("/v1/runs/{run}/wait?timeout_ms=60000");
    let mut waiting = std::pin::pin!(wait_again_and_again(&backend, &path));
    // Once that is where it waits, it has the one that there is.
    let refused = eventually("the key has the one it may have", PATIENCE, async || {
        let answer = backend.get(&path_of_no_time(&path)).await;
        (answer.status == 503).then_some(answer)
    });
    let answer = tokio::select! {
        () = waiting.as_mut() => unreachable!("it asks again"),
        answer = refused => answer,
    };
    answer.problem(503, "VW-H-010");
    assert!(answer.text.contains("this key"), "{}", answer.text);
    let health = backend.get("/v1/health").await;
    assert!(health.text.contains("api.key_full"), "{}", health.text);
    // A submission that may not wait sends nothing.
    let answer = backend.post("/v1/runs?wait_ms=10", &uptime()).await;
    answer.problem(503, "VW-H-010");
    let runs = backend.get("/v1/runs").await.json();
    assert_eq!(runs["items"].as_array().unwrap().len(), 1);
    let other = backend.key_with(&[viworks_api::Scope::RunsRead]).await;
    let request = http::Request::get(path_of_no_time(&path))
        .header("authorization", format!("Bearer {other}"))
        .body(axum::body::Body::empty())
        .unwrap();
    let answer = tower::ServiceExt::oneshot(backend.router.clone(), request);
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
}

/// Waits, and asks again when somebody else had the place at that moment.
async fn wait_again_and_again(backend: &Backend, path: &str) {
    loop {
        backend.get(path).await.problem(503, "VW-H-010");
    }
}

/// The same wait, without waiting.
fn path_of_no_time(path: &str) -> String {
    path.replace("60000", "0")
}
