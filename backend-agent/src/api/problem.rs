//! From what went wrong to an RFC 9457 answer: the only place that knows status codes.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use viworks_api::{FieldProblem, GatewayRef, PROBLEM_MEDIA_TYPE, Problem, ProblemCode, Scope};
use viworks_common::human;

use crate::auth::apikey::CreateError;
use crate::auth::bearer::AuthError;
use crate::auth::risk_scope;
use crate::command::submit::{NotOffered, SubmitError};
use crate::data::{self, StoreError, in_full};
use crate::enrolment::TicketError;
use crate::pki::PkiError;

/// How to submit without the gateways that stand in the way.
const WAYS_OUT: &str = "\"targets\": {\"all_except\": [names]}, or \"skip_unable\": true to leave out whoever cannot take it \
                        (viworks run --all --except NAMES, or --skip-unable)";

/// Gateways that one refusal names; a run may be for thousands.
const GATEWAYS_NAMED_MAX: usize = 50;

/// What a database without room means for a revocation.
const NOT_REVOKED: &str = "the database cannot grow, so nothing is revoked; until it has room, stopping every backend \
                           ends the sessions that there are";

/// What to do about a backend that cannot make tickets of what it has.
const UNFIT_FILES: &str = "on the backend's machine, mend what is named, which viworks-backend-agent check-config judges \
                           as well, and try again";

/// What to do where files that may be right have not been taken over.
const NOT_IN_FORCE: &str = "on the backend's machine, send SIGHUP to the backend (systemctl reload); where it refuses what \
                            it reads, the condition reload in its health says why";

/// What a caller is told to wait when nothing better is known.
pub(super) const RETRY_SOON: Duration = Duration::from_secs(1);

/// What somebody is told to wait whose report found no turn.
const RETRY_REPORT: Duration = Duration::from_secs(5);

/// Why a request is not answered as asked. It becomes a document where the request's id is known.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    code: ProblemCode,
    detail: String,
    fix: Option<String>,
    errors: Vec<FieldProblem>,
    retry_after: Option<Duration>,
}

