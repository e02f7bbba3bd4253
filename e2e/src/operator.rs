//! The operator of a soak: submits runs to every gateway, again and again, whatever happens.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use viworks_testkit::gateway::{AGAIN, ONCE};

/// Between two submissions.
const PAUSE: Duration = Duration::from_secs(6);

/// How long the fleet may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(300);

/// A client of the API.
pub(crate) struct Operator {
    http: reqwest::Client,
    /// Of each backend; one that is away is passed over.
    apis: Vec<String>,
    turn: AtomicUsize,
    token: String,
}

impl Operator {
    /// One with every scope.
    pub(crate) fn new(site: &Path, apis: Vec<String>) -> anyhow::Result<Self> {
        let token = std::fs::read_to_string(site.join("operator.key"))
            .context("the operator's key cannot be read")?;
        Ok(Self {
            http: viworks_testkit::http::client(),
            apis,
            turn: AtomicUsize::new(0),
            token: token.trim().to_owned(),
        })
    }

    /// Waits until so many gateways are online and their catalogues known.
    pub(crate) async fn all_online(&self, gateways: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + CONNECT_WITHIN;
        loop {
            let (_status, page) = self.get("/v1/gateways?online=true&limit=1000").await?;
            let known = |gateway: &&Value| !gateway["catalogue_digest"].is_null();
            let online = page["items"]
                .as_array()
                .map_or(0, |items| items.iter().filter(known).count());
            if online == gateways {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("only {online} of {gateways} gateways are online");
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Of the backends in turn.
    fn api(&self) -> &str {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let which = turn % self.apis.len().max(1);
        self.apis.get(which).map_or("", String::as_str)
    }

    async fn get(&self, path: &str) -> anyhow::Result<(u16, Value)> {
        let request = self.http.get(format!("{}{path}", self.api()));
        let response = request.bearer_auth(&self.token).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    }

    /// Submits until it is over; answers how many runs were accepted.
    pub(crate) async fn submit_until(&self, over: &AtomicBool) -> anyhow::Result<usize> {
        let mut runs = 0;
        while !over.load(Ordering::Relaxed) {
            let command = if runs % 2 == 0 { ONCE } else { AGAIN };
            self.submit(command, &format!("soak-{runs}")).await?;
            runs += 1;
            sleep(PAUSE).await;
        }
        Ok(runs)
    }

    /// Until there is an answer: the key makes that safe.
    async fn submit(&self, command: &str, key: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + CONNECT_WITHIN;
        loop {
            let request = self
                .http
                .post(format!("{}/v1/runs", self.api()))
                .bearer_auth(&self.token)
                .header("idempotency-key", key)
                .json(&json!({"command": command, "targets": "all"}))
                .timeout(Duration::from_secs(30));
            match request.send().await {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) if response.status().is_server_error() => {}
                Ok(response) => bail!("{}: {}", response.status(), response.text().await?),
                // The backend may be away for a moment.
                Err(_away) => {}
            }
            if Instant::now() >= deadline {
                bail!("no run was accepted for {CONNECT_WITHIN:?}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}
