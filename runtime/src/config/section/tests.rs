//! A section as a file has it: every problem at once, each with its line.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::config::{Environment, Problems};

const SECOND: Duration = Duration::from_secs(1);

/// Reads `text` with `read` and gives what it returned, and the problems as lines.
fn read<T>(
    text: &str,
    variables: &[(&str, &str)],
    read: impl FnOnce(&mut Document) -> T,
) -> (T, Vec<String>) {
    let environment = Environment::from_iter(variables.iter().copied());
    let mut document = Document::parse(Path::new("/etc/viworks/agent.toml"), text, &environment);
    let output = read(&mut document);
    let problems = document.finish().err();
    (
        output,
        problems
            .iter()
            .flat_map(Problems::iter)
            .map(ToString::to_string)
            .collect(),
    )
}

fn outbound(document: &mut Document) -> (String, Duration, Vec<String>, u16, bool) {
    let mut section = document.section("outbound", "The connection to the backend.");
    (
        section.required_url("url", &["wss"], "Where the backend listens."),
        section.duration_ms(
            "connect_timeout_ms",
            10 * SECOND,
            SECOND / 10..=300 * SECOND,
            "How long to try.",
        ),
        section.required_strings("pins", "Keys the backend may show."),
        section.integer("batch_max", 100_u16, 1..=1000, "Records in a batch."),
        section.bool("compress", true, "Whether batches are compressed."),
    )
}

#[test]
fn what_is_written_is_read_and_what_is_not_has_its_default() {
    let text =
        "[outbound]\nurl = \"wss://h:1\"\npins = [\"a\", \"b\"]\nconnect_timeout_ms = 1_500\n";
    let (values, problems) = read(text, &[], outbound);
    assert_eq!(problems, Vec::<String>::new());
    let pins = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(
        values,
        (
            "wss://h:1".to_owned(),
            Duration::from_millis(1500),
            pins,
            100,
            true
        )
    );
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let text = "\
[outbound]
url = \"ws://h:1\"
ulr = \"wss://h:1\"
  connect_timeout_ms = 99
pins = []
batch_max = \"many\"
compress = true
compress = false

[spoool]
x = 1
";
    let (_, problems) = read(text, &[], |document| {
        outbound(document);
        document.section("spool", "").bool("x", true, "");
    });
    let at = |place: &str| {
        let matching = problems
            .iter()
            .filter(|line| line.starts_with(&format!("/etc/viworks/agent.toml:{place}: ")));
        let found: Vec<_> = matching.collect();
        assert_eq!(found.len(), 1, "at {place}: {problems:#?}");
        found[0].split_once(": ").unwrap().1.to_owned()
    };
    assert_eq!(
        at("2:7"),
        "url: ws:// is not encrypted\n  help: use wss://, there is no plain-text mode"
    );
    assert_eq!(
        at("3:1"),
        "unknown key \"ulr\" in [outbound]\n  help: did you mean \"url\"?"
    );
    assert_eq!(
        at("4:24"),
        "connect_timeout_ms is 99\n  help: it must be from 100 to 300000"
    );
    assert_eq!(
        at("5:8"),
        "pins is an empty list\n  help: it needs at least one entry"
    );
    assert_eq!(
        at("6:13"),
        "batch_max is a string instead of an integer\n  help: for example: batch_max = 1"
    );
    assert_eq!(
        at("8:1"),
        "not valid TOML: duplicate key\n  help: keep one of the two; all that belongs to one section stands under one [heading]"
    );
    assert_eq!(
        at("10:2"),
        "unknown section [spoool]\n  help: did you mean \"spool\"?"
    );
    assert_eq!(problems.len(), 7, "{problems:#?}");
}

#[test]
fn several_errors_of_syntax_are_all_reported() {
    let (_, problems) = read(
        "[outbound]\nurl = \npins = [\"a\"\n\n[other\nx = 1\n",
        &[],
        outbound,
    );
    let lines: Vec<_> = problems
        .iter()
        .filter(|line| line.contains("not valid TOML"))
        .collect();
    assert!(lines.len() >= 2, "{problems:#?}");
    assert!(
        lines.iter().all(|line| line.contains("\n  help: ")),
        "{problems:#?}"
    );
    // What is behind them was not read, so nobody knows that it is missing.
    let missing = |line: &String| line.contains("is missing");
    assert!(!problems.iter().any(missing), "{problems:#?}");
    let (_, problems) = read("[outbound]\nbatch_max = 1\nbatch_max = 2\n", &[], outbound);
    assert!(problems.iter().any(missing), "{problems:#?}");
}

