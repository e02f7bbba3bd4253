//! Every drill of the page about certificates is a test that is there.

use super::{page, root};

const PAGE: &str = "docs/certificate_management.md";
const RUNS: &str = "cargo test -p viworks-e2e --test it -- ";

#[test]
fn every_drill_is_one_command_that_runs_a_test() {
    let text = page(PAGE);
    let (_, drills) = text.split_once("\n## Drills\n").unwrap();
    let (drills, _) = drills.split_once("\n## ").unwrap();
    let mut rehearsed = 0;
    for row in drills.lines().filter(|line| line.contains(RUNS)) {
        let quoted: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let [command, file] = quoted[..] else {
            panic!("{row} has no command and its file");
        };
        let name = command.strip_prefix(RUNS).unwrap();
        let source = std::fs::read_to_string(root().join(file)).unwrap();
        assert!(source.contains(&format!("fn {name}(")), "{file}: {name}");
        rehearsed += 1;
    }
    assert!(rehearsed >= 4, "{drills}");
}
