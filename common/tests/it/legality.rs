//! Every message kind in every state of both machines, against the one table in `docs/protocol.md`.

use std::collections::{BTreeMap, BTreeSet};

use viworks_common::key::Secret;
use viworks_common::session::state::{AgentState, BackendState};
use viworks_common::wire::envelope::{self, Packed};
use viworks_common::wire::message::{AgentMessage, BackendMessage, Drain};

use crate::support::{
    CLIENT_NONCE, KEY_GENERATION, Pair, Until, agent_messages, backend_messages, command,
};

const PROTOCOL: &str = include_str!("../../../docs/protocol.md");

/// Kind → (name, sender, states of the receiver in which it is legal), as documented.
fn documented() -> BTreeMap<u8, (String, String, BTreeSet<String>)> {
    PROTOCOL
        .lines()
        .filter_map(|line| line.strip_prefix("| `0x"))
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let kind = u8::from_str_radix(cells[0].trim_end_matches('`'), 16).unwrap();
            let states = cells[4]
                .split(',')
                .map(|state| state.trim().to_owned())
                .collect();
            (kind, (cells[1].to_owned(), cells[2].to_owned(), states))
        })
        .collect()
}

fn is_documented(kind: u8, state: &str) -> bool {
    documented()[&kind].2.contains(state)
}

/// `HeartbeatAck` as it is written on the wire and in the documents: `HEARTBEAT_ACK`.
pub(crate) fn wire_name(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(c.to_ascii_uppercase());
    }
    text
}

#[test]
fn the_documented_kinds_are_the_defined_kinds() {
    let defined: BTreeMap<u8, (String, String)> = AgentMessage::KINDS
        .iter()
        .map(|(kind, name)| (*kind, (wire_name(name), "agent".to_owned())))
        .chain(
            BackendMessage::KINDS
                .iter()
                .map(|(kind, name)| (*kind, (wire_name(name), "backend".to_owned()))),
        )
        .collect();
    let documented: BTreeMap<u8, (String, String)> = documented()
        .into_iter()
        .map(|(kind, (name, from, _))| (kind, (name, from)))
        .collect();
    assert_eq!(documented, defined);
}

#[test]
fn the_samples_cover_every_kind() {
    let kinds: Vec<u8> = agent_messages().iter().map(AgentMessage::kind).collect();
    let defined: Vec<u8> = AgentMessage::KINDS.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, defined);
    let kinds: Vec<u8> = backend_messages()
        .iter()
        .map(BackendMessage::kind)
        .collect();
    let defined: Vec<u8> = BackendMessage::KINDS
        .iter()
        .map(|(kind, _)| *kind)
        .collect();
    assert_eq!(kinds, defined);
}

/// A pair whose agent is in `state`, the key the backend would use now, and the sequence number that is due.
fn agent_in(state: AgentState) -> (Pair, Secret, u64) {
    let (pair, sequence) = match state {
        AgentState::AwaitChallenge => {
            return (Pair::new(), Secret::from_bytes([0; 32]), 0);
        }
        AgentState::Challenged => {
            let pair = Pair::opened(Until::Challenged);
            return (pair, Secret::from_bytes([0; 32]), 1);
        }
        AgentState::AwaitWelcome => (Pair::opened(Until::Deciding), 1),
        AgentState::Welcomed => (Pair::opened(Until::Welcomed), 2),
        AgentState::Established => (Pair::established(), 2),
        AgentState::Draining => {
            let mut pair = Pair::established();
            let drain = BackendMessage::Drain(Drain {
                reconnect_after_ms: 500,
            });
            pair.send_backend(drain);
            (pair, 3)
        }
        AgentState::Closed => {
            let mut pair = Pair::established();
            pair.agent.close("over", pair.now);
            (pair, 2)
        }
    };
    let key = pair.keys().backend_to_agent;
    (pair, key, sequence)
}

