//! What a queue calls out by itself, gathered until somebody listens: called twice is called once, and too many calls
//! are one to look everywhere.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use viworks_common::id::AgentId;

/// Gateways that are called one by one.
const AGENTS_MAX: usize = 4_096;

/// What was called since somebody last listened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Called {
    /// Commands may wait for these gateways, which have their sessions here.
    pub look: BTreeSet<AgentId>,
    /// Hints and routes may be lost: every gateway that has its session here is to be looked after.
    pub look_everywhere: bool,
}

/// The calls.
#[derive(Debug, Default)]
pub struct Calls {
    called: Mutex<Called>,
    notify: Notify,
}

impl Calls {
    /// Commands may wait for this gateway.
    pub fn look(&self, agent_id: AgentId) {
        let mut called = self.called();
        called.look.insert(agent_id);
        if called.look.len() > AGENTS_MAX {
            called.look.clear();
            called.look_everywhere = true;
        }
        drop(called);
        self.notify.notify_one();
    }

    /// Anything may wait for anybody.
    pub fn look_everywhere(&self) {
        self.called().look_everywhere = true;
        self.notify.notify_one();
    }

    /// Waits until something is called, and takes all of it.
    pub async fn next(&self) -> Called {
        loop {
            let called = std::mem::take(&mut *self.called());
            if called != Called::default() {
                return called;
            }
            self.notify.notified().await;
        }
    }

    fn called(&self) -> MutexGuard<'_, Called> {
        // Nothing panics while it is held.
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn too_many_calls_are_one_to_look_everywhere() {
        let calls = Calls::default();
        assert_eq!(calls.next().now_or_never(), None);
        let agent = |n: usize| AgentId::from_uuid(Uuid::from_u128(u128::try_from(n).unwrap()));
        calls.look(agent(1));
        calls.look(agent(1));
        let called = calls.next().now_or_never().unwrap();
        assert_eq!((called.look.len(), called.look_everywhere), (1, false));
        for n in 0..=AGENTS_MAX {
            calls.look(agent(n));
        }
        let called = calls.next().now_or_never().unwrap();
        assert_eq!((called.look.len(), called.look_everywhere), (0, true));
        assert_eq!(calls.next().now_or_never(), None);
    }
}
