//! Collects heartbeats, so that thousands of them are one transaction.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use viworks_common::id::AgentId;

use crate::data::SessionTouch;

/// The latest figures of each gateway since they were last taken. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats {
    latest: Arc<Mutex<BTreeMap<AgentId, SessionTouch>>>,
}

impl Heartbeats {
    /// Keeps a heartbeat; one for each connected gateway, so it is bounded like connections are.
    pub fn note(&self, touch: SessionTouch) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.insert(touch.agent_id, touch);
    }

    /// Everything since the last time.
    #[must_use]
    pub fn take(&self) -> Vec<SessionTouch> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *latest).into_values().collect()
    }
}
