//! Pages name nothing that is not there: files, links, decisions, crates, flags, endpoints, names of code and keys.

use std::collections::BTreeSet;

use super::house::House;
use super::words::{Placed, Token, words};

/// Flags of programs that are not ours, by the program.
const FOREIGN_FLAGS: &[(&str, &[&str])] = &[
    (
        "cargo",
        &["bin", "example", "profile", "release", "test", "workspace"],
    ),
    (
        "nobody yet: decision 6 says when it would come",
        &["output-mode"],
    ),
    ("curl", &["unix-socket"]),
    (
        "schemathesis",
        &["continue-on-failure", "exclude-checks", "request-timeout"],
    ),
];

/// What looks like a name or a path of ours and is none: the word and what it is.
const FOREIGN: &[(&str, &str)] = &[
    ("CLIENT", "a word of x509-limbo"),
    ("http/1.1", "a protocol"),
    ("target/tools", "a folder that a check makes"),
    ("state/backend.sqlite", "a file of a backend that runs"),
    (
        "telemetry_2026_10_26_to_2026_11_01",
        "a table that a backend makes",
    ),
];

/// The page whose rows name tests and their files, which `e2e/tests/it/documents/threats.rs` holds, unit tests as well.
const THREATS: &str = "docs/threat_model.md";

/// What others published, whose words are not ours.
const OF_OTHERS: &str = "e2e/tests/fixtures/compose/";

pub(crate) fn check(house: &House) -> Vec<String> {
    let known = Known::of(house);
    let mut found = Vec::new();
    for (page, text) in house.texts().filter(|(name, _)| is_page(name)) {
        for (line, number) in text.lines().zip(1..) {
            let mut tell = |what: String| found.push(format!("{page}:{number}: {what}"));
            for target in links(line) {
                if let Some(why) = broken(house, page, target) {
                    tell(why);
                }
            }
            for number in decisions(line) {
                if !is_decision(house, number) {
                    tell(format!("there is no decision {number}"));
                }
            }
            for path in paths(house, line) {
                if !is_path(house, path) {
                    tell(format!("there is no {path}"));
                }
            }
            for flag in flags(line) {
                if !known.flags.contains(&flag.replace('-', "_")) && !is_foreign_flag(flag) {
                    tell(format!("there is no flag --{flag}"));
                }
            }
            for route in routes(line) {
                if !known.is_route(route) {
                    tell(format!("docs/openapi.json has no {route}"));
                }
            }
            let mut parts = line.split('`').skip(1);
            while let Some(span) = parts.next() {
                // A test in a file: that it is in exactly that one is held where the page's tests are.
                let then = parts.next().unwrap_or_default();
                let is_placed = page == THREATS && then == " in ";
                for word in names(span) {
                    if !is_placed && !known.is_name(word) && !is_foreign(word) {
                        tell(format!("nothing is called `{word}`"));
                    }
                }
                if is_module_path(span) && !is_module(house, span) && !is_foreign(span) {
                    tell(format!("there is no module {span}"));
                }
            }
        }
    }
    found.extend(crates(house));
    found
}

/// Pages that say how things are. What once was is for the changelog to say.
fn is_page(name: &str) -> bool {
    let top = ["README.md", "SECURITY.md", "CONTRIBUTING.md"].contains(&name);
    top || (name.starts_with("docs/") && name.ends_with(".md"))
}

fn is_foreign(word: &str) -> bool {
    FOREIGN.iter().any(|(foreign, _)| *foreign == word)
}

fn is_foreign_flag(flag: &str) -> bool {
    FOREIGN_FLAGS.iter().any(|(_, flags)| flags.contains(&flag))
}

/// What the sources know.
struct Known {
    words: BTreeSet<String>,
    flags: BTreeSet<String>,
    routes: Vec<Vec<String>>,
}

