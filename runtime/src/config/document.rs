//! A configuration on its way to being accepted or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::environment::Environment;
use super::key::{KeyReference, SectionReference};
use super::layers::{self, Layers, Reader};
use super::section::Section;
use super::syntax;
use super::text::Text;
use super::tree::{self, Spot, Table, Value};
use crate::problem::{Place, Problem, Problems};

/// A configuration that is being read: its file, what lies over it in `conf.d`, and the environment.
#[derive(Debug)]
pub struct Document {
    /// The first, from whose folder relative paths start, and those laid over it.
    texts: Vec<Text>,
    root: Arc<Table>,
    environment: Environment,
    problems: Vec<Problem>,
    pub(super) keys: Vec<KeyReference>,
    pub(super) sections: Vec<SectionReference>,
    /// What examples of keys say that are about to be declared.
    examples: BTreeMap<(String, String), &'static str>,
    /// The files and folders that the configuration names, with the key and its place.
    named: BTreeMap<PathBuf, Vec<(String, Place)>>,
    /// Those of them that cannot be read, which was noted.
    refused: BTreeSet<PathBuf>,
    /// Whether an error of syntax may hide keys that are there.
    hides_keys: bool,
    /// Whether the files that are named are looked at.
    examines: bool,
}

impl Document {
    /// Reads the file and every `*.toml` in `conf.d` beside it, in the order of their names, which others must not be
    /// able to change. A later one counts more: tables are merged key by key, and any other value takes the place of
    /// the earlier one. Errors of syntax and duplicate keys, and files of the folder that cannot be used, are noted, to
    /// be reported with everything else.
    ///
    /// # Errors
    ///
    /// When the file is missing, too large or not UTF-8, or others can change it.
    pub fn load(path: &Path, environment: &Environment) -> Result<Self, Problems> {
        Self::read(path, environment, Reader::Trusting)
    }

    /// The same for somebody who only asks where something is and starts nothing with it: neither the files nor those
    /// that they name need to be safe for this user.
    ///
    /// # Errors
    ///
    /// When the file is missing, too large or not UTF-8.
    pub fn load_to_ask(path: &Path, environment: &Environment) -> Result<Self, Problems> {
        let mut document = Self::read(path, environment, Reader::Asking)?;
        document.examines = false;
        Ok(document)
    }

    /// What `read` takes from the file, for somebody who only asks the running agent: what can be read of it, with the
    /// defaults in place of the rest, and all problems. A mistake in the file keeps nobody from asking.
    pub fn read_to_ask<T>(
        path: &Path,
        environment: &Environment,
        read: impl FnOnce(&mut Self) -> T,
    ) -> (T, Option<Problems>) {
        match Self::load_to_ask(path, environment) {
            Ok(mut document) => {
                let config = read(&mut document);
                (config, document.finish().err())
            }
            Err(problems) => {
                let mut nothing = Self::parse(path, "", environment);
                (read(&mut nothing), Some(problems))
            }
        }
    }

    fn read(path: &Path, environment: &Environment, reader: Reader) -> Result<Self, Problems> {
        Ok(Self::laid(layers::read(path, reader)?, environment))
    }

    /// The same as if `path` had this text already: with what lies over it there.
    #[must_use]
    pub fn foresee(path: &Path, text: &str, environment: &Environment) -> Self {
        let first = Text::new(path, text.to_owned());
        Self::laid(layers::over(first, Reader::Trusting), environment)
    }

    /// A text that is about to be written, by itself: the files that it names need not be there yet.
    #[must_use]
    pub fn draft(path: &Path, text: &str) -> Self {
        let mut document = Self::parse(path, text, &Environment::default());
        document.examines = false;
        document
    }

    fn laid(layers: Layers, environment: &Environment) -> Self {
        let mut document = Self::lay(layers.texts, environment);
        document.problems.extend(layers.problems);
        document
    }

    /// One file that was read already.
    ///
    /// # Errors
    ///
    /// When it is not UTF-8.
    pub fn from_bytes(
        path: &Path,
        bytes: Vec<u8>,
        environment: &Environment,
    ) -> Result<Self, Problems> {
        let text = Text::decode(path, bytes).map_err(|problem| Problems::new(vec![problem]))?;
        Ok(Self::lay(vec![text], environment))
    }

    /// The same for a text at hand; `path` is what problems name and what relative paths start from.
    #[must_use]
    pub fn parse(path: &Path, text: &str, environment: &Environment) -> Self {
        Self::parse_all(&[(path, text)], environment)
    }

    /// The same for several, of which a later one counts more.
    #[must_use]
    pub fn parse_all(files: &[(&Path, &str)], environment: &Environment) -> Self {
        let texts = files.iter();
        let texts = texts.map(|(path, text)| Text::new(path, (*text).to_owned()));
        Self::lay(texts.collect(), environment)
    }

