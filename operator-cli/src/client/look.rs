//! What `doctor` asks of a client: where it goes, whether a backend is there, and how that one is.

use std::time::Duration;

use reqwest::header::{DATE, HeaderMap, LOCATION};
use reqwest::{Method, Response, StatusCode, Url};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::Instant;
use viworks_api::Health;
use viworks_common::time::Timestamp;
use viworks_runtime::exit::ExitCode;

use super::{Client, refusal, trust};
use crate::failure::Failure;

/// Bytes that are read of an answer to /readyz.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How often it is asked where a connection is lost without a word.
const TRIES: u32 = 3;

/// What to do when somebody else answers.
const NO_BACKEND: &str = "fix: check the address (--server, VIWORKS_SERVER, viworks context ls), and where a proxy in front of the backend forwards to";

/// What to do when what answers speaks something else.
const WRONG_PORT: &str = "fix: check the port: gateways connect to another one than operators, and where TLS is spoken the address begins with https://";

/// Who is dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialled {
    /// The name or address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Who named it, when it is a proxy.
    pub proxy: Option<String>,
}

/// How a backend says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Whether it takes requests.
    pub ready: bool,
    /// What is in its way, by name.
    pub reasons: Vec<String>,
    /// Its clock, to the second.
    pub clock: Option<Timestamp>,
}

/// Why nobody says that.
#[derive(Debug)]
pub enum NotThere {
    /// TLS came to nothing.
    Untrusted(Failure),
    /// There is no answer, or not a backend's.
    Unanswered {
        /// What there is.
        failure: Failure,
        /// Whether something came for which TLS had to stand, if it is spoken at all.
        past_tls: bool,
    },
}

#[derive(Deserialize)]
struct NotReady {
    reasons: Vec<String>,
}

impl Client {
    /// Who is dialled to reach the server: itself, or a proxy.
    #[must_use]
    pub fn dials(&self) -> Option<Dialled> {
        let proxy = self.proxy.as_ref();
        let url = Url::parse(proxy.map_or(&self.server, |proxy| &proxy.url)).ok()?;
        Some(Dialled {
            host: url.host_str()?.trim_matches(['[', ']']).to_owned(),
            // A proxy without a port is one of the web.
            port: url.port_or_known_default().unwrap_or(80),
            proxy: proxy.map(|proxy| proxy.variable.to_owned()),
        })
    }

    /// What stands between here and there, and whom it trusts.
    #[must_use]
    pub fn way(&self) -> &[String] {
        &self.way
    }

