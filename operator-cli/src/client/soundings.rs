//! Requests that are made to see how they are answered.

use reqwest::Method;
use serde_json::Value;
use viworks_runtime::exit::ExitCode;

use super::{Client, REQUEST_TIMEOUT, causes};
use crate::failure::Failure;

impl Client {
    /// Where it asks.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The status that a path is answered with, and the answer.
    pub async fn sound(&self, path: &str) -> Result<(u16, Value), Failure> {
        self.sounded(self.request(Method::GET, path)).await
    }

    /// The same for a submission of any text; `None` when the other end hung up on it.
    pub async fn sound_submission(&self, text: String) -> Result<Option<(u16, Value)>, Failure> {
        let builder = self.request(Method::POST, "/v1/runs");
        let builder = builder.header("content-type", "application/json");
        match sounded(builder.body(text)).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.is_connect() || error.is_timeout() => Err(self.unreached(&error)),
            Err(_cut) => Ok(None),
        }
    }

    async fn sounded(&self, builder: reqwest::RequestBuilder) -> Result<(u16, Value), Failure> {
        sounded(builder)
            .await
            .map_err(|error| self.unreached(&error))
    }

    fn unreached(&self, error: &reqwest::Error) -> Failure {
        let what = format!("{} cannot be reached: {}", self.server, causes(error));
        Failure::new(ExitCode::Unavailable, what)
    }
}

async fn sounded(builder: reqwest::RequestBuilder) -> Result<(u16, Value), reqwest::Error> {
    let answer = builder.timeout(REQUEST_TIMEOUT).send().await?;
    let status = answer.status().as_u16();
    let text = answer.text().await?;
    Ok((
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    ))
}
