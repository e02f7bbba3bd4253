//! Ways of one part of nginx to another one, or to the backend, in whatever way the place is written.

use viworks_testkit::network::own_address;

use super::{SHIPPED, Scene};

const LISTEN: &str = "listen 127.0.0.1:8443 ssl http2 proxy_protocol;";
const BELIEVED: &str = "set_real_ip_from 127.0.0.1;";

/// The shipped file with one more `listen` of the API's server, one more server in `stream`, and more that is believed.
fn with(listen: &str, server: &str, believed: &str) -> String {
    let text = SHIPPED.replacen(LISTEN, &format!("{LISTEN} listen {listen};"), 1);
    let server = format!("server {{ listen 9; {server} }}\nserver {{");
    let text = text.replacen("server {", &server, 1);
    text.replacen(BELIEVED, &format!("{BELIEVED} {believed}"), 1)
}

#[test]
fn a_server_that_is_reached_by_a_socket_or_an_own_address_is_told_who_connects() {
    let scene = Scene::new();
    let own = own_address().unwrap_or_else(|| [127, 0, 0, 7].into());
    let (socket, lan) = (
        "proxy_pass unix:/run/api.sock;",
        format!("proxy_pass {own}:8444;"),
    );
    let (lan_sends, sends) = (
        format!("{lan} proxy_protocol on;"),
        format!("{socket} proxy_protocol on;"),
    );
    let group = "proxy_pass api; } upstream api { server unix:/run/api.sock;";
    let silent = "without a word about who connects: the audit trail";
    for (listen, server, believed, told) in [
        ("unix:/run/api.sock ssl", socket, "", silent),
        ("unix:/run/../run/api.sock ssl", socket, "", silent),
        ("unix:/run/api.sock ssl", group, "", silent),
        (
            "unix:/run/api.sock ssl",
            &sends,
            "",
            "to unix:/run/api.sock, which takes none",
        ),
        (
            "unix:/run/api.sock ssl proxy_protocol",
            socket,
            "set_real_ip_from unix:;",
            "to unix:/run/api.sock, which requires one",
        ),
        (
            "unix:/run/api.sock ssl proxy_protocol",
            &sends,
            "",
            "write set_real_ip_from unix:;",
        ),
        (
            "unix:/run/api.sock ssl proxy_protocol",
            &sends,
            "set_real_ip_from unix:;",
            "",
        ),
        ("unix:/run/other.sock ssl", socket, "", ""),
        ("8444 ssl", &lan, "", silent),
        ("0.0.0.0:8444 ssl", &lan, "", silent),
        (
            "8444 ssl",
            &lan_sends,
            "",
            "to port 8444 of this machine, which takes none",
        ),
        ("8444 ssl proxy_protocol", &lan_sends, "", ""),
        ("8444 ssl", "proxy_pass 192.0.2.1:8444;", "", ""),
        ("8445 ssl", &lan, "", ""),
        // It goes to the one that has this very address.
        (
            "8443 ssl",
            "proxy_pass 127.0.0.1:8443; proxy_protocol on;",
            "",
            "",
        ),
    ] {
        let found = scene.told(&with(listen, server, believed));
        if told.is_empty() {
            assert_eq!(found, "", "{listen}, {server}");
        } else {
            assert!(
                found.contains(told) && found.contains("help: "),
                "{listen}, {server}: {told} is not in:\n{found}"
            );
        }
    }
    // The help is for a socket, and for nothing else.
    let found = scene.told(&with("unix:/run/api.sock ssl", socket, ""));
    assert!(
        found.contains("set_real_ip_from unix:;") && !found.contains("127.0.0.1;"),
        "{found}"
    );
}

#[test]
fn a_server_without_a_listen_is_at_port_80() {
    let scene = Scene::new();
    let text = with("unix:/run/api.sock ssl", "proxy_pass 127.0.0.1:80;", "");
    let text = text.replacen(&format!("{LISTEN} listen unix:/run/api.sock ssl;"), "", 1);
    let found = scene.told(&text.replace("listen 80 default_server;", ""));
    assert!(
        found.contains("leads to port 80 of this machine without a word"),
        "{found}"
    );
}

#[test]
fn whether_a_name_is_this_machines_is_said_not_to_be_known() {
    let mut scene = Scene::new();
    let other = "proxy_pass backend.example.org:8444;";
    let right = scene.found(&with("8444 ssl", other, ""), None).unwrap();
    assert!(
        right
            .join("\n")
            .contains("not looked at: backend.example.org:8444, "),
        "{right:#?}"
    );
    // It may be the backend: nobody is told that nothing leads there.
    scene.config.agents.listen = "0.0.0.0:8081".parse().unwrap();
    let text = SHIPPED.replace("127.0.0.1:8081", "backend.example.org:8081");
    let right = scene.found(&text, None).unwrap().join("\n");
    assert!(right.contains("is for DNS to say"), "{right}");
}

