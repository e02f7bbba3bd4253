//! Checks the arguments of a command against their declarations, and the declarations against themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use regex::{Regex, RegexBuilder};
use regex_syntax::ast::parse::ParserBuilder;
use serde::Serialize;

use super::{Argument, ArgumentType, CatalogueEntry};
use crate::command::Arguments;
use crate::id::ArgumentName;
use crate::{human, limits, text};

/// Bytes of a pattern; longer ones are no longer reviewed by anybody.
const PATTERN_BYTES_MAX: usize = 256;
/// Bytes a compiled pattern may take, so that `(a{1000}){1000}` is refused instead of compiled.
const PATTERN_SIZE_MAX: usize = 256 * 1024;
/// How deep a pattern may be nested.
const PATTERN_NEST_MAX: u32 = 32;
/// Values one choice may list.
const CHOICES_MAX: usize = 64;
/// Bytes of a title and of a description.
pub(super) const TEXT_BYTES_MAX: usize = 200;
/// The shortest time limit.
pub(super) const TIMEOUT_MS_MIN: u64 = 100;
/// The longest time limit: a day.
pub(super) const TIMEOUT_MS_MAX: u64 = 24 * 3_600 * 1_000;

/// What is wrong with one argument, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ArgumentProblem {
    /// The argument's name as it was given or declared.
    pub argument: String,
    /// What is wrong, in one sentence without the value.
    pub problem: String,
    /// What would be accepted.
    pub allowed: String,
}

impl fmt::Display for ArgumentProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "argument {}: {}; allowed: {}",
            self.argument, self.problem, self.allowed
        )
    }
}

/// Checks `given` against the declarations of `entry` and adds the defaults.
///
/// # Errors
/// Every argument that is unknown, missing or does not fit, in the order of their names.
pub fn check_arguments(
    entry: &CatalogueEntry,
    given: &Arguments,
) -> Result<Arguments, Vec<ArgumentProblem>> {
    Grammar::new(&entry.arguments)?.check(given)
}

/// What is wrong with an entry's own declarations; empty when nothing is.
#[must_use]
pub fn check_entry(entry: &CatalogueEntry) -> Vec<ArgumentProblem> {
    let mut problems = Vec::new();
    let mut say = |field: &str, problem: &str, allowed: String| {
        problems.push(ArgumentProblem {
            argument: field.to_owned(),
            problem: problem.to_owned(),
            allowed,
        });
    };
    if !is_line(&entry.title) || entry.title.is_empty() {
        say(
            "title",
            "the title is empty, too long or not one line",
            format!("1 to {TEXT_BYTES_MAX} bytes without control characters"),
        );
    }
    if !(TIMEOUT_MS_MIN..=TIMEOUT_MS_MAX).contains(&entry.timeout_ms) {
        say(
            "timeout_ms",
            "the time limit is out of range",
            format!("{TIMEOUT_MS_MIN} to {TIMEOUT_MS_MAX}"),
        );
    }
    let output_max = u64::try_from(limits::RETAINED_OUTPUT_BYTES_MAX).unwrap_or(u64::MAX);
    if !(1..=output_max).contains(&entry.output_bytes_max) {
        say(
            "output_bytes_max",
            "the output limit is out of range",
            format!("1 to {output_max}"),
        );
    }
    if let Err(more) = Grammar::new(&entry.arguments) {
        problems.extend(more);
    }
    problems
}

/// The compiled declarations of one command's arguments.
#[derive(Debug, Clone)]
pub struct Grammar {
    slots: BTreeMap<ArgumentName, Slot>,
}

#[derive(Debug, Clone)]
struct Slot {
    rule: Rule,
    default: Option<String>,
}

#[derive(Debug, Clone)]
enum Rule {
    Pattern { source: String, anchored: Regex },
    Integer { min: i64, max: i64 },
    Choice { values: Vec<String> },
    Boolean,
}

