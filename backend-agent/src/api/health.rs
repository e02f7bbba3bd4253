//! The full health document: every latch, the store, and what waits.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;
use viworks_api::{Health, HealthCheck, HealthPast, HealthStatus, Kind};
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::GatewayName;
use viworks_common::time::Timestamp;
use viworks_runtime::conditions::{Condition, Past, Severity, is_of};
use viworks_runtime::probe::Check;

use self::figures::figures;
use super::ApiState;
use super::problem::millis;
use crate::command::dead_letters;
use crate::data::{Counts, StoreError, StoreResult};

mod figures;

/// How long the store may take for its part of the document, and where it is known that it does not answer: whoever
/// watches has an answer within three seconds, the look for its key among them.
const STORE_TIME: Duration = Duration::from_secs(2);
const STORE_DOWN_TIME: Duration = Duration::from_millis(300);
/// What is said of it is named so.
const STORE: &str = "store";
const STORE_LATE: &str = "the database has not answered in time";

/// Looks at every part.
pub(super) async fn health(state: &ApiState) -> Health {
    let mut checks: Vec<HealthCheck> = state
        .readiness
        .report()
        .checks
        .into_iter()
        // The store says more of itself below.
        .filter(|latch| latch.name != STORE)
        .map(|latch| HealthCheck {
            status: if latch.ok {
                HealthStatus::Pass
            } else {
                HealthStatus::Fail
            },
            ..check(latch.name, HealthStatus::Pass, latch.reason)
        })
        .collect();
    let patience = patience(state);
    let (store, instances, fleet, own) = tokio::join!(
        store(state, patience),
        instances(state, patience),
        fleet(state, patience),
        figures::parts(state)
    );
    // Behind these looks, some of which tell what is so by now.
    let now = state.clock.wall();
    let conditions = state.conditions.list();
    let past = state.conditions.past();
    checks.extend(conditions.iter().map(|found| condition(found, now)));
    checks.push(store);
    checks.extend(instances);
    checks.extend(fleet);
    for part in own {
        add(&mut checks, part);
    }
    for check in &mut checks {
        worsen(check, &conditions);
        remember(check, &conditions, &past);
    }
    if state.stopping.is_cancelled() {
        checks.push(check(
            "lifecycle",
            HealthStatus::Warn,
            "the backend is stopping",
        ));
    }
    Health {
        kind: Kind::Health,
        status: checks
            .iter()
            .map(|check| check.status)
            .max()
            .unwrap_or(HealthStatus::Fail),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_ms: millis(state.clock.now().saturating_since(state.started)),
        checks,
        past: past.iter().map(over).collect(),
    }
}

/// Where something is told of a part already, its figures stand beside that.
fn add(checks: &mut Vec<HealthCheck>, part: HealthCheck) {
    match checks.iter_mut().find(|check| check.name == part.name) {
        Some(told) => {
            // Of two that are equally bad each says something of its own.
            let as_bad = part.status >= told.status && part.status != HealthStatus::Pass;
            if as_bad && part.detail != told.detail {
                told.status = part.status;
                told.detail = format!("{}; {}", part.detail, told.detail);
            }
            told.fix = told.fix.take().or(part.fix);
            told.figures = part.figures;
            told.latency_us = part.latency_us;
        }
        None => checks.push(part),
    }
}

/// A part is no better than the worst of its conditions, and names it: whoever watches the part alone sees it.
fn worsen(part: &mut HealthCheck, conditions: &[Condition]) {
    let of_part = conditions.iter().filter(|found| found.is_of(&part.name));
    let Some(worst) = of_part.max_by_key(|found| found.severity) else {
        return;
    };
    let status = status_of(worst.severity);
    if status > part.status {
        part.status = status;
        part.detail = format!("{}; see {}", part.detail, worst.name);
        part.fix = (!worst.fix.is_empty()).then(|| worst.fix.clone());
    }
}

const fn status_of(severity: Severity) -> HealthStatus {
    match severity {
        Severity::Warn => HealthStatus::Warn,
        Severity::Fail => HealthStatus::Fail,
    }
}

