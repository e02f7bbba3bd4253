//! Whose folder a demo lives in, whose context it is, and what of both is nobody else's.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use viworks_common::group::Accounts;
use viworks_testkit::deployment::{PATIENCE, text};
use viworks_testkit::process::{Process, eventually, finish};

use super::{NOBODY, Place, assert_three_answers, is_root};

#[tokio::test]
async fn an_ordinary_user_needs_nothing_more_than_root_does() {
    let place = if is_root() {
        Place::of_nobody()
    } else {
        // Every test of demos then runs as an ordinary user.
        Place::new()
    };
    for _round in 0..2 {
        let said = place.up(&["--once"]).await.ended_with(0);
        assert_three_answers(&said);
        place.assert_nothing_runs();
    }
    if is_root() {
        use std::os::unix::fs::MetadataExt;
        for made in ["backend/master.key", "operator.key", "gateways/gw-oslo"] {
            let made = std::fs::metadata(place.data().join(made)).unwrap();
            assert_eq!(made.uid(), NOBODY);
            assert_eq!(made.mode() & 0o077, 0);
        }
    }
}

/// A user, not root, whose group is nobody else's by what this system knows.
fn user_with_a_group_of_its_own() -> Option<u32> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (passwd, group) = (read("/etc/passwd"), read("/etc/group"));
    let nsswitch = read("/etc/nsswitch.conf");
    let accounts = Accounts {
        passwd: &passwd,
        group: &group,
        nsswitch: &nsswitch,
    };
    let id = |line: &str| line.split(':').nth(2)?.parse::<u32>().ok();
    let mut users = passwd.lines().filter_map(id);
    users.find(|user| *user != 0 && accounts.are_private(*user))
}

#[tokio::test]
async fn folders_that_ones_own_group_may_write_are_good_enough_and_those_of_another_are_not() {
    let Some(user) = user_with_a_group_of_its_own().filter(|_user| is_root()) else {
        eprintln!("SKIPPED: being a user whose group is nobody else's takes root, and such a user");
        return;
    };
    let place = Place::of_user(user);
    // As a clone is made under `umask 002`.
    let open = std::fs::Permissions::from_mode(0o775);
    std::fs::set_permissions(place.home(), open.clone()).unwrap();
    let said = place.up(&["--once"]).await.ended_with(0);
    assert_three_answers(&said);
    std::os::unix::fs::chown(place.home(), None, Some(NOBODY)).unwrap();
    std::fs::set_permissions(place.home(), open).unwrap();
    let said = place.up(&["--once"]).await;
    assert_ne!(said.code, Some(0), "{said:#?}");
    assert!(said.stderr.contains("chmod go-w"), "{said:#?}");
    place.assert_nothing_runs();
}

#[tokio::test]
async fn reset_starts_over_and_leaves_foreign_folders_alone() {
    let place = Place::new();
    drop(place.up(&["--once"]).await.ended_with(0));
    let master = place.data().join("backend/master.key");
    let before = std::fs::read(&master).unwrap();
    drop(place.up(&["--once"]).await.ended_with(0));
    assert_eq!(std::fs::read(&master).unwrap(), before, "kept");
    let said = place.up(&["--once", "--reset"]).await.ended_with(0);
    assert_three_answers(&said);
    assert_ne!(std::fs::read(&master).unwrap(), before, "made anew");

    let foreign = place.home().join("photographs");
    write(&foreign.join("run/holiday.txt"), "not yours");
    let refused = ["up", "--once", "--reset", "--data-dir", text(&foreign)];
    let said = place.run(&refused).await.ended_with(78);
    assert!(said.stderr.contains("left alone"), "{said:#?}");
    let kept = std::fs::read_to_string(foreign.join("run/holiday.txt")).unwrap();
    assert_eq!(kept, "not yours");
    place.assert_nothing_runs();
}

/// Every file below a folder, and what is in it.
fn files_below(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            let content = std::fs::read(&path).unwrap();
            found.insert(path, String::from_utf8_lossy(&content).into_owned());
        }
    }
    found
}

#[tokio::test]
async fn a_folder_in_which_somebody_keeps_something_is_no_demos_with_and_without_reset() {
    let place = Place::new();
    let foreign = place.home().join("university");
    write(&foreign.join("thesis.txt"), "years of work");
    // Even one whose folders are named as a demo's.
    let alike = place.home().join("project");
    for name in [
        "backend/main.c",
        "gateways/list.txt",
        "logs/a.log",
        "run/demo.json",
    ] {
        write(&alike.join(name), "somebody's");
    }
    let linked = place.home().join("link");
    std::os::unix::fs::symlink(&foreign, &linked).unwrap();
    let before = files_below(&place.home());
    let mut refusing = vec![foreign, alike, linked, place.home()];
    if is_root() {
        // It belongs to nobody else, so it is refused for what it is.
        refusing.push(PathBuf::from("/"));
    }
    for folder in &refusing {
        let refused = ["up", "--once", "--data-dir", text(folder)];
        for more in [&[][..], &["--reset"][..]] {
            let said = place
                .run(&[&refused[..], more].concat())
                .await
                .ended_with(78);
            assert!(said.stderr.contains("left alone"), "{said:#?}");
            assert!(said.stderr.contains("fix: "), "{said:#?}");
        }
        drop(
            place
                .run(&["down", "--data-dir", text(folder)])
                .await
                .ended_with(0),
        );
    }
    assert_eq!(files_below(&place.home()), before);
}

