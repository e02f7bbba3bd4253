//! A run's events as they come, through interruptions, until the run is finished.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Method, Response};
use tokio::time::Instant;
use viworks_api::{ProblemCode, RunEvent};
use viworks_common::id::RunId;
use viworks_runtime::exit::ExitCode;

use super::patience::Patience;
use super::silence::QUIET;
use super::{Client, SILENCE_MAX};
use crate::failure::Failure;
use crate::output;

/// Bytes of one server-sent event, far above what the backend sends.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// How long a stream that has begun may be silent before anybody wonders: the backend's heartbeat comes every 15 s.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// So many streams that end soon and bring nothing are enough: half a minute of them, by the pauses in between.
const FRUITLESS_MAX: u32 = 12;

/// How a stream of events ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// With the run.
    Finished,
    /// In the middle, after something had come.
    Cut,
    /// Before anything had come.
    Empty,
}

impl Client {
    /// Follows a run's events until it is finished; `handle` sees each.
    pub async fn follow(
        &self,
        id: RunId,
        mut handle: impl FnMut(RunEvent) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut last_id: Option<String> = None;
        let (mut patience, mut fruitless) = (Patience::with(id), Fruitless::default());
        loop {
            let mut builder = self.request(Method::GET, &format!("/v1/runs/{id}/events"));
            if let Some(id) = &last_id {
                builder = builder.header("last-event-id", id);
            }
            let (before, begun, mut cut) = (last_id.clone(), Instant::now(), false);
            let opened = self.with_word(QUIET, SILENCE_MAX, self.checked(builder));
            let ended = match opened.await {
                Ok(response) if !brings_events(response.headers()) => {
                    let said = response.headers().get(CONTENT_TYPE);
                    let said = said
                        .and_then(|said| said.to_str().ok())
                        .unwrap_or("nothing");
                    output::note(&format!(
                        "live output is not shown, because {} answers with {said} and not with events, as something in between \
                         does; waiting for the end",
                        self.server
                    ));
                    return self.wait_out(id).await;
                }
                Ok(response) => {
                    match self
                        .read_events(response, &mut last_id, &mut handle)
                        .await?
                    {
                        Ended::Finished => return Ok(()),
                        Ended::Cut => {
                            patience.heard();
                            cut = true;
                        }
                        Ended::Empty => {}
                    }
                    // The backend restarted or a proxy cut it. It resumes where it stopped.
                    Failure::new(ExitCode::Unavailable, "the event stream keeps ending")
                }
                // That nobody can watch the run says nothing about the run: its end can be waited for all the same.
                Err(failure) if failure.is(ProblemCode::Overloaded) => {
                    output::note(&format!(
                        "live output is not shown, because the backend is too busy for it ({}); waiting for the end",
                        failure.what
                    ));
                    return self.wait_out(id).await;
                }
                Err(failure) if failure.exit == ExitCode::Unavailable => failure,
                Err(failure) => return Err(failure),
            };
            if before != last_id {
                patience.renew();
            }
            if cut && fruitless.are_too_many(before != last_id, begun.elapsed()) {
                output::note(&format!(
                    "live output is not shown any more, because the events of {} keep ending before one comes; waiting for \
                     the end",
                    self.server
                ));
                return self.wait_out(id).await;
            }
            patience.pause(ended).await?;
        }
    }

