//! One section of a configuration, read key by key.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::document::Document;
use super::environment;
use super::key::{Default, KeyReference, Kind, SectionReference};
use super::tree::{Table, Value};
use super::url;
use super::value::{self, Refusal};
use crate::problem::Place;

/// What to write where an address with a port is read and this is none.
#[must_use]
pub fn address_help(text: &str) -> &'static str {
    let Some((host, port)) = text.rsplit_once(':') else {
        return ADDRESS_HELP;
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let is_port = |byte: u8| byte.is_ascii_digit();
    if address.parse::<IpAddr>().is_ok()
        && port.bytes().all(is_port)
        && !port.is_empty()
        && port.parse::<u16>().is_err()
    {
        PORT_HELP
    } else {
        ADDRESS_HELP
    }
}

const PORT_HELP: &str = "write a port from 1 to 65535, such as 8080";

/// A name could lead elsewhere tomorrow.
const ADDRESS_HELP: &str = "write an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080; names such as localhost are not looked up";

mod paths;

/// A section, or one element of an array of tables.
///
/// Every method declares a key and gives its value. Where the configuration has none that will do, that is noted as
/// a problem, and the default or a placeholder is given, which [`Document::finish`] never lets become effective.
#[derive(Debug)]
pub struct Section<'d> {
    document: &'d mut Document,
    name: String,
    table: Option<Arc<Table>>,
    /// Whether environment variables can override its keys: not among many of the same name.
    overridable: bool,
}

/// A value that was given, and where.
struct Given {
    value: Value,
    place: Place,
}

impl<'d> Section<'d> {
    pub(super) const fn new(
        document: &'d mut Document,
        name: String,
        table: Option<Arc<Table>>,
        overridable: bool,
    ) -> Self {
        Self {
            document,
            name,
            table,
            overridable,
        }
    }

    /// A string that must be given.
    pub fn required_str(&mut self, key: &str, help: &str) -> String {
        self.required(key, &Kind::Text, help, value::string)
    }

    /// A string with a default.
    pub fn str(&mut self, key: &str, default: &str, help: &str) -> String {
        self.defaulted(key, &Kind::Text, quoted(default), help, value::string)
            .unwrap_or_else(|| default.to_owned())
    }

    /// A string that may be left out.
    pub fn optional_str(&mut self, key: &str, help: &str) -> Option<String> {
        self.optional(key, &Kind::Text, help, value::string)
    }

    /// One of a few words, each standing for a value.
    pub fn one_of<T: Copy>(
        &mut self,
        key: &str,
        default: &str,
        choices: &[(&str, T)],
        help: &str,
    ) -> T {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let kind = Kind::OneOf(words.iter().map(|word| (*word).to_owned()).collect());
        let chosen = self.defaulted(key, &kind, quoted(default), help, |key, value| {
            let text = value::string(key, value)?;
            choose(choices, &text).ok_or_else(|| {
                let meant = super::suggest::nearest(&text, words.iter().copied());
                let hint = meant
                    .map(|meant| format!("; did you mean {meant:?}?"))
                    .unwrap_or_default();
                Refusal::new(
                    format!("{key} is {text:?}"),
                    format!("it must be one of {}{hint}", words.join(", ")),
                )
            })
        });
        chosen
            .or_else(|| choose(choices, default))
            .expect("the default is one of the choices")
    }

    /// Anything that can be read from a string, with a default.
    pub fn parsed<T>(&mut self, key: &str, kind: &str, default: T, help: &str) -> T
    where
        T: FromStr<Err: Display> + Display,
    {
        let form = Kind::Form(kind.to_owned());
        let written = quoted(&default.to_string());
        self.defaulted(key, &form, written, help, parse_as(kind))
            .unwrap_or(default)
    }

    /// Anything that can be read from a string and must be given. `None` only if that was noted as a problem.
    pub fn required_parsed<T: FromStr<Err: Display>>(
        &mut self,
        key: &str,
        kind: &str,
        help: &str,
    ) -> Option<T> {
        let form = Kind::Form(kind.to_owned());
        self.optional_or(key, &form, help, true, parse_as(kind))
    }

    /// Anything that can be read from a string and may be left out.
    pub fn optional_parsed<T: FromStr<Err: Display>>(
        &mut self,
        key: &str,
        kind: &str,
        help: &str,
    ) -> Option<T> {
        let form = Kind::Form(kind.to_owned());
        self.optional(key, &form, help, parse_as(kind))
    }

    /// A URL with one of `schemes` that must be given.
    pub fn required_url(&mut self, key: &str, schemes: &[&str], help: &str) -> String {
        self.required(key, &url_kind(schemes), help, |key, value| {
            url_text(key, value, schemes)
        })
    }

