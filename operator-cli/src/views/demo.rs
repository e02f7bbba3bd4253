//! The demo's narration: its steps with their times, and what to do next.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::output;
use crate::program;

/// Says that a step is done.
pub fn step(what: &str, subject: &str, detail: &str, took: Duration) {
    output::note(&format!(
        "  ✓ {what:<15} {subject:<36} {detail:<30} {:>5} ms",
        took.as_millis()
    ));
}

/// What somebody can do with a demo that runs.
#[derive(Debug)]
pub struct Hints<'h> {
    /// Where the API listens.
    pub api: &'h str,
    /// The flags by which other commands find the demo.
    pub target: &'h str,
    /// How it is stopped.
    pub down: &'h str,
    /// Where the gateways' sockets are, when not in the demo's folder.
    pub sockets: Option<PathBuf>,
}

/// Says it.
pub fn hints(hints: &Hints<'_>) {
    let program = program::quoted(&program::name());
    let Hints {
        api,
        target,
        down,
        sockets,
    } = hints;
    output::note(&format!("  API       http://{api}/openapi.json"));
    output::note(&format!(
        "  Next      {program}{target} run sys.uptime --all     (second terminal)"
    ));
    output::note(&format!("            {program}{target} gateway ls"));
    output::note(&format!(
        "            {program}{target} telemetry -g gw-berlin --stream host.cpu"
    ));
    output::note(&format!("  Stop      Ctrl-C, or {down}"));
    if let Some(folder) = sockets {
        output::note(&format!(
            "  Sockets   {} (the demo's folder is too deep for them)",
            program::quoted(&folder.to_string_lossy())
        ));
    }
}

/// Names, as many as stand on a line.
pub fn names(names: &[String]) -> String {
    match names {
        names if names.len() <= 4 => names.join(" "),
        [first, .., last] => format!("{first} … {last}"),
        [] | [_] => String::new(),
    }
}

/// A path as short as it can be said where the person stands.
pub fn from_here(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(path)
        .display()
        .to_string()
}
