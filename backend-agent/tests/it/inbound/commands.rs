//! What the session of a gateway does with commands that wait for it.

use std::time::Duration;

use uuid::Uuid;
use viworks_backend_agent::data::{NewCommand, NewRun, QueueLimits};
use viworks_common::code::RejectCode;
use viworks_common::command::CommandState;
use viworks_common::id::{AgentId, CommandId, RunId, Tenant};
use viworks_common::session::AgentEvent;
use viworks_common::time::Timestamp;
use viworks_common::wire::message::{AgentMessage, CommandRejected, KEEPS_TIMEOUT};
use viworks_runtime::clock::{Clock as _, SystemClock};

use super::Backend;

/// A command that may start within ten minutes.
fn new_run(agent_id: AgentId, command_id: CommandId, now: Timestamp) -> NewRun {
    NewRun {
        run_id: RunId::from_uuid(Uuid::from_u128(2)),
        name: "sys.uptime".parse().unwrap(),
        arguments: [].into(),
        targets: vec![NewCommand {
            agent_id,
            command_id,
            idempotent: false,
            risk: viworks_common::catalogue::Risk::Read,
            timeout_ms: 60_000,
            remembered: None,
            place: None,
        }],
        skipped: Vec::new(),
        skip_full: false,
        deadline: now.saturating_add(Duration::from_secs(600)),
        timeout_ms: None,
        traceparent: None,
        reason: None,
        actor: viworks_backend_agent::data::Actor::system(),
        idempotency: None,
        retry_of: None,
        limits: QueueLimits {
            per_gateway: 10,
            global: 10,
            retry_after: Duration::from_secs(1),
        },
    }
}

#[tokio::test]
async fn a_busy_gateway_is_asked_again_by_its_session() {
    let backend = Backend::start().await;
    let material = backend.join("gw-1").await;
    let (now, command_id) = (SystemClock.wall(), CommandId::from_uuid(Uuid::from_u128(1)));
    let run = new_run(material.identity.agent_id, command_id, now);
    let tenant = Tenant::default_tenant();
    backend.store.submit_run(&tenant, run, now).await.unwrap();
    let mut gateway = backend.dial(&material).await;
    gateway.hello(1, 0, &material.token).await;
    let mut attempts = Vec::new();
    while attempts.len() < 2 {
        match gateway.event().await {
            Some(AgentEvent::Welcomed(_)) => gateway.session.confirm(SystemClock.now()),
            Some(AgentEvent::Command(offered)) => {
                assert_eq!(offered.command_id, command_id);
                attempts.push(offered.attempt);
                let busy = AgentMessage::CommandRejected(CommandRejected {
                    command_id,
                    code: RejectCode::Busy,
                    detail: "later".to_owned(),
                });
                gateway.session.send(busy, SystemClock.now()).unwrap();
            }
            Some(_) => {}
            None => panic!("the session ended"),
        }
    }
    assert_eq!(attempts, [1, 2]);
    drop(backend.stop().await);
}

#[tokio::test]
async fn a_time_limit_goes_to_gateways_that_keep_it_and_to_no_others() {
    let backend = Backend::start().await;
    let tenant = Tenant::default_tenant();
    for (number, (name, keeps)) in (1_u128..).zip([("gw-new", true), ("gw-old", false)]) {
        let material = backend.join(name).await;
        let now = SystemClock.wall();
        let command_id = CommandId::from_uuid(Uuid::from_u128(number));
        let mut run = new_run(material.identity.agent_id, command_id, now);
        run.run_id = RunId::from_uuid(Uuid::from_u128(10 + number));
        run.timeout_ms = Some(1_500);
        backend.store.submit_run(&tenant, run, now).await.unwrap();
        let mut gateway = backend.dial(&material).await;
        if keeps {
            gateway.capabilities = vec![KEEPS_TIMEOUT.to_owned()];
        }
        gateway.hello(number, 0, &material.token).await;
        let welcomed = gateway.event().await;
        assert!(matches!(welcomed, Some(AgentEvent::Welcomed(_))));
        gateway.session.confirm(SystemClock.now());
        let established = gateway.event().await;
        assert!(matches!(established, Some(AgentEvent::Established)));
        if keeps {
            let limit = loop {
                match gateway.event().await {
                    Some(AgentEvent::Command(offered)) => break offered.timeout_ms,
                    Some(_) => {}
                    None => panic!("the session ended"),
                }
            };
            assert_eq!(limit, Some(1_500));
            continue;
        }
        // By its answer everything that waited was looked at.
        gateway.round_trip().await;
        let command = backend.store.command(&tenant, command_id).await;
        let command = command.unwrap().unwrap();
        assert_eq!(command.state, CommandState::Rejected);
        let reason = command.result.unwrap().reason.unwrap();
        assert!(reason.contains("too old to keep a time limit"), "{reason}");
    }
    drop(backend.stop().await);
}
