//! What the `status` of a shipped gateway tells, and waiting until it tells something.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use viworks_common::code::CloseCode;
use viworks_common::time::Timestamp;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, text};
use viworks_testkit::process::{Said, eventually, finish};
use viworks_testkit::rogue::Material;

/// What `status` says, by its JSON, and how it ends.
pub(crate) async fn status(binaries: &Binaries, socket: &Path) -> Said {
    let mut command = Command::new(binaries.gateway());
    command.args(["status", "--socket", text(socket), "-o", "json"]);
    finish(command, PATIENCE).await
}

/// Waits until `status` holds, and answers with it.
pub(crate) async fn status_where(
    what: &str,
    binaries: &Binaries,
    socket: &Path,
    mut holds: impl FnMut(&Value) -> bool,
) -> (Value, i32) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let said = status(binaries, socket).await;
        if let (Ok(json), Some(code)) = (serde_json::from_str(&said.stdout), said.code)
            && holds(&json)
        {
            return (json, code);
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: {said:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What is to be done about a code, as the gateway of this folder says it: it is named by its id.
pub(crate) fn advice(code: CloseCode, folder: &Path) -> String {
    let own = Material::read(folder).unwrap().identity.agent_id;
    let advice = code.advice().replace("NAME-2", "ANOTHER-NAME");
    // What another one is called is for whoever makes it to say.
    let words = advice.split("ANOTHER-NAME");
    let words = words.map(|words| words.replace("NAME", &own.to_string()));
    words.collect::<Vec<_>>().join("ANOTHER-NAME")
}

/// Why it is not connected, as it says: code, cause, fix and time.
pub(crate) fn failure(status: &Value) -> &Value {
    &status["connection"]["last_failure"]
}

/// Whether it waits for its next attempt. While it dials again, as after a reload, the last failure stays.
pub(crate) fn is_waiting(status: &Value) -> bool {
    !status["connection"]["next_attempt"].is_null()
}

/// Waits until the last failure has this code, and checks what belongs to each: not connected, an exit code that says
/// so.
pub(crate) async fn fails_with(binaries: &Binaries, folder: &Path, code: &str) -> Value {
    let socket = folder.join("state/api.sock");
    let what = format!("the last failure is {code}");
    let (status, exit) = status_where(&what, binaries, &socket, |status| {
        failure(status)["code"] == code && is_waiting(status)
    })
    .await;
    assert_eq!(status["connection"]["connected"], false, "{status:#}");
    assert_eq!(exit, 69, "{status:#}");
    status
}

/// How long after the failure the next attempt comes.
pub(crate) fn delay(status: &Value) -> Duration {
    let time = |value: &Value| Timestamp::parse(value.as_str().unwrap()).unwrap();
    let next = &status["connection"]["next_attempt"];
    time(next).saturating_since(time(&failure(status)["at"]))
}

/// The backend says the same in its own log: on one line what was refused, and what to do about that.
pub(crate) async fn told_there(system: &mut Deployment, words: &[&str]) {
    let what = format!("the backend's log tells of {words:?}");
    eventually(&what, PATIENCE, async || {
        let log = system.backend().log();
        let tells = |line: &str| words.iter().all(|word| line.contains(word));
        log.lines().any(tells).then_some(())
    })
    .await;
}

/// The cause of that, in its own words.
pub(crate) fn cause(status: &Value) -> &str {
    failure(status)["cause"].as_str().unwrap()
}
