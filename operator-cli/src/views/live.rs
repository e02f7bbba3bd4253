//! A run's output while it comes: whole lines on standard output, and a word wherever something is not shown.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use viworks_api::{CommandView, OutputView, RunEvent};
use viworks_common::command::CommandState;
use viworks_common::human;
use viworks_common::id::{CommandId, GatewayName, RunId};
use viworks_common::output::{Lines, Shown};
use viworks_common::wire::message::OutputStream;

use crate::failure::Failure;
use crate::output::{self, Format, plain};
use crate::program;

/// How long the only line of one of several gateways is kept for its row in the table.
const HELD_FOR: Duration = Duration::from_secs(2);

/// How long what came behind the first hole of a command waits for the end of it: most commands are over by then, and
/// what is retained of a short one fills the hole. One that goes on longer is shown as it comes.
const BEHIND_HOLE_FOR: Duration = Duration::from_millis(500);

/// Bytes behind a hole that wait for the end of their command: what is retained may fill the hole by then.
const BEHIND_HOLE_BYTES_MAX: usize = 64 * 1024;

/// What is shown of a run, and what is known of its commands.
pub struct Live {
    run: RunId,
    many: bool,
    format: Format,
    commands: BTreeMap<CommandId, Command>,
}

/// One command of the run.
pub struct Command {
    pub gateway: GatewayName,
    /// Its state, once that was told.
    pub state: Option<CommandState>,
    /// What was told last of why it waits, such as that its gateway refused it for the moment.
    pub waits_for: Option<String>,
    stdout: Lines,
    stderr: Lines,
    /// What came behind a hole and is not shown yet, both streams in their order.
    behind: Option<Behind>,
    /// Whether it went on for longer than anything waits behind a hole.
    goes_on: bool,
    /// The first line, while it may be the only one: then the table shows it.
    held: Option<(Instant, String)>,
    /// Lines on standard output.
    printed: u64,
    /// Bytes that are not there.
    not_shown: u64,
    /// Whether a line was begun and not ended.
    parted: bool,
}

/// Pieces that came behind a hole.
struct Behind {
    since: Instant,
    bytes: usize,
    pieces: Vec<Piece>,
}

/// A piece of one stream.
struct Piece {
    stream: OutputStream,
    offset: u64,
    data: Vec<u8>,
}

/// What a table says of the output of one command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// The only line, when the table is to show it.
    pub held: Option<String>,
    /// Lines that were printed before the table.
    pub printed: u64,
    /// Bytes that are nowhere to be seen.
    pub not_shown: u64,
}

impl Live {
    pub const fn new(run: RunId, many: bool, format: Format) -> Self {
        Self {
            run,
            many,
            format,
            commands: BTreeMap::new(),
        }
    }

    /// The commands by their ids, as far as they were told.
    pub fn commands(&self) -> impl Iterator<Item = &Command> {
        self.commands.values()
    }

    /// What was told of one command's output.
    pub fn told(&self, command: CommandId) -> Told {
        self.commands
            .get(&command)
            .map_or_else(Told::default, |command| Told {
                held: command.held.as_ref().map(|(_since, line)| line.clone()),
                printed: command.printed,
                not_shown: command.not_shown,
            })
    }

    pub fn event(&mut self, event: RunEvent) -> Result<(), Failure> {
        match event {
            RunEvent::Output {
                command_id,
                gateway,
                stream,
                offset,
                data,
                ..
            } => {
                let Some(bytes) = data.decode() else {
                    return Ok(());
                };
                self.command(command_id, &gateway.name);
                self.piece(
                    command_id,
                    Piece {
                        stream,
                        offset,
                        data: bytes,
                    },
                )
            }
            RunEvent::Command {
                command_id,
                gateway,
                state,
                reason,
                ..
            } => {
                let command = self.command(command_id, &gateway.name);
                command.state = Some(state);
                // That it is offered once more takes nothing back.
                let known = command.waits_for.take();
                let waits = state != CommandState::Running && !state.is_final();
                command.waits_for = reason.or(known).filter(|_reason| waits);
                Ok(())
            }
            // The offsets say the same, and more exactly: what is missing is told where it is missing.
            RunEvent::Missed { .. } | RunEvent::Finished { .. } => Ok(()),
        }
    }

