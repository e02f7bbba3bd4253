//! The source tree, read once: names of all files, texts of those that are text, and the tokens of the code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::words::{self, Placed};

/// Folders that hold what was made, not what is kept.
const MADE: &[&str] = &["target", "artifacts", "coverage"];

/// Every file by its path from the root.
#[derive(Debug, Default)]
pub(crate) struct House {
    texts: BTreeMap<String, String>,
    code: BTreeMap<String, Vec<Placed>>,
}

impl House {
    pub(crate) fn load(root: &Path) -> Result<Self, String> {
        let mut house = Self::default();
        house.enter(root, "")?;
        Ok(house)
    }

    fn enter(&mut self, folder: &Path, prefix: &str) -> Result<(), String> {
        let said = |error| format!("{}: {error}", folder.display());
        for entry in fs::read_dir(folder).map_err(said)? {
            let path = entry.map_err(said)?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            let hidden = name.starts_with('.') && name != ".ci" && name != ".cargo";
            if path.is_symlink() || (hidden && path.is_dir()) {
                continue;
            }
            let name = format!("{prefix}{name}");
            if path.is_dir() {
                if !MADE.iter().any(|made| path.ends_with(made)) {
                    self.enter(&path, &format!("{name}/"))?;
                }
            } else {
                // What is not text is there all the same.
                let text = fs::read_to_string(&path).unwrap_or_default();
                self.put(&name, text)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, name: &str, text: String) -> Result<(), String> {
        if name.ends_with(".rs") {
            let tokens = words::tokens(&text).map_err(|why| format!("{name}: {why}"))?;
            self.code.insert(name.to_owned(), tokens);
        }
        self.texts.insert(name.to_owned(), text);
        Ok(())
    }

    /// A house of a few files, to see that a check can fail.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let mut house = Self::default();
        for (name, text) in files {
            house.put(name, (*text).to_owned()).unwrap();
        }
        house
    }

    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The code without what only tests compile.
    pub(crate) fn code(&self) -> impl Iterator<Item = (&str, &[Placed])> {
        self.code
            .iter()
            .map(|(name, tokens)| (name.as_str(), tokens.as_slice()))
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str)
    }

    /// Whether there is a file or a folder of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        let name = name.trim_end_matches('/');
        let folder = format!("{name}/");
        self.texts.contains_key(name)
            || self
                .texts
                .range(folder.clone()..)
                .next()
                .is_some_and(|(there, _)| there.starts_with(&folder))
    }

    /// The folders of the workspace's crates, as `Cargo.toml` lists them.
    pub(crate) fn crates(&self) -> Vec<&str> {
        let manifest = self.text("Cargo.toml").unwrap_or_default();
        let listed = manifest
            .split_once("members = [")
            .and_then(|(_, rest)| rest.split_once(']'));
        let listed = listed.map_or("", |(listed, _)| listed);
        listed.split('"').skip(1).step_by(2).collect()
    }
}

/// Whether a file of code is compiled for tests only, to judge by where it lies.
pub(crate) fn is_test(name: &str) -> bool {
    name.contains("/tests/") || name.ends_with("/tests.rs")
}
