//! Reading the configuration again while the process runs, and telling what came of it.

use std::path::PathBuf;

use crate::conditions::{Conditions, Severity};

use super::environment::Environment;
use super::values::Values;

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

/// What a process has of its configuration: part of it as it started, part of it as it was read last.
#[derive(Debug, Clone)]
pub struct Readings {
    start: Values,
    last: Values,
    live: &'static [&'static str],
}

/// What another reading has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Keys with another value than in the reading before, which are taken over.
    pub taken_over: Vec<String>,
    /// Keys with another value than at the start, which wait for a restart.
    pub waiting: Vec<String>,
}

impl Readings {
    /// Begins with what the start has read; the `live` keys are taken over while the process runs.
    #[must_use]
    pub fn new(start: Values, live: &'static [&'static str]) -> Self {
        Self {
            last: start.clone(),
            start,
            live,
        }
    }

    /// Notes another reading, which can be used, and tells its differences apart.
    pub fn note(&mut self, read: Values) -> Changed {
        let is_live = |key: &&str| self.live.contains(key);
        let owned = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
        let (mut taken_over, mut waiting) = (self.last.changed(&read), self.start.changed(&read));
        taken_over.retain(is_live);
        waiting.retain(|key| !is_live(key));
        let changed = Changed {
            taken_over: owned(taken_over),
            waiting: owned(waiting),
        };
        self.last = read;
        changed
    }
}

/// Tells that the file was read again and cannot be used; `fix` says when it is read the next time.
pub fn tell_broken(conditions: &Conditions, problems: &str, fix: &str) {
    let cause = format!("the configuration cannot be used, and the one in force stays: {problems}");
    conditions.raise(BROKEN, Severity::Warn, &cause, fix);
}

/// Tells which keys of the file that was read again have another value than the one in force.
pub fn tell_read(conditions: &Conditions, waiting: &[String]) {
    conditions.clear(BROKEN);
    if waiting.is_empty() {
        return conditions.clear(RESTART);
    }
    let cause = format!(
        "the configuration has other values than those in force: {}",
        waiting.join(", ")
    );
    conditions.raise(
        RESTART,
        Severity::Warn,
        &cause,
        "restart to take them over, or put the old ones back",
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Document;

    fn read(text: &str) -> Values {
        let mut document = Document::parse("a.toml".as_ref(), text, &Environment::default());
        let mut api = document.section("api", "The listener.");
        let _port = api.integer("port", 80_u16, 1..=u16::MAX, "Its port.");
        let _rate = api.integer("rate", 5_u16, 1..=u16::MAX, "Its rate.");
        document.values()
    }

    #[test]
    fn a_file_that_cannot_be_used_leaves_in_force_what_was_taken_over_last() {
        let conditions = Conditions::new(Arc::new(SystemClock));
        tell_broken(&conditions, "a.toml:1:1: no", "mend it");
        let told = conditions.list();
        let cause = &told[0].cause;
        assert!(
            cause.contains("the one in force stays: a.toml:1:1"),
            "{cause}"
        );
        // That may well have been read after the start.
        assert!(!cause.contains("started with"), "{cause}");
    }

    #[test]
    fn live_keys_are_told_once_and_others_until_they_are_put_back() {
        let mut readings = Readings::new(read(""), &["[api] rate"]);
        let mut told = |text: &str| {
            let Changed {
                taken_over,
                waiting,
            } = readings.note(read(text));
            (taken_over.join(" "), waiting.join(" "))
        };
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        let both = "[api]\nport = 81\nrate = 6\n";
        assert_eq!(told(both), pair("[api] rate", "[api] port"));
        assert_eq!(told(both), pair("", "[api] port"));
        assert_eq!(told(""), pair("[api] rate", ""));
    }
}
