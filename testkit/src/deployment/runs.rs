//! Runs: submitted to a deployment, waited for, looked at.

use std::time::Duration;

use serde_json::Value;

use super::{Deployment, PATIENCE};
use crate::process::eventually;

impl Deployment {
    /// Waits until a run is finished.
    ///
    /// # Panics
    /// When it does not finish.
    pub async fn finished(&self, run: &str) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.request("GET", &format!("/v1/runs/{run}"), None).await;
            if let Ok((200, body)) = &answer
                && body["state"] == "finished"
            {
                return body.clone();
            }
            if tokio::time::Instant::now() >= deadline {
                let commands = self
                    .request("GET", &format!("/v1/runs/{run}/commands"), None)
                    .await;
                panic!("run {run} is not finished: {answer:?} {commands:?}");
            }
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }

    /// Submits a run once, whatever comes of it; status and answer.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn submit_once(&self, body: &Value, key: &str) -> (u16, Value) {
        let request = self.http.post(format!("{}/v1/runs", self.api_url()));
        let request = request
            .bearer_auth(&self.token)
            .header("idempotency-key", key);
        let response = request.json(body).timeout(PATIENCE).send().await;
        let response = response.expect("the API answers");
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or_default())
    }

    /// Submits a run until there is an answer; the key makes that safe.
    ///
    /// # Panics
    /// When the backend refuses it.
    pub async fn submit(&self, command: &str, key: &str) -> String {
        let body = serde_json::json!({"command": command, "targets": "all"});
        eventually("the submission is answered", PATIENCE, async || {
            let request = self
                .http
                .post(format!("{}/v1/runs", self.api_url()))
                .bearer_auth(&self.token);
            let response = request
                .header("idempotency-key", key)
                .json(&body)
                .timeout(PATIENCE)
                .send()
                .await
                .ok()?;
            let status = response.status().as_u16();
            let answer: Value = response.json().await.ok()?;
            if status == 503 {
                return None;
            }
            assert!((200..300).contains(&status), "{status} {answer}");
            Some(answer["id"].as_str().expect("a run has an id").to_owned())
        })
        .await
    }

    /// The commands of a run.
    ///
    /// # Panics
    /// When the API does not list them.
    pub async fn commands(&self, run: &str) -> Vec<Value> {
        let path = format!("/v1/runs/{run}/commands?limit=1000");
        eventually("the run's commands are listed", PATIENCE, async || {
            let (status, page) = self.request("GET", &path, None).await.ok()?;
            (status == 200).then(|| page["items"].as_array().cloned())?
        })
        .await
    }
}
