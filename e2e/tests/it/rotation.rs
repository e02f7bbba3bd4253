//! The scripts about the server's key: the pin of whatever has one, and another certificate in place, or the old one.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use viworks_api::{Kind, Pin, PinState, PinStatus};
use viworks_common::time::Timestamp;
use viworks_testkit::binaries::{Binaries, workspace};
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::{Process, Said, eventually, finish};

/// OpenSSL, where that is installed.
fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// Whether the scripts about certificates can be tried here.
#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
pub(crate) fn has_openssl() -> bool {
    let is_there = Command::new("openssl").arg("version").output().is_ok();
    if !is_there {
        eprintln!("SKIPPED: the scripts about certificates: openssl is not installed");
    }
    is_there
}

/// A script of the repository, with the shipped programs at hand.
pub(crate) fn script(name: &str) -> Command {
    let programs = Binaries::shipped().backend();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = format!(
        "{}:{}",
        programs.parent().unwrap().display(),
        path.display()
    );
    let mut command = Command::new(workspace().join("scripts").join(name));
    command.env("PATH", path);
    command
}

/// The same with a folder of programs before all others.
fn with_tools(mut command: Command, tools: &Path) -> Command {
    let path = command.get_envs().find(|(name, _)| *name == "PATH");
    let path = path.unwrap().1.unwrap().to_string_lossy().into_owned();
    command.env("PATH", format!("{}:{path}", tools.display()));
    command
}

/// One key, and how many of two gateways have confirmed it; a step was taken where it is known since when it is so.
fn told(pin: &str, state: PinState, confirmed_by: u64, since: Option<Timestamp>) -> PinStatus {
    PinStatus {
        kind: Kind::PinStatus,
        version: 1,
        gateways: 2,
        pins: vec![Pin {
            pin: pin.trim().to_owned(),
            state,
            shown: false,
            staged_in: 1,
            retired_in: None,
            since,
            confirmed_by,
            cut_off: Vec::new(),
        }],
    }
}

async fn pin(arguments: &[&str]) -> Said {
    let mut command = script("generate_spki_pin.sh");
    command.args(arguments);
    finish(command, PATIENCE).await
}

/// Where it is told how far the keys are, that counts, and nothing else: of the successor and of a foreign key.
async fn what_is_told_of_the_keys_counts(
    folder: &Path,
    base: &[&str],
    [successor, foreign]: [&str; 2],
) {
    let tools = folder.join("tools");
    std::fs::create_dir(&tools).unwrap();
    let (tool, document) = (tools.join("viworks"), tools.join("told.json"));
    let tells = format!("#!/bin/sh\ncat '{}'\n", document.display());
    std::fs::write(&tool, tells).unwrap();
    std::fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
    let judged = async |candidate: &str, more: &[PathBuf], status: &PinStatus| {
        std::fs::write(&document, serde_json::to_string_pretty(status).unwrap()).unwrap();
        let mut command = with_tools(script("rotate_certificates.sh"), &tools);
        command.args(base).arg("--certificate");
        command.arg(folder.join(candidate)).args(more);
        finish(command, PATIENCE).await
    };
    let since = Some(Timestamp::from_unix_micros(1));
    for (state, confirmed_by, since, why) in [
        (PinState::Staged, 1, None, "1 of 2 gateways trust the key"),
        (PinState::Staged, 2, since, "before it is promoted"),
        (PinState::Retired, 0, since, "does not tell of sha256/"),
    ] {
        let status = told(successor, state, confirmed_by, since);
        let refused = judged("successor.crt", &[], &status).await.ended_with(6);
        assert!(refused.stderr.contains(why), "{refused:#?}");
        let fix = refused.stderr.contains("\n  fix: viworks pin ");
        assert!(fix, "{refused:#?}");
    }
    let confirmed = told(successor, PinState::Staged, 2, None);
    let taken = judged("successor.crt", &[], &confirmed).await;
    drop(taken.ended_with(0));
    // A key that was promoted needs no next_key_file, and what is told of it is not told of another one.
    let promoted = told(foreign, PinState::Promoted, 2, since);
    let key = [PathBuf::from("--key"), folder.join("alien.key")];
    let taken = judged("foreign.crt", &key, &promoted).await;
    drop(taken.ended_with(0));
    let refused = judged("successor.crt", &[], &promoted).await;
    drop(refused.ended_with(6));
}

