//! The rehearsal of a rollback: what the version before wrote is read by this one, and by that one again after it was
//! put back.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use viworks_operator_cli::validation::Finding;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::gateway::{ONCE, mark_starts};
use viworks_testkit::process::Process;

use crate::breaks::Break;

/// How long a start, a connection or a run may take.
const WITHIN: Duration = Duration::from_secs(30);
const STOP_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// How a program says last that a newer version was there before. The code that it ends with has changed since.
const SCHEMA_MOVED_ON: &str = "the database schema has version";

/// Whose database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Backend,
    Gateway,
}

/// A part of the site does not work by these programs.
#[derive(Debug)]
struct Refused {
    of: Part,
    /// Because a newer version has migrated its database.
    has_moved_on: bool,
    said: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl std::error::Error for Refused {}

/// The check of the gateway; the other one is of the backend.
pub(crate) const GATEWAY: &str = "gateway_rollback";

/// What a rehearsal found out about each part.
#[derive(Debug)]
pub(crate) struct Rehearsed {
    backend: Finding,
    gateway: Finding,
}

impl Rehearsed {
    /// What it comes to for one of the two checks.
    pub(crate) fn of(&self, check: &str) -> Finding {
        let of = if check == GATEWAY {
            &self.gateway
        } else {
            &self.backend
        };
        of.clone()
    }
}

/// The programs of the version before, where they are to be put back.
struct Back {
    backend: &'static Binaries,
    gateway: &'static Binaries,
}

pub(crate) async fn check(
    current: &'static Binaries,
    previous: Option<&Path>,
    broken: Option<Break>,
) -> Rehearsed {
    let Some(previous) = previous.map(Binaries::of).or_else(Binaries::earlier) else {
        let why = "nothing earlier was rehearsed: `cargo xtask skew` builds programs to go back to, and --previous DIR \
                   names others";
        let skipped = Finding::Skipped(why.to_owned());
        return Rehearsed {
            backend: skipped.clone(),
            gateway: skipped,
        };
    };
    // Nothing of what has to be put back is there.
    let nothing = Binaries::of(Path::new("/nonexistent"));
    let back = match broken {
        Some(Break::Rollback) => Back {
            backend: nothing,
            gateway: previous,
        },
        Some(Break::GatewayRollback) => Back {
            backend: previous,
            gateway: nothing,
        },
        _ => Back {
            backend: previous,
            gateway: previous,
        },
    };
    rehearse(previous, current, &back)
        .await
        .unwrap_or_else(|error| Rehearsed {
            backend: Finding::fail(
                "not read",
                format!("{error:#}"),
                "restore the backup from before the upgrade; docs/operations/upgrade.md has the steps",
            ),
            gateway: Finding::Skipped("the backend was not put back, so that nothing was found out".to_owned()),
        })
}

/// What came of a gateway that could not be put back.
fn gateway_stays(refused: &Refused) -> Finding {
    if refused.has_moved_on {
        return Finding::Skipped(format!(
            "it stays as it was upgraded, and works beside the backend that was put back: its schema has moved on, and \
             nothing takes the place of its journal ({refused})"
        ));
    }
    Finding::fail(
        "not put back",
        refused.to_string(),
        "leave it as it was upgraded: it works beside the backend of before; docs/operations/upgrade.md has the steps",
    )
}

/// A site of one backend and one gateway in a folder, run by one version after the other.
struct Site {
    folder: TempDir,
    http: reqwest::Client,
    token: String,
}

/// What runs of it.
struct Running {
    backend: Process,
    gateway: Process,
    api: String,
}

async fn rehearse(
    previous: &'static Binaries,
    current: &'static Binaries,
    back: &Back,
) -> anyhow::Result<Rehearsed> {
    let site = Site::new(previous)?;
    let mut runs = vec![
        site.works_with(previous, previous, &[])
            .await
            .context("the version before")?,
    ];
    let copy = site.folder.path().join("before");
    copy_folder(&site.state(), &copy)?;
    runs.push(
        site.works_with(current, current, &runs)
            .await
            .context("after the upgrade")?,
    );
    let (mut gateway, mut stays, mut restored) = (back.gateway, None, false);
    while let Err(error) = site.works_with(back.backend, gateway, &runs).await {
        match error.downcast_ref::<Refused>() {
            // Its database has moved on: what was saved before the upgrade takes its place.
            Some(refused) if refused.of == Part::Backend && refused.has_moved_on && !restored => {
                std::fs::remove_dir_all(site.state())?;
                copy_folder(&copy, &site.state())?;
                runs.truncate(1);
                restored = true;
            }
            // Nothing takes the place of a gateway's: that gateway stays as it was upgraded, beside its backend of
            // before.
            Some(refused) if refused.of == Part::Gateway && stays.is_none() => {
                stays = Some(gateway_stays(refused));
                gateway = current;
            }
            Some(_) | None => return Err(error.context("after the rollback")),
        }
    }
    let how = if restored {
        "with the copy from before the upgrade"
    } else {
        "on the same database"
    };
    let back = format!(
        "back {how}, {kept} of {kept} earlier runs read",
        kept = runs.len()
    );
    let gateway = stays.unwrap_or_else(|| {
        Finding::Pass("back on the same journal, connected, and a command ended well".to_owned())
    });
    Ok(Rehearsed {
        backend: Finding::Pass(back),
        gateway,
    })
}

impl Site {
    fn new(by: &Binaries) -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        let backend = folder.path().join("backend");
        let config = backend.join("backend.toml");
        let key = folder.path().join("operator.key");
        run(Command::new(by.backend())
            .args(["pki", "init", "--dir"])
            .arg(&backend))?;
        let mut create = Command::new(by.backend());
        create.args(["apikey", "create", "--scopes", "all", "--config"]);
        run(create.arg(&config).arg("--out").arg(&key))?;
        let gateway = folder.path().join("gateway");
        let mut issue = Command::new(by.backend());
        issue.args(["pki", "issue-gateway", "gw-1", "--demo", "--config"]);
        run(issue.arg(&config).arg("--out").arg(&gateway))?;
        mark_starts(&gateway);
        let token = std::fs::read_to_string(&key)?.trim().to_owned();
        Ok(Self {
            folder,
            http: viworks_testkit::http::client(),
            token,
        })
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("backend/state")
    }

