//! Test vectors: the bytes of an opening and one command from fixed inputs, as `docs/protocol/vectors.json` publishes
//! them.
//!
//! `VIWORKS_GOLDEN=write cargo test -p viworks-common --test it vectors` writes the file after a change that was meant.

use std::path::Path;

use serde_json::{Value, json};
use viworks_common::catalogue::{
    Argument, ArgumentType, CatalogueEntry, Risk, catalogue_digest, take_report_while,
};
use viworks_common::enrolment::{LapsedExchange, WireChallenge};
use viworks_common::key::{AgentKey, Secret};
use viworks_common::wire::message::BackendMessage;

use crate::support::*;

fn secret(key: &Secret) -> String {
    key.expose_hex()
}

/// One entry of every kind of argument, and one that cannot run; not in the order of their names.
pub(crate) fn entries() -> Vec<CatalogueEntry> {
    let argument = |name: &str, value: ArgumentType, default: Option<&str>| Argument {
        name: name.parse().unwrap(),
        description: format!("The {name}"),
        value,
        default: default.map(str::to_owned),
    };
    let entry = |name: &str, arguments: Vec<Argument>| CatalogueEntry {
        name: name.parse().unwrap(),
        title: format!("Does {name}, gründlich"),
        risk: Risk::Change,
        idempotent: false,
        arguments,
        timeout_ms: 30_000,
        output_bytes_max: 65_536,
        unavailable: None,
    };
    let pattern = "[a-z]{1,8}".to_owned();
    let values = vec!["soft".to_owned(), "hard".to_owned()];
    vec![
        entry(
            "service.restart",
            vec![
                argument("unit", ArgumentType::String { pattern }, None),
                argument(
                    "tries",
                    ArgumentType::Integer { min: -1, max: 9 },
                    Some("3"),
                ),
                argument("how", ArgumentType::Choice { values }, Some("soft")),
                argument("wait", ArgumentType::Boolean, Some("true")),
            ],
        ),
        CatalogueEntry {
            risk: Risk::Read,
            idempotent: true,
            unavailable: Some("it needs /usr/bin/nothing".to_owned()),
            ..entry("net.nothing", Vec::new())
        },
    ]
}

/// One exchange at the door, with stand-ins for its bodies: the proofs are over whatever bytes there are.
fn at_the_door(agent_key: &AgentKey) -> Value {
    let (request, answer) = (r#"{"step":"renew"}"#, r#"{"certificate":"PEM"}"#);
    let bundle = "-----BEGIN CERTIFICATE-----\n";
    let challenge = WireChallenge([0xc4; 32]);
    let exchange = LapsedExchange::new(agent_key, identity().agent_id, &challenge);
    let given = exchange.give(request.as_bytes(), bundle.to_owned());
    let given = serde_json::to_value(given).unwrap();
    json!({
        "challenge": challenge,
        "request": request,
        "request_proof": exchange.prove(request.as_bytes()),
        "answer": answer,
        "answer_proof": exchange.authenticate(request.as_bytes(), answer.as_bytes()),
        "authorities": given["bundle"],
        "authorities_mac": given["mac"],
    })
}

fn generated() -> Value {
    let mut pair = Pair::new();
    pair.pump();
    pair.send_backend(BackendMessage::Command(command(1)));
    let identity = identity();
    let agent_key = master().agent_key(&identity, u32::from(KEY_GENERATION));
    let keys = pair.keys();
    let frame = |bytes: &[u8], from: &str, key: &str| {
        json!({
            "from": from,
            "kind": format!("{:#04x}", bytes[1]),
            "sequence": sequence(bytes),
            "key": key,
            "body": hex::encode(&bytes[12..bytes.len() - 32]),
            "message": hex::encode(bytes),
        })
    };
    json!({
        "description": "One opening and one COMMAND of protocol version 1. Byte strings are hexadecimal. JSON bodies may be written differently by another implementation; these are the bytes this one writes.",
        "inputs": {
            "master_key": secret(&Secret::from_bytes([0x4d; 32])),
            "tenant": identity.tenant.as_str(),
            "agent_id": identity.agent_id.to_string(),
            "key_generation": KEY_GENERATION,
            "session_id": uuid(0x5e55).to_string(),
            "server_nonce": hex::encode(SERVER_NONCE),
            "client_nonce": hex::encode(CLIENT_NONCE),
            "binding_mode": binding().mode.name(),
            "binding": hex::encode(binding().value),
        },
        "key_schedule": {
            "agent_key": secret(agent_key.secret()),
            "token_6": secret(&master().token(&identity, 6)),
            "token_7": secret(&master().token(&identity, 7)),
            "hello_key": secret(&pair.hello_key()),
            "agent_to_backend": secret(&keys.agent_to_backend),
            "backend_to_agent": secret(&keys.backend_to_agent),
        },
        "command_digest": command(1).digest,
        "door": at_the_door(&agent_key),
        "catalogue": {
            "commands": entries(),
            "digest": hex::encode(catalogue_digest(&entries())),
        },
        "messages": {
            "CHALLENGE": frame(&pair.to_agent[0], "backend", "none"),
            "HELLO": frame(&pair.to_backend[0], "agent", "hello_key"),
            "WELCOME": frame(&pair.to_agent[1], "backend", "backend_to_agent"),
            "CONFIRM": frame(&pair.to_backend[1], "agent", "agent_to_backend"),
            "COMMAND": frame(&pair.to_agent[2], "backend", "backend_to_agent"),
        },
    })
}

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol/vectors.json")
}

#[test]
fn the_published_vectors_are_what_the_machines_write() {
    let generated = generated();
    if std::env::var("VIWORKS_GOLDEN").as_deref() == Ok("write") {
        let text = serde_json::to_string_pretty(&generated).unwrap() + "\n";
        std::fs::write(path(), text).unwrap();
    }
    let published: Value = serde_json::from_slice(&std::fs::read(path()).unwrap()).unwrap();
    assert_eq!(published, generated);
}

#[test]
fn the_published_catalogue_is_one_that_a_backend_takes() {
    let kept = take_report_while(entries(), || true);
    assert_eq!(kept, Some((entries(), Vec::new())));
}

#[test]
fn the_machines_read_the_published_bytes() {
    let published: Value = serde_json::from_slice(&std::fs::read(path()).unwrap()).unwrap();
    let bytes =
        |name: &str| hex::decode(published["messages"][name]["message"].as_str().unwrap()).unwrap();
    let mut pair = Pair::new();
    pair.agent.handle_frame(&bytes("CHALLENGE"), pair.now);
    pair.backend.handle_frame(&bytes("HELLO"), pair.now);
    pair.agent.hello(hello(), CLIENT_NONCE, pair.now);
    pair.agent.handle_frame(&bytes("WELCOME"), pair.now);
    pair.backend.welcome(welcome(), pair.now);
    pair.agent.confirm(pair.now);
    pair.backend.handle_frame(&bytes("CONFIRM"), pair.now);
    pair.agent.handle_frame(&bytes("COMMAND"), pair.now);
    assert!(pair.agent.closed().is_none(), "{:?}", pair.agent.closed());
    assert!(
        pair.backend.closed().is_none(),
        "{:?}",
        pair.backend.closed()
    );
    let received = std::iter::from_fn(|| pair.agent.poll_event()).last();
    let expected = viworks_common::session::AgentEvent::Command(Box::new(command(1)));
    assert_eq!(received, Some(expected));
}
