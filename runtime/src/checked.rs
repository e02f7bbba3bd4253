//! What a check found, for people and for programs: one shape for every verb that checks something.

use serde_json::{Value, json};
use viworks_common::text;

use crate::logging;
use crate::problem::Problem;
use crate::stdout::{self, PrintError};

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// What is right, what would be done, and what could not be looked at, a sentence each.
    pub found: Vec<String>,
    /// What somebody should know, and no reason not to start.
    pub warnings: Vec<Problem>,
    /// What is wrong, what is to be read first in front. A person is told by whoever shows the error.
    pub problems: Vec<Problem>,
}

impl Checked {
    /// For programs: `status`, which is `pass` or `fail`, `found`, and `warnings` and `problems` as `config explain`
    /// has them.
    #[must_use]
    pub fn json(&self) -> Value {
        let status = if self.problems.is_empty() {
            "pass"
        } else {
            "fail"
        };
        let each = |problems: &[Problem]| problems.iter().map(Problem::json).collect::<Vec<_>>();
        json!({
            "status": status,
            "found": self.found,
            "warnings": each(&self.warnings),
            "problems": each(&self.problems),
        })
    }

    /// Prints it: all of it as one JSON document, or what was found in lines for people, with the warnings on the
    /// standard error output.
    ///
    /// # Errors
    ///
    /// When nothing can be printed.
    pub fn show(&self, as_json: bool) -> Result<(), PrintError> {
        if as_json {
            return stdout::print(&text::json(&format!("{:#}\n", self.json())));
        }
        for warning in &self.warnings {
            logging::say(&text::block(&format!("warning: {warning}")));
        }
        for found in &self.found {
            stdout::print(&text::block(&format!("{found}\n")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_wrong_is_told_to_programs_as_explain_tells_it() {
        let mut checked = Checked {
            found: vec!["a is right".to_owned()],
            ..Checked::default()
        };
        assert_eq!(checked.json()["status"], "pass");
        checked.problems = vec![Problem::of_file(Path::new("/b"), "is not", "make it so")];
        assert_eq!(
            checked.json(),
            json!({
                "status": "fail",
                "found": ["a is right"],
                "warnings": [],
                "problems": [{ "file": "/b", "message": "is not", "help": "make it so" }],
            })
        );
    }
}
