//! What a gateway is answered at the door whose certificate has ended: a certificate, and never a session.
//!
//! Beside that, and beside a refusal of one that is good, it gets the authorities of the server's certificate: one that
//! was off while they were replaced comes for these alone.
//!
//! As with a ticket, the challenge shows by itself that it is one of ours, and the proof needs nothing but the master
//! key: nothing is read for somebody who does not have the gateway's key, and all that is written of that is a bounded
//! record of a gateway that there is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use viworks_common::admission::{NotTheGateway, Shown};
use viworks_common::enrolment::{
    EnrolmentChallenge, GivenAuthorities, LapsedAnswer, LapsedExchange, LapsedRenewal,
    LapsedRequest,
};
use viworks_common::id::{AgentId, GatewayName, Tenant, TicketId};
use viworks_common::key::{Identity, MasterKey, Secret};
use viworks_runtime::clock::Timeline;

use super::answer::{Answered, end_of, json};
use super::challenge::Challenges;
use super::office::{TicketError, TicketOffice};
use super::quota::Buckets;
use super::refusal::Refusal;
use super::sign::sign;
use crate::agent::authorities::Trust;
use crate::data::{
    AnsweredChallenge, GatewayRef, NewCertificate, RefusedReissue, Reissue, ReissueOutcome,
    ReissueRefusal, Store, StoreError, in_full,
};
use crate::pki::request::CertificateRequest;

/// Certificates that are made at a time: each reads the authority's key, signs and writes.
const REISSUES_MAX: usize = 16;
/// How long one more waits for its turn.
const TURN_TIME: Duration = Duration::from_secs(5);
/// How soon one may try again that had no turn, and one that came at a bad moment.
const RETRY_BUSY: Duration = Duration::from_secs(5);
const RETRY_SOON: Duration = Duration::from_secs(60);
/// Requests a minute that one gateway may make with its key.
const PER_GATEWAY: u32 = 6;
/// Requests a minute without a gateway's key that are recorded, altogether; others are counted.
const UNPROVED_RECORDED: u32 = 30;

/// What a request is about, by nothing but itself.
pub(super) enum Asked {
    /// It asked for a challenge.
    Challenged(Answered),
    /// The gateway itself asks.
    Proved(Box<Proved>),
}

/// A request that is not right, and who somebody says to be that has not proved it.
pub(super) struct NotRight {
    pub(super) refusal: Refusal,
    pub(super) claims: Option<AgentId>,
}

impl From<Refusal> for NotRight {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            claims: None,
        }
    }
}

/// A request whose proof is right.
pub(super) struct Proved {
    request: LapsedRenewal,
    body: Bytes,
    exchange: LapsedExchange,
    challenge: AnsweredChallenge,
    identity: Identity,
    shown: Shown,
}

impl Proved {
    /// The gateway that asks.
    pub(super) const fn agent_id(&self) -> AgentId {
        self.identity.agent_id
    }
}

/// Gives gateways another certificate whose own have ended.
pub(super) struct Reissues {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    office: TicketOffice,
    /// The authorities that gateways are given.
    trust: Arc<Trust>,
    challenges: Challenges,
    gateways: Buckets<AgentId>,
    /// One bucket for all that have proved nothing.
    recorded: Buckets<()>,
    turns: Semaphore,
}

/// Challenges know whom they are for by an id alone.
const fn named(agent_id: AgentId) -> TicketId {
    TicketId::from_uuid(*agent_id.as_uuid())
}

impl Reissues {
    pub(super) fn new(
        store: Arc<dyn Store>,
        tenant: Tenant,
        clock: Arc<Timeline>,
        office: TicketOffice,
        trust: Arc<Trust>,
    ) -> Self {
        Self {
            challenges: Challenges::of_gateways(office.master(), &tenant),
            gateways: Buckets::new(PER_GATEWAY),
            recorded: Buckets::new(UNPROVED_RECORDED),
            turns: Semaphore::new(REISSUES_MAX),
            store,
            tenant,
            clock,
            office,
            trust,
        }
    }

