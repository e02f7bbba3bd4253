//! A door whose words are of a later version: they are told at once, and what the backend made is not lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use uuid::Uuid;
use viworks_common::enrolment::{
    EnrolmentChallenge, Exchange, Home, PROOF_HEADER, Ticket, WireChallenge, configuration,
};
use viworks_common::id::{InstallId, TicketId};
use viworks_common::key::{BindingMode, Secret};
use viworks_common::pin::SpkiPin;
use viworks_gateway_agent::enrol::{EnrolError, Machine, redeem};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::lifecycle::Lifecycle;
use viworks_runtime::tls::{self, Identity};

/// Far above what any of these takes.
const PATIENCE: Duration = Duration::from_secs(30);

const CHALLENGE: WireChallenge = WireChallenge([3; 32]);

/// What a backend of this version could answer, but for the form of what is sealed.
fn answer() -> Value {
    json!({
        "tenant": "default",
        "agent_id": "01900000-0000-7000-8000-000000000007",
        "name": "gw-1",
        "trust_domain": "viworks.test",
        "certificate": "certificate",
        "not_after": SystemClock.wall(),
        "authority": "authority",
        "key_generation": 1,
        "sealed": "sealed in another way",
        "pins": {"version": 1, "pins": []},
        "binding": "exporter",
        "labels": {},
        "url": "wss://127.0.0.1:1/agent/v1/connect",
    })
}

/// Asked for a challenge, and for the redemption.
struct Said {
    challenge: Vec<u8>,
    answer: Vec<u8>,
}

impl Said {
    fn new(challenge: &Value, answer: &Value) -> Self {
        let [challenge, answer] = [challenge, answer].map(|body| body.to_string().into_bytes());
        Self { challenge, answer }
    }
}

fn challenge() -> Value {
    let challenge = EnrolmentChallenge {
        challenge: CHALLENGE,
        time: SystemClock.wall(),
    };
    serde_json::to_value(challenge).unwrap()
}

/// The body of the next request.
async fn request(stream: &mut TlsStream<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let mut lines = head.lines();
    let length = lines.find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn respond(
    stream: &mut TlsStream<TcpStream>,
    body: &[u8],
    proof: &str,
) -> std::io::Result<()> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{PROOF_HEADER}: {proof}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await
}

async fn serve(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    exchange: &Exchange,
    said: &Said,
) -> std::io::Result<()> {
    let mut stream = TlsAcceptor::from(config).accept(tcp).await?;
    request(&mut stream).await?;
    respond(&mut stream, &said.challenge, "").await?;
    let asked = request(&mut stream).await?;
    let proof = exchange.authenticate(&asked, &said.answer);
    respond(&mut stream, &said.answer, &proof).await
}

/// What a machine with the ticket of that door ends with, and how often it was going to try again.
async fn ended(said: Said) -> (EnrolError, usize) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["door.test".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let pin = SpkiPin::from_digest(tls::spki_sha256(&certificate).unwrap());
    let identity = Identity {
        chain: vec![certificate],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    };
    let config = tls::open_server_config(identity).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ticket = Ticket {
        id: TicketId::from_uuid(Uuid::from_u128(1)),
        secret: Secret::from_bytes([2; 32]),
        expires_at: SystemClock.wall().saturating_add(PATIENCE),
        pins: BTreeSet::from([pin]),
        url: format!("https://{}", listener.local_addr().unwrap()),
    };
    let exchange = Exchange::new(&ticket.secret, ticket.id, &CHALLENGE);
    let lifecycle = Lifecycle::new();
    lifecycle.spawn("door", async move {
        while let Ok((tcp, _address)) = listener.accept().await {
            // A machine that has read enough hangs up.
            drop(serve(tcp, Arc::clone(&config), &exchange, &said).await);
        }
    });
    let machine = Machine {
        csr: "a request".to_owned(),
        install_id: InstallId::from_uuid(Uuid::from_u128(1)),
        name: None,
        host: "edge-7".to_owned(),
    };
    let mut pauses = 0;
    let redeemed = redeem(&ticket, &machine, PATIENCE, |_error| pauses += 1).await;
    lifecycle.abort();
    lifecycle.shutdown(Duration::ZERO).await;
    (redeemed.unwrap_err(), pauses)
}

