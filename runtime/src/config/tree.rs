//! The parsed file, owned, with the place of every key and value.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A table of the file.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: BTreeMap<String, Entry>,
    /// Where its header or opening bracket stands.
    pub(super) span: Range<usize>,
}

/// A key with its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key_span: Range<usize>,
    pub(super) node: Node,
}

/// A value with its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) span: Range<usize>,
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

/// Takes over what the parser could make of a file, with the errors it met on the way.
pub(super) fn parse(text: &str) -> (Arc<Table>, Vec<toml::de::Error>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let span = table.span();
    (Arc::new(Table::convert(table.get_ref(), span)), errors)
}

/// Parses one value, as an environment variable holds it.
pub(super) fn parse_value(text: &str) -> Option<Node> {
    DeValue::parse(text).ok().map(|value| Node::convert(&value))
}

impl Table {
    fn convert(table: &DeTable<'_>, span: Range<usize>) -> Self {
        let entries = table
            .iter()
            .map(|(key, value)| {
                let entry = Entry {
                    key_span: key.span(),
                    node: Node::convert(value),
                };
                (key.get_ref().to_string(), entry)
            })
            .collect();
        Self { entries, span }
    }
}

impl Node {
    fn convert(value: &Spanned<DeValue<'_>>) -> Self {
        let span = value.span();
        let value = match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(number) => {
                Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
            }
            DeValue::Float(_) => Value::Float,
            DeValue::Boolean(value) => Value::Boolean(*value),
            DeValue::Datetime(_) => Value::Datetime,
            DeValue::Array(items) => Value::Array(items.iter().map(Self::convert).collect()),
            DeValue::Table(table) => Value::Table(Arc::new(Table::convert(table, span.clone()))),
        };
        Self { span, value }
    }
}
