//! A configuration file on its way to being accepted or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::environment::{self, Environment};
use super::section::Section;
use super::suggest;
use super::tree::{self, Table, Value};
use super::values::Values;
use crate::files::{self, FileError};
use crate::problem::{Place, Problem, Problems};

/// The largest configuration file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A key as the configuration reference shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference {
    /// The section it stands in, dotted; empty at the top of the file.
    pub section: String,
    /// Its name.
    pub key: String,
    /// The type of its value, and the range where there is one.
    pub kind: String,
    /// What holds when it is left out; `None` if it must be given.
    pub default: Option<String>,
    /// What it is for.
    pub help: String,
    /// The environment variable that overrides it; `None` inside arrays of tables.
    pub variable: Option<String>,
}

/// A section as the configuration reference shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionReference {
    /// Its dotted name.
    pub section: String,
    /// Whether it may occur many times, as `[[section]]`.
    pub repeated: bool,
    /// What it is for.
    pub help: String,
}

/// A configuration file that is being read.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    /// Where each line starts, in bytes.
    lines: Vec<usize>,
    text: String,
    root: Arc<Table>,
    environment: Environment,
    problems: Vec<Problem>,
    keys: Vec<KeyReference>,
    sections: Vec<SectionReference>,
    free_tables: BTreeSet<String>,
    /// The files and folders that the configuration names, with the key and its place.
    named: BTreeMap<PathBuf, Vec<(String, Place)>>,
    /// Whether the files that are named are looked at.
    examines: bool,
}

