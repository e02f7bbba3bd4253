//! What is measured, each figure on ours and on the reference, one after the other.

use std::time::Duration;

use crate::report::Figure;

mod agent;
mod commands;
mod drain;
mod engine;
mod failover;
mod fleet;
mod hostile;
mod idle;
mod operator;
mod others;
mod sizing;
mod submission;
mod telemetry;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Measurement {
    /// Latency and rate of commands, of such that may run twice and of such that must not.
    Commands,
    /// Commands on the gateway agent that ships, with its journal.
    Agent,
    /// What submitting costs when many gateways are registered.
    Submission,
    /// Memory of idle agents, processor time of connecting, and the way back after a kill.
    Fleet,
    /// How soon all agents are back after a stop while commands run, none of which may fail.
    Drain,
    /// Rates of telemetry.
    Telemetry,
    /// What a hostile gateway costs, and the commands of others meanwhile.
    Hostile,
    /// Commands and telemetry on PostgreSQL and Redis, where these are installed.
    Engine,
    /// What an idle fleet costs on PostgreSQL and Redis, where these are installed.
    Idle,
    /// How soon all agents are back after one of two backends is killed, where PostgreSQL and Redis are installed.
    Failover,
    /// What each thing costs that a site's size is computed from, where PostgreSQL and Redis are installed.
    Sizing,
}

impl Measurement {
    /// All of them.
    pub(crate) const ALL: [Self; 11] = [
        Self::Commands,
        Self::Agent,
        Self::Submission,
        Self::Fleet,
        Self::Drain,
        Self::Telemetry,
        Self::Hostile,
        Self::Engine,
        Self::Idle,
        Self::Failover,
        Self::Sizing,
    ];
}

/// Sizes.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Agents that commands go to.
    pub(crate) command_agents: usize,
    /// Commands with one in flight.
    pub(crate) commands_alone: usize,
    /// Commands with a hundred in flight.
    pub(crate) commands_together: usize,
    /// Commands on one gateway agent that ships, with one in flight.
    pub(crate) real_alone: usize,
    /// Commands on one gateway agent that ships, with a hundred in flight.
    pub(crate) real_together: usize,
    /// Submissions on each side of a comparison.
    pub(crate) submissions: usize,
    /// Agents of the smaller fleet.
    pub(crate) agents_few: usize,
    /// Agents of the larger fleet.
    pub(crate) agents: usize,
    /// Agents that deliver telemetry.
    pub(crate) telemetry_agents: usize,
    /// Records of each.
    pub(crate) telemetry_records: u64,
    /// How long an idle fleet is watched, after it had half of that to settle. In full sizes twice what passes
    /// until an instance says again that it has its sessions, so that each is said as often, whenever that begins.
    pub(crate) watched: Duration,
}

impl Plan {
    /// Sizes at which the figures mean something.
    pub(crate) const fn full() -> Self {
        Self {
            command_agents: 100,
            commands_alone: 2_000,
            commands_together: 20_000,
            real_alone: 500,
            real_together: 2_000,
            submissions: 1_500,
            agents_few: 1_000,
            agents: 10_000,
            telemetry_agents: 50,
            telemetry_records: 8_000,
            watched: Duration::from_secs(30),
        }
    }

    /// Sizes that take a few seconds.
    pub(crate) const fn quick() -> Self {
        Self {
            command_agents: 4,
            commands_alone: 20,
            commands_together: 100,
            real_alone: 10,
            real_together: 20,
            submissions: 20,
            agents_few: 10,
            agents: 40,
            telemetry_agents: 2,
            telemetry_records: 1_000,
            watched: Duration::from_secs(2),
        }
    }
}

/// Measures one of them.
pub(crate) async fn run(what: Measurement, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    match what {
        Measurement::Commands => Box::pin(commands::measure(plan)).await,
        Measurement::Agent => Box::pin(agent::measure(plan)).await,
        Measurement::Submission => Box::pin(submission::measure(plan)).await,
        Measurement::Fleet => Box::pin(fleet::measure(plan)).await,
        Measurement::Drain => Box::pin(drain::measure(plan)).await,
        Measurement::Telemetry => Box::pin(telemetry::measure(plan)).await,
        Measurement::Hostile => Box::pin(hostile::measure(plan)).await,
        Measurement::Engine => Box::pin(engine::measure(plan)).await,
        Measurement::Idle => Box::pin(idle::measure(plan)).await,
        Measurement::Failover => Box::pin(failover::measure(plan)).await,
        Measurement::Sizing => Box::pin(sizing::measure(plan)).await,
    }
}
