//! Keys whose values name files and folders.

use std::path::{Path, PathBuf};

use super::Section;
use crate::config::credential;
use crate::config::key::Kind;
use crate::config::value::{self, Refusal};
use crate::files::{self, FileError};

impl Section<'_> {
    /// A path with a default.
    pub fn path(&mut self, key: &str, default: &str, help: &str) -> PathBuf {
        let path = self.defaulted(
            key,
            &Kind::Path,
            super::quoted(default),
            help,
            value::string,
        );
        match path {
            Some(path) => self.name(key, &path),
            None => self.resolve(default),
        }
    }

    /// A path that may be left out.
    pub fn optional_path(&mut self, key: &str, help: &str) -> Option<PathBuf> {
        let path = self.optional(key, &Kind::Path, help, value::string)?;
        Some(self.name(key, &path))
    }

    /// The path of a file that must be given and be there.
    pub fn file(&mut self, key: &str, help: &str) -> PathBuf {
        self.checked_file(key, help, true, files::examine)
            .unwrap_or_default()
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
            self.document.push(place, message, error.fix());
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
