//! What nobody honest sends: tampering, reflection, replay, bombs and floods.

use proptest::prelude::*;
use viworks_common::key::Secret;
use viworks_common::limits;
use viworks_common::session::Misplaced;
use viworks_common::session::state::{AgentState, BackendState};
use viworks_common::wire::envelope::{FLAG_ZSTD, Phase, Sealed};
use viworks_common::wire::message::*;

use crate::support::*;

/// A session with a few messages each way; frame numbers 0 to 3 are the opening.
fn conversation(tamper: impl FnMut(usize, &mut Vec<u8>) + 'static) -> Pair {
    let mut pair = Pair::new();
    pair.tamper = Box::new(tamper);
    pair.pump();
    let now = pair.now;
    // Tampering may have ended the session already, at either end.
    let open = pair.agent.state() == AgentState::Established;
    for message in [
        AgentMessage::Telemetry(batch(1, 40)),
        AgentMessage::Heartbeat(heartbeat(1)),
    ] {
        assert_eq!(pair.agent.send(message, now).is_ok(), open);
    }
    let open = pair.backend.state() == BackendState::Established;
    for message in [
        BackendMessage::Command(command(1)),
        BackendMessage::Probe(Probe { id: 1 }),
    ] {
        assert_eq!(pair.backend.send(message, now).is_ok(), open);
    }
    pair.pump();
    pair
}

const FRAMES: usize = 9;

