//! The same on servers: the backend on PostgreSQL and Redis beside a relay that makes the same commits and journeys,
//! and beside the fastest way to load the same telemetry.

use std::time::Duration;

use anyhow::Context;
use sqlx::postgres::PgConnection;
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::time::Instant;
use viworks_runtime::random;

use super::{Plan, commands, others, telemetry};
use crate::gateway::record;
use crate::report::Figure;
use crate::servers::Servers;
use crate::system::System;

/// What figures of it are called, too.
const SUFFIX: &str = ", PostgreSQL and Redis";

/// Rows in one transaction of the bulk load: as many as the backend's largest by default.
const TRANSACTION_ROWS: u64 = 20_000;

/// A plain table with the same key and the same columns.
const TABLE: &str = "\
CREATE TABLE telemetry (tenant text NOT NULL, agent_id text NOT NULL, spool_epoch text NOT NULL, seq bigint NOT NULL,
    stream text NOT NULL, observed_at bigint NOT NULL, stored_at bigint NOT NULL, fields json NOT NULL,
    PRIMARY KEY (tenant, agent_id, spool_epoch, seq))";

const COPY: &str = "\
COPY telemetry (tenant, agent_id, spool_epoch, seq, stream, observed_at, stored_at, fields) FROM STDIN (FORMAT binary)";

/// What begins the binary form: a signature, no flags, no extension.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What ends it.
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let Some(servers) = Servers::start() else {
        return Ok(Vec::new());
    };
    let system = System::on(Some(&servers), plan.command_agents).await?;
    let wanted = commands::Wanted {
        latency: 2.0,
        rate: 0.6,
    };
    let (mut figures, ours) = commands::on(&system, plan, SUFFIX, &wanted).await?;
    drop(servers);
    figures.extend(others::beside(&ours, &system, plan).await?);
    drop(system);

    let servers = Servers::start().context("the servers started before")?;
    let system = System::on(Some(&servers), plan.telemetry_agents).await?;
    let floor = copy(&servers.reference(), plan).await?;
    let wanted = telemetry::Wanted {
        fresh: 0.7,
        repeated: Some(2.0),
    };
    figures.extend(telemetry::on(&system, plan, SUFFIX, floor, &wanted).await?);
    Ok(figures)
}

/// Loads as many rows of the same shape by binary COPY into a plain table.
async fn copy(url: &str, plan: &Plan) -> anyhow::Result<Duration> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    let mut connection = options.connect().await?;
    sqlx::raw_sql(TABLE).execute(&mut connection).await?;
    let began = Instant::now();
    for _agent in 0..plan.telemetry_agents {
        let (agent, epoch) = (random::uuid_v4().to_string(), random::uuid_v4().to_string());
        let mut next = 1;
        while next <= plan.telemetry_records {
            let last = (next + TRANSACTION_ROWS - 1).min(plan.telemetry_records);
            let mut rows = SIGNATURE.to_vec();
            for seq in next..=last {
                append(&mut rows, (&agent, &epoch), seq)?;
            }
            rows.extend(TRAILER);
            send(&mut connection, rows).await?;
            next = last + 1;
        }
    }
    let took = began.elapsed();
    connection.close().await?;
    Ok(took)
}

async fn send(connection: &mut PgConnection, rows: Vec<u8>) -> anyhow::Result<()> {
    let mut copy = connection.copy_in_raw(COPY).await?;
    copy.send(rows).await?;
    copy.finish().await?;
    Ok(())
}

/// Appends one record in the binary form: the number of its columns, and each with its length in front.
fn append(rows: &mut Vec<u8>, (agent, epoch): (&str, &str), seq: u64) -> anyhow::Result<()> {
    let record = record(seq)?;
    let at = record.observed_at.unix_micros().to_be_bytes();
    let fields = serde_json::to_vec(&record.fields)?;
    let seq = i64::try_from(seq)?.to_be_bytes();
    let columns: [&[u8]; 8] = [
        b"default",
        agent.as_bytes(),
        epoch.as_bytes(),
        &seq,
        record.stream.as_str().as_bytes(),
        &at,
        &at,
        &fields,
    ];
    rows.extend(8_i16.to_be_bytes());
    for column in columns {
        rows.extend(i32::try_from(column.len())?.to_be_bytes());
        rows.extend(column);
    }
    Ok(())
}
