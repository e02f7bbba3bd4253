//! What the agent makes of a command of another user, whatever the helper does: a helper by hand, so that anybody can
//! try it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use viworks_common::command::{Arguments, Outcome, OutcomeState};
use viworks_common::id::CommandId;
use viworks_common::time::{Monotonic, Timestamp};
use viworks_gateway_agent::executor::{Executor, Launch, Limits};
use viworks_gateway_agent::spawner::{self, Answer, Entry, Order, Request};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::random;

/// Everything here is over long before.
const SOON: Duration = Duration::from_secs(30);

/// A clock that is an hour ahead from one moment on, as after the machine has slept: no timer knows of it.
#[derive(Default)]
struct Slept(AtomicBool);

impl Clock for Slept {
    fn now(&self) -> Monotonic {
        let hours = u64::from(self.0.load(Ordering::SeqCst));
        SystemClock
            .now()
            .saturating_add(Duration::from_hours(hours))
    }

    fn wall(&self) -> Timestamp {
        SystemClock.wall()
    }
}

/// A socket that the agent takes for the helper's.
struct Socket {
    folder: TempDir,
    listener: OwnedFd,
}

impl Socket {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let listener = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        let address = SocketAddrUnix::new(folder.path().join("helper.sock")).unwrap();
        bind(&listener, &address).unwrap();
        listen(&listener, 8).unwrap();
        Self { folder, listener }
    }

    fn launch(&self) -> Launch {
        Launch {
            command_id: CommandId::from_uuid(random::uuid_v4()),
            program: PathBuf::from("/bin/true"),
            arguments: Vec::new(),
            working_directory: PathBuf::from("/"),
            environment: BTreeMap::new(),
            deadline: None,
            timeout: SOON,
            output_bytes_max: 1_024,
            order: Some(Order {
                socket: self.folder.path().join("helper.sock"),
                entry: Entry {
                    name: "test.command".parse().unwrap(),
                    fingerprint: String::new(),
                },
                arguments: Arguments::new(),
            }),
        }
    }

    /// The next connection, on which it is to run something.
    fn asked(&self) -> OwnedFd {
        let connection = accept_with(&self.listener, SocketFlags::CLOEXEC).unwrap();
        let (request, output) = spawner::receive::<Request>(&connection).unwrap().unwrap();
        assert!(matches!(request, Request::Run { .. }), "{request:?}");
        assert_eq!(output.len(), 2);
        connection
    }
}

fn say_started(connection: &OwnedFd) {
    let process = pidfd_open(getpid(), PidfdFlags::NONBLOCK).unwrap();
    let started = Answer::Started(getpid().as_raw_nonzero().get());
    spawner::send(connection, &started, &[process.as_fd()]).unwrap();
}

/// Everything that the agent still says.
fn said(connection: &OwnedFd) -> Vec<Request> {
    let said = std::iter::from_fn(|| spawner::receive::<Request>(connection).unwrap());
    said.map(|(request, _none)| request).collect()
}

async fn run(launch: Launch, cancel: CancellationToken, clock: Arc<dyn Clock>) -> Outcome {
    let launcher = env!("CARGO_BIN_EXE_viworks-gateway-agent").into();
    let executor = Executor::new(Limits::default(), launcher, clock);
    let run = executor.slot().await.run(launch, cancel, None);
    tokio::time::timeout(SOON, run).await.expect("it must end")
}

/// Nothing has run, the agent says so, and never said that anything may.
fn assert_unstarted(outcome: &Outcome, state: OutcomeState, said: &[Request]) {
    assert_eq!(
        (outcome.state, outcome.started_at),
        (state, None),
        "{outcome:?}"
    );
    assert!(!said.contains(&Request::Begin), "{said:?}");
}

#[tokio::test]
async fn a_helper_that_takes_its_time_makes_no_command_late() {
    let socket = Socket::new();
    let mut launch = socket.launch();
    launch.deadline = Some(SystemClock.now().saturating_add(Duration::from_millis(300)));
    let outcome = run(launch, CancellationToken::new(), Arc::new(SystemClock)).await;
    // As the service manager, once it has time for it.
    let connection = socket.asked();
    assert_unstarted(&outcome, OutcomeState::Expired, &said(&connection));
    assert!(spawner::send(&connection, &Answer::Begun, &[]).is_err());
}

#[tokio::test]
async fn a_deadline_that_no_timer_has_noticed_is_kept() {
    let (socket, clock) = (Socket::new(), Arc::new(Slept::default()));
    let mut launch = socket.launch();
    launch.timeout = Duration::from_hours(5);
    launch.deadline = Some(SystemClock.now().saturating_add(Duration::from_mins(10)));
    let helper = tokio::task::spawn_blocking({
        let clock = Arc::clone(&clock);
        move || {
            let connection = socket.asked();
            clock.0.store(true, Ordering::SeqCst);
            say_started(&connection);
            said(&connection)
        }
    });
    let outcome = run(launch, CancellationToken::new(), clock).await;
    assert_unstarted(&outcome, OutcomeState::Expired, &helper.await.unwrap());
}

#[tokio::test]
async fn what_is_cancelled_while_the_helper_prepares_it_has_not_begun() {
    let (socket, cancel) = (Socket::new(), CancellationToken::new());
    let launch = socket.launch();
    let helper = tokio::task::spawn_blocking({
        let cancel = cancel.clone();
        move || {
            let connection = socket.asked();
            cancel.cancel();
            // It may go unread by now.
            let process = pidfd_open(getpid(), PidfdFlags::NONBLOCK).unwrap();
            let _gone = spawner::send(&connection, &Answer::Started(1), &[process.as_fd()]);
            said(&connection)
        }
    });
    let outcome = run(launch, cancel, Arc::new(SystemClock)).await;
    assert_unstarted(&outcome, OutcomeState::Cancelled, &helper.await.unwrap());
}

#[tokio::test]
async fn a_helper_that_is_lost_before_the_word_to_begin_has_started_nothing() {
    for answer in [
        None,
        Some(Answer::Begun),
        Some(Answer::Refused("no".to_owned())),
    ] {
        let socket = Socket::new();
        let launch = socket.launch();
        let helper = tokio::task::spawn_blocking(move || {
            let connection = socket.asked();
            if let Some(answer) = answer {
                spawner::send(&connection, &answer, &[]).unwrap();
            }
        });
        let outcome = run(launch, CancellationToken::new(), Arc::new(SystemClock)).await;
        helper.await.unwrap();
        assert_unstarted(&outcome, OutcomeState::Failed, &[]);
    }
}

#[tokio::test]
async fn a_helper_that_is_lost_after_that_word_leaves_nobody_to_tell() {
    let socket = Socket::new();
    let launch = socket.launch();
    let helper = tokio::task::spawn_blocking(move || {
        let connection = socket.asked();
        // Of a process that is over when the connection is.
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let number = i32::try_from(child.id()).unwrap();
        let process = rustix::process::Pid::from_raw(number).unwrap();
        let handle = pidfd_open(process, PidfdFlags::NONBLOCK).unwrap();
        spawner::send(&connection, &Answer::Started(number), &[handle.as_fd()]).unwrap();
        let (word, _none) = spawner::receive::<Request>(&connection).unwrap().unwrap();
        drop(connection);
        drop(child.stdin.take());
        child.wait().unwrap();
        word
    });
    let outcome = run(launch, CancellationToken::new(), Arc::new(SystemClock)).await;
    assert_eq!(helper.await.unwrap(), Request::Begin);
    assert_eq!(outcome.state, OutcomeState::Indeterminate, "{outcome:?}");
}
