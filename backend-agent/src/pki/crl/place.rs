//! Where a list is put: over one of before, or where nothing is. It is put there by exchanging a name, for which the
//! folder alone is asked, so whatever else has the name would be gone without a word.

use std::fs::Metadata;
use std::io;
use std::path::Path;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use viworks_common::pem;
use viworks_runtime::config::Problem;
use viworks_runtime::files::{self, FileError};

use crate::config::Config;

/// What a section of PEM begins and ends with.
const SECTIONS: [&str; 2] = ["-----BEGIN ", "-----END "];

/// The label of a list in PEM.
const LABEL: &str = "X509 CRL";

const NO_LIST: &str =
    "there is a file that is no list of revoked certificates alone: name another one";

/// More than a list of as many certificates as one can have.
const BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Puts a list there. What has the name is judged once more when it has lost it to the list: what was moved there since
/// [`may_replace`] was asked gets the name back. Through a link what it leads to is replaced, which is what others
/// read.
///
/// # Errors
///
/// As [`may_replace`], or when it cannot be written.
pub(super) fn put(out: &Path, list: &[u8]) -> Result<(), FileError> {
    let out = files::led_to(out)?;
    // There is no secret in it, and nginx may run as anybody.
    files::replace_judged(&out, list, 0o644, |there| {
        // A link that came meanwhile is no list.
        judge(there, std::fs::symlink_metadata(there), &out)
    })
}

/// Whether a list may be put there: over one list and nothing else, or where nothing is. A link is judged by what it
/// leads to.
///
/// # Errors
///
/// When something else is there, such as a key, or something that cannot be looked at.
pub fn may_replace(out: &Path) -> Result<(), FileError> {
    judge(out, std::fs::metadata(out), out)
}

/// The same of what has, or had a moment ago, the name `out`.
fn judge(there: &Path, found: io::Result<Metadata>, out: &Path) -> Result<(), FileError> {
    // Nothing but a file is opened: a pipe would be waited for, and a device may do something.
    let found = match found {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unseen(out, &error)),
    };
    if !found.is_file() {
        return Err(FileError::NotAFile {
            path: out.to_owned(),
        });
    }
    let there = match files::read_at_most(there, BYTES_MAX) {
        Ok(there) => there,
        // It went meanwhile.
        Err(error) if error.is_missing() => return Ok(()),
        Err(error) => {
            return Err(match error.into_io() {
                Ok((_path, source)) => unseen(out, &source),
                Err(FileError::TooLarge { limit, .. }) => FileError::TooLarge {
                    path: out.to_owned(),
                    limit,
                },
                Err(_no_text) => taken(out, NO_LIST),
            });
        }
    };
    if there.is_empty() {
        return Ok(());
    }
    match lists(&there) {
        Some(1) => Ok(()),
        Some(0) | None => Err(taken(out, NO_LIST)),
        Some(_several) => Err(taken(
            out,
            "there is a file with several lists, of which only one would be left: name another file, and put the lists \
             together behind a name of their own, which no list is written to",
        )),
    }
}

/// How many lists a text has; `None` where it has anything else beside blank lines and comments. What is kept in
/// comments, such as a key, is no remark.
fn lists(text: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(text).ok()?;
    let mut remarks = text.lines().filter(|line| line.starts_with('#'));
    if remarks.any(|line| SECTIONS.iter().any(|mark| line.contains(mark))) {
        return None;
    }
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let text = lines.fold(String::with_capacity(text.len()), |text, line| {
        text + line + "\n"
    });
    if !pem::has_nothing_else(&text, LABEL) {
        return None;
    }
    let mut lists = 0;
    for list in CertificateRevocationListDer::pem_slice_iter(text.as_bytes()) {
        let list = list.ok()?;
        if x509_parser::parse_x509_crl(&list).is_err() {
            return None;
        }
        lists += 1;
    }
    Some(lists)
}

/// As a name that is taken by something that must stay.
fn taken(out: &Path, why: &str) -> FileError {
    FileError::Io {
        action: "write",
        path: out.to_owned(),
        source: io::Error::new(io::ErrorKind::AlreadyExists, why),
    }
}

/// Who may not read what is there may well be able to replace it.
fn unseen(out: &Path, error: &io::Error) -> FileError {
    let why = format!(
        "nothing but a list of revoked certificates is replaced, and what is there cannot be looked at: {error}"
    );
    FileError::Io {
        action: "write",
        path: out.to_owned(),
        source: io::Error::new(error.kind(), why),
    }
}

