//! What `doctor` asks of a client: where it goes, whether a backend is there, and how that one is.

use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use viworks_api::Health;
use viworks_runtime::exit::ExitCode;

use super::{Client, refusal};
use crate::failure::Failure;

/// How long each answer may take, so that whoever is silent is named soon.
const ANSWER_TIME: Duration = Duration::from_secs(3);

impl Client {
    /// The address of the server as it was named.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Host and port that are dialled; none where a proxy dials.
    #[must_use]
    pub fn dials(&self) -> Option<(String, u16)> {
        let url = Url::parse(&self.server).ok()?;
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let direct = !self.way.iter().any(|word| word.starts_with("through"));
        direct.then_some((host, url.port_or_known_default()?))
    }

    /// What stands between here and there, and whom it trusts.
    #[must_use]
    pub fn way(&self) -> &[String] {
        &self.way
    }

    /// Whether a key is sent.
    #[must_use]
    pub const fn has_key(&self) -> bool {
        self.token.is_some()
    }

    /// Whether the backend takes requests, asked without a key.
    pub async fn is_ready(&self) -> Result<bool, Failure> {
        let url = format!("{}/readyz", self.server);
        let asked = self.http.request(Method::GET, url).timeout(ANSWER_TIME);
        let response = asked.send().await.map_err(|error| self.unsent(&error))?;
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        // A line, or a document of the parts.
        let ours = text.starts_with("ok") || text.contains("ready");
        match status {
            StatusCode::OK if ours => Ok(true),
            StatusCode::SERVICE_UNAVAILABLE if ours => Ok(false),
            other => Err(refusal::read(other, &text).with(
                "fix: check that the address is a backend's API, and where a proxy forwards to",
            )),
        }
    }

    /// The health document; the key needs `health:read`.
    pub async fn health(&self) -> Result<Health, Failure> {
        let asked = self.request(Method::GET, "/v1/health");
        let response = self.checked(asked.timeout(ANSWER_TIME)).await?;
        self.read(response).await
    }

    /// Whether the key opens anything at all: what a key without `health:read` is asked by.
    pub async fn knows_key(&self) -> Result<(), Failure> {
        let asked = self.request(Method::GET, "/v1/gateways?limit=1");
        let answer = self.checked(asked.timeout(ANSWER_TIME)).await;
        match answer {
            Err(failure) if failure.exit != ExitCode::Forbidden => Err(failure),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
