//! Commands of other users, through the helper that ships: real users, so root alone can try it.

mod list;

use std::fs;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    socket_with,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use viworks_common::command::{Arguments, Outcome, OutcomeState};
use viworks_common::id::CommandId;
use viworks_gateway_agent::catalogue::{self, Catalogue, OtherUsers, Owners};
use viworks_gateway_agent::executor::{Executor, Launch, Limits};
use viworks_gateway_agent::spawner::{self, Answer, Entry, Request};
use viworks_runtime::clock::SystemClock;
use viworks_runtime::random;
use viworks_testkit::process::eventually;

/// Everything here is over long before.
const SOON: Duration = Duration::from_secs(30);

/// What both have at first; nobody is the user whom every system has.
const ENTRIES: &str = r#"
[[command]]
name = "test.who"
title = "Who it is"
risk = "read"
idempotent = true
user = "nobody"
argv = ["/bin/sh", "-c", "id -un; grep -E '^(NoNewPrivs|Groups)' /proc/self/status; pwd; env | sort; cat; echo no >&2; exit 3"]

[[command]]
name = "test.say"
title = "Says a number"
risk = "read"
idempotent = true
user = "nobody"
argv = ["/bin/echo", "{number}"]

[[command.argument]]
name = "number"
type = "string"
pattern = "[0-9]{1,3}"

[[command]]
name = "test.stay"
title = "Does not end"
risk = "read"
idempotent = true
user = "nobody"
argv = ["/bin/sh", "-c", "sleep 600 & echo $$ $!; sleep 600"]

[[command]]
name = "test.short"
title = "Does not end in its time"
risk = "read"
idempotent = true
user = "nobody"
timeout_ms = 1000
argv = ["/bin/sh", "-c", "sleep 600 & echo $$ $!; sleep 600"]

[[command]]
name = "test.folder"
title = "Has no folder"
risk = "read"
idempotent = true
user = "nobody"
working_directory = "/nonexistent/folder"
argv = ["/bin/true"]
"#;

/// The service manager's part: a socket, and a helper for each connection.
struct Helper {
    folder: TempDir,
    children: Arc<Mutex<Vec<Child>>>,
}

