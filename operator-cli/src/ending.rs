//! What ends from outside what has begun here: a signal, or a terminal that is closed.

use tokio::signal::unix::{SignalKind, signal};

/// What returns when it comes. From the call on it is listened for, so that nothing is started which nobody would stop.
pub(crate) fn interruption() -> impl Future<Output = ()> {
    let listened = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    // A terminal that is closed ends what it shows; under nohup it does not.
    let hangup = (!hangups_are_ignored()).then(|| signal(SignalKind::hangup()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = listened else {
            return std::future::pending().await;
        };
        let hangup = async {
            match hangup {
                Some(Ok(mut hangup)) => hangup.recv().await,
                Some(Err(_)) | None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Whether this process was started to outlive its terminal, by proc(5).
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // Signal 1 is the lowest bit.
    ignored.is_some_and(|mask| mask & 1 == 1)
}
