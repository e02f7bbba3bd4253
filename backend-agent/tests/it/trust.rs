//! The authorities of the server on their way to gateways, over real connections.

use std::sync::Arc;

use viworks_backend_agent::material::ServerMaterial;
use viworks_common::session::AgentEvent;
use viworks_common::wire::message::{AgentMessage, TRUST_UPDATE, TrustReport};
use viworks_runtime::clock::{Clock as _, SystemClock};

use crate::inbound::{Backend, Gateway};
use crate::pki;
use crate::renewing::connected;

/// What the gateway is given in the session that it opens.
async fn given(gateway: &mut Gateway) -> String {
    loop {
        match gateway.event().await {
            Some(AgentEvent::Welcomed(_)) => gateway.session.confirm(SystemClock.now()),
            Some(AgentEvent::AuthoritiesOffered(bundle)) => return bundle,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
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
    let material = ServerMaterial::load(&pki::config(&folder)).unwrap();
    let authorities = material.authorities;
    let backend = Backend::start_on(folder, Arc::new(SystemClock)).await;
    let (first, second) = (backend.join("gw-1").await, backend.join("gw-2").await);
    let mut able = backend.dial(&first).await;
    able.capabilities = vec![TRUST_UPDATE.to_owned()];
    able.hello(1, 0, &first.token).await;
    let bundle = given(&mut able).await;
    assert_eq!(Some(bundle.as_str()), authorities.bundle());
    report(&mut able, authorities.digest());
    able.round_trip().await;

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
    drop(backend.stop().await);
}
