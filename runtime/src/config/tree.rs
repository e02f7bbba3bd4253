//! The parsed files, owned and laid over each other, with the place of every key and value.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A place in one of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spot {
    /// Which of the files, counted from 0.
    pub(super) file: usize,
    /// The bytes in it.
    pub(super) span: Range<usize>,
}

/// A table of the files.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub(super) entries: BTreeMap<String, Entry>,
    /// Where its first header or opening bracket stands.
    pub(super) spot: Spot,
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key_spot: Spot,
    pub(super) node: Node,
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) spot: Spot,
    pub(super) value: Value,
}

/// A value of the file.
#[derive(Debug, Clone)]
pub(super) enum Value {
    String(String),
    /// `None` when it does not fit 64 bits.
    Integer(Option<i64>),
    Float,
    Boolean(bool),
    Datetime,
    Array(Vec<Node>),
    Table(Arc<Table>),
}

impl Value {
    /// What it is called in a message.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float => "a floating-point number",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// As it could stand in the file; a number that was refused and what no key takes are told by their kind.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) => write!(f, "{text:?}"),
            Self::Integer(Some(number)) => write!(f, "{number}"),
            Self::Boolean(value) => write!(f, "{value}"),
            Self::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| item.value.to_string()).collect();
                write!(f, "[{}]", items.join(", "))
            }
            Self::Table(table) => write!(f, "{{ {table} }}"),
            Self::Integer(None) | Self::Float | Self::Datetime => f.write_str(self.kind()),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.iter();
        let entries: Vec<String> = entries
            .map(|(key, entry)| format!("{key} = {}", entry.node.value))
            .collect();
        f.write_str(&entries.join(", "))
    }
}

/// Takes over what the parser could make of the file with this number, with the errors it met on the way.
pub(super) fn parse(text: &str, file: usize) -> (Arc<Table>, Vec<toml::de::Error>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let spot = Spot {
        file,
        span: table.span(),
    };
    (Arc::new(Table::convert(table.get_ref(), spot)), errors)
}

/// Parses one value, as an environment variable holds it.
pub(super) fn parse_value(text: &str) -> Option<Node> {
    DeValue::parse(text)
        .ok()
        .map(|value| Node::convert(&value, 0))
}

/// Lays a later table over an earlier one: tables are merged key by key, and anything else, a list too, takes the
/// place of what was there.
pub(super) fn overlay(earlier: &mut Arc<Table>, later: &Table) {
    let earlier = Arc::make_mut(earlier);
    for (key, entry) in &later.entries {
        match (earlier.entries.get_mut(key), &entry.node.value) {
            (Some(known), Value::Table(above)) => {
                if let Value::Table(below) = &mut known.node.value {
                    overlay(below, above);
                } else {
                    *known = entry.clone();
                }
            }
            (Some(known), _replaces) => *known = entry.clone(),
            (None, _new) => {
                earlier.entries.insert(key.clone(), entry.clone());
            }
        }
    }
}

impl Table {
    fn convert(table: &DeTable<'_>, spot: Spot) -> Self {
        let file = spot.file;
        let entries = table
            .iter()
            .map(|(key, value)| {
                let entry = Entry {
                    key_spot: Spot {
                        file,
                        span: key.span(),
                    },
                    node: Node::convert(value, file),
                };
                (key.get_ref().to_string(), entry)
            })
            .collect();
        Self { entries, spot }
    }
}

impl Node {
    fn convert(value: &Spanned<DeValue<'_>>, file: usize) -> Self {
        let spot = Spot {
            file,
            span: value.span(),
        };
        let value = match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(number) => {
                Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
            }
            DeValue::Float(_) => Value::Float,
            DeValue::Boolean(value) => Value::Boolean(*value),
            DeValue::Datetime(_) => Value::Datetime,
            DeValue::Array(items) => {
                let items = items.iter().map(|item| Self::convert(item, file));
                Value::Array(items.collect())
            }
            DeValue::Table(table) => Value::Table(Arc::new(Table::convert(table, spot.clone()))),
        };
        Self { spot, value }
    }
}
