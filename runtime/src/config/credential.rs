//! Secrets that the service manager hands to the process: `credential:NAME` names one where a file can be named.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::value::Refusal;

/// What a value begins with that names a credential.
pub(super) const PREFIX: &str = "credential:";

/// The folder that the service manager made for this process.
const FOLDER: &str = "CREDENTIALS_DIRECTORY";

/// Where the credential is that `value` names; `None` where it names a file.
pub(super) fn find(value: &str, environment: &Environment) -> Option<Result<PathBuf, Refusal>> {
    let name = value.strip_prefix(PREFIX)?;
    Some(place(name, environment))
}

fn place(name: &str, environment: &Environment) -> Result<PathBuf, Refusal> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Refusal::new(
            format!("{name:?} is not the name of a credential"),
            format!("{PREFIX}NAME, with the NAME of LoadCredential= in the unit"),
        ));
    }
    let Some(folder) = environment.get(FOLDER) else {
        return Err(Refusal::new(
            format!("there is no credential {name}: this process was given none"),
            format!(
                "give it as LoadCredential={name}:FILE in the unit; by hand, run this with {FOLDER} set to a folder with \
                 that file"
            ),
        ));
    };
    Ok(Path::new(folder).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_a_name_in_the_folder_of_the_service_manager() {
        let given = [("CREDENTIALS_DIRECTORY", "/run/credentials/x.service")];
        let given: Environment = given.into_iter().collect();
        let found = find("credential:master.key", &given).unwrap().unwrap();
        assert_eq!(found, Path::new("/run/credentials/x.service/master.key"));
        assert!(find("master.key", &given).is_none());
        for outside in ["credential:", "credential:..", "credential:a/b"] {
            assert!(find(outside, &given).unwrap().is_err(), "{outside}");
        }
        let refused = find("credential:master.key", &Environment::default());
        let Refusal { message, help } = refused.unwrap().unwrap_err();
        assert!(message.contains("this process was given none"), "{message}");
        assert!(help.contains("LoadCredential=master.key:FILE"), "{help}");
    }
}
