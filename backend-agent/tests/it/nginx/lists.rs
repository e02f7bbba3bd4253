//! An nginx that goes by a list of revoked certificates, while the authority is replaced.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use viworks_backend_agent::config::TlsEnd;
use viworks_backend_agent::nginx::render::{Site, render};
use viworks_backend_agent::pki::authority::Authority;
use viworks_backend_agent::pki::crl;
use viworks_runtime::clock::{Clock, SystemClock};

use super::site;
use super::terminated::terminating;

#[test]
fn an_authority_without_a_list_is_told_where_nginx_goes_by_one() {
    let (mut scene, _without) = terminating();
    let list = scene.folder.path().join("gateways.crl");
    scene.config.keys.crl_file = Some(list.clone());
    let now = SystemClock.wall();
    crl::write(&scene.config, &[], &list, now).unwrap();
    let site = Site {
        crl_file: Some(list.clone()),
        ..site()
    };
    let rendered = render(TlsEnd::Proxy, &site, &scene.config.agents).unwrap();
    assert_eq!(scene.told(&rendered), "");
    assert_eq!(crl::warning(&scene.config), None);

    // Another one is in the file as well: that which is replaced, or takes over.
    let ca = scene.config.agents.client_ca_file.clone();
    let (earlier, _key) = Authority::create(now).unwrap();
    let both = std::fs::read_to_string(&ca).unwrap() + earlier.certificate();
    std::fs::write(&ca, both).unwrap();
    let told = scene.told(&rendered);
    for words in [
        "there is no list of O=ViWorkS, CN=ViWorkS authority ",
        "ssl_client_certificate has",
        "leave ssl_crl out",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let warning = crl::warning(&scene.config).unwrap();
    assert!(warning.message.contains("ViWorkS authority"), "{warning}");
    // Left out it is right, and nobody is told to write it.
    let site = Site {
        crl_is_left_out: true,
        ..site
    };
    let without = render(TlsEnd::Proxy, &site, &scene.config.agents).unwrap();
    let lines: Vec<&str> = without.lines().map(str::trim).collect();
    let own = format!("ssl_crl {};", list.display());
    assert!(!lines.contains(&&*own), "{without}");
    let commented = lines.iter().position(|line| *line == format!("# {own}"));
    let said = lines[commented.unwrap() - 2..commented.unwrap()].join(" ");
    for words in ["# Left out: client_ca_file has", "Render this file again"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (checked, ended) = scene.checked(&without, None);
    ended.unwrap();
    let advised = checked
        .warnings
        .iter()
        .any(|it| it.help.contains("ssl_crl"));
    assert!(!advised, "{checked:#?}");

    // A list of each is right as well.
    let of_earlier = earlier.revocations(&[], now, crl::LIFE).unwrap();
    let lists = std::fs::read_to_string(&list).unwrap() + &of_earlier;
    std::fs::write(&list, lists).unwrap();
    assert_eq!(scene.told(&rendered), "");

    let odd = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    std::fs::write(&list, odd).unwrap();
    let found = scene.found(&rendered, None).unwrap().join("\n");
    let unseen = format!("not looked at: {}", list.display());
    assert!(found.contains(&unseen), "{found}");
}

/// An authority that has this name.
fn called(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    Authority::load(&certificate, &key.serialize_pem()).unwrap()
}

#[test]
fn a_list_of_another_authority_of_the_same_name_is_none() {
    let (mut scene, _without) = terminating();
    let list = scene.folder.path().join("gateways.crl");
    scene.config.keys.crl_file = Some(list.clone());
    let now = SystemClock.wall();
    crl::write(&scene.config, &[], &list, now).unwrap();
    let site = Site {
        crl_file: Some(list.clone()),
        ..site()
    };
    let rendered = render(TlsEnd::Proxy, &site, &scene.config.agents).unwrap();
    let (one, twin) = (called("twin"), called("twin"));
    let ca = scene.config.agents.client_ca_file.clone();
    let all = std::fs::read_to_string(&ca).unwrap() + one.certificate() + twin.certificate();
    std::fs::write(&ca, all).unwrap();
    let add = |authority: &Authority| {
        let lists = std::fs::read_to_string(&list).unwrap();
        let of_it = authority.revocations(&[], now, crl::LIFE).unwrap();
        std::fs::write(&list, lists + &of_it).unwrap();
    };
    assert!(scene.told(&rendered).contains("no list of CN=twin in it"));
    add(&one);
    let told = scene.told(&rendered);
    assert!(told.contains("no list of CN=twin with the key "), "{told}");
    add(&twin);
    assert_eq!(scene.told(&rendered), "");
}
