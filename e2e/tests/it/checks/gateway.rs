//! Every way to spoil a gateway's folder, and what its check and its start say of it.

use viworks_gateway_agent::journal::Journal;

use super::*;

async fn hold_all(cases: &[Case]) {
    GATEWAY.hold_all(cases).await;
}

const ENCRYPTED: &str =
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";

#[tokio::test]
async fn a_gateways_broken_key_material_is_named_by_check_and_start() {
    hold_all(&[
        Case {
            name: "another gateway's key",
            spoil: |folder| folder.private("gateway.key", folder.sound("gateways/gw-2/gateway.key")),
            causes: &["gateway.key", "does not fit", "gateway.toml:"],
        },
        Case {
            name: "another gateway's identity file",
            spoil: |folder| {
                folder.private("identity.json", folder.sound("gateways/gw-2/identity.json"));
            },
            causes: &["identity.json", "but the certificate is of"],
        },
        Case {
            name: "an encrypted key",
            spoil: |folder| folder.write("gateway.key", ENCRYPTED),
            causes: &["gateway.key", "encrypted", "openssl"],
        },
        Case {
            name: "an encrypted key of the older form",
            spoil: |folder| {
                folder.write(
                    "gateway.key",
                    "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMIIB\n-----END EC PRIVATE KEY-----\n",
                );
            },
            causes: &["gateway.key", "encrypted"],
        },
        Case {
            name: "a certificate as key",
            spoil: |folder| folder.write("gateway.key", folder.read("gateway.crt")),
            causes: &["gateway.key", "a certificate instead of a private key"],
        },
        Case {
            name: "an empty key",
            spoil: |folder| folder.write("gateway.key", ""),
            causes: &["gateway.key", "0 private keys"],
        },
        Case {
            name: "two keys",
            spoil: |folder| folder.write("gateway.key", folder.read("gateway.key").repeat(2)),
            causes: &["gateway.key", "2 private keys"],
        },
        Case {
            name: "a broken key",
            spoil: |folder| {
                let text = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
                folder.write("gateway.key", text);
            },
            causes: &["gateway.key", "cannot be used"],
        },
        Case {
            name: "half a certificate",
            spoil: |folder| {
                let text = folder.read("gateway.crt");
                folder.write("gateway.crt", text.split_at(300).0);
            },
            causes: &["gateway.crt", "PEM"],
        },
        Case {
            name: "a block that would be skipped",
            spoil: |folder| folder.write("gateway.crt", format!("  {}", folder.read("gateway.crt"))),
            causes: &["gateway.crt", "2 blocks of certificates", "only 1"],
        },
        Case {
            name: "what is no certificate",
            spoil: |folder| {
                let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
                folder.write("gateway.crt", text);
            },
            causes: &["gateway.crt", "cannot be read"],
        },
        Case {
            name: "the authority's certificate",
            spoil: |folder| {
                folder.write("gateway.crt", folder.sound("backend/ca.crt"));
                folder.private("gateway.key", folder.sound("backend/ca.key"));
            },
            causes: &["gateway.crt", "authority's"],
        },
        Case {
            name: "a server's certificate",
            spoil: |folder| {
                folder.write("gateway.crt", folder.sound("backend/server.crt"));
                folder.private("gateway.key", folder.sound("backend/server.key"));
            },
            causes: &["gateway.crt", "not for client authentication"],
        },
        Case {
            name: "a key beside a certificate that all can read",
            spoil: |folder| {
                let both = format!("{}{}", folder.read("gateway.crt"), folder.read("gateway.key"));
                folder.write("gateway.crt", both);
            },
            causes: &["gateway.crt", "private key", "read by others"],
        },
        Case {
            name: "an authority file without certificates",
            spoil: |folder| folder.write("ca.crt", "# nothing yet\n"),
            causes: &["ca.crt", "holds no certificate"],
        },
        Case {
            name: "an authority file with a gateway's certificate",
            spoil: |folder| {
                let chain = folder.read("gateway.crt");
                let end = "-----END CERTIFICATE-----\n";
                let leaf = format!("{}{end}", chain.split_once(end).unwrap().0);
                folder.write("ca.crt", leaf);
            },
            causes: &["ca.crt", "no authority's certificate"],
        },
        Case {
            name: "half an identity file",
            spoil: |folder| {
                let text = folder.read("identity.json");
                folder.write("identity.json", text.split_at(50).0);
            },
            causes: &["identity.json", "not an identity file"],
        },
        Case {
            name: "a secret of the wrong length",
            spoil: |folder| {
                let text = folder.read("identity.json");
                folder.write("identity.json", text.replace("\"token\": \"", "\"token\": \"00"));
            },
            causes: &["identity.json", "64 hexadecimal digits"],
        },
        Case {
            name: "everything at once",
            spoil: |folder| {
                folder.write("gateway.key", ENCRYPTED);
                folder.write("ca.crt", "");
                folder.mark("identity.json");
                folder.write("commands.d/10.toml", "nonsense");
                folder.configure("[outbound]", "[gateway]\nlabls = 1\n[outbound]");
                folder.trap("state/audit.log");
                folder.mode("state", 0o700);
            },
            causes: &[
                "encrypted",
                "holds no certificate",
                "byte-order mark",
                "10.toml:1",
                "labls",
                "audit.log is a link",
            ],
        },
    ])
    .await;
}

