//! `viworks key`: the keys that gateways share with the backend.

use viworks_api::{Gateway, GatewayStatus};
use viworks_common::human;
use viworks_runtime::exit::ExitCode;

use crate::client::Client;
use crate::failure::Failure;
use crate::flags::Key;
use crate::output::Format;
use crate::views;

pub(super) async fn execute(
    client: &Client,
    verb: Key,
    format: Format,
) -> Result<ExitCode, Failure> {
    match verb {
        Key::Rotate {
            gateway,
            dry_run,
            all: _unless_one_is_named,
        } => {
            let wanted = wanted(client, gateway.as_deref()).await?;
            let gateways = if dry_run {
                wanted
            } else {
                rotate(client, &wanted).await?
            };
            views::key::rotated(&gateways, dry_run, format)?;
        }
        Key::Status => {
            let gateways = wanted(client, None).await?;
            views::key::status(&gateways, format)?;
        }
    }
    Ok(ExitCode::Ok)
}

/// The one that is named, or all that are not revoked.
async fn wanted(client: &Client, named: Option<&str>) -> Result<Vec<Gateway>, Failure> {
    if let Some(reference) = named {
        return Ok(vec![client.gateway(reference).await?]);
    }
    let mut gateways = client.gateways().await?.items;
    gateways.retain(|gateway| gateway.status != GatewayStatus::Revoked);
    Ok(gateways)
}

/// Asks for each; answers them as they stand then. One that cannot get any has no part in it unless it is the only one.
async fn rotate(client: &Client, wanted: &[Gateway]) -> Result<Vec<Gateway>, Failure> {
    let mut rotated = Vec::with_capacity(wanted.len());
    for gateway in wanted {
        if wanted.len() > 1 && views::key::is_last(gateway) {
            rotated.push(gateway.clone());
            continue;
        }
        let id = gateway.id.to_string();
        let answer = client.rotate_key(&id).await.map_err(|failure| {
            failure.with(format!(
                "{} of {} were dealt with; ask for all again: a key that was asked for and is not in use stays the next one",
                rotated.len(),
                human::counted(wanted.len(), "gateway", "gateways"),
            ))
        })?;
        rotated.push(answer.gateway);
    }
    Ok(rotated)
}
