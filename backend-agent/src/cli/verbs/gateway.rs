//! `gateway`: revokes one.

use viworks_api::revocation_told;
use viworks_common::command::CommandState;
use viworks_common::id::{GatewayName, Tenant};
use viworks_runtime::exit::ExitCode;

use super::super::flags::GatewayCommand;
use super::super::views::{print, say, since_when};
use super::open::{actor, line, load, open};
use crate::data::{Revoked, StoreError};

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
        Ok(revoked.map(|revoked| (revoked, found, now)))
    }
    .await;
    store.close().await;
    if matches!(revoked, Err(StoreError::Full(_))) {
        say(
            "nothing is revoked: the database cannot grow; until it has room, stopping every backend ends the \
             sessions that there are",
        );
    }
    match revoked? {
        Some((revoked, found, now)) if revoked.already => print(&format!(
            "{} was revoked already{}",
            found.name,
            since_when(found.revoked_at, now)
        ))?,
        Some((revoked, found, _now)) => print(&done(&found.name, &revoked))?,
        None => {
            say("error: there is no such gateway");
            return Ok(ExitCode::NotFound);
        }
    }
    Ok(ExitCode::Ok)
}

/// What was done, in the words of `viworks gateway revoke`.
fn done(name: &GatewayName, revoked: &Revoked) -> String {
    let ended_as = |how: CommandState| {
        let so = revoked.ended.iter().filter(|ended| ended.state == how);
        u64::try_from(so.count()).unwrap_or(u64::MAX)
    };
    revocation_told(
        name,
        revoked.live_session.is_some(),
        ended_as(CommandState::Cancelled),
        ended_as(CommandState::Indeterminate),
    )
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use viworks_common::id::{AgentId, CommandId, RunId, SessionId};

    use super::*;
    use crate::data::Settled;

    #[test]
    fn what_ended_with_a_gateway_is_told() {
        let name: GatewayName = "gw-1".parse().unwrap();
        let one = Uuid::from_u128(1);
        let ended = |state| Settled {
            moved: true,
            command_id: CommandId::from_uuid(one),
            agent_id: AgentId::from_uuid(one),
            run_id: RunId::from_uuid(one),
            state,
            run_finished: false,
            reason: None,
        };
        let quiet = Revoked {
            already: false,
            live_session: None,
            ended: Vec::new(),
        };
        assert_eq!(done(&name, &quiet), "gw-1 is revoked");
        let busy = Revoked {
            live_session: Some(SessionId::from_uuid(one)),
            ended: vec![
                ended(CommandState::Cancelled),
                ended(CommandState::Cancelled),
                ended(CommandState::Indeterminate),
            ],
            ..quiet
        };
        assert_eq!(
            done(&name, &busy),
            "gw-1 is revoked; its session ends within a second; 2 waiting commands were cancelled; \
             1 command that may have begun is indeterminate"
        );
    }
}
