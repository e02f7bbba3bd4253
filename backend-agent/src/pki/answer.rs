//! A request for a certificate that came by hand, and the file that answers it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use viworks_common::enrolment::{
    AgentSecrets, EnrolmentAnswer, REQUEST_BYTES_MAX, answer_file, read_answer_file,
};
use viworks_common::id::{AgentId, Tenant};
use viworks_common::key::Identity;
use viworks_common::pin::PinSet;
use viworks_common::time::Timestamp;
use viworks_runtime::clock::Timeline;
use viworks_runtime::config::check_url;
use viworks_runtime::files;
use viworks_runtime::{random, tls};

use super::issue::{FIRST_GENERATION, IssueRequest, Office, pins_in_force, remove};
use super::request::CertificateRequest;
use super::{PkiError, Secrecy, write_new};
use crate::data::{Actor, GatewayRef, NewCertificate, NewGateway, Store, StoreError};

/// Where the answer goes, and what it says of this backend.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The new file, for its owner alone.
    pub out: PathBuf,
    /// Where the backend listens for agents, as the gateway sees it.
    pub url: String,
    /// The version of the configured pins, which are in it while the database has no others.
    pub pin_set_version: u64,
}

impl Reply {
    /// The answer before its gateway is registered: worth nothing yet.
    fn draft(&self) -> PathBuf {
        files::with_suffix(&self.out, ".unfinished")
    }

    /// Refuses what is in the way, and what the gateway would refuse.
    fn check(&self, csr: &CertificateRequest) -> Result<(), PkiError> {
        check_url(&self.url, &["wss"])
            .map_err(|(message, help)| PkiError::Url { message, help })?;
        if !self.is_there()? {
            return Ok(());
        }
        let path = self.out.clone();
        let there = files::read_private(&path).ok();
        if there.is_some_and(|bytes| answered(&bytes, csr).is_some()) {
            return Err(PkiError::Answered { path });
        }
        Err(PkiError::Exists { path })
    }

    /// Whether something has its name. A name that no file can have, such as one that is too long, for the answer or
    /// for its draft, nothing has: it is told of as what it is.
    fn is_there(&self) -> Result<bool, PkiError> {
        let look = |path: &Path| match path.symlink_metadata() {
            Ok(_found) => Ok(true),
            Err(refused) if refused.kind() == ErrorKind::NotFound => Ok(false),
            Err(source) => Err(PkiError::Write {
                path: self.out.clone(),
                source,
            }),
        };
        if look(&self.out)? {
            return Ok(true);
        }
        look(&self.draft()).map(|_left| false)
    }

    /// The gateway of an answer that an interrupted call has left, where the request is the one that it answers.
    fn left(&self, csr: &CertificateRequest) -> Result<Option<AgentId>, PkiError> {
        let draft = self.draft();
        let bytes = match files::read_private(&draft) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // One that was written in part was made in vain: nothing was registered yet.
        if read_answer_file(&bytes).is_err() {
            return Ok(None);
        }
        if let Some(agent_id) = answered(&bytes, csr) {
            return Ok(Some(agent_id));
        }
        // Its gateway may be registered, and this is all that there is of its certificate.
        Err(PkiError::Exists { path: draft })
    }

    /// Writes the answer under its first name. Whoever named the new file knows of no other.
    fn begin(&self, bytes: &[u8]) -> Result<(), PkiError> {
        let written = write_new(&self.draft(), bytes, Secrecy::Secret);
        written.map_err(|error| {
            if let PkiError::Write { source, .. } = error {
                let path = self.out.clone();
                PkiError::Write { path, source }
            } else {
                error
            }
        })
    }

    fn finish(&self) -> Result<(), PkiError> {
        files::move_new(&self.draft(), &self.out)?;
        let folder = self
            .out
            .parent()
            .filter(|above| !above.as_os_str().is_empty());
        Ok(files::sync_folder(
            folder.unwrap_or_else(|| Path::new(".")),
        )?)
    }
}

/// The gateway of an answer, where it is the one to this request.
fn answered(bytes: &[u8], csr: &CertificateRequest) -> Option<AgentId> {
    let (answer, _secrets) = read_answer_file(bytes).ok()?;
    let key = tls::one_certificate(answer.certificate.as_bytes())
        .and_then(|certificate| tls::spki_sha256(&certificate));
    key.is_ok_and(|key| key == csr.spki)
        .then_some(answer.agent_id)
}

/// Reads a request.
///
/// # Errors
///
/// When the file cannot be read, or no certificate is made for what it holds.
pub fn read_request(path: &Path) -> Result<CertificateRequest, PkiError> {
    let limit = u64::try_from(REQUEST_BYTES_MAX).unwrap_or(u64::MAX);
    let bytes = files::read_at_most(path, limit)?;
    let request = CertificateRequest::read(&String::from_utf8_lossy(&bytes));
    request.map_err(|why| PkiError::Request {
        path: path.to_owned(),
        why,
    })
}

