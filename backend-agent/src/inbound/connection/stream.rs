//! A session's telemetry on its way to being committed: in order, bounded by the session's credit and by what may
//! wait in the whole process, and unpacked only by whoever stores it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};
use viworks_common::code::CloseCode;
use viworks_common::id::{AgentId, GatewayName};
use viworks_common::limits::BULK_BODY_BYTES_MAX;
use viworks_common::wire::PackedBatch;
use viworks_common::wire::message::{BackendMessage, Refuse, TelemetryAck};

use super::live::Live;
use crate::data::Holder;
use crate::telemetry::processor::{Answer, HandedIn, Place, Standing, TelemetryProcessor};

/// Bytes, unpacked, that one session may have handed in at a time: enough to fill a transaction, and two of the
/// largest.
const HANDED_IN_BYTES_MAX: usize = 2 * BULK_BODY_BYTES_MAX;

/// Batches that one session may have handed in at a time.
const HANDED_IN_MAX: usize = 8;

/// What a gateway is told whose telemetry has to come again.
const UNSTORABLE: &str = "the database refused this gateway's telemetry, and it could not be kept here: it comes again with the next session";

/// How long it is to wait then.
const UNSTORABLE_PAUSE_MS: u64 = 5_000;

type Placing = Pin<Box<dyn Future<Output = Option<Place>> + Send>>;
type Sharing = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

struct Parked {
    batch: PackedBatch,
    share: Option<OwnedSemaphorePermit>,
}

/// Batches that are not acknowledged.
pub(super) struct Stream {
    gateway: GatewayName,
    agent_id: AgentId,
    epoch: u64,
    /// The gateway's clock minus the backend's, as it measured that last.
    pub(super) skew_ms: Option<i64>,
    /// Not handed in yet.
    parked: VecDeque<Parked>,
    /// A share of what may wait in the process, being waited for on behalf of the last that is parked. Until it is
    /// there, nothing is read from the socket.
    sharing: Option<Sharing>,
    /// A place in the processor's line, being waited for. Kept, so that it is not lost to those behind.
    placing: Option<Placing>,
    /// Handed in.
    pending: FuturesOrdered<oneshot::Receiver<Answer>>,
    /// Unpacked bytes of each that is handed in.
    handed_in: VecDeque<usize>,
    /// How it stands with all of them, as whoever stores them says, and whether that changed.
    standing: watch::Sender<Standing>,
    told: watch::Receiver<Standing>,
}

/// What moved.
pub(super) enum Progress {
    /// A batch was handed in or may wait, or the processor is gone; nothing to be done about any of it.
    Moved,
    /// A batch was dealt with.
    Done(Answer),
}

impl Stream {
    pub(super) fn new(holder: &Holder, gateway: &GatewayName) -> Self {
        let (standing, told) = watch::channel(Standing::InTurn);
        Self {
            gateway: gateway.clone(),
            agent_id: holder.agent_id,
            epoch: holder.epoch,
            skew_ms: None,
            parked: VecDeque::new(),
            sharing: None,
            placing: None,
            pending: FuturesOrdered::new(),
            handed_in: VecDeque::new(),
            standing,
            told,
        }
    }

    /// Whether the session must not take in more.
    pub(super) const fn is_full(&self) -> bool {
        self.sharing.is_some()
    }

    fn park(&mut self, batch: PackedBatch, processor: &TelemetryProcessor) {
        let bytes = batch.wire_bytes();
        let standing = *self.standing.borrow();
        let needs_share = match standing {
            // One batch of each session may always wait: nobody is kept from the line by others.
            Standing::InTurn => !(self.parked.is_empty() && self.pending.is_empty()),
            // It waits for the database, and so do few: the session's credit is its bound.
            Standing::Kept => false,
            // It comes again with the next session.
            Standing::Outside => return,
        };
        let share = if needs_share {
            processor.try_share(bytes)
        } else {
            None
        };
        if needs_share && share.is_none() {
            self.sharing = Some(Box::pin(processor.clone().share(bytes)));
        }
        self.parked.push_back(Parked { batch, share });
    }

