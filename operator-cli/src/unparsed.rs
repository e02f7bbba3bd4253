//! A command line that was not understood, in the form in which this program tells of everything that fails.

use std::ffi::OsString;

use clap::error::ErrorKind;
use viworks_common::enrolment::{holds_ticket, ticket_shown, without_tickets};

use crate::failure::Failure;
use crate::output::Format;

/// The form that was asked for, as far as that can be told of arguments that could not be read: by the last `-o` or
/// `--output` in front of a `--`, else by `variable`, the value of `VIWORKS_OUTPUT`.
pub fn format(arguments: &[OsString], variable: Option<&str>) -> Format {
    let texts: Vec<&str> = arguments
        .iter()
        .skip(1)
        .map_while(|it| Some(it.to_str().unwrap_or_default()).filter(|text| *text != "--"))
        .collect();
    let mut named = texts.iter().enumerate().filter_map(|(at, text)| {
        let next = || texts.get(at + 1).copied().unwrap_or_default();
        match *text {
            "-o" | "--output" => Some(next()),
            _ => text
                .strip_prefix("--output=")
                .or_else(|| text.strip_prefix("-o="))
                .or_else(|| text.strip_prefix("-o")),
        }
    });
    let named = named.next_back().or(variable);
    if named == Some("json") {
        Format::Json
    } else {
        Format::Table
    }
}

/// What the parser says of the arguments alone. What a variable of the environment says counts as typed for it, and
/// stands in the usage as if it had to be there. Where a variable is what is wrong, `error` stays as it is.
pub fn as_typed(command: clap::Command, arguments: &[OsString], error: clap::Error) -> clap::Error {
    let bare = command.mut_args(|arg| arg.env(None::<&'static str>));
    match bare.try_get_matches_from(arguments) {
        Err(typed) if typed.kind() == error.kind() => typed,
        Ok(_) | Err(_) => error,
    }
}

/// What the parser says, as a failure: its first paragraph is what is wrong, the others what to do.
pub fn failure(error: &clap::Error, arguments: &[OsString]) -> Failure {
    let has_ticket = shows_ticket(error, arguments);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::usage("what is to be done is missing").with("--help lists what can be");
    }
    let said = error.render().to_string();
    let text = without_tickets(&said).unwrap_or(said);
    let mut paragraphs = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|paragraph| !paragraph.is_empty());
    let first = paragraphs.next().unwrap_or_default();
    let what = first.strip_prefix("error: ").unwrap_or(&first);
    let mut failure = Failure::usage(what);
    if has_ticket {
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        failure = failure.with(ticket_shown(&words));
    }
    paragraphs.fold(failure, Failure::with)
}

/// Whether a ticket is among the arguments, which is for nobody to read, or what the parser says repeats one.
pub fn shows_ticket(error: &clap::Error, arguments: &[OsString]) -> bool {
    let words: Vec<_> = arguments
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    holds_ticket(&words) || without_tickets(&error.render().to_string()).is_some()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use viworks_common::enrolment::TICKET_SHOWN;
    use viworks_runtime::exit::ExitCode;

    use super::*;
    use crate::flags::Arguments;

    fn of(words: &str) -> Vec<OsString> {
        words.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_form_is_the_one_that_the_arguments_or_the_variable_name() {
        let json = Some("json");
        for (words, variable, wanted) in [
            ("viworks gateway ls --nonsense -o json", None, Format::Json),
            ("viworks -ojson nonsense", None, Format::Json),
            ("viworks -o=json nonsense", None, Format::Json),
            ("viworks --output json nonsense", None, Format::Json),
            ("viworks --output=json nonsense", None, Format::Json),
            ("viworks nonsense", json, Format::Json),
            ("viworks nonsense", None, Format::Table),
            ("viworks -o table nonsense", json, Format::Table),
            ("viworks nonsense -o", json, Format::Table),
            ("viworks run x -- -o json", None, Format::Table),
            ("-ojson nonsense", None, Format::Table),
        ] {
            assert_eq!(format(&of(words), variable), wanted, "{words}");
        }
    }

    #[test]
    fn a_variable_of_the_environment_is_nothing_that_has_to_be_typed() {
        // One that every process has.
        let flag = clap::Arg::new("server").long("server").global(true);
        let verb = clap::Command::new("show").arg(clap::Arg::new("gateway").required(true));
        let command = clap::Command::new("viworks")
            .arg(flag.env("PATH"))
            .subcommand(verb);
        let words = of("viworks show");
        let error = command.clone().try_get_matches_from(&words).unwrap_err();
        let usage = |error: &clap::Error| error.render().to_string();
        assert!(usage(&error).contains("--server"), "{error}");
        let typed = as_typed(command, &words, error);
        assert!(!usage(&typed).contains("--server"), "{typed}");
        assert!(usage(&typed).contains("viworks show <gateway>"), "{typed}");
    }

    #[test]
    fn what_the_parser_says_is_a_failure_like_any_other() {
        let told = |words: &str| {
            let words = of(words);
            failure(&Arguments::try_parse_from(&words).unwrap_err(), &words)
        };
        let wrong = told("viworks gateway ls --nonsense");
        assert_eq!(wrong.exit, ExitCode::Usage);
        assert!(
            wrong.what.starts_with("unexpected argument '--nonsense'"),
            "{wrong:?}"
        );
        let usage = |detail: &String| detail.starts_with("Usage: viworks gateway ls");
        assert!(wrong.details.iter().any(usage), "{wrong:?}");
        let mut lines = wrong.details.iter().chain([&wrong.what]);
        assert!(lines.all(|line| !line.contains('\n')), "{wrong:?}");
        let none = told("viworks gateway");
        assert_eq!(none.exit, ExitCode::Usage);
        assert!(none.details[0].contains("--help"), "{none:?}");
    }

    #[test]
    fn a_ticket_in_the_wrong_place_is_not_repeated_and_is_to_be_revoked() {
        for words in [
            "viworks ticket show vwt1_c2VjcmV0",
            "viworks ticket revoke vwt1_c2VjcmV0",
            "viworks ticket vwt1_c2VjcmV0",
            "viworks ticket ls vwt1_c2VjcmV0",
            "viworks ticket create --name vwt1_c2VjcmV0",
            // Of a flag that is unknown only the name is repeated.
            "viworks ticket show --ticket=vwt1_c2VjcmV0",
            "viworks ticket show --ticket vwt1_c2VjcmV0",
        ] {
            let words = of(words);
            let error = Arguments::try_parse_from(&words).unwrap_err();
            assert!(shows_ticket(&error, &words), "{words:?}");
            let told = failure(&error, &words);
            let mut lines = told.details.iter().chain([&told.what]);
            assert!(lines.all(|line| !line.contains("c2VjcmV0")), "{told:?}");
            let advice = told.details.iter().any(|detail| detail == TICKET_SHOWN);
            assert!(advice, "{told:?}");
        }
        let words = of("viworks nonsense");
        let other = Arguments::try_parse_from(&words).unwrap_err();
        assert!(!shows_ticket(&other, &words));
    }
}
