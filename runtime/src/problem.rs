//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use viworks_common::human;

use crate::exit::ExitCode;

/// One thing to put right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it is.
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to do about it; empty where the message says it all.
    pub help: String,
}

impl Problem {
    /// A problem of a file as a whole.
    #[must_use]
    pub fn of_file(path: &Path, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            place: Place::File(path.to_owned()),
            message: message.into(),
            help: help.into(),
        }
    }

    /// Where it is and what is wrong, in one line that names the file once.
    #[must_use]
    pub fn line(&self) -> String {
        let Self { place, message, .. } = self;
        match place {
            Place::File(path) if is_named(&path.display().to_string(), message) => message.clone(),
            Place::File(_) | Place::Line { .. } | Place::Variable(_) => {
                format!("{place}: {message}")
            }
        }
    }

    /// For programs: `file` with `line`, or `variable`, and `message` with `help`.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        self.place.put(&mut object);
        object.insert("message".to_owned(), json!(self.message));
        object.insert("help".to_owned(), json!(self.help));
        Value::Object(object)
    }
}

/// Whether a message names this path, and not only one below it, nor one that merely ends as it does.
fn is_named(path: &str, message: &str) -> bool {
    let begins = |at: usize| {
        let before = message.get(..at).unwrap_or_default();
        before.ends_with([' ', '\n', '"', '\'', '`', '(', ':', '=']) || before.is_empty()
    };
    let ends = |at: usize| {
        let behind = message.get(at + path.len()..).unwrap_or_default();
        behind.starts_with([' ', ':', ';', ',', '"']) || behind.is_empty()
    };
    !path.is_empty()
        && message
            .match_indices(path)
            .any(|(at, _path)| begins(at) && ends(at))
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file that could not be taken in at all.
    File(PathBuf),
    /// A line of the file.
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
}

impl Place {
    /// For programs, into an object that is about it.
    pub(crate) fn put(&self, object: &mut Map<String, Value>) {
        match self {
            Self::File(path) => {
                object.insert("file".to_owned(), json!(path.display().to_string()));
            }
            Self::Line { path, line, .. } => {
                object.insert("file".to_owned(), json!(path.display().to_string()));
                object.insert("line".to_owned(), json!(line));
            }
            Self::Variable(name) => {
                object.insert("variable".to_owned(), json!(name));
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Line { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())?;
        if !self.help.is_empty() {
            write!(f, "\n  help: {}", self.help)?;
        }
        Ok(())
    }
}

/// Everything that is wrong, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    problems: Vec<Problem>,
}

impl Problems {
    /// All of these.
    #[must_use]
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self { problems }
    }

    /// The first of these in front of the others, wherever they are: they may well follow from it.
    #[must_use]
    pub fn led_by(first: Problem, others: Vec<Problem>) -> Self {
        let mut problems = Self::new(others).problems;
        problems.retain(|problem| *problem != first);
        problems.insert(0, first);
        Self { problems }
    }

    /// Refuses if there are any.
    ///
    /// # Errors
    ///
    /// All of them.
    pub fn refuse(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            return Ok(());
        }
        Err(Self::new(problems))
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter()
    }

    /// One by one, to be put somewhere else.
    #[must_use]
    pub fn into_vec(self) -> Vec<Problem> {
        self.problems
    }

    /// All of them in one line, for a process that goes on without what they are about.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        let each = self.problems.iter().map(Problem::line);
        each.collect::<Vec<_>>().join("; ")
    }

    /// All of them as warnings beside the answer of an agent that runs: it goes on with what it has read before.
    #[must_use]
    pub fn beside_an_answer(&self) -> String {
        let each = self.problems.iter();
        let each = each.map(|problem| format!("warning: {problem}\n"));
        let mut text: String = each.collect();
        text.push_str(
            "the configuration cannot be used as it is; what answers is the agent that runs, with the one that it has read before",
        );
        text
    }

    /// Those of several files together.
    #[must_use]
    pub fn join(mut self, others: Self) -> Self {
        self.problems.extend(others.problems);
        self
    }

    /// What a process that is refused its start ends with.
    #[must_use]
    pub const fn exit_code(&self) -> ExitCode {
        ExitCode::Config
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        let problems = human::counted(self.problems.len(), "problem", "problems");
        write!(f, "{problems} in the configuration")
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_once_in_a_line() {
        for (file, message, line) in [
            ("/a/b", "failed to open /a/b: no", "failed to open /a/b: no"),
            ("/a/b", "/a/b is no file", "/a/b is no file"),
            ("/a/b", "\"/a/b\" is no file", "\"/a/b\" is no file"),
            (
                "/a/b",
                "failed to open /a/b/c: no",
                "/a/b: failed to open /a/b/c: no",
            ),
            ("/a/b", "is wrong", "/a/b: is wrong"),
            ("b.toml", "b.toml is no file", "b.toml is no file"),
            (
                "b.toml",
                "/x/ab.toml is no file",
                "b.toml: /x/ab.toml is no file",
            ),
            (
                "b.toml",
                "/x/b.toml is no file",
                "b.toml: /x/b.toml is no file",
            ),
            // The first one is not it, the second one is.
            (
                "b.toml",
                "ab.toml leads to b.toml",
                "ab.toml leads to b.toml",
            ),
        ] {
            let problem = Problem::of_file(Path::new(file), message, "");
            assert_eq!(problem.to_string(), line);
            assert_eq!(Problems::new(vec![problem]).in_one_line(), line);
        }
    }

    #[test]
    fn a_mistake_is_a_warning_beside_the_answer_of_an_agent_that_runs() {
        let problem = |file: &str| Problem::of_file(Path::new(file), "is wrong", "mend it");
        let told = Problems::new(vec![problem("/a"), problem("/b")]).beside_an_answer();
        let lines: Vec<&str> = told.lines().collect();
        let each = ["warning: /a: is wrong", "  help: mend it"];
        assert_eq!(lines[..2], each, "{told}");
        assert_eq!(
            (lines[2], lines.len()),
            ("warning: /b: is wrong", 5),
            "{told}"
        );
    }

    #[test]
    fn what_leads_stands_in_front_and_once() {
        let problem = |file: &str| Problem::of_file(Path::new(file), "is wrong", "");
        let led = Problems::led_by(
            problem("/c"),
            vec![problem("/c"), problem("/b"), problem("/a")],
        );
        let files: Vec<_> = led.iter().map(|it| it.place.to_string()).collect();
        assert_eq!(files, ["/c", "/a", "/b"]);
        let shown = led.to_string();
        assert!(
            shown.ends_with("\n3 problems in the configuration"),
            "{shown}"
        );
    }
}
