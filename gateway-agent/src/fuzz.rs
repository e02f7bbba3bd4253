//! What fuzzers do to the gateway's files: each body takes any bytes whatever and panics when a law is broken.
//!
//! `fuzz/` feeds them with new bytes, and the tests below with every stored one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use viworks_common::catalogue::check_entry;
use viworks_common::command::Arguments;
use viworks_common::limits;
use viworks_runtime::config::{Environment, Problems};

use crate::catalogue::{self, OtherUsers, Owners};
use crate::config::Config;

/// Puts the files into a folder that a configuration may name: `gateway.crt`, `ca.crt`, `gateway.key`, `identity.json`.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn prepare(folder: &Path) -> io::Result<()> {
    for (name, mode) in [
        ("gateway.crt", 0o644),
        ("ca.crt", 0o644),
        ("gateway.key", 0o600),
        ("identity.json", 0o600),
    ] {
        let path = folder.join(name);
        fs::write(&path, "x")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Takes the bytes as a configuration file in a prepared folder.
///
/// # Panics
///
/// When a law is broken.
pub fn configuration(folder: &Path, data: &[u8]) {
    let path = folder.join("gateway.toml");
    fs::write(&path, data).expect("the prepared folder can be written");
    let read = || Config::load(&path, &Environment::default());
    match read() {
        Ok(config) => {
            assert!(!config.outbound.pins.is_empty() && !config.outbound.host.is_empty());
            assert!(config.outbound.path.starts_with('/'));
            assert!(config.gateway.labels.len() <= limits::LABELS_MAX);
            assert!(config.executor.parallel_max > 0);
            assert_eq!(read().ok(), Some(config), "reading twice gives two answers");
        }
        Err(problems) => speak(&problems),
    }
}

/// No helper.
fn nobody() -> OtherUsers {
    OtherUsers::Helper("/nonexistent/helper.sock".into())
}

/// Takes the bytes as the one file of a catalogue in `folder`.
///
/// # Panics
///
/// When a law is broken.
pub fn catalogue(folder: &Path, data: &[u8]) {
    fs::write(folder.join("10-fuzz.toml"), data).expect("the folder can be written");
    let read = || {
        catalogue::load(
            folder,
            Owners::RootAndOwn,
            "/proc/self/exe".into(),
            nobody(),
        )
    };
    match read() {
        Ok(catalogue) => {
            let entries = catalogue.entries();
            assert!(entries.len() <= limits::CATALOGUE_COMMANDS_MAX);
            let names: BTreeSet<_> = entries.iter().map(|entry| &entry.name).collect();
            assert_eq!(names.len(), entries.len());
            for entry in &entries {
                assert_eq!(check_entry(entry), []);
                let required = entry.arguments.iter().any(|a| a.default.is_none());
                let checked = catalogue.check(&entry.name, &Arguments::new());
                assert!(!required || checked.is_err(), "{} ran without", entry.name);
            }
            let again = read().map(|catalogue| catalogue.digest());
            assert_eq!(again.ok(), Some(catalogue.digest()));
        }
        Err(problems) => speak(&problems),
    }
}

fn speak(problems: &Problems) {
    assert!(problems.iter().count() > 0);
    for problem in problems.iter() {
        assert!(!problem.message.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use viworks_testkit::corpus::replay;

    use super::*;

    #[test]
    fn the_stored_configurations_keep_the_laws() {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        replay("configuration_gateway", |data| {
            configuration(folder.path(), data);
        });
    }

    #[test]
    fn the_stored_catalogues_keep_the_laws() {
        let folder = tempfile::tempdir().unwrap();
        replay("catalogue", |data| catalogue(folder.path(), data));
    }

    #[test]
    fn the_first_stored_input_of_each_kind_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        let corpus = viworks_testkit::corpus::folder();
        fs::copy(
            corpus.join("configuration_gateway/00-sound.toml"),
            folder.path().join("gateway.toml"),
        )
        .unwrap();
        let path = folder.path().join("gateway.toml");
        Config::load(&path, &Environment::default()).unwrap();
        let commands = tempfile::tempdir().unwrap();
        fs::copy(
            corpus.join("catalogue/00-sound.toml"),
            commands.path().join("10.toml"),
        )
        .unwrap();
        let loaded = catalogue::load(
            commands.path(),
            Owners::RootAndOwn,
            "/bin/true".into(),
            nobody(),
        );
        assert!(loaded.unwrap().len() > 1);
    }
}
