//! The benchmark works from end to end: every figure is measured on both sides, and hostile gateways were at work.
//! Speed is not tested here, and no target has to be met: the build is not optimised and the sizes are small.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use viworks_testkit::{postgres, redis, small_disk};

/// The figures with their units and whether they aim at something.
const FIGURES: &[(&str, &str, bool)] = &[
    ("command p50, 1 in flight", "milliseconds", true),
    ("command p99, 1 in flight", "milliseconds", false),
    ("commands, 1 in flight", "per_second", false),
    ("commands, 100 in flight", "per_second", true),
    (
        "not idempotent: command p50, 1 in flight",
        "milliseconds",
        false,
    ),
    (
        "not idempotent: commands, 100 in flight",
        "per_second",
        false,
    ),
    (
        "real agent: command p50, 1 in flight",
        "milliseconds",
        false,
    ),
    (
        "real agent: not idempotent, command p50, 1 in flight",
        "milliseconds",
        false,
    ),
    ("real agent: commands, 100 in flight", "per_second", false),
    (
        "submission p50 with 40 gateways, and with 4",
        "milliseconds",
        true,
    ),
    ("memory per idle agent, 10 agents", "kib", false),
    ("memory per idle agent, 40 agents", "kib", true),
    ("processor time per connect", "microseconds", true),
    ("40 agents back after kill -9", "seconds", true),
    (
        "10 agents back after a stop amid 50 commands",
        "seconds",
        true,
    ),
    ("fresh telemetry records", "per_second", true),
    ("repeated telemetry records", "per_second", false),
    (
        "command p50 beside a flood of telemetry, and before",
        "milliseconds",
        true,
    ),
    ("memory for a flood of telemetry, and before", "kib", true),
    (
        "command p50 beside a flood of results and output, and before",
        "milliseconds",
        true,
    ),
    (
        "memory for a flood of results and output, and before",
        "kib",
        true,
    ),
];

/// What is measured on PostgreSQL and Redis.
const ON_SERVERS: &[(&str, &str, bool)] = &[
    (
        "command p50, 1 in flight, PostgreSQL and Redis",
        "milliseconds",
        true,
    ),
    (
        "command p99, 1 in flight, PostgreSQL and Redis",
        "milliseconds",
        false,
    ),
    (
        "commands, 1 in flight, PostgreSQL and Redis",
        "per_second",
        false,
    ),
    (
        "commands, 100 in flight, PostgreSQL and Redis",
        "per_second",
        true,
    ),
    (
        "not idempotent: command p50, 1 in flight, PostgreSQL and Redis",
        "milliseconds",
        false,
    ),
    (
        "not idempotent: commands, 100 in flight, PostgreSQL and Redis",
        "per_second",
        false,
    ),
];

const BESIDE_JETSTREAM: &[(&str, &str, bool)] = &[
    (
        "command p50, 1 in flight, beside NATS JetStream",
        "milliseconds",
        true,
    ),
    (
        "commands, 100 in flight, beside NATS JetStream",
        "per_second",
        true,
    ),
];

const BESIDE_MOSQUITTO: &[(&str, &str, bool)] = &[
    (
        "command p50, 1 in flight, beside mosquitto",
        "milliseconds",
        false,
    ),
    (
        "commands, 100 in flight, beside mosquitto",
        "per_second",
        false,
    ),
];

/// What nothing is compared with.
const SIZING: &[(&str, &str, bool)] = &[
    ("sizing: base", "mib", false),
    ("sizing: memory", "kib", false),
    ("sizing: beat_backend", "microseconds", false),
    ("sizing: beat_postgres", "microseconds", false),
    ("sizing: command_backend", "microseconds", false),
    ("sizing: command_postgres", "microseconds", false),
    ("sizing: opening_backend", "microseconds", false),
    ("sizing: opening_postgres", "microseconds", false),
    ("sizing: command_disk", "bytes", false),
    ("sizing: command_wal", "bytes", false),
    ("sizing: beat_wal", "bytes", false),
    ("sizing: redis", "kib", false),
    ("sizing: record_backend", "microseconds", false),
    ("sizing: record_postgres", "microseconds", false),
    ("sizing: record_disk", "bytes", false),
    ("sizing: record_wal", "bytes", false),
];

const TELEMETRY_IDLE_AND_FAILOVER: &[(&str, &str, bool)] = &[
    (
        "fresh telemetry records, PostgreSQL and Redis",
        "per_second",
        true,
    ),
    (
        "repeated telemetry records, PostgreSQL and Redis",
        "per_second",
        true,
    ),
    ("idle: transactions, 10 agents, and 4", "per_second", true),
    (
        "idle: commands of the queue, 10 agents, and 4",
        "per_second",
        true,
    ),
    ("idle: wake-ups, 10 agents, and 4", "per_second", true),
    ("idle: transactions, 40 agents, and 4", "per_second", true),
    (
        "idle: commands of the queue, 40 agents, and 4",
        "per_second",
        true,
    ),
    ("idle: wake-ups, 40 agents, and 4", "per_second", true),
    (
        "40 agents back after kill -9 of one of two",
        "seconds",
        true,
    ),
];

