//! What a fleet adds that does nothing: transactions of the database, commands of the queue, and how often the
//! backend's threads are woken, in each second, over those of a backend without gateways.

use std::ops::Range;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use super::Plan;
use crate::fleet::Fleet;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::servers::Servers;
use crate::system::System;

/// Transactions of this database; those of whoever asks are some of them.
const TRANSACTIONS: &str = "\
SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";

/// What a few agents are taken to add at least, in each second: less is lost in what varies anyway.
const LEAST: f64 = 1.0;

/// What has its turn every fifteen seconds is counted once more or less in two such times.
const ENDS: f64 = 1.02;

/// Gateways come in so many parts, spread over the time between two heartbeats: of a few that came together one wake-up
/// would do for the heartbeats of all, which no fleet has.
const PARTS: u32 = 100;

/// Counters that only grow.
struct Counted {
    transactions: u64,
    queue_commands: u64,
    wakeups: u64,
    at: Instant,
}

/// What grew, in each second.
struct Rates {
    transactions: f64,
    queue_commands: f64,
    wakeups: f64,
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let mut sizes = [0, plan.command_agents, plan.agents_few, plan.agents];
    sizes.sort_unstable();
    let mut measured = Vec::new();
    for agents in sizes {
        let Some(servers) = Servers::start() else {
            return Ok(Vec::new());
        };
        measured.push((agents, of(&servers, plan, agents).await?));
    }
    let [(_none, empty), (few, base), larger @ ..] = &measured[..] else {
        return Ok(Vec::new());
    };
    let mut figures = Vec::new();
    for (agents, rates) in larger {
        // None may grow faster than the gateways do, but for what falls to one side of the watch's ends.
        let times = ENDS * *agents as f64 / *few as f64;
        let mut add = |what: &str, of: fn(&Rates) -> f64| {
            let what = format!("idle: {what}, {agents} agents, and {few}");
            let added = |rates: &Rates| (of(rates) - of(empty)).max(0.0);
            let sides = (added(rates), added(base).max(LEAST));
            let figure = Figure::new(what, Unit::PerSecond, sides);
            figures.push(figure.aiming(Target::TimesAtMost(times)));
        };
        add("transactions", |it| it.transactions);
        add("commands of the queue", |it| it.queue_commands);
        add("wake-ups", |it| it.wakeups);
    }
    Ok(figures)
}

async fn of(servers: &Servers, plan: &Plan, agents: usize) -> anyhow::Result<Rates> {
    let system = System::on(Some(servers), agents).await?;
    let server = Server::start(Role::Ours, &system, None).await?;
    let _fleet = spread(&system, &server, plan, 0..agents).await?;
    // A connection that has nothing to do tells the server's statistics after ten seconds what it did before.
    sleep(plan.watched / 2).await;
    let before = count(servers, &server)?;
    sleep(plan.watched).await;
    let after = count(servers, &server)?;
    let seconds = after.at.duration_since(before.at).as_secs_f64();
    let rate = |of: fn(&Counted) -> u64| of(&after).saturating_sub(of(&before)) as f64 / seconds;
    Ok(Rates {
        transactions: rate(|it| it.transactions),
        queue_commands: rate(|it| it.queue_commands),
        wakeups: rate(|it| it.wakeups),
    })
}

/// Starts these agents in so many parts over half of the time that a fleet is watched, and waits until all are there.
pub(super) async fn spread(
    system: &System,
    server: &Server,
    plan: &Plan,
    numbers: Range<usize>,
) -> anyhow::Result<Vec<Fleet>> {
    let (parts, agents) = (PARTS as usize, numbers.len());
    let mut fleet = Vec::new();
    for part in 0..parts {
        let at = |part: usize| numbers.start + agents * part / parts;
        let numbers = at(part)..at(part + 1);
        if !numbers.is_empty() {
            fleet.push(Fleet::start(Role::Ours, system, server, numbers)?);
        }
        sleep(plan.watched / 2 / PARTS).await;
    }
    for part in &fleet {
        part.all_up().await?;
    }
    Ok(fleet)
}

fn count(servers: &Servers, server: &Server) -> anyhow::Result<Counted> {
    let transactions = servers.ask(TRANSACTIONS)?;
    Ok(Counted {
        transactions: transactions.parse().context("not a number")?,
        queue_commands: servers.queue_commands()?,
        wakeups: server.wakeups()?,
        at: Instant::now(),
    })
}
