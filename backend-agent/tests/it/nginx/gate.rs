//! Files that lead to the backend, and by which nobody gets there.

use super::{SHIPPED, Scene};

const AGENTS: &str = "agents.example.org  viworks_agents;";
const ENROL: &str = "enrol.example.org   viworks_enrolment;";
const DEFAULT: &str = "default             viworks_https;";
const PASS: &str = "proxy_pass $viworks_target;";
const SERVER: &str = "server 127.0.0.1:8081 max_fails=1";
const ROOT: &str = "location / {\n            proxy_pass http://viworks_api;";

#[test]
fn what_lets_nobody_through_is_told_with_what_to_do() {
    let scene = Scene::new();
    let behind = |this: &str, more: &str| format!("{this} {more}");
    for (this, other, told) in [
        (
            PASS,
            behind(PASS, "proxy_ssl on;"),
            "TLS of its own with the backend",
        ),
        (
            PASS,
            behind(PASS, "deny all;"),
            "everybody is refused here: gateways do not",
        ),
        (
            PASS,
            behind(PASS, "deny 192.0.2.1; deny all;"),
            "everybody is refused here",
        ),
        (
            "listen 443;",
            "listen 443 proxy_protocol;".to_owned(),
            "gateways send none: no gateway",
        ),
        (
            "preread_timeout 5s;",
            "preread_timeout 1ms;".to_owned(),
            "gateways have 1ms to say",
        ),
        (
            SERVER,
            behind(SERVER, "down"),
            "every server of this group is marked as down",
        ),
        (
            AGENTS,
            "\"~^agents\" viworks_https; x viworks_agents;".to_owned(),
            "gateways dial",
        ),
        (
            AGENTS,
            "hostnames; *.example.org viworks_https; x viworks_agents;".to_owned(),
            "gateways dial",
        ),
        (
            "map $ssl_preread_server_name",
            "map $remote_addr".to_owned(),
            "told apart by $remote_addr",
        ),
        (
            ROOT,
            ROOT.replace("proxy_pass", "deny all; proxy_pass"),
            "operators do not get through",
        ),
        (
            ROOT,
            ROOT.replace("proxy_pass", "return 403; proxy_pass"),
            "nginx answers here itself",
        ),
        (
            ROOT,
            ROOT.replace("http:", "https:"),
            "plain HTTP from it: operators do not",
        ),
    ] {
        let found = scene.told_of(this, &other);
        assert!(
            found.contains(told) && found.contains("help: "),
            "{told} is not in:\n{found}"
        );
    }
    let both = "listen 443 udp; preread_timeout 5s;";
    let text = SHIPPED
        .replace("listen [::]:443;", "")
        .replace("listen 443;", both);
    assert!(scene.told(&text).contains("gateways come by TCP"), "{text}");
}

#[test]
fn what_lets_them_through_is_not_held_against_a_file() {
    let scene = Scene::new();
    let listen = "listen 443 proxy_protocol; set_real_ip_from 192.0.2.1;";
    let within = |more: &str| ROOT.replace("proxy_pass", &format!("{more} proxy_pass"));
    let listed = within("allow 10.0.0.0/8; deny all;");
    let nested =
        within("return 404; location /v1/ { proxy_pass http://viworks_api; } } location /x {");
    let conditional = within("if ($is_args) { return 403; }");
    for (this, other) in [
        (AGENTS, "hostnames; *.example.org viworks_agents;"),
        (AGENTS, "\"~^agents\\.\" viworks_agents;"),
        (
            AGENTS,
            "~^other viworks_https; AGENTS.example.org viworks_agents;",
        ),
        (PASS, "allow all; deny all; proxy_pass $viworks_target;"),
        (PASS, "deny 192.0.2.1; proxy_pass $viworks_target;"),
        (PASS, "proxy_ssl off; proxy_pass $viworks_target;"),
        ("listen 443;", listen),
        (ROOT, listed.as_str()),
        (ROOT, conditional.as_str()),
        (ROOT, nested.as_str()),
    ] {
        assert_eq!(scene.told_of(this, other), "", "{other}");
    }
}

#[test]
fn what_lets_some_through_is_warned_of() {
    let scene = Scene::new();
    let other = format!("{SERVER} down; server 10.0.0.2:8081");
    for (this, other, told) in [
        (
            PASS,
            "allow 10.0.0.0/8; deny all; proxy_pass $viworks_target;",
            "from the networks only",
        ),
        (SERVER, other.as_str(), "led to the others of the group"),
    ] {
        assert!(SHIPPED.contains(this), "{this}");
        let (checked, ended) = scene.checked(&SHIPPED.replace(this, other), None);
        assert!(ended.is_ok(), "{other}: {ended:?}");
        let warned = checked.warnings.iter().any(|it| it.message.contains(told));
        assert!(warned, "{told} is not in {:?}", checked.warnings);
    }
}

#[test]
fn a_name_that_leads_to_something_else_of_this_nginx_is_told_where_nothing_leads_to_the_door() {
    let mut scene = Scene::new();
    let told = "machines enrol at enrol.example.org (public_url in [enrolment]), and that name does not lead";
    for other in ["enrol.example.org viworks_agents;", ""] {
        let found = scene.told_of(ENROL, other);
        assert!(found.contains(told), "{told} is not in:\n{found}");
    }
    let found = scene.told_of(AGENTS, "agents.example.org viworks_enrolment;");
    assert!(
        found.contains("gateways dial agents.example.org"),
        "{found}"
    );
    // They come by another port, or another default leads out of here.
    let away = SHIPPED
        .replace(ENROL, "")
        .replace(DEFAULT, "default 10.0.0.1:443;");
    let right = scene.found(&away, None).unwrap().join("\n");
    assert!(
        right.contains("not looked at: how machines that enrol"),
        "{right}"
    );
    scene.config.enrolment.public_url = Some("https://enrol.example.org:8082".to_owned());
    let right = scene
        .found(&SHIPPED.replace(ENROL, ""), None)
        .unwrap()
        .join("\n");
    assert!(
        right.contains("not looked at: how machines that enrol"),
        "{right}"
    );
}
