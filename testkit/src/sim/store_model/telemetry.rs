//! Batches, positions and gaps, as the real stores commit them.

use viworks_common::id::{AgentId, AgentRunId};
use viworks_common::ledger::telemetry::{Facts, Limits, Reached, check, intake, remembered};
use viworks_common::telemetry::{Batch, Gap, Position};

use super::{Fenced, Holder, Tx};

impl Tx<'_> {
    fn reached(&mut self, agent: AgentId, run: AgentRunId) -> &mut Reached {
        self.store.epochs.entry((agent, run)).or_default()
    }

    fn moves(
        &mut self,
        agent: AgentId,
        run: AgentRunId,
        (committed, refused): (Option<u64>, Option<u64>),
        gaps: impl IntoIterator<Item = Gap>,
    ) {
        for gap in gaps {
            self.recorder.gap(agent, run, gap, self.store);
            self.store.gaps.push((agent, run, gap));
        }
        let reached = self.reached(agent, run);
        reached.committed = committed.or(reached.committed);
        reached.refused = refused.unwrap_or(reached.refused);
    }

    /// Says how far the epochs are committed that a gateway names; what it knows beyond that was forgotten.
    pub(super) fn settle_positions(&mut self, agent: AgentId, named: &[Position]) -> Vec<Position> {
        let rules = self.store.rules;
        let mut positions = Vec::new();
        for asked in named {
            let reached = *self.reached(agent, asked.spool_epoch);
            let Some(gateway) = self.store.gateways.get_mut(&agent) else {
                break;
            };
            gateway.usage = gateway.usage.today(self.now);
            let (usage, limits) = (&mut gateway.usage, Limits::default());
            let known = remembered(rules, *asked, reached, usage, &limits);
            let reached = (known.moved_to, known.refused_to);
            self.moves(agent, asked.spool_epoch, reached, known.gap);
            positions.push(known.position);
        }
        positions
    }

    /// Stores what of a batch lies beyond the position, and moves the position with it.
    pub(crate) fn commit_telemetry(
        &mut self,
        holder: Holder,
        batch: &Batch,
    ) -> Result<Position, Fenced> {
        self.fence(holder)?;
        let (agent, run, now) = (holder.agent, batch.spool_epoch, self.now);
        if let Err(malformed) = check(batch) {
            let what = || format!("5: a gateway sent a batch that is {malformed:?}");
            self.recorder.violated(what);
        }
        let reached = *self.reached(agent, run);
        let gateway = self.store.gateways.get_mut(&agent).ok_or(Fenced)?;
        let facts = Facts {
            reached,
            usage: gateway.usage.today(now),
            streams: gateway.streams.clone(),
            limits: Limits::default(),
            now,
        };
        let taken = intake(self.store.rules, batch, None, facts, now);
        gateway.usage = taken.usage;
        let streams = taken.rows.iter().map(|row| row.stream.clone());
        gateway.streams.extend(streams);
        self.moves(agent, run, (taken.position, taken.refused_to), taken.gaps);
        for row in taken.rows {
            let key = (agent, run, row.seq);
            let said = row.gateway_time.unwrap_or(row.observed_at).unix_micros();
            let new = self.store.telemetry.insert(key, said).is_none();
            self.recorder.stored(key, said, new);
        }
        Ok(taken.commit.position)
    }
}
