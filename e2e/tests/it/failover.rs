//! Case 6 of the ten: the database server is gone for good, and its standby takes its place under two backends that
//! work. What the standby did not have by then is gone, runs nowhere twice and is counted; where commits waited for the
//! standby, nothing is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::gateway::started;
use viworks_testkit::postgres::Own;
use viworks_testkit::process::eventually;
use viworks_testkit::redis;

use super::site::{GATEWAYS, Load, STREAM, Site};

/// What a server says to a query.
fn ask(own: &Own, query: &str) -> String {
    own.server().psql("viworks", query).unwrap()
}

/// A site whose database server has a standby.
struct Pair {
    site: Site,
    standby: Own,
}

impl Pair {
    async fn start() -> Option<(Self, Load)> {
        let (site, load) = Site::start(Own::start()?, redis::Own::start()).await;
        let standby = site.own.standby("standby");
        Some((Self { site, standby }, load))
    }

    /// Waits until the standby has all that the server has by now.
    async fn caught_up(&self) {
        let by_now = ask(&self.site.own, "SELECT pg_current_wal_insert_lsn()");
        let query = format!("SELECT pg_last_wal_replay_lsn() >= '{by_now}'::pg_lsn");
        eventually("the standby has caught up", PATIENCE, async || {
            (ask(&self.standby, &query) == "t").then_some(())
        })
        .await;
    }

    /// From here on the standby hears nothing.
    async fn cut_off(&self) {
        self.standby.set("primary_conninfo", "");
        let query = "SELECT count(*) FROM pg_stat_replication";
        eventually("the standby is cut off", PATIENCE, async || {
            (ask(&self.site.own, query) == "0").then_some(())
        })
        .await;
    }

    /// The server is gone, and the standby is the server.
    fn fail_over(&mut self) {
        self.site.own.kill();
        self.standby.promote();
        for way in &self.site.to_server {
            way.forward_to(&format!("127.0.0.1:{}", self.standby.server().port()));
            // What a connection to the old one still waits for does not come.
            way.cut(1, 0);
        }
    }

    async fn is_well(&self) {
        for which in [0, 1] {
            self.site.is_well(which).await;
        }
    }
}

/// Every command that ran on a gateway, each once.
fn ran_once(site: &Site) -> BTreeSet<String> {
    let mut ran = BTreeSet::new();
    for folder in &site.folders {
        let marks = started(folder);
        assert!(marks.values().all(|times| *times == 1), "{marks:?}");
        ran.extend(marks.into_keys());
    }
    ran
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_the_acknowledged_tail_runs_nothing_twice_and_counts_what_is_gone() {
    lose_the_tail(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_sessions_as_well_runs_nothing_twice_and_counts_what_is_gone() {
    lose_the_tail(true).await;
}

/// The standby has all but the last moments, in which the gateways came back to the other backend, or stayed.
async fn lose_the_tail(with_sessions: bool) {
    let Some((mut pair, load)) = Pair::start().await else {
        return;
    };
    let script = async {
        load.more(3).await;
        let kept = load.accepted();
        pair.caught_up().await;
        pair.cut_off().await;
        load.more(3).await;
        if with_sessions {
            let epochs = "SELECT sum(session_epoch) FROM gateways";
            let before: u64 = ask(&pair.site.own, epochs).parse().unwrap();
            pair.site.lead_to(1);
            pair.site.address.cut(1, 0);
            eventually("they are at the other backend", PATIENCE, async || {
                let now: u64 = ask(&pair.site.own, epochs).parse().ok()?;
                (now >= before + 4).then_some(())
            })
            .await;
        }
        load.more(3).await;
        let lost = load.accepted();
        pair.fail_over();
        pair.is_well().await;
        // What the gateways know is what counts from here on, and it is written down that it was so.
        eventually("every gateway came back", PATIENCE, async || {
            let query = "SELECT count(DISTINCT object) FROM audit_log \
                         WHERE action = 'database.rolled_back'";
            (ask(&pair.standby, query) == GATEWAYS.len().to_string()).then_some(())
        })
        .await;
        let after = load.accepted();
        load.more(5).await;
        load.end();
        (kept, lost, after)
    };
    let ((kept, lost, after), runs, fed) = tokio::join!(script, load.submit(), load.feed());
    let Pair { site, standby } = pair;
    let mut unknown = 0;
    for (number, run) in runs.iter().enumerate() {
        let path = format!("/v1/runs/{run}");
        let (status, _answer) = site.backends[0].request("GET", &path, None).await.unwrap();
        if status == 404 {
            // It was accepted after the standby had heard its last, and before the standby was the server.
            assert!(
                (kept..=lost + 1).contains(&number),
                "{number} {kept} {lost}"
            );
            unknown += 1;
            continue;
        }
        site.backends[0].finished(run).await;
    }
    assert!(unknown > 0, "nothing was lost, so nothing is shown");
    let ran = ran_once(&site);
    for (number, run) in runs.iter().enumerate() {
        for command in known_commands(&site, run).await {
            let id = command["id"].as_str().unwrap();
            let has_run = ran.contains(id);
            match command["state"].as_str().unwrap() {
                "succeeded" => assert!(has_run, "{number}: {command}"),
                // The gateway had seen its number already, and only what was lost could say whether it is the same
                // command: it does not run.
                "indeterminate" => assert!(number <= after + 1, "{number}: {command}"),
                other => panic!("{number} of {kept}, {lost}, {after}: {other}: {command}"),
            }
        }
    }
    // Every record is stored once or stands in a gap.
    let accounted = "SELECT (SELECT count(*) FROM telemetry) + \
                     (SELECT coalesce(sum(to_seq - from_seq + 1), 0) FROM telemetry_gaps) \
                     - (SELECT sum(seq) FROM telemetry_positions)";
    eventually("every record is stored or counted", PATIENCE, async || {
        let stored = site.backends[0].stored_telemetry(STREAM);
        let is_complete = stored.records + stored.in_gaps >= fed;
        (is_complete && ask(&standby, accounted) == "0").then_some(())
    })
    .await;
    let stored = site.backends[0].stored_telemetry(STREAM);
    assert_eq!(stored.records, stored.keys);
    assert!(
        stored.records < fed && stored.in_gaps > 0,
        "{stored:?} {fed}"
    );
    site.stop().await;
}

/// The commands of a run, none where nobody knows it any more.
async fn known_commands(site: &Site, run: &str) -> Vec<Value> {
    let path = format!("/v1/runs/{run}/commands");
    let (status, page) = site.backends[1].request("GET", &path, None).await.unwrap();
    if status == 404 {
        return Vec::new();
    }
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().cloned().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_standby_that_commits_wait_for_loses_nothing() {
    let Some((mut pair, load)) = Pair::start().await else {
        return;
    };
    let script = async {
        load.more(2).await;
        pair.site.own.set("synchronous_standby_names", "standby");
        eventually("commits wait for the standby", PATIENCE, async || {
            let query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
            (ask(&pair.site.own, query) == "1").then_some(())
        })
        .await;
        load.more(5).await;
        // Commits that nobody is told of, because the standby does not hear of them.
        pair.cut_off().await;
        sleep(Duration::from_secs(1)).await;
        pair.fail_over();
        pair.is_well().await;
        load.more(5).await;
        load.end();
    };
    let ((), runs, fed) = tokio::join!(script, load.submit(), load.feed());
    let Pair { site, standby } = pair;
    site.account(&runs, fed).await;
    drop(standby);
}
