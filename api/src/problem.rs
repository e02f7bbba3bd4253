//! Problem documents (RFC 9457) with stable codes that a person can look up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $title:literal, $advice:literal;)*) => {
        /// What went wrong, as a code that does not change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ProblemCode { $($(#[$doc])* $variant,)* }

        impl ProblemCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code as it is written.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// A few words, the same at every occurrence.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }

            /// What a person should do.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $(Self::$variant => $advice,)* }
            }
        }
    };
}

codes! {
    /// No credential, or one that is not accepted.
    Unauthenticated = "VW-A-001", "not authenticated", "present a key that is neither expired nor revoked: `Authorization: Bearer vwk_…`, or `viworks --token-file FILE`";
    /// The credential lacks a scope.
    Forbidden = "VW-A-002", "scope missing", "ask an administrator for a key with the scope that the detail names";
    /// A request that is not well-formed HTTP for this API.
    BadRequest = "VW-H-001", "bad request", "see the detail and errors";
    /// No such path.
    NoSuchPath = "VW-H-002", "no such path", "see /openapi.json for every path";
    /// The path has other methods.
    MethodNotAllowed = "VW-H-003", "method not allowed", "the Allow header names the methods of this path";
    /// The body is larger than the limit.
    BodyTooLarge = "VW-H-004", "request body too large", "send less at once";
    /// The body is no JSON by its content type.
    UnsupportedMediaType = "VW-H-005", "unsupported media type", "send `Content-Type: application/json` and no `Content-Encoding`";
    /// The body is JSON and not what this operation takes.
    InvalidBody = "VW-H-006", "request body not valid", "errors names each field and what is allowed";
    /// A query parameter or path segment is unknown or not valid.
    InvalidParameter = "VW-H-007", "parameter not valid", "errors names each parameter and what is allowed";
    /// A request header is not valid.
    InvalidHeader = "VW-H-008", "header not valid", "errors names the header and what is allowed";
    /// The request took too long.
    Timeout = "VW-H-009", "request timed out", "nothing is half-done, but it may still be done: look at the state, then try again, a submission with its Idempotency-Key";
    /// Too many requests at once.
    Overloaded = "VW-H-010", "too many requests at once", "wait as Retry-After says and try again";
    /// The key has used up its requests for the moment.
    RateLimited = "VW-H-011", "too many requests with this key", "wait as Retry-After says; RateLimit tells what is left";
    /// No such object.
    NotFound = "VW-N-001", "not found", "check the id or name";
    /// The object exists already or changed meanwhile.
    Conflict = "VW-N-002", "conflict", "read the current state and decide again";
    /// No gateway has this command in its catalogue.
    UnknownCommand = "VW-C-001", "unknown command", "`viworks command ls` lists what gateways allow";
    /// The arguments do not fit the command's declaration.
    BadArguments = "VW-C-002", "arguments not valid", "errors names each argument and what is allowed";
    /// The submission's targets come to nothing.
    NoTarget = "VW-C-003", "no target", "name at least one gateway that exists and is not revoked";
    /// A named gateway does not exist or is revoked.
    UnknownGateway = "VW-C-004", "unknown gateway", "`viworks gateway ls` lists the gateways";
    /// A target cannot run this command.
    NotOffered = "VW-C-005", "command not offered by every target", "leave out the gateways that errors names, or allow the command there";
    /// The number of targets is not the expected one.
    TargetCount = "VW-C-006", "unexpected number of targets", "look at the selection again before you confirm it";
    /// The same idempotency key came with another request.
    IdempotencyMismatch = "VW-C-007", "idempotency key used for another request", "use a fresh key for a different submission";
    /// A bound on waiting commands was reached.
    QueueFull = "VW-Q-001", "queue full", "nothing was sent: wait as Retry-After says and try again";
    /// A dependency does not answer.
    Unavailable = "VW-S-001", "temporarily unavailable", "wait as Retry-After says and try again";
    /// A fault in the backend.
    Internal = "VW-S-002", "internal error", "give the request id to whoever runs the backend";
    /// The store cannot take more.
    StorageFull = "VW-S-003", "storage full", "free space on the backend's disk";
}

/// Text that is no problem code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown problem code {text:?}")]
pub struct InvalidProblemCode {
    /// The refused text, cut to a printable length.
    pub text: String,
}

impl FromStr for ProblemCode {
    type Err = InvalidProblemCode;

    fn from_str(text: &str) -> Result<Self, InvalidProblemCode> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.code() == text)
            .ok_or_else(|| InvalidProblemCode {
                text: text.chars().take(80).collect(),
            })
    }
}

impl fmt::Display for ProblemCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// One field, argument, parameter or target that is not right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldProblem {
    /// Where: a path such as `arguments.unit` or `targets.gateways[2]`, or a parameter's or header's name.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What is allowed, when that can be said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
}

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// A reference to the code's page.
    pub r#type: String,
    /// The code's title.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// The stable code, such as `VW-Q-001`. Text, so that a reader survives codes it does not know.
    pub code: String,
    /// What happened this time.
    pub detail: String,
    /// What to do about it this time, where that is known better than what its code stands for says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The request, as it stands in the backend's log.
    pub request_id: String,
    /// Each thing that is not right, when several can be named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldProblem>,
    /// How long to wait before trying again, in milliseconds, when waiting helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_problem_code_is_unique_and_reads_back() {
        let codes: BTreeSet<_> = ProblemCode::ALL.iter().map(|code| code.code()).collect();
        assert_eq!(codes.len(), ProblemCode::ALL.len());
        for code in ProblemCode::ALL {
            assert_eq!(code.code().parse::<ProblemCode>().unwrap(), *code);
        }
    }
}
