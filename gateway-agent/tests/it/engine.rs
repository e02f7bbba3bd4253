//! The command engine with a real journal and real processes: started once at most, never late, reported until known.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use uuid::Uuid;
use viworks_common::command::{self, Outcome, OutcomeState};
use viworks_common::id::{AgentRunId, CommandId, CommandName};
use viworks_common::time::Monotonic;
use viworks_common::wire::message::{AgentMessage, Command, Permit};
use viworks_gateway_agent::catalogue::{self, OtherUsers, Owners};
use viworks_gateway_agent::engine::{Engine, EngineHandle, Input, Parts};
use viworks_gateway_agent::executor::{Executor, Limits};
use viworks_gateway_agent::journal::Journal;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::lifecycle::Lifecycle;

const SOON: Duration = Duration::from_secs(10);

/// An agent's engine without a network.
struct Bench {
    folder: Arc<tempfile::TempDir>,
    engine: EngineHandle,
    journal: Journal,
    lifecycle: Lifecycle,
}

fn catalogue_text(folder: &Path) -> String {
    let mark = folder.join("mark");
    let mark = mark.display();
    format!(
        "[[command]]\nname = \"test.mark\"\ntitle = \"Leaves a mark each time it runs\"\n\
         argv = [\"/bin/sh\", \"-c\", \"echo run >> {mark}\"]\ntimeout_ms = 5000\nrisk = \"change\"\nidempotent = false\n\
         [[command]]\nname = \"test.again\"\ntitle = \"The same, and may run again\"\n\
         argv = [\"/bin/sh\", \"-c\", \"echo run >> {mark}\"]\ntimeout_ms = 5000\nrisk = \"change\"\nidempotent = true\n\
         [[command]]\nname = \"test.long\"\ntitle = \"Runs until it is ended\"\n\
         argv = [\"/bin/sleep\", \"60\"]\ntimeout_ms = 60000\nrisk = \"change\"\nidempotent = false\n"
    )
}

impl Bench {
    async fn start() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let commands = folder.path().join("commands.d");
        std::fs::create_dir(&commands).unwrap();
        std::fs::set_permissions(&commands, std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = commands.join("test.toml");
        std::fs::write(&file, catalogue_text(folder.path())).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        Self::open(folder, 1).await
    }

    async fn open(folder: Arc<tempfile::TempDir>, run: u128) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let commands = folder.path().join("commands.d");
        let own = PathBuf::from("/proc/self/exe");
        let others = OtherUsers::Helper(folder.path().join("helper.sock"));
        let catalogue = catalogue::load(&commands, Owners::RootAndOwn, own, others)
            .unwrap_or_else(|problems| panic!("{problems}"));
        let journal = Journal::open(&folder.path().join("journal.db"), 1_024)
            .await
            .unwrap();
        let lifecycle = Lifecycle::new();
        let (live, _unread) = mpsc::channel(1);
        let (engine, handle) = Engine::recover(Parts {
            agent_run_id: AgentRunId::from_uuid(Uuid::from_u128(run)),
            catalogue: catalogue::Current::new(catalogue),
            journal: journal.clone(),
            executor: Executor::new(
                Limits::default(),
                env!("CARGO_BIN_EXE_viworks-gateway-agent").into(),
                Arc::clone(&clock),
            ),
            clock,
            lifecycle: lifecycle.clone(),
            live,
        })
        .await
        .unwrap();
        lifecycle.spawn_critical("engine", engine.run());
        Self {
            folder,
            engine: handle,
            journal,
            lifecycle,
        }
    }

    fn attach(&self) -> mpsc::Receiver<AgentMessage> {
        let (messages, receiver) = mpsc::channel(64);
        self.tell(Input::Attach {
            messages,
            low_water: 0,
        });
        receiver
    }

    fn tell(&self, input: Input) {
        assert!(self.engine.tell(input));
    }

    fn marks(&self) -> usize {
        std::fs::read_to_string(self.folder.path().join("mark"))
            .map_or(0, |text| text.lines().count())
    }

    /// The process dies without a farewell, as far as that can be done from inside.
    async fn die(self) -> Arc<tempfile::TempDir> {
        self.lifecycle.abort();
        self.lifecycle.shutdown(Duration::ZERO).await;
        self.journal.close().await.unwrap();
        self.folder
    }
}

