//! The local API over a real socket.

mod connections;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use uuid::Uuid;
use viworks_common::id::AgentRunId;
use viworks_common::telemetry::intake::IntakeQuota;
use viworks_gateway_agent::api::{self, AgentFacts, CertificateStatus, Parts, ServeLimits};
use viworks_gateway_agent::audit::Audit;
use viworks_gateway_agent::catalogue::Current;
use viworks_gateway_agent::executor::{Executor, Limits};
use viworks_gateway_agent::journal::Journal;
use viworks_gateway_agent::outbound::pins::Pins;
use viworks_gateway_agent::renewal::Renewal;
use viworks_gateway_agent::spool::{BYTES_MIN, Bounds, Spool};
use viworks_gateway_agent::status::Status;
use viworks_runtime::answers::ALWAYS;
use viworks_runtime::blocking;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::conditions::Conditions;
use viworks_runtime::lifecycle::{Lifecycle, Task};

use crate::catalogue::{ECHO, load, write_catalogue};

const HOUR: Duration = Duration::from_secs(3_600);

struct Server {
    folder: TempDir,
    spool: Spool,
    intake: watch::Sender<IntakeQuota>,
    lifecycle: Lifecycle,
    conditions: Conditions,
    task: Task<io::Result<()>>,
}

/// What every answer has, of this API as of the backend's.
fn has_headers(head: &str) {
    for (name, value) in ALWAYS {
        assert!(head.contains(&format!("\r\n{name}: {value}")), "{head}");
    }
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
        let journal = Journal::open(&folder.path().join("journal.db"), 256).await;
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
            journal: journal.unwrap(),
            state_folder: folder.path().to_owned(),
            certificate: {
                let (not_before, not_after) = (clock.wall(), clock.wall().saturating_add(HOUR));
                let folder = folder.path().to_owned();
                let renewal = Renewal::new(folder, conditions.clone(), Arc::clone(&clock));
                Arc::new(move || CertificateStatus {
                    not_before,
                    not_after,
                    origin: "configured",
                    renewal: renewal.status((not_before, not_after)),
                })
            },
            executor: Executor::new(
                Limits::default(),
                env!("CARGO_BIN_EXE_viworks-gateway-agent").into(),
                Arc::clone(&clock),
            ),
            catalogue: Current::new(load(&commands).unwrap()),
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
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        self.request_text(method, path, &body).await
    }

    /// The same with a body as it is written.
    async fn request_text(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.folder.path().join("api.sock"))
            .await
            .unwrap();
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
    // What cannot run is named, and not counted with what can.
    let (_status, catalogue) = server.request("GET", "/v1/catalogue", None).await;
    let all = catalogue["commands"].as_array().unwrap().len();
    let missing = body["commands"]["unavailable"].as_array().unwrap().len();
    let allowed = json!(all - missing);
    assert!(missing > 0, "{body:#}");
    assert_eq!(body["commands"]["allowed"], allowed, "{body:#}");
    let (status, body) = server.request("GET", "/v1/health", None).await;
    assert_eq!((status, &body["healthy"]), (200, &json!(true)));
    assert_eq!(body["parts"]["commands"]["allowed"], allowed, "{body:#}");
    for (part, figures) in [
        (
            "connection",
            &["round_trip_us", "clock_skew_ms", "since"][..],
        ),
        (
            "spool",
            &["waiting_records", "oldest_age_ms", "bytes", "bytes_max"],
        ),
        ("journal", &["entries", "entries_max"]),
        ("disk", &["free_bytes", "reserve_held"]),
        ("certificate", &["remaining_s", "not_after"]),
        ("pins", &["version", "trusted"]),
        ("commands", &["running", "allowed"]),
        ("process", &["uptime_ms"]),
    ] {
        let part = &body["parts"][part];
        assert_eq!(part["healthy"], true, "{body:#}");
        for figure in figures {
            assert!(part.get(figure).is_some(), "{figure}: {body:#}");
        }
    }
    let left = body["parts"]["certificate"]["remaining_s"]
        .as_i64()
        .unwrap();
    assert!((3_500..=3_600).contains(&left), "{body:#}");
    let record = json!({ "stream": "door", "fields": { "open": 1 } });
    let (status, answer) = server
        .request(
            "POST",
            "/v1/telemetry",
            Some(json!({ "records": [record] })),
        )
        .await;
    assert_eq!(status, 200, "{answer:#}");
    let (_status, body) = server.request("GET", "/v1/health", None).await;
    let spool = &body["parts"]["spool"];
    assert_eq!(spool["waiting_records"], 1, "{body:#}");
    assert!(
        spool["oldest_age_ms"].as_u64().unwrap() < 60_000,
        "{body:#}"
    );
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
    // A key that stands twice is no matter of which reading counts; the other records are taken.
    let twice = r#"{"records": [{"stream": "a", "fields": {"b": 1, "b": 2}}, {"stream": "a", "fields": {"b": 1}}]}"#;
    let (status, body) = server.request_text("POST", "/v1/telemetry", twice).await;
    assert_eq!((status, &body["accepted"]), (200, &json!(1)));
    let detail = &body["refused"][0]["detail"];
    assert_eq!(detail, "duplicate field `fields.b`", "{body:#}");
    let twice = r#"{"arguments": {"a": "1", "a": "2"}}"#;
    let path = "/v1/commands/test.echo";
    let (status, body) = server.request_text("POST", path, twice).await;
    assert_eq!(status, 422, "{body:#}");
    assert!(body.to_string().contains("duplicate field `a`"), "{body:#}");
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
        answer.contains("a user may hand in 1,000 records"),
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
