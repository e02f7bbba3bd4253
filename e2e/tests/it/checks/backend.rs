//! Every way to spoil a backend's folder, and what its check and its start say of it.

use super::*;

/// The files that its configuration names.
const FILES: [&str; 6] = [
    "server.crt",
    "server.key",
    "next.key",
    "ca.crt",
    "ca.key",
    "master.key",
];

async fn hold_all(cases: &[Case]) {
    BACKEND.hold_all(cases).await;
}

#[tokio::test]
async fn a_backends_broken_key_material_is_named_by_check_and_start() {
    hold_all(&[
        Case {
            name: "another key",
            spoil: |folder| folder.private("server.key", folder.read("next.key")),
            causes: &["server.key", "does not fit", "backend.toml:"],
        },
        Case {
            name: "an encrypted key",
            spoil: |folder| {
                let text = folder.read("server.key");
                folder.write(
                    "server.key",
                    text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
                );
            },
            causes: &["server.key", "encrypted"],
        },
        Case {
            name: "an encrypted next key",
            spoil: |folder| {
                let text = folder.read("next.key");
                folder.write(
                    "next.key",
                    text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
                );
            },
            causes: &["next.key", "encrypted"],
        },
        Case {
            name: "a next key that is none",
            spoil: |folder| folder.write("next.key", folder.read("server.crt")),
            causes: &["next.key", "a certificate instead of a private key"],
        },
        Case {
            name: "a gateway's certificate",
            spoil: |folder| {
                folder.write("server.crt", folder.sound("gateways/gw-1/gateway.crt"));
                folder.private("server.key", folder.sound("gateways/gw-1/gateway.key"));
            },
            causes: &["server.crt", "not for server authentication"],
        },
        Case {
            name: "a certificate without a name",
            spoil: |folder| {
                let mut params = CertificateParams::default();
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                let (certificate, key) = folder.issue(&params);
                folder.write("server.crt", certificate);
                folder.private("server.key", key);
            },
            causes: &["server.crt", "has no alternative name"],
        },
        Case {
            name: "an authority file with a gateway's certificate",
            spoil: |folder| {
                let chain = String::from_utf8(folder.sound("gateways/gw-1/gateway.crt")).unwrap();
                let end = "-----END CERTIFICATE-----\n";
                let leaf = format!("{}{end}", chain.split_once(end).unwrap().0);
                folder.write("ca.crt", leaf);
            },
            causes: &["ca.crt", "no authority's certificate"],
        },
        Case {
            name: "an authority file without certificates",
            spoil: |folder| folder.write("ca.crt", ""),
            causes: &["ca.crt", "holds no certificate"],
        },
        Case {
            name: "another authority's key",
            spoil: |folder| folder.private("ca.key", folder.read("next.key")),
            causes: &["ca.key", "does not fit"],
        },
        Case {
            name: "a short master key",
            spoil: |folder| folder.write("master.key", "0123"),
            causes: &["master.key", "64 hexadecimal digits"],
        },
        Case {
            name: "an empty master key",
            spoil: |folder| folder.write("master.key", ""),
            causes: &["master.key", "64 hexadecimal digits"],
        },
        Case {
            name: "a database that is none",
            spoil: |folder| folder.private("state/backend.sqlite", [b'x'; 8192]),
            causes: &["backend.sqlite is damaged", "docs/operations/upgrade.md"],
        },
        Case {
            name: "a database of which only the head is left",
            spoil: |folder| folder.tear("state/backend.sqlite", 8192),
            causes: &["backend.sqlite is damaged", "docs/operations/upgrade.md"],
        },
        Case {
            name: "everything at once",
            spoil: |folder| {
                folder.write("master.key", "0123");
                folder.write("ca.crt", "");
                folder.private("server.key", folder.read("next.key"));
                folder.configure("listen = \"127.0.0.1:8080\"", "listen = \"0.0.0.0:8080\"");
                folder.mode("state", 0o777);
            },
            causes: &[
                "64 hexadecimal digits",
                "holds no certificate",
                "does not fit",
                "not a loopback address",
                "state can be changed by others",
            ],
        },
    ])
    .await;
}

