//! Demos whose backend keeps its data on a database server of their own.

use std::path::Path;

use rustix::process::Signal;
use viworks_testkit::deployment::{PATIENCE, text};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Process, eventually, finish};
use viworks_testkit::small_disk;

use super::{Place, assert_three_answers, is_root, signal};

const ON_A_SERVER: [&str; 3] = ["--once", "--stores", "postgres"];

/// As whoever runs this, and as a user without rights where that can be had.
fn places() -> Vec<Place> {
    let mut places = vec![Place::new()];
    if is_root() {
        places.push(Place::of_nobody());
    }
    places
}

/// One that has ended and that nobody has asked about has no command line.
fn is_running(pid: u32) -> bool {
    let file = Path::new("/proc").join(pid.to_string()).join("cmdline");
    std::fs::read(file).is_ok_and(|line| !line.is_empty())
}

#[tokio::test]
async fn a_demo_on_a_server_comes_up_again_with_its_data_and_starts_over_when_told_so() {
    if !Own::is_installed() {
        return;
    }
    for place in places() {
        let said = place.up(&ON_A_SERVER).await.ended_with(0);
        assert_three_answers(&said);
        assert!(said.stderr.contains("PostgreSQL + in-process"), "{said:#?}");
        for step in ["✓ database", "✓ second backend"] {
            assert!(said.stderr.contains(step), "{said:#?}");
        }
        place.assert_nothing_runs();
        let files = std::fs::canonicalize(place.data().join("postgres")).unwrap();
        assert!(files.join("data/PG_VERSION").is_file());

        // What it has is what it goes on with.
        let said = place.up(&["--once"]).await.ended_with(0);
        assert_three_answers(&said);
        assert!(said.stderr.contains("PostgreSQL + in-process"), "{said:#?}");
        let refused = place.up(&["--once", "--stores", "sqlite"]).await;
        let refused = refused.ended_with(6);
        assert!(
            refused.stderr.contains("--reset --stores sqlite"),
            "{refused:#?}"
        );
        let other = ["--once", "--reset", "--stores", "sqlite"];
        let said = place.up(&other).await.ended_with(0);
        assert_three_answers(&said);
        assert!(said.stderr.contains("SQLite + in-process"), "{said:#?}");
        assert!(!files.exists(), "{files:?}");
        assert!(!place.data().join("backend-2").exists());
        place.assert_nothing_runs();
        let refused = place.up(&ON_A_SERVER).await.ended_with(6);
        assert!(refused.stderr.contains("keeps its data in SQLite"));
    }
}

#[tokio::test]
async fn a_demo_on_a_server_ends_with_it_however_it_is_stopped() {
    if !Own::is_installed() {
        return;
    }
    for place in places() {
        let mut up = place.stay_with(&["--stores", "postgres"]).await;
        let started = place.written_down();
        let server = started["postgres"];
        for name in ["backend", "backend-2", "postgres"] {
            assert!(is_running(started[name]), "{name}");
        }
        let second = place.up(&["--once"]).await.ended_with(0);
        assert!(second.stderr.contains("already running"), "{second:#?}");
        signal(up.pid(), Signal::INT);
        assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
        place.assert_nothing_runs();
        assert!(!is_running(server));

        // Also where nobody is left who started it.
        let mut up = place.stay_with(&[]).await;
        let server = place.written_down()["postgres"];
        up.kill();
        assert!(is_running(server));
        let data = place.data();
        let down = place.run(&["down", "--data-dir", text(&data)]).await;
        let down = down.ended_with(0);
        assert!(down.stderr.contains("the demo is stopped"), "{down:#?}");
        place.assert_nothing_runs();
        assert!(!is_running(server));

        // And a server that ends by itself ends the demo.
        let mut up = place.stay_with(&[]).await;
        let server = place.written_down()["postgres"];
        signal(server, Signal::KILL);
        let status = up.wait(PATIENCE).await;
        assert_eq!(status.code(), Some(1), "{}", up.log());
        assert!(up.log().contains("postgres ended by itself"));
        place.assert_nothing_runs();
    }
}

#[tokio::test]
async fn an_interrupted_start_of_a_server_is_started_over() {
    if !Own::is_installed() {
        return;
    }
    let place = Place::new();
    let data = place.data();
    let arguments = [&["up", "--data-dir", text(&data)], &ON_A_SERVER[..]].concat();
    let mut up = Process::start(&mut place.command(&arguments), &place.log(1)).unwrap();
    eventually("the server is being made", PATIENCE, async || {
        let folder = std::fs::canonicalize(data.join("postgres")).ok()?;
        folder.join("data").exists().then_some(())
    })
    .await;
    up.kill();
    let said = place.up(&ON_A_SERVER).await.ended_with(0);
    assert_three_answers(&said);
    place.assert_nothing_runs();
}

#[tokio::test]
async fn where_no_server_is_installed_a_demo_says_so() {
    if !small_disk::is_allowed() {
        eprintln!("SKIPPED: a machine without PostgreSQL: this one allows no mounts");
        return;
    }
    let place = Place::new();
    let data = place.data();
    let wanted = place.command(&[&["up", "--data-dir", text(&data)], &ON_A_SERVER[..]].concat());
    let mut command = small_disk::unshare();
    command.args(["sh", "-c"]).arg(
        "for place in /usr/lib/postgresql /usr/pgsql-*; do [ ! -d $place ] || mount -t tmpfs tmpfs $place; done; exec \"$@\"",
    );
    command.arg("sh").arg(wanted.get_program());
    command.args(wanted.get_args()).current_dir(place.home());
    command.env("HOME", place.home());
    let refused = finish(command, PATIENCE).await.ended_with(78);
    assert!(
        refused.stderr.contains("is not installed here")
            && refused.stderr.contains("apt-get install postgresql"),
        "{refused:#?}"
    );
    assert!(!data.join("backend").exists(), "nothing was made");
    place.assert_nothing_runs();
}
