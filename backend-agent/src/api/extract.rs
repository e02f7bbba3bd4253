//! Strict input: JSON bodies, query parameters and path segments, each refusal naming the field.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use viworks_api::{FieldProblem, ProblemCode};
use viworks_common::limits::{PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX};
use viworks_common::text::json_holds_nul;
use viworks_common::time::Timestamp;
use viworks_common::unique::Checked;

use super::ApiState;
use super::budget::Held;
use super::problem::{ApiError, ApiResult};
use crate::auth::Principal;
use crate::data::{Listing, Page};

/// Why text is refused that not every database takes.
const NUL: &str = "text with a NUL character";

/// A JSON body and the digest of its bytes.
pub(super) struct JsonBody<T> {
    pub(super) value: T,
    pub(super) sha256: [u8; 32],
    /// What the body takes of the room for all bodies, until the request is answered.
    _held: Held,
}

impl<T: DeserializeOwned> FromRequest<Arc<ApiState>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<ApiState>) -> ApiResult<Self> {
        check_media_type(&request)?;
        let limit = state.limits.body_bytes_max;
        let (mut parts, body) = request.into_parts();
        let Caller(principal) = Caller::from_request_parts(&mut parts, state).await?;
        let mut held = state.budget.read(body, limit, &principal).await?;
        let bytes = std::mem::take(&mut held.bytes);
        Ok(Self {
            value: parse(&bytes)?,
            sha256: Sha256::digest(&bytes).into(),
            _held: held,
        })
    }
}

fn check_media_type(request: &Request) -> ApiResult<()> {
    let given = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::new(
        ProblemCode::UnsupportedMediaType,
        "the body must be application/json",
    )
    .with(
        "Content-Type",
        if given.is_empty() {
            "missing"
        } else {
            "not JSON"
        },
        Some("application/json".to_owned()),
    ))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).map_err(|cause| not_json(&cause))?;
    // A derived reader would take an array for the fields in their order.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::body_field(
            "body",
            "not an object",
            "a JSON object",
        ));
    }
    if json_holds_nul(bytes) {
        return Err(ApiError::body_field("body", NUL, "text without it"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        if cause.is_data() {
            let problem = field_problem(&path, &cause.to_string());
            let detail = format!("{}: {}", problem.field, problem.problem);
            ApiError::new(ProblemCode::InvalidBody, detail).with(
                problem.field,
                problem.problem,
                problem.allowed,
            )
        } else {
            not_json(&cause)
        }
    })?;
    // The reader looks at the fields that it knows; the keys of an object of any keys are looked at here.
    let looked: Checked<false> = serde_json::from_slice(bytes).map_err(|cause| not_json(&cause))?;
    match looked.repeated {
        Some(way) => Err(ApiError::body_field(&way, "there twice", "each key once")),
        None => Ok(read),
    }
}

fn not_json(cause: &serde_json::Error) -> ApiError {
    ApiError::new(
        ProblemCode::BadRequest,
        format!("the body is not JSON: {cause}"),
    )
}

/// Takes a deserializer's message apart: which field, what is wrong, what is allowed.
fn field_problem(path: &str, message: &str) -> FieldProblem {
    // serde_json adds where in the text it stopped, which the field's path says better.
    let message = message
        .rfind(" at line ")
        .and_then(|at| message.get(..at))
        .unwrap_or(message);
    let (problem, allowed) = match message.split_once(", expected ") {
        Some((problem, allowed)) => (problem, Some(allowed.to_owned())),
        None => match message.split_once(" is not valid: ") {
            Some((problem, allowed)) => (problem, Some(allowed.to_owned())),
            None => (message, None),
        },
    };
    let named = ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|start| problem.strip_prefix(start)?.strip_suffix('`'));
    let parent = path.trim_start_matches('.');
    let field = match named {
        Some(name) if parent.is_empty() || parent.ends_with(name) => name.to_owned(),
        Some(name) => format!("{parent}.{name}"),
        None if parent.is_empty() => "body".to_owned(),
        None => parent.to_owned(),
    };
    let problem = if message.contains(" is not valid: ") {
        format!("{problem} is not valid")
    } else {
        problem.to_owned()
    };
    FieldProblem {
        field,
        problem,
        allowed,
    }
}

/// Query parameters; unknown and repeated ones are refused.
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> ApiResult<Self> {
        let query = parts.uri.query().unwrap_or_default();
        if let Some((name, _)) = form_urlencoded::parse(query.as_bytes())
            .find(|(name, value)| name.contains('\0') || value.contains('\0'))
        {
            let detail = format!("the parameter {}: {NUL}", name.escape_debug());
            return Err(ApiError::new(ProblemCode::InvalidParameter, detail));
        }
        let deserializer =
            serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        serde_path_to_error::deserialize(deserializer)
            .map(Self)
            .map_err(
                |error: serde_path_to_error::Error<serde_urlencoded::de::Error>| {
                    let path = error.path().to_string();
                    let problem = field_problem(&path, &error.into_inner().to_string());
                    let detail = format!("the parameter {}: {}", problem.field, problem.problem);
                    ApiError::new(ProblemCode::InvalidParameter, detail).with(
                        problem.field,
                        problem.problem,
                        problem.allowed,
                    )
                },
            )
    }
}

