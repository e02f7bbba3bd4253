//! `viworks doctor`: whether this machine reaches a backend and can use it, and if not, what is first in the way.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use viworks_api::{GatewayList, GatewayStatus, Health, HealthCheck, HealthStatus};
use viworks_common::human;
use viworks_common::id::GatewayName;
use viworks_common::limits::SKEW_CORRECTED_FROM;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_runtime::ask::walk::{Stop, Walk};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::conditions::is_of;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::stdout::PrintError;

use crate::client::{Client, Dialled, NotThere};
use crate::failure::Failure;
use crate::output::Format;
use crate::views::failure::advice;
use crate::views::{expiry, pin};

const CONTEXT: &str = "context";
const DNS: &str = "dns";
const TCP: &str = "tcp";
const TLS: &str = "tls";
const API: &str = "api";
const CLOCK: &str = "clock";
const KEY: &str = "key";
const HEALTH: &str = "health";
const GATEWAYS: &str = "gateways";

/// The way, in its order.
const STEPS: [&str; 9] = [CONTEXT, DNS, TCP, TLS, API, CLOCK, KEY, HEALTH, GATEWAYS];

/// One step may take so many tenths of the whole, so that the step that hangs is the one that is named.
const STEP_TENTHS: u32 = 4;

/// Gateways and parts of the backend that are named.
const NAMED_MAX: usize = 10;

const NO_KEY_FIX: &str = "name the file that apikey create wrote: --token-file FILE (VIWORKS_TOKEN_FILE), or a context that has one";
const HEALTH_FIX: &str = "GET /v1/health has every part, and the backend's log says more";
const FIRST_FIX: &str = "make a ticket here (viworks ticket create), and use it on the gateway's machine: viworks-gateway-agent enroll";
const NEVER_FIX: &str = "on its machine: is the gateway agent started? viworks-gateway-agent doctor says what is in its way; where its files are missing, revoke it and enrol anew: viworks-gateway-agent enroll";
const NO_ANSWER_FIX: &str =
    "see that the backend's database runs and answers; its log, and /readyz in a moment, say more";
const NOT_READY: &str = "the backend is not ready: it starts, stops, or its database takes nothing";

/// Those of a list that are not named: how one or several are told, behind their number, and where they are.
struct Rest {
    one: &'static str,
    many: &'static str,
    fix: &'static str,
}

/// Walks, and shows what was found.
pub(super) async fn execute(
    client: Result<Client, Failure>,
    seconds: u64,
    format: Format,
) -> Result<ExitCode, Failure> {
    let mut doctor = Doctor {
        walk: Walk::over(&STEPS),
        begun: SystemClock.now(),
        limit: Duration::from_secs(seconds),
    };
    let stop = doctor.look(client).await.err();
    let Doctor { walk, begun, .. } = doctor;
    let shown = walk.end(stop.as_ref(), since(begun), format == Format::Json);
    shown.map_err(|error| match error {
        PrintError::ReaderGone => Failure::reader_gone(),
        PrintError::Failed(error) => Failure::new(ExitCode::Error, error.to_string()),
    })
}

struct Doctor {
    walk: Walk,
    begun: Monotonic,
    limit: Duration,
}

impl Doctor {
    /// How long the next step may take.
    fn step_time(&self) -> Duration {
        let left = self.limit.saturating_sub(since(self.begun));
        left.min(self.limit.saturating_mul(STEP_TENTHS) / 10)
            .max(Duration::from_millis(50))
    }

    async fn look(&mut self, client: Result<Client, Failure>) -> Result<(), Stop> {
        let client = client.map_err(|failure| stop(CONTEXT, &failure))?;
        self.context(&client);
        if let Some(dialled) = client.dials() {
            self.dial(&dialled).await?;
        }
        let ready = self.api(&client).await?;
        if !client.has_key() {
            return Err(Stop::at(KEY, ExitCode::Login, "no key is sent", NO_KEY_FIX));
        }
        self.key(&client, ready).await?;
        self.gateways(&client).await
    }

