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

    /// The same for a submission of any text.
    pub async fn sound_submission(&self, text: String) -> Result<(u16, Value), Failure> {
        let builder = self.request(Method::POST, "/v1/runs");
        let builder = builder.header("content-type", "application/json");
        self.sounded(builder.body(text)).await
    }

    async fn sounded(&self, builder: reqwest::RequestBuilder) -> Result<(u16, Value), Failure> {
        let unreached = |error: &reqwest::Error| {
            let what = format!("{} cannot be reached: {}", self.server, causes(error));
            Failure::new(ExitCode::Unavailable, what)
        };
        let answer = builder.timeout(REQUEST_TIMEOUT).send().await;
        let answer = answer.map_err(|error| unreached(&error))?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(|error| unreached(&error))?;
        Ok((
            status,
            serde_json::from_str(&text).unwrap_or(Value::String(text)),
        ))
    }
}
