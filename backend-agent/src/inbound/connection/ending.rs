//! Records the end of a session, again and again while the store cannot.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, GatewayName, Tenant};

use super::super::Inbound;
use super::line::Line;

/// How soon it is recorded again, twice as long each time, and how often.
const AGAIN: Duration = Duration::from_secs(1);
const TIMES_MAX: u32 = 8;

/// A session that is over, or may be.
pub(super) struct Ending {
    inbound: Arc<Inbound>,
    tenant: Tenant,
    gateway: GatewayName,
    agent_id: AgentId,
    epoch: u64,
}

impl Ending {
    pub(super) fn of(line: &Line, epoch: u64) -> Self {
        let peer = &line.peer;
        Self {
            inbound: Arc::clone(&line.inbound),
            tenant: peer.identity.tenant.clone(),
            gateway: peer.name.clone(),
            agent_id: peer.identity.agent_id,
            epoch,
        }
    }

    /// Sessions end just when the database is away; a gateway that does not come back would look connected. What cannot
    /// be recorded for minutes is found by a job.
    pub(super) async fn record(self, code: Option<CloseCode>) {
        let Self {
            inbound,
            tenant,
            gateway,
            agent_id,
            epoch,
        } = self;
        let code = code.unwrap_or(CloseCode::Draining);
        let now = inbound.clock.line();
        let (mut rest, mut left) = (AGAIN, TIMES_MAX);
        loop {
            let ended = inbound
                .store
                .end_session(&tenant, agent_id, epoch, code, now);
            let Err(error) = ended.await else { return };
            left -= 1;
            if left == 0 {
                warn!(%gateway, %agent_id, %error, "failed to record the end of a session; a job does it later");
                return;
            }
            tokio::select! {
                () = inbound.lifecycle.stopping() => return,
                () = tokio::time::sleep(rest) => rest = rest.saturating_mul(2),
            }
        }
    }
}
