//! Asking whoever is at the keyboard.

use std::io::IsTerminal as _;

use viworks_runtime::exit::ExitCode;

use crate::failure::Failure;
use crate::output;

/// Goes on after a yes; `flag` says it in scripts, and `otherwise` is what a no comes to.
pub(super) fn ask(what: &str, flag: &str, otherwise: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(
            Failure::new(ExitCode::Declined, format!("{what} A prompt was needed"))
                .with(format!("in scripts, add {flag}")),
        );
    }
    output::note(&format!("{what} Continue? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::new(
            ExitCode::Declined,
            format!("you said no; {otherwise}"),
        ))
    }
}