impl Grammar {
    /// Compiles declarations.
    ///
    /// # Errors
    /// Every declaration that is contradictory, unbounded, or whose default it would itself refuse.
    pub fn new(declared: &[Argument]) -> Result<Self, Vec<ArgumentProblem>> {
        let mut problems = Vec::new();
        let mut slots = BTreeMap::new();
        if declared.len() > limits::ARGUMENTS_MAX {
            problems.push(ArgumentProblem {
                argument: "arguments".to_owned(),
                problem: human::counted(
                    declared.len(),
                    "argument is declared",
                    "arguments are declared",
                ),
                allowed: format!("at most {}", limits::ARGUMENTS_MAX),
            });
        }
        for argument in declared.iter().take(limits::ARGUMENTS_MAX) {
            match Slot::new(argument) {
                Ok(slot) => {
                    if slots.insert(argument.name.clone(), slot).is_some() {
                        problems.push(declaration(argument, "declared twice", "one declaration"));
                    }
                }
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            Ok(Self { slots })
        } else {
            Err(problems)
        }
    }

    /// Checks `given` and adds the defaults.
    ///
    /// # Errors
    /// Every argument that is unknown, missing or does not fit, in the order of their names.
    pub fn check(&self, given: &Arguments) -> Result<Arguments, Vec<ArgumentProblem>> {
        let mut problems = Vec::new();
        for name in given.keys() {
            if !self.slots.contains_key(name) {
                problems.push(self.unknown(name));
            }
        }
        let mut checked = Arguments::new();
        for (name, slot) in &self.slots {
            match given.get(name).or(slot.default.as_ref()) {
                Some(value) => match slot.rule.check(value) {
                    Ok(()) => {
                        checked.insert(name.clone(), value.clone());
                    }
                    Err(problem) => problems.push(slot.rule.problem(name, problem)),
                },
                None => problems.push(slot.rule.problem(name, "it is required and missing")),
            }
        }
        if problems.is_empty() {
            Ok(checked)
        } else {
            problems.sort_by(|a, b| a.argument.cmp(&b.argument));
            Err(problems)
        }
    }

    /// Whether an argument of that name is declared.
    #[must_use]
    pub fn declares(&self, name: &ArgumentName) -> bool {
        self.slots.contains_key(name)
    }

    /// Whether a value of this argument can begin with a hyphen although its author did not write that value down.
    pub(super) fn may_begin_with_hyphen(&self, name: &ArgumentName) -> bool {
        self.slots.get(name).is_some_and(|slot| match slot.rule {
            Rule::Integer { min, .. } => min < 0,
            // Text with a leading hyphen is refused, and a choice's values were written down by the author.
            Rule::Pattern { .. } | Rule::Choice { .. } | Rule::Boolean => false,
        })
    }

    /// Whether every value of this argument was written down by the author.
    pub(super) fn is_choice(&self, name: &ArgumentName) -> bool {
        self.slots.get(name).is_some_and(|slot| match slot.rule {
            Rule::Choice { .. } => true,
            Rule::Pattern { .. } | Rule::Integer { .. } | Rule::Boolean => false,
        })
    }

    fn unknown(&self, name: &ArgumentName) -> ArgumentProblem {
        let names: Vec<&str> = self.slots.keys().map(ArgumentName::as_str).collect();
        ArgumentProblem {
            argument: name.to_string(),
            problem: "the command has no such argument".to_owned(),
            allowed: if names.is_empty() {
                "no arguments".to_owned()
            } else {
                names.join(", ")
            },
        }
    }
}

impl Slot {
    fn new(argument: &Argument) -> Result<Self, ArgumentProblem> {
        if !is_line(&argument.description) {
            return Err(declaration(
                argument,
                "the description is too long or not one line",
                &format!("at most {TEXT_BYTES_MAX} bytes without control characters"),
            ));
        }
        let rule = Rule::new(argument)?;
        if let Some(default) = &argument.default {
            rule.check(default).map_err(|problem| {
                rule.problem(&argument.name, &format!("its default: {problem}"))
            })?;
        }
        Ok(Self {
            rule,
            default: argument.default.clone(),
        })
    }
}

impl Rule {
    fn new(argument: &Argument) -> Result<Self, ArgumentProblem> {
        match &argument.value {
            ArgumentType::String { pattern } => {
                let anchored = compile(pattern).map_err(|reason| {
                    declaration(
                        argument,
                        &format!("the pattern {reason}"),
                        "a regular expression",
                    )
                })?;
                Ok(Self::Pattern {
                    source: pattern.clone(),
                    anchored,
                })
            }
            ArgumentType::Integer { min, max } if min <= max => Ok(Self::Integer {
                min: *min,
                max: *max,
            }),
            ArgumentType::Integer { .. } => Err(declaration(
                argument,
                "min is greater than max",
                "min at most max",
            )),
            ArgumentType::Choice { values } => {
                check_choices(argument, values)?;
                Ok(Self::Choice {
                    values: values.clone(),
                })
            }
            ArgumentType::Boolean => Ok(Self::Boolean),
        }
    }