#[tokio::test]
async fn a_file_that_is_missing_is_named_once_by_a_gateways_check_and_start() {
    let files = ["gateway.key", "gateway.crt", "ca.crt", "identity.json"];
    GATEWAY.hold_each_missing(&files).await;
}

#[tokio::test]
async fn a_byte_order_mark_is_named_by_a_gateways_check_and_start() {
    let files = [
        "gateway.key",
        "gateway.crt",
        "ca.crt",
        "identity.json",
        "gateway.toml",
        "commands.d/10.toml",
    ];
    let words = "begins with a byte-order mark";
    GATEWAY.hold_each(&files, Folder::mark, words).await;
}

#[tokio::test]
async fn a_gateways_broken_catalogue_and_socket_are_named_by_check_and_start() {
    hold_all(&[
        Case {
            name: "a mistake",
            spoil: |folder| folder.write("commands.d/10.toml", "[[command]]\nargw = []\n"),
            causes: &["10.toml:", "argw"],
        },
        Case {
            name: "a missing folder",
            spoil: |folder| {
                folder.configure("allow_own_commands = \"for_demo_only\"", "");
                fs::remove_dir_all(folder.at("commands.d")).unwrap();
            },
            causes: &["commands.d"],
        },
        Case {
            name: "a file in its place",
            spoil: |folder| {
                fs::remove_dir_all(folder.at("commands.d")).unwrap();
                folder.write("commands.d", "");
            },
            causes: &["commands.d", "not a folder"],
        },
        Case {
            name: "a file that others can change",
            spoil: |folder| folder.mode("commands.d/10.toml", 0o666),
            causes: &["10.toml can be changed by others (mode 0666)"],
        },
        Case {
            name: "a folder that others can change",
            spoil: |folder| folder.mode("commands.d", 0o775),
            causes: &["commands.d can be changed by others (mode 0775)"],
        },
        Case {
            name: "a sticky folder",
            spoil: |folder| folder.mode("commands.d", 0o1777),
            causes: &["commands.d can be changed by others (mode 1777)"],
        },
        Case {
            name: "a link",
            spoil: |folder| folder.link("commands.d/10.toml"),
            causes: &["10.toml is a link"],
        },
        Case {
            name: "a socket path that is too long",
            spoil: |folder| {
                let socket = format!("[gateway]\nsocket = \"{}\"\n[outbound]", "s".repeat(120));
                folder.configure("[outbound]", &socket);
            },
            causes: &["gateway.toml:", "socket", "too long"],
        },
        Case {
            name: "a file in the socket's place",
            spoil: |folder| {
                folder.configure("[outbound]", "[gateway]\nsocket = \"plain\"\n[outbound]");
                folder.write("plain", "");
            },
            causes: &["plain is not a socket"],
        },
        Case {
            name: "the key in the socket's place",
            spoil: |folder| {
                folder.configure(
                    "[outbound]",
                    "[gateway]\nsocket = \"gateway.key\"\n[outbound]",
                );
            },
            causes: &[
                "socket and key_file: ",
                "gateway.key is not a socket, and is left as it is",
            ],
        },
        Case {
            name: "no folder for the socket",
            spoil: |folder| {
                folder.configure(
                    "[outbound]",
                    "[gateway]\nsocket = \"no/api.sock\"\n[outbound]",
                );
            },
            causes: &["the folder of the socket is missing"],
        },
        Case {
            name: "a socket that others could exchange",
            spoil: |folder| {
                fs::create_dir(folder.at("open")).unwrap();
                folder.mode("open", 0o1777);
                folder.configure(
                    "[outbound]",
                    "[gateway]\nsocket = \"open/api.sock\"\n[outbound]",
                );
            },
            causes: &["open can be changed by others (mode 1777)"],
        },
    ])
    .await;
}