impl Document {
    /// Reads the file, which others must not be able to change. Errors of syntax and duplicate keys are noted, to be
    /// reported with everything else.
    ///
    /// # Errors
    ///
    /// When the file is missing, too large or not UTF-8, or others can change it.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, Problems> {
        let bytes = files::read_trusted(path, FILE_BYTES_MAX);
        Self::from_bytes(
            path,
            &bytes.map_err(|error| unread(path, &error))?,
            environment,
        )
    }

    /// The same for somebody who only asks where something is and starts nothing with it: neither the file nor those
    /// that it names need to be safe for this user.
    ///
    /// # Errors
    ///
    /// When the file is missing, too large or not UTF-8.
    pub fn load_to_ask(path: &Path, environment: &Environment) -> Result<Self, Problems> {
        let bytes = files::read_at_most(path, FILE_BYTES_MAX);
        let bytes = bytes.map_err(|error| unread(path, &error))?;
        let mut document = Self::from_bytes(path, &bytes, environment)?;
        document.examines = false;
        Ok(document)
    }

    /// The same for what was read already.
    ///
    /// # Errors
    ///
    /// When it is not UTF-8.
    pub fn from_bytes(
        path: &Path,
        bytes: &[u8],
        environment: &Environment,
    ) -> Result<Self, Problems> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let message = format!("not UTF-8: {error}");
            Problems::new(vec![Problem::of_file(
                path,
                message,
                "save the file as UTF-8",
            )])
        })?;
        Ok(Self::parse(path, text, environment))
    }

    /// The same for a text at hand; `path` is what problems name and what relative paths start from.
    #[must_use]
    pub fn parse(path: &Path, text: &str, environment: &Environment) -> Self {
        let (root, errors) = tree::parse(text);
        let lines = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        let mut document = Self {
            path: path.to_owned(),
            lines,
            text: text.to_owned(),
            root,
            environment: environment.clone(),
            problems: Vec::new(),
            keys: Vec::new(),
            sections: Vec::new(),
            free_tables: BTreeSet::new(),
            named: BTreeMap::new(),
            examines: true,
        };
        for error in errors {
            let place = document.line(error.span().unwrap_or_default());
            document.push(
                place,
                format!("not valid TOML: {}", error.message()),
                String::new(),
            );
        }
        document
    }

    /// A section, declared with what it is for; empty if the file does not have it. The name is dotted for a section
    /// inside another, and empty for the top of the file.
    pub fn section(&mut self, name: &str, help: &str) -> Section<'_> {
        let reference = SectionReference {
            section: name.to_owned(),
            repeated: false,
            help: help.to_owned(),
        };
        self.declare_section(reference);
        let mut table = Some(Arc::clone(&self.root));
        for part in name.split('.').filter(|part| !part.is_empty()) {
            table = table.and_then(|table| self.subtable(&table, part));
        }
        Section::new(self, name.to_owned(), table, true)
    }

    /// Every element of an array of tables `[[name]]`, read by `read`.
    pub fn tables<T>(
        &mut self,
        name: &str,
        help: &str,
        read: impl FnMut(&mut Section<'_>) -> T,
    ) -> Vec<T> {
        self.section("", "").tables(name, help, read)
    }

    /// A table of free keys with strings, such as labels.
    pub fn strings_by_key(&mut self, name: &str, help: &str) -> BTreeMap<String, String> {
        self.section("", "").strings_by_key(name, help)
    }

    /// Refuses if anything was wrong: what the reads noted, and every key, section and variable that none of them
    /// asked for.
    ///
    /// # Errors
    ///
    /// All problems, in the order of the file.
    pub fn finish(mut self) -> Result<(), Problems> {
        let root = Arc::clone(&self.root);
        self.refuse_unknown("", &root);
        self.refuse_unknown_variables();
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Problems::new(self.problems))
    }

    /// The keys declared so far, for the configuration reference. Declare them on an empty document:
    /// `Document::parse(path, "", &Environment::default())`.
    #[must_use]
    pub fn reference(&self) -> Vec<KeyReference> {
        self.keys.clone()
    }

    /// What the keys declared so far came to; those inside arrays of tables, which have no names of their own, are left
    /// out.
    #[must_use]
    pub fn values(&self) -> Values {
        let mut values = Values::default();
        for key in &self.keys {
            let Some(variable) = &key.variable else {
                continue;
            };
            let given = match self.variable(variable) {
                Some(text) => Some(text),
                None => self
                    .table(&key.section)
                    .and_then(|table| Some(table.entries.get(&key.key)?.node.value.to_string())),
            };
            let name = match key.section.as_str() {
                "" => key.key.clone(),
                section => format!("[{section}] {}", key.key),
            };
            let value = given.or_else(|| key.default.clone()).unwrap_or_default();
            values.insert(name, value);
        }
        for name in &self.free_tables {
            let given = self.table(name).map(ToString::to_string);
            values.insert(format!("[{name}]"), given.unwrap_or_default());
        }
        values
    }

    /// The sections declared so far.
    #[must_use]
    pub fn section_reference(&self) -> Vec<SectionReference> {
        self.sections.clone()
    }

    /// Notes a problem that concerns no single key, at the top of the file.
    pub fn problem(&mut self, message: impl Into<String>, help: impl Into<String>) {
        self.push(Place::File(self.path.clone()), message.into(), help.into());
    }

    /// Notes problems of files that the configuration names, at the place where it does; what was noted before is not
    /// said twice.
    pub fn adopt(&mut self, problems: impl IntoIterator<Item = Problem>) {
        for problem in problems {
            let known = |noted: &Problem| noted.message.ends_with(&problem.message);
            if self.problems.iter().any(known) {
                continue;
            }
            let named = match &problem.place {
                Place::File(path) => self.named.get(path),
                Place::Line { .. } | Place::Variable(_) => None,
            };
            // Several settings may name one file, and which of them is wrong is for a person to say.
            match named.and_then(|named| Some((named.first()?.1.clone(), keys(named)))) {
                Some((place, keys)) => {
                    self.push(place, format!("{keys}: {}", problem.message), problem.help);
                }
                None => self.problems.push(problem),
            }
        }
    }

    /// The folder of the file, from which relative paths start.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or_else(|| Path::new(""))
    }

    pub(super) fn push(&mut self, place: Place, message: String, help: String) {
        self.problems.push(Problem {
            place,
            message,
            help,
        });
    }

    pub(super) fn name_path(&mut self, path: &Path, key: &str, place: Place) {
        let named = self.named.entry(path.to_owned()).or_default();
        named.push((key.to_owned(), place));
    }

    pub(super) const fn examines(&self) -> bool {
        self.examines
    }

    pub(super) fn declare(&mut self, key: KeyReference) {
        let declared = |known: &KeyReference| known.section == key.section && known.key == key.key;
        if !self.keys.iter().any(declared) {
            self.keys.push(key);
        }
    }

    pub(super) fn declare_section(&mut self, section: SectionReference) {
        let is_root = section.section.is_empty();
        if !is_root
            && !self
                .sections
                .iter()
                .any(|known| known.section == section.section)
        {
            self.sections.push(section);
        }
    }

    pub(super) fn declare_free_table(&mut self, name: String) {
        self.free_tables.insert(name);
    }

    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).map(str::to_owned)
    }

    pub(super) fn subtable(&mut self, table: &Table, name: &str) -> Option<Arc<Table>> {
        let node = &table.entries.get(name)?.node;
        if let Value::Table(table) = &node.value {
            return Some(Arc::clone(table));
        }
        let place = self.line(node.span.clone());
        let message = format!("{name} is {} instead of a section", node.value.kind());
        self.push(
            place,
            message,
            format!("write [{name}] on a line by itself and its keys below"),
        );
        None
    }

    fn table(&self, name: &str) -> Option<&Table> {
        let mut table = &*self.root;
        for part in name.split('.').filter(|part| !part.is_empty()) {
            let Value::Table(inner) = &table.entries.get(part)?.node.value else {
                return None;
            };
            table = inner;
        }
        Some(table)
    }

    /// The line and column of a place in the text.
    pub(super) fn line(&self, span: Range<usize>) -> Place {
        let at = span.start.min(self.text.len());
        let line = self.lines.partition_point(|start| *start <= at);
        let start = self
            .lines
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or_default();
        let column = self
            .text
            .get(start..at)
            .map_or(0, |before| before.chars().count())
            + 1;
        Place::Line {
            path: self.path.clone(),
            line: line.max(1),
            column,
        }
    }

    fn refuse_unknown(&mut self, section: &str, table: &Table) {
        for (name, entry) in &table.entries {
            let full = if section.is_empty() {
                name.clone()
            } else {
                format!("{section}.{name}")
            };
            if self.free_tables.contains(&full) || self.is_key(section, name) {
                continue;
            }
            if !self.is_section(&full) {
                self.refuse_name(section, name, entry.key_span.clone(), &entry.node.value);
                continue;
            }
            match &entry.node.value {
                Value::Table(table) => self.refuse_unknown(&full, table),
                Value::Array(items) => {
                    for item in items {
                        if let Value::Table(table) = &item.value {
                            self.refuse_unknown(&full, table);
                        }
                    }
                }
                // The read of the section has noted that it is none.
                Value::String(_)
                | Value::Integer(_)
                | Value::Float
                | Value::Boolean(_)
                | Value::Datetime => {}
            }
        }
    }

    fn refuse_name(&mut self, section: &str, name: &str, span: Range<usize>, value: &Value) {
        let place = self.line(span);
        let is_table = matches!(value, Value::Table(_));
        let message = match (is_table, section) {
            (true, "") => format!("unknown section [{name}]"),
            (true, section) => format!("unknown section [{section}.{name}]"),
            (false, "") => format!("unknown key {name:?} at the top of the file"),
            (false, section) => format!("unknown key {name:?} in [{section}]"),
        };
        let help = self.suggest(section, name);
        self.push(place, message, help);
    }

    fn suggest(&self, section: &str, name: &str) -> String {
        let prefix = if section.is_empty() {
            String::new()
        } else {
            format!("{section}.")
        };
        let keys = self
            .keys
            .iter()
            .filter(|key| key.section == section)
            .map(|key| key.key.as_str());
        let sections = self
            .sections
            .iter()
            .filter_map(|known| known.section.strip_prefix(&prefix));
        let here: Vec<&str> = keys.chain(sections).collect();
        if let Some(meant) = suggest::nearest(name, here.iter().copied()) {
            return format!("did you mean {meant:?}?");
        }
        if let Some(elsewhere) = self.keys.iter().find(|key| key.key == name) {
            return match elsewhere.section.as_str() {
                "" => format!("{name:?} belongs at the top of the file"),
                section => format!("{name:?} belongs in [{section}]"),
            };
        }
        if here.is_empty() {
            String::new()
        } else {
            format!("known here: {}", here.join(", "))
        }
    }

    fn refuse_unknown_variables(&mut self) {
        let known: BTreeSet<String> = self
            .keys
            .iter()
            .filter_map(|key| key.variable.clone())
            .collect();
        let unknown: Vec<String> = self
            .environment
            .overrides()
            .filter(|name| !known.contains(*name))
            .map(str::to_owned)
            .collect();
        for name in unknown {
            // What all names begin with makes none of them near to another.
            let meant = suggest::nearest(bare(&name), known.iter().map(|known| bare(known)));
            let help = meant.map_or_else(
                || {
                    format!(
                        "variables are named {}SECTION__KEY after the keys of the file",
                        environment::PREFIX
                    )
                },
                |meant| format!("did you mean {}{meant}?", environment::PREFIX),
            );
            self.push(
                Place::Variable(name),
                "overrides no key of the configuration".to_owned(),
                help,
            );
        }
    }

    fn is_key(&self, section: &str, name: &str) -> bool {
        self.keys
            .iter()
            .any(|key| key.section == section && key.key == name)
    }

    /// Whether it was asked for, or holds one that was.
    fn is_section(&self, full: &str) -> bool {
        self.sections.iter().any(|known| {
            known
                .section
                .strip_prefix(full)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }
}

fn unread(path: &Path, error: &FileError) -> Problems {
    let mut help = error.fix();
    if help.is_empty() {
        "the file must exist and be readable".clone_into(&mut help);
    }
    Problems::new(vec![Problem::of_file(path, error.cause(), help)])
}

fn keys(named: &[(String, Place)]) -> String {
    let keys: Vec<&str> = named.iter().map(|(key, _place)| key.as_str()).collect();
    keys.join(" and ")
}

/// A variable's name without what all of them begin with, which makes none near to another.
fn bare(name: &str) -> &str {
    name.strip_prefix(environment::PREFIX).unwrap_or(name)
}
