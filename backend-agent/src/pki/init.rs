//! The first step of a new backend: an authority, the server's keys, the master key and a complete configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_common::id::TrustDomain;
use viworks_common::key::Secret;
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;
use viworks_runtime::{files, random};

use super::authority::{Authority, Standby};
use super::{PkiError, Secrecy, private_folder, template, write_new};

/// How long the server's first certificate lives.
const SERVER_LIFE: Duration = Duration::from_secs(90 * 24 * 3_600);

/// Everything `pki init` writes.
const NAMES: &[&str] = &[
    "ca.crt",
    "ca.key",
    "server.crt",
    "server.key",
    "next.key",
    "master.key",
    "backend.toml",
];

/// What is wanted.
#[derive(Debug, Clone)]
pub struct InitRequest {
    /// Where everything goes.
    pub folder: PathBuf,
    /// The trust domain in every gateway's name.
    pub trust_domain: TrustDomain,
    /// Under which names and addresses gateways reach the server.
    pub server_names: Vec<String>,
    /// Whether the package's service is to run it, which has its own place for the state.
    pub installed: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initialised {
    /// The configuration.
    pub config: PathBuf,
    /// The pin of the server's key.
    pub active: SpkiPin,
    /// The pin of its successor.
    pub next: SpkiPin,
}

/// Makes all of it in one folder.
///
/// # Errors
///
/// When anything is there already, or cannot be made or written.
pub fn init(request: &InitRequest, now: Timestamp) -> Result<Initialised, PkiError> {
    let folder = &request.folder;
    let (authority, authority_key) = Authority::create(now)?;
    let server = authority.server(&request.server_names, now, SERVER_LIFE)?;
    let _room = private_folder(folder, NAMES)?;
    let next = Standby::create()?;
    let master = Secret::from_bytes(random::bytes());
    let chain = format!("{}{}", server.certificate, authority.certificate());
    let public = |name: &str, text: &str| write(folder, name, text, Secrecy::Public);
    let secret = |name: &str, text: &str| write(folder, name, text, Secrecy::Secret);
    let write_all = || {
        public("ca.crt", authority.certificate())?;
        secret("ca.key", &authority_key)?;
        public("server.crt", &chain)?;
        secret("server.key", &server.key)?;
        secret("next.key", &next.key)?;
        secret("master.key", &master.expose_hex())?;
        // Last: whoever finds the configuration finds everything it names.
        secret(
            "backend.toml",
            &template::backend(&request.trust_domain, request.installed),
        )?;
        files::sync_folder(folder).map_err(PkiError::from)
    };
    if let Err(error) = write_all() {
        // None of these was there before: half of them would only stand in the way of the next attempt.
        for name in NAMES {
            drop(std::fs::remove_file(folder.join(name)));
        }
        return Err(error);
    }
    Ok(Initialised {
        config: folder.join("backend.toml"),
        active: SpkiPin::from_digest(server.facts.spki),
        next: next.pin,
    })
}

fn write(folder: &Path, name: &str, text: &str, secrecy: Secrecy) -> Result<(), PkiError> {
    write_new(&folder.join(name), text.as_bytes(), secrecy)
}