    /// Shows a piece, or keeps it for a moment when something is missing before it: the end of a short command brings
    /// that.
    fn piece(&mut self, id: CommandId, piece: Piece) -> Result<(), Failure> {
        let Some(command) = self.commands.get_mut(&id) else {
            return Ok(());
        };
        let reached = command.lines(piece.stream).reached();
        if command.behind.is_none() && (piece.offset <= reached || command.goes_on) {
            return self.show(id, piece.stream, |lines, show| {
                lines.push(piece.offset, &piece.data, show);
            });
        }
        let begins_again = command.behind.as_ref().is_some_and(|behind| {
            let same = behind
                .pieces
                .iter()
                .rfind(|last| last.stream == piece.stream);
            same.is_some_and(|last| piece.offset < last.offset)
        });
        if begins_again {
            // What another attempt wrote is no part of this one.
            self.show_behind(id)?;
            return self.piece(id, piece);
        }
        let behind = command.behind.get_or_insert_with(|| Behind {
            since: Instant::now(),
            bytes: 0,
            pieces: Vec::new(),
        });
        behind.bytes = behind.bytes.saturating_add(piece.data.len());
        behind.pieces.push(piece);
        if behind.bytes > BEHIND_HOLE_BYTES_MAX {
            self.show_behind(id)?;
        }
        Ok(())
    }

    /// Shows what came behind a hole, and that there is one.
    fn show_behind(&mut self, id: CommandId) -> Result<(), Failure> {
        let behind = self.commands.get_mut(&id).and_then(|command| {
            command.goes_on = true;
            command.behind.take()
        });
        for piece in behind.into_iter().flat_map(|behind| behind.pieces) {
            self.show(id, piece.stream, |lines, show| {
                lines.push(piece.offset, &piece.data, show);
            })?;
        }
        Ok(())
    }

    /// Prints lines that were held for long enough.
    pub fn release_old(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let waited: Vec<CommandId> = self
            .commands
            .iter()
            .filter(|(_id, command)| {
                let behind = command.behind.as_ref();
                behind.is_some_and(|behind| now.duration_since(behind.since) >= BEHIND_HOLE_FOR)
            })
            .map(|(id, _command)| *id)
            .collect();
        waited.into_iter().try_for_each(|id| self.show_behind(id))?;
        let old: Vec<CommandId> = self
            .commands
            .iter()
            .filter(|(_id, command)| {
                command
                    .held
                    .as_ref()
                    .is_some_and(|(since, _line)| now.duration_since(*since) >= HELD_FOR)
            })
            .map(|(id, _command)| *id)
            .collect();
        old.into_iter().try_for_each(|id| self.release(id))
    }

    /// Shows what the retained output of a command has that did not come live, and says how much is missing for good.
    pub fn complete(&mut self, command: &CommandView) -> Result<(), Failure> {
        self.command(command.id, &command.gateway.name).state = Some(command.state);
        let behind = self
            .commands
            .get_mut(&command.id)
            .and_then(|command| command.behind.take());
        let came: Vec<Piece> = behind.map_or_else(Vec::new, |behind| behind.pieces);
        let outcome = command.outcome.as_ref();
        for (stream, view, written) in [
            (
                OutputStream::Stdout,
                outcome.and_then(|outcome| outcome.stdout.as_ref()),
                outcome.and_then(|outcome| outcome.stdout_bytes),
            ),
            (
                OutputStream::Stderr,
                outcome.and_then(|outcome| outcome.stderr.as_ref()),
                outcome.and_then(|outcome| outcome.stderr_bytes),
            ),
        ] {
            let retained = view.and_then(Retained::of);
            let came = came.iter().filter(|piece| piece.stream == stream);
            self.show(command.id, stream, |lines, show| {
                match &retained {
                    Some(retained) => retained.fill(came, lines, show),
                    None => came.for_each(|piece| lines.push(piece.offset, &piece.data, show)),
                }
                let written = retained.as_ref().map(Retained::written).or(written);
                lines.end(written, show);
            })?;
        }
        Ok(())
    }

    fn command(&mut self, id: CommandId, gateway: &GatewayName) -> &mut Command {
        self.commands.entry(id).or_insert_with(|| Command {
            gateway: gateway.clone(),
            state: None,
            waits_for: None,
            stdout: Lines::default(),
            stderr: Lines::default(),
            behind: None,
            goes_on: false,
            held: None,
            printed: 0,
            not_shown: 0,
            parted: false,
        })
    }

    fn show(
        &mut self,
        id: CommandId,
        stream: OutputStream,
        change: impl FnOnce(&mut Lines, &mut dyn FnMut(Shown)),
    ) -> Result<(), Failure> {
        let Some(command) = self.commands.get_mut(&id) else {
            return Ok(());
        };
        let mut shown = Vec::new();
        change(command.lines(stream), &mut |one| shown.push(one));
        if self.format == Format::Json {
            // The document at the end holds what was retained.
            return Ok(());
        }
        for one in shown {
            match one {
                Shown::Line(line) => {
                    let text = text(&line);
                    let command = self.commands.get_mut(&id);
                    if let Some(command) = command
                        && self.many
                        && command.printed == 0
                        && command.held.is_none()
                        && !command.parted
                        && output::short(&text) == text
                    {
                        command.held = Some((Instant::now(), text));
                        continue;
                    }
                    self.release(id)?;
                    self.print(id, &text, true)?;
                }
                Shown::Part(part) => {
                    self.release(id)?;
                    self.print(id, &text(&part), false)?;
                }
                Shown::Rest(rest) => {
                    self.release(id)?;
                    self.print(id, &format!("…{}", text(&rest)), true)?;
                }
                Shown::Missing(bytes) => {
                    self.release(id)?;
                    let marker = format!(
                        "… {} bytes not shown; whole as far as kept: {} runs show {} --full",
                        human::count(bytes),
                        program::name(),
                        self.run
                    );
                    self.print(id, &marker, true)?;
                    if let Some(command) = self.commands.get_mut(&id) {
                        command.not_shown = command.not_shown.saturating_add(bytes);
                        command.printed = command.printed.saturating_sub(1);
                    }
                }
            }
        }
        Ok(())
    }

