//! A ticket from the standard input, or from whoever sits at the terminal, which does not show it.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use tokio::signal::unix::{self, SignalKind};
use viworks_common::enrolment::{InvalidTicket, TICKET_CHARS_MAX, Ticket};
use zeroize::Zeroizing;

use crate::blocking;

/// The most that is read for a ticket, with white space in it.
const READ_MAX: u64 = 4 * TICKET_CHARS_MAX as u64;
/// How long somebody may take to look for it.
const SEARCH_TIME: Duration = Duration::from_secs(3_600);

/// Why there is no ticket.
#[derive(Debug, thiserror::Error)]
pub enum NoTicket {
    /// The text is none.
    #[error(transparent)]
    Invalid(#[from] InvalidTicket),
    /// Nothing can be read, or asked.
    #[error("the ticket cannot be read: {0}")]
    Unread(String),
    /// The process is to end.
    #[error("interrupted")]
    Interrupted,
}

/// Reads it from the standard input, or asks for it where that is a terminal. Where this is dropped at the question,
/// the terminal is as it was.
///
/// # Errors
///
/// When there is none, or it is none, or the terminal has gone.
pub async fn read() -> Result<Ticket, NoTicket> {
    if std::io::stdin().is_terminal() {
        return prompt().await;
    }
    read_input().await
}

/// Reads it from the standard input, to its end, whatever that is.
///
/// # Errors
///
/// As [`read`].
pub async fn read_input() -> Result<Ticket, NoTicket> {
    let read = |text: &mut String| std::io::stdin().lock().take(READ_MAX).read_to_string(text);
    Ok(reading(read).await?.parse::<Ticket>()?)
}

/// On a thread of its own, so that an interrupt is heard meanwhile.
async fn reading(
    read: impl FnOnce(&mut String) -> std::io::Result<usize> + Send + 'static,
) -> Result<Zeroizing<String>, NoTicket> {
    let read = blocking::call("ticket", SEARCH_TIME, move || {
        let mut text = Zeroizing::new(String::new());
        read(&mut text).map(|_bytes| text)
    });
    match read.await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(NoTicket::Unread(error.to_string())),
        Err(unanswered) => Err(NoTicket::Unread(unanswered.to_string())),
    }
}

/// A terminal that does not show what is typed, until this is dropped.
struct Unseen(Termios);

impl Unseen {
    fn begin() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut unseen = before.clone();
        unseen.local_modes.remove(LocalModes::ECHO);
        // Neither of them stops or ends the process meanwhile, which would leave the terminal like this; an interrupt
        // is heard.
        for key in [SpecialCodeIndex::VSUSP, SpecialCodeIndex::VQUIT] {
            unseen.special_codes[key] = 0;
        }
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &unseen).ok()?;
        Some(Self(before))
    }
}

impl Drop for Unseen {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing either. What was not read may be the rest of a ticket: it goes to no
        // shell.
        let _gone = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Signals from elsewhere that stop or end a process without a word, which would leave the terminal as it is. Of an
/// interrupt hears whoever waits for the ticket.
struct Disturbed {
    hung_up: unix::Signal,
    quit: unix::Signal,
    stopped: unix::Signal,
    continued: unix::Signal,
}

impl Disturbed {
    fn listen() -> std::io::Result<Self> {
        let listen = |signal: Signal| unix::signal(SignalKind::from_raw(signal.as_raw()));
        Ok(Self {
            hung_up: listen(Signal::HUP)?,
            quit: listen(Signal::QUIT)?,
            stopped: listen(Signal::TSTP)?,
            continued: listen(Signal::CONT)?,
        })
    }

    /// Completes when the process is to be stopped.
    ///
    /// # Errors
    ///
    /// When it is to end.
    async fn stop(&mut self) -> Result<(), NoTicket> {
        tokio::select! {
            _ = self.hung_up.recv() => Err(NoTicket::Interrupted),
            _ = self.quit.recv() => Err(NoTicket::Interrupted),
            _ = self.stopped.recv() => Ok(()),
        }
    }

    /// Stops the process until somebody lets it go on.
    async fn stand_still(&mut self) {
        if kill_process(getpid(), Signal::STOP).is_ok() {
            // Another one of its threads may be the first that stops.
            let _continued = self.continued.recv().await;
        }
    }
}

/// Asks for it, line by line while it is cut off: mail breaks long lines.
async fn prompt() -> Result<Ticket, NoTicket> {
    let disturbed = Disturbed::listen();
    let mut disturbed = disturbed.map_err(|error| NoTicket::Unread(error.to_string()))?;
    let mut unseen = Unseen::begin();
    let mut text = Zeroizing::new(String::new());
    let mut question = "Ticket: ".to_owned();
    loop {
        ask(&question)?;
        let mut read = Box::pin(reading(|line| {
            std::io::stdin().lock().take(READ_MAX).read_line(line)
        }));
        let line = loop {
            tokio::select! {
                line = &mut read => break line?,
                stop = disturbed.stop() => stop?,
            }
            drop(unseen.take());
            disturbed.stand_still().await;
            unseen = Unseen::begin();
            ask(&question)?;
        };
        // The line break was not shown either; nobody misses it where there is no terminal.
        drop(writeln!(std::io::stderr()));
        text.push_str(&line);
        match text.parse::<Ticket>() {
            Err(InvalidTicket::Truncated { have, whole }) if !line.trim().is_empty() => {
                question =
                    format!("{have} of its {whole} characters; the rest, or Enter to leave it: ");
            }
            read => return Ok(read?),
        }
    }
}

fn ask(what: &str) -> Result<(), NoTicket> {
    let mut error = std::io::stderr();
    write!(error, "{what}")
        .and_then(|()| error.flush())
        .map_err(|error| NoTicket::Unread(error.to_string()))
}
