//! Decides about a HELLO: seen before, too late, whose identity, and who of two holders keeps it.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::{debug, error, info};
use viworks_common::claims::{Newcomer, Verdict};
use viworks_common::code::{CloseCode, KEPT_ANOTHER};
use viworks_common::id::SessionId;
use viworks_common::key::Secret;
use viworks_common::limits::CHALLENGE_AGE_MAX;
use viworks_common::wire::message::{CERTIFICATE_RENEWAL, Credits, Hello, Refuse, Welcome};

use super::Inbound;
use super::replay::Remembered;
use crate::agent::openings::Presented;
use crate::agent::registry::Peer;
use crate::agent::shelf::Order;
use crate::data::{
    Actor, AdmitOutcome, AdmitRequest, Admitted, AuditOutcome, ForkEnd, NewAuditRecord, StoreError,
};

/// How long a gateway should wait when the backend cannot decide.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(5);

/// A verified HELLO with what is known about its connection.
pub(super) struct Arrival<'a> {
    pub(super) inbound: &'a Inbound,
    pub(super) peer: &'a Peer,
    pub(super) address: SocketAddr,
    pub(super) session_id: SessionId,
    pub(super) hello: &'a Hello,
    pub(super) client_nonce: [u8; 32],
    pub(super) key_generation: u8,
    pub(super) challenge_age: Duration,
}

/// What HELLO is answered with.
pub(super) enum Decision {
    /// The session's terms.
    Welcome(Box<Welcome>, Box<Admitted>),
    /// An authenticated refusal.
    Refuse(Refuse),
}

