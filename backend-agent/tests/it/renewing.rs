//! What gateways are answered that ask for another certificate, over real connections.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use viworks_backend_agent::config::Config;
use viworks_backend_agent::data::{Actor, CertificateRef, GatewayRef, Page};
use viworks_backend_agent::pki::authority::Issued;
use viworks_backend_agent::pki::issue::Material;
use viworks_common::code::CloseCode;
use viworks_common::id::Tenant;
use viworks_common::key::Secret;
use viworks_common::session::AgentEvent;
use viworks_common::wire::message::{
    AgentMessage, CERTIFICATE_RENEWAL, CertIssued, CertRefused, CertRequest, Welcome,
};
use viworks_runtime::clock::{Clock as _, SystemClock};
use zeroize::Zeroizing;

use crate::inbound::{Backend, Gateway};
use crate::pki;

async fn backend() -> Backend {
    Backend::start_on(pki::initialised(), Arc::new(SystemClock)).await
}

/// A confirmed session of a gateway that announces this.
pub(crate) async fn connected(
    backend: &Backend,
    material: &Material,
    capabilities: &[&str],
    (epoch, token): (u64, &Secret),
) -> (Gateway, Box<Welcome>) {
    let mut gateway = backend.dial(material).await;
    gateway.capabilities = capabilities.iter().copied().map(str::to_owned).collect();
    gateway.hello(1, epoch, token).await;
    let Some(AgentEvent::Welcomed(welcome)) = gateway.event().await else {
        panic!("it is not welcome");
    };
    gateway.session.confirm(SystemClock.now());
    assert!(matches!(
        gateway.event().await,
        Some(AgentEvent::Established)
    ));
    gateway.round_trip().await;
    (gateway, welcome)
}