#[tokio::test]
async fn reset_removes_what_up_made_and_nothing_that_lies_beside_it() {
    let place = Place::new();
    drop(place.up(&["--once"]).await.ended_with(0));
    let data = place.data();
    let beside = [
        "thesis.txt",
        "backend/thesis.txt",
        "gateways/thesis.txt",
        "gateways/gw-berlin/thesis.txt",
        "gateways/gw-berlin/commands.d/mine.toml",
        "logs/thesis.txt",
        "run/thesis.txt",
        "letters/thesis.txt",
    ];
    for name in beside {
        write(&data.join(name), "");
    }
    let linked = place.home().join("elsewhere");
    write(&linked.join("journal.db"), "somebody's");
    std::fs::remove_dir_all(data.join("gateways/gw-oslo/state")).unwrap();
    std::os::unix::fs::symlink(&linked, data.join("gateways/gw-oslo/state")).unwrap();
    let master = std::fs::read(data.join("backend/master.key")).unwrap();
    let said = place
        .up(&["--reset", "--once", "--agents", "2"])
        .await
        .ended_with(0);
    for name in beside {
        assert!(data.join(name).exists(), "{name} {said:#?}");
    }
    assert!(linked.join("journal.db").exists(), "{said:#?}");
    assert!(said.stderr.contains("left alone: "), "{said:#?}");
    assert!(said.stderr.contains("thesis.txt"), "{said:#?}");
    assert_ne!(
        std::fs::read(data.join("backend/master.key")).unwrap(),
        master
    );
    place.assert_nothing_runs();
}

#[tokio::test]
async fn contexts_of_stopped_demos_do_not_pile_up_and_others_can_be_selected_and_removed() {
    let mut place = Place::new();
    let listed = async |place: &Place| {
        let said = place.run(&["context", "ls", "-o", "json"]).await;
        let items = said.ended_with(0).json()["items"].clone();
        let items = items.as_array().unwrap().iter();
        items
            .map(|item| {
                let name = item["name"].as_str().unwrap().to_owned();
                (name, item["selected"].as_bool().unwrap())
            })
            .collect::<Vec<_>>()
    };
    drop(place.up(&["--once"]).await.ended_with(0));
    assert!(listed(&place).await.is_empty());
    let mut first = place.stay().await;
    place.data = Some(place.home().join("second"));
    let mut second = place.stay().await;
    let of = |name: &str, selected| (name.to_owned(), selected);
    assert_eq!(
        listed(&place).await,
        [of("demo", true), of("demo-2", false)]
    );
    drop(place.run(&["context", "use", "demo-2"]).await.ended_with(0));
    assert_eq!(
        listed(&place).await,
        [of("demo", false), of("demo-2", true)]
    );
    drop(place.run(&["context", "use", "nope"]).await.ended_with(5));
    drop(place.run(&["context", "rm", "nope"]).await.ended_with(5));
    // One that is killed cannot forget itself; the next one does.
    second.kill();
    drop(place.run(&["context", "rm", "demo"]).await.ended_with(0));
    assert_eq!(listed(&place).await, [of("demo-2", true)]);
    let data = place.data();
    drop(
        place
            .run(&["down", "--data-dir", text(&data)])
            .await
            .ended_with(0),
    );
    assert!(listed(&place).await.is_empty(), "its context goes with it");
    place.data = Some(place.home().join("third"));
    let mut third = place.stay().await;
    assert_eq!(listed(&place).await, [of("demo", true)]);
    for demo in [&mut first, &mut third] {
        demo.signal(Signal::INT);
        assert!(demo.wait(PATIENCE).await.success(), "{}", demo.log());
    }
    assert!(listed(&place).await.is_empty());
    let lost = place.run(&["runs", "ls"]).await.ended_with(2);
    assert!(
        lost.stderr.contains("viworks up starts one here"),
        "{lost:#?}"
    );
}

fn write(file: &Path, content: &str) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, content).unwrap();
}

