//! A gateway's agent key: a later one that is wanted goes out once, and what the gateway says of it is noted.

use tracing::{debug, info};
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::wire::message::{BackendMessage, KeyReport};

use super::super::Inbound;
use super::live::Live;
use super::refusal;
use crate::data::{Actor, GatewayRef, KeyRotation, KeyStanding, StoreResult};

/// The agent key as far as one session goes.
#[derive(Debug, Default)]
pub(super) struct Rekeying {
    /// Which generation the session was opened with.
    in_use: u32,
    /// The latest one that was sent in it.
    sent: Option<u32>,
}

impl Live {
    /// Notes what the gateway's agent can, where that is news, and sends the key that is wanted; `again` when that
    /// may be another one by now.
    pub(super) async fn settle_key(&mut self, keys: KeyStanding, again: bool) {
        self.rekeying.in_use = keys.generation;
        let takes = self.announced.takes_keys;
        let is_of_the_other = self.line.session.hello_was_of_the_other_master();
        // Its key is of one master key and its token of the other one: it needs both.
        let master = (!is_of_the_other).then(|| self.line.inbound.master.id());
        if keys.takes_one != Some(takes) || keys.master != master {
            let (store, tenant) = (&self.line.inbound.store, &self.line.peer.identity.tenant);
            let (agent_id, epoch) = (self.holder.agent_id, self.holder.epoch);
            let noted = store.note_keys(tenant, agent_id, epoch, takes, master);
            let noted = noted.await;
            if let Err(error) = noted {
                return self.line.fail(&error);
            }
        }
        let mut wanted = keys.pending();
        if again {
            let which = GatewayRef::Id(self.holder.agent_id);
            let (store, tenant) = (&self.line.inbound.store, &self.line.peer.identity.tenant);
            match store.gateway(tenant, &which).await {
                Ok(found) => wanted = found.and_then(|found| found.keys().pending()),
                Err(error) => return self.line.fail(&error),
            }
        }
        if wanted.is_none() && is_of_the_other && takes {
            let (inbound, tenant) = (&self.line.inbound, &self.line.peer.identity.tenant);
            match next_of_the_site(inbound, tenant, self.holder.agent_id).await {
                Ok(next) => wanted = next,
                Err(error) => return self.line.fail(&error),
            }
        }
        if let Some(wanted) = wanted {
            self.send_key(wanted);
        }
    }

    /// Sends the key of a generation, once: the gateway makes its next HELLO with it.
    pub(super) fn send_key(&mut self, wanted: u32) {
        let Rekeying { in_use, sent } = self.rekeying;
        let is_later = wanted > in_use && sent.is_none_or(|sent| wanted > sent);
        if !self.announced.takes_keys || !is_later {
            return;
        }
        // There is no later one than fits into its byte.
        let generation = u8::try_from(wanted).ok();
        let update = generation.and_then(|generation| self.line.session.key_update(generation));
        let Some(update) = update else {
            return;
        };
        if self.line.send(BackendMessage::KeyUpdate(update)) {
            self.rekeying.sent = Some(wanted);
            let agent_id = self.holder.agent_id;
            debug!(gateway = %self.line.peer.name, %agent_id, generation = wanted, "a later agent key is on its way");
        }
    }

    /// A key is durable on the gateway. Nothing depends on that: the first HELLO with it retires those before.
    pub(super) fn on_key_report(&mut self, report: &KeyReport) {
        let Some(sent) = self.rekeying.sent else {
            let reason = "an agent key is reported that was not sent";
            return self.line.refuse(refusal(CloseCode::BadEnvelope, reason));
        };
        let agent_id = self.holder.agent_id;
        let (generation, is_sent) = (report.generation, u32::from(report.generation) == sent);
        if is_sent {
            info!(gateway = %self.line.peer.name, %agent_id, generation, "the gateway keeps a later agent key");
        } else {
            debug!(gateway = %self.line.peer.name, %agent_id, generation, sent, "the gateway keeps another agent key than the one that was sent");
        }
    }
}

/// The generation by which a gateway moves to the master key that makes others; none where the site belongs to another
/// one by now, and this backend is to be started anew.
async fn next_of_the_site(
    inbound: &Inbound,
    tenant: &Tenant,
    agent_id: AgentId,
) -> StoreResult<Option<u32>> {
    if inbound.store.site_key_check().await? != Some(inbound.master.check()) {
        return Ok(None);
    }
    let (actor, now) = (Actor::system(), inbound.clock.line());
    let rotated = inbound.store.rotate_key(tenant, agent_id, &actor, now);
    Ok(match rotated.await? {
        Some(KeyRotation::Wanted(generation)) => Some(generation),
        Some(KeyRotation::Exhausted | KeyRotation::Revoked) | None => None,
    })
}
