//! The page about limits: every number in it is the code's, or the default of the key that it names.

use std::path::{Path, PathBuf};

/// A row of a table of the page.
struct Row {
    what: String,
    bound: u64,
    /// The words in code spans of its third column.
    set_by: Vec<String>,
    at_the_bound: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rows(text: &str) -> Vec<Row> {
    let table = text.lines().filter(|line| line.starts_with("| "));
    let cells = table.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect());
    let rows = cells.filter_map(|cells: Vec<&str>| {
        let [what, bound, set_by, at_the_bound] = cells.try_into().ok()?;
        Some(Row {
            what: what.to_owned(),
            // The lines of heads have none.
            bound: bound.replace(',', "").parse().ok()?,
            set_by: set_by
                .split('`')
                .skip(1)
                .step_by(2)
                .map(str::to_owned)
                .collect(),
            at_the_bound: at_the_bound.to_owned(),
        })
    });
    rows.collect()
}

/// The default of a key, by the generated references.
fn default_of(section: &str, key: &str) -> Vec<u64> {
    let mut found = Vec::new();
    for page in [
        "docs/configuration_backend.md",
        "docs/configuration_gateway.md",
    ] {
        let text = read(page);
        let Some((_, rest)) = text.split_once(&format!("## `{section}`")) else {
            continue;
        };
        let rest = rest.split("\n## ").next().unwrap();
        let line = rest
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")));
        let default = line.and_then(|line| line.split(" | ").nth(2));
        let number = default.and_then(|default| default.trim_matches('`').parse().ok());
        found.extend::<Option<u64>>(number);
    }
    found
}

/// What a constant comes to, which is a number or a product of numbers.
fn constant(name: &str, file: &str) -> Vec<u64> {
    let text = read(file);
    let text = text.split("#[cfg(test)]").next().unwrap();
    let lines = text.lines().map(str::trim);
    let line = lines
        .filter(|line| line.contains(&format!("const {name}: ")))
        .find_map(|line| line.split_once(" = "));
    let value = line.map(|(_, value)| value.trim_end_matches(';'));
    let factors = value.into_iter().map(|value| {
        let factors = value.split(" * ").map(|factor| {
            let digits = factor.replace('_', "");
            digits
                .parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} in {file} is no product of numbers: {value}"))
        });
        factors.product()
    });
    factors.collect()
}

#[test]
fn every_limit_of_the_page_is_the_one_in_force() {
    let rows = rows(&read("docs/operations/limits.md"));
    assert!(rows.len() > 35, "{} rows", rows.len());
    for row in rows {
        let known = match row.set_by.as_slice() {
            [key, section] if section.starts_with('[') => default_of(section, key),
            [name, file] => constant(name, file),
            other => panic!("{}: {other:?} is neither a key nor a constant", row.what),
        };
        let set_by = row.set_by.join(" ");
        assert!(
            known.contains(&row.bound),
            "{}: the page says {}, and {set_by} is {known:?}",
            row.what,
            row.bound
        );
        assert!(!row.at_the_bound.is_empty(), "{}", row.what);
    }
}

#[test]
fn the_helpers_socket_has_the_bound_of_the_page() {
    let unit = read("systemd/viworks-gateway-helper.socket");
    let bound = unit
        .lines()
        .find_map(|line| line.strip_prefix("MaxConnections="));
    let told = format!("by its socket: {} (`MaxConnections`", bound.unwrap());
    assert!(read("docs/operations/limits.md").contains(&told), "{told}");
}

#[test]
fn a_number_that_is_another_one_is_found() {
    assert_eq!(default_of("[agents]", "connections_max"), [20_000]);
    assert!(default_of("[agents]", "nothing_max").is_empty());
    assert_eq!(constant("PAGE_ROWS_MAX", "common/src/limits.rs"), [1_000]);
    assert!(constant("NOTHING_MAX", "common/src/limits.rs").is_empty());
    let row = "| rows of a page | 1,000 | `PAGE_ROWS_MAX` in `common/src/limits.rs` | refused |";
    assert_eq!(rows(row)[0].bound, 1_000);
    assert_eq!(rows("| --- | --- | --- | --- |").len(), 0);
}
