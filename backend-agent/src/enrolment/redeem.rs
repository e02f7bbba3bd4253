//! What a request at the door comes to.

use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use viworks_common::enrolment::{
    AgentSecrets, CHALLENGE_TIME, EnrolmentAnswer, EnrolmentChallenge, EnrolmentRequest, Exchange,
    NameRule, RedeemRequest, WireChallenge,
};
use viworks_common::id::{AgentId, GatewayName, Tenant, TicketId};
use viworks_common::key::Identity;
use viworks_common::pin::PinSet;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::Timeline;
use viworks_runtime::{random, tls};

use http::StatusCode;

use super::office::TicketOffice;
use super::refusal::Refusal;
use crate::data::{
    Actor, ChallengeOutcome, NewCertificate, NewGateway, NotedRefusal, RedeemOutcome, Redemption,
    Store, StoreError, StoredTicket, TicketRefusal,
};
use crate::pki::PkiError;
use crate::pki::issue::{FIRST_GENERATION, Office};
use crate::pki::request::CertificateRequest;

/// What the machine is answered: the body, and its MAC where there is a secret to make one.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) body: Vec<u8>,
    pub(super) proof: Option<String>,
}

/// Makes gateways of machines that have tickets. Clones share it.
#[derive(Clone)]
pub struct Enrolment {
    store: Arc<dyn Store>,
    tenant: Tenant,
    clock: Arc<Timeline>,
    office: TicketOffice,
}

/// A machine that has proved that it has a ticket.
struct Proved<'a> {
    ticket: &'a StoredTicket,
    request: &'a RedeemRequest,
    csr: CertificateRequest,
    peer: IpAddr,
}

