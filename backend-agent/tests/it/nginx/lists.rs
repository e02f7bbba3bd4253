//! An nginx that goes by a list of revoked certificates, while the authority is replaced.

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
        "there is no list of CN=ViWorkS authority ",
        "ssl_client_certificate has",
        "leave ssl_crl out",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let warning = crl::warning(&scene.config).unwrap();
    assert!(warning.message.contains("ViWorkS authority"), "{warning}");
    // Left out it is right, and nobody is told to write it.
    let without = rendered.replace(&format!("ssl_crl {};", list.display()), "");
    assert_ne!(without, rendered);
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
