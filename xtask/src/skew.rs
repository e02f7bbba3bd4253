//! Programs of an earlier version, from the history of this repository, and the tests that run them beside these.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shop::{Folder, Shop, finish, succeeds};

/// The commit whose programs are the earlier ones; the tests read it too.
const EARLIER: &str = include_str!("../../testkit/earlier.txt");

/// The crates that have programs, and the programs.
const CRATES: [(&str, &str); 3] = [
    ("viworks-backend-agent", "viworks-backend-agent"),
    ("viworks-gateway-agent", "viworks-gateway-agent"),
    ("viworks-operator-cli", "viworks"),
];

/// Runs the tests with programs of both versions; the first time, it builds the earlier ones.
pub(crate) fn check(shop: &mut Shop) -> Result<(), String> {
    if !is_built(shop) {
        build(shop)?;
    }
    let arguments = [
        "test",
        "--locked",
        "--package",
        "viworks-e2e",
        "--test",
        "it",
        "skew::",
    ];
    shop.cargo(&arguments)
}

/// Whether the earlier programs are there.
pub(crate) fn is_built(shop: &Shop) -> bool {
    home(shop).is_dir()
}

fn home(shop: &Shop) -> PathBuf {
    shop.root.join("target/skew").join(EARLIER.trim())
}

/// Builds them outside this work tree, and keeps nothing else of it.
fn build(shop: &Shop) -> Result<(), String> {
    let commit = EARLIER.trim();
    let known = format!("{commit}^{{commit}}");
    let root = shop.root.to_string_lossy();
    if !succeeds("git", &["-C", &root, "cat-file", "-e", &known]) {
        return Err(format!(
            "this clone does not have the commit {commit}; fix: git fetch --unshallow, or clone the whole history"
        ));
    }
    println!("building the programs of {commit}, once; this takes minutes");
    let folder = Folder::make()?;
    let (packed, tree) = (folder.path().join("tree.tar"), folder.path().join("tree"));
    make(&tree)?;
    let archive = ["archive", "--format=tar", commit, "--output"];
    finish(shop.command("git", &archive).arg(&packed))?;
    let mut unpack = shop.command("tar", &["-xf"]);
    finish(unpack.arg(&packed).arg("-C").arg(&tree))?;
    let target = folder.path().join("target");
    let mut cargo = shop.command("cargo", &["build", "--locked", "--quiet"]);
    // Nobody looks into them with a debugger, or builds them a second time.
    cargo
        .current_dir(&tree)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0")
        // What this version has in its `.cargo/config.toml` is not that one's.
        .env_remove("LIBSQLITE3_FLAGS")
        .arg("--target-dir")
        .arg(&target);
    for (package, _program) in CRATES {
        cargo.args(["--package", package]);
    }
    finish(&mut cargo)?;
    // All of them or none.
    let home = home(shop);
    let part = home.with_extension("part");
    make(&part)?;
    for (_package, program) in CRATES {
        let built = target.join("debug").join(program);
        fs::copy(&built, part.join(program))
            .map_err(|error| format!("{}: {error}", built.display()))?;
    }
    fs::rename(&part, &home).map_err(|error| format!("{}: {error}", home.display()))
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}