#[test]
fn the_agent_takes_what_is_legal_and_closes_on_everything_else() {
    for state in AgentState::ALL {
        for message in backend_messages() {
            let (mut pair, key, sequence) = agent_in(*state);
            assert_eq!(pair.agent.state(), *state);
            let case = format!("{} in {}", message.name(), state.name());
            let frame = if *state == AgentState::AwaitChallenge
                && matches!(message, BackendMessage::Challenge(_))
            {
                envelope::challenge(&[1; 16], &[2; 32], &message.encode())
            } else {
                let body = Packed::plain(message.encode());
                envelope::seal(message.kind(), 0, sequence, &body, &key)
            };
            pair.agent.handle_frame(&frame, pair.now);
            let expected = match (&message, *state) {
                (_, AgentState::Closed) => Some(1000),
                (BackendMessage::Refuse(refuse), _)
                    if is_documented(message.kind(), state.name()) =>
                {
                    Some(refuse.code.number())
                }
                _ if is_documented(message.kind(), state.name()) => None,
                _ => Some(4400),
            };
            assert_eq!(
                pair.agent_code(),
                expected,
                "{case}: {:?}",
                pair.agent.closed()
            );
        }
    }
}

/// A pair whose backend is in `state`, the key the agent would use now, and the sequence number that is due.
fn backend_in(state: BackendState) -> (Pair, Secret, u64) {
    let (pair, sequence) = match state {
        BackendState::AwaitHello => {
            let pair = Pair::opened(Until::Challenged);
            let key = pair.hello_key();
            return (pair, key, 1);
        }
        BackendState::Deciding => (Pair::opened(Until::Deciding), 2),
        BackendState::AwaitConfirm => (Pair::opened(Until::Welcomed), 2),
        BackendState::Confirming => (Pair::opened(Until::Confirming), 3),
        BackendState::Established => (Pair::established(), 3),
        BackendState::Draining => {
            let mut pair = Pair::established();
            let drain = BackendMessage::Drain(Drain {
                reconnect_after_ms: 500,
            });
            pair.send_backend(drain);
            (pair, 3)
        }
        BackendState::Closed => {
            let mut pair = Pair::established();
            let code = viworks_common::code::CloseCode::Superseded;
            pair.backend.close(code, "over", pair.now);
            (pair, 3)
        }
    };
    let key = pair.keys().agent_to_backend;
    (pair, key, sequence)
}

#[test]
fn the_backend_takes_what_is_legal_and_closes_on_everything_else() {
    for state in BackendState::ALL {
        for message in agent_messages() {
            let (mut pair, key, sequence) = backend_in(*state);
            assert_eq!(pair.backend.state(), *state);
            let case = format!("{} in {}", message.name(), state.name());
            let (generation, body) = match &message {
                AgentMessage::Hello(_) => (
                    KEY_GENERATION,
                    envelope::hello_body(&CLIENT_NONCE, &message.encode()),
                ),
                _ => (0, Packed::plain(message.encode())),
            };
            let frame = envelope::seal(message.kind(), generation, sequence, &body, &key);
            pair.backend.handle_frame(&frame, pair.now);
            let legal = is_documented(message.kind(), state.name());
            let expected = match (&message, *state) {
                (_, BackendState::Closed) => Some(4409),
                (AgentMessage::Bye(_), _) if legal => Some(1000),
                _ if legal => None,
                _ => Some(4400),
            };
            assert_eq!(
                pair.backend_code(),
                expected,
                "{case}: {:?}",
                pair.backend.closed()
            );
        }
    }
}

#[test]
fn an_undefined_kind_closes_even_with_a_right_tag() {
    let (mut pair, key, sequence) = agent_in(AgentState::Established);
    let frame = envelope::seal(0x7f, 0, sequence, &Packed::plain(b"{}".to_vec()), &key);
    pair.agent.handle_frame(&frame, pair.now);
    assert_eq!(pair.agent_code(), Some(4400));
}

#[test]
fn a_body_with_an_unknown_or_repeated_field_closes() {
    for body in [
        r#"{"id":1,"more":2}"#,
        r#"{"id":1,"id":1}"#,
        r"{}",
        r#"{"id":1} x"#,
        "",
    ] {
        let (mut pair, key, sequence) = agent_in(AgentState::Established);
        let body = Packed::plain(body.as_bytes().to_vec());
        let frame = envelope::seal(0x31, 0, sequence, &body, &key);
        pair.agent.handle_frame(&frame, pair.now);
        assert_eq!(pair.agent_code(), Some(4400), "{body:?}");
    }
}

#[test]
fn a_draining_backend_takes_no_new_offers() {
    let (mut pair, _, _) = backend_in(BackendState::Draining);
    assert_eq!(
        pair.backend
            .send(BackendMessage::Command(command(1)), pair.now),
        Err(viworks_common::session::SendRefusal::Draining)
    );
}
