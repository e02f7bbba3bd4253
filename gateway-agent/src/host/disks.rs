//! How full the mounted file systems are, asked of each by a process of its own, because a dead one holds whoever asks.
//!
//! A program behind a mount, or a server behind a network, can hold the system call in the kernel for ever, and with it
//! the process, which then cannot even be killed. So a *prober*, the agent's own program again, asks one mount after
//! another and writes a line for each; when a line does not come in time the prober is given up with that mount, and
//! another one asks the rest.

use std::ffi::OsStr;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::mounts::{Chosen, Mount};
use crate::program;

/// The built-in command, no part of any catalogue, that is a prober.
pub const PROBER: &str = "host.probe-disks";

/// How long a mount may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long one may take when many do not answer.
const PATIENCE_MIN: Duration = Duration::from_millis(100);
/// Probers that may hang at once; further silent mounts are not asked until one comes back.
const HANGING_MAX: usize = 16;
/// The number of no mount, for a prober that failed with none in particular.
const NO_MOUNT: u32 = 0;
/// The longest line of a prober.
const LINE_BYTES_MAX: usize = 512;
/// The most that a prober is told to ask for.
const PATHS_BYTES_MAX: u64 = 1024 * 1024;

/// What a file system says of its room, in bytes, counted as `df` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// What is taken; blocks reserved for root are not.
    pub used: u64,
    /// What an ordinary user can still take.
    pub available: u64,
}

impl Usage {
    /// The share that is taken of what an ordinary user could have, rounded up.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        let whole = u128::from(self.used) + u128::from(self.available);
        let percent = (u128::from(self.used) * 100)
            .checked_add(whole.checked_sub(1)?)?
            .checked_div(whole)?;
        u64::try_from(percent).ok()
    }
}

/// What came of asking one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its room.
    Usage(Usage),
    /// It has no room to speak of, as file systems of the kernel's own.
    Nothing,
    /// It refused, in the words of the system.
    Refused(String),
    /// It did not answer in time.
    Silent,
}

/// How a prober is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prober {
    /// As a process of this program, which is an agent.
    Process(PathBuf),
    /// Not at all: the caller asks by itself, and hangs with what it asks. For tests.
    Myself,
}

/// Asks mounts, and remembers which of them still hold a prober.
#[derive(Debug)]
pub struct Disks {
    prober: Prober,
    hanging: Vec<(u32, Child)>,
}

impl Disks {
    /// Asks by means of `prober`.
    #[must_use]
    pub const fn new(prober: Prober) -> Self {
        Self {
            prober,
            hanging: Vec::new(),
        }
    }

    /// Asks every mount of `chosen`, in its order. Blocks for as long as that takes, which is bounded.
    ///
    /// # Errors
    /// When a prober cannot be started.
    pub fn ask(&mut self, chosen: &Chosen) -> io::Result<Vec<(Mount, Answer)>> {
        // One that came back, or whose mount was ended, is gone; its mount is asked again.
        self.hanging
            .retain_mut(|(_mount, child)| !matches!(child.try_wait(), Ok(Some(_))));
        let mut answers: Vec<(Mount, Answer)> = chosen
            .mounts
            .iter()
            .map(|mount| (mount.clone(), Answer::Silent))
            .collect();
        let hangs = |mount: &Mount| self.hanging.iter().any(|(id, _child)| *id == mount.id);
        let mut open: Vec<usize> = (0..answers.len())
            .filter(|&place| answers.get(place).is_some_and(|(mount, _)| !hangs(mount)))
            .collect();
        let mut patience = PATIENCE;
        while !open.is_empty() && self.hanging.len() < HANGING_MAX {
            let asked: Vec<&OsStr> = open
                .iter()
                .filter_map(|&place| Some(answers.get(place)?.0.point.as_os_str()))
                .collect();
            let (child, heard) = match self.prober.clone() {
                Prober::Process(program) => self.probe(&program, &asked, patience)?,
                Prober::Myself => (None, ask_here(&asked)?),
            };
            let count = heard.len();
            for (&place, answer) in open.iter().zip(heard) {
                if let Some((_mount, slot)) = answers.get_mut(place) {
                    *slot = answer;
                }
            }
            let Some(&stuck) = open.get(count) else {
                break;
            };
            if let (Some((mount, _answer)), Some(child)) = (answers.get(stuck), child) {
                self.hanging.push((mount.id, child));
            }
            open.drain(..=count);
            patience = (patience / 2).max(PATIENCE_MIN);
        }
        Ok(answers)
    }

    /// Asks as many of `paths` as answer, one after another. With fewer answers than paths the next one is silent, and
    /// the prober is still with it.
    fn probe(
        &mut self,
        program: &Path,
        paths: &[&OsStr],
        patience: Duration,
    ) -> io::Result<(Option<Child>, Vec<Answer>)> {
        let mut child = Command::new(program)
            .args([program::BUILTIN, PROBER])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let answers = tell(&mut child, paths).and_then(|()| {
            let output = child.stdout.take();
            let output = output.ok_or_else(|| io::Error::other("it has no output"))?;
            listen(output, paths.len(), patience)
        });
        // One that has said everything is at its end anyway; one that hangs dies when its mount lets go of it.
        drop(child.kill());
        match answers {
            Ok(answers) if answers.len() == paths.len() => {
                child.wait()?;
                Ok((None, answers))
            }
            Ok(answers) => Ok((Some(child), answers)),
            Err(error) => {
                self.hanging.push((NO_MOUNT, child));
                Err(error)
            }
        }
    }
}