    /// Lays the files over each other.
    fn lay(texts: Vec<Text>, environment: &Environment) -> Self {
        let mut root = Arc::new(Table::default());
        let (mut problems, mut hides_keys) = (Vec::new(), false);
        for (file, text) in texts.iter().enumerate() {
            let (table, errors) = tree::parse(&text.text, file);
            tree::overlay(&mut root, &table);
            problems.extend(errors.into_iter().map(|error| {
                let (span, message) = (error.span().unwrap_or_default(), error.message());
                hides_keys |= syntax::hides_keys(message);
                Problem {
                    place: text.place(&Spot { file, span }),
                    message: format!("not valid TOML: {message}"),
                    help: syntax::help(message).to_owned(),
                }
            }));
        }
        Self {
            texts,
            root,
            environment: environment.clone(),
            problems,
            keys: Vec::new(),
            sections: Vec::new(),
            examples: BTreeMap::new(),
            named: BTreeMap::new(),
            refused: BTreeSet::new(),
            hides_keys,
            examines: true,
        }
    }

    /// A section, declared with what it is for; empty if the file does not have it. The name is dotted for a section
    /// inside another, and empty for the top of the file.
    pub fn section(&mut self, name: &str, help: &str) -> Section<'_> {
        self.declare_section(SectionReference {
            section: name.to_owned(),
            repeated: false,
            free: false,
            help: help.to_owned(),
        });
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
        self.finish_part()
    }

    /// The same for somebody who has read a part of it: what else is there is for others to refuse.
    ///
    /// # Errors
    ///
    /// What is wrong with what was read, and with the file as a whole.
    pub fn finish_part(self) -> Result<(), Problems> {
        if self.problems.is_empty() {
            return Ok(());
        }
        Err(Problems::new(self.problems))
    }

    /// The keys declared so far, for the configuration reference. Declare them on an empty document:
    /// `Document::parse(path, "", &Environment::default())`.
    #[must_use]
    pub fn reference(&self) -> &[KeyReference] {
        &self.keys
    }

    /// The sections declared so far.
    #[must_use]
    pub fn section_reference(&self) -> &[SectionReference] {
        &self.sections
    }

    /// Notes a problem that concerns no single key, at the top of the file.
    pub fn problem(&mut self, message: impl Into<String>, help: impl Into<String>) {
        let place = Place::File(self.path().to_owned());
        self.push(place, message.into(), help.into());
    }

    /// Notes problems of files that the configuration names, at the place where it does; what was noted before is not
    /// said twice.
    pub fn adopt(&mut self, problems: impl IntoIterator<Item = Problem>) {
        for problem in problems {
            // Whatever wanted to read a file that cannot be read says so in words of its own.
            if matches!(&problem.place, Place::File(path) if self.refused.contains(path)) {
                continue;
            }
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

    /// The folder of the first file, from which relative paths start, those of `conf.d` as well.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.path().parent().unwrap_or_else(|| Path::new(""))
    }

    /// The first file.
    fn path(&self) -> &Path {
        let first = self.texts.first();
        first.map_or_else(|| Path::new(""), |text| text.path.as_path())
    }

    pub(super) fn push(&mut self, place: Place, message: String, help: String) {
        self.problems.push(Problem {
            place,
            message,
            help,
        });
    }

    /// Whether something is wrong at a place.
    pub(super) fn is_noted(&self, place: &Place) -> bool {
        self.problems.iter().any(|problem| problem.place == *place)
    }

    pub(super) fn name_path(&mut self, path: &Path, key: &str, place: Place) {
        let named = self.named.entry(path.to_owned()).or_default();
        named.push((key.to_owned(), place));
    }

    /// Notes that a file cannot be read, for which the caller has a problem of its own.
    pub(super) fn refuse_file(&mut self, path: &Path) {
        self.refused.insert(path.to_owned());
    }

    pub(super) const fn hides_keys(&self) -> bool {
        self.hides_keys
    }

    pub(super) const fn examines(&self) -> bool {
        self.examines
    }

    /// Keeps what an example of a key says until the key is declared.
    pub(super) fn keep_example(&mut self, section: &str, key: &str, example: &'static str) {
        self.examples
            .insert((section.to_owned(), key.to_owned()), example);
    }

    pub(super) fn declare(&mut self, mut key: KeyReference) {
        let example = (key.section.clone(), key.key.clone());
        key.example = self.examples.remove(&example);
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

    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).map(str::to_owned)
    }

    pub(super) const fn environment(&self) -> &Environment {
        &self.environment
    }

    pub(super) fn subtable(&mut self, table: &Table, name: &str) -> Option<Arc<Table>> {
        let node = &table.entries.get(name)?.node;
        if let Value::Table(table) = &node.value {
            return Some(Arc::clone(table));
        }
        let place = self.line(&node.spot);
        let message = format!("{name} is {} instead of a section", node.value.kind());
        self.push(
            place,
            message,
            format!("write [{name}] on a line by itself and its keys below"),
        );
        None
    }

    /// The table of a section, if the files have one.
    pub(super) fn table(&self, name: &str) -> Option<&Table> {
        let mut table = &*self.root;
        for part in name.split('.').filter(|part| !part.is_empty()) {
            let Value::Table(inner) = &table.entries.get(part)?.node.value else {
                return None;
            };
            table = inner;
        }
        Some(table)
    }

    /// The file, line and column of a place.
    pub(super) fn line(&self, spot: &Spot) -> Place {
        match self.texts.get(spot.file) {
            Some(text) => text.place(spot),
            None => Place::File(self.path().to_owned()),
        }
    }
}

fn keys(named: &[(String, Place)]) -> String {
    let keys: Vec<&str> = named.iter().map(|(key, _place)| key.as_str()).collect();
    keys.join(" and ")
}
