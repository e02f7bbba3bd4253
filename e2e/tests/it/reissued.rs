//! A certificate for the key that a gateway has, as its authority would renew it.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use time::OffsetDateTime;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_testkit::deployment::Deployment;
use viworks_testkit::rogue::Material;

/// A certificate for the key that a gateway has, as its authority would renew it.
pub(crate) fn renew(system: &Deployment, folder: &Path, lives: time::Duration) {
    renew_of(system, folder, time::Duration::HOUR, lives);
}

/// The same, issued so long ago.
pub(crate) fn renew_of(
    system: &Deployment,
    folder: &Path,
    since: time::Duration,
    lives: time::Duration,
) {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let backend = system.path().join("backend");
    let authority = KeyPair::from_pem(&read(backend.join("ca.key"))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read(backend.join("ca.crt")), authority).unwrap();
    let material = Material::read(folder).unwrap();
    let name = format!(
        "spiffe://viworks.internal/tenant/{}/gateway/{}",
        material.identity.tenant, material.identity.agent_id
    );
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let now =
        OffsetDateTime::from_unix_timestamp(SystemClock.wall().unix_millis() / 1_000).unwrap();
    params.not_before = now - since;
    params.not_after = now + lives;
    let key = KeyPair::from_pem(&read(folder.join("gateway.key"))).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let draft = folder.join("gateway.crt.new");
    std::fs::write(&draft, certificate.pem()).unwrap();
    std::fs::rename(draft, folder.join("gateway.crt")).unwrap();
}
