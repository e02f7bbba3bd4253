//! Reads PEM; the only module that knows `rustls-pemfile`.
//!
//! The crate is archived (RUSTSEC-2025-0134) but not vulnerable; decision record 0001 says why it is here, and the
//! tests hold it against its successor.

use std::io;

use rustls_pemfile::Item;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The certificates in `text`, in their order; other sections are skipped.
pub(super) fn certificates(mut text: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    rustls_pemfile::certs(&mut text).collect()
}

/// The private keys in `text`, in their order; other sections are skipped.
pub(super) fn keys(mut text: &[u8]) -> io::Result<Vec<PrivateKeyDer<'static>>> {
    rustls_pemfile::read_all(&mut text)
        .filter_map(|item| item.map(private_key).transpose())
        .collect()
}

/// How many blocks of certificates begin in `text`, wherever on a line: the reader skips without a word what does not
/// begin one, such as a block behind blanks.
pub(super) fn certificate_blocks(text: &[u8]) -> usize {
    let text = String::from_utf8_lossy(text);
    let labels = text.split("-----BEGIN ").skip(1);
    labels
        .filter_map(|rest| rest.split_once("-----").map(|(label, _)| label))
        .filter(|label| label.ends_with("CERTIFICATE"))
        .count()
}

/// Whether `text` speaks of a private key, readable or not.
pub(super) fn mentions_a_key(text: &[u8]) -> bool {
    String::from_utf8_lossy(text).contains("PRIVATE KEY-----")
}

/// Whether `text` speaks of a private key that a passphrase protects, in either form that there is.
pub(super) fn mentions_an_encrypted_key(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED")
}

fn private_key(item: Item) -> Option<PrivateKeyDer<'static>> {
    if let Item::Pkcs8Key(key) = item {
        Some(key.into())
    } else if let Item::Sec1Key(key) = item {
        Some(key.into())
    } else if let Item::Pkcs1Key(key) = item {
        Some(key.into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
    use rustls_pki_types::pem::PemObject;

    use super::*;

    fn fixtures() -> Vec<String> {
        let mut fixtures = Vec::new();
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate = CertificateParams::default()
                .self_signed(&key)
                .unwrap()
                .pem();
            let key = key.serialize_pem();
            fixtures.push(certificate.clone());
            fixtures.push(key.clone());
            fixtures.push(format!("a comment\n{key}\n{certificate}{certificate}"));
            fixtures.push(certificate.replace('\n', "\r\n"));
        }
        fixtures.push(String::new());
        fixtures.push("no PEM here\n".to_owned());
        fixtures
    }

    #[test]
    fn it_agrees_with_its_successor_on_everything_generated() {
        for fixture in fixtures() {
            let text = fixture.as_bytes();
            let certificates_there: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(text).collect();
            let keys_there: Result<Vec<_>, _> = PrivateKeyDer::pem_slice_iter(text).collect();
            assert_eq!(certificates(text).unwrap(), certificates_there.unwrap());
            assert_eq!(keys(text).unwrap(), keys_there.unwrap());
        }
    }

    #[test]
    fn it_agrees_with_its_successor_on_what_is_broken() {
        for text in [
            "-----BEGIN CERTIFICATE-----\nAAAA\n",
            "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
            "-----BEGIN PRIVATE KEY-----\nAAA*\n-----END PRIVATE KEY-----\n",
        ] {
            let text = text.as_bytes();
            let there: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
            assert_eq!(certificates(text).is_err(), there.is_err());
            let there: Result<Vec<_>, _> = PrivateKeyDer::pem_slice_iter(text).collect();
            assert_eq!(keys(text).is_err(), there.is_err());
            assert!(keys(text).is_err());
        }
    }

    #[test]
    fn every_kind_of_key_is_recognised() {
        for kind in ["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"] {
            let text = format!("-----BEGIN {kind}-----\nAQID\n-----END {kind}-----\n");
            let there = PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap();
            assert_eq!(keys(text.as_bytes()).unwrap(), [there]);
        }
    }
}
