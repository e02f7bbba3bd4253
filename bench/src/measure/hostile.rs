//! What an enrolled gateway that sends as much as it can costs: memory of the backend, and the commands of others.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::sleep;
use viworks_backend_agent::pki::issue::Material;
use viworks_common::command::{Outcome, OutcomeState, RetainedOutput};
use viworks_common::id::CommandId;
use viworks_common::session::AgentEvent;
use viworks_common::wire::envelope::{KIND_TELEMETRY, Packed};
use viworks_common::wire::message::{AgentMessage, CommandResult, Output, OutputStream};
use viworks_runtime::random;
use viworks_testkit::rogue::{self, Hostile, Rogue};

use super::Plan;
use super::operator::Operator;
use crate::fleet::Fleet;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::system::{System, name};

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

/// How often honest gateways are measured again, at the most, because nothing came of the hostile one meanwhile.
const MEASURED_AGAIN_MAX: u32 = 20;

/// Bytes of output in a result that nobody asked for, and in a piece of live output.
const OUTPUT_BYTES: usize = 32 * 1_024;
/// How long it waits when it is not let in.
const TURNED_AWAY: Duration = Duration::from_millis(20);

/// What a hostile gateway does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Delivers telemetry within its credit without end.
    Telemetry,
    /// Sends results and live output of commands that nobody knows; as often as it is thrown out, it comes back.
    Unasked,
}

impl Attack {
    const fn name(self) -> &'static str {
        match self {
            Self::Telemetry => "a flood of telemetry",
            Self::Unasked => "a flood of results and output",
        }
    }
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for attack in [Attack::Telemetry, Attack::Unasked] {
        figures.extend(beside(attack, plan).await?);
    }
    Ok(figures)
}

async fn beside(attack: Attack, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::new(plan.command_agents + 1).await?;
    let server = Server::start(Role::Ours, &system, None).await?;
    let fleet = Fleet::start(Role::Ours, &system, &server, 0..plan.command_agents)?;
    fleet.all_up().await?;
    let agents = (0..plan.command_agents).map(name);
    let operator = Operator::new(Role::Ours, &system, &server, agents);
    let commands = plan.commands_alone.div_ceil(4);
    operator.ready().await?;
    operator.alone(commands).await?;
    let before = operator.alone(commands).await?.median();
    let idle = server.resident_bytes()?;

    let material = system
        .gateways
        .get(plan.command_agents)
        .context("one gateway is left over")?;
    let (agents, material) = (server.addresses.agents.clone(), of_rogue(material));
    let sent = Arc::<AtomicU64>::default();
    let mut attacker = JoinSet::new();
    // What may come at once counts as well, so its peak is not forgotten after it.
    server.forget_peak()?;
    match attack {
        Attack::Telemetry => {
            let hostile = connect(&agents, &material, None).await?;
            attacker.spawn(flood(hostile, Arc::clone(&sent)))
        }
        Attack::Unasked => attacker.spawn(pester(agents, material, Arc::clone(&sent))),
    };
    sleep(WARM_UP).await;
    let before_it = sent.load(Ordering::Relaxed);
    let mut during = operator.alone(commands).await?.median();
    // A measurement that was over before the next of its messages says little of it.
    for _again in 0..MEASURED_AGAIN_MAX {
        if sent.load(Ordering::Relaxed) > before_it {
            break;
        }
        during = operator.alone(commands).await?.median();
    }
    let sent = sent.load(Ordering::Relaxed);
    let peak = server.peak_bytes()?;
    if let Some(ended) = attacker.try_join_next() {
        ended?.context("the hostile gateway did not go on to the end")?;
    }
    attacker.shutdown().await;
    anyhow::ensure!(
        sent > before_it,
        "the hostile gateway was idle while others were measured"
    );
    let cost = peak.saturating_sub(idle) as f64 / 1_024.0;
    Ok(vec![
        Figure::new(
            format!("command p50 beside {}, and before", attack.name()),
            Unit::Milliseconds,
            (during, before),
        )
        .aiming(Target::TimesAtMost(2.0))
        .beside(sent),
        Figure::new(
            format!("memory for {}, and before", attack.name()),
            Unit::Kib,
            (cost, idle as f64 / 1_024.0),
        )
        .aiming(Target::Most(COST_KIB))
        .beside(sent),
    ])
}

fn of_rogue(material: &Material) -> rogue::Material {
    rogue::Material {
        certificate: rogue::Certificate {
            chain: material.certificate.certificate.clone().into_bytes(),
            key: material.certificate.key.as_bytes().to_vec(),
        },
        authority: material.authority.clone().into_bytes(),
        identity: material.identity.clone(),
        agent_key: material.agent_key.clone(),
        token: material.token.expose_hex(),
    }
}

async fn connect(
    agents: &str,
    material: &rogue::Material,
    ratchet: Option<(u64, String)>,
) -> anyhow::Result<Hostile> {
    Rogue::challenged(agents, material)
        .await?
        .establish(ratchet)
        .await
}

/// Sends what nobody asked for until it is thrown out, and comes back as soon as it is let in.
async fn pester(
    agents: String,
    material: rogue::Material,
    sent: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut ratchet = None;
    loop {
        // Each attempt costs the backend a handshake.
        sent.fetch_add(1, Ordering::Relaxed);
        let Ok(mut hostile) = connect(&agents, &material, ratchet.clone()).await else {
            sleep(TURNED_AWAY).await;
            continue;
        };
        ratchet = Some(hostile.ratchet.clone());
        'within: loop {
            for message in unasked() {
                let body = Packed::compressed(message.encode());
                if !hostile.send(message.kind(), &body).await {
                    break 'within;
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A piece of live output and the result of a command that nobody knows.
fn unasked() -> [AgentMessage; 2] {
    let command_id = CommandId::from_uuid(random::uuid_v4());
    let data = vec![b'x'; OUTPUT_BYTES];
    let output = Output {
        command_id,
        stream: OutputStream::Stdout,
        offset: 0,
        data: data.clone(),
    };
    let outcome = Outcome {
        state: OutcomeState::Succeeded,
        exit_code: Some(0),
        signal: None,
        started_at: None,
        duration_ms: 1,
        stdout: RetainedOutput {
            head: data,
            ..RetainedOutput::default()
        },
        stderr: RetainedOutput::default(),
        reason: None,
        reject_code: None,
    };
    let result = CommandResult {
        command_id,
        outcome,
    };
    [
        AgentMessage::Output(output),
        AgentMessage::CommandResult(result),
    ]
}

/// Delivers without end, and reads what is acknowledged.
async fn flood(mut hostile: Hostile, sent: Arc<AtomicU64>) -> anyhow::Result<()> {
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
            sent.fetch_add(1, Ordering::Relaxed);
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
