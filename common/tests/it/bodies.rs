//! The bodies of every kind, as agents and backends in the field write and read them: each refuses what it does not
//! know, so what is new goes only to whoever has announced that it knows it (see `KEEPS_TIMEOUT`), or it is a new
//! version of the protocol.
//!
//! Nothing writes `docs/protocol/bodies.json` anew. What is there stays, for as long as its version is spoken.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use viworks_common::catalogue::{CatalogueEntry, Risk};
use viworks_common::code::{CloseCode, RejectCode};
use viworks_common::command::{Outcome, OutcomeState, RetainedOutput};
use viworks_common::key::BindingMode;
use viworks_common::pin::{PinSet, SpkiPin};
use viworks_common::telemetry::{BatchColumns, FieldValue, Gap, GapReason, Position};
use viworks_common::wire::message::*;

use crate::legality::wire_name;
use crate::support::*;
use crate::vectors::entries;

/// Every one of them: one more does not compile without a look at the list.
macro_rules! all {
    ($type:ident: $($one:ident)*) => {{
        const fn _looked_at(one: $type) -> &'static str {
            match one {
                $($type::$one => stringify!($one),)*
            }
        }
        words(&[$($type::$one,)*])
    }};
}

/// What an agent may send beyond [`agent_messages`]: the same kinds with all that may be absent.
fn agents_most() -> Vec<AgentMessage> {
    let kept = |head: &str| RetainedOutput {
        head: head.into(),
        tail: b"end".to_vec(),
        cut_bytes: 12,
    };
    vec![
        AgentMessage::Heartbeat(Heartbeat {
            sent_at_ms: 1,
            round_trip_us: Some(1_200),
            clock_skew_ms: Some(-3),
            spool_records: 4,
            spool_bytes: 4_096,
            commands_running: 1,
        }),
        AgentMessage::Telemetry(BatchColumns {
            spool_epoch: agent_run_id(),
            from_seq: 1,
            to_seq: 6,
            gaps: vec![Gap {
                from_seq: 3,
                to_seq: 4,
                reason: GapReason::SpoolFull,
            }],
            streams: vec!["host.cpu".parse().unwrap(), "app.x".parse().unwrap()],
            stream: vec![0, 1, 0, 0],
            observed_at: vec![1_790_000_000_000_000, 5, -2, 0],
            fields: BTreeMap::from([
                (
                    "busy".parse().unwrap(),
                    vec![
                        Some(FieldValue::Number(0.5)),
                        None,
                        Some(FieldValue::Integer(-1)),
                        Some(FieldValue::Flag(true)),
                    ],
                ),
                (
                    "name".parse().unwrap(),
                    vec![None, Some(FieldValue::Text("ü".to_owned())), None, None],
                ),
            ]),
        }),
        AgentMessage::CommandResult(CommandResult {
            command_id: command_id(1),
            outcome: Outcome {
                state: OutcomeState::Failed,
                exit_code: Some(3),
                signal: Some(9),
                started_at: Some(server_time()),
                duration_ms: 12,
                stdout: kept("out"),
                stderr: kept("err"),
                reason: Some("it did not work".to_owned()),
                reject_code: Some(RejectCode::BadArguments),
            },
        }),
        AgentMessage::Catalogue(Catalogue {
            digest: hex::encode([1; 32]),
            commands: [
                entries(),
                vec![CatalogueEntry {
                    name: "disk.format".parse().unwrap(),
                    risk: Risk::Danger,
                    ..entries().remove(0)
                }],
            ]
            .concat(),
        }),
        AgentMessage::TrustReport(TrustReport {
            digest: hex::encode([3; 32]),
            refused: Some("not_an_authority".to_owned()),
        }),
    ]
}

