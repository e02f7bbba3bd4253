//! Configurations of nginx in which the TLS of gateways ends.

use viworks_backend_agent::config::{ProxyProtocol, TlsEnd};
use viworks_backend_agent::nginx::render::{Site, render};
use viworks_common::key::BindingMode;

use super::{SHIPPED, Scene, site};

pub(super) const TERMINATE: &str = include_str!("../../../../nginx/nginx-terminate.conf");

/// A backend whose gateways' TLS ends in nginx, with the shipped file for its own certificates.
pub(super) fn terminating() -> (Scene, String) {
    let mut scene = Scene::new();
    let agents = &mut scene.config.agents;
    agents.tls_ends_at = TlsEnd::Proxy;
    agents.binding = BindingMode::Certificate;
    agents.proxy_protocol = ProxyProtocol::Off;
    let rendered = render(TlsEnd::Proxy, &site(), &scene.config.agents).unwrap();
    (scene, rendered)
}

#[test]
fn the_shipped_file_that_ends_tls_is_rendered_for_the_backends_certificates() {
    let (scene, rendered) = terminating();
    assert_eq!(scene.told(&rendered), "");
    let agents = &scene.config.agents;
    let places = [
        ("/etc/viworks/backend/server.crt", &agents.certificate_file),
        ("/etc/viworks/backend/server.key", &agents.key_file),
        ("/etc/viworks/backend/ca.crt", &agents.client_ca_file),
    ];
    let placed = places
        .iter()
        .fold(TERMINATE.to_owned(), |text, (place, own)| {
            text.replace(place, own.to_str().unwrap())
        });
    assert_eq!(rendered, placed);
    // It is not what a backend needs whose own TLS it is, and the other way round.
    let told = Scene::new().told(&rendered);
    for part in [
        "leads to 127.0.0.1:8081, where gateways are taken, from a place where nginx ends their TLS",
        "write tls_ends_at = \"proxy\" in [agents]",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
    let missing = "no server in a stream block leads to 127.0.0.1:8081";
    assert!(!told.contains(missing), "{told}");
    assert!(
        scene
            .told(SHIPPED)
            .contains("no location in an http block leads to 127.0.0.1:8081")
    );
}

#[test]
fn the_list_that_the_backend_keeps_is_in_what_is_rendered_and_its_absence_is_told() {
    let (mut scene, without) = terminating();
    assert!(!without.contains("\n        ssl_crl "), "{without}");
    let list = scene.folder.path().join("gateways.crl");
    scene.config.keys.crl_file = Some(list.clone());
    let site = Site {
        crl_file: Some(list.clone()),
        ..site()
    };
    let rendered = render(TlsEnd::Proxy, &site, &scene.config.agents).unwrap();
    let line = format!("\n        ssl_crl {};\n", list.display());
    assert!(rendered.contains(&line), "{rendered}");
    let warned = |text: &str| {
        let (checked, ended) = scene.checked(text, None);
        ended.unwrap();
        checked.warnings.len()
    };
    let (before, after) = (warned(&without), warned(&rendered));
    assert_eq!(before, after + 1);
}

#[test]
fn what_would_open_no_session_where_tls_ends_in_nginx_is_told() {
    let (mut scene, rendered) = terminating();
    for (this, other, told) in [
        (
            "ssl_verify_client on;",
            "",
            "not asked for their certificate",
        ),
        ("ssl_session_tickets off;", "", "shows no certificate"),
        (
            "ssl_session_cache off;",
            "ssl_session_cache shared:all:1m;",
            "shows no certificate",
        ),
        (
            "$ssl_client_escaped_cert;",
            "$ssl_client_cert;",
            "X-Client-Cert is not set",
        ),
        (
            "proxy_set_header X-Real-IP $remote_addr;",
            "",
            "X-Real-IP is not set",
        ),
        (
            "proxy_set_header Upgrade $http_upgrade;",
            "",
            "Upgrade is not set",
        ),
        (
            "proxy_read_timeout 90s;",
            "proxy_read_timeout 40s;",
            "may be silent for 45 s",
        ),
        (
            "proxy_pass http://viworks_agents;",
            "proxy_pass http://viworks_agents; proxy_bind 10.0.0.7;",
            "nginx connects from 10.0.0.7",
        ),
        (
            "server_name agents.example.org;",
            "server_name other.example.org;",
            "this server has another name",
        ),
    ] {
        assert!(rendered.contains(this), "{this}");
        let found = scene.told(&rendered.replace(this, other));
        assert!(
            found.contains(told) && found.contains("help: "),
            "{told} is not in:\n{found}"
        );
    }
    // A renewed certificate with another key, alone or beside the right one.
    scene.certificate("renewed.crt", "agents.example.org");
    let own = scene.config.agents.certificate_file.display();
    let own = format!("ssl_certificate {own};");
    assert!(rendered.contains(&own));
    for lines in [
        "ssl_certificate renewed.crt;".to_owned(),
        format!("{own} ssl_certificate renewed.crt;"),
    ] {
        let found = scene.told(&rendered.replace(&own, &lines));
        assert!(found.contains("which is none that gateways pin"), "{found}");
    }
    scene.config.agents.trusted_proxies.clear();
    assert!(
        scene
            .told(&rendered)
            .contains("is not among trusted_proxies")
    );
}

#[test]
fn a_way_past_the_place_where_tls_ends_is_told() {
    let (scene, rendered) = terminating();
    for servers in [
        "server { listen 8443; proxy_pass 127.0.0.1:8081; }",
        "server { listen 8443 ssl; proxy_pass localhost:8081; proxy_protocol on; }",
        "upstream a { server 127.0.0.1:8081; } server { listen 8443; proxy_pass a; }",
        "map $remote_addr $a { default 127.0.0.1:8081; } server { listen 8443; proxy_pass $a; }",
    ] {
        let found = scene.told(&format!("{rendered}\nstream {{ {servers} }}\n"));
        assert!(
            found.contains("could claim the certificate of any gateway")
                && found.contains("help: remove"),
            "{servers}: {found}"
        );
    }
    assert_eq!(
        scene.told(&format!(
            "{rendered}\nstream {{ server {{ listen 9; proxy_pass 127.0.0.1:9; }} }}\n"
        )),
        ""
    );
    // A location in another one, or in another server, that passes on what a client claims.
    let claim = "location /a { proxy_set_header X-Client-Cert $http_x_client_cert; proxy_pass http://viworks_agents; }";
    for (this, other) in [
        ("return 404;", claim.to_owned()),
        (
            "return 404;",
            claim.replace("viworks_agents", "127.0.0.1:8081$request_uri"),
        ),
        ("return 404;", format!("location /b {{ {claim} }}")),
        (
            "server_tokens off;",
            format!("server {{ listen 80; {claim} }}"),
        ),
    ] {
        assert!(rendered.contains(this));
        let found = scene.told(&rendered.replace(this, &other));
        assert!(
            found.contains("X-Client-Cert is not set to what it should be"),
            "{other}: {found}"
        );
    }
}

#[test]
fn another_part_of_nginx_that_leads_to_where_tls_ends_says_who_connects() {
    let (scene, rendered) = terminating();
    let server = |more: &str| format!("stream {{ server {{ listen 8443; {more} }} }}\n");
    let left_over = server("proxy_pass 127.0.0.1:443;");
    let found = scene.told(&format!("{rendered}\n{left_over}"));
    assert!(
        found.contains("all gateways where the part is that passes TLS through")
            && found.contains("help: remove this server"),
        "{found}"
    );
    let sends = server("proxy_pass 127.0.0.1:443; proxy_protocol on;");
    let found = scene.told(&format!("{rendered}\n{sends}"));
    assert!(found.contains("nobody could connect"), "{found}");
    let takes = |more: &str| {
        let listen = format!("listen 443 ssl proxy_protocol; {more}");
        let text = rendered.replace("listen 443 ssl;", &listen);
        scene.told(&format!("{text}\n{sends}"))
    };
    let found = takes("set_real_ip_from 127.0.0.1;");
    assert!(
        found.contains("can claim any address in X-Real-IP, and no limit of one address"),
        "{found}"
    );
    let found = takes("real_ip_header proxy_protocol;");
    assert!(found.contains("write set_real_ip_from with"), "{found}");
    assert_eq!(
        takes("real_ip_header proxy_protocol; set_real_ip_from 127.0.0.1;"),
        ""
    );
}
