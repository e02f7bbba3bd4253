//! Commands that misbehave in every way, and an executor that is not impressed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use viworks_common::command::{Outcome, OutcomeState};
use viworks_common::id::CommandId;
use viworks_common::wire::message::OutputStream;
use viworks_gateway_agent::executor::{Executor, LIVE_MAX, Launch, Limits, LiveOutput, end_strays};
use viworks_runtime::clock::{Clock, SystemClock, sleep_until};
use viworks_runtime::random;

/// Far above what any of these takes, far below what a hanging one would.
const SOON: Duration = Duration::from_secs(8);

fn executor() -> Executor {
    let limits = Limits {
        parallel_max: 2,
        kill_grace: Duration::from_millis(200),
    };
    let launcher = env!("CARGO_BIN_EXE_viworks-gateway-agent").into();
    Executor::new(limits, launcher, Arc::new(SystemClock))
}

fn shell(script: &str) -> Launch {
    Launch {
        command_id: CommandId::from_uuid(random::uuid_v4()),
        program: PathBuf::from("/bin/sh"),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        working_directory: PathBuf::from("/"),
        environment: BTreeMap::new(),
        deadline: None,
        timeout: Duration::from_secs(30),
        output_bytes_max: 64 * 1024,
        order: None,
    }
}

async fn run(launch: Launch) -> Outcome {
    let cancel = CancellationToken::new();
    let run = executor().slot().await.run(launch, cancel, None);
    tokio::time::timeout(SOON, run).await.expect("it must end")
}

/// Whether a process is there and not just a zombie.
fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits for something another process does, looking again and again.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = SystemClock.now().saturating_add(SOON);
    while !done() {
        assert!(SystemClock.now() < deadline, "{what} did not happen");
        let soon = SystemClock.now().saturating_add(Duration::from_millis(5));
        sleep_until(&SystemClock, soon).await;
    }
}

#[tokio::test]
async fn exit_code_and_both_streams_are_reported() {
    let outcome = run(shell("echo out; echo err >&2; exit 3")).await;
    assert_eq!(outcome.state, OutcomeState::Failed);
    assert_eq!(outcome.exit_code, Some(3));
    assert_eq!(outcome.stdout.head, b"out\n");
    assert_eq!(outcome.stderr.head, b"err\n");
    assert!(outcome.started_at.is_some());
    assert_eq!(run(shell("true")).await.state, OutcomeState::Succeeded);
}

#[tokio::test]
async fn a_signal_is_a_failure_that_names_it() {
    let outcome = run(shell("kill -SEGV $$")).await;
    assert_eq!(
        (outcome.state, outcome.signal),
        (OutcomeState::Failed, Some(11))
    );
}

#[tokio::test]
async fn a_program_that_cannot_be_started_says_why() {
    let launch = Launch {
        program: PathBuf::from("/nonexistent/program"),
        ..shell("")
    };
    let outcome = run(launch).await;
    assert_eq!(outcome.state, OutcomeState::Failed);
    assert!(outcome.reason.unwrap().contains("/nonexistent/program"));
    assert_eq!(outcome.started_at, None);
}

#[tokio::test]
async fn the_environment_is_what_was_declared_and_nothing_else() {
    let mut launch = shell("");
    launch.program = PathBuf::from("/usr/bin/env");
    launch.arguments = Vec::new();
    launch
        .environment
        .insert("DECLARED".to_owned(), "yes".to_owned());
    let id = launch.command_id;
    let outcome = run(launch).await;
    let text = String::from_utf8(outcome.stdout.head).unwrap();
    let mut names: Vec<&str> = text.lines().collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "DECLARED=yes",
            "LANG=C.UTF-8",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            &format!("VIWORKS_COMMAND_ID={id}"),
        ]
    );
}

#[tokio::test]
async fn nothing_of_a_command_stands_in_the_command_line_of_its_launcher() {
    let folder = tempfile::tempdir().unwrap();
    let seen = folder.path().join("seen");
    // In place of the launcher: everybody can read what it is called with, for as long as it is there.
    let launcher = folder.path().join("launcher");
    let script = format!(
        "#!/bin/sh\ntr '\\0' ' ' < /proc/$$/cmdline > {}\nexit 127\n",
        seen.display()
    );
    std::fs::write(&launcher, script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&launcher, executable).unwrap();
    let mut launch = shell("echo of no use to anybody");
    launch
        .environment
        .insert("DB_PASSWORD".to_owned(), "hunter2".to_owned());
    let executor = Executor::new(Limits::default(), launcher, Arc::new(SystemClock));
    let outcome = executor
        .slot()
        .await
        .run(launch, CancellationToken::new(), None)
        .await;
    assert_eq!(outcome.state, OutcomeState::Failed, "{outcome:?}");
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(seen.trim_end().ends_with("/launcher launch"), "{seen}");
}