#[tokio::test]
async fn a_gateways_files_that_others_could_change_are_refused_by_check_and_start() {
    hold_all(&[
        Case {
            name: "the configuration",
            spoil: |folder| folder.mode("gateway.toml", 0o666),
            causes: &[
                "gateway.toml can be changed by others (mode 0666)",
                "chmod go-w",
            ],
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
            spoil: |folder| folder.mode("gateway.crt", 0o664),
            causes: &["gateway.crt can be changed by others"],
        },
        Case {
            name: "the authority",
            spoil: |folder| folder.mode("ca.crt", 0o646),
            causes: &["ca.crt can be changed by others"],
        },
        Case {
            name: "the state folder",
            spoil: |folder| {
                fs::create_dir(folder.at("state")).unwrap();
                folder.mode("state", 0o770);
            },
            causes: &["state can be changed by others (mode 0770)"],
        },
        Case {
            name: "the key, which all can read",
            spoil: |folder| folder.mode("gateway.key", 0o644),
            causes: &["gateway.key can be read by others (mode 0644)", "chmod 600"],
        },
    ])
    .await;
}

#[tokio::test]
async fn a_gateways_links_are_refused_by_check_and_start() {
    let there = [
        "gateway.toml",
        "gateway.key",
        "gateway.crt",
        "ca.crt",
        "identity.json",
    ];
    GATEWAY.hold_each(&there, Folder::link, "is a link").await;
    let written = [
        "state/audit.log",
        "state/journal.db",
        "state/journal.db-wal",
        "state/spool.db",
        "state/journal.db.reserve",
        "state/pins.json",
        "state/renewal.key",
        "state/renewal.pem",
        "state/renewed.pem",
        "state/renewed-before.pem",
        "state/agent_keys.json",
        "state/authorities.pem",
        "state/install_id",
        "state/.lock",
    ];
    GATEWAY.hold_each(&written, Folder::trap, "is a link").await;
}

#[tokio::test]
async fn a_gateways_broken_state_is_named_by_check_and_start() {
    hold_all(&[
        Case {
            name: "a file in its place",
            spoil: |folder| folder.write("state", ""),
            causes: &["state is not a folder"],
        },
        Case {
            name: "an installation id that is none",
            spoil: |folder| {
                fs::create_dir(folder.at("state")).unwrap();
                folder.private("state/install_id", "x\n");
            },
            causes: &["install_id holds no installation id"],
        },
        Case {
            name: "a folder in a file's place",
            spoil: |folder| fs::create_dir_all(folder.at("state/audit.log")).unwrap(),
            causes: &["audit.log is not a regular file"],
        },
        Case {
            name: "a journal that is no database",
            spoil: |folder| {
                fs::create_dir(folder.at("state")).unwrap();
                folder.private("state/journal.db", [b'x'; 8192]);
            },
            causes: &["journal.db is damaged", "docs/errors/identity_fork.md"],
        },
    ])
    .await;
    GATEWAY.hold_on_a_read_only_disk().await;
}

