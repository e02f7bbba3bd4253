//! The programs under test: built once, found beside each other.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The commit whose programs are the earlier ones; `cargo xtask skew` reads it too.
const EARLIER: &str = include_str!("../earlier.txt");

/// The three programs of one build.
#[derive(Debug, Clone)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// The programs as they ship.
    ///
    /// # Panics
    /// When they cannot be built.
    #[must_use]
    pub fn shipped() -> &'static Self {
        static BUILT: OnceLock<Binaries> = OnceLock::new();
        BUILT.get_or_init(|| {
            build(
                &[
                    "-p",
                    "viworks-operator-cli",
                    "-p",
                    "viworks-gateway-agent",
                    "-p",
                    "viworks-backend-agent",
                ],
                None,
            )
        })
    }

    /// The programs as they ship, optimised.
    ///
    /// # Panics
    /// When they cannot be built.
    #[must_use]
    pub fn released() -> &'static Self {
        static BUILT: OnceLock<Binaries> = OnceLock::new();
        BUILT.get_or_init(|| {
            let target = workspace().join("target");
            build_into(
                &target,
                "release",
                &[
                    "--release",
                    "-p",
                    "viworks-operator-cli",
                    "-p",
                    "viworks-gateway-agent",
                    "-p",
                    "viworks-backend-agent",
                ],
            )
        })
    }

    /// The agents with crash points, in a target folder of their own.
    ///
    /// # Panics
    /// When they cannot be built.
    #[must_use]
    pub fn with_fault_points() -> &'static Self {
        static BUILT: OnceLock<Binaries> = OnceLock::new();
        BUILT.get_or_init(|| {
            let features = "viworks-gateway-agent/fault-points,viworks-backend-agent/fault-points";
            build(
                &[
                    "-p",
                    "viworks-gateway-agent",
                    "-p",
                    "viworks-backend-agent",
                    "--features",
                    features,
                ],
                Some("fault-points"),
            )
        })
    }

    /// The programs of an earlier version; `None`, said loudly, where `cargo xtask skew` has not built them.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
    pub fn earlier() -> Option<&'static Self> {
        let folder = workspace().join("target/skew").join(EARLIER.trim());
        if !folder.is_dir() {
            eprintln!("SKIPPED: programs of an earlier version: cargo xtask skew builds them");
            return None;
        }
        Some(Self::of(&folder))
    }

    /// Programs that somebody else built, for the rest of this process.
    #[must_use]
    pub fn of(folder: &Path) -> &'static Self {
        Box::leak(Box::new(Self {
            folder: folder.to_owned(),
        }))
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> PathBuf {
        self.folder.join("viworks-backend-agent")
    }

    /// The gateway agent.
    #[must_use]
    pub fn gateway(&self) -> PathBuf {
        self.folder.join("viworks-gateway-agent")
    }

    /// What runs a gateway's commands as other users.
    #[must_use]
    pub fn helper(&self) -> PathBuf {
        self.folder.join("viworks-gateway-helper")
    }

    /// The operator's command line.
    #[must_use]
    pub fn cli(&self) -> PathBuf {
        self.folder.join("viworks")
    }
}

/// The workspace's root.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}

/// The target folder this very program was built into: a test lies in `target/PROFILE/deps`, a program above it.
fn target() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    let profile = exe
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps"));
    profile
        .and_then(Path::parent)
        .map(Path::to_path_buf)
        .expect("a program lies in target/PROFILE")
}

fn build(packages: &[&str], own_folder: Option<&str>) -> Binaries {
    let target = own_folder.map_or_else(target, |name| target().join(name));
    build_into(&target, "debug", packages)
}

fn build_into(target: &Path, profile: &str, packages: &[&str]) -> Binaries {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["build", "--quiet", "--locked", "--target-dir"])
        .arg(target)
        .args(packages)
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "the programs under test do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Binaries {
        folder: target.join(profile),
    }
}