/// Lets a gateway join that made its key itself and cannot reach the door: the answer first, under another name, then
/// its row and its key in one transaction, and then the answer has its name. A call that was interrupted is gone on
/// with by the same call.
///
/// # Errors
///
/// When another gateway has its name or its key, the answer is in the way or cannot be written, or the store is away.
pub async fn sign(
    store: &dyn Store,
    tenant: &Tenant,
    office: &Office,
    (csr, wanted): (&CertificateRequest, &IssueRequest),
    reply: &Reply,
    actor: &Actor,
    clock: &Timeline,
) -> Result<AgentId, PkiError> {
    reply.check(csr)?;
    if let Some(agent_id) = reply.left(csr)? {
        let known = store.gateway(tenant, &GatewayRef::Id(agent_id)).await?;
        match known {
            Some(known) if known.name == wanted.name => {
                reply.finish()?;
                return Ok(agent_id);
            }
            Some(_other) => return Err(PkiError::KeyInUse),
            None => {}
        }
    }
    remove(&reply.draft())?;
    let version = reply.pin_set_version;
    let pins = pins_in_force(store, tenant, office, version, clock.line()).await?;
    let whom = (csr, wanted);
    let (answer, secrets, gateway) = make(tenant, office, whom, (reply, pins), clock.wall())?;
    let agent_id = answer.agent_id;
    let bytes = answer_file(answer, &secrets);
    reply.begin(&bytes)?;
    let made = store
        .create_gateway(tenant, gateway, actor, clock.line())
        .await;
    if let Err(error) = made {
        // Nobody else knows of it. Where the answer of the store was lost, the same call finds it out.
        if matches!(error, StoreError::Conflict { .. }) {
            remove(&reply.draft())?;
            return Err(taken(store, tenant, (csr, wanted), error).await);
        }
        return Err(error.into());
    }
    reply.finish()?;
    Ok(agent_id)
}

/// Of a name and a key, which one is taken.
async fn taken(
    store: &dyn Store,
    tenant: &Tenant,
    (csr, wanted): (&CertificateRequest, &IssueRequest),
    error: StoreError,
) -> PkiError {
    let which = GatewayRef::Name(wanted.name.clone());
    let known = match store.gateway(tenant, &which).await {
        Ok(Some(known)) if known.revoked_at.is_none() => known,
        Ok(_) => return PkiError::KeyInUse,
        Err(error) => return error.into(),
    };
    // That gateway may be the one that came of this very request.
    match store.certificate(tenant, known.agent_id, &csr.spki).await {
        Ok(Some(_same)) => PkiError::KeyInUse,
        Ok(None) => error.into(),
        Err(away) => away.into(),
    }
}

fn make(
    tenant: &Tenant,
    office: &Office,
    (csr, wanted): (&CertificateRequest, &IssueRequest),
    (reply, pins): (&Reply, PinSet),
    now: Timestamp,
) -> Result<(EnrolmentAnswer, AgentSecrets, NewGateway), PkiError> {
    let agent_id = AgentId::from_uuid(random::uuid_v7(now));
    let identity = Identity {
        tenant: tenant.clone(),
        agent_id,
    };
    let IssueRequest { name, labels, life } = wanted;
    let domain = &office.trust_domain;
    let signed = office
        .authority
        .gateway_of(&csr.key, domain, &identity, name, now, *life);
    let (certificate, facts) = signed?;
    let gateway = NewGateway {
        agent_id,
        name: name.clone(),
        labels: labels.clone(),
        key_generation: FIRST_GENERATION,
        pins: Some(pins.clone()),
        authorities: office.given(),
        certificate: Some(NewCertificate {
            agent_id,
            spki: csr.spki,
            serial: facts.serial,
            not_after: facts.not_after,
            fingerprint: facts.fingerprint,
            issuer: Some(facts.issuer),
        }),
    };
    let key_generation =
        u8::try_from(FIRST_GENERATION).map_err(|error| StoreError::Unavailable(error.into()))?;
    let secrets = AgentSecrets {
        agent_key: office
            .master
            .agent_key(&identity, FIRST_GENERATION)
            .secret()
            .clone(),
        token: office.master.token(&identity, 0),
    };
    let answer = EnrolmentAnswer {
        tenant: tenant.clone(),
        agent_id,
        name: name.clone(),
        trust_domain: domain.clone(),
        certificate,
        not_after: facts.not_after,
        authority: office.authority.certificate().to_owned(),
        key_generation,
        epoch: 0,
        // Nobody has a secret by which it could be; the file is for its owner alone.
        sealed: String::new(),
        pins,
        binding: office.binding,
        labels: labels.clone(),
        url: reply.url.clone(),
    };
    Ok((answer, secrets, gateway))
}
