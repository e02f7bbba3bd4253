//! File descriptors: how many this process may have, raised as far as the system allows, and held against what its
//! configured bounds come to.
//!
//! At the bound, `accept` fails and so does every file that is opened, those of a database included. Better to know at
//! the start that the bounds are more than there can be, and to let fewer in.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use viworks_common::human;

use crate::conditions::{Conditions, Severity};

/// The condition while there can be fewer than the bounds come to.
const CONDITION: &str = "descriptors.limit";

/// Descriptors beside those that are counted: the log, databases with their journals, listeners, the runtime's own.
const BESIDE: u64 = 128;

/// Where the limit is raised, in words for a fix.
pub const RAISED_BY: &str = "LimitNOFILE of the unit, ulimit -Hn, nofile of the container";

/// How many there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At this moment; `None` for as many as the system has.
    pub soft: Option<u64>,
    /// What it may be raised to.
    pub hard: Option<u64>,
}

/// How many there may be at this moment.
#[must_use]
pub fn limits() -> Limits {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    Limits {
        soft: current,
        hard: maximum,
    }
}

/// Raises the limit to the hard one.
///
/// # Errors
///
/// When the system refuses; the limit then is as it was.
pub fn raise_all() -> io::Result<Limits> {
    let found = limits();
    if found.soft == found.hard {
        return Ok(found);
    }
    set(found.hard, found.hard)
}

/// Raises the limit to what is needed, as far as the hard one allows, where it is lower: for a process whose children
/// inherit it, because old programs count on a small one.
///
/// # Errors
///
/// When the system refuses; the limit then is as it was.
pub fn raise_for(needed: u64) -> io::Result<Limits> {
    let Limits { soft, hard } = limits();
    match short(soft, needed) {
        Some((_soft, needed)) => set(Some(hard.map_or(needed, |hard| hard.min(needed))), hard),
        None => Ok(limits()),
    }
}

fn set(current: Option<u64>, maximum: Option<u64>) -> io::Result<Limits> {
    setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
    Ok(limits())
}

/// How many of those that are counted there can be beside all else; none when there is no limit.
#[must_use]
pub fn room() -> Option<u64> {
    limits().soft.map(|soft| soft.saturating_sub(BESIDE))
}

/// Tells when the bounds, named by `keys`, come to more than there can be, and what happens for that.
pub fn hold(conditions: &Conditions, needed: u64, keys: &str, meanwhile: &str) {
    if let Some((soft, needed)) = short(limits().soft, needed) {
        let (cause, fix) = too_few(soft, needed, keys, meanwhile);
        conditions.raise(CONDITION, Severity::Warn, &cause, &fix);
    }
}

/// The limit and what there should be, where that is more.
fn short(soft: Option<u64>, needed: u64) -> Option<(u64, u64)> {
    let needed = needed.saturating_add(BESIDE);
    soft.filter(|soft| *soft < needed)
        .map(|soft| (soft, needed))
}

fn too_few(soft: u64, needed: u64, keys: &str, meanwhile: &str) -> (String, String) {
    let files = human::counted_all(soft, "file or socket", "files and sockets");
    let cause = format!(
        "this process may have {files} open, and its bounds ({keys}) come to {}: {meanwhile}",
        human::count(needed)
    );
    // As it is typed.
    let fix =
        format!("raise the hard limit to {needed} ({RAISED_BY}), or lower {keys}, and restart");
    (cause, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_beyond_the_limit_are_told_with_the_keys_and_the_number() {
        assert_eq!(short(None, u64::MAX), None);
        assert_eq!(short(Some(1_024), 1_024 - BESIDE), None);
        let found = short(Some(1_024), 1_025 - BESIDE);
        assert_eq!(found, Some((1_024, 1_025)));
        let keys = "connections_max of [agents]";
        let (cause, fix) = too_few(1_024, 1_025, keys, "fewer are let in");
        for words in ["1,024 files and sockets", "come to 1,025:", keys] {
            assert!(cause.contains(words), "{words}: {cause}");
        }
        assert!(fix.contains("1025") && fix.contains(keys), "{fix}");
    }

    #[test]
    fn raising_never_lowers() {
        let before = limits();
        let all = raise_all().unwrap();
        assert_eq!(all.soft, all.hard);
        assert_eq!(all.hard, before.hard);
        assert_eq!(raise_for(1).unwrap(), all);
    }
}