#[test]
fn problems_are_in_the_order_of_the_file_and_counted() {
    let mut document = Document::parse(
        Path::new("a.toml"),
        "b = 1\na = 2\n",
        &Environment::default(),
    );
    document.section("", "").bool("z", true, "");
    let problems = document.finish().unwrap_err();
    let text = problems.to_string();
    assert!(
        text.starts_with("a.toml:1:1: unknown key \"b\" at the top of the file"),
        "{text}"
    );
    assert!(text.ends_with("2 problems in the configuration"), "{text}");
    assert_eq!(problems.exit_code().number(), 78);
}

#[test]
fn a_missing_key_is_reported_where_its_section_begins() {
    let (_, problems) = read("# comment\n[outbound]\npins = [\"a\"]\n", &[], outbound);
    assert_eq!(
        problems,
        [
            "/etc/viworks/agent.toml:2:1: the key \"url\" is missing in [outbound]\n  help: Where the backend listens."
        ]
    );
}

#[test]
fn a_key_in_the_wrong_section_is_sent_home() {
    let text = "pins = [\"a\"]\n[outbound]\nurl = \"wss://h\"\n";
    let (_, problems) = read(text, &[], outbound);
    assert!(
        problems[0].ends_with("help: \"pins\" belongs in [outbound]"),
        "{problems:#?}"
    );
}

#[test]
fn the_environment_overrides_the_file() {
    let text = "[outbound]\nurl = \"wss://file\"\npins = [\"a\"]\n";
    let variables = [
        ("VIWORKS__OUTBOUND__URL", "wss://variable"),
        ("VIWORKS__OUTBOUND__PINS", "b, c"),
        ("VIWORKS__OUTBOUND__BATCH_MAX", "7"),
        ("VIWORKS__OUTBOUND__COMPRESS", "false"),
        ("HOME", "/"),
    ];
    let (values, problems) = read(text, &variables, outbound);
    assert_eq!(problems, Vec::<String>::new());
    let pins = vec!["b".to_owned(), "c".to_owned()];
    assert_eq!(
        values,
        ("wss://variable".to_owned(), 10 * SECOND, pins, 7, false)
    );
}

#[test]
fn bad_and_unknown_variables_are_problems_of_their_own() {
    let text = "[outbound]\nurl = \"wss://h\"\npins = [\"a\"]\n";
    let variables = [
        ("VIWORKS__OUTBOUND__BATCH_MAX", "seven"),
        ("VIWORKS__OUTBOUND__COMPRES", "false"),
        ("VIWORKS__OUTBOUND__URL", "ws://h"),
        // Of another program: it resembles another name only in what all names begin with.
        ("VIWORKS__PROBE__UR", "x"),
    ];
    let (_, problems) = read(text, &variables, outbound);
    assert_eq!(
        problems,
        [
            "environment variable VIWORKS__OUTBOUND__BATCH_MAX: cannot be read as a value for batch_max\n  \
             help: numbers, true, false and lists are written as in the file",
            "environment variable VIWORKS__OUTBOUND__COMPRES: overrides no key of the configuration\n  \
             help: did you mean VIWORKS__OUTBOUND__COMPRESS?",
            "environment variable VIWORKS__OUTBOUND__URL: url: ws:// is not encrypted\n  \
             help: use wss://, there is no plain-text mode",
            "environment variable VIWORKS__PROBE__UR: overrides no key of the configuration\n  \
             help: variables are named VIWORKS__SECTION__KEY after the keys of the file",
        ]
    );
}

#[test]
fn files_must_be_there_and_keys_must_be_closed_to_others() {
    let folder = tempfile::tempdir().unwrap();
    for (name, mode) in [("open.key", 0o644), ("closed.key", 0o600)] {
        let path = folder.path().join(name);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let path = folder.path().join("agent.toml");
    std::fs::write(
        &path,
        "[tls]\ngood = \"closed.key\"\nopen = \"open.key\"\nmissing = \"none.pem\"\n",
    )
    .unwrap();
    let mut document = Document::load(&path, &Environment::default()).unwrap();
    let mut tls = document.section("tls", "");
    assert_eq!(
        tls.secret_file("good", ""),
        folder.path().join("closed.key"),
        "relative to the file"
    );
    tls.secret_file("open", "");
    tls.file("missing", "");
    assert_eq!(tls.optional_secret_file("other", ""), None);
    let problems: Vec<_> = document
        .finish()
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(
        problems[0].contains(":3:8: open: ")
            && problems[0].contains("can be read by others (mode 0644)")
    );
    assert!(
        problems[0].contains("help: run: chmod 600"),
        "{problems:#?}"
    );
    assert!(
        problems[1].contains(":4:11: missing: ") && problems[1].contains("No such file"),
        "{problems:#?}"
    );
}

#[test]
fn whoever_only_asks_needs_no_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    std::fs::write(&path, "[tls]\nkey_file = \"credential:key\"\n").unwrap();
    let finish = |mut document: Document| {
        document.section("tls", "").secret_file("key_file", "");
        document.finish()
    };
    let nothing = Environment::default();
    finish(Document::load_to_ask(&path, &nothing).unwrap()).unwrap();
    let problems = finish(Document::load(&path, &nothing).unwrap()).unwrap_err();
    assert!(
        problems.to_string().contains("credential key"),
        "{problems}"
    );
}

