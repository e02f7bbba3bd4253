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

/// A gateway's configuration beside its keys.
#[must_use]
pub fn configuration(url: &str, pins: &[SpkiPin], binding: BindingMode, home: Home) -> String {
    let mut listed = String::new();
    for pin in pins {
        writeln!(listed, "    \"{pin}\",").expect("writing to a string succeeds");
    }
    let binding = binding.name();
    let own = match home {
        Home::Folder => "",
        Home::Demo => "\n[executor]\nallow_own_commands = \"for_demo_only\"\n",
        Home::Installed => INSTALLED,
    };
    format!(
        r#"# The gateway agent's configuration. Every key, its default and its range: docs/configuration_gateway.md.
# Relative paths start at this file's folder.

[outbound]
url = "{url}"
ca_file = "ca.crt"
# The backend's key and its successor; a server with any other key is not talked to.
pins = [
{listed}]
# The same as on the backend: the TLS connection, or the certificate where a proxy ends TLS.
binding = "{binding}"

[identity]
certificate_file = "gateway.crt"
key_file = "gateway.key"
identity_file = "identity.json"
{own}"#
    )
}
