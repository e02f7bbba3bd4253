//! Why a server's certificate, or what a server says before it shows one, is not believed, and what to do about it.

use std::error::Error as StdError;
use std::io;

use reqwest::Url;
use rustls::CertificateError;
use rustls::pki_types::UnixTime;
use viworks_common::time::Timestamp;

/// What to do about a life that has not begun or is over.
const CLOCK: &str = "compare this machine's clock with the right time; if the clock is right";

/// Why TLS came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Untrusted {
    /// In one sentence.
    pub(super) cause: String,
    /// What to do about it.
    pub(super) fix: String,
}

impl Untrusted {
    fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            fix: fix.into(),
        }
    }
}

/// What TLS has to do with `error`; none where it failed for another reason.
pub(super) fn untrusted(server: &str, error: &reqwest::Error) -> Option<Untrusted> {
    let host = Url::parse(server).ok()?.host_str()?.to_owned();
    refusal(error).map(|refusal| judge(&host, refusal))
}

/// What TLS said, wherever it is among the causes.
fn refusal<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e rustls::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An error of the system hides the one that it was made of, and may do so twice.
        let within = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        cause = match within {
            Some(within) => Some(within),
            None => error.source(),
        };
    }
    None
}

fn judge(host: &str, refusal: &rustls::Error) -> Untrusted {
    if let rustls::Error::InvalidCertificate(why) = refusal {
        return certificate(host, why);
    }
    if let rustls::Error::InvalidMessage(_) = refusal {
        return Untrusted::new(
            "what listens there speaks no TLS",
            "name the port of the proxy that ends TLS; the backend's own API is http:// and listens on its own machine only",
        );
    }
    if let rustls::Error::AlertReceived(alert) = refusal {
        return Untrusted::new(
            format!("the server broke TLS off: {alert:?}"),
            "check the port: gateways connect to another one than operators, and need a certificate there",
        );
    }
    Untrusted::new(
        format!("TLS failed: {refusal}"),
        "look into the log of the proxy that ends TLS",
    )
}

fn certificate(host: &str, why: &CertificateError) -> Untrusted {
    let whose = format!("the certificate of {host}");
    if let CertificateError::ExpiredContext { not_after, .. } = why {
        return Untrusted::new(
            format!("{whose} ended at {}", time(*not_after)),
            format!("{CLOCK}, renew the server's certificate"),
        );
    }
    if let CertificateError::NotValidYetContext { not_before, .. } = why {
        return Untrusted::new(
            format!("{whose} is valid from {} on", time(*not_before)),
            format!("{CLOCK}, wait for it, or give the server one that is valid"),
        );
    }
    // Two authorities of one name are told apart by their signatures.
    if let CertificateError::UnknownIssuer | CertificateError::BadSignature = why {
        return Untrusted::new(
            format!("{whose} is by an authority that this machine does not trust"),
            "name the authority's certificate: SSL_CERT_FILE=ca.crt; if there should be no authority of your own, somebody else answers there",
        );
    }
    if let CertificateError::NotValidForNameContext { presented, .. } = why {
        return Untrusted::new(
            format!(
                "the certificate is for {} and not for {host}",
                names(presented)
            ),
            "use a name that is in the certificate, or give the server one for this name",
        );
    }
    Untrusted::new(
        format!("{whose} is refused: {why}"),
        "give the server a certificate for servers by an authority that this machine trusts",
    )
}

fn time(time: UnixTime) -> Timestamp {
    let micros = time.as_secs().saturating_mul(1_000_000);
    Timestamp::from_unix_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// The names as a person writes them: the library says `DnsName("backend.example")`.
fn names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name
            .split_once('(')
            .map_or(name.as_str(), |(_kind, rest)| rest);
        inner.trim_end_matches(')').trim_matches('"').to_owned()
    };
    let names: Vec<String> = presented.iter().map(bare).collect();
    if names.is_empty() {
        "no name".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_a_certificate_are_shown_as_they_are_written() {
        let presented = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let shown = names(&presented(&[
            "DnsName(\"a.example\")",
            "IpAddress(192.0.2.1)",
        ]));
        assert_eq!(shown, "a.example, 192.0.2.1");
        assert_eq!(names(&[]), "no name");
    }

    #[test]
    fn tls_is_found_among_the_causes_and_nothing_else_is() {
        let refused = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, refused);
        let wrapped = io::Error::other(wrapped);
        let found = refusal(&wrapped).map(|refusal| judge("a.example", refusal));
        assert!(found.unwrap().fix.contains("SSL_CERT_FILE"));
        let other = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(refusal(&other), None);
    }
}
