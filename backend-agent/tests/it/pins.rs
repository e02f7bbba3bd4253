//! Pin sets on their way to gateways, over real connections.

use std::sync::Arc;

use viworks_backend_agent::data::{
    Actor, GatewayRef, OwnPins, PinChange, PinOutcome, PinStep, PinsKnown,
};
use viworks_backend_agent::material::ServerMaterial;
use viworks_common::id::Tenant;
use viworks_common::key::Secret;
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::session::AgentEvent;
use viworks_common::wire::message::{AgentMessage, Heartbeat, PIN_ROTATION, PinReport};
use viworks_runtime::clock::{Clock as _, SystemClock};

use crate::inbound::{Backend, Gateway};
use crate::pki;
use crate::renewing::connected;

async fn offered(gateway: &mut Gateway) -> PinSet {
    loop {
        match gateway.event().await {
            Some(AgentEvent::PinsOffered(set)) => return *set,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

/// Whether nothing but the answer comes to a gateway that says something.
async fn is_left_alone(gateway: &mut Gateway) -> bool {
    let heartbeat = Heartbeat {
        sent_at_ms: 2,
        round_trip_us: None,
        clock_skew_ms: None,
        spool_records: 0,
        spool_bytes: 0,
        commands_running: 0,
    };
    let message = AgentMessage::Heartbeat(heartbeat);
    gateway.session.send(message, SystemClock.now()).unwrap();
    loop {
        match gateway.event().await {
            Some(AgentEvent::RoundTrip { .. }) => return true,
            Some(AgentEvent::PinsOffered(_)) => return false,
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
}

async fn trusted(backend: &Backend, name: &str) -> u64 {
    let which = GatewayRef::Name(name.parse().unwrap());
    let gateway = backend
        .store
        .gateway(&Tenant::default_tenant(), &which)
        .await;
    gateway.unwrap().unwrap().pin_set_version
}

#[tokio::test]
async fn a_staged_set_goes_over_the_open_session_of_whoever_can_take_it() {
    let (tenant, pin) = (Tenant::default_tenant(), SpkiPin::from_digest([9; 32]));
    let folder = pki::initialised();
    let config = pki::config(&folder);
    let material = ServerMaterial::load(&config).unwrap();
    let own = OwnPins {
        configured: PinSet {
            version: config.agents.pin_set_version,
            pins: material.pins,
        },
        live: material.pin,
    };
    let backend = Backend::start_on(folder, Arc::new(SystemClock)).await;
    let (first, second) = (backend.join("gw-1").await, backend.join("gw-2").await);
    let announced = &[PIN_ROTATION];
    let (mut able, welcome) = connected(&backend, &first, announced, (0, &first.token)).await;
    assert_eq!(welcome.pins.as_ref(), Some(&own.configured));
    let (mut earlier, welcome) = connected(&backend, &second, &[], (0, &second.token)).await;

    let change = PinChange {
        step: PinStep::Stage,
        pin,
        reason: None,
        own: own.clone(),
    };
    let (actor, now) = (Actor::local("test"), SystemClock.wall());
    let staged = backend.store.change_pins(&tenant, change, &actor, now);
    assert_eq!(staged.await.unwrap(), PinOutcome::Done);
    let set = offered(&mut able).await;
    assert_eq!(set.version, own.configured.version + 1);
    assert!(set.contains(&pin) && set.contains(&own.live));
    let report = AgentMessage::PinReport(PinReport {
        version: set.version,
    });
    able.session.send(report, SystemClock.now()).unwrap();
    able.round_trip().await;
    assert_eq!(trusted(&backend, "gw-1").await, set.version);

    // One that does not know the kind is offered it in its next WELCOME.
    assert!(is_left_alone(&mut earlier).await);
    drop(earlier);
    let token = Secret::from_hex(&welcome.token).unwrap();
    let session = (welcome.epoch, &token);
    let (earlier, welcome) = connected(&backend, &second, &[], session).await;
    assert_eq!(welcome.pins, Some(set));
    let known = backend.store.pins(&tenant, own.clone(), now).await.unwrap();
    let PinsKnown { shown, stepped, .. } = known;
    assert!(stepped && shown == [own.live].into());
    drop((able, earlier));
    drop(backend.stop().await);
}