#[test]
fn a_backend_that_listens_everywhere_is_found_at_each_address_of_its_machine() {
    let Some(own) = own_address() else {
        return;
    };
    let mut scene = Scene::new();
    scene.config.agents.listen = "0.0.0.0:8081".parse().unwrap();
    scene.config.api.listen = "0.0.0.0:8080".parse().unwrap();
    let text = SHIPPED
        .replace("127.0.0.1:8081", &format!("{own}:8081"))
        .replace("127.0.0.1:8080", &format!("{own}:8080"));
    // From there nginx connects, too.
    let found = scene.told(&text);
    assert!(
        found.contains(&format!("nginx connects from {own}"))
            && found.contains(&format!("all operators at {own}")),
        "{found}"
    );
    for trusted in [
        &mut scene.config.agents.trusted_proxies,
        &mut scene.config.api.trusted_proxies,
    ] {
        trusted.push(own.to_string().parse().unwrap());
    }
    assert_eq!(scene.told(&text), "");
    let past = format!("server {{ listen 9; proxy_pass {own}:8080; }}\nserver {{");
    let found = scene.told(&text.replacen("server {", &past, 1));
    assert!(
        found.contains("API keys would cross the network in plain text"),
        "{found}"
    );
}

#[test]
fn where_nothing_leads_to_the_backend_is_said_with_what_to_write() {
    let mut scene = Scene::new();
    for (this, other, told, help) in [
        (
            "127.0.0.1:8081",
            "127.0.0.1:8089",
            "no server in a stream block leads to 127.0.0.1:8081, where gateways are taken; what is there leads to \
             127.0.0.1:8082, 127.0.0.1:8089, 127.0.0.1:8443",
            "write server { listen 443; proxy_pass 127.0.0.1:8081; proxy_protocol on; proxy_timeout 90s; } in a stream",
        ),
        (
            "server 127.0.0.1:8081",
            "server unix:/run/backend.sock",
            "leads to 127.0.0.1:8081, where gateways are taken",
            "the backend has no socket in the file system: write 127.0.0.1:8081 in place of unix:/run/backend.sock (",
        ),
        (
            "server 127.0.0.1:8080",
            "server unix:/run/api.sock",
            "no location in an http block leads to 127.0.0.1:8080, where the API is",
            "write 127.0.0.1:8080 in place of unix:/run/api.sock (",
        ),
        (
            "server 127.0.0.1:8080",
            "server 127.0.0.1:8088",
            "where the API is; what is there leads to 127.0.0.1:8088",
            "write location / { proxy_pass http://127.0.0.1:8080; }",
        ),
        // What has it is there, and the line that leads to it is not.
        (
            "agents.example.org  viworks_agents;",
            "agents.example.org  viworks_enrolment;",
            "gateways dial agents.example.org (public_url in [agents]), and that name does not lead to the backend",
            "the line agents.example.org leads to viworks_enrolment: write the upstream that has 127.0.0.1:8081 into \
             it, or where others are led by that name, give these a name of their own in public_url in [agents]",
        ),
        (
            "proxy_pass http://viworks_api;",
            "proxy_pass http://127.0.0.1:8088;",
            "where the API is; the upstream viworks_api has it, and nothing leads to that",
            "name viworks_api in a proxy_pass of a location",
        ),
        (
            "stream {",
            "other {",
            "there is no stream block at all",
            "write server { listen 443;",
        ),
    ] {
        let found = scene.told_of(this, other);
        assert!(
            found.contains(told) && found.contains(help),
            "{told} {help} is not in:\n{found}"
        );
    }
    // Nobody says which name they ask for.
    let dialled = scene.config.agents.public_url.take();
    let found = scene.told_of(
        "agents.example.org  viworks_agents;",
        "agents.example.org  viworks_enrolment;",
    );
    for part in [
        "where gateways are taken; the upstream viworks_agents has it, and nothing leads to that",
        "write the name that is asked for and viworks_agents as a line of the map",
    ] {
        assert!(found.contains(part), "{part} is not in:\n{found}");
    }
    scene.config.agents.public_url = dialled;
    // What has no port yet cannot be compared, which is said.
    scene.config.agents.listen = "127.0.0.1:0".parse().unwrap();
    let right = scene.found(SHIPPED, None).unwrap().join("\n");
    assert!(
        right.contains("not looked at: how gateways come to the backend"),
        "{right}"
    );
}
