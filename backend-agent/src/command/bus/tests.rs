//! What watchers of a run hear, and what the bus forgets first.

use futures_util::FutureExt;
use uuid::Uuid;

use super::*;

fn run(number: u128) -> RunId {
    RunId::from_uuid(Uuid::from_u128(number))
}

fn instance(number: u128) -> InstanceId {
    InstanceId::from_uuid(Uuid::from_u128(number))
}

fn chunk(offset: u64, bytes: usize) -> OutputChunk {
    OutputChunk {
        at: Timestamp::from_unix_micros(0),
        command_id: CommandId::from_uuid(Uuid::from_u128(1)),
        agent_id: AgentId::from_uuid(Uuid::from_u128(2)),
        stream: OutputStream::Stdout,
        offset,
        data: vec![b'x'; bytes],
    }
}

fn change(state: CommandState) -> CommandChange {
    CommandChange {
        at: Timestamp::from_unix_micros(0),
        command_id: CommandId::from_uuid(Uuid::from_u128(1)),
        agent_id: AgentId::from_uuid(Uuid::from_u128(2)),
        state,
        attempt: Some(1),
        exit_code: None,
        duration_ms: None,
        reason: None,
        written: None,
    }
}

fn offsets(subscription: &mut Subscription) -> Vec<u64> {
    let mut found = Vec::new();
    while let Step::Event(_cursor, event) = subscription.poll_next() {
        if let RunChange::Output(chunk) = event.as_ref() {
            found.push(chunk.offset);
        }
    }
    found
}

fn small() -> Arc<RunBus> {
    let limits = BusLimits {
        runs: 2,
        run_events: 4,
        events: 100,
        run_output_bytes: 100,
        output_bytes: 150,
    };
    Arc::new(RunBus::new(limits, 7))
}

#[test]
fn many_runs_stay_within_one_bound_and_finished_ones_that_nobody_watches_go_first() {
    let limits = BusLimits {
        runs: 1_000,
        run_events: 10,
        events: 100,
        ..BusLimits::default()
    };
    let bus = Arc::new(RunBus::new(limits, 7));
    let mut watched = bus.subscribe(run(1), None);
    bus.command_changed(run(1), change(CommandState::Succeeded), true);
    bus.command_changed(run(2), change(CommandState::Running), false);
    for number in 3..200 {
        for _event in 0..20 {
            bus.command_changed(run(number), change(CommandState::Succeeded), true);
            assert!(bus.lock().events <= 100);
        }
    }
    let held: usize = {
        let inner = bus.lock();
        inner
            .channels
            .values()
            .map(|channel| channel.ring.len())
            .sum()
    };
    assert_eq!(bus.lock().events, held, "the count is what is held");
    assert!(
        matches!(watched.poll_next(), Step::Event(..)),
        "it is watched"
    );
    let mut running = bus.subscribe(run(2), None);
    assert!(
        matches!(running.poll_next(), Step::Event(..)),
        "it is not finished"
    );
}

#[test]
fn without_other_words_as_much_is_held_as_the_page_of_limits_says() {
    let bus = Arc::new(RunBus::new(BusLimits::default(), 7));
    for number in 1..=5 {
        for _event in 0..=8_192 {
            bus.command_changed(run(number), change(CommandState::Succeeded), true);
        }
        assert_eq!(bus.lock().channels[&run(number)].ring.len(), 8_192);
    }
    assert_eq!(bus.lock().events, 32_768);
    let bus = Arc::new(RunBus::new(BusLimits::default(), 7));
    let piece = 65_536;
    for number in 1..=9 {
        for at in 0..17 {
            bus.output(run(number), chunk(at * piece, 65_536));
        }
        assert_eq!(bus.lock().channels[&run(number)].output_bytes, 1_048_576);
    }
    assert_eq!(bus.lock().output_bytes, 8_388_608);
    for number in 10..3_000 {
        bus.command_changed(run(number), change(CommandState::Succeeded), true);
        assert!(bus.lock().channels.len() <= 1_024);
    }
    assert!(
        bus.lock().channels.len() > 512,
        "and no fewer than that is of use"
    );
}

