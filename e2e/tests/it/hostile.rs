//! An enrolled gateway that sends what costs most: it is slowed, refused or closed, and the backend keeps its size.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;
use viworks_common::catalogue::{Argument, ArgumentType, CatalogueEntry, Risk};
use viworks_common::code::CloseCode;
use viworks_common::command::{Outcome, OutcomeState, RetainedOutput};
use viworks_common::id::CommandId;
use viworks_common::session::AgentEvent;
use viworks_common::time::Timestamp;
use viworks_common::wire::envelope::Packed;
use viworks_common::wire::message::{Catalogue, CommandResult};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::random;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, mark_starts};
use viworks_testkit::process::{Process, Said, eventually, finish};
use viworks_testkit::rogue::{Hostile, Material, Refused, Rogue};

use super::desk::viworks;

const TELEMETRY: u8 = 0x12;
const RESULT: u8 = 0x17;

/// Sessions in which a gateway floods the backend, one after another.
const SESSIONS: usize = 6;

/// What one enrolled gateway may cost, in KiB.
const COST_KIB: u64 = 16 * 1_024;

/// What results that nobody asked for may take on the backend's disk, its write-ahead log included, in KiB.
const STORED_KIB: u64 = 40 * 1_024;

/// Batches of one session within its credit, as they were counted in the field.
const BATCHES: u64 = 553;

struct Scene {
    system: Deployment,
    material: Material,
    honest: Process,
}

/// A backend with an honest gateway that has run a command, and the papers of one that is not.
async fn scene(start: Start) -> Scene {
    let mut system = Deployment::new(Binaries::shipped());
    let rogue = system.issue("gw-hostile");
    let honest = system.issue("gw-honest");
    mark_starts(&honest);
    let material = Material::read(&rogue).unwrap();
    system.start_backend(start).await;
    let honest = system.start_gateway(&honest, Start::default());
    system.online("gw-honest").await;
    let scene = Scene {
        system,
        material,
        honest,
    };
    scene.command("warm").await;
    scene
}

impl Scene {
    async fn connect(&self, ratchet: Option<(u64, String)>) -> Hostile {
        let agents = self.system.agents_address();
        let rogue = Rogue::challenged(agents, &self.material).await.unwrap();
        rogue.establish(ratchet).await.unwrap()
    }

    /// One command on the honest gateway, to its end.
    async fn command(&self, key: &str) {
        let body = json!({"command": ONCE, "targets": {"gateways": ["gw-honest"]}, "reason": key});
        let run = self.system.post("/v1/runs", &body).await;
        let run = self.system.finished(run["id"].as_str().unwrap()).await;
        assert_eq!(run["counts"]["succeeded"], 1, "{run}");
    }

    fn backend_kib(&mut self, what: &str) -> u64 {
        let pid = self.system.backend().pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(what))
            .unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    /// Forgets the peak of the backend's memory, and says what it holds now.
    fn idle_kib(&mut self) -> u64 {
        let pid = self.system.backend().pid();
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        self.backend_kib("VmRSS:")
    }

    fn cost_kib(&mut self, idle: u64) -> u64 {
        self.backend_kib("VmHWM:").saturating_sub(idle)
    }

    /// What the backend's database takes on its disk, in KiB.
    fn stored_kib(&self) -> u64 {
        let files = std::fs::read_dir(self.system.path().join("backend/state")).unwrap();
        let sizes = files.map(|file| file.unwrap().metadata().unwrap().len());
        sizes.sum::<u64>() / 1_024
    }

    /// The actions of the newest audit records.
    async fn audited(&self) -> Vec<String> {
        let (mut actions, mut path) = (Vec::new(), "/v1/audit?limit=500".to_owned());
        loop {
            let page = self.system.get(&path).await;
            let items = page["items"].as_array().unwrap().iter();
            actions.extend(items.map(|it| it["action"].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else {
                return actions;
            };
            path = format!("/v1/audit?limit=500&cursor={next}");
        }
    }

    /// What the command line says to an operator.
    async fn viworks(&self, arguments: &[&str]) -> Said {
        let token = self.system.path().join("operator.key");
        let command = viworks(&self.system, &token, arguments);
        finish(command, PATIENCE).await.ended_with(0)
    }

    async fn metric(&self, line: &str) -> u64 {
        let (status, text) = self.system.request("GET", "/metrics", None).await.unwrap();
        assert_eq!(status, 200);
        let text = text.as_str().unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line));
        value.map_or(0, |value| value.trim().parse().unwrap())
    }

