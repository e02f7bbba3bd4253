//! What a configuration holds and no reader asked for: unknown keys, sections and variables, and what may be meant.

use std::collections::BTreeSet;

use super::document::Document;
use super::tree::{Spot, Table, Value};
use super::{environment, suggest};
use crate::problem::Place;

impl Document {
    pub(super) fn refuse_unknown(&mut self, section: &str, table: &Table) {
        for (name, entry) in &table.entries {
            let full = if section.is_empty() {
                name.clone()
            } else {
                format!("{section}.{name}")
            };
            if self.is_free(&full) || self.is_key(section, name) {
                continue;
            }
            if !self.is_section(&full) {
                self.refuse_name(section, name, &entry.key_spot, &entry.node.value);
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

    fn refuse_name(&mut self, section: &str, name: &str, spot: &Spot, value: &Value) {
        let place = self.line(spot);
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

    pub(super) fn refuse_unknown_variables(&mut self) {
        let known: BTreeSet<String> = self
            .keys
            .iter()
            .filter_map(|key| key.variable.clone())
            .collect();
        let unknown: Vec<String> = self
            .environment()
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

    /// Whether it is a table of free keys.
    fn is_free(&self, full: &str) -> bool {
        let mut sections = self.sections.iter();
        sections.any(|known| known.free && known.section == full)
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

/// A variable's name without what all of them begin with, which makes none near to another.
fn bare(name: &str) -> &str {
    name.strip_prefix(environment::PREFIX).unwrap_or(name)
}
