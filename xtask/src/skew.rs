//! Programs of earlier versions, from the history of this repository, and the tests that run them beside these.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shop::{Folder, Shop, finish, succeeds};

/// The earlier versions, one a line: what the tests call it, its commit, its programs. The tests read it too.
const EARLIER: &str = include_str!("../../testkit/earlier.txt");

/// An earlier version.
struct Earlier {
    name: &'static str,
    commit: &'static str,
    /// Those that the tests run.
    programs: Vec<&'static str>,
}

/// All that the table has.
fn earlier() -> impl Iterator<Item = Earlier> {
    let lines = EARLIER.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        Some(Earlier {
            name: words.next()?,
            commit: words.next()?,
            programs: words.collect(),
        })
    })
}

/// Runs the tests with programs of several versions; the first time, it builds the earlier ones.
pub(crate) fn check(shop: &mut Shop) -> Result<(), String> {
    for version in earlier() {
        if !is_built(shop, &version) {
            build(shop, &version)?;
        }
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

/// Sees to it that the earlier programs are there for all tests, or says what is skipped without them.
pub(crate) fn prepare(shop: &mut Shop) -> Result<(), String> {
    for version in earlier() {
        let built = is_built(shop, &version);
        match next(built, shop.install, || has_history(shop, version.commit)) {
            Next::Run => {}
            // What can be built and fails is a failure, and nothing that is skipped.
            Next::Build => build(shop, &version)?,
            Next::Skip(why) => shop.skip(&format!(
                "programs of the earlier version {} beside these: {why}; `cargo xtask skew` builds them and runs that",
                version.name
            )),
        }
    }
    Ok(())
}

/// What is to be done about the programs of an earlier version before the tests run.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: they are there.
    Run,
    Build,
    /// To go on without them, and to say why.
    Skip(String),
}

/// They are skipped where nothing is to be built, or this clone does not go back so far.
fn next(is_built: bool, may_build: bool, has_history: impl FnOnce() -> Result<(), String>) -> Next {
    if is_built {
        return Next::Run;
    }
    if !may_build {
        return Next::Skip("nothing is built for them".to_owned());
    }
    has_history().map_or_else(Next::Skip, |()| Next::Build)
}

/// Whether the programs of an earlier version are there.
fn is_built(shop: &Shop, version: &Earlier) -> bool {
    let home = home(shop, version.commit);
    let mut programs = version.programs.iter();
    programs.all(|program| home.join(program).is_file())
}

fn home(shop: &Shop, commit: &str) -> PathBuf {
    shop.root.join("target/skew").join(commit)
}

fn has_history(shop: &Shop, commit: &str) -> Result<(), String> {
    let known = format!("{commit}^{{commit}}");
    let root = shop.root.to_string_lossy();
    if succeeds("git", &["-C", &root, "cat-file", "-e", &known]) {
        return Ok(());
    }
    Err(format!(
        "this clone does not have the commit {commit}; fix: git fetch --unshallow, or clone the whole history"
    ))
}

/// Builds them outside this work tree, and keeps nothing else of it.
fn build(shop: &Shop, version: &Earlier) -> Result<(), String> {
    let commit = version.commit;
    has_history(shop, commit)?;
    println!("building the programs of {commit}, once; this takes minutes");
    let folder = Folder::make()?;
    let (packed, tree) = (folder.path().join("tree.tar"), folder.path().join("tree"));
    make(&tree)?;
    let archive = ["archive", "--format=tar", commit, "--output"];
    finish(shop.command("git", &archive).arg(&packed))?;
    let mut unpack = shop.command("tar", &["-xf"]);
    finish(unpack.arg(&packed).arg("-C").arg(&tree))?;
    // All of them or none.
    let home = home(shop, commit);
    let part = home.with_extension("part");
    let target = part.join("target");
    // Of a build that was ended here.
    remove(&part)?;
    make(&target)?;
    if let Err(why) = lend_libraries(shop, &target) {
        println!("note: {why}; every library is compiled for them");
    }
    // As the tests of this version are built: with the same features of what both have.
    let mut cargo = shop.command("cargo", &["build", "--locked", "--quiet", "--workspace"]);
    for &program in &version.programs {
        cargo.args(["--bin", program]);
    }
    // Nobody looks into them with a debugger, or builds them a second time.
    cargo
        .current_dir(&tree)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0")
        // What this version has in its `.cargo/config.toml` is not that one's.
        .env_remove("LIBSQLITE3_FLAGS")
        .arg("--target-dir")
        .arg(&target);
    finish(&mut cargo)?;
    for &program in &version.programs {
        let built = target.join("debug").join(program);
        fs::rename(&built, part.join(program))
            .map_err(|error| format!("{}: {error}", built.display()))?;
    }
    remove(&target)?;
    // Of a table that named fewer of them.
    remove(&home)?;
    fs::rename(&part, &home).map_err(|error| format!("{}: {error}", home.display()))
}

/// Gives cargo the libraries that this version has compiled: it takes those of the same version, features and settings,
/// and compiles the others.
fn lend_libraries(shop: &Shop, target: &Path) -> Result<(), String> {
    let (from, to) = (shop.compiled.join("debug"), target.join("debug"));
    for kind in ["build", ".fingerprint"] {
        let entries = of_others(&from.join(kind))?;
        let to = to.join(kind);
        make(&to)?;
        if !entries.is_empty() {
            // With their times, by which cargo goes.
            finish(shop.command("cp", &["-a"]).args(entries).arg(to))?;
        }
    }
    link(&from.join("deps"), &to.join("deps"))
}

/// The same files in another folder. Whoever compiles one anew puts a new file in its place, and leaves this one as it
/// is. A folder is what a compiler left that was ended, and nobody's library.
fn link(from: &Path, to: &Path) -> Result<(), String> {
    make(to)?;
    for library in of_others(from)?.into_iter().filter(|it| it.is_file()) {
        let link = to.join(library.file_name().unwrap_or_default());
        fs::hard_link(&library, &link)
            .map_err(|error| format!("{}: {error}", library.display()))?;
    }
    Ok(())
}

/// What lies in a folder and is not of this repository's crates. Those of the earlier version have the same names, and
/// files with earlier times: cargo would take what was compiled of these for what is to be compiled of those.
fn of_others(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut others = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name
            .strip_prefix("lib")
            .unwrap_or(&name)
            .starts_with("viworks")
        {
            others.push(entry.path());
        }
    }
    Ok(others)
}

