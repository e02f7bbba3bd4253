//! Who could exchange a program that may run.

use std::path::Path;

use viworks_runtime::files::{self, FileError, Owners};

/// Refuses a program that is missing, cannot be executed, or could be exchanged by others than the trusted owners.
pub(super) fn check_program(path: &Path, owners: Owners) -> Result<(), String> {
    match files::examine_program(path, owners) {
        Ok(mode) if mode & 0o111 != 0 => Ok(()),
        Ok(_) | Err(FileError::NotAFile { .. }) => {
            Err(format!("{} cannot be executed", path.display()))
        }
        Err(error) if error.is_missing() => Err(format!("{} is not installed", path.display())),
        Err(error) => Err(error.cause()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let refusal = check_program(Path::new("/nonexistent/tool"), Owners::Root).unwrap_err();
        assert_eq!(refusal, "/nonexistent/tool is not installed");
    }

    #[test]
    fn what_is_no_program_is_named() {
        for path in ["/", "/etc/passwd", "/dev/null"] {
            let refusal = check_program(Path::new(path), Owners::Root).unwrap_err();
            assert_eq!(refusal, format!("{path} cannot be executed"));
        }
        check_program(Path::new("/bin/sh"), Owners::Root).unwrap();
    }
}