impl Known {
    fn of(house: &House) -> Self {
        let mut all = BTreeSet::new();
        let mut flags = BTreeSet::new();
        // A gateway's local API has no description but its table.
        let mut local = Vec::new();
        for (file, tokens) in house.code() {
            // The lists here say what is foreign, not what there is.
            if file.starts_with("xtask/src/tidy/") {
                continue;
            }
            for (at, placed) in tokens.iter().enumerate() {
                match &placed.token {
                    Token::Word(word) => {
                        if tokens.get(at + 1).is_some_and(|next| next.is(':')) {
                            flags.insert(word.clone());
                        }
                        all.insert(word.clone());
                        // A duration of the configuration: its key says in which unit it is.
                        if word == "duration_ms"
                            && let Some(Token::Word(field)) = at
                                .checked_sub(4)
                                .and_then(|at| tokens.get(at))
                                .map(|it| &it.token)
                        {
                            all.insert(format!("{field}_ms"));
                        }
                    }
                    Token::Literal(text) if !is_documentation(tokens, at) => {
                        all.extend(words(text).map(str::to_owned));
                        flags.extend(self::flags(text).map(|flag| flag.replace('-', "_")));
                        flags.insert(text.trim_matches('"').replace('-', "_"));
                        if file == "gateway-agent/src/api.rs"
                            && let Some(path) = text.trim_matches('"').strip_prefix("/v1/")
                        {
                            local
                                .push(format!("v1/{path}").split('/').map(str::to_owned).collect());
                        }
                    }
                    Token::Literal(_) | Token::Mark(_) | Token::Open(_) | Token::Close(_) => {}
                }
            }
        }
        for (file, text) in house
            .texts()
            .filter(|(file, _)| !file.starts_with(OF_OTHERS))
        {
            all.extend(words(file).map(str::to_owned));
            let read = [
                ".sql", ".toml", ".sh", ".py", ".json", ".lock", ".service", ".conf",
            ];
            if read.iter().any(|end| file.ends_with(end)) {
                all.extend(words(text).map(str::to_owned));
                flags.extend(self::flags(text).map(|flag| flag.replace('-', "_")));
            }
        }
        let described = house.text("docs/openapi.json").unwrap_or_default();
        let routes = described.lines().filter_map(|line| {
            let path = line.trim().strip_prefix('"')?.strip_suffix("\": {")?;
            let path = path.strip_prefix('/')?;
            Some(path.split('/').map(str::to_owned).collect())
        });
        Self {
            words: all,
            flags,
            routes: routes.chain(local).collect(),
        }
    }

    fn is_name(&self, word: &str) -> bool {
        if self.words.contains(word) {
            return true;
        }
        if let Some(key) = word.strip_prefix("VIWORKS__") {
            let mut parts = key.split("__").map(str::to_lowercase);
            return parts.all(|part| self.words.contains(&part));
        }
        // A metric: its registry adds the prefix, and its kind or unit the end.
        let Some(metric) = word.strip_prefix("viworks_") else {
            return false;
        };
        let ends = [
            "",
            "_total",
            "_seconds",
            "_bytes",
            "_seconds_total",
            "_info",
        ];
        ends.iter()
            .filter_map(|end| metric.strip_suffix(end))
            .any(|metric| self.words.contains(metric))
    }

    fn is_route(&self, route: &str) -> bool {
        let asked: Vec<&str> = route.trim_matches('/').split('/').collect();
        self.routes.iter().any(|known| {
            let fits = known
                .iter()
                .zip(&asked)
                .all(|(known, asked)| known == asked || known.starts_with('{'));
            // A page may name a family by its beginning.
            fits && (known.len() == asked.len()
                || (route.ends_with('/') && asked.len() < known.len()))
        })
    }
}

fn is_documentation(tokens: &[Placed], at: usize) -> bool {
    let before = at.checked_sub(2).and_then(|at| tokens.get(at));
    before.is_some_and(|placed| placed.word() == Some("doc"))
}

/// Targets of links.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let outside = if line.contains("](") { line } else { "" };
    let targets = outside.split("](").skip(1);
    targets.filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