    /// Judges a request by itself.
    pub(super) fn ask(&self, proof: Option<&[u8]>, body: Bytes) -> Result<Asked, NotRight> {
        let request = serde_json::from_slice(&body).map_err(|error| {
            Refusal::bad_request(format!("the request cannot be read: {error}"))
        })?;
        match request {
            LapsedRequest::Challenge { agent_id } => {
                let now = self.clock.line();
                let challenge = EnrolmentChallenge {
                    challenge: self.challenges.give(named(agent_id), now),
                    time: self.clock.wall(),
                };
                Ok(Asked::Challenged(Answered {
                    body: json(&challenge),
                    proof: None,
                    outcome: "door_challenged",
                }))
            }
            LapsedRequest::Renew(request) => {
                let proof = proof.ok_or_else(|| {
                    Refusal::bad_request("a request has its proof in the header enrolment-proof")
                })?;
                let proved = self.prove(proof, body, request)?;
                Ok(Asked::Proved(Box::new(proved)))
            }
        }
    }

    fn prove(&self, proof: &[u8], body: Bytes, request: LapsedRenewal) -> Result<Proved, NotRight> {
        let (agent_id, now) = (request.agent_id, self.clock.line());
        let recognised = self
            .challenges
            .recognise(named(agent_id), &request.challenge, now);
        let challenge = recognised.ok_or_else(|| refused(ReissueRefusal::Challenge))?;
        let identity = Identity {
            tenant: self.tenant.clone(),
            agent_id,
        };
        let (master, key_generation) = (self.office.master(), u32::from(request.key_generation));
        let by = |master: &MasterKey| {
            let key = master.agent_key(&identity, key_generation);
            let exchange = LapsedExchange::new(&key, agent_id, &request.challenge);
            exchange.proves(&body, proof).then_some(exchange)
        };
        let Some(exchange) = by(master).or_else(|| by(&master.other()?)) else {
            let detail = "the request is not signed with the key that this gateway shares with the backend: the \
                          identity file is of another gateway or backend, or the backend's master key was replaced; \
                          enrol this machine anew (viworks ticket create)";
            return Err(NotRight {
                refusal: Refusal::new(StatusCode::FORBIDDEN, "bad_proof", detail),
                claims: Some(agent_id),
            });
        };
        let token = Secret::from_hex(&request.token);
        let shown = Shown {
            epoch: request.epoch,
            token_valid: token
                .is_some_and(|token| master.knows_token(&identity, request.epoch, &token)),
            key_generation,
        };
        Ok(Proved {
            request,
            body,
            exchange,
            challenge,
            identity,
            shown,
        })
    }

    /// Records that somebody says to be a gateway and does not have its key, unless that is done too often. True when
    /// it was asked of the store.
    pub(super) async fn suspect(&self, agent_id: AgentId, peer: IpAddr) -> bool {
        if self.recorded.take((), self.clock.now()).is_err() {
            return false;
        }
        let refused = RefusedReissue {
            agent_id,
            challenge: None,
            peer,
            why: Some("bad_proof"),
        };
        let now = self.clock.line();
        let noted = self.store.refuse_reissue(&self.tenant, refused, now).await;
        if let Err(error) = noted {
            tracing::error!(%agent_id, %error, "failed to audit a request at the door without a gateway's key");
        }
        true
    }

