//! The digest of a catalogue: equal catalogues have equal digests, whatever order their files came in.

use sha2::{Digest, Sha256};

use super::{ArgumentType, CatalogueEntry, Risk};

/// SHA-256 over the entries in the order of their names; every field stands behind its length.
#[must_use]
pub fn catalogue_digest(entries: &[CatalogueEntry]) -> [u8; 32] {
    let mut sorted: Vec<&CatalogueEntry> = entries.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut fields = Fields(Sha256::new());
    fields.text("viworks/1 catalogue");
    fields.count(sorted.len());
    for entry in sorted {
        fields.entry(entry);
    }
    fields.0.finalize().into()
}

struct Fields(Sha256);

impl Fields {
    fn count(&mut self, count: usize) {
        self.number(u64::try_from(count).unwrap_or(u64::MAX));
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text.as_bytes());
    }

    fn option(&mut self, text: Option<&str>) {
        self.count(usize::from(text.is_some()));
        self.text(text.unwrap_or_default());
    }

    fn entry(&mut self, entry: &CatalogueEntry) {
        self.text(entry.name.as_str());
        self.text(&entry.title);
        self.text(match entry.risk {
            Risk::Read => "read",
            Risk::Change => "change",
            Risk::Danger => "danger",
        });
        self.count(usize::from(entry.idempotent));
        self.count(entry.arguments.len());
        for argument in &entry.arguments {
            self.text(argument.name.as_str());
            self.text(&argument.description);
            self.kind(&argument.value);
            self.option(argument.default.as_deref());
        }
        self.number(entry.timeout_ms);
        self.number(entry.output_bytes_max);
        self.option(entry.unavailable.as_deref());
    }

    fn kind(&mut self, kind: &ArgumentType) {
        match kind {
            ArgumentType::String { pattern } => {
                self.text("string");
                self.text(pattern);
            }
            ArgumentType::Integer { min, max } => {
                self.text("integer");
                self.0.update(min.to_be_bytes());
                self.0.update(max.to_be_bytes());
            }
            ArgumentType::Choice { values } => {
                self.text("choice");
                self.count(values.len());
                for value in values {
                    self.text(value);
                }
            }
            ArgumentType::Boolean => self.text("boolean"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Argument;

    fn entry(name: &str) -> CatalogueEntry {
        CatalogueEntry {
            name: name.parse().unwrap(),
            title: "A command".to_owned(),
            risk: Risk::Read,
            idempotent: true,
            arguments: vec![Argument {
                name: "unit".parse().unwrap(),
                description: "A unit".to_owned(),
                value: ArgumentType::Boolean,
                default: None,
            }],
            timeout_ms: 1_000,
            output_bytes_max: 1_000,
            unavailable: None,
        }
    }

    #[test]
    fn the_order_of_entries_does_not_matter_and_every_field_does() {
        let base = catalogue_digest(&[entry("a"), entry("b")]);
        assert_eq!(catalogue_digest(&[entry("b"), entry("a")]), base);
        let changes: [fn(&mut CatalogueEntry); 9] = [
            |e| e.name = "c".parse().unwrap(),
            |e| e.title.push('x'),
            |e| e.risk = Risk::Danger,
            |e| e.idempotent = false,
            |e| e.arguments.clear(),
            |e| e.arguments[0].default = Some(String::new()),
            |e| e.timeout_ms += 1,
            |e| e.output_bytes_max += 1,
            |e| e.unavailable = Some(String::new()),
        ];
        for change in changes {
            let mut changed = entry("b");
            change(&mut changed);
            assert_ne!(catalogue_digest(&[entry("a"), changed]), base);
        }
    }
}
