//! What a run waits for, in one sentence.

use std::collections::BTreeMap;
use std::time::Duration;

use viworks_api::{Gateway, GatewayStatus, Run};
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::GatewayName;
use viworks_common::time::Timestamp;

use super::live::Live;
use crate::output::{one_line, short};
use crate::program;

/// Gateways that are named.
const NAMED: usize = 3;

/// Where a run stands.
pub struct Standing {
    pub total: usize,
    pub done: usize,
    pub running: Vec<GatewayName>,
    pub waiting: Vec<Waiting>,
}

/// A gateway whose command has not started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    pub gateway: GatewayName,
    /// Why, as far as that was told.
    pub reason: Option<String>,
}

impl Standing {
    /// As far as it was told.
    pub fn of(live: &Live) -> Self {
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
                _ => standing.waiting.push(Waiting {
                    gateway: command.gateway.clone(),
                    reason: command.waits_for.clone(),
                }),
            }
        }
        standing.waiting.sort();
        standing.running.sort();
        standing
    }

    /// Those of the waiting that are called by their names.
    pub fn named(&self) -> &[Waiting] {
        self.waiting.get(..NAMED).unwrap_or(&self.waiting)
    }
}

/// For whom the run waits, why, and until when.
pub fn sentence(
    standing: &Standing,
    known: &BTreeMap<GatewayName, Gateway>,
    run: &Run,
    waited: Duration,
    now: Timestamp,
) -> String {
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
    let who: Vec<String> = standing
        .named()
        .iter()
        .map(|Waiting { gateway, reason }| {
            let told = reason.as_deref().map(|reason| short(&one_line(reason)));
            let parts: Vec<String> = known
                .get(gateway)
                .map(|gateway| status(gateway, told.is_some(), now))
                .into_iter()
                .chain(told)
                .collect();
            if parts.is_empty() {
                gateway.to_string()
            } else {
                format!("{gateway} ({})", parts.join("; "))
            }
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

/// What to do about gateways that are away, where the run waits for one: nothing ends that until they come or its time
/// is over.
pub fn away(standing: &Standing, known: &BTreeMap<GatewayName, Gateway>) -> Option<String> {
    let is_away = |waiting: &Waiting| {
        let gateway = known.get(&waiting.gateway);
        gateway.is_some_and(|gateway| {
            matches!(
                gateway.status,
                GatewayStatus::Offline | GatewayStatus::Never | GatewayStatus::Blocked
            )
        })
    };
    standing.waiting.iter().any(is_away).then(|| {
        format!(
            "a gateway that is away gets its command when it comes: Ctrl-C ends the waiting and not the run; {} run takes \
             --no-wait, --wait=60s, and --except NAMES beside --all",
            program::name()
        )
    })
}

fn more(all: usize) -> String {
    match all.saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    }
}

/// What a gateway does at the moment; `held_up` when it is known why its command does not start.
fn status(gateway: &Gateway, held_up: bool, now: Timestamp) -> String {
    let seen = || {
        gateway.last_seen.map_or_else(String::new, |at| {
            format!(", last seen {}", human::relative(at, now))
        })
    };
    match gateway.status {
        GatewayStatus::Online => match gateway.queued_commands {
            // Its end is known there, and what tells it here has not been read yet.
            0 => "online, its answer is on the way".to_owned(),
            1 if held_up => "online".to_owned(),
            1 => "online, about to start".to_owned(),
            queued => {
                let commands = human::counted_all(queued, "command", "commands");
                format!("online, {commands} in its queue")
            }
        },
        GatewayStatus::Offline => format!("offline{}", seen()),
        GatewayStatus::Never => "never connected".to_owned(),
        GatewayStatus::Revoked => "revoked".to_owned(),
        GatewayStatus::Blocked => "blocked".to_owned(),
    }
}
