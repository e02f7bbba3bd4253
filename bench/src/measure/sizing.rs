//! What a site's size is computed from: what each thing costs the backend, PostgreSQL and Redis. These are figures of
//! one machine, and have no reference; `docs/operations/scaling.md` rests on them.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};
use viworks_common::id::AgentRunId;
use viworks_runtime::random;

use super::operator::Operator;
use super::{Plan, idle, telemetry};
use crate::fleet::Fleet;
use crate::report::{Figure, Unit};
use crate::server::{Role, Server};
use crate::servers::Servers;
use crate::system::{System, name};

/// Seconds between two heartbeats of a gateway.
const BEAT_SECONDS: f64 = 15.0;

/// Where the log of the database is, in bytes.
const LOG_POSITION: &str = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";

/// What the database has on its disk, in bytes.
const DISK: &str = "SELECT pg_database_size(current_database())";

/// Nothing that was written before is written to the disk or to the log (as a full page) while something is counted.
const CHECKPOINT: &str = "CHECKPOINT";

/// What was used until now.
struct Used {
    backend: Duration,
    postgres: Duration,
    /// Bytes.
    log: f64,
    /// Bytes.
    disk: f64,
    at: Instant,
}

/// What was used by something, or is used in each second.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Microseconds of a processor.
    backend: f64,
    /// Microseconds of a processor.
    postgres: f64,
    /// Bytes.
    log: f64,
    /// Bytes.
    disk: f64,
}

impl Cost {
    fn times(self, factor: f64) -> Self {
        Self {
            backend: self.backend * factor,
            postgres: self.postgres * factor,
            log: self.log * factor,
            disk: self.disk * factor,
        }
    }

    /// That of one, where this is that of so many.
    fn each(self, count: f64) -> Self {
        self.times(count.recip())
    }

    fn less(self, other: Self) -> Self {
        Self {
            backend: (self.backend - other.backend).max(0.0),
            postgres: (self.postgres - other.postgres).max(0.0),
            log: (self.log - other.log).max(0.0),
            disk: (self.disk - other.disk).max(0.0),
        }
    }
}

impl Used {
    fn now(servers: &Servers, server: &Server) -> anyhow::Result<Self> {
        let number =
            |query| -> anyhow::Result<f64> { servers.ask(query)?.parse().context("not a number") };
        Ok(Self {
            backend: server.cpu_time()?,
            postgres: servers.database_time()?,
            log: number(LOG_POSITION)?,
            disk: number(DISK)?,
            at: Instant::now(),
        })
    }

    /// What was used since, and for how many seconds.
    fn since(&self, servers: &Servers, server: &Server) -> anyhow::Result<(Cost, f64)> {
        let now = Self::now(servers, server)?;
        let micros = |to: Duration, from: Duration| to.saturating_sub(from).as_secs_f64() * 1e6;
        let cost = Cost {
            backend: micros(now.backend, self.backend),
            postgres: micros(now.postgres, self.postgres),
            log: now.log - self.log,
            disk: now.disk - self.disk,
        };
        Ok((cost, now.at.duration_since(self.at).as_secs_f64()))
    }
}

/// One server with what it stands on.
struct Scene<'a> {
    servers: &'a Servers,
    server: &'a Server,
    plan: &'a Plan,
}

impl Scene<'_> {
    /// What is used in each second while nobody does anything.
    async fn idle(&self) -> anyhow::Result<Cost> {
        // A connection that has nothing to do tells the server's statistics after ten seconds what it did before.
        sleep(self.plan.watched / 2).await;
        self.servers.ask(CHECKPOINT)?;
        let before = Used::now(self.servers, self.server)?;
        sleep(self.plan.watched).await;
        let (cost, seconds) = before.since(self.servers, self.server)?;
        Ok(cost.each(seconds))
    }

    /// What some work comes to, and what it uses beside what is used in each second anyway.
    async fn of<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
        idle: Cost,
    ) -> anyhow::Result<(T, Cost)> {
        self.servers.ask(CHECKPOINT)?;
        let before = Used::now(self.servers, self.server)?;
        let done = work.await?;
        let (cost, seconds) = before.since(self.servers, self.server)?;
        Ok((done, cost.less(idle.times(seconds))))
    }
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let Some(servers) = Servers::start() else {
        return Ok(Vec::new());
    };
    let mut figures = gateways(&servers, plan).await?;
    drop(servers);
    let servers = Servers::start().context("the servers started before")?;
    figures.extend(records(&servers, plan).await?);
    Ok(figures)
}

