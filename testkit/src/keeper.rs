//! A server for all tests of one process, which ends when that process does, in whatever way.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Runs the server until its standard input ends. What a shell starts beside itself ignores some signals unless it says
/// otherwise, so the one that ends it depends on the server.
const KEEPER: &str = r#"
trap '' INT TERM HUP
"$@" & server=$!
cat > /dev/null
if [ -n "$CHILDREN" ]; then
  for child in $(cat /proc/$server/task/$server/children); do kill -KILL "$child"; done
fi
kill -"$SIGNAL" $server
wait $server
rm -rf -- "$FOLDER"
"#;

/// What ends a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// One that ends its own children when it is told to quit.
    Quit,
    /// Any other that is one process.
    Kill,
    /// One whose children would go on without it: they end first.
    KillChildren,
}

/// Runs a server with its log in `folder`, which goes with it once what is answered is closed.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn keep(server: &Command, folder: &Path, end: End) -> io::Result<ChildStdin> {
    let stdin = start(server, folder, end)?.stdin.take();
    stdin.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
}

/// The same, by the process that runs it: its first child is the server, and closing its standard input ends both.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn start(server: &Command, folder: &Path, end: End) -> io::Result<Child> {
    let log = File::create(folder.join("log"))?;
    let mut keeper = Command::new("sh");
    keeper.args(["-c", KEEPER, "keeper"]).env("FOLDER", folder);
    let (signal, children) = match end {
        End::Quit => ("QUIT", ""),
        End::Kill => ("KILL", ""),
        End::KillChildren => ("KILL", "yes"),
    };
    keeper.env("SIGNAL", signal).env("CHILDREN", children);
    keeper.arg(server.get_program()).args(server.get_args());
    keeper
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .current_dir("/")
        .spawn()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::eventually;

    #[tokio::test]
    async fn nothing_is_left_of_a_server_once_its_tests_have_ended() {
        let folder = tempfile::tempdir().unwrap().keep();
        let mut server = Command::new("sleep");
        server.arg("600");
        let held = keep(&server, &folder, End::Kill).unwrap();
        assert!(folder.exists());
        drop(held);
        // The folder goes last, when the server has been waited for.
        eventually("its folder is gone", Duration::from_secs(30), async || {
            (!folder.exists()).then_some(())
        })
        .await;
    }
}
