//! The environment variables of the process, read once.

use std::collections::BTreeMap;

/// What variables of the product start with; a section and a key follow, joined by two underscores.
pub(super) const PREFIX: &str = "VIWORKS__";

/// Environment variables, as an argument so that tests need no real ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

/// The environment of this process. Nothing else in the product reads it.
#[must_use]
pub fn environment() -> Environment {
    // A variable that is not UTF-8 can hold none of ours; `vars` would panic on it.
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

impl Environment {
    /// The value of a variable that is set.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The same with one more variable, which goes before one of the same name: what a flag says counts most.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The names of the variables that mean to override a key.
    pub(super) fn overrides(&self) -> impl Iterator<Item = &str> {
        self.variables
            .keys()
            .map(String::as_str)
            .filter(|name| name.starts_with(PREFIX))
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self {
            variables: variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        }
    }
}

/// The variable that overrides a key.
pub(super) fn variable(section: &str, key: &str) -> String {
    let mut name = PREFIX.to_owned();
    for part in section.split('.').filter(|part| !part.is_empty()) {
        name.push_str(&part.to_uppercase());
        name.push_str("__");
    }
    name.push_str(&key.to_uppercase());
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_keys_make_the_name() {
        assert_eq!(variable("outbound", "url"), "VIWORKS__OUTBOUND__URL");
        assert_eq!(
            variable("data.sqlite", "max_pages"),
            "VIWORKS__DATA__SQLITE__MAX_PAGES"
        );
        assert_eq!(variable("", "state_folder"), "VIWORKS__STATE_FOLDER");
    }

    #[test]
    fn only_variables_with_the_prefix_are_overrides() {
        let environment = Environment::from_iter([
            ("VIWORKS_FAULT", "x"),
            ("VIWORKS__A__B", "1"),
            ("HOME", "/"),
        ]);
        assert_eq!(
            environment.overrides().collect::<Vec<_>>(),
            ["VIWORKS__A__B"]
        );
        assert_eq!(environment.get("HOME"), Some("/"));
    }

    #[test]
    fn the_process_has_an_environment() {
        assert!(environment().get("PATH").is_some());
    }
}
