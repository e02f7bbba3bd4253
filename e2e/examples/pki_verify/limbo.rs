//! Cases of x509-limbo, and what the backend's and the gateway's verifiers say about their certificates.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustls::RootCertStore;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use viworks_common::certificate;
use viworks_common::pin::SpkiPin;
use viworks_gateway_agent::outbound::pinning::PinVerifier;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::tls;

/// The part of a suite that is looked at.
#[derive(Debug, Deserialize)]
pub(crate) struct Suite {
    version: u32,
    testcases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
struct Case {
    id: String,
    trusted_certs: Vec<String>,
    #[serde(default)]
    untrusted_intermediates: Vec<String>,
    peer_certificate: String,
    validation_time: Option<String>,
    #[serde(default)]
    signature_algorithms: Vec<String>,
    #[serde(default)]
    key_usage: Vec<String>,
    #[serde(default)]
    extended_key_usage: Vec<String>,
    expected_peer_name: Option<PeerName>,
    max_chain_depth: Option<u32>,
    #[serde(default)]
    crls: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct PeerName {
    kind: String,
    value: String,
}

/// A verdict in the words of x509-limbo, so that it can be compared with `expected_result` as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Verdict {
    /// The chain is accepted.
    Success,
    /// It is refused.
    Failure,
    /// The case asks for something that the verifier does not have.
    Skipped,
}

/// What both verifiers say about one case.
#[derive(Debug, Serialize)]
pub(crate) struct Verdicts {
    pub(crate) id: String,
    /// The backend's verifier of client certificates; the chain only.
    pub(crate) client: Verdict,
    pub(crate) client_reason: Option<String>,
    /// The gateway's verifier of server certificates, with the peer's own key pinned.
    pub(crate) server: Verdict,
    pub(crate) server_reason: Option<String>,
    /// Whom the backend would take the peer for once its chain is accepted: the URI of a gateway, if it names one.
    pub(crate) gateway: Option<String>,
    pub(crate) gateway_reason: Option<String>,
}

/// Judges every case.
pub(crate) fn judge(suite: &Suite) -> anyhow::Result<Vec<Verdicts>> {
    ensure!(suite.version == 1, "version {} is unknown", suite.version);
    suite
        .testcases
        .iter()
        .map(|case| case.judge().with_context(|| case.id.clone()))
        .collect()
}

/// The certificates of a case, at its time.
struct Chain {
    roots: Result<RootCertStore, String>,
    peer: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    now: UnixTime,
}

impl Case {
    fn judge(&self) -> anyhow::Result<Verdicts> {
        let chain = self.chain()?;
        let (client, client_reason) = match self.beyond("clientAuth") {
            Some(skipped) => (Verdict::Skipped, Some(skipped)),
            None => verdict(chain.as_client()),
        };
        let (server, server_reason) = match (self.beyond("serverAuth"), self.name()) {
            (Some(skipped), _) | (None, Err(skipped)) => (Verdict::Skipped, Some(skipped)),
            (None, Ok(name)) => verdict(chain.as_server(&name)),
        };
        let named = certificate::read(&chain.peer);
        Ok(Verdicts {
            id: self.id.clone(),
            client,
            client_reason,
            server,
            server_reason,
            gateway_reason: named.as_ref().err().map(ToString::to_string),
            gateway: named
                .ok()
                .map(|named| certificate::uri(&named.trust_domain, &named.identity)),
        })
    }

    fn chain(&self) -> anyhow::Result<Chain> {
        let trusted = certificates(&self.trusted_certs)?;
        let now = match &self.validation_time {
            None => SystemClock.wall().unix_micros().div_euclid(1_000_000),
            Some(text) => OffsetDateTime::parse(text, &Rfc3339)
                .with_context(|| format!("validation_time {text}"))?
                .unix_timestamp(),
        };
        let now = u64::try_from(now).context("validation_time is before 1970")?;
        Ok(Chain {
            roots: tls::roots(trusted).map_err(|error| chain_of(&error)),
            peer: CertificateDer::from_pem_slice(self.peer_certificate.as_bytes())
                .context("peer_certificate")?,
            intermediates: certificates(&self.untrusted_intermediates)?,
            now: UnixTime::since_unix_epoch(Duration::from_secs(now)),
        })
    }

    /// What a verifier for `purpose` does not have and the case asks for.
    fn beyond(&self, purpose: &str) -> Option<String> {
        let other_purpose = !self.extended_key_usage.is_empty()
            && !self.extended_key_usage.iter().any(|usage| usage == purpose);
        let reason = if self.max_chain_depth.is_some() {
            "the depth of a chain cannot be configured"
        } else if !self.crls.is_empty() {
            "there are no revocation lists here: the backend's database decides"
        } else if !self.signature_algorithms.is_empty() {
            "the signature algorithms cannot be configured"
        } else if !self.key_usage.is_empty() {
            "the key usages cannot be configured"
        } else if other_purpose {
            "the case is about another extended key usage"
        } else {
            return None;
        };
        Some(reason.to_owned())
    }

    fn name(&self) -> Result<ServerName<'static>, String> {
        let Some(PeerName { kind, value }) = &self.expected_peer_name else {
            return Err("the case names no server".to_owned());
        };
        if !matches!(kind.as_str(), "DNS" | "IP") {
            return Err(format!("a server is not named by {kind}"));
        }
        ServerName::try_from(value.clone()).map_err(|_invalid| {
            format!("{value:?} is no name that a gateway could be configured with")
        })
    }
}

impl Chain {
    fn as_client(&self) -> Result<(), String> {
        let verifier =
            tls::client_verifier(self.roots.clone()?).map_err(|error| chain_of(&error))?;
        verifier
            .verify_client_cert(&self.peer, &self.intermediates, self.now)
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// The suite knows no pins: the peer's own key is the pinned one, so that the chain alone decides.
    fn as_server(&self, name: &ServerName<'_>) -> Result<(), String> {
        let digest = tls::spki_sha256(&self.peer).map_err(|error| error.to_string())?;
        let pins = BTreeSet::from([SpkiPin::from_digest(digest)]);
        let verifier = PinVerifier::new(self.roots.clone()?.into(), pins)
            .map_err(|error| error.to_string())?;
        verifier
            .verify_server_cert(&self.peer, &self.intermediates, name, &[], self.now)
            .map(drop)
            .map_err(|error| error.to_string())
    }
}

fn verdict(result: Result<(), String>) -> (Verdict, Option<String>) {
    match result {
        Ok(()) => (Verdict::Success, None),
        Err(reason) => (Verdict::Failure, Some(reason)),
    }
}

fn certificates(texts: &[String]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    texts
        .iter()
        .map(|text| CertificateDer::from_pem_slice(text.as_bytes()).context("a certificate"))
        .collect()
}

/// An error with its causes, in one line.
fn chain_of(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
