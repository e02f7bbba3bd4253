//! Writes the manual pages and completions of the three programs into a folder: `viworks-packaging DIR`.

#![expect(
    clippy::print_stderr,
    reason = "a program of the build: what is wrong goes to standard error"
)]

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// A program, and the section of the manual that it belongs to.
struct Program {
    name: &'static str,
    command: Command,
    section: &'static str,
}

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: viworks-packaging DIR");
        return ExitCode::from(2);
    };
    match write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}: {error}", Path::new(&folder).display());
            ExitCode::FAILURE
        }
    }
}

fn programs() -> [Program; 3] {
    [
        Program {
            name: "viworks-backend-agent",
            command: viworks_backend_agent::cli::command(),
            section: "8",
        },
        Program {
            name: "viworks-gateway-agent",
            command: viworks_gateway_agent::cli::command(),
            section: "8",
        },
        Program {
            name: "viworks",
            command: viworks_operator_cli::flags::Arguments::command(),
            section: "1",
        },
    ]
}

/// `man/NAME.SECTION`, one page for each program, and `completions/` with one file for each program and shell.
fn write(folder: &Path) -> io::Result<()> {
    let (pages, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    for program in programs() {
        let Program {
            name,
            mut command,
            section,
        } = program;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            generate_to(shell, &mut command, name, &completions)?;
        }
        let mut page = File::create(pages.join(format!("{name}.{section}")))?;
        page_of(command, section).render(&mut page)?;
    }
    Ok(())
}

fn page_of(command: Command, section: &str) -> Man {
    Man::new(command).section(section).source("ViWorkS")
}
