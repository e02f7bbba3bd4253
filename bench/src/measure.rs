//! The five numbers, each measured on ours and on the reference, one after the other.

use crate::report::Figure;

mod commands;
mod fleet;
mod hostile;
mod telemetry;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Measurement {
    /// Latency and rate of commands.
    Commands,
    /// Memory of idle agents, processor time of connecting, and the way back after a kill.
    Fleet,
    /// Rates of telemetry.
    Telemetry,
    /// What a hostile gateway costs, and the commands of others meanwhile.
    Hostile,
}

impl Measurement {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Commands, Self::Fleet, Self::Telemetry, Self::Hostile];
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
    /// Agents of the smaller fleet.
    pub(crate) agents_few: usize,
    /// Agents of the larger fleet.
    pub(crate) agents: usize,
    /// Agents that deliver telemetry.
    pub(crate) telemetry_agents: usize,
    /// Records of each.
    pub(crate) telemetry_records: u64,
}

impl Plan {
    /// Sizes at which the figures mean something.
    pub(crate) const fn full() -> Self {
        Self {
            command_agents: 100,
            commands_alone: 2_000,
            commands_together: 20_000,
            agents_few: 1_000,
            agents: 10_000,
            telemetry_agents: 50,
            telemetry_records: 8_000,
        }
    }

    /// Sizes that take a few seconds.
    pub(crate) const fn quick() -> Self {
        Self {
            command_agents: 4,
            commands_alone: 20,
            commands_together: 100,
            agents_few: 10,
            agents: 40,
            telemetry_agents: 2,
            telemetry_records: 1_000,
        }
    }
}

/// Measures one of them.
pub(crate) async fn run(what: Measurement, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    match what {
        Measurement::Commands => Box::pin(commands::measure(plan)).await,
        Measurement::Fleet => Box::pin(fleet::measure(plan)).await,
        Measurement::Telemetry => Box::pin(telemetry::measure(plan)).await,
        Measurement::Hostile => Box::pin(hostile::measure(plan)).await,
    }
}
