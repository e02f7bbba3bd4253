//! The guide of scaling: what is typed there works, on a server that lets nobody in but encrypted and with a password.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use viworks_runtime::files::write_new;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Said, finish};

use super::documents::{blocks, page};
use super::postgres::certificate;

const GUIDE: &str = "docs/operations/scaling.md";

const PASSWORD: &str = "correct horse";

/// The guide, with what stands in its lists at the margin.
fn guide() -> String {
    let lines = page(GUIDE);
    let lines = lines
        .lines()
        .map(|line| line.strip_prefix("   ").unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// What is typed: to make a database, to come to it, and to move to it.
fn scripts() -> [String; 3] {
    let scripts: Vec<String> = blocks(&guide())
        .into_iter()
        .map(|block| block.script)
        .collect();
    scripts.try_into().unwrap()
}

/// The section that names the server.
fn section() -> String {
    let guide = guide();
    let (_before, section) = guide.split_once("```toml\n[store]\n").unwrap();
    format!("\n[store]\n{}", section.split("```").next().unwrap())
}

/// The address of the guide is this server's.
fn here(text: &str, own: &Own) -> String {
    assert!(text.contains("db.example.net"), "{text}");
    text.replace(
        "db.example.net",
        &format!("localhost:{}", own.server().port()),
    )
}

/// Types it in a folder, with the programs of the server and of the backend.
async fn typed(script: &str, folder: &Path, own: &Own) -> Said {
    let shipped = Binaries::shipped().backend();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = format!(
        "{}:{}:{}",
        shipped.parent().unwrap().display(),
        own.server().programs().display(),
        path.display()
    );
    // Without a terminal, what asks for a password reads it.
    let mut shell = Command::new("setsid");
    shell.args(["--wait", "bash", "-euc", script]);
    shell.current_dir(folder).env("PATH", path);
    shell.env("PGHOST", "127.0.0.1").env("PGUSER", "viworks");
    shell.env("PGPORT", own.server().port().to_string());
    let said = finish(shell, PATIENCE).await;
    assert_eq!(said.code, Some(0), "{script}\n{said:#?}");
    said
}

/// What the database of the backend answers, once it takes a password only.
async fn asked(question: &str, folder: &Path, own: &Own) -> String {
    let script = format!("PGPASSWORD='{PASSWORD}' psql -XAtq -d viworks -c \"{question}\"");
    typed(&script, folder, own).await.stdout.trim().to_owned()
}

/// The server takes encrypted connections only from here on; its authority and the password are in the folder.
fn secure(own: &mut Own, folder: &Path) {
    let (chain, key, authority) = certificate("localhost");
    own.secure(&chain, &key, PASSWORD);
    std::fs::write(folder.join("database-ca.pem"), authority).unwrap();
    let password = folder.join("database.password");
    write_new(&password, PASSWORD.as_bytes(), 0o600).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_made_and_a_backend_comes_to_it_as_the_guide_says() {
    let Some(mut own) = Own::start() else { return };
    let [make, come, _move_there] = scripts();
    let folder = TempDir::new().unwrap();
    let init = ["pki", "init", "--dir", "."];
    let mut command = Command::new(Binaries::shipped().backend());
    command.args(init).current_dir(folder.path());
    drop(finish(command, PATIENCE).await.ended_with(0));

    // Whoever made this server has the name that the guide gives to the backend.
    let make = make.replace("viworks", "site");
    std::fs::write(
        folder.path().join("typed"),
        format!("{PASSWORD}\n{PASSWORD}\n"),
    )
    .unwrap();
    drop(typed(&format!("exec <typed\n{make}"), folder.path(), &own).await);
    let ask = |question: &str| own.server().psql("postgres", question).unwrap();
    let made = "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'site'";
    assert_eq!(ask(made), "site|UTF8");
    let secret = "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'site'";
    assert_eq!(ask(secret), "t");

    own.server().make_empty("viworks");
    secure(&mut own, folder.path());
    let config = folder.path().join("backend.toml");
    let written = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, written + &here(&section(), &own)).unwrap();
    let count = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'commands'";
    let tables = async || asked(count, folder.path(), &own).await;
    let mut lines = 0;
    for line in come.lines() {
        assert_eq!(tables().await, "0", "before {line}");
        drop(typed(line, folder.path(), &own).await);
        lines += 1;
    }
    assert_eq!((lines, tables().await.as_str()), (3, "1"));
    // It finds what it needs.
    let again = "viworks-backend-agent migrate --config backend.toml --dry-run";
    assert!(come.contains(again), "{come}");
    drop(typed(again, folder.path(), &own).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_moves_as_the_guide_says() {
    let Some(mut own) = Own::start() else { return };
    let [_make, _come, move_there] = scripts();
    let system = Deployment::new(Binaries::shipped());
    let _gateway = system.issue("gw-1");
    let folder = system.path().join("backend");
    own.server().make_empty("viworks");
    secure(&mut own, &folder);
    let move_there = here(move_there.trim_end(), &own);
    let said = typed(&move_there, &folder, &own).await;
    assert!(said.stdout.contains("equal"), "{said:#?}");
    let keys = asked("SELECT count(*) FROM api_keys", &folder, &own).await;
    assert_eq!(keys, "1");
    drop(typed(&format!("{move_there} --verify"), &folder, &own).await);
    let config = folder.join("backend.toml");
    let written = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, written + &here(&section(), &own)).unwrap();
    let check = "viworks-backend-agent check-config --config backend.toml --connect";
    drop(typed(check, &folder, &own).await);
}
