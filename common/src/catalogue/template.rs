//! Argument vectors as templates: every element is fixed in number, and values can never add an option.

use crate::command::Arguments;
use crate::id::ArgumentName;

use super::arguments::Grammar;

/// Elements of one argument vector.
const ELEMENTS_MAX: usize = 64;
/// Bytes of one element of a template.
const ELEMENT_BYTES_MAX: usize = 1_024;

/// Why an argument vector in a catalogue is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateProblem {
    /// No elements.
    #[error("argv is empty: it needs at least the program")]
    Empty,
    /// Too many elements.
    #[error("argv has more than {ELEMENTS_MAX} elements")]
    TooMany,
    /// An element is too long.
    #[error("argv element {0} is longer than {ELEMENT_BYTES_MAX} bytes")]
    TooLong(usize),
    /// An element contains NUL or another control character.
    #[error("argv element {0} has a control character")]
    Control(usize),
    /// A brace without its partner.
    #[error("argv element {0}: write {{argument}} for a value, {{{{ and }}}} for plain braces")]
    Braces(usize),
    /// The program is chosen by a value.
    #[error("the program must be fixed: argv element 0 may not contain an argument")]
    ProgramSlot,
    /// A slot that names no declared argument.
    #[error("argv element {element}: argument {name:?} is not declared")]
    Undeclared {
        /// The element's index.
        element: usize,
        /// The name in the slot.
        name: String,
    },
    /// A declared argument that no slot uses.
    #[error("argument {0} is declared but argv does not use it")]
    Unused(ArgumentName),
    /// A value that could be read as an option.
    #[error(
        "argv element {element}: a value of {name} may begin with a hyphen; put it behind a `--` element or write it as `--option={{{name}}}`"
    )]
    OptionLike {
        /// The element's index.
        element: usize,
        /// The argument.
        name: ArgumentName,
    },
}

/// Why values do not go into a template. With checked arguments this does not happen; it is the second lock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandRefusal {
    /// A slot without a value.
    #[error("argument {0} has no value")]
    Missing(ArgumentName),
    /// A value would turn an element into an option.
    #[error("argv element {0} would be read as an option")]
    OptionLike(usize),
    /// A value contains NUL.
    #[error("argv element {0} has a NUL character")]
    Nul(usize),
}

/// A checked argument vector: the program, then elements of literal text and slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgvTemplate {
    program: String,
    elements: Vec<Element>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Element {
    pieces: Vec<Piece>,
    /// Whether the element may begin with a hyphen: the author wrote one, listed one as a choice, or ended the options.
    may_be_option: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Slot(ArgumentName),
}

impl ArgvTemplate {
    /// Reads a template against the declared arguments, given by name and grammar.
    ///
    /// # Errors
    /// Every problem, in the order of the elements.
    pub fn parse<'a>(
        argv: &[String],
        declared: impl IntoIterator<Item = &'a ArgumentName>,
        grammar: &Grammar,
    ) -> Result<Self, Vec<TemplateProblem>> {
        let Some((program, rest)) = argv.split_first() else {
            return Err(vec![TemplateProblem::Empty]);
        };
        let mut problems = Vec::new();
        if argv.len() > ELEMENTS_MAX {
            problems.push(TemplateProblem::TooMany);
        }
        let program = parse_program(program, &mut problems);
        let mut elements = Vec::new();
        let mut options_ended = false;
        for (index, text) in (1..).zip(rest.iter().take(ELEMENTS_MAX)) {
            match parse_element(text, index, grammar, options_ended) {
                Ok(element) => elements.push(element),
                Err(problem) => problems.push(problem),
            }
            options_ended |= text == "--";
        }
        for name in declared {
            let used = elements.iter().any(|element| element.uses(name));
            if !used && problems.is_empty() {
                problems.push(TemplateProblem::Unused(name.clone()));
            }
        }
        if problems.is_empty() {
            Ok(Self { program, elements })
        } else {
            Err(problems)
        }
    }

    /// The program: fixed, never part of a value.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The elements after the program, one for each element of the template.
    ///
    /// # Errors
    /// When a value is missing or would be read as an option.
    pub fn expand(&self, values: &Arguments) -> Result<Vec<String>, ExpandRefusal> {
        (1..)
            .zip(&self.elements)
            .map(|(index, element)| element.expand(index, values))
            .collect()
    }
}

