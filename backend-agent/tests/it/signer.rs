//! An authority of a site's own: an intermediate with its key in a file, and one whose key a program has.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;
use viworks_backend_agent::config::Config;
use viworks_backend_agent::material::ServerMaterial;
use viworks_backend_agent::pki::PkiError;
use viworks_backend_agent::pki::init::{InitRequest, OwnAuthority, OwnKey, init};
use viworks_backend_agent::pki::issue::{GATEWAY_LIFE, Office};
use viworks_common::id::TrustDomain;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::tls;

use crate::pki::{config, join, store};

const OPENSSL: &str = "/usr/bin/openssl";

/// A root and an intermediate below it, with their files.
struct Above {
    folder: TempDir,
    /// The intermediate, with the root behind it.
    chain: PathBuf,
    key: PathBuf,
}

fn params(name: &str, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn domain() -> TrustDomain {
    "viworks.test".parse().unwrap()
}

impl Above {
    fn new() -> Self {
        tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = params("site root", 1);
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let issuer = Issuer::new(root, root_key);
        let mut intermediate = params("site gateways", 0);
        intermediate.use_authority_key_identifier_extension = true;
        let intermediate = intermediate.signed_by(&key, &issuer).unwrap().pem();
        let own = Self {
            chain: folder.path().join("chain.crt"),
            key: folder.path().join("intermediate.key"),
            folder,
        };
        own.write("root.crt", &root_pem, 0o644);
        own.write("intermediate.crt", &intermediate, 0o644);
        own.write("chain.crt", &format!("{intermediate}{root_pem}"), 0o644);
        own.write("intermediate.key", &key.serialize_pem(), 0o600);
        own
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        std::fs::write(self.at(name), text).unwrap();
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.at(name), mode).unwrap();
    }

    /// A backend with this authority.
    fn init(&self, certificate: &Path, key: OwnKey) -> Result<(), PkiError> {
        let request = InitRequest {
            folder: self.at("b"),
            trust_domain: domain(),
            server_names: vec!["localhost".to_owned()],
            installed: false,
            authority: Some(OwnAuthority {
                certificate: certificate.to_owned(),
                key,
            }),
        };
        init(&request, SystemClock.wall()).map(drop)
    }

    fn config(&self) -> Config {
        config(&self.folder)
    }

    /// A gateway's certificate in a file, by whoever signs.
    async fn issued(&self) -> Result<PathBuf, PkiError> {
        let config = self.config();
        let office = Office::open(&config)?;
        let store = store(&config).await;
        let joined = join(&*store, &office, "gw-1", GATEWAY_LIFE).await;
        store.close().await;
        let file = self.at("gw-1.crt");
        std::fs::write(&file, &joined?.certificate.certificate).unwrap();
        Ok(file)
    }

    /// Both verifiers take it.
    fn is_accepted(&self, certificate: &Path, purpose: &str) {
        let verified = Command::new(OPENSSL)
            .args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"])
            .arg(self.at("root.crt"))
            .arg("-untrusted")
            .arg(self.at("intermediate.crt"))
            .arg(certificate)
            .output();
        if let Ok(verified) = verified {
            assert!(verified.status.success(), "{verified:?}");
        }
    }

    fn rustls_accepts(&self, certificate: &Path) {
        let roots = tls::load_roots(&self.at("b/ca.crt")).unwrap();
        let leaf = tls::load_certificates(certificate).unwrap().remove(0);
        let now = rustls::pki_types::UnixTime::now();
        let verifier = tls::client_verifier(roots).unwrap();
        verifier.verify_client_cert(&leaf, &[], now).unwrap();
    }
}

#[tokio::test]
async fn a_backend_signs_with_an_intermediate_that_a_site_has() {
    let above = Above::new();
    above
        .init(&above.chain, OwnKey::File(above.key.clone()))
        .unwrap();
    ServerMaterial::load(&above.config()).unwrap();
    let server = tls::load_certificates(&above.at("b/server.crt")).unwrap();
    assert_eq!(server.len(), 3, "those above it come with it");
    let gateway = above.issued().await.unwrap();
    above.is_accepted(&gateway, "sslclient");
    above.is_accepted(&above.at("b/server.crt"), "sslserver");
    above.rustls_accepts(&gateway);
}

#[tokio::test]
async fn a_program_that_has_the_key_signs_and_nothing_else_has_to_be_here() {
    if !Path::new(OPENSSL).exists() {
        return;
    }
    let above = Above::new();
    let key = above.key.to_str().unwrap();
    let command = [OPENSSL, "dgst", "-sha256", "-sign", key].map(str::to_owned);
    above
        .init(&above.chain, OwnKey::Command(command.to_vec()))
        .unwrap();
    assert!(!above.at("b/ca.key").exists());
    assert_eq!(above.config().keys.ca_sign_command, command);
    ServerMaterial::load(&above.config()).unwrap();
    let gateway = above.issued().await.unwrap();
    above.is_accepted(&gateway, "sslclient");
    above.rustls_accepts(&gateway);

    // A signature of another key, or none, is never used.
    let other = KeyPair::generate().unwrap();
    above.write("intermediate.key", &other.serialize_pem(), 0o600);
    let refused = above.issued().await.unwrap_err();
    let PkiError::Signer { reason } = refused else {
        panic!("{refused:?}");
    };
    assert!(
        reason.contains("no signature of the authority's key"),
        "{reason}"
    );
    std::fs::remove_file(&above.key).unwrap();
    // Nothing here says that it does not sign the next time.
    let refused = above.issued().await.unwrap_err();
    let PkiError::Unsigned { reason } = refused else {
        panic!("{refused:?}");
    };
    assert!(reason.contains("it ended with exit status: 1"), "{reason}");
}

#[test]
fn what_could_sign_nothing_is_refused_before_anything_is_written() {
    let above = Above::new();
    let key = || OwnKey::File(above.key.clone());
    let turned = std::fs::read_to_string(above.at("root.crt")).unwrap()
        + &std::fs::read_to_string(above.at("intermediate.crt")).unwrap();
    above.write("turned.crt", &turned, 0o644);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::default();
    let leaf = leaf.self_signed(&leaf_key).unwrap().pem();
    above.write("leaf.crt", &leaf, 0o644);
    for (certificate, why) in [
        ("turned.crt", "is not of whoever issued the first"),
        ("leaf.crt", "is not an authority's"),
        // Its key is another one.
        ("root.crt", "does not fit"),
    ] {
        let refused = above.init(&above.at(certificate), key()).unwrap_err();
        let refused = refused.to_string();
        assert!(refused.contains(why), "{certificate}: {refused}");
        assert!(!above.at("b").exists(), "{certificate}");
    }
}
