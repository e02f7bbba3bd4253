//! `health`: whether the running agent is well, for whoever only wants to know that.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use viworks_runtime::ask::verdict::{Standing, Verdict, millis};
use viworks_runtime::ask::{self, Answer, NoAnswer};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::Problems;
use viworks_runtime::exit::ExitCode;

use super::status::{Format, STANDS_STILL, look_for_agent};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Probe {
    /// Does the process answer?
    Live,
    /// Is it connected, and does nothing fail?
    Ready,
}

impl Probe {
    const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ready => "ready",
        }
    }
}

/// Asks the agent behind `socket`, and tells beside its answer what is wrong with the configuration.
pub(super) async fn show(
    socket: &Path,
    problems: Option<Problems>,
    probe: Probe,
    limit: Duration,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let begun = SystemClock.now();
    let answer = ask::unix(socket, "/v1/health", limit).await;
    let took = SystemClock.now().saturating_since(begun);
    ask::beside(problems, &answer)?;
    let address = socket.display().to_string();
    let verdict = match answer {
        Ok(answer) => judge(probe, address, took, &answer),
        Err(error) => {
            let look = match error {
                NoAnswer::NobodyThere(_) => look_for_agent(),
                NoAnswer::Late(_) => STANDS_STILL.to_owned(),
                NoAnswer::Broken(_) => "check which program listens there, and --socket".to_owned(),
            };
            Verdict::no_answer(probe.name(), address, took, &error, &look)
        }
    };
    Ok(verdict.show(format == Format::Json)?)
}

fn judge(probe: Probe, address: String, took: Duration, answer: &Answer) -> Verdict {
    let verdict = |status, detail: String, fix: String| Verdict {
        probe: probe.name(),
        status,
        address,
        took_ms: millis(took),
        detail,
        fix,
    };
    let document = serde_json::from_slice::<Value>(&answer.body).ok();
    let Some(document) = document.filter(|document| document["parts"].is_object()) else {
        let detail = format!("the answer {} is no health document", answer.status);
        let fix = "check which program listens there, and --socket";
        return verdict(Standing::Unreachable, detail, fix.to_owned());
    };
    if probe == Probe::Live {
        return verdict(
            Standing::Pass,
            "the agent answers".to_owned(),
            String::new(),
        );
    }
    if document["healthy"] == true {
        let detail = "connected, and nothing fails";
        return verdict(Standing::Pass, detail.to_owned(), String::new());
    }
    let word = |pointer: &str| {
        let text = document.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    if document["parts"]["connection"]["healthy"] != true {
        let cause = word("/parts/connection/failure/cause");
        let state = word("/parts/connection/state");
        let detail = if cause.is_empty() {
            format!("not connected, {state}")
        } else {
            format!("not connected: {cause}")
        };
        return verdict(
            Standing::Unreachable,
            detail,
            word("/parts/connection/failure/fix"),
        );
    }
    let failing = document["conditions"].as_array().into_iter().flatten();
    let mut failing = failing.filter(|condition| condition["severity"] == "fail");
    if let Some(condition) = failing.next() {
        let text = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
        let detail = format!("{}: {}", text("name"), text("cause"));
        return verdict(Standing::Fail, detail, text("fix"));
    }
    let spool = word("/parts/spool/failure");
    let detail = if spool.is_empty() {
        "the agent is stopping".to_owned()
    } else {
        format!("spool: {spool}")
    };
    verdict(Standing::Fail, detail, String::new())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(probe: Probe, document: &Value) -> Verdict {
        let answer = Answer {
            status: 503,
            body: document.to_string().into_bytes(),
        };
        judge(probe, "api.sock".to_owned(), Duration::ZERO, &answer)
    }

    #[test]
    fn the_connection_comes_first_then_what_fails_and_living_is_less() {
        let mut document = json!({
            "healthy": false,
            "parts": {
                "connection": {
                    "healthy": false, "state": "waiting",
                    "failure": { "cause": "b:8081 refused the connection", "fix": "start the backend" },
                },
                "spool": { "healthy": true, "failure": null },
            },
            "conditions": [{ "name": "disk", "severity": "fail", "cause": "full", "fix": "make room" }],
        });
        let away = judged(Probe::Ready, &document);
        assert_eq!(
            (away.status, away.detail.as_str(), away.fix.as_str()),
            (
                Standing::Unreachable,
                "not connected: b:8081 refused the connection",
                "start the backend"
            )
        );
        assert_eq!(away.exit_code(), ExitCode::Unavailable);
        assert_eq!(judged(Probe::Live, &document).exit_code(), ExitCode::Ok);
        document["parts"]["connection"]["healthy"] = json!(true);
        let full = judged(Probe::Ready, &document);
        assert_eq!(
            (full.exit_code(), full.detail.as_str(), full.fix.as_str()),
            (ExitCode::NoGo, "disk: full", "make room")
        );
        document["conditions"] = json!([]);
        assert_eq!(
            judged(Probe::Ready, &document).detail,
            "the agent is stopping"
        );
        document["healthy"] = json!(true);
        assert_eq!(judged(Probe::Ready, &document).exit_code(), ExitCode::Ok);
        // What another program says is no sign of life.
        let other = json!({"error": {"code": 404}});
        for probe in [Probe::Live, Probe::Ready] {
            let judged = judged(probe, &other);
            assert!(
                judged.fix.contains("which program listens there"),
                "{judged:?}"
            );
        }
    }
}
