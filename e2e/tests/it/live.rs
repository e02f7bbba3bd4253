//! What a person is shown of output while it comes: no line that was not written, and every byte accounted for.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use viworks_testkit::deployment::{PATIENCE, Start, text};
use viworks_testkit::process::{Process, Said, eventually, finish};

use super::desk::Desk;

const LINES: u64 = 384_000;

fn catalogue(folder: &Path) -> String {
    let letters = Desk::script(
        folder,
        "letters",
        r"printf '\303'; sleep 0.1; printf '\251\342'; sleep 0.1; printf '\202'; sleep 0.1; printf '\254 end\n'",
    );
    let steps = Desk::script(
        folder,
        "steps",
        "printf '%0900d\\n' 1; printf '%0900d\\n' 2; printf '%0900d\\n' 3 >&2; echo four; echo end >&2",
    );
    let stuck = Desk::script(folder, "stuck", "echo got this far; sleep 60");
    let both = Desk::script(folder, "both", "echo out; echo err >&2; echo more");
    [
        (
            "test.flood",
            format!(r#"["/usr/bin/seq", "-f", "line %08.0f the quick brown fox", "{LINES}"]"#),
        ),
        ("test.letters", format!(r#"["{}"]"#, letters.display())),
        ("test.steps", format!(r#"["{}"]"#, steps.display())),
        ("test.both", format!(r#"["{}"]"#, both.display())),
        ("test.stuck", format!(r#"["{}"]"#, stuck.display())),
        ("test.long", r#"["/bin/sleep", "60"]"#.to_owned()),
    ]
    .iter()
    .map(|(name, argv)| {
        format!(
            "[[command]]\nname = \"{name}\"\ntitle = \"for a test\"\nrisk = \"read\"\nidempotent = true\nargv = {argv}\ntimeout_ms = 120000\n"
        )
    })
    .collect()
}

async fn desk(folder: &TempDir) -> Desk {
    Desk::open(&catalogue(folder.path()), Start::default()).await
}

/// The number in a line that says what is not shown.
fn not_shown(line: &str) -> Option<u64> {
    let (number, _rest) = line.strip_prefix("… ")?.split_once(" bytes not shown")?;
    number.replace(',', "").parse().ok()
}

fn written() -> u64 {
    LINES * 34
}

/// Each line is one that was written, in order, or says how much is missing; together they are all of it.
fn assert_accounted(lines: &str) {
    let (mut bytes, mut last, mut holes) = (0, 0, 0);
    for line in lines.lines() {
        if let Some(hidden) = not_shown(line) {
            assert!(line.contains("runs show"), "{line}");
            bytes += hidden;
            holes += 1;
            continue;
        }
        // What came of a line whose beginning did not.
        if let Some(rest) = line.strip_prefix('…') {
            let whole = "line 00000000 the quick brown fox";
            assert!(whole.len() >= rest.len(), "nobody wrote {line:?}");
            bytes += u64::try_from(rest.len()).unwrap() + 1;
            continue;
        }
        let number: u64 = line
            .strip_prefix("line ")
            .and_then(|rest| rest.strip_suffix(" the quick brown fox"))
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("nobody wrote {line:?}"));
        assert!(number > last, "{number} after {last}");
        last = number;
        bytes += u64::try_from(line.len()).unwrap() + 1;
    }
    assert_eq!(bytes, written(), "{holes} holes");
    assert_eq!(last, LINES, "the end is always kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_shown_without_an_invented_line_and_every_byte_is_accounted_for() {
    let folder = TempDir::new().unwrap();
    let desk = desk(&folder).await;
    let said = desk
        .run(&["run", "test.flood", "-g", "gw-1"])
        .await
        .ended_with(0);
    assert_accounted(&said.stdout);
    if said.stdout.contains("bytes not shown") {
        let row = said.stderr.lines().find(|line| line.contains("✓ ok"));
        assert!(row.unwrap().contains("bytes not shown"), "{}", said.stderr);
    }

    // Who comes when it is over gets what was kept, and the same account.
    let listed = desk.json(&["runs", "ls"], 0).await;
    let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
    let late = desk.run(&["runs", "wait", &id]).await.ended_with(0);
    assert_accounted(&late.stdout);
    let show = desk.run(&["runs", "show", &id]).await.ended_with(0);
    assert!(show.stdout.contains("bytes not kept"), "{}", show.stdout);
    let full = desk
        .run(&["runs", "show", &id, "--full"])
        .await
        .ended_with(0);
    let odd: Vec<&str> = full
        .stdout
        .lines()
        .filter(|line| line.starts_with("line ") && line.len() != 33)
        .collect();
    assert_eq!(odd, Vec::<&str>::new(), "cut between lines");

    // Several gateways: each line behind its gateway, and an account for each.
    let said = desk
        .run(&["run", "test.flood", "--all"])
        .await
        .ended_with(0);
    for gateway in ["gw-1", "gw-2"] {
        let prefix = format!("{gateway} │ ");
        let own: Vec<&str> = said
            .stdout
            .lines()
            .filter_map(|line| line.strip_prefix(&prefix))
            .collect();
        assert_accounted(&own.join("\n"));
    }
}

/// What a small command writes in several pieces, whatever came before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_output_is_shown_whole_after_a_flood() {
    let folder = TempDir::new().unwrap();
    let desk = desk(&folder).await;
    drop(
        desk.run(&["run", "test.flood", "-g", "gw-1"])
            .await
            .ended_with(0),
    );
    let all = [
        format!("{:0900}", 1),
        format!("{:0900}", 2),
        format!("{:0900}", 3),
        "end".to_owned(),
        "four".to_owned(),
    ];
    for round in 0..12 {
        let said = desk
            .run(&["run", "test.steps", "-g", "gw-1"])
            .await
            .ended_with(0);
        let mut lines: Vec<&str> = said.stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, all, "round {round}: {said:#?}");
        let listed = desk.json(&["runs", "ls"], 0).await;
        let id = listed["items"][0]["id"].as_str().unwrap().to_owned();
        let late = desk.run(&["runs", "wait", &id]).await.ended_with(0);
        let mut lines: Vec<&str> = late.stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, all, "round {round}: {late:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_programs_what_they_do_not_bring() {
    let folder = TempDir::new().unwrap();
    let desk = desk(&folder).await;
    let request = serde_json::json!({"command": "test.flood", "targets": {"gateways": ["gw-1"]}});
    let run = desk.system.post("/v1/runs", &request).await["id"].clone();
    let run = run.as_str().unwrap();
    desk.system.finished(run).await;
    let (_status, text) = desk
        .system
        .request("GET", &format!("/v1/runs/{run}/events"), None)
        .await
        .unwrap();
    let (mut at, mut bytes) = (0, 0);
    for data in text.as_str().unwrap().lines() {
        let Some(data) = data.strip_prefix("data: ") else {
            continue;
        };
        let event: Value = serde_json::from_str(data).unwrap();
        let ranges = match event["event"].as_str().unwrap() {
            "output" => {
                let text = event["data"]["text"].as_str().unwrap();
                vec![(
                    event["offset"].as_u64().unwrap(),
                    u64::try_from(text.len()).unwrap(),
                )]
            }
            "missed" => event["output"]
                .as_array()
                .unwrap()
                .iter()
                .map(|hole| {
                    assert_eq!(hole["stream"], "stdout");
                    assert_eq!(hole["gateway"]["name"], "gw-1");
                    (
                        hole["offset"].as_u64().unwrap(),
                        hole["bytes"].as_u64().unwrap(),
                    )
                })
                .collect(),
            "command" => {
                assert_eq!(event["stdout_bytes"], written());
                Vec::new()
            }
            _ => Vec::new(),
        };
        for (offset, length) in ranges {
            assert_eq!(offset, at, "{event}");
            at += length;
            bytes += length;
        }
    }
    assert_eq!(bytes, written());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_across_two_pieces_is_one_letter_and_a_pipe_gets_the_output_alone() {
    let folder = TempDir::new().unwrap();
    let desk = desk(&folder).await;
    let said = desk
        .run(&["run", "test.letters", "-g", "gw-1"])
        .await
        .ended_with(0);
    assert_eq!(said.stdout, "é€ end\n", "{said:#?}");
    assert!(said.stderr.contains("✓ ok"), "{said:#?}");
    let said = desk
        .run(&["run", "test.both", "-g", "gw-1"])
        .await
        .ended_with(0);
    let mut lines: Vec<&str> = said.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "more", "out"], "{said:#?}");
    assert!(said.stderr.contains("1 ok = 1"), "{said:#?}");
    let said = desk.run(&["run", "test.both", "--all"]).await.ended_with(0);
    for gateway in ["gw-1", "gw-2"] {
        for line in ["out", "err", "more"] {
            let line = format!("{gateway} │ {line}\n");
            assert!(said.stdout.contains(&line), "{said:#?}");
        }
    }
    assert_eq!(said.stdout.matches("3 lines above").count(), 2, "{said:#?}");
    let result = desk.json(&["run", "test.both", "-g", "gw-1"], 0).await;
    assert_eq!(
        result["commands"][0]["outcome"]["stdout_bytes"], 9,
        "{result:#}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_waits_says_for_whom_why_and_until_when() {
    let folder = TempDir::new().unwrap();
    let mut desk = desk(&folder).await;
    desk.gateways[1].kill();
    eventually("gw-2 is offline", PATIENCE, async || {
        let gateway = desk.system.get("/v1/gateways/gw-2").await;
        (gateway["status"] == "offline").then_some(())
    })
    .await;
    let arguments = ["run", "test.both", "--all", "--expires", "15m"];
    let mut command = desk.command(&desk.token, &arguments);
    let log = desk.system.path().join("waiting.log");
    let waiting = Process::start(&mut command, &log).unwrap();
    let line = eventually("it says what it waits for", PATIENCE, async || {
        let log = waiting.log();
        let line = log.lines().find(|line| line.starts_with("waiting for"))?;
        Some(line.to_owned())
    })
    .await;
    for part in [
        "gw-2 (offline",
        "last seen",
        "may start until",
        "in 14 min",
        "1 of 2 done",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    eventually("it says how not to wait", PATIENCE, async || {
        waiting.log().contains("--no-wait").then_some(())
    })
    .await;
    assert!(!waiting.log().contains('\x1b'), "no terminal, no colours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_one_line_that_is_renewed() {
    let folder = TempDir::new().unwrap();
    let desk = desk(&folder).await;
    let (cli, typescript) = (
        desk.system.binaries().cli(),
        folder.path().join("typescript"),
    );
    let line = format!("'{}' run test.long -g gw-1 --wait=4s", text(&cli));
    let mut command = Command::new("/usr/bin/script");
    command.args(["-qec", &line, text(&typescript)]);
    for (name, value) in desk.command(&desk.token, &[]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let said: Said = finish(command, Duration::from_secs(60)).await;
    let screen = std::fs::read_to_string(&typescript).unwrap();
    assert!(
        screen.matches("\r\x1b[Krunning on gw-1").count() > 1,
        "{said:#?}\n{screen}"
    );
    assert!(screen.contains("1 still open = 1"), "{screen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_line_of_a_command_that_was_ended_is_shown_beside_why_it_was_ended() {
    let folder = TempDir::new().unwrap();
    let desk = desk(&folder).await;
    let said = desk
        .run(&["run", "test.stuck", "--all", "--timeout", "1s"])
        .await
        .ended_with(3);
    let rows = |said: &Said, state: &str| {
        let row = |line: &&str| line.contains(state) && line.contains("got this far");
        said.stdout.lines().filter(row).count()
    };
    assert_eq!(rows(&said, "✕ timed_out"), 2, "{said:#?}");

    let run = desk
        .run(&["run", "test.stuck", "--all", "--no-wait"])
        .await
        .ended_with(0);
    let run = run.stdout.trim();
    eventually("both run", PATIENCE, async || {
        let page = desk.system.get(&format!("/v1/runs/{run}/commands")).await;
        let items = page["items"].as_array()?;
        items
            .iter()
            .all(|command| command["state"] == "running")
            .then_some(())
    })
    .await;
    drop(desk.run(&["runs", "cancel", run]).await.ended_with(0));
    let said = desk.run(&["runs", "wait", run]).await.ended_with(3);
    assert_eq!(rows(&said, "✕ cancelled"), 2, "{said:#?}");
}