#[tokio::test]
async fn much_that_is_left_running_is_ended_at_once_and_said() {
    let script = "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done; exit 0";
    let before = SystemClock.now();
    let outcome = run(shell(&format!(
        "{{ {script}; }} >/dev/null 2>&1 </dev/null"
    )))
    .await;
    let took = SystemClock.now().saturating_since(before);
    assert_eq!(outcome.state, OutcomeState::Succeeded);
    let reason = outcome.reason.unwrap();
    assert!(reason.contains("was ended: sleep (process "), "{reason}");
    assert!(reason.ends_with(" and 192 more"), "{reason}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn much_that_fled_the_session_is_ended_soon_after_the_time_limit_and_said() {
    let script = "trap '' TERM; i=0; while [ $i -lt 200 ]; do setsid sleep 1000 & i=$((i+1)); done; \
                  echo ready; while :; do sleep 1000; done";
    let mut launch = shell(script);
    launch.timeout = Duration::from_secs(3);
    let id = launch.command_id;
    let outcome = run(launch).await;
    assert_eq!(outcome.state, OutcomeState::TimedOut);
    assert_eq!(outcome.stdout.head, b"ready\n");
    let reason = outcome.reason.unwrap();
    assert!(
        reason.starts_with("it ran into its time limit; "),
        "{reason}"
    );
    assert!(
        reason.contains("sleep (process ") && reason.contains(" more"),
        "{reason}"
    );
    assert!(outcome.duration_ms < 6_000, "{}", outcome.duration_ms);
    assert_eq!(end_strays(&[id]), 0, "nothing is left");
}

#[tokio::test]
async fn standard_input_is_empty_and_the_folder_is_the_declared_one() {
    let outcome = run(shell("cat; pwd")).await;
    assert_eq!(outcome.stdout.head, b"/\n");
}

#[tokio::test]
async fn arguments_reach_the_program_unchanged() {
    let mut launch = shell("printf '%s|' \"$@\"");
    launch
        .arguments
        .extend(["sh", "a b", "$(id)", "*", ";ls", ""].map(str::to_owned));
    assert_eq!(run(launch).await.stdout.head, b"a b|$(id)|*|;ls||");
}

#[tokio::test]
async fn a_flood_is_drained_and_ended_at_the_time_limit() {
    let mut launch = shell("exec yes");
    launch.timeout = Duration::from_millis(300);
    let limit = launch.output_bytes_max;
    let outcome = run(launch).await;
    assert_eq!(outcome.state, OutcomeState::TimedOut);
    let kept = outcome.stdout.head.len() + outcome.stdout.tail.len();
    // Head and tail are cut where lines end, so that each gives up less than one line of its share.
    assert!((limit - 2..=limit).contains(&kept), "{kept} of {limit}");
    assert!(outcome.stdout.head.ends_with(b"\n"));
    assert!(outcome.stdout.cut_bytes > 0);
    assert!(outcome.stdout.head.starts_with(b"y\ny\n"));
}

#[tokio::test]
async fn a_megabyte_without_a_newline_keeps_its_head_and_tail() {
    let script = "printf BEGIN; head -c 1048576 /dev/zero; printf END";
    let outcome = run(shell(script)).await;
    assert_eq!(outcome.state, OutcomeState::Succeeded);
    let kept = outcome.stdout;
    assert!(kept.head.starts_with(b"BEGIN\0"));
    assert!(kept.tail.ends_with(b"\0END"));
    let total = u64::try_from(kept.head.len() + kept.tail.len()).unwrap() + kept.cut_bytes;
    assert_eq!(total, 1_048_576 + 8);
}

#[tokio::test]
async fn binary_output_is_kept_byte_for_byte() {
    let outcome = run(shell(r"printf '\000\377\200\033[31m\012'")).await;
    assert_eq!(outcome.stdout.head, b"\0\xff\x80\x1b[31m\n");
}

#[tokio::test]
async fn live_output_carries_every_byte_at_its_offset_while_there_is_room() {
    let (sender, mut receiver) = mpsc::channel(64);
    let launch = shell("printf abc; printf XY >&2");
    let id = launch.command_id;
    let slot = executor().slot().await;
    let outcome = slot
        .run(launch, CancellationToken::new(), Some(sender))
        .await;
    assert_eq!(outcome.state, OutcomeState::Succeeded);
    let mut seen: BTreeMap<OutputStream, Vec<u8>> = BTreeMap::new();
    while let Some(LiveOutput {
        command_id,
        stream,
        offset,
        data,
    }) = receiver.recv().await
    {
        assert_eq!(command_id, id);
        let bytes = seen.entry(stream).or_default();
        assert_eq!(u64::try_from(bytes.len()).unwrap(), offset);
        bytes.extend(data);
    }
    assert_eq!(seen[&OutputStream::Stdout], b"abc");
    assert_eq!(seen[&OutputStream::Stderr], b"XY");
}

#[tokio::test]
async fn nobody_reading_live_output_does_not_hold_the_command() {
    const BYTES: u64 = 2_000_000;
    let (sender, mut receiver) = LiveOutput::channel();
    let slot = executor().slot().await;
    let launch = shell(&format!("head -c {BYTES} /dev/zero"));
    let run = slot.run(launch, CancellationToken::new(), Some(sender));
    let outcome = tokio::time::timeout(SOON, run).await.unwrap();
    assert_eq!(outcome.state, OutcomeState::Succeeded);
    // As many pieces wait as may, the first ones; the result accounts for all.
    let (mut pieces, mut shown) = (0, 0);
    while let Some(piece) = receiver.recv().await {
        assert_eq!(piece.offset, shown);
        shown += u64::try_from(piece.data.len()).unwrap();
        pieces += 1;
    }
    assert_eq!(pieces, LIVE_MAX);
    let kept = outcome.stdout;
    let all = u64::try_from(kept.head.len() + kept.tail.len()).unwrap() + kept.cut_bytes;
    assert_eq!(all, BYTES);
    assert!(shown < BYTES, "{shown}");
}

#[tokio::test]
async fn a_grandchild_that_holds_the_pipe_holds_nobody_and_is_ended() {
    let started = SystemClock.now();
    let outcome = run(shell("sleep 600 & echo $!")).await;
    assert_eq!(outcome.state, OutcomeState::Succeeded);
    let took = SystemClock.now().saturating_since(started);
    assert!(took < Duration::from_secs(4), "{took:?}");
    let pid = String::from_utf8(outcome.stdout.head).unwrap();
    until("the end of the grandchild", || !lives(&pid)).await;
    let reason = outcome.reason.unwrap();
    let named = format!("sleep (process {})", pid.trim());
    assert!(reason.contains(&named), "{reason}");
}

#[tokio::test]
async fn what_stays_in_the_session_is_ended_and_named_whatever_its_group_and_output() {
    let script = "set -m; sleep 600 </dev/null >/dev/null 2>&1 & echo $!";
    let outcome = run(shell(script)).await;
    assert_eq!(outcome.state, OutcomeState::Succeeded);
    let pid = String::from_utf8(outcome.stdout.head).unwrap();
    until("the end of the job", || !lives(&pid)).await;
    let named = format!("sleep (process {})", pid.trim());
    let reason = outcome.reason.unwrap();
    assert!(reason.contains(&named), "{reason}");
}

#[tokio::test]
async fn what_leaves_the_session_and_holds_no_output_stays_as_documented() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600' </dev/null >/dev/null 2>&1 & while [ ! -e {0} ]; do :; done",
        file.display()
    );
    let outcome = run(shell(&script)).await;
    assert_eq!(outcome.state, OutcomeState::Succeeded);
    assert_eq!(outcome.reason, None);
    let pid = std::fs::read_to_string(file).unwrap();
    assert!(lives(&pid));
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_command_leads_a_session_of_its_own_without_a_terminal() {
    let script = "read -r pid name state parent group session terminal rest < /proc/self/stat; \
        echo $pid $group $session $terminal; (: < /dev/tty) 2>/dev/null || echo none";
    let mut launch = shell(script);
    launch.timeout = Duration::from_secs(5);
    let outcome = run(launch).await;
    assert_eq!(outcome.state, OutcomeState::Succeeded, "{outcome:?}");
    let text = String::from_utf8(outcome.stdout.head).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let [pid, group, session, terminal, tty] = words[..] else {
        panic!("{text}");
    };
    assert_eq!((group, session), (pid, pid));
    assert_eq!((terminal, tty), ("0", "none"));
}

