//! What was recorded and is sent again in a session, of it or of another one.

use futures_util::SinkExt as _;
use tokio_tungstenite::tungstenite::Message;
use viworks_backend_agent::data::{AuditRecord, Page};
use viworks_common::id::Tenant;

use super::Backend;

#[tokio::test]
async fn what_was_said_before_or_elsewhere_ends_the_session_and_is_on_record_once_a_minute() {
    let backend = Backend::start().await;
    let material = backend.join("gw-1").await;
    let (mut epoch, mut token) = (0, material.token.clone());
    let mut recorded: Option<Vec<u8>> = None;
    for n in 1..=4 {
        let mut gateway = backend.dial(&material).await;
        (epoch, token) = gateway.open(1, epoch, &token).await.unwrap();
        // CONFIRM: of this session in the first, and of the first one in all others.
        let frame = recorded.get_or_insert_with(|| gateway.sent[1].clone());
        let again = Message::binary(frame.clone());
        gateway.socket.send(again).await.unwrap();
        assert_eq!(gateway.close_number().await, Some(4400), "{n}");
    }
    let tenant = Tenant::default_tenant();
    let audit = backend.store.list_audit(&tenant, Page::first(50));
    let audit = audit.await.unwrap().items;
    for action in ["gateway.frame_replayed", "gateway.frame_foreign"] {
        let of = |entry: &&AuditRecord| entry.record.action == action;
        assert_eq!(audit.iter().filter(of).count(), 1, "{action}");
    }
    drop(backend.stop().await);
}
