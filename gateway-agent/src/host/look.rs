//! Looks at files, each so that one that does not answer holds up nothing but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use viworks_runtime::blocking::{PerKey, Unanswered};
use viworks_runtime::files::Owners;

use super::{mounts, ownership};
use crate::program;
use crate::spawner::{self, Entry};

/// How long a look may take; of many at once, all together.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Looks that may hang at once: more than a catalogue has programs, so that only one after another of them, each with
/// dead paths of its own, comes to it.
const LOOKS_MAX: usize = 1_024;

/// Questions to helpers that may hang at once.
const HELPERS_MAX: usize = 8;

/// Of each path there is one look at a time, whoever asks.
static LOOKS: LazyLock<PerKey<Question, Option<String>>> =
    LazyLock::new(|| PerKey::new("look", LOOKS_MAX));

/// Of the same commands a helper is asked once at a time.
static HELPERS: LazyLock<PerKey<(PathBuf, Vec<Entry>), Vec<Option<String>>>> =
    LazyLock::new(|| PerKey::new("helper", HELPERS_MAX));

/// What is asked of the file system.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// Whether it may be run.
    Program {
        /// Which.
        path: PathBuf,
        /// The agent's user is trusted as well, not only root.
        own: bool,
    },
    /// Whether it is there.
    Needed(PathBuf),
}

/// The built-in command, no part of any catalogue, that looks in the agent's place.
pub const LOOKER: &str = "host.look";

/// File systems of the kernel on disks or in memory. Any other may wait for a program or for another machine.
const AT_HOME: &[&str] = &[
    "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "rootfs",
    "squashfs", "tmpfs", "ubifs", "vfat", "xfs", "zfs",
];

impl Question {
    /// What speaks against it. Blocks; where that may be for ever, so does a process that can be left behind: a thread
    /// that hangs in the kernel would keep its process from ending.
    fn answer(&self) -> Option<String> {
        if is_at_home(self.path()) {
            self.look()
        } else {
            self.ask_a_process()
        }
    }

    fn ask_a_process(&self) -> Option<String> {
        let asked = Command::new(program::own())
            .args([program::BUILTIN, LOOKER, self.kind()])
            .arg(self.path())
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let path = self.path().display();
        match asked {
            Ok(answer) if answer.status.success() => {
                let said = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
                (!said.is_empty()).then_some(said)
            }
            Ok(answer) => Some(format!("{path} could not be looked at: {}", answer.status)),
            Err(error) => Some(format!("{path} could not be looked at: {error}")),
        }
    }

    /// What the looker is told beside the path.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Program { own: false, .. } => "program",
            Self::Program { own: true, .. } => "own-program",
            Self::Needed(_) => "needed",
        }
    }

    fn of(kind: &str, path: &str) -> Option<Self> {
        let path = PathBuf::from(path);
        match kind {
            "program" => Some(Self::Program { path, own: false }),
            "own-program" => Some(Self::Program { path, own: true }),
            "needed" => Some(Self::Needed(path)),
            _ => None,
        }
    }

    fn look(&self) -> Option<String> {
        match self {
            Self::Program { path, own } => {
                let owners = if *own {
                    Owners::RootAndOwn
                } else {
                    Owners::Root
                };
                ownership::check_program(path, owners).err()
            }
            Self::Needed(path) => {
                (!path.exists()).then(|| format!("it needs {}, which is not there", path.display()))
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Program { path, .. } | Self::Needed(path) => path,
        }
    }
}

/// What the looker does: one look, whose answer is what speaks against it, or nothing. `None` when it was called
/// wrongly.
pub fn serve(kind: &str, path: &str) -> Option<String> {
    Some(Question::of(kind, path)?.look().unwrap_or_default())
}

/// Whether the path, as it is written, is on a file system that waits for nobody.
fn is_at_home(path: &Path) -> bool {
    let Ok(table) = fs::read("/proc/self/mountinfo") else {
        return false;
    };
    let (mounts, _unreadable) = mounts::parse(&table);
    // Of several at one point, the last covers the others.
    let above = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.point))
        .max_by_key(|mount| mount.point.components().count());
    above.is_some_and(|mount| AT_HOME.contains(&mount.kind.as_str()))
}

/// Why something cannot be used at this moment, if it cannot; a file system that does not answer is a reason.
pub async fn ask(question: Question) -> Option<String> {
    let answer = LOOKS.ask(question.clone(), LOOK_TIME, Question::answer);
    said(&question, answer.await)
}

/// The same of many. Blocks, for as long as one look may take.
pub fn ask_all(questions: BTreeSet<Question>) -> BTreeMap<Question, Option<String>> {
    LOOKS
        .ask_all(questions, LOOK_TIME, Question::answer)
        .into_iter()
        .map(|(question, answer)| {
            let said = said(&question, answer);
            (question, said)
        })
        .collect()
}

/// Why the helper at `socket` would not run each of these commands, in their order; one that does not answer is a
/// reason.
pub async fn ask_helper(socket: &Path, entries: Vec<Entry>) -> Vec<Option<String>> {
    let (count, asked) = (entries.len(), (socket.to_owned(), entries));
    let answer = HELPERS.ask(asked, LOOK_TIME, |(socket, entries)| {
        spawner::objections(socket, entries)
    });
    of_helper(socket, count, answer.await)
}

/// The same. Blocks, for as long as one look may take.
pub fn ask_helper_here(socket: &Path, entries: Vec<Entry>) -> Vec<Option<String>> {
    let (count, asked) = (entries.len(), (socket.to_owned(), entries));
    let answers = HELPERS.ask_all([asked], LOOK_TIME, |(socket, entries)| {
        spawner::objections(socket, entries)
    });
    let answer = answers.into_values().next();
    of_helper(
        socket,
        count,
        answer.unwrap_or(Err(Unanswered::Late(LOOK_TIME))),
    )
}

fn of_helper(
    socket: &Path,
    count: usize,
    answer: Result<Vec<Option<String>>, Unanswered>,
) -> Vec<Option<String>> {
    answer.unwrap_or_else(|error| {
        let why = format!(
            "the helper at {} could not be asked: {error}",
            socket.display()
        );
        vec![Some(why); count]
    })
}

/// An answer, or that there is none.
fn said(question: &Question, answer: Result<Option<String>, Unanswered>) -> Option<String> {
    answer.unwrap_or_else(|error| {
        Some(format!(
            "{} could not be looked at: {error}",
            question.path().display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_others_is_asked_by_a_process_and_understood_by_it() {
        assert!(!is_at_home(Path::new("/proc/self/exe")));
        let path = PathBuf::from("/nonexistent/tool");
        let questions = [
            Question::Program {
                path: path.clone(),
                own: true,
            },
            Question::Program {
                path: path.clone(),
                own: false,
            },
            Question::Needed(path),
        ];
        for question in questions {
            let said = serve(question.kind(), "/nonexistent/tool");
            assert_eq!(said, question.look(), "{question:?}");
            assert!(said.unwrap().contains("/nonexistent/tool"));
        }
        assert_eq!(serve("needed", "/"), Some(String::new()));
        assert_eq!(serve("odd", "/"), None);
    }
}
