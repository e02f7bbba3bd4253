//! The names of gateways: one canonical form, and nothing behind a certificate.

use crate::certificate::{Unnamed, parse_uri, read, uri};

/// Takes the bytes as a certificate, DER, and as a URI.
pub fn certificate(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some((domain, identity)) = parse_uri(text)
    {
        assert_eq!(uri(&domain, &identity), text, "a second spelling");
    }
    match read(data) {
        Ok(certificate) => {
            let named = uri(&certificate.trust_domain, &certificate.identity);
            let again = parse_uri(&named);
            assert_eq!(
                again,
                Some((certificate.trust_domain, certificate.identity))
            );
        }
        Err(Unnamed::Malformed) => return,
        Err(Unnamed::NotForClients | Unnamed::NotOneName | Unnamed::OtherForm(_)) => {}
    }
    let longer = [data, &[0]].concat();
    assert_eq!(read(&longer), Err(Unnamed::Malformed));
    let shorter = data.split_last().map_or(data, |(_, shorter)| shorter);
    assert_eq!(read(shorter), Err(Unnamed::Malformed));
}
