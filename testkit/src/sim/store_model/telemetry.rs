//! Batches, positions and gaps, as the real stores commit them.

use viworks_common::id::{AgentId, AgentRunId};
use viworks_common::telemetry::{Batch, Gap, GapReason, Position};

use super::super::recorder::Recorder;
use super::super::scenario::Rule;
use super::{Fenced, Holder, Store};

impl Store {
    /// How far one spool epoch is committed; zero when nothing is.
    #[must_use]
    pub(crate) fn position(&self, agent: AgentId, spool_epoch: AgentRunId) -> u64 {
        let position = self.positions.get(&(agent, spool_epoch));
        position.copied().unwrap_or_default()
    }

    /// Says how far the epochs are committed that a gateway names; what it knows beyond that was forgotten.
    pub(super) fn settle_positions(
        &mut self,
        agent: AgentId,
        named: &[Position],
        recorder: &mut Recorder,
    ) -> Vec<Position> {
        let settle = |asked: &Position| {
            let before = self.position(agent, asked.spool_epoch);
            if asked.seq > before && self.rules.keep(Rule::GapAfterRollback) {
                let gap = Gap {
                    from_seq: before + 1,
                    to_seq: asked.seq,
                    reason: GapReason::BackendRolledBack,
                };
                recorder.gap(agent, asked.spool_epoch, gap, self);
                self.gaps.push((agent, asked.spool_epoch, gap));
                self.positions.insert((agent, asked.spool_epoch), asked.seq);
            }
            Position {
                spool_epoch: asked.spool_epoch,
                seq: self.position(agent, asked.spool_epoch),
            }
        };
        named.iter().map(settle).collect()
    }

    /// Stores what of a batch lies beyond the position, and moves the position with it.
    ///
    /// # Errors
    /// When the session is not the current one.
    pub(crate) fn commit_telemetry(
        &mut self,
        holder: Holder,
        batch: &Batch,
        recorder: &mut Recorder,
    ) -> Result<Position, Fenced> {
        self.fence(holder, recorder)?;
        let (agent, run) = (holder.agent, batch.spool_epoch);
        let before = self.position(agent, run);
        let position = before.max(batch.to_seq);
        self.positions.insert((agent, run), position);
        let forgotten = (batch.from_seq > before + 1 && self.rules.keep(Rule::GapAfterRollback))
            .then(|| Gap {
                from_seq: before + 1,
                to_seq: batch.from_seq - 1,
                reason: GapReason::BackendRolledBack,
            });
        for gap in forgotten.iter().chain(&batch.gaps) {
            if gap.to_seq > before {
                let clipped = Gap {
                    from_seq: gap.from_seq.max(before + 1),
                    ..*gap
                };
                recorder.gap(agent, run, clipped, self);
                self.gaps.push((agent, run, clipped));
            }
        }
        let repeats_dropped = self.rules.keep(Rule::PositionDropsRepeats);
        for (seq, record) in &batch.records {
            if repeats_dropped && *seq <= before {
                continue;
            }
            let (key, value) = ((agent, run, *seq), record.observed_at.unix_micros());
            let new = self.telemetry.insert(key, value).is_none();
            recorder.stored(key, value, new);
        }
        Ok(Position {
            spool_epoch: run,
            seq: position,
        })
    }
}
