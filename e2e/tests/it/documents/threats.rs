//! Every attack of the threat model names a test that is there.

use super::{page, root};

const PAGE: &str = "docs/threat_model.md";

/// A row of a table: its cells.
fn cells(line: &str) -> Option<Vec<&str>> {
    let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
    Some(row.split(" | ").collect())
}

/// What stands within the back ticks of a cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_attack_of_the_threat_model_names_a_test_that_is_there() {
    let text = page(PAGE);
    let (boundaries, undefended) = text.split_once("\n## What is not defended\n").unwrap();
    assert!(undefended.lines().any(|line| line.starts_with("- ")));
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
            let is_there = source.contains(&format!("fn {name}("));
            assert!(is_there, "{title}: {attack}: {file} has no {name}");
            of_boundary += 1;
        }
        assert!(of_boundary > 0, "{title} has no attack");
        rows += of_boundary;
    }
    assert!(rows > 50, "{rows}");
}
