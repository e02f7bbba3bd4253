//! The configuration: everything wrong is said at once, and the reference is what the reader declares.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use viworks_gateway_agent::config::{Config, reference};
use viworks_runtime::config::{Environment, Form};

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, mode) in [
        ("gateway.crt", 0o644),
        ("ca.crt", 0o644),
        ("gateway.key", 0o600),
        ("identity.json", 0o600),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    folder
}

fn sound(pin: &str) -> String {
    format!(
        "[identity]\ncertificate_file = \"gateway.crt\"\nkey_file = \"gateway.key\"\nidentity_file = \"identity.json\"\n\
         [outbound]\nurl = \"wss://backend.test:8081\"\nca_file = \"ca.crt\"\npins = [\"{pin}\"]\n"
    )
}

fn write(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("gateway.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn load(folder: &Path, text: &str) -> Result<Config, Vec<String>> {
    let path = write(folder, text);
    Config::load(&path, &Environment::default())
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn pin() -> String {
    // In whatever form pins are written: the type itself says.
    viworks_common::pin::SpkiPin::from_digest([0xaa; 32]).to_string()
}

#[test]
fn a_sound_file_is_read_with_its_defaults() {
    let folder = folder();
    let config = load(folder.path(), &sound(&pin())).unwrap();
    assert_eq!(config.outbound.host, "backend.test");
    assert_eq!(config.outbound.port, 8081);
    assert_eq!(config.outbound.path, "/agent/v1/connect");
    assert_eq!(config.outbound.server_name, "backend.test");
    assert_eq!(config.gateway.state_folder, folder.path().join("state"));
    assert!(!config.executor.allow_own_commands);
    assert!(config.collect_interval.is_some());
}

#[test]
fn every_problem_is_listed_at_once_with_its_line() {
    let folder = folder();
    let text = "\
[identity]
certificate_file = \"absent.crt\"
key_file = \"gateway.key\"
identity_file = \"identity.json\"
[outbound]
url = \"ws://backend.test:8081\"
ca_file = \"ca.crt\"
pins = []
connect_timeout_ms = 99
[executor]
allow_own_commands = true
[spoool]
bytes_max = 1
";
    let key = folder.path().join("gateway.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let problems = load(folder.path(), text).unwrap_err();
    for line in [2, 3, 6, 8, 9, 11, 12] {
        let place = format!("gateway.toml:{line}:");
        assert!(
            problems.iter().any(|problem| problem.contains(&place)),
            "line {line}: {problems:#?}"
        );
    }
    assert_eq!(problems.len(), 7, "{problems:#?}");
}

#[test]
fn delays_that_begin_above_their_end_are_refused() {
    let folder = folder();
    let told = |lines: &str| {
        let text = format!("{}{lines}", sound(&pin()));
        load(folder.path(), &text).map(|config| config.outbound.backoff)
    };
    for (lines, refused) in [
        (
            "backoff_base_ms = 120000\n",
            "backoff_base_ms is 120000 and backoff_max_ms is 60000",
        ),
        (
            "permanent_backoff_min_ms = 5000\npermanent_backoff_max_ms = 1000\n",
            "permanent_backoff_min_ms is 5000 and permanent_backoff_max_ms is 1000",
        ),
        (
            "unproved_backoff_base_ms = 7200000\n",
            "unproved_backoff_base_ms is 7200000 and permanent_backoff_max_ms is 3600000",
        ),
    ] {
        let problems = told(lines).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        let problem = problems.first().unwrap();
        assert!(
            problem.contains(refused) && problem.contains("must not be above"),
            "{problem}"
        );
    }
    // A first delay that nobody set is no reason to refuse a short end.
    let short = told("backoff_max_ms = 300\n").unwrap();
    assert_eq!(short.max.as_millis(), 300);
    let same = told("backoff_base_ms = 300\nbackoff_max_ms = 300\n").unwrap();
    assert_eq!(same.base, same.max);
}

#[test]
fn a_pin_in_another_form_is_refused() {
    let folder = folder();
    for bad in [pin().replace('/', ":"), pin().replace("sha256", "md5")] {
        let problems = load(folder.path(), &sound(&bad)).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].contains("pins"), "{problems:#?}");
    }
}

#[test]
fn a_url_is_taken_apart_whatever_follows_its_host() {
    let folder = folder();
    let parts = |url: &str| {
        let text = sound(&pin()).replace("wss://backend.test:8081", url);
        let outbound = load(folder.path(), &text).unwrap().outbound;
        (outbound.server_name, outbound.port, outbound.path)
    };
    let expected = |name: &str, port, path: &str| (name.to_owned(), port, path.to_owned());
    for (url, wanted) in [
        ("wss://a.test", expected("a.test", 443, "/agent/v1/connect")),
        (
            "wss://a.test:9/",
            expected("a.test", 9, "/agent/v1/connect"),
        ),
        (
            "wss://a.test:9?site=x",
            expected("a.test", 9, "/agent/v1/connect?site=x"),
        ),
        ("wss://a.test/p?q#f", expected("a.test", 443, "/p?q")),
        ("wss://[::1]:9/p", expected("::1", 9, "/p")),
        ("wss://[::1]", expected("::1", 443, "/agent/v1/connect")),
    ] {
        assert_eq!(parts(url), wanted, "{url}");
    }
}

#[test]
fn a_server_name_that_no_certificate_can_have_is_refused_at_the_start() {
    let folder = folder();
    let text = format!("{}server_name = \"back end\"\n", sound(&pin()));
    let problems = load(folder.path(), &text).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].contains("gateway.toml:9:"), "{problems:#?}");
}

#[test]
fn what_docs_say_of_the_keys_is_what_the_reader_declares() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for (form, verb, file) in [
        (Form::Reference, "reference", "configuration_gateway.md"),
        (Form::Schema, "schema", "configuration_gateway.schema.json"),
        (
            Form::Example,
            "example",
            "configuration_gateway.example.toml",
        ),
    ] {
        let written = std::fs::read_to_string(docs.join(file)).unwrap_or_default();
        assert!(
            written == reference::describe(form),
            "docs/{file} is out of date: viworks-gateway-agent config {verb} > docs/{file}"
        );
    }
}

#[test]
fn the_example_is_accepted_and_what_it_leaves_out_is_the_default() {
    let folder = folder();
    let example = reference::describe(Form::Example);
    let load_it = |text: &str| {
        std::fs::write(folder.path().join("gateway.toml"), text).unwrap();
        Config::load(&folder.path().join("gateway.toml"), &Environment::default()).unwrap()
    };
    let as_it_is = load_it(&example);
    let declared = example.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if key.contains(" = ") && !key.starts_with(' ') && !is_an_example(key) => key,
        Some(_) | None => line,
    });
    let written_out = load_it(&declared.collect::<Vec<_>>().join("\n"));
    assert_eq!(as_it_is, written_out);
}

/// What has no default is left out of the example, with a value that only looks like one.
fn is_an_example(line: &str) -> bool {
    [
        "door_url = ",
        "key = ",
        "socket = ",
        "server_name = ",
        "allow_own_commands = ",
    ]
    .iter()
    .any(|key| line.starts_with(key))
}