    fn context(&mut self, client: &Client) {
        let key = if client.has_key() {
            "with a key"
        } else {
            "without a key"
        };
        let words = [client.server(), key].into_iter();
        let words = words.chain(client.way().iter().map(String::as_str));
        let context = words.collect::<Vec<_>>().join(", ");
        self.walk.pass(CONTEXT, context, Duration::ZERO);
    }

    async fn dial(&mut self, dialled: &Dialled) -> Result<(), Stop> {
        let addresses = self.resolve(dialled).await?;
        let begun = SystemClock.now();
        let each = self.step_time() / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut last = None;
        for address in addresses {
            let why = match timeout(each, TcpStream::connect(address)).await {
                Ok(Ok(_stream)) => {
                    let found = format!("{address} takes the connection");
                    self.walk.pass(TCP, found, since(begun));
                    return Ok(());
                }
                Ok(Err(error)) => format!("{address}: {error}"),
                Err(_elapsed) => format!(
                    "{address} did not answer within {} ms: a firewall may drop this traffic",
                    each.as_millis()
                ),
            };
            last = Some(why);
        }
        let Some(cause) = last else { return Ok(()) };
        let fix = match &dialled.proxy {
            Some(variable) => format!("mend {variable}, or reach the backend without it: NO_PROXY"),
            None => "is the backend running, and is this its address? Its API listens on loopback only: from another machine go through its proxy, or a tunnel (ssh -L)".to_owned(),
        };
        Err(Stop::at(TCP, ExitCode::Unavailable, cause, fix))
    }

    async fn resolve(&mut self, dialled: &Dialled) -> Result<Vec<SocketAddr>, Stop> {
        let begun = SystemClock.now();
        let Dialled { host, port, proxy } = dialled;
        let unresolved = |why: String| {
            let (whose, fix) = match proxy {
                Some(variable) => (
                    format!("the proxy's name {host:?}"),
                    format!("mend {variable}, or reach the backend without it: NO_PROXY"),
                ),
                None => (
                    format!("the name {host:?}"),
                    "check the address (--server, VIWORKS_SERVER, viworks context ls) and this machine's DNS".to_owned(),
                ),
            };
            let cause = format!("{whose} could not be resolved: {why}");
            Stop::at(DNS, ExitCode::Unavailable, cause, fix)
        };
        let found = timeout(self.step_time(), lookup_host((host.as_str(), *port))).await;
        let found: Vec<SocketAddr> = found
            .map_err(|_elapsed| unresolved("no name server answered in time".to_owned()))?
            .map_err(|error| unresolved(error.to_string()))?
            .collect();
        let first = found.first();
        let first = first.ok_or_else(|| unresolved("it has no address".to_owned()))?;
        let whose = if proxy.is_some() { "the proxy " } else { "" };
        let detail = format!("{whose}{host} is {}", first.ip());
        self.walk.pass(DNS, detail, since(begun));
        Ok(found)
    }

    /// Whether the backend is ready.
    async fn api(&mut self, client: &Client) -> Result<bool, Stop> {
        let begun = SystemClock.now();
        let standing = client.standing(self.step_time()).await;
        let took = since(begun);
        match (client.is_secure(), &standing) {
            (false, _) => self.walk.skip(TLS, "plain HTTP"),
            (true, Err(NotThere::Untrusted(_))) => {}
            (
                true,
                Err(NotThere::Unanswered {
                    past_tls: false, ..
                }),
            ) => self.walk.skip(TLS, "no answer that would show it"),
            (true, Err(NotThere::Unanswered { .. }) | Ok(_)) => {
                self.walk
                    .pass(TLS, "the certificate is believed", Duration::ZERO);
            }
        }
        let standing = standing.map_err(|found| match found {
            NotThere::Untrusted(failure) => stop(TLS, &failure),
            NotThere::Unanswered { failure, .. } => stop(API, &failure),
        })?;
        let reasons = standing.reasons.join(", ");
        let found = match (standing.ready, reasons.as_str()) {
            (true, _) => "a backend answers, and is ready".to_owned(),
            (false, "") => "a backend answers, and is not ready".to_owned(),
            (false, reasons) => format!("a backend answers, and is not ready: {reasons}"),
        };
        self.walk.pass(API, found, took);
        self.clock(standing.clock);
        Ok(standing.ready)
    }

