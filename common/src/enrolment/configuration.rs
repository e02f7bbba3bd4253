//! A gateway's configuration as it comes with its material, whichever way it joins.

use std::fmt::Write;

use crate::key::BindingMode;
use crate::pin::SpkiPin;

/// Where a gateway runs that is given its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// In the folder of its files, wherever that is put.
    Folder,
    /// The same, as one of the local demo.
    Demo,
    /// As the package's service, which has its own places for state and local API.
    Installed,
}

/// Where the gateway's service keeps things.
const INSTALLED: &str = r#"
[gateway]
state_folder = "/var/lib/viworks-gateway"
socket = "/run/viworks-gateway/api.sock"
"#;

/// A text as TOML has it, in quotation marks: nothing in it ends it, whoever it came from.
fn string(text: &str) -> String {
    let mut written = String::with_capacity(text.len() + 2);
    written.push('"');
    for character in text.chars() {
        if character.is_control() {
            // All of them lie in the basic multilingual plane.
            write!(written, "\\u{:04X}", u32::from(character))
                .expect("writing to a string succeeds");
        } else {
            if matches!(character, '"' | '\\') {
                written.push('\\');
            }
            written.push(character);
        }
    }
    written.push('"');
    written
}

/// A gateway's configuration beside its keys. Whatever `url` and `door` are, they are read back as that and as nothing
/// else. Without a door, whoever runs the gateway is told how to name one.
#[must_use]
pub fn configuration(
    url: &str,
    door: Option<&str>,
    pins: &[SpkiPin],
    binding: BindingMode,
    home: Home,
) -> String {
    let mut listed = String::new();
    for pin in pins {
        writeln!(listed, "    \"{pin}\",").expect("writing to a string succeeds");
    }
    let (url, binding) = (string(url), binding.name());
    let door = match door {
        Some(door) => format!("door_url = {}", string(door)),
        None => "# door_url = \"https://agents.example.org:8082\"".to_owned(),
    };
    let own = match home {
        Home::Folder => "",
        Home::Demo => "\n[executor]\nallow_own_commands = \"for_demo_only\"\n",
        Home::Installed => INSTALLED,
    };
    format!(
        r#"# The gateway agent's configuration. Every key, its default and its range: docs/configuration_gateway.md.
# Relative paths start at this file's folder.

[outbound]
url = {url}
ca_file = "ca.crt"
# The backend's key and its successor; a server with any other key is not talked to.
pins = [
{listed}]
# The same as on the backend: the TLS connection, or the certificate where a proxy ends TLS.
binding = "{binding}"
# The door of the backend, where this gateway gets another certificate when its own has ended while it was away.
{door}

[identity]
certificate_file = "gateway.crt"
key_file = "gateway.key"
identity_file = "identity.json"
{own}"#
    )
}