/// As docs/operations/upgrade.md asks before an upgrade: a start reads none of the pages that are damaged here.
#[tokio::test]
async fn damage_that_a_start_does_not_meet_is_found_by_a_backends_check() {
    let sound = Sound::new();
    let (_place, folder) = BACKEND.copy(&sound);
    let there = || fs::read_dir(folder.at("state")).unwrap().count();
    let before = there();
    let database = "state/backend.sqlite";
    folder.tear_the_middle(database);
    let [check, _start] = BACKEND.programs(&sound, &folder);
    let said = finish(check, SOON).await.ended_with(78);
    assert!(
        said.stderr.contains("backend.sqlite is damaged"),
        "{said:#?}"
    );
    let fix = "docs/operations/upgrade.md";
    assert!(said.stderr.contains(fix), "{said:#?}");
    assert_eq!(there(), before);
}

#[tokio::test]
async fn a_file_that_is_missing_is_named_once_by_a_backends_check_and_start() {
    BACKEND.hold_each_missing(&FILES).await;
}

#[tokio::test]
async fn a_byte_order_mark_is_named_by_a_backends_check_and_start() {
    let files = [&FILES[..], &["backend.toml"]].concat();
    let words = "begins with a byte-order mark";
    BACKEND.hold_each(&files, Folder::mark, words).await;
}

#[tokio::test]
async fn a_plain_text_api_for_others_is_refused_by_a_backends_check_and_start() {
    hold_all(&[
        Case {
            name: "every address",
            spoil: |folder| {
                folder.configure("listen = \"127.0.0.1:8080\"", "listen = \"0.0.0.0:8080\"");
            },
            causes: &["backend.toml:", "0.0.0.0:8080 is not a loopback address"],
        },
        Case {
            name: "every IPv6 address",
            spoil: |folder| {
                folder.configure("listen = \"127.0.0.1:8080\"", "listen = \"[::]:8080\"");
            },
            causes: &["[::]:8080 is not a loopback address"],
        },
        Case {
            name: "another address",
            spoil: |folder| {
                folder.configure("listen = \"127.0.0.1:8080\"", "listen = \"192.0.2.1:8080\"");
            },
            causes: &["192.0.2.1:8080 is not a loopback address"],
        },
    ])
    .await;
}

#[tokio::test]
async fn a_backends_files_that_others_could_change_are_refused_by_check_and_start() {
    hold_all(&[
        Case {
            name: "the configuration",
            spoil: |folder| folder.mode("backend.toml", 0o622),
            causes: &["backend.toml can be changed by others"],
        },
        Case {
            name: "its folder",
            spoil: |folder| folder.mode("", 0o777),
            causes: &["agent can be changed by others (mode 0777)"],
        },
        Case {
            name: "its folder, sticky",
            spoil: |folder| folder.mode("", 0o1777),
            causes: &["agent can be changed by others (mode 1777)"],
        },
        Case {
            name: "a folder above",
            spoil: |folder| folder.mode("..", 0o777),
            causes: &["can be changed by others (mode 0777)"],
        },
        Case {
            name: "the certificate",
            spoil: |folder| folder.mode("server.crt", 0o664),
            causes: &["server.crt can be changed by others"],
        },
        Case {
            name: "the authority",
            spoil: |folder| folder.mode("ca.crt", 0o646),
            causes: &["ca.crt can be changed by others"],
        },
        Case {
            name: "the master key, which all can read",
            spoil: |folder| folder.mode("master.key", 0o644),
            causes: &["master.key can be read by others"],
        },
        Case {
            name: "the state folder",
            spoil: |folder| folder.mode("state", 0o775),
            causes: &["state can be changed by others (mode 0775)"],
        },
        Case {
            name: "the database",
            spoil: |folder| folder.mode("state/backend.sqlite", 0o666),
            causes: &["backend.sqlite can be changed by others"],
        },
        Case {
            name: "the log of the database, a link",
            spoil: |folder| {
                let wal = folder.at("state/backend.sqlite-wal");
                drop(fs::remove_file(wal));
                folder.trap("state/backend.sqlite-wal");
            },
            causes: &["backend.sqlite-wal is a link"],
        },
        Case {
            name: "the lock, a link",
            spoil: |folder| {
                drop(fs::remove_file(folder.at("state/.lock")));
                folder.trap("state/.lock");
            },
            causes: &[".lock is a link"],
        },
        Case {
            name: "a file in the state folder's place",
            spoil: |folder| {
                fs::remove_dir_all(folder.at("state")).unwrap();
                folder.write("state", "");
            },
            causes: &["state is not a folder"],
        },
        Case {
            name: "a database in a folder that is missing",
            spoil: |folder| {
                let state = "state_folder = \"state\"";
                folder.configure(
                    state,
                    &format!("{state}\nsqlite_file = \"state/no/b.sqlite\""),
                );
            },
            causes: &["state/no"],
        },
    ])
    .await;
    let links = ["backend.toml", "master.key", "state/backend.sqlite"];
    BACKEND.hold_each(&links, Folder::link, "is a link").await;
    BACKEND.hold_on_a_read_only_disk().await;
}

