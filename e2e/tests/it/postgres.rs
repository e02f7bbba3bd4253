//! A site on PostgreSQL: what the server does to it, and what its operator is told.

use std::time::Duration;

use serde_json::json;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::dump::note_migration_on_server as note_later_migration;
use viworks_testkit::gateway::{ONCE, local_request, mark_starts, started};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::eventually;
use viworks_testkit::thief::Thief;

use crate::verb::backend;

const STREAM: &str = "app.pump";

fn database(own: &Own) -> viworks_testkit::postgres::Database {
    own.server().make_empty("viworks");
    own.server().database("viworks")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_costs_no_command_and_no_record() {
    let Some(mut own) = Own::start() else { return };
    let mut system = Deployment::on(Binaries::shipped(), database(&own));
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let mut runs = Vec::new();
    let mut fed = 0;
    for round in 0..4 {
        for number in 0..5 {
            runs.push(
                system
                    .submit(ONCE, &format!("before-{round}-{number}"))
                    .await,
            );
        }
        let record = json!({"stream": STREAM, "observed_at": SystemClock.wall().to_string(), "fields": {"bar": round}});
        let records = json!({ "records": vec![record; 50] });
        let (status, answer) = local_request(&folder, "POST", "/v1/telemetry", &records)
            .await
            .unwrap();
        assert_eq!(status, 200, "{answer}");
        fed += 50;
        own.kill();
        // Whoever asks meanwhile is told so, and has lost nothing.
        let (status, body) = system.request("GET", "/v1/gateways", None).await.unwrap();
        assert!(status == 503 || status == 200, "{status} {body}");
        own.start_again();
    }
    for run in &runs {
        let run = system.finished(run).await;
        assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
    }
    eventually("every record is stored", PATIENCE, async || {
        (system.stored_telemetry(STREAM).records == fed).then_some(())
    })
    .await;
    let stored = system.stored_telemetry(STREAM);
    assert_eq!((stored.keys, stored.in_gaps), (fed, 0));
    let marks = started(&folder);
    assert_eq!(marks.len(), runs.len());
    assert!(marks.values().all(|times| *times == 1), "{marks:?}");
    eventually("health is well again", PATIENCE, async || {
        let (status, health) = system.request("GET", "/v1/health", None).await.ok()?;
        (status == 200 && health.to_string().contains("postgres, schema 14")).then_some(())
    })
    .await;
    drop(gateway);
    assert!(system.backend().stop(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_goes_on_where_its_database_is() {
    let Some(own) = Own::start() else { return };
    let mut system = Deployment::on(Binaries::shipped(), database(&own));
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    let mut runs = Vec::new();
    let mut gateway = None;
    for round in 0..3 {
        system.start_backend(Start::default()).await;
        if gateway.is_none() {
            gateway = Some(system.start_gateway(&folder, Start::default()));
            system.online("gw-1").await;
        }
        for number in 0..5 {
            runs.push(system.submit(ONCE, &format!("run-{round}-{number}")).await);
        }
        system.kill_backend();
    }
    system.start_backend(Start::default()).await;
    for run in &runs {
        system.finished(run).await;
    }
    let marks = started(&folder);
    assert!(marks.values().all(|times| *times == 1), "{marks:?}");
    for command in system.stored_commands() {
        let ran = marks.contains_key(&command.id);
        assert!(
            command.state == "succeeded" && ran || command.state == "indeterminate",
            "{command:?} {ran}"
        );
    }
    // Tools work beside it.
    let listed = backend(&system, &["apikey", "ls"]).await.ended_with(0);
    assert!(listed.stdout.contains("tests"), "{listed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn migrations_are_a_step_of_their_own_and_what_is_wrong_is_said_in_one_sentence() {
    let Some(mut own) = Own::start() else { return };
    let system = Deployment::new(Binaries::shipped());
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    let store = |lines: &str| {
        std::fs::write(
            system.backend_config(),
            format!("{written}\n[store]\n{lines}\n"),
        )
        .unwrap();
    };
    own.server().make_empty("viworks");
    let url = own.server().url("viworks");
    store(&format!("url = \"{url}\"\nmigrate_at_start = false"));
    let listed = backend(&system, &["migrate", "--dry-run"])
        .await
        .ended_with(0);
    assert!(
        listed
            .stdout
            .contains("would apply 0001 create system of record\nwould apply 0002 "),
        "{listed:#?}"
    );
    // Nobody can have begun to use it.
    assert!(!listed.stdout.contains("backends"), "{listed:#?}");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(own.server().psql("viworks", tables).unwrap(), "0");
    let refused = backend(&system, &["serve"]).await.ended_with(78);
    assert!(
        refused.stderr.contains("viworks-backend-agent migrate"),
        "{refused:#?}"
    );
    let tried = backend(&system, &["check-config", "--connect"])
        .await
        .ended_with(78);
    assert!(
        tried
            .stderr
            .contains("14 migrations of the schema are not applied"),
        "{tried:#?}"
    );
    let done = backend(&system, &["migrate"]).await.ended_with(0);
    assert!(done.stdout.contains("postgres schema 14"), "{done:#?}");
    let listed = backend(&system, &["migrate", "--dry-run"])
        .await
        .ended_with(0);
    assert!(listed.stdout.contains("up to date"), "{listed:#?}");
    let tried = backend(&system, &["check-config", "--connect"])
        .await
        .ended_with(0);
    assert!(
        tried.stdout.contains("the schema is up to date"),
        "{tried:#?}"
    );
    for (lines, code, said) in [
        (
            "url = \"postgres://vw:hunter2@127.0.0.1/viworks\"".to_owned(),
            78,
            "holds a password",
        ),
        (
            "url = \"postgres://vw@db.example.net/viworks?sslmode=require\"".to_owned(),
            78,
            "verify-full",
        ),
        (
            "url = \"mysql://vw@127.0.0.1/viworks\"".to_owned(),
            78,
            "not a URL of a PostgreSQL database",
        ),
        (
            format!("url = \"{}\"", url.replace("/viworks?", "/absent?")),
            78,
            "does not exist",
        ),
        (
            format!("url = \"{}\"", url.replace("viworks@", "stranger@")),
            78,
            "refuses us",
        ),
    ] {
        store(&lines);
        let refused = backend(&system, &["check-config", "--connect"])
            .await
            .ended_with(code);
        assert!(refused.stderr.contains(said), "{said}: {refused:#?}");
        assert!(!refused.stderr.contains("hunter2"), "{refused:#?}");
    }
    is_refused_by_all_alike(&own, &system, &store).await;
    store(&format!("url = \"{url}\""));
    own.kill();
    for verb in [&["serve"][..], &["check-config", "--connect"], &["migrate"]] {
        let refused = backend(&system, verb).await.ended_with(69);
        assert!(
            refused.stderr.contains("cannot be used at the moment"),
            "{verb:?} {refused:#?}"
        );
        assert!(refused.took < Duration::from_secs(20), "{refused:#?}");
    }
    std::fs::write(system.backend_config(), &written).unwrap();
    let listed = backend(&system, &["migrate", "--dry-run"])
        .await
        .ended_with(0);
    assert!(listed.stdout.contains("up to date"), "{listed:#?}");
}

/// What a start refuses, the check refuses with the same words, and neither changes anything.
async fn is_refused_by_all_alike(own: &Own, system: &Deployment, store: &(impl Fn(&str) + Sync)) {
    let server = own.server();
    let url = server.url("viworks");
    server.make_empty("fresh");
    let fresh = server.url("fresh");
    for statement in [
        "CREATE ROLE reader LOGIN",
        "CREATE ROLE frozen LOGIN SUPERUSER",
        "ALTER ROLE frozen SET default_transaction_read_only = on",
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
        "CREATE DATABASE newer TEMPLATE viworks",
        "CREATE DATABASE other",
        "CREATE DATABASE alike",
    ] {
        server.psql("postgres", statement).unwrap();
    }
    note_later_migration(&server.database("newer"), 9999, None);
    // Other products, one of which notes its migrations where we do.
    let notes = "CREATE TABLE notes (text text)";
    server.psql("other", notes).unwrap();
    let migrated = "CREATE TABLE notes (text text); CREATE TABLE _sqlx_migrations (version bigint, description text, \
                    installed_on timestamptz DEFAULT now(), success boolean, checksum bytea, execution_time bigint); \
                    INSERT INTO _sqlx_migrations VALUES (1, 'notes', now(), true, '\\x01', 0)";
    server.psql("alike", migrated).unwrap();
    let standby = own.standby("second");
    // Somebody else listens there.
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = stranger.local_addr().unwrap().port();
    let _answering = std::thread::spawn(move || {
        for heard in stranger.incoming().flatten() {
            let mut heard = heard;
            // Whoever went away hears nothing.
            let _gone = std::io::Write::write_all(&mut heard, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    for (url, said) in [
        (
            fresh.replace("viworks@", "reader@"),
            "the user reader may make no tables",
        ),
        (url.replace("viworks@", "frozen@"), "takes no writes"),
        (standby.server().url("viworks"), "the server is a standby"),
        (server.url("latin"), "createdb -E UTF8"),
        (
            server.url("newer"),
            "use the newer program or restore a backup",
        ),
        (
            server.url("other"),
            "holds 1 table of something else; name an empty database",
        ),
        (
            server.url("alike"),
            "holds 1 table of something else; name an empty database",
        ),
        (
            format!("postgres://viworks@127.0.0.1:{port}/viworks"),
            "is no PostgreSQL server",
        ),
    ] {
        store(&format!("url = \"{url}\""));
        for verb in [&["serve"][..], &["check-config", "--connect"]] {
            let refused = backend(system, verb).await.ended_with(78);
            assert!(
                refused.stderr.contains(said),
                "{verb:?} {said}: {refused:#?}"
            );
        }
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    for (database, count) in [("other", "1"), ("alike", "2")] {
        assert_eq!(server.psql(database, tables).unwrap(), count, "{database}");
    }
    // The embedded database has a gateway.
    store("");
    let _folder = system.issue("gw-embedded");
    store(&format!("url = \"{fresh}\""));
    for verb in [
        &["serve"][..],
        &["check-config", "--connect"],
        &["migrate", "--dry-run"],
        &["migrate"],
    ] {
        let refused = backend(system, verb).await.ended_with(78);
        assert!(
            refused.stderr.contains("has no gateway yet"),
            "{verb:?} {refused:#?}"
        );
        assert_eq!(server.psql("fresh", tables).unwrap(), "0", "{verb:?}");
    }
}

/// A certificate for `name`, with its own authority: the chain, its key, and the authority.
pub(crate) fn certificate(name: &str) -> (String, String, String) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::from_params(&authority, &authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let server = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let server = server.signed_by(&key, &issuer).unwrap();
    (
        server.pem(),
        key.serialize_pem(),
        authority_certificate.pem(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_verified_and_its_password_comes_from_a_file() {
    let Some(mut own) = Own::start() else { return };
    own.server().make_empty("viworks");
    let (chain, key, authority) = certificate("localhost");
    own.secure(&chain, &key, "correct horse");
    let system = Deployment::new(Binaries::shipped());
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    let folder = system.path().join("backend");
    std::fs::write(folder.join("database-ca.pem"), authority).unwrap();
    let (_, _, stranger) = certificate("localhost");
    std::fs::write(folder.join("stranger-ca.pem"), stranger).unwrap();
    let password = folder.join("database.password");
    let port = own.server().port();
    for (host, authority, secret, code, said) in [
        ("localhost", "database-ca.pem", "correct horse\n", 0, ""),
        (
            "localhost",
            "database-ca.pem",
            "battery staple",
            78,
            "password authentication failed",
        ),
        (
            "localhost",
            "stranger-ca.pem",
            "correct horse",
            78,
            "could not be verified",
        ),
        (
            "127.0.0.1",
            "database-ca.pem",
            "correct horse",
            78,
            "could not be verified",
        ),
    ] {
        drop(std::fs::remove_file(&password));
        viworks_runtime::files::write_new(&password, secret.as_bytes(), 0o600).unwrap();
        let url = format!("postgres://viworks@{host}:{port}/viworks?sslmode=verify-full");
        let store = format!(
            "{written}\n[store]\nurl = \"{url}\"\npassword_file = \"database.password\"\nca_file = \"{authority}\"\n"
        );
        std::fs::write(system.backend_config(), store).unwrap();
        let tried = backend(&system, &["check-config", "--connect"])
            .await
            .ended_with(code);
        assert!(tried.stderr.contains(said), "{tried:#?}");
        assert!(!tried.stderr.contains("battery"), "{tried:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_moves_to_a_server_and_no_gateway_joins_again() {
    let Some(own) = Own::start() else { return };
    own.server().make_empty("viworks");
    let url = own.server().url("viworks");
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let before = system.submit(ONCE, "before").await;
    system.finished(&before).await;
    let busy = backend(&system, &["migrate-store", "--to", &url]).await;
    assert!(
        busy.code != Some(0) && busy.stderr.contains("is in use by process"),
        "{busy:#?}"
    );
    assert!(system.backend().stop(PATIENCE).await.success());
    let moved = backend(&system, &["migrate-store", "--to", &url])
        .await
        .ended_with(0);
    assert!(
        moved.stdout.contains("gateways") && moved.stdout.contains("equal"),
        "{moved:#?}"
    );
    assert!(
        moved
            .stdout
            .contains("everything is in viworks at 127.0.0.1"),
        "{moved:#?}"
    );
    let again = backend(&system, &["migrate-store", "--to", &url, "--verify"]).await;
    let _equal = again.ended_with(0);
    // The old file is not the site any more.
    for verb in [&["serve"][..], &["check-config"], &["apikey", "ls"]] {
        let refused = backend(&system, verb).await.ended_with(78);
        assert!(
            refused.stderr.contains("has moved to viworks at 127.0.0.1"),
            "{verb:?} {refused:#?}"
        );
    }
    system
        .start_backend(Start::default().with("VIWORKS__STORE__URL", &url))
        .await;
    system.online("gw-1").await;
    let run = system.get(&format!("/v1/runs/{before}")).await;
    assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
    let after = system.submit(ONCE, "after").await;
    system.finished(&after).await;
    assert_eq!(started(&folder).len(), 2);
    drop(gateway);
    assert!(system.backend().stop(PATIENCE).await.success());
    // Nor is it moved again from where the configuration says that the site is elsewhere.
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    let named = format!("{written}\n[store]\nurl = \"{url}\"\n");
    std::fs::write(system.backend_config(), named).unwrap();
    own.server().make_empty("third");
    let third = own.server().url("third");
    let refused = backend(&system, &["migrate-store", "--to", &third]).await;
    let refused = refused.ended_with(78);
    assert!(refused.stderr.contains("names viworks at"), "{refused:#?}");
    std::fs::write(system.backend_config(), &written).unwrap();
    // And where there is no file, there is no site.
    let state = system.path().join("nowhere");
    let nowhere = [
        "migrate-store",
        "--to",
        &third,
        "--state-folder",
        state.to_str().unwrap(),
    ];
    let refused = backend(&system, &nowhere).await.ended_with(78);
    assert!(refused.stderr.contains("holds no site"), "{refused:#?}");
    let elsewhere = own.server().url("absent");
    let refused = backend(&system, &["migrate-store", "--to", &elsewhere]).await;
    assert!(refused.code == Some(78), "{refused:#?}");
}

/// The commit happens and its answer is lost, while the command may have been offered to its gateway's session already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submission_whose_answer_is_lost_is_settled_by_the_next_session() {
    let Some(own) = Own::start() else { return };
    let thief = Thief::before(own.server().port()).await.unwrap();
    let database = database(&own).behind(thief.port());
    let mut system = Deployment::on(Binaries::shipped(), database);
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let mut lost = 0;
    for number in 0..20 {
        let body = json!({"command": ONCE, "targets": {"gateways": ["gw-1"]}});
        let key = format!("lost-{number}");
        thief.arm_for(ONCE);
        let (status, answer) = system.submit_once(&body, &key).await;
        if status == 503
            && answer
                .to_string()
                .contains("whether it was done is not known")
        {
            lost += 1;
        }
        let run = eventually("it is accepted", PATIENCE, async || {
            let (status, answer) = system.submit_once(&body, &key).await;
            (200..300).contains(&status).then_some(answer)
        })
        .await;
        let run = system.finished(run["id"].as_str().unwrap()).await;
        assert_eq!(run["counts"], json!({"succeeded": 1}), "{run}");
        system.online("gw-1").await;
        if lost == 3 {
            break;
        }
    }
    assert_eq!(lost, 3, "of {} stolen answers", thief.stolen());
    let marks = started(&folder);
    assert!(marks.values().all(|times| *times == 1), "{marks:?}");
    drop(gateway);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_site_is_not_left_for_an_empty_database() {
    let Some(own) = Own::start() else { return };
    let url = database(&own).url();
    let mut system = Deployment::new(Binaries::shipped());
    let _folder = system.issue("gw-1");
    let written = std::fs::read_to_string(system.backend_config()).unwrap();
    std::fs::write(
        system.backend_config(),
        format!("{written}\n[store]\nurl = \"{url}\"\n"),
    )
    .unwrap();
    let refused = backend(&system, &["serve"]).await.ended_with(78);
    assert!(
        refused.stderr.contains("migrate-store --to"),
        "{refused:#?}"
    );
    let _moved = {
        std::fs::write(system.backend_config(), &written).unwrap();
        backend(&system, &["migrate-store", "--to", &url])
            .await
            .ended_with(0)
    };
    system
        .start_backend(Start::default().with("VIWORKS__STORE__URL", &url))
        .await;
    assert_eq!(system.get("/v1/gateways").await["items"][0]["name"], "gw-1");
}
