//! Reads one catalogue file: `[[command]]` tables with their `[[command.argument]]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use viworks_common::catalogue::{
    Argument, ArgumentType, ArgvTemplate, CatalogueEntry, Grammar, Risk, check_entry,
};
use viworks_common::id::{ArgumentName, CommandName};
use viworks_common::limits;
use viworks_runtime::config::{Document, Place, Section};

use super::{Definition, OtherUsers, Program};
use crate::builtin;
use crate::executor::COMMAND_ID_VARIABLE;

/// What `argv[0]` begins with for a command that the agent serves itself.
const BUILTIN_PREFIX: &str = "builtin:";
/// Bytes of a user's name, as other tools bound it.
const USER_BYTES_MAX: usize = 32;
/// Output that is kept when the entry does not say.
const OUTPUT_BYTES_DEFAULT: u64 = 64 * 1024;
/// The time limit when the entry does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// Reads all commands; what is wrong with them is noted in the document.
pub(super) fn read(
    document: &mut Document,
    places: &mut BTreeMap<CommandName, Place>,
    others: &OtherUsers,
) -> BTreeMap<CommandName, Definition> {
    let commands = document.tables("command", "One allowed command.", |section| {
        let definition = command(section, others)?;
        let name = definition.entry.name.clone();
        if let Some(first) = places.get(&name) {
            let message = format!("command {name} is defined twice");
            section.problem("name", message, format!("the first one is at {first}"));
            return None;
        }
        places.insert(name.clone(), section.place("name"));
        Some((name, definition))
    });
    commands.into_iter().flatten().collect()
}

fn command(section: &mut Section<'_>, others: &OtherUsers) -> Option<Definition> {
    let name: Option<CommandName> =
        section.required_parsed("name", "command name", "What the command is asked for by.");
    let title = section.required_str("title", "A few words for people.");
    let risk = risk(section);
    let idempotent = section.bool(
        "idempotent",
        false,
        "Whether running it twice does no harm.",
    );
    let argv = section.required_strings(
        "argv",
        "The program by absolute path, or builtin:NAME, then its arguments; {name} stands for a value.",
    );
    let timeout = section.duration_ms(
        "timeout_ms",
        TIMEOUT_DEFAULT,
        Duration::from_millis(100)..=Duration::from_secs(24 * 3_600),
        "How long it may run.",
    );
    let output_max = u64::try_from(limits::RETAINED_OUTPUT_BYTES_MAX).unwrap_or(u64::MAX);
    let output_bytes_max = section.integer(
        "output_bytes_max",
        OUTPUT_BYTES_DEFAULT,
        1..=output_max,
        "Bytes of output that are kept, both streams together.",
    );
    let working_directory =
        PathBuf::from(section.str("working_directory", "/", "Where it runs; an absolute path."));
    if !working_directory.is_absolute() {
        section.problem(
            "working_directory",
            "working_directory is not an absolute path",
            "write it from the root, such as /var/lib/app",
        );
    }
    let user = user(section, &argv, others);
    let requires = requires(section);
    let environment = environment(section);
    let arguments = section.tables("argument", "One argument of the command.", argument);
    // Everything that can be noted is noted; only then is it time to give up.
    let arguments: Vec<Argument> = arguments.into_iter().collect::<Option<_>>()?;
    let (name, risk) = (name?, risk?);
    let entry = CatalogueEntry {
        name,
        title,
        risk,
        idempotent,
        arguments,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        output_bytes_max,
        unavailable: None,
    };
    let fingerprint = fingerprint(
        user.as_deref(),
        &argv,
        &entry.arguments,
        &working_directory,
        &environment,
    );
    let (grammar, argv, program) = check(section, &entry, &argv)?;
    // Whether its files are there is asked for all commands together.
    Some(Definition {
        entry,
        is_refused: false,
        user,
        fingerprint,
        grammar,
        argv,
        program,
        requires,
        working_directory,
        environment,
    })
}

/// As whom it runs.
fn user(section: &mut Section<'_>, argv: &[String], others: &OtherUsers) -> Option<String> {
    let user = section.optional_str(
        "user",
        "The user that it runs as, through the helper; the agent's own unless it says so.",
    );
    let is_builtin = argv
        .first()
        .is_some_and(|program| program.starts_with(BUILTIN_PREFIX));
    let problem = match &user {
        None if *others == OtherUsers::Itself => Some((
            "the command has no user",
            "on the helper's list each command says as whom it runs",
        )),
        Some(name) if !is_user_name(name) => Some((
            "the user is no name of one",
            "letters, digits, dots, hyphens and underscores, as in /etc/passwd; not a number",
        )),
        Some(_) if is_builtin => Some((
            "a built-in command is the agent's own",
            "leave user out, or name a program",
        )),
        None | Some(_) => None,
    };
    if let Some((message, help)) = problem {
        section.problem("user", message, help);
    }
    user
}

fn is_user_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    let other = |c: char| letter(c) || c.is_ascii_digit() || matches!(c, '-' | '.');
    name.len() <= USER_BYTES_MAX && name.starts_with(letter) && name.chars().all(other)
}

