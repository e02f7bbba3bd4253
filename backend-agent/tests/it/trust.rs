//! The authorities of the server on their way to gateways, and whose certificates they signed, over real connections.

use std::sync::Arc;
use std::time::Duration;

use viworks_backend_agent::data::{Actor, GatewayRef};
use viworks_backend_agent::material::ServerMaterial;
use viworks_backend_agent::pki::issue::{IssueRequest, Material, Office, make};
use viworks_common::id::Tenant;
use viworks_common::key::Secret;
use viworks_common::session::AgentEvent;
use viworks_common::wire::message::{AgentMessage, TRUST_UPDATE, TrustReport, Welcome};
use viworks_runtime::clock::{Clock as _, SystemClock};

use crate::inbound::{Backend, Gateway};
use crate::pki;
use crate::renewing::connected;

/// How the gateway is welcomed in the session that it opens, and what it is given.
async fn given(gateway: &mut Gateway) -> (Box<Welcome>, String) {
    let mut welcomed = None;
    loop {
        match gateway.event().await {
            Some(AgentEvent::Welcomed(welcome)) => {
                welcomed = Some(welcome);
                gateway.session.confirm(SystemClock.now());
            }
            Some(AgentEvent::AuthoritiesOffered(bundle)) => return (welcomed.unwrap(), bundle),
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

/// The bundle that the first gateway has, as it is stored.
async fn has(backend: &Backend) -> Option<String> {
    let which = GatewayRef::Name("gw-1".parse().unwrap());
    let gateway = backend
        .store
        .gateway(&Tenant::default_tenant(), &which)
        .await;
    gateway.unwrap().unwrap().authorities
}

/// Lets a gateway join of which it is not known which authorities it was given, as of one of before.
async fn join_before(backend: &Backend, office: &Office, name: &str) -> Material {
    let (tenant, now) = (Tenant::default_tenant(), SystemClock.wall());
    let request = IssueRequest {
        name: name.parse().unwrap(),
        labels: [].into(),
        life: Duration::from_secs(24 * 3_600),
    };
    let (material, mut gateway) = make(&tenant, office, request, now).unwrap();
    gateway.authorities = None;
    let actor = Actor::system();
    let made = backend.store.create_gateway(&tenant, gateway, &actor, now);
    made.await.unwrap();
    material
}

fn report(gateway: &mut Gateway, digest: &str) {
    let report = AgentMessage::TrustReport(TrustReport {
        digest: digest.to_owned(),
        refused: None,
    });
    gateway.session.send(report, SystemClock.now()).unwrap();
}

#[tokio::test]
async fn a_session_begins_with_the_authorities_where_the_gateway_takes_them() {
    let folder = pki::initialised();
    let config = pki::config(&folder);
    let authorities = ServerMaterial::load(&config).unwrap().authorities;
    let office = Office::open(&config).unwrap();
    let backend = Backend::start_on(folder, Arc::new(SystemClock)).await;
    let first = join_before(&backend, &office, "gw-1").await;
    let second = join_before(&backend, &office, "gw-2").await;
    let mut able = backend.dial(&first).await;
    able.capabilities = vec![TRUST_UPDATE.to_owned()];
    able.hello(1, 0, &first.token).await;
    let (welcome, bundle) = given(&mut able).await;
    assert_eq!(Some(bundle.as_str()), authorities.bundle());
    report(&mut able, authorities.digest());
    able.round_trip().await;
    assert_eq!(has(&backend).await.as_deref(), Some(authorities.digest()));
    let tenant = Tenant::default_tenant();
    let of_all = backend.store.authority_trust(&tenant);
    assert_eq!(
        of_all.await.unwrap().lacking(&authorities.ids()).gateways,
        1
    );

    // One that does not know the kind was given nothing, so it has nothing to report of.
    let (mut earlier, _welcome) = connected(&backend, &second, &[], (0, &second.token)).await;
    report(&mut earlier, authorities.digest());
    let reason = loop {
        match earlier.event().await {
            Some(AgentEvent::Refused { reason, .. }) => break reason,
            Some(_) => {}
            None => panic!("it was not told why"),
        }
    };
    assert!(reason.contains("authorities are reported"), "{reason}");
    drop((able, earlier));

    // What the first one has outlives its session, and goes with an agent that takes none.
    assert_eq!(has(&backend).await.as_deref(), Some(authorities.digest()));
    let token = Secret::from_hex(&welcome.token).unwrap();
    let session = (welcome.epoch, &token);
    let (downgraded, _welcome) = connected(&backend, &first, &[], session).await;
    assert_eq!(has(&backend).await, None);
    drop(downgraded);
    drop(backend.stop().await);
}

#[tokio::test]
async fn who_signed_a_certificate_of_which_that_is_not_stored_is_learned_with_a_session_of_it() {
    let folder = pki::initialised();
    let config = pki::config(&folder);
    let trusted = ServerMaterial::load(&config).unwrap().authorities;
    let office = Office::open(&config).unwrap();
    let backend = Backend::start_on(folder, Arc::new(SystemClock)).await;
    let (tenant, now) = (Tenant::default_tenant(), SystemClock.wall());
    let request = IssueRequest {
        name: "gw-1".parse().unwrap(),
        labels: [].into(),
        life: Duration::from_secs(24 * 3_600),
    };
    let (material, mut gateway) = make(&tenant, &office, request, now).unwrap();
    // As one of before is.
    let signer = gateway.certificate.as_mut().unwrap().issuer.take();
    assert_eq!(signer, Some(trusted.all()[0].issuer));
    let actor = Actor::system();
    let made = backend.store.create_gateway(&tenant, gateway, &actor, now);
    made.await.unwrap();
    let stored = async || {
        let (agent_id, spki) = (material.identity.agent_id, &material.certificate.facts.spki);
        let known = backend.store.certificate(&tenant, agent_id, spki).await;
        known.unwrap().unwrap().issuer
    };
    // Whoever has the certificate and not the agent key has nothing stored.
    drop(backend.dial(&material).await);
    assert_eq!(stored().await, None);
    let session = (0, &material.token);
    let (gateway, _welcome) = connected(&backend, &material, &[], session).await;
    assert_eq!(stored().await, signer);
    drop(gateway);
    drop(backend.stop().await);
}
