//! What a request at the door comes to.
//!
//! Before somebody has proved that it has a ticket, nothing is read and nothing is written: the challenge shows by
//! itself that it is one of ours, and the proof needs nothing but the master key.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use viworks_common::enrolment::{
    AgentSecrets, EnrolmentAnswer, EnrolmentChallenge, EnrolmentRequest, Exchange, NameRule,
    NoName, RedeemRequest,
};
use viworks_common::id::{AgentId, GatewayName, Tenant, TicketId};
use viworks_common::key::{Identity, MasterKey};
use viworks_common::pin::PinSet;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::Timeline;
use viworks_runtime::random;

use super::answer::{Answered, end_of, json};
use super::challenge::Challenges;
use super::ends::Ends;
use super::office::TicketOffice;
use super::quota::Buckets;
use super::refusal::Refusal;
use super::reissue::Reissues;
use super::sign::sign;
use crate::agent::authorities::Trust;
use crate::command::unsure::{self, Unsure};
use crate::data::{
    AnsweredChallenge, Foreseen, GatewayRef, NewCertificate, NewGateway, RedeemOutcome, Redemption,
    RefusedRedemption, Store, StoreError, StoredTicket, TicketRefusal,
};
use crate::pki::PkiError;
use crate::pki::issue::{FIRST_GENERATION, Office};
use crate::pki::request::CertificateRequest;

/// Redemptions that are worked on at once: each reads the authority's key, signs and writes.
const REDEMPTIONS_MAX: usize = 48;
/// How long one more waits for its turn.
const TURN_TIME: Duration = Duration::from_secs(5);
/// How soon one that had no turn may try again.
const RETRY_BUSY: Duration = Duration::from_secs(2);

/// Redemptions with one key a minute that come as far as a signature: also one that a machine repeats is signed for
/// before the store says that it is answered as before.
const PER_KEY: u32 = 30;

/// What a request is about, by nothing but itself.
pub(super) enum Asked {
    /// It asked for a challenge.
    Challenged(Answered),
    /// Somebody who has a ticket redeems it.
    Proved(Box<Proved>),
}

/// A redemption whose proof is right.
pub(super) struct Proved {
    request: RedeemRequest,
    body: Bytes,
    exchange: Exchange,
    challenge: AnsweredChallenge,
    /// SHA-256 of the ticket's secret.
    sha256: [u8; 32],
}

impl Proved {
    /// The ticket that is redeemed.
    pub(super) const fn ticket(&self) -> TicketId {
        self.request.ticket
    }
}

/// Makes gateways of machines that have tickets.
pub struct Enrolment {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    office: TicketOffice,
    /// Where the sessions and commands are of machines whose place is taken.
    ends: Ends,
    /// What may have ended with such a machine, where nobody knows.
    unsure: Unsure,
    challenges: Challenges,
    /// What is redeemed counts against its ticket: machines behind one address do not take each other's requests.
    tickets: Buckets<TicketId>,
    /// What comes with the same key counts against that, by the digest of it.
    keys: Buckets<[u8; 32]>,
    turns: Semaphore,
    /// What the same door does for gateways.
    reissues: Reissues,
}

/// A redemption that is worked on.
struct Work<'a> {
    proved: &'a Proved,
    ticket: &'a StoredTicket,
    csr: CertificateRequest,
    peer: IpAddr,
}

