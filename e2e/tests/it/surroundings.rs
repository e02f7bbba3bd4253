//! What surrounds the programs and is none of their business: proxies, closed pipes, odd variables, no home.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{PATIENCE, Start, text};
use viworks_testkit::process::finish;

use super::desk::Desk;

const CATALOGUE: &str = r#"
[[command]]
name = "test.say"
title = "says something"
risk = "read"
idempotent = true
argv = ["/bin/echo", "hello"]
timeout_ms = 20000
"#;

/// A proxy that counts who comes and answers nobody. It ends with the test's process.
fn proxy() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    drop(std::thread::spawn(move || {
        for connection in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            drop(connection);
        }
    }));
    (address, came)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_to_this_machine_goes_through_no_proxy_and_a_key_goes_nowhere_in_clear() {
    let desk = Desk::open(CATALOGUE, Start::default()).await;
    let (address, came) = proxy();
    let variables = [
        "http_proxy",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ];
    for server in [
        desk.system.api_url(),
        desk.system.api_url().replace("127.0.0.1", "localhost"),
    ] {
        let mut command = desk.command(&desk.token, &["gateway", "ls"]);
        command.env("VIWORKS_SERVER", server);
        for variable in variables {
            command.env(variable, format!("http://{address}"));
        }
        let said = finish(command, PATIENCE).await.ended_with(0);
        assert!(said.stdout.contains("gw-1"), "{said:#?}");
    }
    assert_eq!(came.load(Ordering::SeqCst), 0, "nobody asked the proxy");

    // In clear to another machine: refused before anything is sent.
    let elsewhere = |arguments: &[&str], server: &str| {
        let mut command = desk.command(&desk.token, arguments);
        command.env("VIWORKS_SERVER", server);
        for variable in variables {
            command.env(variable, format!("http://user:secret@{address}"));
        }
        finish(command, PATIENCE)
    };
    let said = elsewhere(&["gateway", "ls"], "http://backend.example").await;
    let said = said.ended_with(2);
    assert!(said.stderr.contains("--allow-http"), "{said:#?}");
    assert_eq!(came.load(Ordering::SeqCst), 0);

    // A proxy that is used is named, and its password is not.
    for (arguments, server, variable) in [
        (
            &["gateway", "ls"][..],
            "https://backend.example",
            "https_proxy",
        ),
        (
            &["gateway", "ls", "--allow-http"],
            "http://backend.example",
            "http_proxy",
        ),
    ] {
        let said = elsewhere(arguments, server).await.ended_with(69);
        assert!(
            said.stderr.contains(variable) && said.stderr.contains(&address.to_string()),
            "{said:#?}"
        );
        assert!(!said.stderr.contains("secret"), "{said:#?}");
    }
    assert!(came.load(Ordering::SeqCst) > 0, "the proxy was used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_ends_every_program_without_a_word() {
    let desk = Desk::open(CATALOGUE, Start::default()).await;
    let binaries = desk.system.binaries();
    let config = desk.system.backend_config();
    let gateway = desk.system.path().join("gateways/gw-1/gateway.toml");
    let mut commands: Vec<Command> = [
        &["gateway", "ls"][..],
        &["gateway", "show", "gw-1"],
        &["command", "ls"],
        &["command", "show", "test.say"],
        &["runs", "ls"],
        &["run", "test.say", "--all"],
        &["run", "test.say", "-g", "gw-1"],
        &["telemetry", "-g", "gw-1"],
        &["telemetry", "-g", "gw-1", "--gaps"],
        &["exit-codes"],
        &["error"],
        &["gateway", "ls", "-o", "json"],
        &["run", "test.say", "--all", "-o", "json"],
        &["--help"],
    ]
    .iter()
    .map(|arguments| desk.command(&desk.token, arguments))
    .collect();
    for (program, arguments) in [
        (binaries.backend(), vec!["config", "reference"]),
        (
            binaries.backend(),
            vec!["check-config", "--config", text(&config)],
        ),
        (
            binaries.backend(),
            vec!["apikey", "ls", "--config", text(&config)],
        ),
        (binaries.gateway(), vec!["config", "reference"]),
        (
            binaries.gateway(),
            vec!["check-config", "--config", text(&gateway)],
        ),
        (
            binaries.gateway(),
            vec!["status", "--config", text(&gateway)],
        ),
        (binaries.gateway(), vec!["builtin", "gateway.info"]),
    ] {
        let mut command = Command::new(program);
        command.args(arguments);
        commands.push(command);
    }
    for mut command in commands {
        let named = format!("{command:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .env_remove("VIWORKS_FAULT");
        // `output` would give it another standard output.
        let running = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let output = tokio::time::timeout(PATIENCE, running.wait_with_output())
            .await
            .unwrap()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let quiet = !["error", "panicked", "roken pipe"]
            .iter()
            .any(|word| said.contains(word));
        assert!(quiet, "{named}: {said}");
        // Help is printed by a library that takes it for said.
        assert!(
            matches!(output.status.code(), Some(0 | 141)),
            "{named}: {:?}",
            output.status
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_of_libraries_and_empty_ones_change_nothing() {
    let backend = Start::default()
        .with("TOKIO_WORKER_THREADS", "none")
        .with("RUST_LOG", "trace")
        .with("http_proxy", "http://127.0.0.1:1")
        .with("SSL_CERT_FILE", "/nowhere");
    let desk = Desk::open(CATALOGUE, backend).await;
    let mut command = desk.command(&desk.token, &["run", "test.say", "--all"]);
    for (variable, value) in [
        ("VIWORKS_CONTEXT", ""),
        ("VIWORKS_OUTPUT", ""),
        ("XDG_CONFIG_HOME", "not/absolute"),
        ("TOKIO_WORKER_THREADS", "none"),
        ("RUST_LOG", "trace"),
        ("COLUMNS", "1"),
        ("TZ", "nowhere"),
        ("LC_ALL", "nowhere"),
        ("CLICOLOR_FORCE", "1"),
        ("NO_COLOR", ""),
        ("SSL_CERT_FILE", "/nowhere"),
    ] {
        command.env(variable, value);
    }
    command.env_remove("HOME").env_remove("VIWORKS_CONFIG_DIR");
    let said = finish(command, PATIENCE).await.ended_with(0);
    assert_eq!(said.stdout.matches("✓ ok").count(), 2, "{said:#?}");
    assert!(!said.stdout.contains('\x1b'), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_knows_no_certificate_authority_runs_everything_that_verifies_no_certificate()
 {
    const NOBODY: [(&str, &str); 2] = [("SSL_CERT_FILE", "/nowhere"), ("SSL_CERT_DIR", "/nowhere")];
    let backend = NOBODY
        .into_iter()
        .fold(Start::default(), |start, (variable, value)| {
            start.with(variable, value)
        });
    let desk = Desk::open(CATALOGUE, backend).await;
    let asked = |server: String| {
        let mut command = desk.command(&desk.token, &["gateway", "ls"]);
        command.env("VIWORKS_SERVER", server).envs(NOBODY);
        finish(command, PATIENCE)
    };
    let said = asked(desk.system.api_url()).await.ended_with(0);
    assert!(said.stdout.contains("gw-1"), "{said:#?}");

    // Where a certificate has to be verified, it says what is missing, and who said where to look for it.
    let said = asked(desk.system.api_url().replace("http:", "https:")).await;
    let said = said.ended_with(78);
    for word in ["certificate authority", "SSL_CERT_FILE=/nowhere", "fix: "] {
        assert!(said.stderr.contains(word), "{said:#?}");
    }

    // The demo needs nobody's certificates but its own.
    let data = desk.system.path().join("demo");
    let arguments = ["up", "--once", "--agents", "1", "--data-dir", text(&data)];
    let mut command = desk.command(&desk.token, &arguments);
    for variable in ["VIWORKS_SERVER", "VIWORKS_TOKEN_FILE"] {
        command.env_remove(variable);
    }
    command.envs(NOBODY);
    let said = finish(command, PATIENCE).await.ended_with(0);
    assert!(said.stdout.contains("✓ ok"), "{said:#?}");
}

#[tokio::test]
async fn a_machine_that_cannot_reach_itself_is_told_so() {
    // A network of its own begins with a loopback interface that is down.
    let alone = || {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.arg("--net");
        command
    };
    let allowed = alone().arg("true").stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        return eprintln!(
            "SKIPPED: a machine without itself: this one allows no networks of one's own"
        );
    }
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("demo");
    for words in [
        &["gateway", "ls", "--server", "http://127.0.0.1:1"][..],
        &["up", "--once", "--data-dir", text(&data)],
    ] {
        let mut command = alone();
        command
            .arg(Binaries::shipped().cli())
            .args(words)
            .env("HOME", home.path())
            .env("VIWORKS_CONFIG_DIR", home.path().join("config"));
        for variable in ["VIWORKS_SERVER", "VIWORKS_TOKEN_FILE", "VIWORKS_CONTEXT"] {
            command.env_remove(variable);
        }
        let said = finish(command, PATIENCE).await.ended_with(69);
        let told = "its loopback interface is down here; ip link set lo up";
        assert!(said.stderr.contains(told), "{said:#?}");
    }
}
