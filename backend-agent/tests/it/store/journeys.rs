//! How many journeys to the server a command is: what the store on PostgreSQL costs is mostly these.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use viworks_backend_agent::data::postgres::{Address, PostgresStore, Role};
use viworks_backend_agent::data::{
    AcceptOutcome, Accepted, CompleteOutcome, ConfirmOutcome, HeartbeatFigures, Idempotency,
    SessionTouch, Submission,
};
use viworks_common::command::OutcomeState;
use viworks_common::ledger::lease::Place;
use viworks_common::telemetry::Position;
use viworks_testkit::postgres::Server;
use viworks_testkit::proxy::{Ear, Heard, Proxy};

use super::bed::{Bed, agent, at, outcome, process};
use super::{database, make};

/// Counts what the server has to answer before anything else goes on: questions of the simple protocol, and the ends of
/// rounds of the extended one.
struct Counter {
    journeys: Arc<AtomicU64>,
    said: Vec<u8>,
    /// The first message has no kind.
    opened: bool,
}

impl Ear for Counter {
    fn heard(&mut self, said: &[u8]) -> Heard {
        self.said.extend_from_slice(said);
        loop {
            let kind = usize::from(self.opened);
            let Some(length) = self.said.get(kind..kind + 4) else {
                return Heard::Pass;
            };
            let length = u32::from_be_bytes(length.try_into().expect("four bytes"));
            let whole = kind + usize::try_from(length).expect("a small number");
            if self.said.len() < whole {
                return Heard::Pass;
            }
            if self.opened && matches!(self.said.first(), Some(b'Q' | b'S')) {
                self.journeys.fetch_add(1, Ordering::SeqCst);
            }
            self.opened = true;
            self.said.drain(..whole);
        }
    }
}

/// A store whose journeys are counted, on one connection of each kind, so that each statement is prepared once.
async fn counted(server: &Server, database: &str) -> (Bed, Arc<AtomicU64>, Proxy) {
    let journeys = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&journeys);
    let ears = move || -> Box<dyn Ear> {
        Box::new(Counter {
            journeys: Arc::clone(&counted),
            said: Vec::new(),
            opened: false,
        })
    };
    let target = format!("127.0.0.1:{}", server.port());
    let proxy = Proxy::listening(target, ears).await.unwrap();
    let url = format!(
        "postgres://viworks@127.0.0.1:{}/{database}?sslmode=disable",
        proxy.port()
    );
    let address = Address::parse(&url, None, None).unwrap().connections_max(4);
    let store = PostgresStore::open(address, Role::Beside, true);
    (Bed::new(Arc::new(store.await.unwrap())), journeys, proxy)
}

/// HELLO and CONFIRM are each a question and a statement that writes; spool epochs are one more question.
#[tokio::test]
async fn an_opening_is_four_journeys() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let (bed, journeys, _proxy) = counted(server, &database).await;
    bed.gateway(1).await;
    let mut took = Vec::new();
    for epoch in 0..4 {
        let mut hello = bed.hello(1, 1, epoch);
        if epoch == 3 {
            hello.telemetry = vec![Position {
                spool_epoch: process(1),
                seq: 0,
            }];
        }
        let begun = journeys.load(Ordering::SeqCst);
        let admitted = bed.admitted(hello.clone()).await;
        let between = journeys.load(Ordering::SeqCst);
        let confirmed = bed.confirm(bed.confirm_of(&hello, &admitted)).await;
        assert!(matches!(confirmed, ConfirmOutcome::Confirmed(_)));
        took.push((between - begun, journeys.load(Ordering::SeqCst) - between));
    }
    // The last one asks something new, which is prepared first.
    assert_eq!((took[2], took[3]), ((2, 2), (4, 2)), "{took:?}");
    bed.store.close().await;
}

