//! A file that is named on a command line and is not there: every verb of every program ends with the same code. One
//! that is there and is to be written stays, unless it is what is written.

use std::path::Path;
use std::process::Command;

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{PATIENCE, run, text};
use viworks_testkit::process::finish;

/// The configuration is to be mended, or what a flag names.
const CONFIG: i32 = 78;

/// Something is there that would be lost.
const CONFLICT: i32 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_named_and_not_there_ends_every_verb_alike() {
    let root = tempfile::tempdir().unwrap();
    let shipped = Binaries::shipped();
    let (cli, backend, gateway) = (shipped.cli(), shipped.backend(), shipped.gateway());
    let folder = root.path().join("site");
    run(&backend, &["pki", "init", "--dir", text(&folder)]);
    let site = |name: &str| folder.join(name).display().to_string();
    let (config, authority, other_key) = (site("backend.toml"), site("ca.crt"), site("next.key"));
    let (missing, new) = (root.path().join("missing"), root.path().join("new"));
    let (missing, new) = (text(&missing), text(&new));
    let absent = format!("{missing}.toml");
    let init = ["pki", "init", "--dir", new, "--ca-certificate"];
    let (authority, server) = (authority.as_str(), site("server.crt"));
    let (other_key, server, home) = (other_key.as_str(), server.as_str(), root.path().join("gw"));
    for (program, words) in [
        (&cli, vec!["ticket", "inspect", missing]),
        (
            &cli,
            vec![
                "gateway",
                "ls",
                "--server",
                "http://127.0.0.1:1",
                "--token-file",
                missing,
            ],
        ),
        (
            &cli,
            vec![
                "validate",
                "--gateway",
                missing,
                "--server",
                "http://127.0.0.1:1",
            ],
        ),
        (
            &gateway,
            vec![
                "enroll",
                "--demo",
                "--out",
                text(&home),
                "--ticket-file",
                missing,
            ],
        ),
        (&gateway, vec!["check-config", "--config", &absent]),
        (&gateway, vec!["run", "--config", &absent]),
        (&backend, vec!["serve", "--config", &absent]),
        (&backend, vec!["check-config", "--config", &absent]),
        (
            &backend,
            vec![
                "pki",
                "sign-request",
                missing,
                "--name",
                "gw-1",
                "--out",
                new,
                "--config",
                &config,
            ],
        ),
        (
            &backend,
            [&init[..], &[missing, "--ca-key", other_key]].concat(),
        ),
        (
            &backend,
            [&init[..], &[authority, "--ca-key", missing]].concat(),
        ),
        // One that is there and does not fit, no authority, and a program that is not there or says nothing.
        (
            &backend,
            [&init[..], &[authority, "--ca-key", other_key]].concat(),
        ),
        (
            &backend,
            [&init[..], &[server, "--ca-key", other_key]].concat(),
        ),
        (
            &backend,
            [&init[..], &[authority, "--ca-sign-command", missing]].concat(),
        ),
        (
            &backend,
            [&init[..], &[authority, "--ca-sign-command", "/bin/true"]].concat(),
        ),
    ] {
        let mut command = Command::new(program);
        command.args(&words).current_dir(root.path());
        command.env("VIWORKS_CONFIG_DIR", root.path().join("contexts"));
        let said = finish(command, PATIENCE).await.ended_with(CONFIG);
        assert!(!said.stderr.is_empty(), "{words:?}: {said:#?}");
    }
    // What stands on the command line itself is wrong there, and a program that fails may sign the next time.
    for (program, code, words) in [
        ("sign.sh", 2, "whole path"),
        ("/bin/sign\tit", 2, "visible characters"),
        ("/bin/false", 69, "did not sign"),
    ] {
        let mut command = Command::new(&backend);
        command
            .args(init)
            .args([authority, "--ca-sign-command", program]);
        let said = finish(command, PATIENCE).await.ended_with(code);
        assert!(said.stderr.contains(words), "{said:#?}");
    }
    assert!(!Path::new(new).exists());
}

