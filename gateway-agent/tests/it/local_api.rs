//! The local API over a real socket, and the catalogue from real files.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;
use viworks_common::id::AgentRunId;
use viworks_common::telemetry::intake::IntakeQuota;
use viworks_gateway_agent::api::{self, AgentFacts, ApiError, Parts, ServeLimits};
use viworks_gateway_agent::audit::Audit;
use viworks_gateway_agent::catalogue::{self, Catalogue, OtherUsers, Owners, SHIPPED};
use viworks_gateway_agent::executor::{Executor, Limits};
use viworks_gateway_agent::outbound::pins::Pins;
use viworks_gateway_agent::spool::{BYTES_MIN, Bounds, Spool};
use viworks_gateway_agent::status::Status;
use viworks_runtime::answers::ALWAYS;
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::{Lifecycle, Task};

const ECHO: &str = r#"
[[command]]
name = "test.echo"
title = "Says it back"
risk = "read"
idempotent = true
argv = ["/bin/echo", "-n", "{word}"]

[[command.argument]]
name = "word"
type = "string"
pattern = "[a-z ]+"
default = "hello"

[[command]]
name = "test.missing"
title = "Cannot run"
risk = "change"
argv = ["/nonexistent/tool"]
"#;

struct Server {
    folder: TempDir,
    spool: Spool,
    intake: watch::Sender<IntakeQuota>,
    lifecycle: Lifecycle,
    conditions: Conditions,
    task: Task<io::Result<()>>,
}

