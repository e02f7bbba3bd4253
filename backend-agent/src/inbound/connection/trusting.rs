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

    /// What became of them there. It is told while the session lasts, and not stored: the next one begins with them
    /// again.
    pub(super) fn on_trust_report(&mut self, report: &TrustReport) {
        if !self.giving.reported(&report.digest) {
            let reason = "authorities are reported that were not given";
            return self.line.refuse(refusal(CloseCode::BadEnvelope, reason));
        }
        let (gateway, agent_id) = (&self.line.peer.name, self.holder.agent_id);
        let Some(refused) = &report.refused else {
            return debug!(%gateway, %agent_id, digest = report.digest, "the gateway has the authorities");
        };
        let (manager, now) = (&self.line.inbound.manager, self.line.now());
        if let Some(left_out) = manager.may_log(agent_id, now) {
            warn!(%gateway, %agent_id, refused, left_out, "the gateway does not take the authorities over");
        }
    }
}
