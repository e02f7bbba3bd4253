//! `gateway`: revokes one.

use viworks_common::id::Tenant;
use viworks_runtime::exit::ExitCode;

use super::super::flags::GatewayCommand;
use super::super::views::{print, say, since_when};
use super::open::{actor, line, load, open};
use crate::data::StoreError;

pub(super) async fn execute(command: GatewayCommand) -> anyhow::Result<ExitCode> {
    let GatewayCommand::Revoke {
        config,
        gateway,
        reason,
    } = command;
    let tenant = Tenant::default_tenant();
    let store = open(&load(&config)?).await?;
    let revoked = async {
        let Some(found) = store.gateway(&tenant, &gateway).await? else {
            return Ok::<_, StoreError>(None);
        };
        let now = line(&*store).await?;
        let who = actor();
        let reason = reason.as_deref();
        let revoked = store.revoke_gateway(&tenant, found.agent_id, reason, &who, now);
        let revoked = revoked.await?;
        Ok(revoked.map(|revoked| (revoked.already, found, now)))
    }
    .await;
    store.close().await;
    match revoked? {
        Some((true, found, now)) => print(&format!(
            "{} was revoked already{}",
            found.name,
            since_when(found.revoked_at, now)
        ))?,
        Some((false, found, _now)) => print(&format!("revoked {}", found.name))?,
        None => {
            say("error: there is no such gateway");
            return Ok(ExitCode::NotFound);
        }
    }
    Ok(ExitCode::Ok)
}
