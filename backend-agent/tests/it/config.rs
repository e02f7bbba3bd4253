//! The configuration: its reference, and what it refuses.

use std::path::Path;

use viworks_backend_agent::config::{Config, reference};
use viworks_runtime::config::{Environment, Form};

use crate::pki::initialised;

#[test]
fn what_docs_say_of_the_keys_is_what_the_reader_declares() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for (form, verb, file) in [
        (Form::Reference, "reference", "configuration_backend.md"),
        (Form::Schema, "schema", "configuration_backend.schema.json"),
        (
            Form::Example,
            "example",
            "configuration_backend.example.toml",
        ),
    ] {
        let written = std::fs::read_to_string(docs.join(file)).unwrap_or_default();
        assert!(
            written == reference::describe(form),
            "docs/{file} is out of date: viworks-backend-agent config {verb} > docs/{file}"
        );
    }
}

#[test]
fn the_example_is_accepted_and_what_it_leaves_out_is_the_default() {
    let folder = initialised();
    let path = folder.path().join("b/backend.toml");
    let example = reference::describe(Form::Example);
    let load_it = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Config::load(&path, &Environment::default()).unwrap()
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
        "listen = \"127.0.0.1:8082\"",
        "public_url = ",
        "next_key_file = ",
        "sqlite_file = ",
        "password_file = ",
        "ca_file = ",
        "ca_key_file = ",
        "crl_file = ",
        "previous_master_key_file = ",
        "ca_sign_command = ",
    ]
    .iter()
    .any(|key| line.starts_with(key))
}

#[test]
fn what_pki_init_writes_is_complete_and_valid() {
    let folder = initialised();
    let config = Config::load(
        &folder.path().join("b/backend.toml"),
        &Environment::default(),
    )
    .unwrap();
    assert_eq!(config.agents.listen.to_string(), "127.0.0.1:8081");
    assert_eq!(
        config.data.sqlite_file,
        folder.path().join("b/state/backend.sqlite")
    );
}