    /// Does with what is parked as the session stands now.
    fn follow(&mut self, processor: &TelemetryProcessor) {
        let standing = *self.standing.borrow();
        match standing {
            // As far as there is room; it is handed in soon.
            Standing::InTurn if self.sharing.is_none() => {
                let without = self.parked.iter_mut().filter(|it| it.share.is_none());
                for parked in without {
                    parked.share = processor.try_share(parked.batch.wire_bytes());
                }
            }
            Standing::InTurn => {}
            // Or sessions whose telemetry is refused used up what all have together, and were not read.
            Standing::Kept => {
                self.sharing = None;
                for parked in &mut self.parked {
                    parked.share = None;
                }
            }
            Standing::Outside => {
                self.sharing = None;
                self.placing = None;
                self.parked.clear();
            }
        }
    }

    /// Whether the next batch may be handed in.
    fn may_hand_in(&self) -> bool {
        let Some(next) = self.parked.front() else {
            return false;
        };
        let bytes: usize = self.handed_in.iter().sum();
        self.handed_in.is_empty()
            || (self.handed_in.len() < HANDED_IN_MAX
                && bytes + next.batch.body_bytes() <= HANDED_IN_BYTES_MAX)
    }

    fn hand_in(&mut self, place: Place) {
        let Some(Parked { batch, share }) = self.parked.pop_front() else {
            return;
        };
        self.handed_in.push_back(batch.body_bytes());
        self.pending.push_back(place.hand_in(HandedIn {
            gateway: self.gateway.clone(),
            agent_id: self.agent_id,
            epoch: self.epoch,
            skew_ms: self.skew_ms,
            batch,
            share,
            standing: self.standing.clone(),
        }));
    }

    /// Waits for the next movement; for ever when nothing is under way. May be dropped and asked again.
    pub(super) async fn progress(&mut self, processor: &TelemetryProcessor) -> Progress {
        if self.placing.is_none() && self.may_hand_in() {
            self.placing = Some(Box::pin(processor.clone().place(self.agent_id)));
        }
        let Self {
            sharing,
            placing,
            pending,
            told,
            ..
        } = self;
        tokio::select! {
            biased;
            answer = next_answer(pending) => {
                self.handed_in.pop_front();
                Progress::Done(answer)
            }
            // There is a sender, in this.
            Ok(()) = told.changed() => {
                self.follow(processor);
                Progress::Moved
            }
            share = next_of(sharing) => {
                self.sharing = None;
                if let Some(parked) = self.parked.back_mut() {
                    parked.share = share;
                }
                Progress::Moved
            }
            place = next_of(placing) => {
                self.placing = None;
                if let Some(place) = place {
                    self.hand_in(place);
                }
                Progress::Moved
            }
        }
    }
}

async fn next_answer(pending: &mut FuturesOrdered<oneshot::Receiver<Answer>>) -> Answer {
    loop {
        match pending.next().await {
            Some(Ok(answer)) => return answer,
            // The backend stops before the commit; nothing is acknowledged.
            Some(Err(_stopping)) => {}
            None => return std::future::pending().await,
        }
    }
}

async fn next_of<T>(waited_for: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>) -> T {
    match waited_for {
        Some(waited_for) => waited_for.await,
        None => std::future::pending().await,
    }
}

impl Live {
    pub(super) fn on_batch(&mut self, batch: PackedBatch) {
        self.stream.park(batch, &self.line.inbound.telemetry);
    }

