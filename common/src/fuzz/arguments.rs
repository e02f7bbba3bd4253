//! Arguments and templates: a value fills its own slot and nothing else, whatever it is.

use serde::Deserialize;

use crate::catalogue::{ArgvTemplate, CatalogueEntry, Grammar, check_arguments, check_entry};
use crate::command::{Arguments, digest};
use crate::limits;

/// A catalogue entry with its argument vector, and what somebody asks for.
#[derive(Deserialize)]
struct Input {
    entry: CatalogueEntry,
    argv: Vec<String>,
    given: Arguments,
}

/// Takes the bytes as JSON of an entry, its `argv`, and `given` arguments.
pub fn arguments(data: &[u8]) {
    let Ok(Input { entry, argv, given }) = serde_json::from_slice(data) else {
        return;
    };
    let sound = check_entry(&entry).is_empty();
    let grammar = match Grammar::new(&entry.arguments) {
        Ok(grammar) => grammar,
        Err(problems) => {
            assert!(!problems.is_empty() && !sound);
            assert!(check_arguments(&entry, &given).is_err());
            return;
        }
    };
    assert!(entry.arguments.len() <= limits::ARGUMENTS_MAX);
    let checked = grammar.check(&given);
    assert_eq!(check_arguments(&entry, &given), checked);
    let Ok(filled) = checked else {
        return;
    };
    // Every declared argument has a value, nothing undeclared has one, and what was given was not changed.
    assert_eq!(filled.len(), entry.arguments.len());
    for (name, value) in &filled {
        assert!(grammar.declares(name));
        assert!(given.get(name).is_none_or(|given| given == value));
        assert!(value.len() <= limits::ARGUMENT_VALUE_BYTES_MAX);
        assert!(!value.contains('\0'));
    }
    assert_eq!(grammar.check(&filled).as_ref(), Ok(&filled));
    let same = digest(&entry.name, &filled) == digest(&entry.name, &given);
    assert_eq!(same, filled == given, "a digest speaks for two requests");
    let names = entry.arguments.iter().map(|argument| &argument.name);
    if let Ok(template) = ArgvTemplate::parse(&argv, names, &grammar) {
        expanded(&template, &argv, &filled);
    }
}

fn expanded(template: &ArgvTemplate, argv: &[String], filled: &Arguments) {
    assert!(!template.program().is_empty());
    let elements = match template.expand(filled) {
        Ok(elements) => elements,
        Err(refusal) => panic!("checked values do not fit the checked template: {refusal}"),
    };
    assert_eq!(elements.len() + 1, argv.len(), "a value added an element");
    let mut options_ended = false;
    for (element, author) in elements.iter().zip(&argv[1..]) {
        assert!(!element.contains('\0'));
        let whole_slot = author.starts_with('{') && !author.starts_with("{{");
        // A choice's values were written down by the author, so those may be options.
        if element.starts_with('-') && !author.starts_with('-') && !options_ended {
            assert!(whole_slot, "{author:?} became {element:?}");
        }
        if !author.contains(['{', '}']) {
            assert_eq!(element, author, "a literal changed");
        }
        options_ended |= author == "--";
    }
}
