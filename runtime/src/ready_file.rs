//! Tells whoever started the process where it listens.

use std::path::Path;

use serde::Serialize;

use crate::files::{self, FileError};

/// Why the file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReadyFileError {
    /// The addresses have no JSON form.
    #[error("failed to encode the ready file")]
    Encode(#[source] serde_json::Error),
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The file or folder among what an error came of that could not be used, where nothing more is known of it.
#[must_use]
pub fn file_of<'a>(
    mut causes: impl Iterator<Item = &'a (dyn std::error::Error + 'static)>,
) -> Option<&'a FileError> {
    causes.find_map(|cause| {
        // It shows itself as the file's error, and is not found among the causes beneath.
        if let Some(ReadyFileError::File(error)) = cause.downcast_ref() {
            return Some(error);
        }
        cause.downcast_ref()
    })
}

/// Writes `addresses` to `path` as one JSON document. It appears whole, by rename, so whoever waits for the file may
/// read it as soon as it is there.
///
/// # Errors
///
/// When it cannot be encoded or written.
pub fn write(path: &Path, addresses: &impl Serialize) -> Result<(), ReadyFileError> {
    let mut json = serde_json::to_vec(addresses).map_err(ReadyFileError::Encode)?;
    json.push(b'\n');
    files::write_atomic(path, &json)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use super::*;

    #[test]
    fn what_was_written_can_be_read_as_json() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ready.json");
        let api: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        write(&path, &BTreeMap::from([("api", api)])).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"api\":\"127.0.0.1:8080\"}\n"
        );
    }

    #[test]
    fn the_file_is_found_among_the_causes() {
        let refused = || FileError::NotAFile {
            path: "/x/ready.json".into(),
        };
        let ready = ReadyFileError::File(refused());
        let chained = |error: &'static (dyn std::error::Error + 'static)| {
            std::iter::successors(Some(error), |cause| cause.source())
        };
        let ready: &'static ReadyFileError = Box::leak(Box::new(ready));
        let bare: &'static FileError = Box::leak(Box::new(refused()));
        for error in [chained(ready), chained(bare)] {
            let found = file_of(error).unwrap();
            assert_eq!(found.path(), Path::new("/x/ready.json"));
        }
        let other: &'static std::fmt::Error = Box::leak(Box::new(std::fmt::Error));
        assert!(file_of(chained(other)).is_none());
    }

    #[test]
    fn a_missing_folder_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("no/ready.json"), &()).unwrap_err();
        assert!(error.to_string().contains("ready.json"), "{error}");
    }
}
