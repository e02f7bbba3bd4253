//! A lane in which more gateways fail than can be withheld: whoever does not fail is stored all the same.

use std::collections::BTreeMap;

use tokio::sync::watch;
use viworks_backend_agent::telemetry::processor::{Answer, Standing};
use viworks_common::telemetry::RecordRefusal;

use super::bed::{Bed, agent};
use super::lane::{Processor, alter_file, answered, pack, packed, stored, until};
use super::telemetry::{batch, gaps};

/// So many are withheld in a lane.
const WITHHELD: u64 = 16;

/// The file says of so many gateways' records what it says when it fails itself, and refuses the first ones of one
/// more. Nothing of anybody is stored until one comes that does not fail, behind another one that does.
#[tokio::test]
async fn one_that_does_not_fail_is_stored_while_a_lane_stands() {
    const REFUSED: u64 = WITHHELD + 2;
    const ONE_MORE: u64 = WITHHELD + 3;
    const SOUND: u64 = WITHHELD + 4;
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::new(super::sqlite(&folder).await.unwrap());
    for n in 1..=SOUND {
        bed.gateway(n).await;
        bed.session(n, n).await;
    }
    let failing = (1..=WITHHELD + 1).chain([ONE_MORE]);
    let failing: Vec<String> = failing.map(|n| format!("'{}'", agent(n))).collect();
    let rules = format!(
        "CREATE TRIGGER failing BEFORE INSERT ON telemetry WHEN new.agent_id IN ({}) \
         BEGIN SELECT abs(-9223372036854775808); END; \
         CREATE TRIGGER refusing BEFORE INSERT ON telemetry WHEN new.agent_id = '{}' AND new.seq <= 3 \
         BEGIN SELECT RAISE(ABORT, 'not this one'); END",
        failing.join(", "),
        agent(REFUSED)
    );
    alter_file(&folder, &rules);
    let processor = Processor::over(&bed);
    let mut waiting = Vec::new();
    for n in 1..=WITHHELD {
        waiting.push(processor.hand_in(n, 1, packed(1, 3)).await);
        until(|| processor.waiting() == n.to_string()).await;
    }
    // There is no room for the next one: it stands in the lane, and beside it one that is refused.
    for n in [WITHHELD + 1, REFUSED] {
        waiting.push(processor.hand_in(n, 1, packed(1, 3)).await);
    }
    until(|| processor.waiting() == REFUSED.to_string()).await;
    // Of that one nothing is stored past what was refused.
    waiting.push(processor.hand_in(REFUSED, 1, packed(4, 6)).await);
    let before = processor.put_off();
    until(|| processor.put_off() >= before + 2).await;
    assert_eq!(stored(&bed, REFUSED).await, 0);
    assert_eq!(processor.waiting(), REFUSED.to_string());
    waiting.push(processor.hand_in(ONE_MORE, 1, packed(1, 3)).await);
    let mut mixed = batch(1, 5);
    mixed.records[1].1.fields.clear();
    let sound = processor.hand_in(SOUND, 1, pack(mixed)).await;
    let Answer::Committed(commit) = answered(sound).await else {
        panic!("not committed");
    };
    // What became of it is told as of any other, and is counted once.
    let refused = BTreeMap::from([(RecordRefusal::FieldCount, 1)]);
    assert_eq!((commit.stored, commit.refused), (4, refused));
    assert_eq!(stored(&bed, SOUND).await, 4);
    let more = processor.hand_in(SOUND, 1, packed(6, 7)).await;
    assert!(matches!(answered(more).await, Answer::Committed(_)));
    until(|| processor.rows() == 6).await;
    assert_eq!(processor.refused(RecordRefusal::FieldCount), 1);
    for n in 1..=SOUND {
        assert_eq!(gaps(&bed, n).await, [], "{n}");
        assert!(n == SOUND || stored(&bed, n).await == 0, "{n}");
    }
    for answer in &mut waiting {
        let answer = answer.try_recv();
        assert!(answer.is_err(), "{answer:?}");
    }
    bed.store.close().await;
}

/// The server refuses what so many gateways hand in as can be withheld, and fails for a moment when one more comes.
#[tokio::test]
async fn one_that_fails_for_a_moment_is_tried_again_where_nobody_more_can_be_withheld() {
    let folder = tempfile::tempdir().unwrap();
    let Some(store) = super::postgres(&folder).await else {
        return;
    };
    let (server, database) = super::database(&folder).unwrap();
    let bed = Bed::new(store);
    let lanes = u64::try_from(bed.store.telemetry_lanes()).unwrap();
    let of_lane = |place: u64| 1 + place * lanes;
    let sound = of_lane(WITHHELD);
    for place in 0..=WITHHELD {
        bed.gateway(of_lane(place)).await;
        bed.session(of_lane(place), 1 + place).await;
    }
    // What a sequence has given is not taken back with the transaction. One attempt is together with others, and two
    // are its own.
    let rule = "
        CREATE SEQUENCE attempts;
        CREATE FUNCTION refuse_or_blink() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
            BEGIN
                IF NEW.agent_id <> 'GATEWAY' THEN RAISE EXCEPTION 'not this one'; END IF;
                IF nextval('attempts') <= 3 THEN RAISE EXCEPTION 'for a moment' USING ERRCODE = '53200'; END IF;
                RETURN NEW;
            END $$;
        CREATE TRIGGER spoilt BEFORE INSERT ON telemetry_positions FOR EACH ROW
            EXECUTE FUNCTION refuse_or_blink();";
    let rule = rule.replace("GATEWAY", &agent(sound).to_string());
    server.psql(&database, &rule).unwrap();
    let processor = Processor::over(&bed);
    let mut refused = Vec::new();
    for place in 0..WITHHELD {
        refused.push(processor.hand_in(of_lane(place), 1, packed(1, 3)).await);
    }
    until(|| processor.withheld() == WITHHELD.to_string()).await;
    let standing = watch::Sender::new(Standing::InTurn);
    let answer = processor.hand_in_with((sound, 1), packed(1, 3), None, &standing);
    let answer = answered(answer.await).await;
    assert!(matches!(answer, Answer::Committed(_)), "{answer:?}");
    assert_eq!(*standing.borrow(), Standing::InTurn);
    assert_eq!(stored(&bed, sound).await, 3);
    let attempts = server.psql(&database, "SELECT last_value >= 4 FROM attempts");
    assert_eq!(attempts.unwrap().trim(), "t");
    bed.store.close().await;
    server.drop(&database);
}