#[test]
fn every_problem_is_listed_at_once() {
    let folder = initialised();
    let path = folder.path().join("b/backend.toml");
    let text = std::fs::read_to_string(&path).unwrap()
        .replace("certificate_file = \"server.crt\"", "certificate_file = \"missing.crt\"\nsilence_ms = 15000\nhello_timeout_ms = 99\nbindng = \"exporter\"")
        .replace("[data]", "[data]\nsqlite_file = \"elsewhere.sqlite\"");
    std::fs::write(&path, text).unwrap();
    use std::os::unix::fs::PermissionsExt;
    let key = folder.path().join("b/master.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let problems = Config::load(&path, &Environment::default()).unwrap_err();
    let text = problems.to_string();
    for expected in [
        "missing.crt",
        "silence_ms",
        "hello_timeout_ms",
        "bindng",
        "sqlite_file",
        "master.key",
    ] {
        assert!(text.contains(expected), "{expected} is not in:\n{text}");
    }
    assert_eq!(problems.exit_code().number(), 78);
}

/// What comes of a sound configuration with these settings of one section in the environment.
fn loaded(section: &str, settings: &[(&str, &str)]) -> Result<Config, String> {
    let named = |key: &str| format!("VIWORKS__{section}__{key}");
    let settings = settings
        .iter()
        .map(|(key, value)| (named(key), (*value).to_owned()));
    let environment: Environment = settings.collect();
    let loaded = Config::load(&initialised().path().join("b/backend.toml"), &environment);
    loaded.map_err(|problems| problems.to_string())
}

/// What is wrong with it; empty when nothing is.
fn problems_of(section: &str, settings: &[(&str, &str)]) -> String {
    loaded(section, settings).err().unwrap_or_default()
}

#[test]
fn certificates_live_for_days_or_for_hours() {
    let life = |settings: &[(&str, &str)]| {
        let config = loaded("ENROLMENT", settings).unwrap();
        config.enrolment.certificate_life().as_secs() / 3_600
    };
    assert_eq!(life(&[]), 90 * 24);
    assert_eq!(life(&[("CERTIFICATE_DAYS", "7")]), 7 * 24);
    assert_eq!(life(&[("CERTIFICATE_HOURS", "1")]), 1);
}

#[test]
fn proxies_are_named_one_by_one_and_only_where_they_are_believed() {
    let problems = |settings: &[(&str, &str)]| problems_of("AGENTS", settings);
    let require = ("PROXY_PROTOCOL", "require");
    let (terminated, bound) = (("TLS_ENDS_AT", "proxy"), ("BINDING", "certificate"));
    let trusted = ("TRUSTED_PROXIES", "127.0.0.1");
    assert_eq!(problems(&[terminated, trusted, bound]), "");
    assert_eq!(
        problems(&[require, ("TRUSTED_PROXIES", "127.0.0.1,10.0.8.0/24")]),
        ""
    );
    let api = |value: &str| problems_of("API", &[("TRUSTED_PROXIES", value)]);
    assert_eq!(api("127.0.0.1"), "");
    // Two halves are everybody, too.
    for wide in ["0.0.0.0/0", "0.0.0.0/1,128.0.0.0/1", "2000::/3"] {
        assert!(
            api(wide).contains("is more than one site can have"),
            "{wide}"
        );
    }
    let door = |settings: &[(&str, &str)]| problems_of("ENROLMENT", settings);
    assert_eq!(door(&[require, trusted]), "");
    assert!(door(&[require]).contains("no proxy is believed"));
    assert!(door(&[trusted]).contains("nothing is asked of these proxies"));
    let wide = [require, ("TRUSTED_PROXIES", "0.0.0.0/0")];
    assert!(door(&wide).contains("is more than one site can have"));
    for (all, one, counts) in [("64", "16", 16), ("64", "17", 16), ("16", "128", 4)] {
        let settings = [("CONNECTIONS_MAX", all), ("PER_SOURCE_MAX", one)];
        let config = loaded("ENROLMENT", &settings).unwrap();
        assert_eq!(config.enrolment.of_one_source(), counts, "{all} and {one}");
    }
    for url in ["https://a.test:8082", "https://a.test/"] {
        assert_eq!(door(&[("PUBLIC_URL", url)]), "", "{url}");
    }
    for (url, told) in [
        ("https://a.test/enrol", "is no address of a door"),
        ("https://a.test/?a=1", "is no address of a door"),
        ("https://me@a.test", "holds a user name"),
    ] {
        let said = door(&[("PUBLIC_URL", url)]);
        assert!(said.contains(told), "{url}: {said}");
    }
    for (settings, told) in [
        (&[require][..], "no proxy is believed"),
        (
            &[("TRUSTED_PROXIES", "127.0.0.1")],
            "nothing is asked of these proxies",
        ),
        (&[require, ("TRUSTED_PROXIES", "::/0")], "::/0 is more than"),
        (
            &[require, ("TRUSTED_PROXIES", "10.0.8.1/24")],
            "the network is 10.0.8.0/24",
        ),
        (
            &[require, ("TRUSTED_PROXIES", "nginx")],
            "no address such as",
        ),
        (&[terminated], "no proxy is believed"),
        (
            &[terminated, trusted],
            "cannot be bound to a TLS connection",
        ),
        (
            &[terminated, trusted, bound, require],
            "in a header of HTTP",
        ),
        (
            &[terminated, trusted, bound, ("LISTEN", "0.0.0.0:8081")],
            "sessions would cross the network",
        ),
    ] {
        let problems = problems(settings);
        assert!(problems.contains(told), "{told} is not in:\n{problems}");
    }
    // That nobody is believed follows from a list that cannot be read.
    for settings in [
        &[require, ("TRUSTED_PROXIES", "nginx")][..],
        &[terminated, bound, ("TRUSTED_PROXIES", "nginx")],
    ] {
        let problems = problems(settings);
        assert!(problems.contains("no address such as"), "{problems}");
        assert!(!problems.contains("no proxy is believed"), "{problems}");
    }
}

#[test]
fn bounds_are_brought_within_the_sockets_that_there_can_be_whoever_connects() {
    let trusted = ("TRUSTED_PROXIES", "127.0.0.1");
    let direct: &[(&str, &str)] = &[];
    let named_first = [("PROXY_PROTOCOL", "require"), trusted];
    let bound = ("BINDING", "certificate");
    let ended_before = [("TLS_ENDS_AT", "proxy"), bound, trusted];
    for (settings, sockets_of_a_gateway) in
        [(direct, 1), (&named_first[..], 2), (&ended_before[..], 2)]
    {
        let named = |key: &str| format!("VIWORKS__AGENTS__{key}");
        let settings = settings.iter();
        let settings = settings.map(|(key, value)| (named(key), (*value).to_owned()));
        let environment: Environment = settings.collect();
        let folder = initialised();
        let config = Config::load(&folder.path().join("b/backend.toml"), &environment).unwrap();
        let sockets = |config: &Config| {
            let gateways = config.agents.connections_max * sockets_of_a_gateway;
            (gateways + config.api.connections_max) as u64
        };
        let beside = u64::from(config.store.connections_max);
        assert_eq!(config.sockets_max(), sockets(&config) + beside);
        for room in [200, 1_001, 20_000] {
            let within = config.clone().within(Some(room));
            let taken = sockets(&within) + beside;
            // No more than fit, and of what fits nothing that a gateway could have had.
            assert!(taken <= room, "{taken} of {room}");
            assert!(
                taken + sockets_of_a_gateway as u64 > room,
                "{taken} of {room}"
            );
            assert_eq!(within.sockets_max(), taken);
        }
        let enough = config.sockets_max();
        assert_eq!(config.clone().within(Some(enough)), config);
        assert_eq!(config.clone().within(None), config);
    }
}

#[test]
fn a_file_beside_a_url_that_cannot_be_used_is_told_of_once() {
    use std::os::unix::fs::PermissionsExt;
    let folder = initialised();
    let path = folder.path().join("b/backend.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    let file = folder.path().join("b/beside");
    for (key, contents, mode, why) in [
        ("password_file", None, 0, "No such file"),
        (
            "password_file",
            Some("secret"),
            0o644,
            "can be read by others",
        ),
        (
            "password_file",
            Some("\n"),
            0o600,
            "it must hold the password",
        ),
        ("ca_file", None, 0, "No such file"),
        ("ca_file", Some("x"), 0o666, "can be changed by others"),
        ("ca_file", Some("x"), 0o644, "it holds no certificate"),
    ] {
        drop(std::fs::remove_file(&file));
        if let Some(contents) = contents {
            std::fs::write(&file, contents).unwrap();
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&file, mode).unwrap();
        }
        for section in [
            "[store]\nurl = \"postgres://vw@127.0.0.1/viworks\"",
            "[queue]\nurl = \"rediss://vw@127.0.0.1\"",
        ] {
            let text = format!("{written}\n{section}\n{key} = \"beside\"\n");
            std::fs::write(&path, text).unwrap();
            let problems = Config::load(&path, &Environment::default()).unwrap_err();
            let text = problems.to_string();
            assert!(text.contains(key) && text.contains("b/beside"), "{text}");
            assert_eq!(problems.iter().count(), 1, "{text}");
            assert!(text.contains(why), "{why} is not in:\n{text}");
        }
    }
}

#[test]
fn the_authority_of_a_server_may_be_a_credential() {
    let folder = initialised();
    let path = folder.path().join("b/backend.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    let given = folder.path().join("given");
    std::fs::create_dir(&given).unwrap();
    std::fs::copy(folder.path().join("b/ca.crt"), given.join("ca")).unwrap();
    let environment: Environment = [("CREDENTIALS_DIRECTORY", given.to_str().unwrap())]
        .into_iter()
        .collect();
    let text = format!(
        "{written}\n[store]\nurl = \"postgres://vw@127.0.0.1/viworks\"\nca_file = \"credential:ca\"\n\
         [queue]\nurl = \"rediss://vw@127.0.0.1\"\nca_file = \"credential:ca\"\n"
    );
    std::fs::write(&path, text).unwrap();
    let config = Config::load(&path, &environment).unwrap();
    let found = [config.store.ca_file, config.queue.ca_file];
    assert_eq!(found, [Some(given.join("ca")), Some(given.join("ca"))]);
    let problems = Config::load(&path, &Environment::default()).unwrap_err();
    let text = problems.to_string();
    assert_eq!(
        text.matches("ca_file: there is no credential ca").count(),
        2,
        "{text}"
    );
}
