//! Keeps account of what the backend did not keep, and has status and health speak of it for as long as it is news.

use std::collections::BTreeMap;
use std::time::Duration;

use tracing::warn;
use viworks_common::human;
use viworks_common::id::CommandId;
use viworks_common::time::Monotonic;
use viworks_runtime::conditions::{Conditions, Severity};

use crate::spool::Spool;
use crate::watch::TELEMETRY_REFUSED;

/// How long after the last of them status and health speak of results that the backend did not keep.
const RESULTS_TOLD: Duration = Duration::from_secs(3_600);

/// The condition while they do.
const RESULTS_NOT_KEPT: &str = "results.not_kept";

/// The account of one session.
pub(super) struct Refusals {
    /// Counts telemetry, over all sessions.
    spool: Spool,
    conditions: Conditions,
    /// Results that the backend only counted.
    results: u64,
    /// When the last of them was, while status speaks of it.
    told_at: Option<Monotonic>,
}

impl Refusals {
    /// Nothing yet; what an earlier session told of is told on.
    pub(super) const fn new(spool: Spool, conditions: Conditions, now: Monotonic) -> Self {
        Self {
            spool,
            conditions,
            results: 0,
            told_at: Some(now),
        }
    }

    /// Records that the backend did not store, by reason: they will not come back.
    pub(super) fn telemetry(&self, refused: &BTreeMap<String, u64>) {
        for (reason, records) in refused {
            self.spool.note_unstored(reason, *records);
        }
        let all: Vec<String> = self
            .spool
            .unstored()
            .into_iter()
            .map(|(reason, records)| format!("{records} ({reason})"))
            .collect();
        let cause = format!(
            "the backend did not store telemetry records of this gateway: {}",
            all.join(", ")
        );
        // The watch ends it once that is long over.
        self.conditions.raise(
            TELEMETRY_REFUSED,
            Severity::Warn,
            &cause,
            "`viworks telemetry --gaps` lists them; the bounds are in [telemetry] of the backend's configuration",
        );
    }

    /// The backend neither knows the command nor kept what this gateway says became of it.
    pub(super) fn result(&mut self, command_id: CommandId, now: Monotonic) {
        if self.results == 0 {
            warn!(%command_id, "the backend did not keep the result of a command that it does not know; more of them are counted");
        }
        self.results += 1;
        self.told_at = Some(now);
        let cause = format!(
            "the backend did not keep {}, in the last session that had any",
            human::counted_all(
                self.results,
                "result of a command that it does not know",
                "results of commands that it does not know"
            )
        );
        self.conditions.raise(
            RESULTS_NOT_KEPT,
            Severity::Warn,
            &cause,
            "was the backend's database restored or replaced? The audit log of this gateway has what ran",
        );
    }

    /// Status and health stop speaking of results that were not kept long ago.
    pub(super) fn forget(&mut self, now: Monotonic) {
        let over = |at: &mut Monotonic| now.saturating_since(*at) >= RESULTS_TOLD;
        if self.told_at.take_if(over).is_some() {
            self.conditions.clear(RESULTS_NOT_KEPT);
        }
    }
}
