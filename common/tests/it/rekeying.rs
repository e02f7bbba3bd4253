//! Both machines together: later agent keys, and two master keys.

use std::sync::Arc;

use viworks_common::key::{MasterKey, Secret};
use viworks_common::session::{AgentEvent, BackendEvent};
use viworks_common::wire::message::*;

use crate::support::*;

#[test]
fn a_later_agent_key_is_opened_in_its_session_and_covered_anew_in_another_one() {
    assert_eq!(Pair::opened(Until::Deciding).backend.key_update(4), None);
    let mut pair = Pair::established();
    let update = pair.backend.key_update(4).unwrap();
    let key = master().agent_key(&identity(), 4);
    assert_ne!(update.sealed, key.secret().expose_hex());
    pair.send_backend(BackendMessage::KeyUpdate(update.clone()));
    let offered = AgentEvent::KeyOffered {
        generation: 4,
        key: key.clone(),
    };
    assert_eq!(pair.agent_events.last(), Some(&offered));
    pair.send_agent(AgentMessage::KeyReport(KeyReport { generation: 4 }));
    let reported = BackendEvent::KeyReported(KeyReport { generation: 4 });
    assert_eq!(pair.backend_events.last(), Some(&reported));

    let mut other = Pair::with(agent_config(), backend_config([7; 32]));
    other.until = Until::Established;
    other.pump();
    assert_ne!(other.backend.key_update(4), Some(update.clone()));
    // What was sealed for one session is no key in another.
    other.send_backend(BackendMessage::KeyUpdate(update));
    let Some(AgentEvent::KeyOffered { key: found, .. }) = other.agent_events.last() else {
        panic!("{:?}", other.agent_events);
    };
    assert_ne!(*found, key);
}

#[test]
fn a_session_opens_with_a_key_of_either_master_key_and_is_given_one_of_the_new_one() {
    let new = MasterKey::new(Secret::from_bytes([0x77; 32]));
    let mut config = backend_config(SERVER_NONCE);
    config.master = Arc::new(new.clone().beside(&master()));
    let mut pair = Pair::with(agent_config(), config.clone());
    pair.pump();
    assert!(pair.backend.closed().is_none());
    assert!(pair.backend.hello_was_of_the_other_master());
    let update = pair.backend.key_update(4).unwrap();
    pair.send_backend(BackendMessage::KeyUpdate(update));
    let key = new.agent_key(&identity(), 4);
    let offered = AgentEvent::KeyOffered {
        generation: 4,
        key: key.clone(),
    };
    assert_eq!(pair.agent_events.last(), Some(&offered));

    let mut moved = agent_config();
    (moved.key, moved.key_generation) = (key, 4);
    let mut pair = Pair::with(moved.clone(), config);
    pair.pump();
    assert!(pair.backend.closed().is_none());
    assert!(!pair.backend.hello_was_of_the_other_master());
    // Once the old one is gone, and where the new one never came.
    for (agent, is_known) in [(moved, false), (agent_config(), true)] {
        let mut pair = Pair::with(agent, backend_config(SERVER_NONCE));
        pair.pump();
        assert_eq!(pair.backend.closed().is_none(), is_known);
        assert_eq!(pair.backend.hello_was_unproved(), !is_known);
    }
}
