//! SIGHUP: a gateway reads its catalogue again, as a whole or not at all, and neither agent dies from it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::gateway::{ONCE, mark_starts, started};
use viworks_testkit::process::eventually;

const ADDED: &str = "[[command]]\nname = \"test.added\"\ntitle = \"came later\"\nrisk = \"read\"\n\
                     idempotent = true\nargv = [\"/bin/true\"]\ntimeout_ms = 20000\n";

fn write(folder: &Path, name: &str, text: &str) {
    let file = folder.join("commands.d").join(name);
    std::fs::write(&file, text).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

async fn outcome(system: &Deployment, command: &str, key: &str) -> String {
    let run = system.submit(command, key).await;
    system.finished(&run).await;
    let commands = system.commands(&run).await;
    commands[0]["state"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_reads_its_catalogue_again_on_sighup_as_a_whole_or_not_at_all() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    let before = system.online("gw-1").await["catalogue_digest"].clone();

    // A file with a mistake changes nothing, not even by the good file beside it.
    write(&folder, "added.toml", ADDED);
    write(
        &folder,
        "broken.toml",
        "[[command]]\nname = \"test.broken\"\nargw = []\n",
    );
    gateway.signal(Signal::HUP);
    eventually("the mistake is logged", PATIENCE, async || {
        let log = gateway.log();
        (log.contains("the one in force stays") && log.contains("argw")).then_some(())
    })
    .await;
    assert_eq!(system.online("gw-1").await["catalogue_digest"], before);
    assert_eq!(outcome(&system, ONCE, "1").await, "succeeded");

    // Without it the catalogue changes for the backend and for what runs, in the session that there is.
    std::fs::remove_file(folder.join("commands.d/broken.toml")).unwrap();
    std::fs::remove_file(folder.join("commands.d/test.toml")).unwrap();
    let epoch = system.online("gw-1").await["session"]["epoch"].clone();
    gateway.signal(Signal::HUP);
    let after = eventually("the backend knows", PATIENCE, async || {
        let gateway = system.get("/v1/gateways/gw-1").await;
        (gateway["catalogue_digest"] != before).then_some(gateway)
    })
    .await;
    assert_eq!(after["session"]["epoch"], epoch);
    assert_eq!(outcome(&system, "test.added", "2").await, "succeeded");
    let gone = serde_json::json!({ "command": ONCE, "targets": "all" });
    let refused = system
        .request("POST", "/v1/runs", Some(&gone))
        .await
        .unwrap();
    assert!((400..500).contains(&refused.0), "{refused:?}");
    assert_eq!(started(&folder).len(), 1);

    system.backend().signal(Signal::HUP);
    eventually("the backend says so", PATIENCE, async || {
        system
            .backend()
            .log()
            .contains("SIGHUP changes nothing")
            .then_some(())
    })
    .await;
    assert_eq!(outcome(&system, "test.added", "3").await, "succeeded");
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
