//! What the helper's list allows, and whose it has to be: the list decides, whatever the agent says.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use viworks_gateway_agent::catalogue::{Current, SHIPPED};
use viworks_gateway_agent::spawner::{Answer, Entry};

use super::{ENTRIES, Helper};

#[tokio::test]
async fn what_the_list_does_not_allow_is_refused_whatever_the_agent_says() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let refused = |entry: Entry, given: &[(&str, &str)], said: &str| {
        let answer = helper.ask_past(entry, given);
        let Some(Answer::Refused(reason)) = &answer else {
            panic!("{answer:?} and not {said:?}");
        };
        assert!(reason.contains(said), "{reason}");
    };
    let say = helper.entry("test.say");
    for given in [
        &[][..],
        &[("number", "1; id")],
        &[("number", "--version")],
        &[("also", "1")],
    ] {
        refused(say.clone(), given, "number");
    }
    let other = Entry {
        fingerprint: helper.entry("test.who").fingerprint,
        ..say.clone()
    };
    refused(other, &[("number", "1")], "is not the same");

    // The agent's catalogue has more than the list.
    let list = fs::read_to_string(helper.list()).unwrap();
    fs::write(helper.list(), list.replace("test.say", "test.other")).unwrap();
    refused(
        say.clone(),
        &[("number", "1")],
        "is not on the helper's list",
    );
    let said = helper.objection("test.say").unwrap();
    assert!(
        said.contains("is not on the helper's list; fix: copy its entry"),
        "{said}"
    );
    fs::write(
        helper.list(),
        list.replace("user = \"nobody\"", "user = \"daemon\""),
    )
    .unwrap();
    refused(say.clone(), &[("number", "1")], "is not the same");
    fs::write(helper.list(), list.replace("user = \"nobody\"", "")).unwrap();
    refused(say, &[("number", "1")], "the command has no user");
    fs::write(helper.list(), &list).unwrap();
    assert_eq!(helper.objection("test.say"), None);
}

#[tokio::test]
async fn all_commands_are_asked_about_on_one_connection() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let asked = || helper.children.lock().unwrap().len();
    let unavailable = |current: &Current| current.get().unavailable();
    let list = fs::read_to_string(helper.list()).unwrap();
    fs::write(helper.list(), list.replace("test.s", "test.other_s")).unwrap();
    let current = Current::new(helper.catalogue());
    assert_eq!((asked(), unavailable(&current)), (1, 3));
    // What it has refused stays so until it is asked again.
    fs::write(helper.list(), &list).unwrap();
    current.look_again(false).await;
    assert_eq!((asked(), unavailable(&current)), (1, 3));
    current.look_again(true).await;
    assert_eq!((asked(), unavailable(&current)), (2, 0));
}

#[tokio::test]
async fn a_list_that_others_could_change_allows_nothing() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let said = || helper.objection("test.who").unwrap();
    let list = helper.list();
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&list, 0o666);
    assert!(said().contains("10-test.toml"), "{}", said());
    mode(&list, 0o644);
    let folder = list.parent().unwrap();
    mode(folder, 0o777);
    assert!(said().contains("helper.d"), "{}", said());
    mode(folder, 0o755);
    std::os::unix::fs::chown(&list, Some(65_534), None).unwrap();
    assert!(said().contains("10-test.toml"), "{}", said());
    // A link in place of the file, to what root may well have written.
    let elsewhere = helper.folder.path().join("elsewhere");
    fs::copy(&list, &elsewhere).unwrap();
    fs::remove_file(&list).unwrap();
    symlink(&elsewhere, &list).unwrap();
    assert!(said().contains("link"), "{}", said());
    fs::remove_file(&list).unwrap();
    fs::rename(&elsewhere, &list).unwrap();
    assert_eq!(helper.objection("test.who"), None);
}

#[tokio::test]
async fn a_program_that_others_could_exchange_is_not_run() {
    let Some(helper) = Helper::start("root") else {
        return;
    };
    let open = helper.folder.path().join("open");
    fs::create_dir(&open).unwrap();
    let program = open.join("tool");
    fs::copy("/bin/true", &program).unwrap();
    let swap = |with: &str| {
        let text = ENTRIES.replace("/bin/echo", with);
        fs::write(helper.list(), &text).unwrap();
        fs::write(helper.folder.path().join("commands.d/10-test.toml"), text).unwrap();
    };
    swap(program.to_str().unwrap());
    assert_eq!(helper.objection("test.say"), None);
    let entry = helper.entry("test.say");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = helper.ask_past(entry, &[("number", "1")]);
    assert!(matches!(refused, Some(Answer::Refused(_))), "{refused:?}");
}

#[test]
fn the_list_that_ships_has_the_entry_of_the_shipped_catalogue() {
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .skip_while(|line| *line != "name = \"service.restart\"")
            .take_while(|line| *line != "[[command]]")
            .map(str::to_owned)
            .collect()
    };
    let list = lines(include_str!(
        "../../../../packaging/helper.d/40-services.toml"
    ));
    let (_, shipped) = SHIPPED
        .iter()
        .find(|(name, _)| *name == "40-services.toml")
        .unwrap();
    assert_eq!(list, lines(shipped));
    assert!(list.contains(&"user = \"root\"".to_owned()));
}
