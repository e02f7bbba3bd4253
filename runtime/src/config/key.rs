//! What is declared of a key and of a section: all that the reference, the schema and the example are written from.

use std::fmt;

use super::value::Shape;

/// What a value may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Any text that is not empty.
    Text,
    /// A text of a form that has this name, such as `address:port`.
    Form(String),
    /// One of these words.
    OneOf(Vec<String>),
    /// This text and no other: what switches something unsafe on.
    Confession(String),
    /// A whole number within bounds, which are part of it.
    Integer {
        /// The smallest.
        min: i128,
        /// The largest.
        max: i128,
    },
    /// `true` or `false`.
    Boolean,
    /// A URL with one of these schemes.
    Url(Vec<String>),
    /// A path.
    Path,
    /// The path of a file that is read, or a credential of the service manager.
    File,
    /// Texts; each of the form with this name, where there is one.
    List {
        /// What each entry is called.
        form: Option<String>,
        /// Whether there has to be one.
        not_empty: bool,
    },
}

impl Kind {
    pub(super) const fn shape(&self) -> Shape {
        match self {
            Self::Integer { .. } | Self::Boolean => Shape::Toml,
            Self::List { .. } => Shape::List,
            Self::Text
            | Self::Form(_)
            | Self::OneOf(_)
            | Self::Confession(_)
            | Self::Url(_)
            | Self::Path
            | Self::File => Shape::Text,
        }
    }

    /// A text as a value of this kind is written in the file.
    pub(super) fn written(&self, text: &str) -> String {
        match self.shape() {
            Shape::Text => format!("{text:?}"),
            Shape::Toml => text.to_owned(),
            Shape::List => format!("[{text:?}]"),
        }
    }
}

/// As the reference says it.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("string"),
            Self::Form(name) => f.write_str(name),
            Self::OneOf(words) => write!(f, "one of {}", words.join(", ")),
            Self::Confession(text) => write!(f, "the string {text:?}"),
            Self::Integer { min, max } => write!(f, "integer, {min} to {max}"),
            Self::Boolean => f.write_str("boolean"),
            Self::Url(schemes) => write!(f, "URL ({})", schemes.join(", ")),
            Self::Path => f.write_str("path"),
            Self::File => f.write_str("path of a file"),
            Self::List { form, not_empty } => {
                let form = form.as_deref().unwrap_or("strings");
                let bound = if *not_empty { ", not empty" } else { "" };
                write!(f, "list of {form}{bound}")
            }
        }
    }
}

/// What holds when a key is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Default {
    /// It must not be.
    Required,
    /// Nothing, and this word says so.
    Nothing(&'static str),
    /// A value, as it is written in the file.
    Value(String),
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference {
    /// The section it stands in, dotted; empty at the top of the file.
    pub section: String,
    /// Its name.
    pub key: String,
    /// What its value may be.
    pub kind: Kind,
    /// What holds when it is left out.
    pub default: Default,
    /// What it is for.
    pub help: String,
    /// What an example of it says, as text; for a key without a default.
    pub example: Option<&'static str>,
    /// The environment variable that overrides it; `None` inside arrays of tables.
    pub variable: Option<String>,
}

impl KeyReference {
    /// As problems and people name it.
    #[must_use]
    pub fn name(&self) -> String {
        match self.section.as_str() {
            "" => self.key.clone(),
            section => format!("[{section}] {}", self.key),
        }
    }
}

/// A section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionReference {
    /// Its dotted name.
    pub section: String,
    /// Whether it may occur many times, as `[[section]]`.
    pub repeated: bool,
    /// Whether its keys are free, each with a string.
    pub free: bool,
    /// What it is for.
    pub help: String,
}