#[test]
fn a_watcher_that_comes_back_replays_from_where_it_was() {
    let bus = small();
    bus.output(run(1), chunk(0, 1));
    bus.output(run(1), chunk(1, 1));
    let mut first = bus.subscribe(run(1), None);
    let Step::Event(cursor, _event) = first.poll_next() else {
        panic!("no event")
    };
    drop(first);
    bus.output(run(1), chunk(2, 1));
    let cursor = cursor.to_string().parse().unwrap();
    let mut second = bus.subscribe(run(1), Some(cursor));
    assert!(second.resumed());
    assert_eq!(offsets(&mut second), [1, 2]);
}

#[test]
fn a_place_of_an_earlier_process_is_not_resumed() {
    let earlier = small();
    earlier.output(run(1), chunk(0, 1));
    let Step::Event(cursor, _event) = earlier.subscribe(run(1), None).poll_next() else {
        panic!("no event")
    };
    let bus = Arc::new(RunBus::new(BusLimits::default(), 99));
    bus.output(run(1), chunk(5, 1));
    let mut watcher = bus.subscribe(run(1), Some(cursor));
    assert!(!watcher.resumed());
    assert_eq!(offsets(&mut watcher), [5]);
}

#[test]
fn a_watcher_that_falls_behind_is_told_how_much_it_missed() {
    let bus = small();
    let mut watcher = bus.subscribe(run(1), None);
    for offset in 0..7 {
        bus.output(run(1), chunk(offset, 1));
    }
    assert_eq!(watcher.poll_next(), Step::Missed(3));
    assert_eq!(offsets(&mut watcher), [3, 4, 5, 6]);
    assert_eq!(watcher.poll_next(), Step::Pending);
}

#[test]
fn output_of_one_run_is_bounded_in_bytes() {
    let bus = small();
    for offset in 0..3 {
        bus.output(run(1), chunk(offset, 40));
    }
    assert_eq!(offsets(&mut bus.subscribe(run(1), None)), [1, 2]);
}

#[test]
fn output_of_all_runs_is_bounded_in_bytes() {
    let bus = small();
    bus.output(run(1), chunk(0, 90));
    let mut watcher = bus.subscribe(run(2), None);
    bus.output(run(2), chunk(0, 90));
    assert!(bus.lock().output_bytes <= 150);
    assert_eq!(offsets(&mut watcher), [0]);
    assert_eq!(offsets(&mut bus.subscribe(run(1), None)), Vec::<u64>::new());
}

#[test]
fn the_most_silent_run_makes_room_and_its_watcher_learns_it() {
    let bus = small();
    let mut watcher = bus.subscribe(run(1), None);
    bus.output(run(2), chunk(0, 1));
    bus.output(run(3), chunk(0, 1));
    bus.output(run(1), chunk(1, 1));
    assert_eq!(
        offsets(&mut watcher),
        [1],
        "a watched run outlives silent ones"
    );
    let _second = bus.subscribe(run(4), None);
    let _third = bus.subscribe(run(5), None);
    assert_eq!(watcher.poll_next(), Step::Forgotten);
}

#[test]
fn a_run_is_under_way_from_its_first_event_to_its_last() {
    let bus = small();
    let watcher = bus.subscribe(run(1), None);
    assert!(!watcher.is_under_way(), "nothing is known of it");
    bus.command_changed(run(1), change(CommandState::Running), false);
    assert!(watcher.is_under_way());
    bus.command_changed(run(1), change(CommandState::Succeeded), true);
    assert!(!watcher.is_under_way());
    let _second = bus.subscribe(run(2), None);
    let _third = bus.subscribe(run(3), None);
    assert!(!watcher.is_under_way(), "it was forgotten");
}

