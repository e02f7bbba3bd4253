//! The same job done with what one would pick instead: a durable request to a client over TLS, and its durable answer,
//! with NATS `JetStream`.

mod jetstream;

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
use uuid::Uuid;
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

/// Requests that wait for their answers.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<BTreeMap<Uuid, oneshot::Sender<()>>>>);

impl Waiting {
    /// A new request.
    fn begin(&self) -> (Number, oneshot::Receiver<()>) {
        let id = random::uuid_v4();
        let (answered, answer) = oneshot::channel();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id, answered);
        (id.into_bytes(), answer)
    }

    /// Its answer has come.
    fn answered(&self, number: &[u8]) -> anyhow::Result<()> {
        let id = Uuid::from_slice(number).context("not the number of a request")?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiting) = all.remove(&id) {
            // Whoever asked may have gone.
            let _told = waiting.send(());
        }
        Ok(())
    }
}

/// Waits for an answer.
async fn answer(answer: oneshot::Receiver<()>) -> anyhow::Result<()> {
    let answer = timeout(WITHIN, answer).await;
    answer
        .context("no answer in time")?
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
        figures.extend(compare("NATS JetStream", ours, &theirs));
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
    [
        latency.aiming(Target::TimesAtMost(1.0)),
        rate.aiming(Target::TimesAtLeast(1.0)),
    ]
}
