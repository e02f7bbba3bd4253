//! One page of the manual: what clap knows of a program or a verb, and what it does not.

use std::fmt::Write as _;
use std::io;

use clap::Command;
use clap_mangen::Man;
use viworks_runtime::exit::ExitCode;

/// What examples stand under in a help.
const EXAMPLES: [&str; 2] = ["Examples:", "Example:"];
/// What a help has of exit codes: the page has all of them.
const EXIT_CODES: &str = "Exit codes:";

/// The page of a program or a verb, which was built as a part of its program; `of` is the program's own page, such as
/// `viworks(1)`, and `None` on that page itself.
pub(crate) fn page(command: &Command, section: &str, of: Option<&str>) -> io::Result<String> {
    let mut text = Vec::new();
    let man = Man::new(command.clone())
        .section(section)
        .source("ViWorkS")
        .manual("ViWorkS");
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        man.render_options_section(&mut text)?;
    }
    if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    let mut text = String::from_utf8(text).map_err(io::Error::other)?;
    let (notes, examples) = more(command);
    let mut part = |title: &str, body: &str| {
        if !body.is_empty() {
            text.push_str(".SH ");
            text.push_str(title);
            text.push('\n');
            text.push_str(body);
        }
    };
    part("NOTES", &as_it_is(&notes));
    part("EXAMPLES", &as_it_is(&examples));
    match of {
        Some(program) => part("EXIT STATUS", &format!("As of {}.\n", escaped(program))),
        None => part("EXIT STATUS", &exit_codes()),
    }
    Ok(text)
}

/// What stands after a help: prose, and examples.
fn more(command: &Command) -> (Vec<String>, Vec<String>) {
    let help = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let (mut notes, mut examples, mut codes) = (Vec::new(), Vec::new(), Vec::new());
    let mut part = &mut notes;
    for line in help.lines() {
        if EXAMPLES.contains(&line) {
            part = &mut examples;
        } else if line == EXIT_CODES {
            part = &mut codes;
        } else {
            part.push(line.to_owned());
        }
    }
    (trimmed(notes), trimmed(examples))
}

/// Without empty lines at the ends, and without the indentation that all have.
fn trimmed(mut lines: Vec<String>) -> Vec<String> {
    while lines.last().is_some_and(|line| line.trim().is_empty()) {
        lines.pop();
    }
    let first = lines.iter().position(|line| !line.trim().is_empty());
    lines.drain(..first.unwrap_or_default());
    let full = lines.iter().filter(|line| !line.trim().is_empty());
    let indent = full.map(|line| line.len() - line.trim_start().len()).min();
    let indent = indent.unwrap_or_default();
    let line = |line: String| line.get(indent..).unwrap_or_default().to_owned();
    lines.into_iter().map(line).collect()
}

/// Lines that stay the lines that they are.
fn as_it_is(lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let lines: String = lines.iter().map(|line| escaped(line) + "\n").collect();
    format!(".nf\n{lines}.fi\n")
}

/// Text that says nothing to troff.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        return format!("\\&{text}");
    }
    text
}

fn exit_codes() -> String {
    ExitCode::ALL.iter().fold(String::new(), |mut text, code| {
        // A String takes everything.
        let _written = write!(
            text,
            ".TP\n\\fB{}\\fR {}\n{}\n",
            code.number(),
            code.name(),
            escaped(code.meaning())
        );
        text
    })
}
