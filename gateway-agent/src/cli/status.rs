//! `status`: what the running agent says about itself, for a person in front of the gateway.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use viworks_common::human;
use viworks_common::text::{block, json};
use viworks_common::time::Timestamp;
use viworks_runtime::ask::{self, ANSWER_TIME, NoAnswer};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::Problems;
use viworks_runtime::exit::ExitCode;

use super::print;

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Lines for people.
    Table,
    /// The document as the agent gives it.
    Json,
}

/// What to do about an agent whose process is there and says nothing.
pub(super) const STANDS_STILL: &str = "its process is there and stands still: see whether it is stopped (state T) or waits for a disk (state D) with ps -o pid,stat,args -C viworks-gateway (it is the one that runs `viworks-gateway-agent run`); if neither passes, end it with SIGKILL and start it again, which loses nothing that it had acknowledged";

/// Asks the agent behind `socket`, and tells beside its answer what is wrong with the configuration.
pub(super) async fn show(
    socket: &Path,
    problems: Option<Problems>,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let answer = ask::unix(socket, "/v1/status", ANSWER_TIME).await;
    ask::beside(problems, &answer)?;
    match answer {
        Ok(answer) => {
            let status: Value =
                serde_json::from_slice(&answer.body).context("what the agent says is no status")?;
            match format {
                // Causes may be the other end's words.
                Format::Table => print(&block(&lines(&status, SystemClock.wall())))?,
                Format::Json => print(&json(&format!("{status:#}\n")))?,
            };
            Ok(exit_code(&status))
        }
        Err(NoAnswer::NobodyThere(error)) => {
            let fix = look_for_agent();
            Ok(no_answer(
                &format!("does not answer at {}: {error}", socket.display()),
                &fix,
            ))
        }
        Err(NoAnswer::Late(_)) => {
            let what = format!(
                "takes the connection at {} and does not answer within {} s",
                socket.display(),
                ANSWER_TIME.as_secs()
            );
            Ok(no_answer(&what, STANDS_STILL))
        }
        Err(error @ NoAnswer::Broken(_)) => Err(error.into()),
    }
}

/// Says that there is no status, and what to do.
fn no_answer(what: &str, fix: &str) -> ExitCode {
    let text = format!("error: the agent {what}\n  fix: {fix}\n");
    // If nobody reads it, the exit code has to do.
    drop(std::io::stderr().write_all(text.as_bytes()));
    ExitCode::Unavailable
}

/// The status as a person reads it: first whether it is connected, and if not, why and what to do.
fn lines(status: &Value, now: Timestamp) -> String {
    let text = |pointer: &str| match status.pointer(pointer) {
        None | Some(Value::Null) => "unknown".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let time = |pointer: &str| moment(status.pointer(pointer), now);
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64);
    let mut lines = Vec::new();
    let mut line = |what: &str, value: String| lines.push(format!("{what:<12} {value}\n"));
    let connected = status.pointer("/connection/connected") == Some(&Value::Bool(true));
    if connected {
        let epoch = text("/connection/epoch");
        line(
            "connection",
            format!(
                "connected to {} since {}",
                text("/connection/url"),
                time("/connection/since")
            ),
        );
        line("session", format!("epoch {epoch}, {}", measured(status)));
    } else {
        line(
            "connection",
            format!(
                "{}, not connected to {}",
                text("/connection/state"),
                text("/connection/url")
            ),
        );
        if status.pointer("/connection/last_failure/cause").is_some() {
            line("  because", text("/connection/last_failure/cause"));
            if let Some(Value::String(code)) = status.pointer("/connection/last_failure/code") {
                line("  code", format!("{code} (docs/errors/{code}.md)"));
            }
            line("  since", time("/connection/since"));
        }
        let fix = text("/connection/last_failure/fix");
        if fix != "unknown" && !fix.is_empty() {
            line("  fix", fix);
        }
        if status
            .pointer("/connection/next_attempt")
            .is_some_and(|next| !next.is_null())
        {
            line("  next try", time("/connection/next_attempt"));
        }
    }
    for condition in conditions(status, now) {
        line(condition.label, condition.cause);
        line("  since", condition.since);
        if !condition.fix.is_empty() {
            line("  fix", condition.fix);
        }
    }
    for (what, value) in certificate(status, now) {
        line(what, value);
    }
    let pins = status.pointer("/pins/pins").and_then(Value::as_array);
    line(
        "pins",
        format!(
            "{} trusted, set version {}",
            pins.map_or(0, Vec::len),
            text("/pins/version")
        ),
    );
    line(
        "spool",
        format!(
            "{} waiting, {} of {} KiB, {} of {} KiB by local programs, {} dropped since it was made",
            human::counted_all(
                number("/spool/records").unwrap_or_default(),
                "record",
                "records"
            ),
            number("/spool/bytes").unwrap_or_default() / 1_024,
            number("/spool/bytes_max").unwrap_or_default() / 1_024,
            number("/spool/local_bytes").unwrap_or_default() / 1_024,
            number("/spool/local_bytes_max").unwrap_or_default() / 1_024,
            text("/spool/dropped")
        ),
    );
    let refused =
        |why: &str| number(&format!("/intake/refused_requests/{why}")).unwrap_or_default();
    let (over_rate, busy, bodies) = (
        refused("over_rate"),
        refused("busy"),
        refused("bodies_full"),
    );
    if over_rate + busy + bodies > 0 {
        line(
            "  refused",
            format!(
                "requests of local programs: {over_rate} over the rate of their user, {busy} too many at once, {bodies} too large together"
            ),
        );
    }
    line(
        "commands",
        format!(
            "{} running, {} allowed",
            text("/commands/running"),
            text("/commands/allowed")
        ),
    );
    let unavailable = status
        .pointer("/commands/unavailable")
        .and_then(Value::as_array);
    for command in unavailable.into_iter().flatten() {
        let name = command["name"].as_str().unwrap_or_default();
        let reason = command["reason"].as_str().unwrap_or_default();
        line("  missing", format!("{name}: {reason}"));
    }
    line(
        "agent",
        format!(
            "{} version {}, process {} started {}",
            text("/agent/agent_id"),
            text("/agent/version"),
            text("/agent/agent_run_id"),
            time("/agent/started_at")
        ),
    );
    lines.concat()
}