pub(super) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(super) fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            fix: None,
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// What to do about it, where that is another thing than for others of its code.
    pub(super) fn fixed_by(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    pub(super) fn not_found(what: &str) -> Self {
        Self::new(ProblemCode::NotFound, format!("there is no such {what}"))
    }

    /// For a revocation that came to nothing: whose machine was stolen has to know what helps meanwhile.
    pub(super) fn of_revocation(error: StoreError) -> Self {
        let is_full = matches!(error, StoreError::Full(_));
        let mut own = Self::from(error);
        if is_full {
            NOT_REVOKED.clone_into(&mut own.detail);
        }
        own
    }

    pub(super) fn forbidden(scope: Scope) -> Self {
        Self::new(
            ProblemCode::Forbidden,
            format!("this needs the scope {scope}"),
        )
    }

    pub(super) fn rate_limited(retry_after: Duration) -> Self {
        Self::new(
            ProblemCode::RateLimited,
            "this key has made all the requests it may make for the moment; nothing was done",
        )
        .retry_after(retry_after)
    }

    pub(super) fn parameter(field: &str, problem: &str, allowed: impl Into<String>) -> Self {
        Self::new(
            ProblemCode::InvalidParameter,
            format!("the parameter {field} is not valid"),
        )
        .with(field, problem, Some(allowed.into()))
    }

    pub(super) fn body_field(field: &str, problem: &str, allowed: impl Into<String>) -> Self {
        Self::new(ProblemCode::InvalidBody, format!("{field} is not valid")).with(
            field,
            problem,
            Some(allowed.into()),
        )
    }

    pub(super) fn with(
        mut self,
        field: impl Into<String>,
        problem: impl Into<String>,
        allowed: Option<String>,
    ) -> Self {
        self.errors.push(FieldProblem {
            field: field.into(),
            problem: problem.into(),
            allowed,
        });
        self
    }

    /// Names the gateways that a submission speaks of, as many as a person reads.
    fn naming(mut self, gateways: impl ExactSizeIterator<Item = (String, String)>) -> Self {
        let more = gateways.len().saturating_sub(GATEWAYS_NAMED_MAX);
        for (name, problem) in gateways.take(GATEWAYS_NAMED_MAX) {
            self = self.with(format!("targets.gateways: {name}"), problem, None);
        }
        if more > 0 {
            let more = human::counted(more, "more gateway", "more gateways");
            self = self.with("targets", format!("and {more}"), None);
        }
        self
    }

    /// Names the gateways that stand in a submission's way, and says how to leave them out.
    fn hindered_by(self, gateways: impl ExactSizeIterator<Item = (String, String)>) -> Self {
        if gateways.len() == 0 {
            return self;
        }
        self.naming(gateways).with(
            "targets",
            "the gateways that are named can be left out",
            Some(WAYS_OUT.to_owned()),
        )
    }

    pub(super) const fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    pub(super) const fn status(&self) -> StatusCode {
        match self.code {
            ProblemCode::Unauthenticated => StatusCode::UNAUTHORIZED,
            ProblemCode::Forbidden => StatusCode::FORBIDDEN,
            ProblemCode::BadRequest => StatusCode::BAD_REQUEST,
            ProblemCode::NoSuchPath | ProblemCode::NotFound => StatusCode::NOT_FOUND,
            ProblemCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ProblemCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ProblemCode::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ProblemCode::InvalidBody
            | ProblemCode::InvalidParameter
            | ProblemCode::InvalidHeader
            | ProblemCode::UnknownCommand
            | ProblemCode::BadArguments
            | ProblemCode::NoTarget
            | ProblemCode::UnknownGateway
            | ProblemCode::NotOffered
            | ProblemCode::IdempotencyMismatch => StatusCode::UNPROCESSABLE_ENTITY,
            ProblemCode::Conflict | ProblemCode::TargetCount => StatusCode::CONFLICT,
            ProblemCode::QueueFull | ProblemCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            ProblemCode::Timeout | ProblemCode::Overloaded | ProblemCode::Unavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            ProblemCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ProblemCode::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The document, as an answer to the request of this id.
    pub(super) fn document(self, request_id: &str) -> Problem {
        Problem {
            r#type: format!("urn:viworks:error:{}", self.code),
            title: self.code.title().to_owned(),
            status: self.status().as_u16(),
            code: self.code.code().to_owned(),
            detail: self.detail,
            fix: self.fix,
            request_id: request_id.to_owned(),
            errors: self.errors,
            retry_after_ms: self.retry_after.map(millis),
        }
    }

    /// Writes the document into `response`, whose other headers stay.
    pub(super) fn render(self, response: &mut Response, request_id: &str) {
        let status = self.status();
        let retry_after = self.retry_after;
        let problem = self.document(request_id);
        let body = serde_json::to_vec(&problem)
            .expect("a problem document has string keys and finite numbers");
        *response.status_mut() = status;
        *response.body_mut() = Body::from(body);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        if let Some(delay) = retry_after {
            // Whole seconds, never zero: a client that rounds down would come back at once.
            let seconds = delay.as_millis().div_ceil(1_000).max(1);
            if let Ok(value) = HeaderValue::try_from(seconds.to_string()) {
                headers.insert(RETRY_AFTER, value);
            }
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(
                WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"viworks\""),
            );
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { what } => {
                Self::new(ProblemCode::Conflict, format!("{what} exists already"))
            }
            StoreError::Missing { what } => Self::new(
                ProblemCode::NotFound,
                format!("{what} does not exist or was revoked"),
            ),
            StoreError::QueueFull {
                scope,
                gateways,
                limit,
                retry_after,
            } => {
                let waiting = human::counted_all(limit, "waiting command", "waiting commands");
                let detail = if gateways.len() > 1 {
                    let gateways = human::counted(gateways.len(), "gateway", "gateways");
                    format!("{gateways} already have their {waiting} each; nothing was sent")
                } else {
                    format!("{scope} already has its {waiting}; nothing was sent")
                };
                let full = gateways
                    .into_iter()
                    .map(|name| (name.to_string(), "its queue is full".to_owned()));
                Self::new(ProblemCode::QueueFull, detail)
                    .hindered_by(full)
                    .retry_after(retry_after)
            }
            StoreError::Unknown(_) => {
                tracing::debug!(error = in_full(&error), "the answer to a commit was lost");
                let detail = "whether it was done is not known, because the database went away; asking again is safe, \
                              for a submission with the same Idempotency-Key";
                Self::new(ProblemCode::Unavailable, detail).retry_after(RETRY_SOON)
            }
            StoreError::ReportsBusy => Self::new(
                ProblemCode::Overloaded,
                "as many reports are being made as may be at a time",
            )
            .retry_after(RETRY_REPORT),
            StoreError::TooLong(_) => {
                tracing::debug!(error = in_full(&error), "a question took too long");
                let detail = "it takes the database longer than a question may; ask for less time at once, or again \
                              when it has less to do";
                Self::new(ProblemCode::Overloaded, detail).retry_after(RETRY_REPORT)
            }
            StoreError::Unavailable(_) => {
                tracing::debug!(
                    error = in_full(&error),
                    "a request met an unavailable database"
                );
                Self::new(ProblemCode::Unavailable, "the database does not answer")
                    .retry_after(RETRY_SOON)
            }
            StoreError::Unfit(_) => {
                tracing::debug!(error = in_full(&error), "a request met an unfit database");
                let detail =
                    "the database is not as the backend needs it; its health says what is lacking";
                Self::new(ProblemCode::Unavailable, detail).retry_after(RETRY_SOON)
            }
            StoreError::Held(_) => {
                tracing::debug!(error = in_full(&error), "a request met a lock");
                let detail = "somebody holds a lock in the database; the backend's health says who";
                Self::new(ProblemCode::Unavailable, detail).retry_after(RETRY_SOON)
            }
            StoreError::Full(_) => {
                tracing::error!(error = in_full(&error), "the database is full");
                Self::new(ProblemCode::StorageFull, "the database cannot grow")
            }
            StoreError::Fenced | StoreError::Inconsistent { .. } => {
                tracing::error!(error = in_full(&error), "a request failed");
                Self::new(
                    ProblemCode::Internal,
                    "the request met a fault that is in the backend's log",
                )
            }
        }
    }
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing | AuthError::Refused => {
                Self::new(ProblemCode::Unauthenticated, error.to_string())
            }
            AuthError::Store(error) => error.into(),
        }
    }
}