impl Helper {
    /// `None`, said loudly, for anybody but root.
    #[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
    fn start(agent: &'static str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: commands of other users: only root can have them run");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("helper.d", ENTRIES), ("commands.d", ENTRIES)] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("10-test.toml"), text).unwrap();
        }
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let address = folder.path().join("helper.sock");
        bind(&socket, &SocketAddrUnix::new(&address).unwrap()).unwrap();
        listen(&socket, 128).unwrap();
        let children = Arc::new(Mutex::new(Vec::new()));
        let (list, started) = (folder.path().join("helper.d"), Arc::clone(&children));
        let _serving = std::thread::spawn(move || serve(&socket, &list, agent, &started));
        Some(Self { folder, children })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("helper.sock")
    }

    fn list(&self) -> PathBuf {
        self.folder.path().join("helper.d/10-test.toml")
    }

    fn catalogue(&self) -> Catalogue {
        let commands = self.folder.path().join("commands.d");
        let others = OtherUsers::Helper(self.socket());
        catalogue::load(&commands, Owners::Root, "/proc/self/exe".into(), others)
            .unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// Why a command is not available, by the catalogue as it is loaded now.
    fn objection(&self, name: &str) -> Option<String> {
        let entries = self.catalogue().entries();
        let entry = entries.iter().find(|entry| entry.name.as_str() == name);
        entry.and_then(|entry| entry.unavailable.clone())
    }

    fn launch(&self, name: &str, given: &[(&str, &str)]) -> Launch {
        let catalogue = self.catalogue();
        let allowed = catalogue.check(&name.parse().unwrap(), &arguments(given));
        allowed
            .unwrap()
            .launch(CommandId::from_uuid(random::uuid_v4()))
    }

    async fn run(&self, name: &str) -> Outcome {
        run(self.launch(name, &[]), CancellationToken::new()).await
    }

    fn entry(&self, name: &str) -> Entry {
        let name = name.parse().unwrap();
        let fingerprint = self.catalogue().fingerprint(&name).unwrap().to_owned();
        Entry { name, fingerprint }
    }

    /// Asks for a command past the agent's own checks.
    fn ask_past(&self, entry: Entry, given: &[(&str, &str)]) -> Option<Answer> {
        let (_reader, writer) = std::io::pipe().unwrap();
        self.ask_with(entry, given, writer.as_fd())
    }

    /// The same with an output of its own.
    fn ask_with(
        &self,
        entry: Entry,
        given: &[(&str, &str)],
        output: BorrowedFd<'_>,
    ) -> Option<Answer> {
        let connection = self.dial();
        let request = Request::Run {
            entry,
            command_id: CommandId::from_uuid(random::uuid_v4()),
            arguments: arguments(given),
        };
        // Who is not served at all may notice here already.
        spawner::send(&connection, &request, &[output, output]).ok()?;
        spawner::receive(&connection)
            .unwrap()
            .map(|(answer, _)| answer)
    }

    fn dial(&self) -> OwnedFd {
        let connection = spawner::dial(&self.socket()).unwrap();
        rustix::io::ioctl_fionbio(&connection, false).unwrap();
        connection
    }

    fn kill_all(&self) {
        for child in self.children.lock().unwrap().iter_mut() {
            child.kill().unwrap();
        }
    }

    /// How many of them have not ended.
    fn alive(&self) -> usize {
        let mut children = self.children.lock().unwrap();
        let alive = children
            .iter_mut()
            .map(|child| child.try_wait().unwrap().is_none());
        alive.filter(|alive| *alive).count()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Its thread ends with the socket's last connection, and each helper with its own.
        fs::remove_dir_all(self.folder.path().join("helper.d")).unwrap();
        drop(spawner::dial(&self.socket()));
        for child in self.children.lock().unwrap().iter_mut() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn serve(socket: &OwnedFd, list: &Path, agent: &str, started: &Mutex<Vec<Child>>) {
    while let Ok(connection) = accept_with(socket, SocketFlags::CLOEXEC) {
        if !list.exists() {
            return;
        }
        let helper = Command::new(env!("CARGO_BIN_EXE_viworks-gateway-helper"))
            .args(["serve", "--agent", agent, "--list"])
            .arg(list)
            .stdin(Stdio::from(connection))
            .spawn();
        started.lock().unwrap().push(helper.unwrap());
    }
}

fn arguments(given: &[(&str, &str)]) -> Arguments {
    let given = given.iter();
    given
        .map(|(name, value)| (name.parse().unwrap(), (*value).to_owned()))
        .collect()
}

/// Runs it, and does something as soon as it has said a word.
async fn run_until_heard(launch: Launch, then: impl FnOnce()) -> Outcome {
    let launcher = env!("CARGO_BIN_EXE_viworks-gateway-agent").into();
    let executor = Executor::new(Limits::default(), launcher, Arc::new(SystemClock));
    let (live, mut heard) = tokio::sync::mpsc::channel(16);
    let slot = executor.slot().await;
    let run = slot.run(launch, CancellationToken::new(), Some(live));
    let (outcome, ()) = tokio::join!(run, async {
        heard.recv().await.unwrap();
        then();
    });
    outcome
}

async fn run(launch: Launch, cancel: CancellationToken) -> Outcome {
    let launcher = env!("CARGO_BIN_EXE_viworks-gateway-agent").into();
    let executor = Executor::new(Limits::default(), launcher, Arc::new(SystemClock));
    let run = executor.slot().await.run(launch, cancel, None);
    tokio::time::timeout(SOON, run).await.expect("it must end")
}

fn stdout(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout.head).into_owned()
}

/// The processes that it says it consists of.
fn processes(said: &str) -> Vec<Pid> {
    let numbers = said.split_whitespace();
    numbers
        .map(|number| Pid::from_raw(number.parse().unwrap()).unwrap())
        .collect()
}

fn is_alive(process: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    test_kill_process(process).is_ok() && !stat.contains(") Z ")
}

async fn are_gone(processes: &[Pid]) {
    eventually("all of it has ended", SOON, async || {
        (!processes.iter().any(|process| is_alive(*process))).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_command_runs_as_the_user_of_the_list_and_can_become_nobody_else() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    assert_eq!(helper.objection("test.who"), None);
    let outcome = helper.run("test.who").await;
    assert_eq!(
        (outcome.state, outcome.exit_code),
        (OutcomeState::Failed, Some(3)),
        "{outcome:?}"
    );
    let said = stdout(&outcome);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.first(), Some(&"nobody"), "{said}");
    assert!(
        lines.contains(&"NoNewPrivs:\t1") && lines.contains(&"/"),
        "{said}"
    );
    let groups = lines.iter().find(|line| line.starts_with("Groups:"));
    assert!(
        !groups.unwrap().split_whitespace().any(|group| group == "0"),
        "{said}"
    );
    // Nothing else of root's environment is there; standard input was empty, or it would not have ended.
    let names: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    let expected = [
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "PWD",
        "USER",
        "VIWORKS_COMMAND_ID",
    ];
    let unexpected = names
        .iter()
        .filter(|name| !expected.contains(name) && **name != "_");
    assert_eq!(unexpected.count(), 0, "{said}");
    assert_eq!(outcome.stderr.head, b"no\n");

    let launch = helper.launch("test.say", &[("number", "42")]);
    let outcome = run(launch, CancellationToken::new()).await;
    assert_eq!(
        (outcome.state, stdout(&outcome).as_str()),
        (OutcomeState::Succeeded, "42\n")
    );
    let outcome = helper.run("test.folder").await;
    assert_eq!(
        (outcome.state, outcome.started_at),
        (OutcomeState::Failed, None)
    );
    assert!(outcome.reason.unwrap().contains("/nonexistent/folder"));
    eventually("no helper is left", SOON, async || {
        (helper.alive() == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_time_limit_ends_all_of_a_command() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let mut launch = helper.launch("test.stay", &[]);
    launch.timeout = Duration::from_secs(1);
    let outcome = run(launch, CancellationToken::new()).await;
    assert_eq!(
        (outcome.state, outcome.signal),
        (OutcomeState::TimedOut, Some(15)),
        "{outcome:?}"
    );
    are_gone(&processes(&stdout(&outcome))).await;

    let cancel = CancellationToken::new();
    cancel.cancel();
    let outcome = run(helper.launch("test.stay", &[]), cancel).await;
    assert_eq!(outcome.state, OutcomeState::Cancelled, "{outcome:?}");
}

/// A command that is ready to begin, as the agent has it: a connection, and the end of its output.
fn prepared(helper: &Helper, name: &str) -> (OwnedFd, PipeReader) {
    let connection = helper.dial();
    let (reader, writer) = std::io::pipe().unwrap();
    let request = Request::Run {
        entry: helper.entry(name),
        command_id: CommandId::from_uuid(random::uuid_v4()),
        arguments: Arguments::new(),
    };
    spawner::send(&connection, &request, &[writer.as_fd(), writer.as_fd()]).unwrap();
    let answer = spawner::receive::<Answer>(&connection).unwrap().unwrap().0;
    assert!(matches!(answer, Answer::Started(_)), "{answer:?}");
    (connection, reader)
}

/// One that has begun and does not end.
async fn held(helper: &Helper, name: &str) -> (OwnedFd, Vec<Pid>) {
    let (connection, mut reader) = prepared(helper, name);
    spawner::send(&connection, &Request::Begin, &[]).unwrap();
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(&mut reader), &mut line).unwrap();
        line
    });
    (connection, processes(&line.await.unwrap()))
}

#[tokio::test]
async fn a_command_ends_with_its_agent() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let (connection, running) = held(&helper, "test.stay").await;
    assert!(running.iter().all(|process| is_alive(*process)));
    drop(connection);
    are_gone(&running).await;
    eventually("its helper has ended", SOON, async || {
        (helper.alive() == 0).then_some(())
    })
    .await;
    // The same when the agent says what it should not.
    let (connection, running) = held(&helper, "test.stay").await;
    rustix::net::send(&connection, b"{\"run\":", SendFlags::empty()).unwrap();
    are_gone(&running).await;
}

#[tokio::test]
async fn nothing_of_a_command_runs_before_the_word_to_begin() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    // Its output ends without a word when the agent goes away, or wants its end, and has not said that word.
    for last in [None, Some(Request::Kill), Some(Request::Terminate)] {
        let (connection, mut reader) = prepared(&helper, "test.who");
        if let Some(last) = &last {
            spawner::send(&connection, last, &[]).unwrap();
            while let Some((answer, _none)) = spawner::receive::<Answer>(&connection).unwrap() {
                assert_ne!(answer, Answer::Begun, "{last:?}");
            }
        }
        drop(connection);
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "", "{last:?}");
    }
}