    /// The same, and it may be left out.
    pub fn optional_url(&mut self, key: &str, schemes: &[&str], help: &str) -> Option<String> {
        self.optional(key, &url_kind(schemes), help, |key, value| {
            url_text(key, value, schemes)
        })
    }

    /// An integer within a range.
    pub fn integer<T>(&mut self, key: &str, default: T, range: RangeInclusive<T>, help: &str) -> T
    where
        T: Copy + PartialOrd + Display + TryFrom<i64> + TryInto<i128>,
    {
        let read = |key: &str, value: &Value| value::integer(key, value, &range);
        self.defaulted(key, &integers(&range), default.to_string(), help, read)
            .unwrap_or(default)
    }

    /// An integer within a range that may be left out.
    pub fn optional_integer<T>(
        &mut self,
        key: &str,
        range: RangeInclusive<T>,
        help: &str,
    ) -> Option<T>
    where
        T: Copy + PartialOrd + Display + TryFrom<i64> + TryInto<i128>,
    {
        self.optional(key, &integers(&range), help, |key, value| {
            value::integer(key, value, &range)
        })
    }

    /// A duration within a range, as an integer of milliseconds; the key ends with `_ms`.
    pub fn duration_ms(
        &mut self,
        key: &str,
        default: Duration,
        range: RangeInclusive<Duration>,
        help: &str,
    ) -> Duration {
        debug_assert!(key.ends_with("_ms"), "{key} must say its unit");
        let range = millis(*range.start())..=millis(*range.end());
        Duration::from_millis(self.integer(key, millis(default), range, help))
    }

    /// A switch.
    pub fn bool(&mut self, key: &str, default: bool, help: &str) -> bool {
        let written = default.to_string();
        self.defaulted(key, &Kind::Boolean, written, help, value::boolean)
            .unwrap_or(default)
    }

    /// An unsafe switch, which is on only with a value that shames, such as `"for_test_purposes_only"`.
    pub fn unsafe_switch(&mut self, key: &str, confession: &str, help: &str) -> bool {
        let kind = Kind::Confession(confession.to_owned());
        self.declare(key, kind.clone(), Default::Nothing("off"), help);
        let confessed = self.given(key, &kind).and_then(|given| {
            self.read(key, &given, |key, value| match value::string(key, value) {
                Ok(text) if text == confession => Ok(true),
                Ok(_) | Err(_) => Err(Refusal::new(
                    format!("{key} is unsafe and cannot be switched on like this"),
                    format!("remove it, or write {key} = {confession:?}"),
                )),
            })
        });
        confessed.unwrap_or(false)
    }

    /// A list of strings with a default.
    pub fn strings(&mut self, key: &str, default: &[&str], help: &str) -> Vec<String> {
        let written = format!("{default:?}");
        self.defaulted(key, &texts(None, false), written, help, value::strings)
            .unwrap_or_else(|| default.iter().map(|&text| text.to_owned()).collect())
    }

    /// A list of strings that must be given and must not be empty.
    pub fn required_strings(&mut self, key: &str, help: &str) -> Vec<String> {
        self.required(key, &texts(None, true), help, non_empty_strings)
    }

    /// A list of things that can be read from strings; it must be given and must not be empty.
    pub fn required_parsed_list<T: FromStr<Err: Display>>(
        &mut self,
        key: &str,
        kind: &str,
        help: &str,
    ) -> Vec<T> {
        self.required(key, &texts(Some(kind), true), help, |key, value| {
            let texts = non_empty_strings(key, value)?;
            texts.iter().map(|text| parse_text(key, text)).collect()
        })
    }

    /// The same, and it may be left out or be empty.
    pub fn parsed_list<T: FromStr<Err: Display>>(
        &mut self,
        key: &str,
        kind: &str,
        help: &str,
    ) -> Vec<T> {
        let read = |key: &str, value: &Value| {
            let texts = value::strings(key, value)?;
            texts.iter().map(|text| parse_text(key, text)).collect()
        };
        self.defaulted(key, &texts(Some(kind), false), "[]".to_owned(), help, read)
            .unwrap_or_default()
    }

