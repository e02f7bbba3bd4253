//! What a run waits for, said while it waits: for whom, why, and until when.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use viworks_api::{Gateway, GatewayStatus, Run};
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::GatewayName;
use viworks_runtime::clock::{Clock, SystemClock};

use super::live::Live;
use crate::client::Client;
use crate::error::Failure;
use crate::output;

/// How often a terminal's line is renewed.
const TICK: Duration = Duration::from_millis(500);
/// How long nothing is said: most commands are over by then.
const QUIET: Duration = Duration::from_secs(1);
/// How often a reader that is no terminal is told.
const NOW_AND_THEN: Duration = Duration::from_secs(60);
/// How often gateways are asked for.
const ASK: Duration = Duration::from_secs(10);
/// Gateways that are named.
const NAMED: usize = 3;

/// Where a run stands.
struct Standing {
    total: usize,
    done: usize,
    running: Vec<GatewayName>,
    waiting: Vec<GatewayName>,
}

impl Standing {
    fn of(live: &Live) -> Self {
        let mut standing = Self {
            total: 0,
            done: 0,
            running: Vec::new(),
            waiting: Vec::new(),
        };
        for command in live.commands() {
            standing.total += 1;
            match command.state {
                Some(state) if state.is_final() => standing.done += 1,
                Some(CommandState::Running) => standing.running.push(command.gateway.clone()),
                _ => standing.waiting.push(command.gateway.clone()),
            }
        }
        standing.waiting.sort();
        standing.running.sort();
        standing
    }
}

/// Says on standard error what the run waits for, until it is dropped. Ends only when standard output does.
pub(super) async fn tell(client: &Client, run: &Run, live: &Mutex<Live>) -> Failure {
    let terminal = std::io::stderr().is_terminal();
    let started = Instant::now();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: BTreeMap<GatewayName, Gateway> = BTreeMap::new();
    let mut asked: Option<Instant> = None;
    let mut told: Option<(Instant, Vec<GatewayName>)> = None;
    loop {
        ticks.tick().await;
        let standing = {
            let mut live = live.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(failure) = live.release_old() {
                return failure;
            }
            Standing::of(&live)
        };
        if started.elapsed() < QUIET || standing.total == 0 {
            continue;
        }
        if standing.waiting.is_empty() && (!terminal || standing.running.is_empty()) {
            output::clear_status();
            continue;
        }
        let named: Vec<GatewayName> = standing.waiting.iter().take(NAMED).cloned().collect();
        let unknown = named.iter().any(|name| !known.contains_key(name));
        if asked.is_none_or(|asked| asked.elapsed() >= ASK) || unknown {
            asked = Some(Instant::now());
            for name in &named {
                // Without the right to read gateways the reason stays unsaid; the wait goes on.
                if let Ok(gateway) = client.gateway(name.as_str()).await {
                    known.insert(name.clone(), gateway);
                }
            }
        }
        let text = sentence(&standing, &named, &known, run, started.elapsed());
        if terminal {
            output::status(&text);
            continue;
        }
        let due = told.as_ref().is_none_or(|(at, names)| {
            at.elapsed() >= NOW_AND_THEN || (*names != named && at.elapsed() >= ASK)
        });
        if due {
            output::note(&text);
            told = Some((Instant::now(), named));
        }
    }
}

fn sentence(
    standing: &Standing,
    named: &[GatewayName],
    known: &BTreeMap<GatewayName, Gateway>,
    run: &Run,
    waited: Duration,
) -> String {
    let now = SystemClock.wall();
    let done = format!("{} of {} done", standing.done, standing.total);
    if standing.waiting.is_empty() {
        let names: Vec<&str> = standing
            .running
            .iter()
            .take(NAMED)
            .map(GatewayName::as_str)
            .collect();
        let more = more(standing.running.len());
        return format!(
            "running on {}{more} · {} · {done}",
            names.join(", "),
            human::span(waited)
        );
    }
    let who: Vec<String> = named
        .iter()
        .map(|name| match known.get(name) {
            Some(gateway) => format!("{name} ({})", reason(gateway, now)),
            None => name.to_string(),
        })
        .collect();
    format!(
        "waiting for {}{} · may start until {} ({}) · {done}",
        who.join(", "),
        more(standing.waiting.len()),
        human::clock_utc(run.deadline),
        human::relative(run.deadline, now)
    )
}

fn more(all: usize) -> String {
    match all.saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

fn reason(gateway: &Gateway, now: viworks_common::time::Timestamp) -> String {
    let seen = || {
        gateway.last_seen.map_or_else(String::new, |at| {
            format!(", last seen {}", human::relative(at, now))
        })
    };
    match gateway.status {
        GatewayStatus::Online => match gateway.queued_commands {
            // Its end is known there, and what tells it here has not been read yet.
            0 => "online, its answer is on the way".to_owned(),
            1 => "online, about to start".to_owned(),
            queued => format!("online, {queued} commands in its queue"),
        },
        GatewayStatus::Offline => format!("offline{}", seen()),
        GatewayStatus::Never => "never connected".to_owned(),
        GatewayStatus::Revoked => "revoked".to_owned(),
        GatewayStatus::Blocked => "blocked".to_owned(),
    }
}
