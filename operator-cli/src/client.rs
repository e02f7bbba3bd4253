//! The REST API as typed calls; a refusal becomes a failure with the right exit code.

mod route;

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use viworks_api::{
    CatalogueCommand, CatalogueList, CommandList, CommandView, Fork, ForkList, Gateway,
    GatewayList, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED, OrphanList, OrphanResult, Problem,
    ProblemCode, Run, RunCancelled, RunEvent, RunList, RunPlan, RunRequest, RunWait,
    SkippedGateway, SkippedList, TelemetryGapList, TelemetryList, TelemetryRefusalList,
    TelemetryStreamList, WAIT_MS_MAX,
};
use viworks_common::id::{CommandId, RunId};
use viworks_runtime::config::environment;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

use crate::error::{Failure, chain};
use crate::output;

/// How long one ordinary request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the backend may send nothing at all, neither an event nor a heartbeat.
const SILENCE_MAX: Duration = Duration::from_secs(75);
/// What to do when nobody answers.
const UNREACHED: &str = "fix: is the backend running? viworks up starts one on this machine";
/// Items asked for on one page.
const PAGE: usize = 500;
/// Bytes of one server-sent event, far above what the backend sends.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// A connection to one backend with one key.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    server: String,
    token: Option<String>,
    /// What a person should know about the way there when it fails.
    way: Vec<String>,
    /// What to do when nobody answers there.
    unreached: String,
}

