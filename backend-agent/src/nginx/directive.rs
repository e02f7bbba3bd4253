//! Reads what nginx reads: directives with their arguments and blocks, files that are included among them.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use viworks_runtime::config::{Place, Problem};
use viworks_runtime::files;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Files that one configuration may consist of.
const FILES_MAX: usize = 256;

/// Blocks within blocks.
const DEPTH_MAX: usize = 16;

/// One directive, with where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directive {
    pub(super) name: String,
    pub(super) arguments: Vec<String>,
    pub(super) block: Vec<Self>,
    pub(super) path: PathBuf,
    pub(super) line: usize,
}

impl Directive {
    /// Its first argument.
    pub(super) fn value(&self) -> &str {
        self.arguments.first().map_or("", String::as_str)
    }

    /// What is wrong here.
    pub(super) fn problem(&self, message: impl Into<String>, help: impl Into<String>) -> Problem {
        Problem {
            place: Place::Line {
                path: self.path.clone(),
                line: self.line,
                column: 1,
            },
            message: message.into(),
            help: help.into(),
        }
    }
}

/// The directives of this name.
pub(super) fn named<'d>(
    block: &'d [Directive],
    name: &'static str,
) -> impl Iterator<Item = &'d Directive> {
    block.iter().filter(move |directive| directive.name == name)
}

/// The directive of this name that is in force in the last of these blocks, each within the one before it.
pub(super) fn in_force<'d>(
    blocks: &[&'d [Directive]],
    name: &'static str,
) -> Option<&'d Directive> {
    all_in_force(blocks, name).next()
}

/// The same of one that may stand there several times: those of the innermost block that has any.
pub(super) fn all_in_force<'d>(
    blocks: &[&'d [Directive]],
    name: &'static str,
) -> impl Iterator<Item = &'d Directive> + use<'d> {
    let has = |block: &&&'d [Directive]| named(block, name).next().is_some();
    let own = blocks.iter().rev().find(has);
    named(own.copied().unwrap_or_default(), name)
}

/// A span as nginx writes it: `90s`, `1h 30m` in one word, `500ms`, or seconds.
pub(super) fn span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis = 0_u64;
    while !rest.is_empty() {
        let digits = rest
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        let unit = behind
            .find(|letter: char| letter.is_ascii_digit())
            .unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit);
        let unit = match unit {
            "ms" => 1,
            "" | "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = behind;
    }
    (!text.is_empty()).then_some(Duration::from_millis(millis))
}

/// A number of bytes as nginx writes it: `1m`, `8k`, or bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "" => 1,
        "k" | "K" => 1_024,
        "m" | "M" => 1_024 * 1_024,
        "g" | "G" => 1_024 * 1_024 * 1_024,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// Reads a configuration with all that it includes; what a pattern does not find is left out, as nginx does.
///
/// # Errors
///
/// What cannot be read, with its place.
pub(super) fn load(path: &Path) -> Result<Vec<Directive>, Problem> {
    let mut files = 0;
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    read(path, folder, &mut files)
}

fn read(path: &Path, folder: &Path, files: &mut usize) -> Result<Vec<Directive>, Problem> {
    *files += 1;
    if *files > FILES_MAX {
        let message = format!("more than {FILES_MAX} files are included");
        return Err(Problem::of_file(
            path,
            message,
            "see that no file includes itself",
        ));
    }
    let text = files::read_at_most(path, FILE_BYTES_MAX).map_err(|error| error.problem())?;
    let parsed = parse(&String::from_utf8_lossy(&text), path)?;
    include(parsed, folder, files)
}

fn include(
    parsed: Vec<Directive>,
    folder: &Path,
    files: &mut usize,
) -> Result<Vec<Directive>, Problem> {
    let mut whole = Vec::with_capacity(parsed.len());
    for mut directive in parsed {
        if directive.name == "include" {
            for path in matching(&folder.join(directive.value())) {
                whole.extend(read(&path, folder, files)?);
            }
        } else {
            let block = std::mem::take(&mut directive.block);
            directive.block = include(block, folder, files)?;
            whole.push(directive);
        }
    }
    Ok(whole)
}

