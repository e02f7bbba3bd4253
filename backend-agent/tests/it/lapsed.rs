//! What gateways are answered at the door whose certificates have ended, over real connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::UnixTime;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use viworks_backend_agent::data::{
    Actor, AnsweredChallenge, CertificateRef, NewCertificate, NewTicket, Page, Reissue,
    ReissueOutcome, TicketBounds, TicketOutcome,
};
use viworks_backend_agent::pki::authority::{Authority, Issued};
use viworks_backend_agent::pki::issue::{Material, Office};
use viworks_common::admission::Shown;
use viworks_common::enrolment::{
    EnrolmentChallenge, EnrolmentRequest, Exchange, GivenAuthorities, LapsedExchange,
    LapsedRenewal, LapsedRequest, NameRule, RENEW_PATH, RedeemRequest, WireChallenge,
};
use viworks_common::id::{InstallId, Tenant, TicketId};
use viworks_common::key::{AgentKey, Secret};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::{random, tls};
use viworks_testkit::door;

use crate::clock::Stepped;
use crate::inbound::Backend;
use crate::pki;

/// So short that a certificate counts as ended at once.
const SHORT: Duration = Duration::from_secs(60);

async fn backend() -> Backend {
    backend_by(Arc::new(SystemClock)).await
}

async fn backend_by(clock: Arc<dyn Clock>) -> Backend {
    backend_in(pki::initialised(), clock).await
}

async fn backend_in(folder: TempDir, clock: Arc<dyn Clock>) -> Backend {
    let rarely = Duration::from_secs(3_600);
    Backend::start_changed(folder, clock, |config| {
        config.jobs.offer = rarely;
        config.enrolment.listen = Some("127.0.0.1:0".parse().unwrap());
    })
    .await
}

async fn asked(
    backend: &Backend,
    material: &Material,
    body: &[u8],
    proof: Option<&str>,
) -> (u16, Value) {
    let address = backend.app.enrolment.unwrap().to_string();
    let authority = material.authority.as_bytes();
    let answer = door::ask_at(RENEW_PATH, &address, authority, b"", body, proof);
    answer.await.unwrap()
}

async fn challenge(backend: &Backend, material: &Material) -> WireChallenge {
    let agent_id = material.identity.agent_id;
    let body = serde_json::to_vec(&LapsedRequest::Challenge { agent_id }).unwrap();
    let (status, answer) = asked(backend, material, &body, None).await;
    assert_eq!(status, 200, "{answer}");
    let EnrolmentChallenge { challenge, time } = serde_json::from_value(answer).unwrap();
    let apart = SystemClock.wall().saturating_since(time);
    assert!(apart < Duration::from_secs(30), "{apart:?}");
    challenge
}

