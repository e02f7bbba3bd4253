//! What docker-compose.yml says, with its anchors merged and its variables as they are unless somebody sets them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use viworks_testkit::binaries::workspace;

/// The file.
pub(crate) struct Compose {
    pub(crate) services: BTreeMap<String, Service>,
    pub(crate) secrets: BTreeMap<String, Value>,
    pub(crate) volumes: BTreeSet<String>,
}

/// A service.
pub(crate) struct Service(Value);

/// What is mounted where.
pub(crate) struct Mount {
    pub(crate) source: String,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

impl Compose {
    /// With every variable at its default.
    pub(crate) fn read() -> Self {
        Self::with(&BTreeMap::new())
    }

    /// The whole of it, with these variables.
    pub(crate) fn document(variables: &BTreeMap<&str, String>) -> Value {
        let text = std::fs::read_to_string(workspace().join("docker-compose.yml")).unwrap();
        serde_saphyr::from_str(&interpolated(&text, variables)).unwrap()
    }

    /// With these variables.
    pub(crate) fn with(variables: &BTreeMap<&str, String>) -> Self {
        let mut document = Self::document(variables);
        let map = |value: Value| {
            let Value::Object(map) = value else {
                panic!("no table: {value}");
            };
            map.into_iter()
        };
        let mut part = |name: &str| map(document[name].take());
        Self {
            services: part("services")
                .map(|(name, it)| (name, Service(it)))
                .collect(),
            secrets: part("secrets").collect(),
            volumes: part("volumes").map(|(name, _nothing)| name).collect(),
        }
    }
}

/// `${NAME:-default}` by its value, `$$` by `$`. Nothing else of a shell's is in the file.
fn interpolated(text: &str, variables: &BTreeMap<&str, String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            result.push('$');
            rest = after;
            continue;
        }
        let (named, after) = after.strip_prefix('{').unwrap().split_once('}').unwrap();
        let (name, default) = named.split_once(":-").unwrap();
        result.push_str(variables.get(name).map_or(default, String::as_str));
        rest = after;
    }
    result + rest
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

impl Service {
    pub(crate) fn value(&self, key: &str) -> &Value {
        &self.0[key]
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        !self.0[key].is_null()
    }

    pub(crate) fn text(&self, key: &str) -> String {
        self.0[key].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn strings(&self, key: &str) -> Vec<String> {
        strings(&self.0[key])
    }

    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        let variables = self.0["environment"].as_object().into_iter().flatten();
        variables
            .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()))
            .collect()
    }

    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let mount = |text: &String| {
            let mut parts = text.split(':');
            Mount {
                source: parts.next().unwrap().to_owned(),
                target: parts.next().unwrap().to_owned(),
                read_only: parts.next() == Some("ro"),
            }
        };
        self.strings("volumes").iter().map(mount).collect()
    }

    pub(crate) fn depends_on(&self) -> Vec<String> {
        let others = self.0["depends_on"].as_object().into_iter().flatten();
        others.map(|(name, _condition)| name.clone()).collect()
    }

    /// How it is asked whether it is well.
    pub(crate) fn healthcheck(&self) -> Vec<String> {
        let words = strings(&self.0["healthcheck"]["test"]);
        match words[0].as_str() {
            "CMD" => words[1..].to_vec(),
            "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), words[1].clone()],
            other => panic!("{other}"),
        }
    }
}
