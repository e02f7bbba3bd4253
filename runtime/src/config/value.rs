//! From a value of the file or the environment to a value of the program.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::tree::{Node, Spot, Value};

/// Why a value will not do: the message, and the help.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) help: String,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: help.into(),
        }
    }

    fn wrong_type(name: &str, found: &Value, wanted: &str, example: &str) -> Self {
        Self::new(
            format!("{name} is {} instead of {wanted}", found.kind()),
            format!("for example: {name} = {example}"),
        )
    }
}

/// What a value of an environment variable is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// The text as it is.
    Text,
    /// A TOML value.
    Toml,
    /// A TOML list, or words between commas.
    List,
}

/// Reads the text of an environment variable as if it stood in the file.
pub(super) fn from_variable(text: &str, shape: Shape) -> Option<Value> {
    match shape {
        Shape::Text => Some(Value::String(text.to_owned())),
        Shape::Toml => super::tree::parse_value(text.trim()).map(|node| node.value),
        Shape::List if text.trim_start().starts_with('[') => {
            super::tree::parse_value(text.trim()).map(|node| node.value)
        }
        Shape::List => {
            let words = text
                .split(',')
                .map(str::trim)
                .filter(|word| !word.is_empty());
            let nodes = words.map(|word| Node {
                spot: Spot::default(),
                value: Value::String(word.to_owned()),
            });
            Some(Value::Array(nodes.collect()))
        }
    }
}

pub(super) fn string(name: &str, value: &Value) -> Result<String, Refusal> {
    let Value::String(text) = value else {
        return Err(Refusal::wrong_type(name, value, "a string", "\"text\""));
    };
    if text.is_empty() {
        return Err(Refusal::new(
            format!("{name} is empty"),
            "give it a value or remove the line",
        ));
    }
    Ok(text.clone())
}

pub(super) fn boolean(name: &str, value: &Value) -> Result<bool, Refusal> {
    if let Value::Boolean(value) = value {
        return Ok(*value);
    }
    Err(Refusal::wrong_type(name, value, "a boolean", "true"))
}

pub(super) fn integer<T>(name: &str, value: &Value, range: &RangeInclusive<T>) -> Result<T, Refusal>
where
    T: Copy + PartialOrd + Display + TryFrom<i64>,
{
    let Value::Integer(number) = value else {
        return Err(Refusal::wrong_type(
            name,
            value,
            "an integer",
            &range.start().to_string(),
        ));
    };
    number
        .and_then(|number| T::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            let found = number.map_or_else(|| "too large".to_owned(), |number| number.to_string());
            let (start, end) = (range.start(), range.end());
            Refusal::new(
                format!("{name} is {found}"),
                format!("it must be from {start} to {end}"),
            )
        })
}

pub(super) fn strings(name: &str, value: &Value) -> Result<Vec<String>, Refusal> {
    let Value::Array(items) = value else {
        return Err(Refusal::wrong_type(
            name,
            value,
            "a list of strings",
            "[\"text\"]",
        ));
    };
    items
        .iter()
        .map(|item| string(&format!("an entry of {name}"), &item.value))
        .collect()
}
