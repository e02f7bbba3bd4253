//! What a reader pastes works as printed, and what is promised has a test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use viworks_api::Scope;

mod drills;
mod installed;
mod pasted;
mod promises;
mod threats;

/// Pages whose shell blocks run, in this order, against one demo.
const PAGES: &[&str] = &[
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "docs/api.md",
    "docs/local_api.md",
    "docs/operations/daily_checks.md",
    "docs/testing.md",
    "docs/performance.md",
    "docs/catalogue.md",
    "docs/operations/containers.md",
    "docs/operations/upgrade.md",
    "docs/operations/validation.md",
];

/// A page of its own: it needs no demo.
const INSTALL: &str = "docs/install.md";

/// Blocks that are allowed not to run: more is a page that nobody checks.
const NOT_RUN_MAX: usize = 30;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

pub(crate) struct Block {
    /// What the info string says behind `not-run:`, when it does.
    not_run: Option<String>,
    pub(crate) script: String,
}

/// The shell blocks of a page. Of a `console` block only what stands behind a prompt is typed.
pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let language = info.split_whitespace().next().unwrap_or_default();
        let script = match language {
            "sh" | "bash" => body.join("\n"),
            "console" => typed(&body),
            _ => continue,
        };
        let not_run = info
            .split_once("not-run:")
            .map(|(_, why)| why.trim().to_owned());
        found.push(Block { not_run, script });
    }
    found
}

fn typed(body: &[&str]) -> String {
    let mut script = String::new();
    let mut goes_on = false;
    for line in body {
        let typed = line.strip_prefix("$ ").or_else(|| goes_on.then_some(*line));
        goes_on = typed.is_some_and(|line| line.ends_with('\\'));
        if let Some(line) = typed {
            script += line;
            script.push('\n');
        }
    }
    script
}

fn pages() -> Vec<String> {
    let errors = std::fs::read_dir(root().join("docs/errors")).unwrap();
    let mut errors: Vec<String> = errors
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|name| format!("docs/errors/{name}"))
        .collect();
    errors.sort();
    PAGES
        .iter()
        .map(|name| (*name).to_owned())
        .chain(errors)
        .collect()
}

#[test]
fn blocks_that_do_not_run_are_few_and_say_why() {
    let mut count = 0;
    for name in pages() {
        for block in blocks(&page(&name)) {
            let Some(why) = block.not_run else { continue };
            count += 1;
            assert!(
                why.len() > 10,
                "{name}: {why:?} is no reason for\n{}",
                block.script
            );
        }
    }
    assert!(count <= NOT_RUN_MAX, "{count} blocks do not run");
}

/// Every account of a machine reads the arguments of its processes.
#[test]
fn no_block_puts_a_key_on_a_command_line() {
    for name in pages() {
        for block in blocks(&page(&name)) {
            let shown = block.script.contains("-H \"Authorization");
            assert!(
                !shown || block.not_run.is_some(),
                "{name}: {}",
                block.script
            );
        }
    }
}

fn environment(command: &mut Command, folder: &Path) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = vec![folder.join("target/debug")];
    folders.extend(std::env::split_paths(&path));
    command
        .current_dir(folder)
        .env("PATH", std::env::join_paths(folders).unwrap())
        .env("HOME", folder)
        .env("VIWORKS_CONFIG_DIR", folder.join("config"));
    for variable in [
        "VIWORKS_SERVER",
        "VIWORKS_TOKEN_FILE",
        "VIWORKS_CONTEXT",
        "VIWORKS_OUTPUT",
    ] {
        command.env_remove(variable);
    }
}

#[test]
fn every_scope_is_in_the_table_and_no_other() {
    let text = page("docs/api.md");
    let section = text.split_once("\n## Scopes\n").unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let listed: BTreeSet<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .collect();
    let known: BTreeSet<&str> = Scope::ALL.iter().map(|scope| scope.name()).collect();
    assert_eq!(listed, known);
}

pub(crate) fn read_sources(folder: &Path, sources: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            // No promise is held by the tests of documents themselves.
            if name != "target" && name != "documents" && !name.starts_with('.') {
                read_sources(&path, sources);
            }
        } else if name.ends_with(".rs") && name != "documents.rs" {
            sources.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// Programs that are named in documents, in what the programs say, and in what they advise.
#[test]
fn every_program_that_is_named_exists() {
    let known = [
        "viworks",
        "viworks-backend-agent",
        "viworks-gateway-agent",
        "viworks-gateway-helper",
        // Packages, and the folders of their state.
        "viworks-backend",
        "viworks-gateway",
        "viworks-cli",
        // Crates, named in the lines that build them.
        "viworks-bench",
        "viworks-e2e",
        "viworks-testkit",
    ];
    for name in pages().into_iter().chain(
        [
            "docs/configuration_backend.md",
            "docs/configuration_gateway.md",
            "docs/protocol.md",
            INSTALL,
        ]
        .map(str::to_owned),
    ) {
        let text = page(&name);
        for (at, _) in text.match_indices("viworks-") {
            let word: String = text[at..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                .collect();
            assert!(known.contains(&word.as_str()), "{name} names {word}");
        }
        for stray in ["`backend-agent ", "`gateway-agent "] {
            assert!(!text.contains(stray), "{name} names {stray}");
        }
    }
}
