//! `gateway`: revokes one.

use viworks_common::id::Tenant;
use viworks_runtime::exit::ExitCode;

use super::super::flags::GatewayCommand;
use super::super::views::{print, say};
use super::open::{actor, line, load, open};
use crate::data::StoreError;

pub(super) async fn execute(command: GatewayCommand) -> anyhow::Result<ExitCode> {
    let GatewayCommand::Revoke { config, gateway } = command;
    let tenant = Tenant::default_tenant();
    let store = open(&load(&config)?).await?;
    let revoked = async {
        let Some(found) = store.gateway(&tenant, &gateway).await? else {
            return Ok::<_, StoreError>(None);
        };
        store
            .revoke_gateway(&tenant, found.agent_id, &actor(), line(&*store).await?)
            .await
    }
    .await;
    store.close().await;
    match revoked? {
        Some(revoked) if revoked.already => print("it was revoked before")?,
        Some(_) => print("revoked")?,
        None => {
            say("error: there is no such gateway");
            return Ok(ExitCode::NotFound);
        }
    }
    Ok(ExitCode::Ok)
}