/// For operations without query parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParams {}

/// Which page of a listing.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageParams {
    /// Where to go on: `next` of the page before.
    pub(super) cursor: Option<String>,
    /// Most rows wanted, 1 to 1000; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    pub(super) limit: Option<usize>,
}

impl PageParams {
    pub(super) fn page<K: FromStr + Display>(&self) -> ApiResult<Page<K>> {
        page(self.cursor.as_deref(), self.limit)
    }
}

/// A number in a cursor: one that a row can have.
#[derive(Debug, Clone, Copy)]
pub(super) struct CursorNumber(pub(super) u64);

impl Display for CursorNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for CursorNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = text.parse().map_err(|_digits| ())?;
        i64::try_from(number).map_err(|_beyond| ())?;
        Ok(Self(number))
    }
}

/// A time in a cursor, in microseconds: one that can be written as a date, as that of every row.
#[derive(Debug, Clone, Copy)]
pub(super) struct CursorTime(pub(super) Timestamp);

impl FromStr for CursorTime {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let at = Timestamp::from_unix_micros(text.parse().map_err(|_digits| ())?);
        Timestamp::parse(&at.to_string()).map_err(|_beyond| ())?;
        Ok(Self(at))
    }
}

/// Reads `cursor` and `limit`. A cursor has one form, that of `next`.
pub(super) fn page<K: FromStr + Display>(
    cursor: Option<&str>,
    limit: Option<usize>,
) -> ApiResult<Page<K>> {
    let limit = limit.unwrap_or(PAGE_ROWS_DEFAULT);
    if !(1..=PAGE_ROWS_MAX).contains(&limit) {
        let allowed = format!("1 to {PAGE_ROWS_MAX}");
        return Err(ApiError::parameter("limit", "out of range", allowed));
    }
    let read = |text: &str| {
        let key: Option<K> = text.parse().ok();
        key.filter(|key| key.to_string() == text).ok_or_else(|| {
            ApiError::parameter(
                "cursor",
                "not a cursor of this listing",
                "`next` of the page before",
            )
        })
    };
    let after = cursor.map(read).transpose()?;
    Ok(Page { after, limit })
}

/// A page as it is answered.
pub(super) fn listed<T, K: Display, V, L>(
    listing: Listing<T, K>,
    view: impl FnMut(T) -> V,
    list: impl FnOnce(Vec<V>, Option<String>) -> L,
) -> Json<L> {
    let items = listing.items.into_iter().map(view).collect();
    Json(list(items, listing.next.map(|next| next.to_string())))
}

/// A path segment. What is not even well-formed does not exist.
pub(super) struct Segment<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for Segment<T>
where
    T: FromStr<Err: Display>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_rejection| ApiError::not_found("object"))?;
        text.parse()
            .map(Self)
            .map_err(|error: T::Err| ApiError::new(ProblemCode::NotFound, error.to_string()))
    }
}

/// Two path segments.
pub(super) struct Segments<A, B>(pub(super) A, pub(super) B);

impl<A, B, S> FromRequestParts<S> for Segments<A, B>
where
    A: FromStr<Err: Display>,
    B: FromStr<Err: Display>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        let Path((first, second)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|_rejection| ApiError::not_found("object"))?;
        let first = first
            .parse()
            .map_err(|error: A::Err| ApiError::new(ProblemCode::NotFound, error.to_string()))?;
        let second = second
            .parse()
            .map_err(|error: B::Err| ApiError::new(ProblemCode::NotFound, error.to_string()))?;
        Ok(Self(first, second))
    }
}

/// The principal that the route's guard admitted.
pub(super) struct Caller(pub(super) Principal);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> ApiResult<Self> {
        // Only a route without a guard has none; it then opens nothing.
        parts
            .extensions
            .get::<Principal>()
            .cloned()
            .map(Self)
            .ok_or_else(|| {
                ApiError::new(ProblemCode::Unauthenticated, "the request has no principal")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_any_object_that_stands_twice_is_refused() {
        type Labels = std::collections::BTreeMap<String, std::collections::BTreeMap<String, u64>>;
        let read = parse::<Labels>(br#"{"labels": {"site": 1, "tier": 2}}"#).unwrap();
        assert_eq!(read["labels"]["tier"], 2);
        let refused = parse::<Labels>(br#"{"labels": {"site": 1, "site": 1}}"#).unwrap_err();
        let told = format!("{refused:?}");
        assert!(
            told.contains("labels.site") && told.contains("there twice"),
            "{told}"
        );
    }

    #[test]
    fn a_refusal_names_the_field_and_what_is_allowed() {
        let problem = field_problem(
            ".",
            "unknown field `x`, expected `a` or `b` at line 1 column 4",
        );
        assert_eq!(problem.field, "x");
        assert_eq!(problem.problem, "unknown field `x`");
        assert_eq!(problem.allowed.as_deref(), Some("`a` or `b`"));
        let problem = field_problem(
            "targets.gateways[1]",
            "gateway name \"A\" is not valid: 1 to 63 letters",
        );
        assert_eq!(problem.field, "targets.gateways[1]");
        assert_eq!(problem.problem, "gateway name \"A\" is not valid");
        assert_eq!(problem.allowed.as_deref(), Some("1 to 63 letters"));
    }
}
