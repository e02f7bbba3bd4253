//! Both machines together: the authorities of the server.

use viworks_common::session::{AgentEvent, BackendEvent};
use viworks_common::wire::message::*;

use crate::support::*;

#[test]
fn authorities_cross_an_established_session_and_are_reported_of() {
    let mut pair = Pair::established();
    let bundle = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    pair.send_backend(BackendMessage::TrustUpdate(TrustUpdate {
        bundle: bundle.clone(),
    }));
    let offered = AgentEvent::AuthoritiesOffered(bundle);
    assert_eq!(pair.agent_events.last(), Some(&offered));
    let report = TrustReport {
        digest: hex::encode([1; 32]),
        refused: Some("unreadable".to_owned()),
    };
    pair.send_agent(AgentMessage::TrustReport(report.clone()));
    let reported = BackendEvent::TrustReported(report);
    assert_eq!(pair.backend_events.last(), Some(&reported));
}
