//! Somebody who runs commands, one after another or a hundred at a time, and looks at the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::gateway::COMMAND;
use crate::server::{Role, Server};
use crate::system::System;

/// Submissions in flight at once.
const TOGETHER: usize = 100;

/// How long an agent may take until a command succeeds on it, and how long to wait before the next attempt.
const READY_WITHIN: Duration = Duration::from_secs(30);
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// How long single commands took.
pub(super) struct Latencies {
    sorted: Vec<Duration>,
    all: Duration,
}

impl Latencies {
    /// Of these; none of nothing.
    pub(super) fn new(mut took: Vec<Duration>) -> anyhow::Result<Self> {
        anyhow::ensure!(!took.is_empty(), "no command was run");
        let all = took.iter().sum();
        took.sort_unstable();
        Ok(Self { sorted: took, all })
    }

    /// What so many of a hundred stayed below, in milliseconds.
    pub(super) fn percentile(&self, percent: usize) -> f64 {
        let at = self.sorted.len() * percent / 100;
        let took = self.sorted.get(at).or_else(|| self.sorted.last());
        took.map_or(0.0, Duration::as_secs_f64) * 1_000.0
    }

    /// The median, in milliseconds.
    pub(super) fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// Commands in each second, one after another.
    pub(super) fn per_second(&self) -> f64 {
        self.sorted.len() as f64 / self.all.as_secs_f64()
    }
}

/// Asks so often, one after another.
pub(super) async fn alone<F>(
    questions: usize,
    ask: impl Fn(usize) -> F,
) -> anyhow::Result<Latencies>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut took = Vec::with_capacity(questions);
    for number in 0..questions {
        let started = Instant::now();
        ask(number).await?;
        took.push(started.elapsed());
    }
    Latencies::new(took)
}

/// Asks so often, a hundred in flight; how many were answered in each second.
pub(super) async fn together<F>(
    questions: usize,
    ask: impl Fn(usize) -> F + Clone + Send + 'static,
) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for _worker in 0..TOGETHER {
        let (ask, next) = (ask.clone(), Arc::clone(&next));
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= questions {
                    return anyhow::Ok(());
                }
                ask(number).await?;
            }
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(questions as f64 / began.elapsed().as_secs_f64())
}

/// Somebody with every right, who runs one command on some agents in turn.
#[derive(Clone)]
pub(super) struct Operator {
    role: Role,
    http: reqwest::Client,
    api: String,
    token: String,
    agents: Arc<[String]>,
    command: &'static str,
}

impl Operator {
    /// One who runs a command that may run twice.
    pub(super) fn new(
        role: Role,
        system: &System,
        server: &Server,
        agents: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            role,
            http: viworks_testkit::http::client(),
            api: format!("http://{}", server.addresses.api),
            token: system.token.clone(),
            agents: agents.into_iter().collect(),
            command: COMMAND,
        }
    }

    /// The same, who runs this command.
    pub(super) fn running(&self, command: &'static str) -> Self {
        Self {
            command,
            ..self.clone()
        }
    }

    /// Runs a command on every agent. One that is connected takes none until the backend has judged its catalogue, so
    /// nothing counts before this.
    pub(super) async fn ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        for number in 0..self.agents.len() {
            while let Err(refused) = self.command(number).await {
                if Instant::now() >= deadline {
                    return Err(refused).with_context(|| format!("on {:?}", self.agent(number)));
                }
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// Runs `commands`, one after another.
    pub(super) async fn alone(&self, commands: usize) -> anyhow::Result<Latencies> {
        alone(commands, |number| self.command(number)).await
    }

    /// Runs `commands`, a hundred in flight; how many in each second.
    pub(super) async fn together(&self, commands: usize) -> anyhow::Result<f64> {
        let own = self.clone();
        let ask = move |number| {
            let own = own.clone();
            async move { own.command(number).await }
        };
        together(commands, ask).await
    }

    /// Submits one command and waits until its result is known.
    pub(super) async fn command(&self, number: usize) -> anyhow::Result<()> {
        match self.role {
            Role::Reference => {
                let url = format!("{}/run/{}", self.api, self.agent(number)?);
                self.http.post(url).send().await?.error_for_status()?;
                Ok(())
            }
            Role::Ours => self.submit_and_wait(number).await,
        }
    }

    /// Submits one command to ours, and has it answered with the end of its run.
    async fn submit_and_wait(&self, number: usize) -> anyhow::Result<()> {
        let run = self.post(number, "/v1/runs?wait_ms=30000").await?;
        if run["state"] != "finished" || run["counts"] != json!({ "succeeded": 1 }) {
            bail!("the run has not succeeded: {run}");
        }
        Ok(())
    }

    fn agent(&self, number: usize) -> anyhow::Result<&str> {
        let agent = self.agents.get(number % self.agents.len().max(1));
        Ok(agent.context("there are agents")?)
    }

    /// Submits one command to ours; the run that it became.
    pub(super) async fn submit(&self, number: usize) -> anyhow::Result<String> {
        let submitted = self.post(number, "/v1/runs").await?;
        let run = submitted["id"].as_str().context("a run has an id")?;
        Ok(run.to_owned())
    }

    async fn post(&self, number: usize, path: &str) -> anyhow::Result<Value> {
        let agent = self.agent(number)?;
        let body = json!({ "command": self.command, "targets": { "gateways": [agent] } });
        let answer = self
            .http
            .post(format!("{}{path}", self.api))
            .bearer_auth(&self.token)
            .json(&body)
            .send()
            .await?
            .error_for_status()?;
        Ok(answer.json().await?)
    }

    /// How many commands of a run are in which state.
    pub(super) async fn counts(&self, run: &str) -> anyhow::Result<Value> {
        let url = format!("{}/v1/runs/{run}", self.api);
        let answer = self.http.get(url).bearer_auth(&self.token).send().await?;
        let mut run: Value = answer.error_for_status()?.json().await?;
        Ok(run["counts"].take())
    }

    /// Waits until a run has succeeded.
    pub(super) async fn wait(&self, run: &str) -> anyhow::Result<()> {
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