    /// Every element of the array of tables `[[name]]` in this section, read by `read`.
    pub fn tables<T>(
        &mut self,
        name: &str,
        help: &str,
        mut read: impl FnMut(&mut Section<'_>) -> T,
    ) -> Vec<T> {
        let full = self.full(name);
        let reference = SectionReference {
            section: full.clone(),
            repeated: true,
            free: false,
            help: help.to_owned(),
        };
        self.document.declare_section(reference);
        let Some((value, place)) = self.entry(name).map(|given| (given.value, given.place)) else {
            return Vec::new();
        };
        let Value::Array(items) = value else {
            let message = format!("{name} is {} instead of a list of tables", value.kind());
            self.document.push(
                place,
                message,
                format!("write [[{full}]] before each element"),
            );
            return Vec::new();
        };
        let mut outputs = Vec::with_capacity(items.len());
        for item in items {
            if let Value::Table(table) = item.value {
                outputs.push(read(&mut Section::new(
                    self.document,
                    full.clone(),
                    Some(table),
                    false,
                )));
            } else {
                let place = self.document.line(&item.spot);
                let message = format!(
                    "an element of {name} is {} instead of a table",
                    item.value.kind()
                );
                self.document.push(
                    place,
                    message,
                    format!("write [[{full}]] before each element"),
                );
            }
        }
        outputs
    }

    /// A section inside this one; empty if the file does not have it.
    pub fn section(&mut self, name: &str, help: &str) -> Section<'_> {
        let full = self.full(name);
        let reference = SectionReference {
            section: full.clone(),
            repeated: false,
            free: false,
            help: help.to_owned(),
        };
        self.document.declare_section(reference);
        let table = self
            .table
            .clone()
            .and_then(|table| self.document.subtable(&table, name));
        Section::new(self.document, full, table, self.overridable)
    }

    /// A table of free keys with strings, such as labels or an environment.
    pub fn strings_by_key(&mut self, name: &str, help: &str) -> BTreeMap<String, String> {
        let full = self.full(name);
        self.document.declare_section(SectionReference {
            section: full,
            repeated: false,
            free: true,
            help: help.to_owned(),
        });
        let Some(table) = self
            .table
            .clone()
            .and_then(|table| self.document.subtable(&table, name))
        else {
            return BTreeMap::new();
        };
        let mut strings = BTreeMap::new();
        for (key, entry) in &table.entries {
            if let Value::String(text) = &entry.node.value {
                strings.insert(key.clone(), text.clone());
            } else {
                let place = self.document.line(&entry.node.spot);
                let message = format!("{key} is {} instead of a string", entry.node.value.kind());
                self.document
                    .push(place, message, "put it in quotes".to_owned());
            }
        }
        strings
    }

    /// What an example of the key says that is read next; for one without a default.
    pub fn like(&mut self, key: &str, example: &'static str) {
        self.document.keep_example(&self.name, key, example);
    }

    /// Notes a problem with a key that only the caller can see, such as two keys that do not fit each other.
    pub fn problem(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        let place = self.place(key);
        self.document.push(place, message.into(), help.into());
    }

    /// Where a key is given, or else where its section begins.
    #[must_use]
    pub fn place(&self, key: &str) -> Place {
        let variable = environment::variable(&self.name, key);
        if self.overridable && self.document.variable(&variable).is_some() {
            return Place::Variable(variable);
        }
        let table = self.table.as_ref();
        let entry = table.and_then(|table| table.entries.get(key));
        let spot = entry
            .map(|entry| entry.node.spot.clone())
            .or_else(|| table.map(|table| table.spot.clone()));
        self.document.line(&spot.unwrap_or_default())
    }

    /// Whether a key is given and was refused: what follows from that alone is no news.
    #[must_use]
    pub fn is_refused(&self, key: &str) -> bool {
        let is_given = self.overriding(key).is_some() || self.entry(key).is_some();
        is_given && self.document.is_noted(&self.place(key))
    }

    fn required<T: std::default::Default>(
        &mut self,
        key: &str,
        kind: &Kind,
        help: &str,
        read: impl FnOnce(&str, &Value) -> Result<T, Refusal>,
    ) -> T {
        self.optional_or(key, kind, help, true, read)
            .unwrap_or_default()
    }

    fn optional<T>(
        &mut self,
        key: &str,
        kind: &Kind,
        help: &str,
        read: impl FnOnce(&str, &Value) -> Result<T, Refusal>,
    ) -> Option<T> {
        self.optional_or(key, kind, help, false, read)
    }

    fn optional_or<T>(
        &mut self,
        key: &str,
        kind: &Kind,
        help: &str,
        required: bool,
        read: impl FnOnce(&str, &Value) -> Result<T, Refusal>,
    ) -> Option<T> {
        let default = if required {
            Default::Required
        } else {
            Default::Nothing("none")
        };
        self.declare(key, kind.clone(), default, help);
        let Some(given) = self.given(key, kind) else {
            if required && !self.noted(key, kind) && !self.document.hides_keys() {
                let place = self.place(key);
                let missing = match self.name.as_str() {
                    "" => format!("the key {key:?} is missing at the top of the file"),
                    section => format!("the key {key:?} is missing in [{section}]"),
                };
                self.document.push(place, missing, help.to_owned());
            }
            return None;
        };
        self.read(key, &given, read)
    }

