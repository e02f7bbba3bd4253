//! Memory of idle agents, processor time of connecting, and how soon all are back after kill -9 of the server.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Plan;
use crate::fleet::Fleet;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::system::System;

/// How long a server may tidy up before its memory is read.
const SETTLE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
struct Measured {
    kib_few: f64,
    kib_many: f64,
    cpu_us: f64,
    back_s: f64,
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::new(plan.agents).await?;
    let reference = of(Role::Reference, plan, &system).await?;
    let ours = of(Role::Ours, plan, &system).await?;
    let pair = |of: fn(&Measured) -> f64| (of(&ours), of(&reference));
    let memory = |agents| format!("memory per idle agent, {agents} agents");
    Ok(vec![
        Figure::new(memory(plan.agents_few), Unit::Kib, pair(|it| it.kib_few)),
        Figure::new(memory(plan.agents), Unit::Kib, pair(|it| it.kib_many))
            .aiming(Target::Most(21.0)),
        Figure::new(
            "processor time per connect",
            Unit::Microseconds,
            pair(|it| it.cpu_us),
        )
        .aiming(Target::TimesAtMost(2.0)),
        Figure::new(
            format!("{} agents back after kill -9", plan.agents),
            Unit::Seconds,
            pair(|it| it.back_s),
        )
        .aiming(Target::TimesAtMost(1.75)),
    ])
}

async fn of(role: Role, plan: &Plan, system: &System) -> anyhow::Result<Measured> {
    let server = Server::start(role, system, None).await?;
    sleep(SETTLE).await;
    let (empty, idle) = (server.resident_bytes()?, server.cpu_time()?);
    let few = plan.agents_few.min(plan.agents);
    let first = Fleet::start(role, system, &server, 0..few)?;
    first.all_up().await?;
    sleep(SETTLE).await;
    let per_agent = |bytes: u64, agents: usize| {
        bytes.saturating_sub(empty) as f64 / 1_024.0 / agents.max(1) as f64
    };
    let kib_few = per_agent(server.resident_bytes()?, few);
    let rest = Fleet::start(role, system, &server, few..plan.agents)?;
    rest.all_up().await?;
    let busy = server.cpu_time()?.saturating_sub(idle);
    sleep(SETTLE).await;
    let kib_many = per_agent(server.resident_bytes()?, plan.agents);

    let addresses = server.kill();
    first.all_down().await?;
    rest.all_down().await?;
    let began = Instant::now();
    let _server = Server::start(role, system, Some(&addresses)).await?;
    first.all_up().await?;
    rest.all_up().await?;
    Ok(Measured {
        kib_few,
        kib_many,
        cpu_us: busy.as_secs_f64() * 1e6 / plan.agents.max(1) as f64,
        back_s: began.elapsed().as_secs_f64(),
    })
}