fn id(number: u128) -> CommandId {
    CommandId::from_uuid(Uuid::from_u128(number))
}

fn offer(number: u8, name: &str, permitted: bool) -> Box<Command> {
    let name: CommandName = name.parse().unwrap();
    let arguments = BTreeMap::new();
    let digest = command::digest(&name, &arguments);
    Box::new(Command {
        command_id: id(u128::from(number)),
        order: u64::from(number),
        digest: command::format_digest(&digest),
        name,
        arguments,
        attempt: 1,
        traceparent: None,
        deadline: Permit {
            remaining_ms: 0,
            as_of: 0,
        },
        permitted,
        timeout_ms: None,
    })
}

fn later() -> Monotonic {
    SystemClock.now().saturating_add(Duration::from_secs(60))
}

async fn next(messages: &mut mpsc::Receiver<AgentMessage>) -> AgentMessage {
    timeout(SOON, messages.recv()).await.unwrap().unwrap()
}

async fn outcome(messages: &mut mpsc::Receiver<AgentMessage>) -> Outcome {
    loop {
        if let AgentMessage::CommandResult(result) = next(messages).await {
            return result.outcome;
        }
    }
}

#[tokio::test]
async fn a_command_that_may_not_run_twice_waits_for_go_and_a_second_go_starts_nothing() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    // Its inline permit counts for nothing: the gateway's own catalogue decides.
    bench.tell(Input::Command(offer(1, "test.mark", true), later()));
    let AgentMessage::CommandAccepted(accepted) = next(&mut messages).await else {
        panic!("not accepted");
    };
    assert!(accepted.awaiting_permit && !accepted.idempotent);
    assert_eq!(bench.marks(), 0);
    bench.tell(Input::Go(id(1), later()));
    bench.tell(Input::Go(id(1), later()));
    assert_eq!(
        next(&mut messages).await.name(),
        "CommandStarted",
        "the start is told before its end"
    );
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Succeeded);
    // Neither a later permit nor a redelivery runs it again: both are answered from the journal.
    bench.tell(Input::Go(id(1), later()));
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Succeeded);
    bench.tell(Input::Command(offer(1, "test.mark", true), later()));
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Succeeded);
    assert_eq!(bench.marks(), 1);
    bench.die().await;
}

#[tokio::test]
async fn an_idempotent_command_starts_with_its_inline_permit() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    bench.tell(Input::Command(offer(1, "test.again", true), later()));
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Succeeded);
    assert_eq!(bench.marks(), 1);
    bench.die().await;
}

#[tokio::test]
async fn a_permit_that_comes_too_late_starts_nothing() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    bench.tell(Input::Command(offer(1, "test.mark", false), later()));
    assert_eq!(next(&mut messages).await.name(), "CommandAccepted");
    bench.tell(Input::Go(id(1), SystemClock.now()));
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Expired);
    assert_eq!(bench.marks(), 0);
    bench.die().await;
}

#[tokio::test]
async fn an_offer_without_a_permit_expires_at_its_deadline() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    let deadline = SystemClock.now().saturating_add(Duration::from_millis(20));
    bench.tell(Input::Command(offer(1, "test.mark", false), deadline));
    assert_eq!(next(&mut messages).await.name(), "CommandAccepted");
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Expired);
    bench.die().await;
}

#[tokio::test]
async fn a_cancel_ends_a_running_command_and_one_that_waits() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    bench.tell(Input::Command(offer(1, "test.long", false), later()));
    bench.tell(Input::Go(id(1), later()));
    while next(&mut messages).await.name() != "CommandStarted" {}
    bench.tell(Input::Cancel(id(1)));
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Cancelled);
    bench.tell(Input::Command(offer(2, "test.mark", false), later()));
    bench.tell(Input::Cancel(id(2)));
    bench.tell(Input::Go(id(2), later()));
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Cancelled);
    assert_eq!(bench.marks(), 0);
    bench.die().await;
}

