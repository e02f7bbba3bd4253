//! Bytes that requests may hold: bodies on their way in, answers on their way out; of one key a share of each.

use axum::body::{Body, Bytes, HttpBody};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use viworks_api::ProblemCode;
use viworks_common::id::ApiKeyId;
use viworks_common::limits::PAGE_BYTES_MAX;
use viworks_runtime::metrics::Metrics;
use viworks_runtime::shares::{Full, Share, Shares};

use super::crowd::Crowd;
use super::limits::ApiLimits;
use super::problem::{ApiError, ApiResult, RETRY_SOON};
use crate::auth::Principal;

/// What is counted at once.
const UNIT: usize = 1024;

/// Bytes of a refused body that are read all the same.
const DISCARDED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of bodies that a key may always have under way: a request as it mostly is.
const BODIES_FLOOR: usize = 16 * 1024;

/// Answers below this size are not counted: so many of them as there may be connections are still little.
const SMALL_BYTES: u64 = 16 * 1024;

/// The room for bodies and answers.
pub(super) struct Budget {
    bodies: Shares<ApiKeyId>,
    answers: Shares<ApiKeyId>,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    crowd: Crowd,
}

/// A body that was read, with the room it takes; that is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    _room: Share<ApiKeyId>,
}

/// Room for an answer, taken before what goes into it is read.
#[derive(Debug)]
pub(super) struct Room(Share<ApiKeyId>);

impl Budget {
    pub(super) fn new(limits: &ApiLimits, metrics: &Metrics, crowd: Crowd) -> Self {
        let units = |bytes: usize| (bytes / UNIT).max(1);
        let refused = Family::default();
        metrics.register(|registry| {
            registry.register(
                "viworks_api_overloaded",
                "API requests refused because all of them together, or those of their key, held too many bytes, by what they held",
                Family::clone(&refused),
            );
        });
        // A body or a page that may be sent at all fits into what one key may have.
        let bodies = units(limits.bodies_bytes_max);
        let of_key = (bodies / 2).max(limits.body_bytes_max.div_ceil(UNIT));
        let answers = units(limits.answers_bytes_max);
        let page = units(PAGE_BYTES_MAX);
        Self {
            bodies: Shares::new(
                ("key", "bytes of bodies"),
                bodies,
                of_key,
                units(BODIES_FLOOR),
            ),
            answers: Shares::new(
                ("key", "bytes of answers"),
                answers,
                (answers / 2).max(page),
                page,
            ),
            refused,
            crowd,
        }
    }