#[test]
fn room_is_made_for_some_runs_at_once_and_by_none_that_is_open_or_watched() {
    let limits = BusLimits {
        runs: 160,
        ..BusLimits::default()
    };
    let bus = Arc::new(RunBus::new(limits, 7));
    let watched: Vec<_> = (0..5)
        .map(|number| bus.subscribe(run(number), None))
        .collect();
    for number in 0..160 {
        bus.command_changed(run(number), change(CommandState::Running), number % 2 == 0);
    }
    bus.command_changed(run(1_000), change(CommandState::Running), false);
    let inner = bus.lock();
    assert_eq!(inner.channels.len(), 160 - 11 + 1);
    let gone: Vec<_> = (0..160)
        .filter(|number| !inner.channels.contains_key(&run(*number)))
        .collect();
    let silent: Vec<_> = (6..=26).step_by(2).collect();
    assert_eq!(gone, silent);
    drop((inner, watched));
}

#[test]
fn a_waiter_wakes_when_the_last_command_is_final_and_not_before() {
    let bus = small();
    let mut watcher = bus.subscribe(run(1), None);
    bus.command_changed(run(1), change(CommandState::Running), false);
    assert!(watcher.finished().now_or_never().is_none());
    bus.command_changed(run(1), change(CommandState::Succeeded), true);
    assert!(watcher.finished().now_or_never().is_some());
}

/// What was told to other processes.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(RunId, bool)>>);

impl Elsewhere for Told {
    fn watch(&self) {}

    fn tell(&self, run_id: RunId, _change: &Arc<RunChange>, run_finished: bool) {
        self.0.lock().unwrap().push((run_id, run_finished));
    }
}

#[test]
fn what_changes_here_is_told_elsewhere_and_what_is_heard_is_not_told_again() {
    let bus = small();
    let told = Arc::new(Told::default());
    bus.tell_elsewhere(Arc::<Told>::clone(&told));
    let other = instance(1);
    bus.heard(other, run(1), RunChange::Output(chunk(0, 1)), false);
    let mut watcher = bus.subscribe(run(1), None);
    assert_eq!(offsets(&mut watcher), Vec::<u64>::new(), "nobody watched");
    assert_eq!(bus.watched(9), [run(1)]);
    bus.output(run(1), chunk(1, 1));
    bus.heard(other, run(1), RunChange::Output(chunk(2, 1)), false);
    assert_eq!(offsets(&mut watcher), [1, 2]);
    bus.heard(
        other,
        run(1),
        RunChange::Command(change(CommandState::Succeeded)),
        true,
    );
    // What was on its way until then is in the store.
    bus.heard(other, run(1), RunChange::Output(chunk(3, 1)), false);
    assert_eq!(offsets(&mut watcher), Vec::<u64>::new());
    let heard = watcher.finished().now_or_never();
    assert_eq!(heard, Some(Heard::Finished(None)));
    assert!(bus.watched(9).is_empty(), "it is over");
    bus.command_changed(run(2), change(CommandState::Succeeded), true);
    assert_eq!(*told.0.lock().unwrap(), [(run(1), false), (run(2), true)]);
}

#[test]
fn watchers_can_be_asked_to_look_into_the_store() {
    let bus = small();
    let mut watcher = bus.subscribe(run(1), None);
    assert!(!watcher.asked_to_look());
    bus.look(run(1));
    assert!(watcher.changed().now_or_never().is_some());
    assert!(watcher.asked_to_look());
    assert!(!watcher.asked_to_look(), "once");
    bus.look(run(1));
    assert_eq!(watcher.finished().now_or_never(), Some(Heard::Look));
    assert_eq!(watcher.finished().now_or_never(), None);
    let mut other = bus.subscribe(run(2), None);
    bus.look_at_all();
    for watcher in [&mut watcher, &mut other] {
        assert_eq!(watcher.finished().now_or_never(), Some(Heard::Look));
        assert_eq!(watcher.finished().now_or_never(), None);
    }
}

#[test]
fn text_that_is_no_place_is_refused() {
    for text in [
        "",
        "-",
        "1",
        "zz-1",
        "1-1",
        "00000000000000ff-01",
        "00000000000000ff--1",
    ] {
        assert!(text.parse::<Cursor>().is_err(), "{text}");
    }
}

