//! Demos on servers of their own: a database server, and one for the queue.

use std::path::Path;

use rustix::process::Signal;
use viworks_testkit::deployment::{PATIENCE, text};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{Process, eventually, finish};
use viworks_testkit::redis;
use viworks_testkit::small_disk;

use super::{Place, assert_three_answers, is_root, signal};

/// What a demo can be on, as it is said, with what it says itself.
#[derive(Clone, Copy)]
struct On {
    stores: &'static str,
    parts: &'static str,
    /// The servers, by their names among the processes.
    servers: &'static [&'static str],
}

const POSTGRES: On = On {
    stores: "postgres",
    parts: "PostgreSQL + in-process queue",
    servers: &["postgres"],
};

const BOTH: On = On {
    stores: "postgres,redis",
    parts: "PostgreSQL + Redis",
    servers: &["postgres", "redis"],
};

impl On {
    fn is_installed(self) -> bool {
        Own::is_installed() && (self.servers.len() == 1 || redis::Own::is_installed())
    }

    const fn once(self) -> [&'static str; 3] {
        ["--once", "--stores", self.stores]
    }
}

/// As whoever runs this, and as a user without rights where that can be had. Only PostgreSQL minds who it is.
fn places(on: On) -> Vec<Place> {
    let mut places = vec![Place::new()];
    if is_root() && on.servers.len() == 1 {
        places.push(Place::of_nobody());
    }
    places
}

/// One that has ended and that nobody has asked about has no command line.
fn is_running(pid: u32) -> bool {
    let file = Path::new("/proc").join(pid.to_string()).join("cmdline");
    std::fs::read(file).is_ok_and(|line| !line.is_empty())
}

async fn comes_up_again(on: On) {
    if !on.is_installed() {
        return;
    }
    for place in places(on) {
        let data = place.data();
        let mut first =
            place.command(&[&["up", "--data-dir", text(&data)], &on.once()[..]].concat());
        // What is meant for somebody's own servers.
        first
            .env("PGSSLMODE", "verify-full")
            .env("PGDATABASE", "theirs");
        first.env("LC_ALL", "C.UTF-8");
        let said = finish(first, PATIENCE).await.ended_with(0);
        assert_three_answers(&said);
        assert!(said.stderr.contains(on.parts), "{said:#?}");
        for step in ["✓ database", "✓ second backend"] {
            assert!(said.stderr.contains(step), "{said:#?}");
        }
        place.assert_nothing_runs();
        let files = std::fs::canonicalize(place.data().join("postgres")).unwrap();
        assert!(files.join("data/PG_VERSION").is_file());

        // What it has is what it goes on with.
        let said = place.up(&["--once"]).await.ended_with(0);
        assert_three_answers(&said);
        assert!(said.stderr.contains(on.parts), "{said:#?}");
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
        for left in ["backend-2", "postgres", "redis", "backend/queue.password"] {
            assert!(!place.data().join(left).exists(), "{left}");
        }
        place.assert_nothing_runs();
        let refused = place.up(&on.once()).await.ended_with(6);
        assert!(refused.stderr.contains("keeps its data in SQLite"));
    }
}

#[tokio::test]
async fn a_demo_on_a_server_comes_up_again_with_its_data_and_starts_over_when_told_so() {
    comes_up_again(POSTGRES).await;
}

#[tokio::test]
async fn a_demo_on_both_servers_comes_up_again_with_its_data_and_starts_over_when_told_so() {
    comes_up_again(BOTH).await;
}

async fn ends_with_it(on: On) {
    if !on.is_installed() {
        return;
    }
    for place in places(on) {
        let mut up = place.stay_with(&["--stores", on.stores]).await;
        let started = place.written_down();
        let servers = on.servers.iter().map(|name| started[*name]);
        let servers: Vec<u32> = servers.collect();
        for name in ["backend", "backend-2"].iter().chain(on.servers) {
            assert!(is_running(started[*name]), "{name}");
        }
        if on.servers.contains(&"redis") {
            for backend in ["backend", "backend-2"] {
                let log = place.data().join(format!("logs/{backend}.log"));
                let log = std::fs::read_to_string(log).unwrap();
                assert!(log.contains("the queue is connected"), "{log}");
            }
        }
        let second = place.up(&["--once"]).await.ended_with(0);
        assert!(second.stderr.contains("already running"), "{second:#?}");
        signal(up.pid(), Signal::INT);
        assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
        place.assert_nothing_runs();
        assert!(!servers.into_iter().any(is_running));

        // Also where nobody is left who started it.
        let mut up = place.stay_with(&[]).await;
        let started = place.written_down();
        up.kill();
        for name in on.servers {
            assert!(is_running(started[*name]), "{name}");
        }
        let data = place.data();
        let down = place.run(&["down", "--data-dir", text(&data)]).await;
        let down = down.ended_with(0);
        assert!(down.stderr.contains("the demo is stopped"), "{down:#?}");
        place.assert_nothing_runs();
        for name in on.servers {
            assert!(!is_running(started[*name]), "{name}");
        }

        // And a server that ends by itself ends the demo.
        for name in on.servers {
            let mut up = place.stay_with(&[]).await;
            signal(place.written_down()[*name], Signal::KILL);
            let status = up.wait(PATIENCE).await;
            assert_eq!(status.code(), Some(1), "{}", up.log());
            let said = format!("{name} ended by itself");
            assert!(up.log().contains(&said), "{}", up.log());
            place.assert_nothing_runs();
        }
    }
}