    /// Whether the stream came to its proper end.
    async fn read_events(
        &self,
        response: Response,
        last_id: &mut Option<String>,
        handle: &mut impl FnMut(RunEvent) -> Result<(), Failure>,
    ) -> Result<Ended, Failure> {
        let mut bytes = response.bytes_stream();
        let mut buffer: Vec<u8> = Vec::new();
        // What has happened so far comes at once.
        let (mut expected, mut ended) = (QUIET, Ended::Empty);
        while let Some(chunk) = self.with_word(expected, SILENCE_MAX, bytes.next()).await {
            let Ok(chunk) = chunk else { return Ok(ended) };
            (expected, ended) = (HEARTBEAT + QUIET, Ended::Cut);
            buffer.extend_from_slice(&chunk);
            while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = buffer.drain(..end + 2).collect();
                let (id, data) = fields(&String::from_utf8_lossy(&event));
                if id.is_some() {
                    *last_id = id;
                }
                if data.is_empty() {
                    continue;
                }
                let event: RunEvent = serde_json::from_str(&data).map_err(|error| {
                    Failure::new(
                        ExitCode::Error,
                        format!("the backend sent an event this version cannot read: {error}"),
                    )
                })?;
                let finished = matches!(event, RunEvent::Finished { .. });
                handle(event)?;
                if finished {
                    return Ok(Ended::Finished);
                }
            }
            if buffer.len() > EVENT_BYTES_MAX {
                return Err(Failure::new(
                    ExitCode::Error,
                    "the backend sent an event beyond every bound",
                ));
            }
        }
        Ok(ended)
    }
}

/// Whether that is a stream of events, and no page of somebody in between.
fn brings_events(headers: &HeaderMap) -> bool {
    let said = headers.get(CONTENT_TYPE);
    said.is_some_and(|said| said.as_bytes().starts_with(b"text/event-stream"))
}

/// Streams one after another that ended soon and brought nothing.
#[derive(Debug, Default)]
struct Fruitless(u32);

impl Fruitless {
    /// Notes one that ended, and whether it was one too many. One that lives longer than the backend's heartbeat is
    /// cut by a proxy that has had enough, as some do every minute.
    fn are_too_many(&mut self, brought_some: bool, lasted: Duration) -> bool {
        if brought_some || lasted > HEARTBEAT {
            self.0 = 0;
        } else {
            self.0 += 1;
        }
        self.0 >= FRUITLESS_MAX
    }
}

/// The id and the data of one server-sent event (WHATWG HTML, "Server-sent events").
fn fields(event: &str) -> (Option<String>, String) {
    let mut id = None;
    let mut data = Vec::new();
    for line in event.lines() {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "id" => id = Some(value.to_owned()),
            "data" => data.push(value),
            // Comments, names and retry hints carry nothing that the data does not.
            _ => {}
        }
    }
    (id, data.join("\n"))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn streams_that_bring_nothing_are_given_up_and_long_ones_are_not() {
        let (short, long) = (Duration::from_millis(5), Duration::from_secs(60));
        let mut fruitless = Fruitless::default();
        let too_many = (1..).find(|_| fruitless.are_too_many(false, short));
        assert_eq!(too_many, Some(FRUITLESS_MAX));
        for (brought, lasted) in [(true, short), (false, long)] {
            let mut fruitless = Fruitless::default();
            let each = |fruitless: &mut Fruitless| {
                let ends = (1..FRUITLESS_MAX).any(|_| fruitless.are_too_many(false, short));
                ends || fruitless.are_too_many(brought, lasted)
            };
            assert!(!(0..10).any(|_| each(&mut fruitless)), "{brought}");
        }
    }

    #[test]
    fn what_is_no_stream_of_events_is_none() {
        for (said, brings) in [
            (Some("text/event-stream"), true),
            (Some("text/event-stream; charset=utf-8"), true),
            (Some("text/html"), false),
            (None, false),
        ] {
            let value = said.map(|said| (CONTENT_TYPE, HeaderValue::from_static(said)));
            assert_eq!(
                brings_events(&value.into_iter().collect()),
                brings,
                "{said:?}"
            );
        }
    }

    #[test]
    fn an_event_is_taken_apart() {
        assert_eq!(
            fields("id: 7\nevent: command\ndata: {\"a\":\ndata: 1}\n\n"),
            (Some("7".to_owned()), "{\"a\":\n1}".to_owned())
        );
        assert_eq!(fields(": heartbeat\n\n"), (None, String::new()));
    }
}