    /// Reads a whole body of at most `limit` bytes; room is taken as it arrives.
    pub(super) async fn read(
        &self,
        mut body: Body,
        limit: usize,
        principal: &Principal,
    ) -> ApiResult<Held> {
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
        let mut room = self
            .bodies
            .enter(principal.key_id, 0)
            .map_err(|full| self.overloaded("bodies", full, principal))?;
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_cut| {
                ApiError::new(ProblemCode::BadRequest, "the body did not arrive whole")
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            let length = bytes.len().saturating_add(data.len());
            if length > limit {
                drop((bytes, room));
                discard(body).await;
                return Err(too_large());
            }
            if let Err(full) = room.resize(length.div_ceil(UNIT)) {
                drop((bytes, room));
                discard(body).await;
                return Err(self.overloaded("bodies", full, principal));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Held { bytes, _room: room })
    }

    /// Takes the room of one page.
    pub(super) fn reserve(&self, principal: &Principal) -> ApiResult<Room> {
        let page = (PAGE_BYTES_MAX / UNIT).min(self.answers.per_owner());
        let taken = self.answers.enter(principal.key_id, page);
        taken
            .map(Room)
            .map_err(|full| self.overloaded("answers", full, principal))
    }

    /// Lets an answer out if there is room for it; the room is taken until the last byte is on its way.
    pub(super) async fn answer(
        &self,
        answer: Response,
        reserved: Option<Room>,
        principal: &Principal,
    ) -> Response {
        let size = answer.body().size_hint().exact().unwrap_or_default();
        if size < SMALL_BYTES {
            return answer;
        }
        let units = usize::try_from(size).unwrap_or(usize::MAX).div_ceil(UNIT);
        // One that is larger than all that its key may have goes out when the key has nothing else.
        let units = units.min(self.answers.per_owner());
        let room = match reserved {
            Some(Room(mut room)) => room.resize(units).map(|()| room),
            None => self.answers.enter(principal.key_id, units),
        };
        let room = match room {
            Ok(room) => room,
            Err(full) => return self.overloaded("answers", full, principal).into_response(),
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

    fn overloaded(&self, held: &'static str, full: Full, principal: &Principal) -> ApiError {
        self.refused.get_or_create(&[("held", held)]).inc();
        self.crowd.refused(full, &principal.name);
        ApiError::new(ProblemCode::Overloaded, format!("{full}; nothing was done"))
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
    _room: Share<ApiKeyId>,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use uuid::Uuid;
    use viworks_common::id::ApiKeyId;
    use viworks_common::time::Timestamp;
    use viworks_runtime::clock::SystemClock;
    use viworks_runtime::conditions::Conditions;

    use super::*;

    const MIB: usize = 1024 * 1024;

    fn budget(bodies: usize, answers: usize) -> (Budget, Metrics, Conditions) {
        let metrics = Metrics::new("test", "0", Timestamp::from_unix_micros(0));
        let conditions = Conditions::new(Arc::new(SystemClock));
        let crowd = Crowd::new(Arc::new(SystemClock), conditions.clone());
        let limits = ApiLimits {
            bodies_bytes_max: bodies,
            answers_bytes_max: answers,
            ..ApiLimits::default()
        };
        let budget = Budget::new(&limits, &metrics, crowd);
        (budget, metrics, conditions)
    }

    fn principal(n: u128) -> Principal {
        Principal {
            key_id: ApiKeyId::from_uuid(Uuid::from_u128(n)),
            name: format!("key {n}"),
            scopes: BTreeSet::new(),
            expires_at: None,
            address: None,
        }
    }

    fn raised(conditions: &Conditions, name: &str) -> bool {
        conditions.list().iter().any(|found| found.name == name)
    }

    #[tokio::test]
    async fn bodies_share_their_room_and_give_it_back() {
        let (budget, metrics, conditions) = budget(8 * MIB, UNIT);
        let one = principal(1);
        let body = || Body::from(vec![b' '; MIB]);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(budget.read(body(), MIB, &one).await.unwrap());
        }
        let refused = budget.read(body(), MIB, &one).await.unwrap_err();
        assert_eq!(refused.status(), http::StatusCode::SERVICE_UNAVAILABLE);
        assert!(raised(&conditions, "api.key_full"));
        held.pop();
        held.push(budget.read(body(), MIB, &one).await.unwrap());
        let large = budget.read(body(), UNIT, &one).await.unwrap_err();
        assert_eq!(large.status(), http::StatusCode::PAYLOAD_TOO_LARGE);
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("viworks_api_overloaded_total{held=\"bodies\"} 1"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn keys_that_hold_all_the_bodies_they_can_leave_a_newcomer_room_for_a_request() {
        let (budget, _metrics, conditions) = budget(8 * MIB, UNIT);
        let mut held = Vec::new();
        for n in 0..20 {
            while let Ok(body) = budget
                .read(Body::from(vec![b' '; 64 * UNIT]), MIB, &principal(n))
                .await
            {
                held.push(body);
            }
        }
        assert!(raised(&conditions, "api.full"));
        let request = Body::from(vec![b' '; 4 * UNIT]);
        budget.read(request, MIB, &principal(99)).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_holds_its_room_until_its_bytes_are_gone() {
        let (budget, _metrics, conditions) = budget(UNIT, 8 * MIB);
        let answer = |mib| Response::new(Body::from(vec![b'x'; mib * MIB]));
        let one = principal(1);
        let first = budget.answer(answer(3), None, &one).await;
        assert_eq!(first.status(), http::StatusCode::OK);
        let second = budget.answer(answer(3), None, &one).await;
        assert_eq!(second.status(), http::StatusCode::SERVICE_UNAVAILABLE);
        assert!(raised(&conditions, "api.key_full"));
        let small = Response::new(Body::from("ok"));
        let small = budget.answer(small, None, &one).await;
        assert_eq!(small.status(), http::StatusCode::OK);
        let other = budget.answer(answer(2), None, &principal(2)).await;
        assert_eq!(other.status(), http::StatusCode::OK);
        let bytes = axum::body::to_bytes(first.into_body(), usize::MAX)
            .await
            .unwrap();
        let third = budget.answer(answer(3), None, &one).await;
        assert_eq!(third.status(), http::StatusCode::SERVICE_UNAVAILABLE);
        drop((bytes, other));
        let last = budget.answer(answer(3), None, &one).await;
        assert_eq!(last.status(), http::StatusCode::OK);
        drop(last);
        let alone = budget.answer(answer(20), None, &one).await;
        assert_eq!(alone.status(), http::StatusCode::OK);
    }

    #[tokio::test]
    async fn whoever_has_no_room_for_a_page_is_refused_before_it_is_read() {
        let (budget, _metrics, _conditions) = budget(UNIT, 8 * MIB);
        let one = principal(1);
        let reserved: Vec<_> = (0..4).map(|_| budget.reserve(&one).unwrap()).collect();
        budget.reserve(&one).unwrap_err();
        budget.reserve(&principal(2)).unwrap();
        // What is not needed is given back at once.
        let mut reserved = reserved.into_iter();
        let answer = Response::new(Body::from(vec![b'x'; 20 * UNIT]));
        let sent = budget.answer(answer, reserved.next(), &one).await;
        assert_eq!(sent.status(), http::StatusCode::OK);
        let half = Response::new(Body::from(vec![b'x'; MIB / 2]));
        let half = budget.answer(half, None, &one).await;
        assert_eq!(half.status(), http::StatusCode::OK);
        budget.reserve(&one).unwrap_err();
        drop((sent, half, reserved));
        budget.reserve(&one).unwrap();
    }
}
