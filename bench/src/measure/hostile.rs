//! What an enrolled gateway that sends as much as it may costs: memory of the backend, and the commands of others.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use viworks_backend_agent::pki::issue::Material;
use viworks_common::session::AgentEvent;
use viworks_common::wire::envelope::{KIND_TELEMETRY, Packed};
use viworks_runtime::random;
use viworks_testkit::rogue::{self, Hostile, Rogue};

use super::Plan;
use super::commands::Operator;
use crate::fleet::Fleet;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::system::System;

/// Records of a batch, as many as one may have.
const RECORDS: u64 = 2_000;
/// Fields of each, as many as fit into what a message may unpack to.
const FIELDS: usize = 5;
/// Batches under way: more than the backend takes in at a time.
const UNDER_WAY: usize = 64;
/// How long the backend is flooded before anything counts.
const WARM_UP: Duration = Duration::from_secs(1);
/// What a hostile gateway may cost at most, in KiB.
const COST_KIB: f64 = 16.0 * 1_024.0;

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::new(plan.command_agents + 1).await?;
    let server = Server::start(Role::Ours, &system, None).await?;
    let fleet = Fleet::start(Role::Ours, &system, &server, 0..plan.command_agents)?;
    fleet.all_up().await?;
    let operator = Operator::new(Role::Ours, &system, &server, plan.command_agents);
    let commands = plan.commands_alone.div_ceil(4);
    median(&operator, commands).await?;
    let before = median(&operator, commands).await?;
    let idle = server.resident_bytes()?;

    let material = system
        .gateways
        .get(plan.command_agents)
        .context("one gateway is left over")?;
    let hostile = connect(&server.addresses.agents, material).await?;
    let mut attack = JoinSet::new();
    attack.spawn(flood(hostile));
    sleep(WARM_UP).await;
    server.forget_peak()?;
    let during = median(&operator, commands).await?;
    let peak = server.peak_bytes()?;
    if let Some(ended) = attack.try_join_next() {
        ended?.context("the hostile gateway did not go on to the end")?;
    }
    attack.shutdown().await;
    let cost = peak.saturating_sub(idle).max(1_024) as f64 / 1_024.0;
    Ok(vec![
        Figure::new(
            "command p50 beside a hostile gateway, and before",
            Unit::Milliseconds,
            (millis(during), millis(before)),
        )
        .aiming(Target::TimesAtMost(2.0)),
        Figure::new(
            "memory for a hostile gateway, and before",
            Unit::Kib,
            (cost, idle as f64 / 1_024.0),
        )
        .aiming(Target::Most(COST_KIB)),
    ])
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

async fn median(operator: &Operator, commands: usize) -> anyhow::Result<Duration> {
    let mut took = Vec::with_capacity(commands);
    for number in 0..commands {
        let started = Instant::now();
        operator.command(number).await?;
        took.push(started.elapsed());
    }
    took.sort_unstable();
    took.get(took.len() / 2)
        .copied()
        .context("no command was run")
}

async fn connect(agents: &str, material: &Material) -> anyhow::Result<Hostile> {
    let material = rogue::Material {
        certificate: rogue::Certificate {
            chain: material.certificate.certificate.clone().into_bytes(),
            key: material.certificate.key.as_bytes().to_vec(),
        },
        authority: material.authority.clone().into_bytes(),
        identity: material.identity.clone(),
        agent_key: material.agent_key.clone(),
        token: material.token.expose_hex(),
    };
    Rogue::challenged(agents, &material)
        .await?
        .establish(None)
        .await
}

/// Delivers without end, and reads what is acknowledged.
async fn flood(mut hostile: Hostile) -> anyhow::Result<()> {
    let spool_epoch = random::uuid_v4();
    let (mut next, mut under_way) = (1, 0);
    loop {
        while under_way < UNDER_WAY {
            anyhow::ensure!(
                hostile
                    .send(KIND_TELEMETRY, &batch(spool_epoch, next))
                    .await,
                "it was cut off"
            );
            next += RECORDS;
            under_way += 1;
        }
        let acknowledged = hostile.read_until(|event| {
            matches!(event, AgentEvent::TelemetryAcknowledged(_)).then_some(())
        });
        acknowledged.await.context("it was closed")?;
        under_way -= 1;
    }
}

fn batch(spool_epoch: uuid::Uuid, from_seq: u64) -> Packed {
    let count = usize::try_from(RECORDS).unwrap_or(0);
    let ones = vec!["1"; count].join(",");
    let mut body = format!(
        r#"{{"spool_epoch":"{spool_epoch}","from_seq":{from_seq},"to_seq":{},"gaps":[],"streams":["a"],"stream":[{}],"observed_at":[{ones}],"fields":{{"#,
        from_seq + RECORDS - 1,
        vec!["0"; count].join(","),
    );
    for field in 0..FIELDS {
        let comma = if field == 0 { "" } else { "," };
        write!(body, r#"{comma}"f{field}":[{ones}]"#).expect("writing to a string succeeds");
    }
    body.push_str("}}");
    Packed::compressed(body.into_bytes())
}
