//! What the process ends with when something failed.

use viworks_runtime::config::Problems;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::fault;

use crate::app::StartError;
use crate::auth::apikey::CreateError;
use crate::data::StoreError;
use crate::data::moving::MoveError;
use crate::pki::PkiError;

/// The code of the cause that says most.
pub(super) fn code_of(error: &anyhow::Error) -> ExitCode {
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
            MoveError::NoSite(_) | MoveError::Elsewhere(_) => ExitCode::Config,
            MoveError::Target { source, .. } if source.is_lasting() => ExitCode::Config,
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
    match error.downcast_ref::<CreateError>() {
        Some(CreateError::BadName | CreateError::NoScope | CreateError::BadExpiry) => {
            return ExitCode::Usage;
        }
        Some(CreateError::Write { source, .. })
            if source.kind() == std::io::ErrorKind::AlreadyExists =>
        {
            return ExitCode::Conflict;
        }
        Some(CreateError::Write { .. } | CreateError::File(_) | CreateError::Store(_)) | None => {}
    }
    let exists = match error.downcast_ref::<PkiError>() {
        Some(PkiError::Url { .. } | PkiError::Name { .. }) => return ExitCode::Usage,
        Some(PkiError::Exists { .. }) => true,
        Some(_) | None => false,
    };
    if exists || matches!(store, Some(StoreError::Conflict { .. })) {
        return ExitCode::Conflict;
    }
    ExitCode::Error
}
