//! Tells the service manager how the process is; does nothing where there is none.
//!
//! The manager's socket takes a few notices and then makes the sender wait, so a thread of its own sends them.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;
use tracing::warn;

use super::{Lifecycle, Task};
use crate::conditions::{Condition, Conditions};

/// Notices that may wait for a manager that takes none; more are dropped, and the watchdog's next one says the same.
const NOTICES_MAX: usize = 16;

/// Bytes of a line for people; the manager takes no more than a page.
const STATUS_BYTES_MAX: usize = 1_024;

/// How often within the watchdog's time the tasks are asked: one slow answer is not the end of the process.
const ROUNDS: u32 = 4;

#[derive(Debug)]
enum Notice {
    Ready,
    /// With when it began, on the clock that the manager reads as well.
    Reloading(Duration),
    Stopping,
    Status(String),
    Watchdog,
}

/// Starting is over, or reading again is.
pub fn ready() {
    send(Notice::Ready);
}

/// Files are read again, as SIGHUP asks; [`ready`] says when that is done, whatever it came to.
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    // A manager takes a reload for begun only if it is later than its request: the moment counts, not when it is sent.
    if let Ok(since_boot) = Duration::try_from(now) {
        send(Notice::Reloading(since_boot));
    }
}

/// Shutdown has begun.
pub fn stopping() {
    send(Notice::Stopping);
}

/// One line for `systemctl status`: what the process does, and the worst of what is wrong with it.
///
/// The same again is not sent.
pub fn status(work: &str, conditions: &Conditions) {
    send(Notice::Status(line(work, &conditions.list())));
}

fn line(work: &str, conditions: &[Condition]) -> String {
    let mut text = work.to_owned();
    // The first of the worst, as they are listed.
    let worst = conditions.iter().rev().max_by_key(|it| it.severity);
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
                send(Notice::Watchdog);
            } else {
                warn!(tasks = ?silent, "these stand still; unless they go on, the service manager restarts this process");
            }
        }
    }))
}

fn send(notice: Notice) {
    static NOTICES: OnceLock<Option<SyncSender<Notice>>> = OnceLock::new();
    let Some(notices) = NOTICES.get_or_init(start) else {
        return;
    };
    if let Err(error) = notices.try_send(notice) {
        warn!(%error, "the service manager takes no notices");
    }
}

/// The thread that sends, for as long as the process lives.
fn start() -> Option<SyncSender<Notice>> {
    let (notices, waiting) = sync_channel::<Notice>(NOTICES_MAX);
    let started = std::thread::Builder::new()
        .name("notify".to_owned())
        .spawn(move || {
            let mut said = String::new();
            for notice in waiting {
                let sent = match &notice {
                    Notice::Ready => sd_notify::notify(&[NotifyState::Ready]),
                    Notice::Reloading(at) => sd_notify::notify(&[
                        NotifyState::Reloading,
                        NotifyState::MonotonicUsec(
                            i128::try_from(at.as_micros()).unwrap_or_default(),
                        ),
                    ]),
                    Notice::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
                    Notice::Status(line) if *line == said => continue,
                    Notice::Status(line) => {
                        said.clone_from(line);
                        sd_notify::notify(&[NotifyState::Status(line)])
                    }
                    Notice::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
                };
                if let Err(error) = sent {
                    warn!(%error, "failed to notify the service manager");
                }
            }
        });
    match started {
        Ok(_thread) => Some(notices),
        Err(error) => {
            warn!(%error, "there is no thread to notify the service manager");
            None
        }
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
}
