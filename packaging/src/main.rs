//! Writes what packages bring beside the programs, manual pages, completions and pages of the documentation, into a
//! folder: `viworks-packaging DIR`.

#![expect(
    clippy::print_stderr,
    reason = "a program of the build: what is wrong goes to standard error"
)]

mod page;
mod pages;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};

/// A program, and the section of the manual that it belongs to.
struct Program {
    name: &'static str,
    command: Command,
    section: &'static str,
    /// Whether people type it.
    typed: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let folder = match asked(&arguments) {
        Asked::Write(folder) => folder,
        Asked::Usage(code) => {
            eprintln!("{USAGE}");
            return code;
        }
    };
    match write(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

const USAGE: &str = "usage: viworks-packaging DIR";

/// What the arguments ask for.
enum Asked<'a> {
    Write(&'a Path),
    /// To be told how it is called, with what it ends with.
    Usage(ExitCode),
}

fn asked(arguments: &[OsString]) -> Asked<'_> {
    match arguments {
        [only] if only == "--help" || only == "-h" => Asked::Usage(ExitCode::SUCCESS),
        // No folder is meant by an option that there is not.
        [folder] if !folder.as_encoded_bytes().starts_with(b"-") && !folder.is_empty() => {
            Asked::Write(Path::new(folder))
        }
        _ => Asked::Usage(ExitCode::from(2)),
    }
}

fn programs() -> [Program; 4] {
    [
        Program {
            name: "viworks-backend-agent",
            command: viworks_backend_agent::cli::command(),
            section: "8",
            typed: true,
        },
        Program {
            name: "viworks-gateway-agent",
            command: viworks_gateway_agent::cli::command(),
            section: "8",
            typed: true,
        },
        Program {
            name: "viworks-gateway-helper",
            command: viworks_gateway_agent::cli::helper::command(),
            section: "8",
            typed: false,
        },
        Program {
            name: "viworks",
            command: viworks_operator_cli::flags::Arguments::command(),
            section: "1",
            typed: true,
        },
    ]
}

/// `man/NAME.SECTION`, one page for each program and for each of its verbs, `completions/` with one file for each
/// program and shell, and `doc/PACKAGE/` with the pages of each package. What was in any of them is gone.
fn write(folder: &Path) -> io::Result<()> {
    let (manual_pages, completions) = (folder.join("man"), folder.join("completions"));
    let documents = folder.join("doc");
    let all = [&manual_pages, &completions, &documents];
    for folder in all {
        is_ours(folder)?;
    }
    for folder in all {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => fs::create_dir_all(folder)?,
        }
    }
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    pages::write(root, &documents)?;
    for program in programs() {
        if program.typed {
            // What completions are made of is built, with verbs that its pages are to be without.
            let mut built = program.command.clone();
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                generate_to(shell, &mut built, program.name, &completions)?;
            }
        }
        for (file, text) in manual(program)? {
            fs::write(manual_pages.join(file), text)?;
        }
    }
    Ok(())
}

/// Refuses a folder in which something is that no call of this program wrote, such as the system's own.
fn is_ours(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.trim_start_matches('_').starts_with("viworks") {
            let what = format!(
                "{} is not of ours: name another folder",
                folder.join(name).display()
            );
            return Err(io::Error::other(what));
        }
    }
    Ok(())
}

/// The pages of a program with the names of their files: its own, and one for each verb.
fn manual(program: Program) -> io::Result<Vec<(String, String)>> {
    // The verbs that only print a help are none that anybody looks up; one that is built has them already.
    let mut command = program.command.disable_help_subcommand(true);
    command.build();
    let own = format!("{}({})", program.name, program.section);
    let mut pages = Vec::new();
    let mut waiting = vec![(&command, None)];
    while let Some((command, of)) = waiting.pop() {
        let name = command
            .get_display_name()
            .unwrap_or_else(|| command.get_name());
        let text = page::page(command, program.section, of)?;
        pages.push((format!("{name}.{}", program.section), text));
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        waiting.extend(verbs.map(|verb| (verb, Some(own.as_str()))));
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::process::ExitCode;

    use super::{Asked, asked, is_ours, manual, programs, write};

    #[test]
    fn an_option_is_no_folder() {
        let told = |arguments: &[&str]| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            match asked(&arguments) {
                Asked::Write(folder) => format!("{}", folder.display()),
                Asked::Usage(code) => format!("{code:?}"),
            }
        };
        let [well, wrong] = [ExitCode::SUCCESS, ExitCode::from(2)].map(|code| format!("{code:?}"));
        assert_eq!(told(&["target/packaging"]), "target/packaging");
        assert_eq!(told(&["./-odd"]), "./-odd");
        assert_eq!(told(&["--help"]), well);
        for refused in [&["--version"][..], &["-x"], &[""], &[], &["a", "b"]] {
            assert_eq!(told(refused), wrong, "{refused:?}");
        }
    }

    #[test]
    fn every_page_that_a_page_names_is_there_and_says_what_it_has_to() {
        let all = programs()
            .into_iter()
            .map(|program| manual(program).unwrap());
        let pages: BTreeMap<String, String> = all.flatten().collect();
        for page in [
            "viworks.1",
            "viworks-validate.1",
            "viworks-gateway-ls.1",
            "viworks-backend-agent-pki-issue-gateway.8",
            "viworks-gateway-agent-doctor.8",
            "viworks-gateway-helper-serve.8",
        ] {
            assert!(pages.contains_key(page), "{page} of {:?}", pages.keys());
        }
        for (file, text) in &pages {
            assert!(!file.replace("-helper", "").contains("-help"), "{file}");
            let text = text
                .replace("\\-", "-")
                .replace("\\fR", "")
                .replace("\\fB", "");
            for (before, after) in text.match_indices('(').map(|(at, _)| text.split_at(at)) {
                let name = before
                    .rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                    .next();
                let name = name.unwrap_or_default();
                if let Some(section @ ("1" | "8")) = after.get(1..2)
                    && name.starts_with("viworks")
                    && after.get(2..3) == Some(")")
                {
                    let named = format!("{name}.{section}");
                    assert!(pages.contains_key(&named), "{file} names {named}");
                }
            }
            assert!(text.contains(".SH EXIT STATUS\n"), "{file}");
            assert!(!text.contains(".SH EXTRA"), "{file}");
            assert!(!text.contains("Exit codes:"), "{file}");
        }
        let validate = &pages["viworks-validate.1"].replace("\\-", "-");
        assert!(validate.contains("--gateway"), "{validate}");
        assert!(
            validate.contains(".SH EXAMPLES\n.nf\nviworks validate"),
            "{validate}"
        );
    }

    #[test]
    fn a_folder_with_what_others_wrote_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let pages = std::fs::read_dir(folder.path().join("man")).unwrap();
        let pages = pages.map(|page| page.unwrap().file_name().into_string().unwrap());
        let helps: Vec<String> = pages.filter(|page| page.contains("-help")).collect();
        // One is that of the helper.
        assert!(
            helps.iter().all(|page| page.contains("-helper")),
            "{helps:?}"
        );
        let page = folder.path().join("man/viworks.1");
        let gone = folder.path().join("man/viworks-gone.1");
        std::fs::write(&gone, "of an earlier version").unwrap();
        write(folder.path()).unwrap();
        assert!(page.is_file() && !gone.exists());
        let other = folder.path().join("man/man1");
        std::fs::write(&other, "").unwrap();
        let refused = write(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("man1 is not of ours"), "{refused}");
        assert!(page.is_file() && other.is_file());
        is_ours(&folder.path().join("none")).unwrap();
    }
}
