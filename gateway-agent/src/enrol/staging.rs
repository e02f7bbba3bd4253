//! The folder beside the configuration in which a gateway's files are made, and from which they are moved when all of
//! them are whole: the key first, the configuration last, without which no agent starts.
//!
//! Every file comes into being whole, under another name first. A list of all with their digests comes last, and says
//! that they are complete and which they are: nothing else is ever moved, and nothing is ever replaced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use viworks_common::catalogue::SHIPPED;
use viworks_common::enrolment::{Home, identity_file};
use viworks_common::id::InstallId;
use viworks_runtime::files::{self, FileError, FolderLock};
use viworks_runtime::{fault, random};
use zeroize::Zeroizing;

use super::{EnrolError, Papers, Places};
use crate::identity::INSTALL_ID_FILE;

/// The folder, in that of the configuration.
pub(super) const FOLDER: &str = ".enrolling";
/// The folder of the catalogue.
pub(super) const CATALOGUE: &str = "commands.d";

const INSTALL_ID: &str = "install_id";
const COMPLETE: &str = "complete.json";

const KEY: &str = "gateway.key";
const CERTIFICATE: &str = "gateway.crt";
const AUTHORITY: &str = "ca.crt";
const IDENTITY: &str = "identity.json";
pub(super) const CONFIGURATION: &str = "gateway.toml";

/// What is moved, in this order: the configuration last.
pub(super) const MOVED: [&str; 5] = [KEY, CERTIFICATE, AUTHORITY, IDENTITY, CONFIGURATION];

/// Bytes of the largest of these files.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// How often the folder is begun with where others remove it at the same moment.
const TRIES_MAX: u32 = 3;

type Digest = [u8; 32];

/// The files of one enrolment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Complete {
    sha256: BTreeMap<String, Digest>,
}

impl Complete {
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names and numbers have a JSON form")
    }

    fn expects(&self, name: &str) -> Option<Digest> {
        self.sha256.get(name).copied()
    }
}

/// Who the machine is to the backend before it is a gateway.
#[derive(Debug)]
struct Begun {
    key: KeyPair,
    install_id: InstallId,
}

/// What an earlier call has left.
#[derive(Debug)]
pub enum Found {
    /// Nothing, or a key that the backend may know.
    Begun(Staging),
    /// Every file.
    Whole(Whole),
}

/// The folder, for this process alone, with files that are not complete.
#[derive(Debug)]
pub struct Staging {
    room: Room,
    begun: Option<Begun>,
}

/// The folder, for this process alone, with every file of a gateway.
#[derive(Debug)]
pub struct Whole {
    room: Room,
    complete: Complete,
}

#[derive(Debug)]
struct Room {
    target: PathBuf,
    /// What this call itself made of the target and of the folders above it.
    made: Vec<PathBuf>,
    folder: PathBuf,
    _lock: FolderLock,
}

impl Staging {
    /// Looks for what an earlier call has left beside the files of `places`, for this process alone; refuses where a
    /// gateway's files are already, or where no agent could start.
    ///
    /// # Errors
    ///
    /// When a gateway is or was there, another `enroll` is under way, or the folder cannot be used.
    pub fn open(places: &Places) -> Result<Found, EnrolError> {
        let target = &places.target;
        // Before anything is looked at: what is found holds for as long as this lives.
        let (lock, made) = take(target).map_err(|error| places.not_made(error))?;
        let room = Room {
            target: target.clone(),
            made,
            folder: target.join(FOLDER),
            _lock: lock,
        };
        if let Some(complete) = room.complete()? {
            if room.is_left_over(&complete, places)? {
                return Ok(Found::Whole(Whole { room, complete }));
            }
            room.remove()?;
        }
        if let Some(taken) = room.taken() {
            return Err(places.exists(taken));
        }
        places.examine()?;
        let begun = room.begun()?;
        Ok(Found::Begun(Self { room, begun }))
    }

    /// Whether there was nothing yet: no key that the backend could know.
    #[must_use]
    pub const fn is_fresh(&self) -> bool {
        self.begun.is_none()
    }

