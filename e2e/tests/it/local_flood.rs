//! Local programs that hand in telemetry without end: commands and the gateway's own readings go on beside them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_res_uid;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, Start, text};
use viworks_testkit::gateway::{feed, local_request};
use viworks_testkit::process::eventually;

const STREAM: &str = "test.flood";
const COMMAND: &str = "gateway.info";
const NOBODY: u32 = 65_534;
const CALLERS: usize = 12;
/// Records of one request of the flood.
const RECORDS: usize = 2_000;

/// Says so when not.
#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn can_become_another() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: a flood of another user: only root can become one");
    }
    root
}

/// Connections of a user who may run nothing. The kernel notes who connects, and on Linux that is the thread.
fn connections_of_nobody(socket: &Path) -> Vec<UnixStream> {
    let socket = socket.to_owned();
    let connect = move || {
        let nobody = Uid::from_raw(NOBODY);
        set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let one = |_| std::os::unix::net::UnixStream::connect(&socket).unwrap();
        (0..CALLERS).map(one).collect::<Vec<_>>()
    };
    let connections = std::thread::spawn(connect).join().unwrap();
    let own = |connection: std::os::unix::net::UnixStream| {
        connection.set_nonblocking(true).unwrap();
        UnixStream::from_std(connection).unwrap()
    };
    connections.into_iter().map(own).collect()
}

/// What the flood came to.
#[derive(Debug, Default)]
struct Flooded {
    accepted: usize,
    refused: usize,
}

/// Sends the same request again and again, whatever the answers say, until it is time.
async fn flood(connection: UnixStream, request: &str, until: Instant) -> Flooded {
    let mut connection = BufReader::new(connection);
    let mut flooded = Flooded::default();
    while Instant::now() < until {
        connection.write_all(request.as_bytes()).await.unwrap();
        let (mut status, mut length, mut retry_after) = (0, 0, None);
        loop {
            let mut line = String::new();
            connection.read_line(&mut line).await.unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest.split(' ').next().unwrap().parse().unwrap();
            } else if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().unwrap();
            } else if let Some(seconds) = line.strip_prefix("retry-after: ") {
                retry_after = Some(seconds.parse::<u32>().unwrap());
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        connection.read_exact(&mut body).await.unwrap();
        match status {
            200 => flooded.accepted += RECORDS,
            429 | 503 => {
                assert!(retry_after.is_some_and(|seconds| seconds >= 1));
                flooded.refused += 1;
            }
            other => panic!("{other}: {}", String::from_utf8_lossy(&body)),
        }
    }
    flooded
}

async fn status(folder: &Path) -> Value {
    let answer = local_request(folder, "GET", "/v1/status", &json!({})).await;
    serde_json::from_str(&answer.unwrap().1).unwrap()
}

