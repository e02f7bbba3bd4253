//! Backends of the database that this one gave up: what health says of them for a while. Their rows are gone with the
//! last of their sessions, so nothing else does.

use std::time::Duration;

use viworks_common::id::InstanceId;
use viworks_common::time::{Monotonic, Timestamp};

use crate::data::{EndedInstances, GivenUpInstance};

/// For how long it is told.
pub const TOLD_FOR: Duration = Duration::from_secs(10 * 60);

/// Backends that are told of at once, the latest; a site has fewer.
const TOLD_MAX: usize = 8;

/// Those of the last minutes.
#[derive(Debug, Default)]
pub struct GivenUp {
    backends: Vec<Backend>,
    /// Whether sessions of one are left that are to be ended. How many were is not told: a look does not say whose.
    some_left: bool,
    /// Whether the answer of a look was lost, which may have been the one that brought something.
    unsure: bool,
}

#[derive(Debug)]
struct Backend {
    id: InstanceId,
    name: String,
    /// By the wall clock of this machine.
    heard_at: Timestamp,
    at: Monotonic,
}

impl GivenUp {
    /// Notes that nobody knows whether a look brought something.
    pub const fn lost(&mut self) {
        self.unsure = true;
    }

    /// Takes over what a look brought, and answers what there is to tell.
    pub fn look(
        &mut self,
        ended: &EndedInstances,
        wall: Timestamp,
        now: Monotonic,
    ) -> Option<String> {
        self.backends
            .retain(|backend| now.saturating_since(backend.at) < TOLD_FOR);
        let again: &[GivenUpInstance] = match std::mem::take(&mut self.unsure) {
            true => &ended.earlier,
            false => &[],
        };
        for one in ended.given_up.iter().chain(again) {
            if self.backends.iter().all(|known| known.id != one.id) {
                self.backends.push(Backend {
                    id: one.id,
                    name: one.name.clone(),
                    heard_at: wall.saturating_sub(one.unheard),
                    at: now,
                });
            }
        }
        let too_many = self.backends.len().saturating_sub(TOLD_MAX);
        self.backends.drain(..too_many);
        self.some_left = ended.left > 0;
        self.told()
    }

    fn told(&self) -> Option<String> {
        if self.backends.is_empty() {
            return None;
        }
        let each = self.backends.iter().map(|backend| {
            let Backend { name, heard_at, .. } = backend;
            format!("{name}, not heard of since {heard_at}")
        });
        let each: Vec<String> = each.collect();
        let ended = match self.some_left {
            true => "sessions of them are being ended",
            false => "their sessions were ended",
        };
        Some(format!("given up: {}; {ended}", each.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn ended(names: &[&str], sessions: u64, left: u64) -> EndedInstances {
        let given_up = names.iter().map(|name| GivenUpInstance {
            id: InstanceId::from_uuid(Uuid::from_u128(name.bytes().map(u128::from).sum())),
            name: (*name).to_owned(),
            unheard: Duration::from_secs(21),
        });
        EndedInstances {
            given_up: given_up.collect(),
            earlier: Vec::new(),
            instances: 0,
            sessions,
            left,
            more: false,
        }
    }

    #[test]
    fn a_backend_that_was_given_up_is_told_of_for_some_minutes() {
        let mut known = GivenUp::default();
        let wall = Timestamp::from_unix_micros(1_800_000_021_000_000);
        let begun = Monotonic::ORIGIN;
        assert_eq!(known.look(&ended(&[], 0, 0), wall, begun), None);
        let first = known.look(&ended(&["vm, process 7"], 200, 1), wall, begun);
        assert_eq!(
            first.unwrap(),
            "given up: vm, process 7, not heard of since 2027-01-15T08:00:00Z; \
             sessions of them are being ended"
        );
        // Later looks find what was left, and another one.
        let later = begun.saturating_add(TOLD_FOR / 2);
        let told = known.look(&ended(&["vm, process 8"], 1, 0), wall, later);
        let told = told.unwrap();
        for part in [
            "process 7, ",
            "process 8, not heard",
            "; their sessions were ended",
        ] {
            assert!(told.contains(part), "{told}");
        }
        assert!(!told.contains("being"), "{told}");
        let much_later = begun.saturating_add(TOLD_FOR);
        let told = known.look(&ended(&[], 0, 0), wall, much_later).unwrap();
        assert!(
            !told.contains("process 7") && told.contains("process 8"),
            "{told}"
        );
        let over = later.saturating_add(TOLD_FOR);
        assert_eq!(known.look(&ended(&[], 0, 0), wall, over), None);
    }

    #[test]
    fn one_whose_news_was_lost_is_told_of_once_with_the_next_look() {
        let mut known = GivenUp::default();
        let wall = Timestamp::from_unix_micros(1_800_000_021_000_000);
        let now = Monotonic::ORIGIN;
        let earlier = EndedInstances {
            earlier: ended(&["vm, process 7"], 0, 0).given_up,
            ..EndedInstances::default()
        };
        // Another backend gave it up, and tells of it.
        assert_eq!(known.look(&earlier, wall, now), None);
        known.lost();
        let told = known.look(&earlier, wall, now).unwrap();
        assert!(told.contains("process 7, not heard"), "{told}");
        known.lost();
        assert_eq!(known.look(&earlier, wall, now), Some(told));
    }
}
