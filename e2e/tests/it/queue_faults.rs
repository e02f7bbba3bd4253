//! Two backends with Redis between them, under load: whatever becomes of Redis or of the way to it, nothing accepted is
//! lost or done twice, health says what is wrong, and it goes on by itself.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::sleep;
use viworks_runtime::clock::{Clock as _, SystemClock};
use viworks_runtime::random::uniform;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, run, text};
use viworks_testkit::gateway::ONCE;
use viworks_testkit::postgres;
use viworks_testkit::process::eventually;
use viworks_testkit::proxy::Network;
use viworks_testkit::redis::Own;
use viworks_testkit::small_disk::{fill, is_allowed, seen_by};

use super::points::ENTRY_POINTS;
use super::site::{GATEWAYS, LONG, Load, QUICK, Site, while_it_works};

/// The word by which health says that Redis is not asked.
const AWAY: &str = "queue.redis";

/// How soon everything is looked after again.
const SWEEP: Duration = Duration::from_secs(5);

/// Longer than anything that is said of a gateway stays in Redis.
const MINUTE: Duration = Duration::from_secs(60);

/// What takes well below a second, on a machine that does much else; a job would find it after fifteen.
const SOON: Duration = Duration::from_secs(5);

/// What it takes as a rule is below a second. On a machine of two processors that does much else it may be three, so
/// that holds for the quickest, or for half, of several rounds, and [`SOON`] for each.
const RULE: Duration = Duration::from_secs(3);

/// The servers, where both are installed.
fn servers(settings: &[&str]) -> Option<(postgres::Own, Own)> {
    Some((postgres::Own::start()?, Own::start_with(settings)?))
}

/// Both backends say that Redis is away, or that it is there.
async fn both_say(site: &Site, away: bool) {
    for which in [0, 1] {
        site.says(which, AWAY, away).await;
    }
}

/// Redis is not usable for both from here on, the work goes on, and then it is back.
async fn without_redis(
    site: &mut Site,
    load: &Load,
    begins: impl FnOnce(&mut Site),
    ends: impl FnOnce(&mut Site),
) {
    begins(site);
    both_say(site, true).await;
    load.more(3).await;
    ends(site);
    both_say(site, false).await;
    load.more(2).await;
}

fn redis(site: &mut Site) -> &mut Own {
    site.redis.as_mut().expect("the site has one")
}