    async fn stopped(mut self) {
        assert!(self.honest.stop(PATIENCE).await.success());
        assert!(self.system.backend().stop(PATIENCE).await.success());
    }
}

/// A batch of `records` records of `fields` fields, as small as JSON gets, compressed.
fn batch(spool_epoch: Uuid, from_seq: u64, records: usize, fields: usize) -> Packed {
    let ones = |count: usize| vec!["1"; count].join(",");
    // As many fields as a record may have, and half a megabyte of text.
    let value = if fields == 64 { "1.5" } else { "1" };
    let to_seq = from_seq + u64::try_from(records).unwrap() - 1;
    let mut body = format!(
        r#"{{"spool_epoch":"{spool_epoch}","from_seq":{from_seq},"to_seq":{to_seq},"gaps":[],"streams":["a"],"stream":[{}],"observed_at":[{}],"fields":{{"#,
        vec!["0"; records].join(","),
        ones(records),
    );
    for field in 0..fields {
        let comma = if field == 0 { "" } else { "," };
        let column = vec![value; records].join(",");
        write!(body, r#"{comma}"f{field}":[{column}]"#).unwrap();
    }
    body.push_str("}}");
    Packed::compressed(body.into_bytes())
}

fn acknowledged(event: &AgentEvent) -> Option<u64> {
    if let AgentEvent::TelemetryAcknowledged(position) = event {
        Some(position.seq)
    } else {
        None
    }
}

/// One record for each stream, all observed at `observed_at` microseconds.
fn records(spool_epoch: Uuid, streams: &[String], observed_at: i64) -> Packed {
    let count = streams.len();
    let body = json!({
        "spool_epoch": spool_epoch,
        "from_seq": 1,
        "to_seq": count,
        "gaps": [],
        "streams": streams,
        "stream": (0..count).collect::<Vec<_>>(),
        "observed_at": (0..count).map(|row| if row == 0 { observed_at } else { 0 }).collect::<Vec<_>>(),
        "fields": {"value": vec![1; count]},
    });
    Packed::compressed(body.to_string().into_bytes())
}

fn refused(event: &AgentEvent) -> Option<BTreeMap<String, u64>> {
    if let AgentEvent::TelemetryRefused(refused) = event {
        Some(refused.clone())
    } else {
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_has_stored_is_bounded_and_what_is_refused_is_counted_and_told() {
    let start = Start::default()
        .with("VIWORKS__TELEMETRY__GATEWAY_EPOCHS_PER_DAY", "5")
        .with("VIWORKS__TELEMETRY__GATEWAY_STREAMS_MAX", "10")
        .with("VIWORKS__TELEMETRY__GATEWAY_RECORDS_PER_DAY", "30");
    let mut scene = scene(start).await;
    let now = SystemClock.wall().unix_micros();
    let mut hostile = scene.connect(None).await;
    let one = ["a".to_owned()];
    for epoch in 1..=20 {
        let body = records(Uuid::from_u128(epoch), &one, now);
        assert!(hostile.send(TELEMETRY, &body).await);
        if epoch > 5 {
            let told = hostile.read_until(refused).await.unwrap();
            assert_eq!(told, BTreeMap::from([("epoch_limit".to_owned(), 1)]));
        }
    }
    let streams: Vec<String> = (0..40).map(|number| format!("s{number}")).collect();
    let body = records(Uuid::from_u128(1), &streams, now);
    assert!(hostile.send(TELEMETRY, &body).await);
    let told = hostile.read_until(refused).await.unwrap();
    // The first record had been there: of the others nine are in new streams.
    assert_eq!(told, BTreeMap::from([("stream_limit".to_owned(), 30)]));
    let mut more = json!({
        "spool_epoch": Uuid::from_u128(2), "from_seq": 2, "to_seq": 61, "gaps": [], "streams": ["a"],
        "stream": vec![0; 60], "observed_at": vec![0; 60], "fields": {"value": vec![1; 60]},
    });
    more["observed_at"][0] = json!(now);
    let body = Packed::compressed(more.to_string().into_bytes());
    assert!(hostile.send(TELEMETRY, &body).await);
    let told = hostile.read_until(refused).await.unwrap();
    // Five records of the epochs and nine of the streams came before.
    assert_eq!(told, BTreeMap::from([("record_limit".to_owned(), 60 - 16)]));

    let path = "/v1/telemetry/refusals?gateway=gw-hostile";
    let listed = scene.system.get(path).await;
    for (reason, records) in [
        ("epoch_limit", 15),
        ("stream_limit", 30),
        ("record_limit", 44),
    ] {
        let found = listed["items"].as_array().unwrap().iter();
        let sum: u64 = found
            .filter(|it| it["reason"] == reason)
            .map(|it| it["records"].as_u64().unwrap())
            .sum();
        assert_eq!(sum, records, "{reason}: {listed}");
        let line = format!("viworks_telemetry_refused_records_total{{reason=\"{reason}\"}}");
        assert_eq!(scene.metric(&line).await, records);
    }
    let health = scene.system.get("/v1/health").await.to_string();
    assert!(health.contains("telemetry.refused"), "{health}");
    assert!(scene.system.backend().log().contains("epoch_limit"));
    let streams = scene
        .system
        .get("/v1/telemetry/streams?gateway=gw-hostile")
        .await;
    assert_eq!(streams["items"].as_array().unwrap().len(), 10);
    drop(hostile);
    scene.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_clock_loses_no_record_and_the_derived_time_is_marked() {
    const SKEW_MS: i64 = 2 * 3_600 * 1_000;
    let scene = scene(Start::default()).await;
    let mut gateway = scene.connect(None).await;
    let heartbeat = json!({
        "sent_at_ms": 1, "round_trip_us": null, "clock_skew_ms": SKEW_MS,
        "spool_records": 0, "spool_bytes": 0, "commands_running": 0,
    });
    let heartbeat = Packed::plain(heartbeat.to_string().into_bytes());
    assert!(gateway.send(0x10, &heartbeat).await);
    let now = SystemClock.wall().unix_micros();
    let ahead = records(
        Uuid::from_u128(1),
        &["ahead".to_owned()],
        now + SKEW_MS * 1_000,
    );
    assert!(gateway.send(TELEMETRY, &ahead).await);
    gateway.read_until(acknowledged).await.unwrap();
    let never_set = records(Uuid::from_u128(2), &["never-set".to_owned()], 1_000_000);
    assert!(gateway.send(TELEMETRY, &never_set).await);
    gateway.read_until(acknowledged).await.unwrap();
    for (stream, source, said) in [
        ("ahead", "skew", now + SKEW_MS * 1_000),
        ("never-set", "received", 1_000_000),
    ] {
        let path = format!("/v1/telemetry?gateway=gw-hostile&stream={stream}");
        let page = scene.system.get(&path).await;
        let record = &page["items"][0];
        assert_eq!(record["time_source"], source, "{page}");
        let time = |name: &str| {
            Timestamp::parse(record[name].as_str().unwrap())
                .unwrap()
                .unix_micros()
        };
        assert_eq!(time("gateway_time"), said);
        assert!((time("observed_at") - now).abs() < 60_000_000, "{page}");
    }
    let refused = scene
        .system
        .get("/v1/telemetry/refusals?gateway=gw-hostile")
        .await;
    assert_eq!(refused["items"].as_array().unwrap().len(), 0);
    assert_eq!(
        scene
            .metric("viworks_telemetry_retimed_records_total")
            .await,
        2
    );
    drop(gateway);
    scene.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_repeats_itself_without_end_is_closed_with_a_code() {
    let mut scene = scene(Start::default()).await;
    let idle = scene.idle_kib();
    let bodies = [
        (0x18, json!({"digest": "00".repeat(32), "commands": []})),
        (0x19, json!({"version": 1})),
        (0x1b, json!({"kind": "flood", "detail": "x".repeat(500)})),
        (
            0x13,
            json!({"command_id": Uuid::from_u128(1), "idempotent": true, "awaiting_permit": true}),
        ),
    ];
    let mut ratchet = None;
    for (kind, body) in bodies {
        let mut hostile = scene.connect(ratchet.take()).await;
        let body = Packed::plain(body.to_string().into_bytes());
        let mut sent = 0;
        while sent < 1_500 && hostile.send(kind, &body).await {
            sent += 1;
        }
        ratchet = Some(hostile.ratchet.clone());
        assert_eq!(hostile.end().await, Refused::Closed(4429), "{kind:#04x}");
    }
    scene.command("after").await;
    let cost = scene.cost_kib(idle);
    assert!(cost <= COST_KIB, "{cost} KiB");
    scene.stopped().await;
}

/// A catalogue whose patterns take long to compile; different ones by `salt`.
fn costly_catalogue(salt: usize) -> Packed {
    let arguments: Vec<_> = (0..31)
        .map(|number| Argument {
            name: format!("a{number}").parse().unwrap(),
            description: String::new(),
            value: ArgumentType::String {
                pattern: format!("(?:[a-z]{{1,95}}|[0-9]{{1,{}}})", 60 + salt),
            },
            default: None,
        })
        .collect();
    let commands: Vec<_> = (0..256)
        .map(|number| CatalogueEntry {
            name: format!("a.c{number}").parse().unwrap(),
            title: "a title".to_owned(),
            risk: Risk::Read,
            idempotent: true,
            arguments: arguments.clone(),
            timeout_ms: 1_000,
            output_bytes_max: 1_000,
            unavailable: None,
        })
        .collect();
    let catalogue = Catalogue {
        digest: "00".repeat(32),
        commands,
    };
    Packed::compressed(serde_json::to_vec(&catalogue).unwrap())
}

/// How many of the backend's threads judge catalogues.
fn judging(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "catalogue").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catalogues_that_take_long_to_judge_hold_up_nobody_and_go_with_their_gateway() {
    let mut scene = scene(Start::default()).await;
    let idle = scene.idle_kib();
    let pid = scene.system.backend().pid();
    let mut ratchet = None;
    for session in 0..SESSIONS {
        let mut hostile = scene.connect(ratchet.take()).await;
        assert!(hostile.send(0x18, &costly_catalogue(session)).await);
        eventually("a catalogue is judged", PATIENCE, async || {
            (judging(pid) > 0).then_some(())
        })
        .await;
        ratchet = Some(hostile.ratchet.clone());
        // One at a time, beside a thread that has given its turn back and not ended yet.
        assert!(judging(pid) <= 2, "one at a time");
        scene.command(&format!("beside {session}")).await;
    }
    // The last of them is gone as well by now.
    eventually(
        "nobody judges what nobody waits for",
        PATIENCE,
        async || (judging(pid) == 0).then_some(()),
    )
    .await;
    let cost = scene.cost_kib(idle);
    assert!(cost <= COST_KIB, "{cost} KiB");
    scene.stopped().await;
}

fn result_kept(event: &AgentEvent) -> Option<bool> {
    if let AgentEvent::ResultAcknowledged { kept, .. } = event {
        Some(*kept)
    } else {
        None
    }
}

/// What an authentic REFUSE says.
fn refusal(event: &AgentEvent) -> Option<(CloseCode, String, Option<Duration>)> {
    if let AgentEvent::Refused {
        code,
        reason,
        retry_after,
    } = event
    {
        Some((*code, reason.clone(), *retry_after))
    } else {
        None
    }
}

/// The result of a command that nobody asked for, with much output in few bytes.
fn unasked() -> Packed {
    let stdout = RetainedOutput {
        head: vec![b'x'; 96 * 1_024],
        ..RetainedOutput::default()
    };
    let result = CommandResult {
        command_id: CommandId::from_uuid(random::uuid_v4()),
        outcome: Outcome {
            state: OutcomeState::Succeeded,
            exit_code: Some(0),
            signal: None,
            started_at: None,
            duration_ms: 1,
            stdout,
            stderr: RetainedOutput::default(),
            reason: None,
            reject_code: None,
        },
    };
    Packed::compressed(serde_json::to_vec(&result).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_contradicts_itself_is_refused_with_an_authentic_reason() {
    let scene = scene(Start::default()).await;
    let mut hostile = scene.connect(None).await;
    let holed = json!({
        "spool_epoch": Uuid::from_u128(1), "from_seq": 1, "to_seq": 3, "gaps": [], "streams": ["a"],
        "stream": [0], "observed_at": [1], "fields": {"value": [1]},
    });
    let body = Packed::compressed(holed.to_string().into_bytes());
    assert!(hostile.send(TELEMETRY, &body).await);
    let (code, reason, _) = hostile.read_until(refusal).await.unwrap();
    assert_eq!(code, CloseCode::BadEnvelope);
    assert!(reason.contains("telemetry batch"), "{reason}");
    assert_eq!(hostile.end().await, Refused::Closed(4400));
    scene.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_nobody_asked_for_leave_little_behind_however_often_their_gateway_reconnects()
{
    let mut scene = scene(Start::default()).await;
    let idle = scene.idle_kib();
    let before = (scene.stored_kib(), scene.audited().await.len());
    let mut hostile = scene.connect(None).await;
    let mut kept = 0;
    for _ in 0..300 {
        assert!(hostile.send(RESULT, &unasked()).await);
        kept += u64::from(hostile.read_until(result_kept).await.unwrap());
    }
    assert!((256..=260).contains(&kept), "{kept} of 300 are kept");
    let mut ratchet = Some(hostile.ratchet.clone());
    drop(hostile);
    for session in 0..SESSIONS {
        let mut hostile = scene.connect(ratchet.take()).await;
        let mut sent = 0;
        while sent < 600 && hostile.send(RESULT, &unasked()).await {
            sent += 1;
        }
        ratchet = Some(hostile.ratchet.clone());
        let (code, _reason, wait) = hostile.read_until(refusal).await.unwrap();
        assert_eq!(code, CloseCode::RateLimited);
        assert!(wait.is_some_and(|wait| wait <= Duration::from_secs(60)));
        assert_eq!(hostile.end().await, Refused::Closed(4429), "{session}");
    }
    scene.command("after").await;
    let stored = scene.stored_kib().saturating_sub(before.0);
    assert!(stored <= STORED_KIB, "{stored} KiB stored");
    let cost = scene.cost_kib(idle);
    assert!(cost <= COST_KIB, "{cost} KiB");
    let audited = scene.audited().await;
    let orphans = audited.iter().filter(|it| *it == "command.orphan").count();
    assert!((100..=205).contains(&orphans), "{orphans}");
    let refused = r#"viworks_agent_refusals_total{reason="orphan_result"}"#;
    let said = scene.system.backend().log();
    assert!(said.matches("does not have").count() <= 100);

    // What is kept of them is listed, and shown to whoever looks at that gateway.
    let one = scene.system.get("/v1/gateways/gw-hostile").await;
    let kept = one["orphans"].as_u64().unwrap();
    assert!((1..=256).contains(&kept), "{one:#}");
    let listed = scene
        .system
        .get("/v1/gateways/gw-hostile/orphans?limit=1")
        .await;
    let outcome = &listed["items"][0]["outcome"];
    assert_eq!(outcome["stdout_bytes"], 96 * 1_024, "{listed:#}");
    assert!(listed["next"].is_string(), "{listed:#}");
    let said = scene.viworks(&["gateway", "show", "gw-hostile"]).await;
    assert!(said.stdout.contains("gateway orphans"), "{said:#?}");
    let said = scene.viworks(&["gateway", "orphans", "gw-hostile"]).await;
    let id = listed["items"][0]["command_id"].as_str().unwrap();
    assert!(said.stdout.contains(id), "{said:#?}");
    assert!(
        said.stderr.contains(&format!("{kept} results")),
        "{said:#?}"
    );

    // What an auditor looks for has a share of its own, whatever the gateway did before.
    let agents = scene.system.agents_address();
    for _ in 0..20 {
        let mut rogue = Rogue::challenged(agents, &scene.material).await.unwrap();
        rogue
            .hello_with(|hello| hello.token = "00".repeat(32))
            .await;
        let end = rogue.end().await;
        assert!(matches!(end, Refused::Closed(4400 | 4429)), "{end:?}");
    }
    let more = scene.audited().await.len() - audited.len();
    assert!((1..=23).contains(&more), "{more} records");
    assert!(scene.metric(refused).await > 0);
    scene.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_refused_without_end_does_not_keep_the_true_gateway_out() {
    let scene = scene(Start::default()).await;
    let mut first = scene.connect(None).await;
    // What is answered is answered in a session that is committed.
    assert!(first.send(RESULT, &unasked()).await);
    assert!(first.read_until(result_kept).await.is_some());
    let ratchet = first.ratchet.clone();
    drop(first);
    let agents = scene.system.agents_address();
    for _ in 0..120 {
        // What was on the disk when it was copied.
        let mut copy = Rogue::challenged(agents, &scene.material).await.unwrap();
        copy.hello().await;
        assert!(matches!(copy.end().await, Refused::Closed(_)));
    }
    // At once: not even one second later than without the copy.
    let mut back = scene.connect(Some(ratchet)).await;
    assert!(back.send(RESULT, &unasked()).await);
    assert!(back.read_until(result_kept).await.is_some());
    drop(back);
    scene.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_message_that_unpacks_to_much_is_refused_before_it_is_unpacked() {
    let mut scene = scene(Start::default()).await;
    let idle = scene.idle_kib();
    let mut hostile = scene.connect(None).await;
    let epoch = Uuid::from_u128(1);
    let first = batch(epoch, 1, 2_000, 64);
    assert!(first.body_bytes() > 500_000 && first.wire_bytes() < 2_000);
    for number in 0..BATCHES {
        if !hostile
            .send(TELEMETRY, &batch(epoch, 1 + number * 2_000, 2_000, 64))
            .await
        {
            break;
        }
    }
    assert_eq!(hostile.end().await, Refused::Closed(4413));
    scene.command("after").await;
    let cost = scene.cost_kib(idle);
    assert!(cost <= COST_KIB, "{cost} KiB");
    scene.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_uses_all_its_credit_costs_little_whether_it_reads_or_not() {
    let mut scene = scene(Start::default()).await;
    let idle = scene.idle_kib();
    // As much as a message may unpack to: 2,000 records of five fields.
    let (epoch, records) = (Uuid::from_u128(1), 2_000);
    let mut deaf = scene.connect(None).await;
    let mut sent = 0;
    for number in 0..BATCHES {
        let body = batch(epoch, 1 + number * records, 2_000, 5);
        assert!(body.body_bytes() > 28_000 && body.wire_bytes() < 1_000);
        sent += u64::from(deaf.send(TELEMETRY, &body).await);
        if number % 100 == 0 {
            scene.command("meanwhile").await;
        }
    }
    assert_eq!(sent, BATCHES, "a gateway within its credit is not closed");
    let cost = scene.cost_kib(idle);
    assert!(cost <= COST_KIB, "{cost} KiB while nothing was read");
    let ratchet = deaf.ratchet.clone();
    drop(deaf);

    let mut polite = scene.connect(Some(ratchet)).await;
    let epoch = Uuid::from_u128(2);
    let (mut next, mut under_way, mut committed) = (1, 0, 0);
    while committed < 100_000 {
        while under_way < 32 {
            assert!(polite.send(TELEMETRY, &batch(epoch, next, 2_000, 5)).await);
            next += records;
            under_way += 1;
        }
        committed = polite.read_until(acknowledged).await.unwrap();
        under_way -= 1;
        if committed % 20_000 == 0 {
            scene.command("in between").await;
        }
    }
    let cost = scene.cost_kib(idle);
    assert!(cost <= COST_KIB, "{cost} KiB while everything was read");
    drop(polite);
    eventually(
        "what it cost is given back",
        Duration::from_secs(30),
        async || (scene.backend_kib("VmRSS:").saturating_sub(idle) <= COST_KIB).then_some(()),
    )
    .await;
    scene.stopped().await;
}
