//! The signals that ask a process to stop, and the one that asks it to read its files again.

use std::fmt;
use std::io;

use tokio::signal::unix::{self, SignalKind};

/// A request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, from the service manager.
    Terminate,
    /// SIGINT, from the keyboard.
    Interrupt,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
        })
    }
}

/// Receives stop signals instead of dying from them.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    /// Starts to listen. From here on the process no longer dies from these signals by itself.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        survive_full_files()?;
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        // `recv` has no end as long as the runtime lives.
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}

/// A file that has reached the limit of sizes (`ulimit -f`, `LimitFSIZE=`) then is an error of its write, as a full
/// disk is. Otherwise SIGXFSZ would end the process without a word.
fn survive_full_files() -> io::Result<()> {
    let limit = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // The handler stays for as long as the process lives, whether somebody listens or not.
    unix::signal(limit).map(drop)
}

/// Receives SIGHUP instead of dying from it.
#[derive(Debug)]
pub struct Hangups {
    hangup: unix::Signal,
}

impl Hangups {
    /// Starts to listen. From here on the process no longer dies from SIGHUP.
    ///
    /// # Errors
    ///
    /// When the handler cannot be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: unix::signal(SignalKind::hangup())?,
        })
    }

    /// The next SIGHUP; several that came meanwhile count as one.
    pub async fn next(&mut self) {
        // `recv` has no end as long as the runtime lives.
        let _received = self.hangup.recv().await;
    }
}