fn request(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn ask(gateway: &mut Gateway, csr: &str) {
    let csr = csr.to_owned();
    let message = AgentMessage::CertRequest(CertRequest { csr });
    gateway.session.send(message, SystemClock.now()).unwrap();
}

async fn answered(gateway: &mut Gateway, csr: &str) -> CertIssued {
    ask(gateway, csr);
    loop {
        match gateway.event().await {
            Some(AgentEvent::CertificateAnswered(answer)) => return *answer,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

async fn refused(gateway: &mut Gateway, csr: &str) -> String {
    let answer = answered(gateway, csr).await;
    assert_eq!(answer.certificate, None);
    answer.refused.unwrap().code
}

async fn actions(backend: &Backend) -> Vec<String> {
    let tenant = Tenant::default_tenant();
    let audit = backend.store.list_audit(&tenant, Page::first(100));
    let items = audit.await.unwrap().items.into_iter();
    items.map(|entry| entry.record.action).collect()
}

#[tokio::test]
async fn a_gateway_is_issued_another_certificate_and_the_one_before_retires_with_its_session() {
    let backend = backend().await;
    let material = backend.join("gw-1").await;
    let (mut gateway, welcome) = connected(
        &backend,
        &material,
        &[CERTIFICATE_RENEWAL],
        (0, &material.token),
    )
    .await;
    assert!(welcome.renews_certificates);
    let key = KeyPair::generate().unwrap();
    let issued = answered(&mut gateway, &request(&key)).await;
    assert_eq!(issued.refused, None);
    // Nobody else has that key: whoever asks again did not hear.
    let again = answered(&mut gateway, &request(&key)).await;
    assert_eq!(again, issued);
    let other = KeyPair::generate().unwrap();
    let own = KeyPair::from_pem(&material.certificate.key).unwrap();
    for (csr, code) in [
        (request(&other), CertRefused::TOO_SOON),
        (request(&own), CertRefused::KEY_IN_USE),
        ("nothing of the kind".to_owned(), "csr_malformed"),
    ] {
        assert_eq!(refused(&mut gateway, &csr).await, code);
    }
    drop(gateway);

    let renewed = Material {
        identity: material.identity.clone(),
        trust_domain: material.trust_domain.clone(),
        certificate: Issued {
            certificate: issued.certificate.unwrap(),
            key: Zeroizing::new(key.serialize_pem()),
            facts: material.certificate.facts.clone(),
        },
        authority: material.authority.clone(),
        key_generation: material.key_generation,
        agent_key: material.agent_key.clone(),
        token: material.token.clone(),
    };
    let path = "/agent/v1/connect";
    let old = &material.certificate;
    // Until then both are good.
    assert_eq!(backend.status(Some(old), path, true).await, Some(101));
    let token = Secret::from_hex(&welcome.token).unwrap();
    let session = (welcome.epoch, &token);
    let (gateway, _welcome) = connected(&backend, &renewed, &[CERTIFICATE_RENEWAL], session).await;
    assert_eq!(backend.status(Some(old), path, true).await, Some(403));
    let new = &renewed.certificate;
    assert_eq!(backend.status(Some(new), path, true).await, Some(101));
    let actions = actions(&backend).await;
    let count = |wanted: &str| actions.iter().filter(|action| *action == wanted).count();
    // One that was issued, and the request that was no good.
    assert_eq!(count("certificate.renew"), 2, "{actions:?}");
    assert_eq!(count("certificate.prove"), 1, "{actions:?}");
    assert_eq!(count("gateway.retired_certificate"), 1, "{actions:?}");
    drop(gateway);
    drop(backend.stop().await);
}

#[tokio::test]
async fn many_gateways_that_ask_at_once_are_all_answered() {
    let backend = backend().await;
    let names: Vec<String> = (0..24).map(|n| format!("gw-{n}")).collect();
    let mut joined = Vec::new();
    for name in &names {
        joined.push(backend.join(name).await);
    }
    let asked = joined.iter().map(async |material| {
        let session = (0, &material.token);
        let announced = &[CERTIFICATE_RENEWAL];
        let (mut gateway, _welcome) = connected(&backend, material, announced, session).await;
        let key = KeyPair::generate().unwrap();
        answered(&mut gateway, &request(&key)).await.certificate
    });
    let issued = join_all(asked).await;
    assert!(issued.iter().all(Option::is_some), "{issued:?}");
    drop(backend.stop().await);
}

#[tokio::test]
async fn an_earlier_agent_is_told_nothing_of_renewals_and_may_ask_for_none() {
    let backend = backend().await;
    let material = backend.join("gw-1").await;
    let (mut gateway, welcome) = connected(&backend, &material, &[], (0, &material.token)).await;
    assert!(!welcome.renews_certificates);
    ask(&mut gateway, &request(&KeyPair::generate().unwrap()));
    let code = loop {
        match gateway.event().await {
            Some(AgentEvent::Refused { code, .. }) => break code,
            Some(_) => {}
            None => panic!("the session ended without a word"),
        }
    };
    assert_eq!(code, CloseCode::BadEnvelope);
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_revoked_certificate_is_cut_off_and_its_gateway_is_not_revoked() {
    let often = Duration::from_millis(100);
    let clock = Arc::new(SystemClock);
    let change = |config: &mut Config| config.jobs.offer = often;
    let backend = Backend::start_changed(pki::initialised(), clock, change).await;
    let material = backend.join("gw-1").await;
    let session = (0, &material.token);
    let (mut gateway, _welcome) = connected(&backend, &material, &[], session).await;
    let (tenant, actor) = (Tenant::default_tenant(), Actor::system());
    let agent_id = material.identity.agent_id;
    let which = CertificateRef::Fingerprint(material.certificate.facts.fingerprint);
    let (store, now) = (&backend.store, SystemClock.wall());
    let revoked = store.revoke_certificate(&tenant, agent_id, &which, "copied", &actor, now);
    revoked.await.unwrap();
    // Nobody has told the session here: it finds out by itself.
    assert_eq!(gateway.close_number().await, Some(4403));
    let shown = Some(&material.certificate);
    let status = backend.status(shown, "/agent/v1/connect", true).await;
    assert_eq!(status, Some(403));
    let known = store.gateway(&tenant, &GatewayRef::Id(agent_id)).await;
    assert_eq!(known.unwrap().unwrap().revoked_at, None);
    let actions = actions(&backend).await;
    let noted = |wanted: &str| actions.iter().any(|action| action == wanted);
    assert!(noted("gateway.revoked_certificate"), "{actions:?}");
    drop(backend.stop().await);
}

#[tokio::test]
async fn whoever_knocks_after_its_gateway_was_revoked_is_a_security_event() {
    let backend = backend().await;
    let material = backend.join("gw-1").await;
    let (tenant, actor) = (Tenant::default_tenant(), Actor::system());
    let (agent_id, now) = (material.identity.agent_id, SystemClock.wall());
    let store = &backend.store;
    let revoked = store.revoke_gateway(&tenant, agent_id, None, &actor, now);
    revoked.await.unwrap();
    let shown = Some(&material.certificate);
    for _knock in 0..2 {
        let status = backend.status(shown, "/agent/v1/connect", true).await;
        assert_eq!(status, Some(403));
    }
    let actions = actions(&backend).await;
    let count = |wanted: &str| actions.iter().filter(|action| *action == wanted).count();
    // The second one within a minute is counted in memory alone.
    assert_eq!(count("gateway.revoked_certificate"), 1, "{actions:?}");
    assert_eq!(count("gateway.replaced_certificate"), 0, "{actions:?}");
    let looked = store.last_refusal(&tenant, agent_id).await.unwrap();
    assert_eq!(looked.last.unwrap().why, "revoked_certificate");
    drop(backend.stop().await);
}
