//! Batches, positions and gaps, as the real stores commit them.

use viworks_common::id::{AgentId, AgentRunId};
use viworks_common::ledger::telemetry::{Facts, Limits, Reached, Usage, check, intake, remembered};
use viworks_common::telemetry::{Batch, Gap, Position};
use viworks_common::time::Timestamp;

use super::super::recorder::Recorder;
use super::{Fenced, Holder, Store};

impl Store {
    fn usage(&self, agent: AgentId, now: Timestamp) -> Usage {
        let usage = self.usages.get(&agent).copied().unwrap_or_default();
        usage.today(now)
    }

    fn reached(&self, agent: AgentId, spool_epoch: AgentRunId) -> Reached {
        let key = (agent, spool_epoch);
        Reached {
            committed: self.positions.get(&key).copied(),
            refused: self.refused_epochs.get(&key).copied().unwrap_or(0),
        }
    }

    fn keep_gap(&mut self, agent: AgentId, run: AgentRunId, gap: Gap, recorder: &mut Recorder) {
        recorder.gap(agent, run, gap, self);
        self.gaps.push((agent, run, gap));
    }

    /// Says how far the epochs are committed that a gateway names; what it knows beyond that was forgotten.
    pub(super) fn settle_positions(
        &mut self,
        agent: AgentId,
        named: &[Position],
        now: Timestamp,
        recorder: &mut Recorder,
    ) -> Vec<Position> {
        let mut usage = self.usage(agent, now);
        let mut positions = Vec::new();
        for asked in named {
            let run = asked.spool_epoch;
            let (reached, limits) = (self.reached(agent, run), Limits::default());
            let known = remembered(self.rules, *asked, reached, &mut usage, &limits);
            if let Some(gap) = known.gap {
                self.keep_gap(agent, run, gap, recorder);
            }
            if let Some(seq) = known.moved_to {
                self.positions.insert((agent, run), seq);
            }
            if let Some(seq) = known.refused_to {
                self.refused_epochs.insert((agent, run), seq);
            }
            positions.push(known.position);
        }
        self.usages.insert(agent, usage);
        positions
    }

    /// Stores what of a batch lies beyond the position, and moves the position with it.
    ///
    /// # Errors
    /// When the session is not the current one.
    pub(crate) fn commit_telemetry(
        &mut self,
        holder: Holder,
        batch: &Batch,
        now: Timestamp,
        recorder: &mut Recorder,
    ) -> Result<Position, Fenced> {
        self.fence(holder, recorder)?;
        let (agent, run) = (holder.agent, batch.spool_epoch);
        if let Err(malformed) = check(batch) {
            recorder.violated(|| format!("5: a gateway sent a batch that is {malformed:?}"));
        }
        let streams = self.streams.iter().filter(|(of, _)| *of == agent);
        let facts = Facts {
            reached: self.reached(agent, run),
            usage: self.usage(agent, now),
            streams: streams.map(|(_, stream)| stream.clone()).collect(),
            limits: Limits::default(),
        };
        let taken = intake(self.rules, batch, None, facts, now);
        self.usages.insert(agent, taken.usage);
        if let Some(seq) = taken.position {
            self.positions.insert((agent, run), seq);
        }
        if let Some(seq) = taken.refused_to {
            self.refused_epochs.insert((agent, run), seq);
        }
        for gap in taken.gaps {
            self.keep_gap(agent, run, gap, recorder);
        }
        for row in taken.rows {
            self.streams.insert((agent, row.stream.clone()));
            let key = (agent, run, row.seq);
            let said = row.gateway_time.unwrap_or(row.observed_at).unix_micros();
            let new = self.telemetry.insert(key, said).is_none();
            recorder.stored(key, said, new);
        }
        Ok(taken.commit.position)
    }
}
