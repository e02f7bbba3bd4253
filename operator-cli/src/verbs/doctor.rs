//! `viworks doctor`: whether this machine reaches a backend and can use it, and if not, what is first in the way.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use viworks_api::{GatewayStatus, Health, HealthStatus};
use viworks_common::human;
use viworks_common::time::Monotonic;
use viworks_runtime::ask::walk::{Stop, Walk};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::stdout::PrintError;

use crate::client::Client;
use crate::failure::Failure;
use crate::output::Format;

const CONTEXT: &str = "context";
const DNS: &str = "dns";
const TCP: &str = "tcp";
const API: &str = "api";
const KEY: &str = "key";
const HEALTH: &str = "health";
const GATEWAYS: &str = "gateways";

/// The way, in its order.
const STEPS: [&str; 7] = [CONTEXT, DNS, TCP, API, KEY, HEALTH, GATEWAYS];

/// How long a name or a connection may take.
const STEP_TIME: Duration = Duration::from_secs(2);

/// Gateways and parts of the backend that are named.
const NAMED_MAX: usize = 10;

/// Walks, and shows what was found.
pub(super) async fn execute(
    client: Result<Client, Failure>,
    format: Format,
) -> Result<ExitCode, Failure> {
    let begun = SystemClock.now();
    let mut walk = Walk::over(&STEPS);
    let stop = look(&mut walk, client).await.err();
    let shown = walk.end(stop.as_ref(), since(begun), format == Format::Json);
    shown.map_err(|error| match error {
        PrintError::ReaderGone => Failure::reader_gone(),
        PrintError::Failed(error) => error.into(),
    })
}

async fn look(walk: &mut Walk, client: Result<Client, Failure>) -> Result<(), Stop> {
    let client = client.map_err(|failure| stop(CONTEXT, failure))?;
    let key = if client.has_key() {
        "with a key"
    } else {
        "without a key"
    };
    let mut context = format!("{}, {key}", client.server());
    for word in client.way() {
        context.push_str(", ");
        context.push_str(word);
    }
    walk.pass(CONTEXT, context, Duration::ZERO);
    match client.dials() {
        Some((host, port)) => dial(walk, &host, port).await?,
        None => {
            for step in [DNS, TCP] {
                walk.skip(step, "a proxy does that");
            }
        }
    }
    let begun = SystemClock.now();
    let ready = client.is_ready().await;
    let ready = ready.map_err(|failure| stop(API, failure))?;
    walk.pass(API, "a backend answers", since(begun));
    if !client.has_key() {
        let fix = "name the file that apikey create wrote: --token-file FILE (VIWORKS_TOKEN_FILE), or a context that has one";
        return Err(Stop::at(KEY, ExitCode::Login, "no key is sent", fix));
    }
    let begun = SystemClock.now();
    match client.health().await {
        Ok(health) => {
            walk.pass(KEY, "the key is taken", since(begun));
            self::health(walk, &health)?;
        }
        Err(failure) if failure.exit == ExitCode::Forbidden => {
            let known = client.knows_key().await;
            known.map_err(|failure| stop(KEY, failure))?;
            walk.pass(KEY, "the key is taken", since(begun));
            let fix = "a key with health:read is told more";
            if !ready {
                let cause =
                    "the backend is not ready: it starts, stops, or its database takes nothing";
                return Err(Stop::at(HEALTH, ExitCode::NoGo, cause, fix));
            }
            walk.warn(HEALTH, "ready; this key may not ask for more", fix);
        }
        Err(failure) => return Err(stop(KEY, failure)),
    }
    gateways(walk, &client).await
}

async fn dial(walk: &mut Walk, host: &str, port: u16) -> Result<(), Stop> {
    let begun = SystemClock.now();
    let fix =
        "check the address (--server, VIWORKS_SERVER, viworks context ls) and this machine's DNS";
    let unresolved = |why: String| {
        let cause = format!("the name {host:?} could not be resolved: {why}");
        Stop::at(DNS, ExitCode::Unavailable, cause, fix)
    };
    let found = timeout(STEP_TIME, lookup_host((host, port))).await;
    let found: Vec<SocketAddr> = found
        .map_err(|_elapsed| unresolved("no name server answered in time".to_owned()))?
        .map_err(|error| unresolved(error.to_string()))?
        .collect();
    let first = found.first();
    let first = *first.ok_or_else(|| unresolved("it has no address".to_owned()))?;
    walk.pass(DNS, format!("{host} is {}", first.ip()), since(begun));
    let begun = SystemClock.now();
    let mut last = None;
    for address in found {
        match timeout(STEP_TIME, TcpStream::connect(address)).await {
            Ok(Ok(_stream)) => {
                walk.pass(TCP, format!("{address} takes the connection"), since(begun));
                return Ok(());
            }
            Ok(Err(error)) => {
                last = Some(Stop::at(
                    TCP,
                    ExitCode::Unavailable,
                    format!("{address}: {error}"),
                    "is the backend running, and is this its address? Its API listens on loopback only: from another machine go through its proxy, or a tunnel (ssh -L)",
                ));
            }
            Err(_elapsed) => {
                last = Some(Stop::at(
                    TCP,
                    ExitCode::Unavailable,
                    format!("{address} did not answer within {} s", STEP_TIME.as_secs()),
                    "check the network path: a firewall may drop this traffic",
                ));
            }
        }
    }
    last.map_or(Ok(()), Err)
}

