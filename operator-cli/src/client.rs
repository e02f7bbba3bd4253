//! The REST API as typed calls; a refusal becomes a failure with the right exit code.

mod audit;
mod authorities;
mod certificates;
mod events;
mod look;
mod patience;
mod pins;
mod refusal;
mod route;
mod runs;
mod silence;
mod soundings;
mod telemetry;
mod tickets;
mod trust;

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;
use viworks_api::{
    CatalogueCommand, CatalogueList, DeadLetter, DeadLetterList, ForkList, ForkResolved, Gateway,
    GatewayKeyRotated, GatewayList, GatewayRevoked, OrphanList, Paged, ResolveForkRequest,
    RevokeRequest, Run,
};
use viworks_common::id::CommandId;
use viworks_runtime::config::environment;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files;

pub use self::audit::Sought;
pub use self::look::{Dialled, NotThere, Standing};
pub use self::runs::Results;
use self::silence::QUIET;
pub use self::telemetry::Numbers;
use crate::failure::{Failure, chain};

/// How long one ordinary request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the backend may send nothing at all, neither an event nor a heartbeat.
const SILENCE_MAX: Duration = Duration::from_secs(75);
/// What to do when nobody answers.
const UNREACHED: &str = "fix: is the backend running, and is this its address? To try it out, viworks up starts one on this machine";

/// Rows asked for on one page.
const PAGE: usize = 500;
/// As many rows as there are.
pub const ALL: usize = usize::MAX;