fn csr(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn own_key(material: &Material) -> KeyPair {
    KeyPair::from_pem(&material.certificate.key).unwrap()
}

/// What this gateway asks as it should, over this challenge.
fn request(material: &Material, challenge: WireChallenge) -> LapsedRenewal {
    LapsedRenewal {
        agent_id: material.identity.agent_id,
        challenge,
        csr: csr(&own_key(material)),
        key_generation: 1,
        epoch: 0,
        token: material.token.expose_hex(),
        agent_version: "0.1.0".parse().unwrap(),
    }
}

/// The answer to a request that is proved with this key.
async fn sent_with(
    backend: &Backend,
    material: &Material,
    key: &Secret,
    request: LapsedRenewal,
) -> (u16, Value) {
    let key = AgentKey::new(key.clone());
    let exchange = LapsedExchange::new(&key, request.agent_id, &request.challenge);
    let body = serde_json::to_vec(&LapsedRequest::Renew(request)).unwrap();
    let proof = exchange.prove(&body);
    asked(backend, material, &body, Some(&proof)).await
}

async fn sent(backend: &Backend, material: &Material, request: LapsedRenewal) -> (u16, Value) {
    sent_with(backend, material, &material.agent_key, request).await
}

/// The answer to a request that is as it should be but for that.
async fn changed(
    backend: &Backend,
    material: &Material,
    change: impl FnOnce(&mut LapsedRenewal),
) -> (u16, Value) {
    let mut request = request(material, challenge(backend, material).await);
    change(&mut request);
    sent(backend, material, request).await
}

async fn refusals(backend: &Backend, action: &str) -> Vec<String> {
    let tenant = Tenant::default_tenant();
    let audit = backend.store.list_audit(&tenant, Page::first(200)).await;
    let records = audit.unwrap().items.into_iter().map(|entry| entry.record);
    let own = records.filter(|record| record.action == action);
    own.map(|record| {
        assert!(record.detail["peer"].is_string(), "{record:?}");
        record.detail["why"].as_str().unwrap_or("issued").to_owned()
    })
    .collect()
}

#[tokio::test]
async fn a_gateway_whose_certificate_has_ended_gets_another_and_a_session_with_it() {
    let backend = backend().await;
    let material = backend.join_for("gw-1", SHORT).await;
    let (status, answer) = changed(&backend, &material, |_as_it_is| {}).await;
    assert_eq!(status, 200, "{answer}");
    let certificate = answer["certificate"].as_str().unwrap().to_owned();
    let der = tls::one_certificate(certificate.as_bytes()).unwrap();
    let (_, not_after) = tls::validity(&der).unwrap();
    let life = not_after.saturating_since(SystemClock.wall());
    assert!(life > Duration::from_secs(80 * 24 * 3_600), "{life:?}");
    // Whoever lost the answer gets the same one, with another challenge.
    let (status, again) = changed(&backend, &material, |_as_it_is| {}).await;
    assert_eq!(status, 200, "{again}");
    assert_eq!(again["certificate"], answer["certificate"]);

    let renewed = Material {
        identity: material.identity.clone(),
        trust_domain: material.trust_domain.clone(),
        certificate: Issued {
            certificate,
            ..material.certificate.clone()
        },
        authority: material.authority.clone(),
        key_generation: material.key_generation,
        agent_key: material.agent_key.clone(),
        token: material.token.clone(),
    };
    let mut gateway = backend.dial(&renewed).await;
    let (epoch, token) = gateway.open(1, 0, &material.token).await.unwrap();
    assert_eq!(epoch, 1, "the door has moved nothing");
    drop(gateway);
    // It is good: there is nothing for it at the door, with the epoch of that session.
    let with_session = |request: &mut LapsedRenewal| {
        request.epoch = epoch;
        request.token = token.expose_hex();
    };
    let (status, said) = changed(&backend, &renewed, with_session).await;
    assert_eq!((status, said["code"].as_str()), (409, Some("not_lapsed")));
    let noted = refusals(&backend, "certificate.renew_at_door").await;
    assert_eq!(noted, ["not_lapsed", "issued"]);
    let tenant = Tenant::default_tenant();
    let agent_id = material.identity.agent_id;
    let looked = backend.store.last_refusal(&tenant, agent_id).await.unwrap();
    let at_door = looked.at_door.unwrap();
    assert_eq!(at_door.why, "not_lapsed");
    assert!(at_door.peer_address.is_some() && looked.last.is_none());
    drop(backend.stop().await);
}

/// The one before is good for some minutes still, and the answer with the new one may be lost.
#[tokio::test]
async fn a_session_with_the_earlier_certificate_proves_nothing_of_the_new_one() {
    let backend = backend().await;
    let material = backend.join_for("gw-1", SHORT).await;
    let (status, answer) = changed(&backend, &material, |_as_it_is| {}).await;
    assert_eq!(status, 200, "{answer}");
    let mut gateway = backend.dial(&material).await;
    let (epoch, token) = gateway.open(1, 0, &material.token).await.unwrap();
    drop(gateway);
    let with_session = |request: &mut LapsedRenewal| {
        request.epoch = epoch;
        request.token = token.expose_hex();
    };
    let (status, again) = changed(&backend, &material, with_session).await;
    assert_eq!(status, 200, "{again}");
    assert_eq!(again["certificate"], answer["certificate"]);
    drop(backend.stop().await);
}

#[tokio::test]
async fn whoever_is_not_that_gateway_gets_none_at_the_door() {
    let backend = backend().await;
    let material = backend.join_for("gw-1", SHORT).await;
    let other = backend.join_for("gw-2", SHORT).await;
    let good = backend.join("gw-3").await;
    let refused = |(status, said): (u16, Value)| {
        let code = said["code"].as_str().unwrap_or_default().to_owned();
        assert!(!said["detail"].as_str().unwrap_or_default().is_empty());
        // Whoever has shown everything gets the authorities all the same, and nobody else does.
        let has_authorities = said.get("authorities").is_some();
        assert_eq!(has_authorities, code == "not_lapsed", "{said}");
        (status, code)
    };
    let no = |status: u16, code: &str| (status, code.to_owned());

    // Without its key: another gateway's, and a request that was changed on the way.
    let asked_by = request(&material, challenge(&backend, &material).await);
    let answer = sent_with(&backend, &material, &other.agent_key, asked_by).await;
    assert_eq!(refused(answer), no(403, "bad_proof"));
    let unproved = refusals(&backend, "gateway.unproved_renewal").await;
    assert_eq!(unproved, ["bad_proof"], "it is a security event");

    // A wrong token says the same as one of another epoch, whatever else is asked.
    let wrong = |request: &mut LapsedRenewal| request.token = "00".repeat(32);
    let answer = changed(&backend, &material, wrong).await;
    assert_eq!(refused(answer), no(403, "bad_token"));
    let ahead = |request: &mut LapsedRenewal| request.epoch = 7;
    let answer = changed(&backend, &material, ahead).await;
    assert_eq!(refused(answer), no(403, "bad_token"));

    // Keys that are not its own, and one of another kind of request.
    let foreign = csr(&own_key(&other));
    let answer = changed(&backend, &material, |request| request.csr = foreign).await;
    assert_eq!(refused(answer), no(403, "unknown_key"));
    let new = csr(&KeyPair::generate().unwrap());
    let answer = changed(&backend, &material, |request| request.csr = new).await;
    assert_eq!(refused(answer), no(403, "unknown_key"));
    let none = |request: &mut LapsedRenewal| request.csr = "nothing".to_owned();
    let answer = changed(&backend, &material, none).await;
    assert_eq!(refused(answer), no(400, "csr_malformed"));
    let answer = changed(&backend, &good, |_as_it_is| {}).await;
    assert_eq!(refused(answer), no(409, "not_lapsed"));

    // The challenge of another gateway, one that nobody gave, and one that was answered.
    let of_other = challenge(&backend, &other).await;
    let answer = sent(&backend, &material, request(&material, of_other)).await;
    assert_eq!(refused(answer), no(409, "challenge"));
    let made_up = WireChallenge([7; 32]);
    let answer = sent(&backend, &material, request(&material, made_up)).await;
    assert_eq!(refused(answer), no(409, "challenge"));
    drop(backend.stop().await);
}

#[tokio::test]
async fn the_door_says_that_a_certificate_was_revoked_and_its_gateway_was_not() {
    let backend = backend().await;
    let material = backend.join_for("gw-1", SHORT).await;
    let (tenant, actor) = (Tenant::default_tenant(), Actor::local("test"));
    let which = CertificateRef::Fingerprint(material.certificate.facts.fingerprint);
    let (agent_id, now) = (material.identity.agent_id, SystemClock.wall());
    let revoked = backend
        .store
        .revoke_certificate(&tenant, agent_id, &which, "copied", &actor, now);
    revoked.await.unwrap();
    let (status, said) = changed(&backend, &material, |_as_it_is| {}).await;
    let code = said["code"].as_str();
    assert_eq!((status, code), (403, Some("certificate_revoked")), "{said}");
    let detail = said["detail"].as_str().unwrap();
    for words in [
        "was revoked",
        "the gateway itself was not",
        "gateway replace gw-1",
    ] {
        assert!(detail.contains(words), "{detail}");
    }
    let noted = refusals(&backend, "certificate.renew_at_door").await;
    assert_eq!(noted, ["certificate_revoked"]);
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_gateway_at_the_door_is_given_the_authorities_whatever_comes_of_its_certificate() {
    let backend = backend().await;
    let ended = backend.join_for("gw-1", SHORT).await;
    let good = backend.join("gw-2").await;
    for (material, outcome) in [(&ended, 200), (&ended, 200), (&good, 409)] {
        let asks = request(material, challenge(&backend, material).await);
        let key = AgentKey::new(material.agent_key.clone());
        let exchange = LapsedExchange::new(&key, asks.agent_id, &asks.challenge);
        let body = serde_json::to_vec(&LapsedRequest::Renew(asks)).unwrap();
        let proof = exchange.prove(&body);
        let (status, answer) = asked(&backend, material, &body, Some(&proof)).await;
        assert_eq!(status, outcome, "{answer}");
        let given = answer["authorities"].clone();
        let given: GivenAuthorities = serde_json::from_value(given).unwrap();
        let bundle = exchange.given(&body, &given).unwrap();
        let certificate = |pem: &str| tls::one_certificate(pem.as_bytes()).unwrap();
        assert_eq!(certificate(bundle), certificate(&material.authority));
        // They are for this request of this gateway.
        assert_eq!(exchange.given(b"another", &given), None);
    }
    drop(backend.stop().await);
}

/// Where it had its share of certificates, the authorities alone may be all that lets it in.
#[tokio::test]
async fn a_gateway_that_asks_too_soon_is_given_the_authorities_all_the_same() {
    let backend = backend().await;
    let material = backend.join_for("gw-1", SHORT).await;
    let (identity, facts) = (&material.identity, &material.certificate.facts);
    // It got one a moment ago, which ends so soon that it counts as ended as well.
    let (tenant, now) = (Tenant::default_tenant(), SystemClock.wall());
    let reissue = Reissue {
        challenge: AnsweredChallenge {
            challenge: random::bytes(),
            expires_at: now.saturating_add(Duration::from_secs(60)),
        },
        peer: "127.0.0.1".parse().unwrap(),
        shown: Shown {
            epoch: 0,
            token_valid: true,
            key_generation: 1,
        },
        wall: now,
        certificate: NewCertificate {
            agent_id: identity.agent_id,
            spki: facts.spki,
            serial: facts.serial.clone(),
            not_after: facts.not_after,
            fingerprint: random::bytes(),
            issuer: None,
        },
        pem: material.certificate.certificate.clone(),
    };
    let done = backend.store.reissue_certificate(&tenant, reissue, now);
    assert_eq!(done.await.unwrap(), ReissueOutcome::Issued);

    let asks = request(&material, challenge(&backend, &material).await);
    let key = AgentKey::new(material.agent_key.clone());
    let exchange = LapsedExchange::new(&key, asks.agent_id, &asks.challenge);
    let body = serde_json::to_vec(&LapsedRequest::Renew(asks)).unwrap();
    let proof = exchange.prove(&body);
    let (status, answer) = asked(&backend, &material, &body, Some(&proof)).await;
    let code = answer["code"].as_str();
    assert_eq!((status, code), (429, Some("too_soon")), "{answer}");
    let given = answer["authorities"].clone();
    let given: GivenAuthorities = serde_json::from_value(given).unwrap();
    let bundle = exchange.given(&body, &given).unwrap();
    let certificate = |pem: &str| tls::one_certificate(pem.as_bytes()).unwrap();
    assert_eq!(certificate(bundle), certificate(&material.authority));
    assert_eq!(exchange.given(b"another", &given), None);
    let noted = refusals(&backend, "certificate.renew_at_door").await;
    assert_eq!(noted, ["too_soon", "issued"]);
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_request_at_the_door_cannot_be_replayed_and_a_revoked_gateway_gets_nothing() {
    let backend = backend().await;
    let material = backend.join_for("gw-1", SHORT).await;
    let asked = request(&material, challenge(&backend, &material).await);
    let (status, answer) = sent(&backend, &material, asked.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let (status, said) = sent(&backend, &material, asked).await;
    assert_eq!((status, said["code"].as_str()), (409, Some("challenge")));

    let (tenant, actor) = (Tenant::default_tenant(), Actor::local("test"));
    let now = SystemClock.wall();
    let agent_id = material.identity.agent_id;
    let revoked = backend
        .store
        .revoke_gateway(&tenant, agent_id, None, &actor, now);
    revoked.await.unwrap().unwrap();
    let (status, said) = changed(&backend, &material, |_as_it_is| {}).await;
    assert_eq!((status, said["code"].as_str()), (410, Some("revoked")));
    let noted = refusals(&backend, "certificate.renew_at_door").await;
    assert_eq!(noted, ["revoked", "challenge", "issued"]);
    drop(backend.stop().await);
}

#[tokio::test]
async fn nothing_is_signed_at_the_door_for_whoever_gets_no_certificate() {
    let folder = pki::initialised();
    let authority = folder.path().join("b/ca.key");
    let backend = backend_in(folder, Arc::new(SystemClock)).await;
    let material = backend.join_for("gw-1", SHORT).await;
    let good = backend.join("gw-2").await;
    let gone = backend.join_for("gw-3", SHORT).await;
    let late = backend.join_for("gw-4", SHORT).await;
    let (status, first) = changed(&backend, &material, |_as_it_is| {}).await;
    assert_eq!(status, 200, "{first}");
    let (tenant, actor) = (Tenant::default_tenant(), Actor::local("test"));
    let (agent_id, now) = (gone.identity.agent_id, SystemClock.wall());
    let revoked = backend
        .store
        .revoke_gateway(&tenant, agent_id, None, &actor, now);
    revoked.await.unwrap().unwrap();

    // From here on nothing can be signed.
    std::fs::remove_file(authority).unwrap();
    let (status, again) = changed(&backend, &material, |_as_it_is| {}).await;
    assert_eq!(status, 200, "{again}");
    assert_eq!(again["certificate"], first["certificate"]);
    for (who, said) in [
        (&good, (409, "not_lapsed")),
        (&gone, (410, "revoked")),
        (&late, (503, "unavailable")),
    ] {
        let (status, answer) = changed(&backend, who, |_as_it_is| {}).await;
        assert_eq!((status, answer["code"].as_str()), (said.0, Some(said.1)));
    }
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_challenge_that_is_answered_after_its_minute_is_none() {
    let clock = Arc::new(Stepped::default());
    let backend = backend_by(Arc::<Stepped>::clone(&clock)).await;
    let material = backend.join_for("gw-1", SHORT).await;
    let late = request(&material, challenge(&backend, &material).await);
    clock.pass(61);
    let (status, said) = sent(&backend, &material, late).await;
    assert_eq!((status, said["code"].as_str()), (409, Some("challenge")));
    let (status, answer) = changed(&backend, &material, |_as_it_is| {}).await;
    assert_eq!(status, 200, "{answer}");
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_gateway_that_asks_at_the_door_without_end_is_told_when_to_come_back() {
    let backend = backend().await;
    let material = backend.join_for("gw-1", SHORT).await;
    let mut told = Vec::new();
    for _ in 0..9 {
        let (status, _said) = changed(&backend, &material, |_as_it_is| {}).await;
        told.push(status);
    }
    assert!(told.starts_with(&[200; 6]), "{told:?}");
    assert!(told.contains(&429), "{told:?}");
    drop(backend.stop().await);
}

/// Somebody redeems a ticket with this request, proved as it should be; answers the status and what was said.
async fn redeemed(
    backend: &Backend,
    authority: &[u8],
    (ticket, secret): (TicketId, &Secret),
    csr: &str,
) -> (u16, Value) {
    let address = backend.app.enrolment.unwrap().to_string();
    let body = serde_json::to_vec(&EnrolmentRequest::Challenge { ticket }).unwrap();
    let asked = door::ask(&address, authority, b"", &body, None).await;
    let EnrolmentChallenge { challenge, .. } = serde_json::from_value(asked.unwrap().1).unwrap();
    let request = EnrolmentRequest::Redeem(RedeemRequest {
        ticket,
        challenge,
        csr: csr.to_owned(),
        install_id: InstallId::from_uuid(*ticket.as_uuid()),
        name: None,
        host: "edge-7".to_owned(),
        agent_version: "0.1.0".parse().unwrap(),
    });
    let body = serde_json::to_vec(&request).unwrap();
    let proof = Exchange::new(secret, ticket, &challenge).prove(&body);
    let answer = door::ask(&address, authority, b"", &body, Some(&proof)).await;
    answer.unwrap()
}

/// A ticket for so many machines, with its secret.
async fn ticket(backend: &Backend, office: &Office, uses_max: u32) -> (TicketId, Secret) {
    let (tenant, actor) = (Tenant::default_tenant(), Actor::local("test"));
    let now = SystemClock.wall();
    let id = TicketId::from_uuid(random::uuid_v7(now));
    let secret = office.master.ticket_secret(&tenant, id);
    let ticket = NewTicket {
        id,
        sha256: Sha256::digest(secret.expose()).into(),
        uses_max,
        labels: BTreeMap::new(),
        naming: NameRule::Prefix("gw-".to_owned()),
        networks: Vec::new(),
        replaces: None,
        allow_replace: false,
        ephemeral: None,
        expires_at: now.saturating_add(Duration::from_secs(3_600)),
    };
    let bounds = TicketBounds {
        live: 9,
        of_one: 9,
        ended: 9,
    };
    let made = backend
        .store
        .create_ticket(&tenant, ticket, bounds, &actor, now);
    assert_eq!(made.await.unwrap(), TicketOutcome::Made);
    (id, secret)
}

#[tokio::test]
async fn what_no_reload_has_taken_over_of_the_authorities_changes_nothing_for_whoever_enrols_or_renews()
 {
    let folder = pki::initialised();
    let office = Office::open(&pki::config(&folder)).unwrap();
    let file = folder.path().join("b/ca.crt");
    let backend = backend_in(folder, Arc::new(SystemClock)).await;
    let lapsed = backend.join_for("gw-1", SHORT).await;
    let (id, secret) = ticket(&backend, &office, 9).await;
    let authority = office.authority.certificate();
    let (other, _key) = Authority::create(SystemClock.wall()).unwrap();
    let beside = format!("{}{authority}", other.certificate());
    for (n, text) in ["", &authority[..authority.len() / 2], beside.as_str()]
        .into_iter()
        .enumerate()
    {
        std::fs::write(&file, text).unwrap();
        let own = csr(&KeyPair::generate().unwrap());
        let (status, said) = redeemed(&backend, authority.as_bytes(), (id, &secret), &own).await;
        assert_eq!(status, 200, "{n}: {said}");
        assert_eq!(said["authority"], authority, "{n}");
        let certificate = said["certificate"].as_str().unwrap();
        let certificate = tls::one_certificate(certificate.as_bytes()).unwrap();
        let roots = tls::one_certificate(authority.as_bytes()).unwrap();
        let verifier = tls::roots([roots]).and_then(tls::client_verifier).unwrap();
        let judged = verifier.verify_client_cert(&certificate, &[], UnixTime::now());
        assert!(judged.is_ok(), "{n}: {judged:?}");
    }
    let (status, said) = changed(&backend, &lapsed, |_as_it_is| {}).await;
    assert_eq!(status, 200, "{said}");
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_machine_that_redeems_its_ticket_without_end_is_told_when_to_come_back() {
    let folder = pki::initialised();
    let office = Office::open(&pki::config(&folder)).unwrap();
    let backend = backend_in(folder, Arc::new(SystemClock)).await;
    let (id, secret) = ticket(&backend, &office, 2).await;
    let authority = office.authority.certificate().as_bytes();
    let own = csr(&KeyPair::generate().unwrap());
    let mut told = Vec::new();
    for _ in 0..40 {
        let (status, _said) = redeemed(&backend, authority, (id, &secret), &own).await;
        told.push(status);
    }
    assert!(told.starts_with(&[200; 30]), "{told:?}");
    assert!(told.contains(&429), "{told:?}");
    // It takes nothing of another machine with the same ticket.
    let other = csr(&KeyPair::generate().unwrap());
    let (status, said) = redeemed(&backend, authority, (id, &secret), &other).await;
    assert_eq!(status, 200, "{said}");
    drop(backend.stop().await);
}

#[tokio::test]
async fn many_gateways_that_come_back_together_are_all_answered() {
    let backend = backend().await;
    let names: Vec<String> = (0..40).map(|n| format!("gw-{n}")).collect();
    let mut joined = Vec::new();
    for name in &names {
        joined.push(backend.join_for(name, SHORT).await);
    }
    let asked = joined.iter().map(async |material| {
        let (status, _answer) = changed(&backend, material, |_as_it_is| {}).await;
        status
    });
    let answered = join_all(asked).await;
    assert_eq!(answered, [200; 40]);
    drop(backend.stop().await);
}

#[tokio::test]
async fn requests_at_the_door_without_a_gateways_key_are_recorded_within_a_bound() {
    let backend = backend().await;
    let mut joined = Vec::new();
    for name in ["gw-1", "gw-2"] {
        joined.push(backend.join_for(name, SHORT).await);
    }
    let wrong = Secret::from_bytes([7; 32]);
    for n in 0..60 {
        let material = &joined[n % joined.len()];
        let asked = request(material, challenge(&backend, material).await);
        let (status, said) = sent_with(&backend, material, &wrong, asked).await;
        assert_eq!((status, said["code"].as_str()), (403, Some("bad_proof")));
    }
    // As time goes by there is room for more of them.
    let recorded = refusals(&backend, "gateway.unproved_renewal").await.len();
    assert!((30..50).contains(&recorded), "{recorded}");
    drop(backend.stop().await);
}