impl Element {
    fn uses(&self, name: &ArgumentName) -> bool {
        self.pieces.iter().any(|piece| match piece {
            Piece::Slot(slot) => slot == name,
            Piece::Literal(_) => false,
        })
    }

    fn expand(&self, index: usize, values: &Arguments) -> Result<String, ExpandRefusal> {
        let mut text = String::new();
        for piece in &self.pieces {
            text.push_str(match piece {
                Piece::Literal(literal) => literal,
                Piece::Slot(name) => values
                    .get(name)
                    .ok_or_else(|| ExpandRefusal::Missing(name.clone()))?,
            });
        }
        if text.contains('\0') {
            return Err(ExpandRefusal::Nul(index));
        }
        if text.starts_with('-') && !self.may_be_option {
            return Err(ExpandRefusal::OptionLike(index));
        }
        Ok(text)
    }
}

fn parse_program(text: &str, problems: &mut Vec<TemplateProblem>) -> String {
    match pieces(text, 0) {
        Ok(pieces) => match pieces.as_slice() {
            [Piece::Literal(program)] => return program.clone(),
            [] => problems.push(TemplateProblem::Empty),
            [_, ..] => problems.push(TemplateProblem::ProgramSlot),
        },
        Err(problem) => problems.push(problem),
    }
    String::new()
}

fn parse_element(
    text: &str,
    index: usize,
    grammar: &Grammar,
    options_ended: bool,
) -> Result<Element, TemplateProblem> {
    let pieces = pieces(text, index)?;
    for piece in &pieces {
        if let Piece::Slot(name) = piece
            && !grammar.declares(name)
        {
            return Err(TemplateProblem::Undeclared {
                element: index,
                name: name.to_string(),
            });
        }
    }
    let written = match pieces.first() {
        Some(Piece::Literal(literal)) => literal.starts_with('-'),
        Some(Piece::Slot(name)) => {
            if grammar.may_begin_with_hyphen(name) && !options_ended {
                return Err(TemplateProblem::OptionLike {
                    element: index,
                    name: name.clone(),
                });
            }
            grammar.is_choice(name) && pieces.len() == 1
        }
        None => false,
    };
    Ok(Element {
        pieces,
        may_be_option: written || options_ended,
    })
}