/// A part that is not well is so since its conditions are; what was wrong with it before is told as well.
fn remember(check: &mut HealthCheck, conditions: &[Condition], past: &[Past]) {
    if check.status != HealthStatus::Pass && check.since.is_none() {
        let of_part = conditions.iter().filter(|found| found.is_of(&check.name));
        check.since = of_part.map(|found| found.since).min();
    }
    let mut before = past
        .iter()
        .filter(|past| is_of(&past.condition.name, &check.name));
    check.last_failure = before.next().map(over);
}

/// What was wrong, and is no more.
fn over(past: &Past) -> HealthPast {
    HealthPast {
        name: past.condition.name.clone(),
        detail: past.condition.cause.clone(),
        since: past.condition.since,
        until: past.until,
    }
}

/// The names of the checks that keep the backend from taking requests: of a part that is not well, the conditions that
/// say why, or else the part.
pub(super) fn in_the_way(state: &ApiState) -> Vec<String> {
    let conditions = state.conditions.list();
    let failing = conditions
        .iter()
        .filter(|found| found.severity == Severity::Fail);
    let failing: Vec<&str> = failing.map(|found| found.name.as_str()).collect();
    let checks = state.readiness.report().checks.into_iter();
    let down = checks.filter(|latch| !latch.ok);
    down.flat_map(|latch| named(latch.name, &failing)).collect()
}

fn named(part: &str, failing: &[&str]) -> Vec<String> {
    let found: Vec<String> = failing
        .iter()
        .filter(|name| is_of(name, part))
        .map(|name| (*name).to_owned())
        .collect();
    if found.is_empty() {
        vec![part.to_owned()]
    } else {
        found
    }
}

/// What is wrong, and what to do about it.
fn condition(found: &Condition, now: Timestamp) -> HealthCheck {
    // A clock that was set back since knows no better than that it is so now.
    let since = human::relative(found.since.min(now), now);
    let mut detail = format!("{} ({since})", found.cause);
    let fix = (!found.fix.is_empty()).then(|| found.fix.clone());
    if let Some(fix) = &fix {
        detail.push_str("; ");
        detail.push_str(fix);
    }
    HealthCheck {
        fix,
        since: Some(found.since),
        ..check(&found.name, status_of(found.severity), detail)
    }
}

/// What the latch of the store says, where that is down: a job looks every few seconds.
fn down(state: &ApiState) -> Option<Check> {
    let mut latches = state.readiness.report().checks.into_iter();
    latches.find(|latch| latch.name == STORE && !latch.ok)
}

fn patience(state: &ApiState) -> Duration {
    match down(state) {
        Some(_) => STORE_DOWN_TIME,
        None => STORE_TIME,
    }
}

async fn store(state: &ApiState, patience: Duration) -> HealthCheck {
    let begun = state.clock.now();
    let (status, detail) = look_at_store(state, patience).await;
    let latency = state.clock.now().saturating_since(begun);
    HealthCheck {
        latency_us: Some(micros(latency)),
        ..check(STORE, status, detail)
    }
}

async fn look_at_store(state: &ApiState, patience: Duration) -> (HealthStatus, String) {
    let found = timeout(patience, state.store.health()).await;
    match (found, down(state)) {
        (Ok(Err(error)), _) => (HealthStatus::Fail, error.without_words()),
        (_, Some(latch)) => (HealthStatus::Fail, latch.reason),
        (Ok(Ok(health)), None) => {
            let schema = format!("{}, schema {}", health.kind, health.schema_version);
            match health.problem {
                None => (HealthStatus::Pass, schema),
                Some(problem) => (HealthStatus::Fail, format!("{schema}: {problem}")),
            }
        }
        (Err(_elapsed), None) => (HealthStatus::Warn, format!("slow: {STORE_LATE}")),
    }
}