#[tokio::test]
async fn a_folder_that_cannot_be_entered_is_named() {
    let launch = Launch {
        working_directory: PathBuf::from("/nonexistent/folder"),
        ..shell("true")
    };
    let outcome = run(launch).await;
    assert_eq!(outcome.state, OutcomeState::Failed);
    assert!(outcome.reason.unwrap().contains("/nonexistent/folder"));
    assert_eq!(outcome.started_at, None);
}

#[tokio::test]
async fn a_descendant_that_left_the_group_is_found_by_its_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600' & while [ ! -e {0} ]; do :; done; sleep 600",
        file.display()
    );
    let mut launch = shell(&script);
    launch.timeout = Duration::from_millis(700);
    let outcome = run(launch).await;
    assert_eq!(outcome.state, OutcomeState::TimedOut);
    let pid = std::fs::read_to_string(file).unwrap();
    until("the end of the escaped process", || !lives(&pid)).await;
}

#[tokio::test]
async fn ignoring_sigterm_ends_in_sigkill_after_the_grace() {
    let mut launch = shell("trap '' TERM; while :; do sleep 0.05; done");
    launch.timeout = Duration::from_millis(200);
    let outcome = run(launch).await;
    assert_eq!(outcome.state, OutcomeState::TimedOut);
    assert_eq!(outcome.signal, Some(9));
    assert!(outcome.duration_ms >= 400, "{}", outcome.duration_ms);
}