impl Enrolment {
    /// On this store, with tickets of this office.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        tenant: Tenant,
        clock: Arc<Timeline>,
        office: TicketOffice,
    ) -> Self {
        Self {
            store,
            tenant,
            clock,
            office,
        }
    }

    pub(super) fn clock(&self) -> &Timeline {
        &self.clock
    }

    /// Answers a request of `peer`.
    pub(super) async fn answer(
        &self,
        peer: IpAddr,
        proof: Option<&[u8]>,
        body: &[u8],
    ) -> Result<Answered, Refusal> {
        let request = serde_json::from_slice(body).map_err(|error| {
            Refusal::bad_request(format!("the request cannot be read: {error}"))
        })?;
        match request {
            EnrolmentRequest::Challenge { ticket } => self.challenge(ticket).await,
            EnrolmentRequest::Redeem(request) => {
                let proof = proof.ok_or_else(|| {
                    Refusal::bad_request("a redemption has its proof in the header enrolment-proof")
                })?;
                self.redeem(peer, proof, body, &request).await
            }
        }
    }

    async fn challenge(&self, ticket: TicketId) -> Result<Answered, Refusal> {
        let challenge = WireChallenge(random::bytes());
        let now = self.clock.line();
        let until = now.saturating_add(CHALLENGE_TIME);
        let kept = self
            .store
            .add_challenge(&self.tenant, ticket, challenge.0, until, now);
        match kept.await? {
            ChallengeOutcome::Kept => Ok(Answered {
                body: json(&EnrolmentChallenge {
                    challenge,
                    time: self.clock.wall(),
                }),
                proof: None,
            }),
            ChallengeOutcome::Unknown => Err(Refusal::of_ticket(TicketRefusal::Unknown, None)),
            ChallengeOutcome::Full => Err(Refusal::later(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "too many machines are enrolling at once; run enroll again in a minute",
                CHALLENGE_TIME,
            )),
        }
    }

    async fn redeem(
        &self,
        peer: IpAddr,
        proof: &[u8],
        body: &[u8],
        request: &RedeemRequest,
    ) -> Result<Answered, Refusal> {
        let id = request.ticket;
        let found = self.store.ticket(&self.tenant, id).await?;
        let ticket = found.ok_or_else(|| Refusal::of_ticket(TicketRefusal::Unknown, None))?;
        let office = self.office.open().await?;
        let secret = office.master.ticket_secret(&self.tenant, id);
        let exchange = Exchange::new(&secret, id, &request.challenge);
        let digest: [u8; 32] = Sha256::digest(secret.expose()).into();
        if digest != ticket.sha256 || !exchange.proves(body, proof) {
            let refusal = Refusal::of_ticket(TicketRefusal::BadProof, Some(&ticket));
            return Err(self.refuse(&ticket, refusal, peer).await?);
        }
        let csr = match CertificateRequest::read(&request.csr) {
            Ok(csr) => csr,
            Err(bad) => return Err(self.refuse(&ticket, bad.into(), peer).await?),
        };
        let proved = Proved {
            csr,
            ticket: &ticket,
            request,
            peer,
        };
        let mut answer = self.enrol(&office, &proved).await?;
        let identity = Identity {
            tenant: self.tenant.clone(),
            agent_id: answer.agent_id,
        };
        let agent_key = office
            .master
            .agent_key(&identity, u32::from(answer.key_generation));
        let secrets = AgentSecrets {
            agent_key: agent_key.secret().clone(),
            token: office.master.token(&identity, 0),
        };
        answer.sealed = exchange.seal(body, &secrets);
        let answer = json(&answer);
        Ok(Answered {
            proof: Some(exchange.authenticate(body, &answer)),
            body: answer,
        })
    }

    /// Makes the gateway, or finds the one that it was made before.
    async fn enrol(
        &self,
        office: &Office,
        proved: &Proved<'_>,
    ) -> Result<EnrolmentAnswer, Refusal> {
        let Proved {
            ticket, request, ..
        } = proved;
        let url = self.office.agents_url().map_err(super::TicketError::from)?;
        let wanted = match ticket.naming.name(request.name.as_ref(), &request.host) {
            Ok(name) => name,
            Err(none) => return Err(self.refuse(ticket, none.into(), proved.peer).await?),
        };
        let agent_id = AgentId::from_uuid(random::uuid_v7(self.clock.wall()));
        let mut redeemed = self.redeem_as(office, proved, agent_id, &wanted).await;
        let free = request.name.is_none() && !matches!(ticket.naming, NameRule::Fixed(_));
        if free && matches!(redeemed, Err(StoreError::Conflict { .. })) {
            // Many machines of one image call themselves the same.
            let beside = NameRule::beside(&wanted, agent_id);
            redeemed = self.redeem_as(office, proved, agent_id, &beside).await;
        }
        let made = match redeemed {
            Err(StoreError::Conflict { .. }) => {
                let refusal = Refusal::name_taken(&wanted);
                return Err(self.refuse(ticket, refusal, proved.peer).await?);
            }
            redeemed => redeemed?,
        };
        let made = match made {
            Made::Gateway(made) => made,
            Made::Refused(refusal) => return Err(Refusal::of_ticket(refusal, Some(ticket))),
            Made::Nothing(error) => return Err(super::TicketError::from(error).into()),
        };
        tracing::info!(
            gateway = %made.name, agent_id = %made.agent_id, ticket = %ticket.id, peer = %proved.peer,
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
            key_generation: u8::try_from(made.key_generation).unwrap_or(u8::MAX),
            sealed: String::new(),
            pins: PinSet {
                version: self.office.pin_set_version(),
                pins: office.pins.iter().copied().collect(),
            },
            binding: office.binding,
            labels: ticket.labels.clone(),
            url,
        })
    }

    async fn redeem_as(
        &self,
        office: &Office,
        proved: &Proved<'_>,
        agent_id: AgentId,
        name: &GatewayName,
    ) -> Result<Made, StoreError> {
        let Proved {
            ticket,
            request,
            csr,
            peer,
        } = proved;
        let identity = Identity {
            tenant: self.tenant.clone(),
            agent_id,
        };
        let life = self.office.certificate_life();
        let signed = office.authority.gateway_of(
            &csr.key,
            &office.trust_domain,
            &identity,
            name,
            self.clock.wall(),
            life,
        );
        let (certificate, facts) = match signed {
            Ok(signed) => signed,
            Err(error) => return Ok(Made::Nothing(error)),
        };
        let redemption = Redemption {
            ticket: ticket.id,
            challenge: request.challenge.0,
            install_id: request.install_id,
            peer: *peer,
            spki: csr.spki,
            certificate: certificate.clone(),
            gateway: NewGateway {
                agent_id,
                name: name.clone(),
                labels: ticket.labels.clone(),
                key_generation: FIRST_GENERATION,
                certificate: Some(NewCertificate {
                    agent_id,
                    spki: csr.spki,
                    serial: facts.serial,
                    not_after: facts.not_after,
                    fingerprint: facts.fingerprint,
                }),
            },
        };
        let now = self.clock.line();
        let made = self
            .store
            .redeem_ticket(&self.tenant, redemption, now)
            .await?;
        Ok(match made {
            RedeemOutcome::Enrolled => Made::Gateway(NewOne {
                agent_id,
                name: name.clone(),
                key_generation: FIRST_GENERATION,
                certificate,
                not_after: facts.not_after,
            }),
            RedeemOutcome::Before(before) => match end_of(&before.certificate) {
                Ok(not_after) => Made::Gateway(NewOne {
                    agent_id: before.agent_id,
                    name: before.name,
                    key_generation: before.key_generation,
                    not_after,
                    certificate: before.certificate,
                }),
                Err(error) => Made::Nothing(error),
            },
            RedeemOutcome::Refused(refusal) => Made::Refused(refusal),
        })
    }

    /// Records a refusal that the store did not come to itself, and says it.
    async fn refuse(
        &self,
        ticket: &StoredTicket,
        refusal: Refusal,
        peer: IpAddr,
    ) -> Result<Refusal, StoreError> {
        let actor = Actor::stranger().at_address(Some(peer));
        let now = self.clock.line();
        let noted = NotedRefusal {
            why: refusal.code,
            told: refusal.detail.clone(),
        };
        self.store
            .note_refused_ticket(&self.tenant, ticket.id, noted, &actor, now)
            .await?;
        Ok(refusal)
    }
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
    key_generation: u32,
    certificate: String,
    not_after: Timestamp,
}

/// When a certificate ends, PEM.
fn end_of(certificate: &str) -> Result<Timestamp, PkiError> {
    let der = tls::one_certificate(certificate.as_bytes())?;
    Ok(tls::validity(&der)?.1)
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what is exchanged has string keys and whole numbers")
}