impl Arrival<'_> {
    pub(super) async fn decide(&self) -> Decision {
        // First of all: what is not even looked at takes no place among the HELLOs that are remembered.
        if let Err(refuse) = self.is_paced() {
            return Decision::Refuse(refuse);
        }
        if let Err(refuse) = self.is_fresh().await {
            return Decision::Refuse(refuse);
        }
        let request = self.request();
        let tenant = &self.peer.identity.tenant;
        let now = self.inbound.clock.line();
        let outcome = self.inbound.store.admit(tenant, request.clone(), now).await;
        if let Ok(AdmitOutcome::Fork) = outcome {
            let (manager, now) = (&self.inbound.manager, self.inbound.clock.now());
            manager.left_behind(request.agent_id, request.epoch, now);
            if self.is_put_out(&request).await {
                return Decision::Refuse(self.paced(refuse(CloseCode::IdentityFork, KEPT_ANOTHER)));
            }
        }
        let admitted = match outcome {
            Ok(AdmitOutcome::Accepted(admitted)) => admitted,
            // Whose agent key was superseded may be a second holder as well.
            Ok(refused @ (AdmitOutcome::Fork | AdmitOutcome::StaleKey)) => {
                return Decision::Refuse(self.paced(refusal(&refused)));
            }
            Ok(refused) => return Decision::Refuse(refusal(&refused)),
            Err(error) => return Decision::Refuse(unavailable(&error)),
        };
        let telemetry = &self.inbound.telemetry;
        telemetry.refused(request.agent_id, &self.peer.name, &admitted.refused);
        if admitted.rolled_back {
            // A gateway can claim any counter, so this is about that gateway: an alarm for the whole backend would be
            // one that any of them can ring. The audit trail has what was claimed and what became of it.
            info!(gateway = %self.peer.name, agent_id = %request.agent_id, epoch = admitted.presented, "a gateway claims to be ahead of the database; its counters were raised");
        }
        if let Err(refuse) = self.settle_take_over(&request, &admitted).await {
            return Decision::Refuse(refuse);
        }
        Decision::Welcome(Box::new(self.welcome(&admitted)), admitted)
    }

    /// Whether it is decided already that this second holder stays out: then nobody is to decide. Where the store does
    /// not say, it is told as one about whom somebody has to.
    async fn is_put_out(&self, request: &AdmitRequest) -> bool {
        let (store, tenant) = (&self.inbound.store, &self.peer.identity.tenant);
        let forks = store.list_forks(tenant, request.agent_id).await;
        let mut own = forks.unwrap_or_default().into_iter();
        let own = own.find(|fork| fork.refused.agent_run_id == request.agent_run_id);
        let decided = own.and_then(|fork| fork.resolved);
        decided.is_some_and(|(_at, end)| end != ForkEnd::Kept)
    }

    async fn is_fresh(&self) -> Result<(), Refuse> {
        if self.challenge_age > CHALLENGE_AGE_MAX {
            return Err(refuse(CloseCode::HelloTimeout, "the challenge is too old"));
        }
        let agent_id = self.peer.identity.agent_id;
        let now = self.inbound.clock.now();
        match self
            .inbound
            .replay
            .remember(agent_id, self.client_nonce, now)
            .await
        {
            Remembered::Fresh => Ok(()),
            Remembered::Replayed => {
                self.replayed().await;
                Err(refuse(CloseCode::Replay, "this HELLO was used before"))
            }
            Remembered::AgentFull | Remembered::Full => Err(refuse(
                CloseCode::RateLimited,
                "too many sessions were opened in a short time",
            )),
        }
    }

    /// Each opening leaves rows behind: whoever opens sessions without end waits.
    fn is_paced(&self) -> Result<(), Refuse> {
        let now = self.inbound.clock.now();
        let agent_id = self.peer.identity.agent_id;
        let presented = Presented {
            token_valid: self.token_valid(),
            epoch: self.hello.epoch,
            run: self.hello.agent_run_id,
        };
        let Err(wait) = self.inbound.manager.may_open(agent_id, &presented, now) else {
            return Ok(());
        };
        Err(later(wait, "too many sessions were opened in a short time"))
    }

    async fn replayed(&self) {
        let action = "gateway.hello_replayed";
        security_event(self.inbound, self.peer, self.address, action).await;
    }

    /// Of two processes with one identity, the one that is alive keeps it.
    async fn settle_take_over(
        &self,
        request: &AdmitRequest,
        admitted: &Admitted,
    ) -> Result<(), Refuse> {
        let agent_id = request.agent_id;
        let manager = &self.inbound.manager;
        let confirmed = admitted.live_session.map(|live| live.same_agent_run);
        let Some(live) = admitted.live_session else {
            return Ok(());
        };
        if manager.on_newcomer(confirmed) == Newcomer::Welcome {
            return Ok(());
        }
        let (prober, tenant) = (&self.inbound.prober, &self.peer.identity.tenant);
        let probed = prober.probe(tenant, agent_id, live, self.session_id).await;
        let (store, now) = (&self.inbound.store, self.inbound.clock.line());
        let verdict = store.settle_probed(tenant, request, live.epoch, probed, now);
        let verdict = verdict.await;
        match verdict.map_err(|error| unavailable(&error))? {
            Verdict::TakeOver => {
                info!(gateway = %self.peer.name, %agent_id, address = %self.address, "taking over from a session that does not answer");
                Ok(())
            }
            Verdict::Fork => {
                manager.forked(agent_id, request.agent_run_id, self.inbound.clock.now());
                let _ordered = manager.order(agent_id, Order::Drain(Duration::ZERO));
                Err(self.paced(refuse(
                    CloseCode::IdentityFork,
                    "another machine with this identity is connected and alive",
                )))
            }
            Verdict::Favoured(wait) => Err(favours_another(wait)),
            Verdict::Exhausted(wait) => Err(later(
                wait,
                "this identity changed hands too often in a minute",
            )),
            Verdict::Undecided(wait) => {
                info!(gateway = %self.peer.name, %agent_id, address = %self.address, "whether the live session of this identity answers cannot be found out at the moment; the newcomer waits");
                Err(later(
                    wait,
                    "another process with this identity is connected, and whether it answers cannot be found out at the moment",
                ))
            }
        }
    }

    /// A second holder is told when to come back: whichever an operator keeps does not wait long.
    fn paced(&self, refuse: Refuse) -> Refuse {
        let (manager, now) = (&self.inbound.manager, self.inbound.clock.now());
        let wait = manager.ask_again(now);
        Refuse {
            retry_after_ms: Some(millis(wait)),
            ..refuse
        }
    }

    fn token_valid(&self) -> bool {
        let (identity, epoch) = (&self.peer.identity, self.hello.epoch);
        let master = &self.inbound.master;
        Secret::from_hex(&self.hello.token)
            .is_some_and(|token| master.knows_token(identity, epoch, &token))
    }

    fn request(&self) -> AdmitRequest {
        let hello = self.hello;
        AdmitRequest {
            agent_id: self.peer.identity.agent_id,
            session_id: self.session_id,
            install_id: hello.install_id,
            boot_id: hello.boot_id,
            agent_run_id: hello.agent_run_id,
            epoch: hello.epoch,
            token_valid: self.token_valid(),
            key_generation: u32::from(self.key_generation),
            highest_order: hello.highest_order,
            low_water: hello.low_water,
            confirmed_at_challenge: self.peer.confirmed,
            unreported: hello.unreported.clone(),
            telemetry: hello.telemetry.clone(),
            catalogue_digest: hello.catalogue_digest.clone(),
            labels: hello.labels.clone(),
            agent_version: hello.agent_version.clone(),
            pin_set_version: hello.pin_set_version,
            peer_address: self.address.to_string(),
            fingerprint: self.peer.fingerprint,
        }
    }

    fn welcome(&self, admitted: &Admitted) -> Welcome {
        let inbound = self.inbound;
        let terms = &inbound.terms;
        let token = inbound.master.token(&self.peer.identity, admitted.issued);
        Welcome {
            epoch: admitted.issued,
            token: token.expose_hex(),
            heartbeat_interval_ms: millis(terms.heartbeat_interval),
            silence_ms: millis(terms.silence),
            credits: Credits {
                commands: terms.command_credit,
                telemetry_bytes: terms.telemetry_credit_bytes,
                output_bytes: terms.output_window_bytes,
            },
            low_water: admitted.low_water,
            committed: admitted.committed.clone(),
            catalogue_known: admitted.catalogue_known,
            pins: inbound.pins.newer_than(self.hello.pin_set_version),
            server_time: inbound.clock.wall(),
            reconnect_slot_ms: millis(inbound.manager.reconnect_slot()),
            renews_certificates: self
                .hello
                .capabilities
                .iter()
                .any(|known| known == CERTIFICATE_RENEWAL),
        }
    }
}