#[tokio::test]
async fn what_belongs_to_another_user_is_refused_by_a_backends_check_and_start() {
    if !is_root() {
        return;
    }
    let files = [
        "backend.toml",
        "",
        "..",
        "master.key",
        "server.key",
        "server.crt",
        "ca.crt",
        "ca.key",
        "state",
        "state/backend.sqlite",
    ];
    BACKEND.hold_each(&files, Folder::own, OF_STRANGER).await;
}

#[tokio::test]
async fn what_a_backend_writes_goes_through_no_link_and_into_no_open_folder() {
    let sound = Sound::new();
    let (_place, folder) = BACKEND.copy(&sound);
    folder.trap("out.key");
    let victim = folder.aside.join("victim");
    let key = |out: PathBuf| {
        let mut command = Command::new(sound.system.binaries().backend());
        command.args(["apikey", "create", "--scopes", "all", "--config"]);
        command.arg(folder.at(BACKEND.config)).arg("--out").arg(out);
        command
    };
    let said = finish(key(folder.at("out.key")), SOON).await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    fs::create_dir(folder.at("open")).unwrap();
    folder.mode("open", 0o777);
    let said = finish(key(folder.at("open/out.key")), SOON).await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(
        said.stderr.contains("can be changed by others"),
        "{said:#?}"
    );
    assert!(!folder.at("open/out.key").exists());
    let mut init = Command::new(sound.system.binaries().backend());
    init.args(["pki", "init", "--dir"])
        .arg(folder.at("open/pki"));
    let said = finish(init, SOON).await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(!folder.at("open/pki").exists());
    // A database that is a link is not used by the other verbs either.
    folder.link("state/backend.sqlite");
    let said = finish(key(folder.at("fine.key")), SOON)
        .await
        .ended_with(78);
    assert!(
        said.stderr.contains("backend.sqlite is a link"),
        "{said:#?}"
    );
    // What only looks refuses what the other does, with the same code.
    let told = ["backend.sqlite is a link", "state can be changed by others"];
    for (mode, told) in [0o700, 0o777].into_iter().zip(told) {
        folder.mode("state", mode);
        for dry_run in [&[][..], &["--dry-run"]] {
            let mut migrate = Command::new(sound.system.binaries().backend());
            migrate.arg("migrate").args(dry_run).arg("--config");
            migrate.arg(folder.at(BACKEND.config));
            let said = finish(migrate, SOON).await.ended_with(78);
            assert!(said.stderr.contains(told), "{dry_run:?}: {said:#?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_server_certificate_and_a_taken_port_are_not_the_checks() {
    let sound = Sound::new();
    let (_place, folder) = BACKEND.copy(&sound);
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let (certificate, key) = folder.issue(&params);
    folder.write("server.crt", certificate);
    folder.private("server.key", key);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let [mut check, mut run] = BACKEND.programs(&sound, &folder);
    for command in [&mut check, &mut run] {
        command.env("VIWORKS__API__LISTEN", &address);
    }
    let said = finish(check, SOON).await.ended_with(0);
    assert!(said.stderr.contains("expired at"), "{said:#?}");
    let said = finish(run, SOON).await.ended_with(69);
    assert!(said.stderr.contains("expired at"), "{said:#?}");
    assert!(said.stderr.contains(&address), "{said:#?}");
    let fix = "fix: another program listens there";
    assert!(said.stderr.contains(fix), "{said:#?}");
}
