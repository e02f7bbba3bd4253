//! `diag collect`: what somebody needs who is asked for help, in one file without secrets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_common::time::Timestamp;
use viworks_runtime::bundle::{self, Bundle, READ_TIME, machine};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::config::Environment;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{ask, blocking, stdout};

use crate::config::Config;
use crate::setup::Setup;

const PROGRAM: &str = "viworks-gateway-agent";

/// How long the running agent may take for each answer.
const ANSWER_TIME: Duration = Duration::from_secs(3);

/// Why something of which the configuration says where it is is not there.
const UNUSABLE: &str = "the configuration cannot be used: see check.txt";

/// What the running agent is asked.
const QUESTIONS: [(&str, &str, &str); 3] = [
    ("status.json", "/v1/status", "what the agent says of itself"),
    (
        "health.json",
        "/v1/health",
        "its parts, figures and conditions",
    ),
    ("catalogue.json", "/v1/catalogue", "what may run"),
];

/// What is to be collected.
pub(super) struct Asked {
    /// The configuration.
    pub(super) config: PathBuf,
    /// Variables that overlay it.
    pub(super) environment: Environment,
    /// The file of the log, where there is one; `-` for the standard input.
    pub(super) log: Option<PathBuf>,
    /// Where it goes; a name with the time in this folder when left out.
    pub(super) out: Option<PathBuf>,
}

/// Collects it, writes it, and prints what is in it.
pub(super) async fn collect(asked: Asked) -> anyhow::Result<ExitCode> {
    let now = SystemClock.wall();
    let out = asked.out.unwrap_or_else(|| bundle::name(PROGRAM, now));
    let mut bundle = Bundle::default();
    machine::add(&mut bundle, PROGRAM, env!("CARGO_PKG_VERSION"));
    // Each of these may wait for a disk that does not answer.
    let (path, environment) = (asked.config, asked.environment);
    let named = (path.clone(), environment.clone());
    let check = move |part: &mut Bundle| check(part, &named.0, &named.1, now);
    bundle.gather(&["check.txt"], READ_TIME, check).await;
    let named = (path.clone(), environment.clone());
    let explain = move |part: &mut Bundle| explain(part, &named.0, &named.1);
    bundle
        .gather(&["configuration.txt"], READ_TIME, explain)
        .await;
    let load = move || Config::load_to_ask(&path, &environment);
    let loaded = blocking::call("bundle", READ_TIME, load).await;
    let config = loaded.map_err(|error| error.to_string());
    match config.and_then(|loaded| loaded.map_err(|_in_the_check| UNUSABLE.to_owned())) {
        Ok(config) => add_state(&mut bundle, &config).await,
        Err(why) => {
            let questions = QUESTIONS.iter().map(|(name, _path, _what)| *name);
            for name in ["certificates.txt", "state.txt"]
                .into_iter()
                .chain(questions)
            {
                bundle.missing(name, &why);
            }
        }
    }
    if let Some(log) = &asked.log {
        machine::add_log(&mut bundle, log).await;
    }
    let told = bundle.told(&out);
    bundle.write(&out)?;
    stdout::print(&told)?;
    Ok(ExitCode::Ok)
}

fn check(bundle: &mut Bundle, path: &Path, environment: &Environment, now: Timestamp) {
    let said = match Setup::read(path, environment, now) {
        Ok(setup) => {
            let warnings = setup.warnings.iter().map(|warning| format!("{warning}\n"));
            format!("valid\n{}", warnings.collect::<String>())
        }
        Err(problems) => format!("{problems}\n"),
    };
    bundle.add("check.txt", "what check-config says", &said);
}

fn explain(bundle: &mut Bundle, path: &Path, environment: &Environment) {
    match Config::explain(path, environment) {
        Ok((explained, _said_above)) => bundle.add_configuration(&explained.to_string()),
        Err(_said_above) => bundle.missing("configuration.txt", "it cannot be read"),
    }
}

async fn add_state(bundle: &mut Bundle, config: &Config) {
    let files: [&Path; 2] = [&config.identity.certificate_file, &config.outbound.ca_file];
    machine::add_certificates(bundle, &files).await;
    machine::add_folder(bundle, "state.txt", &config.gateway.state_folder).await;
    for (name, path, what) in QUESTIONS {
        match ask::unix(&config.gateway.socket, path, ANSWER_TIME).await {
            // The health of an agent that is not well is a document as well.
            Ok(answer) if matches!(answer.status, 200 | 503) => {
                bundle.add(name, what, &String::from_utf8_lossy(&answer.body));
            }
            Ok(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                bundle.missing(name, &format!("{} {body}", answer.status));
            }
            Err(error) => bundle.missing(name, &error.to_string()),
        }
    }
}
