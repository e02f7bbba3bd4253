//! House rules that no lint holds: how files begin, how long they and their comments are, what does not occur.

use super::house::House;

/// Columns of a comment.
const COLUMNS: usize = 120;

/// What the comments of these say is shown to readers of the OpenAPI document, where the break of a line is one too.
const SHOWN: &str = "api/src/";

/// Files of which the comments are still wider. The list only becomes shorter.
const WIDE: &[&str] = &["backend-agent/src/data/ledger/submission.rs"];

/// Lines of a file. Longer ones are two files, unless they are listed.
const LINES: usize = 700;

/// Files that are longer and one thing all the same: path and why. There is none.
const LONG: &[(&str, &str)] = &[];

pub(crate) fn check(house: &House) -> Vec<String> {
    judge(house, LONG, WIDE)
}

fn judge(house: &House, long: &[(&str, &str)], wide: &[&str]) -> Vec<String> {
    // Not written out, or this file would break its own rules.
    let never = [
        concat!("#[", "allow("),
        concat!("#![", "allow("),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
    ];
    let mut found = Vec::new();
    for (file, text) in house.texts().filter(|(file, _)| file.ends_with(".rs")) {
        let begins = text
            .strip_prefix("//! ")
            .and_then(|text| text.chars().next());
        if !begins.is_some_and(|first| first.is_uppercase() || !first.is_alphabetic()) {
            found.push(format!("{file}:1: does not begin with a `//!` sentence"));
        }
        let free = file.starts_with(SHOWN) || wide.contains(&file);
        for (line, number) in text.lines().zip(1..) {
            for word in never.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{file}:{number}: `{word}` does not occur here"));
            }
            if !free && columns(line) > COLUMNS {
                found.push(format!("{file}:{number}: longer than {COLUMNS} columns"));
            }
        }
        let lines = text.lines().count();
        let listed = long.iter().any(|(name, _)| *name == file);
        if lines > LINES && !listed {
            found.push(format!("{file}: {lines} lines, more than {LINES}"));
        } else if lines <= LINES && listed {
            found.push(format!("tidy/rules.rs: {file} needs no exception"));
        }
    }
    let is_wide = |name: &&&str| {
        let text = house.text(name).unwrap_or_default();
        text.lines().any(|line| columns(line) > COLUMNS)
    };
    for name in wide.iter().filter(|name| !is_wide(name)) {
        found.push(format!("tidy/rules.rs: {name} is no longer wide"));
    }
    for (name, _) in long {
        if house.text(name).is_none() {
            found.push(format!("tidy/rules.rs: there is no {name}"));
        }
    }
    found
}

/// Columns of a comment. Rustfmt looks after code; what it leaves is a string or a macro, which says best what it says
/// in one piece.
fn columns(line: &str) -> usize {
    if line.trim_start().starts_with("//") {
        line.chars().count()
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, LINES, judge};
    use crate::tidy::house::House;

    fn found(text: &str) -> Vec<String> {
        judge(&House::of(&[("a.rs", text)]), &[], &[])
    }

    #[test]
    fn a_file_that_keeps_the_rules_is_left_alone() {
        let message = format!(
            "//! A file.\nfn f() {{ g(\"{}\"); }}\n",
            "x".repeat(COLUMNS)
        );
        let none: [&str; 0] = [];
        assert_eq!(found(&message), none);
    }

    #[test]
    fn each_rule_is_told_when_it_is_broken() {
        let long = "x".repeat(COLUMNS);
        for bad in [
            "use a::b;\n".to_owned(),
            "//! lower\n".to_owned(),
            concat!("//! A.\n#[", "allow(dead_code)]\nfn f() {}\n").to_owned(),
            concat!("//! A.\nfn f() { todo", "!() }\n").to_owned(),
            concat!("//! A.\n#[test]\n#[", "ignore]\nfn f() {}\n").to_owned(),
            format!("//! A.\n// {long}\n"),
            format!("//! A.\n{}", "// b\n".repeat(LINES)),
        ] {
            assert_eq!(found(&bad).len(), 1, "{bad}");
        }
    }

    #[test]
    fn an_exception_that_nothing_needs_is_told() {
        let house = House::of(&[("a.rs", "//! A file.\n")]);
        let long = [("a.rs", "because"), ("b.rs", "because")];
        assert_eq!(judge(&house, &long, &["a.rs"]).len(), 3);
    }
}