/// A new file in a folder that is not there: every verb that writes one says so with the same code, names what was
/// named and nothing of its own, and what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_not_there_is_told_of_with_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let shipped = Binaries::shipped();
    let (cli, backend, gateway) = (shipped.cli(), shipped.backend(), shipped.gateway());
    let folder = root.path().join("site");
    run(&backend, &["pki", "init", "--dir", text(&folder)]);
    let config = folder.join("backend.toml");
    let config = ["--config", text(&config)];
    let (home, request) = (root.path().join("gw"), root.path().join("gw.csr"));
    let enroll = ["enroll", "--demo", "--out", text(&home), "--request-out"];
    run(&gateway, &[&enroll[..], &[text(&request)]].concat());
    let (missing, new) = (root.path().join("missing"), root.path().join("missing/new"));
    let other = root.path().join("other");
    let other = ["enroll", "--demo", "--out", text(&other), "--request-out"];
    let key = ["apikey", "create", "--name", "x", "--scopes", "all"];
    let url = "wss://127.0.0.1:1/agent/v1/connect";
    let sign = ["pki", "sign-request", text(&request)];
    let sign = [&sign[..], &["--name", "gw-1", "--url", url]].concat();
    let collect = ["diag", "collect"];
    let nowhere = ["diag", "collect", "--yes", "--server", "http://127.0.0.1:1"];
    for (program, words) in [
        (&cli, [&nowhere[..], &["--out"]].concat()),
        (&backend, [&key[..], &config, &["--out"]].concat()),
        (&backend, [&sign[..], &config, &["--out"]].concat()),
        (
            &backend,
            [&["pki", "crl"][..], &config, &["--out"]].concat(),
        ),
        (&backend, [&collect[..], &config, &["--out"]].concat()),
        (&gateway, [&collect[..], &config, &["--out"]].concat()),
        (&gateway, other.to_vec()),
    ] {
        let mut command = Command::new(program);
        command.args(&words).arg(&new).current_dir(root.path());
        command.env("VIWORKS_CONFIG_DIR", root.path().join("contexts"));
        let said = finish(command, PATIENCE).await.ended_with(CONFIG);
        let names = |what: &str| said.stderr.contains(what);
        assert!(names(text(&new)), "{words:?}: {said:#?}");
        assert!(!names("unfinished"), "{words:?}: {said:#?}");
        assert!(
            names("fix: name a file in a folder"),
            "{words:?}: {said:#?}"
        );
    }
    assert!(!missing.exists());
    // A name that is too long, of the gateway or of the file, is told of as that.
    let (request, long) = (text(&request), "x".repeat(64));
    let out = root.path().join("x".repeat(250));
    for (name, code, words) in [(&*long, 2, "1 to 63"), ("gw-1", CONFIG, "shorter name")] {
        let mut command = Command::new(&backend);
        command.args(["pki", "sign-request", request, "--name", name, "--url", url]);
        command.args(config).arg("--out").arg(&out);
        let said = finish(command, PATIENCE).await.ended_with(code);
        assert!(said.stderr.contains(words), "{said:#?}");
        assert!(!said.stderr.contains("exists already"), "{said:#?}");
    }
    // The request is still one that can be signed.
    let answer = root.path().join("gw.answer");
    run(
        &backend,
        &[&sign[..], &config, &["--out", text(&answer)]].concat(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_revoked_certificates_takes_the_place_of_a_list_alone() {
    let root = tempfile::tempdir().unwrap();
    let backend = Binaries::shipped().backend();
    let folder = root.path().join("site");
    run(&backend, &["pki", "init", "--dir", text(&folder)]);
    let config = folder.join("backend.toml");
    let write = async |out: &Path| {
        let mut command = Command::new(&backend);
        command.args(["pki", "crl", "--config", text(&config), "--out", text(out)]);
        finish(command, PATIENCE).await
    };
    // Where nothing is, and again over what was written.
    let list = folder.join("gateways.crl");
    for _time in 0..2 {
        let said = write(&list).await.ended_with(0);
        assert!(list.is_file(), "{said:#?}");
    }
    let written = std::fs::read_to_string(&list).unwrap();
    // A key, and what was put together for an authority that is an intermediate.
    let together = root.path().join("together.crl");
    std::fs::write(&together, format!("{written}{written}")).unwrap();
    for (kept, why) in [
        (folder.join("ca.key"), "no list of revoked certificates"),
        (together, "several lists"),
    ] {
        let before = std::fs::read(&kept).unwrap();
        let said = write(&kept).await.ended_with(CONFLICT);
        assert!(said.stderr.contains(why), "{said:#?}");
        assert_eq!(std::fs::read(&kept).unwrap(), before, "{}", kept.display());
    }
    // Neither what ends as a folder does, nor what stands for the standard output, is the name of a new file.
    let folder = root.path().join("lists/");
    drop(write(&folder).await.ended_with(CONFIG));
    assert!(!root.path().join("lists").exists());
    let said = write(Path::new("-")).await.ended_with(2);
    assert!(said.stderr.contains("./-"), "{said:#?}");
    // Nobody waits for what is no file.
    let pipe = root.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let said = write(&pipe).await.ended_with(CONFIG);
    assert!(said.stderr.contains("not a regular file"), "{said:#?}");
}