/// Sessions, heartbeats and commands.
async fn gateways(servers: &Servers, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let (few, all) = (plan.command_agents, plan.agents);
    let more = (all - few) as f64;
    let system = System::on(Some(servers), all).await?;
    let server = Server::start(Role::Ours, &system, None).await?;
    let scene = Scene {
        servers,
        server: &server,
        plan,
    };
    let first = idle::spread(&system, &server, plan, 0..few).await?;
    let base = scene.idle().await?;
    let (resident, queued) = (server.resident_bytes()?, servers.queue_bytes()?);

    let operator = Operator::new(Role::Ours, &system, &server, (0..few).map(name));
    operator.ready().await?;
    let commands = operator.together(plan.commands_together);
    let (_rate, command) = scene.of(commands, base).await?;
    let command = command.each(plan.commands_together as f64);

    let connect = async {
        let fleet = Fleet::start(Role::Ours, &system, &server, few..all)?;
        fleet.all_up().await?;
        Ok(fleet)
    };
    let (rest, opening) = scene.of(connect, base).await?;
    let opening = opening.each(more);
    drop((first, rest));
    let fleet = idle::spread(&system, &server, plan, 0..all).await?;
    let beats = scene.idle().await?.less(base).each(more / BEAT_SECONDS);
    let grown = |now: u64, before: u64| now.saturating_sub(before) as f64 / 1_024.0 / more;
    let memory = grown(server.resident_bytes()?, resident);
    let queue = grown(servers.queue_bytes()?, queued);
    drop(fleet);

    let micros = |what, value| figure(what, Unit::Microseconds, value);
    Ok(vec![
        figure("base", Unit::Mib, resident as f64 / 1_024.0 / 1_024.0),
        figure("memory", Unit::Kib, memory),
        micros("beat_backend", beats.backend),
        micros("beat_postgres", beats.postgres),
        micros("command_backend", command.backend),
        micros("command_postgres", command.postgres),
        micros("opening_backend", opening.backend),
        micros("opening_postgres", opening.postgres),
        figure("command_disk", Unit::Bytes, command.disk),
        figure("command_wal", Unit::Bytes, command.log),
        figure("beat_wal", Unit::Bytes, beats.log),
        figure("redis", Unit::Kib, queue),
    ])
}

/// Telemetry.
async fn records(servers: &Servers, plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let system = System::on(Some(servers), plan.telemetry_agents).await?;
    let server = Server::start(Role::Ours, &system, None).await?;
    let scene = Scene {
        servers,
        server: &server,
        plan,
    };
    let base = scene.idle().await?;
    let epochs: Vec<_> = (0..plan.telemetry_agents)
        .map(|_| AgentRunId::from_uuid(random::uuid_v4()))
        .collect();
    let deliver = telemetry::deliver(&system, &server, plan, &epochs);
    let (_took, record) = scene.of(deliver, base).await?;
    let records = plan.telemetry_records * u64::try_from(plan.telemetry_agents)?;
    let record = record.each(records as f64);
    Ok(vec![
        figure("record_backend", Unit::Microseconds, record.backend),
        figure("record_postgres", Unit::Microseconds, record.postgres),
        figure("record_disk", Unit::Bytes, record.disk),
        figure("record_wal", Unit::Bytes, record.log),
    ])
}

fn figure(what: &str, unit: Unit, value: f64) -> Figure {
    Figure::alone(format!("sizing: {what}"), unit, value)
}
