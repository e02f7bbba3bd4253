//! Where others reach what this backend listens on, as far as that is known here.

use std::net::SocketAddr;
use std::path::Path;

use viworks_runtime::config::{Problem, url_host as host};

use super::PkiError;
use super::issue::is_for;
use crate::config::{AgentsConfig, Config, TlsEnd};

/// Host and port of an address, as the server's certificate names it. `say` is how to say it otherwise, for a host.
///
/// # Errors
///
/// When the address does not say where others reach it, or they would refuse the certificate there.
pub fn authority(
    address: SocketAddr,
    certificate_file: &Path,
    say: impl Fn(&str) -> String,
) -> Result<String, PkiError> {
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(PkiError::Url {
            message: format!("{address} does not say where gateways reach this backend"),
            help: format!("say it: {}", say("HOST")),
        });
    }
    let mut places = vec![(address.ip().to_string(), address.to_string())];
    if address.ip().is_loopback() {
        let port = address.port();
        places.push(("localhost".to_owned(), format!("localhost:{port}")));
    }
    for (host, authority) in places {
        if is_for(certificate_file, &host)? {
            return Ok(authority);
        }
    }
    Err(PkiError::Url {
        message: format!(
            "gateways would refuse this backend at {address}, because {} is not for {}",
            certificate_file.display(),
            address.ip()
        ),
        help: format!("say the name that the certificate is for: {}", say("NAME")),
    })
}

/// What is to be said of the public address of a configuration: that the server's certificate is not for its host. The
/// door's needs no name there: whoever dials it goes by the server's key alone.
#[must_use]
pub fn strange_public_url(config: &Config) -> Option<Problem> {
    let url = config.agents.public_url.as_deref()?;
    strange_url(&config.agents, url, "public_url in [agents]")
}

/// What is to be said of an address that gateways are given, which is called so: that the server's certificate is not
/// for its host. Where a proxy ends their TLS they see its certificate, which is not known here.
#[must_use]
pub fn strange_url(agents: &AgentsConfig, url: &str, called: &str) -> Option<Problem> {
    match agents.tls_ends_at {
        TlsEnd::Backend => strange(&agents.certificate_file, url, called),
        TlsEnd::Proxy => None,
    }
}

fn strange(certificate_file: &Path, url: &str, called: &str) -> Option<Problem> {
    let host = host(url)?;
    // One that cannot be read is told of as that.
    if is_for(certificate_file, host).unwrap_or(true) {
        return None;
    }
    let message = format!(
        "{called} is {url}, and {} is not for {host}: whoever dials that refuses it",
        certificate_file.display()
    );
    let help = format!("correct {called}, or have a certificate made that has that name as well");
    Some(Problem::of_file(certificate_file, message, help))
}
