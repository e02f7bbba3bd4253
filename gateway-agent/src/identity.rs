//! Who this gateway is: its certificate, its keys, its installation, this process, and the lock that keeps it single.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use viworks_common::certificate::{self, Unnamed};
use viworks_common::id::{AgentId, AgentRunId, BootId, InstallId, Tenant, TrustDomain};
use viworks_common::key::{AgentKey, Identity as Name, Secret};
use viworks_common::time::Timestamp;
use viworks_runtime::clock::{self, Clock};
use viworks_runtime::files::{self, FileError, FolderLock};
use viworks_runtime::random;
use viworks_runtime::tls::{self, TlsError};

use crate::config::Config;
use crate::journal::Meta;

/// Why the gateway does not know who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The identity file.
    #[error("{} is not an identity file: {reason}", path.display())]
    NotAnIdentity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never its contents.
        reason: String,
    },
    /// The certificate names no gateway.
    #[error("{} names no gateway", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Unnamed,
    },
    /// Certificate and identity file belong to different gateways.
    #[error("the certificate belongs to {certificate}, the identity file to {file}")]
    Mismatch {
        /// The URI in the certificate.
        certificate: String,
        /// The URI that the identity file stands for.
        file: String,
    },
    /// The kernel does not say which boot this is.
    #[error("the kernel does not say which boot this is")]
    Boot,
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

/// Everything that makes this process who it is.
#[derive(Debug)]
pub struct Identity {
    /// Tenant and agent id.
    pub name: Name,
    /// The key shared with the backend.
    pub key: AgentKey,
    /// Which generation of it.
    pub key_generation: u8,
    /// The epoch of the identity file, for a gateway whose journal knows none.
    first_epoch: u64,
    first_token: Secret,
    /// Certificate chain and private key.
    pub tls: tls::Identity,
    /// SHA-256 of the certificate itself.
    pub fingerprint: [u8; 32],
    /// The end of the certificate's life.
    pub not_after: Timestamp,
    /// The installation.
    pub install_id: InstallId,
    /// The boot.
    pub boot_id: BootId,
    /// This process.
    pub agent_run_id: AgentRunId,
    _lock: FolderLock,
}

impl Identity {
    /// Locks the state folder and reads everything.
    ///
    /// # Errors
    ///
    /// When another process has the folder, or a file is missing, unsafe or of another gateway.
    pub fn load(config: &Config, clock: &dyn Clock) -> Result<Self, IdentityError> {
        let folder = &config.gateway.state_folder;
        files::create_private_folder(folder)?;
        let lock = files::lock_folder(folder)?;
        let file = read_file(&config.identity.identity_file)?;
        let name = Name {
            tenant: file.tenant,
            agent_id: file.agent_id,
        };
        let path = &config.identity.certificate_file;
        let tls = tls::Identity::load(path, &config.identity.key_file)?;
        let leaf = tls
            .chain
            .first()
            .ok_or_else(|| TlsError::NoCertificate { path: path.clone() })?;
        let read = certificate::read(leaf).map_err(|source| IdentityError::Certificate {
            path: path.clone(),
            source,
        })?;
        if read.identity != name || read.trust_domain != file.trust_domain {
            return Err(IdentityError::Mismatch {
                certificate: certificate::uri(&read.trust_domain, &read.identity),
                file: certificate::uri(&file.trust_domain, &name),
            });
        }
        Ok(Self {
            fingerprint: Sha256::digest(leaf).into(),
            not_after: read.not_after,
            name,
            key: AgentKey::new(file.agent_key.0),
            key_generation: file.key_generation,
            first_epoch: file.epoch,
            first_token: file.token.0,
            tls,
            install_id: install_id(folder)?,
            boot_id: clock::boot_id().ok_or(IdentityError::Boot)?,
            agent_run_id: AgentRunId::from_uuid(random::uuid_v7(clock.wall())),
            _lock: lock,
        })
    }

    /// Whether `epoch` is the one that the gateway was issued with.
    #[must_use]
    pub const fn is_first(&self, epoch: u64) -> bool {
        epoch == self.first_epoch
    }

    /// The ratchet to present: the journal's, or the one the gateway was issued with.
    #[must_use]
    pub fn ratchet(&self, meta: &Meta) -> (u64, String) {
        if meta.token.is_empty() || meta.epoch < self.first_epoch {
            (self.first_epoch, self.first_token.expose_hex())
        } else {
            (meta.epoch, meta.token.clone())
        }
    }
}

fn read_file(path: &Path) -> Result<IdentityFile, IdentityError> {
    let bytes = files::read_private(path)?;
    let file: IdentityFile =
        serde_json::from_slice(&bytes).map_err(|error| IdentityError::NotAnIdentity {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    if file.key_generation == 0 {
        return Err(IdentityError::NotAnIdentity {
            path: path.to_owned(),
            reason: "key_generation starts at 1".to_owned(),
        });
    }
    Ok(file)
}

/// The installation's id: drawn once, kept in the state folder.
fn install_id(folder: &Path) -> Result<InstallId, IdentityError> {
    let path = folder.join("install_id");
    if path.exists() {
        let bytes = files::read_private(&path)?;
        let text = String::from_utf8_lossy(&bytes);
        return text
            .trim()
            .parse()
            .map_err(|error| IdentityError::NotAnIdentity {
                path: path.clone(),
                reason: format!("{error}"),
            });
    }
    let id = InstallId::from_uuid(random::uuid_v4());
    files::write_atomic(&path, format!("{id}\n").as_bytes())?;
    Ok(id)
}
