//! The configuration that comes with the material of a new backend.

use viworks_common::id::TrustDomain;

/// Where machines become gateways of a backend that the package's service runs.
const ENROLMENT: &str = r#"[enrolment]
# Machines become gateways here, with tickets of `viworks ticket create`.
listen = "127.0.0.1:8082"

"#;

/// A backend's configuration beside its keys: everything else is a default.
pub(super) fn backend(trust_domain: &TrustDomain, installed: bool, signs: &str) -> String {
    let door = if installed { ENROLMENT } else { "" };
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

{door}[data]
state_folder = "{state}"

[keys]
master_key_file = "master.key"
# Needed only to issue certificates; keep it elsewhere where gateways join rarely.
{signs}
"#
    )
}
