//! The JSON Schema of each configuration: it takes everything that is shipped, and what it refuses the agents refuse.

use jsonschema::Validator;
use serde_json::{Map, Value};
use viworks_testkit::binaries::workspace;

use super::*;
use crate::containers::compose::Compose;

fn schema(of: &str) -> Value {
    let file = workspace().join(format!("docs/configuration_{of}.schema.json"));
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn validator(schema: &Value) -> Validator {
    jsonschema::validator_for(schema).unwrap()
}

/// What a schema says of a configuration.
fn refusals(schema: &Validator, configuration: &Value) -> Vec<String> {
    let errors = schema.iter_errors(configuration);
    errors.map(|error| error.to_string()).collect()
}

fn is_valid(of: &str, configuration: &Value, what: &str) {
    let refused = refusals(&validator(&schema(of)), configuration);
    assert!(
        refused.is_empty(),
        "{what}: {refused:#?}\n{configuration:#}"
    );
}

fn parse(text: &str) -> Value {
    toml::from_str(text).unwrap()
}

fn parse_file(path: &Path) -> Value {
    parse(&fs::read_to_string(path).unwrap())
}

/// Lays a later file over an earlier one.
fn overlay(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                overlay(below.entry(key).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

/// What is in force of what was given, as the agent explains it.
async fn explained(mut command: Command, config: &Path) -> Value {
    command.args(["config", "explain", "-o", "json", "--config", text(config)]);
    // Files that are elsewhere here are missed, and that is said in the document as well.
    let said = finish(command, SOON).await;
    let told: Value = serde_json::from_str(&said.stdout).unwrap();
    let mut root = Value::Object(Map::new());
    for key in told["keys"].as_array().unwrap() {
        if !["file", "environment"].contains(&key["origin"].as_str().unwrap()) {
            continue;
        }
        let mut table = &mut root;
        for part in key["section"].as_str().unwrap().split('.') {
            table = &mut table[part];
        }
        table[key["key"].as_str().unwrap()] = key["value"].clone();
    }
    root
}

#[test]
fn the_schemas_are_schemas_and_take_the_examples() {
    for of in ["backend", "gateway"] {
        jsonschema::meta::validate(&schema(of)).unwrap();
        let example = workspace().join(format!("docs/configuration_{of}.example.toml"));
        is_valid(of, &parse_file(&example), "the example");
    }
}

#[tokio::test]
async fn what_is_made_for_folders_packages_and_demos_is_valid() {
    let binaries = Binaries::shipped();
    for kind in ["", "--installed", "--demo"] {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let config = at("backend/backend.toml");
        let mut init = Command::new(binaries.backend());
        init.args(["pki", "init", "--dir", text(&at("backend"))]);
        let mut issue = Command::new(binaries.backend());
        issue.args(["pki", "issue-gateway", "gw-1", "--config", text(&config)]);
        issue.args(["--state-folder", text(&at("state"))]);
        issue.args(["--label", "site=here", "--out", text(&at("gateway"))]);
        if kind == "--installed" {
            init.arg(kind);
        }
        if !kind.is_empty() {
            issue.arg(kind);
        }
        for command in [init, issue] {
            drop(finish(command, PATIENCE).await.ended_with(0));
        }
        is_valid("backend", &parse_file(&config), kind);
        is_valid("gateway", &parse_file(&at("gateway/gateway.toml")), kind);
        for (program, config) in [
            (binaries.backend(), config),
            (binaries.gateway(), at("gateway/gateway.toml")),
        ] {
            let mut command = Command::new(program);
            command.args(["config", "explain", "--config", text(&config)]);
            drop(finish(command, SOON).await.ended_with(0));
        }
    }
}

#[tokio::test]
async fn what_the_containers_are_told_is_valid() {
    let sound = Sound::new();
    let compose = Compose::read();
    let mut seen = 0;
    for (name, service) in &compose.services {
        let image = service.text("image");
        let (of, agent) = match image.split(':').next().unwrap() {
            "viworks-backend" => ("backend", BACKEND),
            "viworks-gateway" => ("gateway", GATEWAY),
            _ => continue,
        };
        let (_place, folder) = agent.copy(&sound);
        let mut command = Command::new((agent.program)(sound.system.binaries()));
        command.envs(service.environment());
        let told = explained(command, &folder.at(agent.config)).await;
        seen += service
            .environment()
            .keys()
            .filter(|variable| variable.starts_with("VIWORKS__"))
            .count();
        is_valid(of, &told, name);
    }
    assert!(seen > 20, "{seen} settings were looked at");
}

/// A schema of pieces: nothing in it has to be given.
fn of_pieces(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.retain(|key, value| key != "required" || !value.is_array());
            object.values_mut().for_each(of_pieces);
        }
        Value::Array(items) => items.iter_mut().for_each(of_pieces),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The blocks of TOML on a page.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line.trim() {
            "```toml" => {
                inside = true;
                blocks.push(Vec::new());
            }
            "```" => inside = false,
            line if inside => blocks.last_mut().unwrap().push(line),
            _ => {}
        }
    }
    blocks.iter().map(|lines| lines.join("\n")).collect()
}

#[test]
fn what_the_pages_tell_to_write_into_a_configuration_is_valid() {
    let mut schemas = ["backend", "gateway"].map(schema);
    schemas.iter_mut().for_each(of_pieces);
    let pages = ["docs", "docs/operations"].map(|folder| workspace().join(folder));
    let pages = pages
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap());
    let pages = pages.map(|page| page.unwrap().path());
    let mut seen = 0;
    for page in pages.filter(|page| page.extension().is_some_and(|it| it == "md")) {
        for block in blocks(&fs::read_to_string(&page).unwrap()) {
            let piece = parse(&block);
            // The catalogue has lists of tables, and pieces of them.
            let mut parts = piece.as_object().unwrap().values();
            if !parts.all(Value::is_object) {
                continue;
            }
            let known = |schema: &&Value| {
                let sections = schema["properties"].as_object().unwrap();
                let mut named = piece.as_object().unwrap().keys();
                named.all(|section| sections.contains_key(section))
            };
            let schema = schemas.iter().find(known);
            let schema = schema.unwrap_or_else(|| panic!("{}: {block}", page.display()));
            let refused = refusals(&validator(schema), &piece);
            assert!(
                refused.is_empty(),
                "{}: {refused:#?}\n{block}",
                page.display()
            );
            seen += 1;
        }
    }
    assert!(seen > 0);
}

