//! `viworks doctor`: of every way in which an operator cannot use a backend it names the first cause and what to do,
//! within five seconds.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Said, eventually, finish};
use viworks_testkit::proxy::{Ear, Heard, Network, Proxy};

use super::desk::viworks;

mod others;

use others::{Life, Site, says, tls_before};

/// What is promised.
const IN_TIME: Duration = Duration::from_secs(5);

/// A way in which it goes wrong, and what has to be said of it.
#[derive(Debug, Clone)]
struct Case {
    name: &'static str,
    server: String,
    /// The file of the key, in the system's folder.
    key: &'static str,
    variables: Vec<(&'static str, String)>,
    step: &'static str,
    code: i32,
    cause: &'static str,
    fix: &'static str,
}

impl Case {
    fn at(name: &'static str, server: &str) -> Self {
        Self {
            name,
            server: server.to_owned(),
            key: "operator.key",
            variables: Vec::new(),
            step: "",
            code: 0,
            cause: "",
            fix: "",
        }
    }

    fn key(self, key: &'static str) -> Self {
        Self { key, ..self }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// What is the cause, at which step, and a word of the fix.
    fn is(self, step: &'static str, code: i32, cause: &'static str, fix: &'static str) -> Self {
        Self {
            step,
            code,
            cause,
            fix,
            ..self
        }
    }

    fn command(&self, system: &Deployment) -> Command {
        let token = system.path().join(self.key);
        let mut command = viworks(system, &token, &["doctor", "-o", "json"]);
        for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        for name in [
            "http_proxy",
            "no_proxy",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
        ] {
            command.env_remove(name);
        }
        command.env("VIWORKS_SERVER", &self.server);
        if self.key.is_empty() {
            command.env_remove("VIWORKS_TOKEN_FILE");
        }
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command
    }

    async fn walk(&self, system: &Deployment) -> Said {
        finish(self.command(system), PATIENCE).await
    }

    async fn hold(&self, system: &Deployment) {
        let said = self.walk(system).await;
        let name = self.name;
        assert_eq!(said.code, Some(self.code), "{name}: {said:#?}");
        assert!(said.took < IN_TIME, "{name} took {:?}", said.took);
        let told = said.json();
        assert_eq!(told["step"], self.step, "{name}: {told:#}");
        for (part, words) in [("cause", self.cause), ("fix", self.fix)] {
            let text = told[part].as_str().unwrap();
            assert!(!text.is_empty(), "{name} has no {part}: {told:#}");
            assert!(text.contains(words), "{name}: {words}: {told:#}");
        }
    }
}

async fn hold(system: &Deployment, cases: &[Case]) {
    for case in cases {
        case.hold(system).await;
    }
}

/// The warnings of a walk that came to its end.
fn warnings(said: &Said) -> String {
    let told = said.json();
    let steps = told["steps"].as_array().unwrap().iter();
    let warned = steps.filter(|step| step["status"] == "warn");
    warned.map(Value::to_string).collect::<Vec<_>>().join("\n")
}

/// Writes a file that only its owner can read.
fn private(system: &Deployment, name: &str, text: &str) -> PathBuf {
    let path = system.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Makes a key in a file and gives its id.
async fn key(
    system: &Deployment,
    file: &str,
    scopes: &[&str],
    expires_in_ms: Option<u64>,
) -> String {
    let mut wanted = json!({"name": file, "scopes": scopes});
    if let Some(end) = expires_in_ms {
        wanted["expires_in_ms"] = json!(end);
    }
    let made = system.post("/v1/apikeys", &wanted).await;
    let _path = private(system, file, made["secret"].as_str().unwrap());
    made["key"]["id"].as_str().unwrap().to_owned()
}

/// An address where nobody listens.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

async fn started() -> Deployment {
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(Start::default()).await;
    system
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_machine_is_set_up_with_is_named() {
    let system = started().await;
    let api = system.api_url();
    let secret = std::fs::read_to_string(system.path().join("operator.key")).unwrap();
    let _open = private(&system, "open.key", &secret);
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(system.path().join("open.key"), mode).unwrap();
    let _two = private(&system, "two.key", &format!("{secret}\n{secret}\n"));
    let at = |name| Case::at(name, &api);
    hold(
        &system,
        &[
            Case::at("nobody is named", "").is("context", 2, "no backend was named", "--server"),
            Case::at("no address", "127.0.0.1:8080").is("context", 2, "no address", "http://HOST"),
            at("a context that is not there")
                .with("VIWORKS_CONTEXT", "elsewhere")
                .is("context", 5, "no context \"elsewhere\"", "viworks up"),
            at("no file of a key")
                .key("nothing.key")
                .is("context", 78, "API key", "apikey create"),
            at("a key for all to read").key("open.key").is(
                "context",
                78,
                "open.key",
                "only its owner",
            ),
            at("two keys in a file").key("two.key").is(
                "context",
                78,
                "holds no API key",
                "one line",
            ),
            Case::at("a key in clear", "http://backend.example").is(
                "context",
                2,
                "unencrypted",
                "https://",
            ),
            Case::at("no authority at all", "https://127.0.0.1:1")
                .with("SSL_CERT_FILE", "/nowhere")
                .is(
                    "context",
                    78,
                    "no certificate authority",
                    "SSL_CERT_FILE=/nowhere",
                ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_reached_or_is_somebody_else_is_named() {
    let system = started().await;
    let api = system.api_url().replace("http://", "");
    let silent = Proxy::before(api).await.unwrap();
    silent.set(Network::HalfOpen);
    let http = |address: &str| format!("http://{address}");
    let refused = closed();
    let answers = |status: &str, more: &str, body: &str| says(&format!("{status}\r\n{more}"), body);
    let welcome = answers("200 OK", "", "<html>Welcome to nginx!</html>");
    let login = answers("302 Found", "location: https://login.example/\r\n", "");
    let gone = answers("502 Bad Gateway", "", "<html>");
    let other = answers("404 Not Found", "", "<html>");
    let asks = answers("407 Proxy Authentication Required", "", "");
    let proxied = |name, proxy: &str| {
        Case::at(name, "https://backend.example").with("https_proxy", format!("http://{proxy}"))
    };
    hold(
        &system,
        &[
            Case::at("a name that is none", "https://nowhere.invalid").is(
                "dns",
                69,
                "could not be resolved",
                "DNS",
            ),
            Case::at("nobody listens", &http(&refused)).is(
                "tcp",
                69,
                "refused",
                "is the backend running",
            ),
            Case::at("it says nothing", &http(&silent.address())).is(
                "api",
                69,
                "did not answer in time",
                "its log",
            ),
            Case::at("the gateways' port", &http(system.agents_address())).is(
                "api",
                69,
                "connection was lost",
                "another one than operators",
            ),
            Case::at("a web server", &http(&welcome)).is(
                "api",
                69,
                "does not look like",
                "--server",
            ),
            Case::at("a login page", &http(&login)).is("api", 69, "login.example", "sends to"),
            Case::at("a proxy without backend", &http(&gone)).is(
                "api",
                69,
                "502",
                "start the backend",
            ),
            Case::at("another service", &http(&other)).is("api", 5, "404", "--server"),
            proxied("a proxy that is away", &refused).is("tcp", 69, "refused", "https_proxy"),
            proxied("a proxy whose name is none", "nowhere.invalid:3128").is(
                "dns",
                69,
                "the proxy's name",
                "https_proxy",
            ),
            proxied("a proxy that asks who it is", &asks).is(
                "api",
                69,
                "through the proxy",
                "NO_PROXY",
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_believed_is_named_with_the_reason() {
    let system = started().await;
    let api = system.api_url().replace("http://", "");
    let (site, foreign) = (Site::new(), Site::new());
    let authority = private(&system, "site.crt", &site.authority());
    let own = private(&system, "other.crt", &foreign.authority());
    let front = async |name: &str, life: Life| {
        let server = site.server(name, life);
        format!("https://{}", tls_before(&api, server).await)
    };
    let good = front("127.0.0.1", Life::Good).await;
    let trusting =
        |name, server: &str| Case::at(name, server).with("SSL_CERT_FILE", text(&authority));
    let well = trusting("a good one", &good)
        .walk(&system)
        .await
        .ended_with(0);
    assert!(
        well.stdout.contains("the certificate is believed"),
        "{well:#?}"
    );
    let over = front("127.0.0.1", Life::Over).await;
    let early = front("127.0.0.1", Life::Early).await;
    let named = front("backend.example", Life::Good).await;
    let gateways = format!("https://{}", system.agents_address());
    // The word by which it breaks off is overtaken by the end of the connection, twice.
    let connections = AtomicU32::new(0);
    let ears = move || -> Box<dyn Ear> {
        let overtakes = connections.fetch_add(1, Ordering::Relaxed);
        Box::new(Overtaken {
            pieces: 0,
            // Whether it can be reached at all is looked at before that.
            is_meant: (1..=2).contains(&overtakes),
        })
    };
    let far = Proxy::listening(system.agents_address(), ears).await;
    let far = far.unwrap();
    let overtaken = format!("https://{}", far.address());
    let backend = system.path().join("backend/ca.crt");
    hold(
        &system,
        &[
            Case::at("an authority of another site", &good)
                .with("SSL_CERT_FILE", text(&own))
                .is("tls", 69, "does not trust", "SSL_CERT_FILE=ca.crt"),
            trusting("one that is over", &over).is("tls", 69, "ended at", "this machine's clock"),
            trusting("one of tomorrow", &early).is(
                "tls",
                69,
                "is valid from",
                "this machine's clock",
            ),
            trusting("one for another name", &named).is(
                "tls",
                69,
                "for backend.example and not for 127.0.0.1",
                "a name that is in the certificate",
            ),
            trusting("TLS where none is", &format!("https://{api}")).is(
                "tls",
                69,
                "speaks no TLS",
                "http://",
            ),
            Case::at("the gateways' port, trusted", &gateways)
                .with("SSL_CERT_FILE", text(&backend))
                .is("tls", 69, "broke TLS off", "another one than operators"),
            Case::at("the gateways' port, far away", &overtaken)
                .with("SSL_CERT_FILE", text(&backend))
                .is("tls", 69, "broke TLS off", "another one than operators"),
        ],
    )
    .await;
}

/// A client's connection that ends once its own part of the handshake, what it says second, is over.
struct Overtaken {
    pieces: u32,
    is_meant: bool,
}

impl Ear for Overtaken {
    fn heard(&mut self, _said: &[u8]) -> Heard {
        self.pieces += 1;
        if self.is_meant && self.pieces > 1 {
            Heard::Last
        } else {
            Heard::Pass
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_opens_nothing_and_a_backend_that_is_not_well_are_named() {
    let system = started().await;
    let api = system.api_url();
    let _few = key(&system, "few.key", &["runs:read"], None).await;
    let _over = key(&system, "over.key", &["health:read"], Some(1)).await;
    let revoked = key(&system, "revoked.key", &["health:read"], None).await;
    let path = format!("/v1/apikeys/{revoked}");
    let (status, _nothing) = system.request("DELETE", &path, None).await.unwrap();
    assert_eq!(status, 204);
    let secret = std::fs::read_to_string(system.path().join("few.key")).unwrap();
    let (body, _end) = secret.split_at(secret.len() - 8);
    let _wrong = private(&system, "wrong.key", &format!("{body}00000000"));
    let at = |name| Case::at(name, &api);
    let refused = |name, key| {
        at(name)
            .key(key)
            .is("key", 4, "not authenticated", "neither expired")
    };
    hold(
        &system,
        &[
            at("no key")
                .key("")
                .is("key", 4, "no key is sent", "--token-file"),
            refused("a wrong key", "wrong.key"),
            refused("a key that was revoked", "revoked.key"),
            refused("a key that is over", "over.key"),
        ],
    )
    .await;
    let few = at("a key that may little").key("few.key");
    let said = few.walk(&system).await.ended_with(0);
    assert!(warnings(&said).contains("health:read"), "{said:#?}");

    let (state, aside) = (
        system.path().join("backend/state"),
        system.path().join("backend/aside"),
    );
    std::fs::rename(&state, &aside).unwrap();
    eventually("it is not ready", PATIENCE, async || {
        let answer = system.request("GET", "/readyz", None).await;
        (answer.ok()?.0 == 503).then_some(())
    })
    .await;
    hold(
        &system,
        &[
            at("a store that fails").is("health", 20, "store", "put it back"),
            few.is("health", 20, "not ready", "health:read"),
        ],
    )
    .await;
    std::fs::rename(&aside, &state).unwrap();
}

/// A key that nobody has used yet is looked up in the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_says_nothing_is_not_the_fault_of_the_key() {
    let Some(own) = Own::start() else { return };
    own.server().make_empty("viworks");
    let server = format!("127.0.0.1:{}", own.server().port());
    let proxy = Proxy::before(server).await.unwrap();
    let database = own.server().database("viworks").behind(proxy.port());
    let mut system = Deployment::on(Binaries::shipped(), database);
    system.start_backend(Start::default()).await;
    let _fresh = key(&system, "fresh.key", &["health:read"], None).await;
    let case = Case::at("a database that says nothing", &system.api_url())
        .key("fresh.key")
        .is("health", 69, "wait for its database", "runs and answers");
    proxy.set(Network::HalfOpen);
    case.hold(&system).await;
    proxy.set(Network::Normal);
    eventually("the key is taken", PATIENCE, async || {
        (case.walk(&system).await.code == Some(0)).then_some(())
    })
    .await;
    assert!(system.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_is_well_and_what_somebody_should_look_at_is_told() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let case = Case::at("all is well", &system.api_url());
    let token = system.path().join("operator.key");
    let alone = finish(viworks(&system, &token, &["doctor"]), PATIENCE).await;
    let alone = alone.ended_with(0);
    for words in [
        "1 gateway has never connected: gw-1",
        "viworks-gateway-agent doctor",
        "1 thing above is to be looked at; nothing else is in the way",
    ] {
        assert!(alone.stdout.contains(words), "{words}: {alone:#?}");
    }
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let well = case.walk(&system).await.ended_with(0);
    assert_eq!(well.json()["status"], "pass", "{well:#?}");
    assert_eq!(warnings(&well), "");
    let shown = well.json()["steps"].to_string();
    for words in [
        "1 of 1 online",
        "is ready",
        "the key is taken",
        // Its time is told in whole seconds.
        "clock is ",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    // For people.
    let plain = finish(viworks(&system, &token, &["doctor"]), PATIENCE).await;
    let plain = plain.ended_with(0);
    assert!(
        plain.stdout.ends_with("Result: all is well\n"),
        "{plain:#?}"
    );

    drop(gateway);
    let away = eventually("the gateway is away", PATIENCE, async || {
        let said = case.walk(&system).await;
        said.stdout.contains("gw-1 is offline").then_some(said)
    })
    .await;
    let told = warnings(&away);
    assert!(
        told.contains("on gw-1: viworks-gateway-agent doctor"),
        "{told}"
    );

    // Somebody whose clock stands still since a day in March.
    let old = says(
        "503 Service Unavailable\r\ndate: Mon, 02 Mar 2026 08:00:10 GMT\r\n",
        "not ready\n",
    );
    let said = Case::at("a clock that is off", &format!("http://{old}"))
        .walk(&system)
        .await;
    let told = warnings(&said);
    assert!(told.contains("ahead of the server's"), "{told}");
    assert!(told.contains("chrony"), "{told}");
}
