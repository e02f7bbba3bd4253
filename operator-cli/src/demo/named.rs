//! How the configuration of a demo's backends names a private server: on a port of loopback, with a password in a file.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use viworks_runtime::{files, random};

use super::layout::{Layout, cannot_write};
use crate::failure::{Failure, chain};

/// Whom the backends are to a server, and what they have there.
pub(super) const NAME: &str = "viworks";

/// A server as the configuration names it.
pub(super) struct Named {
    /// The section, which the configuration does not have by itself.
    pub(super) section: &'static str,
    /// The URL up to the host's name.
    pub(super) scheme: &'static str,
    /// What follows the port.
    pub(super) rest: &'static str,
    /// The file with the password, beside the configuration.
    pub(super) password_file: &'static str,
}

impl Named {
    /// The server's password, made if it is missing.
    pub(super) fn password(&self, layout: &Layout) -> Result<String, Failure> {
        let file = layout.backend().join(self.password_file);
        if !file.exists() {
            let text: String = random::bytes::<16>()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            files::write_new(&file, format!("{text}\n").as_bytes(), 0o600)
                .map_err(|error| cannot_write(&error))?;
        }
        let bytes = files::read_private(&file)
            .map_err(|error| Failure::new(error.exit_code(), chain(&error)))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Names the server in the configuration, on the port that it had if that is free; answers the port.
    pub(super) fn configure(&self, config: &Path) -> Result<u16, Failure> {
        let Self {
            section,
            scheme,
            rest,
            password_file,
        } = self;
        let text = std::fs::read_to_string(config)?;
        let before = format!("url = \"{scheme}://{NAME}@127.0.0.1:");
        let known: Option<u16> = text.lines().find_map(|line| {
            let behind = line.strip_prefix(&before)?;
            let digits = behind.find(|sign: char| !sign.is_ascii_digit())?;
            behind.get(..digits)?.parse().ok()
        });
        let free = |port: u16| {
            let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            Ok::<u16, std::io::Error>(listener.local_addr()?.port())
        };
        let port = match known.map(free) {
            Some(Ok(port)) => port,
            Some(Err(_taken)) => free(0)?,
            None => free(0)?,
        };
        let url = format!("{before}{port}{rest}\"");
        let text = match known {
            Some(_port) => {
                let lines = text.lines().map(|line| {
                    if line.starts_with(&before) {
                        url.as_str()
                    } else {
                        line
                    }
                });
                lines.collect::<Vec<_>>().join("\n") + "\n"
            }
            None => {
                format!("{text}\n[{section}]\n{url}\npassword_file = \"{password_file}\"\n")
            }
        };
        files::write_atomic(config, text.as_bytes()).map_err(|error| cannot_write(&error))?;
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{postgres, redis};
    use super::*;

    #[test]
    fn the_configuration_names_each_server_once_and_keeps_a_port_that_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("backend.toml");
        files::write_new(&config, b"[api]\nkey = 1\n", 0o600).unwrap();
        let read = || std::fs::read_to_string(&config).unwrap();
        for server in [&postgres::NAMED, &redis::NAMED] {
            let first = server.configure(&config).unwrap();
            let text = read();
            assert_eq!(server.configure(&config).unwrap(), first);
            assert_eq!(read(), text);
            let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).unwrap();
            let next = server.configure(&config).unwrap();
            assert_ne!(next, first);
            drop(taken);
            let moved = read();
            let (was, is) = (format!("127.0.0.1:{first}"), format!("127.0.0.1:{next}"));
            assert_eq!(moved, text.replace(&was, &is));
        }
        let text = read();
        assert!(text.starts_with("[api]\nkey = 1\n"), "{text}");
        for section in ["[store]", "[queue]"] {
            assert_eq!(text.matches(section).count(), 1, "{text}");
        }
    }
}
