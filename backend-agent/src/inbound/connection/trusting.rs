//! The authorities of the server on their way to a gateway.

use tracing::{debug, warn};
use viworks_common::code::CloseCode;
use viworks_common::wire::message::{BackendMessage, TrustReport, TrustUpdate};

use super::live::Live;
use super::refusal;

impl Live {
    /// Gives the authorities of this moment.
    pub(super) fn give_authorities(&mut self) {
        if let Some(bundle) = self.giving.bundle() {
            self.line
                .send(BackendMessage::TrustUpdate(TrustUpdate { bundle }));
        }
    }

    /// Notes that an agent of an earlier version, which another machine or hand has put there, does not have what the
    /// one before was given.
    pub(super) async fn settle_bundle(&mut self) {
        if !self.announced.takes_authorities {
            self.note_bundle(None).await;
        }
    }

    /// What became of them there.
    pub(super) async fn on_trust_report(&mut self, report: &TrustReport) {
        if !self.giving.reported() {
            let reason = "authorities are reported that were not given";
            return self.line.refuse(refusal(CloseCode::BadEnvelope, reason));
        }
        self.note_bundle(Some(report.digest.as_str())).await;
        let (gateway, agent_id) = (&self.line.peer.name, self.holder.agent_id);
        let Some(refused) = &report.refused else {
            return debug!(%gateway, %agent_id, digest = report.digest, "the gateway has the authorities");
        };
        let (manager, now) = (&self.line.inbound.manager, self.line.now());
        if let Some(left_out) = manager.may_log(agent_id, now) {
            warn!(%gateway, %agent_id, refused, left_out, "the gateway does not take the authorities over");
        }
    }

    /// Stores which bundle the gateway has, where that is news: most sessions begin with what is stored already.
    async fn note_bundle(&mut self, digest: Option<&str>) {
        if self.has_bundle.as_deref() == digest {
            return;
        }
        let digest = digest.map(str::to_owned);
        let (store, tenant) = (&self.line.inbound.store, &self.line.peer.identity.tenant);
        let (agent_id, epoch) = (self.holder.agent_id, self.holder.epoch);
        let now = self.line_now();
        let noted = store.report_bundle(tenant, agent_id, epoch, digest.clone(), now);
        match noted.await {
            Ok(()) => self.has_bundle = digest,
            Err(error) => self.line.fail(&error),
        }
    }
}
