//! Somebody who submits runs and hands in telemetry while something is killed, and the account of it afterwards.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use viworks_testkit::gateway::{ONCE, feed, started};

use crate::scene::{GATEWAYS, Scene};

/// How long what was accepted may take to be final.
const FINAL_WITHIN: Duration = Duration::from_secs(60);
/// How long one request may take.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// The load of one check.
pub(crate) struct Load {
    http: reqwest::Client,
    token: String,
    apis: Vec<String>,
    folders: Vec<PathBuf>,
    /// What keys begin with, and the stream.
    name: String,
    over: AtomicBool,
    finished: AtomicUsize,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) runs: Vec<String>,
    pub(crate) fed: usize,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) runs: usize,
    pub(crate) records: usize,
    /// Commands and records that were accepted and are not there.
    pub(crate) lost: usize,
    /// Those that are there twice.
    pub(crate) twice: usize,
}

impl Load {
    pub(crate) fn on(scene: &Scene, name: &str) -> anyhow::Result<Self> {
        let token = std::fs::read_to_string(scene.token())?;
        // Where nginx is, operators come through it.
        let (http, apis) = scene.nginx.as_ref().map_or_else(
            || {
                let apis = scene.backends.iter().map(|it| it.api_url()).collect();
                (viworks_testkit::http::client(), apis)
            },
            |nginx| (nginx.client(), vec![nginx.api_url()]),
        );
        Ok(Self {
            http,
            token: token.trim().to_owned(),
            apis,
            folders: scene.folders.clone(),
            name: name.to_owned(),
            over: AtomicBool::new(false),
            finished: AtomicUsize::new(0),
        })
    }

    /// Until it is over: runs, one after the other, each followed to its end, and records.
    pub(crate) async fn work(&self) -> Done {
        let (runs, fed) = tokio::join!(self.submit(), self.feed());
        Done { runs, fed }
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    /// Runs that have ended well so far.
    pub(crate) fn finished(&self) -> usize {
        self.finished.load(Ordering::SeqCst)
    }

    async fn submit(&self) -> Vec<String> {
        let mut runs = Vec::new();
        let mut turn = 0;
        while !self.over.load(Ordering::SeqCst) {
            let key = format!("{}-{}", self.name, runs.len());
            let accepted = self.until_over(
                async |api: String| self.submit_once(&api, &key).await,
                &mut turn,
            );
            let Some(run) = accepted.await else { break };
            runs.push(run.clone());
            let ended =
                self.until_over(async |api: String| self.ended(&api, &run).await, &mut turn);
            if ended.await == Some(true) {
                self.finished.fetch_add(1, Ordering::SeqCst);
            }
            sleep(Duration::from_millis(10)).await;
        }
        runs
    }

    /// Asks one backend after the other until one says something, or it is over.
    async fn until_over<T>(
        &self,
        ask: impl AsyncFn(String) -> Option<T>,
        turn: &mut usize,
    ) -> Option<T> {
        while !self.over.load(Ordering::SeqCst) {
            *turn += 1;
            let api = self.apis.get(*turn % self.apis.len().max(1)).cloned();
            if let Some(answer) = ask(api.unwrap_or_default()).await {
                return Some(answer);
            }
            sleep(Duration::from_millis(20)).await;
        }
        None
    }

    async fn submit_once(&self, api: &str, key: &str) -> Option<String> {
        let request = self.http.post(format!("{api}/v1/runs"));
        let request = request
            .bearer_auth(&self.token)
            .header("idempotency-key", key)
            .json(&json!({"command": ONCE, "targets": {"gateways": GATEWAYS}}))
            .timeout(REQUEST_WITHIN);
        let response = request.send().await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let answer: Value = response.json().await.ok()?;
        answer["id"].as_str().map(str::to_owned)
    }

    async fn get(&self, api: &str, path: &str) -> Option<Value> {
        let request = self.http.get(format!("{api}{path}"));
        let request = request.bearer_auth(&self.token).timeout(REQUEST_WITHIN);
        let response = request.send().await.ok()?;
        response.status().is_success().then_some(())?;
        response.json().await.ok()
    }

    /// Whether a run ended well, once it ended.
    async fn ended(&self, api: &str, run: &str) -> Option<bool> {
        let run = self.get(api, &format!("/v1/runs/{run}")).await?;
        let all_well = run["counts"] == json!({"succeeded": GATEWAYS.len()});
        (run["state"] == "finished").then_some(all_well)
    }

    async fn feed(&self) -> usize {
        let mut fed = 0;
        while !self.over.load(Ordering::SeqCst) {
            for folder in &self.folders {
                fed += feed(folder, &self.stream(), 10).await.answered;
            }
            sleep(Duration::from_millis(50)).await;
        }
        fed
    }

    fn stream(&self) -> String {
        format!("validation.{}", self.name)
    }

    /// Everything that was accepted is there once, when it has come to rest.
    pub(crate) async fn account(&self, scene: &Scene, done: &Done) -> Account {
        let deadline = Instant::now() + FINAL_WITHIN;
        loop {
            let account = self.look(scene, done).await;
            if (account.lost, account.twice) == (0, 0)
                || account.twice > 0
                || Instant::now() >= deadline
            {
                return account;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn look(&self, scene: &Scene, done: &Done) -> Account {
        let api = scene.first().api_url();
        let mut account = Account {
            runs: done.runs.len(),
            records: done.fed,
            ..Account::default()
        };
        let mut ids = BTreeSet::new();
        for run in &done.runs {
            if self.ended(&api, run).await != Some(true) {
                account.lost += 1;
            }
            let page = self
                .get(&api, &format!("/v1/runs/{run}/commands?limit=1000"))
                .await;
            let items = page.and_then(|page| page["items"].as_array().cloned());
            let id = |item: &Value| item["id"].as_str().map(str::to_owned);
            ids.extend(items.unwrap_or_default().iter().filter_map(id));
        }
        for folder in &self.folders {
            let marks = started(folder);
            let of_these = marks.iter().filter(|(id, _times)| ids.contains(*id));
            account.twice += of_these.filter(|(_id, times)| **times > 1).count();
        }
        let stored = scene.first().stored_telemetry(&self.stream());
        account.lost += done.fed.saturating_sub(stored.records);
        account.twice += stored.records.saturating_sub(stored.keys);
        account
    }
}