    fn clock(&mut self, theirs: Option<Timestamp>) {
        let Some(theirs) = theirs else {
            return self.walk.skip(CLOCK, "the answer has no time");
        };
        let ours = SystemClock.wall();
        let (ahead, behind) = (ours.saturating_since(theirs), theirs.saturating_since(ours));
        let (apart, word) = if ahead > behind {
            (ahead, "ahead of")
        } else {
            (behind, "behind")
        };
        // Theirs is told in whole seconds.
        let found = if apart < Duration::from_secs(1) {
            "this machine's clock is the server's, to the second".to_owned()
        } else {
            format!(
                "this machine's clock is {} {word} the server's",
                human::span(apart)
            )
        };
        if apart < SKEW_CORRECTED_FROM {
            return self.walk.pass(CLOCK, found, Duration::ZERO);
        }
        let fix = "set the one that is wrong, and keep it set (chrony, systemd-timesyncd): certificates are judged by it, and times that are shown here are off by as much";
        self.walk.warn(CLOCK, found, fix);
    }

    async fn key(&mut self, client: &Client, ready: bool) -> Result<(), Stop> {
        let begun = SystemClock.now();
        match client.health(self.step_time()).await {
            Ok(health) => {
                self.walk.pass(KEY, "the key is taken", since(begun));
                self.health(&health)
            }
            Err(failure) if failure.exit == ExitCode::Forbidden => {
                let known = client.knows_key(self.step_time()).await;
                known.map_err(|failure| self.unopened(&failure))?;
                self.walk.pass(KEY, "the key is taken", since(begun));
                let fix = "a key with health:read is told more";
                if !ready {
                    return Err(Stop::at(HEALTH, ExitCode::NoGo, NOT_READY, fix));
                }
                self.walk
                    .warn(HEALTH, "ready; this key may not ask for more", fix);
                Ok(())
            }
            Err(failure) => Err(self.unopened(&failure)),
        }
    }

    /// Why the key opened nothing. Whoever gave no answer has said nothing of it.
    fn unopened(&mut self, failure: &Failure) -> Stop {
        if failure.exit != ExitCode::Unavailable {
            return stop(KEY, failure);
        }
        self.walk.skip(KEY, "nothing was said of it");
        if !failure.unanswered {
            return stop(HEALTH, failure);
        }
        let cause = format!(
            "{}; without a key it answers, so that it may wait for its database, which knows the keys",
            failure.what
        );
        Stop::at(HEALTH, failure.exit, cause, NO_ANSWER_FIX)
    }

    fn health(&mut self, health: &Health) -> Result<(), Stop> {
        let with = |status: HealthStatus| {
            let found = health.checks.iter();
            found.filter(move |check| check.status == status && !is_told_by_another(check, health))
        };
        if let Some(check) = with(HealthStatus::Fail).next() {
            let (cause, fix) = told(check);
            return Err(Stop::at(HEALTH, ExitCode::NoGo, cause, fix));
        }
        let up = human::span(Duration::from_millis(health.uptime_ms));
        let running = format!("version {}, running for {up}", health.version);
        self.walk.pass(HEALTH, running, Duration::ZERO);
        let warned: Vec<_> = with(HealthStatus::Warn).map(told).collect();
        let rest = Rest {
            one: "more part is to be looked at",
            many: "more parts are to be looked at",
            fix: HEALTH_FIX,
        };
        self.name_some(HEALTH, warned, &rest);
        Ok(())
    }

