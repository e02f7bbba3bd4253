//! The checks of the operators' side, and of the bounds on both.

use std::time::Duration;

use viworks_common::human;

use super::causes::START_IT;
use super::papers::Papers;
use super::report::Finding;
use super::wire;
use crate::client::Client;

/// More than any body may have.
const BODY_BYTES: usize = 4 * 1024 * 1024;
/// As long as a connection that says nothing can be configured to be kept.
const SILENCE_MAX: Duration = Duration::from_secs(61);

/// Every probe says that all is well.
pub(super) async fn health(client: &Client) -> Finding {
    let fix = "the full document says which part and why: GET /v1/health";
    let begun = tokio::time::Instant::now();
    for path in ["/startupz", "/livez", "/readyz"] {
        match client.sound(path).await {
            Ok((200, _answer)) => {}
            Ok((status, answer)) => {
                return Finding::fail(format!("{path} {status}"), answer.to_string(), fix);
            }
            Err(failure) => {
                return Finding::fail("no answer", failure.what, START_IT);
            }
        }
    }
    let document = match client.sound("/v1/health").await {
        Ok((200, document)) => document,
        Ok((status, answer)) => {
            let fix = "the key needs the scope that reads health";
            return Finding::fail(format!("/v1/health {status}"), answer.to_string(), fix);
        }
        Err(failure) => return Finding::fail("no answer", failure.what, fix),
    };
    let status = document["status"].as_str().unwrap_or("unknown").to_owned();
    let parts = document["checks"].as_array().cloned().unwrap_or_default();
    let failing = parts.iter().find(|part| part["status"] == "fail");
    if let Some(part) = failing {
        let reason = format!("{}: {}", part["name"], part["detail"]);
        return Finding::fail(format!("health {status}"), reason, fix);
    }
    Finding::Pass(format!(
        "200 from 4 in {} ms, {}, {status}",
        begun.elapsed().as_millis(),
        human::counted(parts.len(), "part", "parts")
    ))
}

/// What costs too much is refused or cut.
pub(super) async fn limits(client: &Client, papers: &Papers) -> Finding {
    let body = async {
        let padding = " ".repeat(BODY_BYTES);
        // What is small is answered before and after it, or nothing follows from a large one that is not.
        let before = client.sound("/livez").await;
        let large = client.sound_submission(padding).await;
        let after = client.sound("/livez").await;
        (before.and(after), large)
    };
    let ((small, body), silent) = tokio::join!(body, wire::silent(papers, SILENCE_MAX));
    if let Err(failure) = small {
        return Finding::fail("no answer", failure.what, START_IT);
    }
    let body = match body {
        Ok(Some((413, _answer))) => "body of 4 MiB 413".to_owned(),
        Ok(Some((status, _answer))) => {
            return Finding::fail(
                format!("a body of 4 MiB: {status}"),
                "a body of any size is taken in",
                "put nothing between that changes bodies, and install the backend of this release",
            );
        }
        // It hung up in the middle of what it does not want.
        Ok(None) => "body of 4 MiB cut".to_owned(),
        Err(failure) => {
            let fix = "see who is between, and what becomes of large bodies there";
            return Finding::fail("no answer to a body of 4 MiB", failure.what, fix);
        }
    };
    match silent {
        Ok(Some(after)) => Finding::Pass(format!(
            "{body}, silent connection cut after {}.{} s",
            after.as_secs(),
            after.subsec_millis() / 100
        )),
        Ok(None) => Finding::fail(
            format!(
                "a silent connection is kept for {} s",
                SILENCE_MAX.as_secs()
            ),
            "whoever connects and says nothing keeps a socket for ever",
            "a proxy in front waits without a limit: proxy_timeout and client_header_timeout in nginx",
        ),
        Err(refused) => Finding::fail(
            refused.words(),
            "the agents' port could not be reached",
            "start the backend, or look at the way to it",
        ),
    }
}
