//! Where a map of nginx leads a name, by the order in which nginx looks: the name itself, wildcards, regular
//! expressions one after the other, the default.

use regex::RegexBuilder;

use super::directive::{Directive, named};
use super::whole::variable;

/// The variable with the name that a client asks TLS for.
const ASKED_FOR: &str = "ssl_preread_server_name";

/// By what a map chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// By the name that a client asks TLS for.
    Name,
    /// By something that is known of a connection only, or made of several things.
    Unknown,
    /// By something that says nothing about the name, such as an address.
    Other,
}

/// What a map has for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chosen<'m> {
    /// This line.
    Line(&'m Directive),
    /// Perhaps this line, whose expression cannot be judged here.
    Perhaps(&'m Directive),
    /// Nothing.
    Nothing,
}

/// By what this map chooses.
pub(super) fn source(map: &Directive) -> Source {
    match variable(map.value()) {
        Some(name) if name.eq_ignore_ascii_case(ASKED_FOR) => Source::Name,
        Some("server_port") => Source::Unknown,
        Some(name) if name.starts_with("ssl_preread_") => Source::Unknown,
        Some(_address) => Source::Other,
        None => Source::Unknown,
    }
}

/// What it has for this name.
pub(super) fn chosen<'m>(map: &'m Directive, name: &str) -> Chosen<'m> {
    let name = name.to_ascii_lowercase();
    let has_wildcards = named(&map.block, "hostnames").next().is_some();
    let mut own = None;
    let mut wildcard: Option<(Rank, &Directive)> = None;
    for line in lines(map) {
        let pattern = line.name.to_ascii_lowercase();
        if pattern.starts_with('~') {
            continue;
        }
        let rank = rank(&pattern, &name).filter(|_rank| has_wildcards);
        if pattern == name || (has_wildcards && pattern.strip_prefix('.') == Some(name.as_str())) {
            own.get_or_insert(line);
        } else if let Some(rank) = rank
            && wildcard.is_none_or(|(best, _line)| rank > best)
        {
            wildcard = Some((rank, line));
        }
    }
    let wildcard = || wildcard.map(|(_rank, line)| line);
    if let Some(line) = own.or_else(wildcard) {
        return Chosen::Line(line);
    }
    for line in lines(map) {
        match line.name.strip_prefix('~').map(|text| takes(text, &name)) {
            Some(Some(true)) => return Chosen::Line(line),
            Some(None) => return Chosen::Perhaps(line),
            Some(Some(false)) | None => {}
        }
    }
    let default = named(&map.block, "default").last();
    default.map_or(Chosen::Nothing, Chosen::Line)
}

/// Its lines for values, but for the default.
fn lines(map: &Directive) -> impl Iterator<Item = &Directive> {
    const OTHERS: [&str; 4] = ["default", "hostnames", "volatile", "include"];
    let lines = map.block.iter();
    lines.filter(|line| !OTHERS.contains(&line.name.as_str()))
}

/// How close a wildcard is: one in front counts more than one at the end, then the longer one.
type Rank = (bool, usize);

fn rank(pattern: &str, name: &str) -> Option<Rank> {
    if let Some(end) = pattern.strip_prefix('*').or(Some(pattern))
        && end.starts_with('.')
        && name.len() > end.len()
        && name.ends_with(end)
    {
        return Some((true, end.len()));
    }
    let start = pattern.strip_suffix('*')?;
    let fits = start.ends_with('.') && name.len() > start.len() && name.starts_with(start);
    fits.then_some((false, start.len()))
}

/// Whether an expression takes a name; `None` where it is one that only nginx knows.
fn takes(text: &str, name: &str) -> Option<bool> {
    let (text, ignores_case) = match text.strip_prefix('*') {
        Some(text) => (text, true),
        None => (text, false),
    };
    let expression = RegexBuilder::new(text)
        .case_insensitive(ignores_case)
        .build();
    Some(expression.ok()?.is_match(name))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::directive::parse;
    use super::*;

    fn target(lines: &str, name: &str) -> String {
        let text = format!("map $ssl_preread_server_name $to {{ {lines} }}");
        let parsed = parse(&text, Path::new("nginx.conf")).unwrap();
        match chosen(&parsed[0], name) {
            Chosen::Line(line) => line.value().to_owned(),
            Chosen::Perhaps(line) => format!("perhaps {}", line.value()),
            Chosen::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn a_name_goes_where_nginx_takes_it() {
        for (lines, wanted) in [
            ("a.test x; default y;", "x"),
            ("A.TEST x; default y;", "x"),
            ("b.test x; default y;", "y"),
            ("b.test x;", "nothing"),
            // Expressions come behind the name itself, and before the default.
            ("~^a x; a.test y;", "y"),
            ("\"~^a\" x; default y;", "x"),
            ("~^b x; ~test$ z; ~^a w; default y;", "z"),
            ("~^A x; default y;", "y"),
            ("~*^A x; default y;", "x"),
            (r"'~^a\.test$' x; default y;", "x"),
            (r"~^a\.test$ x; default y;", "x"),
            ("~(?=a) x; default y;", "perhaps x"),
            ("~(?=a) x; a.test z; default y;", "z"),
            // Wildcards are ones where that is said.
            ("*.test x; default y;", "y"),
            ("hostnames; *.test x; default y;", "x"),
            ("hostnames; .test x; default y;", "x"),
            ("hostnames; .a.test x; *.test z; default y;", "x"),
            ("hostnames; a.* x; *.test z; default y;", "z"),
            ("hostnames; a.* x; ~^a z; default y;", "x"),
            ("hostnames; *.b.test x; default y;", "y"),
            ("hostnames; a.test x; *.test y;", "x"),
        ] {
            assert_eq!(target(lines, "a.test"), wanted, "{lines}");
        }
    }

    #[test]
    fn what_a_map_looks_at_is_known() {
        for (word, wanted) in [
            ("$ssl_preread_server_name", Source::Name),
            ("${ssl_preread_server_name}", Source::Name),
            ("$ssl_preread_alpn_protocols", Source::Unknown),
            ("$server_port", Source::Unknown),
            ("$ssl_preread_server_name:$server_port", Source::Unknown),
            ("$remote_addr", Source::Other),
        ] {
            let text = format!("map {word} $to {{ default x; }}");
            let parsed = parse(&text, Path::new("nginx.conf")).unwrap();
            assert_eq!(source(&parsed[0]), wanted, "{word}");
        }
    }
}
