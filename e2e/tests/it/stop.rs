//! SIGTERM: both agents end by themselves, with nothing left to drop, and say so.

use std::time::Duration;

use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, Start};
use viworks_testkit::gateway::{ONCE, mark_starts};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_agents_stop_by_themselves_when_they_are_asked_to() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    mark_starts(&folder);
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let run = system.submit(ONCE, "1").await;
    system.finished(&run).await;
    let backend = system.backend();
    for process in [backend, &mut gateway] {
        // Also refuses one that had to drop a task when its grace period was over.
        let status = process.stop(Duration::from_secs(30)).await;
        assert!(status.success(), "{status}: {}", process.log());
        let log = process.log();
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("stopped"), "{log}");
    }
}