impl From<TicketError> for ApiError {
    fn from(error: TicketError) -> Self {
        match error {
            TicketError::Store(error) => error.into(),
            TicketError::NoDoor => Self::new(ProblemCode::Conflict, error.to_string())
                .fixed_by("set listen in [enrolment] of the backend, and restart it"),
            TicketError::Full | TicketError::FullOfOne => Self::new(
                ProblemCode::Conflict,
                error.to_string(),
            )
            .fixed_by(
                "revoke tickets that nobody needs: viworks ticket ls, viworks ticket revoke TICKET",
            ),
            // What it says is about this backend's files and addresses, which whoever may make tickets has to mend.
            TicketError::Pki(error) => {
                let fix = if let PkiError::NotInForce { .. } = error {
                    NOT_IN_FORCE
                } else {
                    UNFIT_FILES
                };
                Self::new(ProblemCode::Conflict, in_full(&error)).fixed_by(fix)
            }
            TicketError::Unanswered(_) => {
                Self::new(ProblemCode::Unavailable, error.to_string()).retry_after(RETRY_SOON)
            }
        }
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        let field = match error {
            CreateError::BadName => "name",
            CreateError::NoScope => "scopes",
            CreateError::BadExpiry => "expires_in_ms",
            CreateError::Store(error) => return error.into(),
            CreateError::Write { .. } | CreateError::File(_) => {
                tracing::error!(error = in_full(&error), "an API key could not be made");
                return Self::new(ProblemCode::Internal, "the key could not be made");
            }
        };
        Self::new(ProblemCode::InvalidBody, error.to_string()).with(field, error.to_string(), None)
    }
}