fn broken(house: &House, page: &str, target: &str) -> Option<String> {
    if target.starts_with("http") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let mut place: Vec<&str> = page.split('/').collect();
    if !file.is_empty() {
        place.pop();
        for step in file.split('/') {
            match step {
                "." => {}
                ".." => {
                    place.pop();
                }
                step => place.push(step),
            }
        }
    }
    let name = place.join("/");
    if !house.has(&name) {
        return Some(format!("the link {target} goes nowhere"));
    }
    let text = house.text(&name).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let there = anchor.is_empty() || headings.map(slug).any(|slug| slug == anchor);
    (!there).then(|| format!("the link {target} names no heading of {name}"))
}

fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Numbers behind the word "decision".
fn decisions(line: &str) -> impl Iterator<Item = &str> {
    line.split("decision ").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit());
        let number = rest.get(..end.unwrap_or(rest.len()))?;
        (!number.is_empty()).then_some(number)
    })
}

fn is_decision(house: &House, number: &str) -> bool {
    let start = format!("docs/decisions/{number:0>4}-");
    house.texts().any(|(name, _)| name.starts_with(&start))
}

/// What begins with the name of a folder of the root and goes on.
fn paths<'a>(house: &House, line: &'a str) -> Vec<&'a str> {
    let inside = |c: char| c.is_ascii_alphanumeric() || "_./*-".contains(c);
    line.split(|c: char| !inside(c))
        .map(|word| word.trim_start_matches("./").trim_end_matches(['.', '*']))
        .filter(|word| {
            let top = word.split_once('/').map(|(top, _)| top);
            top.is_some_and(|top| {
                top != "target" && !top.is_empty() && house.has(top) && !top.contains('.')
            })
        })
        .collect()
}

fn is_path(house: &House, path: &str) -> bool {
    // A word in capitals is for the reader to fill in; what is made is not kept.
    let fixed: Vec<&str> = path
        .split('/')
        .take_while(|part| !part.chars().all(|c| c.is_ascii_uppercase()) && *part != "artifacts")
        .collect();
    let fixed = fixed.join("/");
    let (top, rest) = fixed.split_once('/').unwrap_or((&fixed, ""));
    house.has(&fixed)
        || house.has(&format!("{fixed}.rs"))
        || house.has(&format!("{top}/src/{rest}"))
        || house.has(&format!("{top}/src/{rest}.rs"))
        || (top == "docs" && house.texts().any(|(name, _)| name.starts_with(&fixed)))
}

/// Flags: two dashes and a word.
fn flags(line: &str) -> impl Iterator<Item = &str> {
    line.split("--").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-');
        let flag = rest.get(..end.unwrap_or(rest.len()))?;
        let flag = flag.trim_end_matches('-');
        flag.starts_with(|c: char| c.is_ascii_lowercase())
            .then_some(flag)
    })
}

/// Endpoints of the REST API.
fn routes(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("/v1/").filter_map(|(at, _)| {
        let rest = line.get(at..)?;
        let inside = |c: char| c.is_ascii_alphanumeric() || "/_-{}$<>".contains(c);
        let end = rest.find(|c: char| !inside(c)).unwrap_or(rest.len());
        let before = line.get(..at)?.chars().next_back();
        // `https://host/v1/…` is ours as well, `/agent/v1/…` is not of the REST API.
        (!before.is_some_and(char::is_alphabetic)).then(|| rest.get(..end))?
    })
}

/// The names in a span of code: words with an underscore, alone or joined by `.` and `::`, or in brackets.
fn names(span: &str) -> Vec<&str> {
    let span = span
        .trim_start_matches('[')
        .trim_end_matches([']', '(', ')', '?', '!']);
    let whole = |c: char| c.is_ascii_alphanumeric() || "_.:".contains(c);
    if span.contains("....") || !span.chars().all(whole) {
        return Vec::new();
    }
    let telling = |word: &&str| {
        word.contains('_') && word.chars().any(|c| c.is_ascii_alphabetic())
            || word.starts_with(|c: char| c.is_ascii_uppercase()) && word.len() > 3
            || span.contains("::") && !word.is_empty()
    };
    words(span).filter(telling).collect()
}

