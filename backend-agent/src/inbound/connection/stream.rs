//! A session's telemetry on its way to being committed: in order, and bounded by the session's credit.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use viworks_common::code::CloseCode;
use viworks_common::telemetry::{Batch, BatchColumns};
use viworks_common::wire::message::{BackendMessage, TelemetryAck};

use super::Connection;
use crate::data::{TelemetryOutcome, TelemetryWrite};
use crate::telemetry::processor::{Place, TelemetryProcessor};

type Placing = Pin<Box<dyn Future<Output = Option<Place>> + Send>>;

/// Batches that are not acknowledged.
#[derive(Default)]
pub(super) struct Stream {
    /// Not handed in yet.
    parked: VecDeque<TelemetryWrite>,
    /// A place in the processor's line, being waited for. Kept, so that it is not lost to those behind.
    placing: Option<Placing>,
    /// Handed in.
    pending: FuturesUnordered<oneshot::Receiver<TelemetryOutcome>>,
}

/// What moved.
pub(super) enum Progress {
    /// A batch was handed in, or the processor is gone; nothing to be done about either.
    HandedIn,
    /// A batch was dealt with.
    Done(TelemetryOutcome),
}

impl Stream {
    /// Waits for the next movement; for ever when nothing is under way. May be dropped and asked again.
    pub(super) async fn progress(&mut self, processor: &TelemetryProcessor) -> Progress {
        if self.placing.is_none() && !self.parked.is_empty() {
            self.placing = Some(Box::pin(processor.clone().place()));
        }
        let Self {
            parked,
            placing,
            pending,
        } = self;
        let place = async {
            match placing.as_mut() {
                Some(placing) => placing.await,
                None => std::future::pending().await,
            }
        };
        let outcome = async {
            loop {
                match pending.next().await {
                    Some(Ok(outcome)) => return outcome,
                    // The backend stops before the commit; nothing is acknowledged.
                    Some(Err(_stopping)) => {}
                    None => return std::future::pending().await,
                }
            }
        };
        tokio::select! {
            biased;
            outcome = outcome => Progress::Done(outcome),
            place = place => {
                self.placing = None;
                if let (Some(place), Some(write)) = (place, parked.pop_front()) {
                    pending.push(place.hand_in(write));
                }
                Progress::HandedIn
            }
        }
    }
}

impl Connection {
    pub(super) fn on_batch(&mut self, columns: BatchColumns) {
        let now = self.now();
        let Some(live) = &mut self.live else { return };
        match Batch::try_from(columns) {
            Ok(batch) => live.stream.parked.push_back(TelemetryWrite {
                agent_id: live.holder.agent_id,
                epoch: live.holder.epoch,
                batch,
            }),
            Err(malformed) => {
                self.session
                    .close(CloseCode::BadEnvelope, &malformed.to_string(), now);
            }
        }
    }

    pub(super) fn on_telemetry(&mut self, progress: Progress) {
        let now = self.now();
        match progress {
            Progress::HandedIn => {}
            Progress::Done(TelemetryOutcome::Committed(commit)) => {
                let position = commit.position;
                self.send(BackendMessage::TelemetryAck(TelemetryAck { position }));
            }
            Progress::Done(TelemetryOutcome::Fenced) => {
                self.session.close(
                    CloseCode::Superseded,
                    "the session is no longer the current one",
                    now,
                );
            }
            Progress::Done(TelemetryOutcome::Malformed(malformed)) => {
                self.session
                    .close(CloseCode::BadEnvelope, &malformed.to_string(), now);
            }
        }
    }
}
