//! Reading the configuration again while the process runs, and telling what came of it.

use std::path::PathBuf;

use crate::conditions::{Conditions, Severity};

use super::environment::Environment;

/// The condition while the file cannot be used.
const BROKEN: &str = "reload.configuration";

/// The condition while it says what only a restart takes over.
const RESTART: &str = "restart.configuration";

/// The key that every agent takes over while it runs.
pub const LOG_FILTER: &str = "[log] filter";

/// Where a configuration came from, to read it again.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// What overrides it.
    pub environment: Environment,
}

/// Tells that the file was read again and cannot be used; `fix` says when it is read the next time.
pub fn tell_broken(conditions: &Conditions, problems: &str, fix: &str) {
    let cause = format!(
        "the configuration cannot be used, and the one that this process started with stays in force: {problems}"
    );
    conditions.raise(BROKEN, Severity::Warn, &cause, fix);
}

/// Tells which keys of the file that was read again have another value than the one in force.
pub fn tell_read(conditions: &Conditions, changed: &[&str]) {
    conditions.clear(BROKEN);
    if changed.is_empty() {
        return conditions.clear(RESTART);
    }
    let cause = format!(
        "the configuration has other values than those in force: {}",
        changed.join(", ")
    );
    conditions.raise(
        RESTART,
        Severity::Warn,
        &cause,
        "restart to take them over, or put the old ones back",
    );
}
