//! Fresh and repeated telemetry, beside the fastest way to load the same rows into the same tables.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::bail;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use viworks_backend_agent::data::UpkeepStore as _;
use viworks_backend_agent::data::sqlite::SqliteStore;
use viworks_common::id::AgentRunId;
use viworks_runtime::random;
use viworks_runtime::sqlite::Options;

use super::Plan;
use crate::fleet::Fleet;
use crate::gateway::{Feed, record};
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::system::System;

/// Rows in one statement of the bulk load.
const STATEMENT_ROWS: u64 = 500;

/// Rows in one transaction of the bulk load: ten times what the backend stores in one by default, so that commits cost
/// the reference next to nothing.
const TRANSACTION_ROWS: u64 = 20_000;

/// How long everything may take to be acknowledged.
const WITHIN: Duration = Duration::from_secs(120);

/// What has to be reached, in times of what the floor loads in each second.
pub(super) struct Wanted {
    /// Of records that are new.
    pub(super) fresh: f64,
    /// Of records that are stored already.
    pub(super) repeated: Option<f64>,
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::new(plan.telemetry_agents).await?;
    let floor = bulk_load(&system, plan).await?;
    let wanted = Wanted {
        fresh: 0.6,
        repeated: None,
    };
    on(&system, plan, "", floor, &wanted).await
}

/// The figures on one system, each called so and its `suffix`, beside a floor that took so long.
pub(super) async fn on(
    system: &System,
    plan: &Plan,
    suffix: &str,
    floor: Duration,
    wanted: &Wanted,
) -> anyhow::Result<Vec<Figure>> {
    let records = plan.telemetry_records * u64::try_from(plan.telemetry_agents)?;
    let server = Server::start(Role::Ours, system, None).await?;
    let epochs: Vec<_> = (0..plan.telemetry_agents)
        .map(|_| AgentRunId::from_uuid(random::uuid_v4()))
        .collect();
    let fresh = deliver(system, &server, plan, &epochs).await?;
    let repeated = deliver(system, &server, plan, &epochs).await?;
    let rate = |took: Duration| records as f64 / took.as_secs_f64();
    let figure = |what: &str, took| {
        let sides = (rate(took), rate(floor));
        Figure::new(format!("{what}{suffix}"), Unit::PerSecond, sides)
    };
    let repeated = figure("repeated telemetry records", repeated);
    Ok(vec![
        figure("fresh telemetry records", fresh).aiming(Target::TimesAtLeast(wanted.fresh)),
        match wanted.repeated {
            Some(times) => repeated.aiming(Target::TimesAtLeast(times)),
            None => repeated,
        },
    ])
}

/// Delivers every agent's records, numbered in `epochs`; how long that took from the moment all were connected.
pub(super) async fn deliver(
    system: &System,
    server: &Server,
    plan: &Plan,
    epochs: &[AgentRunId],
) -> anyhow::Result<Duration> {
    let acknowledged: Vec<_> = epochs.iter().map(|_| watch::Sender::new(0)).collect();
    let began = Instant::now();
    let fleet = Fleet::with_feeds(Role::Ours, system, server, 0..epochs.len(), |number| {
        Some(Feed {
            spool_epoch: epochs[number],
            last: plan.telemetry_records,
            acknowledged: acknowledged[number].clone(),
        })
    })?;
    for sender in &acknowledged {
        let mut position = sender.subscribe();
        let done = position.wait_for(|seq| *seq >= plan.telemetry_records);
        if timeout(WITHIN, done).await.is_err() {
            bail!(
                "telemetry is not acknowledged within {WITHIN:?}; the first session that ended did so because: {}",
                fleet.trouble()
            );
        }
    }
    Ok(began.elapsed())
}

/// Loads as many rows of the same shape with multi-row statements, on the same disk.
async fn bulk_load(system: &System, plan: &Plan) -> anyhow::Result<Duration> {
    let path = system.place("floor.sqlite");
    SqliteStore::open(Options::new(&path)).await?.close().await;
    let mut connection = Connection::open(&path)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")?;
    let began = Instant::now();
    for _agent in 0..plan.telemetry_agents {
        let (agent, epoch) = (random::uuid_v4().to_string(), random::uuid_v4().to_string());
        let mut next = 1;
        while next <= plan.telemetry_records {
            let until = (next + TRANSACTION_ROWS - 1).min(plan.telemetry_records);
            let transaction = connection.transaction()?;
            while next <= until {
                let last = (next + STATEMENT_ROWS - 1).min(until);
                load_rows(&transaction, (&agent, &epoch), next..=last)?;
                next = last + 1;
            }
            transaction.commit()?;
        }
    }
    let took = began.elapsed();
    connection.close().map_err(|(_connection, error)| error)?;
    Ok(took)
}

/// Inserts the records with these numbers by one statement.
fn load_rows(
    connection: &Connection,
    (agent, epoch): (&str, &str),
    numbers: RangeInclusive<u64>,
) -> anyhow::Result<()> {
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for seq in numbers {
        let record = record(seq)?;
        let at = record.observed_at.unix_micros();
        let texts = |text: &str| Value::Text(text.to_owned());
        values.extend([
            texts("default"),
            texts(agent),
            texts(epoch),
            Value::Integer(i64::try_from(seq)?),
            texts(record.stream.as_str()),
            Value::Integer(at),
            Value::Integer(at),
            Value::Text(serde_json::to_string(&record.fields)?),
        ]);
        rows.push("(?, ?, ?, ?, ?, ?, ?, ?)");
    }
    let sql = format!(
        "INSERT INTO telemetry (tenant, agent_id, spool_epoch, seq, stream, observed_at, stored_at, fields) VALUES {}",
        rows.join(", ")
    );
    connection
        .prepare_cached(&sql)?
        .execute(params_from_iter(values))?;
    Ok(())
}
