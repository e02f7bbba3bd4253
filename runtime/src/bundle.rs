//! A bundle for whoever is asked for help: text files in one archive that only its owner can read, bounded, and with
//! what looks like a secret taken out.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::files::{self, FileError};

pub mod machine;

/// Bytes of one file; the rest of it is left out, and said to be.
const FILE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Bytes of all files together; those that would go beyond are left out, and named in the list.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// The list of what is in it.
const LIST: &str = "CONTENTS.txt";

/// What stands in the place of a secret.
const REMOVED: &str = "[removed]";

/// Digits of a secret of this product in hexadecimal. Public digests are as long, and go with it.
const HEX_DIGITS: usize = 64;

/// How an API key begins.
const API_KEY: &str = "vwk_";

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The archive cannot be made.
    #[error("the bundle cannot be made")]
    Archive(#[source] io::Error),
    /// Its file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A bundle that is being collected.
#[derive(Debug, Default)]
pub struct Bundle {
    files: Vec<(String, String)>,
    list: Vec<String>,
    bytes: usize,
}

impl Bundle {
    /// Adds a file of text, with what it holds in a few words. What looks like a secret is taken out of it.
    pub fn add(&mut self, name: &str, what: &str, text: &str) {
        let mut text = redact(text).into_owned();
        let whole = text.len();
        if whole > FILE_BYTES_MAX {
            text.truncate(text.floor_char_boundary(FILE_BYTES_MAX));
        }
        let left_out = whole - text.len();
        if self.bytes.saturating_add(text.len()) > BYTES_MAX {
            self.list
                .push(format!("{name}: left out, the bundle is full"));
            return;
        }
        self.bytes += text.len();
        let cut = match left_out {
            0 => String::new(),
            bytes => format!(" ({bytes} bytes at its end left out)"),
        };
        self.list
            .push(format!("{name}: {what}, {} bytes{cut}", text.len()));
        self.files.push((name.to_owned(), text));
    }

    /// Says that something is not in it, and why.
    pub fn missing(&mut self, name: &str, why: &str) {
        self.list
            .push(format!("{name}: not there, {}", redact(why)));
    }

    /// What is in it, a line for each file.
    #[must_use]
    pub fn list(&self) -> &[String] {
        &self.list
    }

    /// Writes it to a new file, which only this user can read, with the list as its first entry.
    ///
    /// # Errors
    ///
    /// When the file is there already, or cannot be written.
    pub fn write(mut self, path: &Path) -> Result<(), BundleError> {
        let list = format!("{}\n", self.list.join("\n"));
        self.files.insert(0, (LIST.to_owned(), list));
        let bytes = archive(&self.files).map_err(BundleError::Archive)?;
        Ok(files::write_new(path, &bytes, 0o600)?)
    }
}

fn archive(files: &[(String, String)]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for (name, text) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        archive.append_data(&mut header, name, text.as_bytes())?;
    }
    let mut packed = archive.into_inner()?;
    packed.flush()?;
    packed.finish()
}

/// `text` without what looks like a secret: private keys, API keys, hexadecimal keys, passwords in addresses.
fn redact(text: &str) -> Cow<'_, str> {
    let mut hidden = String::new();
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            in_key = true;
            hidden.push_str(REMOVED);
            hidden.push('\n');
        }
        if !in_key {
            redact_line(line, &mut hidden);
        }
        if line.contains("-----END") {
            in_key = false;
        }
    }
    if hidden == text {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(hidden)
    }
}

fn redact_line(line: &str, into: &mut String) {
    let of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let end = if of_word(first) {
            rest.find(|c| !of_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (word, after) = rest.split_at(end);
        let is_hex = word.len() >= HEX_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hex || word.starts_with(API_KEY) {
            into.push_str(REMOVED);
        } else {
            into.push_str(word);
        }
        rest = after;
        if into.ends_with("://")
            && let Some(at) = userinfo(rest)
        {
            into.push_str(REMOVED);
            rest = &rest[at..];
        }
    }
}

/// Where a name and its password end that an address begins with.
fn userinfo(address: &str) -> Option<usize> {
    let end = address
        .find(|c: char| c == '/' || c == '"' || c.is_whitespace())
        .unwrap_or(address.len());
    let at = address[..end].rfind('@')?;
    address[..at].contains(':').then_some(at)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out_and_the_rest_stays() {
        let hex = "0f".repeat(32);
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----\n";
        let text = format!(
            "key {hex} of gw-1\n{pem}token=vwk_abc-DEF_123, url postgres://me:pass@db/x and wss://gw:8081/a\n"
        );
        assert_eq!(
            redact(&text),
            "key [removed] of gw-1\n[removed]\ntoken=[removed], url postgres://[removed]@db/x and wss://gw:8081/a\n"
        );
        let plain = "a certificate sha256/abc= of user@example.org\n";
        assert!(matches!(redact(plain), Cow::Borrowed(_)));
    }

    #[test]
    fn a_bundle_is_its_owners_lists_what_is_in_it_and_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.tar.gz");
        let mut bundle = Bundle::default();
        bundle.add("version.txt", "the version", "0.1.0\n");
        for number in 0..12 {
            let name = format!("log.{number}");
            bundle.add(&name, "lines", &"x y\n".repeat(FILE_BYTES_MAX));
        }
        bundle.missing("status.json", "nobody answers");
        let list = bundle.list().join("\n");
        assert!(list.contains("bytes at its end left out"), "{list}");
        assert!(
            list.contains("log.8: left out, the bundle is full"),
            "{list}"
        );
        bundle.write(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let packed = std::fs::File::open(&path).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed));
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let name = entry.path().unwrap().display().to_string();
            if name == LIST {
                assert!(text.contains("status.json: not there, nobody answers"));
            }
            names.push(name);
        }
        assert_eq!(&names[..2], [LIST, "version.txt"]);
        assert_eq!(names.len(), 2 + 7);
        let again = Bundle::default().write(&path);
        assert!(matches!(again, Err(BundleError::File(_))), "{again:?}");
    }
}
