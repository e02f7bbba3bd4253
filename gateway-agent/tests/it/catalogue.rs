//! The catalogue from real files.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use viworks_gateway_agent::catalogue::{self, Catalogue, Current, OtherUsers, Owners, SHIPPED};

/// One command that can run, and one that cannot.
pub(crate) const ECHO: &str = r#"
[[command]]
name = "test.echo"
title = "Says it back"
risk = "read"
idempotent = true
argv = ["/bin/echo", "-n", "{word}"]

[[command.argument]]
name = "word"
type = "string"
pattern = "[a-z ]+"
default = "hello"

[[command]]
name = "test.missing"
title = "Cannot run"
risk = "change"
argv = ["/nonexistent/tool"]
"#;

/// A folder of such files, which nobody else could change.
pub(crate) fn write_catalogue(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
    let commands = folder.join("commands.d");
    std::fs::create_dir_all(&commands).unwrap();
    std::fs::set_permissions(&commands, std::fs::Permissions::from_mode(0o755)).unwrap();
    for (name, text) in files {
        let file = commands.join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    commands
}

pub(crate) fn load(folder: &Path) -> Result<Catalogue, String> {
    let others = OtherUsers::Helper(folder.join("helper.sock"));
    catalogue::load(
        folder,
        Owners::RootAndOwn,
        PathBuf::from("/proc/self/exe"),
        others,
    )
    .map_err(|problems| problems.to_string())
}

#[test]
fn the_shipped_catalogue_loads_and_builtins_are_available() {
    let folder = tempfile::tempdir().unwrap();
    let catalogue = load(&write_catalogue(folder.path(), SHIPPED)).unwrap();
    let entries = catalogue.entries();
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "gateway.info",
            "log.tail",
            "net.interfaces",
            "net.ping",
            "net.resolve",
            "service.restart",
            "service.status",
            "sys.disks",
            "sys.kernel",
            "sys.memory",
            "sys.processes",
            "sys.uptime",
        ]
    );
    for entry in &entries {
        let own = !entry.name.as_str().starts_with("service.") && entry.name.as_str() != "log.tail";
        assert!(!own || entry.unavailable.is_none(), "{entry:?}");
        // Its tools may be installed where systemd does not run.
        let systemd = Path::new("/run/systemd/system").exists();
        assert!(own || systemd || entry.unavailable.is_some(), "{entry:?}");
    }
}

#[test]
fn every_problem_of_every_file_is_listed_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let bad = r#"[[command]]
name = "a.b"
title = "T"
risk = "harmless"
argv = ["sh", "{word}"]
colour = "red"

[[command]]
name = "a.c"
title = "T"
risk = "read"
argv = ["/bin/echo", "{n}", "{other}"]
[[command.argument]]
name = "n"
type = "integer"
min = 5
max = 1
"#;
    let double = "[[command]]\nname = \"test.echo\"\ntitle = \"T\"\nrisk = \"read\"\nargv = [\"builtin:nothing\"]\n";
    let commands = write_catalogue(
        folder.path(),
        &[("a.toml", ECHO), ("b.toml", bad), ("c.toml", double)],
    );
    let problems = load(&commands).unwrap_err();
    for expected in [
        "b.toml:4",
        "harmless",
        "b.toml:6",
        "colour",
        "min is greater than max",
        "c.toml:5",
        "no built-in command",
    ] {
        assert!(
            problems.contains(expected),
            "{expected} is missing in\n{problems}"
        );
    }
}

#[test]
fn a_catalogue_of_too_many_files_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..257).map(|number| format!("{number}.toml")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let commands = write_catalogue(folder.path(), &files);
    let problems = load(&commands).unwrap_err();
    assert!(problems.contains("257 files, at most 256"), "{problems}");
    std::fs::remove_file(commands.join("0.toml")).unwrap();
    load(&commands).unwrap();
}

#[test]
fn a_command_defined_twice_names_both_places() {
    let folder = tempfile::tempdir().unwrap();
    let commands = write_catalogue(folder.path(), &[("a.toml", ECHO), ("b.toml", ECHO)]);
    let problems = load(&commands).unwrap_err();
    assert!(
        problems.contains("command test.echo is defined twice"),
        "{problems}"
    );
    assert!(
        problems.contains("a.toml:3") && problems.contains("b.toml:3"),
        "{problems}"
    );
}

#[test]
fn a_catalogue_that_others_could_change_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let commands = write_catalogue(folder.path(), &[("a.toml", ECHO)]);
    for (path, bad, good) in [
        (commands.join("a.toml"), 0o666, 0o644),
        (commands.clone(), 0o777, 0o755),
    ] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bad)).unwrap();
        assert!(
            load(&commands)
                .unwrap_err()
                .contains("can be changed by others")
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(good)).unwrap();
    }
    assert!(load(&commands).is_ok());
    assert!(load(&folder.path().join("nowhere")).is_err());
}

#[tokio::test]
async fn what_was_missing_is_available_once_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("tool");
    let text = ECHO.replace("/nonexistent/tool", program.to_str().unwrap());
    let commands = write_catalogue(folder.path(), &[("test.toml", &text)]);
    let current = Current::new(load(&commands).unwrap());
    let mut changes = current.changes();
    changes.mark_unchanged();
    let unavailable = || {
        let entries = current.get().entries();
        let found = entries
            .into_iter()
            .filter(|entry| entry.unavailable.is_some());
        found
            .map(|entry| entry.name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(unavailable(), ["test.missing"]);
    current.look_again(false).await;
    assert!(!changes.has_changed().unwrap(), "nothing is new");
    std::fs::write(&program, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    current.look_again(false).await;
    assert!(changes.has_changed().unwrap());
    assert_eq!(unavailable(), Vec::<String>::new());
}
