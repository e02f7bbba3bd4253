//! What submitting a command costs when many gateways are registered, beside the same with few: a bound over all
//! gateways must not be found by walking them.

use tokio::time::Instant;

use super::Plan;
use super::operator::{Latencies, Operator};
use crate::fleet::Fleet;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::system::{System, name};

/// A backend with so many gateways registered, of which a few are connected.
struct Side {
    system: System,
    server: Server,
    fleet: Fleet,
}

impl Side {
    async fn start(registered: usize, connected: usize) -> anyhow::Result<Self> {
        let system = System::new(registered).await?;
        let server = Server::start(Role::Ours, &system, None).await?;
        let fleet = Fleet::start(Role::Ours, &system, &server, 0..connected)?;
        Ok(Self {
            system,
            server,
            fleet,
        })
    }

    /// Once everybody is there.
    async fn operator(&self, connected: usize) -> anyhow::Result<Operator> {
        self.fleet.all_up().await?;
        let agents = (0..connected).map(name);
        Ok(Operator::new(
            Role::Ours,
            &self.system,
            &self.server,
            agents,
        ))
    }
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let (few, many) = (plan.command_agents, plan.agents.max(plan.command_agents));
    let beside = Side::start(few, few).await?;
    let crowded = Side::start(many, few).await?;
    let sides = [beside.operator(few).await?, crowded.operator(few).await?];
    for operator in &sides {
        operator.ready().await?;
    }
    let mut took = [Vec::new(), Vec::new()];
    // In turns, so that whatever else the machine does concerns both.
    for number in 0..plan.submissions {
        for (operator, took) in sides.iter().zip(&mut took) {
            let began = Instant::now();
            let run = operator.submit(number).await?;
            took.push(began.elapsed());
            operator.wait(&run).await?;
        }
    }
    let [few_took, many_took] = took.map(Latencies::new);
    Ok(vec![
        Figure::new(
            format!("submission p50 with {many} gateways, and with {few}"),
            Unit::Milliseconds,
            (many_took?.median(), few_took?.median()),
        )
        .aiming(Target::TimesAtMost(1.1)),
    ])
}