fn write_catalogue(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
    let commands = folder.join("commands.d");
    std::fs::create_dir_all(&commands).unwrap();
    std::fs::set_permissions(&commands, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (name, text) in files {
        let file = commands.join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    commands
}

/// What every answer has, of this API as of the backend's.
fn has_headers(head: &str) {
    for (name, value) in ALWAYS {
        assert!(head.contains(&format!("\r\n{name}: {value}")), "{head}");
    }
}

fn load(folder: &Path) -> Result<Catalogue, String> {
    let others = OtherUsers::Helper(folder.join("helper.sock"));
    catalogue::load(
        folder,
        Owners::RootAndOwn,
        PathBuf::from("/proc/self/exe"),
        others,
    )
    .map_err(|problems| problems.to_string())
}

impl Server {
    async fn start() -> Self {
        Self::start_within(ServeLimits::default()).await
    }

    async fn start_within(limits: ServeLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let commands = write_catalogue(folder.path(), &[("test.toml", ECHO)]);
        let run = AgentRunId::from_uuid(Uuid::from_u128(1));
        let spool = Spool::open(&folder.path().join("spool.db"), Bounds::of(BYTES_MIN), run)
            .await
            .unwrap()
            .spool;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let lifecycle = Lifecycle::new();
        let conditions = Conditions::new(Arc::clone(&clock));
        let intake = watch::Sender::new(IntakeQuota::per_minute(3_000, 1024 * 1024));
        let status = Status::new(String::new());
        status.connected(1, clock.wall());
        let parts = Parts {
            facts: AgentFacts {
                agent_id: None,
                agent_run_id: run,
                version: "0",
                started_at: clock.wall(),
            },
            status: Arc::new(status),
            spool: spool.clone(),
            intake_quota: intake.subscribe(),
            executor: Executor::new(
                Limits::default(),
                env!("CARGO_BIN_EXE_viworks-gateway-agent").into(),
                Arc::clone(&clock),
            ),
            catalogue: catalogue::Current::new(load(&commands).unwrap()),
            pins: Arc::new(Pins::open(folder.path(), [].into())),
            audit: Audit::open(&folder.path().join("audit.log")).unwrap(),
            conditions: conditions.clone(),
            clock,
            lifecycle: lifecycle.clone(),
        };
        let listener = api::bind(&folder.path().join("api.sock")).await.unwrap();
        let task = lifecycle.spawn("local api", api::serve_within(listener, parts, limits));
        Self {
            folder,
            spool,
            intake,
            lifecycle,
            conditions,
            task,
        }
    }

    async fn request(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.folder.path().join("api.sock"))
            .await
            .unwrap();
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: local\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // A body that is too large is answered before it is read.
        drop(stream.write_all(request.as_bytes()).await);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        has_headers(head);
        if status >= 400 && path != "/v1/health" {
            assert!(
                head.contains("content-type: application/problem+json"),
                "{head}"
            );
        }
        (status, serde_json::from_str(body).unwrap())
    }

    /// A request of a user who may run nothing, and its whole answer.
    async fn request_of_nobody(&self, path: &str, body: &str) -> String {
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.folder.path(), open).unwrap();
        let socket = self.folder.path().join("api.sock");
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
        let (path, body) = (path.to_owned(), body.to_owned());
        let ask = move || ask_as_nobody(&socket, &path, &body);
        blocking::call("nobody", Duration::from_secs(30), ask)
            .await
            .unwrap()
    }

    async fn connect(&self, sent: &str) -> UnixStream {
        let path = self.folder.path().join("api.sock");
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        stream
    }

    async fn stop(self) {
        let outcome = self.lifecycle.shutdown(Duration::from_secs(5)).await;
        assert!(outcome.aborted.is_empty());
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn status_health_and_catalogue_answer() {
    let server = Server::start().await;
    let (status, body) = server.request("GET", "/v1/status", None).await;
    assert_eq!(
        (status, &body["connection"]["state"]),
        (200, &json!("connected"))
    );
    assert_eq!(body["spool"]["records"], 0);
    let (status, body) = server.request("GET", "/v1/health", None).await;
    assert_eq!((status, &body["healthy"]), (200, &json!(true)));
    let (status, body) = server.request("GET", "/v1/catalogue", None).await;
    assert_eq!(status, 200);
    assert_eq!(body["commands"][0]["name"], "test.echo");
    assert_eq!(
        body["commands"][1]["unavailable"],
        "/nonexistent/tool is not installed"
    );
    server.stop().await;
}

#[tokio::test]
async fn telemetry_is_durable_when_answered_and_refusals_are_named() {
    let server = Server::start().await;
    let body = json!({ "records": [
        { "stream": "app.queue", "fields": { "depth": 3 } },
        { "stream": "app.queue", "fields": {} },
        { "stream": "NOT A STREAM", "fields": { "depth": 3 } },
        { "stream": "app.queue", "observed_at": "1999-01-01T00:00:00Z", "fields": { "depth": 3 } },
        { "stream": "app.queue", "fields": { "depth": 4 } },
    ]});
    let (status, body) = server.request("POST", "/v1/telemetry", Some(body)).await;
    assert_eq!((status, &body["accepted"]), (200, &json!(3)));
    let refused: Vec<(u64, &str)> = body["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            (
                one["index"].as_u64().unwrap(),
                one["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        refused,
        [(1, "field_count"), (2, "malformed")],
        "a time is no reason to lose a record"
    );
    assert_eq!(server.spool.figures().records, 3);
    for bad in [json!({}), json!({ "records": [], "more": 1 }), json!([])] {
        let (status, _) = server.request("POST", "/v1/telemetry", Some(bad)).await;
        assert_eq!(status, 422);
    }
    let huge = json!({ "records": vec![json!("x".repeat(1_000)); 1_100] });
    assert_eq!(
        server.request("POST", "/v1/telemetry", Some(huge)).await.0,
        413
    );
    server.spool.close().await.unwrap();
    let body = json!({ "records": [{ "stream": "a", "fields": { "b": 1 } }] });
    let (status, body) = server.request("POST", "/v1/telemetry", Some(body)).await;
    assert_eq!((status, &body["code"]), (503, &json!("spool_unavailable")));
    server.stop().await;
}

#[tokio::test]
async fn a_command_runs_and_is_audited() {
    let server = Server::start().await;
    let arguments = json!({ "arguments": { "word": "good day" } });
    let (status, body) = server
        .request("POST", "/v1/commands/test.echo", Some(arguments))
        .await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["outcome"]["state"], "succeeded");
    // "good day" in Base64.
    assert_eq!(body["outcome"]["stdout"]["head"], "Z29vZCBkYXk=");
    let log = std::fs::read_to_string(server.folder.path().join("audit.log")).unwrap();
    let results: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results[0]["result"], "started");
    assert_eq!(results[1]["result"], "succeeded");
    server.stop().await;
}

#[tokio::test]
async fn a_command_that_may_not_run_is_a_problem_that_says_why() {
    let server = Server::start().await;
    let run = async |name: &str, body: Value| {
        let (status, body) = server
            .request("POST", &format!("/v1/commands/{name}"), Some(body))
            .await;
        (status, body["code"].as_str().unwrap().to_owned(), body)
    };
    let (status, code, body) = run("test.echo", json!({ "arguments": { "word": "-n;id" } })).await;
    assert_eq!((status, code.as_str()), (422, "bad_arguments"));
    assert_eq!(body["errors"][0]["argument"], "word");
    assert!(
        body["errors"][0]["allowed"]
            .as_str()
            .unwrap()
            .contains("[a-z ]+")
    );
    let (status, code, _) = run("test.unknown", json!({})).await;
    assert_eq!((status, code.as_str()), (404, "not_allowed"));
    let (status, code, _) = run("test.missing", json!({})).await;
    assert_eq!((status, code.as_str()), (503, "unavailable"));
    assert_eq!(server.request("GET", "/v1/nothing", None).await.0, 404);
    assert_eq!(server.request("GET", "/v1/telemetry", None).await.0, 405);
    server.stop().await;
}

/// Says so when not.
#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn can_become_another() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: requests of another user: only root can become one");
    }
    root
}

