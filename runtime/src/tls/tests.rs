//! Certificates, keys and pins, good ones and bad ones.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PublicKeyData,
};
use rustls::client::WebPkiServerVerifier;
use rustls::{ClientConnection, Connection, ServerConnection};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

use super::*;
use crate::files::FileError;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Identity {
            chain: vec![certificate.der().clone()],
            key,
        }
    }

    fn roots(&self) -> RootCertStore {
        roots([self.issuer.der().clone()]).unwrap()
    }

    fn verifier(&self) -> Arc<dyn ServerCertVerifier> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        WebPkiServerVerifier::builder_with_provider(Arc::new(self.roots()), provider)
            .build()
            .unwrap()
    }
}

struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

impl Pair {
    fn new(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("backend.test").unwrap();
        let client = ClientConnection::new(Arc::clone(client), name).unwrap();
        Self {
            client,
            server: ServerConnection::new(Arc::clone(server)).unwrap(),
        }
    }

    fn handshake(&mut self) -> Result<(), rustls::Error> {
        while self.client.is_handshaking()
            || self.server.is_handshaking()
            || self.client.wants_write()
        {
            carry(&mut self.client, &mut self.server)?;
            carry(&mut self.server, &mut self.client)?;
        }
        Ok(())
    }
}

fn carry<From, To, F, T>(from: &mut From, to: &mut To) -> Result<(), rustls::Error>
where
    From: std::ops::DerefMut<Target = ConnectionCommon<F>>,
    To: std::ops::DerefMut<Target = ConnectionCommon<T>>,
    F: rustls::SideData,
    T: rustls::SideData,
{
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).map_err(broken)?;
    }
    let mut wire = wire.as_slice();
    while !wire.is_empty() {
        to.read_tls(&mut wire).map_err(broken)?;
        to.process_new_packets()?;
    }
    Ok(())
}

fn broken(error: impl Into<std::io::Error>) -> rustls::Error {
    rustls::Error::General(error.into().to_string())
}

fn configs(authority: &Authority) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let server = server_config(authority.identity("backend.test"), authority.roots()).unwrap();
    let client = client_config(authority.identity("gateway.test"), authority.verifier()).unwrap();
    (server, client)
}

