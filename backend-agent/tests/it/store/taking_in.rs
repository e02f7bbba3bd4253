//! What becomes of batches that cannot be stored, while others want to have theirs stored.

use std::time::Duration;

use tokio::sync::watch;
use viworks_backend_agent::data::StoreHealth;
use viworks_backend_agent::telemetry::processor::{Answer, Standing};
use viworks_common::telemetry::BatchColumns;
use viworks_common::wire::PackedBatch;

use super::bed::{Bed, agent};
use super::lane::{
    PATIENCE, Processor, WAITING_BYTES_MAX, alter_file, answered, packed, stored, until,
};
use super::telemetry::{batch, gaps};

/// One gateway's batches are such that a rule of the database refuses them, or the first of them; those of another come
/// at the same time. Once the rule is gone, all of them are stored in their order, and nothing is missing.
async fn nobody_waits_for_what_the_database_refuses(
    bed: &Bed,
    code: &str,
    spoil: impl FnOnce(&str),
    mend: impl FnOnce(),
) {
    // Both in the same lane.
    let other = 1 + u64::try_from(bed.store.telemetry_lanes()).unwrap();
    for n in [1, other] {
        bed.gateway(n).await;
        bed.session(n, n).await;
    }
    spoil(&agent(1).to_string());
    let processor = Processor::over(bed);
    let mut spoilt = vec![processor.hand_in(1, 1, packed(1, 3)).await];
    let sound = processor.hand_in(other, 1, packed(1, 5)).await;
    spoilt.push(processor.hand_in(1, 1, packed(4, 6)).await);
    let Answer::Committed(commit) = answered(sound).await else {
        panic!("the other gateway's batch was not committed");
    };
    assert_eq!(commit.stored, 5);
    // Nothing stands still behind it, and nothing of the same gateway is stored past it.
    spoilt.push(processor.hand_in(1, 1, packed(7, 9)).await);
    let next = processor.hand_in(other, 1, packed(6, 7)).await;
    assert!(matches!(answered(next).await, Answer::Committed(_)));
    assert_eq!((stored(bed, 1).await, stored(bed, other).await), (0, 7));
    assert_eq!(gaps(bed, 1).await, []);
    // What may be about the database is about the gateway once it fails again, while others' are stored.
    until(|| processor.withheld() == "1").await;
    let told = processor.told();
    let code = format!(": gw-1; its code is {code}, ");
    assert!(told.contains(&code), "{told} {code}");
    assert!(!told.contains("not this one"), "{told}");
    let health = bed.store.health().await.unwrap();
    let no_room = health.full || health.full_for_telemetry;
    assert_eq!((no_room, health.refused), (false, None));
    for answer in &mut spoilt {
        let answer = answer.try_recv();
        assert!(answer.is_err(), "{answer:?}");
    }
    mend();
    for answer in spoilt {
        let Answer::Committed(commit) = answered(answer).await else {
            panic!("what the database takes now was not committed");
        };
        assert_eq!((commit.stored, commit.missing), (3, 0));
    }
    assert_eq!(stored(bed, 1).await, 9);
    assert_eq!(gaps(bed, 1).await, []);
    assert_eq!(processor.withheld(), "0");
}