impl Enrolment {
    /// On this store, with tickets of this office, each of them redeemed so often a minute; gateways get the
    /// authorities of `trust`.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        tenant: Tenant,
        clock: Arc<Timeline>,
        office: TicketOffice,
        trust: Arc<Trust>,
        per_minute: u32,
        ends: Ends,
    ) -> Self {
        Self {
            challenges: Challenges::new(office.master(), &tenant),
            tickets: Buckets::new(per_minute),
            keys: Buckets::new(PER_KEY),
            turns: Semaphore::new(REDEMPTIONS_MAX),
            unsure: Unsure::default(),
            reissues: Reissues::new(
                Arc::clone(&store),
                tenant.clone(),
                Arc::clone(&clock),
                office.clone(),
                trust,
            ),
            store,
            tenant,
            clock,
            office,
            ends,
        }
    }

    pub(super) fn clock(&self) -> &Timeline {
        &self.clock
    }

    /// What becomes of gateways whose certificates have ended.
    pub(super) const fn reissues(&self) -> &Reissues {
        &self.reissues
    }

    /// Judges a request by itself.
    pub(super) fn ask(&self, proof: Option<&[u8]>, body: Bytes) -> Result<Asked, Refusal> {
        let request = serde_json::from_slice(&body).map_err(|error| {
            Refusal::bad_request(format!("the request cannot be read: {error}"))
        })?;
        match request {
            EnrolmentRequest::Challenge { ticket } => {
                let challenge = EnrolmentChallenge {
                    challenge: self.challenges.give(ticket, self.clock.line()),
                    time: self.clock.wall(),
                };
                Ok(Asked::Challenged(Answered {
                    body: json(&challenge),
                    proof: None,
                    outcome: "challenged",
                }))
            }
            EnrolmentRequest::Redeem(request) => {
                let proof = proof.ok_or_else(|| {
                    Refusal::bad_request("a redemption has its proof in the header enrolment-proof")
                })?;
                self.prove(proof, body, request)
                    .map(|proved| Asked::Proved(Box::new(proved)))
            }
        }
    }

    fn prove(&self, proof: &[u8], body: Bytes, request: RedeemRequest) -> Result<Proved, Refusal> {
        let now = self.clock.line();
        let challenge = self
            .challenges
            .recognise(request.ticket, &request.challenge, now)
            .ok_or_else(|| Refusal::of_ticket(TicketRefusal::Challenge, None))?;
        let (ticket, challenge_given) = (request.ticket, &request.challenge);
        let by = |master: &MasterKey| {
            let secret = master.ticket_secret(&self.tenant, ticket);
            let exchange = Exchange::new(&secret, ticket, challenge_given);
            exchange.proves(&body, proof).then_some((secret, exchange))
        };
        let master = self.office.master();
        let proved = by(master).or_else(|| by(&master.other()?));
        let (secret, exchange) =
            proved.ok_or_else(|| Refusal::of_ticket(TicketRefusal::BadProof, None))?;
        Ok(Proved {
            request,
            body,
            exchange,
            challenge,
            sha256: Sha256::digest(secret.expose()).into(),
        })
    }

    /// Redeems the ticket of somebody who has it.
    pub(super) async fn redeem(&self, proved: &Proved, peer: IpAddr) -> Result<Answered, Refusal> {
        let id = proved.ticket();
        if let Err(after) = self.tickets.take(id, self.clock.now()) {
            let detail =
                "too many machines redeem this ticket at the moment; run enroll again later";
            return Err(Refusal::later(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                detail,
                after,
            ));
        }
        let Ok(Ok(_turn)) = timeout(TURN_TIME, self.turns.acquire()).await else {
            let detail = "too many machines are enrolling at once; run enroll again in a moment";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Refusal::later(status, "busy", detail, RETRY_BUSY));
        };
        let csr = match CertificateRequest::read(&proved.request.csr) {
            Ok(csr) => csr,
            Err(bad) => return Err(self.refuse(proved, bad.into(), peer).await),
        };
        let now = self.clock.line();
        let found = self
            .store
            .foresee_redemption(&self.tenant, id, csr.spki, peer, now);
        let Some(Foreseen { ticket, refusal }) = found.await? else {
            return Err(Refusal::of_ticket(TicketRefusal::Unknown, None));
        };
        let of_another_key = (proved.sha256 != ticket.sha256).then_some(TicketRefusal::BadProof);
        if let Some(refusal) = of_another_key.or(refusal) {
            let refusal = Refusal::of_ticket(refusal, Some(&ticket));
            return Err(self.refuse(proved, refusal, peer).await);
        }
        if let Err(after) = self.keys.take(csr.spki, self.clock.now()) {
            let detail = "this machine redeems its ticket over and over; run enroll again later";
            return Err(Refusal::later(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limited",
                detail,
                after,
            ));
        }
        let work = Work {
            proved,
            ticket: &ticket,
            csr,
            peer,
        };
        let mut answer = self.enrol(&work).await?;
        let identity = Identity {
            tenant: self.tenant.clone(),
            agent_id: answer.agent_id,
        };
        let master = self.office.master();
        let agent_key = master.agent_key(&identity, u32::from(answer.key_generation));
        let secrets = AgentSecrets {
            agent_key: agent_key.secret().clone(),
            token: master.token(&identity, answer.epoch),
        };
        answer.sealed = proved.exchange.seal(&proved.body, &secrets);
        let answer = json(&answer);
        Ok(Answered {
            proof: Some(proved.exchange.authenticate(&proved.body, &answer)),
            body: answer,
            outcome: "enrolled",
        })
    }

    /// Makes the gateway, or finds the one that it was made before.
    async fn enrol(&self, work: &Work<'_>) -> Result<EnrolmentAnswer, Refusal> {
        let Work {
            proved,
            ticket,
            peer,
            ..
        } = work;
        let request = &proved.request;
        let (wanted, place) = match self.wanted(ticket, request).await? {
            Ok(wanted) => wanted,
            Err(none) => return Err(self.refuse(proved, none.into(), *peer).await),
        };
        let url = self.office.agents_url().map_err(super::TicketError::from)?;
        let office = self.office.open("enrolment").await?;
        // Once: those that are answered are those that are stored as given.
        let pins = self.office.pins(&office);
        let redeemed = if let Some(agent_id) = place {
            let wanted = Wanted {
                agent_id,
                name: &wanted,
                pins: &pins,
                has_other_name: false,
                replaces: true,
            };
            self.redeem_as(&office, work, &wanted).await
        } else {
            self.redeem_as_new(&office, work, &wanted, &pins).await
        };
        let made = match redeemed? {
            Made::Gateway(made) => made,
            Made::Refused(TicketRefusal::NameTaken) => return Err(Refusal::name_taken(&wanted)),
            Made::Refused(TicketRefusal::NameOfRevoked) => {
                return Err(Refusal::name_of_revoked(&wanted));
            }
            Made::Refused(TicketRefusal::Connected) => return Err(Refusal::connected(&wanted)),
            Made::Refused(refusal) => return Err(Refusal::of_ticket(refusal, Some(ticket))),
            Made::Nothing(error) => return Err(super::TicketError::from(error).into()),
        };
        // What follows needs it in a byte, and the store gives out no other generation.
        let key_generation = u8::try_from(made.key_generation)
            .map_err(|error| StoreError::Unavailable(error.into()))?;
        tracing::info!(
            gateway = %made.name, agent_id = %made.agent_id, ticket = %ticket.id, %peer,
            "a machine became a gateway"
        );
        Ok(EnrolmentAnswer {
            tenant: self.tenant.clone(),
            agent_id: made.agent_id,
            name: made.name,
            trust_domain: office.trust_domain.clone(),
            not_after: made.not_after,
            certificate: made.certificate,
            authority: office.authority.certificate().to_owned(),
            key_generation,
            epoch: made.epoch,
            sealed: String::new(),
            pins,
            binding: office.binding,
            labels: made.labels,
            url,
        })
    }

    /// How the gateway is to be called, and which one it is where the machine takes a place.
    async fn wanted(
        &self,
        ticket: &StoredTicket,
        request: &RedeemRequest,
    ) -> Result<Result<(GatewayName, Option<AgentId>), NoName>, StoreError> {
        let (wish, host) = (request.name.as_ref(), &request.host);
        let Some(agent_id) = ticket.replaces else {
            let wanted = match ticket.naming.name(wish, host) {
                Ok(wanted) => wanted,
                Err(none) => return Ok(Err(none)),
            };
            if !ticket.allow_replace {
                return Ok(Ok((wanted, None)));
            }
            let holder = GatewayRef::Name(wanted.clone());
            let holder = self.store.gateway(&self.tenant, &holder).await?;
            // That of a revoked one is free for whoever it always was free for.
            let holder = holder.filter(|holder| holder.revoked_at.is_none());
            return Ok(Ok((wanted, holder.map(|holder| holder.agent_id))));
        };
        // By its name of this moment: that may be another one than when the ticket was made.
        let of = GatewayRef::Id(agent_id);
        let name = match self.store.gateway(&self.tenant, &of).await? {
            Some(gateway) => NameRule::Fixed(gateway.name),
            None => ticket.naming.clone(),
        };
        let named = name.name(wish, host);
        Ok(named.map(|name| (name, Some(agent_id))))
    }

    /// As a gateway that was not there before; where its name is taken, perhaps with another one.
    async fn redeem_as_new(
        &self,
        office: &Office,
        work: &Work<'_>,
        name: &GatewayName,
        pins: &PinSet,
    ) -> Result<Made, StoreError> {
        let Work { proved, ticket, .. } = work;
        let agent_id = AgentId::from_uuid(random::uuid_v7(self.clock.wall()));
        // Many machines of one image call themselves the same.
        let other = match &proved.request.name {
            None => ticket.naming.beside(name, agent_id),
            Some(_wish) => None,
        };
        let wanted = Wanted {
            agent_id,
            name,
            pins,
            has_other_name: other.is_some(),
            replaces: false,
        };
        let redeemed = self.redeem_as(office, work, &wanted).await;
        if let (Err(StoreError::Conflict { .. }), Some(other)) = (&redeemed, &other) {
            let wanted = Wanted {
                name: other,
                has_other_name: false,
                ..wanted
            };
            return self.redeem_as(office, work, &wanted).await;
        }
        redeemed
    }

    async fn redeem_as(
        &self,
        office: &Office,
        work: &Work<'_>,
        wanted: &Wanted<'_>,
    ) -> Result<Made, StoreError> {
        let Work {
            proved,
            ticket,
            csr,
            peer,
        } = work;
        let Wanted {
            agent_id,
            name,
            pins,
            has_other_name,
            replaces,
        } = *wanted;
        let identity = Identity {
            tenant: self.tenant.clone(),
            agent_id,
        };
        let now = self.clock.wall();
        let signed = sign(&self.office, office, csr, &identity, name, now).await;
        let (certificate, facts) = match signed {
            Ok(signed) => signed,
            Err(error) => return Ok(Made::Nothing(error)),
        };
        let redemption = Redemption {
            ticket: ticket.id,
            challenge: proved.challenge,
            install_id: proved.request.install_id,
            peer: *peer,
            spki: csr.spki,
            certificate: certificate.clone(),
            has_other_name,
            replaces,
            gateway: NewGateway {
                agent_id,
                name: name.clone(),
                labels: ticket.labels.clone(),
                key_generation: FIRST_GENERATION,
                pins: Some(pins.clone()),
                authorities: office.given(),
                certificate: Some(NewCertificate {
                    agent_id,
                    spki: csr.spki,
                    serial: facts.serial,
                    not_after: facts.not_after,
                    fingerprint: facts.fingerprint,
                    issuer: Some(facts.issuer),
                }),
            },
        };
        let now = self.clock.line();
        Ok(match self.redeem_by(redemption, now).await? {
            RedeemOutcome::Enrolled => Made::Gateway(NewOne {
                agent_id,
                name: name.clone(),
                labels: ticket.labels.clone(),
                key_generation: FIRST_GENERATION,
                epoch: 0,
                certificate,
                not_after: facts.not_after,
            }),
            RedeemOutcome::Replaced(replaced) => {
                self.ends
                    .replaced(agent_id, replaced.epoch, now, &replaced.ended);
                Made::Gateway(NewOne {
                    agent_id,
                    name: name.clone(),
                    labels: replaced.labels,
                    key_generation: replaced.key_generation,
                    epoch: replaced.epoch,
                    certificate,
                    not_after: facts.not_after,
                })
            }
            RedeemOutcome::Before(before) => match end_of(&before.certificate) {
                Ok(not_after) => Made::Gateway(NewOne {
                    agent_id: before.agent_id,
                    name: before.name,
                    labels: before.labels,
                    key_generation: before.key_generation,
                    epoch: before.epoch,
                    not_after,
                    certificate: before.certificate,
                }),
                Err(error) => Made::Nothing(error),
            },
            RedeemOutcome::Refused(refusal) => Made::Refused(refusal),
        })
    }

    /// Has the store redeem it, and remembers what may have ended where its answer is lost.
    async fn redeem_by(
        &self,
        redemption: Redemption,
        now: Timestamp,
    ) -> Result<RedeemOutcome, StoreError> {
        let (agent_id, replaces) = (redemption.gateway.agent_id, redemption.replaces);
        let open = if replaces {
            self.store.open_commands(&self.tenant, agent_id).await?
        } else {
            Vec::new()
        };
        let made = self
            .store
            .redeem_ticket(&self.tenant, redemption, now)
            .await;
        if replaces && matches!(made, Err(StoreError::Unknown(_))) {
            self.unsure.lost(&self.ends.bus, agent_id, open);
        }
        let made = made?;
        match &made {
            RedeemOutcome::Before(before) => {
                self.ended_before(before.agent_id, before.epoch, now)
                    .await?;
            }
            // It says itself what ended.
            RedeemOutcome::Replaced(_) => drop(self.unsure.take(agent_id)),
            RedeemOutcome::Enrolled | RedeemOutcome::Refused(_) => {}
        }
        Ok(made)
    }

    /// Tells of what ended when this machine took a gateway's place, where the answer to that was lost.
    async fn ended_before(
        &self,
        agent_id: AgentId,
        epoch: u64,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let lost = self.unsure.take(agent_id);
        if lost.is_empty() {
            return Ok(());
        }
        let ended = async {
            let registered = self.store.list_certificates(&self.tenant, agent_id).await?;
            // With its first certificate, at the same moment.
            let moments = registered.into_iter().map(|it| it.registered_at).collect();
            unsure::ended_at(&*self.store, &self.tenant, &lost, &moments).await
        };
        match ended.await {
            Ok(ended) => {
                self.ends.replaced(agent_id, epoch, now, &ended);
                Ok(())
            }
            Err(away) => {
                self.unsure.keep(agent_id, lost);
                Err(away)
            }
        }
    }

    /// Consumes the challenge, records a refusal that the store did not come to itself, and says it.
    async fn refuse(&self, proved: &Proved, refusal: Refusal, peer: IpAddr) -> Refusal {
        let refused = RefusedRedemption {
            ticket: proved.ticket(),
            challenge: proved.challenge,
            peer,
            why: refusal.code,
            told: refusal.detail.clone(),
        };
        let now = self.clock.line();
        let fresh = self
            .store
            .refuse_redemption(&self.tenant, refused, now)
            .await;
        match fresh {
            Ok(true) => refusal,
            Ok(false) => Refusal::of_ticket(TicketRefusal::Challenge, None),
            Err(error) => error.into(),
        }
    }
}

/// As whom a machine redeems its ticket.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    agent_id: AgentId,
    name: &'a GatewayName,
    /// What it is to trust.
    pins: &'a PinSet,
    /// Whether it comes again with another name when this one is taken.
    has_other_name: bool,
    /// Whether it takes the place of that gateway.
    replaces: bool,
}

/// What a redemption came to.
enum Made {
    /// A gateway, made now or before.
    Gateway(NewOne),
    /// None, for this reason.
    Refused(TicketRefusal),
    /// None, because of the backend's own keys.
    Nothing(PkiError),
}

/// The gateway that a machine became.
struct NewOne {
    agent_id: AgentId,
    name: GatewayName,
    labels: BTreeMap<String, String>,
    key_generation: u32,
    /// The epoch that it begins with.
    epoch: u64,
    certificate: String,
    not_after: Timestamp,
}
