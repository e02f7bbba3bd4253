//! The laws of the engine, whatever happens in whatever order.

use proptest::prelude::*;

use super::*;

fn act() -> impl Strategy<Value = Act> {
    let number = 0..COMMANDS;
    let any_open = 0_usize..4;
    prop_oneof![
        1 => Just(Act::Attach),
        4 => (number.clone(), any::<bool>(), 1_u64..2_000).prop_map(|(n, p, ms)| Act::Offer(n, p, ms)),
        4 => (number.clone(), 0_u64..2_000).prop_map(|(n, ms)| Act::Go(n, ms)),
        1 => number.clone().prop_map(Act::Drop),
        1 => number.clone().prop_map(Act::Cancel),
        2 => number.prop_map(Act::Acknowledge),
        12 => (any_open.clone(), 0_u8..20).prop_map(|(n, how)| Act::Write(n, how)),
        6 => (any_open.clone(), prop::bool::weighted(0.9)).prop_map(|(n, ok)| Act::Check(n, ok)),
        6 => (any_open.clone(), prop::bool::weighted(0.9)).prop_map(|(n, ok)| Act::Prepare(n, ok)),
        2 => any_open.clone().prop_map(Act::Queue),
        3 => any_open.prop_map(Act::Exit),
        2 => (1_u64..1_500).prop_map(Act::Wait),
        1 => Just(Act::Crash),
        1 => Just(Act::Stop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_said_or_started_too_early_or_twice_and_everything_ends(
        acts in prop::collection::vec(act(), 1..120)
    ) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        // The last process is told about everything once more, and lives long enough.
        world.crash(0);
        for number in 0..COMMANDS {
            if world.disk.contains_key(&id_of(number)) {
                world.act(Act::Offer(number, false, 1_000));
            }
        }
        world.rest();
        for entry in world.disk.values() {
            let ended = matches!(entry.state, EntryState::Finished | EntryState::Reported);
            prop_assert!(ended, "{:?} has not ended", entry);
        }
        prop_assert!(world.engine.is_quiet());
    }

    #[test]
    fn an_engine_that_stops_is_done_once_everything_under_way_has_ended(
        acts in prop::collection::vec(act(), 1..80)
    ) {
        let mut world = World::new();
        for act in acts {
            world.act(act);
        }
        world.act(Act::Stop);
        world.rest();
        prop_assert!(world.engine.is_done());
        // And it starts nothing any more.
        let before = world.launches.clone();
        for number in 0..COMMANDS {
            world.act(Act::Offer(number, true, 1_000));
            world.act(Act::Go(number, 1_000));
        }
        world.rest();
        prop_assert_eq!(before, world.launches);
    }
}
