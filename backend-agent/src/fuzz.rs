//! What fuzzers do to the backend's configuration: any bytes whatever, and a panic when a law is broken.
//!
//! `fuzz/` feeds it with new bytes, and the tests below with every stored one.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use viworks_common::limits;
use viworks_runtime::config::Environment;

use crate::config::Config;

/// Puts the files into a folder that a configuration may name: `server.crt`, `ca.crt`, `server.key`, `next.key`,
/// `master.key`, `ca.key`.
///
/// # Errors
///
/// When the folder cannot be written.
pub fn prepare(folder: &Path) -> io::Result<()> {
    for (name, mode) in [
        ("server.crt", 0o644),
        ("ca.crt", 0o644),
        ("server.key", 0o600),
        ("next.key", 0o600),
        ("master.key", 0o600),
        ("ca.key", 0o600),
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
    let path = folder.join("backend.toml");
    fs::write(&path, data).expect("the prepared folder can be written");
    let read = || Config::load(&path, &Environment::default());
    match read() {
        Ok(config) => {
            let agents = &config.agents;
            assert!(agents.silence >= agents.heartbeat_interval * 3);
            assert!(agents.telemetry_credit_bytes <= limits::TELEMETRY_IN_FLIGHT_BYTES_MAX);
            assert!(agents.output_window_bytes <= limits::OUTPUT_WINDOW_BYTES);
            assert!(agents.connections_max > 0 && config.queue.per_gateway > 0);
            let data = &config.data;
            assert!(data.sqlite_file.starts_with(&data.state_folder));
            assert_eq!(read().ok(), Some(config), "reading twice gives two answers");
        }
        Err(problems) => {
            assert!(problems.iter().count() > 0);
            for problem in problems.iter() {
                assert!(!problem.message.is_empty());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use viworks_testkit::corpus;

    use super::*;

    #[test]
    fn the_stored_configurations_keep_the_laws() {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        corpus::replay("configuration_backend", |data| {
            configuration(folder.path(), data);
        });
    }

    #[test]
    fn the_first_stored_configuration_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path()).unwrap();
        let path = folder.path().join("backend.toml");
        let first = corpus::folder().join("configuration_backend/00-sound.toml");
        fs::copy(first, &path).unwrap();
        Config::load(&path, &Environment::default()).unwrap();
    }
}
