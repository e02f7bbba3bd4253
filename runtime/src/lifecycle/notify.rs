//! Tells the service manager how the process is; does nothing where there is none.

use sd_notify::NotifyState;
use tracing::warn;

use super::{Lifecycle, Task};

/// Starting is over.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// Shutdown has begun.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    // A line break would start another assignment of the protocol.
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    send(&[NotifyState::Status(&line)]);
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
                _ = ticks.tick() => send(&[NotifyState::Watchdog]),
                () = aborting.stopping() => return,
            }
        }
    }))
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "failed to notify the service manager");
    }
}
