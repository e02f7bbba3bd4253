//! Certificates for gateways that have one: asked for over a session, signed, and registered beside the one in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tracing::{error, info, warn};
use viworks_common::id::GatewayName;
use viworks_common::key::Identity;
use viworks_common::wire::message::{CertIssued, CertRefused};
use viworks_runtime::blocking;
use viworks_runtime::clock::Timeline;
use viworks_runtime::conditions::Conditions;

use super::issue::authority_in_force;
use super::request::{BadRequest, CertificateRequest};
use super::{PkiError, signer, signing};
use crate::agent::authorities::Side;
use crate::config::Config;
use crate::data::{
    Actor, AuditOutcome, NewAuditRecord, NewCertificate, Renewal, RenewalOutcome, Store,
    StoreError, StoreResult, in_full,
};
use crate::metrics::BackendMetrics;

/// Certificates that are made at a time: each reads the authority's key, signs and writes.
const TURNS: usize = 8;

/// How long reading the authority's key may take.
const READ_TIME: Duration = Duration::from_secs(5);

/// When to ask again where somebody has to do something first, where the request was no good, and where it passes.
const RETRY_LATE: Duration = Duration::from_secs(24 * 3_600);
const RETRY_OTHER_KEY: Duration = Duration::from_secs(60);
const RETRY_SOON: Duration = Duration::from_secs(300);

/// What a gateway asks.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Who, by the certificate of its session.
    pub identity: Identity,
    /// Its name.
    pub gateway: GatewayName,
    /// The epoch of its session.
    pub epoch: u64,
    /// The request, PEM.
    pub csr: String,
}

/// Renews certificates.
pub struct Renewals {
    config: Arc<Config>,
    /// The authorities that are in force, of which the first signs.
    side: watch::Receiver<Arc<Side>>,
    store: Arc<dyn Store>,
    clock: Arc<Timeline>,
    metrics: BackendMetrics,
    conditions: Conditions,
    turns: Semaphore,
    /// That there is no authority was said.
    said: AtomicBool,
}

/// Why there is none.
struct Refused {
    code: &'static str,
    detail: String,
    retry_after: Duration,
}

impl Refused {
    fn unavailable() -> Self {
        Self {
            code: CertRefused::UNAVAILABLE,
            detail: "the backend cannot issue a certificate at the moment; its log says why"
                .to_owned(),
            retry_after: RETRY_SOON,
        }
    }
}

impl From<BadRequest> for Refused {
    fn from(bad: BadRequest) -> Self {
        Self {
            code: bad.name(),
            detail: bad.to_string(),
            retry_after: RETRY_OTHER_KEY,
        }
    }
}

impl Renewals {
    /// Of a backend with this configuration that meets its callers with `side`: by the authority that is in force
    /// there, whatever its file has meanwhile; the key of it is read each time.
    #[must_use]
    pub fn new(
        config: Arc<Config>,
        side: watch::Receiver<Arc<Side>>,
        store: Arc<dyn Store>,
        clock: Arc<Timeline>,
        metrics: BackendMetrics,
        conditions: Conditions,
    ) -> Self {
        Self {
            config,
            side,
            store,
            clock,
            metrics,
            conditions,
            turns: Semaphore::new(TURNS),
            said: AtomicBool::new(false),
        }
    }

