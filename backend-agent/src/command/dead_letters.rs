//! What health says of commands that could not be delivered and that nobody has decided about.

use viworks_common::human;
use viworks_runtime::conditions::{Conditions, Severity};

/// The condition.
const DEAD_LETTERS: &str = "queued.dead_letters";

/// What to do about it.
const DEAD_LETTERS_FIX: &str = "viworks dlq ls lists them with the reason; mend what stands in the way, then viworks dlq \
                                retry or viworks dlq discard";

/// Commands that never reached their gateways are for somebody to decide about. Whoever counts them tells how many
/// there are now: some may have been decided about at another backend.
pub fn tell(conditions: &Conditions, count: u64) {
    if count == 0 {
        conditions.clear(DEAD_LETTERS);
        return;
    }
    let cause = format!(
        "{} delivered as often as may be and never accepted",
        human::counted_all(count, "command was", "commands were")
    );
    conditions.raise(DEAD_LETTERS, Severity::Warn, &cause, DEAD_LETTERS_FIX);
}