async fn killed_again_and_again(settings: &[&str]) {
    let Some((database, own)) = servers(settings) else {
        return;
    };
    while_it_works(database, Some(own), async |site, load| {
        for _round in 0..2 {
            let begins = |site: &mut Site| redis(site).kill();
            let ends = |site: &mut Site| redis(site).start_again();
            without_redis(site, load, begins, ends).await;
        }
        // Killed and back before anybody has noticed more than a broken connection.
        redis(site).kill();
        redis(site).start_again();
        load.more(2).await;
        both_say(site, false).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgets_and_is_killed_under_two_backends_costs_nothing() {
    killed_again_and_again(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_remembers_and_is_killed_under_two_backends_costs_nothing() {
    killed_again_and_again(&["appendonly yes", "appendfsync always"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_gone_silent_cut_off_or_too_slow_under_two_backends_costs_nothing() {
    let Some((database, own)) = servers(&[]) else {
        return;
    };
    while_it_works(database, Some(own), async |site, load| {
        // Longer than the longest pause between two trials.
        redis(site).kill();
        both_say(site, true).await;
        sleep(Duration::from_secs(6)).await;
        redis(site).start_again();
        both_say(site, false).await;
        for network in [
            Network::Cut,
            Network::Reset,
            Network::HalfOpen,
            Network::Delay(Duration::from_millis(400)),
        ] {
            let set = |network| {
                move |site: &mut Site| {
                    for way in &site.to_redis {
                        way.set(network);
                    }
                }
            };
            without_redis(site, load, set(network), set(Network::Normal)).await;
        }
        let begins = |site: &mut Site| redis(site).pause();
        let ends = |site: &mut Site| redis(site).go_on();
        without_redis(site, load, begins, ends).await;
        // Slow, and yet in time: it is used, and nothing waits for it.
        for way in &site.to_redis {
            way.set(Network::Delay(Duration::from_millis(60)));
        }
        load.more(5).await;
        both_say(site, false).await;
        for way in &site.to_redis {
            way.set(Network::Normal);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_full_under_two_backends_is_named_and_costs_nothing() {
    let Some((database, own)) = servers(&[]) else {
        return;
    };
    while_it_works(database, Some(own), async |site, load| {
        let room = |bytes: &'static str| {
            move |site: &mut Site| {
                let words = ["CONFIG", "SET", "maxmemory", bytes];
                redis(site).place().ask::<String>(&words).unwrap();
            }
        };
        // One has all of them: most of what it asks of Redis writes nothing, and is answered all the time.
        move_all(site, 0).await;
        room("1000")(site);
        for which in [0, 1] {
            let ((), took) = timed(site.says(which, "maxmemory", true)).await;
            assert!(took < SOON, "{took:?}");
        }
        load.more(3).await;
        room("0")(site);
        both_say(site, false).await;
        load.more(2).await;
    })
    .await;
}

/// How long a command for all gateways takes that is asked of this backend.
async fn all_do_it(backend: &Deployment) -> Duration {
    let body = json!({"command": QUICK, "targets": "all"});
    let asked = async {
        let run = backend.post("/v1/runs", &body).await;
        backend.finished(run["id"].as_str().unwrap()).await
    };
    let (finished, took) = timed(asked).await;
    let all = json!({"succeeded": GATEWAYS.len()});
    assert_eq!(finished["counts"], all, "{finished}");
    took
}

/// Redis is gone until nothing of what it knew of gateways is true any more, and comes back with it or without.
async fn gone_for_a_minute(settings: &[&str]) {
    let Some((database, own)) = servers(settings) else {
        return;
    };
    while_it_works(database, Some(own), async |site, load| {
        load.ease();
        let mut before = Vec::new();
        for name in GATEWAYS {
            before.push(epoch(site, name).await);
        }
        assert_eq!(keys(site, "r"), GATEWAYS.len());
        redis(site).kill();
        let gone = SystemClock.now();
        both_say(site, true).await;
        let mut took = [Duration::MAX; 2];
        while SystemClock.now().saturating_since(gone) < MINUTE {
            load.more(1).await;
            for (backend, took) in site.backends.iter().zip(&mut took) {
                *took = all_do_it(backend).await.min(*took);
            }
        }
        // The quickest of a minute; a job would find it late each time.
        assert!(took.iter().all(|took| *took < RULE), "{took:?}");
        both_say(site, true).await;
        redis(site).start_again();
        both_say(site, false).await;
        eventually("the routes are back", SWEEP, async || {
            (keys(site, "r") == GATEWAYS.len()).then_some(())
        })
        .await;
        // Whoever is asked calls the other one for its gateways.
        let place = redis(site).place();
        let asked = async {
            for backend in &site.backends {
                let _took = all_do_it(backend).await;
            }
        };
        let called = place.published("vw:i:*", asked).await;
        let looks = called.iter().filter(|(_, text)| text.starts_with("look "));
        let instances: BTreeSet<_> = looks.map(|(channel, _)| channel).collect();
        assert_eq!(instances.len(), site.backends.len(), "{called:?}");
        for (name, before) in GATEWAYS.iter().zip(before) {
            assert_eq!(epoch(site, name).await, before, "{name} did not stay");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_forgets_and_is_gone_for_a_minute_costs_nothing() {
    gone_for_a_minute(&[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_remembers_and_is_gone_for_a_minute_costs_nothing() {
    gone_for_a_minute(&["appendonly yes", "appendfsync always"]).await;
}

#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn skipped(what: &str) {
    eprintln!("SKIPPED: {what}");
}

/// Servers of which Redis keeps what it has on a small disk, where this machine lets a test have one.
fn on_a_small_disk(settings: &[&str]) -> Option<(postgres::Own, Own)> {
    if !is_allowed() {
        skipped("a full disk of Redis: this machine does not let a test have one");
        return None;
    }
    Some((
        postgres::Own::start()?,
        Own::start_on_disk_of(16, settings)?,
    ))
}

/// All there is to the disk of Redis; removed, there is room again.
fn fill_disk(site: &mut Site) -> PathBuf {
    let (pid, data) = (redis(site).pid(), redis(site).data());
    fill(&seen_by(pid, &data), "ballast")
}

/// What a site does without Redis, and what its backends say of it.
async fn goes_on_without_redis(site: &Site, load: &Load) {
    load.more(3).await;
    for backend in &site.backends {
        let _took = all_do_it(backend).await;
        let (ready, reasons) = backend.request("GET", "/readyz", None).await.unwrap();
        assert_eq!(ready, 200, "{reasons}");
        let (_status, metrics) = backend.request("GET", "/metrics", None).await.unwrap();
        let is_asked = "viworks_queue_redis_state{state=\"closed\"} 1";
        assert!(!metrics.as_str().unwrap().contains(is_asked), "{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_whose_disk_is_full_is_named_and_costs_nothing() {
    let Some((database, own)) = on_a_small_disk(&["appendonly yes", "appendfsync everysec"]) else {
        return;
    };
    while_it_works(database, Some(own), async |site, load| {
        let ballast = fill_disk(site);
        for which in [0, 1] {
            site.says(which, "make room there", true).await;
        }
        goes_on_without_redis(site, load).await;
        std::fs::remove_file(ballast).unwrap();
        both_say(site, false).await;
        load.more(2).await;
        eventually("the routes are back", SWEEP, async || {
            (keys(site, "r") == GATEWAYS.len()).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_ends_because_its_disk_is_full_costs_nothing() {
    let Some((database, own)) = on_a_small_disk(&["appendonly yes", "appendfsync always"]) else {
        return;
    };
    while_it_works(database, Some(own), async |site, load| {
        let _ballast = fill_disk(site);
        eventually("it ends rather than forget", PATIENCE, async || {
            redis(site).has_ended().then_some(())
        })
        .await;
        both_say(site, true).await;
        goes_on_without_redis(site, load).await;
        redis(site).start_again();
        both_say(site, false).await;
        load.more(2).await;
    })
    .await;
}

/// Keys of one kind, such as streams of hints (`q`) or routes (`r`).
fn keys(site: &mut Site, kind: &str) -> usize {
    let pattern = format!("vw:*:{kind}");
    let keys: Vec<String> = redis(site).place().ask(&["KEYS", &pattern]).unwrap();
    keys.len()
}

/// Case 7 of the ten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_emptied_while_offers_are_pending_costs_nothing() {
    let Some((database, own)) = servers(&[]) else {
        return;
    };
    while_it_works(database, Some(own), async |site, load| {
        for round in 0..3 {
            // Nobody can take what is offered meanwhile.
            site.address.set(Network::Cut);
            load.more(3).await;
            eventually("offers are pending", PATIENCE, async || {
                (keys(site, "q") > 0).then_some(())
            })
            .await;
            redis(site).place().ask::<String>(&["FLUSHALL"]).unwrap();
            site.lead_to(round % 2);
            site.address.set(Network::Normal);
            load.more(2).await;
        }
        // And while everybody is there.
        redis(site).place().ask::<String>(&["FLUSHALL"]).unwrap();
        eventually("the routes are back", SWEEP, async || {
            (keys(site, "r") == GATEWAYS.len()).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_cut_off_from_redis_says_so_and_costs_nothing() {
    let Some((database, own)) = servers(&[]) else {
        return;
    };
    while_it_works(database, Some(own), async |site, load| {
        for (which, network) in [(0, Network::Cut), (1, Network::HalfOpen)] {
            site.to_redis[which].set(network);
            site.says(which, AWAY, true).await;
            // Its gateways come to the other one, and back.
            site.lead_to(1 - which);
            site.address.cut(1, 0);
            load.more(3).await;
            site.lead_to(which);
            site.address.cut(1, 0);
            load.more(3).await;
            site.says(1 - which, AWAY, false).await;
            site.to_redis[which].set(Network::Normal);
            both_say(site, false).await;
        }
    })
    .await;
}

/// What `work` answers, and how long it took.
async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begun = SystemClock.now();
    let answer = work.await;
    (answer, SystemClock.now().saturating_since(begun))
}

/// Where the gateway's session is, by its epoch.
async fn epoch(site: &Site, name: &str) -> u64 {
    let gateway = site.backends[0].online(name).await;
    gateway["session"]["epoch"].as_u64().unwrap()
}

/// How long it takes until a command of the second gateway runs that is asked for at this backend, and until it has
/// ended once that is asked for there.
async fn begun_and_cancelled(backend: &Deployment) -> (Duration, Duration) {
    let body = json!({"command": LONG, "targets": {"gateways": ["gw-2"]}});
    let begin = async {
        let asked = backend.post("/v1/runs", &body).await;
        let asked = asked["id"].as_str().unwrap().to_owned();
        eventually("the command runs", PATIENCE, async || {
            (backend.commands(&asked).await[0]["state"] == "running").then_some(())
        })
        .await;
        asked
    };
    let (asked, running) = timed(begin).await;
    let cancel = async {
        let path = format!("/v1/runs/{asked}/cancel");
        backend.post(&path, &json!({})).await;
        backend.finished(&asked).await
    };
    let (finished, cancelled) = timed(cancel).await;
    assert_eq!(finished["counts"], json!({"cancelled": 1}), "{finished}");
    (running, cancelled)
}

/// Case 9 of the ten: one backend is without Redis, and the gateway is at the other one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_at_a_backend_without_redis_holds_at_the_one_with_it_within_a_second() {
    let Some((database, own)) = servers(&[]) else {
        return;
    };
    let (site, _idle) = Site::start(database, Some(own)).await;
    let one = &site.backends[0];
    site.to_redis[0].set(Network::Cut);
    site.says(0, AWAY, true).await;
    // At first the gateway is at the other one; then it moves here, where nobody can say so.
    for moves in [false, true] {
        if moves {
            move_all(&site, 0).await;
        }
        let (mut runs, mut ends) = (Vec::new(), Vec::new());
        for _round in 0..5 {
            let (running, cancelled) = begun_and_cancelled(one).await;
            runs.push(running);
            ends.push(cancelled);
        }
        for took in [&runs, &ends] {
            assert!(took.iter().all(|took| *took < SOON), "{took:?}");
            assert!(took.iter().any(|took| *took < RULE), "{took:?}");
        }
    }
    // The later session is the one that is known once it can be said where it is.
    let later = epoch(&site, "gw-2").await;
    site.to_redis[0].set(Network::Normal);
    site.says(0, AWAY, false).await;
    eventually(
        "the route is that of the later session",
        SWEEP,
        async || {
            let place = site.redis.as_ref()?.place();
            let routes: Vec<String> = place.ask(&["KEYS", "vw:*:r"]).ok()?;
            let routes = routes.iter().map(|key| place.ask::<String>(&["GET", key]));
            let routes: Vec<String> = routes.flatten().collect();
            let ends = format!("|{later}");
            routes
                .iter()
                .any(|route| route.ends_with(&ends))
                .then_some(())
        },
    )
    .await;
    move_all(&site, 1).await;
    site.to_redis[0].set(Network::Cut);
    site.says(0, AWAY, true).await;
    let revoke = async {
        let config = one.backend_config();
        let arguments = ["gateway", "revoke", "gw-2", "--config", text(&config)];
        run(&one.binaries().backend(), &arguments);
        eventually("its session is closed", PATIENCE, async || {
            site.log_of_gateway(1).contains("revoked").then_some(())
        })
        .await;
    };
    let ((), took) = timed(revoke).await;
    assert!(took < SOON, "{took:?}");
}

/// Moves all gateways to a backend.
async fn move_all(site: &Site, which: usize) {
    let mut before = Vec::new();
    for name in GATEWAYS {
        before.push((name, epoch(site, name).await));
    }
    site.lead_to(which);
    site.address.cut(1, 0);
    for (name, before) in before {
        eventually("it moved", PATIENCE, async || {
            (epoch(site, name).await > before).then_some(())
        })
        .await;
    }
}

/// Case 8 of the ten: what is submitted at any moment of a move is leased as soon as the gateway is there, though the
/// routes are written late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_while_a_gateway_moves_from_one_backend_to_the_other() {
    let Some((database, own)) = servers(&[]) else {
        return;
    };
    let (site, _idle) = Site::start(database, Some(own)).await;
    for way in &site.to_redis {
        way.set(Network::Delay(Duration::from_millis(70)));
    }
    let body = json!({"command": ONCE, "targets": "all"});
    let mut rounds = Vec::new();
    for round in 0..12 {
        let before = epoch(&site, "gw-1").await;
        site.lead_to(round % 2);
        site.address.cut(1, 0);
        // While it dials, is admitted, is confirmed, is told of, and after that.
        sleep(Duration::from_millis(uniform(0..500))).await;
        let asked = site.backends[(round + 1) % 2].post("/v1/runs", &body).await;
        eventually("it moved", PATIENCE, async || {
            (epoch(&site, "gw-1").await > before).then_some(())
        })
        .await;
        let asked = asked["id"].as_str().unwrap();
        let (finished, took) = timed(site.backends[round % 2].finished(asked)).await;
        assert_eq!(
            finished["counts"],
            json!({"succeeded": GATEWAYS.len()}),
            "{finished}"
        );
        assert!(took < SOON, "{took:?}");
        rounds.push(took);
    }
    rounds.sort_unstable();
    assert!(rounds[rounds.len() / 2] < RULE, "{rounds:?}");
    site.stop().await;
}

/// Whether a process stands still, by proc(5).
fn stands_still(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("", |(_name, rest)| rest);
    state.starts_with('T')
}

/// The same with a backend that stands still at each step between the confirmation of a session and the look for what
/// waits, or dies there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_stops_at_any_step_of_an_entry_loses_no_wake_up() {
    let Some((database, own)) = servers(&[]) else {
        return;
    };
    let binaries = Binaries::with_fault_points();
    let (mut site, _idle) = Site::start_of(binaries, database, Some(own)).await;
    for point in ENTRY_POINTS {
        for dies in [false, true] {
            site.lead_to(0);
            assert!(site.backends[1].backend().stop(PATIENCE).await.success());
            let armed = Start::default();
            let armed = if dies {
                armed.dying_at(point)
            } else {
                armed.stopping_at(point)
            };
            site.start_backend_as(1, armed).await;
            site.lead_to(1);
            site.address.cut(1, 0);
            let process = site.backends[1].backend();
            eventually(point, PATIENCE, async || {
                (process.ended().is_some() || stands_still(process.pid())).then_some(())
            })
            .await;
            // What it had under way at the database holds others up for ten seconds at most.
            let key = format!("{point} {dies}");
            let asked = site.backends[0].submit(ONCE, &key).await;
            if dies {
                site.start_backend(1).await;
            } else {
                site.backends[1].backend().signal(Signal::CONT);
            }
            let (finished, took) = timed(site.backends[0].finished(&asked)).await;
            let all = json!({"succeeded": GATEWAYS.len()});
            assert_eq!(finished["counts"], all, "{point}: {finished}");
            assert!(took < SOON, "{point}: {took:?}");
        }
    }
    site.stop().await;
}

/// A burst of commands for a gateway that is here, while Redis hangs: nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_that_are_here_do_not_wait_for_a_redis_that_hangs() {
    let Some((database, own)) = servers(&[]) else {
        return;
    };
    let (mut site, _idle) = Site::start(database, Some(own)).await;
    redis(&mut site).pause();
    let body = json!({"command": ONCE, "targets": {"gateways": ["gw-1"]}});
    let one = &site.backends[0];
    let burst = async {
        let asked = (0..24).map(|_number| one.post("/v1/runs", &body));
        let asked: Vec<Value> = futures_util::future::join_all(asked).await;
        for run in &asked {
            let finished = one.finished(run["id"].as_str().unwrap()).await;
            assert_eq!(finished["counts"], json!({"succeeded": 1}), "{finished}");
        }
    };
    let ((), took) = timed(burst).await;
    assert!(took < SOON, "{took:?}");
    redis(&mut site).go_on();
    both_say(&site, false).await;
    site.stop().await;
}
