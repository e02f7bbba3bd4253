//! A session that is open between both machines: what arrives, signs of life, permits, and its end.

use std::time::Duration;

use proptest::prelude::*;
use viworks_common::code::CloseCode;
use viworks_common::limits;
use viworks_common::session::state::AgentState;
use viworks_common::session::{AgentEvent, BackendEvent, End, SendRefusal};
use viworks_common::time::Monotonic;
use viworks_common::wire::PackedBatch;
use viworks_common::wire::message::*;

use crate::support::*;

#[test]
fn every_message_arrives_as_its_event() {
    let mut pair = Pair::established();
    for message in agent_messages() {
        let reserved = matches!(
            message,
            AgentMessage::Hello(_) | AgentMessage::Confirm(_) | AgentMessage::Bye(_)
        );
        let sent = pair.agent.send(message, pair.now);
        assert_eq!(sent.is_err(), reserved);
    }
    pair.pump();
    // PROBE_ACK 1 answers no probe and has no event.
    assert_eq!(pair.backend_events.len(), 13, "{:?}", pair.backend_events);
    for message in backend_messages() {
        let reserved = matches!(
            message,
            BackendMessage::Challenge(_) | BackendMessage::Welcome(_) | BackendMessage::Refuse(_)
        );
        let sent = pair.backend.send(message, pair.now);
        assert_eq!(sent.is_err(), reserved);
    }
    pair.pump();
    let last = pair.agent_events.last().unwrap();
    let reconnect_after = Duration::from_millis(500);
    // DRAIN is control: it overtakes the command traffic.
    assert!(
        pair.agent_events
            .contains(&AgentEvent::Draining { reconnect_after })
    );
    assert_eq!(*last, AgentEvent::Cancel(command_id(1)));
    assert!(pair.agent.closed().is_none() && pair.backend.closed().is_none());
}

#[test]
fn a_gateway_says_bye_and_nothing_was_wrong() {
    let mut pair = Pair::established();
    pair.agent.close("stopping", pair.now);
    pair.pump();
    let closed = pair.backend.closed().unwrap();
    assert_eq!(
        (closed.code, closed.number(), closed.by),
        (None, 1000, End::Agent)
    );
    let reason = "stopping".to_owned();
    assert!(pair.backend_events.contains(&BackendEvent::Bye { reason }));
    assert_eq!(
        pair.agent
            .send(AgentMessage::Heartbeat(heartbeat(1)), pair.now),
        Err(SendRefusal::NotEstablished)
    );
}

#[test]
fn silence_ends_a_session_and_any_authentic_frame_prolongs_it() {
    let mut pair = Pair::established();
    for beat in 1..=6 {
        pair.advance(SECOND * 44);
        assert_eq!(pair.backend_code(), None);
        pair.agent
            .send(AgentMessage::Heartbeat(heartbeat(beat)), pair.now)
            .unwrap();
        pair.send_backend(BackendMessage::Probe(Probe { id: beat }));
    }
    pair.advance(SECOND * 45);
    assert_eq!(
        (pair.agent_code(), pair.backend_code()),
        (Some(4408), Some(4408))
    );
    assert_eq!(pair.agent.closed().unwrap().name(), "heartbeat_timeout");
    assert_eq!(pair.agent.poll_timeout(), None);
}

#[test]
fn a_heartbeat_is_due_at_once_and_then_at_every_interval() {
    let mut pair = Pair::established();
    for _ in 0..2 {
        let (at, name) = pair.agent.poll_timeout().unwrap();
        assert_eq!(
            (at, name),
            (pair.now.saturating_add(SECOND * 15), "heartbeat")
        );
        pair.advance(SECOND * 15);
        pair.pump();
        assert_eq!(pair.agent_events, [AgentEvent::HeartbeatDue]);
        pair.agent_events.clear();
    }
}