/// Splits an element into literal text and slots.
fn pieces(text: &str, index: usize) -> Result<Vec<Piece>, TemplateProblem> {
    if text.len() > ELEMENT_BYTES_MAX {
        return Err(TemplateProblem::TooLong(index));
    }
    if text.chars().any(char::is_control) {
        return Err(TemplateProblem::Control(index));
    }
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        literal.push_str(&rest[..at]);
        let brace = &rest[at..];
        if let Some(after) = brace.strip_prefix("{{") {
            literal.push('{');
            rest = after;
        } else if let Some(after) = brace.strip_prefix("}}") {
            literal.push('}');
            rest = after;
        } else {
            let inner = brace
                .strip_prefix('{')
                .ok_or(TemplateProblem::Braces(index))?;
            let (name, after) = inner
                .split_once('}')
                .ok_or(TemplateProblem::Braces(index))?;
            let slot = name
                .parse()
                .map_err(|_invalid| TemplateProblem::Undeclared {
                    element: index,
                    name: name.chars().take(40).collect(),
                })?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Slot(slot));
            rest = after;
        }
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalogue::{Argument, ArgumentType};

    fn argument(name: &str, value: ArgumentType) -> Argument {
        Argument {
            name: name.parse().unwrap(),
            description: String::new(),
            value,
            default: None,
        }
    }

    fn text(name: &str) -> Argument {
        argument(
            name,
            ArgumentType::String {
                pattern: "(?s).*".to_owned(),
            },
        )
    }

    #[expect(
        clippy::unwrap_in_result,
        reason = "the result under test is the template's"
    )]
    fn parse(argv: &[&str], declared: &[Argument]) -> Result<ArgvTemplate, Vec<TemplateProblem>> {
        let argv: Vec<String> = argv.iter().map(|&element| element.to_owned()).collect();
        let grammar = Grammar::new(declared).unwrap();
        ArgvTemplate::parse(&argv, declared.iter().map(|a| &a.name), &grammar)
    }

    fn values(pairs: &[(&str, &str)]) -> Arguments {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn slots_and_literals_become_one_element_each() {
        let declared = [text("unit"), text("lines")];
        let template = parse(
            &["/bin/x", "--lines={lines}", "{{{unit}}}", "a b"],
            &declared,
        )
        .unwrap();
        assert_eq!(template.program(), "/bin/x");
        let argv = template
            .expand(&values(&[("unit", "a b;c"), ("lines", "5")]))
            .unwrap();
        assert_eq!(argv, ["--lines=5", "{a b;c}", "a b"]);
    }

    #[test]
    fn mistakes_in_a_template_are_named() {
        let unit = [text("unit")];
        assert_eq!(parse(&[], &[]), Err(vec![TemplateProblem::Empty]));
        assert_eq!(
            parse(&["{unit}", "{unit}"], &unit),
            Err(vec![TemplateProblem::ProgramSlot])
        );
        for bad in ["{unit", "unit}", "{unit}}", "{"] {
            assert_eq!(
                parse(&["/bin/x", bad], &unit),
                Err(vec![TemplateProblem::Braces(1)]),
                "{bad}"
            );
        }
        assert!(matches!(
            parse(&["/bin/x", "{other}", "{unit}"], &unit).unwrap_err()[0],
            TemplateProblem::Undeclared { element: 1, .. }
        ));
        assert!(matches!(
            parse(&["/bin/x"], &unit).unwrap_err()[0],
            TemplateProblem::Unused(_)
        ));
        assert_eq!(
            parse(&["/bin/x", "a\nb"], &[]),
            Err(vec![TemplateProblem::Control(1)])
        );
    }

    #[test]
    fn a_negative_number_needs_the_end_of_options_or_its_option() {
        let declared = [argument("n", ArgumentType::Integer { min: -9, max: 9 })];
        assert!(matches!(
            parse(&["/bin/x", "{n}"], &declared).unwrap_err()[0],
            TemplateProblem::OptionLike { element: 1, .. }
        ));
        for argv in [["/bin/x", "--", "{n}"], ["/bin/x", "-v", "--n={n}"]] {
            let template = parse(&argv, &declared).unwrap();
            assert!(template.expand(&values(&[("n", "-3")])).is_ok());
        }
    }

    #[test]
    fn an_option_that_the_author_listed_as_a_choice_is_his_word() {
        let choice = ArgumentType::Choice {
            values: vec!["-4".to_owned(), "-6".to_owned()],
        };
        let template = parse(&["/bin/ping", "{family}"], &[argument("family", choice)]).unwrap();
        assert_eq!(
            template.expand(&values(&[("family", "-4")])).unwrap(),
            ["-4"]
        );
    }

    proptest! {
        /// Holds for values that no grammar has checked, too.
        #[test]
        fn no_value_adds_an_element_or_an_option(a in any::<String>(), b in any::<String>(), layout in 0_usize..4) {
            let argv: &[&str] = match layout {
                0 => &["/bin/x", "{a}", "{b}"],
                1 => &["/bin/x", "{a}{b}"],
                2 => &["/bin/x", "--a={a}", "x{b}"],
                _ => &["/bin/x", "{b}", "--", "{a}"],
            };
            let template = parse(argv, &[text("a"), text("b")]).unwrap();
            if let Ok(expanded) = template.expand(&values(&[("a", &a), ("b", &b)])) {
                prop_assert_eq!(expanded.len(), argv.len() - 1);
                let mut ended = false;
                for (element, written) in expanded.iter().zip(&argv[1..]) {
                    prop_assert!(ended || !element.starts_with('-') || written.starts_with('-'), "{:?}", expanded);
                    prop_assert!(!element.contains('\0'));
                    ended |= *written == "--";
                }
            }
        }

        #[test]
        fn checked_values_always_expand(a in "[^-\\p{Cc}][^\\p{Cc}]{0,20}") {
            let declared = [text("a")];
            let checked = Grammar::new(&declared).unwrap().check(&values(&[("a", &a)]));
            let template = parse(&["/bin/x", "{a}"], &declared).unwrap();
            prop_assert_eq!(template.expand(&checked.unwrap()).unwrap(), vec![a]);
        }
    }
}
