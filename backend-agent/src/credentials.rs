//! What it takes to get into a server, in files: its password, and the authority that signed its certificate.

use std::path::{Path, PathBuf};

use viworks_runtime::files::{self, FileError};
use zeroize::Zeroizing;

/// The most that a file of authorities may hold.
const AUTHORITY_BYTES_MAX: u64 = 1024 * 1024;

/// What is wrong with such a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct CredentialError {
    path: PathBuf,
    /// It names the file.
    problem: String,
}

impl CredentialError {
    fn of(path: &Path, problem: &str) -> Self {
        Self {
            path: path.to_owned(),
            problem: format!("{}: {problem}", path.display()),
        }
    }

    fn of_file(path: &Path, error: &FileError) -> Self {
        Self {
            path: path.to_owned(),
            problem: error.cause(),
        }
    }

    /// Which file it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Certificates of an authority, PEM.
pub(crate) fn read_authority(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let pem = files::read_trusted(path, AUTHORITY_BYTES_MAX)
        .map_err(|error| CredentialError::of_file(path, &error))?;
    let begins = b"-----BEGIN CERTIFICATE-----";
    if !pem.windows(begins.len()).any(|window| window == begins) {
        return Err(CredentialError::of(path, "it holds no certificate"));
    }
    Ok(pem)
}

/// A password, on one line of a file for the owner only.
pub(crate) fn read_password(path: &Path) -> Result<Zeroizing<String>, CredentialError> {
    let text = files::read_private(path);
    let text = text.map_err(|error| CredentialError::of_file(path, &error))?;
    let text =
        str::from_utf8(&text).map_err(|_not_utf8| CredentialError::of(path, "it is not text"))?;
    let password = text.trim_end_matches(['\n', '\r']);
    if password.is_empty() || password.contains(['\n', '\r', '\u{feff}']) {
        let problem = "it must hold the password, on one line";
        return Err(CredentialError::of(path, problem));
    }
    Ok(Zeroizing::new(password.to_owned()))
}

/// Whether a host is this machine.
pub(crate) fn is_local(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost"
        || host.starts_with('/')
        || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_used_is_named_once() {
        let folder = tempfile::tempdir().unwrap();
        let named = |said: &str, what: &str| {
            assert_eq!(said.matches(what).count(), 1, "{said}");
        };
        let absent = read_password(&folder.path().join("absent")).unwrap_err();
        named(&absent.to_string(), "absent");
        let empty = folder.path().join("empty");
        files::write_new(&empty, b"\n", 0o600).unwrap();
        let said = read_password(&empty).unwrap_err().to_string();
        named(&said, "empty");
        assert!(said.contains("it must hold the password"), "{said}");
    }
}
