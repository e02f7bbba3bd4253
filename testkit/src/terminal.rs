//! A terminal at which a program is started, and what is typed and shown there.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::process::Process;

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Terminal {
    /// Where somebody sits.
    desk: File,
    /// Where programs are.
    line: OwnedFd,
    shown: String,
}

impl Terminal {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn open() -> io::Result<Self> {
        let desk = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&desk)?;
        unlockpt(&desk)?;
        let name = ptsname(&desk, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let line = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
        fcntl_setfl(&desk, fcntl_getfl(&desk)? | OFlags::NONBLOCK)?;
        Ok(Self {
            desk: File::from(desk),
            line,
            shown: String::new(),
        })
    }

    /// Starts a program there, with everything that it says and hears.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, mut command: Command) -> io::Result<Process> {
        let end = || self.line.try_clone().map(Stdio::from);
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        command.spawn().map(Process::unlogged)
    }

    /// Types this.
    ///
    /// # Errors
    /// When the terminal takes it not.
    pub fn type_in(&mut self, text: &str) -> io::Result<()> {
        self.desk.write_all(text.as_bytes())
    }

    /// Everything that was shown so far.
    pub fn shown(&mut self) -> &str {
        let mut bytes = [0; 4_096];
        // Nothing is there for now, or nobody has the other end any more.
        while let Ok(count @ 1..) = self.desk.read(&mut bytes) {
            let new = bytes.get(..count).unwrap_or_default();
            self.shown.push_str(&String::from_utf8_lossy(new));
        }
        &self.shown
    }

    /// Whether it shows what is typed.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn echoes(&self) -> io::Result<bool> {
        let modes = tcgetattr(&self.line)?.local_modes;
        Ok(modes.contains(LocalModes::ECHO))
    }
}