/// A certificate for the server's names and the key in a file, by the authority of a deployment, with that behind it.
fn certificate(folder: &Path, key: &str, names: &str, days: &str, out: &str) -> PathBuf {
    let names = format!("subjectAltName={names}");
    let (request, issued) = (format!("{out}.csr"), folder.join(out));
    openssl(
        folder,
        &[
            "req",
            "-new",
            "-key",
            key,
            "-subj",
            "/O=ViWorkS/CN=ViWorkS backend",
            "-addext",
            &names,
            "-addext",
            "extendedKeyUsage=serverAuth",
            "-out",
            &request,
        ],
    );
    openssl(
        folder,
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-copy_extensions",
            "copyall",
            "-days",
            days,
            "-out",
            out,
        ],
    );
    let mut chain = std::fs::read(&issued).unwrap();
    chain.extend(std::fs::read(folder.join("ca.crt")).unwrap());
    std::fs::write(&issued, chain).unwrap();
    issued
}

const NAMES: &str = "DNS:localhost,IP:127.0.0.1,IP:::1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_certificate_is_put_in_place_or_the_one_before_is_back() {
    if !has_openssl() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    system.start_backend(Start::default()).await;
    let config = system.backend_config();
    let folder = config.parent().unwrap().to_owned();
    let place = system.agents_address().to_owned();
    let process = system.backend().pid().to_string();
    let rotate = async |pid: &str, certificate: &Path, more: &[&str]| {
        let mut command = script("rotate_certificates.sh");
        command.args(["--config", config.to_str().unwrap(), "--connect", &place]);
        command
            .args(["--pid", pid, "--certificate"])
            .arg(certificate);
        command.args(more);
        finish(command, PATIENCE).await
    };
    let shown = async || pin(&["--connect", &place]).await.ended_with(0).stdout;
    let of = async |name: &str| {
        let file = folder.join(name);
        pin(&[file.to_str().unwrap()]).await.ended_with(0).stdout
    };

    // Every form of one key has one pin, as the product prints it.
    let (active, next) = (of("server.crt").await, of("next.key").await);
    assert!(active.starts_with("sha256/") && active != next, "{active}");
    assert_eq!(of("server.key").await, active);
    assert_eq!(shown().await, active);
    let renewed = certificate(&folder, "server.key", NAMES, "20", "renewed.crt");
    let successor = certificate(&folder, "next.key", NAMES, "20", "successor.crt");
    assert_eq!(of("successor.crt.csr").await, next);
    assert_eq!(of("successor.crt").await, next);
    for odd in ["no-such-file", "backend.toml"] {
        let file = folder.join(odd);
        drop(pin(&[file.to_str().unwrap()]).await.ended_with(78));
    }
    drop(pin(&[]).await.ended_with(2));
    let refused = pin(&["--connect", "127.0.0.1:1"]).await.ended_with(7);
    assert!(
        refused.stderr.contains("refused the connection"),
        "{refused:?}"
    );

    // What would cut gateways off, or be refused by them, changes nothing.
    let before = std::fs::read(folder.join("server.crt")).unwrap();
    let alien = [
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "alien.key",
    ];
    openssl(&folder, &alien);
    let foreign = certificate(&folder, "alien.key", NAMES, "20", "foreign.crt");
    let fewer = certificate(&folder, "server.key", "DNS:localhost", "20", "fewer.crt");
    let alien = folder.join("alien.key");
    let with_key = ["--key", alien.to_str().unwrap()];
    let successors_key = folder.join("next.key");
    let unfit = ["--key", successors_key.to_str().unwrap()];
    for (candidate, more, why) in [
        (&foreign, &with_key[..], "no gateway trusts the key sha256/"),
        (&foreign, &[][..], "neither in "),
        (&fewer, &[][..], "the new certificate is not for IP"),
        (&renewed, &unfit[..], "does not fit"),
    ] {
        let refused = rotate(&process, candidate, more).await.ended_with(6);
        assert!(refused.stderr.contains(why), "{refused:#?}");
        assert!(refused.stderr.contains("\n  fix: "), "{refused:#?}");
    }
    let dry = rotate(&process, &successor, &["--dry-run"])
        .await
        .ended_with(0);
    assert!(dry.stdout.contains("nothing was changed"), "{dry:#?}");
    assert_eq!(std::fs::read(folder.join("server.crt")).unwrap(), before);

    let base = ["--config", config.to_str().unwrap(), "--connect", &place];
    let base = [&base[..], &["--pid", &process, "--dry-run"]].concat();
    what_is_told_of_the_keys_counts(&folder, &base, [&next, &of("foreign.crt").await]).await;

    // The same key with another certificate, and then the successor.
    drop(rotate(&process, &renewed, &[]).await.ended_with(0));
    assert_eq!(shown().await, active);
    let placed = std::fs::read(folder.join("server.crt")).unwrap();
    assert_eq!(placed, std::fs::read(&renewed).unwrap());
    let done = rotate(&process, &successor, &[]).await.ended_with(0);
    assert_eq!(shown().await, next, "{done:#?}");
    assert_eq!(of("server.key").await, next);
    let again = rotate(&process, &successor, &[]).await.ended_with(0);
    assert!(again.stdout.contains("in place already"), "{again:#?}");

    // Nobody reloads it: what was there before is back.
    let placed = std::fs::read(folder.join("server.crt")).unwrap();
    let later = certificate(&folder, "server.key", NAMES, "30", "later.crt");
    let nobody = i32::MAX.to_string();
    let failed = rotate(&nobody, &later, &[]).await.ended_with(3);
    assert!(failed.stderr.contains("nothing has changed"), "{failed:#?}");
    assert_eq!(std::fs::read(folder.join("server.crt")).unwrap(), placed);
    assert_eq!(shown().await, next);
}

