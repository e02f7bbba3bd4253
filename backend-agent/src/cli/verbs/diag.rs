//! `diag collect`: what somebody needs who is asked for help, in one file without secrets.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use viworks_runtime::ask;
use viworks_runtime::bundle::{Bundle, machine};
use viworks_runtime::exit::ExitCode;

use super::super::flags::{ConfigFlag, DiagCommand};
use super::super::views::print;
use super::open::{load_all, load_to_ask};
use crate::config::Config;

/// How long the running backend may take for each answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);

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

pub(super) async fn execute(command: DiagCommand) -> anyhow::Result<ExitCode> {
    let DiagCommand::Collect {
        config: flag,
        key_file,
        address,
        log,
        out,
    } = command;
    let mut bundle = Bundle::default();
    let version = env!("CARGO_PKG_VERSION");
    machine::add(&mut bundle, "viworks-backend-agent", version);
    bundle.add("check.txt", "what check-config says", &check(&flag));
    match load_to_ask(&flag) {
        Ok(config) => {
            of_config(&mut bundle, &config);
            let address = address.unwrap_or(config.api.listen);
            ask_all(&mut bundle, address, key_file.as_deref()).await;
        }
        Err(_said_above) => bundle.missing("configuration.txt", "it cannot be read"),
    }
    if let Some(log) = &log {
        machine::add_log(&mut bundle, log);
    }
    let list = bundle.list().join("\n  ");
    bundle.write(&out)?;
    print(&format!("{}:\n  {list}", out.display()))?;
    Ok(ExitCode::Ok)
}

fn check(flag: &ConfigFlag) -> String {
    match load_all(flag) {
        Ok(setup) => {
            let warnings = setup.warnings.iter().map(|warning| format!("{warning}\n"));
            format!("valid\n{}", warnings.collect::<String>())
        }
        Err(problems) => format!("{problems}\n"),
    }
}

fn of_config(bundle: &mut Bundle, config: &Config) {
    machine::add_values(bundle, &config.values);
    let files: [&Path; 2] = [
        &config.agents.certificate_file,
        &config.agents.client_ca_file,
    ];
    machine::add_certificates(bundle, &files);
    machine::add_folder(bundle, "state.txt", &config.data.state_folder);
}

async fn ask_all(bundle: &mut Bundle, address: SocketAddr, key_file: Option<&Path>) {
    for (name, path) in PROBES {
        match ask::tcp(address, path, None, ANSWER_TIME).await {
            Ok(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                bundle.add(name, path, &format!("{} {body}", answer.status));
            }
            Err(error) => bundle.missing(name, &error.to_string()),
        }
    }
    let key = key_file.map(viworks_runtime::files::read_private);
    for (name, path, what) in QUESTIONS {
        let key = match &key {
            Some(Ok(bytes)) => String::from_utf8_lossy(bytes).trim().to_owned(),
            Some(Err(error)) => {
                bundle.missing(name, &error.to_string());
                continue;
            }
            None => {
                bundle.missing(name, "no key was named: --key-file");
                continue;
            }
        };
        match ask::tcp(address, path, Some(&key), ANSWER_TIME).await {
            Ok(answer) => bundle.add(name, what, &String::from_utf8_lossy(&answer.body)),
            Err(error) => bundle.missing(name, &error.to_string()),
        }
    }
}
