//! Tells the service manager how the process is; does nothing where there is none.
//!
//! The manager's socket takes a few notices and then makes the sender wait, so a thread of its own sends them.

use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};

use sd_notify::NotifyState;
use tracing::warn;

use super::{Lifecycle, Task};

/// Notices that may wait for a manager that takes none; more are dropped, and the watchdog's next one says the same.
const NOTICES_MAX: usize = 16;

#[derive(Debug)]
enum Notice {
    Ready,
    Stopping,
    Status(String),
    Watchdog,
}

/// Starting is over.
pub fn ready() {
    send(Notice::Ready);
}

/// Shutdown has begun.
pub fn stopping() {
    send(Notice::Stopping);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    // A line break would start another assignment of the protocol.
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    send(Notice::Status(line));
}

/// Feeds the watchdog of the service manager until shutdown, if it has one.
///
/// The task shares its runtime with all others: a runtime whose threads are all stuck no longer feeds it, and the
/// manager restarts the process.
pub fn spawn_watchdog(lifecycle: &Lifecycle) -> Option<Task<()>> {
    let interval = sd_notify::watchdog_enabled()? / 2;
    let aborting = lifecycle.clone();
    Some(lifecycle.spawn("watchdog", async move {
        let mut ticks = tokio::time::interval(interval.max(std::time::Duration::from_millis(1)));
        loop {
            tokio::select! {
                _ = ticks.tick() => send(Notice::Watchdog),
                () = aborting.stopping() => return,
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
            for notice in waiting {
                let state = match &notice {
                    Notice::Ready => NotifyState::Ready,
                    Notice::Stopping => NotifyState::Stopping,
                    Notice::Status(line) => NotifyState::Status(line),
                    Notice::Watchdog => NotifyState::Watchdog,
                };
                if let Err(error) = sd_notify::notify(&[state]) {
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