fn refusing(gateways: Vec<NotOffered>) -> impl ExactSizeIterator<Item = (String, String)> {
    gateways
        .into_iter()
        .map(|refused| (refused.gateway.to_string(), refused.problem))
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let detail = error.to_string();
        match error {
            SubmitError::NoTarget(_) => {
                Self::new(ProblemCode::NoTarget, detail.clone()).with("targets", detail, None)
            }
            SubmitError::TooManyTargets(_) => {
                let allowed = format!("at most {}", viworks_common::limits::RUN_TARGETS_MAX);
                Self::new(ProblemCode::InvalidBody, detail.clone()).with(
                    "targets",
                    detail,
                    Some(allowed),
                )
            }
            SubmitError::UnknownGateways(gateways) => {
                let named = gateways
                    .into_iter()
                    .map(|(which, problem)| (gateway_ref(&which), problem.to_owned()));
                Self::new(ProblemCode::UnknownGateway, detail).naming(named)
            }
            SubmitError::UnknownCommand => Self::new(ProblemCode::UnknownCommand, detail).with(
                "command",
                "in no targeted gateway's catalogue",
                Some("a name that GET /v1/catalogue lists".to_owned()),
            ),
            SubmitError::NotOffered(gateways) => {
                Self::new(ProblemCode::NotOffered, detail).hindered_by(refusing(gateways))
            }
            SubmitError::BadArgumentsThere(gateways) => {
                Self::new(ProblemCode::BadArguments, detail).hindered_by(refusing(gateways))
            }
            SubmitError::BadArguments(arguments) => arguments.into_iter().fold(
                Self::new(ProblemCode::BadArguments, detail),
                |error, argument| {
                    error.with(
                        format!("arguments.{}", argument.argument),
                        argument.problem,
                        Some(argument.allowed),
                    )
                },
            ),
            SubmitError::RiskNotAllowed { risk, gateways } => {
                let mut error = Self::forbidden(risk_scope(risk));
                if !gateways.is_empty() {
                    error.detail = format!(
                        "{} on {} of the gateways that are meant; nothing was sent",
                        error.detail,
                        gateways.len()
                    );
                }
                error.hindered_by(refusing(gateways))
            }
            SubmitError::ReasonMissing(gateways) => {
                Self::body_field("reason", "missing", "why, in 1 to 512 bytes")
                    .hindered_by(refusing(gateways))
            }
            SubmitError::TargetCount { expected, .. } => {
                Self::new(ProblemCode::TargetCount, detail.clone()).with(
                    "expect_targets",
                    detail,
                    Some(format!(
                        "a selection of {}",
                        human::counted_all(expected, "gateway", "gateways")
                    )),
                )
            }
            SubmitError::IdempotencyMismatch => Self::new(ProblemCode::IdempotencyMismatch, detail)
                .with(
                    "Idempotency-Key",
                    "used for another request before",
                    Some("a key that was not used in the last 24 hours".to_owned()),
                ),
            SubmitError::Resolved => Self::new(ProblemCode::Conflict, detail),
            SubmitError::Store(error) => error.into(),
        }
    }
}

/// The API's way to name a gateway, in the store's words.
pub(super) fn stored_ref(which: GatewayRef) -> data::GatewayRef {
    match which {
        GatewayRef::Id(id) => data::GatewayRef::Id(id),
        GatewayRef::Name(name) => data::GatewayRef::Name(name),
    }
}

fn gateway_ref(which: &data::GatewayRef) -> String {
    match which {
        data::GatewayRef::Id(id) => id.to_string(),
        data::GatewayRef::Name(name) => name.to_string(),
    }
}

pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_revokes_where_there_is_no_room_is_told_what_helps_meanwhile() {
        let told = |error| ApiError::of_revocation(error).document("req_1");
        let full = told(StoreError::Full("no room".into()));
        assert_eq!(full.status, 507);
        assert!(full.detail.contains("stopping every backend"), "{full:?}");
        let away = told(StoreError::Unavailable("gone".into()));
        assert_eq!(away.status, 503);
        assert!(!away.detail.contains("stopping"), "{away:?}");
    }
}
