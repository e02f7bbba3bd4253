//! What each key came to, and where that came from.

use std::fmt;

use serde_json::{Map, Value, json};

use super::credential;
use super::document::Document;
use super::key::{Default, KeyReference, Kind};
use super::schema;
use super::tree;
use super::value;
use super::values::Values;
use crate::problem::{Place, Problem};

/// Where the origins of short values begin.
const COLUMN: usize = 48;

/// What a secret in a URL is shown as.
const REDACTED: &str = "REDACTED";

/// Every key with the value that is in force and where it came from. Secrets have files of their own, of which only the
/// names are in here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Explained {
    sections: Vec<(String, Vec<Line>)>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    key: String,
    /// As it could stand in the file, without secrets.
    value: Option<String>,
    origin: Origin,
    /// The value is the name of a credential.
    is_credential: bool,
    /// Somebody chose the key, which has to stand in quotes.
    is_free: bool,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Given(Place),
    Default,
    LeftOut,
    Missing,
}

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

    /// Every key declared so far with the value that is in force and where it came from.
    #[must_use]
    pub fn explain(&self) -> Explained {
        let sections = self.sections.iter().filter(|section| !section.repeated);
        let sections = sections.map(|section| {
            let keys = self.keys.iter();
            let keys = keys.filter(|key| key.section == section.section);
            let mut lines: Vec<Line> = keys.map(|key| self.explain_key(key)).collect();
            let free = self.table(&section.section).filter(|_| section.free);
            let free = free.iter().flat_map(|table| &table.entries);
            lines.extend(free.map(|(key, entry)| Line {
                key: key.clone(),
                value: Some(entry.node.value.to_string()),
                origin: Origin::Given(self.line(&entry.node.spot)),
                is_credential: false,
                is_free: true,
            }));
            (section.section.clone(), lines)
        });
        Explained {
            sections: sections.collect(),
        }
    }

    fn explain_key(&self, key: &KeyReference) -> Line {
        let (value, origin) = match (self.given(key), &key.default) {
            (Some((value, place)), _) => (Some(redacted(&value)), Origin::Given(place)),
            (None, Default::Value(value)) => (Some(value.clone()), Origin::Default),
            (None, Default::Required) => (None, Origin::Missing),
            (None, Default::Nothing(_)) => (None, Origin::LeftOut),
        };
        let names = |value: &String| value.trim_matches('"').starts_with(credential::PREFIX);
        Line {
            key: key.key.clone(),
            is_credential: key.kind == Kind::File && value.as_ref().is_some_and(names),
            value,
            origin,
            is_free: false,
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

impl Explained {
    /// For programs: the keys, each with `section`, `key`, `value` (null where there is none), `origin` (`file`,
    /// `environment`, `default`, `left_out` or `missing`) and, where it was given, `file` with `line` or `variable`;
    /// and what is wrong with the whole.
    #[must_use]
    pub fn json<'p>(&self, problems: impl IntoIterator<Item = &'p Problem>) -> Value {
        let sections = self.sections.iter();
        let keys: Vec<Value> = sections
            .flat_map(|(section, lines)| lines.iter().map(|line| line.json(section)))
            .collect();
        let problems = problems.into_iter().map(Problem::json);
        json!({ "keys": keys, "problems": problems.collect::<Vec<_>>() })
    }
}

/// As a file that would say the same.
impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (section, lines)) in self.sections.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            writeln!(f, "[{section}]")?;
            for line in lines {
                writeln!(f, "{line}")?;
            }
        }
        Ok(())
    }
}

impl Line {
    fn json(&self, section: &str) -> Value {
        let value = self.value.as_ref().map(|text| {
            let read = tree::parse_value(text);
            read.map_or_else(|| json!(text), |node| schema::value_of(&node.value))
        });
        let origin = match &self.origin {
            Origin::Given(Place::Variable(_)) => "environment",
            Origin::Given(Place::Line { .. } | Place::File(_)) => "file",
            Origin::Default => "default",
            Origin::LeftOut => "left_out",
            Origin::Missing => "missing",
        };
        let mut object = Map::new();
        object.insert("section".to_owned(), json!(section));
        object.insert("key".to_owned(), json!(self.key));
        object.insert("value".to_owned(), json!(value));
        object.insert("origin".to_owned(), json!(origin));
        if let Origin::Given(place) = &self.origin {
            place.put(&mut object);
        }
        Value::Object(object)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = if self.is_free {
            format!("{:?}", self.key)
        } else {
            self.key.clone()
        };
        let given = match &self.value {
            Some(value) => format!("{key} = {value}"),
            None => format!("# {key}"),
        };
        let mut origin = match &self.origin {
            Origin::Given(Place::Line { path, line, .. }) => format!("{}:{line}", path.display()),
            Origin::Given(place @ (Place::File(_) | Place::Variable(_))) => place.to_string(),
            Origin::Default => "default".to_owned(),
            Origin::LeftOut => "left out".to_owned(),
            Origin::Missing => "missing, and it has to be given".to_owned(),
        };
        if self.is_credential {
            origin.push_str("; the secret is a credential of the service manager");
        }
        write!(f, "{given:COLUMN$} # {origin}")
    }
}

