//! A connection to the door of the backend, whose server has one of the keys that it may have.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use viworks_common::enrolment::{GivenAuthorities, PROOF_HEADER};
use viworks_common::pin::SpkiPin;
use viworks_common::text;
use viworks_common::time::Timestamp;
use viworks_runtime::tls;

use super::dial;
use super::failure::{DialFailure, Step};
use super::pinning::KeyVerifier;
use crate::config::Timeouts;

/// How long each step may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of the largest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

const TIMES: Timeouts = Timeouts {
    resolve: LIMIT,
    connect: LIMIT,
    tls: LIMIT,
    upgrade: LIMIT,
    opening: LIMIT,
    send: LIMIT,
};

/// Why nothing was answered that is of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DoorFailure {
    /// Somebody else answers there.
    #[error("the server at {place} shows the key {seen}, which is not one that it may have")]
    OtherServer {
        /// Where.
        place: String,
        /// What it shows.
        seen: SpkiPin,
    },
    /// The door is not reached.
    #[error("the backend at {place} is not reached: {failure}")]
    Unreached {
        /// Where.
        place: String,
        /// Why.
        failure: DialFailure,
    },
    /// The connection broke.
    #[error("the backend at {place} did not answer: {reason}")]
    Unanswered {
        /// Where.
        place: String,
        /// How.
        reason: String,
    },
    /// The backend said no.
    #[error("the backend refuses: {detail}")]
    Refused {
        /// The word for programs.
        code: String,
        /// One sentence with the fix.
        detail: String,
        /// When it may be tried again, where that helps.
        retry_after: Option<Duration>,
        /// It knows that nothing came of it; otherwise only that it cannot say what did.
        for_certain: bool,
        /// The authorities of the server's certificate, where it gives them all the same. Not verified yet.
        authorities: Option<Box<GivenAuthorities>>,
    },
}