    /// What a gateway is answered.
    ///
    /// # Errors
    ///
    /// When its session is not its current one.
    pub async fn answer(&self, asked: &Asked) -> StoreResult<CertIssued> {
        // It is never closed.
        let _turn = self.turns.acquire().await.ok();
        let refused = match self.issue(asked).await? {
            Ok(certificate) => {
                return Ok(CertIssued {
                    certificate: Some(certificate),
                    refused: None,
                });
            }
            Err(refused) => refused,
        };
        self.metrics.renewal(refused.code);
        let Refused {
            code,
            detail,
            retry_after,
        } = refused;
        Ok(CertIssued {
            certificate: None,
            refused: Some(CertRefused {
                code: code.to_owned(),
                detail,
                retry_after_ms: u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX),
            }),
        })
    }

    async fn issue(&self, asked: &Asked) -> StoreResult<Result<String, Refused>> {
        let Asked {
            identity, gateway, ..
        } = asked;
        let agent_id = identity.agent_id;
        let request = match CertificateRequest::read(&asked.csr) {
            Ok(request) => request,
            Err(bad) => {
                self.record(asked, bad).await;
                return Ok(Err(bad.into()));
            }
        };
        let (certificate, pem) = match self.sign(asked, &request).await {
            Ok(signed) => signed,
            Err(refused) => return Ok(Err(refused)),
        };
        let not_after = certificate.not_after;
        let renewal = Renewal {
            epoch: asked.epoch,
            certificate,
            pem: pem.clone(),
        };
        let (tenant, now) = (&identity.tenant, self.clock.line());
        let renewed = self.store.renew_certificate(tenant, renewal, now).await;
        Ok(match renewed {
            Ok(RenewalOutcome::Issued) => {
                self.metrics.renewal("issued");
                info!(%gateway, %agent_id, %not_after, "issued another certificate");
                Ok(pem)
            }
            Ok(RenewalOutcome::Before(pem)) => {
                self.metrics.renewal("again");
                info!(%gateway, %agent_id, "a gateway asks again for a certificate that it was issued");
                Ok(pem)
            }
            Ok(RenewalOutcome::KeyInUse) => Err(Refused {
                code: CertRefused::KEY_IN_USE,
                detail: "this key has a certificate already: ask for another key".to_owned(),
                retry_after: RETRY_OTHER_KEY,
            }),
            Ok(RenewalOutcome::TooSoon(wait)) => Err(Refused {
                code: CertRefused::TOO_SOON,
                detail: "this gateway got as many certificates as it may in this time".to_owned(),
                retry_after: wait,
            }),
            Err(error @ StoreError::Fenced) => return Err(error),
            Err(error) => {
                if !error.is_outage() {
                    error!(%gateway, %agent_id, error = in_full(&error), "a certificate could not be registered");
                }
                Err(Refused::unavailable())
            }
        })
    }

    /// Makes the certificate. Nobody accepts it before it is registered.
    async fn sign(
        &self,
        asked: &Asked,
        request: &CertificateRequest,
    ) -> Result<(NewCertificate, String), Refused> {
        let config = Arc::clone(&self.config);
        let side = Arc::clone(&self.side.borrow());
        let (key, now) = (request.key.clone(), self.clock.wall());
        let Asked {
            identity, gateway, ..
        } = asked.clone();
        // Whoever has the key may take its time.
        let limit = if config.keys.ca_sign_command.is_empty() {
            READ_TIME
        } else {
            signer::WAIT
        };
        let sign = move || {
            let (domain, life) = (
                &config.agents.trust_domain,
                config.enrolment.certificate_life(),
            );
            let authority = authority_in_force(&config, &side.signing)?;
            authority.gateway_of(&key, domain, &identity, &gateway, now, life)
        };
        let signed = blocking::call("renewals", limit, sign).await;
        match &signed {
            Ok(signed) => signing::tell(&self.conditions, signed),
            Err(error) => signing::tell_failed(&self.conditions, error),
        }
        let (pem, facts) = match signed {
            Ok(Ok(signed)) => signed,
            Ok(Err(PkiError::NoAuthority)) => return Err(self.no_authority()),
            Ok(Err(error)) => {
                error!(error = in_full(&error), "no certificate can be signed");
                return Err(Refused::unavailable());
            }
            Err(error) => {
                error!(%error, "no certificate can be signed: the authority's key cannot be read");
                return Err(Refused::unavailable());
            }
        };
        let agent_id = asked.identity.agent_id;
        let certificate = NewCertificate {
            agent_id,
            spki: request.spki,
            serial: facts.serial,
            not_after: facts.not_after,
            fingerprint: facts.fingerprint,
            issuer: Some(facts.issuer),
        };
        Ok((certificate, pem))
    }

    fn no_authority(&self) -> Refused {
        if !self.said.swap(true, Ordering::Relaxed) {
            warn!(
                fix = "set ca_key_file in [keys] and restart this backend, or put renewed certificates where the gateways' configurations name them",
                "gateways ask for another certificate, and this backend has no key to sign one with"
            );
        }
        Refused {
            code: CertRefused::NO_AUTHORITY,
            detail: "this backend has no key to sign certificates with (ca_key_file in [keys]): whoever runs the authority has to issue one".to_owned(),
            retry_after: RETRY_LATE,
        }
    }

    /// A request that is no good comes of no gateway of ours.
    async fn record(&self, asked: &Asked, bad: BadRequest) {
        let Asked {
            identity, gateway, ..
        } = asked;
        let agent_id = identity.agent_id;
        let actor = Actor::gateway(agent_id);
        let record = NewAuditRecord {
            object: actor.to_string(),
            actor,
            action: "certificate.renew".to_owned(),
            outcome: AuditOutcome::Refused,
            detail: serde_json::json!({ "why": bad.name() }),
        };
        let (tenant, now) = (&identity.tenant, self.clock.line());
        match self.store.note_gateway(tenant, agent_id, record, now).await {
            Ok(true) => warn!(%gateway, %agent_id, error = %bad, "refused a certificate request"),
            Ok(false) => self.metrics.refused("security_events"),
            Err(error) => {
                error!(%gateway, %agent_id, %error, "failed to audit a refused certificate request");
            }
        }
    }
}