    /// Names the first few, each with what to do about it, and counts the others.
    fn name_some(&mut self, step: &'static str, found: Vec<(String, String)>, rest: &Rest) {
        for (found, fix) in some_of(found, rest) {
            self.walk.warn(step, found, fix);
        }
    }

    async fn gateways(&mut self, client: &Client) -> Result<(), Stop> {
        let begun = SystemClock.now();
        let list = match timeout(self.step_time(), client.gateways()).await {
            Ok(Ok(list)) => list,
            Ok(Err(failure)) if failure.exit == ExitCode::Forbidden => {
                let why = "this key may not list them (gateways:read)";
                self.walk.skip(GATEWAYS, why);
                return Ok(());
            }
            Ok(Err(failure)) => return Err(stop(GATEWAYS, &failure)),
            Err(_elapsed) => {
                let cause = "the list of gateways did not come in time";
                let fix = "give it more time: --timeout 60";
                return Err(Stop::at(GATEWAYS, ExitCode::Unavailable, cause, fix));
            }
        };
        self.fleet(&list, since(begun));
        self.pins(client).await;
        Ok(())
    }

    /// Keys of the server that are staged, and wait. Nothing is in the way where this is not told: a key may lack
    /// `pins:read`, and a backend of before has no pins to ask for.
    async fn pins(&mut self, client: &Client) {
        let Ok(Ok(status)) = timeout(self.step_time(), client.pins()).await else {
            return;
        };
        let waiting = pin::waiting(&status, SystemClock.wall());
        let rest = Rest {
            one: "more staged key waits",
            many: "more staged keys wait",
            fix: "viworks pin status lists them",
        };
        self.name_some(GATEWAYS, waiting, &rest);
    }

    fn fleet(&mut self, list: &GatewayList, took: Duration) {
        let with = |status: GatewayStatus| {
            let found = list.items.iter();
            found.filter(move |gateway| gateway.status == status)
        };
        let online = with(GatewayStatus::Online).count();
        let all = list.items.len() - with(GatewayStatus::Revoked).count();
        let found = format!("{online} of {all} online");
        self.walk.pass(GATEWAYS, found, took);
        let blocked = with(GatewayStatus::Blocked).map(|gateway| {
            let name = &gateway.name;
            let found = format!("{name} is blocked: two machines hold its identity");
            (found, decide(name))
        });
        let rest = Rest {
            one: "more is blocked as well",
            many: "more are blocked as well",
            fix: "viworks gateway ls marks them",
        };
        self.name_some(GATEWAYS, blocked.collect(), &rest);
        self.undecided(list);
        if all == 0 {
            self.walk
                .warn(GATEWAYS, "no gateway is registered", FIRST_FIX);
        }
        let never: Vec<&str> = with(GatewayStatus::Never)
            .map(|gateway| gateway.name.as_str())
            .collect();
        if !never.is_empty() {
            let named = never.get(..NAMED_MAX).unwrap_or(&never).join(", ");
            let more = match never.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let gateways = human::counted(never.len(), "gateway has", "gateways have");
            let found = format!("{gateways} never connected: {named}{more}");
            self.walk.warn(GATEWAYS, found, NEVER_FIX);
        }
        let now = SystemClock.wall();
        let offline = with(GatewayStatus::Offline).map(|gateway| {
            let name = &gateway.name;
            let seen = gateway.last_seen.map(|at| human::relative(at, now));
            let seen = seen.as_deref().unwrap_or("never");
            let found = format!("{name} is offline, last seen {seen}");
            (found, format!("on {name}: viworks-gateway-agent doctor"))
        });
        let rest = Rest {
            one: "more is offline as well",
            many: "more are offline as well",
            fix: "viworks gateway ls lists them",
        };
        self.name_some(GATEWAYS, offline.collect(), &rest);
        self.without_certificate(list);
        self.certificates(list, now);
    }

