//! What lies over an agent's file, in `conf.d`, in variables and in credentials: what is refused, and what is in force.

use std::net::TcpListener;

use serde_json::json;

use super::*;

/// What ships, for a site that passes TLS through.
const NGINX: &str = include_str!("../../../../nginx/nginx.conf");

#[tokio::test]
async fn what_lies_over_a_gateways_file_is_refused_by_check_and_start() {
    let cases = &[
        Case {
            name: "an unknown key",
            spoil: |folder| folder.lay("10.toml", "[outbound]\nurll = \"wss://x\"\n"),
            causes: &[
                "conf.d/10.toml:2:1: unknown key \"urll\" in [outbound]",
                "did you mean \"url\"?",
            ],
        },
        Case {
            name: "another type",
            spoil: |folder| folder.lay("10.toml", "[outbound]\npins = 1\n"),
            causes: &[
                "conf.d/10.toml:2:8: pins is an integer",
                "for example: pins = ",
            ],
        },
        Case {
            name: "no TOML",
            spoil: |folder| folder.lay("10.toml", "[outbound\n"),
            causes: &["conf.d/10.toml:1", "not valid TOML"],
        },
        Case {
            name: "a later file that spoils what an earlier one mended",
            spoil: |folder| {
                folder.lay("10.toml", "[executor]\nparallel_max = 2\n");
                folder.lay("20.toml", "[executor]\nparallel_max = 99\n");
            },
            causes: &[
                "conf.d/20.toml:2:16: parallel_max is 99",
                "it must be from 1 to 64",
            ],
        },
        Case {
            name: "a file that others can change",
            spoil: |folder| {
                folder.lay("10.toml", "");
                folder.mode("conf.d/10.toml", 0o666);
            },
            causes: &[
                "conf.d/10.toml can be changed by others (mode 0666)",
                "chmod go-w",
            ],
        },
        Case {
            name: "a folder that others can change",
            spoil: |folder| {
                folder.lay("10.toml", "");
                folder.mode("conf.d", 0o777);
            },
            causes: &["conf.d can be changed by others (mode 0777)"],
        },
        Case {
            name: "a link",
            spoil: |folder| {
                folder.lay("10.toml", "");
                folder.link("conf.d/10.toml");
            },
            causes: &["conf.d/10.toml is a link"],
        },
        Case {
            name: "a file in the folder's place",
            spoil: |folder| folder.write("conf.d", ""),
            causes: &["conf.d is not a folder"],
        },
        Case {
            name: "a link to a folder that is not there",
            spoil: |folder| {
                folder.lay("10.toml", "");
                folder.link("conf.d");
                fs::remove_dir_all(folder.aside.join("target")).unwrap();
            },
            causes: &[
                "conf.d: it is a link to something that is not there",
                "make or mount what it leads to",
            ],
        },
        Case {
            name: "a folder that is to be a credential",
            spoil: |folder| {
                folder.lay(
                    "10.toml",
                    "[executor]\ncommands_folder = \"credential:x\"\n",
                );
            },
            causes: &[
                "conf.d/10.toml:2:19: commands_folder is \"credential:x\"",
                "only a file that is read can be a credential",
            ],
        },
        Case {
            name: "what is not UTF-8",
            spoil: |folder| folder.lay("10.toml", b"[log]\nfilter = \"\xff\"\n"),
            causes: &["conf.d/10.toml: not UTF-8", "save the file as UTF-8"],
        },
        Case {
            name: "everything at once",
            spoil: |folder| {
                folder.lay("10.toml", "[outbound]\nurll = 1\n");
                folder.lay("20.toml", "");
                folder.mode("conf.d/20.toml", 0o666);
                folder.private("gateway.key", folder.sound("gateways/gw-2/gateway.key"));
            },
            causes: &["urll", "20.toml can be changed by others", "does not fit"],
        },
        Case {
            name: "a credential that nobody gave",
            spoil: |folder| folder.configure("\"gateway.key\"", "\"credential:gateway.key\""),
            causes: &[
                "key_file: there is no credential gateway.key: this process was given none",
                "LoadCredential=gateway.key:FILE",
            ],
        },
        Case {
            name: "a credential that is no name",
            spoil: |folder| folder.configure("\"gateway.key\"", "\"credential:../gateway.key\""),
            causes: &["\"../gateway.key\" is not the name of a credential"],
        },
    ];
    GATEWAY.hold_all(cases).await;
}