/// However many gateways they are about.
#[tokio::test]
async fn heartbeats_are_one_journey_and_so_is_the_look_for_commands() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let (bed, journeys, _proxy) = counted(server, &database).await;
    let mut touches = Vec::new();
    for n in 1..=20 {
        bed.gateway(n).await;
        let session = bed.session(n, n).await;
        touches.push(SessionTouch {
            agent_id: agent(n),
            epoch: session.holder.epoch,
            figures: HeartbeatFigures {
                spool_records: n,
                ..HeartbeatFigures::default()
            },
        });
    }
    let agents: Vec<_> = (1..=20).map(agent).collect();
    let mut took = Vec::new();
    for second in 0..3 {
        let begun = journeys.load(Ordering::SeqCst);
        let stored = bed
            .store
            .touch_sessions(&bed.tenant, touches.clone(), at(second));
        stored.await.unwrap();
        let between = journeys.load(Ordering::SeqCst);
        let queued = bed.store.queued_among(&bed.tenant, agents.clone()).await;
        assert_eq!(queued.unwrap(), []);
        took.push((between - begun, journeys.load(Ordering::SeqCst) - between));
    }
    assert_eq!(took[2], (1, 1), "{took:?}");
    let figures = bed.gateway_now(20).await.session.unwrap().figures;
    assert_eq!(figures.spool_records, 20);
    bed.store.close().await;
}

#[tokio::test]
async fn a_command_is_two_journeys() {
    let folder = tempfile::tempdir().unwrap();
    let Some((server, database)) = database(&folder) else {
        return;
    };
    make(server, &database);
    let (bed, journeys, _proxy) = counted(server, &database).await;
    bed.gateway(1).await;
    let session = bed.session(1, 1).await;
    let place = Place {
        epoch: session.holder.epoch,
        run: session.holder.agent_run_id,
    };
    let mut took = Vec::new();
    // The first asks, the second makes a connection for what is remembered, and the third is what all others are. Then
    // those that need a permit.
    for idempotent in [true, true, true, false, false] {
        let mut new = bed.new_run(&[1], idempotent);
        new.targets[0].place = Some(place);
        let command_id = new.targets[0].command_id;
        let begun = journeys.load(Ordering::SeqCst);
        let submitted = bed.store.submit_run(&bed.tenant, new, at(1)).await;
        let submitted = submitted.unwrap();
        assert!(matches!(submitted, Submission::Submitted { offered, .. } if offered.len() == 1));
        let between = journeys.load(Ordering::SeqCst);
        if !idempotent {
            let accepted = Accepted {
                command_id,
                idempotent,
                awaiting_permit: true,
            };
            let told = bed
                .store
                .accept_command(&bed.tenant, &session.holder, accepted, at(1))
                .await;
            assert!(matches!(told, Ok(AcceptOutcome::Go { .. })), "{told:?}");
        }
        let permitted = journeys.load(Ordering::SeqCst);
        let ended = bed
            .store
            .complete_command(
                &bed.tenant,
                &session.holder,
                command_id,
                outcome(OutcomeState::Succeeded),
                at(1),
            )
            .await;
        let CompleteOutcome::Completed { run: Some(run), .. } = ended.unwrap() else {
            panic!("the run has ended");
        };
        assert!(run.finished_at.is_some());
        let finished = journeys.load(Ordering::SeqCst);
        took.push((between - begun, permitted - between, finished - permitted));
    }
    assert_eq!((took[2], took[4]), ((1, 0, 1), (1, 1, 1)), "{took:?}");

    // A key that was used already is found.
    let mut new = bed.new_run(&[1], true);
    new.targets[0].place = Some(place);
    new.idempotency = Some(Idempotency {
        principal: "test".to_owned(),
        route: "runs".to_owned(),
        key: "one".to_owned(),
        request_hash: [1; 32],
    });
    let submit = async |new| bed.store.submit_run(&bed.tenant, new, at(9)).await.unwrap();
    let submitted = submit(new.clone()).await;
    assert!(matches!(submitted, Submission::Submitted { offered, .. } if offered.len() == 1));
    let again = submit(new).await;
    assert!(matches!(again, Submission::Replayed(_)), "{again:?}");
    bed.store.close().await;
    super::postgres_counts_are_right(&folder);
}
