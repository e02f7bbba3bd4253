//! What a session settles of what its gateway is trusted by, and trusts: pins, certificates and authorities.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};
use viworks_common::pin::PinSet;
use viworks_common::session::parting::Cause;
use viworks_common::time::Timestamp;
use viworks_common::wire::message::{AgentMessage, CertRequest, PinReport, TrustReport};
use viworks_runtime::blocking;

use super::super::ending::Left;
use super::super::renewing::Done;
use super::Connection;
use crate::trust;

/// How long the disk may take for the authorities.
const WRITE_TIME: Duration = Duration::from_secs(10);

impl Connection<'_> {
    pub(super) async fn settle_pins(&mut self, offered: Option<PinSet>) {
        let pins = &self.parts.pins;
        match pins.proved(self.dialled_with, &self.pin).await {
            Ok(true) => info!(
                version = self.dialled_with,
                "the new pin set has proved itself"
            ),
            Ok(false) => {}
            Err(error) => warn!(%error, "the pin set that was replaced is kept"),
        }
        self.take_pins(offered).await;
    }

    /// Takes over a set that may follow the one in force, and reports which one is: durable by then. One that leaves
    /// out the key of this very session asks for another session, to be taken over in; and one that lets another key
    /// go, to be dialled with: until then that key is accepted.
    pub(super) async fn take_pins(&mut self, offered: Option<PinSet>) {
        let pins = &self.parts.pins;
        let taken = pins.take(offered, &self.pin).await;
        let cause = if taken.leaves_out_the_live_key {
            Some(Cause::LiveKey)
        } else if taken.lets_a_key_go && self.dialled_with < taken.version {
            Some(Cause::OtherKey)
        } else {
            None
        };
        let (planned, now) = (self.parting.take(), self.parts.clock.now());
        self.parting = cause.map(|cause| pins.parting(planned, cause, now, self.slot));
        let version = taken.version;
        self.control(AgentMessage::PinReport(PinReport { version }));
    }

    /// Takes over the server's authorities for the next connection, and reports which are durable by then. A folder
    /// that does not answer is reported as nothing: the backend gives them again in the next session.
    pub(super) async fn take_authorities(&mut self, bundle: String) {
        let folder = self.parts.renewal.folder().to_owned();
        let configured = Arc::clone(&self.parts.credentials.get().configured_roots);
        let take = move || trust::take(&folder, &configured, bundle.as_bytes());
        let taken = match blocking::call("authorities", WRITE_TIME, take).await {
            Ok(taken) => taken,
            Err(error) => {
                return warn!(%error, "the authorities that the backend gave are not kept");
            }
        };
        let refused = match taken.outcome {
            Ok(is_new) => {
                if is_new {
                    info!(
                        "the backend gave other authorities of its certificate; the next connection accepts them"
                    );
                }
                None
            }
            Err(error) => {
                warn!(%error, "the authorities that the backend gave are not taken over");
                Some(error.word().to_owned())
            }
        };
        let digest = taken.digest;
        self.control(AgentMessage::TrustReport(TrustReport { digest, refused }));
    }

    /// What the confirmation says of the certificate that it was shown.
    pub(super) async fn settle_certificate(&self, server_time: Timestamp) {
        let (parts, papers) = (self.parts, self.papers);
        let refused = parts.credentials.taken(&papers.fingerprint);
        let (origin, life) = (papers.origin, papers.life());
        let renewal = &parts.renewal;
        let settled = renewal.confirmed(origin, life, server_time, &refused);
        if settled.await {
            parts.credentials.refresh().await;
        }
    }

    /// Asks for another certificate where it is time, and leaves for a session with the one that was issued when no
    /// command runs; so it does for a later agent key, and for the key that the server has now. While the agent stops
    /// it does none of that.
    pub(super) fn renew(&mut self) {
        let now = self.parts.clock.now();
        let stays = self.left.is_some() || self.draining_until.is_some();
        if stays || self.confirmed_at.is_none() {
            return;
        }
        let quiet = self.parts.engine.active() == 0 && self.parts.executor.running() == 0;
        if self.renewing.wants_trial(quiet, now) {
            return self.leave(Left::Renewed, "the certificate was renewed");
        }
        if self.rekeying.wants_session(quiet, now) {
            return self.leave(Left::Rekeyed, "a later agent key is there");
        }
        if let Some(parting) = self.parting
            && parting.is_due(quiet, now)
        {
            self.parts.pins.parted(parting.cause, now);
            return self.leave(Left::Repinned, "a key of the server was retired");
        }
        // A later one that somebody put there needs none; the next session shows it.
        let shown = self.parts.credentials.get();
        if shown.shown.life() <= self.papers.life() {
            self.renewing.look(now);
        }
    }

    pub(super) fn renewal_step(&mut self, done: Done) {
        match done {
            Done::Request(Ok(csr)) => {
                self.renewing.sent();
                self.control(AgentMessage::CertRequest(CertRequest { csr }));
            }
            // Told by the step; it is tried again after a pause.
            Done::Request(Err(_)) | Done::Answered(None) => {}
            Done::Answered(Some(not_after)) => {
                self.renewing.kept(not_after, self.parts.clock.now());
            }
        }
    }
}