fn remove(folder: &Path) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", folder.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn make(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_programs_are_built_or_skipped_only_where_they_cannot_be() {
        let whole = || Ok(());
        let shallow = || Err("this clone is shallow".to_owned());
        for may_build in [false, true] {
            assert_eq!(next(true, may_build, shallow), Next::Run);
        }
        assert_eq!(next(false, true, whole), Next::Build);
        let skipped = Next::Skip("this clone is shallow".to_owned());
        assert_eq!(next(false, true, shallow), skipped);
        assert!(matches!(next(false, false, whole), Next::Skip(_)));
    }

    #[test]
    fn libraries_of_others_are_lent_and_what_an_ended_compiler_left_is_not() {
        let folder = Folder::make().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        make(&from.join("rmetaLeft")).unwrap();
        for file in ["libserde.rlib", "libviworks_common.rlib", "viworks-cli"] {
            fs::write(from.join(file), file).unwrap();
        }
        link(&from, &to).unwrap();
        let lent = fs::read_dir(&to).unwrap().map(|it| it.unwrap().file_name());
        assert_eq!(lent.collect::<Vec<_>>(), ["libserde.rlib"]);
    }

    #[test]
    fn every_line_of_the_table_is_a_version_with_a_commit_of_its_own_and_programs() {
        let lines = EARLIER
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let versions: Vec<Earlier> = earlier().collect();
        assert_eq!(versions.len(), lines.count());
        for version in &versions {
            let Earlier {
                name,
                commit,
                programs,
            } = version;
            // In full: a folder is called so, and other commits begin like it one day.
            assert!(
                commit.len() == 40 && commit.chars().all(|digit| digit.is_ascii_hexdigit()),
                "{name}"
            );
            assert!(
                !programs.is_empty() && programs.iter().all(|it| it.starts_with("viworks-")),
                "{name}"
            );
            let same = |other: &&Earlier| other.name == *name || other.commit == *commit;
            assert_eq!(versions.iter().filter(same).count(), 1, "{name}");
        }
    }
}
