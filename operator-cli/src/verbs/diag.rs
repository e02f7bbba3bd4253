//! `viworks diag collect`: what a backend says of itself and its gateways, in one file without secrets.

use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use viworks_runtime::bundle::{self, Bundle, machine};
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use super::prompt;
use crate::client::Client;
use crate::failure::{Failure, chain};
use crate::flags::Diag;
use crate::output::{self, Format};
use crate::views;

const PROGRAM: &str = "viworks";

/// How long the backend may take for each answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What the backend is asked. Nothing that a command was given or said is among it.
const QUESTIONS: [(&str, &str, &str); 5] = [
    ("readyz.txt", "/readyz", "whether it takes requests"),
    (
        "health.json",
        "/v1/health",
        "its parts, figures and conditions",
    ),
    ("metrics.txt", "/metrics", "everything that is counted"),
    (
        "gateways.json",
        "/v1/gateways?limit=500",
        "the gateways, at most 500",
    ),
    (
        "catalogue.json",
        "/v1/catalogue?limit=500",
        "what may run where, at most 500 commands",
    ),
];

/// Collects it, says what it is, and writes it after a yes.
pub(super) async fn execute(
    client: &Client,
    verb: Diag,
    format: Format,
) -> Result<ExitCode, Failure> {
    let Diag::Collect { out, yes } = verb;
    let out = out.unwrap_or_else(|| bundle::name(PROGRAM, SystemClock.wall()));
    let mut bundle = Bundle::default();
    machine::add(&mut bundle, PROGRAM, env!("CARGO_PKG_VERSION"));
    bundle.add("way.txt", "how the backend is reached", &way(client));
    for (name, path, what) in QUESTIONS {
        match timeout(ANSWER_TIME, client.sound(path)).await {
            Ok(Ok((200, answer))) => bundle.add(name, what, &shown(&answer)),
            Ok(Ok((status, answer))) => bundle.missing(name, &format!("{status} {answer}")),
            Ok(Err(failure)) => bundle.missing(name, &failure.what),
            Err(_elapsed) => {
                let late = format!("no answer came within {} s", ANSWER_TIME.as_secs());
                bundle.missing(name, &late);
            }
        }
    }
    if !yes {
        output::note(bundle.told(&out).trim_end());
        prompt::ask("It would be written now.", "--yes", "nothing was written")?;
    }
    let written = bundle.write(&out);
    written.map_err(|error| {
        let failure = Failure::new(error.exit_code(), chain(&error));
        match error.fix() {
            Some(fix) => failure.with(format!("fix: {fix}")),
            None => failure,
        }
    })?;
    views::diag::written(&bundle, &out, !yes, format)?;
    Ok(ExitCode::Ok)
}

/// Where requests go, and what is in between.
fn way(client: &Client) -> String {
    let key = if client.has_key() {
        "with a key"
    } else {
        "without a key"
    };
    let mut lines = vec![client.server().to_owned(), key.to_owned()];
    lines.extend(client.way().iter().cloned());
    format!("{}\n", lines.join("\n"))
}

fn shown(answer: &Value) -> String {
    answer
        .as_str()
        .map_or_else(|| format!("{answer:#}\n"), str::to_owned)
}
