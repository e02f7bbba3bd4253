//! What every key of a configuration came to, to name those that another reading of the file gives another value.

use std::collections::BTreeMap;

/// Every key with the value that holds, given or left out. It is kept as text, and only ever compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values {
    by_key: BTreeMap<String, String>,
}

impl Values {
    pub(super) fn insert(&mut self, name: String, value: String) {
        self.by_key.insert(name, value);
    }

    /// Each key as `[section] key` with its value, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_key
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The keys that have another value in `later`, each as `[section] key`, a table of free keys as `[table]`.
    #[must_use]
    pub fn changed<'a>(&'a self, later: &'a Self) -> Vec<&'a str> {
        let mut changed: Vec<&str> = self
            .by_key
            .iter()
            .filter(|(key, value)| later.by_key.get(*key) != Some(value))
            .map(|(key, _value)| key.as_str())
            .collect();
        let added = later.by_key.keys();
        changed.extend(
            added
                .filter(|key| !self.by_key.contains_key(*key))
                .map(String::as_str),
        );
        changed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::{Document, Environment};

    fn read(text: &str) -> super::Values {
        let environment: Environment = [("VIWORKS__API__NAME", "given")].into_iter().collect();
        let mut document = Document::parse("agent.toml".as_ref(), text, &environment);
        let mut api = document.section("api", "The listener.");
        let _name = api.str("name", "nobody", "Its name.");
        let _port = api.integer("port", 8080_u16, 1..=u16::MAX, "Its port.");
        let _idle = api.duration_ms(
            "idle_ms",
            Duration::from_secs(1),
            Duration::ZERO..=Duration::from_secs(9),
            "How long it waits.",
        );
        let _words = api.strings("words", &["a", "b"], "Its words.");
        let _labels = document.strings_by_key("labels", "Free words.");
        document.values()
    }

    #[test]
    fn a_key_that_holds_another_value_is_named_and_no_other() {
        let before = read("[api]\nport = 80\n");
        // Written otherwise, or written out, it is the same; what a variable overrides does not change with the file.
        let same = read(
            "# a comment\n[api]\nname = \"other\"\nidle_ms = 1000\nwords = ['a', \"b\"]\nport = 0x50\n",
        );
        assert_eq!(before.changed(&same), Vec::<&str>::new());
        let other = read("[api]\nwords = [\"b\"]\n[labels]\nsite = \"x\"\n");
        assert_eq!(
            before.changed(&other),
            ["[api] port", "[api] words", "[labels]"]
        );
    }
}
