//! Every attack of the threat model names a test that is there.

use super::{page, root};

const PAGE: &str = "docs/threat_model.md";

/// Where the tests are listed that run on every database.
const SUITES: &str = "backend-agent/tests/it/store.rs";

/// A row of a table: its cells.
fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
    Some(row.split(" | ").collect())
}

/// What stands within the back ticks of a cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Whether what follows is a test: its last lines say so, without an empty one in between.
fn is_test(before: &str) -> bool {
    let lines = before.lines().rev().take_while(|line| !line.is_empty());
    lines.map(str::trim_start).any(|line| {
        ["#[test]", "#[tokio::test"]
            .iter()
            .any(|mark| line.starts_with(mark))
    })
}

/// Whether it is one of the suites that run on every database.
fn is_of_suite(file: &str, name: &str, suites: &str) -> bool {
    let mut listed = suites.lines().map(str::trim);
    file.starts_with("backend-agent/tests/it/store/") && listed.any(|it| it == format!("{name},"))
}

#[test]
fn every_attack_of_the_threat_model_names_a_test_that_is_there() {
    let text = page(PAGE);
    let (boundaries, undefended) = text.split_once("\n## What is not defended\n").unwrap();
    assert!(undefended.lines().any(|line| line.starts_with("- ")));
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let (suites, recipes) = (read(SUITES), read("xtask/src/recipes.rs"));
    let mut rows = 0;
    for boundary in boundaries.split("\n## ").skip(1) {
        let title = boundary.lines().next().unwrap();
        let mut own = boundary.lines().filter_map(cells);
        let head = own.next();
        assert_eq!(head, Some(vec!["Attack", "Answer", "Test"]), "{title}");
        let mut of_boundary = 0;
        for row in own.skip(1) {
            let [attack, answer, test] = row[..] else {
                panic!("{title}: {row:?}");
            };
            assert!(!attack.is_empty() && !answer.is_empty(), "{title}: {row:?}");
            let [name, file] = quoted(test)[..] else {
                panic!("{title}: {attack}: {test} is no test and its file");
            };
            let source = std::fs::read_to_string(root().join(file));
            let source = source.unwrap_or_else(|error| panic!("{title}: {file}: {error}"));
            let Some((before, _)) = source.split_once(&format!("fn {name}(")) else {
                panic!("{title}: {attack}: {file} has no {name}");
            };
            let is_run = if test.starts_with("the recipe ") {
                file.starts_with("xtask/src/") && recipes.contains(&format!("::{name},"))
            } else {
                is_test(before) || is_of_suite(file, name, &suites)
            };
            assert!(is_run, "{title}: {attack}: {name} is run by nobody");
            of_boundary += 1;
        }
        assert!(of_boundary > 0, "{title} has no attack");
        rows += of_boundary;
    }
    assert!(rows > 50, "{rows}");
}
