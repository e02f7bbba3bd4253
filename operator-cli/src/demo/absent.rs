//! Gateways that are not there: which are worth waiting for, and what mends those that are not.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use viworks_api::{Gateway, GatewayStatus};
use viworks_runtime::exit::ExitCode;

use super::layout::Layout;
use super::processes::{Running, failure_of};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;
use crate::program::quoted;

const CONNECT_WITHIN: Duration = Duration::from_secs(30);
/// How often the backend is asked who is there.
const POLL: Duration = Duration::from_millis(25);

/// How it stands with the gateways that a demo waits for.
#[derive(Debug, PartialEq, Eq)]
enum Standing<'n> {
    /// All are there, with their catalogues.
    Complete,
    /// These are missing and may come.
    Missing(Vec<&'n str>),
    /// This one never comes: it was revoked.
    Revoked(&'n str),
}

/// What the backend knows of `names`, put together.
fn standing<'n>(names: &'n [String], known: &[Gateway]) -> Standing<'n> {
    let find = |name: &str| known.iter().find(|gateway| gateway.name.as_str() == name);
    let is_there = |gateway: &Gateway| {
        gateway.status == GatewayStatus::Online && gateway.catalogue_digest.is_some()
    };
    let missing: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !find(name).is_some_and(is_there))
        .collect();
    let revoked = missing
        .iter()
        .find(|name| find(name).is_some_and(|gateway| gateway.status == GatewayStatus::Revoked));
    match revoked {
        Some(name) => Standing::Revoked(name),
        None if missing.is_empty() => Standing::Complete,
        None => Standing::Missing(missing),
    }
}

/// The gateways that are worth a start: one that was revoked never gets a session again.
pub(super) async fn without_revoked(
    client: &Client,
    layout: &Layout,
    mut names: Vec<String>,
) -> Result<Vec<String>, Failure> {
    let known = client.gateways().await?.items;
    names.retain(|name| {
        let one = std::slice::from_ref(name);
        let stays = !matches!(standing(one, &known), Standing::Revoked(_));
        if !stays {
            output::note(&format!(
                "  {name} was revoked and is left out; {}",
                new_identity(layout, name)
            ));
        }
        stays
    });
    if names.is_empty() {
        return Err(
            Failure::new(ExitCode::Config, "every gateway of this demo was revoked")
                .with(format!("fix: start over: {} --reset", layout.up())),
        );
    }
    Ok(names)
}

/// Waits until all are there. Gives up when one never comes, when a process ends, and after a while.
pub(super) async fn wait_until_online(
    client: &Client,
    layout: &Layout,
    names: &[String],
    running: &mut [Running],
) -> Result<(), Failure> {
    let deadline = Instant::now() + CONNECT_WITHIN;
    loop {
        let known = client.gateways().await?.items;
        let missing = match standing(names, &known) {
            Standing::Complete => return Ok(()),
            // Nothing that is waited for mends this.
            Standing::Revoked(name) => {
                return Err(
                    Failure::new(ExitCode::Config, format!("{name} was revoked"))
                        .with(format!("fix: {}", new_identity(layout, name))),
                );
            }
            Standing::Missing(missing) => missing,
        };
        if let Some(failure) = failure_of(running)? {
            return Err(failure);
        }
        if Instant::now() >= deadline {
            return Err(too_late(layout, &missing));
        }
        sleep(POLL).await;
    }
}

fn too_late(layout: &Layout, missing: &[&str]) -> Failure {
    let logs: Vec<String> = missing
        .iter()
        .map(|name| quoted(&layout.log(name).to_string_lossy()))
        .collect();
    Failure::new(
        ExitCode::NoAnswer,
        format!(
            "not connected in {} s: {}",
            CONNECT_WITHIN.as_secs(),
            missing.join(" ")
        ),
    )
    .with(format!("why, by its own words: {}", logs.join(" ")))
}

/// How a revoked gateway of the demo gets an identity again.
fn new_identity(layout: &Layout, name: &str) -> String {
    format!(
        "for a new identity under its name: mv {folder} {old}, then {up}",
        folder = quoted(&layout.gateway(name).to_string_lossy()),
        old = quoted(&layout.gateway(&format!("{name}-revoked")).to_string_lossy()),
        up = layout.up()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(name: &str, status: &str, has_catalogue: bool) -> Gateway {
        let id = "00000000-0000-4000-8000-000000000001";
        let digest = has_catalogue.then(|| "0".repeat(64));
        serde_json::from_value(serde_json::json!({
            "apiVersion": "viworks/v1", "kind": "Gateway", "id": id, "name": name, "status": status,
            "created_at": "2026-01-01T00:00:00Z", "since": "2026-01-01T00:00:00Z", "labels": [], "catalogue_digest": digest, "queued_commands": 0, "forks": 0, "orphans": 0,
        }))
        .unwrap()
    }

    #[test]
    fn a_gateway_is_there_once_it_is_online_and_its_catalogue_is_known() {
        let names = ["a".to_owned(), "b".to_owned()];
        let known = [
            gateway("a", "online", true),
            gateway("b", "online", false),
            gateway("c", "revoked", true),
        ];
        assert_eq!(standing(&names, &known), Standing::Missing(vec!["b"]));
        assert_eq!(standing(&names[..1], &known), Standing::Complete);
        assert_eq!(standing(&names, &[]), Standing::Missing(vec!["a", "b"]));
    }

    #[test]
    fn nobody_waits_for_a_gateway_that_was_revoked() {
        let names = ["a".to_owned(), "b".to_owned()];
        let known = [gateway("a", "offline", true), gateway("b", "revoked", true)];
        assert_eq!(standing(&names, &known), Standing::Revoked("b"));
    }
}