#[test]
fn both_ends_agree_on_version_protocol_and_channel_binding() {
    let authority = Authority::new("authority");
    let (server, client) = configs(&authority);
    let mut pair = Pair::new(&server, &client);
    assert!(
        exporter(&pair.client).is_err(),
        "nothing is bound before the handshake"
    );
    pair.handshake().unwrap();

    assert_eq!(
        pair.server.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(pair.client.alpn_protocol(), Some(b"http/1.1".as_slice()));
    let bound = exporter(&pair.client).unwrap();
    assert_eq!(bound, exporter(&pair.server).unwrap());

    let mut other = Pair::new(&server, &client);
    other.handshake().unwrap();
    assert_ne!(
        exporter(&other.client).unwrap(),
        bound,
        "another connection is bound differently"
    );
}

#[test]
fn a_second_connection_is_not_resumed() {
    let authority = Authority::new("authority");
    let (server, client) = configs(&authority);
    for _ in 0..2 {
        let mut pair = Pair::new(&server, &client);
        pair.handshake().unwrap();
        let kind = Connection::from(pair.server).handshake_kind();
        assert!(matches!(
            kind,
            Some(rustls::HandshakeKind::Full | rustls::HandshakeKind::FullWithHelloRetryRequest)
        ));
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let authority = Authority::new("authority");
    let (server, _) = configs(&authority);
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    let error = Pair::new(&server, &Arc::new(client))
        .handshake()
        .unwrap_err();
    assert_eq!(error, rustls::Error::NoCertificatesPresented);
}

#[test]
fn a_client_of_another_authority_is_refused() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let (server, _) = configs(&ours);
    let client = client_config(foreign.identity("gateway.test"), ours.verifier()).unwrap();
    let error = Pair::new(&server, &client).handshake().unwrap_err();
    assert!(
        matches!(error, rustls::Error::InvalidCertificate(_)),
        "{error}"
    );
}

#[test]
fn without_roots_there_is_no_listener() {
    let authority = Authority::new("authority");
    let error =
        server_config(authority.identity("backend.test"), RootCertStore::empty()).unwrap_err();
    assert!(matches!(error, TlsError::Verifier(_)), "{error:?}");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let authority = Authority::new("authority");
    let mut identity = authority.identity("backend.test");
    identity.key = authority.identity("other.test").key;
    assert!(matches!(
        server_config(identity, authority.roots()),
        Err(TlsError::Identity(_))
    ));
}

#[test]
fn the_pin_is_the_hash_of_the_public_key_and_survives_a_renewal() {
    let key = KeyPair::generate().unwrap();
    let first = CertificateParams::new(vec!["a.test".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let renewed = CertificateParams::new(vec!["b.test".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let expected: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
    assert_eq!(spki_sha256(first.der()).unwrap(), expected);
    assert_eq!(spki_sha256(renewed.der()).unwrap(), expected);
}

#[test]
fn what_is_not_exactly_one_certificate_has_no_pin() {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    let mut longer = certificate.der().to_vec();
    longer.push(0);
    assert!(matches!(
        spki_sha256(&longer),
        Err(TlsError::Certificate { .. })
    ));
    assert!(spki_sha256(&certificate.der()[..100]).is_err());
    assert!(spki_sha256(b"").is_err());
}

#[test]
fn an_identity_is_loaded_from_its_files_unless_others_can_read_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (
        folder.path().join("chain.pem"),
        folder.path().join("key.pem"),
    );
    let pair = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&pair).unwrap();
    fs::write(&chain, certificate.pem()).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();

    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Identity::load(&chain, &key).unwrap_err();
    assert!(
        matches!(
            error,
            TlsError::File(FileError::OthersCanRead { mode: 0o640, .. })
        ),
        "{error:?}"
    );

    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let identity = Identity::load(&chain, &key).unwrap();
    assert_eq!(identity.chain, [certificate.der().clone()]);
    assert_eq!(identity.key.secret_der(), pair.serialize_der());
}

#[test]
fn a_key_file_holds_one_key_and_a_chain_at_least_one_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("material.pem");
    let pair = KeyPair::generate().unwrap();
    for (text, found) in [(String::new(), 0), (pair.serialize_pem().repeat(2), 2)] {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(
            matches!(load_key(&path), Err(TlsError::NotOneKey { found: counted, .. }) if counted == found)
        );
    }
    assert!(matches!(
        load_certificates(&path),
        Err(TlsError::NoCertificate { .. })
    ));
}

#[test]
fn installing_the_provider_again_does_no_harm() {
    install_provider();
    install_provider();
    assert!(CryptoProvider::get_default().is_some());
}

/// A folder with `chain.pem` and `key.pem` of a certificate for both purposes.
fn files_of(
    params: &CertificateParams,
) -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (chain, key) = (
        folder.path().join("chain.pem"),
        folder.path().join("key.pem"),
    );
    let pair = KeyPair::generate().unwrap();
    fs::write(&chain, params.self_signed(&pair).unwrap().pem()).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    for (path, mode) in [(&chain, 0o644), (&key, 0o600)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    (folder, chain, key)
}

fn named() -> CertificateParams {
    CertificateParams::new(vec!["backend.test".to_owned()]).unwrap()
}

#[test]
fn a_key_of_another_certificate_is_refused_as_it_is_read() {
    let (_one, chain, _) = files_of(&named());
    let (_other, _, key) = files_of(&named());
    let error = Identity::load(&chain, &key).unwrap_err();
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error:?}");
    let problem = error.problem(&chain);
    assert!(problem.message.contains("does not fit"), "{problem}");
    assert!(!problem.help.is_empty());
}

#[test]
fn everything_wrong_with_an_identity_is_said_at_once() {
    let (_folder, chain, key) = files_of(&named());
    fs::write(&chain, "").unwrap();
    fs::write(&key, "").unwrap();
    let errors = Identity::load_for(Purpose::Client, &chain, &key).unwrap_err();
    assert!(
        matches!(
            errors[..],
            [
                TlsError::NoCertificate { .. },
                TlsError::NotOneKey { found: 0, .. }
            ]
        ),
        "{errors:?}"
    );
}

#[test]
fn a_certificate_is_for_what_it_says() {
    use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let with = |usages: Vec<rcgen::ExtendedKeyUsagePurpose>| {
        let mut params = named();
        params.extended_key_usages = usages;
        params
    };
    let mut authority = named();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    for (params, server, client) in [
        (named(), true, true),
        (with(vec![ServerAuth]), true, false),
        (with(vec![ClientAuth]), false, true),
        (with(vec![ClientAuth, ServerAuth]), true, true),
        (authority, false, false),
        (CertificateParams::default(), false, true),
    ] {
        let (_folder, chain, key) = files_of(&params);
        for (purpose, expected) in [(Purpose::Server, server), (Purpose::Client, client)] {
            let loaded = Identity::load_for(purpose, &chain, &key);
            assert_eq!(loaded.is_ok(), expected, "{purpose:?} {loaded:?}");
        }
    }
}

#[test]
fn an_encrypted_key_is_named_in_either_form() {
    let (_folder, chain, key) = files_of(&named());
    let old = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
    let new = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for text in [old, new] {
        fs::write(&key, text).unwrap();
        let error = load_key(&key).unwrap_err();
        assert!(matches!(error, TlsError::EncryptedKey { .. }), "{error:?}");
    }
    let certificate = fs::read(&chain).unwrap();
    fs::write(&key, certificate).unwrap();
    let error = load_key(&key).unwrap_err();
    assert!(
        matches!(error, TlsError::CertificateAsKey { .. }),
        "{error:?}"
    );
}

#[test]
fn no_block_of_a_certificate_file_is_skipped() {
    let (_folder, chain, _) = files_of(&named());
    let good = fs::read_to_string(&chain).unwrap();
    for bad in [
        format!(" {good}"),
        format!("{good} {good}"),
        format!("note: {good}{good}"),
        // Two files, of which the first has no last line end.
        format!("{}{good}", good.trim_end()),
        good.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
    ] {
        fs::write(&chain, &bad).unwrap();
        let error = load_certificates(&chain).unwrap_err();
        assert!(
            matches!(error, TlsError::Skipped { .. }),
            "{error:?}\n{bad}"
        );
    }
    fs::write(&chain, format!("a comment\n{good}\n{good}")).unwrap();
    assert_eq!(load_certificates(&chain).unwrap().len(), 2);
    fs::write(&chain, format!("\u{feff}{good}{good}")).unwrap();
    let error = load_certificates(&chain).unwrap_err();
    assert!(
        matches!(error, TlsError::File(FileError::Marked { .. })),
        "{error:?}"
    );
}

#[test]
fn a_key_beside_a_certificate_must_be_private() {
    let (_folder, chain, key) = files_of(&named());
    let both = [fs::read(&chain).unwrap(), fs::read(&key).unwrap()].concat();
    fs::write(&chain, both).unwrap();
    let error = load_certificates(&chain).unwrap_err();
    assert!(matches!(error, TlsError::KeyInside { .. }), "{error:?}");
    fs::set_permissions(&chain, fs::Permissions::from_mode(0o600)).unwrap();
    Identity::load(&chain, &chain).unwrap();
}

#[test]
fn roots_come_from_an_authority() {
    let authority = Authority::new("authority");
    let (_folder, chain, _) = files_of(&named());
    // Signed by itself: an anchor from before authorities said what they are.
    load_roots(&chain).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = named().signed_by(&key, &authority.issuer).unwrap().pem();
    fs::write(&chain, &leaf).unwrap();
    let error = load_roots(&chain).unwrap_err();
    assert!(matches!(error, TlsError::NoAuthority { .. }), "{error:?}");
    fs::write(&chain, format!("{leaf}{}", authority.issuer.pem())).unwrap();
    assert_eq!(load_roots(&chain).unwrap().len(), 2);
}