/// The backends of the database, where it can have several.
async fn instances(state: &ApiState, patience: Duration) -> Option<HealthCheck> {
    let own = (*state.store.instance().borrow())?;
    let name = "instances";
    let all = match in_time(patience, state.store.list_instances()).await {
        Ok(all) => all,
        Err(error) => {
            return Some(check(
                name,
                unanswered(state, &error),
                error.without_words(),
            ));
        }
    };
    let told = all.iter().map(|one| {
        let standing = match (one.lease.is_zero(), one.draining) {
            (true, _) => ", its lease has run out",
            (false, true) => ", about to stop",
            (false, false) => "",
        };
        let this = if one.id == own { "this one, " } else { "" };
        let sessions = human::counted_all(one.sessions, "session", "sessions");
        format!("{} ({this}{sessions}{standing})", one.name)
    });
    let told: Vec<String> = told.collect();
    let status = match all.iter().any(|one| one.lease.is_zero()) {
        true => HealthStatus::Warn,
        false => HealthStatus::Pass,
    };
    let backends = human::counted(all.len(), "backend", "backends");
    let detail = format!("{backends}: {}", told.join("; "));
    Some(check(name, status, detail))
}

/// Gateways and their queue, from one look.
async fn fleet(state: &ApiState, patience: Duration) -> Vec<HealthCheck> {
    let now = state.clock.line();
    let counts = match in_time(patience, state.store.counts(&state.tenant, now)).await {
        Ok(counts) => counts,
        Err(error) => {
            let status = unanswered(state, &error);
            return vec![check("fleet", status, error.without_words())];
        }
    };
    dead_letters::tell(&state.conditions, counts.dead_letters);
    let open: u64 = counts.open_commands.values().sum();
    let status = if counts.forks > 0 || counts.orphans > 0 {
        HealthStatus::Warn
    } else {
        HealthStatus::Pass
    };
    let detail = format!(
        "{} of {} online, {} open, {}, {}",
        human::count(counts.connected),
        human::counted_all(counts.gateways, "gateway", "gateways"),
        human::counted_all(open, "command", "commands"),
        forks(&counts),
        human::counted_all(counts.orphans, "orphaned result", "orphaned results"),
    );
    let fleet = HealthCheck {
        fix: fleet_fix(&counts),
        figures: figures([
            ("gateways", counts.gateways),
            ("connected_gateways", counts.connected),
            ("open_runs", counts.open_runs),
            ("open_commands", open),
            ("forks", counts.forks),
            ("orphans", counts.orphans),
        ]),
        ..check("fleet", status, detail)
    };
    let queued = counts.open_commands.get(&CommandState::Queued);
    let queued = queued.copied().unwrap_or_default();
    let age = counts.oldest_queued_at;
    let age = age.map_or(Duration::ZERO, |at| now.saturating_since(at));
    let detail = waiting(queued, age);
    let queue = HealthCheck {
        figures: figures([
            ("queued_commands", queued),
            ("oldest_age_ms", millis(age)),
            ("dead_letters", counts.dead_letters),
        ]),
        ..check("queued", HealthStatus::Pass, detail)
    };
    vec![fleet, queue]
}

/// What to do about second holders, or about results of nobody.
fn fleet_fix(counts: &Counts) -> Option<String> {
    if let Some(first) = counts.forked_first.first() {
        return Some(format!(
            "see both holders: viworks gateway forks {first}; decide: viworks gateway resolve {first} --keep ID, with \
             the ID of the one that is to go on as forks shows it, or --replace where the refused one is to get an \
             identity of its own"
        ));
    }
    (counts.orphans > 0).then(|| {
        "see the results of commands that nobody knows: viworks gateway orphans NAME; they are there after a restored \
         database, and otherwise that gateway makes them up"
            .to_owned()
    })
}

/// So many second holders somebody has to decide about, of which gateways, and the command to begin with.
fn forks(counts: &Counts) -> String {
    let forks = human::counted_all(counts.forks, "fork", "forks");
    let Some(first) = counts.forked_first.first() else {
        return forks;
    };
    let named: Vec<&str> = counts
        .forked_first
        .iter()
        .map(GatewayName::as_str)
        .collect();
    let shown = u64::try_from(named.len()).unwrap_or(u64::MAX);
    let more = match counts.forked.saturating_sub(shown) {
        0 => String::new(),
        more => format!(" and {} more", human::count(more)),
    };
    format!(
        "{forks} to decide about, of {}{more} (viworks gateway forks {first})",
        named.join(", ")
    )
}