#[tokio::test]
async fn nobody_waits_for_what_the_file_refuses() {
    // Whatever a gateway hands in, and its first records.
    for (table, which) in [
        ("telemetry_positions", ""),
        ("telemetry", "AND new.seq <= 3"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let bed = Bed::new(super::sqlite(&folder).await.unwrap());
        let spoil = |agent_id: &str| {
            let rule = format!(
                "CREATE TRIGGER spoilt BEFORE INSERT ON {table} WHEN new.agent_id = '{agent_id}' {which} \
                 BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            );
            alter_file(&folder, &rule);
        };
        let mend = || alter_file(&folder, "DROP TRIGGER spoilt");
        nobody_waits_for_what_the_database_refuses(&bed, "1811", spoil, mend).await;
        bed.store.close().await;
    }
}

/// A rule on a server that refuses what one gateway hands in: how it comes and goes, and by what it refuses.
struct Rule {
    comes: String,
    goes: String,
    code: &'static str,
}

impl Rule {
    /// What a trigger named `spoilt` on a table refuses.
    fn of_trigger(table: &str, comes: String, code: &'static str) -> Self {
        let goes = format!("DROP TRIGGER spoilt ON {table}");
        Self { comes, goes, code }
    }

    /// It refuses what is written of the gateway's position, by a function.
    fn of_positions(function: &str, code: &'static str) -> Self {
        let comes = format!(
            "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry_positions FOR EACH ROW \
             WHEN (NEW.agent_id = 'GATEWAY') EXECUTE FUNCTION {function}"
        );
        Self::of_trigger("telemetry_positions", comes, code)
    }

    /// The same, when all is done.
    fn of_positions_in_the_end(function: &str, code: &'static str) -> Self {
        let comes = format!(
            "CREATE CONSTRAINT TRIGGER spoilt AFTER INSERT ON telemetry_positions DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW WHEN (NEW.agent_id = 'GATEWAY') EXECUTE FUNCTION {function}"
        );
        Self::of_trigger("telemetry_positions", comes, code)
    }

    /// It refuses the gateway's records, before or after they are there, by a function.
    fn of_records(when: &str, function: &str, code: &'static str) -> Self {
        let comes = format!(
            "CREATE TRIGGER spoilt {when} INSERT ON telemetry FOR EACH ROW \
             WHEN (NOT is_sound(NEW.agent)) EXECUTE FUNCTION {function}"
        );
        Self::of_trigger("telemetry", comes, code)
    }
}

/// Every such rule that a server may have.
fn rules() -> Vec<Rule> {
    let refuse = |code: &str| format!("refuse('{code}')");
    let plainly = "refuse_plainly()";
    let mut rules = Vec::new();
    // Values that are none, a row that is too large, a rule that is no constraint: by triggers that name a code. A
    // division by zero, which is no lease that is over, and a code of somebody's own.
    for code in ["22P05", "54000", "23514", "22012", "U0001"] {
        rules.push(Rule::of_positions(&refuse(code), code));
    }
    // What nearly everybody writes, at the row, and when all is done.
    rules.push(Rule::of_positions(plainly, "P0001"));
    rules.push(Rule::of_positions_in_the_end(plainly, "P0001"));
    // The records themselves, where a day without a table has the code of a rule.
    rules.push(Rule::of_records("AFTER", plainly, "P0001"));
    rules.push(Rule::of_records("AFTER", &refuse("23514"), "23514"));
    rules.push(Rule {
        comes: "ALTER TABLE telemetry ADD CONSTRAINT spoilt CHECK (is_sound(agent))".to_owned(),
        goes: "ALTER TABLE telemetry DROP CONSTRAINT spoilt".to_owned(),
        code: "23514 spoilt",
    });
    // Codes by which a server speaks of itself: it is full, lacks rights, meets others, or is told to end.
    for code in ["53100", "42501", "40001", "57014"] {
        rules.push(Rule::of_records("BEFORE", &refuse(code), code));
    }
    // Or takes no more connections, ends one that idles, or is shut down: by these it would end the connection.
    for code in ["53300", "25P03"] {
        rules.push(Rule::of_records("BEFORE", &refuse(code), code));
    }
    rules.push(Rule::of_positions_in_the_end(&refuse("57P01"), "57P01"));
    // A table that is not there, looked for when the rows of one gateway come.
    rules.push(Rule::of_records("BEFORE", "look_for_nothing()", "42P01"));
    // One that has no meaning of its own here, when all is done.
    rules.push(Rule::of_positions_in_the_end(&refuse("55000"), "55000"));
    rules
}

/// What these rules call.
const FUNCTIONS: &str = "
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = TG_ARGV[0]; END $$;
CREATE FUNCTION refuse_plainly() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'not this one'; END $$;
CREATE FUNCTION look_for_nothing() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM FROM quotas_of_nobody; RETURN NEW; END $$;
CREATE FUNCTION is_sound(number int) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN RETURN NOT EXISTS (SELECT FROM telemetry_agent_ids WHERE id = number AND agent_id = 'GATEWAY'); END $$;
";

#[tokio::test]
async fn nobody_waits_for_what_the_server_refuses() {
    for Rule { comes, goes, code } in rules() {
        let folder = tempfile::tempdir().unwrap();
        let Some(store) = super::postgres(&folder).await else {
            return;
        };
        let (server, database) = super::database(&folder).unwrap();
        let bed = Bed::new(store);
        let spoil = |agent_id: &str| {
            let all = format!("{FUNCTIONS}{comes}").replace("GATEWAY", agent_id);
            server.psql(&database, &all).unwrap();
        };
        let mend = || {
            server.psql(&database, &goes).unwrap();
        };
        nobody_waits_for_what_the_database_refuses(&bed, code, spoil, mend).await;
        bed.store.close().await;
        server.drop(&database);
    }
}

/// Whatever anybody hands in fails: nobody is blamed, and everything is stored once it does not.
async fn everybody_waits_for_a_database_that_fails(
    bed: &Bed,
    (code, is_told): (&str, impl Fn(&StoreHealth) -> bool + Send + Sync),
    spoil: impl FnOnce(),
    mend: impl FnOnce(),
) {
    const GATEWAYS: u64 = 24;
    let lanes = u64::try_from(bed.store.telemetry_lanes()).unwrap();
    let all: Vec<u64> = (0..GATEWAYS).map(|n| 1 + n * lanes).collect();
    for n in &all {
        bed.gateway(*n).await;
        bed.session(*n, *n).await;
    }
    spoil();
    let processor = Processor::over(bed);
    let mut answers = Vec::new();
    for n in &all {
        answers.push(processor.hand_in(*n, 1, packed(1, 3)).await);
    }
    let by = format!("its code is {code},");
    let is_stalled = || processor.stalled().contains(&by);
    let waits = async {
        while processor.put_off() < 3
            || !is_stalled()
            || !is_told(&bed.store.health().await.unwrap())
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits)
        .await
        .expect("it is told");
    // What comes behind that while it stands is stored behind it.
    for n in &all {
        answers.push(processor.hand_in(*n, 1, packed(4, 6)).await);
    }
    assert_eq!(
        (processor.withheld().as_str(), processor.told()),
        ("0", String::new())
    );
    assert_ne!(processor.waiting(), "0");
    for answer in &mut answers {
        assert!(answer.try_recv().is_err());
    }
    mend();
    for answer in answers {
        let Answer::Committed(commit) = answered(answer).await else {
            panic!("what the database takes now was not committed");
        };
        assert_eq!((commit.missing, commit.rolled_back), (0, false));
    }
    for n in &all {
        assert_eq!(stored(bed, *n).await, 6, "{n}");
        assert_eq!(gaps(bed, *n).await, [], "{n}");
    }
    assert_eq!(processor.withheld(), "0");
    until(|| processor.waiting() == "0" && processor.stalled().is_empty()).await;
}

#[tokio::test]
async fn everybody_waits_for_a_file_that_lacks_something() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    // A statement on such a table cannot be prepared, whoever's rows it is for.
    let spoil = || {
        let rule = "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry WHEN new.seq < 0 \
                    BEGIN INSERT INTO quotas_of_nobody VALUES (1); END";
        alter_file(&folder, rule);
    };
    let mend = || alter_file(&folder, "DROP TRIGGER spoilt");
    everybody_waits_for_a_database_that_fails(&bed, ("1", |_health| true), spoil, mend).await;
    bed.store.close().await;
}

#[tokio::test]
async fn everybody_waits_for_a_server_that_fails() {
    // As far as is known that is so of telemetry alone, which keeps no backend from being ready.
    let is_full: fn(&StoreHealth) -> bool = |health| health.full_for_telemetry && !health.full;
    let is_unfit: fn(&StoreHealth) -> bool = |health| {
        let told = health.refused.as_deref();
        told.is_some_and(|told| told.contains("42501") && !told.contains("not this one"))
    };
    for (code, is_told) in [("53100", is_full), ("42501", is_unfit)] {
        let folder = tempfile::tempdir().unwrap();
        let Some(store) = super::postgres(&folder).await else {
            return;
        };
        let (server, database) = super::database(&folder).unwrap();
        let bed = Bed::new(store);
        let ask = |statement: &str| {
            server.psql(&database, statement).unwrap();
        };
        let spoil = || {
            ask(FUNCTIONS);
            ask(&format!(
                "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION refuse('{code}')"
            ));
        };
        let mend = || ask("DROP TRIGGER spoilt ON telemetry");
        everybody_waits_for_a_database_that_fails(&bed, (code, is_told), spoil, mend).await;
        bed.store.close().await;
        server.drop(&database);
    }
}

#[tokio::test]
async fn what_is_no_batch_is_fenced_where_its_session_is() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let mut holed = batch(1, 5);
    holed.records.remove(2);
    let holed = PackedBatch::pack(&BatchColumns::from(holed));
    let processor = Processor::over(&bed);
    let superseded = processor.hand_in(1, 0, holed.clone()).await;
    let current = processor.hand_in(1, 1, holed).await;
    let behind = processor.hand_in(1, 1, packed(6, 9)).await;
    assert_eq!(answered(superseded).await, Answer::Fenced);
    assert!(matches!(answered(current).await, Answer::Malformed(_)));
    // Behind it, it would be a gap that the gateway takes for settled.
    assert!(matches!(answered(behind).await, Answer::Malformed(_)));
    assert_eq!(stored(&bed, 1).await, 0);
    assert_eq!(gaps(&bed, 1).await, []);
    bed.store.close().await;
}

