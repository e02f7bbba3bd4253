//! The page about limits: every number in it is the code's, or the default of the key that it names. And the one bound
//! that the system sets: files and sockets.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use viworks_testkit::binaries::Binaries;
use viworks_testkit::deployment::{Deployment, PATIENCE, text};
use viworks_testkit::process::{Process, eventually};

/// A row of a table of the page.
struct Row {
    what: String,
    bound: u64,
    /// The words in code spans of its third column.
    set_by: Vec<String>,
    at_the_bound: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rows(text: &str) -> Vec<Row> {
    let table = text.lines().filter(|line| line.starts_with("| "));
    let cells = table.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect());
    let rows = cells.filter_map(|cells: Vec<&str>| {
        let [what, bound, set_by, at_the_bound] = cells.try_into().ok()?;
        Some(Row {
            what: what.to_owned(),
            // The lines of heads have none.
            bound: bound.replace(',', "").parse().ok()?,
            set_by: set_by
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect(),
            at_the_bound: at_the_bound.to_owned(),
        })
    });
    rows.collect()
}

/// The default of a key, by the generated references.
fn default_of(section: &str, key: &str) -> Vec<u64> {
    let mut found = Vec::new();
    for page in [
        "docs/configuration_backend.md",
        "docs/configuration_gateway.md",
    ] {
        let text = read(page);
        let Some((_, rest)) = text.split_once(&format!("## `{section}`")) else {
            continue;
        };
        let rest = rest.split("\n## ").next().unwrap();
        let line = rest
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")));
        let default = line.and_then(|line| line.split(" | ").nth(2));
        let number = default.and_then(|default| default.trim_matches('`').parse().ok());
        found.extend::<Option<u64>>(number);
    }
    found
}

/// What a constant comes to, which is a number or a product of numbers.
fn constant(name: &str, file: &str) -> Vec<u64> {
    let text = read(file);
    let text = text.split("#[cfg(test)]").next().unwrap();
    let lines = text.lines().map(str::trim);
    let line = lines
        .filter(|line| line.contains(&format!("const {name}: ")))
        .find_map(|line| line.split_once(" = "));
    let value = line.map(|(_, value)| value.trim_end_matches(';'));
    let factors = value.into_iter().map(|value| {
        let factors = value.split(" * ").map(|factor| {
            let digits = factor.replace('_', "");
            digits
                .parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} in {file} is no product of numbers: {value}"))
        });
        factors.product()
    });
    factors.collect()
}

#[test]
fn every_limit_of_the_page_is_the_one_in_force() {
    let rows = rows(&read("docs/operations/limits.md"));
    assert!(rows.len() > 35, "{} rows", rows.len());
    for row in rows {
        let known = match row.set_by.as_slice() {
            [key, section] if section.starts_with('[') => default_of(section, key),
            [name, file] => constant(name, file),
            other => panic!("{}: {other:?} is neither a key nor a constant", row.what),
        };
        let set_by = row.set_by.join(" ");
        assert!(
            known.contains(&row.bound),
            "{}: the page says {}, and {set_by} is {known:?}",
            row.what,
            row.bound
        );
        assert!(!row.at_the_bound.is_empty(), "{}", row.what);
    }
}

#[test]
fn a_number_that_is_another_one_is_found() {
    assert_eq!(default_of("[agents]", "connections_max"), [20_000]);
    assert!(default_of("[agents]", "nothing_max").is_empty());
    assert_eq!(constant("PAGE_ROWS_MAX", "common/src/limits.rs"), [1_000]);
    assert!(constant("NOTHING_MAX", "common/src/limits.rs").is_empty());
    let row = "| rows of a page | 1,000 | `PAGE_ROWS_MAX` in `common/src/limits.rs` | refused |";
    assert_eq!(rows(row)[0].bound, 1_000);
    assert_eq!(rows("| --- | --- | --- | --- |").len(), 0);
}

/// A backend of this system with so many open files, soft and hard, and its API's address.
async fn backend_with(system: &Deployment, soft: u32, hard: u32) -> (Process, String) {
    let ready = system.path().join("limited-ready.json");
    let config = system.backend_config();
    let script = format!("ulimit -Sn {soft}; ulimit -Hn {hard}; exec \"$@\"");
    let mut command = Command::new("bash");
    command
        .args(["-c", &script, "bash"])
        .arg(system.binaries().backend())
        .args(["serve", "--config", text(&config)])
        .args(["--ready-file", text(&ready)])
        .env("VIWORKS__API__LISTEN", "127.0.0.1:0")
        .env("VIWORKS__AGENTS__LISTEN", "127.0.0.1:0");
    let log = system.path().join("limited.log");
    let mut process = Process::start(&mut command, &log).unwrap();
    let api = eventually("the backend is ready", PATIENCE, async || {
        assert!(process.ended().is_none(), "{}", process.log());
        let said: Value = serde_json::from_slice(&std::fs::read(&ready).ok()?).ok()?;
        Some(said["api"].as_str()?.to_owned())
    })
    .await;
    (process, api)
}

/// The limits of open files of a process, soft and hard.
fn files_of(process: &Process) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    (words[3].parse().unwrap(), words[4].parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_takes_all_the_files_it_may_have_and_tells_when_they_are_too_few() {
    let system = Deployment::new(Binaries::shipped());
    let (mut process, api) = backend_with(&system, 256, 1_024).await;
    assert_eq!(files_of(&process), (1_024, 1_024));
    let key = std::fs::read_to_string(system.path().join("operator.key")).unwrap();
    let health: Value = viworks_testkit::http::client()
        .get(format!("http://{api}/v1/health"))
        .bearer_auth(key.trim())
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let checks = health["checks"].as_array().unwrap();
    let told = checks
        .iter()
        .find(|check| check["name"] == "descriptors" && check["status"] == "warn");
    let detail = told.unwrap_or_else(|| panic!("{health:#}"))["detail"]
        .as_str()
        .unwrap();
    for words in ["1024 files", "connections_max of [agents]", "LimitNOFILE"] {
        assert!(detail.contains(words), "{words}: {detail}");
    }
    assert!(process.stop(PATIENCE).await.success());
}
