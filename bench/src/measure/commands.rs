//! How long a command takes from its submission to its known result, alone and among a hundred: one that may run
//! twice, and one that must not.

use super::Plan;
use super::operator::{Latencies, Operator};
use crate::fleet::Fleet;
use crate::gateway::ONCE;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::system::{System, name};

/// One after another, and a hundred at a time.
pub(super) struct Measured {
    pub(super) alone: Latencies,
    /// In each second.
    pub(super) together: f64,
}

/// What has to be reached.
pub(super) struct Wanted {
    /// The latency with one in flight, in times of the reference's, at the most.
    pub(super) latency: f64,
    /// The rate with a hundred in flight, in times of the reference's, at the least.
    pub(super) rate: f64,
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::new(plan.command_agents).await?;
    let wanted = Wanted {
        latency: 2.5,
        rate: 0.5,
    };
    Ok(on(&system, plan, "", &wanted).await?.0)
}

/// The figures on one system, each called so and its `suffix`; and what ours came to.
pub(super) async fn on(
    system: &System,
    plan: &Plan,
    suffix: &str,
    wanted: &Wanted,
) -> anyhow::Result<(Vec<Figure>, Measured)> {
    let (server, fleet) = started(Role::Reference, plan, system).await?;
    let operator = operator(Role::Reference, plan, system, &server);
    let reference = of(&operator, plan.commands_alone, plan.commands_together).await?;
    drop((server, fleet));

    let (server, _fleet) = started(Role::Ours, plan, system).await?;
    let operator = self::operator(Role::Ours, plan, system, &server);
    let ours = of(&operator, plan.commands_alone, plan.commands_together).await?;
    // Half as many: it is the same path with one step more.
    let (alone, together) = (plan.commands_alone / 2, plan.commands_together / 2);
    let once = of(&operator.running(ONCE), alone, together).await?;

    let latency = |what: &str, of: fn(&Latencies) -> f64, ours: &Measured| {
        let sides = (of(&ours.alone), of(&reference.alone));
        Figure::new(format!("{what}{suffix}"), Unit::Milliseconds, sides)
    };
    let rate = |what: &str, sides| Figure::new(format!("{what}{suffix}"), Unit::PerSecond, sides);
    let figures = vec![
        latency("command p50, 1 in flight", Latencies::median, &ours)
            .aiming(Target::TimesAtMost(wanted.latency)),
        latency("command p99, 1 in flight", |it| it.percentile(99), &ours),
        rate(
            "commands, 1 in flight",
            (ours.alone.per_second(), reference.alone.per_second()),
        ),
        rate(
            "commands, 100 in flight",
            (ours.together, reference.together),
        )
        .aiming(Target::TimesAtLeast(wanted.rate)),
        latency(
            "not idempotent: command p50, 1 in flight",
            Latencies::median,
            &once,
        ),
        rate(
            "not idempotent: commands, 100 in flight",
            (once.together, reference.together),
        ),
    ];
    Ok((figures, ours))
}

async fn started(role: Role, plan: &Plan, system: &System) -> anyhow::Result<(Server, Fleet)> {
    let server = Server::start(role, system, None).await?;
    let fleet = Fleet::start(role, system, &server, 0..plan.command_agents)?;
    fleet.all_up().await?;
    Ok((server, fleet))
}

fn operator(role: Role, plan: &Plan, system: &System, server: &Server) -> Operator {
    Operator::new(role, system, server, (0..plan.command_agents).map(name))
}

async fn of(operator: &Operator, alone: usize, together: usize) -> anyhow::Result<Measured> {
    operator.ready().await?;
    Ok(Measured {
        alone: operator.alone(alone).await?,
        together: operator.together(together).await?,
    })
}