/// A connection to the door.
pub struct Door {
    place: String,
    /// The key that it showed.
    pub pin: SpkiPin,
    /// The first and the last moment of the certificate that it shows, where that can be read.
    pub good_for: Option<(Timestamp, Timestamp)>,
    requests: http1::SendRequest<Full<Bytes>>,
    /// What moves the bytes; none once it has ended.
    connection: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Door {
    /// Connects, and goes on only where the server shows one of these keys.
    ///
    /// # Errors
    ///
    /// When there is no such server.
    pub async fn open(pins: BTreeSet<SpkiPin>, host: &str, port: u16) -> Result<Self, DoorFailure> {
        Self::open_as(pins, host, port, host).await
    }

    /// The same of a server that is asked for by another name.
    ///
    /// # Errors
    ///
    /// When there is no such server.
    pub async fn open_as(
        pins: BTreeSet<SpkiPin>,
        host: &str,
        port: u16,
        server_name: &str,
    ) -> Result<Self, DoorFailure> {
        let place = format!("{host}:{port}");
        let unreached = |failure: DialFailure| {
            let place = place.clone();
            if let DialFailure::PinMismatch { seen } = failure {
                DoorFailure::OtherServer { place, seen }
            } else {
                DoorFailure::Unreached { place, failure }
            }
        };
        let of_tls = |reason: String| unreached(DialFailure::Tls { reason });
        let tcp = dial::connect(host, port, None, &TIMES)
            .await
            .map_err(unreached)?;
        let verifier = KeyVerifier::new(pins);
        let config = tls::open_client_config(Arc::clone(&verifier) as _)
            .map_err(|error| of_tls(error.to_string()))?;
        let name = ServerName::try_from(server_name.trim_matches(['[', ']']).to_owned())
            .map_err(|error| of_tls(error.to_string()))?;
        let late = DialFailure::Timeout {
            step: Step::Tls,
            limit: LIMIT,
        };
        let stream = timeout(LIMIT, TlsConnector::from(config).connect(name, tcp)).await;
        let stream = stream
            .map_err(|_elapsed| unreached(late))?
            .map_err(|error| unreached(DialFailure::of_io(&error, Step::Tls)))?;
        let pin = verifier
            .seen()
            .ok_or_else(|| of_tls("the server showed no certificate".to_owned()))?;
        let shown = stream.get_ref().1.peer_certificates();
        let leaf = shown.and_then(|chain| chain.first());
        let good_for = leaf.and_then(|leaf| tls::validity(leaf).ok());
        let (requests, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| of_tls(error.to_string()))?;
        Ok(Self {
            place,
            pin,
            good_for,
            requests,
            connection: Some(Box::pin(async move {
                // What became of it is told by the request.
                drop(connection.await);
            })),
        })
    }

    /// Sends a body and answers what came back, with its proof.
    ///
    /// # Errors
    ///
    /// When nothing came back, or a refusal.
    pub async fn post(
        &mut self,
        path: &str,
        body: Vec<u8>,
        proof: Option<String>,
    ) -> Result<(Bytes, Option<Vec<u8>>), DoorFailure> {
        let place = self.place.clone();
        let lost = |reason: String| DoorFailure::Unanswered {
            place: place.clone(),
            reason,
        };
        let mut request = Request::post(path)
            .header(HOST, &place)
            .header(CONTENT_TYPE, "application/json");
        if let Some(proof) = proof {
            request = request.header(PROOF_HEADER, proof);
        }
        let request = request
            .body(Full::from(body))
            .map_err(|error| lost(error.to_string()))?;
        let (requests, connection) = (&mut self.requests, &mut self.connection);
        let asked = async {
            let answer = requests.send_request(request).await;
            let (head, body) = answer.map_err(|error| error.to_string())?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| error.to_string())?;
            Ok::<_, String>((head, body.to_bytes()))
        };
        let answered = timeout(LIMIT, async {
            let mut asked = Box::pin(asked);
            if let Some(moving) = connection.as_mut() {
                tokio::select! {
                    answered = &mut asked => return answered,
                    () = moving => {}
                }
            }
            *connection = None;
            asked.await
        });
        let (head, body) = match answered.await {
            Ok(Ok(answered)) => answered,
            Ok(Err(reason)) => return Err(lost(reason)),
            Err(_elapsed) => {
                return Err(lost(format!("it took longer than {} s", LIMIT.as_secs())));
            }
        };
        if head.status.is_success() {
            let proof = head.headers.get(PROOF_HEADER);
            return Ok((body, proof.map(|proof| proof.as_bytes().to_vec())));
        }
        let after = head
            .headers
            .get(RETRY_AFTER)
            .and_then(|after| after.to_str().ok());
        Err(refused(head.status.as_u16(), &body, after))
    }
}

/// What a problem document says.
#[derive(Debug, Deserialize)]
struct Said {
    code: String,
    detail: String,
    #[serde(default)]
    authorities: Option<Box<GivenAuthorities>>,
}

fn refused(status: u16, body: &[u8], after: Option<&str>) -> DoorFailure {
    let retry_after = after
        .and_then(|after| after.parse().ok())
        .map(Duration::from_secs);
    // From 500 on something broke behind it, which may have been carried out before.
    let for_certain = status < 500;
    match serde_json::from_slice::<Said>(body) {
        Ok(Said {
            code,
            detail,
            authorities,
        }) => DoorFailure::Refused {
            code: text::line(&code).into_owned(),
            detail: text::line(&detail).into_owned(),
            retry_after,
            for_certain,
            authorities,
        },
        Err(_other) => DoorFailure::Refused {
            code: "http".to_owned(),
            detail: format!(
                "something that is no ViWorkS backend answers with HTTP {status}: check what stands in front of the door"
            ),
            retry_after,
            for_certain,
            authorities: None,
        },
    }
}

/// Reads a body.
///
/// # Errors
///
/// Why it cannot be read, on one line.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| text::line(&error.to_string()).into_owned())
}

/// A body that is sent.
#[must_use]
pub fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("what is exchanged has string keys and whole numbers")
}