/// `a/b`, as pages shorten `CRATE/src/a/b.rs`.
fn is_module_path(span: &str) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_/.".contains(c);
    let begins = span.starts_with(|c: char| c.is_ascii_lowercase());
    begins && span.contains('/') && !span.ends_with('/') && span.chars().all(inside)
}

fn is_module(house: &House, span: &str) -> bool {
    let plain = span.trim_end_matches(".rs");
    let inside = |member: &str| house.has(&format!("{member}/src/{plain}.rs"));
    is_path(house, span) || house.crates().into_iter().any(inside)
}

/// The table of crates names every one of the workspace, and no other.
fn crates(house: &House) -> Vec<String> {
    const PAGE: &str = "docs/architecture.md";
    let Some(text) = house.text(PAGE) else {
        return Vec::new();
    };
    let section = text
        .split_once("\n## The crates\n")
        .map_or("", |(_, rest)| rest);
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split(" |").next());
    let listed: BTreeSet<&str> = cells
        .flat_map(|cell| cell.split(['`', ',', ' ']))
        .filter(|name| !name.is_empty())
        .collect();
    let members: BTreeSet<&str> = house.crates().into_iter().collect();
    let missing = members.difference(&listed);
    let missing = missing.map(|name| format!("{PAGE}: the table of crates does not name `{name}`"));
    let gone = listed.difference(&members);
    let gone = gone.map(|name| format!("{PAGE}: the workspace has no crate `{name}`"));
    missing.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::tidy::house::House;

    fn found(page: &str) -> Vec<String> {
        check(&House::of(&[
            ("README.md", page),
            ("docs/api.md", "# The API\n## What it *is*\n"),
            ("docs/openapi.json", "  \"/v1/runs/{id}\": {\n"),
            ("docs/decisions/0003-names.md", ""),
            (
                "e2e/tests/fixtures/compose/a.json",
                "\"word_of_others\": \"--flag-of-others\"",
            ),
            (
                "common/src/wire/frame.rs",
                "struct Args { dry_run: bool } const M: &str = \"frames\"; fn seal_it() {}",
            ),
            ("Cargo.toml", "members = [\"common\"]"),
        ]))
    }

    #[test]
    fn what_is_there_may_be_named() {
        let none: [&str; 0] = [];
        for good in [
            "[it](docs/api.md#what-it-is) and [there](https://example.org/)",
            "as decision 3 says, see docs/decisions/0003",
            "`common/src/wire/frame.rs`, `common/wire`, `wire/frame`, docs/",
            "`--dry-run`, `cargo test --workspace`",
            "`GET /v1/runs/RUN` and curl http://127.0.0.1/v1/runs/$ID",
            "`seal_it`, `wire::frame`, `Args`, `viworks_frames_total`",
        ] {
            assert_eq!(found(good), none, "{good}");
        }
    }

    #[test]
    fn what_is_not_there_is_told() {
        for bad in [
            "[it](docs/gone.md)",
            "[it](docs/api.md#gone)",
            "as decision 4 says",
            "see common/src/gone.rs",
            "`wire/gone`",
            "`--gone`",
            "`GET /v1/gone`",
            "`is_gone`",
            "`wire::gone`",
            "`viworks_gone_total`",
            "`VIWORKS__GONE__KEY`",
            "`GoneType`",
            "`word_of_others`",
            "`--flag-of-others`",
        ] {
            assert!(!found(bad).is_empty(), "{bad}");
        }
    }

    #[test]
    fn the_table_of_crates_is_the_workspace() {
        let page = "\n## The crates\n| `api`, `runtime` | x |\n";
        let manifest = "members = [\"api\", \"common\"]";
        let house = House::of(&[("docs/architecture.md", page), ("Cargo.toml", manifest)]);
        let said = check(&house).join("\n");
        assert!(said.contains("does not name `common`"), "{said}");
        assert!(said.contains("has no crate `runtime`"), "{said}");
    }
}
