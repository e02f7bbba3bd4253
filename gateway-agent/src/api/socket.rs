//! The socket of the local API: bound where it stands, never for a moment with wrong permissions, and bound again when
//! somebody takes it away.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Type};
use tokio::net::UnixListener;
use viworks_runtime::blocking::{self, Worker};
use viworks_runtime::conditions::{Conditions, Severity};
use viworks_runtime::config::Problem;
use viworks_runtime::files::{self, FileError};

use super::ApiError;
use crate::config::GatewayConfig;

/// What owner and group may do.
const MODE: u32 = 0o660;
/// The bytes of a path that fit into the address of a unix socket, without the zero behind it.
const PATH_BYTES_MAX: usize = 107;
/// Callers that may wait to be accepted.
const BACKLOG: i32 = 128;
/// The name of the condition.
const CONDITION: &str = "socket";

/// How long a look at the socket's file may take. Newcomers wait for it once; while it hangs, nobody looks again.
const LOOK_TIME: Duration = Duration::from_secs(1);
/// How long it may take to bind.
const BIND_TIME: Duration = Duration::from_secs(5);

/// Device and number of a file.
type FileId = (u64, u64);

/// A bound socket.
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    file: FileId,
    /// Looks whether its file still stands, on a thread of its own.
    look: Worker<(PathBuf, FileId), bool>,
}

/// Finds out, without binding it, what would keep the socket from being bound.
#[must_use]
pub fn examine_socket(config: &GatewayConfig) -> Vec<Problem> {
    let path = &config.socket;
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        let message = format!(
            "the path of the socket is too long: {} has {length} bytes, and the system takes {PATH_BYTES_MAX}",
            path.display(),
        );
        let help = "set socket in [gateway] to a short path, such as /run/viworks/api.sock";
        return vec![Problem::of_file(path, message, help)];
    }
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    // The state folder is examined as that, and made where it is missing.
    if folder != config.state_folder {
        let examined = files::examine_state(folder, &[], &[]);
        if !examined.is_empty() {
            return examined.iter().map(FileError::problem).collect();
        }
        if !folder.exists() {
            let message = format!("the folder of the socket is missing: {}", folder.display());
            return vec![Problem::of_file(
                path,
                message,
                "make it, for the agent's user",
            )];
        }
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let error = ApiError::NotASocket(path.to_owned());
            let help = "set socket in [gateway] to a path of its own";
            vec![Problem::of_file(path, error.to_string(), help)]
        }
        // Nothing there, or nothing that this user may see: both were examined above.
        Ok(_) | Err(_) => Vec::new(),
    }
}

/// Binds the socket, readable and writable for owner and group. A socket file that nobody answers is replaced.
///
/// # Errors
/// When somebody does, or the path cannot be used.
pub async fn bind(path: &Path) -> Result<Socket, ApiError> {
    let own = path.to_owned();
    let bound = blocking::call("socket", BIND_TIME, move || replace(&own)).await;
    let (listener, file) = bound.map_err(|source| ApiError::Silent {
        path: path.to_owned(),
        source,
    })??;
    let listener = UnixListener::from_std(listener).map_err(|source| ApiError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(Socket {
        listener,
        path: path.to_owned(),
        file,
        look: Worker::new("socket", || {
            |(path, file): (PathBuf, FileId)| stands(&path, file)
        }),
    })
}

/// Binds in place of a socket that nobody answers. Blocks.
fn replace(path: &Path) -> Result<(net::UnixListener, FileId), ApiError> {
    let failed = |source| ApiError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ApiError::NotASocket(path.to_owned()));
        }
        Ok(_) => match net::UnixStream::connect(path) {
            Ok(_answered) => return Err(ApiError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            // Gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    in_place(path).map_err(failed)
}

/// Binds where the socket is to stand, for cleaners of temporary folders spare a socket by the path that it was bound
/// to.
fn in_place(path: &Path) -> io::Result<(net::UnixListener, FileId)> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // The file is made with the mode of the socket, less what the umask takes away; so it is never too open.
    fchmod(&socket, Mode::from_raw_mode(MODE))?;
    socket.bind(&SockAddr::unix(path)?)?;
    let metadata = fs::symlink_metadata(path)?;
    if metadata.permissions().mode() & 0o777 != MODE {
        fs::set_permissions(path, Permissions::from_mode(MODE))?;
    }
    socket.listen(BACKLOG)?;
    Ok((socket.into(), (metadata.dev(), metadata.ino())))
}

/// Whether that file still stands where it was bound. Blocks.
fn stands(path: &Path, file: FileId) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == file)
}

impl Socket {
    /// Binds it again if somebody removed or replaced its file, and says so.
    pub(super) async fn keep(&mut self, conditions: &Conditions) {
        let path = self.path.display().to_string();
        let question = (self.path.clone(), self.file);
        match self.look.ask(question, LOOK_TIME).await {
            Ok(true) => return conditions.clear(CONDITION),
            Ok(false) => {}
            Err(error) => {
                let cause = format!("whether {path} still stands is not known: {error}");
                let fix = "see what keeps the disk of that folder from answering";
                return conditions.raise(CONDITION, Severity::Warn, &cause, fix);
            }
        }
        match bind(&self.path).await {
            Ok(socket) => {
                conditions.raise(
                    CONDITION,
                    Severity::Warn,
                    &format!("{path} was removed or replaced by somebody, and was made again"),
                    "find out what cleans that folder",
                );
                *self = socket;
            }
            Err(error) => conditions.raise(
                CONDITION,
                Severity::Fail,
                &format!("{path} was removed or replaced by somebody: {error}"),
                "move away what stands there, or make its folder again; the agent tries by itself",
            ),
        }
    }
}