/// A piece that is wrong, and what the agent names of it.
type Wrong = (&'static str, &'static str);

const WRONG_FOR_GATEWAYS: [Wrong; 14] = [
    ("[outbound]\nurll = \"wss://x\"\n", "unknown key \"urll\""),
    ("[outbond]\nx = 1\n", "unknown section [outbond]"),
    ("[outbound]\npins = 1\n", "pins is an integer"),
    ("[outbound]\npins = []\n", "pins is an empty list"),
    ("[outbound]\npins = [1]\n", "an entry of pins is an integer"),
    (
        "[outbound]\nurl = \"ws://x\"\n",
        "url: ws:// is not encrypted",
    ),
    (
        "[outbound]\nbinding = \"exported\"\n",
        "binding is \"exported\"",
    ),
    ("[outbound]\nserver_name = \"\"\n", "server_name is empty"),
    (
        "[outbound]\nconnect_timeout_ms = 99\n",
        "connect_timeout_ms is 99",
    ),
    ("[executor]\nparallel_max = 65\n", "parallel_max is 65"),
    (
        "[executor]\nallow_own_commands = true\n",
        "allow_own_commands is unsafe",
    ),
    (
        "[executor]\nallow_own_commands = \"yes\"\n",
        "allow_own_commands is unsafe",
    ),
    ("[collect]\nenabled = \"yes\"\n", "enabled is a string"),
    ("[gateway.labels]\nsite = 1\n", "site is an integer"),
];

const WRONG_FOR_BACKENDS: [Wrong; 10] = [
    ("[stor]\nurl = \"x\"\n", "unknown section [stor]"),
    ("[api]\nlisten = 8080\n", "listen is an integer"),
    ("[api]\nconnections_max = 0\n", "connections_max is 0"),
    (
        "[api]\nconnections_max = 1.5\n",
        "connections_max is a floating-point number",
    ),
    (
        "[agents]\ntrusted_proxies = \"127.0.0.1\"\n",
        "trusted_proxies is a string",
    ),
    (
        "[agents]\nproxy_protocol = \"on\"\n",
        "proxy_protocol is \"on\"",
    ),
    ("[agents]\npublic_url = \"https://x\"\n", "public_url"),
    (
        "[keys]\nmaster_key_file = \"\"\n",
        "master_key_file is empty",
    ),
    (
        "[telemetry]\nretention_days = 36501\n",
        "retention_days is 36501",
    ),
    ("[log]\nformat = \"xml\"\n", "format is \"xml\""),
];

async fn refused_by_both(agent: &Agent, of: &str, cases: &[Wrong]) {
    let sound = Sound::new();
    let schema = validator(&schema(of));
    let (_place, folder) = agent.copy(&sound);
    let whole = parse_file(&folder.at(agent.config));
    assert_eq!(refusals(&schema, &whole), Vec::<String>::new());
    let [check, _start] = agent.programs(&sound, &folder);
    drop(finish(check, SOON).await.ended_with(0));
    for (piece, cause) in cases {
        let mut spoiled = whole.clone();
        overlay(&mut spoiled, parse(piece));
        assert_ne!(refusals(&schema, &spoiled), Vec::<String>::new(), "{piece}");
        let spoil = |folder: &Folder| folder.lay("10.toml", piece);
        agent.hold(&sound, piece, spoil, &[cause]).await;
    }
    // What has to be given.
    for (section, keys) in whole.as_object().unwrap() {
        for key in keys.as_object().unwrap().keys() {
            let mut spoiled = whole.clone();
            spoiled[section].as_object_mut().unwrap().remove(key);
            let by_schema = !refusals(&schema, &spoiled).is_empty();
            let (_place, folder) = agent.copy(&sound);
            folder.write(agent.config, toml::to_string(&spoiled).unwrap());
            let [check, _start] = agent.programs(&sound, &folder);
            let said = finish(check, SOON).await;
            let missing = format!("the key {key:?} is missing in [{section}]");
            assert_eq!(
                by_schema,
                said.stderr.contains(&missing),
                "{key}: {said:#?}"
            );
        }
    }
}

#[tokio::test]
async fn what_the_schema_of_a_gateway_refuses_the_gateway_refuses() {
    refused_by_both(&GATEWAY, "gateway", &WRONG_FOR_GATEWAYS).await;
}

#[tokio::test]
async fn what_the_schema_of_a_backend_refuses_the_backend_refuses() {
    refused_by_both(&BACKEND, "backend", &WRONG_FOR_BACKENDS).await;
}