/// The files that a path means, whose last part may have one star.
fn matching(path: &Path) -> Vec<PathBuf> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let Some((start, end)) = name.split_once('*') else {
        return vec![path.to_owned()];
    };
    let entries = path
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok());
    let entries = entries.into_iter().flatten().filter_map(Result::ok);
    let mut found: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Reads one file.
pub(super) fn parse(text: &str, path: &Path) -> Result<Vec<Directive>, Problem> {
    let mut words = words(text).map_err(|line| {
        Problem::of_file(
            path,
            format!("the text that begins in line {line} never ends"),
            "close its quotation mark",
        )
    })?;
    let block = block(&mut words, path, 0)?;
    match words.pop_front() {
        None => Ok(block),
        Some((line, _)) => Err(malformed(path, line)),
    }
}

fn malformed(path: &Path, line: usize) -> Problem {
    Problem {
        place: Place::Line {
            path: path.to_owned(),
            line,
            column: 1,
        },
        message: "a directive ends with a semicolon or a block in braces".to_owned(),
        help: "nginx -t says the same in its words".to_owned(),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Word {
    Text(String),
    Open,
    Close,
    End,
}

fn block(
    words: &mut VecDeque<(usize, Word)>,
    path: &Path,
    depth: usize,
) -> Result<Vec<Directive>, Problem> {
    let mut directives = Vec::new();
    while let Some((line, word)) = words.pop_front() {
        let name = match word {
            Word::Text(name) => name,
            Word::Close if depth > 0 => {
                words.push_front((line, Word::Close));
                return Ok(directives);
            }
            Word::Close | Word::Open | Word::End => return Err(malformed(path, line)),
        };
        let mut directive = Directive {
            name,
            arguments: Vec::new(),
            block: Vec::new(),
            path: path.to_owned(),
            line,
        };
        loop {
            match words.pop_front() {
                Some((_, Word::Text(text))) => directive.arguments.push(text),
                Some((_, Word::End)) => break,
                Some((_, Word::Open)) if depth < DEPTH_MAX => {
                    directive.block = block(words, path, depth + 1)?;
                    match words.pop_front() {
                        Some((_, Word::Close)) => break,
                        Some(_) | None => return Err(malformed(path, line)),
                    }
                }
                Some((_, Word::Open | Word::Close)) | None => return Err(malformed(path, line)),
            }
        }
        directives.push(directive);
    }
    Ok(directives)
}

/// The words of a text with their lines; otherwise the line in which a quoted one begins that never ends.
fn words(text: &str) -> Result<VecDeque<(usize, Word)>, usize> {
    let mut found = VecDeque::new();
    let (mut letters, mut line) = (text.chars().peekable(), 1);
    while let Some(letter) = letters.next() {
        match letter {
            '\n' => line += 1,
            _ if letter.is_whitespace() => {}
            '#' => while letters.next_if(|&letter| letter != '\n').is_some() {},
            ';' => found.push_back((line, Word::End)),
            '{' => found.push_back((line, Word::Open)),
            '}' => found.push_back((line, Word::Close)),
            '"' | '\'' => {
                let begun = line;
                let mut word = String::new();
                loop {
                    match letters.next().ok_or(begun)? {
                        end if end == letter => break,
                        '\\' => {
                            let next = letters.next().ok_or(begun)?;
                            // As nginx does: only these lose it, and an expression keeps its own.
                            if !matches!(next, '"' | '\'' | '\\') {
                                word.push('\\');
                            }
                            word.push(next);
                        }
                        other => {
                            line += usize::from(other == '\n');
                            word.push(other);
                        }
                    }
                }
                found.push_back((begun, Word::Text(word)));
            }
            _ => {
                let mut word = String::from(letter);
                let mut in_variable = false;
                while let Some(next) = letters.next_if(|&next| {
                    in_variable
                        || !(next.is_whitespace() || matches!(next, ';' | '{'))
                        || (next == '{' && word.ends_with('$'))
                }) {
                    in_variable =
                        (in_variable || (next == '{' && word.ends_with('$'))) && next != '}';
                    word.push(next);
                    if next == '\\' {
                        word.extend(letters.next());
                    }
                }
                found.push_back((line, Word::Text(word)));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Directive> {
        parse(text, Path::new("nginx.conf")).unwrap()
    }

    #[test]
    fn directives_have_arguments_blocks_and_lines() {
        let text = "user www-data; # one\nhttp {\n  log_format a 'b \"c\"'\n    ' d;';\n  location ~ ^/x{2}$ { }\n  root ${a}/b;\n}\n";
        let found = parsed(&text.replace("^/x{2}$", "\"^/x{2}$\""));
        assert_eq!(
            (found[0].name.as_str(), found[0].value(), found[0].line),
            ("user", "www-data", 1)
        );
        let http = &found[1];
        assert_eq!((http.line, http.block.len()), (2, 3));
        assert_eq!(http.block[0].arguments, ["a", "b \"c\"", " d;"]);
        assert_eq!(http.block[1].arguments, ["~", "^/x{2}$"]);
        assert_eq!((http.block[2].value(), http.block[2].line), ("${a}/b", 6));
    }

    #[test]
    fn what_nginx_would_not_read_is_told_with_its_place() {
        for (text, place) in [
            ("user www-data", "nginx.conf:1:1"),
            ("http {\n listen 80;\n", "nginx.conf:1:1"),
            ("}\n", "nginx.conf:1:1"),
            ("a;\n;\n", "nginx.conf:2:1"),
            ("a 'b;\n", "nginx.conf"),
        ] {
            let problem = parse(text, Path::new("nginx.conf")).unwrap_err();
            assert_eq!(problem.place.to_string(), place, "{text:?}");
        }
        let deep = "a {".repeat(100);
        parse(&deep, Path::new("nginx.conf")).unwrap_err();
    }

    #[test]
    fn the_innermost_directive_is_in_force() {
        let found = parsed("gzip on;\nserver {\n  gzip off;\n  location / { }\n}\n");
        let server = &found[1];
        let blocks = [&found[..], &server.block, &server.block[1].block];
        assert_eq!(in_force(&blocks, "gzip").unwrap().line, 3);
        assert_eq!(in_force(&blocks[..1], "gzip").unwrap().line, 1);
        assert_eq!(in_force(&blocks, "root"), None);
    }

    #[test]
    fn included_files_are_read_in_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "nginx.conf",
            "http { include a-*.conf; include none-*.conf; last; }",
        );
        write("a-2.conf", "two;");
        write("a-1.conf", "one;");
        let found = load(&folder.path().join("nginx.conf")).unwrap();
        let names: Vec<_> = found[0].block.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["one", "two", "last"]);
        write("nginx.conf", "include nginx.conf;");
        load(&folder.path().join("nginx.conf")).unwrap_err();
        write("nginx.conf", "include missing.conf;");
        load(&folder.path().join("nginx.conf")).unwrap_err();
    }

    #[test]
    fn spans_and_sizes_are_read_as_nginx_writes_them() {
        let seconds = |text| span(text).map(|span| span.as_secs_f64());
        assert_eq!(seconds("90s"), Some(90.0));
        assert_eq!(seconds("90"), Some(90.0));
        assert_eq!(seconds("1h30m"), Some(5_400.0));
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!([seconds(""), seconds("ten"), seconds("1y")], [None; 3]);
        assert_eq!(
            [size("1m"), size("8k"), size("7"), size("x")],
            [Some(1_048_576), Some(8_192), Some(7), None]
        );
    }
}