#[tokio::test]
async fn no_agent_lets_a_command_run_beyond_what_the_list_gives_it() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let (connection, running) = held(&helper, "test.short").await;
    let last = tokio::task::spawn_blocking(move || {
        let said = std::iter::from_fn(|| spawner::receive::<Answer>(&connection).unwrap());
        said.last().map(|(answer, _none)| answer)
    });
    let last = last.await.unwrap();
    let Some(Answer::Ended { code, signal, note }) = &last else {
        panic!("{last:?}");
    };
    assert_eq!((*code, *signal), (None, Some(9)));
    let note = note.as_deref().unwrap_or_default();
    assert!(note.contains("its list gives it 1 s"), "{note}");
    are_gone(&running).await;
}

#[tokio::test]
async fn output_goes_to_the_writing_ends_of_pipes_and_to_nothing_else() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let kept = helper.folder.path().join("kept");
    fs::write(&kept, "kept").unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let named = helper.folder.path().join("named");
    let status = Command::new("mkfifo").arg(&named).status().unwrap();
    assert!(status.success());
    let _held = fs::File::options().read(true).write(true).open(&named);
    let wrong: [(&str, OwnedFd); 5] = [
        ("a file to read", fs::File::open(&kept).unwrap().into()),
        (
            "a file to write",
            fs::File::options().append(true).open(&kept).unwrap().into(),
        ),
        ("a socket", socket.into()),
        ("the reading end of a pipe", reader.into()),
        (
            "a pipe with a name",
            fs::File::options().write(true).open(&named).unwrap().into(),
        ),
    ];
    for (what, output) in wrong {
        let answer = helper.ask_with(helper.entry("test.who"), &[], output.as_fd());
        let Some(Answer::Refused(reason)) = &answer else {
            panic!("{what}: {answer:?}");
        };
        assert!(reason.contains("writing ends of pipes"), "{what}: {reason}");
    }
    assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
    let answer = helper.ask_with(helper.entry("test.who"), &[], writer.as_fd());
    assert!(matches!(answer, Some(Answer::Started(_))), "{answer:?}");
}