/// The certificate in force, when it is renewed, and what was in the way. An agent of before says nothing of it.
fn certificate(status: &Value, now: Timestamp) -> Vec<(&'static str, String)> {
    let said = &status["certificate"];
    let Some(origin) = said["origin"].as_str() else {
        return Vec::new();
    };
    let renewal = &said["renewal"];
    let due = moment(renewal.get("due"), now);
    let renewed = match renewal["offered"].as_bool() {
        Some(true) => format!("renewed over the session from {due} on"),
        Some(false) => "the backend does not renew it over the session".to_owned(),
        None => format!("to be renewed from {due} on"),
    };
    let ends = moment(said.get("not_after"), now);
    let mut lines = vec![("certificate", format!("{origin}, ends {ends}; {renewed}"))];
    let refusal = &renewal["last_refusal"];
    if let (Some(code), Some(detail)) = (refusal["code"].as_str(), refusal["detail"].as_str()) {
        let at = moment(refusal.get("at"), now);
        lines.push(("  refused", format!("{code}: {detail} ({at})")));
    }
    if let Some(pause) = renewal["pause_s"].as_u64() {
        let pause = human::span(Duration::from_secs(pause));
        lines.push(("  next try", format!("not before {pause} have passed")));
    }
    lines
}

/// A time as seen from now; whatever else the agent wrote there, as it stands.
fn moment(value: Option<&Value>, now: Timestamp) -> String {
    let Some(text) = value.and_then(Value::as_str) else {
        return "unknown".to_owned();
    };
    Timestamp::parse(text).map_or_else(
        |_other| text.to_owned(),
        |at| human::relative_and_exact(at, now),
    )
}

/// What is wrong, as a person reads it.
struct Shown {
    label: &'static str,
    cause: String,
    since: String,
    fix: String,
}

fn conditions(status: &Value, now: Timestamp) -> impl Iterator<Item = Shown> {
    let listed = status.pointer("/conditions").and_then(Value::as_array);
    listed.into_iter().flatten().map(move |condition| {
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        Shown {
            label: if fails(condition) {
                "FAILING"
            } else {
                "warning"
            },
            cause: format!("{}: {}", text("name"), text("cause")),
            since: moment(condition.get("since"), now),
            fix: text("fix"),
        }
    })
}

fn fails(condition: &Value) -> bool {
    condition["severity"] == "fail"
}

/// A script learns from the exit code whether there is a connection, and whether part of the agent's work is not done.
fn exit_code(status: &Value) -> ExitCode {
    let listed = status.pointer("/conditions").and_then(Value::as_array);
    if status.pointer("/connection/connected") != Some(&Value::Bool(true)) {
        ExitCode::Unavailable
    } else if listed.into_iter().flatten().any(fails) {
        ExitCode::NoGo
    } else {
        ExitCode::Ok
    }
}

/// Where to look for the agent itself: a unit is named only where the service manager is there and has one.
pub(super) fn look_for_agent() -> String {
    let managed = Path::new("/run/systemd/system").is_dir();
    let unit = ["/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"]
        .iter()
        .map(|root| Path::new(root).join("systemd/system").join(UNIT))
        .any(|file| file.exists());
    if managed && unit {
        format!(
            "see whether it runs: systemctl status {UNIT}; where it does not, start it: systemctl start {UNIT}"
        )
    } else {
        "see whether it runs: pgrep -f viworks-gateway-agent; where it does not, start it: viworks-gateway-agent run --config FILE; its log is where its standard error output goes, and in a container: the container's log".to_owned()
    }
}

/// The service as the installation names it.
const UNIT: &str = "viworks-gateway-agent.service";

