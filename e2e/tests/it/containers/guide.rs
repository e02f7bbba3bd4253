//! The guide of containers, block by block: what is typed there is in the files that an engine would read, and the
//! programs take it. What needs no engine is done.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use viworks_testkit::binaries::{Binaries, workspace};
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::process::finish;

use super::compose::{Compose, Service};
use crate::documents::{blocks, page};

const GUIDE: &str = "docs/operations/containers.md";

/// What an image has beside the programs that are copied into it: Debian's essential packages.
const OF_DEBIAN: [&str; 3] = ["cat", "rm", "tar"];

/// What makes the secrets, on any machine.
const DONE_HERE: [&str; 5] = ["umask", "mkdir", "openssl", "printf", "chmod 400"];

/// The commands of a block: each with what goes on in its next line, and each of a pipe.
fn commands(script: &str) -> Vec<String> {
    let whole = script.replace("\\\n", " ");
    let commands = whole.lines().flat_map(|line| line.split(" | "));
    commands.map(|command| command.trim().to_owned()).collect()
}

/// Whether it is done here, and not by an engine or by root.
fn is_done_here(command: &str) -> bool {
    DONE_HERE.iter().any(|word| command.starts_with(word))
}

/// The programs that are copied into the image of a service, by name.
fn programs(service: &Service) -> Vec<String> {
    let file = std::fs::read_to_string(workspace().join("Dockerfile")).unwrap();
    let image = service.text("image");
    let stage = image.split(':').next().unwrap();
    let stage = stage.trim_start_matches("viworks-");
    let (_before, stage) = file.split_once(&format!(" AS {stage}\n")).unwrap();
    let stage = stage.split("\nFROM ").next().unwrap();
    let words = stage.split_whitespace();
    let programs = words.filter_map(|word| word.strip_prefix("/source/target/release/"));
    programs.map(str::to_owned).collect()
}

/// A program of ours takes these arguments.
async fn takes(program: &str, arguments: &[&str]) {
    let shipped = Binaries::shipped().cli();
    let mut command = Command::new(shipped.with_file_name(program));
    // What comes before is read first.
    command.args(arguments).arg("--help");
    let said = finish(command, PATIENCE).await;
    assert_eq!(said.code, Some(0), "{program} {arguments:?}: {said:#?}");
}

/// A path is where something is mounted in a service.
fn is_mounted(service: &Service, path: &str) {
    let below = |folder: &str| Path::new(path).starts_with(folder);
    let mut tmp = service.strings("tmpfs").into_iter();
    let is_there = service.mounts().iter().any(|mount| below(&mount.target))
        || tmp.any(|tmp| below(tmp.split(':').next().unwrap()));
    assert!(is_there, "{path} is mounted nowhere");
    // What reads its key is told where that is.
    if path.ends_with(".key") {
        assert_eq!(service.environment()["VIWORKS_TOKEN_FILE"], path);
    }
}

/// What is run inside a service.
async fn is_run(compose: &Compose, words: &[&str]) {
    let [service, program, arguments @ ..] = words else {
        panic!("nothing is run: {words:?}");
    };
    let service = &compose.services[*service];
    if program.starts_with("viworks") {
        assert!(
            programs(service).contains(&(*program).to_owned()),
            "{words:?}"
        );
        takes(program, arguments).await;
    } else {
        assert!(OF_DEBIAN.contains(program), "{words:?}");
    }
    for path in arguments.iter().filter(|word| word.starts_with('/')) {
        is_mounted(service, path);
    }
}

/// A line for an engine.
async fn is_composed(compose: &Compose, words: &[&str]) {
    let words = match words {
        ["--profile", profile, rest @ ..] => {
            let mut services = compose.services.values();
            let profile = vec![(*profile).to_owned()];
            assert!(
                services.any(|it| it.strings("profiles") == profile),
                "{profile:?}"
            );
            rest
        }
        all => all,
    };
    match words {
        ["build"] => assert!(compose.services.values().any(|it| it.has("build"))),
        ["up", options @ ..] => assert_eq!(options, ["-d", "--wait"]),
        ["exec", "-T", inside @ ..] | ["exec", inside @ ..] => is_run(compose, inside).await,
        other => panic!("no test knows what this is: {other:?}"),
    }
}

/// A folder of the host that a container is to read.
fn is_handed_over(compose: &Compose, folder: &str) {
    let own = format!("./{folder}");
    let secret = |it: &serde_json::Value| it["file"].as_str().unwrap().starts_with(&own);
    let mounted = |it: &Service| it.mounts().iter().any(|mount| mount.source == own);
    assert!(
        compose.secrets.values().any(secret) || compose.services.values().any(mounted),
        "{folder} is nobody's"
    );
}

async fn holds(compose: &Compose, command: &str) {
    // Where its output goes is another line's.
    let command = command.split(" >").next().unwrap();
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.as_slice() {
        ["docker", "compose", rest @ ..] => is_composed(compose, rest).await,
        ["sudo", "chown", "-R", owner, folder] => {
            let mut services = compose.services.values();
            assert!(services.all(|it| it.text("user") == *owner), "{owner}");
            is_handed_over(compose, folder);
        }
        ["mv", "gw-1", folder] => is_handed_over(compose, folder),
        ["tar", "-x"] | ["chmod", "600", "desk.key"] => {}
        [trusted, "viworks", arguments @ ..] => {
            let trusted = trusted.strip_prefix("SSL_CERT_FILE=secrets/").unwrap();
            assert!(compose.secrets.contains_key(trusted), "{trusted}");
            takes("viworks", arguments).await;
        }
        other => panic!("no test knows what this is: {other:?}"),
    }
}

#[tokio::test]
async fn every_block_of_the_guide_fits_the_files_and_the_programs() {
    let compose = Compose::read();
    let blocks = blocks(&page(GUIDE));
    assert_eq!(blocks.len(), 4);
    for block in blocks {
        let (here, elsewhere): (Vec<_>, Vec<_>) = commands(&block.script)
            .into_iter()
            .partition(|command| is_done_here(command));
        for command in elsewhere {
            holds(&compose, &command).await;
        }
        if !here.is_empty() {
            makes_the_secrets(&compose, &here).await;
        }
    }
}

/// What the guide has made are the secrets that are named, for nobody else to read.
async fn makes_the_secrets(compose: &Compose, commands: &[String]) {
    let folder = TempDir::new().unwrap();
    let mut shell = Command::new("bash");
    shell.args(["-euc", &commands.join("\n")]);
    drop(
        finish(shell_in(shell, folder.path()), PATIENCE)
            .await
            .ended_with(0),
    );
    let wanted: BTreeSet<&str> = compose
        .secrets
        .values()
        .map(|secret| secret["file"].as_str().unwrap())
        .collect();
    let mut made = BTreeSet::new();
    for entry in std::fs::read_dir(folder.path().join("secrets")).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o400, "{entry:?}");
        assert!(metadata.len() > 20, "{entry:?}");
        made.insert(format!("./secrets/{}", entry.file_name().display()));
    }
    let made: BTreeSet<&str> = made.iter().map(String::as_str).collect();
    assert_eq!(made, wanted);
}

fn shell_in(mut shell: Command, folder: &Path) -> Command {
    shell.current_dir(folder);
    shell
}
