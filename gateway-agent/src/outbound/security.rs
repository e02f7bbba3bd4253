//! Puts on record that somebody with the backend's key said what no backend says.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::{error, warn};
use viworks_common::rate::{Bucket, Quota, Taken};
use viworks_common::session::Misplaced;
use viworks_common::text;
use viworks_runtime::clock::Clock;

use crate::audit::{Audit, AuditRecord};

/// Records of it: each costs the disk a write, and the other end decides how many there are.
const RECORDS: Quota = Quota {
    per_minute: 1,
    burst: 10,
};

/// Where it is recorded. Clones share what is left of the bound.
#[derive(Clone)]
pub struct Security {
    audit: Audit,
    clock: Arc<dyn Clock>,
    pace: Arc<Mutex<Pace>>,
}

#[derive(Debug, Default)]
struct Pace {
    records: Bucket,
    left_out: u64,
}

impl Security {
    /// In this log.
    #[must_use]
    pub fn new(audit: Audit, clock: Arc<dyn Clock>) -> Self {
        Self {
            audit,
            clock,
            pace: Arc::default(),
        }
    }

    /// A message ended a session that was not made for it: it was said before, is of another session, or came back.
    pub(super) async fn misplaced(&self, what: Misplaced, url: &str, reason: &str) {
        let Some(left_out) = self.turn() else { return };
        warn!(url, reason, left_out, "security event: {}", what.name());
        let record = AuditRecord {
            at: self.clock.wall(),
            actor: "backend".to_owned(),
            action: match what {
                Misplaced::Foreign => "backend.frame_foreign",
                Misplaced::OutOfTurn => "backend.frame_replayed",
            },
            subject: text::line(url).into_owned(),
            result: "refused".to_owned(),
            detail: format!("{}; left out before: {left_out}", text::line(reason)),
        };
        if let Err(error) = self.audit.append(record).await {
            error!(%error, "a security event cannot be recorded");
        }
    }

    /// How many were left out since the last one; none when this one is, too.
    fn turn(&self) -> Option<u64> {
        let now = self.clock.now();
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        match pace.records.take(RECORDS, now) {
            Taken::Allowed { .. } => Some(std::mem::take(&mut pace.left_out)),
            Taken::Refused { .. } => {
                pace.left_out = pace.left_out.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use viworks_runtime::clock::SystemClock;

    use super::*;

    #[tokio::test]
    async fn what_a_backend_never_says_is_on_record_and_only_so_often() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        let security = Security::new(audit, Arc::new(SystemClock));
        for _again in 0..100 {
            let reason = "sequence number 1 where 2 was due\nforged";
            let url = "wss://backend.example";
            security.misplaced(Misplaced::OutOfTurn, url, reason).await;
        }
        let log = std::fs::read_to_string(&path).unwrap();
        let lines = log.lines().count();
        assert!((10..=12).contains(&lines), "{log}");
        for line in log.lines() {
            assert!(line.contains("backend.frame_replayed"), "{line}");
        }
    }

    #[tokio::test]
    async fn what_is_of_another_session_or_came_back_is_told_from_what_was_said_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        let security = Security::new(audit, Arc::new(SystemClock));
        for what in [Misplaced::Foreign, Misplaced::OutOfTurn] {
            let url = "wss://backend.example";
            security.misplaced(what, url, "it is out of place").await;
        }
        let log = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        let [foreign, replayed] = lines[..] else {
            panic!("{log}");
        };
        assert!(foreign.contains("backend.frame_foreign"), "{log}");
        assert!(replayed.contains("backend.frame_replayed"), "{log}");
    }
}
