//! `diag collect` of both agents: what helps is in it, and no secret of the installation is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::process::{Said, finish};

use super::desk::viworks;

/// A password that a careless program writes into its log.
const PASSWORD: &str = "sesame-opens-it";

/// Everything that nobody else may learn, in the words in which it would be seen: of every file of a key, wherever it
/// is, and of the gateway's identity.
fn secrets(system: &Deployment, gateway: &Path) -> Vec<String> {
    let mut secrets = vec![PASSWORD.to_owned()];
    let mut folders = vec![system.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "key") {
                secrets.extend(lines(&path));
            }
        }
    }
    let identity = std::fs::read_to_string(gateway.join("identity.json")).unwrap();
    let identity: Value = serde_json::from_str(&identity).unwrap();
    for name in ["agent_key", "token"] {
        secrets.push(identity[name].as_str().unwrap().to_owned());
    }
    // The keys of the authority, of the server twice, of the gateway, of the master and of the operator.
    assert!(secrets.len() > 8, "{}", secrets.len());
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
    taken(&finish(command, PATIENCE).await.ended_with(0), out)
}

/// The files of a bundle that was told of.
fn taken(said: &Said, out: &Path) -> Vec<(String, String)> {
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
    let address = format!("postgres://viworks:{PASSWORD}@db/viworks");
    let careless = format!("INFO began\n{pem}token={words} {key}\n{address}\nWARN last line\n");
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
    let _taken = finish(again, PATIENCE).await.ended_with(6);

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

    // From an operator's desk: a script has to say that it is meant.
    let out = system.path().join("desk.tar.gz");
    let arguments = ["diag", "collect", "--out", text(&out)];
    let asked = finish(viworks(&system, &key, &arguments), PATIENCE).await;
    let asked = asked.ended_with(9);
    assert!(asked.stderr.contains("health.json") && asked.stderr.contains("--yes"));
    assert!(!out.exists(), "{asked:#?}");
    let said = finish(
        viworks(
            &system,
            &key,
            &["diag", "collect", "--yes", "--out", text(&out)],
        ),
        PATIENCE,
    );
    let said = said.await.ended_with(0);
    let files = taken(&said, &out);
    let wanted = [
        ("version.txt", "viworks 0."),
        ("way.txt", "with a key"),
        ("readyz.txt", "ok"),
        ("health.json", "\"kind\": \"Health\""),
        ("metrics.txt", "viworks_"),
        ("gateways.json", "gw-1"),
        ("catalogue.json", "gateway.info"),
    ];
    hold(&files, &wanted, &secrets);
    let again = viworks(
        &system,
        &key,
        &["diag", "collect", "--yes", "--out", text(&out)],
    );
    let _taken = finish(again, PATIENCE).await.ended_with(6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_bundle_lacks_is_told_with_the_reason() {
    let system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let gateway = folder.join("gateway.toml");
    let backend = system.backend_config();
    let out = |name: &str| system.path().join(format!("{name}.tar.gz"));
    // Nobody is there, and what the log is on does not answer: nobody ever writes into this pipe.
    let silent = system.path().join("silent.log");
    let made = Command::new("mkfifo").arg(&silent).status().unwrap();
    assert!(made.success());
    let of_gateway = (system.binaries().gateway(), &gateway, "away");
    let of_backend = (system.binaries().backend(), &backend, "silent");
    for (program, config, name) in [of_gateway, of_backend] {
        let arguments = ["--config", text(config), "--log", text(&silent)];
        let files = collect(&program, &arguments, &out(name)).await;
        let late = "log.txt: not there, it did not answer within 5s";
        hold(
            &files,
            &[("CONTENTS.txt", late), ("check.txt", "valid")],
            &[],
        );
        if name == "away" {
            let wanted = [("CONTENTS.txt", "status.json: not there, nobody")];
            hold(&files, &wanted, &[]);
        }
    }
    // A configuration that nobody can read.
    for config in [&gateway, &backend] {
        std::fs::write(config, "[gateway\n").unwrap();
    }
    let unusable = ["certificates.txt", "state.txt", "health.json"];
    let of_gateway = (system.binaries().gateway(), &gateway, "gateway");
    let of_backend = (system.binaries().backend(), &backend, "backend");
    for (program, config, name) in [of_gateway, of_backend] {
        let files = collect(&program, &["--config", text(config)], &out(name)).await;
        for file in unusable {
            let told = format!("{file}: not there, the configuration cannot be used");
            hold(&files, &[("CONTENTS.txt", told.as_str())], &[]);
        }
    }
}