#[tokio::test]
async fn sigterm_leaves_time_to_finish() {
    let mut launch = shell("trap 'echo bye; exit 7' TERM; while :; do sleep 0.02; done");
    launch.timeout = Duration::from_millis(200);
    let outcome = run(launch).await;
    assert_eq!(
        (outcome.state, outcome.exit_code),
        (OutcomeState::TimedOut, Some(7))
    );
    assert_eq!(outcome.stdout.head, b"bye\n");
}

#[tokio::test]
async fn a_cancelled_command_ends_and_says_so() {
    let (sender, mut receiver) = mpsc::channel(4);
    let cancel = CancellationToken::new();
    let slot = executor().slot().await;
    let run = slot.run(shell("echo up; sleep 600"), cancel.clone(), Some(sender));
    let cancelling = async {
        receiver.recv().await.unwrap();
        cancel.cancel();
    };
    let (outcome, ()) = tokio::time::timeout(SOON, async { tokio::join!(run, cancelling) })
        .await
        .unwrap();
    assert_eq!(outcome.state, OutcomeState::Cancelled);
    assert_eq!(outcome.stdout.head, b"up\n");
}

#[tokio::test]
async fn a_command_cancelled_beforehand_never_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ran");
    let cancel = CancellationToken::new();
    cancel.cancel();
    let launch = shell(&format!("touch {}", file.display()));
    let outcome = executor().slot().await.run(launch, cancel, None).await;
    assert_eq!(outcome.state, OutcomeState::Cancelled);
    assert!(!file.exists());
}

#[tokio::test]
async fn a_run_that_is_dropped_takes_its_whole_group_along() {
    let (sender, mut receiver) = mpsc::channel(4);
    let slot = executor().slot().await;
    let script = "sleep 600 & echo $$ $!; wait";
    let mut run = Box::pin(slot.run(shell(script), CancellationToken::new(), Some(sender)));
    let said = tokio::select! {
        outcome = &mut run => panic!("ended: {outcome:?}"),
        said = receiver.recv() => said.unwrap(),
    };
    drop(run);
    for pid in String::from_utf8(said.data).unwrap().split_whitespace() {
        until("the end of the group", || !lives(pid)).await;
    }
}

#[tokio::test]
async fn no_more_run_at_once_than_allowed() {
    let executor = executor();
    let first = executor.slot().await;
    let second = executor.try_slot().unwrap();
    assert_eq!(executor.running(), 2);
    assert!(executor.try_slot().is_none());
    drop(first);
    assert!(executor.try_slot().is_some());
    drop(second);
    assert_eq!(executor.running(), 0);
}

#[tokio::test]
async fn strays_of_a_former_agent_are_ended_and_nobody_else() {
    let former = CommandId::from_uuid(Uuid::from_u128(0xdead_beef));
    let spawn = |id: Option<CommandId>| {
        let mut command = tokio::process::Command::new("/bin/sleep");
        command.arg("600").kill_on_drop(true);
        if let Some(id) = id {
            command.env("VIWORKS_COMMAND_ID", id.to_string());
        }
        command.spawn().unwrap()
    };
    let mut stray = spawn(Some(former));
    let mut other = spawn(Some(CommandId::from_uuid(Uuid::from_u128(1))));
    let mut unmarked = spawn(None);
    // Until exec, a child still has its parent's environment.
    let marked = stray.id().unwrap();
    until("the exec of the stray", || {
        std::fs::read(Path::new(&format!("/proc/{marked}/environ")))
            .is_ok_and(|e| e.windows(36).any(|w| w == former.to_string().as_bytes()))
    })
    .await;
    assert_eq!(end_strays(&[former]), 1);
    let status = tokio::time::timeout(SOON, stray.wait())
        .await
        .unwrap()
        .unwrap();
    assert!(!status.success());
    for survivor in [&mut other, &mut unmarked] {
        assert!(survivor.try_wait().unwrap().is_none());
        survivor.kill().await.unwrap();
    }
    assert_eq!(end_strays(&[]), 0);
}
