//! Two backends behind nginx under load: whatever is restarted, reloaded or killed, nothing accepted is lost or done
//! twice.

use std::process::Command;

use viworks_testkit::deployment::{PATIENCE, Start, text};
use viworks_testkit::nginx::{Backends, Nginx};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::{eventually, finish};
use viworks_testkit::redis;

use super::behind_nginx::{all_came_back, sessions};
use super::services::typed_in;
use super::site::{self, Load, Site};

/// Which of the backends is blue, and which green.
const BLUE: usize = 0;
const GREEN: usize = 1;

async fn while_it_works(happen: impl AsyncFnOnce(&mut Site, &Load)) {
    if !Nginx::is_installed() {
        return;
    }
    if let Some(own) = Own::start() {
        let (site, load) = Site::start_behind_nginx(own, None).await;
        site::work(site, &load, happen).await;
    }
}

fn nginx(site: &mut Site) -> &mut Nginx {
    site.nginx.as_mut().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_both_backends_fails_no_command() {
    while_it_works(async |site, load| {
        for _round in 0..2 {
            for which in [0, 1] {
                load.more(2).await;
                let stopped = site.backends[which].backend().stop(PATIENCE).await;
                assert!(stopped.success());
                load.more(2).await;
                site.start_backend(which).await;
                site.is_well(which).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_nginx_costs_no_command_and_the_sessions_that_it_drops_come_back() {
    while_it_works(async |site, load| {
        let folders = site.folders.clone();
        let before = sessions(&site.backends[0], &folders).await;
        nginx(site).reload();
        load.more(3).await;
        assert_eq!(sessions(&site.backends[0], &folders).await, before);

        // From here on old workers may stay for a second only.
        nginx(site).configure(|shipped| {
            shipped.replace("worker_shutdown_timeout 10m", "worker_shutdown_timeout 1s")
        });
        nginx(site).stop();
        nginx(site).start_again();
        all_came_back(&site.backends[0], &folders, &before).await;
        for _round in 0..2 {
            let between = sessions(&site.backends[0], &folders).await;
            let old = nginx(site).workers();
            nginx(site).reload();
            load.more(2).await;
            eventually("the old workers are gone", PATIENCE, async || {
                let left = site.nginx.as_ref().unwrap().workers();
                (!left.iter().any(|pid| old.contains(pid))).then_some(())
            })
            .await;
            all_came_back(&site.backends[0], &folders, &between).await;
            load.more(2).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nginx_that_is_killed_costs_no_command() {
    while_it_works(async |site, load| {
        for _round in 0..2 {
            nginx(site).kill();
            nginx(site).start_again();
            load.more(2).await;
        }
    })
    .await;
}

fn api(site: &Site, which: usize) -> String {
    let url = site.backends[which].api_url();
    url.trim_start_matches("http://").to_owned()
}

/// Types a block of the page about upgrades on the host of one of the backends, or of nginx, where all of it is this
/// machine and no service manager is there.
async fn types(site: &mut Site, which: usize, block: &str) {
    for line in block.lines() {
        match line {
            "systemctl start viworks-backend-agent" => site.start_backend(which).await,
            "systemctl stop viworks-backend-agent" => {
                let stopped = site.backends[which].backend().stop(PATIENCE).await;
                assert!(stopped.success(), "it drains in time");
            }
            _ => {
                let said = finish(shell(site, which, line), PATIENCE).await;
                assert_eq!(said.code, Some(0), "{line}: {said:#?}");
            }
        }
    }
}

fn shell(site: &Site, which: usize, line: &str) -> Command {
    let (backend, nginx) = (&site.backends[which], site.nginx.as_ref().unwrap());
    let file = nginx.path().join("nginx.conf");
    let own = format!(
        "-c {} -e {}",
        text(&file),
        text(&nginx.path().join("typed.log"))
    );
    let places = [
        (
            "runuser -u viworks-backend -- viworks-backend-agent",
            text(&backend.binaries().backend()).to_owned(),
        ),
        (
            "/etc/viworks/backend/backend.toml",
            text(&backend.backend_config()).to_owned(),
        ),
        ("/etc/nginx", text(nginx.path()).to_owned()),
        (
            "10.0.0.1:8081",
            site.backends[BLUE].agents_address().to_owned(),
        ),
        (
            "10.0.0.2:8081",
            site.backends[GREEN].agents_address().to_owned(),
        ),
        ("127.0.0.1:8080", api(site, BLUE)),
        ("127.0.0.1:8180", api(site, GREEN)),
    ];
    let mut line = places.iter().fold(line.to_owned(), |line, (theirs, here)| {
        line.replace(theirs, here)
    });
    if line.starts_with("nginx ") {
        line = format!("PATH=$PATH:/usr/sbin; {line} {own}");
    }
    let mut command = Command::new("/bin/sh");
    command
        .args(["-euc", &line])
        .env("VIWORKS__DATA__STATE_FOLDER", backend.state_folder())
        .env("VIWORKS__AGENTS__LISTEN", backend.agents_address())
        .env("VIWORKS__API__LISTEN", api(site, which))
        .envs(site.settings(which, Start::default()).environment);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn green_takes_over_from_blue_and_gives_it_back_without_a_failed_command() {
    if !Nginx::is_installed() {
        return;
    }
    let (Some(own), Some(redis)) = (Own::start(), redis::Own::start()) else {
        return;
    };
    let blocks = typed_in("docs/operations/upgrade.md", "e2e/tests/it/nginx_faults.rs");
    let [start, switch, stop, switch_back] = <[String; 4]>::try_from(blocks).unwrap();
    let (mut site, load) = Site::start_behind_nginx(own, Some(redis)).await;
    // Blue works alone, and green is not there.
    let blue = Backends {
        agents: vec![site.backends[BLUE].agents_address().to_owned()],
        api: vec![api(&site, BLUE)],
        enrolment: Vec::new(),
    };
    nginx(&mut site).lead_to(blue);
    let old = nginx(&mut site).workers();
    nginx(&mut site).reload();
    eventually("new workers are there", PATIENCE, async || {
        let workers = site.nginx.as_ref().unwrap().workers();
        workers.iter().any(|pid| !old.contains(pid)).then_some(())
    })
    .await;
    types(&mut site, GREEN, &stop).await;
    let folders = site.folders.clone();
    site::work(site, &load, async |site, load| {
        for (from, to, lead) in [(BLUE, GREEN, &switch), (GREEN, BLUE, &switch_back)] {
            types(site, to, &start).await;
            load.more(2).await;
            let before = sessions(&site.backends[from], &folders).await;
            types(site, to, lead).await;
            load.more(2).await;
            assert_eq!(sessions(&site.backends[from], &folders).await, before);
            types(site, from, &stop).await;
            all_came_back(&site.backends[to], &folders, &before).await;
            load.more(3).await;
        }
        // The account is taken of both.
        site.start_backend(GREEN).await;
    })
    .await;
}
