//! Certificates, keys and the identity file as the configuration names them: read whole, judged, and fitted to each
//! other, with everything that is wrong at once.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use viworks_common::certificate;
use viworks_common::id::{AgentId, Tenant, TrustDomain};
use viworks_common::key::{AgentKey, Identity as Name, Secret};
use viworks_common::time::Timestamp;
use viworks_runtime::config::{Problem, Problems};
use viworks_runtime::files;
use viworks_runtime::tls::{self, Purpose};

use crate::config::Config;

/// What the files say that make a gateway who it is, and whom it trusts.
#[derive(Debug, Clone)]
pub struct Material {
    /// Tenant and agent id, the same in the certificate and in the identity file.
    pub name: Name,
    /// The key shared with the backend.
    pub key: AgentKey,
    /// Which generation of it.
    pub key_generation: u8,
    /// The epoch of the identity file, for a gateway whose journal knows none.
    pub first_epoch: u64,
    /// The token of that epoch.
    pub first_token: Secret,
    /// Certificate chain and private key.
    pub tls: tls::Identity,
    /// SHA-256 of the certificate itself.
    pub fingerprint: [u8; 32],
    /// The first moment of the certificate's life.
    pub not_before: Timestamp,
    /// The end of it.
    pub not_after: Timestamp,
    /// The authorities of the backend's certificate.
    pub roots: Arc<RootCertStore>,
}

impl Material {
    /// Reads all files that the configuration names, at the start and whenever they may have been renewed.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them, each with its file.
    pub fn load(config: &Config) -> Result<Self, Problems> {
        let paths = &config.identity;
        let mut problems = Vec::new();
        let file = read_identity(&paths.identity_file)
            .map_err(|problem| problems.push(problem))
            .ok();
        let (chain, key) = (&paths.certificate_file, &paths.key_file);
        let tls = tls::Identity::load_for(Purpose::Client, chain, key)
            .map_err(|errors| problems.extend(errors.iter().map(|error| error.problem(chain))))
            .ok();
        let ca = &config.outbound.ca_file;
        let roots = tls::load_roots(ca)
            .map_err(|error| problems.push(error.problem(ca)))
            .ok();
        let certificate = tls.and_then(|tls| {
            read_certificate(chain, tls)
                .map_err(|problem| problems.push(problem))
                .ok()
        });
        if let (Some(certificate), Some(file)) = (&certificate, &file) {
            problems.extend(mismatch(&paths.identity_file, certificate, file));
        }
        match (file, certificate, roots) {
            (Some(file), Some(certificate), Some(roots)) if problems.is_empty() => Ok(Self {
                name: certificate.says.identity,
                key: AgentKey::new(file.agent_key.0),
                key_generation: file.key_generation,
                first_epoch: file.epoch,
                first_token: file.token.0,
                tls: certificate.tls,
                fingerprint: certificate.fingerprint,
                not_before: certificate.says.not_before,
                not_after: certificate.says.not_after,
                roots: Arc::new(roots),
            }),
            _incomplete => Err(Problems::new(problems)),
        }
    }

    /// What does not keep the agent from starting, because the clock that says so may be the one that is wrong.
    #[must_use]
    pub fn warnings(&self, config: &Config, now: Timestamp) -> Vec<Problem> {
        let path = &config.identity.certificate_file;
        let (message, help) = if now > self.not_after {
            (
                format!(
                    "the certificate in {} expired at {}",
                    path.display(),
                    self.not_after
                ),
                "issue a new certificate for this gateway, unless this machine's clock is wrong",
            )
        } else if now < self.not_before {
            (
                format!(
                    "the certificate in {} is not valid before {}",
                    path.display(),
                    self.not_before
                ),
                "set this machine's clock",
            )
        } else {
            return Vec::new();
        };
        vec![Problem::of_file(path, message, help)]
    }
}

struct Certificate {
    tls: tls::Identity,
    says: certificate::GatewayCertificate,
    fingerprint: [u8; 32],
}

fn read_certificate(path: &Path, tls: tls::Identity) -> Result<Certificate, Problem> {
    let refused = |reason: String| {
        let message = format!("{} names no gateway: {reason}", path.display());
        Problem::of_file(
            path,
            message,
            "use the certificate that the backend issued for this gateway",
        )
    };
    let leaf = tls
        .chain
        .first()
        .ok_or_else(|| refused("it holds no certificate".to_owned()))?;
    let says = certificate::read(leaf).map_err(|unnamed| refused(unnamed.to_string()))?;
    Ok(Certificate {
        fingerprint: Sha256::digest(leaf).into(),
        says,
        tls,
    })
}

fn mismatch(path: &Path, certificate: &Certificate, file: &IdentityFile) -> Option<Problem> {
    let name = Name {
        tenant: file.tenant.clone(),
        agent_id: file.agent_id,
    };
    let says = &certificate.says;
    if says.identity == name && says.trust_domain == file.trust_domain {
        return None;
    }
    let message = format!(
        "{} is of {}, but the certificate is of {}",
        path.display(),
        certificate::uri(&file.trust_domain, &name),
        certificate::uri(&says.trust_domain, &says.identity)
    );
    Some(Problem::of_file(
        path,
        message,
        "both must come from the same issue",
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    tenant: Tenant,
    agent_id: AgentId,
    trust_domain: TrustDomain,
    key_generation: u8,
    agent_key: zeroize_on_drop::Hex,
    epoch: u64,
    token: zeroize_on_drop::Hex,
}

/// Secrets between the file and their type.
mod zeroize_on_drop {
    use serde::{Deserialize, Deserializer};
    use viworks_common::key::Secret;

    /// 64 hexadecimal digits.
    pub(super) struct Hex(pub(super) Secret);

    impl<'de> Deserialize<'de> for Hex {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = <&str>::deserialize(deserializer)?;
            Secret::from_hex(text)
                .map(Self)
                .ok_or_else(|| serde::de::Error::custom("a secret is not 64 hexadecimal digits"))
        }
    }
}

fn read_identity(path: &Path) -> Result<IdentityFile, Problem> {
    // Never its contents: they are secret.
    let refused = |reason: &str| {
        let message = format!("{} is not an identity file: {reason}", path.display());
        Problem::of_file(
            path,
            message,
            "use the one that the backend issued for this gateway",
        )
    };
    let bytes = files::read_private(path).map_err(|error| error.problem())?;
    let file: IdentityFile =
        serde_json::from_slice(&bytes).map_err(|error| refused(&error.to_string()))?;
    if file.key_generation == 0 {
        return Err(refused("key_generation starts at 1"));
    }
    Ok(file)
}
