//! The first process of a container or namespace: everything without a parent becomes its child, and must be reaped.

use std::io::Write;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use tokio::signal::unix::{Signal as Receiver, SignalKind, signal};

/// What a process ends with that a signal ended, by the convention of shells.
const SIGNALLED: i32 = 128;

/// If this is process number 1, runs the same program again as a child, passes signals on to it and reaps whatever is
/// left without a parent, until the child ends; then its exit code is returned. Any other process gets `None` and
/// goes on.
///
/// A process that starts others by itself cannot do this beside its work: it would collect what it waits for elsewhere.
#[must_use]
pub fn run_if_first() -> Option<ExitCode> {
    if std::process::id() != 1 {
        return None;
    }
    match supervise() {
        Ok(code) => Some(ExitCode::from(code)),
        Err(error) => {
            // Better with zombies than not at all.
            drop(writeln!(
                std::io::stderr(),
                "warning: as process 1 this program cannot reap for others: {error}"
            ));
            None
        }
    }
}

/// Every signal that somebody may mean for the program.
struct Signals {
    children: Receiver,
    passed_on: Vec<(Signal, Receiver)>,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        let kinds = [
            (Signal::TERM, SignalKind::terminate()),
            (Signal::INT, SignalKind::interrupt()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
        ];
        let mut passed_on = Vec::new();
        for (number, kind) in kinds {
            passed_on.push((number, signal(kind)?));
        }
        Ok(Self {
            children: signal(SignalKind::child())?,
            passed_on,
        })
    }

    /// The next one to pass on, or `None` when a child has ended.
    async fn next(&mut self) -> Option<Signal> {
        let signals = self.passed_on.iter_mut().map(|(number, receiver)| {
            let number = *number;
            Box::pin(async move {
                let _received = receiver.recv().await;
                number
            })
        });
        tokio::select! {
            _ended = self.children.recv() => None,
            (number, _place, _rest) = futures_util::future::select_all(signals) => Some(number),
        }
    }
}

fn supervise() -> std::io::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let child = Command::new("/proc/self/exe")
            .args(std::env::args_os().skip(1))
            .spawn()?;
        let main = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let main = main.ok_or_else(|| std::io::Error::other("the child has no number"))?;
        loop {
            if let Some(code) = reap(main) {
                return Ok(code);
            }
            if let Some(number) = signals.next().await {
                // It may have ended a moment ago; then it is reaped next.
                let _sent = kill_process(main, number);
            }
        }
    })
}

/// Collects every child that has ended; the exit code of `main` when it is among them.
fn reap(main: Pid) -> Option<u8> {
    let mut code = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == main {
            let number = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|number| SIGNALLED + number));
            code = Some(number.and_then(|n| u8::try_from(n).ok()).unwrap_or(1));
        }
    }
    code
}
