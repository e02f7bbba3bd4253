//! Sessions that the database says a living backend has, and that it has not.

use std::sync::Arc;
use std::time::Duration;

use viworks_backend_agent::app::App;
use viworks_backend_agent::data::postgres::Role;
use viworks_backend_agent::data::{
    AdmitOutcome, AdmitRequest, ConfirmOutcome, GatewayRef, SessionRecord, Store,
};
use viworks_backend_agent::material::ServerMaterial;
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, Tenant};
use viworks_runtime::clock::SystemClock;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_testkit::process::eventually;

use super::bed::{Bed, agent, at};
use super::postgres_only::open;
use super::{database, make};
use crate::inbound::Backend;
use crate::pki;

const PATIENCE: Duration = Duration::from_secs(20);
const OFTEN: Duration = Duration::from_millis(50);

/// The latest session of a gateway, once it has ended.
async fn ended(store: &dyn Store, agent_id: AgentId) -> SessionRecord {
    let tenant = Tenant::default_tenant();
    eventually("the session is ended", PATIENCE, async || {
        let sessions = store.list_sessions(&tenant, agent_id, 1).await.unwrap();
        let latest = sessions.into_iter().next()?;
        let which = GatewayRef::Id(agent_id);
        let gateway = store.gateway(&tenant, &which).await.unwrap().unwrap();
        (gateway.session.is_none() && latest.ended_at.is_some()).then_some(latest)
    })
    .await
}

/// As when the answer to a confirmation is lost, or its end cannot be recorded for minutes.
#[tokio::test]
async fn the_only_backend_ends_a_session_that_it_does_not_have() {
    let clock = Arc::new(SystemClock);
    let backend = Backend::start_changed(pki::initialised(), clock, |config| {
        config.jobs.offer = OFTEN;
    })
    .await;
    let (lost, there) = (backend.join("gw-1").await, backend.join("gw-2").await);
    let mut gateway = backend.dial(&there).await;
    gateway.open(1, 0, &there.token).await.unwrap();
    let store = &backend.store;
    let bed = Bed::new(Arc::clone(store));
    let hello = AdmitRequest {
        agent_id: lost.identity.agent_id,
        ..bed.hello(1, 1, 0)
    };
    let admitted = store.admit(&bed.tenant, hello.clone(), at(1)).await;
    let AdmitOutcome::Accepted(admitted) = admitted.unwrap() else {
        panic!("not admitted");
    };
    let confirm = bed.confirm_of(&hello, &admitted);
    let confirmed = store.confirm_session(&bed.tenant, confirm, at(1)).await;
    assert!(matches!(confirmed, Ok(ConfirmOutcome::Confirmed(_))));
    let session = ended(&**store, lost.identity.agent_id).await;
    assert_eq!(session.code, Some(CloseCode::Internal));
    // What it has stays.
    gateway.round_trip().await;
    let which = GatewayRef::Id(there.identity.agent_id);
    let still = store.gateway(&bed.tenant, &which).await.unwrap().unwrap();
    assert!(still.session.is_some());
    drop(backend.stop().await);
}

#[tokio::test]
async fn one_of_several_ends_a_session_of_its_own_that_it_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let place = pki::initialised();
    let mut config = pki::config(&place);
    config.store.url = server.url(&database);
    config.agents.listen.set_port(0);
    config.api.listen.set_port(0);
    config.jobs.offer = OFTEN;
    let material = ServerMaterial::load(&config).unwrap();
    let lifecycle = Lifecycle::new();
    let app = App::start(&config, material, &lifecycle).await.unwrap();
    let beside = open(&server.url(&database), Role::Beside).await.unwrap();
    let bed = Bed::new(Arc::new(beside));
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let given = "UPDATE gateways SET session_instance = (SELECT instance FROM instances)";
    server.psql(&database, given).unwrap();
    let latest = ended(&*bed.store, agent(1)).await;
    assert_eq!(latest.epoch, session.holder.epoch);
    let outcome = lifecycle.shutdown(PATIENCE).await;
    assert!(outcome.aborted.is_empty(), "{outcome:?}");
    app.close().await;
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}