/// How long half of so many commands take at most, one after the other.
async fn median(system: &Deployment, key: &str, commands: u32) -> Duration {
    let mut took = Vec::new();
    for n in 0..commands {
        let begun = Instant::now();
        let run = system.submit(COMMAND, &format!("{key}-{n}")).await;
        system.finished(&run).await;
        took.push(begun.elapsed());
        let commands = system.commands(&run).await;
        assert_eq!(commands[0]["state"], "succeeded", "{commands:?}");
    }
    took.sort();
    took[took.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_floods_a_gateway_slows_neither_its_commands_nor_its_readings() {
    if !can_become_another() {
        return;
    }
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let start = Start::default().with("VIWORKS__COLLECT__INTERVAL_MS", "500");
    let mut gateway = system.start_gateway(&folder, start);
    system.online("gw-1").await;
    let state = folder.join("state");
    let socket = state.join("api.sock");
    for above in state
        .ancestors()
        .take_while(|above| above.starts_with(system.path()))
    {
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o711)).unwrap();
    }
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let idle = median(&system, "idle", 9).await;

    let record = json!({"stream": STREAM, "fields": {"a": 1, "b": 1, "c": 1, "d": 1}});
    let body = json!({ "records": vec![record; RECORDS] }).to_string();
    let request = format!(
        "POST /v1/telemetry HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let begun = Instant::now();
    let until = begun + Duration::from_secs(8);
    let callers = connections_of_nobody(&socket);
    let floods = callers.into_iter().map(|one| flood(one, &request, until));
    let commands = async {
        let busy = median(&system, "busy", 15).await;
        (busy, begun.elapsed())
    };
    let (floods, (busy, took)) = tokio::join!(futures_util::future::join_all(floods), commands);
    let mut flooded = Flooded::default();
    for one in floods {
        flooded.accepted += one.accepted;
        flooded.refused += one.refused;
    }
    // 3,000 at once and fifty each second, by default.
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!(
        (RECORDS..=3_000 + 50 * seconds).contains(&flooded.accepted) && flooded.refused > 0,
        "{flooded:?}"
    );
    assert!(
        busy <= idle * 4 + Duration::from_millis(150),
        "{busy:?} beside a flood, {idle:?} without, {took:?} for all, {flooded:?}"
    );
    let status = status(&folder).await;
    let refusals = &status["intake"]["refused_requests"];
    let counted: usize = ["over_rate", "busy", "bodies_full"]
        .iter()
        .map(|why| usize::try_from(refusals[why].as_u64().unwrap()).unwrap())
        .sum();
    assert_eq!(counted, flooded.refused, "{status}");
    let conditions = status["conditions"].to_string();
    assert!(
        conditions.contains("telemetry.intake") && conditions.contains("uid:65534"),
        "{status}"
    );
    let mut asked = std::process::Command::new(system.binaries().gateway());
    asked.args(["status", "--socket", text(&socket)]);
    let said = viworks_testkit::process::finish(asked, PATIENCE).await;
    let line = format!(
        "requests of local programs: {} over the rate of their user",
        refusals["over_rate"]
    );
    assert!(said.stdout.contains(&line), "{said:?}");
    // Readings that were made meanwhile are there, and nothing is lost.
    eventually("all of it is delivered", PATIENCE, async || {
        let status = self::status(&folder).await;
        assert_eq!(status["spool"]["dropped"], 0, "{status}");
        let records = status["spool"]["records"].as_u64()?;
        let page = system
            .get("/v1/telemetry?gateway=gw-1&stream=host.cpu&limit=1000")
            .await;
        (records < 100 && page["items"].as_array()?.len() >= 10).then_some(())
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    assert!(
        system
            .backend()
            .stop(Duration::from_secs(30))
            .await
            .success()
    );
    let stored = system.stored_telemetry(STREAM);
    assert_eq!((stored.records, stored.in_gaps), (flooded.accepted, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_programs_cannot_push_the_gateways_own_readings_out_of_its_spool() {
    let mut system = Deployment::new(Binaries::shipped());
    let folder = system.issue("gw-1");
    system.start_backend(Start::default()).await;
    let start = Start::default()
        .with("VIWORKS__COLLECT__INTERVAL_MS", "500")
        .with("VIWORKS__SPOOL__BYTES_MAX", "2097152");
    let mut gateway = system.start_gateway(&folder, start);
    system.online("gw-1").await;
    system.kill_backend();
    eventually("readings wait", PATIENCE, async || {
        (status(&folder).await["spool"]["records"].as_u64()? > 30).then_some(())
    })
    .await;
    // As root, who has no rate.
    let fed = feed(&folder, STREAM, 20_000).await;
    assert_eq!(fed.unanswered, 0);
    let spool = status(&folder).await["spool"].clone();
    let (local, bound) = (&spool["local_bytes"], &spool["local_bytes_max"]);
    assert!(
        local.as_u64().unwrap() <= bound.as_u64().unwrap(),
        "{spool}"
    );
    let dropped = spool["dropped"].as_u64().unwrap();
    assert!(dropped > 0, "{spool}");
    system.start_backend(Start::default()).await;
    system.online("gw-1").await;
    eventually("all of it is delivered", PATIENCE, async || {
        (status(&folder).await["spool"]["records"].as_u64()? < 100).then_some(())
    })
    .await;
    assert!(gateway.stop(Duration::from_secs(30)).await.success());
    assert!(
        system
            .backend()
            .stop(Duration::from_secs(30))
            .await
            .success()
    );
    let stored = system.stored_telemetry(STREAM);
    assert_eq!(u64::try_from(stored.in_gaps).unwrap(), dropped);
    // Whatever is missing was handed in by the local program.
    assert_eq!(stored.records + stored.in_gaps, fed.answered);
    assert!(system.stored_telemetry("host.cpu").records > 0);
}
