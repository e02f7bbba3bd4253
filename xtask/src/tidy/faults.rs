//! Every fault of the table of faults is shown by a test that exists.

use super::house::House;

const PAGE: &str = "docs/testing.md";
const SECTION: &str = "\n## Faults\n";

pub(crate) fn check(house: &House) -> Vec<String> {
    let Some(text) = house.text(PAGE) else {
        return Vec::new();
    };
    let Some((_, section)) = text.split_once(SECTION) else {
        return vec![format!("{PAGE}: there is no table of faults")];
    };
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let rows = rows.filter(|row| !row.starts_with("| fault "));
    rows.flat_map(|row| of_row(house, row)).collect()
}

/// What is wrong with a row: what happens in its first cell, what shows it in its last.
fn of_row(house: &House, row: &str) -> Vec<String> {
    let mut cells = row.trim().trim_matches('|').split(" | ");
    let fault = cells.next().unwrap_or_default().trim();
    let named = cells.last().unwrap_or_default();
    let tests: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
    if tests.is_empty() {
        return vec![format!("{PAGE}: no test shows this: {fault}")];
    }
    let missing = tests.into_iter().filter(|test| !is_test(house, test));
    missing
        .map(|test| format!("{PAGE}: there is no test {test}, which is to show this: {fault}"))
        .collect()
}

/// Whether a function of this name is where tests are.
fn is_test(house: &House, name: &str) -> bool {
    let function = format!("fn {name}(");
    let mut files = house.texts().filter(|(file, _)| file.ends_with(".rs"));
    files.any(|(file, text)| {
        (super::house::is_test(file) || text.contains("#[cfg(test)]")) && text.contains(&function)
    })
}

#[cfg(test)]
mod tests {
    use super::{PAGE, check};
    use crate::tidy::house::House;

    fn found(row: &str) -> Vec<String> {
        let page = format!(
            "# Testing\n\n## Faults\n\n| fault | shown by |\n|---|---|\n{row}\n\n## Other\n| x | y |\n"
        );
        check(&House::of(&[
            (PAGE, &page),
            ("e2e/tests/it/faults.rs", "async fn it_goes_on() {}"),
            ("common/src/plain.rs", "fn it_is_no_test() {}"),
        ]))
    }

    #[test]
    fn a_fault_without_a_test_is_told() {
        assert_eq!(found("| it is killed | `it_goes_on` |"), [""; 0]);
        for (row, said) in [
            (
                "| it is killed | somebody looked |",
                "no test shows this: it is killed",
            ),
            (
                "| it is killed | `it_goes_on`, `it_is_gone` |",
                "no test it_is_gone",
            ),
            (
                "| it is killed | `it_is_no_test` |",
                "no test it_is_no_test",
            ),
        ] {
            assert!(found(row).concat().contains(said), "{:?}", found(row));
        }
        let none = check(&House::of(&[(PAGE, "# Testing\n")]));
        assert!(none.concat().contains("no table of faults"), "{none:?}");
    }
}