#[tokio::test]
async fn what_variables_say_of_a_gateway_is_refused_by_check_and_start() {
    for (environment, causes) in [
        (
            &[("VIWORKS__OUTBOUND__URLL", "wss://x")],
            &[
                "environment variable VIWORKS__OUTBOUND__URLL: overrides no key",
                "did you mean VIWORKS__OUTBOUND__URL?",
            ],
        ),
        (
            &[("VIWORKS__OUTBOUND__URL", "ws://backend.test")],
            &[
                "environment variable VIWORKS__OUTBOUND__URL: url: ws:// is not encrypted",
                "use wss://",
            ],
        ),
        (
            &[("VIWORKS__EXECUTOR__PARALLEL_MAX", "many")],
            &[
                "environment variable VIWORKS__EXECUTOR__PARALLEL_MAX",
                "cannot be read as a value for parallel_max",
            ],
        ),
        (
            &[("VIWORKS__LOG__FILTER", "loud=what")],
            &["environment variable VIWORKS__LOG__FILTER", "use a level"],
        ),
    ] {
        let agent = Agent {
            environment,
            ..GATEWAY
        };
        let case = Case {
            name: environment[0].0,
            spoil: |_| {},
            causes,
        };
        agent.hold_all(&[case]).await;
    }
}

/// The line of a key, with the blanks taken together.
fn explained(said: &Said, key: &str) -> String {
    let line = said.stdout.lines().find(|line| line.starts_with(key));
    let line = line.unwrap_or_else(|| panic!("{key} is not in {said:#?}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layers_are_in_force_as_explained_and_a_credential_is_read() {
    let sound = Sound::new();
    let (_place, folder) = GATEWAY.copy(&sound);
    folder.configure("\"gateway.key\"", "\"credential:key\"");
    fs::create_dir(folder.at("credentials")).unwrap();
    fs::rename(folder.at("gateway.key"), folder.at("credentials/key")).unwrap();
    folder.lay(
        "10-site.toml",
        "[gateway]\nsocket = \"first.sock\"\n[executor]\nparallel_max = 2\n",
    );
    folder.lay("20-late.toml", "[gateway]\nsocket = \"second.sock\"\n");
    folder.lay("30.toml.dpkg-old", "nonsense");
    let given = |mut command: Command| {
        command.env("CREDENTIALS_DIRECTORY", folder.at("credentials"));
        command.env("VIWORKS__EXECUTOR__KILL_GRACE_MS", "700");
        command
    };
    let mut explain = Command::new(sound.system.binaries().gateway());
    explain.args([
        "config",
        "explain",
        "--config",
        text(&folder.at(GATEWAY.config)),
    ]);
    let said = finish(given(explain), SOON).await.ended_with(0);
    let late = folder.at("conf.d/20-late.toml");
    let socket = format!("socket = \"second.sock\" # {}:2", text(&late));
    assert_eq!(explained(&said, "socket"), socket);
    assert!(
        explained(&said, "parallel_max").ends_with("conf.d/10-site.toml:4"),
        "{said:#?}"
    );
    assert!(
        explained(&said, "kill_grace_ms").contains("700 # environment variable VIWORKS__"),
        "{said:#?}"
    );
    assert!(
        explained(&said, "key_file").contains("credential:key"),
        "{said:#?}"
    );
    assert!(
        explained(&said, "bytes_max").ends_with("# default"),
        "{said:#?}"
    );
    assert!(!said.stdout.contains("PRIVATE"), "{said:#?}");
    let mut explain = Command::new(sound.system.binaries().gateway());
    explain.args(["config", "explain", "-o", "json", "--config"]);
    explain.arg(folder.at(GATEWAY.config));
    let said = finish(given(explain), SOON).await.ended_with(0);
    let told: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let keys = told["keys"].as_array().unwrap();
    let of = |name: &str| keys.iter().find(|key| key["key"] == name).unwrap();
    assert_eq!(of("socket")["file"], text(&late));
    assert_eq!(of("socket")["line"], 2);
    assert_eq!(of("kill_grace_ms")["value"], 700);
    assert_eq!(of("kill_grace_ms")["origin"], "environment");
    assert_eq!(told["problems"], json!([]));
    let [check, run] = GATEWAY.programs(&sound, &folder);
    drop(finish(given(check), SOON).await.ended_with(0));
    let mut running = Process::start(&mut given(run), &folder.aside.join("log")).unwrap();
    eventually(
        "it serves where the later file says",
        PATIENCE,
        async || folder.at("second.sock").exists().then_some(()),
    )
    .await;
    assert!(running.stop(PATIENCE).await.success());
}

#[tokio::test]
async fn what_lies_over_a_backends_file_is_refused_by_check_and_start() {
    let cases = &[
        Case {
            name: "an address for others",
            spoil: |folder| folder.lay("10.toml", "[api]\nlisten = \"0.0.0.0:8080\"\n"),
            causes: &[
                "conf.d/10.toml:2:10: 0.0.0.0:8080 is not a loopback address",
                "behind a proxy",
            ],
        },
        Case {
            name: "a password in a URL",
            spoil: |folder| {
                folder.lay(
                    "10.toml",
                    "[store]\nurl = \"postgres://vw:hunter2@127.0.0.1/x\"\n",
                );
            },
            causes: &["conf.d/10.toml:2:7", "password"],
        },
        Case {
            name: "an unknown section",
            spoil: |folder| folder.lay("10.toml", "[stor]\nurl = \"x\"\n"),
            causes: &[
                "conf.d/10.toml:1:2: unknown section [stor]",
                "did you mean \"store\"?",
            ],
        },
        Case {
            name: "a file that others can change",
            spoil: |folder| {
                folder.lay("10.toml", "");
                folder.mode("conf.d/10.toml", 0o622);
            },
            causes: &["conf.d/10.toml can be changed by others"],
        },
        Case {
            name: "a credential that nobody gave",
            spoil: |folder| folder.configure("\"master.key\"", "\"credential:master.key\""),
            causes: &[
                "master_key_file: there is no credential master.key",
                "LoadCredential=",
            ],
        },
        Case {
            name: "a database of another master key",
            spoil: |folder| folder.private("master.key", "ab".repeat(32)),
            causes: &["backend.sqlite", "another master key", "replace-master-key"],
        },
        Case {
            name: "a database that has moved",
            spoil: |folder| {
                let moved = r#"{"to":"viworks at db.test","at":"2026-01-01T00:00:00Z"}"#;
                folder.private("state/backend.sqlite.moved", moved);
            },
            causes: &["has moved to", "name that as `url` in [store]"],
        },
    ];
    BACKEND.hold_all(cases).await;
}

#[tokio::test]
async fn what_is_wrong_is_told_to_programs_in_a_document_and_names_a_file_once() {
    let binaries = Binaries::shipped();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    let (backend, gateway) = (binaries.backend(), binaries.gateway());
    for (program, verb) in [
        (&backend, &["config", "explain"][..]),
        (&backend, &["check-config"]),
        (&backend, &["migrate", "--dry-run"]),
        (&backend, &["nginx", "check"]),
        (&gateway, &["config", "explain"]),
        (&gateway, &["check-config"]),
    ] {
        let mut command = Command::new(program);
        let config = ["--config", text(&missing), "-o", "json"];
        command.args(verb).args(config);
        let said = finish(command, SOON).await.ended_with(78);
        let document = said.json();
        let problems = document["problems"].as_array().unwrap();
        assert_eq!(problems.len(), 1, "{verb:?}: {document:#}");
        assert_eq!(problems[0]["file"], text(&missing), "{verb:?}");
        for part in ["message", "help"] {
            assert_ne!(problems[0][part], "", "{verb:?}: {document:#}");
        }
        let first = said.stderr.lines().next().unwrap();
        assert_eq!(first.matches("missing.toml").count(), 1, "{said:#?}");
        assert!(!said.stderr.contains("started"), "{said:#?}");
    }
}

#[tokio::test]
async fn what_fits_is_told_to_programs_in_a_document_and_what_should_be_better_in_a_list() {
    let sound = Sound::new();
    for agent in [BACKEND, GATEWAY] {
        let (_place, folder) = agent.copy(&sound);
        let [mut check, _start] = agent.programs(&sound, &folder);
        check.args(["-o", "json"]);
        let said = finish(check, SOON).await.ended_with(0);
        let valid = format!("{} is valid", text(&folder.at(agent.config)));
        let wanted = json!({ "status": "pass", "found": [valid], "warnings": [], "problems": [] });
        assert_eq!(said.json(), wanted, "{said:#?}");
    }
    let (_place, folder) = BACKEND.copy(&sound);
    folder.lay("10.toml", "[agents]\nnext_key_file = \"server.key\"\n");
    let [mut check, _start] = BACKEND.programs(&sound, &folder);
    check.args(["-o", "json"]);
    let document = finish(check, SOON).await.ended_with(0).json();
    assert_eq!(document["status"], "pass", "{document:#}");
    let warnings = document["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 1, "{document:#}");
    assert_eq!(warnings[0]["file"], text(&folder.at("server.key")));
    for part in ["message", "help"] {
        assert_ne!(warnings[0][part], "", "{document:#}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_reached_is_told_to_programs_beside_what_is_valid() {
    let sound = Sound::new();
    let (_place, folder) = BACKEND.copy(&sound);
    // Nobody listens there any more.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    let url = format!("postgres://viworks@{address}/viworks?sslmode=disable");
    folder.lay("10.toml", format!("[store]\nurl = \"{url}\"\n"));
    let [mut check, _start] = BACKEND.programs(&sound, &folder);
    check.args(["--connect", "-o", "json"]);
    let said = finish(check, SOON).await.ended_with(69);
    let document = said.json();
    let config = folder.at(BACKEND.config);
    assert_eq!(document["status"], "fail", "{document:#}");
    let valid = format!("{} is valid", text(&config));
    assert_eq!(document["found"], json!([valid]), "{document:#}");
    assert_eq!(document["warnings"], json!([]), "{document:#}");
    let problems = document["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{document:#}");
    assert_eq!(problems[0]["file"], text(&config));
    let message = problems[0]["message"].as_str().unwrap();
    assert!(message.contains(&address), "{document:#}");
    assert!(said.stderr.contains(&address), "{said:#?}");
}

/// An nginx in this folder that takes everything. Another process writes it: a file that a child of this one has open
/// for writing, whichever test started it, cannot be run.
fn agreeable_nginx(folder: &Path) {
    let script = r#"printf '#!/bin/sh\necho nginx: syntax is ok >&2\n' >"$1" && chmod 755 "$1""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(folder.join("nginx"));
    assert!(shell.status().unwrap().success());
}

#[tokio::test]
async fn what_a_proxy_should_do_better_is_told_whether_it_fits_or_not() {
    let sound = Sound::new();
    let (_place, folder) = BACKEND.copy(&sound);
    folder.lay(
        "10.toml",
        "[agents]\nlisten = \"127.0.0.1:8081\"\npublic_url = \"wss://agents.example.org\"\n\
         proxy_protocol = \"require\"\ntrusted_proxies = [\"127.0.0.1\"]\n\
         [api]\nlisten = \"127.0.0.1:8080\"\ntrusted_proxies = [\"127.0.0.1\"]\n",
    );
    let [programs, renewal] = ["programs", "renewal"].map(|name| folder.aside.join(name));
    for path in [&programs, &renewal] {
        fs::create_dir(path).unwrap();
    }
    agreeable_nginx(&programs);
    let site = folder.aside.join("nginx.conf");
    let check = async |written: &str, more: &[&str], code: i32| {
        fs::write(&site, written).unwrap();
        let mut command = Command::new(sound.system.binaries().backend());
        command
            .args(["nginx", "check", text(&site)])
            .args(["--config", text(&folder.at(BACKEND.config))])
            .args(["--renewal", text(&renewal)])
            .args(more)
            .env("PATH", &programs);
        finish(command, SOON).await.ended_with(code)
    };
    let suites = NGINX.lines().find(|line| line.contains("ssl_ciphers "));
    let weak = NGINX.replace(suites.unwrap(), "");
    let warned = "without a word about suites";
    let unfit = weak.replace("proxy_protocol on;", "");
    for (written, code, status) in [(&weak, 0, "pass"), (&unfit, 78, "fail")] {
        let document = check(written, &["-o", "json"], code).await.json();
        assert_eq!(document["status"], status, "{document:#}");
        let warnings = document["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), 1, "{document:#}");
        assert_eq!(warnings[0]["file"], text(&site));
        assert!(warnings[0]["line"].is_u64(), "{document:#}");
        for (part, words) in [("message", warned), ("help", "write ssl_ciphers ")] {
            let told = warnings[0][part].as_str().unwrap();
            assert!(told.contains(words), "{document:#}");
        }
        let found = document["found"].as_array().unwrap();
        let is_found = |words: &str| {
            found
                .iter()
                .any(|it| it.as_str().unwrap().starts_with(words))
        };
        for words in [
            "nginx can read it",
            "gateways pin sha256/",
            "not looked at: ",
        ] {
            assert!(is_found(words), "{document:#}");
        }
        assert!(!is_found("warning"), "{document:#}");
        let problems = document["problems"].as_array().unwrap();
        assert_eq!(problems.is_empty(), code == 0, "{document:#}");
        // A person is told the same.
        let said = check(written, &[], code).await;
        let told = said.stderr.contains("warning: ") && said.stderr.contains(warned);
        assert!(
            told && said.stdout.contains("gateways pin sha256/"),
            "{said:#?}"
        );
        assert_eq!(
            said.stdout.contains("fits this backend"),
            code == 0,
            "{said:#?}"
        );
    }
}

#[tokio::test]
async fn a_check_whose_output_cannot_be_written_ends_with_what_it_found() {
    let binaries = Binaries::shipped();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    for program in [binaries.backend(), binaries.gateway()] {
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$@\" >/dev/full", "sh", text(&program)])
            .args(["check-config", "-o", "json", "--config", text(&missing)]);
        let said = finish(command, SOON).await.ended_with(78);
        assert!(said.stderr.contains("missing.toml"), "{said:#?}");
    }
}