#[tokio::test]
async fn a_deep_folder_is_no_obstacle_and_its_hints_can_be_pasted() {
    let mut place = Place::new();
    let deep = place
        .home()
        .join("a folder ".repeat(9))
        .join("deep".repeat(20));
    std::fs::create_dir_all(&deep).unwrap();
    place.data = Some(deep.join("demo"));
    let mut up = place.stay().await;
    let log = up.log();
    let sockets = std::fs::read_link(place.data().join("run/sockets")).unwrap();
    assert!(sockets.join("gw-berlin.sock").exists(), "{log}");

    // What it says can be pasted, from anywhere.
    let hint = |start: &str| {
        log.lines()
            .find_map(|line| line.trim_start().strip_prefix(start))
            .unwrap_or_else(|| panic!("no hint {start}: {log}"))
            .replace("(second terminal)", "")
    };
    let paste = async |line: &str| {
        let mut command = place.command(&[]);
        let shell = format!("{line}\nexit $?");
        let environment: Vec<_> = command
            .get_envs()
            .map(|(name, value)| (name.to_owned(), value.map(std::ffi::OsStr::to_owned)))
            .collect();
        command = Command::new("/bin/sh");
        command.args(["-c", &shell]).current_dir("/");
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        finish(command, PATIENCE).await
    };
    let said = paste(&hint("Next")).await.ended_with(0);
    assert_eq!(said.stdout.matches("✓ ok").count(), 3, "{said:#?}");
    drop(paste(&hint("Stop      Ctrl-C, or")).await.ended_with(0));
    assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
    assert!(!sockets.exists(), "nothing stays behind");
    place.assert_nothing_runs();

    // The folder of sockets goes away as well when the demo could not remove it.
    let mut up = place.stay().await;
    let sockets = std::fs::read_link(place.data().join("run/sockets")).unwrap();
    up.kill();
    let down = ["down", "--data-dir", text(place.data.as_ref().unwrap())];
    drop(place.run(&down).await.ended_with(0));
    assert!(!sockets.exists(), "{}", sockets.display());
    place.assert_nothing_runs();
}

#[tokio::test]
async fn a_second_demo_has_a_context_of_its_own() {
    let mut place = Place::new();
    let mut first = place.stay().await;
    let first_data = place.data();
    place.data = Some(place.home().join("second"));
    let mut second = place.stay().await;
    assert!(
        second.log().contains("context demo stays selected"),
        "{}",
        second.log()
    );
    assert!(
        second.log().contains("-c demo-2 run sys.uptime"),
        "{}",
        second.log()
    );
    let ids = async |context: &[&str]| {
        let list = ["gateway", "ls", "-o", "json"];
        let said = place.run(&[context, &list].concat()).await;
        said.ended_with(0).json()["items"][0]["id"].clone()
    };
    let (selected, one, two) = (
        ids(&[]).await,
        ids(&["-c", "demo"]).await,
        ids(&["-c", "demo-2"]).await,
    );
    assert_eq!(selected, one);
    assert_ne!(one, two);
    second.signal(Signal::INT);
    assert!(second.wait(PATIENCE).await.success(), "{}", second.log());
    first.signal(Signal::INT);
    assert!(first.wait(PATIENCE).await.success(), "{}", first.log());
    assert!(!first_data.join("run/demo.json").exists());
    place.assert_nothing_runs();
}

#[tokio::test]
async fn nothing_outside_the_folder_is_needed() {
    let place = Place::new();
    write(&place.home().join("no folder"), "");
    let config = place.home().join("no folder/config");
    let data = place.data();
    for home in [Some(&config), None] {
        let mut command = place.command(&["up", "--once", "--data-dir", text(&data)]);
        match home {
            Some(home) => command.env("VIWORKS_CONFIG_DIR", home),
            None => command
                .env_remove("VIWORKS_CONFIG_DIR")
                .env_remove("HOME")
                .env_remove("XDG_CONFIG_HOME"),
        };
        let said = finish(command, PATIENCE).await.ended_with(0);
        assert_three_answers(&said);
        // One that is over in a moment is nobody's context.
        assert!(!said.stderr.contains("context"), "{said:#?}");
    }
    // How to use it without a context is in its hints.
    let mut command = place.command(&["up", "--data-dir", text(&data)]);
    command.env("VIWORKS_CONFIG_DIR", &config);
    let mut up = Process::start(&mut command, &place.folder.path().join("up.log")).unwrap();
    eventually("the demo is up", PATIENCE, async || {
        up.log().contains("Ctrl-C").then_some(())
    })
    .await;
    let token = data.join("operator.key");
    assert!(
        up.log().contains("no context was remembered")
            && up
                .log()
                .contains(&format!("--token-file '{}'", token.display())),
        "{}",
        up.log()
    );
    up.signal(Signal::INT);
    assert!(up.wait(PATIENCE).await.success(), "{}", up.log());
    place.assert_nothing_runs();
}

#[tokio::test]
async fn whose_demo_it_is_is_said_to_who_may_not_stop_it() {
    if !is_root() {
        // Only root can be two users.
        return;
    }
    let mut place = Place::of_nobody();
    drop(place.up(&["--once"]).await.ended_with(0));
    place.user = Some(NOBODY - 1);
    let data = place.data();
    for verb in ["down", "up"] {
        let said = place
            .run(&[verb, "--data-dir", text(&data)])
            .await
            .ended_with(77);
        assert!(
            said.stderr.contains("65534") && said.stderr.contains("sudo"),
            "{said:#?}"
        );
    }
}