/// A gateway whose telemetry is refused comes back, as after a restart of it: what it hands in then is what waits.
#[tokio::test]
async fn what_waits_of_a_session_that_is_over_is_fenced_by_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let rule =
        "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry BEGIN SELECT RAISE(ABORT, 'no'); END";
    alter_file(&folder, rule);
    let processor = Processor::over(&bed);
    let mut before = processor.hand_in(1, 1, packed(1, 3)).await;
    bed.session(1, 2).await;
    let epoch = bed.gateway_now(1).await.session.unwrap().epoch;
    assert!(before.try_recv().is_err());
    let after = processor.hand_in(1, epoch, packed(1, 3)).await;
    assert_eq!(answered(before).await, Answer::Fenced);
    alter_file(&folder, "DROP TRIGGER spoilt");
    assert!(matches!(answered(after).await, Answer::Committed(_)));
    assert_eq!(stored(&bed, 1).await, 3);
    assert_eq!(processor.withheld(), "0");
    bed.store.close().await;
}

/// More gateways than can be withheld with what they handed in: the sessions of the rest go on as well, and nothing of
/// them is stored past what is refused. Once the database takes it, they are told to come again.
#[tokio::test]
async fn those_who_find_no_room_to_wait_come_again() {
    const GATEWAYS: u64 = 24;
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    for n in 1..=GATEWAYS {
        bed.gateway(n).await;
        bed.session(n, n).await;
    }
    let rule = "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry WHEN new.seq <= 3 \
                BEGIN SELECT RAISE(ABORT, 'no'); END";
    alter_file(&folder, rule);
    let processor = Processor::over(&bed);
    let (mut kept, mut left) = (Vec::new(), Vec::new());
    for n in 1..=GATEWAYS {
        // Of the last one more than what goes into one transaction.
        let first = if n == GATEWAYS { 700 } else { 3 };
        let batches = [packed(1, first), packed(first + 1, first + 3)];
        let answers = if n <= 16 { &mut kept } else { &mut left };
        for batch in batches {
            answers.push(processor.hand_in(n, 1, batch).await);
        }
    }
    until(|| processor.withheld() == GATEWAYS.to_string()).await;
    assert_eq!(processor.waiting(), GATEWAYS.to_string());
    // What comes behind waits as well; and of one that comes again meanwhile, that of before is fenced.
    left.push(processor.hand_in(GATEWAYS, 1, packed(704, 706)).await);
    let before: Vec<_> = left.drain(..2).collect();
    bed.session(17, 98).await;
    let again = processor.hand_in(17, 2, packed(1, 3)).await;
    for answer in before {
        assert_eq!(answered(answer).await, Answer::Fenced);
    }
    until(|| processor.withheld() == GATEWAYS.to_string()).await;
    left.push(again);
    for answer in kept.iter_mut().chain(&mut left) {
        assert!(answer.try_recv().is_err());
    }
    alter_file(&folder, "DROP TRIGGER spoilt");
    for answer in kept {
        assert!(matches!(answered(answer).await, Answer::Committed(_)));
    }
    for answer in left {
        assert_eq!(answered(answer).await, Answer::Unstorable);
    }
    for n in 1..=GATEWAYS {
        assert_eq!(stored(&bed, n).await, if n <= 16 { 6 } else { 0 }, "{n}");
        assert_eq!(gaps(&bed, n).await, []);
    }
    assert_eq!(processor.withheld(), "0");
    bed.session(GATEWAYS, 99).await;
    let again = processor.hand_in(GATEWAYS, 2, packed(1, 700)).await;
    assert!(matches!(answered(again).await, Answer::Committed(_)));
    assert_eq!(processor.withheld(), "0");
    bed.store.close().await;
}

