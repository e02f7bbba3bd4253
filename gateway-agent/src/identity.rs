//! Who this gateway is: its name, its key, its installation, this process, and the lock that keeps it single.

use std::path::{Path, PathBuf};

use viworks_common::id::{AgentRunId, BootId, InstallId};
use viworks_common::key::{AgentKey, Identity as Name, Secret};
use viworks_runtime::clock::{self, Clock};
use viworks_runtime::config::Problem;
use viworks_runtime::files::{self, FileError, FolderLock};
use viworks_runtime::random;

use crate::journal::Meta;
use crate::material::Material;

/// The installation's id, in the state folder.
pub const INSTALL_ID_FILE: &str = "install_id";

/// Why the gateway does not know who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file of the installation's id.
    #[error("{} holds no installation id: {reason}", path.display())]
    NotAnInstallation {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel does not say which boot this is.
    #[error("the kernel does not say which boot this is")]
    Boot,
}

impl IdentityError {
    /// As a problem of the file that is to blame.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::File(error) => error.problem(),
            Self::NotAnInstallation { path, .. } => Problem::of_file(
                path,
                self.to_string(),
                "remove it; the backend then takes this for another installation of the same gateway",
            ),
            Self::Boot => Problem::of_file(Path::new("/proc"), self.to_string(), ""),
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
    /// The installation.
    pub install_id: InstallId,
    /// The boot.
    pub boot_id: BootId,
    /// This process.
    pub agent_run_id: AgentRunId,
    _lock: FolderLock,
}

impl Identity {
    /// Locks the state folder, for the gateway that the material says this is.
    ///
    /// # Errors
    ///
    /// When another process has the folder, or what it holds of the installation is unsafe or broken.
    pub fn take(
        folder: &Path,
        material: &Material,
        clock: &dyn Clock,
    ) -> Result<Self, IdentityError> {
        files::create_private_folder(folder)?;
        let lock = files::lock_folder(folder)?;
        Ok(Self {
            name: material.name.clone(),
            key: material.key.clone(),
            key_generation: material.key_generation,
            first_epoch: material.first_epoch,
            first_token: material.first_token.clone(),
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

/// The installation's id, if one was drawn before.
///
/// # Errors
///
/// When its file is unsafe or broken.
pub fn known_install_id(folder: &Path) -> Result<Option<InstallId>, IdentityError> {
    let path = folder.join(INSTALL_ID_FILE);
    let bytes = match files::read_private(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let parsed = text.trim().parse();
    parsed
        .map(Some)
        .map_err(|error| IdentityError::NotAnInstallation {
            path,
            reason: format!("{error}"),
        })
}

/// The installation's id: drawn once, kept in the state folder.
fn install_id(folder: &Path) -> Result<InstallId, IdentityError> {
    if let Some(known) = known_install_id(folder)? {
        return Ok(known);
    }
    let id = InstallId::from_uuid(random::uuid_v4());
    files::write_atomic(&folder.join(INSTALL_ID_FILE), format!("{id}\n").as_bytes())?;
    Ok(id)
}
