//! The checks of `viworks validate`, by the shipped command line itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;
use viworks_operator_cli::validation::{Check, Report};
use viworks_testkit::proxy::Network;
use viworks_testkit::stand_in::{Answer, StandIn};

use crate::Cli;
use crate::breaks::{Break, Door, forgetful, open_door, taker};
use crate::scene::Scene;

/// Their names.
pub(crate) const NAMES: [&str; 17] = [
    "health",
    "configuration",
    "upgrade",
    "mtls",
    "no_certificate",
    "foreign_certificate",
    "replay",
    "registration",
    "duplicate",
    "round_trip",
    "data_flow",
    "restart",
    "limits",
    "enrolment",
    "renewal",
    "pins",
    "revocation",
];

/// How long all of them may take.
const WITHIN: Duration = Duration::from_secs(150);
/// Long enough that no command is back in time.
const SLOW: Duration = Duration::from_millis(700);

/// What stands in the place of something for as long as the checks run.
#[derive(Default)]
struct Arranged {
    server: Option<String>,
    agent: Option<PathBuf>,
    door: Option<String>,
    _door: Option<Door>,
    _stand_in: Option<StandIn>,
}

/// Runs those that are wanted.
pub(crate) async fn checks(scene: &mut Scene, cli: &Cli) -> anyhow::Result<Vec<Check>> {
    let wanted: Vec<&str> = NAMES.into_iter().filter(|name| cli.wants(name)).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let arranged = arrange(scene, cli.broken).await?;
    eprintln!("viworks validate …");
    let binaries = scene.first().binaries();
    let mut command = Command::new(binaries.cli());
    let server = arranged.server.clone();
    let door = arranged.door.clone();
    let door = door.unwrap_or_else(|| scene.door_address());
    // The certificate is for the name.
    let port = door.rsplit(':').next().unwrap_or_default();
    command
        .args(["validate", "-o", "json", "--server"])
        .arg(server.unwrap_or_else(|| scene.first().api_url()))
        .arg("--token-file")
        .arg(scene.token())
        .arg("--gateway")
        .arg(&scene.probe)
        .arg("--agent")
        .arg(arranged.agent.clone().unwrap_or_else(|| binaries.gateway()))
        .args(["--door", &format!("https://localhost:{port}")])
        .args(["--commands", &cli.commands.to_string()])
        .args(["--records", &cli.records.to_string()])
        .args(["--only", &wanted.join(",")])
        .env("VIWORKS_CONFIG_DIR", scene.first().path().join("config"))
        .env_remove("VIWORKS_OUTPUT")
        .env_remove("VIWORKS_CONTEXT")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(WITHIN, command.output());
    let output = output.await.context("viworks validate does not end")??;
    if !matches!(output.status.code(), Some(0 | 20)) {
        bail!(
            "viworks validate ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let report: Report = serde_json::from_slice(&output.stdout).context("its report")?;
    drop(arranged);
    // As it was, for what comes after.
    scene.address.set(Network::Normal);
    scene.lead();
    Ok(report.checks)
}

async fn arrange(scene: &mut Scene, broken: Option<Break>) -> anyhow::Result<Arranged> {
    let mut arranged = Arranged::default();
    let backend = scene.first().path().join("backend");
    match broken {
        Some(Break::Health) => scene.first_mut().kill_backend(),
        Some(Break::Configuration) => arranged.agent = Some(PathBuf::from("/bin/true")),
        Some(Break::Registration) => arranged.agent = Some(PathBuf::from("/bin/false")),
        Some(Break::Upgrade) => scene.address.set(Network::Cut),
        Some(Break::Mtls) => other_pins(&scene.probe)?,
        Some(Break::NoCertificate | Break::ForeignCertificate) => {
            let door = open_door(&backend).await?;
            scene.address.forward_to(&door.address);
            arranged._door = Some(door);
        }
        Some(Break::Replay | Break::Duplicate) => {
            // It welcomes everybody, whenever.
            let stand_in = StandIn::start(&backend, Answer::Drain(Duration::from_secs(60))).await?;
            let address = stand_in.url.trim_start_matches("wss://");
            let address = address.split('/').next().unwrap_or_default();
            scene.address.forward_to(address);
            arranged._stand_in = Some(stand_in);
        }
        Some(Break::RoundTrip | Break::Restart) => scene.address.set(Network::Delay(SLOW)),
        Some(Break::Limits) => {
            let door = taker().await?;
            arranged.server = Some(format!("http://{}", door.address));
            arranged._door = Some(door);
        }
        // Where gateways are taken, and nobody without a certificate.
        Some(Break::Enrolment) => {
            arranged.door = Some(scene.first().agents_address().to_owned());
        }
        Some(Break::Pins) => {
            // Gateways stay connected, as far as anybody knows, and are told of nothing.
            scene.address.set(Network::HalfOpen);
            let pin = no_pin();
            let staged = json!({ "pin": pin, "reason": "a key that nobody confirms" });
            scene.first().post("/v1/pins/stage", &staged).await;
        }
        Some(Break::Revocation) => {
            let gateway = scene.first().get("/v1/gateways/validation").await;
            let answer = json!({
                "kind": "GatewayRevoked", "already": false, "session_ended": true, "cancelled": 0, "indeterminate": 0,
                "gateway": gateway,
            });
            let api = scene.first().api_url();
            let api = api.trim_start_matches("http://").to_owned();
            let door = forgetful(api, answer.to_string()).await?;
            arranged.server = Some(format!("http://{}", door.address));
            arranged._door = Some(door);
        }
        Some(
            Break::DataFlow
            | Break::Renewal
            | Break::BackendConfiguration
            | Break::BackendStart
            | Break::BackendRecovery
            | Break::RedisRecovery
            | Break::PostgresRecovery
            | Break::NginxRecovery
            | Break::Rollback
            | Break::GatewayRollback,
        )
        | None => {}
    }
    Ok(arranged)
}

/// Pins that the backend's keys are not.
fn other_pins(folder: &Path) -> anyhow::Result<()> {
    let file = folder.join("gateway.toml");
    let text = std::fs::read_to_string(&file)?;
    let (before, rest) = text.split_once("pins = [").context("it has pins")?;
    let (_pins, after) = rest.split_once(']').context("they end")?;
    let pin = no_pin();
    Ok(std::fs::write(
        file,
        format!("{before}pins = [\"{pin}\"]{after}"),
    )?)
}

/// The pin of a key that nobody has.
fn no_pin() -> String {
    format!("sha256/{}=", "A".repeat(43))
}
