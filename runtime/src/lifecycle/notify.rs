//! Tells the service manager how the process is; does nothing where there is none.
//!
//! The manager's socket takes a few notices and then makes the sender wait, so a thread of its own sends them. What
//! waits for it is what there is to say now: a newer line takes the place of an older one, and nothing is lost that the
//! manager has to know, however long it takes nothing.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;
use tracing::warn;

use super::{Lifecycle, Task};
use crate::conditions::{Condition, Conditions};

/// Bytes of a line for people; the manager takes no more than a page.
const STATUS_BYTES_MAX: usize = 1_024;

/// How often within the watchdog's time the tasks are asked: one slow answer is not the end of the process.
const ROUNDS: u32 = 4;

/// Where the process is on its way from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Ready,
    /// With when it began, on the clock that the manager reads as well.
    Reloading(Duration),
    Stopping,
}

/// What the manager has not taken yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unsaid {
    /// In their order; at most one reload is among them.
    steps: VecDeque<Step>,
    status: Option<String>,
    /// How much longer the start may take, from now.
    more: Option<Duration>,
    watchdog: bool,
}

impl Unsaid {
    fn step(&mut self, step: Step) {
        if self.steps.back() == Some(&Step::Stopping) {
            // Nothing comes after that.
            return;
        }
        if let Step::Reloading(_) = step
            && let Some(at) = self
                .steps
                .iter()
                .position(|it| matches!(it, Step::Reloading(_)))
        {
            // An earlier reload that nobody heard of is part of this one, and so is its end.
            self.steps.truncate(at);
        }
        if self.steps.back() != Some(&step) {
            self.steps.push_back(step);
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Between those who have something to say and the thread that says it.
#[derive(Debug, Default)]
struct Mailbox {
    unsaid: Mutex<Unsaid>,
    filled: Condvar,
}

impl Mailbox {
    fn put(&self, change: impl FnOnce(&mut Unsaid)) {
        change(&mut self.unsaid.lock().unwrap_or_else(PoisonError::into_inner));
        self.filled.notify_one();
    }

    /// What there is to say; waits for something.
    fn take(&self) -> Unsaid {
        let unsaid = self.unsaid.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = self.filled.wait_while(unsaid, |unsaid| unsaid.is_empty());
        std::mem::take(&mut filled.unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starting is over, or reading again is.
pub fn ready() {
    send(|unsaid| unsaid.step(Step::Ready));
}

/// Files are read again, as SIGHUP asks; [`ready`] says when that is done, whatever it came to.
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    // A manager takes a reload for begun only if it is later than its request: the moment counts, not when it is sent.
    if let Ok(since_boot) = Duration::try_from(now) {
        send(|unsaid| unsaid.step(Step::Reloading(since_boot)));
    }
}

/// Shutdown has begun.
pub fn stopping() {
    send(|unsaid| unsaid.step(Step::Stopping));
}

/// One line for `systemctl status`: what the process does, and the worst of what is wrong with it.
///
/// The same again is not sent.
pub fn status(work: &str, conditions: &Conditions) {
    let line = line(work, &conditions.list());
    send(|unsaid| unsaid.status = Some(line));
}

/// The start goes on to wait for something, which one line says, and takes up to `more` time from now; a manager that
/// would give it up before gives it that.
pub fn still_starting(work: &str, more: Duration) {
    let line = line(work, &[]);
    send(|unsaid| {
        unsaid.status = Some(line);
        unsaid.more = Some(more);
    });
}

/// Whether a service manager takes notices from this process, and so starts it again when it ends.
#[must_use]
pub fn is_managed() -> bool {
    crate::config::environment().get("NOTIFY_SOCKET").is_some()
}

fn line(work: &str, conditions: &[Condition]) -> String {
    let mut text = work.to_owned();
    // The latest of the worst: whoever has just reloaded looks for what came of that.
    let by = |it: &&Condition| (it.severity, it.since);
    let worst = conditions.iter().rev().max_by_key(by);
    if let Some(Condition { name, cause, .. }) = worst {
        let more = match conditions.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        text = format!("{text}; {name}{more}: {cause}");
    }
    text.truncate(text.floor_char_boundary(STATUS_BYTES_MAX));
    // A line break would start another assignment of the protocol.
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Feeds the watchdog of the service manager until shutdown, if it has one: each time that every critical task has come
/// back from its step. A process whose work stands still is not fed any more, and the manager restarts it.
///
/// What waits for a disk or a database that hangs is no task that stands still: a restart would heal neither, and
/// conditions and readiness tell of them.
pub fn spawn_watchdog(lifecycle: &Lifecycle) -> Option<Task<()>> {
    let interval = sd_notify::watchdog_enabled()? / ROUNDS;
    let asked = lifecycle.clone();
    Some(lifecycle.spawn("watchdog", async move {
        let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(1)));
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = asked.stopping() => return,
            }
            let silent = asked.silent();
            if silent.is_empty() {
                send(|unsaid| unsaid.watchdog = true);
            } else {
                warn!(tasks = ?silent, "these stand still; unless they go on, the service manager restarts this process");
            }
        }
    }))
}

fn send(change: impl FnOnce(&mut Unsaid)) {
    static MAILBOX: OnceLock<Option<&'static Mailbox>> = OnceLock::new();
    if let Some(mailbox) = MAILBOX.get_or_init(start) {
        mailbox.put(change);
    }
}

/// The thread that sends, for as long as the process lives.
fn start() -> Option<&'static Mailbox> {
    let mailbox: &'static Mailbox = Box::leak(Box::default());
    let started = std::thread::Builder::new()
        .name("notify".to_owned())
        .spawn(move || {
            let mut said = String::new();
            loop {
                say(&mailbox.take(), &mut said);
            }
        });
    match started {
        Ok(_thread) => Some(mailbox),
        Err(error) => {
            warn!(%error, "there is no thread to notify the service manager");
            None
        }
    }
}

/// Waits for as long as the manager takes nothing.
fn say(unsaid: &Unsaid, said: &mut String) {
    for step in &unsaid.steps {
        match step {
            Step::Ready => tell(&[NotifyState::Ready]),
            Step::Reloading(at) => {
                let at = i128::try_from(at.as_micros()).unwrap_or_default();
                tell(&[NotifyState::Reloading, NotifyState::MonotonicUsec(at)]);
            }
            Step::Stopping => tell(&[NotifyState::Stopping]),
        }
    }
    if let Some(line) = unsaid.status.as_ref().filter(|line| *line != said) {
        said.clone_from(line);
        tell(&[NotifyState::Status(line)]);
    }
    if let Some(more) = unsaid.more {
        let micros = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }
    if unsaid.watchdog {
        tell(&[NotifyState::Watchdog]);
    }
}

fn tell(notice: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(notice) {
        warn!(%error, "failed to notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use viworks_common::time::Timestamp;

    use super::*;
    use crate::conditions::Severity;

    fn condition(name: &str, severity: Severity, cause: &str) -> Condition {
        Condition {
            name: name.to_owned(),
            severity,
            cause: cause.to_owned(),
            fix: String::new(),
            since: Timestamp::from_unix_micros(0),
        }
    }

    #[test]
    fn the_line_says_the_worst_and_stays_one_line() {
        assert_eq!(line("3 gateways", &[]), "3 gateways");
        let told = [
            condition("clock", Severity::Warn, "set"),
            condition("disk", Severity::Fail, "full\nREADY=1"),
            condition("store", Severity::Fail, "slow"),
        ];
        assert_eq!(
            line("3 gateways", &told),
            "3 gateways; disk (and 2 more): full READY=1"
        );
        let long = condition("disk", Severity::Fail, &"ä".repeat(5_000));
        assert!(line("3 gateways", &[long]).len() <= STATUS_BYTES_MAX);
    }
    #[test]
    fn a_manager_that_takes_nothing_hears_all_that_counts_once_it_does() {
        let mailbox = Mailbox::default();
        let at = Duration::from_secs;
        mailbox.put(|unsaid| unsaid.step(Step::Ready));
        for n in 0..100 {
            mailbox.put(|unsaid| unsaid.status = Some(format!("{n} gateways")));
            mailbox.put(|unsaid| unsaid.watchdog = true);
            mailbox.put(|unsaid| unsaid.step(Step::Reloading(at(n))));
            mailbox.put(|unsaid| unsaid.step(Step::Ready));
        }
        mailbox.put(|unsaid| unsaid.step(Step::Stopping));
        let steps = [
            Step::Ready,
            Step::Reloading(at(99)),
            Step::Ready,
            Step::Stopping,
        ];
        let unsaid = Unsaid {
            steps: VecDeque::from(steps),
            status: Some("99 gateways".to_owned()),
            more: None,
            watchdog: true,
        };
        assert_eq!(mailbox.take(), unsaid);
        assert!(Mailbox::default().unsaid.into_inner().unwrap().is_empty());
    }
}
