//! What the process ends with when something failed.

use viworks_runtime::bundle::BundleError;
use viworks_runtime::config::Problems;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::{self, FileError};
use viworks_runtime::ready_file::file_of;
use viworks_runtime::tls::TlsError;
use viworks_runtime::{fault, sqlite};

use crate::auth::apikey::CreateError;
use crate::data::StoreError;
use crate::data::moving::MoveError;
use crate::data::sqlite as embedded;
use crate::pki::PkiError;
use crate::start_error::StartError;

/// What to do about an error that does not say so itself.
pub(super) fn fix_of(error: &anyhow::Error) -> Option<&'static str> {
    if is_taken(error) {
        return Some(
            "name a new file with --out, or move the one that is there: it may hold a key that is in use",
        );
    }
    if is_damaged(error) {
        return Some(embedded::DAMAGED_FIX);
    }
    if let Some(fix) = error.downcast_ref::<StartError>().and_then(StartError::fix) {
        return Some(fix);
    }
    match full(error) {
        Some(Full::Embedded) => Some(
            "make room on the disk of [data] state_folder, and try again; what was committed is there",
        ),
        Some(Full::Server) => Some(
            "make room on the disk of the database server, and try again; what was committed is there",
        ),
        None => fix_of_file(error),
    }
}

/// What to do about a file that was named and is of no use.
fn fix_of_file(error: &anyhow::Error) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<BundleError>() {
        return error.fix();
    }
    if let Some(CreateError::Write { source, .. }) = error.downcast_ref() {
        return files::output_fix(source);
    }
    if let Some(error) = error.downcast_ref::<PkiError>() {
        return fix_of_pki(error);
    }
    file_of(error.chain()).and_then(FileError::named_fix)
}

fn fix_of_pki(error: &PkiError) -> Option<&'static str> {
    if let PkiError::Unfinished { source, .. } = error {
        fix_of_pki(source)
    } else if let PkiError::Write { source, .. } = error {
        files::output_fix(source)
    } else if let PkiError::File(error) | PkiError::Tls(TlsError::File(error)) = error {
        error.named_fix()
    } else {
        None
    }
}

/// Whether a key was to go into a file that is there.
fn is_taken(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(CreateError::Write { source, .. })
            if source.kind() == std::io::ErrorKind::AlreadyExists
    )
}

/// Whether the embedded database is damaged, which no other start mends.
fn is_damaged(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| matches!(cause.downcast_ref(), Some(sqlite::Error::Corrupt { .. })))
}

/// Which database takes no more.
enum Full {
    Embedded,
    Server,
}

fn full(error: &anyhow::Error) -> Option<Full> {
    error.chain().find_map(|cause| {
        if let Some(sqlite::Error::Full(_)) = cause.downcast_ref() {
            return Some(Full::Embedded);
        }
        match cause.downcast_ref() {
            Some(StoreError::Full(cause)) if cause.is::<sqlite::Error>() => Some(Full::Embedded),
            Some(StoreError::Full(_)) => Some(Full::Server),
            _ => None,
        }
    })
}

/// The code of the cause that says most.
pub(super) fn code_of(error: &anyhow::Error) -> ExitCode {
    // Room may be made while the service manager tries again.
    if full(error).is_some() {
        return ExitCode::Unavailable;
    }
    if is_damaged(error) {
        return ExitCode::Config;
    }
    if let Some(problems) = error.downcast_ref::<Problems>() {
        return problems.exit_code();
    }
    if let Some(start) = error.downcast_ref::<StartError>() {
        return start.exit_code();
    }
    if let Some(moving) = error.downcast_ref::<MoveError>() {
        return match moving {
            MoveError::NotEmpty(_) | MoveError::OtherSite => ExitCode::Conflict,
            MoveError::NotMoved => ExitCode::NotFound,
            MoveError::NoSite(_) | MoveError::Elsewhere(_) | MoveError::Ahead => ExitCode::Config,
            MoveError::Target { source, .. } if source.is_lasting() => ExitCode::Config,
            MoveError::Source(source) if source.is_lasting() => ExitCode::Config,
            MoveError::Target { .. } => ExitCode::Unavailable,
            MoveError::Stopped => ExitCode::Interrupted,
            MoveError::Source(_) | MoveError::Row { .. } | MoveError::Differs { .. } => {
                ExitCode::Error
            }
        };
    }
    if error.downcast_ref::<fault::FaultError>().is_some() {
        return ExitCode::Config;
    }
    if let Some(error) = error.downcast_ref::<BundleError>() {
        return error.exit_code();
    }
    let store = error.downcast_ref::<StoreError>().or_else(|| {
        match (
            error.downcast_ref::<PkiError>(),
            error.downcast_ref::<CreateError>(),
        ) {
            (Some(PkiError::Store(error)), _) | (None, Some(CreateError::Store(error))) => {
                Some(error)
            }
            _ => None,
        }
    });
    if is_taken(error) {
        return ExitCode::Conflict;
    }
    match error.downcast_ref::<CreateError>() {
        Some(CreateError::BadName | CreateError::NoScope | CreateError::BadExpiry) => {
            return ExitCode::Usage;
        }
        Some(CreateError::Write { source, .. }) => return ExitCode::of_file(source),
        Some(CreateError::File(error)) => return error.exit_code(),
        Some(CreateError::Store(_)) | None => {}
    }
    if matches!(store, Some(StoreError::Conflict { .. })) {
        return ExitCode::Conflict;
    }
    if let Some(error) = error.downcast_ref::<PkiError>() {
        return of_pki(error);
    }
    file_of(error.chain()).map_or(ExitCode::Error, FileError::exit_code)
}