    fn defaulted<T>(
        &mut self,
        key: &str,
        kind: &Kind,
        default: String,
        help: &str,
        read: impl FnOnce(&str, &Value) -> Result<T, Refusal>,
    ) -> Option<T> {
        self.declare(key, kind.clone(), Default::Value(default), help);
        let given = self.given(key, kind)?;
        self.read(key, &given, read)
    }

    fn read<T>(
        &mut self,
        key: &str,
        given: &Given,
        read: impl FnOnce(&str, &Value) -> Result<T, Refusal>,
    ) -> Option<T> {
        match read(key, &given.value) {
            Ok(value) => Some(value),
            Err(Refusal { message, help }) => {
                self.document.push(given.place.clone(), message, help);
                None
            }
        }
    }

    fn declare(&mut self, key: &str, kind: Kind, default: Default, help: &str) {
        self.document.declare(KeyReference {
            section: self.name.clone(),
            key: key.to_owned(),
            kind,
            default,
            help: help.to_owned(),
            example: None,
            variable: self
                .overridable
                .then(|| environment::variable(&self.name, key)),
        });
    }

    /// The value of a key: from the environment if it is there, else from the file.
    fn given(&mut self, key: &str, kind: &Kind) -> Option<Given> {
        if let Some((variable, text)) = self.overriding(key) {
            let place = Place::Variable(variable);
            let Some(value) = value::from_variable(&text, kind.shape()) else {
                self.document.push(
                    place,
                    format!("cannot be read as a value for {key}"),
                    "numbers, true, false and lists are written as in the file".to_owned(),
                );
                return None;
            };
            return Some(Given { value, place });
        }
        self.entry(key)
    }

    /// Whether [`Self::given`] gave nothing only because it noted a problem.
    fn noted(&self, key: &str, kind: &Kind) -> bool {
        self.overriding(key)
            .is_some_and(|(_, text)| value::from_variable(&text, kind.shape()).is_none())
    }

    fn overriding(&self, key: &str) -> Option<(String, String)> {
        if !self.overridable {
            return None;
        }
        let variable = environment::variable(&self.name, key);
        let text = self.document.variable(&variable)?;
        Some((variable, text))
    }

    fn entry(&self, key: &str) -> Option<Given> {
        let node = &self.table.as_ref()?.entries.get(key)?.node;
        Some(Given {
            value: node.value.clone(),
            place: self.document.line(&node.spot),
        })
    }

    fn full(&self, name: &str) -> String {
        if self.name.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.name)
        }
    }
}

/// Reads what is written in the form of `kind`.
fn parse_as<T: FromStr<Err: Display>>(
    kind: &str,
) -> impl FnOnce(&str, &Value) -> Result<T, Refusal> {
    let is_address = kind.ends_with("address:port");
    move |key, value| {
        let text = value::string(key, value)?;
        let read = parse_text(key, &text);
        read.map_err(|refusal: Refusal| {
            let help = if is_address { address_help(&text) } else { "" };
            Refusal::new(refusal.message, help)
        })
    }
}

fn parse_text<T: FromStr<Err: Display>>(key: &str, text: &str) -> Result<T, Refusal> {
    text.parse()
        .map_err(|error: T::Err| Refusal::new(format!("{key} is {text:?}: {error}"), ""))
}

fn non_empty_strings(key: &str, value: &Value) -> Result<Vec<String>, Refusal> {
    let strings = value::strings(key, value)?;
    if strings.is_empty() {
        return Err(Refusal::new(
            format!("{key} is an empty list"),
            "it needs at least one entry",
        ));
    }
    Ok(strings)
}

fn choose<T: Copy>(choices: &[(&str, T)], wanted: &str) -> Option<T> {
    choices
        .iter()
        .find(|(word, _)| *word == wanted)
        .map(|(_, value)| *value)
}

fn url_kind(schemes: &[&str]) -> Kind {
    Kind::Url(schemes.iter().map(|scheme| (*scheme).to_owned()).collect())
}

fn url_text(key: &str, value: &Value, schemes: &[&str]) -> Result<String, Refusal> {
    let text = value::string(key, value)?;
    url::check(&text, schemes)
        .map_err(|(message, help)| Refusal::new(format!("{key}: {message}"), help))?;
    Ok(text)
}

fn integers<T: Copy + TryInto<i128>>(range: &RangeInclusive<T>) -> Kind {
    let wide = |bound: T| bound.try_into().ok();
    Kind::Integer {
        min: wide(*range.start()).unwrap_or(i128::MIN),
        max: wide(*range.end()).unwrap_or(i128::MAX),
    }
}

fn texts(form: Option<&str>, not_empty: bool) -> Kind {
    Kind::List {
        form: form.map(str::to_owned),
        not_empty,
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
