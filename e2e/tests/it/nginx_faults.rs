//! Two backends behind nginx under load: whatever is restarted, reloaded or killed, nothing accepted is lost or done
//! twice.

use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::nginx::Nginx;
use viworks_testkit::postgres::Own;
use viworks_testkit::process::eventually;

use super::behind_nginx::{all_came_back, sessions};
use super::site::{self, Load, Site};

async fn while_it_works(happen: impl AsyncFnOnce(&mut Site, &Load)) {
    if !Nginx::is_installed() {
        return;
    }
    if let Some(own) = Own::start() {
        let (site, load) = Site::start_behind_nginx(own).await;
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