#[test]
fn a_mistake_keeps_nobody_from_asking() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.toml");
    let ask = || {
        Document::read_to_ask(&path, &Environment::default(), |document| {
            document.section("api", "").duration_ms(
                "wait_ms",
                Duration::from_secs(10),
                Duration::ZERO..=Duration::from_secs(60),
                "",
            )
        })
    };
    let (wait, problems) = ask();
    assert_eq!(wait, Duration::from_secs(10));
    assert!(problems.unwrap().to_string().contains("agent.toml"));
    std::fs::write(&path, "[api]\nwait_ms = 2000\nwaits = 1\n").unwrap();
    let (wait, problems) = ask();
    assert_eq!(wait, Duration::from_secs(2));
    assert!(problems.unwrap().to_string().contains("waits"));
    std::fs::write(&path, "[api]\nwait_ms = 2000\n").unwrap();
    assert!(ask().1.is_none());
}

#[test]
fn a_credential_is_a_file_that_is_read_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca"), "").unwrap();
    let given = [("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())];
    let (ca, problems) = read("[tls]\nca_file = \"credential:ca\"\n", &given, |document| {
        document.section("tls", "").optional_file("ca_file", "")
    });
    assert_eq!((ca, problems), (Some(folder.path().join("ca")), vec![]));
    let text = "[data]\nfolder = \"credential:ca\"\nsocket = \"credential:ca\"\n";
    let (_, problems) = read(text, &given, |document| {
        let mut data = document.section("data", "");
        data.path("folder", "state", "");
        data.optional_path("socket", "")
    });
    assert_eq!(problems.len(), 2, "{problems:#?}");
    for (problem, key) in problems.iter().zip(["2:10: folder", "3:10: socket"]) {
        let told = format!(
            ":{key} is \"credential:ca\", and only a file that is read can be a credential"
        );
        assert!(problem.contains(&told), "{problem}");
    }
}

#[test]
fn a_missing_file_is_refused_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.toml");
    let problems = Document::load(&path, &Environment::default()).unwrap_err();
    assert!(problems.to_string().contains("none.toml"), "{problems}");
    assert!(problems.to_string().contains("No such file"), "{problems}");
}

#[test]
fn words_stand_for_values_and_others_are_refused() {
    let choices = [("fast", 1), ("safe", 2)];
    let mode = |document: &mut Document| {
        document
            .section("a", "")
            .one_of("mode", "safe", &choices, "")
    };
    assert_eq!(read("[a]\nmode = \"fast\"", &[], mode), (1, vec![]));
    assert_eq!(read("", &[], mode), (2, vec![]));
    let (value, problems) = read("[a]\nmode = \"fats\"", &[], mode);
    assert_eq!(value, 2);
    assert!(
        problems[0].ends_with("it must be one of fast, safe; did you mean \"fast\"?"),
        "{problems:#?}"
    );
}

#[test]
fn an_unsafe_switch_needs_its_confession() {
    let switch = |document: &mut Document| {
        document
            .section("a", "")
            .unsafe_switch("plain", "for_test_purposes_only", "Never do this.")
    };
    assert_eq!(read("", &[], switch), (false, vec![]));
    assert_eq!(
        read("[a]\nplain = \"for_test_purposes_only\"", &[], switch),
        (true, vec![])
    );
    for text in ["[a]\nplain = true", "[a]\nplain = \"yes\""] {
        let (on, problems) = read(text, &[], switch);
        assert!(!on && problems.len() == 1, "{problems:#?}");
    }
}

#[test]
fn arrays_of_tables_are_read_one_by_one_and_checked_for_unknown_keys() {
    let text = "\
[[command]]
name = \"a\"
[[command.argument]]
name = \"x\"
[[command]]
name = \"b\"
nmae = \"c\"
";
    let (commands, problems) = read(text, &[("VIWORKS__COMMAND__NAME", "z")], |document| {
        document.tables("command", "What may run.", |command| {
            let arguments =
                command.tables("argument", "", |argument| argument.required_str("name", ""));
            (command.required_str("name", ""), arguments)
        })
    });
    assert_eq!(
        commands,
        [
            ("a".to_owned(), vec!["x".to_owned()]),
            ("b".to_owned(), vec![])
        ]
    );
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(
        problems[0].starts_with("/etc/viworks/agent.toml:7:1: unknown key \"nmae\" in [command]")
    );
    assert!(
        problems[1].contains("VIWORKS__COMMAND__NAME"),
        "one variable cannot override many"
    );
}