    /// Those that are in, or away, while a second holder of their identity waits for a decision.
    fn undecided(&mut self, list: &GatewayList) {
        let open = list.items.iter().filter(|gateway| {
            gateway.undecided_forks > 0 && gateway.status != GatewayStatus::Blocked
        });
        let open = open.map(|gateway| {
            let name = &gateway.name;
            let holders = human::counted_all(
                gateway.undecided_forks,
                "second holder of its identity was refused",
                "second holders of its identity were refused",
            );
            let found = format!("{name}: {holders}, and nobody has decided who keeps it");
            (found, decide(name))
        });
        let rest = Rest {
            one: "more has a second holder as well",
            many: "more have a second holder as well",
            fix: "viworks gateway ls marks them",
        };
        self.name_some(GATEWAYS, open.collect(), &rest);
    }

    /// Those whose only certificate was revoked: they cannot connect, and get no other one by themselves.
    fn without_certificate(&mut self, list: &GatewayList) {
        let out = list.items.iter();
        let out = out.filter(|gateway| gateway.certificate_revoked_at.is_some());
        let out = out.map(|gateway| {
            let name = &gateway.name;
            let found = format!("{name} has no certificate that is accepted: it was revoked");
            let fix = format!(
                "nothing if that is meant to stay so; to let a machine in again: viworks gateway replace {name}"
            );
            (found, fix)
        });
        let rest = Rest {
            one: "more has no certificate that is accepted",
            many: "more have no certificate that is accepted",
            fix: "viworks gateway ls tells of each",
        };
        self.name_some(GATEWAYS, out.collect(), &rest);
    }

    /// Those that should have been renewed by now.
    fn certificates(&mut self, list: &GatewayList, now: Timestamp) {
        let overdue = list.items.iter().filter_map(|gateway| {
            let until = gateway.certificate_not_after?;
            let fix = expiry::overdue(gateway, now)?;
            let word = if until < now { "ended" } else { "ends" };
            let at = human::relative(until, now);
            let found = format!("the certificate of {} {word} {at}", gateway.name);
            Some((found, fix))
        });
        let rest = Rest {
            one: "more certificate is ended or about to end as well",
            many: "more certificates are ended or about to end as well",
            fix: "viworks gateway expiring lists them",
        };
        self.name_some(GATEWAYS, overdue.collect(), &rest);
    }
}

/// The first few of what was found, and behind them how many others there are.
fn some_of(mut found: Vec<(String, String)>, rest: &Rest) -> Vec<(String, String)> {
    let more = found.len().saturating_sub(NAMED_MAX);
    found.truncate(NAMED_MAX);
    if more > 0 {
        let counted = human::counted(more, rest.one, rest.many);
        found.push((counted, rest.fix.to_owned()));
    }
    found
}

/// What to do about a second holder of an identity.
fn decide(name: &GatewayName) -> String {
    format!(
        "see both: viworks gateway forks {name}; decide: viworks gateway resolve {name} --keep ID, with the ID of the \
         one that is to go on as forks shows it, or --replace where the refused one is to get an identity of its own"
    )
}

/// A part of the backend that is not well, and what to do about it. What was found may end with that already.
fn told(check: &HealthCheck) -> (String, String) {
    let Some(fix) = &check.fix else {
        let found = format!("{}: {}", check.name, check.detail);
        return (found, HEALTH_FIX.to_owned());
    };
    let detail = check.detail.strip_suffix(fix.as_str());
    let detail = detail.and_then(|found| found.strip_suffix("; "));
    let detail = detail.unwrap_or(&check.detail);
    (format!("{}: {detail}", check.name), fix.clone())
}

/// Whether something that belongs to this part says why it is as bad.
fn is_told_by_another(part: &HealthCheck, health: &Health) -> bool {
    let mut others = health.checks.iter().filter(|other| other.name != part.name);
    others.any(|other| other.status >= part.status && is_of(&other.name, &part.name))
}

