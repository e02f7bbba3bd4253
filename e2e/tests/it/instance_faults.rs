//! Two backends on one database under load: whatever happens to one of them, to the way between any two parts or to the
//! server, nothing accepted is lost or done twice.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::time::sleep;
use viworks_testkit::deployment::{PATIENCE, Start};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::eventually;
use viworks_testkit::proxy::Network;
use viworks_testkit::redis;

use super::site::{self, Load, Site};

/// How long a backend stands still: beyond its lease.
const STILL: Duration = Duration::from_secs(30);

async fn while_it_works(happen: impl AsyncFnOnce(&mut Site, &Load)) {
    if let Some(own) = Own::start() {
        site::while_it_works(own, None, happen).await;
    }
}

/// Both are restarted in turn. The address is turned to the other one when one has gone, as a balancer does that
/// notices: whoever comes back meanwhile comes to the one that stops.
async fn rolling_restart(site: &mut Site, load: &Load) {
    for _round in 0..2 {
        for which in [0, 1] {
            site.lead_to(which);
            site.address.cut(1, 0);
            load.more(2).await;
            let stopped = site.backends[which].backend().stop(PATIENCE).await;
            assert!(stopped.success());
            site.lead_to(1 - which);
            load.more(2).await;
            site.start_backend(which).await;
            site.is_well(which).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_both_fails_no_command() {
    while_it_works(rolling_restart).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_both_with_redis_between_them_fails_no_command() {
    if let (Some(own), Some(redis)) = (Own::start(), redis::Own::start()) {
        site::while_it_works(own, Some(redis), rolling_restart).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_under_load_costs_nothing() {
    while_it_works(async |site, load| {
        for which in [0, 1] {
            site.lead_to(1 - which);
            site.backends[which].kill_backend();
            load.more(2).await;
            if which == 0 {
                // Before it is back, the other one says that it is gone.
                site.says(1, "instances.given_up", true).await;
            }
            site.start_backend(which).await;
            site.is_well(which).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_stands_still_under_load_costs_nothing() {
    while_it_works(async |site, load| {
        site.backends[0].backend().signal(Signal::STOP);
        site.lead_to(1);
        // What it had stays connected and is silent; what a balancer does about that is up to it.
        site.address.cut(1, 0);
        load.more(2).await;
        sleep(STILL).await;
        site.says(1, "instances.given_up", true).await;
        site.backends[0].backend().signal(Signal::CONT);
        site.is_well(0).await;
    })
    .await;
}

/// A backend whose way to the server is like that until the others have given it up.
async fn without_the_server(network: Network) {
    while_it_works(async |site, load| {
        site.to_server[0].set(network);
        site.lead_to(1);
        eventually("it says what is wrong", PATIENCE, async || {
            let asked = site.backends[0].request("GET", "/v1/health", None);
            let (status, health) = asked.await.ok()?;
            (status == 200 && health["status"] == "fail").then_some(())
        })
        .await;
        // They are at the other one.
        online(site, true).await;
        load.more(2).await;
        site.to_server[0].set(Network::Normal);
        site.is_well(0).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_cut_off_from_the_server_says_so_and_costs_nothing() {
    without_the_server(Network::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_to_which_the_server_is_silent_says_so_and_costs_nothing() {
    without_the_server(Network::HalfOpen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_are_cut_off_again_and_again_lose_nothing() {
    while_it_works(async |site, load| {
        for round in 0..6 {
            site.lead_to(round % 2);
            let network = if round % 3 == 0 {
                Network::Reset
            } else {
                Network::Cut
            };
            site.address.set(network);
            site.address.set(Network::Normal);
            load.more(2).await;
        }
    })
    .await;
}

/// Starts both backends anew, so that they and their gateways hear soon that nothing comes any more.
async fn attentive(site: &mut Site) {
    for which in [0, 1] {
        site.lead_to(1 - which);
        let stopped = site.backends[which].backend().stop(PATIENCE).await;
        assert!(stopped.success());
        let start = Start::default()
            .with("VIWORKS__AGENTS__HEARTBEAT_INTERVAL_MS", "500")
            .with("VIWORKS__AGENTS__SILENCE_MS", "2000");
        site.start_backend_as(which, start).await;
        site.is_well(which).await;
    }
    online(site, true).await;
}

/// Waits until all gateways are online by what a backend knows, or none.
async fn online(site: &Site, wanted: bool) {
    eventually(
        &format!("gateways are online: {wanted}"),
        PATIENCE,
        async || {
            let list = site.backends[1].request("GET", "/v1/gateways", None).await;
            let (_status, list) = list.ok()?;
            let online = |gateway: &Value| (gateway["status"] == "online") == wanted;
            list["items"].as_array()?.iter().all(online).then_some(())
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_to_which_the_network_is_silent_are_known_to_be_gone_and_lose_nothing() {
    while_it_works(async |site, load| {
        attentive(site).await;
        for which in [0, 1] {
            // In the middle of commands, of results and of what is handed in: neither end is told of anything.
            load.more(2).await;
            site.address.set(Network::HalfOpen);
            online(site, false).await;
            // What was said meanwhile still comes, to sessions that have ended.
            site.lead_to(which);
            site.address.set(Network::Normal);
            online(site, true).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_behind_a_slow_and_distant_network_stay_and_lose_nothing() {
    while_it_works(async |site, load| {
        attentive(site).await;
        for network in [
            Network::Delay(Duration::from_millis(300)),
            Network::Slow(16 * 1_024),
        ] {
            site.address.set(network);
            load.more(3).await;
            site.address.cut(1, 0);
            online(site, true).await;
            load.more(3).await;
            site.address.set(Network::Normal);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_under_two_backends_costs_nothing() {
    while_it_works(async |site, load| {
        for _round in 0..3 {
            site.own.kill();
            site.own.start_again();
            for which in [0, 1] {
                site.is_well(which).await;
            }
            load.more(2).await;
        }
    })
    .await;
}
