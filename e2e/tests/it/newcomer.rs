//! What somebody meets who knows the product from its documents alone: first installation, slips of the hand, and
//! answers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::process::{Process, Said, eventually, finish};

use super::desk::Desk;

const MORE: &str = r#"
[[command]]
name = "test.change"
title = "changes nothing, and says it might"
risk = "change"
idempotent = true
argv = ["/bin/echo", "changed"]
timeout_ms = 20000

[[command]]
name = "test.wide"
title = "writes one very long line"
risk = "read"
idempotent = true
argv = ["/bin/sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo"]
timeout_ms = 20000
"#;

async fn desk() -> Desk {
    Desk::that_speaks(MORE, Start::default()).await
}

async fn backend(arguments: &[&str]) -> Said {
    let mut command = Command::new(Binaries::shipped().backend());
    command.args(arguments);
    finish(command, PATIENCE).await
}

/// The same through a shell, which makes what a program is given as its output.
async fn in_a_shell(desk: &Desk, line: &str) -> Said {
    let given = desk.command(&desk.token, &[]);
    let mut shell = Command::new("sh");
    shell.args(["-c", line]);
    for (name, value) in given.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    finish(shell, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_idempotency_key_is_answered_by_the_first_run_and_says_so() {
    let desk = desk().await;
    let say = [
        "run",
        "test.say",
        "word=hello",
        "-g",
        "gw-1",
        "--idempotency-key",
        "k1",
    ];
    let first = desk.run(&say).await.ended_with(0);
    assert!(!first.stderr.contains("nothing new was run"), "{first:#?}");
    let again = desk.run(&say).await.ended_with(0);
    assert!(again.stderr.contains("nothing new was run"), "{again:#?}");
    assert_eq!(
        desk.json(&["runs", "ls"], 0).await["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let other = [
        "run",
        "test.say",
        "word=other",
        "-g",
        "gw-1",
        "--idempotency-key",
        "k1",
    ];
    let refused = desk.run(&other).await.ended_with(6);
    assert!(refused.stderr.contains("VW-C-007"), "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_refuses_what_the_real_run_refuses_with_the_same_words() {
    let desk = desk().await;
    for arguments in [
        &["run", "test.say", "-g", "gw-1"][..],
        &["run", "test.say", "word=NOT", "-g", "gw-1"],
        &["run", "test.say", "other=x", "--all"],
        &["run", "test.nope", "--all"],
        &["run", "test.say", "word=x", "-g", "gw-nope"],
        &["run", "test.say", "word=x", "--all", "--confirm", "7"],
        &[
            "run",
            "test.say",
            "word=x",
            "--all",
            "--expires",
            "99999999d",
        ],
    ] {
        let real = desk.run(arguments).await;
        assert_ne!(real.code, Some(0), "{real:#?}");
        let dry = desk.run(&[arguments, &["--dry-run"]].concat()).await;
        assert_eq!(dry.code, real.code, "{dry:#?}\n{real:#?}");
        let said = |said: &Said| -> Vec<String> {
            let lines = said
                .stderr
                .lines()
                .filter(|line| !line.contains("request "));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(said(&dry), said(&real));
    }
    let good = ["run", "test.say", "word=x", "-g", "gw-1", "--dry-run"];
    let said = desk.run(&good).await.ended_with(0);
    assert_eq!(said.stdout, "test.say (read) on 1 gateway: gw-1\n");
    assert!(
        desk.json(&["runs", "ls"], 0).await["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_holds_no_key_is_named_before_anything_is_sent() {
    let desk = desk().await;
    for (name, content) in [
        ("two-lines", &b"vwk_one\nvwk_two\n"[..]),
        ("binary", &b"\x00\x01\xff\xfe"[..]),
        ("empty", &b" \n"[..]),
        ("words", &b"my key"[..]),
    ] {
        let file = desk.system.path().join(name);
        std::fs::write(&file, content).unwrap();
        let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        std::fs::set_permissions(&file, private).unwrap();
        let said = desk.run_with(&file, &["gateway", "ls"]).await;
        let said = said.ended_with(78);
        assert!(said.stderr.contains("holds no API key"), "{said:#?}");
        assert!(said.stderr.contains("fix: "), "{said:#?}");
    }
    let missing = desk.command(&desk.system.path().join("missing"), &["gateway", "ls"]);
    let said = finish(missing, PATIENCE).await.ended_with(78);
    assert!(said.stderr.contains("No such file"), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_cannot_be_written_is_an_error_of_every_program() {
    let desk = desk().await;
    let shipped = Binaries::shipped();
    let (cli, backend, gateway) = (shipped.cli(), shipped.backend(), shipped.gateway());
    for (program, words) in [
        (&cli, "--help"),
        (&cli, "--version"),
        (&cli, "run --help"),
        (&cli, "runs ls"),
        (&cli, "gateway ls -o json"),
        (&cli, "exit-codes"),
        (&backend, "--help"),
        (&backend, "config reference"),
        (&gateway, "--help"),
        (&gateway, "--version"),
    ] {
        let line = format!("'{}' {words} >/dev/full", text(program));
        let said = in_a_shell(&desk, &line).await.ended_with(1);
        assert!(said.stderr.contains("No space left"), "{line}: {said:#?}");
        let line = format!("'{}' {words} | head -1", text(program));
        let said = in_a_shell(&desk, &line).await.ended_with(0);
        assert!(!said.stderr.contains("error"), "{line}: {said:#?}");
    }
}

/// What a closed standard output comes to, and why it is no error: before `main`, Rust opens `/dev/null` for reading
/// and writing in its place, so that no file that is opened later becomes standard output. What the program then finds
/// is the very thing that it finds where somebody threw its output away on purpose, as Python's `DEVNULL` does, and
/// that must succeed. Only code before `main` could tell the two apart, and that is unsafe code, which this house
/// forbids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_output_is_an_output_that_was_thrown_away() {
    let desk = desk().await;
    let shipped = Binaries::shipped();
    let (cli, backend, gateway) = (shipped.cli(), shipped.backend(), shipped.gateway());
    for (program, words) in [
        (&cli, "runs ls"),
        (&backend, "config reference"),
        (&gateway, "--version"),
    ] {
        for thrown_away in [">/dev/null", "1<>/dev/null", ">&-"] {
            let line = format!("'{}' {words} {thrown_away}", text(program));
            let said = in_a_shell(&desk, &line).await.ended_with(0);
            assert_eq!(said.stdout, "", "{line}: {said:#?}");
            assert!(!said.stderr.contains("error"), "{line}: {said:#?}");
        }
    }
    // Nothing that is opened meanwhile takes its place: the file is what the program wrote to it, and no more.
    let key = desk.system.path().join("more.key");
    let (config, out) = (desk.system.backend_config(), text(&key));
    let words = "apikey create --name more --scopes runs:read";
    let line = format!(
        "'{}' {words} --config '{}' --out '{out}' >&-",
        text(&backend),
        text(&config)
    );
    drop(in_a_shell(&desk, &line).await.ended_with(0));
    let written = std::fs::read_to_string(&key).unwrap();
    let is_a_key = written.starts_with("vwk_") && written.lines().count() == 1;
    assert!(is_a_key, "{written}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_asks_a_person_whatever_the_number_and_a_script_for_several() {
    let desk = desk().await;
    // A script: one gateway as before, several only when it says so.
    drop(
        desk.run(&["run", "test.change", "-g", "gw-1"])
            .await
            .ended_with(0),
    );
    let said = desk
        .run(&["run", "test.change", "--all"])
        .await
        .ended_with(9);
    assert!(said.stderr.contains("--yes"), "{said:#?}");
    drop(
        desk.run(&["run", "test.change", "--all", "--yes"])
            .await
            .ended_with(0),
    );
    // A terminal.
    let cli = desk.system.binaries().cli();
    let terminal = async |typed: &str, words: &str| {
        let inner = format!("'{}' run test.change -g gw-1 {words}", text(&cli));
        let line = format!("printf '{typed}\\n' | /usr/bin/script -qec \"{inner}\" /dev/null");
        in_a_shell(&desk, &line).await
    };
    let said = terminal("n", "").await.ended_with(9);
    assert!(
        said.stdout
            .contains("test.change changes something on gw-1. Continue?"),
        "{said:#?}"
    );
    drop(terminal("y", "").await.ended_with(0));
    let said = terminal("", "--yes").await.ended_with(0);
    assert!(!said.stdout.contains("Continue?"), "{said:#?}");
    let help = desk.run(&["exit-codes"]).await.ended_with(0);
    assert!(!help.stdout.contains("--no-input"), "{help:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slips_of_the_hand_are_answered_in_the_words_of_the_command_line() {
    let desk = desk().await;
    let none = ["run", "test.say", "word=x", "-g", "gw-1", "--timeout", "0s"];
    let said = desk.run(&none).await.ended_with(2);
    assert!(
        said.stderr.contains("--timeout") && !said.stderr.contains("timeout_ms"),
        "{said:#?}"
    );
    for flag in ["--timeout", "--expires"] {
        let negative = ["run", "test.say", "word=x", "-g", "gw-1", flag, "-5s"];
        let said = desk.run(&negative).await.ended_with(2);
        let named = said.stderr.contains(flag) && said.stderr.contains("-5s");
        assert!(named && !said.stderr.contains("-- -5s"), "{said:#?}");
    }
    let far = [
        "telemetry",
        "-g",
        "gw-1",
        "--stream",
        "host.cpu",
        "--since",
        "99999999d",
    ];
    // Its first readings may be on their way.
    eventually("there are readings", PATIENCE, async || {
        (desk.run(&far).await.code == Some(0)).then_some(())
    })
    .await;
    // What would be ignored is refused.
    for (ignored, named) in [
        (&["--since", "99999999d"][..], "--stream"),
        (&["--limit", "5"], "--stream"),
        (&["--gaps", "--since", "1h"], "--since"),
        (&["--gaps", "--limit", "5"], "--limit"),
    ] {
        let arguments = [&["telemetry", "-g", "gw-1"], ignored].concat();
        let said = desk.run(&arguments).await.ended_with(2);
        assert!(said.stderr.contains(named), "{said:#?}");
    }
    let unknown = ["telemetry", "-g", "gw-1", "--stream", "nope"];
    let said = desk.run(&unknown).await.ended_with(5);
    assert!(said.stderr.contains("no stream"), "{said:#?}");
    drop(
        desk.run(&["run", "test.wide", "-g", "gw-1"])
            .await
            .ended_with(0),
    );
    let listed = desk.json(&["runs", "ls"], 0).await;
    let id = listed["items"][0]["id"].as_str().unwrap();
    let said = desk.run(&["runs", "show", id]).await.ended_with(0);
    assert!(said.stdout.len() < 3_000, "{}", said.stdout.len());
}

#[tokio::test]
async fn the_quickstart_means_folders_from_where_the_person_stands_and_runs_under_any_shell() {
    let place = TempDir::with_prefix("viworks person ").unwrap();
    let (programs, target) = (place.path().join("bin"), place.path().join("target"));
    let debug = target.join("debug");
    std::fs::create_dir(&programs).unwrap();
    std::fs::create_dir_all(&debug).unwrap();
    // What it builds is somebody else's test; here it is what it starts.
    Desk::script(&programs, "cargo", "exit 0");
    Desk::script(&debug, "viworks", "printf '%s\\n' \"$@\"");
    let mut path = vec![programs];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let path = std::env::join_paths(path).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/quickstart.sh");
    let meant = place.path().join("my demo");
    for shell in ["sh", "bash"] {
        for (given, passed) in [
            (
                &["--data-dir", "my demo"][..],
                format!("--data-dir\n{}", text(&meant)),
            ),
            (
                &["--data-dir=my demo"][..],
                format!("--data-dir={}", text(&meant)),
            ),
            (&["--data-dir", "/a b"][..], "--data-dir\n/a b".to_owned()),
        ] {
            let mut quickstart = Command::new(shell);
            quickstart
                .arg(&script)
                .args(given)
                .arg("--once")
                .current_dir(place.path())
                .env("PATH", &path)
                .env("CARGO_TARGET_DIR", &target);
            let said = finish(quickstart, PATIENCE).await.ended_with(0);
            assert_eq!(said.stdout, format!("up\n{passed}\n--once\n"), "{said:#?}");
        }
    }
}

/// A backend's folder as `pki init` makes it.
fn installation() -> (Deployment, PathBuf) {
    let system = Deployment::new(Binaries::shipped());
    let config = system.backend_config();
    (system, config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_no_gateway_can_use_registers_nothing() {
    let (system, config) = installation();
    let out = system.path().join("gw-new");
    let issue = async |more: &[&str]| {
        let issue = [
            "pki",
            "issue-gateway",
            "gw-new",
            "--config",
            text(&config),
            "--out",
            text(&out),
        ];
        backend(&[&issue[..], more].concat()).await
    };
    for url in [
        "http://x",
        "nope",
        "wss://x:99999",
        "wss://me:secret@x",
        "wss://x\n",
        "wss://x\"",
        "",
    ] {
        let said = issue(&["--url", url]).await.ended_with(2);
        assert!(!out.exists(), "{url:?} {said:#?}");
    }
    // The name is not used up, and a folder that cannot be written uses up none either.
    std::fs::write(&out, "in the way").unwrap();
    let said = issue(&["--url", "wss://backend.example:8081"]).await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    std::fs::remove_file(&out).unwrap();
    let said = issue(&["--url", "wss://backend.example:8081"]).await;
    let said = said.ended_with(0);
    // The gateway will refuse what it finds there.
    assert!(said.stderr.contains("not for backend.example"), "{said:#?}");
    // The same for keys.
    let key = async |name: &str, out: &Path| {
        let create = [
            "apikey",
            "create",
            "--config",
            text(&config),
            "--scopes",
            "all",
            "--name",
            name,
        ];
        backend(&[&create[..], &["--out", text(out)]].concat()).await
    };
    let file = system.path().join("a.key");
    std::fs::write(&file, "in the way").unwrap();
    let said = key("x", &file).await.ended_with(6);
    assert!(said.stderr.contains("fix: name a new file"), "{said:#?}");
    drop(key("", &system.path().join("b.key")).await.ended_with(2));
    let said = key("x", Path::new("/proc/b.key")).await.ended_with(78);
    assert!(
        said.stderr.contains("fix: name a file in a folder"),
        "{said:#?}"
    );
    let listed = backend(&["apikey", "ls", "--config", text(&config)])
        .await
        .ended_with(0);
    assert!(!listed.stdout.contains("  x  "), "{listed:#?}");
    let heads = listed.stdout.lines().next().unwrap();
    let heads: Vec<&str> = heads.split_whitespace().collect();
    assert_eq!(heads, ["ID", "STATUS", "NAME", "SCOPES", "CREATED", "ENDS"]);
    assert!(listed.stdout.lines().count() > 1, "{listed:#?}");
    for line in listed.stdout.lines().skip(1) {
        assert!(line.contains("  active  "), "{line}");
        assert!(line.ends_with("  never"), "{line}");
        assert!(line.contains(" ago") || line.contains("  now "), "{line}");
    }
    let made = key("gone", &system.path().join("gone.key")).await;
    let made = made.ended_with(0).stdout;
    let id = made.split_whitespace().next().unwrap();
    for told in [
        format!("revoked {id}\n"),
        format!("{id} was revoked already, "),
    ] {
        let revoke = ["apikey", "revoke", "--config", text(&config), id];
        let said = backend(&revoke).await.ended_with(0);
        assert!(said.stdout.starts_with(&told), "{said:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issued_gateway_has_everything_it_needs_and_finds_the_running_backend() {
    let (mut system, config) = installation();
    system.start_backend(Start::default()).await;
    let out = system.path().join("gw-new");
    let issue = [
        "pki",
        "issue-gateway",
        "gw-new",
        "--config",
        text(&config),
        "--out",
        text(&out),
    ];
    drop(backend(&issue).await.ended_with(0));
    // Not the configured port, which is somebody else's, but the one that was free.
    let toml = std::fs::read_to_string(out.join("gateway.toml")).unwrap();
    let url = format!(
        "url = \"wss://{}/agent/v1/connect\"",
        system.agents_address()
    );
    assert!(toml.contains(&url), "{url}\n{toml}");
    assert!(out.join("commands.d/10-gateway.toml").exists());
    if !rustix::process::geteuid().is_root() {
        // The catalogue belongs to root, and only root can give it to root.
        return;
    }
    let mut check = Command::new(Binaries::shipped().gateway());
    let gateway = out.join("gateway.toml");
    check.args(["check-config", "--config", text(&gateway)]);
    drop(finish(check, PATIENCE).await.ended_with(0));
    let mut run = Command::new(Binaries::shipped().gateway());
    run.args(["run", "--config", text(&gateway)]);
    let mut running = Process::start(&mut run, &system.path().join("gw-new.log")).unwrap();
    drop(system.online("gw-new").await);
    assert!(
        running.stop(Duration::from_secs(30)).await.success(),
        "{}",
        running.log()
    );
    system.kill_backend();
    // What a killed backend left says nothing about the next one.
    let out = system.path().join("gw-later");
    let issue = [
        "pki",
        "issue-gateway",
        "gw-later",
        "--config",
        text(&config),
        "--out",
        text(&out),
    ];
    drop(backend(&issue).await.ended_with(0));
    let toml = std::fs::read_to_string(out.join("gateway.toml")).unwrap();
    assert!(toml.contains("wss://127.0.0.1:8081/"), "{toml}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_gets_no_name_that_no_gateway_verifies_and_a_gateway_no_address_that_the_server_is_not_for()
 {
    let place = TempDir::new().unwrap();
    let made = |names: &[&str], folder: &str| {
        let dir = place.path().join(folder);
        let mut init = Command::new(Binaries::shipped().backend());
        init.args(["pki", "init", "--dir", text(&dir)]);
        for name in names {
            init.arg(format!("--server-name={name}"));
        }
        finish(init, PATIENCE)
    };
    for name in [
        "",
        "a b",
        "x/y",
        "999.1.1.1",
        "host.",
        "-a.example",
        "*",
        "a..b",
    ] {
        let said = made(&["localhost", name], "refused").await.ended_with(2);
        assert!(said.stderr.contains("such as"), "{said:#?}");
        assert!(!place.path().join("refused").exists(), "{name:?}");
    }

    let url = async |folder: &str| {
        let config = place.path().join(folder).join("backend.toml");
        let out = place.path().join(format!("gateway of {folder}"));
        let arguments = ["pki", "issue-gateway", "gw-new", "--config", text(&config)];
        let said = backend(&[&arguments[..], &["--out", text(&out)]].concat()).await;
        let toml = std::fs::read_to_string(out.join("gateway.toml")).unwrap_or_default();
        (said, toml)
    };
    // It listens on 127.0.0.1, for which this certificate is not; another name of the same place is in it.
    drop(made(&["localhost"], "local").await.ended_with(0));
    let (said, toml) = url("local").await;
    drop(said.ended_with(0));
    assert!(toml.contains("\"wss://localhost:8081/"), "{toml}");
    // Nobody here can know where this name leads.
    drop(made(&["*.example.com"], "far").await.ended_with(0));
    let (said, toml) = url("far").await;
    let said = said.ended_with(2);
    assert!(
        said.stderr.contains("public_url") && toml.is_empty(),
        "{said:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_for_two_listeners_is_refused_by_a_backends_check_and_start() {
    let (_system, config) = installation();
    for (agents, api) in [
        ("127.0.0.1:8081", "127.0.0.1:8081"),
        ("[::]:8081", "127.0.0.1:8081"),
    ] {
        let mut answers = Vec::new();
        for verb in ["check-config", "serve"] {
            let mut command = Command::new(Binaries::shipped().backend());
            command
                .args([verb, "--config", text(&config)])
                .env("VIWORKS__AGENTS__LISTEN", agents)
                .env("VIWORKS__API__LISTEN", api);
            let said = finish(command, PATIENCE).await.ended_with(78);
            answers.push(said.stderr);
        }
        let named = format!("gateways connect at {agents} already");
        assert!(answers[0].contains(&named), "{answers:#?}");
        assert_eq!(answers[0], answers[1]);
    }
}