#[tokio::test]
async fn a_command_ends_with_its_helper_and_the_outcome_says_so() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let launch = helper.launch("test.stay", &[]);
    let outcome = run_until_heard(launch, || helper.kill_all()).await;
    assert_eq!(outcome.state, OutcomeState::Indeterminate, "{outcome:?}");
    assert!(
        outcome
            .reason
            .as_ref()
            .unwrap()
            .contains("the helper went away")
    );
    // The leader by the kernel; what it had started by the service manager, which ends all of the helper's service.
    let [leader, other] = processes(&stdout(&outcome))[..] else {
        panic!("{outcome:?}");
    };
    are_gone(&[leader]).await;
    kill_process(other, Signal::KILL).unwrap();
}

#[tokio::test]
async fn nobody_but_the_agent_is_served() {
    let Some(helper) = Helper::start("nobody") else {
        return;
    };
    let said = helper.objection("test.who").unwrap();
    assert!(said.contains("the helper hung up"), "{said}");
    assert_eq!(helper.ask_past(helper.entry("test.who"), &[]), None);
}

#[tokio::test]
async fn connections_that_say_nothing_or_nonsense_stop_nobody() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let silent: Vec<OwnedFd> = (0..40).map(|_| helper.dial()).collect();
    let long = vec![b' '; spawner::MESSAGE_BYTES_MAX + 1];
    for bytes in [&b"{"[..], b"\"kill\" \"kill\"", b"\xff\xfe", &long] {
        let connection = helper.dial();
        rustix::net::send(&connection, bytes, SendFlags::empty()).unwrap();
        let answer = spawner::receive::<Answer>(&connection);
        assert!(matches!(answer, Ok(None)), "{answer:?}");
    }
    let connection = helper.dial();
    spawner::send(&connection, &Request::Kill, &[]).unwrap();
    let answer = spawner::receive::<Answer>(&connection).unwrap().unwrap().0;
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    let began = Instant::now();
    assert_eq!(helper.run("test.who").await.exit_code, Some(3));
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    drop(silent);
    eventually("no helper is left", SOON, async || {
        (helper.alive() == 0).then_some(())
    })
    .await;
}
