//! `health`: whether the running backend is well, for whoever only wants to know that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use viworks_api::{NotReady, NotReadyStatus};
use viworks_common::text;
use viworks_runtime::ask::verdict::{Standing, Verdict, millis};
use viworks_runtime::ask::{self, Answer, NoAnswer};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::{Problem, Problems};
use viworks_runtime::exit::ExitCode;

use super::super::flags::{ConfigFlag, Format, HealthFlags, Probe};
use super::open::read_to_ask;

const LOOK: &str = "see whether it runs: systemctl status viworks-backend-agent, or the log of its container; and whether [api] listen, or --address, is where it answers operators";
const STANDS_STILL: &str = "its process is there and stands still: see whether it is stopped (state T) or waits for a disk (state D) with ps -o pid,stat,args -C viworks-backend";
const OTHER: &str = "another program listens there: check [api] listen, or --address";
const MORE: &str = "GET /v1/health with a key that has health:read says why, as the log does";

impl Probe {
    const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Ready => "ready",
            Self::Startup => "startup",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Live => "/livez",
            Self::Ready => "/readyz",
            Self::Startup => "/startupz",
        }
    }
}

pub(super) async fn execute(flags: HealthFlags) -> anyhow::Result<ExitCode> {
    let (address, problems) = address(&flags)?;
    let address = reachable(address);
    let probe = flags.probe;
    let limit = Duration::from_secs(flags.timeout);
    let begun = SystemClock.now();
    let answer = ask::tcp(address, probe.path(), limit).await;
    let took = SystemClock.now().saturating_since(begun);
    ask::beside(problems, &answer)?;
    let url = format!("http://{address}{}", probe.path());
    let verdict = match answer {
        Ok(answer) => judge(probe, url, took, &answer),
        Err(error) => {
            let look = match error {
                NoAnswer::NobodyThere(_) => LOOK,
                NoAnswer::Late(_) => STANDS_STILL,
                NoAnswer::Broken(_) => OTHER,
            };
            Verdict::no_answer(probe.name(), url, took, &error, look)
        }
    };
    Ok(verdict.show(flags.output == Format::Json)?)
}

/// Where the backend answers operators, and what is wrong with the configuration that says so.
fn address(flags: &HealthFlags) -> Result<(SocketAddr, Option<Problems>), Problems> {
    if let Some(address) = flags.address {
        return Ok((address, None));
    }
    let config = &flags.config;
    if matches!(config.try_exists(), Ok(false)) {
        return Err(Problems::new(vec![Problem::of_file(
            config,
            format!("{} is not there", config.display()),
            "name the configuration with --config, or with --address where the backend answers operators",
        )]));
    }
    let flag = ConfigFlag {
        config: config.clone(),
        state_folder: None,
    };
    let (read, problems) = read_to_ask(&flag);
    let listen = read.api.listen;
    if listen.port() == 0 {
        let nowhere = Problems::new(vec![Problem::of_file(
            config,
            "[api] listen takes any free port, and nobody knows which one it became",
            "name it with --address, as the ready file says it",
        )]);
        return Err(match problems {
            Some(problems) => problems.join(nowhere),
            None => nowhere,
        });
    }
    Ok((listen, problems))
}

/// An address that stands for all of them is reached by loopback.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn judge(probe: Probe, address: String, took: Duration, answer: &Answer) -> Verdict {
    let (status, detail, fix) = match (answer.status, said(&answer.body)) {
        (200, Some(said)) => (Standing::Pass, said, ""),
        (503, Some(said)) => (Standing::Fail, said, MORE),
        (other, _) => {
            let detail = format!("what answers {other} there is no backend");
            (Standing::Unreachable, detail, OTHER)
        }
    };
    Verdict {
        probe: probe.name(),
        status,
        address,
        took_ms: millis(took),
        detail,
        fix: fix.to_owned(),
    }
}

/// The line of a probe, or what it names as being in the way; `None` for what no backend says.
fn said(body: &[u8]) -> Option<String> {
    if let Ok(NotReady { status, reasons }) = serde_json::from_slice(body) {
        let status = match status {
            NotReadyStatus::NotReady => "not ready",
            NotReadyStatus::Starting => "starting",
            NotReadyStatus::Stopping => "stopping",
        };
        return Some(match reasons.is_empty() {
            true => status.to_owned(),
            false => format!("{status}: {}", text::line(&reasons.join(", "))),
        });
    }
    let text = String::from_utf8_lossy(body);
    let line = text::line(text.trim());
    // Versions before this one say no more than that they are not.
    matches!(&*line, "ok" | "not ready").then(|| line.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_as_a_line_or_by_what_is_in_the_way_and_nothing_else_is_one() {
        let reasons = r#"{"status":"not_ready","reasons":["store.commits","agents"]}"#;
        for (body, wanted) in [
            ("ok\n", Some("ok")),
            ("not ready\n", Some("not ready")),
            (reasons, Some("not ready: store.commits, agents")),
            (
                r#"{"status":"starting","reasons":["agents"]}"#,
                Some("starting: agents"),
            ),
            (r#"{"status":"stopping","reasons":[]}"#, Some("stopping")),
            (r#"{"status":"UP"}"#, None),
            (r#"{"status":"UP","reasons":[]}"#, None),
            ("<html>Welcome to nginx!</html>", None),
        ] {
            assert_eq!(said(body.as_bytes()).as_deref(), wanted, "{body}");
        }
    }
}
