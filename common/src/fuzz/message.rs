//! Bodies of messages: what is read is written again as the same, and every later step takes whatever was read.

use crate::catalogue::{Grammar, check_arguments, check_entry};
use crate::command::Arguments;
use crate::limits;
use crate::session::state::{AgentState, BackendState};
use crate::telemetry::{Batch, BatchColumns};
use crate::wire::message::{AgentMessage, BackendMessage};

/// Takes the first byte as the kind and the others as the body.
pub fn message(data: &[u8]) {
    let Some((&kind, body)) = data.split_first() else {
        return;
    };
    let from_agent = AgentMessage::decode(kind, body);
    let from_backend = BackendMessage::decode(kind, body);
    assert!(
        from_agent.is_none() || from_backend.is_none(),
        "the kind {kind:#04x} has two directions"
    );
    if let Some(Ok(message)) = from_agent {
        agent(&message, kind);
    }
    if let Some(Ok(message)) = from_backend {
        backend(&message, kind);
    }
}

fn agent(message: &AgentMessage, kind: u8) {
    assert_eq!(message.kind(), kind);
    let known = AgentMessage::KINDS.iter().find(|(known, _)| *known == kind);
    assert_eq!(known.map(|(_, name)| *name), Some(message.name()));
    let bytes = message.encode();
    match AgentMessage::decode(kind, &bytes) {
        Some(Ok(again)) => assert_eq!(&again, message),
        other => panic!("what was written cannot be read: {other:?}"),
    }
    let legal = BackendState::ALL
        .iter()
        .filter(|state| state.allows(message));
    assert!(legal.count() > 0, "{} is never legal", message.name());
    assert!(!BackendState::Closed.allows(message));
    match message {
        AgentMessage::Telemetry(columns) => telemetry(columns),
        AgentMessage::Catalogue(catalogue) => {
            for entry in &catalogue.commands {
                let sound = check_entry(entry).is_empty();
                assert!(!sound || Grammar::new(&entry.arguments).is_ok());
                if let Ok(filled) = check_arguments(entry, &Arguments::new()) {
                    assert_eq!(filled.len(), entry.arguments.len());
                }
            }
        }
        AgentMessage::Hello(_)
        | AgentMessage::Confirm(_)
        | AgentMessage::Heartbeat(_)
        | AgentMessage::ProbeAck(_)
        | AgentMessage::CommandAccepted(_)
        | AgentMessage::CommandRejected(_)
        | AgentMessage::CommandStarted(_)
        | AgentMessage::Output(_)
        | AgentMessage::CommandResult(_)
        | AgentMessage::PinReport(_)
        | AgentMessage::CertRequest(_)
        | AgentMessage::Event(_)
        | AgentMessage::Bye(_)
        | AgentMessage::KeyReport(_)
        | AgentMessage::TrustReport(_) => {}
    }
}

fn backend(message: &BackendMessage, kind: u8) {
    assert_eq!(message.kind(), kind);
    let bytes = message.encode();
    match BackendMessage::decode(kind, &bytes) {
        Some(Ok(again)) => assert_eq!(&again, message),
        other => panic!("what was written cannot be read: {other:?}"),
    }
    let legal = AgentState::ALL.iter().filter(|state| state.allows(message));
    assert!(legal.count() > 0, "{} is never legal", message.name());
    assert!(!AgentState::Closed.allows(message));
}

/// Columns become a batch that covers its range exactly once, or are refused; a batch becomes equal columns again.
fn telemetry(columns: &BatchColumns) {
    let Ok(batch) = Batch::try_from(columns.clone()) else {
        return;
    };
    assert!(batch.records.len() <= limits::BATCH_RECORDS_MAX);
    let in_gaps: u64 = batch
        .gaps
        .iter()
        .map(|gap| gap.to_seq - gap.from_seq + 1)
        .sum();
    let covered = in_gaps + batch.records.len() as u64;
    assert_eq!(covered, batch.to_seq - batch.from_seq + 1);
    let ascending = batch
        .records
        .is_sorted_by(|(earlier, _), (later, _)| earlier < later);
    assert!(ascending);
    for (_, record) in &batch.records {
        let few = (1..=limits::RECORD_FIELDS_MAX).contains(&record.fields.len());
        assert!(few || record.check().is_err());
    }
    match Batch::try_from(BatchColumns::from(batch.clone())) {
        Ok(again) => assert_eq!(again, batch),
        Err(error) => panic!("a good batch does not survive its own columns: {error}"),
    }
}
