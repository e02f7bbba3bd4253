//! What certbot will do to a certificate: whether it makes another key when it renews it.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use viworks_common::pin::SpkiPin;
use viworks_runtime::config::Problem;
use viworks_runtime::files::FileError;
use viworks_runtime::{files, tls};

/// More than any such file has.
const BYTES_MAX: u64 = 256 * 1024;

/// Finds every renewal that would make another key for a certificate whose key gateways pin.
pub(super) fn check(folder: &Path, pins: &[SpkiPin], own: &[PathBuf]) -> Vec<Problem> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            let message = format!("cannot be read: {error}");
            return vec![Problem::of_file(
                folder,
                message,
                "--renewal names certbot's folder of renewals, /etc/letsencrypt/renewal",
            )];
        }
    };
    let own: Vec<_> = own
        .iter()
        .filter_map(|path| path.canonicalize().ok())
        .collect();
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "conf")
    });
    paths.sort();
    paths
        .iter()
        .filter_map(|path| judge(path, pins, &own))
        .collect()
}

fn judge(path: &Path, pins: &[SpkiPin], own: &[PathBuf]) -> Option<Problem> {
    let text = match files::read_at_most(path, BYTES_MAX) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => return Some(error.problem()),
    };
    if setting(&text, "reuse_key").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    let named = ["fullchain", "cert", "privkey"].map(|key| setting(&text, key).map(PathBuf::from));
    let is_own = named
        .iter()
        .flatten()
        .any(|path| path.canonicalize().is_ok_and(|path| own.contains(&path)));
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    // A deploy hook may have copied it: the key tells.
    let [fullchain, cert, _key] = &named;
    let pinned = match first_pin(fullchain.iter().chain(cert)) {
        Ok(pin) => pin.filter(|pin| pins.contains(pin)),
        Err(_unread) if is_own => None,
        Err(cause) => {
            let message = format!(
                "the next renewal makes another key, and whether gateways pin the one in use cannot be told: {cause}"
            );
            let help = format!("ask as root; or certbot renew --cert-name {name} --reuse-key");
            return Some(Problem::of_file(path, message, help));
        }
    };
    if !is_own && pinned.is_none() {
        return None;
    }
    let message = match pinned {
        Some(pin) => format!("the next renewal makes another key, and gateways pin the one in use, {pin}: they would be cut off"),
        None => "the next renewal makes another key, and gateways pin that of the agents' certificate: they would be cut off".to_owned(),
    };
    let help = format!(
        "certbot renew --cert-name {name} --reuse-key, or write reuse_key = True below [renewalparams]"
    );
    Some(Problem::of_file(path, message, help))
}

/// The pin of the first of these files that is there; otherwise why it cannot be told.
fn first_pin<'p>(files: impl Iterator<Item = &'p PathBuf>) -> Result<Option<SpkiPin>, String> {
    for file in files {
        match file.canonicalize() {
            Ok(path) => return pin(&path).map(Some),
            // What is not there is in use nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", file.display())),
        }
    }
    Ok(None)
}

/// The pin of the key of a file's first certificate, otherwise why it cannot be told. Root asks, as whom nginx starts,
/// and the files are of several users: what is only compared is read whoever could change it.
pub(super) fn pin(path: &Path) -> Result<SpkiPin, String> {
    let told = |error: FileError| error.problem().message;
    let text = files::read_at_most(path, BYTES_MAX).map_err(told)?;
    let first = CertificateDer::from_pem_slice(&text)
        .map_err(|error| format!("{} holds no certificate: {error}", path.display()))?;
    let pin = tls::spki_sha256(&first).map_err(|error| error.problem(path).message)?;
    Ok(SpkiPin::from_digest(pin))
}

/// The value of a key, wherever it stands: certbot writes each once.
fn setting<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.trim())
    })
}
