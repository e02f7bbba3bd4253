//! `diag collect` of both agents: what helps is in it, and no secret of the installation is.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::process::finish;

/// Everything that nobody else may learn, in the words in which it would be seen.
fn secrets(system: &Deployment, gateway: &Path) -> Vec<String> {
    let backend = system.path().join("backend");
    let mut secrets = Vec::new();
    for key in ["ca.key", "server.key", "next.key"] {
        secrets.extend(lines(&backend.join(key)));
    }
    secrets.extend(lines(&gateway.join("gateway.key")));
    let words = |path: PathBuf| std::fs::read_to_string(path).unwrap().trim().to_owned();
    secrets.push(words(backend.join("master.key")));
    secrets.push(words(system.path().join("operator.key")));
    let identity: Value = serde_json::from_str(&words(gateway.join("identity.json"))).unwrap();
    for name in ["agent_key", "token"] {
        secrets.push(identity[name].as_str().unwrap().to_owned());
    }
    secrets
}

/// The lines of a key's body.
fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let body = text.lines().filter(|line| !line.starts_with("-----"));
    body.map(str::to_owned).collect()
}

/// The files of a bundle, by name.
fn unpack(bundle: &Path, to: &Path) -> Vec<(String, String)> {
    std::fs::create_dir_all(to).unwrap();
    let unpacked = Command::new("tar")
        .args(["-xzf", text(bundle), "-C", text(to)])
        .status()
        .unwrap();
    assert!(unpacked.success());
    let entries = std::fs::read_dir(to).unwrap();
    let file = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read_to_string(path).unwrap())
    };
    entries.map(file).collect()
}

async fn collect(program: &Path, arguments: &[&str], out: &Path) -> Vec<(String, String)> {
    let mut command = Command::new(program);
    command
        .args(["diag", "collect", "--out", text(out)])
        .args(arguments);
    let said = finish(command, PATIENCE).await.ended_with(0);
    let mode = out.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let files = unpack(out, &out.with_extension("files"));
    for (name, _text) in &files {
        let listed = name == "CONTENTS.txt" || said.stdout.contains(name.as_str());
        assert!(listed, "{name} is not told: {said:#?}");
    }
    files
}

fn hold(files: &[(String, String)], wanted: &[(&str, &str)], secrets: &[String]) {
    for (name, words) in wanted {
        let file = files.iter().find(|(known, _text)| known == name);
        let (_name, text) = file.unwrap_or_else(|| panic!("{name} is not in it"));
        assert!(text.contains(words), "{name}: {words}: {text}");
    }
    for (name, text) in files {
        for secret in secrets {
            assert!(secret.len() > 8, "a word of {name} that proves nothing");
            assert!(!text.contains(secret.as_str()), "{name} holds a secret");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_has_what_helps_and_no_secret() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let _gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let secrets = secrets(&system, &folder);
    // A log that says too much.
    let log = system.path().join("careless.log");
    let pem = std::fs::read_to_string(folder.join("gateway.key")).unwrap();
    let words = secrets.last().unwrap();
    let key = std::fs::read_to_string(system.path().join("operator.key")).unwrap();
    let careless = format!("INFO began\n{pem}token={words} {key}\nWARN last line\n");
    std::fs::write(&log, careless).unwrap();

    let config = folder.join("gateway.toml");
    let arguments = ["--config", text(&config), "--log", text(&log)];
    let out = system.path().join("gateway.tar.gz");
    let files = collect(&system.binaries().gateway(), &arguments, &out).await;
    let wanted = [
        ("version.txt", "viworks-gateway-agent"),
        ("configuration.txt", "parallel_max"),
        ("check.txt", "valid"),
        ("status.json", "\"connected\":true"),
        ("health.json", "\"healthy\":true"),
        ("catalogue.json", "gateway.info"),
        ("certificates.txt", "pin sha256/"),
        ("state.txt", "journal.db"),
        ("limits.txt", "open files"),
        ("log.txt", "WARN last line"),
        ("CONTENTS.txt", "status.json"),
    ];
    hold(&files, &wanted, &secrets);
    // What is there is never written over.
    let mut again = Command::new(system.binaries().gateway());
    again.args(["diag", "collect", "--out", text(&out)]);
    again.args(arguments);
    assert_ne!(finish(again, PATIENCE).await.code, Some(0));

    let config = system.backend_config();
    let key = system.path().join("operator.key");
    let address = system.api_url().replace("http://", "");
    let arguments = [
        "--config",
        text(&config),
        "--address",
        &address,
        "--key-file",
        text(&key),
        "--log",
        text(&log),
    ];
    let out = system.path().join("backend.tar.gz");
    let files = collect(&system.binaries().backend(), &arguments, &out).await;
    let wanted = [
        ("version.txt", "viworks-backend-agent"),
        ("configuration.txt", "connections_max"),
        ("check.txt", "valid"),
        ("readyz.txt", "200"),
        ("health.json", "\"kind\":\"Health\""),
        ("metrics.txt", "viworks_"),
        ("certificates.txt", "pin sha256/"),
        ("state.txt", "backend.sqlite"),
        ("log.txt", "WARN last line"),
    ];
    hold(&files, &wanted, &secrets);
}
