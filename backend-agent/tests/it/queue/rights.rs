//! Who is let in: a user with the rights that the documentation lists and no others, passwords from files.

use std::path::Path;

use tempfile::TempDir;
use viworks_backend_agent::command::bus::Heard;
use viworks_backend_agent::command::queue::Told;
use viworks_backend_agent::data::Hurry as _;
use viworks_common::id::RunId;
use viworks_testkit::redis::Own;

use super::*;

/// The line of `docs/operations/scaling.md` that makes the user.
fn documented() -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/scaling.md");
    let page = std::fs::read_to_string(page).unwrap();
    let line = page
        .lines()
        .find(|line| line.starts_with("user viworks "))
        .expect("the page has the line");
    line.to_owned()
}

fn address(own: &Own, folder: &TempDir, password: &str) -> QueueAddress {
    let file = folder.path().join("queue.password");
    drop(std::fs::remove_file(&file));
    viworks_runtime::files::write_new(&file, password.as_bytes(), 0o600).unwrap();
    let url = format!("redis://viworks@127.0.0.1:{}", own.place().port());
    QueueAddress::parse(&url, Some(&file), None).unwrap()
}

#[tokio::test]
async fn the_documented_rights_are_enough_and_each_of_them_is_needed() {
    let line = documented();
    assert!(line.contains(" >PASSWORD "), "{line}");
    let line = line.replace("PASSWORD", "correct-horse");
    let Some(own) = Own::start_with(&[&line]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let open = || async {
        let (a, b) = (address(&own, &folder, "correct-horse\n"), LIMITS);
        Instance::with(a, b).await
    };
    let (a, b) = (open().await.unwrap(), open().await.unwrap());
    whole_life(&own, &a, &b).await.unwrap();
    // Without any one of them something does not work.
    for right in line.split(' ').filter(|word| word.starts_with('+')) {
        // Only Cluster asks for these.
        if right.starts_with("+cluster") {
            continue;
        }
        // Without this one works all the same, and something is not told.
        if right == "+info" {
            continue;
        }
        let less = format!("-{}", &right[1..]);
        let set = |word: &str| {
            own.place()
                .ask::<String>(&["ACL", "SETUSER", "viworks", word])
                .unwrap();
        };
        set(&less);
        // Scripts that are there already need not be loaded.
        own.place().ask::<String>(&["SCRIPT", "FLUSH"]).unwrap();
        let works = match (open().await, open().await) {
            (Ok(a), Ok(b)) => whole_life(&own, &a, &b).await.is_ok(),
            _ => false,
        };
        assert!(!works, "{right} is not needed");
        set(right);
    }
    let (a, b) = (open().await.unwrap(), open().await.unwrap());
    let works = whole_life(&own, &a, &b).await;
    assert_eq!(works, Ok(()));
}

/// Everything that an instance does with a queue.
async fn whole_life(own: &Own, a: &Instance, b: &Instance) -> Result<(), QueueError> {
    let key = key_of(&tenant(), 1);
    a.queue.offer(&key, &commands([1])).await?;
    b.queue.attach(&key, 3).await?;
    assert_eq!(a.queue.offer(&key, &commands([2])).await?, Told::Another);
    let taken = b.queue.take(&key, 10, at(0)).await?;
    b.queue.done(&key, &taken).await?;
    let works = tokio::time::timeout(Duration::from_secs(5), async {
        while b.calls.next().await.look.is_empty() {}
        // A run is watched, and then another one instead.
        let runs = [(); 2].map(|()| RunId::from_uuid(random::uuid_v4()));
        let mut watcher = a.bus.subscribe(runs[0], None);
        while watcher.finished().await != Heard::Look {}
        drop(watcher);
        let _second = a.bus.subscribe(runs[1], None);
        let channel = format!("vw:o:{}", runs[0]);
        viworks_testkit::process::eventually("the channel is left", PATIENCE, async || {
            let words = ["PUBSUB", "CHANNELS", &channel];
            let channels: Vec<String> = own.place().ask(&words).ok()?;
            channels.is_empty().then_some(())
        })
        .await;
    });
    works.await.map_err(|_elapsed| QueueError::Unavailable {
        reason: "something did not work".to_owned(),
    })
}

#[tokio::test]
async fn a_wrong_password_is_said_at_once_and_a_changed_one_is_read_again() {
    let line = documented().replace("PASSWORD", "correct-horse");
    let Some(mut own) = Own::start_with(&[&line]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    for wrong in ["battery-staple", "correct-horse "] {
        let refused = Instance::with(address(&own, &folder, wrong), LIMITS).await;
        let error = refused.map(drop).unwrap_err();
        assert!(error.is_lasting(), "{error}");
        assert!(!error.to_string().contains(wrong.trim()), "{error}");
    }
    let stranger = format!("redis://stranger@127.0.0.1:{}", own.place().port());
    let file = folder.path().join("queue.password");
    let stranger = QueueAddress::parse(&stranger, Some(&file), None).unwrap();
    assert!(Instance::with(stranger, LIMITS).await.is_err());
    let a = Instance::with(address(&own, &folder, "correct-horse"), LIMITS).await;
    let a = a.unwrap();
    assert!(a.called().await.look_everywhere);
    own.kill();
    // Both change it while it is away.
    let _again = address(&own, &folder, "changed-since");
    own.start_again();
    let words = ["ACL", "SETUSER", "viworks", "resetpass", ">changed-since"];
    own.place().ask::<String>(&words).unwrap();
    assert!(a.called().await.look_everywhere);
    let key = key_of(&tenant(), 1);
    viworks_testkit::process::eventually("it is used again", PATIENCE, async || {
        a.queue.offer(&key, &commands([1])).await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_numbered_database_needs_a_right_of_its_own_and_a_start_says_which() {
    let line = documented().replace("PASSWORD", "correct-horse");
    let Some(own) = Own::start_with(&[&line]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let _unnumbered = address(&own, &folder, "correct-horse");
    let file = folder.path().join("queue.password");
    let numbered = |number: u32| {
        let url = format!("redis://viworks@127.0.0.1:{}/{number}", own.place().port());
        QueueAddress::parse(&url, Some(&file), None).unwrap()
    };
    let refused = async |number: u32| {
        let tried = Instance::with(numbered(number), LIMITS).await;
        let error = tried.map(drop).unwrap_err();
        assert!(error.is_lasting(), "{error}");
        assert!(error.to_string().contains("+select"), "{error}");
    };
    refused(1).await;
    let words = ["ACL", "SETUSER", "viworks", "+select"];
    own.place().ask::<String>(&words).unwrap();
    assert!(Instance::with(numbered(1), LIMITS).await.is_ok());
    // The server has sixteen.
    refused(5_000).await;
}

#[tokio::test]
async fn a_policy_that_throws_away_is_told_where_that_may_be_asked() {
    let line = documented().replace("PASSWORD", "correct-horse");
    let Some(mut own) = Own::start_with(&[&line]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let password = "correct-horse\n";
    let set = |words: &[&str]| {
        own.place().ask::<String>(words).unwrap();
    };
    set(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let here = Instance::with(address(&own, &folder, password), LIMITS).await;
    let here = here.unwrap();
    let told = |here: &Instance| {
        let mut conditions = here.conditions.list().into_iter();
        conditions.find(|condition| condition.name == "queue.policy")
    };
    let found = viworks_testkit::process::eventually("it is told", PATIENCE, async || told(&here));
    let found = found.await;
    assert!(found.cause.contains("allkeys-lru"), "{found:?}");
    assert!(found.fix.contains("noeviction"), "{found:?}");
    let try_out = async |own: &Own| {
        let clock = Arc::new(Timeline::unstored(Arc::new(SystemClock)));
        let id = InstanceId::from_uuid(random::uuid_v4());
        let tried = RedisQueue::try_out(address(own, &folder, password), id, clock);
        tried.await.unwrap()
    };
    let warned = try_out(&own).await.unwrap();
    assert!(warned.contains("allkeys-lru"), "{warned}");
    // Whoever may not ask goes without.
    set(&["ACL", "SETUSER", "viworks", "-info"]);
    assert_eq!(try_out(&own).await, None);
    set(&["ACL", "SETUSER", "viworks", "+info"]);
    // Its configuration says otherwise, and is read again.
    own.kill();
    own.start_again();
    viworks_testkit::process::eventually("it is well", PATIENCE, async || {
        told(&here).is_none().then_some(())
    })
    .await;
    assert_eq!(try_out(&own).await, None);
}

#[tokio::test]
async fn what_is_no_redis_is_said_to_be_none() {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut socket, _from)) = listener.accept() {
            drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    let refused = Instance::at(&format!("redis://127.0.0.1:{port}")).await;
    let error = refused.map(drop).unwrap_err();
    assert!(error.is_lasting(), "{error}");
}

#[tokio::test]
async fn a_channel_that_cannot_be_heard_is_tried_again_until_it_can() {
    let line = documented().replace("PASSWORD", "correct-horse");
    let Some(own) = Own::start_with(&[&line]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let here = Instance::with(address(&own, &folder, "correct-horse\n"), LIMITS).await;
    let (here, elsewhere) = (
        here.unwrap(),
        Instance::at(&own.place().url()).await.unwrap(),
    );
    assert!(here.called().await.look_everywhere);
    // What it hears already it may go on to hear, and nothing else.
    let channel = format!("&vw:i:{}", here.id);
    let set = |words: &[&str]| {
        let words = [&["ACL", "SETUSER", "viworks"], words].concat();
        own.place().ask::<String>(&words).unwrap();
    };
    set(&["resetchannels", "&vw:w", &channel]);
    let name = InstanceId::from_uuid(random::uuid_v4());
    here.known_as.send_replace(Some(name));
    let mut watcher = here
        .bus
        .subscribe(RunId::from_uuid(random::uuid_v4()), None);
    // The server counts what it refuses.
    viworks_testkit::process::eventually("both were refused", PATIENCE, async || {
        let text: String = own.place().ask(&["INFO", "errorstats"]).ok()?;
        let count = text.split_once("errorstat_NOPERM:count=")?.1;
        let count: u64 = count.lines().next()?.trim().parse().ok()?;
        (count >= 2).then_some(())
    })
    .await;
    set(&["&vw:*"]);
    let told = async {
        loop {
            elsewhere.queue.hurry(name);
            let pause = Duration::from_millis(50);
            if tokio::time::timeout(pause, here.inbox.notified())
                .await
                .is_ok()
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, told)
        .await
        .expect("its inbox is heard of");
    let heard = async { while watcher.finished().await != Heard::Look {} };
    tokio::time::timeout(PATIENCE, heard)
        .await
        .expect("the run is heard of");
    // All of that on the connection that it had.
    let connects = here.metrics.encode().unwrap();
    assert!(
        connects.contains("queue_redis_sweeps_total 1\n"),
        "{connects}"
    );
}