/// So many commands, and how long the oldest of them has waited.
fn waiting(queued: u64, age: Duration) -> String {
    let commands = human::counted_all(queued, "command waits", "commands wait");
    let age = human::span(age);
    match queued {
        0 => "no command waits".to_owned(),
        1 => format!("{commands}, for {age}"),
        _ => format!("{commands}, the oldest for {age}"),
    }
}

/// What it means that the store said nothing of something: while it works otherwise, it is slow.
fn unanswered(state: &ApiState, error: &StoreError) -> HealthStatus {
    let is_late =
        matches!(error, StoreError::Unavailable(cause) if cause.to_string() == STORE_LATE);
    if is_late && down(state).is_none() {
        HealthStatus::Warn
    } else {
        HealthStatus::Fail
    }
}

/// An answer about health does not wait for a store that says nothing.
async fn in_time<T>(
    patience: Duration,
    asked: impl Future<Output = StoreResult<T>>,
) -> StoreResult<T> {
    let late = |_elapsed| Err(StoreError::Unavailable(STORE_LATE.into()));
    timeout(patience, asked).await.unwrap_or_else(late)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn check(name: &str, status: HealthStatus, detail: impl Into<String>) -> HealthCheck {
    HealthCheck {
        name: name.to_owned(),
        status,
        detail: detail.into(),
        fix: None,
        since: None,
        latency_us: None,
        figures: BTreeMap::new(),
        last_failure: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_the_conditions_of_a_part_or_the_part() {
        let failing = ["store.lock", "storehouse", "store", "queued.dead_letters"];
        assert_eq!(named("store", &failing), ["store.lock", "store"]);
        assert_eq!(named("agents", &failing), ["agents"]);
    }

    #[test]
    fn of_a_condition_and_a_part_of_its_name_the_worse_is_told() {
        let part = || HealthCheck {
            figures: figures([("free_bytes", 7)]),
            ..check("disk", HealthStatus::Fail, "it does not answer")
        };
        for (told, status, detail) in [
            (
                HealthStatus::Warn,
                HealthStatus::Fail,
                "it does not answer; it fills up",
            ),
            (
                HealthStatus::Fail,
                HealthStatus::Fail,
                "it does not answer; it fills up",
            ),
        ] {
            let mut checks = vec![check("disk", told, "it fills up")];
            add(&mut checks, part());
            assert_eq!(checks.len(), 1);
            assert_eq!((checks[0].status, &*checks[0].detail), (status, detail));
            assert_eq!(checks[0].figures["free_bytes"], 7);
        }
        let mut checks = vec![check("disk", HealthStatus::Fail, "it does not answer")];
        add(&mut checks, part());
        assert_eq!(checks[0].detail, "it does not answer");
        let mut checks = vec![check("disk", HealthStatus::Fail, "it fills up")];
        add(
            &mut checks,
            check("disk", HealthStatus::Pass, "7 bytes free"),
        );
        assert_eq!(checks[0].detail, "it fills up");
    }

    #[test]
    fn whose_forks_somebody_has_to_decide_about_is_told_with_the_command() {
        let told = |names: &[&str], forked| {
            let forked_first = names.iter().map(|name| name.parse().unwrap()).collect();
            forks(&Counts {
                forks: forked,
                forked,
                forked_first,
                ..Counts::default()
            })
        };
        assert_eq!(told(&[], 0), "0 forks");
        assert_eq!(
            told(&["gw-b"], 1),
            "1 fork to decide about, of gw-b (viworks gateway forks gw-b)"
        );
        assert_eq!(
            told(&["gw-b", "gw-a"], 1_002),
            "1,002 forks to decide about, of gw-b, gw-a and 1,000 more (viworks gateway forks gw-b)"
        );
    }

    #[test]
    fn a_part_says_what_to_do_about_it_by_itself() {
        let of = |forked_first: Vec<GatewayName>, orphans| {
            fleet_fix(&Counts {
                forked_first,
                orphans,
                ..Counts::default()
            })
        };
        assert_eq!(of(Vec::new(), 0), None);
        let forked = of(vec!["gw-b".parse().unwrap()], 1).unwrap();
        assert!(
            forked.contains("viworks gateway resolve gw-b --keep ID"),
            "{forked}"
        );
        assert!(forked.contains("--replace"), "{forked}");
        let orphans = of(Vec::new(), 1).unwrap();
        assert!(orphans.contains("viworks gateway orphans"), "{orphans}");
        let now = Timestamp::from_unix_micros(1_800_000_000_000_000);
        let mut found = Condition {
            name: "queue.redis".to_owned(),
            severity: Severity::Warn,
            cause: "it is away".to_owned(),
            fix: "start it".to_owned(),
            since: now,
        };
        let told = condition(&found, now);
        assert_eq!(told.fix.as_deref(), Some("start it"));
        assert!(told.detail.ends_with("; start it"), "{}", told.detail);
        let mut part = check("queue", HealthStatus::Pass, "Redis");
        worsen(&mut part, std::slice::from_ref(&found));
        assert_eq!(part.fix.as_deref(), Some("start it"));
        found.fix.clear();
        assert_eq!(condition(&found, now).fix, None);
    }

    #[test]
    fn one_command_that_waits_is_one() {
        let told = |queued| waiting(queued, Duration::from_secs(12));
        assert_eq!(told(0), "no command waits");
        assert_eq!(told(1), "1 command waits, for 12 s");
        assert_eq!(told(3), "3 commands wait, the oldest for 12 s");
    }

    #[test]
    fn a_part_is_no_better_than_the_worst_of_its_conditions() {
        let found = |name: &str, severity| Condition {
            name: name.to_owned(),
            severity,
            cause: "it is away".to_owned(),
            fix: String::new(),
            since: Timestamp::from_unix_micros(1_800_000_000_000_000),
        };
        let conditions = [
            found("queue.redis", Severity::Warn),
            found("queued.dead_letters", Severity::Fail),
            found("store.slow", Severity::Warn),
            found("store.commits", Severity::Fail),
        ];
        let told = |name, status| {
            let mut part = check(name, status, "Redis at 127.0.0.1:6379");
            worsen(&mut part, &conditions);
            assert_eq!(part.fix, None, "{name}");
            (part.status, part.detail)
        };
        let words = |more: &str| format!("Redis at 127.0.0.1:6379{more}");
        assert_eq!(
            told("queue", HealthStatus::Pass),
            (HealthStatus::Warn, words("; see queue.redis"))
        );
        assert_eq!(
            told("store", HealthStatus::Pass),
            (HealthStatus::Fail, words("; see store.commits"))
        );
        // What is as bad by itself, or is the condition, says it already.
        for (name, status) in [
            ("queue", HealthStatus::Fail),
            ("queue.redis", HealthStatus::Warn),
            ("agents", HealthStatus::Pass),
        ] {
            assert_eq!(told(name, status), (status, words("")), "{name}");
        }
    }

    #[test]
    fn a_condition_is_told_of_the_part_that_it_begins_with() {
        assert!(is_of("certificate.server", "certificate"));
        assert!(is_of("queued.dead_letters", "queued"));
        assert!(!is_of("queued.dead_letters", "queue"));
    }

    #[test]
    fn a_condition_began_in_the_past_also_by_a_clock_that_was_set_back_since() {
        let since = Timestamp::from_unix_micros(1_800_000_000_000_000);
        let told = |now: Timestamp| {
            let found = Condition {
                name: "clock".to_owned(),
                severity: Severity::Warn,
                cause: "the wall clock was set".to_owned(),
                fix: "correct it".to_owned(),
                since,
            };
            condition(&found, now)
        };
        let later = told(since.saturating_add(Duration::from_secs(185)));
        assert_eq!(
            later.detail,
            "the wall clock was set (3 min 5 s ago); correct it"
        );
        let before = told(since.saturating_sub(Duration::from_secs(3_600)));
        assert_eq!(before.detail, "the wall clock was set (now); correct it");
        // As data it stays what was read then.
        assert_eq!(
            (before.since, before.status),
            (Some(since), HealthStatus::Warn)
        );
    }
}
