//! Later agent keys for gateways, over real connections.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use viworks_backend_agent::data::{Actor, GatewayRef, KeyRotation, SiteClaim};
use viworks_backend_agent::pki::issue::{Material, load_master};
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::key::Secret;
use viworks_common::session::AgentEvent;
use viworks_common::wire::message::{AgentMessage, KEY_ROTATION, KeyReport};
use viworks_runtime::clock::{Clock as _, SystemClock};

use crate::inbound::{Backend, Gateway};
use crate::pki;

async fn backend() -> Backend {
    Backend::start_on(pki::initialised(), Arc::new(SystemClock)).await
}

/// A gateway with a session, and the ratchet of that.
async fn connected(
    backend: &Backend,
    material: &Material,
    announces: &[&str],
    (epoch, token): (u64, &Secret),
) -> (Gateway, (u64, Secret)) {
    let mut gateway = backend.dial(material).await;
    gateway.capabilities = announces.iter().copied().map(str::to_owned).collect();
    let ratchet = gateway.open(1, epoch, token).await.unwrap();
    (gateway, ratchet)
}

async fn known(backend: &Backend) -> viworks_backend_agent::data::Gateway {
    let which = GatewayRef::Name("gw-1".parse().unwrap());
    let tenant = Tenant::default_tenant();
    let found = backend.store.gateway(&tenant, &which);
    found.await.unwrap().unwrap()
}

async fn wanted(backend: &Backend, agent_id: AgentId) -> u32 {
    let (tenant, actor) = (Tenant::default_tenant(), Actor::local("test"));
    let now = SystemClock.wall();
    let rotated = backend.store.rotate_key(&tenant, agent_id, &actor, now);
    match rotated.await.unwrap() {
        Some(KeyRotation::Wanted(generation)) => generation,
        other => panic!("none is to be had: {other:?}"),
    }
}

