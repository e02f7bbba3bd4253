//! What one end may send to the other: the order of the lanes, their bounds, and credit that narrows and widens.

use std::time::Duration;

use viworks_common::limits;
use viworks_common::session::SendRefusal;
use viworks_common::telemetry::{BatchColumns, FieldValue};
use viworks_common::wire::message::*;

use crate::support::*;

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
fn noisy_batch(seq: u64) -> BatchColumns {
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
        let value = FieldValue::Text(noise);
        (format!("f{field}").parse().unwrap(), vec![Some(value)])
    });
    noisy.fields = text.collect();
    noisy
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

/// A batch beyond what one bulk message may be.
fn large_batch() -> BatchColumns {
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