/// A failure as the end of a walk: what has to be done stands among its details, or belongs to the code of the problem.
fn stop(step: &'static str, failure: &Failure) -> Stop {
    let (fixes, details): (Vec<_>, Vec<_>) = failure
        .details
        .iter()
        .map(String::as_str)
        .partition(|detail| detail.starts_with("fix: ") || detail.starts_with("expected: "));
    let mut cause = failure.what.clone();
    for detail in details {
        cause.push_str("; ");
        cause.push_str(detail);
    }
    let fixes: Vec<_> = fixes
        .iter()
        .map(|fix| fix.trim_start_matches("fix: "))
        .collect();
    let fix = match failure.problem.as_deref().and_then(advice) {
        Some(advice) if fixes.is_empty() => advice.to_owned(),
        Some(_) | None => fixes.join("; "),
    };
    Stop::at(step, failure.exit, cause, fix)
}

fn since(begun: Monotonic) -> Duration {
    SystemClock.now().saturating_since(begun)
}

#[cfg(test)]
mod tests {
    use viworks_api::Kind;

    use super::*;

    #[test]
    fn what_to_do_about_a_part_is_its_own_fix_and_told_once() {
        let mut check = HealthCheck {
            name: "fleet".to_owned(),
            status: HealthStatus::Warn,
            detail: "1 fork; decide".to_owned(),
            fix: Some("decide".to_owned()),
            since: None,
            latency_us: None,
            figures: std::collections::BTreeMap::new(),
            last_failure: None,
        };
        let pair = |found: &str, fix: &str| (found.to_owned(), fix.to_owned());
        assert_eq!(told(&check), pair("fleet: 1 fork", "decide"));
        check.detail = "1 fork".to_owned();
        assert_eq!(told(&check), pair("fleet: 1 fork", "decide"));
        // A backend of before says it among what was found alone.
        check.fix = None;
        assert_eq!(told(&check), pair("fleet: 1 fork", HEALTH_FIX));
    }

    #[test]
    fn a_second_holder_is_decided_about_in_one_of_two_ways() {
        let told = decide(&"gw-1".parse().unwrap());
        assert!(
            told.contains("viworks gateway resolve gw-1 --keep ID"),
            "{told}"
        );
        assert!(told.contains("--replace"), "{told}");
    }

    #[test]
    fn the_first_few_are_named_and_the_rest_is_counted() {
        let rest = Rest {
            one: "more is away",
            many: "more are away",
            fix: "look",
        };
        let told = |all: usize| {
            let found = (0..all).map(|number| (format!("{number} is away"), String::new()));
            some_of(found.collect(), &rest)
        };
        assert_eq!(told(NAMED_MAX).len(), NAMED_MAX);
        let more = told(NAMED_MAX + 2);
        assert_eq!(more.len(), NAMED_MAX + 1);
        assert_eq!(more[0].0, "0 is away");
        let (found, fix) = &more[NAMED_MAX];
        assert_eq!((found.as_str(), fix.as_str()), ("2 more are away", "look"));
    }

    #[test]
    fn a_part_is_not_named_beside_the_condition_that_says_why() {
        let check = |name: &str, status| HealthCheck {
            name: name.to_owned(),
            status,
            detail: String::new(),
            fix: None,
            since: None,
            latency_us: None,
            figures: std::collections::BTreeMap::new(),
            last_failure: None,
        };
        let checks = vec![
            check("queue", HealthStatus::Warn),
            check("queue.redis", HealthStatus::Warn),
            check("queued", HealthStatus::Warn),
            check("store.slow", HealthStatus::Warn),
            check("store", HealthStatus::Fail),
        ];
        let health = Health {
            kind: Kind::Health,
            status: HealthStatus::Fail,
            version: String::new(),
            uptime_ms: 0,
            checks,
            past: Vec::new(),
        };
        let named = health.checks.iter();
        let named = named.filter(|check| !is_told_by_another(check, &health));
        let named: Vec<&str> = named.map(|check| check.name.as_str()).collect();
        assert_eq!(named, ["queue.redis", "queued", "store.slow", "store"]);
    }
}