#[tokio::test]
async fn what_ends_without_a_session_is_reported_in_the_next_ones_until_it_is_acknowledged() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    bench.tell(Input::Command(offer(1, "test.long", false), later()));
    bench.tell(Input::Go(id(1), later()));
    while next(&mut messages).await.name() != "CommandStarted" {}
    drop(messages);
    bench.tell(Input::Cancel(id(1)));
    for _session in 0..2 {
        let mut messages = bench.attach();
        assert_eq!(outcome(&mut messages).await.state, OutcomeState::Cancelled);
    }
    bench.tell(Input::ResultAcknowledged {
        command_id: id(1),
        low_water: 1,
    });
    let mut messages = bench.attach();
    // Forgotten below the mark: the same id is refused, not run.
    bench.tell(Input::Command(offer(1, "test.long", false), later()));
    let AgentMessage::CommandRejected(rejected) = next(&mut messages).await else {
        panic!("something is still reported");
    };
    assert_eq!(rejected.code.name(), "stale");
    bench.die().await;
}

#[tokio::test]
async fn a_process_that_dies_in_the_middle_leaves_an_indeterminate_command() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    bench.tell(Input::Command(offer(1, "test.long", false), later()));
    bench.tell(Input::Command(offer(2, "test.mark", false), later()));
    bench.tell(Input::Go(id(1), later()));
    while next(&mut messages).await.name() != "CommandStarted" {}
    let folder = bench.die().await;
    let bench = Bench::open(folder, 2).await;
    let mut messages = bench.attach();
    let AgentMessage::CommandResult(result) = next(&mut messages).await else {
        panic!("the interrupted command comes first");
    };
    assert_eq!(result.command_id, id(1));
    assert_eq!(result.outcome.state, OutcomeState::Indeterminate);
    // The other one waits for a permit of this process.
    let AgentMessage::CommandAccepted(accepted) = next(&mut messages).await else {
        panic!("the waiting command was not announced");
    };
    assert_eq!(accepted.command_id, id(2));
    assert!(accepted.awaiting_permit);
    assert_eq!(bench.marks(), 0);
    bench.die().await;
}

#[tokio::test]
async fn a_time_limit_below_the_catalogues_ends_a_command_in_whatever_process_it_runs() {
    // Ids of their own: a stray of this id in another test of this process would end them.
    let limited = |number| {
        let mut command = offer(number, "test.long", false);
        command.timeout_ms = Some(200);
        command
    };
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    bench.tell(Input::Command(limited(71), later()));
    bench.tell(Input::Command(limited(72), later()));
    bench.tell(Input::Go(id(71), later()));
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::TimedOut);
    let bench = Bench::open(bench.die().await, 2).await;
    let mut messages = bench.attach();
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::TimedOut);
    bench.tell(Input::Go(id(72), later()));
    let ended = outcome(&mut messages).await;
    assert_eq!(ended.state, OutcomeState::TimedOut, "the journal kept it");
    // The limit counts from before the process is there, and its time from then on.
    assert!(ended.duration_ms >= 150, "{}", ended.duration_ms);
    bench.die().await;
}

#[tokio::test]
async fn a_time_limit_above_the_catalogues_changes_nothing() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    let mut command = offer(1, "test.mark", false);
    command.timeout_ms = Some(u64::MAX);
    bench.tell(Input::Command(command, later()));
    bench.tell(Input::Go(id(1), later()));
    assert_eq!(outcome(&mut messages).await.state, OutcomeState::Succeeded);
    bench.die().await;
}

#[tokio::test]
async fn the_same_id_with_another_digest_is_a_security_event() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    bench.tell(Input::Command(offer(1, "test.mark", false), later()));
    assert_eq!(next(&mut messages).await.name(), "CommandAccepted");
    bench.tell(Input::Command(offer(1, "test.long", false), later()));
    let AgentMessage::Event(event) = next(&mut messages).await else {
        panic!("no event");
    };
    assert_eq!(event.kind, "digest_mismatch");
    assert_eq!(next(&mut messages).await.name(), "CommandRejected");
    bench.die().await;
}

#[tokio::test]
async fn a_command_that_the_catalogue_does_not_have_is_refused_and_not_journalled() {
    let bench = Bench::start().await;
    let mut messages = bench.attach();
    bench.tell(Input::Command(offer(1, "test.absent", true), later()));
    let AgentMessage::CommandRejected(rejected) = next(&mut messages).await else {
        panic!("not refused");
    };
    assert_eq!(rejected.code.name(), "not_allowed");
    assert!(bench.journal.load().await.unwrap().is_empty());
    bench.die().await;
}