#[tokio::test]
async fn a_demo_on_a_server_ends_with_it_however_it_is_stopped() {
    ends_with_it(POSTGRES).await;
}

#[tokio::test]
async fn a_demo_on_both_servers_ends_with_them_however_it_is_stopped() {
    ends_with_it(BOTH).await;
}

#[tokio::test]
async fn an_interrupted_start_of_a_server_is_started_over() {
    for on in [POSTGRES, BOTH] {
        if !on.is_installed() {
            return;
        }
        let place = Place::new();
        let data = place.data();
        let arguments = [&["up", "--data-dir", text(&data)], &on.once()[..]].concat();
        let mut up = Process::start(&mut place.command(&arguments), &place.log(1)).unwrap();
        eventually("the server is being made", PATIENCE, async || {
            let folder = std::fs::canonicalize(data.join("postgres")).ok()?;
            folder.join("data").exists().then_some(())
        })
        .await;
        up.kill();
        let said = place.up(&on.once()).await.ended_with(0);
        assert_three_answers(&said);
        place.assert_nothing_runs();
    }
}

#[tokio::test]
async fn what_does_not_go_together_is_refused_with_what_does() {
    let place = Place::new();
    for (stores, expected) in [
        ("redis", "postgres,redis"),
        ("sqlite,redis", "postgres,redis"),
        ("sqlite,postgres", "sqlite, postgres, or postgres,redis"),
        ("mysql", "expected sqlite, postgres, or postgres,redis"),
    ] {
        let refused = place.up(&["--once", "--stores", stores]).await;
        let refused = refused.ended_with(2);
        assert!(refused.stderr.contains(expected), "{refused:#?}");
        assert!(!place.data().exists(), "nothing was made");
    }
}

#[tokio::test]
async fn where_no_server_is_installed_a_demo_says_so() {
    if !small_disk::is_allowed() {
        eprintln!("SKIPPED: a machine without PostgreSQL: this one allows no mounts");
        return;
    }
    // Without either of them, the one that is missing is named, and how to have it.
    let hide = "for place in /usr/lib/postgresql /usr/pgsql-*; do [ ! -d $place ] || mount -t tmpfs tmpfs $place; done";
    let hide_redis = "for program in $(command -v redis-server valkey-server); do mount --bind /dev/null $program; done";
    for (on, hide, missing, package) in [
        (POSTGRES, hide, "PostgreSQL", "postgresql"),
        (BOTH, hide, "PostgreSQL", "postgresql"),
        (BOTH, hide_redis, "Redis 6.2", "redis-server"),
    ] {
        if missing != "PostgreSQL" && !Own::is_installed() {
            continue;
        }
        let place = Place::new();
        let data = place.data();
        let wanted = place.command(&[&["up", "--data-dir", text(&data)], &on.once()[..]].concat());
        let mut command = small_disk::unshare();
        command
            .args(["sh", "-c"])
            .arg(format!("{hide}; exec \"$@\""));
        command.arg("sh").arg(wanted.get_program());
        command.args(wanted.get_args()).current_dir(place.home());
        command.env("HOME", place.home());
        let refused = finish(command, PATIENCE).await.ended_with(78);
        assert!(
            refused.stderr.contains(missing)
                && refused.stderr.contains("is not installed here")
                && refused
                    .stderr
                    .contains(&format!("apt-get install {package}")),
            "{refused:#?}"
        );
        assert!(!data.join("backend").exists(), "nothing was made");
        place.assert_nothing_runs();
    }
}
