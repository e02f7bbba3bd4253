//! Modules stand on the storeys that `docs/architecture.md` draws, use only lower ones, and run in no circles,
//! whatever their crate.

use std::collections::{BTreeMap, BTreeSet};

use super::house::{House, is_test};
use super::words::{Placed, Token, is_path};

const PAGE: &str = "docs/architecture.md";

/// The names that the page has for the crates with storeys.
const DRAWN: &[(&str, &str)] = &[
    ("backend", "backend-agent"),
    ("gateway", "gateway-agent"),
    ("command line", "operator-cli"),
];

/// Uses that go up all the same: crate, from, to, why.
const EXCEPTIONS: &[(&str, &str, &str, &str)] = &[];

/// One use of a module by another one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    from: String,
    to: String,
    place: String,
}

pub(crate) fn check(house: &House) -> Vec<String> {
    judge(house, EXCEPTIONS)
}

fn judge(house: &House, exceptions: &[(&str, &str, &str, &str)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut needed = BTreeSet::new();
    for member in house.crates() {
        let modules = modules(house, member);
        let uses = uses(house, member, &modules);
        if let Some((name, _)) = DRAWN.iter().find(|(_, drawn)| *drawn == member) {
            let storeys = drawn(house, name);
            for module in &modules {
                if !storeys.contains_key(module.as_str()) {
                    found.push(format!("{PAGE}: no storey of {name} names `{module}`"));
                }
            }
            for module in storeys.keys() {
                if !modules.contains(*module) {
                    found.push(format!("{PAGE}: {name} has no module `{module}`"));
                }
            }
            for used in &uses {
                let (Some(from), Some(to)) = (
                    storeys.get(used.from.as_str()),
                    storeys.get(used.to.as_str()),
                ) else {
                    continue;
                };
                if to < from {
                    continue;
                }
                let excepted = exceptions.iter().find(|(crate_, from, to, _)| {
                    *crate_ == member && *from == used.from && *to == used.to
                });
                match excepted {
                    Some(exception) => {
                        needed.insert(exception);
                    }
                    None => found.push(format!(
                        "{}: `{}` uses `{}`, which stands no lower",
                        used.place, used.from, used.to
                    )),
                }
            }
        }
        found.extend(circle(member, &uses));
    }
    for exception in exceptions {
        if !needed.contains(exception) {
            let (member, from, to, _) = exception;
            found.push(format!(
                "tidy/storeys.rs: {member} needs no exception for {from} → {to}"
            ));
        }
    }
    found
}

/// The storey of each module, as the line of the page has it: a name, a colon, modules, and `<` between storeys.
fn drawn<'a>(house: &'a House, name: &str) -> BTreeMap<&'a str, usize> {
    let page = house.text(PAGE).unwrap_or_default();
    let start = format!("- {name}: `");
    let line = page.lines().find(|line| line.starts_with(&start));
    let mut storeys = BTreeMap::new();
    for (storey, names) in line.unwrap_or_default().split('<').enumerate() {
        for module in names.split('`').skip(1).step_by(2) {
            storeys.insert(module, storey);
        }
    }
    storeys
}

/// The folders of modules above a file: `api/router.rs` is `["api", "router"]`, the root is empty.
fn place_of<'a>(member: &str, file: &'a str) -> Option<Vec<&'a str>> {
    let inside = file.strip_prefix(member)?.strip_prefix("/src/")?;
    let inside = inside.strip_suffix(".rs")?;
    if inside == "lib" || is_test(file) || inside.starts_with("bin/") {
        return None;
    }
    Some(inside.split('/').collect())
}

fn modules(house: &House, member: &str) -> BTreeSet<String> {
    let places = house
        .code()
        .filter_map(|(file, _)| place_of(member, file).and_then(|place| place.first().copied()));
    places.map(str::to_owned).collect()
}

fn uses(house: &House, member: &str, modules: &BTreeSet<String>) -> BTreeSet<Use> {
    let own = format!("viworks_{}", member.replace('-', "_"));
    let mut uses = BTreeSet::new();
    for (file, tokens) in house.code() {
        let Some(place) = place_of(member, file) else {
            continue;
        };
        let Some(from) = place.first() else { continue };
        for (to, line) in top_level_uses(tokens, &place, &own) {
            if to != *from && modules.contains(&to) {
                uses.insert(Use {
                    from: (*from).to_owned(),
                    to,
                    place: format!("{file}:{line}"),
                });
            }
        }
    }
    uses
}

