//! The Debian packages of the programs of this build, in two versions, so that one can be upgraded to the other.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::binaries::{Binaries, target, workspace};

/// The crates that have a package.
const CRATES: [&str; 3] = [
    "viworks-backend-agent",
    "viworks-gateway-agent",
    "viworks-operator-cli",
];

/// The packages of one version.
#[derive(Debug)]
pub struct Packages {
    files: Vec<PathBuf>,
}

impl Packages {
    /// Both versions, the older one first; `None`, said loudly, without the tool that makes them.
    ///
    /// # Panics
    /// When they cannot be made.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
    pub fn built() -> Option<&'static [Self; 2]> {
        static BUILT: OnceLock<[Packages; 2]> = OnceLock::new();
        let Some(tool) = tool() else {
            eprintln!("SKIPPED: packages: cargo-deb is missing; scripts/test.sh gets it");
            return None;
        };
        Some(BUILT.get_or_init(|| {
            ["0.1.0-1~test1", "0.1.0-1~test2"].map(|version| build(&tool, version))
        }))
    }

    /// The files, one for each package.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The package of a crate.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn of(&self, name: &str) -> &Path {
        let at = CRATES.iter().position(|known| *known == name);
        let file = at.and_then(|at| self.files.get(at));
        file.expect("the crate has a package")
    }
}

/// The one that the checks got, or the machine's own.
fn tool() -> Option<PathBuf> {
    let got = std::fs::read_dir(workspace().join("target/tools"))
        .into_iter()
        .flatten();
    let got = got.flatten().map(|tool| tool.path().join("bin"));
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let elsewhere = std::env::split_paths(&folders);
    let tools = got.chain(elsewhere).map(|folder| folder.join("cargo-deb"));
    tools.into_iter().find(|path| path.is_file())
}

fn build(tool: &Path, version: &str) -> Packages {
    let backend = Binaries::shipped().backend();
    let built = backend
        .ancestors()
        .nth(2)
        .expect("a program lies in a folder that is named as its profile");
    let pages = workspace().join("target/packaging");
    let mut writer = Command::new(env!("CARGO"));
    writer
        .args([
            "run",
            "--quiet",
            "--locked",
            "--package",
            "viworks-packaging",
            "--target-dir",
        ])
        .arg(target())
        .arg("--")
        .arg(&pages);
    succeeds(&mut writer);
    let files = CRATES.iter().map(|package| {
        let file = built.join(format!("packages/{package}-{version}.deb"));
        let mut deb = Command::new(tool);
        deb.args([
            "deb",
            "--no-build",
            "--no-strip",
            "--quiet",
            "--profile",
            "dev",
            "--fast",
        ])
        .args(["--package", package, "--deb-version", version, "--output"])
        .arg(&file)
        .env("CARGO_TARGET_DIR", built);
        succeeds(&mut deb);
        file
    });
    Packages {
        files: files.collect(),
    }
}

fn succeeds(command: &mut Command) {
    let output = command
        .current_dir(workspace())
        .stdin(Stdio::null())
        .output();
    let output = output.expect("the tool runs");
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