    fn release(&mut self, id: CommandId) -> Result<(), Failure> {
        let held = self
            .commands
            .get_mut(&id)
            .and_then(|command| command.held.take());
        match held {
            Some((_since, line)) => self.print(id, &line, true),
            None => Ok(()),
        }
    }

    /// One line of one gateway, or a part of one, behind the gateway's name when there are several. A line that goes on
    /// behind others has another bar.
    fn print(&mut self, id: CommandId, text: &str, ends: bool) -> Result<(), Failure> {
        let Some(command) = self.commands.get_mut(&id) else {
            return Ok(());
        };
        let goes_on = std::mem::replace(&mut command.parted, !ends);
        if ends {
            command.printed = command.printed.saturating_add(1);
        }
        if self.many {
            let bar = if goes_on { '┆' } else { '│' };
            output::line(&format!("{} {bar} {text}", command.gateway))
        } else if ends {
            output::line(text)
        } else {
            output::raw(text)
        }
    }
}

impl Command {
    const fn lines(&mut self, stream: OutputStream) -> &mut Lines {
        match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        }
    }
}

/// Bytes of a gateway as text that drives no terminal.
fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    plain(text.trim_end_matches('\r'))
}

/// The retained output of one stream.
struct Retained {
    head: Vec<u8>,
    tail: Vec<u8>,
    cut_bytes: u64,
}

impl Retained {
    fn of(view: &OutputView) -> Option<Self> {
        Some(Self {
            head: view.head.decode()?,
            tail: view.tail.decode()?,
            cut_bytes: view.cut_bytes,
        })
    }

    fn head_bytes(&self) -> u64 {
        u64::try_from(self.head.len()).unwrap_or(u64::MAX)
    }

    fn tail_at(&self) -> u64 {
        self.head_bytes().saturating_add(self.cut_bytes)
    }

    fn written(&self) -> u64 {
        let tail = u64::try_from(self.tail.len()).unwrap_or(u64::MAX);
        self.tail_at().saturating_add(tail)
    }

    /// Gives what lies behind the last byte that was shown: of what was kept, and of what came live and waits.
    fn fill<'p>(
        &self,
        came: impl Iterator<Item = &'p Piece>,
        lines: &mut Lines,
        show: &mut dyn FnMut(Shown),
    ) {
        lines.rewind();
        let kept = [(0, &self.head), (self.tail_at(), &self.tail)];
        let mut pieces: Vec<(u64, &Vec<u8>)> = kept
            .into_iter()
            .chain(came.map(|piece| (piece.offset, &piece.data)))
            .collect();
        pieces.sort_by_key(|(at, _bytes)| *at);
        for (at, bytes) in pieces {
            let from = lines.reached().max(at);
            let skipped = usize::try_from(from - at).unwrap_or(usize::MAX);
            if let Some(rest) = bytes.get(skipped..).filter(|rest| !rest.is_empty()) {
                lines.push(from, rest, show);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_comes_behind_a_hole_waits_once_and_not_for_long() {
        let id = CommandId::from_uuid(Uuid::from_u128(2));
        // As data nothing is printed; what was taken is seen all the same.
        let run = RunId::from_uuid(Uuid::from_u128(1));
        let mut live = Live::new(run, false, Format::Json);
        live.command(id, &"gw-1".parse().unwrap());
        let piece = |offset, text: &str| Piece {
            stream: OutputStream::Stdout,
            offset,
            data: text.as_bytes().to_vec(),
        };
        let reached = |live: &Live| {
            let command = &live.commands[&id];
            (command.stdout.reached(), command.behind.is_some())
        };
        assert!(live.piece(id, piece(4, "two\n")).is_ok());
        assert!(live.release_old().is_ok());
        assert_eq!(reached(&live), (0, true), "the end may be near");
        tokio::time::advance(BEHIND_HOLE_FOR).await;
        assert!(live.release_old().is_ok());
        assert_eq!(reached(&live), (8, false), "it is not");
        assert!(live.piece(id, piece(12, "four\n")).is_ok());
        assert_eq!(reached(&live), (17, false), "nor is it now");
    }
}
