//! Certificates, keys and the identity file as the configuration names them, and what was issued since: read whole,
//! judged, and fitted to each other, with everything that is wrong at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use viworks_common::certificate;
use viworks_common::id::{AgentId, Tenant, TrustDomain};
use viworks_common::key::{AgentKey, Identity as Name, Secret};
use viworks_common::renewal::{Candidate, RefusedOnes, choose};
use viworks_common::rotation::{self, RefusedKeys};
use viworks_common::time::Timestamp;
use viworks_runtime::config::{Problem, Problems};
use viworks_runtime::files;
use viworks_runtime::tls::{self, Purpose};

use crate::config::Config;
use crate::keyring::{self, Held};
use crate::renewed::Origin;
use crate::trust;

/// The way back from a certificate that has ended where there is no door: a ticket is redeemed at one, and a backend
/// without one makes none.
pub const BY_HAND: &str =
    "have a certificate signed for its key by hand (docs/errors/cert_untrusted.md)";

/// What the files say that make a gateway who it is, and whom it trusts.
#[derive(Debug, Clone)]
pub struct Material {
    /// Tenant and agent id, the same in the certificate and in the identity file.
    pub name: Name,
    /// The key shared with the backend that is shown.
    pub key: AgentKey,
    /// Which generation of it.
    pub key_generation: u8,
    /// Every one that could be, that of the identity file first.
    pub keys: Vec<Held>,
    /// The epoch of the identity file, for a gateway whose journal knows none.
    pub first_epoch: u64,
    /// The token of that epoch.
    pub first_token: Secret,
    /// The domain in which the gateway has its name.
    pub trust_domain: TrustDomain,
    /// The certificate that is shown.
    pub shown: Papers,
    /// Every one that could be, the configured one first.
    pub all: Vec<Papers>,
    /// Why something that was issued cannot be, if so.
    pub unread: Vec<Problem>,
    /// The authorities of the backend's certificate: the configured ones, and those that came over a session.
    pub roots: Arc<RootCertStore>,
    /// The configured ones alone.
    pub configured_roots: Arc<RootCertStore>,
}

/// A certificate with its key.
#[derive(Debug, Clone)]
pub struct Papers {
    /// Where it comes from.
    pub origin: Origin,
    /// The file of the certificate.
    pub path: PathBuf,
    /// Certificate chain and private key.
    pub tls: tls::Identity,
    /// SHA-256 of the certificate itself.
    pub fingerprint: [u8; 32],
    /// The first moment of the certificate's life.
    pub not_before: Timestamp,
    /// The end of it.
    pub not_after: Timestamp,
}

impl Papers {
    /// The first and the last moment of the certificate's life.
    #[must_use]
    pub const fn life(&self) -> (Timestamp, Timestamp) {
        (self.not_before, self.not_after)
    }

    fn new(origin: Origin, path: &Path, certificate: Certificate) -> Self {
        Self {
            origin,
            path: path.to_owned(),
            fingerprint: certificate.fingerprint,
            not_before: certificate.says.not_before,
            not_after: certificate.says.not_after,
            tls: certificate.tls,
        }
    }
}

impl Material {
    /// Reads all files that the configuration names, at the start and whenever they may have been renewed, and what was
    /// issued since and is in the state folder. The certificate that was issued last is shown.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with those of the configuration, each with its file.
    pub fn load(config: &Config) -> Result<Self, Problems> {
        let mut material = Self::configured(config)?;
        material.add_renewed(&config.gateway.state_folder);
        material.show(&RefusedOnes::default());
        material.add_keys(&config.gateway.state_folder);
        material.show_key(&RefusedKeys::default());
        material.add_authorities(&config.gateway.state_folder);
        Ok(material)
    }

    /// Adds the authorities that came over a session. Those that cannot be used are no reason to do without the
    /// configured ones.
    fn add_authorities(&mut self, folder: &Path) {
        match trust::read(folder) {
            Ok(Some(given)) => self.roots = Arc::new(trust::beside(&self.roots, given)),
            Ok(None) => {}
            Err(problem) => self.unread.push(problem),
        }
    }

    /// Adds the agent keys that came over sessions. Those that cannot be used are no reason to do without the first
    /// one.
    fn add_keys(&mut self, folder: &Path) {
        match keyring::read(folder, &self.name) {
            Ok(later) => self.keys.extend(later),
            Err(problem) => self.unread.push(problem),
        }
    }

    /// Shows the agent key that is to be shown while these were refused.
    pub fn show_key(&mut self, refused: &RefusedKeys) {
        let place = rotation::choose(&self.key_candidates(), refused);
        if let Some(held) = place.and_then(|place| self.keys.get(place)) {
            (self.key, self.key_generation) = (held.key.clone(), held.generation);
        }
    }

