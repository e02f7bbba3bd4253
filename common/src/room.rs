//! Room in a session for commands: those that its gateway has, those on their way there, and cancels that came before
//! them.

use std::collections::BTreeSet;

use crate::id::CommandId;

/// Cancels that are remembered for commands on their way. Ids grow with time, so the oldest are those that came long
/// ago.
const EARLY_MAX: usize = 1_024;

/// How many more commands a session may be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// How many commands the gateway takes before it has ended some.
    credit: usize,
    /// Those that use it up: sent, and not over.
    open: BTreeSet<CommandId>,
    /// Places for commands whose transactions are under way.
    kept: usize,
    /// Whose end an operator asked for before they were sent; they may be on their way.
    early: BTreeSet<CommandId>,
    /// Whether somebody found no room.
    wanted: bool,
    /// Whether nothing more is to be offered.
    draining: bool,
}

impl Room {
    /// For a session whose gateway has `open` commands already.
    #[must_use]
    pub const fn new(credit: usize, open: BTreeSet<CommandId>) -> Self {
        Self {
            credit,
            open,
            kept: 0,
            early: BTreeSet::new(),
            wanted: false,
            draining: false,
        }
    }

    fn free(&self) -> usize {
        let used = self.open.len().saturating_add(self.kept);
        self.credit.saturating_sub(used)
    }

    /// Keeps a place for one command that is being submitted; `false` where it has to wait in the store.
    pub fn keep(&mut self) -> bool {
        let keeps = !self.draining && self.free() > 0;
        self.kept += usize::from(keeps);
        keeps
    }

    /// Keeps all the room that there is, for what waits in the store. Without any, the session looks again when some is
    /// given back.
    pub fn keep_all(&mut self) -> usize {
        let places = if self.draining { 0 } else { self.free() };
        self.wanted |= places == 0;
        self.kept += places;
        places
    }

    /// More may wait than there was room for.
    pub const fn want(&mut self) {
        self.wanted = true;
    }

    /// A command takes the place that was kept for it.
    pub fn put(&mut self, command_id: CommandId) {
        self.kept = self.kept.saturating_sub(1);
        self.open.insert(command_id);
    }

    /// Places were not used; says whether the session has to look for commands again.
    #[must_use]
    pub fn give_back(&mut self, places: usize) -> bool {
        self.kept = self.kept.saturating_sub(places);
        self.looks_again()
    }

    /// A command is over, and its credit comes back; says whether the session has to look for commands again.
    #[must_use]
    pub fn over(&mut self, command_id: CommandId) -> bool {
        self.open.remove(&command_id);
        self.looks_again()
    }

    fn looks_again(&mut self) -> bool {
        self.free() > 0 && std::mem::take(&mut self.wanted)
    }

    /// Offers nothing more.
    pub const fn drain(&mut self) {
        self.draining = true;
    }

    /// The cancels that follow what is sent now: the new ones, and those that came before the commands did.
    #[must_use]
    pub fn follow(
        &mut self,
        sent: impl IntoIterator<Item = CommandId>,
        mut cancelled: BTreeSet<CommandId>,
    ) -> BTreeSet<CommandId> {
        cancelled.extend(sent.into_iter().filter(|id| self.early.remove(id)));
        if self.kept == 0 {
            self.early.clear();
            return cancelled;
        }
        let unknown = cancelled.difference(&self.open).copied();
        self.early.extend(unknown);
        // On a busy session something is always under way.
        while self.early.len() > EARLY_MAX {
            self.early.pop_first();
        }
        cancelled
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn id(n: u128) -> CommandId {
        CommandId::from_uuid(Uuid::from_u128(n))
    }

    #[test]
    fn cancels_of_commands_that_never_come_are_forgotten_although_something_is_always_under_way() {
        let mut room = Room::new(2, BTreeSet::new());
        assert!(room.keep());
        for n in 1..=5_000 {
            assert_eq!(room.follow([], [id(n)].into()), [id(n)].into());
        }
        assert_eq!(room.early.len(), EARLY_MAX);
        room.put(id(5_000));
        let followed = room.follow([id(5_000)], BTreeSet::new());
        assert_eq!(followed, [id(5_000)].into(), "the latest is kept");
        assert!(room.early.is_empty(), "nothing is under way any more");
    }

    #[test]
    fn what_drains_gives_no_room_and_remembers_who_wanted_some() {
        let mut room = Room::new(1, BTreeSet::new());
        room.drain();
        assert!(!room.keep());
        assert_eq!(room.keep_all(), 0);
        assert!(room.give_back(0), "somebody found none");
        assert!(!room.give_back(0));
    }
}
