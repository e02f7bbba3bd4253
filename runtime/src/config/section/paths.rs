//! Keys whose values name files and folders.

use std::path::{Path, PathBuf};

use super::Section;
use crate::config::credential;
use crate::config::key::Kind;
use crate::config::tree::Value;
use crate::config::value::{self, Refusal};
use crate::files::{self, FileError};

impl Section<'_> {
    /// A path with a default.
    pub fn path(&mut self, key: &str, default: &str, help: &str) -> PathBuf {
        let path = self.defaulted(key, &Kind::Path, super::quoted(default), help, plain_path);
        match path {
            Some(path) => self.name(key, &path),
            None => self.resolve(default),
        }
    }

    /// A path that may be left out.
    pub fn optional_path(&mut self, key: &str, help: &str) -> Option<PathBuf> {
        let path = self.optional(key, &Kind::Path, help, plain_path)?;
        Some(self.name(key, &path))
    }

    /// The path of a file that must be given and be there.
    pub fn file(&mut self, key: &str, help: &str) -> PathBuf {
        self.checked_file(key, help, true, files::examine)
            .unwrap_or_default()
    }

    /// The path of a file that may be left out, but must be there if given.
    pub fn optional_file(&mut self, key: &str, help: &str) -> Option<PathBuf> {
        self.checked_file(key, help, false, files::examine)
    }

    /// The path of a file that must be given, be there, and be closed to others.
    pub fn secret_file(&mut self, key: &str, help: &str) -> PathBuf {
        self.checked_file(key, help, true, files::examine_private)
            .unwrap_or_default()
    }

    /// The path of a file that may be left out, but must be there and be closed to others if given.
    pub fn optional_secret_file(&mut self, key: &str, help: &str) -> Option<PathBuf> {
        self.checked_file(key, help, false, files::examine_private)
    }

    fn checked_file(
        &mut self,
        key: &str,
        help: &str,
        required: bool,
        check: impl FnOnce(&Path) -> Result<(), FileError>,
    ) -> Option<PathBuf> {
        let named = self.optional_or(key, &Kind::File, help, required, value::string)?;
        let found = credential::find(&named, self.document.environment());
        let path = match found {
            None => self.name(key, &named),
            Some(Ok(path)) => self.name(key, &path.to_string_lossy()),
            Some(Err(Refusal { message, help })) => {
                // Credentials are the service's alone, and whoever only asks needs none.
                if self.document.examines() {
                    self.problem(key, format!("{key}: {message}"), help);
                }
                return None;
            }
        };
        if self.document.examines()
            && let Err(error) = check(&path)
        {
            let place = self.place(key);
            let message = format!("{key}: {}", error.cause());
            let help = if error.is_missing() {
                format!("put it there, or write where it is as {key}")
            } else {
                error.fix()
            };
            self.document.push(place, message, help);
            self.document.refuse_file(&path);
        }
        Some(path)
    }

    /// Resolves a path that a key gives, and remembers which key that was.
    fn name(&mut self, key: &str, path: &str) -> PathBuf {
        let path = self.resolve(path);
        let place = self.place(key);
        self.document.name_path(&path, key, place);
        path
    }

    fn resolve(&self, path: &str) -> PathBuf {
        self.document.folder().join(path)
    }
}

/// A path that is no credential: those are files to be read, and this is something else.
fn plain_path(key: &str, value: &Value) -> Result<String, Refusal> {
    let path = value::string(key, value)?;
    if path.starts_with(credential::PREFIX) {
        return Err(Refusal::new(
            format!("{key} is {path:?}, and only a file that is read can be a credential"),
            format!("write a path: {key} names what the process makes or looks for"),
        ));
    }
    Ok(path)
}