/// The modules right under the root that a file's paths go to.
fn top_level_uses(tokens: &[Placed], place: &[&str], own: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    // Modules written in the file: how deep in braces each one began.
    let mut inline: Vec<usize> = Vec::new();
    let mut depth = 0_usize;
    for (at, placed) in tokens.iter().enumerate() {
        match &placed.token {
            Token::Open(_) => {
                let module = at
                    .checked_sub(2)
                    .and_then(|before| tokens.get(before))
                    .is_some_and(|before| before.word() == Some("mod"));
                if module {
                    inline.push(depth);
                }
                depth += 1;
            }
            Token::Close(_) => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
            }
            Token::Word(word) if is_path(tokens, at + 1) => {
                let follows = at
                    .checked_sub(2)
                    .is_some_and(|before| is_path(tokens, before));
                if follows {
                    continue;
                }
                let mut next = at + 3;
                let root = if word == "crate" || word == own {
                    true
                } else if word == "super" {
                    let mut up = 1;
                    while tokens.get(next).and_then(Placed::word) == Some("super")
                        && is_path(tokens, next + 1)
                    {
                        up += 1;
                        next += 3;
                    }
                    // A file of modules right under the root is one step below it.
                    up == place.len() + inline.len()
                } else {
                    false
                };
                if root {
                    heads(tokens, next, &mut found);
                }
            }
            Token::Word(_) | Token::Mark(_) | Token::Literal(_) => {}
        }
    }
    found
}

/// The first names of the tree of paths that begins here.
fn heads(tokens: &[Placed], at: usize, found: &mut Vec<(String, usize)>) {
    let Some(placed) = tokens.get(at) else { return };
    match &placed.token {
        Token::Word(word) => found.push((word.clone(), placed.line)),
        Token::Open('{') => {
            let mut depth = 0_usize;
            let mut fresh = true;
            for placed in tokens.iter().skip(at) {
                match &placed.token {
                    Token::Open(_) => depth += 1,
                    Token::Close(_) => {
                        depth = depth.saturating_sub(1);
                        if depth == 0 {
                            return;
                        }
                    }
                    Token::Mark(',') if depth == 1 => fresh = true,
                    Token::Word(word) if depth == 1 && fresh => {
                        found.push((word.clone(), placed.line));
                        fresh = false;
                    }
                    Token::Word(_) | Token::Mark(_) | Token::Literal(_) => {}
                }
            }
        }
        Token::Open(_) | Token::Close(_) | Token::Mark(_) | Token::Literal(_) => {}
    }
}

/// Modules of which each uses the next and the last the first.
fn circle(member: &str, uses: &BTreeSet<Use>) -> Option<String> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for used in uses {
        next.entry(&used.from).or_default().insert(&used.to);
    }
    // What uses nothing that is left is in no circle, and neither is what only used such.
    loop {
        let left: BTreeSet<&str> = next.keys().copied().collect();
        let before = next.len();
        next.retain(|_, to| to.iter().any(|to| left.contains(to)));
        if next.len() == before {
            break;
        }
    }
    let mut walk: Vec<&str> = vec![next.keys().next()?];
    loop {
        let last = walk.last()?;
        let to = next.get(last)?.iter().find(|to| next.contains_key(*to))?;
        if let Some(start) = walk.iter().position(|seen| seen == to) {
            let circle = walk.get(start..)?.join(" → ");
            return Some(format!("{member}: a circle: {circle} → {to}"));
        }
        walk.push(to);
    }
}

#[cfg(test)]
mod tests {
    use super::judge;
    use crate::tidy::house::House;

    const PAGE: (&str, &str) = ("docs/architecture.md", "- backend: `a` < `b`, `c` < `main`");
    const MANIFEST: (&str, &str) = ("Cargo.toml", "members = [\"backend-agent\"]");

    fn said(a: &str, b: &str, c: &str) -> Vec<String> {
        let house = House::of(&[
            MANIFEST,
            PAGE,
            ("backend-agent/src/a.rs", a),
            ("backend-agent/src/b/deep.rs", b),
            ("backend-agent/src/c.rs", c),
            ("backend-agent/src/main.rs", "use viworks_backend_agent::b;"),
        ]);
        judge(&house, &[])
    }

    #[test]
    fn what_stands_lower_may_be_used() {
        let none: [&str; 0] = [];
        assert_eq!(
            said("", "use super::super::a::X;", "fn f() { crate::a::g(); }"),
            none
        );
    }

    #[test]
    fn a_use_of_what_stands_no_lower_is_told_with_its_place() {
        for up in [
            "use crate::b::X;",
            "use crate::{c::{self, d}, b};",
            "\nfn f() { println!(\"{}\", super::c::X); }",
            "mod inline { use super::super::b; }",
        ] {
            let found = said(up, "", "");
            assert!(
                found
                    .iter()
                    .any(|line| line.contains("a.rs:") && line.contains("stands no lower")),
                "{up}: {found:?}"
            );
        }
        assert_eq!(said("", "", "use crate::b;").len(), 1);
    }

    #[test]
    fn a_circle_is_told() {
        let found = said("use crate::b;", "use crate::a;", "");
        let circle = "backend-agent: a circle: a → b → a".to_owned();
        assert!(found.contains(&circle), "{found:?}");
    }

    #[test]
    fn the_page_names_every_module_and_no_other() {
        let house = House::of(&[MANIFEST, PAGE, ("backend-agent/src/d.rs", "")]);
        let found = judge(&house, &[]).join("\n");
        assert!(found.contains("no storey of backend names `d`"), "{found}");
        assert!(found.contains("backend has no module `a`"), "{found}");
    }

    #[test]
    fn an_exception_that_nothing_needs_is_told() {
        let house = House::of(&[MANIFEST]);
        let found = judge(&house, &[("backend-agent", "a", "b", "because")]);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
