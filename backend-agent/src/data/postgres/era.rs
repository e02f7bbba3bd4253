//! Which connections may still be used.
//!
//! When one of them finds that its server takes no writes, another one has become the primary, and whoever only reads
//! would never notice. So all connections of that time are given up, and made anew.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::Error;

/// A time in which all connections led to the same server, as far as anybody knows.
#[derive(Debug, Default)]
pub(super) struct Era(AtomicU64);

impl Era {
    /// Its number, which a connection that is made now remembers.
    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Ends the time that a connection is of, where what happened on it says so.
    pub(super) fn judge(&self, of: u64, error: &Error) {
        if !error.takes_no_writes() {
            return;
        }
        let ended =
            self.0
                .compare_exchange(of, of.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire);
        if ended.is_ok() {
            tracing::warn!(%error, "the database server takes no writes any more; all connections are made anew");
        }
    }
}