/// A start reads none of the pages that are damaged here.
#[tokio::test]
async fn damage_that_a_start_does_not_meet_is_found_by_a_gateways_check() {
    let sound = Sound::new();
    let (_place, folder) = GATEWAY.copy(&sound);
    fs::create_dir(folder.at("state")).unwrap();
    folder.mode("state", 0o700);
    let journal = Journal::open(&folder.at("state/journal.db"), 8).await;
    journal.unwrap().close().await.unwrap();
    folder.tear_the_middle("state/journal.db");
    let there = || fs::read_dir(folder.at("state")).unwrap().count();
    let before = there();
    let [check, _start] = GATEWAY.programs(&sound, &folder);
    let said = finish(check, SOON).await.ended_with(78);
    assert!(said.stderr.contains("journal.db is damaged"), "{said:#?}");
    let fix = "docs/errors/identity_fork.md";
    assert!(said.stderr.contains(fix), "{said:#?}");
    assert_eq!(there(), before);
}

#[tokio::test]
async fn what_belongs_to_another_user_is_refused_by_a_gateways_check_and_start() {
    if !is_root() {
        return;
    }
    let files = [
        "gateway.toml",
        "",
        "..",
        "gateway.key",
        "gateway.crt",
        "ca.crt",
        "identity.json",
        "commands.d",
        "commands.d/10.toml",
    ];
    GATEWAY.hold_each(&files, Folder::own, OF_STRANGER).await;
    hold_all(&[
        Case {
            name: "the state folder",
            spoil: |folder| {
                fs::create_dir(folder.at("state")).unwrap();
                folder.own("state");
            },
            causes: &["state", OF_STRANGER],
        },
        Case {
            name: "a state folder behind a link",
            spoil: |folder| {
                chown(&folder.aside, Some(STRANGER), None).unwrap();
                symlink(&folder.aside, folder.at("state")).unwrap();
            },
            causes: &["aside", OF_STRANGER],
        },
        Case {
            name: "the pins",
            spoil: |folder| {
                fs::create_dir(folder.at("state")).unwrap();
                folder.private("state/pins.json", "{}");
                folder.own("state/pins.json");
            },
            causes: &["pins.json", OF_STRANGER],
        },
    ])
    .await;
}