    /// Answers the gateway itself.
    pub(super) async fn renew(&self, proved: &Proved, peer: IpAddr) -> Result<Answered, Refusal> {
        let agent_id = proved.agent_id();
        if let Err(after) = self.gateways.take(agent_id, self.clock.now()) {
            let detail = "this gateway asks too often; it asks again later by itself";
            return Err(too_many("rate_limited", detail, after));
        }
        let Ok(Ok(_turn)) = timeout(TURN_TIME, self.turns.acquire()).await else {
            let detail = "too many gateways ask at once; it is asked again in a moment";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Refusal::later(status, "busy", detail, RETRY_BUSY));
        };
        // Whoever has no right token learns nothing of what is registered.
        if !proved.shown.token_valid {
            let none = ReissueRefusal::NotTheGateway(NotTheGateway::BadToken);
            return Err(self.refuse(proved, refused(none), peer).await);
        }
        let csr = match CertificateRequest::read(&proved.request.csr) {
            Ok(csr) => csr,
            Err(bad) => return Err(self.refuse(proved, bad.into(), peer).await),
        };
        let (shown, wall, now) = (proved.shown, self.clock.wall(), self.clock.line());
        let foreseen =
            self.store
                .foresee_reissue(&self.tenant, agent_id, csr.spki, shown, wall, now);
        // Nothing is signed for whoever gets none, and nothing twice: a signature may be somebody else's work.
        let before = match foreseen.await.map_err(|error| failed(&error))? {
            None | Some(ReissueOutcome::Issued) => None,
            Some(ReissueOutcome::Before(pem)) => Some(pem),
            Some(ReissueOutcome::TooSoon(wait)) => {
                let refusal = self.beside(proved, too_soon(wait));
                return Err(self.refuse(proved, refusal, peer).await);
            }
            Some(ReissueOutcome::Refused(refusal)) => {
                let refusal = self.told(proved, refusal);
                return Err(self.refuse(proved, refusal, peer).await);
            }
        };
        let known = self.store.certificate(&self.tenant, agent_id, &csr.spki);
        let known = known.await.map_err(|error| failed(&error))?;
        let Some(known) = known else {
            let unknown = refused(ReissueRefusal::UnknownKey);
            return Err(self.refuse(proved, unknown, peer).await);
        };
        let (pem, outcome) = match before {
            Some(pem) => {
                self.spend(proved, None, peer).await?;
                (pem, "door_again")
            }
            None => self.issue(proved, &csr, &known.gateway, peer).await?,
        };
        let not_after = end_of(&pem).map_err(|error| failed(&error))?;
        tracing::info!(
            gateway = %known.gateway, %agent_id, %peer, %not_after, outcome,
            "a gateway whose certificate had ended got another one at the door"
        );
        let answer = json(&LapsedAnswer {
            certificate: pem,
            not_after,
            authorities: self.authorities(proved),
        });
        Ok(Answered {
            proof: Some(proved.exchange.authenticate(&proved.body, &answer)),
            body: answer,
            outcome,
        })
    }

    /// Makes a certificate and registers it: its text, and the word for what came of it.
    async fn issue(
        &self,
        proved: &Proved,
        csr: &CertificateRequest,
        gateway: &GatewayName,
        peer: IpAddr,
    ) -> Result<(String, &'static str), Refusal> {
        let (certificate, pem) = self.sign(proved, csr, gateway).await?;
        let reissue = Reissue {
            challenge: proved.challenge,
            peer,
            shown: proved.shown,
            wall: self.clock.wall(),
            certificate,
            pem: pem.clone(),
        };
        let now = self.clock.line();
        let done = self.store.reissue_certificate(&self.tenant, reissue, now);
        match done.await.map_err(|error| failed(&error))? {
            ReissueOutcome::Issued => Ok((pem, "door_issued")),
            ReissueOutcome::Before(pem) => Ok((pem, "door_again")),
            ReissueOutcome::TooSoon(wait) => Err(self.beside(proved, too_soon(wait))),
            ReissueOutcome::Refused(refusal) => Err(self.told(proved, refusal)),
        }
    }

    /// The authorities as this very request is answered with them.
    fn authorities(&self, proved: &Proved) -> Option<GivenAuthorities> {
        let bundle = self.trust.bundle()?;
        Some(proved.exchange.give(&proved.body, bundle))
    }

    /// A refusal of a certificate alone: the authorities come with it.
    fn beside(&self, proved: &Proved, refusal: Refusal) -> Refusal {
        Refusal {
            authorities: self.authorities(proved).map(Box::new),
            ..refusal
        }
    }

    /// What the gateway is told of a refusal. Whoever has a good certificate is this gateway in every way; nobody else
    /// gets anything with a refusal.
    fn told(&self, proved: &Proved, refusal: ReissueRefusal) -> Refusal {
        if matches!(refusal, ReissueRefusal::NotLapsed(_)) {
            self.beside(proved, refused(refusal))
        } else {
            refused(refusal)
        }
    }

    /// Makes the certificate. Nobody accepts it before it is registered.
    async fn sign(
        &self,
        proved: &Proved,
        csr: &CertificateRequest,
        gateway: &GatewayName,
    ) -> Result<(NewCertificate, String), Refusal> {
        let office = self.office.open("reissues").await;
        let office = office.map_err(|error: TicketError| failed(&error))?;
        let (identity, now) = (&proved.identity, self.clock.wall());
        let signed = sign(&self.office, &office, csr, identity, gateway, now).await;
        let (pem, facts) = signed.map_err(|error| failed(&error))?;
        let certificate = NewCertificate {
            agent_id: proved.agent_id(),
            spki: csr.spki,
            serial: facts.serial,
            not_after: facts.not_after,
            fingerprint: facts.fingerprint,
            issuer: Some(facts.issuer),
        };
        Ok((certificate, pem))
    }

    /// Consumes the challenge, records a refusal that the store did not come to itself, and says it.
    async fn refuse(&self, proved: &Proved, refusal: Refusal, peer: IpAddr) -> Refusal {
        match self.spend(proved, Some(refusal.code), peer).await {
            Ok(()) => self.named(proved, refusal).await,
            Err(other) => other,
        }
    }

    /// A command in what the gateway is told has its name, which it knows: whoever is told of one has proved to be it.
    async fn named(&self, proved: &Proved, refusal: Refusal) -> Refusal {
        if !refusal.detail.contains("NAME") {
            return refusal;
        }
        let which = GatewayRef::Id(proved.agent_id());
        match self.store.gateway(&self.tenant, &which).await {
            Ok(Some(gateway)) => Refusal {
                detail: refusal.detail.replace("NAME", gateway.name.as_str()),
                ..refusal
            },
            Ok(None) | Err(_) => refusal,
        }
    }

    /// Consumes the challenge, and records why nothing came of it, where nothing did.
    async fn spend(
        &self,
        proved: &Proved,
        why: Option<&'static str>,
        peer: IpAddr,
    ) -> Result<(), Refusal> {
        let spent = RefusedReissue {
            agent_id: proved.agent_id(),
            challenge: Some(proved.challenge),
            peer,
            why,
        };
        let now = self.clock.line();
        match self.store.refuse_reissue(&self.tenant, spent, now).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(refused(ReissueRefusal::Challenge)),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn too_soon(wait: Duration) -> Refusal {
    let detail =
        "this gateway got as many certificates as it may in this time; it asks again by itself";
    too_many("too_soon", detail, wait)
}

fn too_many(code: &'static str, detail: &str, after: Duration) -> Refusal {
    Refusal::later(StatusCode::TOO_MANY_REQUESTS, code, detail, after)
}

/// What the gateway is told where the backend cannot do its part; its log says why.
fn failed(error: &(dyn std::error::Error + 'static)) -> Refusal {
    let is_outage = error
        .downcast_ref::<StoreError>()
        .is_some_and(StoreError::is_outage);
    if !is_outage {
        tracing::error!(
            error = in_full(error),
            "a gateway could get no certificate at the door"
        );
    }
    let detail = "the backend cannot issue a certificate at the moment; its log says why, and it is asked again";
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Refusal::later(status, "unavailable", detail, RETRY_SOON)
}

/// What the gateway is told of a refusal.
fn refused(refusal: ReissueRefusal) -> Refusal {
    let (status, detail) = match refusal {
        ReissueRefusal::Challenge => (
            StatusCode::CONFLICT,
            "the challenge was answered already or is more than a minute old: another one is asked for".to_owned(),
        ),
        ReissueRefusal::NotTheGateway(NotTheGateway::Revoked) => (
            StatusCode::GONE,
            "this gateway was revoked: its machine comes back by enrolling anew, as the same gateway after viworks \
             gateway replace NAME, or as a new one with another ticket"
                .to_owned(),
        ),
        ReissueRefusal::NotTheGateway(NotTheGateway::StaleKey) => (
            StatusCode::FORBIDDEN,
            "this agent key was superseded by a later one, or another machine took this gateway's place: use the \
             identity file that was issued last"
                .to_owned(),
        ),
        // As little as possible: whoever guesses learns nothing.
        ReissueRefusal::NotTheGateway(NotTheGateway::BadToken) => (
            StatusCode::FORBIDDEN,
            "the request was not accepted: the state folder or the identity file belongs to another time or another \
             gateway; put back the files that belong together, or revoke this gateway and enrol its machine anew"
                .to_owned(),
        ),
        ReissueRefusal::UnknownKey => (
            StatusCode::FORBIDDEN,
            "the key of this certificate is not registered for this gateway: use the files that were issued for it"
                .to_owned(),
        ),
        ReissueRefusal::CertificateRevoked => (
            StatusCode::FORBIDDEN,
            "the certificate with this key was revoked, and its key gets none; the gateway itself was not: it connects \
             with another certificate of its own, or is let in again (viworks gateway replace NAME)"
                .to_owned(),
        ),
        ReissueRefusal::RetiredKey => (
            StatusCode::CONFLICT,
            "a later certificate of this gateway was in use: this one is retired, and its key gets none".to_owned(),
        ),
        ReissueRefusal::NotLapsed(not_after) => (
            StatusCode::CONFLICT,
            format!(
                "the certificate that is registered for this key is good until {not_after}: connect with it; the \
                 door is for gateways whose certificates have ended"
            ),
        ),
    };
    Refusal::new(status, refusal.name(), detail)
}