/// What a backend may send beyond [`backend_messages`].
fn backends_most() -> Vec<BackendMessage> {
    vec![
        BackendMessage::Welcome(Welcome {
            catalogue_known: false,
            pins: Some(PinSet {
                version: 3,
                pins: [SpkiPin::from_digest([0x91; 32])].into(),
            }),
            ..welcome()
        }),
        BackendMessage::Refuse(Refuse {
            retry_after_ms: None,
            ..refuse(CloseCode::IdentityFork)
        }),
        BackendMessage::TelemetryAck(TelemetryAck::of(Position {
            spool_epoch: agent_run_id(),
            seq: 3,
        })),
        BackendMessage::Command(Command {
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
            permitted: true,
            timeout_ms: Some(1_000),
            ..command(1)
        }),
        BackendMessage::ResultAck(ResultAck {
            command_id: command_id(1),
            low_water: 18,
            not_kept: true,
        }),
        BackendMessage::Welcome(Welcome {
            renews_certificates: true,
            ..welcome()
        }),
        BackendMessage::CertIssued(CertIssued {
            certificate: Some(
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned(),
            ),
            refused: None,
        }),
    ]
}

fn words(all: &[impl Serialize]) -> Value {
    serde_json::to_value(all).unwrap()
}

fn body(kind: u8, name: &str, bytes: &[u8]) -> Value {
    let body: Value = serde_json::from_slice(bytes).unwrap();
    json!({"kind": format!("{kind:#04x}"), "name": wire_name(name), "body": body})
}

/// What is written now.
fn written() -> Value {
    let agent = [agent_messages(), agents_most()].concat();
    let backend = [backend_messages(), backends_most()].concat();
    let of_agent = agent
        .iter()
        .map(|it| body(it.kind(), it.name(), &it.encode()));
    let of_backend = backend
        .iter()
        .map(|it| body(it.kind(), it.name(), &it.encode()));
    json!({
        "description": "Bodies of every kind of message of protocol version 1, with as little and with as much as they may have, and every word that stands for something in them. CHALLENGE and HELLO without what stands before their JSON.",
        "agent": of_agent.collect::<Vec<_>>(),
        "backend": of_backend.collect::<Vec<_>>(),
        "words": {
            "reject codes": words(RejectCode::ALL),
            "close codes": words(CloseCode::ALL),
            "risks": words(Risk::ALL),
            "outcomes": all!(OutcomeState: Succeeded Failed TimedOut Rejected Expired Cancelled Indeterminate),
            "reasons of gaps": all!(GapReason: SpoolFull SpoolDamaged BackendRolledBack),
            "outputs": all!(OutputStream: Stdout Stderr),
            "bindings": all!(BindingMode: Exporter Certificate),
            "capabilities": words(&[
                KEEPS_TIMEOUT,
                TELEMETRY_REFUSALS,
                RESULT_REFUSALS,
                CERTIFICATE_RENEWAL,
    PIN_ROTATION, KEY_ROTATION, TRUST_UPDATE,
            ]),
        },
    })
}

fn recorded() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol/bodies.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn what_is_written_is_what_was_written_before() {
    assert_eq!(written(), recorded());
}

#[test]
fn what_was_written_before_is_read() {
    let recorded = recorded();
    let bodies = |side: &str| {
        let all = recorded[side].as_array().unwrap().iter();
        let read = all.map(|it| {
            let kind = it["kind"].as_str().unwrap().trim_start_matches("0x");
            let kind = u8::from_str_radix(kind, 16).unwrap();
            (kind, it["body"].to_string().into_bytes())
        });
        read.collect::<Vec<_>>()
    };
    for ((kind, body), expected) in bodies("agent")
        .into_iter()
        .zip([agent_messages(), agents_most()].concat())
    {
        assert_eq!(
            AgentMessage::decode(kind, &body).unwrap().unwrap(),
            expected
        );
    }
    for ((kind, body), expected) in bodies("backend")
        .into_iter()
        .zip([backend_messages(), backends_most()].concat())
    {
        assert_eq!(
            BackendMessage::decode(kind, &body).unwrap().unwrap(),
            expected
        );
    }
}