/// A gateway's certificate with other dates, of the identity in the folder.
fn dated(folder: &Folder, years: std::ops::Range<i32>) {
    let identity: serde_json::Value = serde_json::from_str(&folder.read("identity.json")).unwrap();
    let field = |name: &str| identity[name].as_str().unwrap().to_owned();
    let uri = format!(
        "spiffe://{}/tenant/{}/gateway/{}",
        field("trust_domain"),
        field("tenant"),
        field("agent_id")
    );
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date_time_ymd(years.start, 1, 1);
    params.not_after = date_time_ymd(years.end, 1, 1);
    let (certificate, key) = folder.issue(&params);
    folder.write("gateway.crt", certificate);
    folder.private("gateway.key", key);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_out_of_its_time_is_a_warning_of_check_and_start() {
    let sound = Sound::new();
    for (years, word, fix) in [
        (2020..2021, "expired at", "signed for its key by hand"),
        (
            2090..2091,
            "is not valid before",
            "set this machine's clock",
        ),
    ] {
        let (_place, folder) = GATEWAY.copy(&sound);
        dated(&folder, years);
        let [check, mut run] = GATEWAY.programs(&sound, &folder);
        let said = finish(check, SOON).await.ended_with(0);
        assert!(said.stderr.contains(word), "{said:#?}");
        assert!(said.stderr.contains(fix), "{said:#?}");
        assert!(said.stdout.contains("is valid"), "{said:#?}");
        let mut running = Process::start(&mut run, &folder.at("log")).unwrap();
        eventually("the start warns as well", PATIENCE, async || {
            running.log().contains(word).then_some(())
        })
        .await;
        eventually("it serves", PATIENCE, async || {
            folder.at("state/api.sock").exists().then_some(())
        })
        .await;
        assert!(running.stop(PATIENCE).await.success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_gateway_is_valid_leaves_no_trace_and_starts() {
    let sound = Sound::new();
    let (_place, folder) = GATEWAY.copy(&sound);
    // Blanks, a folder above that all may write, and a link to a folder.
    fs::create_dir(folder.at("with blank")).unwrap();
    symlink("with blank", folder.at("linked")).unwrap();
    folder.configure(
        "[outbound]",
        "[gateway]\nstate_folder = \"linked/state\"\n[outbound]",
    );
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let before = names(&folder.path);
    let [check, mut run] = GATEWAY.programs(&sound, &folder);
    let said = finish(check, SOON).await.ended_with(0);
    assert!(said.stdout.contains("is valid"), "{said:#?}");
    assert_eq!(names(&folder.path), before);
    assert!(names(&folder.at("with blank")).is_empty());
    let mut running = Process::start(&mut run, &folder.aside.join("log")).unwrap();
    eventually("it serves", PATIENCE, async || {
        folder.at("linked/state/api.sock").exists().then_some(())
    })
    .await;
    // A check beside a running agent finds nothing wrong with it.
    let [check, _] = GATEWAY.programs(&sound, &folder);
    drop(finish(check, SOON).await.ended_with(0));
    assert!(running.stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_that_another_user_swaps_while_it_is_read_is_never_taken() {
    if !is_root() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    // The other user must be able to get there.
    for path in [
        system.path().to_owned(),
        system.path().join("gateways"),
        folder.clone(),
    ] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let commands = folder.join("commands.d");
    fs::create_dir(&commands).unwrap();
    fs::write(commands.join("10.toml"), GOOD_COMMAND).unwrap();
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    let before = system.online("gw-1").await["catalogue_digest"].clone();

    fs::set_permissions(&commands, Permissions::from_mode(0o1777)).unwrap();
    let evil = folder.join("evil");
    fs::create_dir(&evil).unwrap();
    fs::write(
        evil.join("evil.toml"),
        GOOD_COMMAND.replace("test.good", "test.evil"),
    )
    .unwrap();
    chown(&evil, Some(STRANGER), None).unwrap();
    chown(evil.join("evil.toml"), Some(STRANGER), None).unwrap();
    // A link that leads to root's own file when it is looked at, and to another one when it is opened.
    let script = "while :; do ln -sfn \"$1/10.toml\" \"$1/20.toml\"; ln -sfn \"$2/evil.toml\" \"$1/20.toml\"; done";
    let mut swap = Command::new("sh");
    swap.args(["-c", script, "sh"]).arg(&commands).arg(&evil);
    std::os::unix::process::CommandExt::uid(&mut swap, STRANGER);
    let mut swapping = Process::start(&mut swap, &folder.join("swap.log")).unwrap();
    eventually("the link is there", PATIENCE, async || {
        commands.join("20.toml").symlink_metadata().ok().map(drop)
    })
    .await;
    for reload in 1..=400 {
        gateway.signal(rustix::process::Signal::HUP);
        eventually("the reload is over", PATIENCE, async || {
            let log = gateway.log();
            assert!(!log.contains("read the catalogue again"), "{log}");
            (log.matches("the one in force stays").count() >= reload).then_some(())
        })
        .await;
    }
    swapping.kill();
    let after = system.online("gw-1").await["catalogue_digest"].clone();
    assert_eq!(after, before);
    assert!(gateway.stop(PATIENCE).await.success());
}
