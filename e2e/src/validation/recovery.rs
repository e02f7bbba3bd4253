//! Something is killed while the installation works: how long until commands end well again, and what that cost.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use viworks_operator_cli::validation::Finding;
use viworks_testkit::deployment::PATIENCE;
use viworks_testkit::proxy::Network;

use crate::breaks::Break;
use crate::load::Load;
use crate::scene::Scene;

/// How long it may take until a command ends well again.
const RECOVER_WITHIN: Duration = Duration::from_secs(30);
/// The same where the check is to find something: what is not started again does not come back.
const BROKEN_WITHIN: Duration = Duration::from_secs(4);
/// Runs before and after.
const RUNS: usize = 3;

pub(crate) async fn check(scene: &mut Scene, name: &str, broken: Option<Break>) -> Finding {
    if let Some(missing) = missing(scene, name) {
        return Finding::Skipped(missing.to_owned());
    }
    let load = match Load::on(scene, name) {
        Ok(load) => load,
        Err(error) => return Finding::fail("not tried", error.to_string(), "report it"),
    };
    let is_broken = broken.is_some_and(|it| it.name() == name);
    let limit = if is_broken {
        BROKEN_WITHIN
    } else {
        RECOVER_WITHIN
    };
    let script = async {
        more(&load, RUNS, PATIENCE).await?;
        kill(scene, name);
        let begun = Instant::now();
        let killed_at = load.finished();
        if !is_broken {
            start_again(scene, name).await;
        } else {
            take_more(scene, name);
        }
        // One that was under way may end all the same; the one after it began afterwards. The start counts.
        let back = timeout(limit.saturating_sub(begun.elapsed()), async {
            while load.finished() < killed_at + 2 {
                sleep(Duration::from_millis(10)).await;
            }
        });
        let back = back.await.ok().map(|()| begun.elapsed());
        if back.is_some() {
            more(&load, RUNS, PATIENCE).await?;
        }
        Some(back)
    };
    let script = async {
        let outcome = script.await;
        load.end();
        outcome
    };
    let (outcome, done) = tokio::join!(script, load.work());
    let fix = "look at the logs of backend and gateway around that moment";
    let back = match outcome {
        None => {
            let reason = "commands did not end well before or after it";
            return Finding::fail("no load", reason, fix);
        }
        Some(None) => {
            let measured = format!("not back within {} s", limit.as_secs());
            return Finding::fail(measured, "no command ended well again", fix);
        }
        Some(Some(back)) => back,
    };
    let account = load.account(scene, &done).await;
    let measured = format!(
        "back in {}.{} s, {} lost, {} twice  ({} runs, {} records)",
        back.as_secs(),
        back.subsec_millis() / 100,
        account.lost,
        account.twice,
        account.runs,
        account.records
    );
    if (account.lost, account.twice) == (0, 0) {
        return Finding::Pass(measured);
    }
    Finding::fail(measured, "what was accepted is to be there once", fix)
}

/// Where all goes on without what was killed, more than that has to be gone.
fn take_more(scene: &mut Scene, name: &str) {
    match name {
        // The other one takes over.
        "backend_recovery" => {
            for other in scene.backends.iter_mut().skip(1) {
                other.kill_backend();
            }
        }
        // What is in it are hints.
        "redis_recovery" => scene.address.set(Network::Cut),
        _ => {}
    }
}

fn missing(scene: &Scene, name: &str) -> Option<&'static str> {
    match name {
        "redis_recovery" if scene.redis.is_none() => {
            Some("there is no Redis here (on Debian: apt-get install redis-server)")
        }
        "postgres_recovery" if scene.postgres.is_none() => {
            Some("there is no PostgreSQL here (on Debian: apt-get install postgresql)")
        }
        "nginx_recovery" if scene.nginx.is_none() => Some(
            "there is no nginx with its stream module here (on Debian: apt-get install nginx-light libnginx-mod-stream)",
        ),
        _ => None,
    }
}

fn kill(scene: &mut Scene, name: &str) {
    match name {
        "backend_recovery" => scene.first_mut().kill_backend(),
        "redis_recovery" => {
            if let Some(redis) = &mut scene.redis {
                redis.kill();
            }
        }
        "nginx_recovery" => {
            if let Some(nginx) = &mut scene.nginx {
                nginx.kill();
            }
        }
        _ => {
            if let Some(postgres) = &mut scene.postgres {
                postgres.kill();
            }
        }
    }
}

async fn start_again(scene: &mut Scene, name: &str) {
    match name {
        "backend_recovery" => {
            scene.start_backend(0).await;
            scene.lead();
        }
        "redis_recovery" => {
            if let Some(redis) = &mut scene.redis {
                redis.start_again();
            }
        }
        "nginx_recovery" => {
            if let Some(nginx) = &mut scene.nginx {
                nginx.start_again();
            }
        }
        _ => {
            if let Some(postgres) = &mut scene.postgres {
                postgres.start_again();
            }
        }
    }
}

/// Waits until so many more runs ended well.
async fn more(load: &Load, count: usize, limit: Duration) -> Option<()> {
    let wanted = load.finished() + count;
    let enough = async {
        while load.finished() < wanted {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(limit, enough).await.ok()
}