/// What is withheld has a bound of its own, and takes nothing of what may wait in the process.
#[tokio::test]
async fn what_is_withheld_gives_its_share_back() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let rule =
        "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry BEGIN SELECT RAISE(ABORT, 'no'); END";
    alter_file(&folder, rule);
    let processor = Processor::over(&bed);
    let standing = watch::Sender::new(Standing::InTurn);
    let mut all = Vec::new();
    for from_seq in [1, 4] {
        let everything = processor.processor.try_share(WAITING_BYTES_MAX);
        let everything = everything.expect("nothing else waits");
        let batch = packed(from_seq, from_seq + 2);
        let share = Some(everything);
        let waits = processor
            .hand_in_with((1, 1), batch, share, &standing)
            .await;
        let is_back = || processor.processor.try_share(WAITING_BYTES_MAX).is_some();
        until(is_back).await;
        assert!(!waits.is_terminated());
        // What the session has not handed in yet is to wait without a share as well.
        assert_eq!(*standing.borrow(), Standing::Kept);
        all.push(waits);
    }
    assert_eq!(processor.withheld(), "1");
    alter_file(&folder, "DROP TRIGGER spoilt");
    for waits in all {
        assert!(matches!(answered(waits).await, Answer::Committed(_)));
    }
    assert_eq!(*standing.borrow(), Standing::InTurn);
    bed.store.close().await;
}