#[test]
fn a_round_trip_is_measured_from_the_socket_and_only_for_the_beat_that_was_answered() {
    let mut pair = Pair::established();
    pair.agent
        .send(AgentMessage::Heartbeat(heartbeat(77)), pair.now)
        .unwrap();
    pair.advance(SECOND);
    pair.pump();
    pair.advance(Duration::from_millis(120));
    let ack = |sent_at_ms| {
        BackendMessage::HeartbeatAck(HeartbeatAck {
            sent_at_ms,
            server_time: server_time(),
            output_bytes: 0,
        })
    };
    pair.send_backend(ack(5));
    assert_eq!(pair.agent_events, []);
    pair.send_backend(ack(77));
    let rtt = Duration::from_millis(120);
    assert_eq!(
        pair.agent_events,
        [AgentEvent::RoundTrip {
            rtt,
            server_time: server_time()
        }]
    );
}

#[test]
fn a_probe_is_answered_without_the_driver_and_before_everything_else() {
    let mut pair = Pair::established();
    for seq in 1..=4 {
        pair.agent
            .send(AgentMessage::Telemetry(batch(seq, 1)), pair.now)
            .unwrap();
    }
    pair.backend.probe(42, pair.now);
    pair.pump();
    assert_eq!(
        pair.backend_events[0],
        BackendEvent::ProbeAnswered { id: 42 }
    );
}

#[test]
fn a_permit_counts_from_no_later_than_the_frame_it_names() {
    let mut pair = Pair::opened(Until::Welcomed);
    let hello_at = pair.now;
    pair.advance(SECOND);
    let confirm_at = pair.now;
    pair.until = Until::Established;
    pair.agent.confirm(pair.now);
    pair.pump();
    pair.advance(SECOND);
    pair.send_agent(AgentMessage::Heartbeat(heartbeat(1)));
    let third_at = pair.now;
    assert_eq!(pair.backend.last_processed(), 3);
    assert_eq!(pair.agent.sent_at(1), hello_at);
    assert_eq!(pair.agent.sent_at(2), confirm_at);
    assert_eq!(pair.agent.sent_at(3), third_at);
    // Never sent: nothing better than CONFIRM is known.
    assert_eq!(pair.agent.sent_at(4), confirm_at);
    pair.advance(SECOND);
    for beat in 0..limits::SENT_TIMES_MAX as u64 {
        pair.send_agent(AgentMessage::Heartbeat(heartbeat(beat)));
    }
    assert_eq!(pair.agent.sent_at(3), confirm_at);
    assert_eq!(pair.agent.sent_at(4), pair.now);
    pair.agent.close("over", pair.now);
    assert_eq!(pair.agent.sent_at(4), Monotonic::ORIGIN);
}

#[test]
fn a_drained_session_ends_by_itself() {
    let mut pair = Pair::established();
    pair.send_backend(BackendMessage::Drain(Drain {
        reconnect_after_ms: 0,
    }));
    assert_eq!(pair.agent.state(), AgentState::Draining);
    // What is under way still gets through.
    pair.send_agent(agent_messages().remove(9));
    assert!(matches!(
        pair.backend_events.last(),
        Some(BackendEvent::Result(_))
    ));
    pair.advance(limits::DRAIN_TIME);
    assert_eq!(
        (pair.agent_code(), pair.backend_code()),
        (Some(1000), Some(4503))
    );
}

#[test]
fn a_session_ends_with_the_certificate() {
    let mut config = backend_config(SERVER_NONCE);
    config.certificate_remaining = Some(SECOND * 30);
    let mut pair = Pair::with(agent_config(), config);
    pair.pump();
    pair.advance(SECOND * 30);
    assert_eq!(
        pair.backend.closed().unwrap().code,
        Some(CloseCode::CertUntrusted)
    );
}