    fn check(&self, value: &str) -> Result<(), &'static str> {
        if value.len() > limits::ARGUMENT_VALUE_BYTES_MAX {
            return Err("the value is too long");
        }
        // C0, DEL and C1: none of them has a place in an argument, some of them drive terminals.
        if value.chars().any(char::is_control) {
            return Err("the value has a control character");
        }
        let fits = match self {
            Self::Pattern { .. } if value.starts_with('-') => {
                return Err("the value begins with a hyphen and would be read as an option");
            }
            Self::Pattern { anchored, .. } => anchored.is_match(value),
            Self::Integer { min, max } => {
                canonical_integer(value).is_some_and(|number| (*min..=*max).contains(&number))
            }
            Self::Choice { values } => values.iter().any(|allowed| allowed == value),
            Self::Boolean => value == "true" || value == "false",
        };
        if fits {
            Ok(())
        } else {
            Err("the value does not fit")
        }
    }

    fn allowed(&self) -> String {
        match self {
            Self::Pattern { source, .. } => format!(
                "text that matches {source}, at most {} bytes",
                limits::ARGUMENT_VALUE_BYTES_MAX
            ),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Choice { values } => format!("one of {}", values.join(", ")),
            Self::Boolean => "true or false".to_owned(),
        }
    }

    fn problem(&self, name: &ArgumentName, problem: &str) -> ArgumentProblem {
        ArgumentProblem {
            argument: name.to_string(),
            problem: problem.to_owned(),
            allowed: self.allowed(),
        }
    }
}

fn check_choices(argument: &Argument, values: &[String]) -> Result<(), ArgumentProblem> {
    let allowed = format!("1 to {CHOICES_MAX} different values of one line each");
    if values.is_empty() || values.len() > CHOICES_MAX {
        return Err(declaration(
            argument,
            &human::counted(values.len(), "choice is listed", "choices are listed"),
            &allowed,
        ));
    }
    let mut seen = BTreeSet::new();
    for value in values {
        if !is_line(value) || !seen.insert(value) {
            return Err(declaration(
                argument,
                "a choice is repeated, too long or not one line",
                &allowed,
            ));
        }
    }
    Ok(())
}

/// Compiles a pattern so that it must match the whole value.
fn compile(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("is longer than {PATTERN_BYTES_MAX} bytes"));
    }
    // Read alone first: `a)|(b` is no pattern, but would become one between the anchors and widen them.
    ParserBuilder::new()
        .nest_limit(PATTERN_NEST_MAX)
        .build()
        .parse(pattern)
        .map_err(|error| one_line(&error.to_string()))?;
    RegexBuilder::new(&format!(r"\A(?:{pattern})\z"))
        .size_limit(PATTERN_SIZE_MAX)
        .dfa_size_limit(PATTERN_SIZE_MAX)
        .nest_limit(PATTERN_NEST_MAX)
        .build()
        .map_err(|error| one_line(&error.to_string()))
}

/// An integer in its one decimal spelling: no plus sign, no leading zeros, no spaces.
fn canonical_integer(value: &str) -> Option<i64> {
    let number: i64 = value.parse().ok()?;
    (number.to_string() == value).then_some(number)
}

fn is_line(text: &str) -> bool {
    text::is_line(text, TEXT_BYTES_MAX)
}

fn one_line(text: &str) -> String {
    let last = text.lines().last().unwrap_or_default();
    format!("is not valid: {}", last.trim_start_matches("error: "))
}