/// That `crl_file` in `[keys]` names something that is no list, which therefore stays as it is.
#[must_use]
pub fn strange_place(config: &Config) -> Option<Problem> {
    let file = config.keys.crl_file.as_ref()?;
    let error = may_replace(file).err()?;
    let message = format!(
        "crl_file in [keys]: the list of revoked certificates is not written: {}",
        error.cause()
    );
    let help = "name a file in crl_file that nothing else is kept in; the backend itself refuses what is revoked";
    Some(Problem::of_file(file, message, help))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use viworks_common::time::Timestamp;
    use viworks_runtime::exit::ExitCode;

    use super::*;
    use crate::pki::authority::Authority;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

    fn list() -> String {
        let now = Timestamp::parse("2026-03-01T00:00:00Z").unwrap();
        let (authority, _key) = Authority::create(now).unwrap();
        let life = Duration::from_secs(3_600);
        authority.revocations(&[], now, life).unwrap()
    }

    #[test]
    fn a_list_takes_the_place_of_one_list_and_of_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("list");
        assert!(may_replace(&place).is_ok());
        let (one, other) = (list(), list());
        for replaced in [
            String::new(),
            one.clone(),
            one.replace('\n', "\r\n"),
            format!("# ours\n\n{one}\n# the end\n"),
        ] {
            std::fs::write(&place, &replaced).unwrap();
            assert!(may_replace(&place).is_ok(), "{replaced}");
        }
        for kept in [
            KEY.to_owned(),
            format!("{one}{KEY}"),
            format!("{KEY}{one}"),
            format!("{}{KEY}", one.trim_end()),
            format!("words\n{one}"),
            format!("{one}# {}\n", KEY.trim_end().replace('\n', "\n# ")),
            "# a note\n".to_owned(),
            one.replace("-----END X509 CRL-----", ""),
            KEY.replace("PRIVATE KEY", LABEL),
        ] {
            std::fs::write(&place, &kept).unwrap();
            let refused = may_replace(&place).unwrap_err();
            assert_eq!(refused.exit_code(), ExitCode::Conflict, "{kept}");
            assert!(refused.cause().contains("is no list"), "{refused}");
        }
        std::fs::write(&place, [0xff, 0xfe]).unwrap();
        assert!(may_replace(&place).is_err());
        std::fs::write(&place, format!("{one}{other}")).unwrap();
        let refused = may_replace(&place).unwrap_err();
        assert!(refused.is_taken(), "{refused}");
        assert!(refused.cause().contains("several lists"), "{refused}");
    }

    #[test]
    fn what_came_there_since_it_was_looked_at_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (place, file) = (folder.path().join("list"), folder.path().join("file"));
        let (one, other) = (list(), list());
        put(&place, one.as_bytes()).unwrap();
        put(&place, other.as_bytes()).unwrap();
        assert_eq!(std::fs::read_to_string(&place).unwrap(), other);
        let mode = std::fs::metadata(&place).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        std::fs::write(&place, KEY).unwrap();
        let refused = put(&place, one.as_bytes()).unwrap_err();
        assert!(refused.is_taken(), "{refused}");
        assert_eq!(refused.path(), place);
        assert_eq!(std::fs::read_to_string(&place).unwrap(), KEY);
        // A link that was moved there.
        std::fs::remove_file(&place).unwrap();
        std::fs::write(&file, &one).unwrap();
        std::os::unix::fs::symlink(&file, &place).unwrap();
        let asked = std::fs::symlink_metadata(&place);
        assert!(matches!(
            judge(&place, asked, &place),
            Err(FileError::NotAFile { .. })
        ));
        // Nothing of the new ones is left.
        assert_eq!(files::names(folder.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_list_goes_where_a_link_leads() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        for list in [list(), list()] {
            put(&link, list.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&file).unwrap(), list);
            assert!(link.symlink_metadata().unwrap().is_symlink());
        }
        std::fs::write(&file, KEY).unwrap();
        assert!(put(&link, list().as_bytes()).unwrap_err().is_taken());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), KEY);
        let circle = folder.path().join("circle");
        std::os::unix::fs::symlink("circle", &circle).unwrap();
        for refused in [may_replace(&circle), put(&circle, b"")] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.exit_code(), ExitCode::Config, "{refused:?}");
        }
    }

    #[test]
    fn a_link_is_judged_by_what_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        let (link, file) = (folder.path().join("link"), folder.path().join("file"));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        // It leads to nothing.
        assert!(may_replace(&link).is_ok());
        std::fs::write(&file, list()).unwrap();
        assert!(may_replace(&link).is_ok());
        std::fs::write(&file, KEY).unwrap();
        assert!(may_replace(&link).unwrap_err().is_taken());
    }

    #[test]
    fn what_is_no_file_is_refused_and_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            may_replace(folder.path()),
            Err(FileError::NotAFile { .. })
        ));
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        // To open it would wait for whoever writes into it.
        assert!(matches!(
            may_replace(&pipe),
            Err(FileError::NotAFile { .. })
        ));
        assert!(may_replace(Path::new("/dev/null")).is_err());
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("file");
        // Root reads everything, and nobody a file that is too large.
        let file = std::fs::File::create(&place).unwrap();
        file.set_len(BYTES_MAX + 1).unwrap();
        assert!(matches!(
            may_replace(&place),
            Err(FileError::TooLarge { .. })
        ));
        // A path through a file cannot be looked at by anybody.
        let below = may_replace(&place.join("list")).unwrap_err();
        assert_eq!(below.exit_code(), ExitCode::Config);
        assert!(below.cause().contains("cannot be looked at"), "{below}");
        std::fs::set_permissions(&place, Permissions::from_mode(0o000)).unwrap();
        file.set_len(7).unwrap();
        if std::fs::read(&place).is_ok() {
            return;
        }
        let denied = may_replace(&place).unwrap_err();
        assert!(denied.is_denied(), "{denied}");
        assert!(denied.cause().contains("cannot be looked at"), "{denied}");
    }
}
