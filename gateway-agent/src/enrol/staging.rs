//! The folder beside the configuration in which a gateway's files are made, and from which they are moved when all of
//! them are whole: the key first, the configuration last, without which no agent starts.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use viworks_common::catalogue::SHIPPED;
use viworks_common::enrolment::{Home, configuration, identity_file};
use viworks_common::id::InstallId;
use viworks_common::pin::SpkiPin;
use viworks_runtime::files::{self, FileError, FolderLock};
use viworks_runtime::{fault, random};
use zeroize::Zeroizing;

use super::{EnrolError, Papers};

/// The folder, in that of the configuration.
const FOLDER: &str = ".enrolling";
/// The folder of the catalogue.
const CATALOGUE: &str = "commands.d";

const KEY: &str = "gateway.key";
const REQUEST: &str = "request.csr";
const INSTALL_ID: &str = "install_id";
const CERTIFICATE: &str = "gateway.crt";
const AUTHORITY: &str = "ca.crt";
const IDENTITY: &str = "identity.json";
const CONFIGURATION: &str = "gateway.toml";

/// A file that is not whole yet.
const PART: &str = "part";

/// What is moved, in this order: the configuration last.
const MOVED: [&str; 5] = [KEY, CERTIFICATE, AUTHORITY, IDENTITY, CONFIGURATION];

/// How far an earlier call came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// There was none.
    Fresh,
    /// There is a key, which the backend may know.
    Asked,
    /// Every file is there.
    Complete,
}

/// The folder, for this process alone.
#[derive(Debug)]
pub struct Staging {
    target: PathBuf,
    folder: PathBuf,
    stage: Stage,
    _lock: FolderLock,
}

impl Staging {
    /// Opens the folder beside `target`'s files, or makes it; refuses where a gateway's files are already.
    ///
    /// # Errors
    ///
    /// When a gateway is there, or the folder cannot be used or is in use.
    pub fn open(target: &Path) -> Result<Self, EnrolError> {
        let folder = target.join(FOLDER);
        let begun = folder.symlink_metadata().is_ok();
        let is_there = |folder: &Path, name: &str| folder.join(name).symlink_metadata().is_ok();
        let complete = begun && is_there(&folder, CONFIGURATION);
        let moved = begun && is_there(target, CONFIGURATION);
        if !complete && !moved {
            let taken = MOVED.iter().find(|name| is_there(target, name));
            if let Some(taken) = taken {
                return Err(EnrolError::Exists {
                    path: target.join(taken),
                });
            }
        }
        files::create_private_folder(target)?;
        files::create_private_folder(&folder)?;
        let lock = files::lock_folder(&folder)?;
        let asked = [KEY, REQUEST, INSTALL_ID];
        let stage = if complete || moved {
            Stage::Complete
        } else if asked.iter().all(|name| is_there(&folder, name)) {
            Stage::Asked
        } else {
            Stage::Fresh
        };
        let own = Self {
            target: target.to_owned(),
            folder,
            stage,
            _lock: lock,
        };
        match stage {
            Stage::Complete => {}
            // What was not finished is written anew.
            Stage::Asked => own.remove(&[CERTIFICATE, AUTHORITY, IDENTITY])?,
            Stage::Fresh => own.remove(&[KEY, REQUEST, INSTALL_ID])?,
        }
        Ok(own)
    }