#[tokio::test]
async fn an_authentic_answer_that_cannot_be_read_is_told_at_once_and_keeps_the_key() {
    let later = json!({"gateway": {"name": "gw-1"}});
    for (answer, why) in [
        (later, "missing field `tenant`"),
        (answer(), "128 hexadecimal digits"),
    ] {
        let (error, pauses) = ended(Said::new(&challenge(), &answer)).await;
        assert!(matches!(error, EnrolError::UnreadAnswer { .. }), "{error}");
        assert_eq!(pauses, 0, "{error}");
        assert!(error.may_be_done(), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Unavailable, "{error}");
        let told = error.to_string();
        for words in [
            why,
            "has made the gateway",
            "later version",
            "the same ticket",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
    }
}

#[tokio::test]
async fn a_challenge_that_cannot_be_read_is_told_at_once_and_leaves_no_doubt() {
    let (error, pauses) = ended(Said::new(&json!({"nonce": "03"}), &answer())).await;
    let is_told = matches!(error, EnrolError::UnreadChallenge { .. });
    assert!(is_told, "{error}");
    assert_eq!(pauses, 0, "{error}");
    assert!(!error.may_be_done(), "{error}");
    assert_eq!(error.exit_code(), ExitCode::Unavailable, "{error}");
    let told = error.to_string();
    for words in [
        "missing field `challenge`",
        "this attempt asked for nothing",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[tokio::test]
async fn an_authentic_answer_with_which_no_agent_could_start_is_refused_and_keeps_the_key() {
    let pin = SpkiPin::from_digest([5; 32]);
    let forged = "wss://a.test\"\nserver_name = \"b.test\"\n# ";
    for (key, value, why) in [
        ("url", json!(forged), "no usable host"),
        ("url", json!("http://a.test"), "http:// cannot be used here"),
        ("url", json!("ws://a.test"), "is not encrypted"),
        ("pins", json!({"version": 1, "pins": []}), "pins"),
        ("labels", json!({"site": "\u{1b}[31mred"}), "label value"),
        ("labels", json!({"a=b": "c"}), "label key"),
        ("labels", json!({"site": "a\nb"}), "label value"),
        ("certificate", json!("-----"), "has no certificate in it"),
    ] {
        let mut said = answer();
        // Any digits open to some secrets.
        said["sealed"] = json!("0".repeat(128));
        said["pins"] = json!({"version": 1, "pins": [pin]});
        said[key] = value;
        let (error, pauses) = ended(Said::new(&challenge(), &said)).await;
        let is_told = matches!(error, EnrolError::UnusableAnswer { .. });
        assert!(is_told, "{key}: {error}");
        assert_eq!(pauses, 0, "{error}");
        assert!(error.may_be_done(), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Unavailable, "{error}");
        let told = error.to_string();
        for words in [why, "has made the gateway", "the same ticket"] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert!(!told.contains(char::is_control), "{told:?}");
    }
}

/// Any text, above all what means something in TOML.
fn any_text() -> impl Strategy<Value = String> {
    let special = vec![
        '"', '\\', '\'', '#', '=', '[', ']', '\n', '\r', '\t', '\0', '\u{7f}', '\u{85}',
    ];
    let character = prop_oneof![prop::sample::select(special), any::<char>()];
    prop::collection::vec(character, 0..40).prop_map(String::from_iter)
}

fn read(url: &str, door: &str, home: Home) -> toml::Table {
    let pins = [SpkiPin::from_digest([5; 32])];
    let written = configuration(url, Some(door), &pins, BindingMode::Exporter, home);
    toml::from_str(&written).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_into_a_configuration_is_read_as_that_and_changes_nothing_else(
        url in any_text(), door in any_text(),
    ) {
        for home in [Home::Folder, Home::Demo, Home::Installed] {
            let mut wanted = read("wss://a.test", "https://a.test", home);
            wanted["outbound"]["url"] = toml::Value::String(url.clone());
            wanted["outbound"]["door_url"] = toml::Value::String(door.clone());
            prop_assert_eq!(read(&url, &door, home), wanted);
        }
    }
}