#[test]
fn output_that_is_told_again_from_elsewhere_is_there_once_and_in_order() {
    // At whole seconds.
    let piece = |at: i64, offset: u64| {
        RunChange::Output(OutputChunk {
            at: Timestamp::from_unix_micros(at * 1_000_000),
            ..chunk(offset, 10)
        })
    };
    let bus = Arc::new(RunBus::new(BusLimits::default(), 7));
    let mut watcher = bus.subscribe(run(1), None);
    let hear_of = |from: u128, pieces: &[(i64, u64)]| {
        for (at, offset) in pieces {
            bus.heard(instance(from), run(1), piece(*at, *offset), false);
        }
    };
    let hear = |pieces: &[(i64, u64)]| hear_of(1, pieces);
    // All that is remembered there, and again what was on its way meanwhile.
    hear(&[(1, 0), (2, 10), (3, 20), (2, 10), (3, 20), (4, 30)]);
    assert_eq!(offsets(&mut watcher), [0, 10, 20, 30]);
    // Somebody else began to watch at a third one; of two that came in one moment neither is left out.
    hear(&[(1, 0), (2, 10), (3, 20), (4, 30), (4, 40), (4, 60)]);
    assert_eq!(offsets(&mut watcher), [40, 60]);
    // The command is run again, and what was before is told once more.
    hear(&[(9, 0), (4, 60), (9, 0)]);
    assert_eq!(offsets(&mut watcher), [0]);
    // So it is where a piece of the first time begins just where the second one is, whoever tells it.
    hear(&[(2, 10), (8, 10)]);
    hear_of(2, &[(2, 10)]);
    assert_eq!(offsets(&mut watcher), Vec::<u64>::new());
    hear(&[(9, 10)]);
    assert_eq!(offsets(&mut watcher), [10]);
    // The gateway went to a backend whose clock is a little behind.
    hear_of(2, &[(8, 20)]);
    assert_eq!(offsets(&mut watcher), [20]);
    // That it is told to others is up to whoever told it.
    assert_eq!(bus.remembered(run(1), None, 100), []);
}

#[test]
fn of_how_many_outputs_it_is_known_how_far_they_were_heard_is_bounded() {
    let bus = Arc::new(RunBus::new(BusLimits::default(), 7));
    let _watcher = bus.subscribe(run(1), None);
    for number in 0..=HEARD_MAX {
        let command_id = CommandId::from_uuid(Uuid::from_u128(number.try_into().unwrap()));
        let piece = OutputChunk {
            command_id,
            ..chunk(0, 1)
        };
        bus.heard(instance(1), run(1), RunChange::Output(piece), false);
    }
    let inner = bus.lock();
    let heard = &inner.channels[&run(1)].heard;
    assert_eq!(heard.len(), HEARD_MAX);
    let oldest = CommandId::from_uuid(Uuid::from_u128(0));
    assert!(!heard.contains_key(&(oldest, OutputStream::Stdout)));
}

#[test]
fn output_that_came_here_is_remembered_for_others_from_the_oldest_on() {
    let bus = small();
    assert_eq!(bus.remembered(run(1), None, 10), []);
    bus.command_changed(run(1), change(CommandState::Running), false);
    for offset in [0, 30, 60] {
        bus.output(run(1), chunk(offset, 30));
    }
    let told = |after, limit| {
        let found = bus.remembered(run(1), after, limit);
        let offset = |change: &RunChange| match change {
            RunChange::Output(chunk) => chunk.offset,
            RunChange::Command(_) => panic!("it is no output"),
        };
        let offsets: Vec<u64> = found.iter().map(|(_place, it)| offset(it)).collect();
        (offsets, found.last().map(|(place, _it)| *place))
    };
    let (offsets, place) = told(None, 2);
    assert_eq!(offsets, [0, 30]);
    let (offsets, place) = told(place, 2);
    assert_eq!(offsets, [60]);
    let (offsets, end) = told(place, 2);
    assert_eq!((offsets, end), (vec![], None));
    // What went for want of room is not told, and nothing is told twice.
    bus.output(run(1), chunk(90, 30));
    bus.output(run(1), chunk(120, 30));
    assert_eq!(told(place, 9).0, [90, 120]);
    assert_eq!(told(None, 9).0, [60, 90, 120]);
}