    pub(super) fn on_telemetry(&mut self, progress: Progress) {
        match progress {
            Progress::Moved => {}
            Progress::Done(Answer::Committed(commit)) => {
                let mut ack = TelemetryAck::of(commit.position);
                if self.announced.tells_refusals {
                    let refused = commit.refused.into_iter();
                    ack.refused = refused
                        .map(|(reason, records)| (reason.name().to_owned(), records))
                        .collect();
                }
                self.line.send(BackendMessage::TelemetryAck(ack));
            }
            Progress::Done(Answer::Fenced) => self.line.fenced = true,
            Progress::Done(Answer::Malformed(reason)) => self.line.refuse(Refuse {
                code: CloseCode::BadEnvelope,
                reason,
                retry_after_ms: None,
            }),
            Progress::Done(Answer::Unstorable) => self.line.refuse(Refuse {
                code: CloseCode::Internal,
                reason: UNSTORABLE.to_owned(),
                retry_after_ms: Some(UNSTORABLE_PAUSE_MS),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use tokio::time::timeout;
    use uuid::Uuid;
    use viworks_common::id::AgentRunId;
    use viworks_common::telemetry::{BatchColumns, FieldValue};

    use super::*;

    fn stream(n: u128) -> Stream {
        let holder = Holder {
            agent_id: AgentId::from_uuid(Uuid::from_u128(n)),
            epoch: 1,
            agent_run_id: AgentRunId::from_uuid(Uuid::from_u128(n)),
        };
        Stream::new(&holder, &"gw-1".parse().unwrap())
    }

    fn batch() -> PackedBatch {
        PackedBatch::pack(&BatchColumns {
            spool_epoch: AgentRunId::from_uuid(Uuid::from_u128(1)),
            from_seq: 1,
            to_seq: 1,
            gaps: Vec::new(),
            streams: vec!["a".parse().unwrap()],
            stream: vec![0],
            observed_at: vec![1],
            fields: BTreeMap::from([("v".parse().unwrap(), vec![Some(FieldValue::Integer(1))])]),
        })
    }

    fn park(stream: &mut Stream, batches: usize, processor: &TelemetryProcessor) {
        for _ in 0..batches {
            stream.park(batch(), processor);
        }
    }

    /// Everything that moves by itself.
    async fn settle(stream: &mut Stream, processor: &TelemetryProcessor) {
        let moment = Duration::from_millis(10);
        while timeout(moment, stream.progress(processor)).await.is_ok() {}
    }

    /// Commands, results and heartbeats come over the same socket, and others want to wait as well.
    #[tokio::test(start_paused = true)]
    async fn whose_telemetry_is_kept_is_read_and_takes_nothing_from_others() {
        let share = batch().wire_bytes();
        let (processor, _line) = TelemetryProcessor::unserved(HANDED_IN_MAX * share);
        let (mut refused, mut other) = (stream(1), stream(2));
        // Of one batch nothing is wanted; the one without a share is the last.
        park(&mut refused, HANDED_IN_MAX + 2, &processor);
        park(&mut other, 2, &processor);
        settle(&mut refused, &processor).await;
        settle(&mut other, &processor).await;
        assert_eq!((refused.parked.len(), other.parked.len()), (2, 0));
        assert!(refused.is_full() && other.is_full());
        refused.standing.send_replace(Standing::Kept);
        settle(&mut refused, &processor).await;
        settle(&mut other, &processor).await;
        assert!(!refused.is_full() && !other.is_full());
        assert!(processor.try_share(share).is_some());
        park(&mut refused, 10, &processor);
        assert_eq!((refused.parked.len(), refused.is_full()), (12, false));
        assert!(processor.try_share(share).is_some());
        // What is there is taken, and nobody waits for the rest.
        refused.standing.send_replace(Standing::InTurn);
        settle(&mut refused, &processor).await;
        assert_eq!((refused.parked.len(), refused.is_full()), (12, false));
        assert!(processor.try_share(share).is_none());
        park(&mut refused, 1, &processor);
        assert!(refused.is_full());
    }

    #[tokio::test(start_paused = true)]
    async fn of_whom_nothing_more_is_stored_nothing_is_parked() {
        let share = batch().wire_bytes();
        let (processor, _line) = TelemetryProcessor::unserved(HANDED_IN_MAX * share);
        let mut outside = stream(1);
        park(&mut outside, HANDED_IN_MAX + 2, &processor);
        settle(&mut outside, &processor).await;
        assert!(outside.is_full());
        outside.standing.send_replace(Standing::Outside);
        settle(&mut outside, &processor).await;
        assert!(processor.try_share(share).is_some());
        park(&mut outside, 10, &processor);
        assert_eq!((outside.parked.len(), outside.is_full()), (0, false));
    }
}