/// All figures that this machine has the servers for.
fn expected() -> Vec<(&'static str, &'static str, bool)> {
    let mut expected = FIGURES.to_vec();
    if postgres::server().is_none() || redis::server(redis::Kind::Redis).is_none() {
        return expected;
    }
    let is_installed = |program: &str| {
        let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin", "/usr/local/sbin"];
        places
            .iter()
            .any(|place| Path::new(place).join(program).is_file())
    };
    expected.extend_from_slice(ON_SERVERS);
    if is_installed("nats-server") && small_disk::fragile_is_allowed() {
        expected.extend_from_slice(BESIDE_JETSTREAM);
    }
    if is_installed("mosquitto") {
        expected.extend_from_slice(BESIDE_MOSQUITTO);
    }
    expected.extend_from_slice(TELEMETRY_IDLE_AND_FAILOVER);
    expected.extend_from_slice(SIZING);
    expected
}

/// What a hostile gateway sends at once at least, before anything makes it wait.
const AT_ONCE: u64 = 64;

#[test]
fn a_quick_run_yields_every_figure() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_viworks-bench"))
        .args(["--quick", "--json"])
        .arg(&json)
        .output()
        .expect("the benchmark starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report = std::fs::read(&json).expect("the figures were written");
    let report: Value = serde_json::from_slice(&report).expect("they are JSON");
    let figures = report["figures"].as_array().expect("a list of figures");
    let shape: Vec<_> = figures.iter().map(shape).collect();
    let expected = expected();
    assert_eq!(shape, expected, "{report:#}");
    for figure in figures {
        check(figure);
    }
    let table = String::from_utf8_lossy(&output.stdout);
    for (what, ..) in &expected {
        assert!(table.contains(what), "{what}: {table}");
    }
    assert!(table.contains("not optimised") == cfg!(debug_assertions));
}

fn shape(figure: &Value) -> (&str, &str, bool) {
    let text = |name: &str| figure[name].as_str().unwrap_or_default();
    (text("what"), text("unit"), !figure["target"].is_null())
}

/// What follows from the two sides is what the report says, and a hostile gateway that is named was at work.
fn check(figure: &Value) {
    let number = |name: &str| figure[name].as_f64();
    let what = figure["what"].as_str().unwrap_or_default();
    if what.starts_with("sizing: ") {
        // What so few heartbeats and agents cost can be lost beside what else is done; nothing of the others can.
        let may_be_none = what.contains("beat") || what.contains("memory");
        let ours = number("ours").expect("it is measured");
        assert!(ours > 0.0 || may_be_none && ours == 0.0, "{figure:#}");
        assert!(figure["ratio"].is_null(), "{figure:#}");
        return;
    }
    let (Some(ours), Some(reference)) = (number("ours"), number("reference")) else {
        panic!("a side is missing: {figure:#}");
    };
    assert!(ours >= 0.0 && reference > 0.0, "{figure:#}");
    let ratio = number("ratio").expect("both sides are numbers");
    assert!(
        (ratio * reference - ours).abs() <= ours * 1e-9,
        "{figure:#}"
    );
    let met = figure["target"].as_object().map(|target| {
        let (kind, bound) = target.iter().next().expect("a target has a kind");
        let bound = bound.as_f64().expect("a target has a bound");
        match kind.as_str() {
            "times_at_most" => ratio <= bound,
            "times_at_least" => ratio >= bound,
            "most" => ours <= bound,
            other => panic!("an unknown kind of target: {other}"),
        }
    });
    assert_eq!(figure["met"].as_bool(), met, "{figure:#}");
    let sent = figure["hostile_messages"].as_u64();
    if what.contains("flood") {
        assert!(sent.is_some_and(|sent| sent >= AT_ONCE), "{figure:#}");
    } else {
        assert_eq!(sent, None, "{figure:#}");
    }
}

#[test]
fn a_repeated_run_yields_medians() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let json = folder.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_viworks-bench"))
        .args(["--quick", "--only", "submission", "--repeat", "3", "--json"])
        .arg(&json)
        .output()
        .expect("the benchmark starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report = std::fs::read(&json).expect("the figures were written");
    let report: Value = serde_json::from_slice(&report).expect("they are JSON");
    assert_eq!(report["repetitions"], 3, "{report:#}");
    let figures = report["figures"].as_array().expect("a list of figures");
    assert_eq!(figures.len(), 1, "{report:#}");
    for figure in figures {
        check(figure);
        let repeated = figure["repeated"].as_array().expect("three of them");
        assert_eq!(repeated.len(), 3, "{figure:#}");
        assert_eq!(repeated.get(1), Some(&figure["ratio"]), "{figure:#}");
    }
}