#[derive(Debug, Clone)]
enum Step {
    Beat,
    Batch(u64),
    Output(usize),
    Started,
    Offer(u128),
    Acknowledge,
    Probe,
    Wait(u64),
    Deliver,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Beat),
        (1..60_u64).prop_map(Step::Batch),
        (0..4_000_usize).prop_map(Step::Output),
        Just(Step::Started),
        (1..8_u128).prop_map(Step::Offer),
        Just(Step::Acknowledge),
        Just(Step::Probe),
        (0..8_000_u64).prop_map(Step::Wait),
        Just(Step::Deliver),
    ]
}

/// Offers one message to an end; what is refused for want of credit or room is not an error.
fn perform(pair: &mut Pair, step: &Step, next_seq: &mut u64, accepted: &mut Vec<BackendEvent>) {
    let message = match step {
        Step::Beat => AgentMessage::Heartbeat(heartbeat(*next_seq)),
        Step::Batch(records) => AgentMessage::Telemetry(batch(*next_seq, *records)),
        Step::Output(bytes) => AgentMessage::Output(output(*bytes)),
        Step::Started => agent_messages().remove(7),
        Step::Offer(n) => {
            let sent = pair
                .backend
                .send(BackendMessage::Command(command(*n)), pair.now);
            assert!(matches!(sent, Ok(()) | Err(SendRefusal::NoCredit)));
            return;
        }
        Step::Acknowledge if *next_seq > 1 => return acknowledge(pair, *next_seq - 1),
        Step::Acknowledge => return,
        Step::Probe => return pair.backend.probe(*next_seq, pair.now),
        Step::Wait(millis) => return pair.advance(Duration::from_millis(*millis)),
        Step::Deliver => return pair.pump(),
    };
    let event = match message.clone() {
        AgentMessage::Heartbeat(body) => BackendEvent::Heartbeat(body),
        AgentMessage::Telemetry(body) => BackendEvent::Telemetry(PackedBatch::pack(&body)),
        AgentMessage::Output(body) => BackendEvent::Output(body),
        AgentMessage::CommandStarted(body) => BackendEvent::Started(body),
        other => panic!("{} is not part of this test", other.name()),
    };
    if pair.agent.send(message, pair.now).is_ok() {
        if let Step::Batch(records) = step {
            *next_seq += records;
        }
        accepted.push(event);
    }
}

proptest! {
    #[test]
    fn honest_ends_never_close_and_what_was_taken_arrives_once(steps in prop::collection::vec(step(), 1..80)) {
        let mut pair = Pair::established();
        let (mut next_seq, mut accepted) = (1, Vec::new());
        for step in &steps {
            perform(&mut pair, step, &mut next_seq, &mut accepted);
            if matches!(step, Step::Wait(_)) {
                // Life on both sides: silence is not what this test is about.
                pair.agent.send(AgentMessage::Heartbeat(heartbeat(0)), pair.now).unwrap();
                pair.backend.probe(0, pair.now);
                pair.pump();
            }
            prop_assert!(pair.agent.closed().is_none(), "{:?}", pair.agent.closed());
            prop_assert!(pair.backend.closed().is_none(), "{:?}", pair.backend.closed());
        }
        pair.pump();
        prop_assert!(pair.agent.closed().is_none() && pair.backend.closed().is_none());
        let kinds = |events: &[BackendEvent], of: fn(&BackendEvent) -> bool| -> Vec<BackendEvent> {
            events.iter().filter(|event| of(event)).cloned().collect()
        };
        for of in [
            (|event| matches!(event, BackendEvent::Telemetry(_))) as fn(&BackendEvent) -> bool,
            |event| matches!(event, BackendEvent::Output(_)),
            |event| matches!(event, BackendEvent::Started(_)),
        ] {
            prop_assert_eq!(kinds(&pair.backend_events, of), kinds(&accepted, of));
        }
        let numbers: Vec<u64> = pair.to_backend.iter().map(|frame| sequence(frame)).collect();
        let expected: Vec<u64> = (1..).take(numbers.len()).collect();
        prop_assert_eq!(numbers, expected);
    }
}
