//! One of a thing is told in the singular: what `human::counted` counts anywhere is counted by it everywhere.

use std::collections::BTreeMap;

use super::house::{House, is_test};
use super::words::{Placed, Token};

/// The crates whose words people at a site read.
const PRODUCT: &[&str] = &[
    "api/src/",
    "backend-agent/src/",
    "common/src/",
    "gateway-agent/src/",
    "operator-cli/src/",
    "runtime/src/",
];

/// What counts, with the words for one and for several behind the number.
const COUNTING: &[&str] = &["counted", "counted_all"];

/// Words that may stand behind a placeholder all the same: a verb of `viworks`, behind the name of the program, and a
/// unit like `ms`.
const OTHERS: &[&str] = &["runs", "bytes"];

pub(crate) fn check(house: &House) -> Vec<String> {
    let product = |(file, _): &(&str, &[Placed])| {
        PRODUCT.iter().any(|folder| file.starts_with(folder)) && !is_test(file)
    };
    let mut several = BTreeMap::new();
    for (_, tokens) in house.code().filter(product) {
        several.extend(counted(tokens));
    }
    several.retain(|word, _| !OTHERS.contains(&word.as_str()));
    let mut found = Vec::new();
    for (file, tokens) in house.code().filter(product) {
        for (literal, line) in literals(tokens) {
            for word in behind_numbers(literal) {
                if let Some(one) = several.get(word) {
                    found.push(format!(
                        "{file}:{line}: {word:?} behind a number that can be 1: human::counted(…, {one}, …)"
                    ));
                }
            }
        }
    }
    found
}

/// The literals, without what comments say.
fn literals(tokens: &[Placed]) -> impl Iterator<Item = (&str, usize)> {
    tokens.iter().enumerate().filter_map(|(at, placed)| {
        let Token::Literal(literal) = &placed.token else {
            return None;
        };
        let before = tokens.get(at.checked_sub(2)?..at);
        let is_comment = before.is_some_and(|it| it[0].word() == Some("doc") && it[1].is('='));
        (!is_comment).then_some((literal.as_str(), placed.line))
    })
}

/// The word for several, and the literal for one, of each call that counts.
fn counted(tokens: &[Placed]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, placed) in tokens.iter().enumerate() {
        let opens = tokens
            .get(at + 1)
            .is_some_and(|next| next.token == Token::Open('('));
        if !opens || !placed.word().is_some_and(|word| COUNTING.contains(&word)) {
            continue;
        }
        let texts: Vec<&str> = arguments(tokens, at + 1);
        if let [one, several] = texts[..]
            && let Some(word) = plural(several)
        {
            found.push((word.to_owned(), one.to_owned()));
        }
    }
    found
}

/// The literals that are arguments themselves of the call that opens here.
fn arguments(tokens: &[Placed], opening: usize) -> Vec<&str> {
    let (mut depth, mut texts) = (0_usize, Vec::new());
    for placed in tokens.iter().skip(opening) {
        match &placed.token {
            Token::Open(_) => depth += 1,
            Token::Close(_) => depth = depth.saturating_sub(1),
            Token::Literal(text) if depth == 1 && text.starts_with('"') => texts.push(text),
            Token::Literal(_) | Token::Word(_) | Token::Mark(_) => {}
        }
        if depth == 0 {
            break;
        }
    }
    texts.iter().map(|text| text.as_str()).collect()
}

/// The word that says that there are several.
fn plural(text: &str) -> Option<&str> {
    let mut words = text.trim_matches('"').split(' ');
    words.find(|word| word.len() > 3 && word.ends_with('s'))
}

/// The words that stand directly behind a placeholder. One for a constant, whose name is in capitals, is of a number
/// that is known.
fn behind_numbers(literal: &str) -> Vec<&str> {
    let mut found = Vec::new();
    // An escaped brace is no placeholder, and what is behind its second half neither.
    for (at, _) in literal.match_indices('{') {
        let rest = &literal[at + 1..];
        let escaped = rest.starts_with('{') || literal[..at].ends_with('{');
        let Some((inside, rest)) = rest.split_once('}').filter(|_| !escaped) else {
            continue;
        };
        let constant = inside.chars().any(|c| c.is_ascii_uppercase());
        let Some(rest) = rest.strip_prefix(' ').filter(|_| !constant) else {
            continue;
        };
        let end = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        found.push(&rest[..end]);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::house::House;

    const COUNTED: &str = "fn a() { human::counted(names.len(), \"gateway\", \"gateways\"); \
                           human::counted_all(left.max(0), \"command waits\", \"commands wait\"); \
                           human::counted(found, \"run\", \"runs\") }";

    fn found(text: &str) -> Vec<String> {
        let file = format!("//! A file.\n{COUNTED}\nfn b() {{ {text} }}\n");
        check(&House::of(&[("common/src/a.rs", &file)]))
    }

    #[test]
    fn a_word_that_is_counted_elsewhere_is_not_written_behind_a_number() {
        for bad in [
            "format!(\"{n} gateways\")",
            "format!(\"{} gateways\", n)",
            "format!(\"{0:>12} gateways, and\", n)",
            "format!(\"of {n} commands\")",
            "struct C; #[error(\"{0} gateways are too many\")] struct D(u64);",
        ] {
            assert_eq!(found(bad).len(), 1, "{bad}");
        }
        let told = found("format!(\"{n} gateways\")");
        assert!(
            told[0].starts_with("common/src/a.rs:3: \"gateways\""),
            "{told:?}"
        );
        assert!(told[0].contains("counted(…, \"gateway\", …)"), "{told:?}");
    }

    #[test]
    fn what_is_no_number_or_cannot_be_one_is_left_alone() {
        let none: [&str; 0] = [];
        for good in [
            "format!(\"at most {GATEWAYS_MAX} gateways\")",
            "format!(\"{program} runs show {id}\")",
            "format!(\"{n} gatewaysful\")",
            "format!(\"{{n}} gateways\")",
            "format!(\"{name}'s gateways\")",
            "format!(\"gateways: {n}\")",
            "/// {n} gateways\nfn c() {}",
            "#[cfg(test)] fn c() { format!(\"{n} gateways\"); }",
        ] {
            assert_eq!(found(good), none, "{good}");
        }
        let elsewhere = format!("//! A file.\n{COUNTED}\nfn b() {{ format!(\"{{n}} gateways\") }}");
        assert_eq!(check(&House::of(&[("bench/src/a.rs", &elsewhere)])), none);
    }
}
