//! The check of the door by which machines become gateways, as a machine with a mistyped ticket meets it.

use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use viworks_common::enrolment::{
    EnrolmentChallenge, EnrolmentRequest, Exchange, PATH, PROOF_HEADER, RedeemRequest,
};
use viworks_common::human;
use viworks_common::id::{InstallId, TicketId};
use viworks_common::key::Secret;
use viworks_common::pin::SpkiPin;
use viworks_runtime::{random, tls};

use super::papers::Papers;
use super::report::Finding;
use super::wire::{self, Refused, Shown};

/// How long the door may take for one request.
const PATIENCE: Duration = Duration::from_secs(15);
/// More than any answer has.
const ANSWER_BYTES_MAX: u64 = 64 * 1_024;
/// How a redemption is refused whose ticket is mistyped.
const BAD_PROOF: &str = "bad_proof";

/// Where to look when the door is not as it should be.
const FIX: &str = "compare [enrolment] of the backend's configuration, and whoever passes TLS through in front of it";

/// An answer of the door.
struct Answer {
    status: u16,
    body: Value,
    /// The key that was shown.
    pin: Option<SpkiPin>,
}

/// It shows a pinned key, gives a challenge, and lets nobody in whose ticket it does not know.
pub(super) async fn enrolment(papers: &Papers, named: Option<&str>) -> Finding {
    let Some(url) = named.or(papers.door_url.as_deref()) else {
        return Finding::Skipped(
            "no address of the door is known: --door https://HOST:PORT".to_owned(),
        );
    };
    let Some(place) = place(url) else {
        let reason = format!("{url:?} is no address of a door");
        return Finding::fail(
            "not tried",
            reason,
            "--door https://HOST:PORT, and nothing behind",
        );
    };
    match mistyped(papers, &place).await {
        Ok(finding) => finding,
        Err(refused) => {
            let reason = format!("no machine can enrol at {url}");
            Finding::fail(refused.words(), reason, FIX)
        }
    }
}

/// Host and port of a door.
fn place(url: &str) -> Option<(String, u16)> {
    let url = Url::parse(url).ok()?;
    let is_door = url.scheme() == "https"
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none();
    let host = url.host_str().filter(|_host| is_door)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), url.port_or_known_default()?))
}

/// Asks for a challenge, and redeems a ticket that nobody made.
async fn mistyped(papers: &Papers, place: &(String, u16)) -> Result<Finding, Refused> {
    let begun = Instant::now();
    let ticket = TicketId::from_uuid(random::uuid_v4());
    let asked = ask(papers, place, &EnrolmentRequest::Challenge { ticket }, None).await?;
    let took = begun.elapsed();
    let count = papers.pins.len();
    if !asked.pin.is_some_and(|pin| papers.pins.contains(&pin)) {
        let seen = asked.pin.map_or_else(String::new, |pin| pin.to_string());
        return Ok(Finding::fail(
            format!("key {seen}"),
            format!(
                "the door shows a key that is none of the {count} pinned ones: whoever enrols ends there"
            ),
            "the door has the key of [agents]: pass TLS through to it, and end it nowhere before",
        ));
    }
    let challenge = match serde_json::from_value(asked.body) {
        Ok(EnrolmentChallenge { challenge, .. }) if asked.status == 200 => challenge,
        Ok(_) | Err(_) => {
            let measured = format!("HTTP {} to the first request", asked.status);
            return Ok(Finding::fail(measured, "the door gives no challenge", FIX));
        }
    };
    let Ok(agent_version) = concat!("validation/", env!("CARGO_PKG_VERSION")).parse() else {
        return Ok(Finding::fail(
            "not tried",
            "this version has no name",
            "report it",
        ));
    };
    let exchange = Exchange::new(&Secret::from_bytes(random::bytes()), ticket, &challenge);
    let redeem = EnrolmentRequest::Redeem(RedeemRequest {
        ticket,
        challenge,
        // The proof is looked at before this is.
        csr: String::new(),
        install_id: InstallId::from_uuid(random::uuid_v4()),
        name: None,
        host: "validation".to_owned(),
        agent_version,
    });
    let refused = ask(papers, place, &redeem, Some(&exchange)).await?;
    Ok(judged(&refused, took, count))
}