#[test]
fn free_tables_take_any_key_but_only_strings() {
    let text = "[labels]\nsite = \"berlin\"\nrow = 3\n";
    let (labels, problems) = read(text, &[], |document| {
        document.strings_by_key("labels", "Shown to operators.")
    });
    assert_eq!(
        labels,
        BTreeMap::from([("site".to_owned(), "berlin".to_owned())])
    );
    assert_eq!(
        problems,
        [
            "/etc/viworks/agent.toml:3:7: row is an integer instead of a string\n  help: put it in quotes"
        ]
    );
}

#[test]
fn parsed_values_say_what_is_wrong_with_them() {
    let address = |document: &mut Document| {
        let default = std::net::SocketAddr::from(([127, 0, 0, 1], 8080));
        document
            .section("api", "")
            .parsed("listen", "loopback address:port", default, "")
    };
    assert_eq!(
        read("[api]\nlisten = \"0.0.0.0:1\"", &[], address).0.port(),
        1
    );
    assert_eq!(read("", &[], address).0.port(), 8080);
    let (_, problems) = read("[api]\nlisten = \"localhost:8080\"", &[], address);
    for words in [
        "listen is \"localhost:8080\": invalid socket address",
        "such as 127.0.0.1:8080",
    ] {
        assert!(problems[0].contains(words), "{words}: {problems:#?}");
    }
}

#[test]
fn problems_that_only_the_caller_sees_have_a_place_too() {
    let (_, problems) = read("[a]\nlow = 5\nhigh = 3\n", &[], |document| {
        let mut section = document.section("a", "");
        let (low, high) = (
            section.integer("low", 1, 0..=9, ""),
            section.integer("high", 9, 0..=9, ""),
        );
        if low > high {
            section.problem("high", "high is below low", "swap them");
        }
    });
    assert_eq!(
        problems,
        ["/etc/viworks/agent.toml:3:8: high is below low\n  help: swap them"]
    );
}

#[test]
fn a_value_where_a_section_belongs_is_named() {
    let (_, problems) = read("outbound = 3\n", &[], |document| {
        document.section("outbound", "").bool("x", true, "");
    });
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].contains("outbound is an integer instead of a section"),
        "{problems:#?}"
    );
}

#[test]
fn columns_count_characters() {
    let (_, problems) = read("[a]\nx = [\"äöü\", 3]\n", &[], |document| {
        document.section("a", "").strings("x", &[], "");
    });
    assert!(
        problems[0].contains("an entry of x is an integer"),
        "{problems:#?}"
    );
    let (_, problems) = read("a = { ä = 1, öö = 2 }", &[], |document| {
        document.section("a", "").bool("ä", true, "");
    });
    assert!(
        problems
            .iter()
            .any(|line| line.contains(":1:14: unknown key")),
        "{problems:#?}"
    );
}

#[test]
fn the_reference_lists_what_was_declared() {
    let mut document = Document::parse(Path::new("a.toml"), "", &Environment::default());
    outbound(&mut document);
    let reference = document.reference();
    let names: Vec<_> = reference.iter().map(|key| key.key.as_str()).collect();
    assert_eq!(
        names,
        ["url", "connect_timeout_ms", "pins", "batch_max", "compress"]
    );
    assert_eq!(
        reference[1],
        KeyReference {
            section: "outbound".to_owned(),
            key: "connect_timeout_ms".to_owned(),
            kind: Kind::Integer {
                min: 100,
                max: 300_000,
            },
            default: Default::Value("10000".to_owned()),
            help: "How long to try.".to_owned(),
            example: None,
            variable: Some("VIWORKS__OUTBOUND__CONNECT_TIMEOUT_MS".to_owned()),
        }
    );
    assert_eq!(reference[0].default, Default::Required);
    assert_eq!(
        document.section_reference()[0].help,
        "The connection to the backend."
    );
}

#[test]
fn a_port_that_is_none_is_told_as_that() {
    for text in ["127.0.0.1:99999", "[::1]:65536"] {
        assert!(address_help(text).contains("1 to 65535"), "{text}");
    }
    for text in ["localhost:99999", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x"] {
        assert!(address_help(text).contains("localhost are not"), "{text}");
    }
    let (_, problems) = read("[api]\nlisten = \"127.0.0.1:99999\"\n", &[], |document| {
        let default = std::net::SocketAddr::from(([127, 0, 0, 1], 8080));
        document
            .section("api", "")
            .parsed("listen", "address:port", default, "")
    });
    assert!(problems[0].contains("1 to 65535"), "{problems:?}");
}
