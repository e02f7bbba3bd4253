//! The programs under test: built once, found beside each other.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The earlier versions, one a line: what it is called here, its commit, its programs. `cargo xtask skew` reads it too.
const EARLIER: &str = include_str!("../earlier.txt");

/// The commit of the earlier version that is called so, and its programs.
fn earlier_of(name: &str) -> (&'static str, Vec<&'static str>) {
    let version = EARLIER.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|first| *first == name)?;
        Some((words.next()?, words.collect()))
    });
    version.expect("an earlier version of that name")
}

/// What is built of the workspace for a test.
const PROGRAMS: [&str; 4] = [
    "viworks",
    "viworks-backend-agent",
    "viworks-gateway-agent",
    "viworks-gateway-helper",
];

/// The programs of one build.
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
        BUILT.get_or_init(|| build("shipped", &[]))
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
            let packages = [
                "--release",
                "-p",
                "viworks-operator-cli",
                "-p",
                "viworks-gateway-agent",
                "-p",
                "viworks-backend-agent",
            ];
            cargo_build(&target, &packages);
            Self {
                folder: target.join("release"),
            }
        })
    }

    /// The programs with crash points.
    ///
    /// # Panics
    /// When they cannot be built.
    #[must_use]
    pub fn with_fault_points() -> &'static Self {
        static BUILT: OnceLock<Binaries> = OnceLock::new();
        BUILT.get_or_init(|| {
            let features = "viworks-gateway-agent/fault-points,viworks-backend-agent/fault-points";
            build("fault-points", &["--features", features])
        })
    }

    /// The agents of the first whole system; `None`, said loudly, where `cargo xtask skew` has not built them.
    #[must_use]
    pub fn earlier() -> Option<&'static Self> {
        Self::of_earlier("first")
    }

    /// The backend, and nothing else, of a version that knew the first schema of PostgreSQL alone; `None`, said
    /// loudly, where `cargo xtask skew` has not built it.
    #[must_use]
    pub fn earlier_on_postgres() -> Option<&'static Self> {
        Self::of_earlier("schema-1")
    }

    #[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
    fn of_earlier(name: &str) -> Option<&'static Self> {
        let (commit, programs) = earlier_of(name);
        let folder = workspace().join("target/skew").join(commit);
        if !programs
            .iter()
            .all(|program| folder.join(program).is_file())
        {
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
pub(crate) fn target() -> PathBuf {
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

/// The programs, for debugging, in a folder of their own.
///
/// They are built as the tests of the whole workspace are, with the same features of the same libraries: nothing but
/// the programs themselves is compiled for them. Cargo lays every build of a program at the same place, so each kind is
/// taken away from there before anybody builds another; what lies there in the end is what ships.
fn build(name: &str, features: &[&str]) -> Binaries {
    let target = target();
    // As in a target folder, for whoever makes packages of them.
    let folder = target.join("programs").join(name).join("debug");
    std::fs::create_dir_all(&folder).expect("a folder for the programs");
    let lock = File::create(target.join("programs/lock")).expect("a file for the lock");
    lock.lock().expect("the lock of all that build programs");
    // Of a run that was ended here.
    drop(std::fs::remove_file(folder.join("part")));
    let mut arguments = vec!["--workspace"];
    arguments.extend(PROGRAMS.iter().flat_map(|program| ["--bin", program]));
    arguments.extend(features);
    cargo_build(&target, &arguments);
    for program in PROGRAMS {
        let (built, part) = (target.join("debug").join(program), folder.join("part"));
        std::fs::hard_link(&built, &part).expect("a program that was built");
        // Over the one of an earlier build, which may be running still.
        std::fs::rename(&part, folder.join(program)).expect("a program in its folder");
        // Two names of one file are no move.
        drop(std::fs::remove_file(&part));
    }
    if !features.is_empty() {
        cargo_build(&target, &arguments[..arguments.len() - features.len()]);
    }
    Binaries { folder }
}

fn cargo_build(target: &Path, arguments: &[&str]) {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args(["build", "--quiet", "--locked", "--target-dir"])
        .arg(target)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "the programs under test do not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