fn judged(refused: &Answer, took: Duration, pins: usize) -> Finding {
    let code = refused.body["code"].as_str().unwrap_or("no code");
    let measured = format!("a mistyped ticket: HTTP {} {code}", refused.status);
    match (refused.status, code) {
        (403, BAD_PROOF) => Finding::Pass(format!(
            "one of {} shown, challenge after {} ms, a mistyped ticket refused ({code})",
            human::counted(pins, "pin", "pins"),
            took.as_millis()
        )),
        (200..300, _) => Finding::fail(
            measured,
            "a machine was let in with a ticket that nobody made",
            "this door is not safe to use: close it, and report it",
        ),
        (_, _) => {
            let reason = "it was not let in, and nobody said that it is for the ticket";
            Finding::fail(measured, reason, FIX)
        }
    }
}

async fn ask(
    papers: &Papers,
    place: &(String, u16),
    request: &EnrolmentRequest,
    exchange: Option<&Exchange>,
) -> Result<Answer, Refused> {
    let asked = timeout(PATIENCE, asked(papers, place, request, exchange)).await;
    asked.unwrap_or(Err(Refused::Cut))
}

async fn asked(
    papers: &Papers,
    (host, port): &(String, u16),
    request: &EnrolmentRequest,
    exchange: Option<&Exchange>,
) -> Result<Answer, Refused> {
    let body = serde_json::to_vec(request).map_err(|error| Refused::Tls(error.to_string()))?;
    let tcp = TcpStream::connect((host.as_str(), *port)).await;
    let tcp = tcp.map_err(|error| Refused::Tcp(error.to_string()))?;
    let config = wire::config(papers, Shown::Nothing).map_err(Refused::Tls)?;
    let name = ServerName::try_from(host.clone());
    let name = name.map_err(|error| Refused::Tls(error.to_string()))?;
    let stream = TlsConnector::from(config).connect(name, tcp).await;
    let mut stream = stream.map_err(|error| wire::of_tls(&error))?;
    let leaf = stream.get_ref().1.peer_certificates();
    let leaf = leaf.and_then(<[_]>::first);
    let pin = leaf.and_then(|leaf| tls::spki_sha256(leaf).ok());
    let proof = exchange.map_or_else(String::new, |exchange| {
        format!("{PROOF_HEADER}: {}\r\n", exchange.prove(&body))
    });
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{proof}\r\n",
        body.len()
    );
    let mut answer = Vec::new();
    let exchanged = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        let mut bounded = (&mut stream).take(ANSWER_BYTES_MAX);
        bounded.read_to_end(&mut answer).await
    };
    let ended = exchanged.await;
    // What came counts, however it ended.
    if let Err(error) = ended
        && answer.is_empty()
    {
        return Err(wire::of_tls(&error));
    }
    let (status, body) = parts(&answer).ok_or(Refused::Cut)?;
    Ok(Answer {
        status,
        body,
        pin: pin.map(SpkiPin::from_digest),
    })
}

/// The status and the document of an answer; nothing where the body is none.
fn parts(answer: &[u8]) -> Option<(u16, Value)> {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_ticket_that_is_refused_for_itself_is_a_pass() {
        let of = |status, code: &str| {
            let body = json!({ "code": code });
            let refused = Answer {
                status,
                body,
                pin: None,
            };
            judged(&refused, Duration::from_millis(3), 2)
        };
        let passed =
            "one of 2 pins shown, challenge after 3 ms, a mistyped ticket refused (bad_proof)";
        assert_eq!(of(403, "bad_proof"), Finding::Pass(passed.to_owned()));
        for (status, code) in [(200, ""), (403, "revoked"), (429, "rate_limited")] {
            let found = of(status, code);
            assert!(matches!(found, Finding::Fail { .. }), "{found:?}");
        }
    }

    #[test]
    fn a_door_is_a_host_and_a_port() {
        let door = place("https://agents.example.org:8082");
        assert_eq!(door, Some(("agents.example.org".to_owned(), 8082)));
        assert_eq!(place("https://[::1]"), Some(("::1".to_owned(), 443)));
        for other in ["http://a:1", "https://a:1/b", "https://a:1?b", "a:1"] {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
