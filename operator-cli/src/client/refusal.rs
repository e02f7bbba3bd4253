//! What an answer that is no success means: an exit code, and the words of whoever gave it.

use reqwest::StatusCode;
use viworks_api::{Problem, ProblemCode};
use viworks_runtime::exit::ExitCode;

use crate::failure::Failure;

/// What was named does not exist, or not where it was meant, or nothing was meant at all.
const ABSENT: [ProblemCode; 4] = [
    ProblemCode::UnknownCommand,
    ProblemCode::NoTarget,
    ProblemCode::UnknownGateway,
    ProblemCode::NotOffered,
];

/// Reads one: a problem document of the backend, or whatever stands in between.
pub(super) fn read(status: StatusCode, text: &str) -> Failure {
    let exit = match status {
        StatusCode::UNAUTHORIZED => ExitCode::Login,
        StatusCode::FORBIDDEN => ExitCode::Forbidden,
        StatusCode::NOT_FOUND => ExitCode::NotFound,
        StatusCode::CONFLICT => ExitCode::Conflict,
        StatusCode::TOO_MANY_REQUESTS => ExitCode::Busy,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
            ExitCode::Unavailable
        }
        status if status.is_client_error() => ExitCode::Usage,
        _ => ExitCode::Error,
    };
    match serde_json::from_str::<Problem>(text) {
        Ok(problem) => {
            let absent = ABSENT.iter().any(|code| problem.code == code.code());
            let exit = if absent {
                ExitCode::NotFound
            } else if problem.code == ProblemCode::IdempotencyMismatch.code() {
                ExitCode::Conflict
            } else {
                exit
            };
            let mut failure =
                Failure::new(exit, problem.title.to_lowercase()).with(problem.detail.clone());
            if let Some(wait) = problem.retry_after_ms {
                failure = failure.with(format!("try again in about {} s", wait.div_ceil(1_000)));
            }
            failure.problem = Some(Box::new(problem));
            failure
        }
        Err(_not_a_problem) => Failure::new(
            exit,
            format!("the server answered {status} and it does not look like a ViWorkS backend"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_does_not_exist_is_not_found() {
        let problem = |code: &str| {
            serde_json::json!({
                "type": "urn:viworks:error", "title": "T", "status": 422, "code": code, "detail": "d", "request_id": "r"
            })
            .to_string()
        };
        let exit = |code| read(StatusCode::UNPROCESSABLE_ENTITY, &problem(code)).exit;
        for absent in ["VW-C-001", "VW-C-003", "VW-C-004", "VW-C-005"] {
            assert_eq!(exit(absent), ExitCode::NotFound, "{absent}");
        }
        assert_eq!(exit("VW-C-002"), ExitCode::Usage);
        assert_eq!(exit("VW-C-007"), ExitCode::Conflict);
    }

    #[test]
    fn a_refusal_without_a_problem_document_is_still_classified() {
        assert_eq!(
            read(StatusCode::FORBIDDEN, "<html>").exit,
            ExitCode::Forbidden
        );
        assert_eq!(
            read(StatusCode::BAD_GATEWAY, "").exit,
            ExitCode::Unavailable
        );
    }
}