    /// Runs it by these programs, its gateway by those: every earlier run is read, and a new one ends well. Answers
    /// that one.
    async fn works_with(
        &self,
        by: &Binaries,
        gateway: &Binaries,
        earlier: &[String],
    ) -> anyhow::Result<String> {
        let mut running = self.start(by, gateway).await?;
        let worked = self.work(&mut running, earlier).await;
        if running.gateway.ended().is_none() {
            running.gateway.end(STOP_WITHIN).await;
        }
        if running.backend.ended().is_none() {
            running.backend.end(STOP_WITHIN).await;
        }
        worked
    }

    async fn start(&self, by: &Binaries, gateway: &Binaries) -> anyhow::Result<Running> {
        let at = |name: &str| self.folder.path().join(name);
        let ready = at("ready.json");
        drop(std::fs::remove_file(&ready));
        let mut serve = Command::new(by.backend());
        serve
            .args(["serve", "--config"])
            .arg(at("backend/backend.toml"));
        serve.arg("--ready-file").arg(&ready);
        serve.env("VIWORKS__API__LISTEN", "127.0.0.1:0");
        serve.env("VIWORKS__AGENTS__LISTEN", "127.0.0.1:0");
        let mut backend = Process::start(&mut serve, &at("backend.log"))?;
        let begun = Instant::now();
        let addresses: Value = loop {
            let written = std::fs::read(&ready).ok();
            if let Some(found) = written.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
                break found;
            }
            if let Some(status) = backend.ended() {
                return Err(ended(Part::Backend, status, &backend.log()));
            }
            ensure!(begun.elapsed() < WITHIN, "the backend is not ready");
            sleep(POLL).await;
        };
        let address = |name: &str| addresses[name].as_str().unwrap_or_default().to_owned();
        let mut run = Command::new(gateway.gateway());
        run.args(["run", "--config"])
            .arg(at("gateway/gateway.toml"));
        let url = format!("wss://{}/agent/v1/connect", address("agents"));
        run.env("VIWORKS__OUTBOUND__URL", url);
        let gateway = match Process::start(&mut run, &at("gateway.log")) {
            Ok(gateway) => gateway,
            Err(error) => {
                backend.end(STOP_WITHIN).await;
                return Err(not_there(&run, &error));
            }
        };
        Ok(Running {
            backend,
            gateway,
            api: format!("http://{}", address("api")),
        })
    }

    async fn work(&self, running: &mut Running, earlier: &[String]) -> anyhow::Result<String> {
        let Running { gateway, api, .. } = running;
        for run in earlier {
            let read = self.get(&format!("{api}/v1/runs/{run}")).await?;
            ensure!(
                read["counts"] == json!({"succeeded": 1}),
                "run {run} reads {read}"
            );
        }
        let begun = Instant::now();
        loop {
            let shown = self.get(&format!("{api}/v1/gateways/gw-1")).await?;
            if shown["status"] == "online" && !shown["catalogue_digest"].is_null() {
                break;
            }
            if let Some(status) = gateway.ended() {
                return Err(ended(Part::Gateway, status, &gateway.log()));
            }
            if begun.elapsed() > WITHIN {
                return Err(of_gateway("the gateway is not online".to_owned()));
            }
            sleep(POLL).await;
        }
        let request = self
            .http
            .post(format!("{api}/v1/runs"))
            .header("Idempotency-Key", format!("rollback-{}", earlier.len()))
            .bearer_auth(&self.token);
        let body = json!({"command": ONCE, "targets": {"gateways": ["gw-1"]}});
        let answer: Value = request.json(&body).send().await?.json().await?;
        let run = answer["id"].as_str().context("no run")?.to_owned();
        let begun = Instant::now();
        loop {
            let read = self.get(&format!("{api}/v1/runs/{run}")).await?;
            if read["state"] == "finished" {
                ensure!(
                    read["counts"] == json!({"succeeded": 1}),
                    "a run reads {read}"
                );
                return Ok(run);
            }
            ensure!(begun.elapsed() < WITHIN, "a run does not end");
            sleep(POLL).await;
        }
    }

    async fn get(&self, url: &str) -> anyhow::Result<Value> {
        let request = self.http.get(url).bearer_auth(&self.token).timeout(WITHIN);
        let response = request.send().await?;
        ensure!(
            response.status().is_success(),
            "{url}: {}",
            response.status()
        );
        Ok(response.json().await?)
    }
}

/// Why a program is not there any more: for a schema that it does not know, or for something else.
fn ended(of: Part, status: ExitStatus, log: &str) -> anyhow::Error {
    let last = log.lines().last().unwrap_or_default();
    let part = match of {
        Part::Backend => "backend",
        Part::Gateway => "gateway",
    };
    let said = format!("the {part} ended ({status}): {last}");
    let has_moved_on = last.contains(SCHEMA_MOVED_ON);
    Refused {
        of,
        has_moved_on,
        said,
    }
    .into()
}

/// Something else that keeps the gateway from its work.
fn of_gateway(said: String) -> anyhow::Error {
    Refused {
        of: Part::Gateway,
        has_moved_on: false,
        said,
    }
    .into()
}

fn not_there(command: &Command, error: &std::io::Error) -> anyhow::Error {
    let program = command.get_program().to_string_lossy();
    of_gateway(format!("{program} cannot be started: {error}"))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

/// With owners and modes, which both versions insist on.
fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to))
}
