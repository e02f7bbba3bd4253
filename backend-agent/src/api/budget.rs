//! Bytes that all requests together may hold: bodies on their way in, answers on their way out.

use std::sync::Arc;

use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use viworks_api::ProblemCode;
use viworks_runtime::metrics::Metrics;

use super::crowd::Crowd;
use super::problem::{ApiError, ApiResult, RETRY_SOON};

/// What is counted at once.
const UNIT: usize = 1024;

/// Bytes of a refused body that are read all the same.
const DISCARDED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Answers below this size are not counted: so many of them as there may be connections are still little.
const SMALL_BYTES: u64 = 16 * 1024;

/// The room for bodies and answers.
pub(super) struct Budget {
    bodies: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    answers_units: usize,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    crowd: Crowd,
}

/// A body that was read, with the room it takes; that is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(
        bodies_bytes: usize,
        answers_bytes: usize,
        metrics: &Metrics,
        crowd: Crowd,
    ) -> Self {
        let units = |bytes: usize| (bytes / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        let refused = Family::default();
        metrics.register(|registry| {
            registry.register(
                "viworks_api_overloaded",
                "API requests refused because all of them together held too many bytes, by what they held",
                Family::clone(&refused),
            );
        });
        Self {
            bodies: Arc::new(Semaphore::new(units(bodies_bytes))),
            answers: Arc::new(Semaphore::new(units(answers_bytes))),
            answers_units: units(answers_bytes),
            refused,
            crowd,
        }
    }

    /// Reads a whole body of at most `limit` bytes; room is taken as it arrives.
    pub(super) async fn read(&self, mut body: Body, limit: usize) -> ApiResult<Held> {
        let too_large = || {
            ApiError::new(
                ProblemCode::BodyTooLarge,
                format!("the body is larger than {limit} bytes"),
            )
        };
        let announced = body.size_hint().lower();
        if announced > u64::try_from(limit).unwrap_or(u64::MAX) {
            discard(body).await;
            return Err(too_large());
        }
        let mut held = Held {
            bytes: Vec::new(),
            room: None,
        };
        let mut units = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_cut| {
                ApiError::new(ProblemCode::BadRequest, "the body did not arrive whole")
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if held.bytes.len().saturating_add(data.len()) > limit {
                drop(held);
                discard(body).await;
                return Err(too_large());
            }
            let wanted = (held.bytes.len() + data.len()).div_ceil(UNIT);
            let more = u32::try_from(wanted.saturating_sub(units)).unwrap_or(u32::MAX);
            let Ok(room) = Arc::clone(&self.bodies).try_acquire_many_owned(more) else {
                drop(held);
                discard(body).await;
                return Err(self.overloaded("bodies", "bytes of bodies"));
            };
            units = units.max(wanted);
            match held.room.as_mut() {
                Some(taken) => taken.merge(room),
                None => held.room = Some(room),
            }
            held.bytes.extend_from_slice(&data);
        }
        Ok(held)
    }

    /// Lets an answer out if there is room for it; the room is taken until the last byte is on its way.
    pub(super) async fn answer(&self, answer: Response) -> Response {
        let size = answer.body().size_hint().exact().unwrap_or_default();
        if size < SMALL_BYTES {
            return answer;
        }
        let units = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(UNIT);
        // One that is larger than all the room goes out alone.
        let units = u32::try_from(units.min(self.answers_units)).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.answers).try_acquire_many_owned(units) else {
            return self
                .overloaded("answers", "bytes of answers")
                .into_response();
        };
        let (head, body) = answer.into_parts();
        match axum::body::to_bytes(body, usize::MAX).await {
            Ok(bytes) => {
                let sent = Bytes::from_owner(Sent { bytes, _room: room });
                Response::from_parts(head, Body::from(sent))
            }
            Err(_unreadable) => {
                ApiError::new(ProblemCode::Internal, "the answer could not be written")
                    .into_response()
            }
        }
    }

    fn overloaded(&self, held: &'static str, what: &str) -> ApiError {
        self.refused.get_or_create(&[("held", held)]).inc();
        self.crowd.full(what);
        ApiError::new(
            ProblemCode::Overloaded,
            format!("all requests together hold too many {what}; nothing was done"),
        )
        .retry_after(RETRY_SOON)
    }
}

/// Reads on without keeping anything: a socket that is closed with something unread in it takes the answer along.
async fn discard(mut body: Body) {
    let mut left = DISCARDED_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// Bytes of an answer with the room they take.
struct Sent {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::time::Timestamp;
    use viworks_runtime::clock::SystemClock;
    use viworks_runtime::conditions::Conditions;

    use super::*;

    fn budget(bodies: usize, answers: usize) -> (Budget, Metrics, Conditions) {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let conditions = Conditions::new(Arc::new(SystemClock));
        let crowd = Crowd::new(Arc::new(SystemClock), conditions.clone());
        let budget = Budget::new(bodies, answers, &metrics, crowd);
        (budget, metrics, conditions)
    }

    #[tokio::test]
    async fn bodies_share_their_room_and_give_it_back() {
        let (budget, metrics, conditions) = budget(8 * UNIT, UNIT);
        let body = || Body::from(vec![b' '; 5 * UNIT]);
        let first = budget.read(body(), 10 * UNIT).await.unwrap();
        assert_eq!(first.bytes.len(), 5 * UNIT);
        let refused = budget.read(body(), 10 * UNIT).await.unwrap_err();
        assert_eq!(refused.status(), http::StatusCode::SERVICE_UNAVAILABLE);
        let told = conditions.list();
        assert!(
            told.iter().any(|found| found.name == "api.full"),
            "{told:?}"
        );
        drop(first);
        budget.read(body(), 10 * UNIT).await.unwrap();
        let large = budget.read(body(), UNIT).await.unwrap_err();
        assert_eq!(large.status(), http::StatusCode::PAYLOAD_TOO_LARGE);
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("viworks_api_overloaded_total{held=\"bodies\"} 1"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn an_answer_holds_its_room_until_its_bytes_are_gone() {
        let (budget, _metrics, conditions) = budget(UNIT, 64 * UNIT);
        let answer = || Response::new(Body::from(vec![b'x'; 40 * UNIT]));
        let first = budget.answer(answer()).await;
        assert_eq!(first.status(), http::StatusCode::OK);
        let second = budget.answer(answer()).await;
        assert_eq!(second.status(), http::StatusCode::SERVICE_UNAVAILABLE);
        let told = conditions.list();
        assert!(
            told.iter().any(|found| found.name == "api.full"),
            "{told:?}"
        );
        let small = budget.answer(Response::new(Body::from("ok"))).await;
        assert_eq!(small.status(), http::StatusCode::OK);
        let bytes = axum::body::to_bytes(first.into_body(), usize::MAX)
            .await
            .unwrap();
        let third = budget.answer(answer()).await;
        assert_eq!(third.status(), http::StatusCode::SERVICE_UNAVAILABLE);
        drop(bytes);
        let last = budget.answer(answer()).await;
        assert_eq!(last.status(), http::StatusCode::OK);
        let alone = budget.answer(Response::new(Body::from(vec![0; 900 * UNIT])));
        drop(last);
        assert_eq!(alone.await.status(), http::StatusCode::OK);
    }
}
