//! Configurations of nginx: what is rendered is right, and what would not work is told with its place and its fix.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use viworks_backend_agent::config::{Config, ProxyProtocol, TlsEnd};
use viworks_backend_agent::nginx::check::{Question, check};
use viworks_backend_agent::nginx::render::{RenderError, Site, render};
use viworks_common::pin::PinSet;
use viworks_runtime::checked::Checked;
use viworks_runtime::config::Problems;

use crate::pki;

mod asked;
mod gate;
mod lists;
mod pins;
mod places;
mod strength;
mod terminated;

const SHIPPED: &str = include_str!("../../../nginx/nginx.conf");
const CONTAINERS: &str = include_str!("../../../containers/nginx.conf");

struct Scene {
    folder: TempDir,
    config: Config,
    in_force: Result<PinSet, String>,
}

impl Scene {
    fn new() -> Self {
        let folder = pki::initialised();
        let mut config = pki::config(&folder);
        config.agents.proxy_protocol = ProxyProtocol::Require;
        config.agents.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        config.api.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        config.agents.public_url = Some("wss://agents.example.org".to_owned());
        config.enrolment.listen = Some("127.0.0.1:8082".parse().unwrap());
        config.enrolment.proxy_protocol = ProxyProtocol::Require;
        config.enrolment.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
        config.enrolment.public_url = Some("https://enrol.example.org".to_owned());
        Self {
            folder,
            config,
            in_force: Err("nobody asked it".to_owned()),
        }
    }

    /// What is wrong with this file.
    fn told(&self, text: &str) -> String {
        self.told_with(text, None)
    }

    fn told_with(&self, text: &str, renewal: Option<&Path>) -> String {
        let found = self.found(text, renewal);
        found.map_or_else(|problems| problems.to_string(), |_right| String::new())
    }

    /// What is right with this file, or all that is wrong.
    fn found(&self, text: &str, renewal: Option<&Path>) -> Result<Vec<String>, Problems> {
        let (checked, ended) = self.checked(text, renewal);
        ended.map(|()| checked.found)
    }

    /// All that is said of this file, and how it ended.
    fn checked(&self, text: &str, renewal: Option<&Path>) -> (Checked, Result<(), Problems>) {
        looked(&Question {
            config: &self.config,
            file: &self.written(text),
            renewal,
            usual_renewal: &self.folder.path().join("usual"),
            ask_nginx: false,
            in_force: &self.in_force,
        })
    }

