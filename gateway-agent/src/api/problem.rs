//! Problems of the local API as RFC 9457 documents.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use viworks_common::catalogue::ArgumentProblem;

/// A refusal on its way out.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    arguments: Vec<ArgumentProblem>,
    retry_after_seconds: Option<u32>,
    held_back: bool,
}

/// Marks an answer that is held back for a while, when nothing is kept for its request any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldBack;

impl Problem {
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            title,
            detail: detail.into(),
            arguments: Vec::new(),
            retry_after_seconds: None,
            held_back: false,
        }
    }

    pub(super) fn with_arguments(mut self, arguments: Vec<ArgumentProblem>) -> Self {
        self.arguments = arguments;
        self
    }

    pub(super) const fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// For somebody who comes too often: whoever asks again and again gets no more than one such answer for each
    /// connection in a while.
    pub(super) const fn held_back(mut self) -> Self {
        self.held_back = true;
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": format!("urn:viworks:problem:{}", self.code),
            "code": self.code,
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if !self.arguments.is_empty() {
            body["errors"] = json!(self.arguments);
        }
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.held_back {
            response.extensions_mut().insert(HeldBack);
        }
        response
    }
}

pub(super) async fn not_found() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        "No such resource",
        "there are /v1/status, /v1/health, /v1/catalogue, /v1/telemetry and /v1/commands/{name}",
    )
}

pub(super) async fn method_not_allowed() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "Method not allowed",
        "telemetry and commands take POST, everything else GET",
    )
}