#[test]
fn the_conversation_is_what_the_tests_below_take_it_for() {
    let pair = conversation(|_, _| {});
    assert_eq!(pair.to_agent.len() + pair.to_backend.len(), FRAMES);
    assert!(pair.agent.closed().is_none() && pair.backend.closed().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_bit_flipped_in_any_frame_ends_the_session(frame in 0..FRAMES, position in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let pair = conversation(move |number, bytes| {
            if number == frame {
                let at = position.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
        });
        // A changed CHALLENGE may still read well to the agent; then its HELLO proves another transcript.
        let codes = [pair.agent_code(), pair.backend_code()];
        prop_assert!(codes.contains(&Some(4400)) || codes.contains(&Some(4401)) || codes.contains(&Some(4426)), "{:?}", codes);
        if frame < 3 {
            prop_assert_ne!(pair.backend.state(), BackendState::Established);
        }
    }

    #[test]
    fn a_shortened_or_lengthened_frame_ends_the_session(frame in 1..FRAMES, cut in 1..100_usize, longer in any::<bool>()) {
        let pair = conversation(move |number, bytes| {
            if number == frame {
                if longer {
                    bytes.extend(std::iter::repeat_n(0, cut));
                } else {
                    bytes.truncate(bytes.len() - cut.min(bytes.len()));
                }
            }
        });
        prop_assert!([pair.agent_code(), pair.backend_code()].contains(&Some(4400)));
    }

    #[test]
    fn no_bytes_whatever_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for until in [Until::Challenged, Until::Deciding, Until::Welcomed, Until::Established] {
            let mut pair = Pair::opened(until);
            pair.agent.handle_frame(&bytes, pair.now);
            prop_assert_eq!(pair.agent_code(), Some(4400));
            pair.backend.handle_frame(&bytes, pair.now);
            prop_assert_eq!(pair.backend_code(), Some(4400));
        }
    }
}

#[test]
fn a_bit_flipped_at_any_byte_of_an_envelope_breaks_its_tag() {
    let key = Secret::from_bytes([9; 32]);
    let frame = forge(0x31, 0, 5, br#"{"id":1}"#, &key);
    let open = |bytes: &[u8]| {
        Sealed::new(bytes, Phase::Established)?
            .open(&key, 5)
            .map(drop)
    };
    assert_eq!(open(&frame), Ok(()));
    for at in 0..frame.len() {
        for bit in 0..8 {
            let mut flipped = frame.clone();
            flipped[at] ^= 1 << bit;
            assert_eq!(
                open(&flipped),
                Err(viworks_common::wire::envelope::EnvelopeError::BadTag),
                "byte {at} bit {bit}"
            );
        }
    }
}

#[test]
fn no_frame_is_accepted_twice() {
    for number in 0..FRAMES {
        let pair = conversation(|_, _| {});
        let mut all: Vec<(bool, Vec<u8>)> = Vec::new();
        all.extend(pair.to_agent.iter().map(|f| (true, f.clone())));
        all.extend(pair.to_backend.iter().map(|f| (false, f.clone())));
        let (to_agent, frame) = all.swap_remove(number);
        let mut pair = pair;
        if to_agent {
            pair.agent.handle_frame(&frame, pair.now);
            assert_eq!(pair.agent_code(), Some(4400));
            assert!(pair.agent.misplaced().is_some(), "frame {number}");
        } else {
            pair.backend.handle_frame(&frame, pair.now);
            assert_eq!(pair.backend_code(), Some(4400));
            assert!(pair.backend.misplaced().is_some(), "frame {number}");
        }
    }
}

#[test]
fn a_gap_in_the_sequence_closes() {
    let mut pair = Pair::established();
    let key = pair.keys().agent_to_backend;
    let body = AgentMessage::Heartbeat(heartbeat(1)).encode();
    let frame = forge(0x10, 0, 4, &body, &key);
    pair.backend.handle_frame(&frame, pair.now);
    assert_eq!(pair.backend_code(), Some(4400));
    assert_eq!(pair.backend.misplaced(), Some(Misplaced::OutOfTurn));
    assert!(pair.backend.closed().unwrap().reason.contains("3 was due"));
}

#[test]
fn no_reflected_frame_is_accepted() {
    let frames = conversation(|_, _| {});
    for frame in &frames.to_backend {
        let mut pair = Pair::established();
        pair.agent.handle_frame(frame, pair.now);
        assert_eq!(pair.agent_code(), Some(4400));
        assert_eq!(pair.agent.misplaced(), Some(Misplaced::Foreign));
    }
    for frame in &frames.to_agent {
        let mut pair = Pair::established();
        pair.backend.handle_frame(frame, pair.now);
        assert_eq!(pair.backend_code(), Some(4400));
        assert_eq!(pair.backend.misplaced(), Some(Misplaced::Foreign));
    }
    // During the opening as well, where a reflected HELLO would be the prize.
    for frame in &frames.to_backend {
        let mut pair = Pair::opened(Until::Deciding);
        pair.agent.handle_frame(frame, pair.now);
        assert_eq!(pair.agent_code(), Some(4400));
    }
}

#[test]
fn no_frame_of_one_session_is_accepted_in_another() {
    let recorded = conversation(|_, _| {});
    let other = || {
        let mut pair = Pair::with(agent_config(), backend_config([0x0e; 32]));
        pair.until = Until::Challenged;
        pair.pump();
        pair
    };
    let mut pair = other();
    pair.backend.handle_frame(&recorded.to_backend[0], pair.now);
    assert_eq!(pair.backend_code(), Some(4400));
    for until in [Until::Deciding, Until::Welcomed, Until::Established] {
        for frame in &recorded.to_agent {
            let mut pair = other();
            pair.until = until;
            pair.agent.hello(hello(), CLIENT_NONCE, pair.now);
            pair.pump();
            pair.agent.handle_frame(frame, pair.now);
            assert_eq!(pair.agent_code(), Some(4400), "{until:?}");
            assert_eq!(pair.agent.misplaced(), Some(Misplaced::Foreign));
        }
        for frame in &recorded.to_backend {
            let mut pair = other();
            pair.until = until;
            pair.agent.hello(hello(), CLIENT_NONCE, pair.now);
            pair.pump();
            pair.backend.handle_frame(frame, pair.now);
            assert_eq!(pair.backend_code(), Some(4400), "{until:?}");
            assert!(pair.backend.misplaced().is_some(), "{until:?}");
        }
    }
}

#[test]
fn a_challenge_from_a_stranger_gets_a_hello_that_opens_nothing() {
    let mut pair = Pair::new();
    let mut theirs = backend_config([0x66; 32]);
    theirs.master = std::sync::Arc::new(viworks_common::key::MasterKey::new(Secret::from_bytes(
        [0x99; 32],
    )));
    pair.backend = viworks_common::session::BackendSession::new(theirs, pair.now);
    pair.pump();
    // Without the agent's key they cannot verify HELLO, and no WELCOME of theirs would be believed.
    assert_eq!(pair.backend_code(), Some(4400));
    assert_eq!(pair.agent.state(), AgentState::AwaitWelcome);
}

fn established_with_keys() -> (Pair, Secret) {
    let pair = Pair::established();
    let key = pair.keys().agent_to_backend;
    (pair, key)
}

#[test]
fn a_compression_bomb_is_refused_by_what_it_declares() {
    let (mut pair, key) = established_with_keys();
    let bomb = zstd::bulk::compress(&vec![b' '; 64 * 1024 * 1024], 19).unwrap();
    assert!(bomb.len() < limits::MESSAGE_BYTES_MAX);
    pair.backend
        .handle_frame(&forge(0x18, FLAG_ZSTD, 3, &bomb, &key), pair.now);
    assert_eq!(pair.backend_code(), Some(4413));
    refused(&mut pair, 4413);
}

/// The gateway is told by somebody whom it can believe why the session ends.
fn refused(pair: &mut Pair, code: u16) {
    pair.pump();
    assert_eq!(
        (pair.backend_code(), pair.agent_code()),
        (Some(code), Some(code))
    );
}

#[test]
fn what_is_wrong_with_an_authentic_message_is_told_by_an_authentic_refusal() {
    // One byte over the limit of EVENT.
    let body = vec![b' '; limits::SMALL_BODY_BYTES_MAX + 1];
    let large = zstd::bulk::compress(&body, 3).unwrap();
    for (kind, flags, body, code) in [
        (0x1b, FLAG_ZSTD, &large[..], 4413),
        (0x18, FLAG_ZSTD, b"no zstd", 4400),
        (0x1b, 0x80, b"{}", 4400),
    ] {
        let (mut pair, key) = established_with_keys();
        let frame = forge(kind, flags, 3, body, &key);
        pair.backend.handle_frame(&frame, pair.now);
        refused(&mut pair, code);
    }
}

#[test]
fn a_compressed_body_that_lies_about_its_size_is_refused() {
    // A second frame behind the first is content the first did not declare.
    let mut frames = zstd::bulk::compress(&[b' '; 600], 3).unwrap();
    frames.extend(zstd::bulk::compress(&vec![b' '; 3 * 1024 * 1024], 3).unwrap());
    // A stream declares nothing.
    let silent = zstd::stream::encode_all(&[b' '; 600][..], 3).unwrap();
    let mut short = zstd::bulk::compress(&[b' '; 600], 3).unwrap();
    short.truncate(short.len() - 2);
    for body in [frames, silent, short, b"no zstd".to_vec(), Vec::new()] {
        let (mut pair, key) = established_with_keys();
        pair.backend
            .handle_frame(&forge(0x18, FLAG_ZSTD, 3, &body, &key), pair.now);
        assert_eq!(pair.backend_code(), Some(4400), "{body:x?}");
    }
}

#[test]
fn compression_before_confirm_is_refused_even_with_a_right_tag() {
    let mut pair = Pair::opened(Until::Deciding);
    let body = zstd::bulk::compress(&BackendMessage::Welcome(welcome()).encode(), 3).unwrap();
    let frame = forge(0x03, FLAG_ZSTD, 1, &body, &pair.keys().backend_to_agent);
    pair.agent.handle_frame(&frame, pair.now);
    assert_eq!(pair.agent_code(), Some(4400));
    assert!(pair.agent.closed().unwrap().reason.contains("CONFIRM"));

    let mut pair = Pair::opened(Until::Welcomed);
    let body = zstd::bulk::compress(&AgentMessage::Confirm(Confirm { epoch: 7 }).encode(), 3);
    let key = pair.keys().agent_to_backend;
    let frame = forge(0x04, FLAG_ZSTD, 2, &body.unwrap(), &key);
    pair.backend.handle_frame(&frame, pair.now);
    assert_eq!(pair.backend_code(), Some(4400));
}

#[test]
fn undefined_flags_and_misplaced_key_generations_are_refused() {
    let (mut pair, key) = established_with_keys();
    let body = AgentMessage::Heartbeat(heartbeat(1)).encode();
    pair.backend
        .handle_frame(&forge(0x10, 0b10, 3, &body, &key), pair.now);
    assert_eq!(pair.backend_code(), Some(4400));

    let (mut pair, key) = established_with_keys();
    let mut frame = vec![1, 0x10, 0, 3];
    frame.extend_from_slice(&3_u64.to_be_bytes());
    frame.extend_from_slice(&body);
    let tag = key.tag(&[&frame]);
    frame.extend_from_slice(&tag);
    pair.backend.handle_frame(&frame, pair.now);
    assert_eq!(pair.backend_code(), Some(4400));
}

#[test]
fn a_message_over_the_limit_of_its_phase_is_refused_unread() {
    for until in [Until::Challenged, Until::Welcomed] {
        let mut pair = Pair::opened(until);
        let frame = vec![0; limits::OPENING_MESSAGE_BYTES_MAX + 1];
        pair.backend.handle_frame(&frame, pair.now);
        assert_eq!(pair.backend_code(), Some(4413), "{until:?}");
    }
    let mut pair = Pair::established();
    pair.agent
        .handle_frame(&vec![0; limits::MESSAGE_BYTES_MAX + 1], pair.now);
    assert_eq!(pair.agent_code(), Some(4413));
}

#[test]
fn a_hello_that_does_not_fit_is_never_sent() {
    let mut pair = Pair::opened(Until::Challenged);
    let mut large = hello();
    large.agent_version = "x".repeat(limits::OPENING_MESSAGE_BYTES_MAX);
    pair.agent.hello(large, CLIENT_NONCE, pair.now);
    pair.pump();
    assert_eq!(pair.agent_code(), Some(4413));
    assert!(pair.to_backend.is_empty());
}

#[test]
fn the_largest_honest_hello_fits() {
    let mut pair = Pair::opened(Until::Challenged);
    let mut large = hello();
    large.unreported = (0..limits::COMMANDS_UNREPORTED_MAX as u128)
        .map(command_id)
        .collect();
    large.telemetry = vec![large.telemetry[0]; limits::TELEMETRY_POSITIONS_MAX];
    large.labels = (0..limits::LABELS_MAX)
        .map(|n| (format!("{n:063}"), "v".repeat(limits::LABEL_BYTES_MAX)))
        .collect();
    pair.agent.hello(large, CLIENT_NONCE, pair.now);
    pair.until = Until::Established;
    pair.pump();
    assert_eq!(pair.backend.state(), BackendState::Established);
}

#[test]
fn a_hello_with_more_than_its_bounds_is_refused() {
    let mut pair = Pair::opened(Until::Challenged);
    let mut greedy = hello();
    greedy.unreported = (0..=limits::COMMANDS_UNREPORTED_MAX as u128)
        .map(command_id)
        .collect();
    pair.agent.hello(greedy, CLIENT_NONCE, pair.now);
    pair.pump();
    assert_eq!(pair.backend_code(), Some(4400));
}

#[test]
fn an_agent_that_exceeds_its_credit_is_closed() {
    let (mut pair, key) = established_with_keys();
    let body = AgentMessage::Output(output(9_000)).encode();
    pair.backend
        .handle_frame(&forge(0x16, 0, 3, &body, &key), pair.now);
    assert_eq!(pair.backend_code(), None);
    pair.backend
        .handle_frame(&forge(0x16, 0, 4, &body, &key), pair.now);
    assert_eq!(pair.backend_code(), Some(4400));

    let (mut pair, key) = established_with_keys();
    let body = AgentMessage::Telemetry(batch(1, 500)).encode();
    let honest = limits::TELEMETRY_IN_FLIGHT_BYTES_MAX as usize / body.len();
    for sent in 0..=honest {
        assert_eq!(pair.backend_code(), None, "{sent}");
        let number = 3 + u64::try_from(sent).unwrap();
        pair.backend
            .handle_frame(&forge(0x12, 0, number, &body, &key), pair.now);
        while pair.backend.poll_event().is_some() {}
    }
    assert_eq!(pair.backend_code(), Some(4400));
}

#[test]
fn bulk_over_its_message_limit_is_refused() {
    let (mut pair, key) = established_with_keys();
    let mut body = AgentMessage::Telemetry(batch(1, 3)).encode();
    body.resize(limits::BULK_MESSAGE_BYTES_MAX, b' ');
    pair.backend
        .handle_frame(&forge(0x12, 0, 3, &body, &key), pair.now);
    assert_eq!(pair.backend_code(), Some(4413));
}

#[test]
fn frames_that_nobody_takes_out_end_the_session_instead_of_filling_memory() {
    let (mut pair, key) = established_with_keys();
    let body = AgentMessage::Heartbeat(heartbeat(1)).encode();
    let taken = (3..10_000)
        .take_while(|number| {
            pair.backend
                .handle_frame(&forge(0x10, 0, *number, &body, &key), pair.now);
            pair.backend.closed().is_none()
        })
        .count();
    assert_eq!(taken, limits::OUTBOX_MESSAGES_MAX);
    assert_eq!(pair.backend_code(), Some(4500));
}