/// What is not right about a file that was named is the same whether the configuration or a flag names it.
fn of_pki(error: &PkiError) -> ExitCode {
    match error {
        PkiError::Url { .. }
        | PkiError::Name { .. }
        | PkiError::Request { .. }
        | PkiError::SignerPath { .. }
        | PkiError::SignerWord { .. } => ExitCode::Usage,
        PkiError::Exists { .. } | PkiError::Answered { .. } | PkiError::KeyInUse => {
            ExitCode::Conflict
        }
        PkiError::File(error) | PkiError::Tls(TlsError::File(error)) => error.exit_code(),
        PkiError::Tls(_)
        | PkiError::MasterKey { .. }
        | PkiError::Key { .. }
        | PkiError::Authority { .. }
        | PkiError::NotInForce { .. }
        | PkiError::NotAnAuthority { .. }
        | PkiError::NoAuthority
        | PkiError::Signer { .. } => ExitCode::Config,
        // The same call may do the next time: no file and no line of the configuration is to be changed for that.
        PkiError::Unsigned { .. } => ExitCode::Unavailable,
        PkiError::Unfinished { source, .. } => of_pki(source),
        PkiError::Write { source, .. } => ExitCode::of_file(source),
        PkiError::Certificate(_) | PkiError::Store(_) => ExitCode::Error,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use viworks_runtime::bundle::BundleError;
    use viworks_runtime::exit::ExitCode;
    use viworks_runtime::files::FileError;
    use viworks_runtime::ready_file::ReadyFileError;
    use viworks_runtime::sqlite;
    use viworks_runtime::tls::TlsError;

    use super::{code_of, fix_of};
    use crate::auth::apikey::CreateError;
    use crate::data::StoreError;
    use crate::data::moving::MoveError;
    use crate::pki::PkiError;
    use crate::pki::site::SiteError;
    use crate::start_error::StartError;

    #[test]
    fn a_full_disk_is_no_fault_of_ours_and_says_what_to_do() {
        let full = || {
            let code = rusqlite::ffi::Error::new(13);
            sqlite::Error::Full(Arc::new(rusqlite::Error::SqliteFailure(code, None)))
        };
        let embedded = || StoreError::from(full());
        let server = StoreError::Full(Box::new(std::io::Error::other("53100")));
        for (error, told) in [
            (StartError::from(full()).into(), "[data] state_folder"),
            (CreateError::Store(embedded()).into(), "[data] state_folder"),
            (
                anyhow::Error::from(embedded()).context("a key"),
                "[data] state_folder",
            ),
            (server.into(), "database server"),
        ] {
            assert_eq!(code_of(&error), ExitCode::Unavailable, "{error:#}");
            let fix = fix_of(&error).unwrap();
            assert!(fix.contains(told), "{error:#}: {fix}");
        }
        let other = anyhow::Error::from(StartError::from(sqlite::Error::ReadersBusy));
        assert_eq!((code_of(&other), fix_of(&other)), (ExitCode::Error, None));
    }

    #[test]
    fn a_file_that_is_named_and_of_no_use_is_no_unexpected_failure() {
        let path = || std::path::PathBuf::from("/x/ca.key");
        let missing = || FileError::Io {
            action: "open",
            path: path(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let reason = String::new;
        for (error, code) in [
            (PkiError::File(missing()), ExitCode::Config),
            (PkiError::Tls(TlsError::File(missing())), ExitCode::Config),
            (
                PkiError::Authority {
                    certificate: path(),
                    key: path(),
                },
                ExitCode::Config,
            ),
            (
                PkiError::NotAnAuthority {
                    path: path(),
                    reason: reason(),
                },
                ExitCode::Config,
            ),
            (PkiError::Signer { reason: reason() }, ExitCode::Config),
            (
                PkiError::Unsigned { reason: reason() },
                ExitCode::Unavailable,
            ),
            (PkiError::SignerWord { word: reason() }, ExitCode::Usage),
            (
                PkiError::SignerPath {
                    program: "sign.sh".to_owned(),
                },
                ExitCode::Usage,
            ),
            (PkiError::Exists { path: path() }, ExitCode::Conflict),
        ] {
            assert_eq!(super::of_pki(&error), code, "{error}");
        }
        let unfinished = PkiError::Unfinished {
            folder: path(),
            source: Box::new(PkiError::File(missing())),
        };
        assert_eq!(code_of(&unfinished.into()), ExitCode::Config);
    }

    #[test]
    fn a_file_that_cannot_be_read_says_what_to_do_about_that() {
        let missing = || FileError::Io {
            action: "open",
            path: "/x/a.csr".into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        for error in [
            anyhow::Error::from(PkiError::File(missing())),
            PkiError::Tls(TlsError::File(missing())).into(),
            anyhow::Error::from(missing()).context("the request"),
        ] {
            assert_eq!(code_of(&error), ExitCode::Config, "{error:#}");
            let fix = fix_of(&error).unwrap();
            assert!(fix.contains("a file that is there"), "{error:#}: {fix}");
        }
        let folder = PkiError::File(FileError::NotAFile { path: "/x".into() });
        let fix = fix_of(&folder.into()).unwrap();
        assert!(fix.contains("not a folder"), "{fix}");
    }

    #[test]
    fn a_file_that_cannot_be_written_says_what_to_do() {
        let path = || std::path::PathBuf::from("/x/new");
        let refused = |errno: i32| std::io::Error::from_raw_os_error(errno);
        let (missing, broken, full, long) = (2, 5, 28, 36);
        for (errno, code, told) in [
            (missing, ExitCode::Config, "in a folder that is there"),
            (long, ExitCode::Config, "a shorter name"),
            (broken, ExitCode::Unavailable, "dmesg"),
            (full, ExitCode::Unavailable, "make room on its disk"),
        ] {
            let file = || FileError::Io {
                action: "create",
                path: path(),
                source: refused(errno),
            };
            let written = || PkiError::Write {
                path: path(),
                source: refused(errno),
            };
            let unfinished = PkiError::Unfinished {
                folder: path(),
                source: Box::new(written()),
            };
            let key = CreateError::Write {
                path: path(),
                source: refused(errno),
            };
            let bundle = BundleError::Io {
                path: path(),
                source: refused(errno),
            };
            for error in [
                anyhow::Error::from(written()),
                unfinished.into(),
                key.into(),
                bundle.into(),
                anyhow::Error::from(file()).context("failed to write /x/new"),
                ReadyFileError::File(file()).into(),
            ] {
                assert_eq!(code_of(&error), code, "{error:#}");
                let fix = fix_of(&error).unwrap();
                assert!(fix.contains(told), "{error:#}: {fix}");
            }
        }
        let taken = anyhow::Error::from(CreateError::Write {
            path: path(),
            source: refused(17),
        });
        assert_eq!(code_of(&taken), ExitCode::Conflict);
    }

    #[test]
    fn an_address_that_cannot_be_had_says_what_to_do() {
        let address = "127.0.0.1:8080".parse().unwrap();
        let told = |kind: std::io::ErrorKind| {
            let source = kind.into();
            let error = anyhow::Error::from(StartError::Listen { address, source });
            (code_of(&error), fix_of(&error).unwrap_or_default())
        };
        for (kind, words) in [
            (std::io::ErrorKind::AddrInUse, "ss -ltnp"),
            (std::io::ErrorKind::AddrNotAvailable, "ip address"),
        ] {
            let (code, fix) = told(kind);
            assert_eq!(code, ExitCode::Unavailable, "{kind}");
            assert!(fix.contains(words), "{kind}: {fix}");
        }
        let other = told(std::io::ErrorKind::PermissionDenied);
        assert_eq!(other, (ExitCode::Error, ""));
    }

    #[test]
    fn a_damaged_database_is_named_with_its_fix_wherever_it_comes_to_light() {
        let damaged = || {
            let code = rusqlite::ffi::Error::new(11);
            sqlite::Error::Corrupt {
                path: "/x/backend.sqlite".into(),
                source: Arc::new(rusqlite::Error::SqliteFailure(code, None)),
            }
        };
        for error in [
            anyhow::Error::from(StartError::from(damaged())),
            StartError::from(StoreError::from(damaged())).into(),
            StartError::from(SiteError::from(StoreError::from(damaged()))).into(),
            MoveError::from(damaged()).into(),
            CreateError::Store(damaged().into()).into(),
            anyhow::Error::from(StoreError::from(damaged())).context("a key"),
        ] {
            assert_eq!(code_of(&error), ExitCode::Config, "{error:#}");
            let told = format!("{error:#}");
            assert!(told.contains("/x/backend.sqlite is damaged"), "{told}");
            let fix = fix_of(&error).unwrap();
            assert!(fix.contains("docs/operations/upgrade.md"), "{fix}");
        }
    }
}
