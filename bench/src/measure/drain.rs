//! A backend that is told to stop while it has many sessions and commands run: how soon all are with its successor.
//! There is no figure when one of the commands fails.

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use super::Plan;
use super::operator::{Operator, PAUSE};
use crate::agent::Agent;
use crate::fleet::Fleet;
use crate::gateway::GATED;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::system::System;

/// Commands that run meanwhile, on a gateway agent that ships.
const COMMANDS: usize = 50;

/// What that one is called.
const NAME: &str = "gw-real";

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let agents = plan.agents_few;
    let system = System::new(agents).await?;
    let folder = system.issue(NAME).await?;

    let server = Server::start(Role::Reference, &system, None).await?;
    let fleet = Fleet::start(Role::Reference, &system, &server, 0..agents)?;
    fleet.all_up().await?;
    let begun = Instant::now();
    let addresses = server.kill();
    fleet.all_down().await?;
    let server = Server::start(Role::Reference, &system, Some(&addresses)).await?;
    fleet.all_up().await?;
    let reference = begun.elapsed().as_secs_f64();
    drop((server, fleet));

    let server = Server::start(Role::Ours, &system, None).await?;
    let parallel = ("VIWORKS__EXECUTOR__PARALLEL_MAX", COMMANDS.to_string());
    let agent = Agent::start(&folder, &server, &[parallel])?;
    let fleet = Fleet::start(Role::Ours, &system, &server, 0..agents)?;
    fleet.all_up().await?;
    let operator = Operator::new(Role::Ours, &system, &server, [NAME.to_owned()]);
    let ready = operator.ready().await;
    ready.with_context(|| format!("the gateway agent said: {}", agent.log()))?;
    let gated = operator.running(GATED);
    let mut runs = Vec::with_capacity(COMMANDS);
    for _number in 0..COMMANDS {
        runs.push(gated.submit(0).await?);
    }
    for run in &runs {
        while operator.counts(run).await?["running"] != 1 {
            sleep(PAUSE).await;
        }
    }
    let begun = Instant::now();
    let addresses = server.stop().await?;
    let _server = Server::start(Role::Ours, &system, Some(&addresses)).await?;
    fleet.all_up().await?;
    let ours = begun.elapsed().as_secs_f64();
    agent.open_gate()?;
    for run in &runs {
        operator.wait(run).await?;
        let counts = operator.counts(run).await?;
        ensure!(counts["succeeded"] == 1, "a command has failed: {counts}");
    }
    let what = format!("{agents} agents back after a stop amid {COMMANDS} commands");
    let figure = Figure::new(what, Unit::Seconds, (ours, reference));
    Ok(vec![figure.aiming(Target::Most(15.0))])
}
