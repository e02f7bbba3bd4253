//! How a session opens between both machines: each step, its deadline, and whoever does not get in.

use std::time::Duration;

use viworks_common::code::CloseCode;
use viworks_common::key::BindingMode;
use viworks_common::session::state::{AgentState, BackendState};
use viworks_common::session::{AgentEvent, BackendEvent, End};
use viworks_common::wire::PackedBatch;
use viworks_common::wire::message::*;

use crate::support::*;

#[test]
fn a_session_opens_and_hands_each_driver_what_it_must_decide() {
    let mut pair = Pair::new();
    pair.pump();
    assert_eq!(pair.agent.state(), AgentState::Established);
    assert_eq!(pair.backend.state(), BackendState::Established);
    assert_eq!(
        pair.agent_events,
        [
            AgentEvent::Challenged {
                server_time: server_time()
            },
            AgentEvent::Welcomed(Box::new(welcome())),
            AgentEvent::Established,
            AgentEvent::HeartbeatDue,
        ]
    );
    assert_eq!(
        pair.backend_events,
        [
            BackendEvent::Hello {
                hello: Box::new(hello()),
                client_nonce: CLIENT_NONCE,
                key_generation: KEY_GENERATION,
                challenge_age: Duration::ZERO,
            },
            BackendEvent::Confirmed { epoch: 7 },
        ]
    );
    let numbers: Vec<u64> = pair.to_agent.iter().map(|f| sequence(f)).collect();
    assert_eq!(numbers, [0, 1]);
    let numbers: Vec<u64> = pair.to_backend.iter().map(|f| sequence(f)).collect();
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn a_hello_names_its_nonce_before_it_is_verified() {
    let pair = Pair::established();
    let peek = viworks_common::session::BackendSession::peek_client_nonce;
    assert_eq!(peek(&pair.to_backend[0]), Some(CLIENT_NONCE));
    assert_eq!(peek(&pair.to_backend[1]), None);
    assert_eq!(peek(&[]), None);
}

#[test]
fn nothing_behind_a_confirm_has_an_effect_before_it_is_committed() {
    let mut pair = Pair::opened(Until::Confirming);
    pair.send_agent(AgentMessage::Telemetry(batch(1, 3)));
    assert_eq!(
        pair.backend_events.last(),
        Some(&BackendEvent::Confirmed { epoch: 7 })
    );
    pair.backend.established(pair.now);
    pair.pump();
    assert_eq!(
        pair.backend_events.last(),
        Some(&BackendEvent::Telemetry(PackedBatch::pack(&batch(1, 3))))
    );
}

#[test]
fn what_came_behind_a_confirm_that_was_refused_is_forgotten() {
    let mut pair = Pair::opened(Until::Confirming);
    pair.send_agent(AgentMessage::Telemetry(batch(1, 3)));
    pair.backend.refuse(refuse(CloseCode::Superseded), pair.now);
    pair.pump();
    assert!(matches!(
        pair.backend_events[..],
        [
            BackendEvent::Hello { .. },
            BackendEvent::Confirmed { .. },
            BackendEvent::Closed(_)
        ]
    ));
    assert_eq!(pair.agent_code(), Some(4409));
}

#[test]
fn a_refusal_is_authentic_at_every_point_after_hello() {
    for until in [
        Until::Deciding,
        Until::Welcomed,
        Until::Confirming,
        Until::Established,
    ] {
        let mut pair = Pair::opened(until);
        pair.backend
            .refuse(refuse(CloseCode::IdentityFork), pair.now);
        pair.pump();
        let refused = AgentEvent::Refused {
            code: CloseCode::IdentityFork,
            reason: "refused by the test".to_owned(),
            retry_after: Some(SECOND * 2),
        };
        assert!(pair.agent_events.contains(&refused), "{until:?}");
        let closed = pair.agent.closed().unwrap();
        assert_eq!((closed.number(), closed.by), (4410, End::Backend));
        assert_eq!(pair.backend.closed(), pair.agent.closed());
    }
}

#[test]
fn ends_that_bind_differently_are_refused_and_both_are_named() {
    let mut config = agent_config();
    config.binding.mode = BindingMode::Certificate;
    let mut pair = Pair::with(config, backend_config(SERVER_NONCE));
    pair.pump();
    let closed = pair.agent.closed().unwrap();
    assert_eq!(closed.code, Some(CloseCode::BindingMismatch));
    assert!(closed.reason.contains("exporter") && closed.reason.contains("certificate"));
    assert!(pair.to_backend.is_empty());
}

#[test]
fn a_session_spliced_onto_another_connection_does_not_open() {
    let mut config = agent_config();
    config.binding.value = [0xff; 32];
    let mut pair = Pair::with(config, backend_config(SERVER_NONCE));
    pair.pump();
    assert_eq!(pair.backend_code(), Some(4400));
}

#[test]
fn another_agents_key_does_not_open_a_session() {
    let mut config = agent_config();
    config.key = master().agent_key(&config.identity, 4);
    let mut pair = Pair::with(config, backend_config(SERVER_NONCE));
    pair.pump();
    assert_eq!(pair.backend_code(), Some(4400));
}

#[test]
fn a_gateway_with_a_higher_floor_refuses_an_older_backend() {
    let mut config = agent_config();
    config.version_floor = 2;
    let mut pair = Pair::with(config, backend_config(SERVER_NONCE));
    pair.pump();
    assert_eq!(pair.agent_code(), Some(4426));
}

#[test]
fn a_confirm_of_another_epoch_closes() {
    let mut pair = Pair::opened(Until::Welcomed);
    let body = AgentMessage::Confirm(Confirm { epoch: 8 }).encode();
    let frame = forge(0x04, 0, 2, &body, &pair.keys().agent_to_backend);
    pair.backend.handle_frame(&frame, pair.now);
    assert_eq!(pair.backend_code(), Some(4400));
}

#[test]
fn each_step_of_the_opening_has_a_deadline() {
    for until in [Until::Challenged, Until::Deciding, Until::Welcomed] {
        let mut pair = Pair::opened(until);
        pair.advance(SECOND * 10);
        assert_eq!(pair.agent_code(), Some(4408), "{until:?}");
        let closed = pair.agent.closed().unwrap();
        assert_eq!(closed.name(), "hello_timeout");
        let expected = if until == Until::Deciding { 4500 } else { 4408 };
        assert_eq!(pair.backend_code(), Some(expected), "{until:?}");
    }
}

#[test]
fn answers_that_come_too_late_change_nothing() {
    let mut pair = Pair::opened(Until::Challenged);
    pair.advance(SECOND * 10);
    pair.agent.hello(hello(), CLIENT_NONCE, pair.now);
    pair.agent.confirm(pair.now);
    pair.backend.welcome(welcome(), pair.now);
    pair.backend.established(pair.now);
    pair.pump();
    assert_eq!(pair.agent.state(), AgentState::Closed);
    assert_eq!(pair.backend.state(), BackendState::Closed);
    assert!(pair.to_backend.is_empty());
}
