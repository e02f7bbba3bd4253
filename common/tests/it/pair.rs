//! Both machines together: opening, liveness, order, credit and the end.

use std::time::Duration;

use proptest::prelude::*;
use viworks_common::code::CloseCode;
use viworks_common::key::BindingMode;
use viworks_common::limits;
use viworks_common::session::state::{AgentState, BackendState};
use viworks_common::session::{AgentEvent, BackendEvent, End, SendRefusal};
use viworks_common::telemetry::Position;
use viworks_common::time::Monotonic;
use viworks_common::wire::PackedBatch;
use viworks_common::wire::message::*;

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

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
fn commands_overtake_bulk_and_sequence_numbers_follow_the_sending_order() {
    let mut pair = Pair::established();
    let now = pair.now;
    let order = [
        AgentMessage::Telemetry(batch(1, 2)),
        AgentMessage::Output(output(4)),
        AgentMessage::CommandStarted(CommandStarted {
            command_id: command_id(1),
            started_at: server_time(),
        }),
        AgentMessage::Heartbeat(heartbeat(1)),
    ];
    for message in order.clone() {
        pair.agent.send(message, now).unwrap();
    }
    let frames: Vec<Vec<u8>> = std::iter::from_fn(|| pair.agent.poll_transmit(now)).collect();
    let sent: Vec<(u8, u64)> = frames.iter().map(|f| (f[1], sequence(f))).collect();
    let expected: Vec<(u8, u64)> = order
        .iter()
        .rev()
        .map(AgentMessage::kind)
        .zip(3..)
        .collect();
    assert_eq!(sent, expected);
}

#[test]
fn every_lane_is_bounded_and_a_full_one_does_not_block_the_others() {
    let mut pair = Pair::established();
    let rejected = || {
        AgentMessage::CommandRejected(CommandRejected {
            command_id: command_id(1),
            code: viworks_common::code::RejectCode::Busy,
            detail: String::new(),
        })
    };
    let taken = (0..10_000)
        .take_while(|_| pair.agent.send(rejected(), pair.now).is_ok())
        .count();
    assert_eq!(taken, limits::OUTBOX_MESSAGES_MAX / 4);
    assert_eq!(
        pair.agent.send(rejected(), pair.now),
        Err(SendRefusal::Full)
    );
    pair.agent
        .send(AgentMessage::Heartbeat(heartbeat(1)), pair.now)
        .unwrap();
}

#[test]
fn telemetry_stops_at_its_credit_and_goes_on_with_the_acknowledgement() {
    let mut pair = Pair::established();
    let granted = pair.agent.telemetry_credit();
    assert_eq!(granted, limits::TELEMETRY_IN_FLIGHT_BYTES_MAX as usize);
    let mut seq = 1;
    while pair
        .agent
        .send(AgentMessage::Telemetry(noisy_batch(seq)), pair.now)
        .is_ok()
    {
        seq += 1;
        pair.pump();
    }
    assert!(seq > 16, "{seq}");
    assert_eq!(
        pair.agent
            .send(AgentMessage::Telemetry(noisy_batch(seq)), pair.now),
        Err(SendRefusal::NoCredit)
    );
    assert_eq!(pair.backend_code(), None);
    acknowledge(&mut pair, seq - 1);
    assert_eq!(pair.agent.telemetry_credit(), granted);
}

/// A batch that hardly compresses.
fn noisy_batch(seq: u64) -> viworks_common::telemetry::BatchColumns {
    let mut noisy = batch(seq, 1);
    let mut state = seq;
    let text = (0..12).map(|field| {
        let noise: String = (0..60)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                format!("{state:016x}")
            })
            .collect();
        let value = viworks_common::telemetry::FieldValue::Text(noise);
        (format!("f{field}").parse().unwrap(), vec![Some(value)])
    });
    noisy.fields = text.collect();
    noisy
}

fn acknowledge(pair: &mut Pair, seq: u64) {
    let spool_epoch = agent_run_id();
    let position = Position { spool_epoch, seq };
    pair.send_backend(BackendMessage::TelemetryAck(TelemetryAck::of(position)));
}