    /// How far an earlier call came.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// The certificate request and the installation: those of an earlier call, or new ones with a new key.
    ///
    /// # Errors
    ///
    /// When there are none, or they cannot be written.
    pub fn request(&self, known: Option<InstallId>) -> Result<(String, InstallId), EnrolError> {
        if self.stage == Stage::Asked {
            return self.earlier_request();
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?.pem()?;
        let install_id = known.unwrap_or_else(|| InstallId::from_uuid(random::uuid_v4()));
        let pem = Zeroizing::new(key.serialize_pem());
        self.write(KEY, pem.as_bytes(), 0o600)?;
        self.write(INSTALL_ID, install_id.to_string().as_bytes(), 0o600)?;
        // Last: what has it has been asked with, whole.
        self.write_whole(REQUEST, request.as_bytes())?;
        Ok((request, install_id))
    }

    fn earlier_request(&self) -> Result<(String, InstallId), EnrolError> {
        let read = |name: &str| -> Result<String, EnrolError> {
            let bytes = files::read_private(&self.folder.join(name))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let install_id = read(INSTALL_ID)?.trim().parse();
        let install_id = install_id.map_err(|error| EnrolError::Left {
            path: self.folder.clone(),
            reason: format!("{INSTALL_ID}: {error}"),
        })?;
        Ok((read(REQUEST)?, install_id))
    }

    /// Writes everything that the answer says.
    ///
    /// # Errors
    ///
    /// When something cannot be written; another call goes on from here.
    pub fn fill(&self, papers: &Papers, home: Home) -> Result<(), EnrolError> {
        let answer = &papers.answer;
        let chain = format!("{}{}", answer.certificate, answer.authority);
        let pins: Vec<SpkiPin> = answer.pins.pins.iter().copied().collect();
        let toml = configuration(&answer.url, &pins, answer.binding, home);
        self.write(CERTIFICATE, chain.as_bytes(), 0o644)?;
        self.write(AUTHORITY, answer.authority.as_bytes(), 0o644)?;
        let answer = &papers.answer;
        let identity = identity_file(
            &answer.tenant,
            answer.agent_id,
            &answer.trust_domain,
            u32::from(answer.key_generation),
            &papers.secrets.agent_key,
            &papers.secrets.token,
        );
        self.write(IDENTITY, &identity, 0o600)?;
        fault::point("enrol.filling");
        // Last: what has it has everything, whole.
        self.write_whole(CONFIGURATION, toml.as_bytes())
    }

    /// Moves everything to where the agent looks for it.
    ///
    /// # Errors
    ///
    /// When something cannot be moved; another call goes on from here.
    pub fn finish(self, home: Home) -> Result<(), EnrolError> {
        // A demo's gateway fills its own.
        if home != Home::Demo {
            self.write_catalogue()?;
        }
        for name in MOVED {
            fault::point("enrol.moving");
            let (from, to) = (self.folder.join(name), self.target.join(name));
            match std::fs::rename(&from, &to) {
                Ok(()) => {}
                // Moved before.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(io("move", &from, source)),
            }
        }
        files::sync_folder(&self.target)?;
        self.clear()
    }

    /// Removes the folder and what is in it: nothing came of it, or everything was moved.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn clear(self) -> Result<(), EnrolError> {
        std::fs::remove_dir_all(&self.folder)
            .map_err(|source| io("remove", &self.folder, source))?;
        files::sync_folder(&self.target)?;
        Ok(())
    }

    /// What may run here: the shipped catalogue, where there is none yet. What somebody wrote stays as it is.
    fn write_catalogue(&self) -> Result<(), EnrolError> {
        let folder = self.target.join(CATALOGUE);
        let begun = self.folder.join(CATALOGUE);
        if folder.symlink_metadata().is_ok() {
            return Ok(());
        }
        if begun.symlink_metadata().is_ok() {
            std::fs::remove_dir_all(&begun).map_err(|source| io("remove", &begun, source))?;
        }
        files::create_private_folder(&begun)?;
        for (name, contents) in SHIPPED {
            files::write_new(&begun.join(name), contents.as_bytes(), 0o644)?;
        }
        files::sync_folder(&begun)?;
        std::fs::rename(&begun, &folder).map_err(|source| io("move", &begun, source))
    }

    fn write(&self, name: &str, contents: &[u8], mode: u32) -> Result<(), EnrolError> {
        Ok(files::write_new(&self.folder.join(name), contents, mode)?)
    }

    /// Writes a file that says something by being there: under another name first.
    fn write_whole(&self, name: &str, contents: &[u8]) -> Result<(), EnrolError> {
        self.remove(&[PART])?;
        self.write(PART, contents, 0o600)?;
        let (part, whole) = (self.folder.join(PART), self.folder.join(name));
        std::fs::rename(&part, &whole).map_err(|source| io("move", &part, source))?;
        Ok(files::sync_folder(&self.folder)?)
    }

    fn remove(&self, names: &[&str]) -> Result<(), EnrolError> {
        for name in names {
            let path = self.folder.join(name);
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(io("remove", &path, source)),
            }
        }
        Ok(())
    }
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> EnrolError {
    EnrolError::File(FileError::Io {
        action,
        path: path.to_owned(),
        source,
    })
}
