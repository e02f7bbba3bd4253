//! Who could change a file: its owner, its mode, and every folder above it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// Whose files are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Root's only.
    Root,
    /// Root's, and those of the user that the agent runs as: for demonstrations, where nobody is root.
    RootAndOwn,
}

/// Refuses a path that anybody but the trusted owners could change, directly or through a folder above it.
pub(super) fn check(path: &Path, owners: Owners) -> Result<(), String> {
    let real = fs::canonicalize(path)
        .map_err(|error| format!("{} cannot be examined: {error}", path.display()))?;
    for part in real.ancestors() {
        check_one(part, owners)?;
    }
    Ok(())
}

/// Refuses a program that is missing, cannot be executed, or could be exchanged by others.
pub(super) fn check_program(path: &Path, owners: Owners) -> Result<(), String> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("{} is not installed", path.display()));
        }
        Err(error) => return Err(format!("{} cannot be examined: {error}", path.display())),
    };
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("{} cannot be executed", path.display()));
    }
    check(path, owners)
}

fn check_one(path: &Path, owners: Owners) -> Result<(), String> {
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| format!("{} cannot be examined: {error}", path.display()))?;
    let own = rustix::process::geteuid().as_raw();
    let owner = metadata.uid();
    let trusted = match owners {
        Owners::Root => owner == 0,
        Owners::RootAndOwn => owner == 0 || owner == own,
    };
    if !trusted {
        return Err(format!(
            "{} belongs to user {owner}, who could change it",
            path.display()
        ));
    }
    let mode = metadata.permissions().mode();
    // In a sticky folder, such as /tmp, nobody can exchange what belongs to somebody else.
    let sticky = metadata.is_dir() && mode & 0o1000 != 0;
    if mode & 0o022 != 0 && !sticky {
        return Err(format!(
            "{} can be changed by others (mode {:04o})",
            path.display(),
            mode & 0o7777
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_in_a_folder_that_others_can_write_is_refused_however_deep() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        let file = deep.join("x.toml");
        fs::write(&file, "").unwrap();
        set_mode(&file, 0o644);
        assert_eq!(check(&file, Owners::RootAndOwn), Ok(()));
        for (path, bad, good) in [
            (root.path().join("a"), 0o775, 0o755),
            (deep, 0o757, 0o755),
            (file.clone(), 0o664, 0o644),
        ] {
            set_mode(&path, bad);
            let refusal = check(&file, Owners::RootAndOwn).unwrap_err();
            assert!(refusal.contains("can be changed by others"), "{refusal}");
            set_mode(&path, good);
        }
        assert_eq!(check(&file, Owners::RootAndOwn), Ok(()));
    }

    #[test]
    fn a_link_is_judged_by_what_it_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("target");
        fs::write(&target, "").unwrap();
        set_mode(&target, 0o666);
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(check(&link, Owners::RootAndOwn).is_err());
    }

    #[test]
    fn a_missing_program_is_named() {
        let refusal = check_program(Path::new("/nonexistent/tool"), Owners::Root).unwrap_err();
        assert_eq!(refusal, "/nonexistent/tool is not installed");
    }
}