/// A request of a user who may run nothing, and its answer. Only root can become that user.
fn ask_as_nobody(socket: &Path, path: &str, body: &str) -> String {
    use std::io::{Read, Write};
    let socket = socket.to_owned();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: local\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let ask = move || {
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    // A thread of its own, whose user that is from then on.
    std::thread::spawn(ask).join().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_may_run_nothing_does_not_fill_the_audit_log() {
    if !can_become_another() {
        return;
    }
    let server = Server::start().await;
    for _again in 0..40 {
        let answer = server.request_of_nobody("/v1/commands/test.echo", "").await;
        assert!(answer.starts_with("HTTP/1.1 403 Forbidden"), "{answer}");
    }
    let log = std::fs::read_to_string(server.folder.path().join("audit.log")).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(
        log.contains("uid:65534") && log.contains("not permitted"),
        "{log}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_hands_in_too_much_is_told_when_to_come_back_and_keeps_nobody_else_out() {
    if !can_become_another() {
        return;
    }
    let server = Server::start().await;
    let record = json!({ "stream": "app.queue", "fields": { "depth": 3 } });
    let whole = json!({ "records": vec![record.clone(); 2_000] }).to_string();
    let answer = server.request_of_nobody("/v1/telemetry", &whole).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = server.request_of_nobody("/v1/telemetry", &whole).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains(r#""code":"over_rate""#), "{answer}");
    assert!(answer.contains("uid:65534"), "{answer}");
    let head = answer.to_ascii_lowercase();
    let seconds = head.split("\r\nretry-after: ").nth(1).unwrap();
    let seconds: u32 = seconds.lines().next().unwrap().parse().unwrap();
    // A thousand records too many, of which fifty come back each second.
    assert!((15..=20).contains(&seconds), "{answer}");
    assert_eq!(server.spool.figures().records, 2_000);
    let (_status, status) = server.request("GET", "/v1/status", None).await;
    let refused = json!({ "over_rate": 1, "busy": 0, "bodies_full": 0 });
    assert_eq!(status["intake"]["refused_requests"], refused);
    let conditions = server.conditions.list();
    let told = conditions
        .iter()
        .find(|condition| condition.name == "telemetry.intake")
        .unwrap();
    assert!(told.cause.contains("uid:65534"), "{told:?}");
    // Another rate counts at once, and what was handed in under the old one does not.
    let quota = IntakeQuota::per_minute(1_000, 1024 * 1024);
    server.intake.send_replace(quota);
    let answer = server.request_of_nobody("/v1/telemetry", &whole).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = server.request_of_nobody("/v1/telemetry", &whole).await;
    assert!(
        answer.contains("a user may hand in 1000 records"),
        "{answer}"
    );
    // Who may run commands has no rate.
    for _again in 0..2 {
        let body = json!({ "records": vec![record.clone(); 2_000] });
        let (status, body) = server.request("POST", "/v1/telemetry", Some(body)).await;
        assert_eq!((status, &body["accepted"]), (200, &json!(2_000)));
    }
    server.stop().await;
}

#[tokio::test]
async fn what_was_missing_is_available_once_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("tool");
    let text = ECHO.replace("/nonexistent/tool", program.to_str().unwrap());
    let commands = write_catalogue(folder.path(), &[("test.toml", &text)]);
    let current = catalogue::Current::new(load(&commands).unwrap());
    let mut changes = current.changes();
    changes.mark_unchanged();
    let unavailable = || {
        let entries = current.get().entries();
        let found = entries
            .into_iter()
            .filter(|entry| entry.unavailable.is_some());
        found
            .map(|entry| entry.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(unavailable(), ["test.missing"]);
    current.look_again(false).await;
    assert!(!changes.has_changed().unwrap(), "nothing is new");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    current.look_again(false).await;
    assert!(changes.has_changed().unwrap());
    assert_eq!(unavailable(), Vec::<String>::new());
}

#[tokio::test]
async fn bodies_are_bounded_altogether_and_a_crowd_is_told_of() {
    let server = Server::start_within(ServeLimits {
        bodies_bytes_max: 2_048,
        connections_max: 1,
        ..ServeLimits::default()
    })
    .await;
    let mut byte = [0; 1];
    let head = "POST /v1/telemetry HTTP/1.1\r\nhost: local\r\ncontent-type: application/json\r\ncontent-length: 2048\r\n\r\n";
    let mut caller = server
        .connect(&format!("{head}{}", " ".repeat(2_048)))
        .await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        caller.read_exact(&mut byte).await.unwrap();
        answer.extend(byte);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    has_headers(&answer);
    assert!(
        !server
            .conditions
            .list()
            .iter()
            .any(|found| found.name == "socket.crowded")
    );
    // The only place there is goes to the newcomer.
    let (status, _body) = server.request("GET", "/v1/status", None).await;
    assert_eq!(status, 200);
    let found = server.conditions.list();
    let found = found
        .iter()
        .find(|found| found.name == "socket.crowded")
        .unwrap();
    assert!(found.cause.contains("1 connections"), "{found:?}");
    server.stop().await;
}

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

const GET_HEALTH: &str = "GET /v1/health HTTP/1.1\r\nhost: local\r\n\r\n";

#[tokio::test]
async fn a_connection_over_the_limit_takes_the_place_of_an_idle_one() {
    let server = Server::start_within(ServeLimits {
        connections_max: 1,
        ..ServeLimits::default()
    })
    .await;
    let mut byte = [0; 1];
    let mut first = server.connect(GET_HEALTH).await;
    first.read_exact(&mut byte).await.unwrap();
    let mut second = server.connect(GET_HEALTH).await;
    timeout(PATIENCE, second.read_exact(&mut byte))
        .await
        .unwrap()
        .unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, first.read_to_end(&mut rest))
        .await
        .expect("the idle one is closed")
        .unwrap();
    drop(second);
    server.stop().await;
}

#[tokio::test]
async fn callers_who_read_nothing_keep_nobody_out_and_are_cut() {
    let server = Server::start_within(ServeLimits {
        connections_max: 8,
        per_user_max: 4,
        send_timeout: Duration::from_millis(200),
        ..ServeLimits::default()
    })
    .await;
    let request = "GET /v1/status HTTP/1.1\r\nhost: gateway\r\n\r\n".repeat(2_000);
    let mut silent = Vec::new();
    for _ in 0..12 {
        let mut stream = server.connect("").await;
        // More than the socket takes; it may be cut while it is sent.
        let sent = timeout(
            Duration::from_millis(50),
            stream.write_all(request.as_bytes()),
        )
        .await;
        drop(sent);
        silent.push(stream);
        let mut other = server.connect(GET_HEALTH).await;
        let mut byte = [0; 1];
        timeout(PATIENCE, other.read_exact(&mut byte))
            .await
            .unwrap()
            .unwrap();
    }
    for mut stream in silent {
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        drop(ended.expect("a caller who reads nothing is cut"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_caller_for_whom_there_is_no_place_gets_the_headers_of_every_other_answer() {
    let server = Server::start_within(ServeLimits {
        connections_max: 1,
        ..ServeLimits::default()
    })
    .await;
    let mut busy = server
        .connect("POST /v1/telemetry HTTP/1.1\r\nhost: local\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n")
        .await;
    let mut byte = [0; 1];
    // Whoever is told to go on has a request that is being worked on, and stays.
    let told = timeout(PATIENCE, busy.read_exact(&mut byte)).await;
    told.unwrap().unwrap();
    let mut late = server.connect("").await;
    let mut answer = String::new();
    let ended = timeout(PATIENCE, late.read_to_string(&mut answer)).await;
    ended.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    has_headers(&answer);
    drop(busy);
    server.stop().await;
}

#[tokio::test]
async fn two_hosts_and_encoded_bodies_are_refused() {
    let server = Server::start_within(ServeLimits::default()).await;
    for (headers, status) in [
        ("host: a\r\nhost: b\r\n", "400"),
        ("host: a\r\ncontent-encoding: gzip\r\n", "415"),
        ("host: a\r\ncontent-encoding: identity\r\n", "200"),
    ] {
        let request = format!("GET /v1/catalogue HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
        let mut stream = server.connect(&request).await;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_does_not_arrive_ends_its_connection() {
    let server = Server::start_within(ServeLimits {
        header_timeout: Duration::from_millis(50),
        ..ServeLimits::default()
    })
    .await;
    for sent in ["", "GET /v1/health HTTP/1.1\r\nhost:"] {
        let mut stream = server.connect(sent).await;
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_a_problem_that_says_so() {
    let server = Server::start_within(ServeLimits {
        body_timeout: Duration::from_millis(50),
        ..ServeLimits::default()
    })
    .await;
    let head = "POST /v1/telemetry HTTP/1.1\r\nhost: local\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let mut stream = server.connect(head).await;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"body_timeout\""), "{answer}");
    assert_eq!(server.spool.figures().records, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.sock");
    let first = api::bind(&path).await.unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert!(matches!(api::bind(&path).await, Err(ApiError::InUse(_))));
    drop(first);
    assert!(path.exists());
    drop(api::bind(&path).await.unwrap());
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(
        api::bind(&file).await,
        Err(ApiError::NotASocket(_))
    ));
    assert!(file.exists());
}

#[test]
fn the_shipped_catalogue_loads_and_builtins_are_available() {
    let folder = tempfile::tempdir().unwrap();
    let catalogue = load(&write_catalogue(folder.path(), SHIPPED)).unwrap();
    let entries = catalogue.entries();
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "gateway.info",
            "log.tail",
            "net.interfaces",
            "net.ping",
            "net.resolve",
            "service.restart",
            "service.status",
            "sys.disks",
            "sys.kernel",
            "sys.memory",
            "sys.processes",
            "sys.uptime",
        ]
    );
    for entry in &entries {
        let own = !entry.name.as_str().starts_with("service.") && entry.name.as_str() != "log.tail";
        assert!(!own || entry.unavailable.is_none(), "{entry:?}");
        // Its tools may be installed where systemd does not run.
        let systemd = Path::new("/run/systemd/system").exists();
        assert!(own || systemd || entry.unavailable.is_some(), "{entry:?}");
    }
}

#[test]
fn every_problem_of_every_file_is_listed_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let bad = r#"[[command]]
name = "a.b"
title = "T"
risk = "harmless"
argv = ["sh", "{word}"]
colour = "red"

[[command]]
name = "a.c"
title = "T"
risk = "read"
argv = ["/bin/echo", "{n}", "{other}"]
[[command.argument]]
name = "n"
type = "integer"
min = 5
max = 1
"#;
    let double = "[[command]]\nname = \"test.echo\"\ntitle = \"T\"\nrisk = \"read\"\nargv = [\"builtin:nothing\"]\n";
    let commands = write_catalogue(
        folder.path(),
        &[("a.toml", ECHO), ("b.toml", bad), ("c.toml", double)],
    );
    let problems = load(&commands).unwrap_err();
    for expected in [
        "b.toml:4",
        "harmless",
        "b.toml:6",
        "colour",
        "min is greater than max",
        "c.toml:5",
        "no built-in command",
    ] {
        assert!(
            problems.contains(expected),
            "{expected} is missing in\n{problems}"
        );
    }
}

#[test]
fn a_command_defined_twice_names_both_places() {
    let folder = tempfile::tempdir().unwrap();
    let commands = write_catalogue(folder.path(), &[("a.toml", ECHO), ("b.toml", ECHO)]);
    let problems = load(&commands).unwrap_err();
    assert!(
        problems.contains("command test.echo is defined twice"),
        "{problems}"
    );
    assert!(
        problems.contains("a.toml:3") && problems.contains("b.toml:3"),
        "{problems}"
    );
}

#[test]
fn a_catalogue_that_others_could_change_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let commands = write_catalogue(folder.path(), &[("a.toml", ECHO)]);
    for (path, bad, good) in [
        (commands.join("a.toml"), 0o666, 0o644),
        (commands.clone(), 0o777, 0o755),
    ] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bad)).unwrap();
        assert!(
            load(&commands)
                .unwrap_err()
                .contains("can be changed by others")
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(good)).unwrap();
    }
    assert!(load(&commands).is_ok());
    assert!(load(&folder.path().join("nowhere")).is_err());
}

#[tokio::test]
async fn a_socket_whose_file_is_gone_is_bound_again_and_one_that_is_taken_is_told_of() {
    let server = Server::start_within(ServeLimits {
        socket_check: Duration::from_millis(10),
        ..ServeLimits::default()
    })
    .await;
    let path = server.folder.path().join("api.sock");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o660);
    std::fs::remove_file(&path).unwrap();
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (status, _body) = server.request("GET", "/v1/status", None).await;
    assert_eq!((status, mode()), (200, 0o660));
    // Somebody else's file is not touched.
    std::fs::remove_file(&path).unwrap();
    let taken = std::fs::File::create_new(&path);
    let raised = |severity: &str| {
        let listed = server.conditions.list();
        listed
            .iter()
            .any(|found| found.name == "socket" && format!("{:?}", found.severity) == severity)
    };
    if taken.is_ok() {
        while !raised("Fail") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(path.is_file());
        std::fs::remove_file(&path).unwrap();
    }
    while raised("Fail") || !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (status, _body) = server.request("GET", "/v1/status", None).await;
    assert_eq!(status, 200);
}