/// The key that comes.
async fn offered(gateway: &mut Gateway) -> (u8, Secret) {
    loop {
        match gateway.event().await {
            Some(AgentEvent::KeyOffered { generation, key }) => {
                return (generation, key.secret().clone());
            }
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

fn report(gateway: &mut Gateway, generation: u8) {
    let report = AgentMessage::KeyReport(KeyReport { generation });
    gateway.session.send(report, SystemClock.now()).unwrap();
}

#[tokio::test]
async fn a_session_begins_with_the_key_that_is_wanted_and_its_first_hello_retires_the_one_before() {
    let backend = backend().await;
    let mut material = backend.join("gw-1").await;
    let agent_id = material.identity.agent_id;
    let first = (0, &material.token);
    let (gateway, (epoch, token)) = connected(&backend, &material, &[KEY_ROTATION], first).await;
    assert_eq!(known(&backend).await.keys().takes_one, Some(true));
    assert_eq!(wanted(&backend, agent_id).await, 2);
    drop(gateway);

    // The key that a gateway lost comes again, the same in another cover.
    let mut ratchet = (epoch, token);
    let mut keys = Vec::new();
    for _session in 0..2 {
        let session = (ratchet.0, &ratchet.1);
        let mut gateway = backend.dial(&material).await;
        gateway.capabilities = vec![KEY_ROTATION.to_owned()];
        gateway.hello(1, session.0, session.1).await;
        let Some(AgentEvent::Welcomed(welcome)) = gateway.event().await else {
            panic!("it is not welcome");
        };
        gateway.session.confirm(SystemClock.now());
        let (generation, key) = offered(&mut gateway).await;
        assert_eq!(generation, 2);
        report(&mut gateway, 2);
        gateway.round_trip().await;
        keys.push(key);
        ratchet = (welcome.epoch, Secret::from_hex(&welcome.token).unwrap());
        // That it is durable there retires nothing.
        assert_eq!(known(&backend).await.key_generation, 1);
    }
    assert_eq!(keys[0], keys[1]);
    assert_ne!(keys[0], material.agent_key);

    let before = material.agent_key.clone();
    (material.agent_key, material.key_generation) = (keys[0].clone(), 2);
    let session = (ratchet.0, &ratchet.1);
    let (gateway, (epoch, token)) = connected(&backend, &material, &[KEY_ROTATION], session).await;
    assert_eq!(known(&backend).await.keys().pending(), None);
    drop(gateway);
    (material.agent_key, material.key_generation) = (before, 1);
    let mut gateway = backend.dial(&material).await;
    gateway.hello(1, epoch, &token).await;
    // An operator may keep it, and then it is not to wait for long.
    let refused = gateway.event().await;
    assert!(
        matches!(
            refused,
            Some(AgentEvent::Refused {
                code: CloseCode::CertUntrusted,
                retry_after: Some(_),
                ..
            })
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_agent_that_announces_nothing_is_sent_no_key_and_reports_none() {
    let backend = backend().await;
    let material = backend.join("gw-1").await;
    assert_eq!(wanted(&backend, material.identity.agent_id).await, 2);
    let first = (0, &material.token);
    let (mut gateway, _ratchet) = connected(&backend, &material, &[], first).await;
    assert_eq!(known(&backend).await.keys().takes_one, Some(false));
    report(&mut gateway, 2);
    loop {
        match gateway.event().await {
            Some(AgentEvent::KeyOffered { .. }) => panic!("it does not know that kind"),
            Some(AgentEvent::Refused { code, .. }) => {
                assert_eq!(code, CloseCode::BadEnvelope);
                return;
            }
            Some(_) => {}
            None => panic!("it is told why"),
        }
    }
}

/// On a folder with both master keys, of which the new one is in this file.
async fn with_both(folder: TempDir, new: &Path) -> Backend {
    let new = new.to_owned();
    Backend::start_changed(folder, Arc::new(SystemClock), move |config| {
        let previous = std::mem::replace(&mut config.keys.master_key_file, new);
        config.keys.previous_master_key_file = Some(previous);
    })
    .await
}

#[tokio::test]
async fn a_gateway_moves_to_the_master_key_to_which_the_site_belongs_and_not_before() {
    let backend = backend().await;
    let mut material = backend.join("gw-1").await;
    let folder = backend.stop().await;
    let path = folder.path().join("new-master.key");
    std::fs::write(&path, "5c".repeat(32)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let new = load_master(&path).unwrap();

    let backend = with_both(folder, &path).await;
    let first = (0, &material.token);
    let (gateway, (epoch, token)) = connected(&backend, &material, &[KEY_ROTATION], first).await;
    let keys = known(&backend).await.keys();
    assert!(keys.master.is_some_and(|old| old != new.id()), "{keys:?}");
    assert_eq!(keys.pending(), None);
    drop(gateway);
    let check = new.check();
    let moved = backend.store.claim_site(&check, SiteClaim::Replaced);
    assert!(moved.await.unwrap());
    let folder = backend.stop().await;

    let backend = with_both(folder, &path).await;
    let mut gateway = backend.dial(&material).await;
    gateway.capabilities = vec![KEY_ROTATION.to_owned()];
    gateway.hello(1, epoch, &token).await;
    let Some(AgentEvent::Welcomed(welcome)) = gateway.event().await else {
        panic!("it is not welcome");
    };
    gateway.session.confirm(SystemClock.now());
    let (generation, key) = offered(&mut gateway).await;
    assert_eq!(generation, 2);
    assert_eq!(key, *new.agent_key(&material.identity, 2).secret());
    assert_eq!(known(&backend).await.keys().master, None);
    drop(gateway);
    let token = Secret::from_hex(&welcome.token).unwrap();
    assert_eq!(token, new.token(&material.identity, welcome.epoch));
    (material.agent_key, material.key_generation) = (key, 2);
    let session = (welcome.epoch, &token);
    let (_gateway, _ratchet) = connected(&backend, &material, &[KEY_ROTATION], session).await;
    let keys = known(&backend).await.keys();
    assert_eq!((keys.generation, keys.pending()), (2, None));
    assert_eq!(keys.master, Some(new.id()));
}