impl Client {
    /// A client for `server`, with the key in `token_file`. Over plain HTTP the key goes to this machine only, unless
    /// `allow_http`.
    pub fn new(server: &str, token_file: Option<&Path>, allow_http: bool) -> Result<Self, Failure> {
        let url = Url::parse(server)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some())
            .filter(|url| url.query().is_none() && url.fragment().is_none())
            .ok_or_else(|| {
                Failure::usage(format!("{server:?} is no address of a backend"))
                    .with("expected: http://HOST:PORT or https://HOST")
            })?;
        route::check_secrecy(&url, token_file.is_some(), allow_http)?;
        let token = match token_file {
            None => None,
            Some(file) => {
                let bytes = files::read_private(file).map_err(|error| {
                    Failure::new(
                        ExitCode::Config,
                        format!("the API key cannot be used: {}", chain(&error)),
                    )
                })?;
                let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
                // What a header takes, and one word: two lines or bytes of a picture are no key.
                if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(Failure::new(
                        ExitCode::Config,
                        format!("{} holds no API key", file.display()),
                    )
                    .with("fix: name the file that apikey create wrote: one line, vwk_… and nothing else"));
                }
                Some(text.to_owned())
            }
        };
        let environment = environment();
        let proxy = route::proxy(&url, &environment);
        let mut way = Vec::new();
        // The library reads no proxy from the environment by itself, and follows nobody to another address with the key.
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        if let Some(proxy) = &proxy {
            way.push(format!(
                "through the proxy {}; NO_PROXY={} reaches it directly",
                proxy.shown(),
                url.host_str().unwrap_or_default()
            ));
            builder = builder.proxy(reqwest::Proxy::all(&proxy.url).map_err(|_invalid| {
                Failure::new(
                    ExitCode::Config,
                    format!("{} names no proxy that can be used", proxy.variable),
                )
                .with("expected: http://HOST:PORT")
            })?);
        }
        let authorities = route::authorities(&environment);
        let verifies = route::verifies(&url, proxy.as_ref());
        if verifies {
            way.extend(
                authorities
                    .iter()
                    .map(|named| format!("{named} decides whose certificates are trusted")),
            );
        } else {
            // Nobody's certificate is looked at, so a machine that knows no authority at all will do.
            builder = builder.tls_certs_only([]);
        }
        let http = builder
            .connect_timeout(Duration::from_secs(10))
            // A stream of events has no end that could be waited for; one that is alive is never silent for so long.
            .read_timeout(SILENCE_MAX)
            .user_agent(concat!("viworks/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| route::not_built(&error, verifies, &authorities))?;
        Ok(Self {
            http,
            server: server.trim_end_matches('/').to_owned(),
            token,
            way,
            unreached: UNREACHED.to_owned(),
        })
    }

    /// The same where it is known better what to do when nobody answers.
    #[must_use]
    pub fn whose_silence_means(self, fix: String) -> Self {
        Self {
            unreached: fix,
            ..self
        }
    }

    /// All gateways.
    pub async fn gateways(&self) -> Result<Vec<Gateway>, Failure> {
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page: GatewayList = self.get("/v1/gateways", &paged(cursor, PAGE)).await?;
            all.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// One gateway, by name or id.
    pub async fn gateway(&self, reference: &str) -> Result<Gateway, Failure> {
        self.get(&format!("/v1/gateways/{}", segment(reference)?), &[])
            .await
    }

    /// Every second holder of a gateway's identity, the latest first.
    pub async fn forks(&self, reference: &str) -> Result<Vec<Fork>, Failure> {
        let path = format!("/v1/gateways/{}/forks", segment(reference)?);
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page: ForkList = self.get(&path, &paged(cursor, PAGE)).await?;
            all.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// What a gateway reported of commands that the backend does not have, the latest first.
    pub async fn orphans(&self, reference: &str) -> Result<Vec<OrphanResult>, Failure> {
        let path = format!("/v1/gateways/{}/orphans", segment(reference)?);
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page: OrphanList = self.get(&path, &paged(cursor, PAGE)).await?;
            all.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// What may be run, and where.
    pub async fn catalogue(&self) -> Result<CatalogueList, Failure> {
        let mut all = CatalogueList::new(Vec::new(), None);
        let mut cursor = None;
        loop {
            let page: CatalogueList = self.get("/v1/catalogue", &paged(cursor, PAGE)).await?;
            all.items.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// One command of the catalogue.
    pub async fn catalogue_command(&self, name: &str) -> Result<CatalogueCommand, Failure> {
        self.get(&format!("/v1/catalogue/{}", segment(name)?), &[])
            .await
    }

    /// Submits a run; with a key the submission is safe to repeat. Says whether it is the answer to an earlier one.
    pub async fn submit(
        &self,
        request: &RunRequest,
        idempotency_key: Option<&str>,
    ) -> Result<(Run, bool), Failure> {
        let mut builder = self.request(Method::POST, "/v1/runs").json(request);
        if let Some(key) = idempotency_key {
            builder = builder.header(IDEMPOTENCY_KEY, key);
        }
        let response = self.checked(builder.timeout(REQUEST_TIMEOUT)).await?;
        let replayed = response
            .headers()
            .get(IDEMPOTENCY_REPLAYED)
            .is_some_and(|value| value == "true");
        Ok((read(response).await?, replayed))
    }

    /// What a submission would do; nothing is run.
    pub async fn plan(&self, request: &RunRequest) -> Result<RunPlan, Failure> {
        let builder = self.request(Method::POST, "/v1/runs/plan").json(request);
        self.answer(builder.timeout(REQUEST_TIMEOUT)).await
    }

    /// The latest runs.
    pub async fn runs(&self, limit: usize) -> Result<Vec<Run>, Failure> {
        let mut all = Vec::new();
        let mut cursor = None;
        while all.len() < limit {
            let page: RunList = self
                .get("/v1/runs", &paged(cursor, (limit - all.len()).min(PAGE)))
                .await?;
            all.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(all)
    }

    /// One run.
    pub async fn run(&self, id: RunId) -> Result<Run, Failure> {
        self.get(&format!("/v1/runs/{id}"), &[]).await
    }

    /// The commands of a run, without their output.
    pub async fn run_commands(&self, id: RunId) -> Result<Vec<CommandView>, Failure> {
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page: CommandList = self
                .get(&format!("/v1/runs/{id}/commands"), &paged(cursor, PAGE))
                .await?;
            all.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// The gateways that a run was meant for and that got no command.
    pub async fn run_skipped(&self, run: &Run) -> Result<Vec<SkippedGateway>, Failure> {
        let mut all = Vec::new();
        let mut cursor = None;
        if run.skipped == 0 {
            return Ok(all);
        }
        loop {
            let page: SkippedList = self
                .get(
                    &format!("/v1/runs/{}/skipped", run.id),
                    &paged(cursor, PAGE),
                )
                .await?;
            all.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// One command with its retained output.
    pub async fn command(&self, run: RunId, command: CommandId) -> Result<CommandView, Failure> {
        self.get(&format!("/v1/runs/{run}/commands/{command}"), &[])
            .await
    }

    /// Asks for a run to be cancelled.
    pub async fn cancel(&self, id: RunId) -> Result<RunCancelled, Failure> {
        self.answer(
            self.request(Method::POST, &format!("/v1/runs/{id}/cancel"))
                .timeout(REQUEST_TIMEOUT),
        )
        .await
    }

    /// Waits until a run is finished, at most for `limit`.
    pub async fn wait(&self, id: RunId, limit: Duration) -> Result<RunWait, Failure> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let held = left.min(Duration::from_millis(WAIT_MS_MAX));
            let query = [("timeout_ms", held.as_millis().to_string())];
            let builder = self
                .request(Method::GET, &format!("/v1/runs/{id}/wait"))
                .query(&query);
            let answer: RunWait = self.answer(builder.timeout(held + REQUEST_TIMEOUT)).await?;
            if answer.finished || held == left {
                return Ok(answer);
            }
        }
    }

    /// Waits until a run is finished, through what passes.
    async fn wait_out(&self, id: RunId) -> Result<(), Failure> {
        let mut failed = 0_u32;
        loop {
            match self.wait(id, Duration::from_millis(WAIT_MS_MAX)).await {
                Ok(answer) if answer.finished => return Ok(()),
                Ok(_goes_on) => failed = 0,
                Err(failure) if failure.exit == ExitCode::Unavailable && failed < 5 => failed += 1,
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(Duration::from_millis(200 << failed)).await;
        }
    }

    /// Follows a run's events until it is finished; `handle` sees each.
    pub async fn follow(
        &self,
        id: RunId,
        mut handle: impl FnMut(RunEvent) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut last_id: Option<String> = None;
        let mut silent_attempts = 0_u32;
        loop {
            let mut builder = self.request(Method::GET, &format!("/v1/runs/{id}/events"));
            if let Some(id) = &last_id {
                builder = builder.header("last-event-id", id);
            }
            let before = last_id.clone();
            let ended = match self.checked(builder).await {
                Ok(response) => {
                    if self
                        .read_events(response, &mut last_id, &mut handle)
                        .await?
                    {
                        return Ok(());
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
            silent_attempts = if before == last_id {
                silent_attempts + 1
            } else {
                0
            };
            if silent_attempts > 5 {
                return Err(ended);
            }
            tokio::time::sleep(Duration::from_millis(200 << silent_attempts)).await;
        }
    }

    /// Whether the stream came to its proper end.
    async fn read_events(
        &self,
        response: Response,
        last_id: &mut Option<String>,
        handle: &mut impl FnMut(RunEvent) -> Result<(), Failure>,
    ) -> Result<bool, Failure> {
        let mut bytes = response.bytes_stream();
        let mut buffer: Vec<u8> = Vec::new();
        while let Some(chunk) = bytes.next().await {
            let Ok(chunk) = chunk else { return Ok(false) };
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
                    return Ok(true);
                }
            }
            if buffer.len() > EVENT_BYTES_MAX {
                return Err(Failure::new(
                    ExitCode::Error,
                    "the backend sent an event beyond every bound",
                ));
            }
        }
        Ok(false)
    }

    /// Telemetry records of one gateway.
    pub async fn telemetry(&self, query: &[(&str, String)]) -> Result<TelemetryList, Failure> {
        self.get("/v1/telemetry", query).await
    }

    /// The streams of one gateway.
    pub async fn telemetry_streams(&self, gateway: &str) -> Result<TelemetryStreamList, Failure> {
        let mut all = TelemetryStreamList::new(Vec::new(), None);
        let mut cursor = None;
        loop {
            let mut query = paged(cursor, PAGE);
            query.push(("gateway", gateway.to_owned()));
            let page: TelemetryStreamList = self.get("/v1/telemetry/streams", &query).await?;
            all.items.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// What was refused of one gateway's telemetry.
    pub async fn telemetry_refusals(&self, gateway: &str) -> Result<TelemetryRefusalList, Failure> {
        let mut all = TelemetryRefusalList::new(Vec::new(), None);
        let mut cursor = None;
        loop {
            let mut query = paged(cursor, PAGE);
            query.push(("gateway", gateway.to_owned()));
            let page: TelemetryRefusalList = self.get("/v1/telemetry/refusals", &query).await?;
            all.items.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    /// The reported gaps of one gateway.
    pub async fn telemetry_gaps(&self, gateway: &str) -> Result<TelemetryGapList, Failure> {
        let mut all = TelemetryGapList::new(Vec::new(), None);
        let mut cursor = None;
        loop {
            let mut query = paged(cursor, PAGE);
            query.push(("gateway", gateway.to_owned()));
            let page: TelemetryGapList = self.get("/v1/telemetry/gaps", &query).await?;
            all.items.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let builder = self.http.request(method, format!("{}{path}", self.server));
        match &self.token {
            Some(token) => builder.bearer_auth(token),
            None => builder,
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, Failure> {
        self.answer(
            self.request(Method::GET, path)
                .query(query)
                .timeout(REQUEST_TIMEOUT),
        )
        .await
    }

    async fn answer<T: DeserializeOwned>(&self, builder: RequestBuilder) -> Result<T, Failure> {
        read(self.checked(builder).await?).await
    }

    async fn checked(&self, builder: RequestBuilder) -> Result<Response, Failure> {
        let response = builder.send().await.map_err(|error| {
            let failure = Failure::new(
                ExitCode::Unavailable,
                format!("{} cannot be reached: {}", self.server, causes(&error)),
            );
            self.way
                .iter()
                .fold(failure, |failure, word| failure.with(word.clone()))
                .with(route::own_network(&self.server, &error).unwrap_or(&self.unreached))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let refusal = refusal(status, &text);
        if refusal.problem.is_some() {
            return Err(refusal);
        }
        // Somebody else answered: whoever stands in between is worth a word.
        Err(self
            .way
            .iter()
            .fold(refusal, |refusal, word| refusal.with(word.clone())))
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    response.json().await.map_err(|error| {
        Failure::new(
            ExitCode::Error,
            format!("the backend's answer cannot be read: {}", causes(&error)),
        )
    })
}

fn paged(cursor: Option<String>, limit: usize) -> Vec<(&'static str, String)> {
    let mut query = vec![("limit", limit.to_string())];
    query.extend(cursor.map(|cursor| ("cursor", cursor)));
    query
}

/// A path segment: names and ids only, so that nothing typed changes the path.
fn segment(text: &str) -> Result<&str, Failure> {
    if !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !text.starts_with('.')
    {
        Ok(text)
    } else {
        Err(Failure::usage(format!(
            "{text:?} is neither a name nor an id"
        )))
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

fn refusal(status: StatusCode, text: &str) -> Failure {
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
            // What was named does not exist, or nothing was meant at all.
            let absent = ["VW-C-001", "VW-C-003", "VW-C-004"].contains(&problem.code.as_str());
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

fn causes(error: &dyn std::error::Error) -> String {
    // The last cause says what happened; those before it say which call failed.
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_taken_apart() {
        assert_eq!(
            fields("id: 7\nevent: command\ndata: {\"a\":\ndata: 1}\n\n"),
            (Some("7".to_owned()), "{\"a\":\n1}".to_owned())
        );
        assert_eq!(fields(": heartbeat\n\n"), (None, String::new()));
    }

    #[test]
    fn what_is_typed_never_changes_the_path() {
        assert!(segment("gw-berlin").is_ok());
        for text in ["", "..", "a/b", "a?b", "a%2f", "a b"] {
            assert!(segment(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_target_that_does_not_exist_is_not_found() {
        let problem = |code: &str| {
            serde_json::json!({
                "type": "urn:viworks:error", "title": "T", "status": 422, "code": code, "detail": "d", "request_id": "r"
            })
            .to_string()
        };
        let exit = |code| refusal(StatusCode::UNPROCESSABLE_ENTITY, &problem(code)).exit;
        assert_eq!(exit("VW-C-004"), ExitCode::NotFound);
        assert_eq!(exit("VW-C-002"), ExitCode::Usage);
        assert_eq!(exit("VW-C-007"), ExitCode::Conflict);
    }

    #[test]
    fn a_refusal_without_a_problem_document_is_still_classified() {
        assert_eq!(
            refusal(StatusCode::FORBIDDEN, "<html>").exit,
            ExitCode::Forbidden
        );
        assert_eq!(
            refusal(StatusCode::BAD_GATEWAY, "").exit,
            ExitCode::Unavailable
        );
    }
}