    /// What is chosen from.
    #[must_use]
    pub fn key_candidates(&self) -> Vec<rotation::Candidate> {
        let all = self.keys.iter();
        all.map(|held| rotation::Candidate {
            digest: held.digest(),
            generation: held.generation,
        })
        .collect()
    }

    /// SHA-256 of the agent key that is shown.
    #[must_use]
    pub fn key_digest(&self) -> [u8; 32] {
        let shown = Held {
            generation: self.key_generation,
            key: self.key.clone(),
        };
        shown.digest()
    }

    /// Whether it has an agent key of a later generation than the one that is shown.
    #[must_use]
    pub fn has_later_key(&self) -> bool {
        let mut all = self.keys.iter();
        all.any(|held| held.generation > self.key_generation)
    }

    /// Adds what was issued over sessions. What cannot be used is no reason to do without the rest.
    fn add_renewed(&mut self, folder: &Path) {
        for origin in Origin::KEPT {
            let Some(path) = origin.path(folder) else {
                continue;
            };
            if files::is_absent(&path) {
                continue;
            }
            match self.read_renewed(origin, &path) {
                Ok(papers) => self.all.push(papers),
                // Moved meanwhile to where it is read next.
                Err(_moved) if files::is_absent(&path) => {}
                Err(problem) => self.unread.push(problem),
            }
        }
    }

    fn read_renewed(&self, origin: Origin, path: &Path) -> Result<Papers, Problem> {
        let tls = tls::Identity::load_for(Purpose::Client, path, path).map_err(|errors| {
            let first = errors.first().map(|error| error.problem(path));
            first.unwrap_or_else(|| Problem::of_file(path, "it cannot be read", ""))
        })?;
        let certificate = read_certificate(path, tls)?;
        let says = &certificate.says;
        if says.identity == self.name && says.trust_domain == self.trust_domain {
            return Ok(Papers::new(origin, path, certificate));
        }
        let message = format!(
            "{} is of {}, and this gateway is {}",
            path.display(),
            certificate::uri(&says.trust_domain, &says.identity),
            certificate::uri(&self.trust_domain, &self.name)
        );
        let help = "remove it: it belongs to another gateway, and is not used";
        Err(Problem::of_file(path, message, help))
    }

    /// Shows the certificate that is to be shown while these were refused.
    pub fn show(&mut self, refused: &RefusedOnes) {
        let place = choose(&self.candidates(), refused);
        if let Some(papers) = place.and_then(|place| self.all.get(place)) {
            self.shown = papers.clone();
        }
    }

    /// What is chosen from.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let all = self.all.iter();
        all.map(|papers| Candidate {
            fingerprint: papers.fingerprint,
            life: papers.life(),
        })
        .collect()
    }

    fn configured(config: &Config) -> Result<Self, Problems> {
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
            (Some(file), Some(certificate), Some(roots)) if problems.is_empty() => {
                let name = certificate.says.identity.clone();
                let roots = Arc::new(roots);
                let shown = Papers::new(Origin::Configured, chain, certificate);
                let first = Held {
                    generation: file.key_generation,
                    key: AgentKey::new(file.agent_key.0),
                };
                Ok(Self {
                    name,
                    key: first.key.clone(),
                    key_generation: first.generation,
                    keys: vec![first],
                    first_epoch: file.epoch,
                    first_token: file.token.0,
                    trust_domain: file.trust_domain,
                    all: vec![shown.clone()],
                    shown,
                    unread: Vec::new(),
                    configured_roots: Arc::clone(&roots),
                    roots,
                })
            }
            _incomplete => Err(Problems::new(problems)),
        }
    }

    /// What does not keep the agent from starting, because the clock that says so may be the one that is wrong, or
    /// because there is another certificate to begin with.
    #[must_use]
    pub fn warnings(&self, now: Timestamp) -> Vec<Problem> {
        let path = &self.shown.path;
        let ill = if now > self.shown.not_after {
            Some((
                format!(
                    "the certificate in {} expired at {}",
                    path.display(),
                    self.shown.not_after
                ),
                format!(
                    "the agent that runs asks the door (door_url in [outbound]) for another one by itself; where \
                     there is no door, {BY_HAND}; unless this machine's clock is wrong"
                ),
            ))
        } else if now < self.shown.not_before {
            Some((
                format!(
                    "the certificate in {} is not valid before {}",
                    path.display(),
                    self.shown.not_before
                ),
                "set this machine's clock".to_owned(),
            ))
        } else {
            None
        };
        let ill = ill.map(|(message, help)| Problem::of_file(path, message, help));
        ill.into_iter().chain(self.unread.iter().cloned()).collect()
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