fn measured(status: &Value) -> String {
    let round_trip = status
        .pointer("/connection/round_trip_us")
        .and_then(Value::as_u64)
        .map_or_else(
            || "round trip not measured yet".to_owned(),
            |us| format!("round trip {}.{} ms", us / 1_000, us % 1_000 / 100),
        );
    let skew = status
        .pointer("/connection/clock_skew_ms")
        .and_then(Value::as_i64)
        .map_or_else(String::new, |ms| {
            format!(", this clock is {} the backend's", human::apart(ms))
        });
    round_trip + &skew
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{ExitCode, Timestamp, exit_code};

    fn lines(status: &serde_json::Value) -> String {
        super::lines(status, Timestamp::parse("2026-11-26T12:00:00Z").unwrap())
    }

    #[test]
    fn a_person_reads_first_why_there_is_no_connection_and_what_to_do() {
        let status = json!({
            "agent": { "agent_id": "a", "agent_run_id": "r", "version": "0.1.0", "started_at": "then" },
            "connection": {
                "connected": false, "state": "waiting", "url": "wss://b:8081",
                "since": "2026-11-26T11:58:30.123456Z", "epoch": 3, "round_trip_us": null, "clock_skew_ms": null,
                "next_attempt": "2026-11-26T12:00:20.5Z",
                "last_failure": { "at": "t1", "cause": "b:8081 refused the connection", "fix": "start the backend" },
            },
            "pins": { "version": 1, "pins": ["sha256/x", "sha256/y"] },
            "spool": { "records": 5, "bytes": 8192, "bytes_max": 1_048_576, "dropped": 0 },
            "commands": { "running": 0, "allowed": 12, "unavailable": [{ "name": "log.tail", "reason": "no journal" }] },
        });
        let text = lines(&status);
        let first: Vec<&str> = text.lines().take(5).collect();
        assert_eq!(
            first,
            [
                "connection   waiting, not connected to wss://b:8081",
                "  because    b:8081 refused the connection",
                "  since      1 min 29 s ago (2026-11-26T11:58:30Z)",
                "  fix        start the backend",
                "  next try   in 20 s (2026-11-26T12:00:20Z)",
            ]
        );
        assert!(text.contains("2 trusted, set version 1"), "{text}");
        assert!(text.contains("log.tail: no journal"), "{text}");
    }

    #[test]
    fn a_certificate_is_shown_with_its_renewal_and_what_is_in_the_way() {
        let mut status = json!({ "certificate": {
            "origin": "renewed",
            "not_after": "2027-01-01T00:00:00Z",
            "renewal": {
                "offered": true,
                "due": "2026-12-01T00:00:00Z",
                "asked_at": null,
                "last_refusal": { "at": "2026-11-01T00:00:00Z", "code": "no_authority", "detail": "no key" },
                "pause_s": 86_400,
            },
        }});
        let text = lines(&status);
        for shown in [
            "renewed, ends ",
            "2027-01-01",
            "renewed over the session from ",
            "no_authority: no key",
        ] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        status["certificate"]["renewal"]["offered"] = json!(false);
        assert!(lines(&status).contains("does not renew it"), "{status}");
        assert!(!lines(&json!({})).contains("certificate"));
    }

    #[test]
    fn what_is_wrong_is_shown_with_its_fix_and_fails() {
        let mut status = json!({
            "connection": { "connected": true, "state": "connected", "url": "wss://b:8081" },
            "conditions": [{
                "name": "collector.disks", "severity": "warn", "cause": "no answer for 5 s", "fix": "look at the mount",
                "since": "2026-11-26T11:00:00Z",
            }],
        });
        let text = lines(&status);
        let wanted = "warning      collector.disks: no answer for 5 s\n  since      1 h 0 min ago (2026-11-26T11:00:00Z)\n  fix        look at the mount\n";
        assert!(text.contains(wanted), "{text}");
        assert_eq!(exit_code(&status), ExitCode::Ok);
        status["conditions"][0]["severity"] = json!("fail");
        assert!(lines(&status).contains("FAILING      collector.disks"));
        assert_eq!(exit_code(&status), ExitCode::NoGo);
        // Without a connection that is what counts.
        status["connection"]["connected"] = json!(false);
        assert_eq!(exit_code(&status), ExitCode::Unavailable);
    }

    #[test]
    fn a_connected_agent_says_how_well() {
        let status = json!({
            "connection": {
                "connected": true, "state": "connected", "url": "wss://b:8081",
                "since": "2026-11-26T11:59:00Z", "epoch": 3, "round_trip_us": 1_540, "clock_skew_ms": -12, "next_attempt": null, "last_failure": null,
            },
        });
        let text = lines(&status);
        assert!(
            text.starts_with("connection   connected to wss://b:8081 since 1 min 0 s ago (2026-11-26T11:59:00Z)\n"),
            "{text}"
        );
        assert!(
            text.contains("round trip 1.5 ms, this clock is 12 ms behind the backend's"),
            "{text}"
        );
    }
}
