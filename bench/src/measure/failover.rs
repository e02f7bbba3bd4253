//! How soon all agents are back when one of two backends on PostgreSQL and Redis is killed, beside two bare servers.

use tokio::time::Instant;

use super::Plan;
use crate::fleet::Fleet;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::servers::Servers;
use crate::system::System;

/// The server that stays, in the order in which a fleet is given them.
const STAYS: usize = 1;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let Some(servers) = Servers::start() else {
        return Ok(Vec::new());
    };
    let mut system = System::on(Some(&servers), plan.agents).await?;
    // Bare: nothing is kept of a connection.
    system.relay = None;
    let reference = of(Role::Reference, plan, &system).await?;
    let ours = of(Role::Ours, plan, &system).await?;
    let figure = Figure::new(
        format!("{} agents back after kill -9 of one of two", plan.agents),
        Unit::Seconds,
        (ours, reference),
    );
    Ok(vec![figure.aiming(Target::TimesAtMost(2.0))])
}

/// Seconds from the kill until every agent has its session with the other one.
async fn of(role: Role, plan: &Plan, system: &System) -> anyhow::Result<f64> {
    let goes = Server::start(role, system, None).await?;
    let stays = Server::beside(role, system).await?;
    let fleet = Fleet::spread(role, system, &[&goes, &stays], 0..plan.agents)?;
    fleet.all_up().await?;
    let began = Instant::now();
    goes.kill();
    fleet.all_at(STAYS).await?;
    Ok(began.elapsed().as_secs_f64())
}