fn declaration(argument: &Argument, problem: &str, allowed: &str) -> ArgumentProblem {
    ArgumentProblem {
        argument: argument.name.to_string(),
        problem: problem.to_owned(),
        allowed: allowed.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn argument(name: &str, value: ArgumentType, default: Option<&str>) -> Argument {
        Argument {
            name: name.parse().unwrap(),
            description: "A test argument".to_owned(),
            value,
            default: default.map(str::to_owned),
        }
    }

    fn text(pattern: &str) -> ArgumentType {
        ArgumentType::String {
            pattern: pattern.to_owned(),
        }
    }

    fn given(pairs: &[(&str, &str)]) -> Arguments {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), (*value).to_owned()))
            .collect()
    }

    fn grammar(declared: &[Argument]) -> Grammar {
        Grammar::new(declared).unwrap()
    }

    #[test]
    fn a_pattern_must_match_the_whole_value() {
        let grammar = grammar(&[argument("unit", text("[a-z]+|x1"), None)]);
        assert!(grammar.check(&given(&[("unit", "ssh")])).is_ok());
        assert!(grammar.check(&given(&[("unit", "x1")])).is_ok());
        for bad in ["", "ssh2", "2ssh", "ssh\n", "SSH", "x1x1", "ssh;id"] {
            assert!(grammar.check(&given(&[("unit", bad)])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_cannot_break_out_of_its_anchors() {
        for pattern in ["a)|(b", "(", "(?x)a #", &"a".repeat(300), "(a{1000}){1000}"] {
            let refused = Grammar::new(&[argument("a", text(pattern), None)]);
            assert!(refused.is_err(), "{pattern}");
        }
    }

    #[test]
    fn every_problem_is_named_with_what_is_allowed() {
        let grammar = grammar(&[
            argument(
                "lines",
                ArgumentType::Integer { min: 1, max: 500 },
                Some("50"),
            ),
            argument("unit", text("[a-z]+"), None),
        ]);
        let problems = grammar
            .check(&given(&[("lines", "0"), ("colour", "red")]))
            .unwrap_err();
        let names: Vec<&str> = problems.iter().map(|p| p.argument.as_str()).collect();
        assert_eq!(names, ["colour", "lines", "unit"]);
        assert_eq!(problems[0].allowed, "lines, unit");
        assert_eq!(problems[1].allowed, "a whole number from 1 to 500");
        assert_eq!(problems[2].problem, "it is required and missing");
    }

    #[test]
    fn defaults_are_filled_in_and_checked() {
        let lines = ArgumentType::Integer { min: 1, max: 500 };
        let grammar = grammar(&[argument("lines", lines.clone(), Some("50"))]);
        assert_eq!(
            grammar.check(&given(&[])).unwrap(),
            given(&[("lines", "50")])
        );
        assert!(Grammar::new(&[argument("lines", lines, Some("501"))]).is_err());
    }

    #[test]
    fn an_integer_has_one_spelling() {
        let grammar = grammar(&[argument(
            "n",
            ArgumentType::Integer { min: -5, max: 50 },
            None,
        )]);
        for good in ["-5", "0", "50"] {
            assert!(grammar.check(&given(&[("n", good)])).is_ok(), "{good}");
        }
        for bad in [
            "-6",
            "51",
            "+1",
            "01",
            " 1",
            "1.0",
            "0x1",
            "-0",
            "",
            "99999999999999999999",
        ] {
            assert!(grammar.check(&given(&[("n", bad)])).is_err(), "{bad}");
        }
    }

    #[test]
    fn contradictory_declarations_are_refused() {
        let cases = [
            ArgumentType::Integer { min: 2, max: 1 },
            ArgumentType::Choice { values: vec![] },
            ArgumentType::Choice {
                values: vec!["a".to_owned(), "a".to_owned()],
            },
            ArgumentType::Choice {
                values: vec!["a\0".to_owned()],
            },
        ];
        for value in cases {
            assert!(
                Grammar::new(&[argument("a", value.clone(), None)]).is_err(),
                "{value:?}"
            );
        }
        let twice = argument("a", ArgumentType::Boolean, None);
        assert!(Grammar::new(&[twice.clone(), twice]).is_err());
    }

    proptest! {
        #[test]
        fn even_the_widest_pattern_lets_no_option_and_no_control_character_through(value in any::<String>()) {
            let grammar = grammar(&[argument("v", text("(?s).*"), None)]);
            let accepted = grammar.check(&given(&[("v", &value)])).is_ok();
            let harmless = !value.starts_with('-')
                && !value.chars().any(char::is_control)
                && value.len() <= limits::ARGUMENT_VALUE_BYTES_MAX;
            prop_assert_eq!(accepted, harmless);
        }

        #[test]
        fn checking_adds_only_declared_names_and_changes_no_given_value(pairs in prop::collection::btree_map("[a-d]", "[a-z]{0,3}", 0..4)) {
            let grammar = grammar(&[
                argument("a", text("[a-z]*"), Some("x")),
                argument("b", text("[a-z]*"), None),
            ]);
            let input: Arguments = pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.clone())).collect();
            if let Ok(output) = grammar.check(&input) {
                for (name, value) in &output {
                    prop_assert!(grammar.declares(name));
                    prop_assert_eq!(input.get(name).map_or("x", String::as_str), value.as_str());
                }
                prop_assert!(input.keys().all(|name| output.contains_key(name)));
            } else {
                let complete = pairs.contains_key("b") && !pairs.contains_key("c") && !pairs.contains_key("d");
                prop_assert!(!complete);
            }
        }
    }
}
