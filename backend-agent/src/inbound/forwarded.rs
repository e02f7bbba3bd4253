//! What a proxy that ends TLS passes on about its client: the certificate, and the address.

use std::net::IpAddr;

use http::HeaderMap;
use rustls::pki_types::CertificateDer;
use viworks_runtime::tls;

/// The client's certificate as nginx has it in `$ssl_client_escaped_cert`: PEM, with `%` before every odd byte.
pub const CERTIFICATE: &str = "x-client-cert";

/// The client's address.
const ADDRESS: &str = "x-real-ip";

/// The same as [`CERTIFICATE`] by RFC 9440, which nobody is believed about.
const STANDARD_CERTIFICATE: &str = "client-cert";

/// Somebody who is at the other side of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    /// The certificate, DER, whose key the client has shown to the proxy.
    pub leaf: CertificateDer<'static>,
    /// Where it came from.
    pub address: IpAddr,
}

/// Why a proxy says nothing about its client that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ForwardedError {
    /// There is no certificate, or more than one.
    #[error("the proxy has to pass on one client certificate, in X-Client-Cert")]
    NotOneCertificate,
    /// It cannot be read.
    #[error("X-Client-Cert is no PEM certificate in percent-encoding")]
    Certificate,
    /// There is no address, or more than one.
    #[error("the proxy has to say where its client is, in X-Real-IP")]
    Address,
}

impl ForwardedError {
    /// What the other end is told.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotOneCertificate => {
                "the proxy passed on no client certificate, or more than one"
            }
            Self::Certificate => "the proxy passed on a client certificate that cannot be read",
            Self::Address => "the proxy did not say where its client is",
        }
    }
}

/// Whether a request claims to pass on a certificate.
#[must_use]
pub fn claims(headers: &HeaderMap) -> bool {
    headers.contains_key(CERTIFICATE) || headers.contains_key(STANDARD_CERTIFICATE)
}

/// Reads it. The caller knows that the request comes from a proxy that is believed.
///
/// # Errors
///
/// When something is missing, there twice, or unreadable.
pub fn read(headers: &HeaderMap) -> Result<Forwarded, ForwardedError> {
    let certificate = only(headers, CERTIFICATE).ok_or(ForwardedError::NotOneCertificate)?;
    let address = only(headers, ADDRESS).ok_or(ForwardedError::Address)?;
    let pem = unescaped(certificate).ok_or(ForwardedError::Certificate)?;
    let leaf = tls::one_certificate(&pem).map_err(|_unreadable| ForwardedError::Certificate)?;
    let address: IpAddr = address
        .parse()
        .map_err(|_unreadable| ForwardedError::Address)?;
    Ok(Forwarded {
        leaf,
        address: address.to_canonical(),
    })
}

/// The value of a header that is there once and not empty.
fn only<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    (values.next().is_none() && !value.is_empty()).then_some(value)
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut found = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            found.extend(hex::decode(digits).ok()?);
        } else {
            found.push(byte);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate() -> (String, CertificateDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["gw".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let escaped = |byte: u8| {
            if byte.is_ascii_alphanumeric() || byte == b'-' {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        };
        let escaped: String = certificate.pem().bytes().map(escaped).collect();
        (escaped, certificate.der().clone())
    }

    fn headers(values: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn what_nginx_passes_on_is_read_as_it_was_shown() {
        let (escaped, leaf) = certificate();
        let found = read(&headers(&[
            (CERTIFICATE, &escaped),
            (ADDRESS, "203.0.113.9"),
        ]));
        let address = "203.0.113.9".parse().unwrap();
        assert_eq!(found, Ok(Forwarded { leaf, address }));
    }

    #[test]
    fn what_is_missing_double_or_unreadable_is_refused() {
        let (escaped, _leaf) = certificate();
        let address = (ADDRESS, "203.0.113.9");
        let whole = (CERTIFICATE, escaped.as_str());
        let twice = format!("{escaped}{escaped}");
        for (values, error) in [
            (vec![address], ForwardedError::NotOneCertificate),
            (
                vec![(CERTIFICATE, ""), address],
                ForwardedError::NotOneCertificate,
            ),
            (
                vec![whole, whole, address],
                ForwardedError::NotOneCertificate,
            ),
            (
                vec![(CERTIFICATE, "%2"), address],
                ForwardedError::Certificate,
            ),
            (
                vec![(CERTIFICATE, "%zz"), address],
                ForwardedError::Certificate,
            ),
            (
                vec![(CERTIFICATE, "subject=gw"), address],
                ForwardedError::Certificate,
            ),
            (
                vec![(CERTIFICATE, twice.as_str()), address],
                ForwardedError::Certificate,
            ),
            (vec![whole], ForwardedError::Address),
            (vec![whole, address, address], ForwardedError::Address),
            (
                vec![whole, (ADDRESS, "203.0.113.9, 10.0.0.1")],
                ForwardedError::Address,
            ),
        ] {
            assert_eq!(read(&headers(&values)), Err(error), "{error}");
        }
    }

    #[test]
    fn a_claim_is_noticed_in_either_name() {
        assert!(claims(&headers(&[(CERTIFICATE, "")])));
        assert!(claims(&headers(&[(STANDARD_CERTIFICATE, ":YQ==:")])));
        assert!(!claims(&headers(&[(ADDRESS, "203.0.113.9")])));
    }
}
