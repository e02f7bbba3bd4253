//! What each key came to, and where that came from.

use super::credential;
use super::document::Document;
use super::key::{Default, KeyReference, Kind};
use super::value;
use super::values::Values;
use crate::problem::Place;

/// Where the origins of short values begin.
const COLUMN: usize = 48;

/// What a secret in a URL is shown as.
const REDACTED: &str = "REDACTED";

impl Document {
    /// What the keys declared so far came to; those inside arrays of tables, which have no names of their own, are left
    /// out.
    #[must_use]
    pub fn values(&self) -> Values {
        let mut values = Values::default();
        for key in self.keys.iter().filter(|key| key.variable.is_some()) {
            let value = match (self.given(key), &key.default) {
                (Some((text, _place)), _) => text,
                (None, Default::Value(value)) => value.clone(),
                (None, Default::Required) => String::new(),
                (None, Default::Nothing(word)) => (*word).to_owned(),
            };
            values.insert(key.name(), value);
        }
        for section in self.sections.iter().filter(|section| section.free) {
            let name = &section.section;
            let given = self.table(name).map(ToString::to_string);
            values.insert(format!("[{name}]"), given.unwrap_or_default());
        }
        values
    }

    /// Every key declared so far with the value that is in force and where it came from, as a file that would say the
    /// same. Secrets have files of their own, of which only the names are shown.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut lines = Vec::new();
        let sections = self.sections.iter().filter(|section| !section.repeated);
        for section in sections {
            if !lines.is_empty() {
                lines.push(String::new());
            }
            lines.push(format!("[{}]", section.section));
            let keys = self.keys.iter();
            let keys = keys.filter(|key| key.section == section.section);
            lines.extend(keys.map(|key| self.explain_key(key)));
            let free = self.table(&section.section).filter(|_| section.free);
            for (key, entry) in free.iter().flat_map(|table| &table.entries) {
                let value = format!("{key:?} = {}", entry.node.value);
                lines.push(beside(&value, &origin(&self.line(&entry.node.spot))));
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    fn explain_key(&self, key: &KeyReference) -> String {
        let name = &key.key;
        match (self.given(key), &key.default) {
            (Some((value, place)), _) => {
                let mut from = origin(&place);
                if key.kind == Kind::File && value.trim_matches('"').starts_with(credential::PREFIX)
                {
                    from.push_str("; the secret is a credential of the service manager");
                }
                beside(&format!("{name} = {}", redacted(&value)), &from)
            }
            (None, Default::Value(value)) => beside(&format!("{name} = {value}"), "default"),
            (None, Default::Required) => {
                beside(&format!("# {name}"), "missing, and it has to be given")
            }
            (None, Default::Nothing(_)) => beside(&format!("# {name}"), "left out"),
        }
    }

    /// The value of a key as it could stand in the file, and where it is given.
    fn given(&self, key: &KeyReference) -> Option<(String, Place)> {
        if let Some(variable) = &key.variable
            && let Some(text) = self.variable(variable)
        {
            let value = value::from_variable(&text, key.kind.shape());
            let value = value.map_or(text, |value| value.to_string());
            return Some((value, Place::Variable(variable.clone())));
        }
        let node = &self.table(&key.section)?.entries.get(&key.key)?.node;
        Some((node.value.to_string(), self.line(&node.spot)))
    }
}

fn origin(place: &Place) -> String {
    match place {
        Place::Line { path, line, .. } => format!("{}:{line}", path.display()),
        Place::File(_) | Place::Variable(_) => place.to_string(),
    }
}

fn beside(value: &str, origin: &str) -> String {
    format!("{value:COLUMN$} # {origin}")
}

/// A password in a URL is refused; and what is refused is shown here as well.
fn redacted(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return value.to_owned();
    };
    let end = rest.find(['/', '?', '#', '"']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority
        .rsplit_once('@')
        .map(|(user, hosts)| (user.split_once(':'), hosts))
    {
        Some((Some((user, _password)), hosts)) => {
            format!("{scheme}://{user}:{REDACTED}@{hosts}{path}")
        }
        Some((None, _)) | None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Environment;

    const CASE: &[(&str, &str)] = &[
        (
            "etc/agent.toml",
            "[api]\nname = \"first\"\nport = 80\nwords = [\"a\", \"b\"]\n[api.labels]\nsite = \"x\"\nrack = \"1\"\n",
        ),
        (
            "etc/conf.d/10-site.toml",
            "[api]\nname = \"second\"\nwords = [\"c\"]\n[api.labels]\nsite = \"y\"\n",
        ),
        (
            "etc/conf.d/20-late.toml",
            "[api]\nurl = \"postgres://vw:hunter2@db/x\"\n",
        ),
    ];

    fn read(files: &[(&str, &str)], variables: &[(&str, &str)]) -> (String, String) {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (Path::new(*path), *text))
            .collect();
        let environment: Environment = variables.iter().copied().collect();
        let mut document = Document::parse_all(&files, &environment);
        let mut api = document.section("api", "The listener.");
        let name = api.str("name", "nobody", "Its name.");
        let port = api.integer("port", 8080_u16, 1..=u16::MAX, "Its port.");
        let words = api.strings("words", &[], "Its words.");
        let _url = api.str("url", "none", "Where it is.");
        let _other = api.optional_str("other", "What may be left out.");
        let _needed = api.required_str("needed", "What may not.");
        let labels = api.strings_by_key("labels", "Free words.");
        let read = format!("{name} {port} {words:?} {labels:?}");
        (read, document.explain())
    }

    #[test]
    fn a_later_file_counts_more_and_tables_are_merged_while_lists_are_replaced() {
        let (read, explained) = read(CASE, &[("VIWORKS__API__PORT", "0x51")]);
        assert_eq!(read, r#"second 81 ["c"] {"rack": "1", "site": "y"}"#);
        let lines: Vec<String> = explained
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "[api]",
                "name = \"second\" # etc/conf.d/10-site.toml:2",
                "port = 81 # environment variable VIWORKS__API__PORT",
                "words = [\"c\"] # etc/conf.d/10-site.toml:3",
                "url = \"postgres://vw:REDACTED@db/x\" # etc/conf.d/20-late.toml:2",
                "# other # left out",
                "# needed # missing, and it has to be given",
                "",
                "[api.labels]",
                "\"rack\" = \"1\" # etc/agent.toml:7",
                "\"site\" = \"y\" # etc/conf.d/10-site.toml:5",
            ]
        );
    }

    #[test]
    fn what_is_wrong_in_a_later_file_is_named_there() {
        let files = [
            ("agent.toml", "[api]\nport = 80\n"),
            ("conf.d/a.toml", "[api]\nport = \"x\"\nprot = 1\n"),
            ("conf.d/b.toml", "[api\n"),
        ];
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| (Path::new(*path), *text))
            .collect();
        let mut document = Document::parse_all(&files, &Environment::default());
        let mut api = document.section("api", "The listener.");
        let _port = api.integer("port", 8080_u16, 1..=u16::MAX, "Its port.");
        let problems = document.finish().unwrap_err();
        let places: Vec<String> = problems
            .iter()
            .map(|problem| problem.place.to_string())
            .collect();
        assert_eq!(
            places,
            [
                "conf.d/a.toml:2:8",
                "conf.d/a.toml:3:1",
                "conf.d/b.toml:1:5"
            ]
        );
    }

    #[test]
    fn only_a_password_is_hidden() {
        for (shown, value) in [
            ("\"a:b@c\"", "\"a:b@c\""),
            ("\"wss://h:1/a:b@c\"", "\"wss://h:1/a:b@c\""),
            ("\"redis://:REDACTED@h\"", "\"redis://:x@h\""),
            ("\"redis://vw@h\"", "\"redis://vw@h\""),
        ] {
            assert_eq!(redacted(value), shown);
        }
    }
}