/// Something that shows the certificate of a server to whoever asks for a name, and one of its own to all others.
struct Proxy {
    place: String,
    _process: Process,
}

impl Proxy {
    const NAME: &str = "agents.example.org";

    fn before(folder: &Path) -> Self {
        let key = ["genpkey", "-algorithm", "EC", "-pkeyopt"];
        let curve = ["ec_paramgen_curve:P-256", "-out", "own.key"];
        openssl(folder, &[&key[..], &curve[..]].concat());
        let own = certificate(folder, "own.key", "DNS:example.org", "20", "own.crt");
        // Free by now, and nobody else asks for it.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let place = free.local_addr().unwrap().to_string();
        drop(free);
        let mut command = Command::new("openssl");
        command.current_dir(folder);
        command.args(["s_server", "-www", "-accept", &place, "-cert"]);
        command.arg(own).args(["-key", "own.key"]);
        command.args(["-servername", Self::NAME]);
        command.args(["-cert2", "server.crt", "-key2", "server.key"]);
        let process = Process::start(&mut command, &folder.join("proxy.log")).unwrap();
        Self {
            place,
            _process: process,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_finds_out_that_a_name_is_missing_where_it_is_looked_at() {
    if !has_openssl() {
        return;
    }
    let renewed = Renewed::start().await;
    let proxy = Proxy::before(&renewed.folder);
    let dry = |more: &[&str]| {
        let mut command = renewed.rotation();
        command.args(["--connect", &proxy.place, "--dry-run"]);
        command.args(more);
        command
    };
    let named = dry(&["--name", Proxy::NAME]);
    let named = finish(named, PATIENCE).await.ended_with(0);
    assert!(named.stdout.contains("nothing was changed"), "{named:#?}");
    let refused = finish(dry(&[]), PATIENCE).await.ended_with(6);
    assert!(
        refused.stderr.contains("does not show the certificate"),
        "{refused:#?}"
    );
    assert!(refused.stderr.contains("--name NAME"), "{refused:#?}");
}

/// A process that is told to reload and does nothing about it.
fn deaf(folder: &Path) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec sleep 300"]);
    Process::start(&mut command, &folder.join("deaf.log")).unwrap()
}

/// A backend, and another certificate for the key of its server.
struct Renewed {
    /// Whom the script tells to reload.
    deaf: Process,
    system: Deployment,
    folder: PathBuf,
    certificate: PathBuf,
}

impl Renewed {
    async fn start() -> Self {
        let mut system = Deployment::new(Binaries::shipped());
        system.start_backend(Start::default()).await;
        let folder = system.backend_config().parent().unwrap().to_owned();
        let certificate = certificate(&folder, "server.key", NAMES, "20", "renewed.crt");
        let deaf = deaf(&folder);
        Self {
            deaf,
            system,
            folder,
            certificate,
        }
    }

    /// The script that puts the certificate in place, and waits in vain until it is shown.
    fn rotation(&self) -> Command {
        let mut command = script("rotate_certificates.sh");
        command.arg("--config").arg(self.system.backend_config());
        command.args(["--connect", self.system.agents_address()]);
        command.args(["--pid", &self.deaf.pid().to_string(), "--certificate"]);
        command.arg(&self.certificate);
        command
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_takes_over_is_taken_back_and_it_is_said_why() {
    if !has_openssl() {
        return;
    }
    let renewed = Renewed::start().await;
    let tools = renewed.folder.join("tools");
    std::fs::create_dir(&tools).unwrap();
    let tool = tools.join("viworks");
    let told = serde_json::json!({"steps": [
        {"detail": "ready"}, {"detail": "reload: the key does not fit \"it\" (3 s ago)", "fix": "mend it"},
    ]});
    let told = serde_json::to_string_pretty(&told).unwrap();
    std::fs::write(
        &tool,
        format!("#!/bin/sh\ncat <<'TXT'\n{told}\nTXT\nexit 20\n"),
    )
    .unwrap();
    std::fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
    let command = with_tools(renewed.rotation(), &tools);
    let failed = finish(command, PATIENCE).await.ended_with(3);
    let why = "within 15 s; the backend says of its reload: the key does not fit \"it\"";
    assert!(failed.stderr.contains(why), "{failed:#?}");
    assert!(failed.stderr.contains("nothing has changed"), "{failed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_certificate_was_not_taken_over_is_what_the_backend_itself_says() {
    if !has_openssl() {
        return;
    }
    let mut renewed = Renewed::start().await;
    // A reload that is refused, of files that are sound again when the script looks at them.
    let key = renewed.folder.join("server.key");
    let sound = std::fs::read(&key).unwrap();
    let unfit = std::fs::read(renewed.folder.join("ca.key")).unwrap();
    std::fs::write(&key, unfit).unwrap();
    renewed.system.backend().signal(Signal::HUP);
    eventually("the reload is refused", PATIENCE, async || {
        let health = renewed.system.get("/v1/health").await;
        let mut checks = health["checks"].as_array()?.iter();
        let is_told = checks.any(|check| check["name"] == "reload");
        is_told.then_some(())
    })
    .await;
    std::fs::write(&key, sound).unwrap();
    let mut command = renewed.rotation();
    renewed.system.ask(&mut command);
    let failed = finish(command, PATIENCE).await.ended_with(3);
    let why = "within 15 s; the backend says of its reload: what SIGHUP asked to be read again cannot be used";
    assert!(failed.stderr.contains(why), "{failed:#?}");
    assert!(failed.stderr.contains("nothing has changed"), "{failed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_taken_back_when_the_command_is_ended_before_its_end() {
    if !has_openssl() {
        return;
    }
    let renewed = Renewed::start().await;
    let place = renewed.folder.join("server.crt");
    let before = std::fs::read(&place).unwrap();
    let file = renewed.folder.join("rotate.log");
    let mut rotating = Process::start(&mut renewed.rotation(), &file).unwrap();
    let wanted = std::fs::read(&renewed.certificate).unwrap();
    eventually("it is in place", PATIENCE, async || {
        (std::fs::read(&place).ok()? == wanted).then_some(())
    })
    .await;
    // It waits until that is shown, which nobody does.
    rotating.signal(Signal::TERM);
    let ended = rotating.wait(PATIENCE).await;
    let log = rotating.log();
    assert_eq!(ended.code(), Some(3), "{log}");
    assert!(log.contains("it was ended before its end"), "{log}");
    assert!(log.contains("nothing has changed"), "{log}");
    assert_eq!(std::fs::read(&place).unwrap(), before);
}
