//! The configuration files that come with new material.

use std::fmt::Write;

use viworks_common::id::TrustDomain;
use viworks_common::key::BindingMode;
use viworks_common::pin::SpkiPin;

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

/// A backend's configuration beside its keys: everything else is a default.
pub(super) fn backend(trust_domain: &TrustDomain, installed: bool) -> String {
    let state = if installed {
        "/var/lib/viworks-backend"
    } else {
        "state"
    };
    format!(
        r#"# The backend's configuration. Every key, its default and its range: docs/configuration_backend.md.
# Relative paths start at this file's folder.

[agents]
listen = "127.0.0.1:8081"
certificate_file = "server.crt"
key_file = "server.key"
# Pinned by every gateway beside the key in use, so that the server's key can be changed.
next_key_file = "next.key"
client_ca_file = "ca.crt"
trust_domain = "{trust_domain}"
binding = "exporter"

[api]
listen = "127.0.0.1:8080"

[data]
state_folder = "{state}"

[keys]
master_key_file = "master.key"
# Needed only to issue certificates; keep it elsewhere where gateways join rarely.
ca_key_file = "ca.key"
"#
    )
}

/// A gateway's configuration beside its keys.
pub(super) fn gateway(url: &str, pins: &[SpkiPin], binding: BindingMode, home: Home) -> String {
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