fn health(walk: &mut Walk, health: &Health) -> Result<(), Stop> {
    let up = human::span(Duration::from_millis(health.uptime_ms));
    let failing = health
        .checks
        .iter()
        .find(|check| check.status == HealthStatus::Fail);
    if let Some(check) = failing {
        let cause = format!("{}: {}", check.name, check.detail);
        let fix =
            "it stands behind the semicolon, where there is one; GET /v1/health has every part";
        return Err(Stop::at(HEALTH, ExitCode::NoGo, cause, fix));
    }
    let running = format!("version {}, running for {up}", health.version);
    walk.pass(HEALTH, running, Duration::ZERO);
    let warned = health
        .checks
        .iter()
        .filter(|check| check.status == HealthStatus::Warn);
    for check in warned.take(NAMED_MAX) {
        walk.warn(HEALTH, format!("{}: {}", check.name, check.detail), "");
    }
    Ok(())
}

async fn gateways(walk: &mut Walk, client: &Client) -> Result<(), Stop> {
    let begun = SystemClock.now();
    let list = match client.gateways().await {
        Ok(list) => list,
        Err(failure) if failure.exit == ExitCode::Forbidden => {
            walk.skip(GATEWAYS, "this key may not list them (gateways:read)");
            return Ok(());
        }
        Err(failure) => return Err(stop(GATEWAYS, failure)),
    };
    let now = SystemClock.wall();
    let with = |status: GatewayStatus| {
        let same = list.items.iter().filter(move |one| one.status == status);
        same.collect::<Vec<_>>()
    };
    let online = with(GatewayStatus::Online).len();
    let all = list.items.len() - with(GatewayStatus::Revoked).len();
    walk.pass(GATEWAYS, format!("{online} of {all} online"), since(begun));
    let mut away = with(GatewayStatus::Offline);
    away.extend(with(GatewayStatus::Blocked));
    for gateway in away.iter().take(NAMED_MAX) {
        let seen = gateway
            .last_seen
            .map_or_else(|| "never".to_owned(), |at| human::relative(at, now));
        let name = &gateway.name;
        let (what, fix) = match gateway.status {
            GatewayStatus::Blocked => (
                format!("{name} is blocked: two machines hold its identity"),
                format!("see both: viworks gateway forks {name}"),
            ),
            GatewayStatus::Offline
            | GatewayStatus::Online
            | GatewayStatus::Never
            | GatewayStatus::Revoked => (
                format!("{name} is offline, last seen {seen}"),
                format!("on {name}: viworks-gateway-agent doctor"),
            ),
        };
        walk.warn(GATEWAYS, what, fix);
    }
    if away.len() > NAMED_MAX {
        let more = format!("{} more are offline", away.len() - NAMED_MAX);
        walk.warn(GATEWAYS, more, "viworks gateway ls lists them");
    }
    Ok(())
}

/// A failure as the end of a walk: what has to be done stands among its details.
fn stop(step: &'static str, failure: Failure) -> Stop {
    let (fixes, details): (Vec<_>, Vec<_>) = failure
        .details
        .into_iter()
        .partition(|detail| detail.starts_with("fix: "));
    let mut cause = failure.what;
    for detail in details {
        cause.push_str("; ");
        cause.push_str(&detail);
    }
    let fix = fixes
        .iter()
        .map(|fix| fix.trim_start_matches("fix: "))
        .collect::<Vec<_>>()
        .join("; ");
    let fix = match failure.exit {
        ExitCode::Login if fix.is_empty() => {
            "make a key that is valid (viworks-backend-agent apikey create), and name its file"
                .to_owned()
        }
        _ => fix,
    };
    Stop::at(step, failure.exit, cause, fix)
}

fn since(begun: Monotonic) -> Duration {
    SystemClock.now().saturating_since(begun)
}