/// A span on the wire.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn refuse(code: CloseCode, reason: &str) -> Refuse {
    Refuse {
        code,
        reason: reason.to_owned(),
        retry_after_ms: None,
    }
}

fn favours_another(wait: Duration) -> Refuse {
    later(
        wait,
        "another machine with this identity is about to reconnect",
    )
}

/// Refused for now.
fn later(wait: Duration, reason: &str) -> Refuse {
    Refuse {
        retry_after_ms: Some(millis(wait)),
        ..refuse(CloseCode::RateLimited, reason)
    }
}

/// The store has recorded why; here it only gets its words.
fn refusal(outcome: &AdmitOutcome) -> Refuse {
    match outcome {
        AdmitOutcome::Late => refuse(
            CloseCode::Superseded,
            "a newer session of this gateway exists",
        ),
        AdmitOutcome::Fork => refuse(
            CloseCode::IdentityFork,
            "this gateway's state was lost or restored, or another machine holds a copy of its identity: the backend has seen a later session",
        ),
        // As little as possible: whoever guesses learns nothing.
        AdmitOutcome::BadToken => refuse(CloseCode::BadEnvelope, "HELLO was not accepted"),
        AdmitOutcome::Revoked => refuse(CloseCode::Revoked, "this gateway was revoked"),
        AdmitOutcome::StaleKey => refuse(
            CloseCode::CertUntrusted,
            "this agent key was superseded by a later one, which was in the state folder or in an identity file that was issued later: put that back, or give this machine a new identity",
        ),
        AdmitOutcome::Favoured(wait) => favours_another(*wait),
        AdmitOutcome::Unknown => refuse(CloseCode::CertUntrusted, "there is no such gateway"),
        AdmitOutcome::Accepted(_) => refuse(CloseCode::Internal, "accepted"),
    }
}

fn unavailable(error: &StoreError) -> Refuse {
    if error.is_outage() {
        debug!(%error, "failed to decide about a HELLO");
    } else {
        error!(%error, "failed to decide about a HELLO");
    }
    Refuse {
        retry_after_ms: Some(millis(UNAVAILABLE_RETRY)),
        ..refuse(
            CloseCode::Internal,
            "the backend cannot decide at the moment",
        )
    }
}

/// Audits something that no intent of the store records by itself.
pub(super) async fn security_event(
    inbound: &Inbound,
    peer: &Peer,
    address: SocketAddr,
    action: &'static str,
) {
    let agent_id = peer.identity.agent_id;
    // It costs its sender next to nothing, and is not to cost the store more: further ones are counted.
    let (now, manager) = (inbound.clock.now(), &inbound.manager);
    let Some(left_out) = manager.records(agent_id, action, now) else {
        return inbound.metrics.refused("security_events");
    };
    let record = NewAuditRecord {
        actor: Actor::gateway(agent_id),
        action: action.to_owned(),
        object: Actor::gateway(agent_id).to_string(),
        outcome: AuditOutcome::Refused,
        detail: serde_json::json!({ "address": address.to_string(), "left_out": left_out }),
    };
    let now = inbound.clock.line();
    let (tenant, store) = (&peer.identity.tenant, &inbound.store);
    match store.note_gateway(tenant, agent_id, record, now).await {
        Ok(true) => {}
        Ok(false) => inbound.metrics.refused("security_events"),
        Err(error) => {
            error!(gateway = %peer.name, %agent_id, %error, action, "failed to audit a security event");
        }
    }
}
