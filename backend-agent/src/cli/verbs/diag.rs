//! `diag collect`: what somebody needs who is asked for help, in one file without secrets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_runtime::bundle::{self, Bundle, READ_TIME, machine};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{ask, blocking, files};

use super::super::flags::{ConfigFlag, DiagCommand};
use super::super::views::print;
use super::health::reachable;
use super::open::{explain, load_all, load_to_ask};
use crate::config::Config;

const PROGRAM: &str = "viworks-backend-agent";

/// How long the running backend may take for each answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Why something of which the configuration says where it is is not there.
const UNUSABLE: &str = "the configuration cannot be used: see check.txt";

/// What the running backend is asked without a key.
const PROBES: [(&str, &str); 3] = [
    ("livez.txt", "/livez"),
    ("readyz.txt", "/readyz"),
    ("startupz.txt", "/startupz"),
];

/// What it is asked with one.
const QUESTIONS: [(&str, &str, &str); 2] = [
    (
        "health.json",
        "/v1/health",
        "its parts, figures and conditions",
    ),
    ("metrics.txt", "/metrics", "everything that is counted"),
];

/// Collects it, writes it, and prints what is in it.
pub(super) async fn execute(command: DiagCommand) -> anyhow::Result<ExitCode> {
    let DiagCommand::Collect {
        config: flag,
        key_file,
        address,
        log,
        out,
    } = command;
    let out = out.unwrap_or_else(|| bundle::name(PROGRAM, SystemClock.wall()));
    let mut bundle = Bundle::default();
    machine::add(&mut bundle, PROGRAM, env!("CARGO_PKG_VERSION"));
    // Each of these may wait for a disk that does not answer.
    let named = flag.clone();
    let check = move |part: &mut Bundle| add_check(part, &named);
    bundle.gather(&["check.txt"], READ_TIME, check).await;
    let named = flag.clone();
    let explain = move |part: &mut Bundle| add_configuration(part, &named);
    bundle
        .gather(&["configuration.txt"], READ_TIME, explain)
        .await;
    let loaded = blocking::call("bundle", READ_TIME, move || load_to_ask(&flag)).await;
    let config = loaded.map_err(|error| error.to_string());
    let config = config.and_then(|loaded| loaded.map_err(|_in_the_check| UNUSABLE.to_owned()));
    match &config {
        Ok(config) => add_state(&mut bundle, config).await,
        Err(why) => {
            for name in ["certificates.txt", "state.txt"] {
                bundle.missing(name, why);
            }
        }
    }
    match (address, config) {
        (Some(address), _) => ask_all(&mut bundle, address, key_file).await,
        (None, Ok(config)) => ask_all(&mut bundle, config.api.listen, key_file).await,
        (None, Err(why)) => {
            let probes = PROBES.iter().map(|(name, _path)| *name);
            let questions = QUESTIONS.iter().map(|(name, _path, _what)| *name);
            for name in probes.chain(questions) {
                bundle.missing(name, &why);
            }
        }
    }
    if let Some(log) = &log {
        machine::add_log(&mut bundle, log).await;
    }
    let told = bundle.told(&out);
    bundle.write(&out)?;
    print(told.trim_end())?;
    Ok(ExitCode::Ok)
}

fn add_check(bundle: &mut Bundle, flag: &ConfigFlag) {
    let said = match load_all(flag) {
        Ok(setup) => {
            let warnings = setup.warnings.iter().map(|warning| format!("{warning}\n"));
            format!("valid\n{}", warnings.collect::<String>())
        }
        Err(problems) => format!("{problems}\n"),
    };
    bundle.add("check.txt", "what check-config says", &said);
}

fn add_configuration(bundle: &mut Bundle, flag: &ConfigFlag) {
    match explain(flag) {
        Ok((explained, _said_above)) => bundle.add_configuration(&explained.to_string()),
        Err(_said_above) => bundle.missing("configuration.txt", "it cannot be read"),
    }
}

async fn add_state(bundle: &mut Bundle, config: &Config) {
    let files: [&Path; 2] = [
        &config.agents.certificate_file,
        &config.agents.client_ca_file,
    ];
    machine::add_certificates(bundle, &files).await;
    machine::add_folder(bundle, "state.txt", &config.data.state_folder).await;
}

/// The API key in a file.
async fn key(file: Option<PathBuf>) -> Result<String, String> {
    let file = file.ok_or_else(|| "no key was named: --key-file".to_owned())?;
    let read = move || files::read_private(&file);
    let read = blocking::call("bundle", READ_TIME, read).await;
    let bytes = read
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

async fn ask_all(bundle: &mut Bundle, address: SocketAddr, key_file: Option<PathBuf>) {
    let address = reachable(address);
    for (name, path) in PROBES {
        match ask::tcp(address, path, ANSWER_TIME).await {
            Ok(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                bundle.add(name, path, &format!("{} {body}", answer.status));
            }
            Err(error) => bundle.missing(name, &error.to_string()),
        }
    }
    let key = key(key_file).await;
    for (name, path, what) in QUESTIONS {
        let key = match &key {
            Ok(key) => key,
            Err(why) => {
                bundle.missing(name, why);
                continue;
            }
        };
        match ask::tcp_with(address, path, Some(key), ANSWER_TIME).await {
            Ok(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                if answer.status == 200 {
                    bundle.add(name, what, &body);
                } else {
                    bundle.missing(name, &format!("{} {body}", answer.status));
                }
            }
            Err(error) => bundle.missing(name, &error.to_string()),
        }
    }
}