/// A connection to one backend with one key.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    server: String,
    token: Option<String>,
    /// What a person should know about the way there when it fails.
    way: Vec<String>,
    proxy: Option<route::Proxy>,
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
        let token = token_file.map(read_key).transpose()?;
        let environment = environment();
        let proxy = route::proxy(&url, &environment);
        let mut way = Vec::new();
        // The library reads no proxy from the environment by itself, and follows nobody to another address with the
        // key.
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
            proxy,
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
    pub async fn gateways(&self) -> Result<GatewayList, Failure> {
        self.list("/v1/gateways", &[], ALL).await
    }

    /// One gateway, by name or id.
    pub async fn gateway(&self, reference: &str) -> Result<Gateway, Failure> {
        self.get(&format!("/v1/gateways/{}", segment(reference)?), &[])
            .await
    }

    /// Throws a gateway out.
    pub async fn revoke_gateway(
        &self,
        reference: &str,
        reason: &str,
    ) -> Result<GatewayRevoked, Failure> {
        let path = format!("/v1/gateways/{}/revoke", segment(reference)?);
        let reason = reason.to_owned();
        let builder = self.request(Method::POST, &path);
        let revoked = self.answer(builder.json(&RevokeRequest { reason })).await;
        let unknown =
            "whether it was revoked is not known: revoke it again, which changes nothing more";
        revoked.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }

    /// Has a gateway given another key.
    pub async fn rotate_key(&self, reference: &str) -> Result<GatewayKeyRotated, Failure> {
        let path = format!("/v1/gateways/{}/rotate-key", segment(reference)?);
        let rotated = self.answer(self.request(Method::POST, &path)).await;
        let unknown = "whether a key was asked for is not known: viworks key status says so";
        rotated.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }

    /// Every second holder of a gateway's identity, the latest first.
    pub async fn forks(&self, reference: &str) -> Result<ForkList, Failure> {
        let path = format!("/v1/gateways/{}/forks", segment(reference)?);
        self.list(&path, &[], ALL).await
    }

    /// Decides between two holders of a gateway's identity.
    pub async fn resolve_fork(
        &self,
        reference: &str,
        decision: &ResolveForkRequest,
    ) -> Result<ForkResolved, Failure> {
        let path = format!("/v1/gateways/{}/forks/resolve", segment(reference)?);
        let builder = self.request(Method::POST, &path);
        let resolved = self.answer(builder.json(decision)).await;
        let unknown = "whether it was decided is not known: decide the same again, which changes nothing more";
        resolved.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }

    /// What a gateway reported of commands that the backend does not have, the latest first.
    pub async fn orphans(&self, reference: &str) -> Result<OrphanList, Failure> {
        let path = format!("/v1/gateways/{}/orphans", segment(reference)?);
        self.list(&path, &[], ALL).await
    }

    /// What may be run, and where.
    pub async fn catalogue(&self) -> Result<CatalogueList, Failure> {
        self.list("/v1/catalogue", &[], ALL).await
    }

    /// One command of the catalogue.
    pub async fn catalogue_command(&self, name: &str) -> Result<CatalogueCommand, Failure> {
        self.get(&format!("/v1/catalogue/{}", segment(name)?), &[])
            .await
    }

    /// Commands that could not be delivered, of one gateway or of all; with those that are decided about if `resolved`.
    pub async fn dead_letters(
        &self,
        gateway: Option<&str>,
        resolved: bool,
    ) -> Result<DeadLetterList, Failure> {
        let mut query = vec![("resolved", resolved.to_string())];
        query.extend(gateway.map(|gateway| ("gateway", gateway.to_owned())));
        self.list("/v1/dead-letters", &query, ALL).await
    }

    /// One of them.
    pub async fn dead_letter(&self, id: CommandId) -> Result<DeadLetter, Failure> {
        self.get(&format!("/v1/dead-letters/{id}"), &[]).await
    }

    /// Runs one again. Says whether that was done before.
    pub async fn retry_dead_letter(&self, id: CommandId) -> Result<(Run, bool), Failure> {
        let path = format!("/v1/dead-letters/{id}/retry");
        let retried = self.submitted(self.request(Method::POST, &path)).await;
        let unknown =
            "whether it was run again is not known: retry it once more, and it is not run twice";
        retried.map_err(|failure| failure.if_unanswered(unknown))
    }

    /// Marks one as done with.
    pub async fn discard_dead_letter(&self, id: CommandId) -> Result<DeadLetter, Failure> {
        let path = format!("/v1/dead-letters/{id}/discard");
        let discarded = self.answer(self.request(Method::POST, &path)).await;
        let unknown =
            "whether it was discarded is not known: discard it again, which changes nothing more";
        discarded.map_err(|failure: Failure| failure.if_unanswered(unknown))
    }

    /// Page after page, until there is none or `limit` rows are there; then it has the cursor of what follows.
    async fn list<L: Paged + DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        limit: usize,
    ) -> Result<L, Failure> {
        let page = |rows: usize, cursor: Option<&str>| {
            let mut query = query.to_vec();
            query.push(("limit", (limit - rows).min(PAGE).to_string()));
            query.extend(cursor.map(|cursor| ("cursor", cursor.to_owned())));
            query
        };
        let mut list: L = self.get(path, &page(0, None)).await?;
        while list.rows() < limit
            && let Some(cursor) = list.next()
        {
            let following = self.get(path, &page(list.rows(), Some(cursor))).await?;
            list.append(following);
        }
        Ok(list)
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
        self.answer(self.request(Method::GET, path).query(query))
            .await
    }

    async fn answer<T: DeserializeOwned>(&self, builder: RequestBuilder) -> Result<T, Failure> {
        let read = async |response| self.read(response).await;
        self.promptly(builder, read).await
    }

    /// Sends what is answered as soon as it is done.
    async fn promptly<T>(
        &self,
        builder: RequestBuilder,
        read: impl AsyncFnOnce(Response) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.within(QUIET, REQUEST_TIMEOUT, builder, read).await
    }

    /// Sends a request, and reads its answer within a limit of both; something is said as soon as it takes longer than
    /// expected.
    async fn within<T>(
        &self,
        expected: Duration,
        limit: Duration,
        builder: RequestBuilder,
        read: impl AsyncFnOnce(Response) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let answer = async { read(self.checked(builder.timeout(limit)).await?).await };
        self.with_word(expected, limit, answer).await
    }

    async fn checked(&self, builder: RequestBuilder) -> Result<Response, Failure> {
        let response = builder.send().await;
        let response = response.map_err(|error| self.unsent(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.unwrap_or_default();
        let refusal = refusal::read(status, &text);
        if refusal.problem.is_some() {
            return Err(refusal);
        }
        // Somebody else answered: whoever stands in between is worth a word.
        Err(self.with_way(refusal))
    }

    fn with_way(&self, failure: Failure) -> Failure {
        let words = self.way.iter();
        words.fold(failure, |failure, word| failure.with(word.clone()))
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let text = response.bytes().await.map_err(|error| self.lost(&error))?;
        serde_json::from_slice(&text).map_err(|error| {
            Failure::new(
                ExitCode::Error,
                format!("the backend's answer cannot be read: {error}"),
            )
        })
    }

    /// There is no answer: nobody was reached, or nobody who is believed, or it got lost.
    fn unsent(&self, error: &reqwest::Error) -> Failure {
        let unreached = |why: &str| {
            let what = format!("{} cannot be reached: {why}", self.server);
            self.with_way(Failure::new(ExitCode::Unavailable, what))
        };
        if let Some(trust::Untrusted { cause, fix }) = trust::untrusted(&self.server, error) {
            return unreached(&cause).with(format!("fix: {fix}"));
        }
        if !error.is_connect() && !error.is_builder() {
            return self.lost(error);
        }
        let fix = match &self.proxy {
            Some(proxy) => proxy.fix(),
            None => route::own_network(&self.server, error)
                .unwrap_or(&self.unreached)
                .to_owned(),
        };
        unreached(&causes(error)).with(fix)
    }

    /// It was reached, and its answer did not come, or not to its end.
    fn lost(&self, error: &reqwest::Error) -> Failure {
        if error.is_timeout() {
            return Failure::unanswered(format!(
                "{} was reached and did not answer in time",
                self.server
            ))
            .with("fix: it is there, and may be waiting for its database: its log, /readyz and /v1/health say so");
        }
        let failure = Failure::unanswered(format!(
            "{} was reached, and the connection was lost before its answer was there: {}",
            self.server,
            causes(error)
        ));
        self.with_way(failure)
            .with("fix: it, or a proxy in between, may have been restarted: try again, and look into their logs")
    }
}

/// The key in `file`.
fn read_key(file: &Path) -> Result<String, Failure> {
    let bytes = files::read_private(file).map_err(|error| {
        Failure::new(
            ExitCode::Config,
            format!("the API key cannot be used: {}", chain(&error)),
        )
        .with("fix: name the file that apikey create wrote, which only its owner may read: --token-file FILE (VIWORKS_TOKEN_FILE)")
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
    Ok(text.to_owned())
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
    fn what_is_typed_never_changes_the_path() {
        assert!(segment("gw-berlin").is_ok());
        for text in ["", "..", "a/b", "a?b", "a%2f", "a b"] {
            assert!(segment(text).is_err(), "{text:?}");
        }
    }
}