    /// Whether TLS protects the way.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.server.starts_with("https:")
    }

    /// Whether a key is sent.
    #[must_use]
    pub const fn has_key(&self) -> bool {
        self.token.is_some()
    }

    /// Whether the backend takes requests, asked without a key; the answer may take so long.
    pub async fn standing(&self, limit: Duration) -> Result<Standing, NotThere> {
        let response = self.ask_standing(limit).await.map_err(|error| {
            let failure = self.unsent(&error);
            let lost = is_lost(&error);
            let failure = if lost {
                failure.with(WRONG_PORT)
            } else {
                failure
            };
            let is_direct = self.is_secure() && self.proxy.is_none();
            // The connection itself was tried before.
            let in_handshake = error.is_connect() && is_direct;
            if in_handshake || trust::untrusted(&self.server, &error).is_some() {
                NotThere::Untrusted(failure)
            } else {
                NotThere::Unanswered {
                    failure,
                    past_tls: lost,
                }
            }
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        let text = beginning(response).await;
        let clock = headers
            .get(DATE)
            .and_then(|date| read_date(date.to_str().ok()?));
        let standing = |ready, reasons| Standing {
            ready,
            reasons,
            clock,
        };
        let line = text.trim();
        match status {
            StatusCode::OK if line == "ok" => Ok(standing(true, Vec::new())),
            // Versions before this one say no more than that.
            StatusCode::SERVICE_UNAVAILABLE if line == "not ready" => {
                Ok(standing(false, Vec::new()))
            }
            StatusCode::SERVICE_UNAVAILABLE => match serde_json::from_str(&text) {
                Ok(NotReady { reasons }) => Ok(standing(false, reasons)),
                Err(_) => Err(other_answers(status, &headers, &text)),
            },
            other => Err(other_answers(other, &headers, &text)),
        }
    }

    /// Asks it. A server that wants another certificate than it was shown says so once a client's own part of the
    /// handshake is over (RFC 8446, 2), and the end of the connection may be noticed before that: so one that is lost
    /// under TLS without a word is opened again.
    async fn ask_standing(&self, limit: Duration) -> Result<Response, reqwest::Error> {
        let url = format!("{}/readyz", self.server);
        let end = Instant::now() + limit;
        let ask = async || {
            let left = end.saturating_duration_since(Instant::now());
            let asked = self.http.request(Method::GET, &url).timeout(left);
            asked.send().await
        };
        let mut answer = ask().await;
        for _ in 1..TRIES {
            match &answer {
                Err(error)
                    if self.is_secure()
                        && is_lost(error)
                        && trust::untrusted(&self.server, error).is_none() => {}
                Ok(_) | Err(_) => break,
            }
            answer = ask().await;
        }
        answer
    }

    /// The health document; the key needs `health:read`.
    pub async fn health(&self, limit: Duration) -> Result<Health, Failure> {
        let asked = self.request(Method::GET, "/v1/health");
        let response = self.checked(asked.timeout(limit)).await?;
        self.read(response).await
    }

    /// Whether the key opens anything at all: what a key without `health:read` is asked by.
    pub async fn knows_key(&self, limit: Duration) -> Result<(), Failure> {
        let asked = self.request(Method::GET, "/v1/gateways?limit=1");
        let answer = self.checked(asked.timeout(limit)).await;
        match answer {
            Err(failure) if failure.exit != ExitCode::Forbidden => Err(failure),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Whether it was connected, and the connection came to an end without an answer.
fn is_lost(error: &reqwest::Error) -> bool {
    !error.is_connect() && !error.is_timeout()
}

/// The text of an answer, as far as a backend's could go: whoever answers may send without an end.
async fn beginning(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES_MAX
        && let Ok(Some(chunk)) = response.chunk().await
    {
        bytes.extend_from_slice(&chunk);
    }
    bytes.truncate(ANSWER_BYTES_MAX);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn other_answers(status: StatusCode, headers: &HeaderMap, text: &str) -> NotThere {
    NotThere::Unanswered {
        failure: not_a_backend(status, headers, text),
        past_tls: true,
    }
}

/// Somebody answers who is no backend.
fn not_a_backend(status: StatusCode, headers: &HeaderMap, text: &str) -> Failure {
    let location = headers.get(LOCATION).and_then(|to| to.to_str().ok());
    let unavailable = |what: String| Failure::new(ExitCode::Unavailable, what);
    match (status, location) {
        (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, _) => {
            unavailable(format!("a proxy answers {status}: it does not reach the backend"))
                .with("fix: start the backend, and compare its listen in [api] with where the proxy forwards to")
        }
        (StatusCode::PROXY_AUTHENTICATION_REQUIRED, _) => {
            unavailable("the proxy wants to know who asks (407)".to_owned())
                .with("fix: put name and password into the proxy's variable, or reach the backend without it: NO_PROXY")
        }
        (status, Some(location)) if status.is_redirection() => {
            unavailable(format!("the server answers {status} and sends to {location}, which nobody follows with a key"))
                .with("fix: name the address that it sends to, or of the backend behind a login page")
        }
        (StatusCode::OK, _) => {
            unavailable("the server answers, and it does not look like a ViWorkS backend".to_owned())
                .with(NO_BACKEND)
        }
        (status, _) => refusal::read(status, text).with(NO_BACKEND),
    }
}

/// The time in a `Date` header.
fn read_date(text: &str) -> Option<Timestamp> {
    let date = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    Some(Timestamp::from_unix_micros(
        date.unix_timestamp().checked_mul(1_000_000)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_answer_is_read() {
        let read = read_date("Mon, 02 Mar 2026 08:00:10 GMT");
        assert_eq!(
            read,
            Some(Timestamp::parse("2026-03-02T08:00:10Z").unwrap())
        );
        assert_eq!(read_date("yesterday"), None);
    }

    #[test]
    fn who_answers_and_is_no_backend_is_told_apart() {
        let told = |status: u16, location: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(location) = location {
                headers.insert(LOCATION, location.parse().unwrap());
            }
            let status = StatusCode::from_u16(status).unwrap();
            let failure = not_a_backend(status, &headers, "<html>");
            format!("{} {}", failure.what, failure.details.join(" "))
        };
        assert!(told(502, None).contains("forwards to"));
        assert!(told(407, None).contains("NO_PROXY"));
        assert!(told(302, Some("https://login.example/")).contains("login.example"));
        for status in [200, 404] {
            assert!(
                told(status, None).contains("does not look like"),
                "{status}"
            );
        }
    }
}