    /// A certificate request and the installation: with the key of an earlier call, or a new one.
    ///
    /// # Errors
    ///
    /// When there are none, or they cannot be written.
    pub fn request(&self, known: Option<InstallId>) -> Result<(String, InstallId), EnrolError> {
        let made;
        let Begun { key, install_id } = if let Some(begun) = &self.begun {
            begun
        } else {
            made = self.room.begin(known)?;
            &made
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        Ok((params.serialize_request(key)?.pem()?, *install_id))
    }

    /// Writes everything that the answer says.
    ///
    /// # Errors
    ///
    /// When something cannot be written; another call goes on from here.
    pub fn fill(self, papers: &Papers, home: Home) -> Result<Whole, EnrolError> {
        let room = self.room;
        let answer = &papers.answer;
        let chain = format!("{}{}", answer.certificate, answer.authority);
        let toml = papers.configuration(home);
        room.write(CERTIFICATE, chain.as_bytes(), 0o644)?;
        room.write(AUTHORITY, answer.authority.as_bytes(), 0o644)?;
        let identity = identity_file(
            &answer.tenant,
            answer.agent_id,
            &answer.trust_domain,
            u32::from(answer.key_generation),
            &papers.secrets.agent_key,
            (answer.epoch, &papers.secrets.token),
        );
        room.write(IDENTITY, &identity, 0o600)?;
        fault::point("enrol.filling");
        room.write(CONFIGURATION, toml.as_bytes(), 0o600)?;
        let mut sha256 = BTreeMap::new();
        for name in MOVED {
            let digest = digest(&room.folder.join(name))?;
            let digest = digest.ok_or_else(|| room.unusable(&format!("{name} is missing")))?;
            sha256.insert(name.to_owned(), digest);
        }
        let complete = Complete { sha256 };
        // Last: what has it has everything.
        room.write(COMPLETE, &complete.to_json(), 0o600)?;
        Ok(Whole { room, complete })
    }

    /// Removes the folder and what is in it: nothing came of it.
    ///
    /// # Errors
    ///
    /// When it cannot be removed.
    pub fn clear(self) -> Result<(), EnrolError> {
        self.room.remove()
    }
}

impl Whole {
    /// Moves everything to where the agent looks for it.
    ///
    /// # Errors
    ///
    /// When something cannot be moved, or something else is there by now; another call goes on from here.
    pub fn finish(self, places: &Places) -> Result<(), EnrolError> {
        let Room { target, folder, .. } = &self.room;
        // A demo's gateway fills its own.
        if places.home != Home::Demo {
            self.room.write_catalogue()?;
        }
        // What root writes there the service's user could not read.
        if places.home != Home::Installed {
            self.room.keep_install_id(places.state())?;
        }
        for name in MOVED {
            fault::point("enrol.moving");
            let (from, to) = (folder.join(name), target.join(name));
            match files::move_new(&from, &to) {
                Ok(()) => {}
                // Moved before.
                Err(error) if error.is_missing() => {}
                Err(error) if error.is_taken() && digest(&to)? == self.complete.expects(name) => {
                    remove_file(&from)?;
                }
                Err(error) if error.is_taken() => return Err(places.exists(to)),
                Err(error) => return Err(error.into()),
            }
        }
        files::sync_folder(target)?;
        self.room.remove()
    }
}

impl Drop for Room {
    /// Folders that were made for nothing go again; where anything is in one, it stays.
    fn drop(&mut self) {
        files::remove_made(&self.made);
    }
}

impl Room {
    /// What says that every file is there, where something does.
    fn complete(&self) -> Result<Option<Complete>, EnrolError> {
        let bytes = match files::read_private(&self.folder.join(COMPLETE)) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // What cannot be read says nothing: the backend is asked again.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    /// Whether every file of an enrolment is here or where it is moved to, and nothing else is there. False when an
    /// agent went on with them, or they were taken away, so that nothing of it is left to be done.
    fn is_left_over(&self, complete: &Complete, places: &Places) -> Result<bool, EnrolError> {
        let (mut is_staged, mut is_placed) = (false, true);
        let (mut in_the_way, mut lost) = (None, None);
        for name in MOVED {
            let wanted = complete.expects(name);
            let (here, there) = (self.folder.join(name), self.target.join(name));
            let (staged, placed) = (digest(&here)?, digest(&there)?);
            is_staged |= staged.is_some();
            is_placed &= placed.is_some() && placed == wanted;
            if placed.is_some() && placed != wanted {
                in_the_way.get_or_insert(there);
            }
            if wanted.is_none() || staged.or(placed) != wanted {
                lost.get_or_insert(name);
            }
        }
        match (in_the_way, lost) {
            _ if !is_staged => Ok(is_placed),
            (Some(path), _) => Err(places.exists(path)),
            (None, Some(name)) => Err(self.unusable(&format!("{name} is missing or was changed"))),
            (None, None) => Ok(true),
        }
    }

    /// A file of a gateway that is there.
    fn taken(&self) -> Option<PathBuf> {
        let paths = MOVED.iter().map(|name| self.target.join(name));
        paths.into_iter().find(|path| !files::is_absent(path))
    }

    /// The key and the installation of an earlier call. A key that is no key was never used for anything.
    fn begun(&self) -> Result<Option<Begun>, EnrolError> {
        let read = |name: &str| match files::read_private(&self.folder.join(name)) {
            Ok(bytes) => Ok(Some(Zeroizing::new(
                String::from_utf8_lossy(&bytes).into_owned(),
            ))),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        };
        let key = read(KEY)?.and_then(|pem| KeyPair::from_pem(&pem).ok());
        let Some(key) = key else {
            return Ok(None);
        };
        let install_id = read(INSTALL_ID)?.and_then(|text| text.trim().parse().ok());
        // It is there before the key is.
        let install_id =
            install_id.ok_or_else(|| self.unusable(&format!("{INSTALL_ID} holds no id")))?;
        Ok(Some(Begun { key, install_id }))
    }

    /// Makes a key. The installation comes first: with the key the backend is asked.
    fn begin(&self, known: Option<InstallId>) -> Result<Begun, EnrolError> {
        files::create_private_folder(&self.folder)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let install_id = known.unwrap_or_else(|| InstallId::from_uuid(random::uuid_v4()));
        let pem = Zeroizing::new(key.serialize_pem());
        self.write(INSTALL_ID, install_id.to_string().as_bytes(), 0o600)?;
        self.write(KEY, pem.as_bytes(), 0o600)?;
        Ok(Begun { key, install_id })
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

    /// The agent goes on as the installation that enrolled, where that can be written. Where it cannot, the agent draws
    /// an id of its own, which does no harm; but a full disk is in the way of everything that is still to be done.
    fn keep_install_id(&self, state: &Path) -> Result<(), EnrolError> {
        let path = state.join(INSTALL_ID_FILE);
        if !files::is_absent(&path) {
            return Ok(());
        }
        // Nothing else is ever lost of it here, and it is not worth an enrolment.
        let Ok(bytes) = files::read_private(&self.folder.join(INSTALL_ID)) else {
            return Ok(());
        };
        let Ok(id) = String::from_utf8_lossy(&bytes).trim().parse::<InstallId>() else {
            return Ok(());
        };
        let line = format!("{id}\n");
        let kept = files::create_private_folder(state)
            .and_then(|()| files::write_new(&path, line.as_bytes(), 0o600));
        match kept {
            Err(error) if error.is_no_room() => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn write(&self, name: &str, contents: &[u8], mode: u32) -> Result<(), EnrolError> {
        fault::point("enrol.writing");
        let path = self.folder.join(name);
        Ok(files::write_atomic_as(&path, contents, mode)?)
    }

    /// Removes the folder, and last in it what says that everything was complete.
    fn remove(&self) -> Result<(), EnrolError> {
        if files::is_absent(&self.folder) {
            return Ok(());
        }
        for name in files::names(&self.folder)? {
            let path = self.folder.join(&name);
            if name == CATALOGUE {
                std::fs::remove_dir_all(&path).map_err(|source| io("remove", &path, source))?;
            } else if name != COMPLETE {
                remove_file(&path)?;
            }
        }
        std::fs::remove_dir_all(&self.folder)
            .map_err(|source| io("remove", &self.folder, source))?;
        Ok(files::sync_folder(&self.target)?)
    }

    fn unusable(&self, reason: &str) -> EnrolError {
        EnrolError::Left {
            path: self.folder.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// Makes a folder where it is missing, and takes it for this process alone; with what this made of it and of those
/// above it.
fn take(target: &Path) -> Result<(FolderLock, Vec<PathBuf>), EnrolError> {
    let mut tries = 1;
    loop {
        let made = files::make_private_folder(target);
        let taken = made.and_then(|made| Ok((files::hold_folder(target)?, made)));
        match taken {
            Ok(taken) => return Ok(taken),
            Err(FileError::Locked { path, .. }) => return Err(EnrolError::UnderWay { path }),
            // Another call that made it for nothing has just removed it.
            Err(error) if error.is_missing() && tries < TRIES_MAX => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// The SHA-256 of a file, if there is one.
fn digest(path: &Path) -> Result<Option<Digest>, EnrolError> {
    if files::is_absent(path) {
        return Ok(None);
    }
    let bytes = Zeroizing::new(files::read_at_most(path, FILE_BYTES_MAX)?);
    Ok(Some(Sha256::digest(&*bytes).into()))
}

fn remove_file(path: &Path) -> Result<(), EnrolError> {
    std::fs::remove_file(path).map_err(|source| io("remove", path, source))
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> EnrolError {
    EnrolError::File(FileError::Io {
        action,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_by_one_and_is_whose_call_made_it() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("site/gateway");
        let (lock, made) = take(&target).unwrap();
        assert_eq!(made.len(), 2, "{made:?}");
        let error = take(&target).unwrap_err();
        assert!(matches!(error, EnrolError::UnderWay { .. }), "{error}");
        drop(lock);
        let (_lock, made) = take(&target).unwrap();
        assert!(made.is_empty(), "{made:?}");
    }
}
