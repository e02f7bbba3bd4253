//! Commands on the gateway agent that ships: its session, its journal with its commits, its executor and the process
//! that each command is. The reference starts no process and keeps no journal.

use anyhow::Context;

use super::Plan;
use super::operator::{Latencies, Operator};
use crate::agent::Agent;
use crate::fleet::Fleet;
use crate::gateway::ONCE;
use crate::report::{Figure, Unit};
use crate::server::{Role, Server};
use crate::system::{System, name};

/// Commands that are run before anything counts.
const WARM_UP: usize = 20;

/// What the agent is called.
const NAME: &str = "gw-real";

struct Measured {
    alone: Latencies,
    together: f64,
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::new(1).await?;
    let folder = system.issue(NAME).await?;
    let reference = of_reference(plan, &system).await?;

    let server = Server::start(Role::Ours, &system, None).await?;
    let agent = Agent::start(&folder, &server, &[])?;
    let operator = Operator::new(Role::Ours, &system, &server, [NAME.to_owned()]);
    let ready = operator.ready().await;
    ready.with_context(|| format!("the gateway agent said: {}", agent.log()))?;
    let ours = of(&operator, plan).await?;
    let once = operator.running(ONCE);
    once.alone(1).await?;
    let once = once.alone(plan.real_alone).await?;

    let latency = |what: &str, ours: &Latencies| {
        let sides = (ours.median(), reference.alone.median());
        Figure::new(what, Unit::Milliseconds, sides)
    };
    Ok(vec![
        latency("real agent: command p50, 1 in flight", &ours.alone),
        latency(
            "real agent: not idempotent, command p50, 1 in flight",
            &once,
        ),
        Figure::new(
            "real agent: commands, 100 in flight",
            Unit::PerSecond,
            (ours.together, reference.together),
        ),
    ])
}

async fn of_reference(plan: &Plan, system: &System) -> anyhow::Result<Measured> {
    let server = Server::start(Role::Reference, system, None).await?;
    let fleet = Fleet::start(Role::Reference, system, &server, 0..1)?;
    fleet.all_up().await?;
    of(
        &Operator::new(Role::Reference, system, &server, [name(0)]),
        plan,
    )
    .await
}

async fn of(operator: &Operator, plan: &Plan) -> anyhow::Result<Measured> {
    operator.alone(WARM_UP.min(plan.real_alone)).await?;
    Ok(Measured {
        alone: operator.alone(plan.real_alone).await?,
        together: operator.together(plan.real_together).await?,
    })
}
