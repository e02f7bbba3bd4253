//! One connection from its upgrade to its end: an opening, which becomes a live session or nothing.

use viworks_common::code::CloseCode;
use viworks_common::session::{Closed, End};
use viworks_common::wire::message::Refuse;

mod down;
mod ending;
mod line;
mod live;
mod opening;
mod rekeying;
mod renewing;
mod reports;
mod stream;
mod trusting;
mod up;

pub(super) use opening::Opening;

/// Runs a connection to its end. What happens now and then is boxed: thousands of sessions wait, and would carry its
/// size.
pub(super) async fn serve(opening: Box<Opening>) {
    let metrics = opening.metrics().clone();
    metrics.connections.inc();
    // Not within the match, which would keep the whole opening until the session ends.
    let opened = Box::pin(opening.run()).await;
    match opened {
        Ok(live) => live.run().await,
        Err(refused) => Box::pin(refused.finish()).await,
    }
    metrics.connections.dec();
}

fn refusal(code: CloseCode, reason: &str) -> Refuse {
    Refuse {
        code,
        reason: reason.to_owned(),
        retry_after_ms: None,
    }
}

fn draining() -> Refuse {
    refusal(CloseCode::Draining, "the backend is stopping")
}

fn lost() -> Closed {
    Closed {
        code: Some(CloseCode::HeartbeatTimeout),
        reason: "the connection was lost".to_owned(),
        by: End::Agent,
    }
}
