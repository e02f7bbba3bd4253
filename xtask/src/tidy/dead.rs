//! No public item that only tests use, or nobody: names are words, so a name that two things share keeps both.

use std::collections::{BTreeMap, BTreeSet};

use super::house::{House, is_test};
use super::words::{Placed, Token, words};

/// Crates of which other crates use the public items.
const HOUSES: &[&str] = &["common", "runtime", "api", "gateway-agent", "backend-agent"];

/// Items that nothing names and that stay: name and why.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("serialize", "what serde derives calls it, through `with`"),
    (
        "endpoints",
        "tests hold every endpoint of the router's own table to its promises",
    ),
    (
        "pack",
        "tests of the backend make batches as a gateway does",
    ),
];

/// Words in front of a name that define it.
const KINDS: &[&str] = &[
    "fn", "struct", "enum", "union", "trait", "type", "static", "const",
];

pub(crate) fn check(house: &House) -> Vec<String> {
    judge(house, EXCEPTIONS)
}

fn judge(house: &House, exceptions: &[(&str, &str)]) -> Vec<String> {
    let mut users: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (file, tokens) in house.code() {
        if is_test(file) {
            continue;
        }
        let of = file.split('/').next().unwrap_or_default();
        for word in named(tokens) {
            users.entry(word).or_default().insert(of);
        }
    }
    let mut found = Vec::new();
    let mut needed = BTreeSet::new();
    for (file, tokens) in house.code() {
        let Some(member) = HOUSES
            .iter()
            .find(|member| file.starts_with(&format!("{member}/src/")))
        else {
            continue;
        };
        if is_test(file) {
            continue;
        }
        for (name, line) in public(tokens) {
            let alive = users.get(name).is_some_and(|users| {
                users
                    .iter()
                    .any(|user| *user != "e2e" && (*user != "testkit" || *member == "common"))
            });
            if alive {
                continue;
            }
            if exceptions.iter().any(|(excepted, _)| *excepted == name) {
                needed.insert(name);
                continue;
            }
            found.push(format!("{file}:{line}: nothing but tests uses `{name}`"));
        }
    }
    for (name, _) in exceptions {
        if !needed.contains(name) {
            found.push(format!("tidy/dead.rs: `{name}` needs no exception"));
        }
    }
    found
}

/// Names of public items, and where they stand.
fn public(tokens: &[Placed]) -> Vec<(&str, usize)> {
    let mut found = Vec::new();
    for (at, placed) in tokens.iter().enumerate() {
        if placed.word() != Some("pub") {
            continue;
        }
        let mut kind = false;
        for placed in tokens.iter().skip(at + 1).take(6) {
            match placed.word() {
                Some("async" | "unsafe" | "extern" | "mut") => {}
                Some(word) if KINDS.contains(&word) => kind = true,
                Some(word) if kind => {
                    found.push((word, placed.line));
                    break;
                }
                Some(_) | None => break,
            }
        }
    }
    found
}

/// The words that stand for something defined elsewhere: neither definitions nor re-exports.
fn named(tokens: &[Placed]) -> Vec<String> {
    let mut found = Vec::new();
    let mut before = "";
    let mut exported = false;
    let mut attribute = false;
    for (at, placed) in tokens.iter().enumerate() {
        match &placed.token {
            Token::Word(word) => {
                exported |= word == "use" && before == "pub";
                if !KINDS.contains(&before) && !exported {
                    found.push(word.clone());
                }
                before = word;
                continue;
            }
            Token::Literal(text) => {
                let documentation = at
                    .checked_sub(2)
                    .and_then(|at| tokens.get(at))
                    .is_some_and(|placed| placed.word() == Some("doc"));
                let bare = text.trim_matches('"');
                let path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
                if attribute && !documentation && bare.chars().all(path) {
                    found.extend(words(bare).map(str::to_owned));
                }
                // What a format string takes from around it.
                for piece in text.split('{').skip(1) {
                    found.extend(words(piece).next().map(str::to_owned));
                }
            }
            Token::Mark(';') => exported = false,
            Token::Mark('#') => attribute = true,
            Token::Close(']') => attribute = false,
            Token::Mark(_) | Token::Open(_) | Token::Close(_) => {}
        }
        before = "";
    }
    found
}

#[cfg(test)]
mod tests {
    use super::judge;
    use crate::tidy::house::House;

    const ITEM: (&str, &str) = (
        "common/src/a.rs",
        "pub const fn left() {} pub(crate) fn own() {}",
    );

    fn found(others: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<(&str, &str)> = [ITEM].into_iter().chain(others.iter().copied()).collect();
        judge(&House::of(&files), &[])
    }

    #[test]
    fn what_nobody_or_only_a_test_or_a_re_export_names_is_told() {
        let told = "common/src/a.rs:1: nothing but tests uses `left`";
        assert_eq!(found(&[]), [told]);
        assert_eq!(
            found(&[("common/tests/it/a.rs", "fn f() { left(); }")]),
            [told]
        );
        assert_eq!(
            found(&[("common/src/b.rs", "#[cfg(test)] mod tests { use left; }")]),
            [told]
        );
        assert_eq!(found(&[("common/src/b.rs", "pub use a::{left};")]), [told]);
    }

    #[test]
    fn what_something_that_ships_names_is_alive() {
        for (file, text) in [
            ("common/src/b.rs", "fn f() { left(); }"),
            ("runtime/src/b.rs", "fn f() { println!(\"{left}\"); }"),
            ("testkit/src/b.rs", "use common::left;"),
            ("api/src/b.rs", "#[serde(default = \"a::left\")] struct S;"),
        ] {
            let none: [&str; 0] = [];
            assert_eq!(found(&[(file, text)]), none, "{file}");
        }
    }

    #[test]
    fn an_exception_that_nothing_needs_is_told() {
        assert_eq!(judge(&House::of(&[]), &[("left", "because")]).len(), 1);
    }
}
