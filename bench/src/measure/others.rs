//! The same job done with what one would pick instead: a durable request to a client over TLS, and its durable answer,
//! with NATS `JetStream` and with mosquitto.

mod jetstream;
mod mosquitto;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use viworks_runtime::random;
use viworks_testkit::process::Process;

use super::Plan;
use super::commands::Measured;
use super::operator::{Latencies, alone, together};
use crate::report::{Figure, Target, Unit};
use crate::system::System;

/// How long a server may take to listen, and an answer to come.
const WITHIN: Duration = Duration::from_secs(30);

/// What a request and its answer consist of: the number of the request.
type Number = [u8; 16];

/// What is waited for, by its number.
struct Waiting<N>(Arc<Mutex<BTreeMap<N, oneshot::Sender<()>>>>);

impl<N> Clone for Waiting<N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<N> Default for Waiting<N> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<N: Ord> Waiting<N> {
    /// One more is waited for.
    fn begin(&self, number: N) -> oneshot::Receiver<()> {
        let (came, coming) = oneshot::channel();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(number, came);
        coming
    }

    /// It has come.
    fn came(&self, number: &N) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = all.remove(number) {
            // Whoever waited may have gone.
            let _told = waiting.send(());
        }
    }
}

/// A new request.
fn request(waiting: &Waiting<Number>) -> (Number, oneshot::Receiver<()>) {
    let number = random::uuid_v4().into_bytes();
    (number, waiting.begin(number))
}

/// A request was answered.
fn answered(waiting: &Waiting<Number>, payload: &[u8]) -> anyhow::Result<()> {
    let number = payload.try_into().context("not the number of a request")?;
    waiting.came(&number);
    Ok(())
}

/// Waits for what is to come.
async fn coming(coming: oneshot::Receiver<()>) -> anyhow::Result<()> {
    let came = timeout(WITHIN, coming).await;
    came.context("no answer in time")?
        .context("the answer was lost")
}

/// A server on a free port of this machine; gone when it is dropped.
struct Server {
    _process: Process,
}

/// Starts `command`, which is to listen on `port`.
async fn start(command: &mut Command, port: u16, log: &Path) -> anyhow::Result<Server> {
    let process = Process::start(command, log)?;
    let deadline = Instant::now() + WITHIN;
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if Instant::now() >= deadline {
            anyhow::bail!("it does not listen: {}", process.log());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(Server { _process: process })
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where a program is installed; a word about what is not measured otherwise.
#[expect(clippy::print_stderr, reason = "whoever measures is to see it")]
fn installed(program: &str, package: &str) -> Option<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin", "/usr/local/sbin"];
    let found = places.iter().map(|place| Path::new(place).join(program));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: {program} is not installed (on Debian: apt-get install {package})");
    }
    found
}

/// Ours beside it.
pub(super) async fn beside(
    ours: &Measured,
    system: &System,
    plan: &Plan,
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if let Some(jetstream) = jetstream::Bench::start(system, plan.command_agents).await? {
        let ask = move |number| {
            let jetstream = jetstream.clone();
            async move { jetstream.ask(number).await }
        };
        let theirs = of(plan, ask).await?;
        // Theirs is as durable as ours.
        let [latency, rate] = compare("NATS JetStream", ours, &theirs);
        figures.push(latency.aiming(Target::TimesAtMost(1.0)));
        figures.push(rate.aiming(Target::TimesAtLeast(1.0)));
    }
    if let Some(mosquitto) = mosquitto::Bench::start(system, plan.command_agents).await? {
        let ask = move |number| {
            let mosquitto = mosquitto.clone();
            async move { mosquitto.ask(number).await }
        };
        let theirs = of(plan, ask).await?;
        figures.extend(compare("mosquitto", ours, &theirs));
    }
    Ok(figures)
}

async fn of<F>(
    plan: &Plan,
    ask: impl Fn(usize) -> F + Clone + Send + Sync + 'static,
) -> anyhow::Result<(Latencies, f64)>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    for agent in 0..plan.command_agents {
        ask(agent).await?;
    }
    let alone = alone(plan.commands_alone, &ask).await?;
    Ok((alone, together(plan.commands_together, ask).await?))
}

fn compare(name: &str, ours: &Measured, (alone, together): &(Latencies, f64)) -> [Figure; 2] {
    let latency = (ours.alone.median(), alone.median());
    let latency = Figure::new(
        format!("command p50, 1 in flight, beside {name}"),
        Unit::Milliseconds,
        latency,
    );
    let rate = (ours.together, *together);
    let rate = Figure::new(
        format!("commands, 100 in flight, beside {name}"),
        Unit::PerSecond,
        rate,
    );
    [latency, rate]
}