/// Of more gateways than are kept it is told that nothing of their sessions is stored any more, whatever comes.
#[tokio::test]
async fn a_session_is_told_that_nothing_more_of_it_is_stored() {
    const GATEWAYS: u64 = 17;
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    let rule =
        "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry BEGIN SELECT RAISE(ABORT, 'no'); END";
    alter_file(&folder, rule);
    let processor = Processor::over(&bed);
    let mut sessions = Vec::new();
    for n in 1..=GATEWAYS {
        bed.gateway(n).await;
        bed.session(n, n).await;
        let standing = watch::Sender::new(Standing::InTurn);
        let batch = packed(1, 3);
        let answer = processor.hand_in_with((n, 1), batch, None, &standing).await;
        sessions.push((answer, standing));
    }
    until(|| processor.withheld() == GATEWAYS.to_string()).await;
    let stand = sessions.iter().map(|(_, standing)| *standing.borrow());
    let outside = stand.filter(|it| *it == Standing::Outside).count();
    assert_eq!(outside, 1);
    alter_file(&folder, "DROP TRIGGER spoilt");
    for (answer, standing) in sessions {
        let before = *standing.borrow();
        let answer = answered(answer).await;
        if before == Standing::Outside {
            assert_eq!(answer, Answer::Unstorable);
        } else {
            assert!(matches!(answer, Answer::Committed(_)), "{answer:?}");
            assert_eq!(*standing.borrow(), Standing::InTurn);
        }
    }
    bed.store.close().await;
}

/// A batch of a session that has ended is on its way yet when what it would be stored behind is forgotten.
#[tokio::test]
async fn nothing_of_a_session_is_stored_past_what_was_forgotten_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    bed.gateway(1).await;
    bed.session(1, 1).await;
    let rule = "CREATE TRIGGER spoilt BEFORE INSERT ON telemetry WHEN new.seq <= 3 \
                BEGIN SELECT RAISE(ABORT, 'no'); END";
    alter_file(&folder, rule);
    let processor = Processor::over(&bed);
    let refused = processor.hand_in(1, 1, packed(1, 3)).await;
    until(|| processor.withheld() == "1").await;
    drop(refused);
    until(|| processor.withheld() == "0").await;
    let late = processor.hand_in(1, 1, packed(4, 6)).await;
    assert_eq!(answered(late).await, Answer::Unstorable);
    assert_eq!(stored(&bed, 1).await, 0);
    assert_eq!(gaps(&bed, 1).await, []);
    bed.store.close().await;
}
