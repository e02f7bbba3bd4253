//! What both agents tell the service manager: ready, what they do, reading again, alive, stopping.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::UnixDatagram;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::postgres::Own;
use viworks_testkit::process::Process;

/// The manager's side: a socket that takes notices.
struct Manager {
    socket: UnixDatagram,
    start: Start,
    /// What it was last told of what the agent does.
    status: Mutex<String>,
}

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        let start = Start::default()
            .with("NOTIFY_SOCKET", path.to_str().unwrap())
            // A notice every second.
            .with("WATCHDOG_USEC", "4000000");
        Self {
            socket,
            start,
            status: Mutex::default(),
        }
    }

    /// The next notice that holds `what`.
    async fn hears(&self, what: &str) -> String {
        let mut passed = Vec::new();
        let mut buffer = [0; 4_096];
        let heard = tokio::time::timeout(PATIENCE, async {
            loop {
                let length = self.socket.recv(&mut buffer).await.unwrap();
                let notice = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if notice.starts_with("STATUS=") {
                    self.status.lock().unwrap().clone_from(&notice);
                }
                if notice.contains(what) {
                    return notice;
                }
                passed.push(notice);
            }
        });
        match heard.await {
            Ok(notice) => notice,
            Err(_late) => panic!("the manager did not hear {what:?}, but {passed:?}"),
        }
    }

    /// What the agent does, once that names `what`: it may have been told while something else was waited for.
    async fn is_told(&self, what: &str) -> String {
        let last = self.status.lock().unwrap().clone();
        if last.contains(what) {
            return last;
        }
        self.hears(what).await
    }

    /// From the first notice to the last of a process whose configuration is broken, and mended, meanwhile.
    async fn follows(&self, process: &mut Process, config: &Path, works: &str) {
        self.hears("READY=1").await;
        self.hears(&format!("STATUS={works}")).await;
        for _ in 0..3 {
            self.hears("WATCHDOG=1").await;
        }
        let sound = std::fs::read_to_string(config).unwrap();
        std::fs::write(config, format!("{sound}\n[unknown]\n")).unwrap();
        self.reloads(process).await;
        // Its reload and its status are told by two tasks, in either order.
        let told = self.is_told("reload.configuration").await;
        assert!(told.starts_with(&format!("STATUS={works}")), "{told}");
        self.hears("WATCHDOG=1").await;
        std::fs::write(config, sound).unwrap();
        self.reloads(process).await;
        self.hears("WATCHDOG=1").await;
        process.signal(Signal::TERM);
        self.hears("STOPPING=1").await;
        assert!(process.wait(Duration::from_secs(30)).await.success());
    }

    async fn reloads(&self, process: &Process) {
        process.signal(Signal::HUP);
        let began = self.hears("RELOADING=1").await;
        let since = began.split_once("MONOTONIC_USEC=").unwrap().1;
        assert!(since.trim().parse::<u64>().unwrap() > 0, "{began}");
        self.hears("READY=1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_agents_keep_the_service_manager_informed() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    let backends = Manager::at(&system.path().join("backend.notify"));
    let gateways = Manager::at(&system.path().join("gateway.notify"));
    system.start_backend(backends.start.clone()).await;
    let mut gateway = system.start_gateway(&folder, gateways.start.clone());
    system.online("gw-1").await;
    gateways
        .follows(
            &mut gateway,
            &folder.join("gateway.toml"),
            "connected to wss://",
        )
        .await;
    let config = system.backend_config();
    backends
        .follows(system.backend(), &config, "0 gateways connected")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_its_database_and_tells_the_service_manager() {
    let Some(mut own) = Own::start() else { return };
    own.server().make_empty("viworks");
    let database = own.server().database("viworks");
    let mut system = Deployment::on(Binaries::shipped(), database);
    let manager = Manager::at(&system.path().join("backend.notify"));
    let port = own.server().port();
    own.kill();
    let comes_back = async {
        // A start may take longer than the manager lets it.
        for _try in 0..2 {
            manager.hears("EXTEND_TIMEOUT_USEC=").await;
        }
        let told = manager.is_told("starting, and tries again in").await;
        assert!(told.contains(&format!("127.0.0.1:{port}")), "{told}");
        own.start_again();
    };
    tokio::join!(system.start_backend(manager.start.clone()), comes_back);
    manager.hears("READY=1").await;
    assert!(system.backend().stop(PATIENCE).await.success());
}
