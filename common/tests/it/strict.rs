//! What a peer sends is checked by its receiver as strictly as by its sender, and the peer is told what was wrong.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use viworks_common::limits;
use viworks_common::session::state::BackendState;
use viworks_common::session::{BackendEvent, End};
use viworks_common::telemetry::BatchColumns;
use viworks_common::text::is_unsafe;
use viworks_common::wire::PackedBatch;
use viworks_common::wire::message::*;

use crate::support::*;

/// A change to a message, and the word that its refusal must contain.
type Wrong<M> = (&'static str, Box<dyn Fn(&mut M)>);

fn wrong<M>(field: &'static str, change: impl Fn(&mut M) + 'static) -> Wrong<M> {
    (field, Box::new(change))
}

fn labels(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn hellos() -> Vec<Wrong<Hello>> {
    vec![
        wrong("labels", |h: &mut Hello| {
            h.labels = labels("site", &"x".repeat(64));
        }),
        wrong("labels", |h: &mut Hello| {
            h.labels = labels(&"x".repeat(64), "berlin");
        }),
        wrong("labels", |h: &mut Hello| h.labels = labels("", "berlin")),
        wrong("labels", |h: &mut Hello| h.labels = labels("a=b", "berlin")),
        wrong("labels", |h: &mut Hello| h.labels = labels("site", "a\nb")),
        wrong("labels", |h: &mut Hello| {
            h.labels = labels("si\u{1b}te", "berlin");
        }),
        wrong("labels", |h: &mut Hello| {
            h.labels = labels("site", "\u{202e}nilreb");
        }),
        wrong("labels", |h: &mut Hello| {
            h.labels = (0..=limits::LABELS_MAX)
                .map(|n| (n.to_string(), String::new()))
                .collect();
        }),
        wrong("agent_version", |h: &mut Hello| {
            h.agent_version = "9".repeat(4_000);
        }),
        wrong("agent_version", |h: &mut Hello| h.agent_version.clear()),
        wrong("agent_version", |h: &mut Hello| {
            h.agent_version = "1.0\n2.0".to_owned();
        }),
        wrong("capabilities", |h: &mut Hello| {
            h.capabilities = vec!["a b".to_owned()];
        }),
        wrong("capabilities", |h: &mut Hello| {
            h.capabilities = vec!["x".to_owned(); limits::CAPABILITIES_MAX + 1];
        }),
        wrong("token", |h: &mut Hello| h.token = "zz".to_owned()),
        wrong("catalogue_digest", |h: &mut Hello| {
            h.catalogue_digest = "\u{7}".repeat(64);
        }),
        wrong("unreported", |h: &mut Hello| {
            h.unreported = (0..=limits::COMMANDS_UNREPORTED_MAX as u128)
                .map(command_id)
                .collect();
        }),
        wrong("telemetry", |h: &mut Hello| {
            h.telemetry = vec![h.telemetry[0]; limits::TELEMETRY_POSITIONS_MAX + 1];
        }),
        wrong("telemetry", |h: &mut Hello| h.telemetry[0].seq = u64::MAX),
        wrong("epoch", |h: &mut Hello| h.epoch = u64::MAX),
        wrong("highest_order", |h: &mut Hello| h.highest_order = u64::MAX),
        wrong("low_water", |h: &mut Hello| h.low_water = 1 << 53),
        wrong("pin_set_version", |h: &mut Hello| {
            h.pin_set_version = 1 << 60;
        }),
    ]
}

#[test]
fn a_hello_that_breaks_a_rule_gets_an_authentic_refusal_that_names_it() {
    for (field, change) in hellos() {
        let mut pair = Pair::opened(Until::Challenged);
        let mut bad = hello();
        change(&mut bad);
        pair.agent.hello(bad, CLIENT_NONCE, pair.now);
        pair.until = Until::Established;
        pair.pump();
        assert_eq!(pair.backend_code(), Some(4400), "{field}");
        let closed = pair.agent.closed().unwrap();
        assert_eq!(
            (closed.number(), closed.by),
            (4400, End::Backend),
            "{field}"
        );
        assert!(closed.reason.contains(field), "{field}: {}", closed.reason);
        assert!(!closed.reason.contains(is_unsafe), "{field}: {closed:?}");
        let acted = pair
            .backend_events
            .iter()
            .any(|event| matches!(event, BackendEvent::Hello { .. }));
        assert!(!acted, "{field}: it was handed on");
    }
}

/// Bodies by kind, each with something that no honest agent sends.
fn agent_bodies() -> Vec<(u8, &'static str, Value)> {
    let of =
        |message: AgentMessage| -> Value { serde_json::from_slice(&message.encode()).unwrap() };
    let with = |mut body: Value, pointer: &str, value: Value| {
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let by_kind = |kind: u8| {
        let found = agent_messages().into_iter().find(|m| m.kind() == kind);
        of(found.unwrap())
    };
    let catalogue = by_kind(0x18);
    let entry = catalogue["commands"][0].clone();
    let many: Vec<Value> = (0..300)
        .map(|n| with(entry.clone(), "/name", json!(format!("a.b{n}"))))
        .collect();
    let result = by_kind(0x17);
    let kept = "QUFB".repeat(limits::RETAINED_OUTPUT_BYTES_MAX / 3 + 1);
    vec![
        (
            0x10,
            "spool_bytes",
            with(by_kind(0x10), "/spool_bytes", json!(u64::MAX)),
        ),
        (
            0x16,
            "offset",
            with(by_kind(0x16), "/offset", json!(1_u64 << 53)),
        ),
        (
            0x16,
            "stdin",
            with(by_kind(0x16), "/stream", json!("stdin")),
        ),
        (
            0x17,
            "stdout",
            with(result.clone(), "/outcome/stdout/head", json!(kept)),
        ),
        (
            0x17,
            "cut_bytes",
            with(result, "/outcome/stderr/cut_bytes", json!(u64::MAX)),
        ),
        (
            0x18,
            "commands",
            with(catalogue.clone(), "/commands", json!(many)),
        ),
        (
            0x18,
            "named twice",
            with(catalogue.clone(), "/commands", json!([entry, entry])),
        ),
        (
            0x18,
            "digest",
            with(catalogue.clone(), "/digest", json!("x")),
        ),
        (
            0x18,
            "command name",
            with(catalogue, "/commands/0/name", json!("A\nB")),
        ),
        (
            0x19,
            "version",
            with(by_kind(0x19), "/version", json!(u64::MAX)),
        ),
        (
            0x1b,
            "event kind",
            with(by_kind(0x1b), "/kind", json!("Rm -rf\u{1b}")),
        ),
        (
            0x1b,
            "event kind",
            with(by_kind(0x1b), "/kind", json!("x".repeat(65))),
        ),
    ]
}

#[test]
fn an_agents_message_that_breaks_a_rule_ends_the_session_and_names_it() {
    for (kind, word, body) in agent_bodies() {
        let mut pair = Pair::established();
        let key = pair.keys().agent_to_backend;
        let sent = forge(kind, 0, 3, body.to_string().as_bytes(), &key);
        pair.backend.handle_frame(&sent, pair.now);
        pair.pump();
        assert_eq!(pair.backend_code(), Some(4400), "{kind:#x} {word}");
        assert_eq!(pair.backend.state(), BackendState::Closed);
        // Over its limit a message of retained output is still small enough to arrive: it is named like the others.
        let closed = pair.agent.closed().unwrap();
        assert!(closed.reason.contains(word), "{word}: {}", closed.reason);
        assert_eq!(pair.backend_events.len(), 1, "only its end is reported");
    }
}

/// A batch is read when its turn comes, which the session does not wait for.
#[test]
fn a_batch_that_breaks_a_rule_is_no_batch() {
    let honest = batch(1, 3);
    let mut wrong = honest.clone();
    wrong.to_seq = u64::MAX;
    assert!(PackedBatch::pack(&honest).open().is_ok());
    let problem = PackedBatch::pack(&wrong).open().unwrap_err();
    assert!(problem.contains("to_seq"), "{problem}");
}

/// An object of any keys is as strict as the fields of a body.
#[test]
fn a_key_that_stands_twice_is_an_error_that_names_it() {
    let twice = |body: &[u8], entry: &str| -> Vec<u8> {
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains(entry), "{text}");
        text.replace(entry, &format!("{entry},{entry}"))
            .into_bytes()
    };
    let mut labelled = hello();
    labelled.labels = labels("site", "berlin");
    let body = AgentMessage::Hello(labelled).encode();
    assert!(AgentMessage::decode(0x02, &body).unwrap().is_ok());
    let told = AgentMessage::decode(0x02, &twice(&body, r#""site":"berlin""#));
    let told = told.unwrap().unwrap_err().to_string();
    assert!(told.contains("duplicate field `site`"), "{told}");

    let mut offer = command(1);
    let unit = "unit".parse().unwrap();
    offer.arguments = BTreeMap::from([(unit, "ssh".to_owned())]);
    let body = BackendMessage::Command(offer).encode();
    let told = BackendMessage::decode(0x33, &twice(&body, r#""unit":"ssh""#));
    let told = told.unwrap().unwrap_err().to_string();
    assert!(told.contains("duplicate field `unit`"), "{told}");

    let columns = serde_json::to_string(&batch(1, 3)).unwrap();
    let fields = columns.find("\"fields\":{").unwrap() + "\"fields\":{".len();
    let end = columns[fields..].find(']').unwrap() + fields + 1;
    let column = &columns[fields..end];
    let told = serde_json::from_slice::<BatchColumns>(&twice(columns.as_bytes(), column));
    let told = told.unwrap_err().to_string();
    assert!(told.contains("duplicate field `"), "{told}");
}

#[test]
fn a_backends_message_that_breaks_a_rule_ends_the_session() {
    let of =
        |message: BackendMessage| -> Value { serde_json::from_slice(&message.encode()).unwrap() };
    let with = |mut body: Value, pointer: &str, value: Value| {
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let command = of(BackendMessage::Command(command(1)));
    let by_kind = |kind: u8| {
        let found = backend_messages().into_iter().find(|m| m.kind() == kind);
        of(found.unwrap())
    };
    let wrong = [
        (
            0x32,
            "position",
            with(by_kind(0x32), "/position/seq", json!(u64::MAX)),
        ),
        (0x33, "order", with(command.clone(), "/order", json!(0))),
        (
            0x33,
            "digest",
            with(command.clone(), "/digest", json!("10")),
        ),
        (0x33, "attempt", with(command.clone(), "/attempt", json!(0))),
        (
            0x33,
            "command name",
            with(command.clone(), "/name", json!("a b")),
        ),
        (
            0x33,
            "traceparent",
            with(command.clone(), "/traceparent", json!("\u{1b}]0;x")),
        ),
        (
            0x33,
            "deadline",
            with(command, "/deadline/as_of", json!(u64::MAX)),
        ),
        (
            0x38,
            "certificate",
            with(by_kind(0x38), "/refused", Value::Null),
        ),
        (
            0x38,
            "certificate",
            with(by_kind(0x38), "/certificate", json!("both")),
        ),
        (
            0x38,
            "code",
            with(by_kind(0x38), "/refused/code", json!("not a word")),
        ),
        (
            0x38,
            "retry_after_ms",
            with(by_kind(0x38), "/refused/retry_after_ms", json!(u64::MAX)),
        ),
        (
            0x39,
            "version",
            with(by_kind(0x39), "/version", json!(u64::MAX)),
        ),
        (
            0x3b,
            "generation",
            with(by_kind(0x3b), "/generation", json!(0)),
        ),
        (
            0x3b,
            "sealed",
            with(by_kind(0x3b), "/sealed", json!("not a key")),
        ),
        (
            0x3c,
            "bundle",
            with(by_kind(0x3c), "/bundle", json!("x".repeat(32 * 1024 + 1))),
        ),
        (
            0x34,
            "permit",
            with(by_kind(0x34), "/permit/as_of", json!(u64::MAX)),
        ),
        (
            0x37,
            "low_water",
            with(by_kind(0x37), "/low_water", json!(u64::MAX)),
        ),
    ];
    for (kind, word, body) in wrong {
        let mut pair = Pair::established();
        let key = pair.keys().backend_to_agent;
        let sent = forge(kind, 0, 2, body.to_string().as_bytes(), &key);
        pair.agent.handle_frame(&sent, pair.now);
        assert_eq!(pair.agent_code(), Some(4400), "{kind:#x} {word}");
        let reason = &pair.agent.closed().unwrap().reason;
        assert!(reason.contains(word), "{word}: {reason}");
    }
}

#[test]
fn a_welcome_that_breaks_a_rule_is_never_confirmed() {
    let wrong = [
        wrong("token", |w: &mut Welcome| w.token = "x".repeat(64)),
        wrong("heartbeat_interval_ms", |w: &mut Welcome| {
            w.heartbeat_interval_ms = 0;
        }),
        wrong("silence_ms", |w: &mut Welcome| w.silence_ms = 1),
        wrong("silence_ms", |w: &mut Welcome| w.silence_ms = u64::MAX),
        wrong("epoch", |w: &mut Welcome| w.epoch = u64::MAX),
        wrong("committed", |w: &mut Welcome| {
            w.committed = vec![w.committed[0]; limits::TELEMETRY_POSITIONS_MAX + 1];
        }),
    ];
    for (field, change) in wrong {
        let mut pair = Pair::opened(Until::Deciding);
        let mut bad = welcome();
        change(&mut bad);
        pair.backend.welcome(bad, pair.now);
        pair.until = Until::Established;
        pair.pump();
        assert_eq!(pair.agent_code(), Some(4400), "{field}");
        let reason = &pair.agent.closed().unwrap().reason;
        assert!(reason.contains(field), "{field}: {reason}");
        assert_eq!(pair.to_backend.len(), 1, "nothing follows HELLO");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Prose never ends a session and never arrives as anything but one harmless line.
    #[test]
    fn no_reason_or_detail_carries_a_character_that_does_more_than_appear(text in any::<String>(), hostile in "[\u{0}-\u{1f}\u{7f}-\u{9f}\u{202e}x]{0,900}") {
        let text = text + &hostile;
        let harmless = |text: &str| text.len() <= limits::DETAIL_BYTES_MAX && !text.contains(is_unsafe);
        let rejected = CommandRejected { command_id: command_id(1), code: viworks_common::code::RejectCode::Busy, detail: text.clone() };
        let event = Event { kind: "x".to_owned(), detail: text.clone() };
        let mut outcome = viworks_common::command::Outcome::without_run(viworks_common::command::OutcomeState::Failed, text.clone());
        outcome.reason = Some(text.clone());
        let result = CommandResult { command_id: command_id(1), outcome };
        let mut pair = Pair::established();
        let key = pair.keys().agent_to_backend;
        for (number, message) in (3..).zip([AgentMessage::CommandRejected(rejected), AgentMessage::Event(event), AgentMessage::CommandResult(result)]) {
            pair.backend.handle_frame(&forge(message.kind(), 0, number, &message.encode(), &key), pair.now);
        }
        let mut seen = 0;
        while let Some(event) = pair.backend.poll_event() {
            let text = match event {
                BackendEvent::Rejected(rejected) => rejected.detail,
                BackendEvent::Event(event) => event.detail,
                BackendEvent::Result(result) => result.outcome.reason.unwrap(),
                other => panic!("{other:?}"),
            };
            prop_assert!(harmless(&text), "{:?}", text);
            seen += 1;
        }
        prop_assert_eq!(seen, 3);
        pair.send_agent(AgentMessage::Heartbeat(heartbeat(1)));
        pair.agent.close(&text, pair.now);
        pair.pump();
        prop_assert!(harmless(&pair.backend.closed().unwrap().reason));
    }
}
