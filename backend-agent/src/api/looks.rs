//! Which commands of a run that is followed are looked at next: however many it has, one look reads so many.

use std::collections::BTreeMap;
use std::ops::Bound;

use viworks_common::command::CommandState;
use viworks_common::id::CommandId;
use viworks_common::limits::PAGE_ROWS_MAX;

use crate::data::Page;

/// Goes round the commands of a run that were not over when they were last heard of.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// The last one that was looked at.
    behind: Option<CommandId>,
}

impl Looks {
    /// The commands to read now, of those whose states are known: from the next one that is not over to the last such
    /// one that the look reaches. `None` when all are over.
    pub(super) fn next(&self, told: &BTreeMap<CommandId, CommandState>) -> Option<Page<CommandId>> {
        let is_open = |(_, state): &(&CommandId, &CommandState)| !state.is_final();
        let behind = self.behind.map_or(Bound::Unbounded, Bound::Excluded);
        let next = told.range((behind, Bound::Unbounded)).find(is_open);
        let (first, _) = next.or_else(|| told.iter().find(is_open))?;
        let reach = told.range(first..).take(PAGE_ROWS_MAX);
        let last = reach.enumerate().filter(|(_, it)| is_open(it)).last();
        let rows = last.map_or(1, |(place, _)| place + 1);
        let before = told.range(..first).next_back();
        Some(match before {
            Some((before, _)) => Page::after(*before, rows),
            None => Page::first(rows),
        })
    }

    /// A look came as far as this.
    pub(super) const fn reached(&mut self, last: CommandId) {
        self.behind = Some(last);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn id(n: usize) -> CommandId {
        CommandId::from_uuid(Uuid::from_u128(n as u128))
    }

    /// What a page reads of a run.
    fn read(
        run: &BTreeMap<CommandId, CommandState>,
        page: Page<CommandId>,
    ) -> Vec<(CommandId, CommandState)> {
        let behind = page.after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = run.range((behind, Bound::Unbounded)).take(page.limit);
        rows.map(|(id, state)| (*id, *state)).collect()
    }

    /// Looks once; answers how many rows that read.
    fn look(
        looks: &mut Looks,
        told: &mut BTreeMap<CommandId, CommandState>,
        run: &BTreeMap<CommandId, CommandState>,
    ) -> usize {
        let Some(page) = looks.next(told) else {
            return 0;
        };
        let rows = read(run, page);
        looks.reached(rows.last().unwrap().0);
        told.extend(rows.iter().copied());
        rows.len()
    }

    #[test]
    fn a_large_run_is_looked_at_in_parts_and_what_is_over_is_not_read_again() {
        let all = 10 * PAGE_ROWS_MAX;
        let mut told: BTreeMap<_, _> = (0..all).map(|n| (id(n), CommandState::Queued)).collect();
        let mut run = told.clone();
        let mut looks = Looks::default();
        for _ in 0..3 {
            assert_eq!(look(&mut looks, &mut told, &run), PAGE_ROWS_MAX);
        }
        // All but one end, elsewhere and without a word.
        for (command, state) in &mut run {
            if *command != id(7_777) {
                *state = CommandState::Succeeded;
            }
        }
        let mut read = 0;
        for _ in 0..10 {
            read += look(&mut looks, &mut told, &run);
        }
        assert_eq!((told == run, read), (true, all), "each once");
        for _ in 0..3 {
            assert_eq!(look(&mut looks, &mut told, &run), 1);
        }
        run.insert(id(7_777), CommandState::Failed);
        assert_eq!(look(&mut looks, &mut told, &run), 1);
        assert_eq!(look(&mut looks, &mut told, &run), 0, "all are over");
    }

    proptest! {
        #[test]
        fn whatever_moves_is_seen_within_one_round_and_no_look_reads_more_than_a_page(
            open in prop::collection::btree_set(0_usize..4_000, 1..200),
            moved in prop::collection::vec(0_usize..200, 0..50),
            before in 0_usize..9,
        ) {
            let mut told: BTreeMap<_, _> =
                (0..4_000).map(|n| (id(n), CommandState::Succeeded)).collect();
            told.extend(open.iter().map(|n| (id(*n), CommandState::Queued)));
            let mut run = told.clone();
            let mut looks = Looks::default();
            for _ in 0..before {
                look(&mut looks, &mut told, &run);
            }
            let open: Vec<_> = open.into_iter().collect();
            for n in moved {
                run.insert(id(open[n % open.len()]), CommandState::Failed);
            }
            for _ in 0..=4_000 / PAGE_ROWS_MAX {
                prop_assert!(look(&mut looks, &mut told, &run) <= PAGE_ROWS_MAX);
            }
            prop_assert_eq!(told, run);
        }
    }
}