/// A password in a URL is refused; and what is refused is shown here as well, but for the password.
fn redacted(value: &str) -> String {
    let (mut shown, mut rest) = (String::new(), value);
    while let Some(at) = rest.find(SCHEME_END) {
        let (before, url) = rest.split_at(at + SCHEME_END.len());
        let (url, after) = url.split_at(url.find('"').unwrap_or(url.len()));
        shown.push_str(before);
        shown.push_str(&without_secrets(url));
        rest = after;
    }
    shown + rest
}

const SCHEME_END: &str = "://";

/// What follows the scheme. Passwords may have any signs in them where somebody forgot to escape those, and so what
/// may be one ends at the last `@`; a parameter may be one under whatever name.
fn without_secrets(url: &str) -> String {
    let hidden = url.rsplit_once('@').and_then(|(_, host)| {
        let (who, _) = url.split_once('@')?;
        let (user, _password) = who.split_once(':')?;
        Some(format!("{user}:{REDACTED}@{host}"))
    });
    let url = hidden.unwrap_or_else(|| url.to_owned());
    let Some((place, query)) = url.split_once('?') else {
        return url;
    };
    let parameters = query.split('&').map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if value.is_empty() || name == "sslmode" {
            parameter.to_owned()
        } else {
            format!("{name}={REDACTED}")
        }
    });
    format!("{place}?{}", parameters.collect::<Vec<_>>().join("&"))
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

    fn read(files: &[(&str, &str)], variables: &[(&str, &str)]) -> (String, Explained) {
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
        let explained = explained.to_string();
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
    fn programs_are_told_the_same_with_values_of_their_types() {
        let (_read, explained) = read(CASE, &[("VIWORKS__API__PORT", "0x51")]);
        let problem = Problem::of_file(Path::new("etc/agent.toml"), "it is wrong", "mend it");
        let told = explained.json([&problem]);
        let file = "etc/conf.d/10-site.toml";
        let late = "etc/conf.d/20-late.toml";
        let given = |key: &str, value: Value, file: &str, line: usize| json!({ "section": "api", "key": key, "value": value, "origin": "file", "file": file, "line": line });
        assert_eq!(
            told,
            json!({
                "keys": [
                    given("name", json!("second"), file, 2),
                    { "section": "api", "key": "port", "value": 81, "origin": "environment",
                      "variable": "VIWORKS__API__PORT" },
                    given("words", json!(["c"]), file, 3),
                    given("url", json!("postgres://vw:REDACTED@db/x"), late, 2),
                    { "section": "api", "key": "other", "value": null, "origin": "left_out" },
                    { "section": "api", "key": "needed", "value": null, "origin": "missing" },
                    { "section": "api.labels", "key": "rack", "value": "1", "origin": "file",
                      "file": "etc/agent.toml", "line": 7 },
                    { "section": "api.labels", "key": "site", "value": "y", "origin": "file", "file": file, "line": 5 },
                ],
                "problems": [{ "file": "etc/agent.toml", "message": "it is wrong", "help": "mend it" }],
            })
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
            // Nobody can tell that this is none.
            ("\"wss://h:REDACTED@c\"", "\"wss://h:1/a:b@c\""),
            ("\"redis://:REDACTED@h\"", "\"redis://:x@h\""),
            ("\"redis://vw@h\"", "\"redis://vw@h\""),
            (
                "\"postgres://vw@h/x?sslmode=verify-full&password=REDACTED\"",
                "\"postgres://vw@h/x?sslmode=verify-full&password=hunter2\"",
            ),
            (
                "\"postgres://vw@h:1/x?passwd=REDACTED\"",
                "\"postgres://vw@h:1/x?passwd=hun@ter2\"",
            ),
            (
                "\"postgres://vw:REDACTED@h/x\"",
                "\"postgres://vw:hu@n/t?e#r=2@h/x\"",
            ),
            (
                "[\"redis://:REDACTED@a\", \"redis://:REDACTED@b\"]",
                "[\"redis://:x@a\", \"redis://:y@b\"]",
            ),
        ] {
            assert_eq!(redacted(value), shown);
        }
    }
}
