//! Where others reach what this backend listens on, as far as that is known here.

use std::net::SocketAddr;
use std::path::Path;

use super::PkiError;
use super::issue::is_for;

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
