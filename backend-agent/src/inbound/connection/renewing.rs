//! What a gateway wants for itself: another certificate.

use std::sync::Arc;

use tokio::sync::oneshot;
use viworks_common::code::CloseCode;
use viworks_common::wire::message::{BackendMessage, CertIssued, CertRefused, CertRequest};

use super::live::Live;
use super::refusal;
use crate::data::StoreResult;
use crate::pki::renew::Asked;

/// When to ask again while a request is worked on, in milliseconds.
const RETRY_BUSY_MS: u64 = 60_000;

/// A request that is worked on, while the session goes on.
pub(super) struct Issuing(oneshot::Receiver<StoreResult<CertIssued>>);

impl Issuing {
    /// What it is answered; none when it cannot be.
    pub(super) async fn next(issuing: &mut Option<Self>) -> Option<StoreResult<CertIssued>> {
        match issuing {
            Some(Self(answer)) => answer.await.ok(),
            None => std::future::pending().await,
        }
    }
}

impl Live {
    /// Has a certificate issued, one at a time.
    pub(super) fn on_certificate_wanted(&mut self, wanted: CertRequest) {
        if !self.announced.renews {
            let reason = "a certificate is asked for by a gateway that has not announced it";
            return self.line.refuse(refusal(CloseCode::BadEnvelope, reason));
        }
        if self.issuing.is_some() {
            let refused = CertRefused {
                code: CertRefused::TOO_SOON.to_owned(),
                detail: "an earlier request is being worked on".to_owned(),
                retry_after_ms: RETRY_BUSY_MS,
            };
            self.line.send(BackendMessage::CertIssued(CertIssued {
                certificate: None,
                refused: Some(refused),
            }));
            return;
        }
        let (inbound, peer) = (&self.line.inbound, &self.line.peer);
        let asked = Asked {
            identity: peer.identity.clone(),
            gateway: peer.name.clone(),
            epoch: self.holder.epoch,
            csr: wanted.csr,
        };
        let (answer, answered) = oneshot::channel();
        self.issuing = Some(Issuing(answered));
        let renewals = Arc::clone(&inbound.renewals);
        let task = async move {
            // Nobody waits any more where the session has ended: the gateway asks again.
            drop(answer.send(renewals.answer(&asked).await));
        };
        drop(inbound.lifecycle.spawn("certificate", task));
    }

    /// Answers a request.
    pub(super) fn on_issued(&mut self, issued: Option<StoreResult<CertIssued>>) {
        self.issuing = None;
        match issued {
            Some(Ok(issued)) => {
                self.line.send(BackendMessage::CertIssued(issued));
            }
            Some(Err(error)) => self.line.fail(&error),
            // The process ends; the gateway asks again.
            None => {}
        }
    }
}
