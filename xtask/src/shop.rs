//! Where recipes work: the root of the repository, the commands they start, and what they had to skip.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// What `cargo run` tells the program it starts about its package; the cargo that a recipe starts is about another one.
const OF_THIS_PACKAGE: &[&str] = &[
    "CARGO_PKG_",
    "CARGO_MANIFEST_",
    "CARGO_BIN_",
    "CARGO_CRATE_",
];

/// One call of `cargo xtask`.
pub(crate) struct Shop {
    pub(crate) root: PathBuf,
    /// Where cargo puts what it compiles. What recipes keep is below `target` all the same, where the tests look.
    pub(crate) compiled: PathBuf,
    /// Whether a recipe may get a tool that is missing.
    pub(crate) install: bool,
    skipped: Vec<String>,
    started: Instant,
}

impl Shop {
    #[expect(
        clippy::disallowed_methods,
        reason = "how long the checks take is said, and decides nothing"
    )]
    pub(crate) fn open(install: bool) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        Self {
            compiled: compiled(&root, std::env::var_os("CARGO_TARGET_DIR")),
            root,
            install,
            skipped: Vec::new(),
            started: Instant::now(),
        }
    }

    pub(crate) fn begin(&self, name: &str, about: &str) {
        let seconds = self.started.elapsed().as_secs();
        println!("\n== {name}: {about}  ({seconds} s)");
    }

    /// Says that something is not checked, now and once more at the end.
    pub(crate) fn skip(&mut self, what: &str) {
        println!("!! SKIPPED: {what}");
        self.skipped.push(what.to_owned());
    }

    pub(crate) fn close(&self) {
        println!("\n== done  ({} s)", self.started.elapsed().as_secs());
        for what in &self.skipped {
            println!("!! SKIPPED: {what}");
        }
        println!("every check that ran has passed");
    }

    /// A command in the root of the repository.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            let of_this = |prefix: &&str| name.to_string_lossy().starts_with(prefix);
            if OF_THIS_PACKAGE.iter().any(of_this) {
                command.env_remove(name);
            }
        }
        command
    }

    /// A tool of one version below `target/tools`, compiled by cargo when it is not there yet, which takes minutes.
    pub(crate) fn compiled(&self, tool: &str, version: &str) -> Option<PathBuf> {
        let home = self.root.join(format!("target/tools/{tool}-{version}"));
        let program = home.join("bin").join(tool);
        if succeeds(&program, &["--version"]) {
            return Some(program);
        }
        if !self.install {
            return None;
        }
        println!("compiling {tool} {version}, once; this takes minutes");
        let package = format!("{tool}@{version}");
        let mut install = self.command("cargo", &["install", "--locked", "--quiet", &package]);
        // It runs for seconds: what its own project does to make it faster takes longer than that gains.
        install.envs([
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
            ("CARGO_PROFILE_RELEASE_LTO", "off"),
            ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
            ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
        ]);
        if let Err(why) = finish(install.arg("--root").arg(&home)) {
            println!("note: {why}");
        }
        succeeds(&program, &["--version"]).then_some(program)
    }

    pub(crate) fn cargo(&self, arguments: &[&str]) -> Result<(), String> {
        finish(&mut self.command("cargo", arguments))
    }
}

/// The folder that the variable names, from where the commands run, or cargo's own.
fn compiled(root: &Path, named: Option<OsString>) -> PathBuf {
    let named = named.filter(|named| !named.is_empty());
    root.join(named.unwrap_or_else(|| "target".into()))
}

/// Runs a command to its end, which has to be a good one.
pub(crate) fn finish(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} failed: {status}")),
        Err(error) => Err(format!("{program} did not start: {error}")),
    }
}

/// Whether a command runs to a good end; what it prints is not shown.
pub(crate) fn succeeds(program: impl AsRef<OsStr>, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether there is a program of this name.
pub(crate) fn has(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// A folder of our own that goes when it is dropped. Its name is short: sockets lie in it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn make() -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("viworks-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("note: {} stays: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_compiles_is_where_it_is_told_to_put_it() {
        let of = |named: Option<&str>| compiled(Path::new("/house"), named.map(OsString::from));
        assert_eq!(of(None), Path::new("/house/target"));
        assert_eq!(of(Some("")), Path::new("/house/target"));
        assert_eq!(of(Some("aside")), Path::new("/house/aside"));
        assert_eq!(of(Some("/fast/disk")), Path::new("/fast/disk"));
    }
}
