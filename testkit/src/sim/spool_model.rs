//! The spool: records by the process that appended them, bounded, with gaps where the oldest were given up.

use std::collections::BTreeMap;

use viworks_common::id::{AgentRunId, FieldName, StreamName};
use viworks_common::limits::SPOOL_EPOCHS_NAMED_MAX;
use viworks_common::telemetry::{Batch, FieldValue, Gap, GapReason, Position, Record};
use viworks_common::time::Timestamp;

/// Records in one batch: few, so that there are many batches.
const BATCH_MAX: usize = 4;

#[derive(Debug, Clone)]
struct Epoch {
    run: AgentRunId,
    next: u64,
    acknowledged: u64,
    records: BTreeMap<u64, Timestamp>,
    gaps: Vec<Gap>,
}

#[derive(Debug, Clone)]
pub(crate) struct Spool {
    epochs: Vec<Epoch>,
    records_max: usize,
}

impl Spool {
    pub(crate) const fn new(records_max: usize) -> Self {
        Self {
            epochs: Vec::new(),
            records_max,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.epochs.iter().map(|epoch| epoch.records.len()).sum()
    }

    /// Whether nothing waits to be told, record or gap.
    pub(crate) fn is_delivered(&self) -> bool {
        self.epochs.iter().all(Epoch::is_delivered)
    }

    /// Everything that is still to be told, record or gap.
    pub(crate) fn untold(&self) -> impl Iterator<Item = (AgentRunId, u64)> {
        let of = |epoch: &Epoch| {
            let (run, untold) = (epoch.run, epoch.acknowledged + 1..epoch.next);
            untold.map(move |seq| (run, seq))
        };
        self.epochs.iter().flat_map(of)
    }

    /// Takes records in; at the bound the oldest are given up. Returns their numbers.
    pub(crate) fn append(
        &mut self,
        run: AgentRunId,
        observed: &[Timestamp],
    ) -> Vec<(u64, Timestamp)> {
        let known = self.epochs.iter().position(|epoch| epoch.run == run);
        let index = known.unwrap_or_else(|| {
            self.epochs.push(Epoch {
                run,
                next: 1,
                acknowledged: 0,
                records: BTreeMap::new(),
                gaps: Vec::new(),
            });
            self.epochs.len() - 1
        });
        let epoch = &mut self.epochs[index];
        let numbered: Vec<_> = (epoch.next..).zip(observed.iter().copied()).collect();
        epoch.records.extend(numbered.iter().copied());
        epoch.next += u64::try_from(numbered.len()).unwrap_or_default();
        while self.len() > self.records_max {
            self.give_up_oldest();
        }
        numbered
    }

    fn give_up_oldest(&mut self) {
        let Some(epoch) = self.epochs.iter_mut().find(|it| !it.records.is_empty()) else {
            return;
        };
        let Some((seq, _)) = epoch.records.pop_first() else {
            return;
        };
        match epoch.gaps.last_mut() {
            Some(gap) if gap.to_seq + 1 == seq => gap.to_seq = seq,
            Some(_) | None => epoch.gaps.push(Gap {
                from_seq: seq,
                to_seq: seq,
                reason: GapReason::SpoolFull,
            }),
        }
    }

    /// Forgets the epochs of earlier processes that have nothing waiting, but for the youngest.
    pub(crate) fn forget_delivered(&mut self, own: AgentRunId) {
        let delivered: Vec<AgentRunId> = self.delivered().map(|epoch| epoch.run).collect();
        let remembered = &delivered[..delivered.len().min(SPOOL_EPOCHS_NAMED_MAX)];
        self.epochs.retain(|epoch| {
            epoch.run == own || !epoch.is_delivered() || remembered.contains(&epoch.run)
        });
    }

    /// The epochs that have nothing waiting, youngest first.
    fn delivered(&self) -> impl Iterator<Item = &Epoch> {
        self.epochs.iter().rev().filter(|it| it.is_delivered())
    }

    /// Forgets everything up to `position`. The epoch of the process that still appends begins again where it was.
    pub(crate) fn acknowledge(&mut self, position: Position) {
        let mut epochs = self.epochs.iter_mut();
        let known = epochs.find(|epoch| epoch.run == position.spool_epoch);
        let Some(epoch) = known else { return };
        let seq = position.seq.min(epoch.next - 1);
        if seq <= epoch.acknowledged {
            return;
        }
        epoch.acknowledged = seq;
        epoch.records.retain(|at, _| *at > seq);
        epoch.gaps.retain_mut(|gap| {
            gap.from_seq = gap.from_seq.max(seq + 1);
            gap.from_seq <= gap.to_seq
        });
    }

    /// What is acknowledged of each epoch, as HELLO names them: those that wait, then the youngest delivered ones.
    pub(crate) fn positions(&self) -> Vec<Position> {
        let waiting = self.epochs.iter().filter(|it| !it.is_delivered());
        let waiting = waiting.take(SPOOL_EPOCHS_NAMED_MAX);
        waiting
            .chain(self.delivered().take(SPOOL_EPOCHS_NAMED_MAX))
            .map(|epoch| Position {
                spool_epoch: epoch.run,
                seq: epoch.acknowledged,
            })
            .collect()
    }

    /// The next records behind what is acknowledged and behind what is under way.
    pub(crate) fn next_batch(&self, sent: &BTreeMap<AgentRunId, u64>) -> Option<Batch> {
        self.epochs.iter().find_map(|epoch| {
            let under_way = sent.get(&epoch.run).copied().unwrap_or_default();
            let from_seq = epoch.acknowledged.max(under_way) + 1;
            (from_seq < epoch.next).then(|| epoch.batch(from_seq))
        })
    }
}

impl Epoch {
    fn is_delivered(&self) -> bool {
        self.acknowledged + 1 == self.next
    }

    fn batch(&self, from_seq: u64) -> Batch {
        let (mut next, mut gaps, mut records) = (from_seq, Vec::new(), Vec::new());
        while next < self.next && records.len() < BATCH_MAX {
            if let Some(at) = self.records.get(&next) {
                records.push((next, record(*at)));
                next += 1;
            } else {
                let gap = self
                    .gaps
                    .iter()
                    .find(|gap| (gap.from_seq..=gap.to_seq).contains(&next));
                let Some(gap) = gap else { break };
                gaps.push(Gap {
                    from_seq: next,
                    ..*gap
                });
                next = gap.to_seq + 1;
            }
        }
        Batch {
            spool_epoch: self.run,
            from_seq,
            to_seq: next - 1,
            gaps,
            records,
        }
    }
}

fn record(observed_at: Timestamp) -> Record {
    let stream: StreamName = "sim".parse().expect("a valid name");
    let field: FieldName = "n".parse().expect("a valid name");
    Record {
        stream,
        observed_at,
        fields: [(field, FieldValue::Flag(true))].into(),
    }
}