/// Everything that decides what runs, so that two who read the same entry in different files can compare it.
fn fingerprint(
    user: Option<&str>,
    argv: &[String],
    arguments: &[Argument],
    folder: &Path,
    environment: &BTreeMap<String, String>,
) -> String {
    use std::fmt::Write as _;
    let whole = serde_json::json!([user, argv, arguments, folder, environment]);
    let digest = Sha256::digest(whole.to_string());
    digest.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
        text
    })
}

/// What must exist for the command to make sense, beside its program.
fn requires(section: &mut Section<'_>) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = section
        .strings(
            "requires",
            &[],
            "Paths that must exist, or the command is reported unavailable; absolute.",
        )
        .into_iter()
        .map(PathBuf::from)
        .collect();
    if paths.iter().any(|path| !path.is_absolute()) {
        section.problem(
            "requires",
            "requires names a path that is not absolute",
            "write it from the root, such as /run/systemd/system",
        );
    }
    paths
}

/// Checks the parts of an entry against each other.
fn check(
    section: &mut Section<'_>,
    entry: &CatalogueEntry,
    argv: &[String],
) -> Option<(Grammar, ArgvTemplate, Program)> {
    let problems = check_entry(entry);
    for problem in &problems {
        section.problem(
            problem.argument.as_str(),
            format!("{}: {}", problem.argument, problem.problem),
            format!("allowed: {}", problem.allowed),
        );
    }
    if !problems.is_empty() || argv.is_empty() {
        return None;
    }
    let grammar = Grammar::new(&entry.arguments).ok()?;
    let names = entry.arguments.iter().map(|argument| &argument.name);
    let template = match ArgvTemplate::parse(argv, names, &grammar) {
        Ok(template) => template,
        Err(problems) => {
            for problem in problems {
                section.problem("argv", problem.to_string(), "");
            }
            return None;
        }
    };
    let program = program(section, template.program())?;
    Some((grammar, template, program))
}

fn program(section: &mut Section<'_>, text: &str) -> Option<Program> {
    if let Some(name) = text.strip_prefix(BUILTIN_PREFIX) {
        if builtin::NAMES.contains(&name) {
            return Some(Program::Builtin(name.to_owned()));
        }
        section.problem(
            "argv",
            format!("there is no built-in command {name:?}"),
            format!("built in are {}", builtin::NAMES.join(", ")),
        );
        return None;
    }
    if Path::new(text).is_absolute() {
        return Some(Program::File(PathBuf::from(text)));
    }
    section.problem(
        "argv",
        format!("the program {text:?} is not an absolute path"),
        "nothing is searched for: write /usr/bin/…, or builtin:NAME",
    );
    None
}

fn risk(section: &mut Section<'_>) -> Option<Risk> {
    let word = section.required_str("risk", "How much damage it can do: read, change or danger.");
    match word.as_str() {
        "read" => Some(Risk::Read),
        "change" => Some(Risk::Change),
        "danger" => Some(Risk::Danger),
        // Missing was noted already.
        "" => None,
        other => {
            section.problem(
                "risk",
                format!("risk is {other:?}"),
                "it must be one of read, change, danger",
            );
            None
        }
    }
}

fn environment(section: &mut Section<'_>) -> BTreeMap<String, String> {
    let variables = section.strings_by_key("environment", "Variables beside PATH and LANG.");
    for (name, value) in &variables {
        let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
        let valid = name.starts_with(letter)
            && name.chars().all(|c| letter(c) || c.is_ascii_digit())
            && name != COMMAND_ID_VARIABLE;
        if !valid || value.contains('\0') {
            section.problem(
                "environment",
                format!("the variable {name:?} cannot be set"),
                format!(
                    "letters, digits and underscores; {COMMAND_ID_VARIABLE} is the agent's own"
                ),
            );
        }
    }
    variables
}

fn argument(section: &mut Section<'_>) -> Option<Argument> {
    let name: Option<ArgumentName> =
        section.required_parsed("name", "argument name", "What a slot in argv refers to.");
    let description = section.str("description", "", "One line for people.");
    let kind = section.required_str("type", "string, integer, choice or boolean.");
    let value = match kind.as_str() {
        "string" => Some(ArgumentType::String {
            pattern: section.required_str("pattern", "What the whole value must match."),
        }),
        "integer" => {
            let min = section.optional_integer("min", i64::MIN..=i64::MAX, "The smallest value.");
            let max = section.optional_integer("max", i64::MIN..=i64::MAX, "The largest value.");
            if min.is_none() || max.is_none() {
                section.problem("type", "an integer needs min and max", "add them");
            }
            min.zip(max)
                .map(|(min, max)| ArgumentType::Integer { min, max })
        }
        "choice" => Some(ArgumentType::Choice {
            values: section.required_strings("values", "What can be chosen from."),
        }),
        "boolean" => Some(ArgumentType::Boolean),
        "" => None,
        other => {
            section.problem(
                "type",
                format!("type is {other:?}"),
                "it must be one of string, integer, choice, boolean",
            );
            None
        }
    };
    let default = section.optional_str("default", "The value when none is given, as text.");
    Some(Argument {
        name: name?,
        description,
        value: value?,
        default,
    })
}
