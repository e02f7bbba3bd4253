//! Requests that are made to see how they are answered.

use reqwest::Method;
use serde_json::Value;
use viworks_runtime::exit::ExitCode;

use super::{Client, REQUEST_TIMEOUT, causes};
use crate::failure::Failure;

/// Bytes that are read of an answer, more than a backend's has: whoever answers may send without an end.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

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
    let text = beginning(answer).await?;
    Ok((
        status,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    ))
}

async fn beginning(mut answer: reqwest::Response) -> Result<String, reqwest::Error> {
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES_MAX
        && let Some(chunk) = answer.chunk().await?
    {
        bytes.extend_from_slice(&chunk);
    }
    bytes.truncate(ANSWER_BYTES_MAX);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn of_an_answer_without_an_end_so_much_is_read_as_a_backends_could_have() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let endless = std::thread::spawn(move || {
            let (mut asked, _who) = listener.accept().unwrap();
            let mut head = [0; 4_096];
            assert!(asked.read(&mut head).unwrap() > 0);
            asked.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            // Until nobody takes any more.
            while asked.write_all(&[b'x'; 64 * 1024]).is_ok() {}
        });
        viworks_runtime::tls::install_provider();
        let client = Client::new(&server, None, false).unwrap();
        let (status, answer) = client.sound("/metrics").await.unwrap();
        assert_eq!(status, 200);
        assert_eq!(answer.as_str().map(str::len), Some(ANSWER_BYTES_MAX));
        endless.join().unwrap();
    }
}
