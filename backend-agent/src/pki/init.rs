//! The first step of a new backend: an authority, the server's keys, the master key and a complete configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_common::id::TrustDomain;
use viworks_common::key::Secret;
use viworks_common::pin::SpkiPin;
use viworks_common::time::Timestamp;
use viworks_runtime::{files, random, tls};
use zeroize::Zeroizing;

use super::authority::{Authority, Standby};
use super::issue::load_authority;
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
    /// Who signs, where that is not a new authority of this backend's own.
    pub authority: Option<OwnAuthority>,
}

/// An authority that a site has: an intermediate, or a root.
#[derive(Debug, Clone)]
pub struct OwnAuthority {
    /// Its certificate, PEM, with those above it behind it.
    pub certificate: PathBuf,
    /// Who has its key.
    pub key: OwnKey,
}

/// Who has the key of such an authority.
#[derive(Debug, Clone)]
pub enum OwnKey {
    /// A file, which is copied.
    File(PathBuf),
    /// A program, with its arguments.
    Command(Vec<String>),
}

/// An authority, and what is written for it.
struct Signs {
    authority: Authority,
    /// Its private key, PEM, where that is to be here.
    key: Option<Zeroizing<String>>,
    /// What the configuration says of it.
    line: String,
}

/// The name of the copy of its key.
const KEY: &str = "ca.key";

impl Signs {
    fn new(own: Option<&OwnAuthority>, now: Timestamp) -> Result<Self, PkiError> {
        let Some(own) = own else {
            let (authority, key) = Authority::create(now)?;
            return Ok(Self::with_key(authority, key));
        };
        let certificate = &own.certificate;
        check_authority(certificate, now)?;
        match &own.key {
            OwnKey::File(key) => {
                let authority = load_authority(certificate, key)?;
                let key = files::read_private(key)?;
                let key = Zeroizing::new(String::from_utf8_lossy(&key).into_owned());
                Ok(Self::with_key(authority, key))
            }
            OwnKey::Command(command) => {
                let is_plain = |word: &String| {
                    let mut bytes = word.bytes();
                    bytes.all(|byte| byte.is_ascii_graphic() || byte == b' ')
                };
                if let Some(word) = command.iter().find(|&word| !is_plain(word)) {
                    let word = word.clone();
                    return Err(PkiError::SignerWord { word });
                }
                let program = command.first().filter(|it| !Path::new(it).is_absolute());
                if let Some(program) = program.cloned() {
                    return Err(PkiError::SignerPath { program });
                }
                let text = files::read_trusted(certificate, 1024 * 1024)?;
                let text = String::from_utf8_lossy(&text);
                Ok(Self {
                    authority: Authority::asking(&text, command)?,
                    key: None,
                    line: format!("ca_sign_command = {command:?}"),
                })
            }
        }
    }

    fn with_key(authority: Authority, key: Zeroizing<String>) -> Self {
        Self {
            authority,
            key: Some(key),
            line: format!("ca_key_file = \"{KEY}\""),
        }
    }
}

/// Refuses what could sign nothing that gateways and backends accept: no authority, one that has ended, or certificates
/// behind it that are not those above it.
fn check_authority(path: &Path, now: Timestamp) -> Result<(), PkiError> {
    let refused = |reason: &str| PkiError::NotAnAuthority {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let certificates = tls::load_certificates(path)?;
    let mut above: Option<Vec<u8>> = None;
    for (place, der) in certificates.iter().enumerate() {
        let (_rest, parsed) = x509_parser::parse_x509_certificate(der)
            .map_err(|_other| refused("a certificate in it cannot be read"))?;
        if !parsed.is_ca() {
            return Err(refused(
                "a certificate in it is not an authority's (CA:TRUE)",
            ));
        }
        let usage = parsed.key_usage().ok().flatten();
        if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(refused(
                "a certificate in it may not sign others (keyCertSign)",
            ));
        }
        let (from, to) = tls::validity(der)?;
        if now < from || now > to {
            return Err(refused(
                "a certificate in it has ended, or is not valid yet",
            ));
        }
        if above.is_some_and(|issuer| issuer != parsed.subject().as_raw()) {
            let expected = if place == 1 {
                "the second certificate in it is not of whoever issued the first"
            } else {
                "one of the certificates behind the first is not of whoever issued the one before"
            };
            return Err(refused(expected));
        }
        above = Some(parsed.issuer().as_raw().to_vec());
    }
    Ok(())
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
    let signs = Signs::new(request.authority.as_ref(), now)?;
    let authority = &signs.authority;
    let server = authority.server(&request.server_names, now, SERVER_LIFE)?;
    let _room = private_folder(folder, NAMES)?;
    let next = Standby::create()?;
    let master = Secret::from_bytes(random::bytes());
    let chain = format!("{}{}", server.certificate, authority.certificate());
    let public = |name: &str, text: &str| write(folder, name, text, Secrecy::Public);
    let secret = |name: &str, text: &str| write(folder, name, text, Secrecy::Secret);
    let write_all = || {
        public("ca.crt", authority.certificate())?;
        if let Some(key) = &signs.key {
            secret(KEY, key)?;
        }
        public("server.crt", &chain)?;
        secret("server.key", &server.key)?;
        secret("next.key", &next.key)?;
        secret("master.key", &master.expose_hex())?;
        // Last: whoever finds the configuration finds everything it names.
        secret(
            "backend.toml",
            &template::backend(&request.trust_domain, request.installed, &signs.line),
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
