//! What nginx itself refuses, with its file and line and what to do about it.

use viworks_backend_agent::nginx::check::Question;
use viworks_testkit::nginx::Nginx;

use super::{Scene, looked};

#[test]
fn what_nginx_refuses_is_told_with_its_line_and_its_own_help() {
    if !Nginx::is_installed() {
        return;
    }
    let scene = Scene::new();
    let http = |inside: &str| format!("events {{}}\nhttp {{\n{inside}\n}}\n");
    for (text, line, told, help) in [
        (
            "load_module modules/ngx_stream_missing_module.so;\nevents {}".to_owned(),
            ":1:1",
            "dlopen()",
            "apt-get install libnginx-mod-stream-missing, or remove this load_module",
        ),
        (
            "events {}\nstream {}".to_owned(),
            ":2:1",
            "unknown directive \"stream\"",
            "apt-get install libnginx-mod-stream, and write include",
        ),
        (
            "events {}\ninclude missing.conf;".to_owned(),
            ":2:1",
            "missing.conf\" failed (2: No such file or directory)",
            "missing.conf, or remove this include",
        ),
        (
            http("no_such_directive 5;"),
            ":3:1",
            "unknown directive \"no_such_directive\"",
            "correct the word",
        ),
        (
            http(
                "server { listen 127.0.0.1:8443 ssl; ssl_certificate /none/a; ssl_certificate_key /none/b; }",
            ),
            "nginx.conf: ",
            "cannot load certificate \"/none/a\"",
            "have a certificate and its key made",
        ),
        (
            http("server { listen 127.0.0.1:8443; listen 127.0.0.1:8443; }"),
            ":3:1",
            "a duplicate listen 127.0.0.1:8443",
            "leave one",
        ),
        (
            http("server { listen 192.0.2.1:8443; }"),
            "nginx.conf: ",
            "Cannot assign requested address",
            "no address of this machine",
        ),
        (
            "http {}".to_owned(),
            "nginx.conf: ",
            "no \"events\" section",
            "the file that includes it",
        ),
        (
            "user no-such-user;\nevents {}".to_owned(),
            ":1:1",
            "getpwnam(\"no-such-user\")",
            "user www-data;",
        ),
        (
            "events {}\nserver { listen 9; }".to_owned(),
            ":2:1",
            "\"server\" directive is not allowed here",
            "move it to the block",
        ),
        (
            "[agents]\nlisten = \"127.0.0.1:8081\"\n".to_owned(),
            ":3:1",
            "unexpected end of file",
            "what is no configuration of nginx",
        ),
    ] {
        let (_checked, found) = looked(&Question {
            config: &scene.config,
            file: &scene.written(&text),
            renewal: None,
            usual_renewal: &scene.folder.path().join("usual"),
            ask_nginx: true,
            in_force: &scene.in_force,
        });
        let found = found.unwrap_err().to_string();
        let said = found
            .lines()
            .zip(found.lines().skip(1))
            .find(|(line, _help)| line.contains("nginx refuses it: "));
        let (said, helped) = said.unwrap_or_else(|| panic!("{text}: {found}"));
        assert!(said.contains(line) && said.contains(told), "{text}: {said}");
        assert!(helped.contains(help), "{text}: {helped}");
    }
}

/// No nginx is asked about it.
#[test]
fn a_file_that_is_not_there_is_told_before_all_the_rest() {
    let scene = Scene::new();
    // Certbot's folder comes before it in the alphabet.
    let renewal = scene.folder.path().join("0-renewal");
    let (checked, found) = looked(&Question {
        config: &scene.config,
        file: &scene.folder.path().join("elsewhere.conf"),
        renewal: Some(&renewal),
        usual_renewal: &renewal,
        ask_nginx: true,
        in_force: &scene.in_force,
    });
    let found = found.unwrap_err();
    let told: Vec<_> = found.iter().map(|it| it.message.as_str()).collect();
    assert!(
        told.len() == 2
            && told[0] == "there is no such file"
            && told[1].starts_with("cannot be read: "),
        "{told:?}"
    );
    let found = found.to_string();
    assert!(
        found.matches("elsewhere.conf").count() == 1
            && found.contains("help: name the file that nginx starts with"),
        "{found}"
    );
    // What does not depend on it was looked at.
    let right = checked.found.join("\n");
    assert!(right.contains("gateways pin sha256/"), "{right}");
}

#[test]
fn what_nginx_cannot_read_is_told_first_and_nothing_of_where_it_leads() {
    if !Nginx::is_installed() {
        return;
    }
    let scene = Scene::new();
    // Certbot's folder comes before all other files in the alphabet, and is nothing that nginx could know of.
    let renewal = scene.folder.path().join("0-renewal");
    let ask = |text: &str| {
        let (_checked, found) = looked(&Question {
            config: &scene.config,
            file: &scene.written(text),
            renewal: Some(&renewal),
            usual_renewal: &renewal,
            ask_nginx: true,
            in_force: &scene.in_force,
        });
        found.unwrap_err()
    };
    let location = "location / { proxy_pas http://127.0.0.1:8080; }";
    let wrong =
        format!("events {{}}\nhttp {{ server {{\nlisten 127.0.0.1:8443;\n{location}\n}} }}\n");
    let found = ask(&wrong);
    let told: Vec<_> = found.iter().map(|it| it.message.as_str()).collect();
    assert!(
        told[0].contains("unknown directive \"proxy_pas\""),
        "{told:?}"
    );
    let of_stream = |it: &&str| it.contains("no stream block");
    assert!(!told.iter().any(of_stream), "{told:?}");
    assert!(told[1].starts_with("cannot be read: "), "{told:?}");
    // What it understands and cannot do now is told beside all the rest.
    let right = wrong.replace("127.0.0.1:8443", "192.0.2.1:8443");
    let found = ask(&right.replace("proxy_pas ", "proxy_pass "));
    let told: Vec<_> = found.iter().map(|it| it.message.as_str()).collect();
    assert!(
        told[0].contains("Cannot assign requested address"),
        "{told:?}"
    );
    assert!(told.iter().any(of_stream), "{told:?}");
}