#[test]
fn a_slow_link_narrows_the_window_and_a_quick_one_widens_it_slowly() {
    let mut pair = Pair::established();
    let full = pair.agent.telemetry_credit();
    let mut window = full;
    for (seq, millis, change) in [
        (1, 8_000, -1),
        (2, 8_000, -1),
        (3, 100, 1),
        (4, 100, 1),
        (5, 8_000, -1),
    ] {
        pair.send_agent(AgentMessage::Telemetry(batch(seq, 1)));
        pair.advance(Duration::from_millis(millis));
        acknowledge(&mut pair, seq);
        let after = pair.agent.telemetry_credit();
        if change < 0 {
            assert_eq!(after, window / 2);
        } else {
            assert_eq!(after, window + full / 32);
        }
        window = after;
    }
}

#[test]
fn a_burst_that_is_late_as_a_whole_narrows_the_window_once() {
    let mut pair = Pair::established();
    let full = pair.agent.telemetry_credit();
    for seq in 1..=4 {
        pair.send_agent(AgentMessage::Telemetry(batch(seq, 1)));
    }
    pair.advance(SECOND * 8);
    for seq in 1..=4 {
        acknowledge(&mut pair, seq);
    }
    assert_eq!(pair.agent.telemetry_credit(), full / 2);
}

#[test]
fn the_window_never_closes_altogether() {
    let mut pair = Pair::established();
    for seq in 1..20 {
        pair.send_agent(AgentMessage::Telemetry(batch(seq, 1)));
        pair.advance(SECOND * 8);
        pair.send_agent(AgentMessage::Heartbeat(heartbeat(seq)));
        acknowledge(&mut pair, seq);
    }
    assert_eq!(
        pair.agent.telemetry_credit(),
        limits::BULK_MESSAGE_BYTES_MAX
    );
}

#[test]
fn live_output_has_an_absolute_limit_that_heartbeats_raise() {
    let mut pair = Pair::established();
    assert_eq!(pair.agent.output_credit(), 10_000);
    pair.send_agent(AgentMessage::Output(output(9_000)));
    assert_eq!(
        pair.agent
            .send(AgentMessage::Output(output(1_001)), pair.now),
        Err(SendRefusal::NoCredit)
    );
    pair.send_backend(BackendMessage::HeartbeatAck(HeartbeatAck {
        sent_at_ms: 0,
        server_time: server_time(),
        output_bytes: 20_000,
    }));
    assert_eq!(pair.agent.output_credit(), 11_000);
    pair.send_agent(AgentMessage::Output(output(9_000)));
    assert_eq!(pair.backend_code(), None);
}

#[test]
fn bulk_messages_stay_small() {
    let mut pair = Pair::established();
    // Base64 makes it larger than it looks.
    let sent = pair
        .agent
        .send(AgentMessage::Telemetry(large_batch()), pair.now);
    assert!(
        matches!(sent, Err(SendRefusal::TooLarge { limit, .. }) if limit == limits::BULK_MESSAGE_BYTES_MAX),
        "{sent:?}"
    );
}

fn large_batch() -> viworks_common::telemetry::BatchColumns {
    let mut large = noisy_batch(1);
    for other in 2..6 {
        for (name, column) in noisy_batch(other).fields {
            large
                .fields
                .insert(format!("{name}-{other}").parse().unwrap(), column);
        }
    }
    large
}

#[test]
fn commands_have_credit_until_their_result_is_acknowledged() {
    let mut pair = Pair::established();
    // One of four is used up by what HELLO named as unreported.
    for n in 1..=3 {
        pair.send_backend(BackendMessage::Command(command(n)));
    }
    let refused = pair
        .backend
        .send(BackendMessage::Command(command(4)), pair.now);
    assert_eq!(refused, Err(SendRefusal::NoCredit));
    // The same offer again needs none.
    pair.send_backend(BackendMessage::Command(command(3)));
    pair.send_backend(BackendMessage::ResultAck(ResultAck {
        command_id: command_id(0xc9),
        low_water: 17,
        not_kept: false,
    }));
    pair.send_backend(BackendMessage::Command(command(4)));
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
