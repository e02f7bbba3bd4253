//! The JSON Schema of a configuration, for editors and checks elsewhere; written from what its reader declares.

use serde_json::{Map, Value, json};

use super::document::Document;
use super::key::{Default, KeyReference, Kind, SectionReference};
use super::tree;

/// The form of JSON Schema that is spoken.
const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";

impl Document {
    /// The schema of everything that was declared so far: of the one file where there is no other, or of what several
    /// come to. `whose` configuration it is.
    pub(super) fn schema(&self, whose: &str) -> Value {
        let mut root = self.object("");
        root.insert("$schema".to_owned(), json!(DIALECT));
        root.insert(
            "title".to_owned(),
            json!(format!("Configuration of {whose}")),
        );
        Value::Object(root)
    }

    /// A section with its keys and the sections in it.
    fn object(&self, section: &str) -> Map<String, Value> {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for key in self.keys.iter().filter(|key| key.section == section) {
            properties.insert(key.key.clone(), property(key));
            if key.default == Default::Required {
                required.push(key.key.clone());
            }
        }
        for below in &self.sections {
            let Some(name) = name_in(section, &below.section) else {
                continue;
            };
            let object = self.object(&below.section);
            if !below.repeated && object.contains_key("required") {
                required.push(name.to_owned());
            }
            properties.insert(name.to_owned(), table(below, object));
        }
        let mut object = Map::new();
        object.insert("type".to_owned(), json!("object"));
        object.insert("additionalProperties".to_owned(), json!(false));
        object.insert("properties".to_owned(), Value::Object(properties));
        if !required.is_empty() {
            object.insert("required".to_owned(), json!(required));
        }
        object
    }
}

/// What a section is called in the one above it; `None` where it is in another.
fn name_in<'a>(above: &str, section: &'a str) -> Option<&'a str> {
    let name = match above {
        "" => section,
        above => section.strip_prefix(above)?.strip_prefix('.')?,
    };
    (!name.is_empty() && !name.contains('.')).then_some(name)
}

fn table(section: &SectionReference, mut object: Map<String, Value>) -> Value {
    if section.free {
        object.remove("properties");
        object.insert(
            "additionalProperties".to_owned(),
            json!({ "type": "string" }),
        );
    }
    if section.repeated {
        return json!({ "description": section.help, "type": "array", "items": object });
    }
    object.insert("description".to_owned(), json!(section.help));
    Value::Object(object)
}

fn property(key: &KeyReference) -> Value {
    let mut property = match &key.kind {
        Kind::Text | Kind::Path | Kind::File | Kind::Form(_) => text(),
        Kind::OneOf(words) => json!({ "enum": words }),
        Kind::Confession(word) => json!({ "const": word }),
        Kind::Integer { min, max } => {
            json!({ "type": "integer", "minimum": number(*min), "maximum": number(*max) })
        }
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Url(schemes) => {
            json!({ "type": "string", "pattern": format!("^(?:{})://", schemes.join("|")) })
        }
        Kind::List { not_empty, .. } => {
            json!({ "type": "array", "items": text(), "minItems": usize::from(*not_empty) })
        }
    };
    if let Value::Object(property) = &mut property {
        property.insert(
            "description".to_owned(),
            json!(format!("{} ({})", key.help, key.kind)),
        );
        if let Default::Value(value) = &key.default
            && let Some(node) = tree::parse_value(value)
        {
            property.insert("default".to_owned(), value_of(&node.value));
        }
    }
    property
}

/// No text may be empty.
fn text() -> Value {
    json!({ "type": "string", "minLength": 1 })
}

/// A bound that a file can express; beyond, there is none to speak of.
fn number(bound: i128) -> i64 {
    i64::try_from(bound).unwrap_or(if bound < 0 { i64::MIN } else { i64::MAX })
}

/// A value as JSON; one that no key takes is null.
pub(super) fn value_of(value: &tree::Value) -> Value {
    match value {
        tree::Value::String(text) => json!(text),
        tree::Value::Integer(number) => json!(number),
        tree::Value::Boolean(value) => json!(value),
        tree::Value::Array(items) => items.iter().map(|item| value_of(&item.value)).collect(),
        tree::Value::Float | tree::Value::Datetime | tree::Value::Table(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn the_schema_says_what_the_reader_takes() {
        let mut document = Document::parse("a.toml".as_ref(), "", &Environment::default());
        let mut api = document.section("api", "The listener.");
        let _port = api.integer("port", 80_u16, 1..=u16::MAX, "Its port.");
        let _words = api.strings("words", &["a"], "Its words.");
        let _url = api.required_url("url", &["wss", "https"], "Where.");
        let _mode = api.one_of("mode", "x", &[("x", 1), ("y", 2)], "How.");
        let _risk = api.unsafe_switch("risk", "for_demo_only", "Never.");
        let _labels = api.strings_by_key("labels", "Free words.");
        let _tables = document.tables("list", "Many.", |one| one.required_str("name", "Its name."));
        assert_eq!(
            document.schema("the test"),
            json!({
                "$schema": DIALECT,
                "title": "Configuration of the test",
                "type": "object",
                "additionalProperties": false,
                "required": ["api"],
                "properties": {
                    "api": {
                        "description": "The listener.",
                        "type": "object",
                        "additionalProperties": false,
                        "required": ["url"],
                        "properties": {
                            "port": {
                                "description": "Its port. (integer, 1 to 65535)",
                                "type": "integer", "minimum": 1, "maximum": 65535, "default": 80,
                            },
                            "words": {
                                "description": "Its words. (list of strings)",
                                "type": "array", "minItems": 0, "default": ["a"],
                                "items": { "type": "string", "minLength": 1 },
                            },
                            "url": {
                                "description": "Where. (URL (wss, https))",
                                "type": "string", "pattern": "^(?:wss|https)://",
                            },
                            "mode": { "description": "How. (one of x, y)", "enum": ["x", "y"], "default": "x" },
                            "risk": {
                                "description": "Never. (the string \"for_demo_only\")",
                                "const": "for_demo_only",
                            },
                            "labels": {
                                "description": "Free words.",
                                "type": "object",
                                "additionalProperties": { "type": "string" },
                            },
                        },
                    },
                    "list": {
                        "description": "Many.",
                        "type": "array",
                        "items": { "type": "object", "additionalProperties": false, "properties": {} },
                    },
                },
            })
        );
    }
}