    fn written(&self, text: &str) -> PathBuf {
        let file = self.folder.path().join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// A certificate with a key of its own for this name, in a file of this one.
    fn certificate(&self, file: &str, name: &str) -> PathBuf {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([name.to_owned()]).unwrap();
        let path = self.folder.path().join(file);
        std::fs::write(&path, certificate.self_signed(&key).unwrap().pem()).unwrap();
        path
    }

    /// What is wrong with the shipped file where one thing in it is another.
    fn told_of(&self, this: &str, other: &str) -> String {
        assert!(SHIPPED.contains(this), "{this}");
        self.told(&SHIPPED.replace(this, other))
    }
}

/// All that is said of a file, and how it ended.
fn looked(question: &Question<'_>) -> (Checked, Result<(), Problems>) {
    let mut checked = Checked::default();
    let ended = check(question, &mut checked);
    (checked, ended)
}

fn site() -> Site {
    Site {
        agents_name: "agents.example.org".to_owned(),
        enrolment_name: "enrol.example.org".to_owned(),
        api_name: "api.example.org".to_owned(),
        agents: vec!["127.0.0.1:8081".to_owned()],
        enrolment: Vec::new(),
        api: vec!["127.0.0.1:8080".to_owned()],
        certificate_file: PathBuf::from("/etc/viworks/nginx/api.crt"),
        key_file: PathBuf::from("/etc/viworks/nginx/api.key"),
        crl_file: None,
        crl_is_left_out: false,
    }
}

#[test]
fn the_shipped_file_is_what_is_rendered_for_its_own_names_and_has_no_problem() {
    let scene = Scene::new();
    assert_eq!(
        render(TlsEnd::Backend, &site(), &scene.config.agents).as_deref(),
        Ok(SHIPPED)
    );
    assert_eq!(scene.told(SHIPPED), "");
}

#[test]
fn the_file_of_the_containers_fits_both_of_their_backends() {
    for (agents, api, door) in [("9081", "9181", "9281"), ("9082", "9182", "9282")] {
        let mut scene = Scene::new();
        let address = |port: &str| format!("127.0.0.1:{port}").parse().unwrap();
        scene.config.agents.listen = address(agents);
        scene.config.api.listen = address(api);
        scene.config.enrolment.listen = Some(address(door));
        let right = scene.found(CONTAINERS, None).unwrap().join("\n");
        for who in ["gateways", "machines that enrol"] {
            let passed = format!("{who} are passed through to 127.0.0.1:");
            assert!(right.contains(&passed), "{passed}: {right}");
        }
    }
}

/// Settings of TLS, one a line.
fn settings_of_tls(text: &str) -> Vec<&str> {
    let is_setting = |line: &&str| {
        let line = line.trim_start();
        line.starts_with("ssl_") && !line.starts_with("ssl_certificate")
    };
    text.lines().filter(is_setting).collect()
}

#[test]
fn what_is_rendered_speaks_the_same_tls_as_what_ships() {
    let scene = Scene::new();
    for (end, shipped) in [
        (TlsEnd::Backend, SHIPPED),
        (TlsEnd::Proxy, terminated::TERMINATE),
    ] {
        let site = Site {
            api_name: "api.site.example".to_owned(),
            api: vec!["10.0.0.1:8080".to_owned(), "10.0.0.2:8080".to_owned()],
            ..site()
        };
        let rendered = render(end, &site, &scene.config.agents).unwrap();
        let own = settings_of_tls(&rendered);
        assert!(own.iter().any(|line| line.contains("ssl_ciphers ")));
        let client_ca = |line: &&str| !line.contains("ssl_client_certificate");
        let [own, shipped] = [own, settings_of_tls(shipped)]
            .map(|lines| lines.into_iter().filter(client_ca).collect::<Vec<_>>());
        assert_eq!(own, shipped);
    }
}

#[test]
fn a_site_has_its_names_backends_and_limits_in_what_is_rendered() {
    let mut scene = Scene::new();
    scene.config.agents.per_source_max = 77;
    scene.config.agents.silence = std::time::Duration::from_secs(120);
    let site = Site {
        agents_name: "gw.site.example".to_owned(),
        // A place of the shipped file, which is not to be taken for one.
        api_name: "enrol.example.org".to_owned(),
        enrolment_name: "join.site.example".to_owned(),
        agents: vec![
            "10.0.0.1:8081".to_owned(),
            "[2001:db8::1]:8081".to_owned(),
            "b.internal:9".to_owned(),
        ],
        enrolment: vec!["10.0.0.1:8082".to_owned(), "b.internal:10".to_owned()],
        ..site()
    };
    let rendered = render(TlsEnd::Backend, &site, &scene.config.agents).unwrap();
    for line in [
        "gw.site.example  viworks_agents;",
        "join.site.example   viworks_enrolment;",
        "server_name enrol.example.org;",
        "server 10.0.0.1:8081 max_fails=1 fail_timeout=5s;\n        server [2001:db8::1]:8081 max_fails=1 fail_timeout=5s;\n        server b.internal:9 ",
        "server 10.0.0.1:8082 max_fails=1 fail_timeout=5s;\n        server b.internal:10 max_fails=1 ",
        "limit_conn viworks_sources 77;",
        "proxy_timeout 240s;",
    ] {
        assert!(rendered.contains(line), "{line}");
    }
    assert!(!rendered.contains("agents.example.org"));
}

#[test]
fn nothing_is_rendered_that_nginx_would_read_as_something_else() {
    let agents = Scene::new().config.agents;
    let with = |change: fn(&mut Site)| {
        let mut site = site();
        change(&mut site);
        render(TlsEnd::Backend, &site, &agents).unwrap_err()
    };
    let name = |error: RenderError| matches!(error, RenderError::Name(_));
    assert!(name(with(|site| site.api_name = "a b".to_owned())));
    assert!(name(with(|site| site.agents_name = "a;}".to_owned())));
    assert!(name(with(|site| site.enrolment_name = String::new())));
    assert!(name(with(
        |site| site.api_name = "API.example.org".to_owned()
    )));
    assert!(matches!(
        with(|site| site.api_name = site.agents_name.clone()),
        RenderError::SameName(_)
    ));
    let one_name = with(|site| site.enrolment_name = site.agents_name.clone());
    let told = one_name.to_string();
    assert!(told.contains("--enrolment-name"), "{told}");
    // The file that ends TLS has no door.
    let one_name = Site {
        enrolment_name: site().agents_name,
        ..site()
    };
    assert!(render(TlsEnd::Proxy, &one_name, &agents).is_ok());
    assert!(matches!(
        with(|site| site.agents.push("10.0.0.1".to_owned())),
        RenderError::Address(_)
    ));
    assert!(matches!(
        with(|site| site.api.push("10.0.0.1:0".to_owned())),
        RenderError::Address(_)
    ));
    assert!(matches!(
        with(|site| site.enrolment.push("10.0.0.1".to_owned())),
        RenderError::Address(_)
    ));
    assert!(matches!(
        with(|site| site.key_file = "key".into()),
        RenderError::Path { what: "--key", .. }
    ));
    assert!(matches!(
        with(|site| site.key_file = "/a b/key".into()),
        RenderError::Path { what: "--key", .. }
    ));
}

#[test]
fn what_would_keep_gateways_away_is_told() {
    let scene = Scene::new();
    for (this, other, told) in [
        (
            "proxy_protocol on;",
            "",
            "none is sent: no gateway could connect",
        ),
        (
            "proxy_timeout 90s;",
            "proxy_timeout 40s;",
            "may be silent for 45 s",
        ),
        ("ssl_preread on;", "", "is not looked at"),
        (
            "agents.example.org  viworks_agents;",
            "other.example.org  viworks_agents;",
            "that name does not lead",
        ),
        (
            "listen 443;",
            "listen 443 ssl;",
            "TLS of gateways would end here",
        ),
        (
            "127.0.0.1:8081",
            "127.0.0.1:8089",
            "leads to 127.0.0.1:8081",
        ),
        (
            "proxy_pass $viworks_target;",
            "proxy_pass $viworks_target; proxy_bind 10.0.0.7;",
            "nginx connects from 10.0.0.7",
        ),
        ("stream {", "stream", "ends with a semicolon or a block"),
    ] {
        let found = scene.told_of(this, other);
        assert!(
            found.contains(told) && found.contains("help: "),
            "{told} is not in:\n{found}"
        );
    }
    let mut direct = Scene::new();
    direct.config.agents.proxy_protocol = ProxyProtocol::Off;
    assert!(direct.told(SHIPPED).contains("the backend takes none"));
    assert!(
        direct
            .told_of("proxy_protocol on;", "")
            .contains("take all gateways for one")
    );
}

#[test]
fn what_would_keep_machines_from_enrolling_is_told() {
    let scene = Scene::new();
    let right = scene.found(SHIPPED, None).unwrap().join("\n");
    let passed = "machines that enrol are passed through to 127.0.0.1:8082";
    assert!(right.contains(passed), "{right}");
    for (this, other, told) in [
        ("proxy_protocol on;", "", "none is sent: no machine could"),
        (
            "enrol.example.org   viworks_enrolment;",
            "join.example.org   viworks_enrolment;",
            "machines enrol at enrol.example.org (public_url in [enrolment]), and that name does not lead",
        ),
        (
            "proxy_pass $viworks_target;",
            "proxy_pass $viworks_target; proxy_bind 10.0.0.7;",
            "not among trusted_proxies in [enrolment]: no machine could enrol",
        ),
        (
            "listen 443;",
            "listen 443 ssl;",
            "TLS of machines that enrol would",
        ),
    ] {
        let found = scene.told_of(this, other);
        assert!(found.contains(told), "{told} is not in:\n{found}");
    }
    let mut direct = Scene::new();
    direct.config.enrolment.proxy_protocol = ProxyProtocol::Off;
    let found = direct.told(SHIPPED);
    assert!(
        found.contains("takes none: no machine could enrol"),
        "{found}"
    );
    assert!(found.contains("trusted_proxies in [enrolment]"), "{found}");
    // They may come by another way; and a backend may have no door.
    let elsewhere = SHIPPED.replace("127.0.0.1:8082", "10.0.0.1:8082");
    let right = scene.found(&elsewhere, None).unwrap().join("\n");
    let unseen = "not looked at: how machines that enrol come to 127.0.0.1:8082";
    assert!(right.contains(unseen), "{right}");
    direct.config.enrolment.listen = None;
    let right = direct.found(SHIPPED, None).unwrap().join("\n");
    assert!(!right.contains("enrol"), "{right}");
}

#[test]
fn what_would_hold_operators_up_is_told() {
    let scene = Scene::new();
    for (this, other, told) in [
        (
            "proxy_buffering off;",
            "",
            "kept back until a buffer is full",
        ),
        ("gzip off;", "gzip on;", "enough of them to be compressed"),
        (
            "proxy_read_timeout 90s;",
            "proxy_read_timeout 10s;",
            "heard of every 15 s",
        ),
        (
            "ssl_protocols TLSv1.2 TLSv1.3;",
            "ssl_protocols TLSv1 TLSv1.2;",
            "TLSv1 is broken",
        ),
        (
            "client_max_body_size 1m;",
            "client_max_body_size 8k;",
            "has up to 1 MiB",
        ),
        (
            "listen 127.0.0.1:8443 ssl http2 proxy_protocol;",
            "listen 8443;",
            "in plain text",
        ),
        (
            "127.0.0.1:8080",
            "127.0.0.1:8089",
            "leads to 127.0.0.1:8080",
        ),
        (
            "proxy_set_header X-Real-IP $remote_addr;",
            "",
            "X-Real-IP goes on as the client wrote it",
        ),
        (
            "proxy_http_version 1.1;",
            "proxy_http_version 1.1; proxy_bind 10.0.0.7;",
            "all operators at 10.0.0.7",
        ),
    ] {
        let found = scene.told_of(this, other);
        assert!(
            found.contains(told) && found.contains("help: "),
            "{told} is not in:\n{found}"
        );
    }
}

#[test]
fn every_certificate_is_looked_at_or_is_said_not_to_have_been() {
    let scene = Scene::new();
    scene.certificate("own.crt", "api.example.org");
    scene.certificate("other.crt", "other.example.org");
    let shown = |lines: &str| {
        let line = "ssl_certificate /etc/viworks/nginx/api.crt;";
        assert!(SHIPPED.contains(line));
        scene.found(&SHIPPED.replace(line, lines), None)
    };
    // A path starts where nginx's first file is. One for each kind of key: a client may get either.
    let right = shown("ssl_certificate own.crt;").unwrap();
    assert!(!right.join("\n").contains("own.crt"), "{right:#?}");
    for lines in [
        "ssl_certificate other.crt;",
        "ssl_certificate own.crt; ssl_certificate other.crt;",
    ] {
        let found = shown(lines).unwrap_err().to_string();
        assert!(
            found.contains("other.crt is not for api.example.org"),
            "{found}"
        );
    }
    std::fs::write(scene.folder.path().join("empty.crt"), "").unwrap();
    for (name, why) in [
        ("/nonexistent/api.crt", "No such file"),
        ("empty.crt", "holds no certificate"),
        (
            "$ssl_server_name.crt",
            "no file that is known before nginx runs",
        ),
    ] {
        let right = shown(&format!("ssl_certificate {name};"))
            .unwrap()
            .join("\n");
        assert!(
            right.contains(&format!("not looked at: {name}, ")) && right.contains(why),
            "{right}"
        );
    }
}

#[test]
fn whoever_could_claim_any_address_to_nginx_is_told() {
    let scene = Scene::new();
    for wide in ["0.0.0.0/0", "0.0.0.0/1", "::ffff:0:0/96"] {
        let found = scene.told_of(
            "set_real_ip_from 127.0.0.1;",
            &format!("set_real_ip_from {wide};"),
        );
        assert!(
            found.contains(&format!("{wide} is more than one site can have")),
            "{found}"
        );
    }
    let found = scene.told_of("ssl_preread on;", "ssl_preread on; set_real_ip_from ::/0;");
    assert!(
        found.contains("::/0 is more than one site can have"),
        "{found}"
    );
}

#[test]
fn operators_are_known_by_what_the_part_that_passes_tls_through_says() {
    let scene = Scene::new();
    for claimed in ["", "real_ip_header X-Forwarded-For;"] {
        let found = scene.told_of("real_ip_header proxy_protocol;", claimed);
        assert!(found.contains("can claim any address in X-"), "{found}");
    }
    for believed in ["", "set_real_ip_from unix:;", "set_real_ip_from 192.0.2.1;"] {
        let found = scene.told_of("set_real_ip_from 127.0.0.1;", believed);
        let told = "all operators where the part is that passes TLS through";
        assert!(found.contains(told), "{believed}: {found}");
    }
    let wider = "set_real_ip_from 192.0.2.1; set_real_ip_from 127.0.0.0/8;";
    assert_eq!(scene.told_of("set_real_ip_from 127.0.0.1;", wider), "");
}

#[test]
fn every_way_to_the_api_is_held_against_the_same() {
    let scene = Scene::new();
    let inside = |what: &str| {
        let location = "location / {\n            proxy_pass http://viworks_api;\n        }";
        scene.told_of(location, &format!("location / {{ {what} }}"))
    };
    let plain = "proxy_set_header X-Real-IP $http_x_real_ip; proxy_pass http://viworks_api;";
    for way in [
        plain.to_owned(),
        format!("location /v1/runs {{ {plain} }}"),
        format!("location /v1/runs {{ if ($arg_a) {{ {plain} }} }}"),
        plain.replace("viworks_api", "localhost:8080"),
        plain.replace("viworks_api", "[::ffff:127.0.0.1]:8080"),
        format!(
            "set $where 127.0.0.1:8080; {}",
            plain.replace("viworks_api", "$where")
        ),
        format!(
            "set $where http://viworks_api; {}",
            plain.replace("http://viworks_api", "${where}")
        ),
    ] {
        let found = inside(&way);
        assert!(
            found.contains("X-Real-IP goes on as the client wrote it"),
            "{way}: {found}"
        );
    }
    // A path behind it, or whatever a variable adds.
    for target in [
        "viworks_api$request_uri",
        "viworks_api?$args",
        "127.0.0.1:8080${request_uri}",
        "127.0.0.1:8080$is_args$args",
        "127.0.0.1:8080$arg_more",
        "$where$request_uri",
    ] {
        let way = plain.replace("viworks_api", target);
        let found = inside(&format!("set $where viworks_api; {way}"));
        assert!(
            found.contains("X-Real-IP goes on as the client wrote it"),
            "{way}: {found}"
        );
    }
    // What is led somewhere else is none of ours.
    for elsewhere in ["127.0.0.1:3000", "127.0.0.1:3000$request_uri"] {
        assert_eq!(inside(&plain.replace("viworks_api", elsewhere)), "");
    }
    // One way is enough, however it is written.
    for target in ["viworks_api$request_uri", "127.0.0.1:8080$request_uri"] {
        let pass = format!("proxy_pass http://{target};");
        assert_eq!(scene.told_of("proxy_pass http://viworks_api;", &pass), "");
    }
    for (this, other) in [
        (
            "listen 127.0.0.1:8443 ssl http2 proxy_protocol;",
            "listen 443 ssl; listen 81;",
        ),
        ("listen 127.0.0.1:8443 ssl http2 proxy_protocol;", ""),
        ("proxy_pass $viworks_target;", "proxy_pass 127.0.0.1:8080;"),
    ] {
        let found = scene.told_of(this, other);
        assert!(
            found.contains("API keys would cross the network in plain text"),
            "{other}: {found}"
        );
    }
    // TLS without the word, and no network.
    let listen = "listen 127.0.0.1:8443 ssl http2 proxy_protocol;";
    for other in ["listen 443 quic;", "listen unix:/run/viworks.sock;"] {
        assert_eq!(scene.told_of(listen, &format!("{listen} {other}")), "");
    }
}

#[test]
fn whoever_passes_tls_on_to_a_server_of_this_nginx_says_who_connects() {
    let scene = Scene::new();
    let none = "proxy_protocol on;";
    let found = scene.told_of(none, "");
    assert!(
        found.contains("sends no header of the PROXY protocol to 127.0.0.1:8443"),
        "{found}"
    );
    // The other way round, and neither.
    let listen = "listen 127.0.0.1:8443 ssl http2 proxy_protocol;";
    for other in [
        "listen 8444 ssl;",
        "listen *:8444 ssl;",
        "listen [::]:8444 ssl;",
    ] {
        let way = "server { listen 9; proxy_pass localhost:8444; }\nserver {";
        let text = SHIPPED.replacen("server {", way, 1);
        let found = scene.told(&text.replacen(listen, &format!("{listen} {other}"), 1));
        assert!(
            found.contains("without a word about who connects: the audit trail"),
            "{other}: {found}"
        );
        assert_eq!(scene.told(&text), "");
    }
    let text = SHIPPED.replacen(listen, "listen 127.0.0.1:8443 ssl http2;", 1);
    let found = scene.told(&text);
    assert!(found.contains("which takes none"), "{found}");
}

#[test]
fn where_nobody_can_tell_where_a_proxy_pass_leads_that_is_said() {
    let scene = Scene::new();
    let text = SHIPPED.replace("return 301", "proxy_pass http://$http_where; return 301");
    let right = scene.found(&text, None).unwrap().join("\n");
    assert!(
        right.contains("not looked at: http://$http_where, ")
            && right.contains("not known before nginx runs"),
        "{right}"
    );
}

#[test]
fn a_renewal_that_would_change_a_pinned_key_is_told() {
    let scene = Scene::new();
    let renewal = scene.folder.path().join("renewal");
    std::fs::create_dir(&renewal).unwrap();
    let certificate = scene.config.agents.certificate_file.clone();
    let lineage = |fullchain: &Path, more: &str| {
        let text = format!(
            "version = 2.1.0\nfullchain = {}\n[renewalparams]\nauthenticator = webroot\n{more}",
            fullchain.display()
        );
        std::fs::write(renewal.join("agents.example.org.conf"), text).unwrap();
        scene.told_with(SHIPPED, Some(&renewal))
    };
    let found = lineage(&certificate, "");
    assert!(
        found.contains("the next renewal makes another key") && found.contains("--reuse-key"),
        "{found}"
    );
    assert!(lineage(&certificate, "reuse_key = False\n").contains("makes another key"));
    assert_eq!(lineage(&certificate, "reuse_key = True\n"), "");
    // A copy by a deploy hook is known by its key.
    let copy = scene.folder.path().join("copy.crt");
    std::fs::copy(&certificate, &copy).unwrap();
    assert!(lineage(&copy, "").contains("makes another key"));
    // The certificate for operators may change its key as it likes.
    let key = KeyPair::generate().unwrap();
    let api = CertificateParams::new(["api.example.org".to_owned()]).unwrap();
    std::fs::write(&copy, api.self_signed(&key).unwrap().pem()).unwrap();
    assert_eq!(lineage(&copy, ""), "");
    let missing = scene.told_with(SHIPPED, Some(Path::new("/nonexistent/renewal")));
    assert!(missing.contains("/etc/letsencrypt/renewal"), "{missing}");
    // What cannot be read may be a copy as well; what is not there is in use nowhere.
    std::fs::write(&copy, "").unwrap();
    let unread = lineage(&copy, "");
    assert!(
        unread.contains("cannot be told") && unread.contains("--reuse-key"),
        "{unread}"
    );
    assert_eq!(lineage(&copy, "reuse_key = True\n"), "");
    assert_eq!(lineage(Path::new("/nonexistent/fullchain.pem"), ""), "");
}

#[test]
fn certbots_own_folder_is_looked_at_where_it_is_there() {
    let scene = Scene::new();
    let right = scene.found(SHIPPED, None).unwrap().join("\n");
    assert!(
        right.contains("not looked at: renewals of certificates"),
        "{right}"
    );
    let usual = scene.folder.path().join("usual");
    std::fs::create_dir(&usual).unwrap();
    let right = scene.found(SHIPPED, None).unwrap().join("\n");
    assert!(
        right.contains(&format!("no renewal in {}", usual.display())),
        "{right}"
    );
    let own = scene.config.agents.certificate_file.display();
    std::fs::write(usual.join("a.conf"), format!("fullchain = {own}\n")).unwrap();
    let found = scene.told(SHIPPED);
    assert!(
        found.contains("the next renewal makes another key"),
        "{found}"
    );
    // Something is there, and nobody knows what.
    std::fs::remove_dir_all(&usual).unwrap();
    std::os::unix::fs::symlink("/nonexistent/renewal", &usual).unwrap();
    assert!(scene.told(SHIPPED).contains("cannot be read"));
}
