//! What tests do to a gateway from outside: a catalogue of their own, telemetry through its unix socket, what really
//! ran.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

/// A command that must not run twice: it appends its id to [`started`]'s file.
pub const ONCE: &str = "test.once";
/// The same, and it may run twice.
pub const AGAIN: &str = "test.again";

/// How long a gateway may take in nothing of what it is handed: longer than it is frozen, away or full in any test.
const TAKES_WITHIN: Duration = Duration::from_secs(300);

/// Gives a gateway a catalogue whose commands write down that they ran.
///
/// # Panics
/// When the files cannot be written.
pub fn mark_starts(folder: &Path) {
    let script = folder.join("mark.sh");
    let text = format!(
        "#!/bin/sh\necho \"$VIWORKS_COMMAND_ID\" >> '{}'\n",
        folder.join("started").display()
    );
    std::fs::write(&script, text).expect("a script can be written");
    mode(&script, 0o755);
    let commands = folder.join("commands.d");
    std::fs::create_dir_all(&commands).expect("a folder can be made");
    mode(&commands, 0o700);
    let mut catalogue = Vec::new();
    for (name, idempotent) in [(ONCE, false), (AGAIN, true)] {
        let argv = script.display().to_string();
        catalogue.push(format!(
            "[[command]]\nname = \"{name}\"\ntitle = \"writes down that it ran\"\nrisk = \"read\"\n\
             idempotent = {idempotent}\nargv = [{argv:?}]\ntimeout_ms = 20000\n"
        ));
    }
    let file = commands.join("test.toml");
    std::fs::write(&file, catalogue.join("\n")).expect("a catalogue can be written");
    mode(&file, 0o600);
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .expect("own files can be changed");
}

/// How often each command id was started on this gateway, by what the commands themselves wrote.
#[must_use]
pub fn started(folder: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in std::fs::read_to_string(folder.join("started"))
        .unwrap_or_default()
        .lines()
    {
        *counts.entry(id.to_owned()).or_insert(0) += 1;
    }
    counts
}

/// One request to the gateway's local API.
///
/// # Errors
/// When the gateway does not answer.
pub async fn local_request(
    folder: &Path,
    method: &str,
    path: &str,
    body: &Value,
) -> io::Result<(u16, String)> {
    let mut stream = UnixStream::connect(folder.join("state/api.sock")).await?;
    let body = body.to_string();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status =
        status.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the answer was cut"))?;
    let text = answer
        .split_once("\r\n\r\n")
        .map_or("", |(_head, body)| body);
    Ok((status, text.to_owned()))
}

/// Hands `count` records to the gateway; each request is repeated until it is answered, and an unanswered one may
/// have been taken in, so the number taken in is returned as a range.
///
/// # Panics
/// When the gateway refuses records, or takes none in for five minutes.
pub async fn feed(folder: &Path, stream: &str, count: usize) -> Fed {
    let mut fed = Fed::default();
    let mut deadline = Instant::now() + TAKES_WITHIN;
    while fed.answered < count {
        assert!(
            Instant::now() < deadline,
            "{}: no records were taken in for {TAKES_WITHIN:?}, {fed:?} of {count}",
            folder.display()
        );
        let size = (count - fed.answered).min(500);
        let records: Vec<Value> = (0..size)
            .map(
                |n| serde_json::json!({"stream": stream, "observed_at": now(), "fields": {"n": n}}),
            )
            .collect();
        let records = serde_json::json!({ "records": records });
        let request = local_request(folder, "POST", "/v1/telemetry", &records);
        let answer = timeout_at(deadline, request).await;
        match answer.unwrap_or_else(|late| Err(late.into())) {
            Ok((200..300, _answer)) => {
                fed.answered += size;
                deadline = Instant::now() + TAKES_WITHIN;
            }
            Ok((429 | 503, _answer)) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Ok((status, answer)) => panic!("the local API answered {status}: {answer}"),
            Err(_cut) => {
                fed.unanswered += size;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    fed
}

/// How many records a gateway took in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fed {
    /// Surely: the request was answered.
    pub answered: usize,
    /// Perhaps: the gateway died before it answered.
    pub unanswered: usize,
}

fn now() -> String {
    use viworks_runtime::clock::{Clock, SystemClock};
    SystemClock.wall().to_string()
}
