//! Peers that ask and do not read: they keep nobody out, cost little, and are cut.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start};
use viworks_testkit::process::{eventually, finish};

const STRANGERS: usize = 1_100;
const SEND_TIMEOUT_MS: &str = "2000";
const MIB: u64 = 1024 * 1024;

/// What a process holds in memory of its own.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

fn sockets(pid: u32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let is_socket = |entry: std::io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(entry.ok()?.path()).ok()?;
        target
            .to_string_lossy()
            .starts_with("socket:")
            .then_some(())
    };
    open.filter_map(is_socket).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eleven_hundred_strangers_who_read_nothing_stop_nobody() {
    let mut system = Deployment::new(Binaries::shipped());
    let start = Start::default().with("VIWORKS__API__SEND_TIMEOUT_MS", SEND_TIMEOUT_MS);
    system.start_backend(start).await;
    let api = system.api_url();
    let api = api.strip_prefix("http://").unwrap();
    system.get("/v1/health").await;
    let pid = system.backend().pid();
    let (before, idle) = (resident(pid), sockets(pid));
    let request = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(32);
    let mut strangers = Vec::new();
    let mut most = 0;
    for n in 0..STRANGERS {
        let mut socket = TcpStream::connect(api).await.unwrap();
        // Whoever is put out at once cannot send any more.
        drop(socket.write_all(request.as_bytes()).await);
        strangers.push(socket);
        if n % 50 == 0 {
            system.get("/v1/gateways").await;
            most = most.max(resident(pid));
        }
    }
    system.get("/v1/gateways").await;
    most = most.max(resident(pid));
    let grown = most.saturating_sub(before) / MIB;
    assert!(grown < 48, "{grown} MiB more than before");
    // None of the strangers has read or closed anything, and all of them are gone.
    eventually("every stranger is cut", PATIENCE, async || {
        (sockets(pid) <= idle + 4).then_some(())
    })
    .await;
    for mut socket in strangers {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
        drop(ended.expect("the socket was cut"));
    }
    let metrics = system.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    assert!(
        metrics.contains("viworks_api_connections_cut_total{reason=\"source_full\"}"),
        "{metrics}"
    );
    assert!(
        system
            .backend()
            .stop(Duration::from_secs(30))
            .await
            .success()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_callers_who_read_nothing_do_not_stop_status() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let mut gateway = system.start_gateway(&folder, Start::default());
    system.online("gw-1").await;
    let socket = folder.join("state/api.sock");
    let request = "GET /v1/catalogue HTTP/1.1\r\nhost: x\r\n\r\n".repeat(200);
    let mut silent = Vec::new();
    for _ in 0..100 {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let sending = stream.write_all(request.as_bytes());
        // Its socket takes no more once nobody reads the answers.
        drop(tokio::time::timeout(Duration::from_millis(20), sending).await);
        silent.push(stream);
    }
    let mut status = std::process::Command::new(system.binaries().gateway());
    status.args(["status", "--socket"]).arg(&socket);
    let said = finish(status, Duration::from_secs(20)).await.ended_with(0);
    assert!(said.stdout.contains("connected"), "{said:?}");
    let pid = gateway.pid();
    eventually("they are cut", PATIENCE, async || {
        (sockets(pid) < 32).then_some(())
    })
    .await;
    drop(silent);
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
}
