//! How long a command takes from its submission to its known result, alone and among a hundred.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Plan;
use crate::fleet::Fleet;
use crate::gateway::COMMAND;
use crate::report::{Figure, Target, Unit};
use crate::server::{Role, Server};
use crate::system::{System, name};

/// Submissions in flight at once.
const TOGETHER: usize = 100;

/// Commands that are run before anything counts.
const WARM_UP: usize = 50;

struct Measured {
    p50: Duration,
    p99: Duration,
    alone_per_second: f64,
    together_per_second: f64,
}

pub(super) async fn measure(plan: &Plan) -> anyhow::Result<Vec<Figure>> {
    let reference = of(Role::Reference, plan).await?;
    let ours = of(Role::Ours, plan).await?;
    let pair = |of: fn(&Measured) -> f64| (of(&ours), of(&reference));
    Ok(vec![
        Figure::new(
            "command p50, 1 in flight",
            Unit::Milliseconds,
            pair(|it| millis(it.p50)),
        )
        .aiming(Target::TimesAtMost(2.0)),
        Figure::new(
            "command p99, 1 in flight",
            Unit::Milliseconds,
            pair(|it| millis(it.p99)),
        ),
        Figure::new(
            "commands, 1 in flight",
            Unit::PerSecond,
            pair(|it| it.alone_per_second),
        ),
        Figure::new(
            "commands, 100 in flight",
            Unit::PerSecond,
            pair(|it| it.together_per_second),
        )
        .aiming(Target::TimesAtLeast(0.6)),
    ])
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

async fn of(role: Role, plan: &Plan) -> anyhow::Result<Measured> {
    let system = System::new(plan.command_agents).await?;
    let server = Server::start(role, &system, None).await?;
    let fleet = Fleet::start(role, &system, &server, 0..plan.command_agents)?;
    fleet.all_up().await?;
    let operator = Arc::new(Operator::new(role, &system, &server, plan.command_agents));
    for number in 0..WARM_UP.min(plan.commands_alone) {
        operator.command(number).await?;
    }
    let mut took = Vec::with_capacity(plan.commands_alone);
    let began = Instant::now();
    for number in 0..plan.commands_alone {
        let started = Instant::now();
        operator.command(number).await?;
        took.push(started.elapsed());
    }
    let alone = began.elapsed();
    took.sort_unstable();
    let together = operator.together(plan.commands_together).await?;
    let rate = |commands: usize, took: Duration| commands as f64 / took.as_secs_f64();
    Ok(Measured {
        p50: took[took.len() / 2],
        p99: took[took.len() * 99 / 100],
        alone_per_second: rate(plan.commands_alone, alone),
        together_per_second: rate(plan.commands_together, together),
    })
}

/// Somebody who runs commands.
pub(super) struct Operator {
    role: Role,
    http: reqwest::Client,
    api: String,
    token: String,
    agents: usize,
}

impl Operator {
    /// One with every right.
    pub(super) fn new(role: Role, system: &System, server: &Server, agents: usize) -> Self {
        Self {
            role,
            http: reqwest::Client::new(),
            api: format!("http://{}", server.addresses.api),
            token: system.token.clone(),
            agents,
        }
    }

    /// Runs `commands`, a hundred in flight; how long that took.
    async fn together(self: &Arc<Self>, commands: usize) -> anyhow::Result<Duration> {
        let next = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let mut workers = JoinSet::new();
        for _worker in 0..TOGETHER {
            let (own, next) = (Arc::clone(self), Arc::clone(&next));
            workers.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= commands {
                        return anyhow::Ok(());
                    }
                    own.command(number).await?;
                }
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(began.elapsed())
    }

    /// Submits one command and waits until its result is known.
    pub(super) async fn command(&self, number: usize) -> anyhow::Result<()> {
        let agent = name(number % self.agents);
        match self.role {
            Role::Reference => {
                let url = format!("{}/run/{agent}", self.api);
                self.http.post(url).send().await?.error_for_status()?;
                Ok(())
            }
            Role::Ours => self.submit_and_wait(&agent).await,
        }
    }

    async fn submit_and_wait(&self, agent: &str) -> anyhow::Result<()> {
        let body = json!({ "command": COMMAND, "targets": { "gateways": [agent] } });
        let submitted: Value = self
            .http
            .post(format!("{}/v1/runs", self.api))
            .bearer_auth(&self.token)
            .json(&body)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        let run = submitted["id"].as_str().context("a run has an id")?;
        let waited: Value = self
            .http
            .get(format!("{}/v1/runs/{run}/wait", self.api))
            .bearer_auth(&self.token)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        if waited["run"]["state"] != "finished" && waited["finished"] != true {
            bail!("the run is not finished: {waited}");
        }
        Ok(())
    }
}