fn ask_here(paths: &[&OsStr]) -> io::Result<Vec<Answer>> {
    let asked: Vec<u8> = paths
        .iter()
        .flat_map(|path| [path.as_bytes(), b"\0"].concat())
        .collect();
    let mut output = Vec::new();
    serve_probe(&asked[..], &mut output)?;
    let output = String::from_utf8_lossy(&output);
    Ok(output.lines().map(understand).collect())
}

fn tell(child: &mut Child, paths: &[&OsStr]) -> io::Result<()> {
    let Some(mut input) = child.stdin.take() else {
        return Err(io::Error::other("it has no input"));
    };
    for path in paths {
        input.write_all(path.as_bytes())?;
        input.write_all(b"\0")?;
    }
    Ok(())
}

/// Reads lines until `count` have come or one is late.
fn listen(mut output: ChildStdout, count: usize, patience: Duration) -> io::Result<Vec<Answer>> {
    let mut answers = Vec::new();
    let mut pending = Vec::new();
    let limit = Timespec::try_from(patience).map_err(io::Error::other)?;
    while answers.len() < count {
        let ready = {
            let mut waiting = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)];
            poll(&mut waiting, Some(&limit))?
        };
        if ready == 0 {
            return Ok(answers);
        }
        let mut buffer = [0; 4096];
        let read = output.read(&mut buffer)?;
        pending.extend_from_slice(buffer.get(..read).unwrap_or_default());
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            answers.push(understand(&String::from_utf8_lossy(&line)));
        }
        if read == 0 || pending.len() > LINE_BYTES_MAX {
            return Err(io::Error::other("the prober ended early"));
        }
    }
    answers.truncate(count);
    Ok(answers)
}

fn understand(line: &str) -> Answer {
    let line = line.trim_end();
    if let Some(words) = line.strip_prefix("room ") {
        let numbers: Vec<u64> = words
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        if let [total, used, available] = numbers[..] {
            return if total == 0 {
                Answer::Nothing
            } else {
                Answer::Usage(Usage {
                    total,
                    used,
                    available,
                })
            };
        }
    }
    Answer::Refused(line.strip_prefix("refused ").unwrap_or(line).to_owned())
}

/// Serves as a prober: reads paths, each ended by a zero byte, and writes a line for each as soon as it answers.
///
/// # Errors
/// When nobody listens any more.
pub fn serve_probe(input: impl Read, output: &mut dyn Write) -> io::Result<()> {
    let mut paths = io::BufReader::new(input.take(PATHS_BYTES_MAX));
    // All of them first, so that the other end never waits with a full pipe.
    let mut asked = Vec::new();
    loop {
        let mut path = Vec::new();
        if paths.read_until(0, &mut path)? == 0 {
            break;
        }
        if path.last() == Some(&0) {
            path.pop();
        }
        asked.push(path);
    }
    for path in asked {
        match rustix::fs::statvfs(OsStr::from_bytes(&path)) {
            Ok(room) => {
                let block = if room.f_frsize == 0 {
                    room.f_bsize
                } else {
                    room.f_frsize
                };
                let taken = room.f_blocks.saturating_sub(room.f_bfree);
                let bytes = |blocks: u64| blocks.saturating_mul(block);
                let (total, used) = (bytes(room.f_blocks), bytes(taken));
                writeln!(output, "room {total} {used} {}", bytes(room.f_bavail))?;
            }
            Err(error) => writeln!(output, "refused {error}")?,
        }
        output.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_df_where_blocks_are_reserved() {
        // 100 GiB, 24 used, 48 reserved for root: df says 24 of 52.
        let usage = Usage {
            total: 100,
            used: 24,
            available: 28,
        };
        assert_eq!(usage.percent(), Some(47));
        let full = Usage {
            available: 0,
            ..usage
        };
        assert_eq!(full.percent(), Some(100));
        let empty = Usage {
            total: 5,
            used: 0,
            available: 0,
        };
        assert_eq!(empty.percent(), None);
    }

    #[test]
    fn a_prober_answers_each_path_in_order_whatever_its_name() {
        let mut output = Vec::new();
        serve_probe(&b"/\0/nowhere/\xff\0/proc\0"[..], &mut output).unwrap();
        let text = String::from_utf8(output).unwrap();
        let answers: Vec<Answer> = text.lines().map(understand).collect();
        assert!(matches!(answers[0], Answer::Usage(usage) if usage.total > usage.used));
        assert!(matches!(answers[1], Answer::Refused(_)), "{answers:?}");
        assert_eq!(answers[2], Answer::Nothing);
        assert_eq!(answers.len(), 3);
    }
}
