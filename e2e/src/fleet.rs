//! The gateways of a soak: processes of the shipped agent, with their folders.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use futures_util::future::join_all;
use rustix::process::Signal;
use tokio::time::sleep;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::gateway::{Fed, feed, local_request, mark_starts};
use viworks_testkit::process::Process;

/// The stream of the records that are counted.
pub(crate) const STREAM: &str = "test.feed";

/// Records handed to a gateway at once.
const RECORDS: usize = 10;

/// Between two such portions.
const PAUSE: Duration = Duration::from_secs(5);

/// One gateway.
struct Gateway {
    folder: PathBuf,
    process: Option<Process>,
}

/// All of them.
pub(crate) struct Fleet {
    gateways: Vec<Gateway>,
    start: Start,
}

impl Fleet {
    /// Issues identities; the backend must not run yet.
    pub(crate) fn issue(system: &Deployment, size: usize, address: &str) -> Self {
        let gateways = (0..size)
            .map(|number| {
                let folder = system.issue(&format!("gw-{number:04}"));
                mark_starts(&folder);
                Gateway {
                    folder,
                    process: None,
                }
            })
            .collect();
        let start = Start::default()
            .with(
                "VIWORKS__OUTBOUND__URL",
                format!("wss://{address}/agent/v1/connect"),
            )
            .with("VIWORKS__OUTBOUND__BACKOFF_MAX_MS", "5000")
            .with("VIWORKS__LOG__FILTER", "warn");
        Self { gateways, start }
    }

    pub(crate) const fn size(&self) -> usize {
        self.gateways.len()
    }

    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.gateways.iter().map(|it| it.folder.clone()).collect()
    }

    /// The numbers of the running processes.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.gateways
            .iter()
            .filter_map(|it| it.process.as_ref().map(Process::pid))
    }

    pub(crate) fn start_all(&mut self, system: &Deployment) -> anyhow::Result<()> {
        for number in 0..self.size() {
            self.start(system, number)?;
        }
        Ok(())
    }

    fn start(&mut self, system: &Deployment, number: usize) -> anyhow::Result<()> {
        let Some(gateway) = self.gateways.get_mut(number) else {
            bail!("there is no gateway {number}");
        };
        gateway.process = Some(system.start_gateway(&gateway.folder, self.start.clone()));
        Ok(())
    }

    /// kill -9, and a fresh process.
    pub(crate) fn kill(&mut self, system: &Deployment, number: usize) -> anyhow::Result<()> {
        let gateway = self.gateways.get_mut(number);
        if let Some(mut process) = gateway.and_then(|it| it.process.take()) {
            process.kill();
        }
        self.start(system, number)
    }

    /// SIGSTOP: its connection stays, and it says nothing.
    pub(crate) fn freeze(&self, number: usize) {
        self.signal(number, Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self, number: usize) {
        self.signal(number, Signal::CONT);
    }

    fn signal(&self, number: usize, signal: Signal) {
        let gateway = self.gateways.get(number);
        if let Some(process) = gateway.and_then(|it| it.process.as_ref()) {
            process.signal(signal);
        }
    }

    /// Everybody goes on; one that ended by itself is a finding.
    pub(crate) fn repair(&mut self) -> anyhow::Result<()> {
        for number in 0..self.size() {
            self.thaw(number);
            let gateway = self.gateways.get_mut(number);
            let ended = gateway.and_then(|it| it.process.as_mut()?.ended());
            if let Some(status) = ended {
                bail!("gateway {number} ended by itself with {status}");
            }
        }
        Ok(())
    }

    /// Of these gateways, the ones with records that no backend has acknowledged, or without an answer. Their own
    /// metrics come in all the time, so a gateway that was empty once has delivered everything from before.
    pub(crate) async fn undelivered(&self, among: &[usize]) -> Vec<usize> {
        let asked = among.iter().map(async |number| {
            let gateway = self.gateways.get(*number)?;
            (waiting(&gateway.folder).await != Some(0)).then_some(*number)
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    pub(crate) async fn stop_all(&mut self) {
        for process in self.gateways.iter().filter_map(|it| it.process.as_ref()) {
            process.signal(Signal::TERM);
        }
        for process in self
            .gateways
            .iter_mut()
            .filter_map(|it| it.process.as_mut())
        {
            process.wait(Duration::from_secs(60)).await;
        }
    }
}

async fn waiting(folder: &Path) -> Option<u64> {
    let (_status, text) = local_request(folder, "GET", "/v1/status", &serde_json::json!({}))
        .await
        .ok()?;
    let status: serde_json::Value = serde_json::from_str(&text).ok()?;
    status["spool"]["records"].as_u64()
}

/// Hands every gateway a few records every few seconds.
pub(crate) async fn feed_until(folders: &[PathBuf], over: &AtomicBool) -> Fed {
    let feeders = folders
        .iter()
        .enumerate()
        .map(|(number, folder)| async move {
            // Not all at the same moment.
            sleep(Duration::from_millis(
                u64::try_from(number % 50).unwrap_or(0) * 100,
            ))
            .await;
            let mut fed = Fed::default();
            while !over.load(Ordering::Relaxed) {
                let more = feed(folder, STREAM, RECORDS).await;
                fed.answered += more.answered;
                fed.unanswered += more.unanswered;
                sleep(PAUSE).await;
            }
            fed
        });
    let all = join_all(feeders).await;
    all.into_iter().fold(Fed::default(), |sum, one| Fed {
        answered: sum.answered + one.answered,
        unanswered: sum.unanswered + one.unanswered,
    })
}
