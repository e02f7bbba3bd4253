//! A configuration of nginx beside what it is held against, and what was found.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use viworks_common::network::IpNetwork;
use viworks_runtime::config::Problem;

use super::asked::Refusal;
use super::directive::{Directive, all_in_force, named};
use super::place::{Place, Reach, is_of_this_machine};
use crate::config::Config;

#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Why nobody can go by the file: it is not there, or nginx itself does not take it. It leads what is told.
    pub(super) refusal: Option<Refusal>,
    pub(super) right: Vec<String>,
    /// What could not be looked at, and is neither right nor wrong therefore.
    pub(super) unseen: Vec<String>,
    /// What works, and could be better.
    pub(super) warnings: Vec<Problem>,
    pub(super) problems: Vec<Problem>,
}

impl Findings {
    /// Something is wrong with a file as a whole.
    pub(super) fn tell(&mut self, file: &Path, message: String, help: &str) {
        self.problems.push(Problem::of_file(file, message, help));
    }

    /// Something is wrong that may be met by several ways, and is said once.
    pub(super) fn refuse(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Something works, and should be done about nevertheless.
    pub(super) fn warn(&mut self, problem: Problem) {
        // One server may be met by several ways.
        if !self.warnings.contains(&problem) {
            self.warnings.push(problem);
        }
    }

    /// Nothing in the parts of this name leads to where it should: what they lead to instead, and what to write.
    pub(super) fn nothing_leads(
        &mut self,
        whole: &Whole<'_>,
        part: &'static str,
        missing: &str,
        address: &str,
        write: String,
    ) {
        const SHOWN_MAX: usize = 4;
        let place = address.parse().ok().and_then(Place::of_listener);
        let is_here = |word: &str| {
            let place = place.as_ref();
            place.is_some_and(|place| place.reached_by(target(word)).is_there())
        };
        let mut upstreams = whole
            .blocks(part)
            .flat_map(|block| named(&block.block, "upstream"));
        let unused = upstreams.find(|upstream| {
            let mut servers = named(&upstream.block, "server");
            servers.any(|server| is_here(server.value()))
        });
        let ends: Vec<_> = whole.blocks(part).flat_map(Targets::ends).collect();
        let words = ends.iter().map(|end| end.value());
        let words: BTreeSet<_> = words.filter(|word| !is_here(word)).collect();
        let shown: Vec<_> = words.into_iter().take(SHOWN_MAX).collect();
        let instead = if whole.blocks(part).next().is_none() {
            format!("; there is no {part} block at all")
        } else if let Some(upstream) = unused {
            format!(
                "; the upstream {} has it, and nothing leads to that",
                upstream.value()
            )
        } else if shown.is_empty() {
            String::new()
        } else {
            format!("; what is there leads to {}", shown.join(", "))
        };
        let is_file = |end: &&&Directive| target(end.value()).starts_with("unix:");
        let help = if let Some(upstream) = unused {
            let (name, at) = (upstream.value(), upstream.problem("", "").place);
            if part == "stream" {
                format!(
                    "lead there: write the name that is asked for and {name} as a line of the map that the server goes \
                     by, or proxy_pass {name}; in a server of its own ({at})"
                )
            } else {
                format!("lead there: name {name} in a proxy_pass of a location ({at})")
            }
        } else if let Some(end) = ends.iter().find(is_file) {
            format!(
                "the backend has no socket in the file system: write {address} in place of {} ({})",
                end.value(),
                end.problem("", "").place
            )
        } else {
            write
        };
        self.tell(whole.file, format!("{missing}{instead}"), &help);
    }

    /// A listener has port 0: whatever leads to it has no address that could be compared.
    pub(super) fn unseen_port(&mut self, who: &str, section: &str) {
        self.unseen.push(format!(
            "not looked at: how {who} come to the backend, for listen in [{section}] has port 0, which becomes another \
             one with each start: name a port"
        ));
    }

    /// Something could not be looked at, for this reason.
    pub(super) fn unseen(&mut self, directive: &Directive, why: &str) {
        let place = directive.problem("", "").place;
        let line = format!("not looked at: {}, {place}: {why}", directive.value());
        if !self.unseen.contains(&line) {
            self.unseen.push(line);
        }
    }
}

/// A configuration with what it is held against.
pub(super) struct Whole<'w> {
    pub(super) config: &'w Config,
    pub(super) file: &'w Path,
    pub(super) directives: &'w [Directive],
}

impl<'w> Whole<'w> {
    /// The blocks of this name.
    pub(super) fn blocks(
        &self,
        name: &'static str,
    ) -> impl Iterator<Item = &'w Directive> + use<'w> {
        named(self.directives, name)
    }

    /// The certificates that are shown where these blocks are in force, one inside the other. There is one for each
    /// kind of key, and a client has a say in which it gets.
    pub(super) fn certificates<'d>(
        &self,
        blocks: &[&'d [Directive]],
        findings: &mut Findings,
    ) -> Vec<(&'d Directive, PathBuf)> {
        let mut found = Vec::new();
        for directive in all_in_force(blocks, "ssl_certificate") {
            match self.path(directive) {
                Ok(path) => found.push((directive, path)),
                Err(why) => findings.unseen(directive, &why),
            }
        }
        found
    }

    /// The file that a directive names; otherwise why it cannot be told.
    pub(super) fn path(&self, directive: &Directive) -> Result<PathBuf, String> {
        let value = directive.value();
        if value.contains('$') || value.starts_with("data:") || value.starts_with("engine:") {
            return Err("it is no file that is known before nginx runs".to_owned());
        }
        // As nginx does: from the folder of its first file.
        let folder = self.file.parent().unwrap_or_else(|| Path::new("/"));
        let path = folder.join(value).canonicalize();
        path.map_err(|error| error.to_string())
    }
}

/// A `proxy_pass` with what stands around it, outermost first.
#[derive(Debug)]
pub(super) struct Way<'d> {
    pub(super) around: Vec<&'d Directive>,
    pub(super) pass: &'d Directive,
    /// How it leads there.
    pub(super) by: Reach,
}

impl<'d> Way<'d> {
    /// The blocks around it, each within the one before it.
    pub(super) fn blocks(&self) -> Vec<&'d [Directive]> {
        let around = self.around.iter();
        around.map(|it| it.block.as_slice()).collect()
    }

    /// The server around it.
    pub(super) fn server(&self) -> &'d Directive {
        let server = self.around.iter().find(|it| it.name == "server");
        server.copied().unwrap_or(self.pass)
    }

    /// Whether a client may say itself where it is, because everybody is believed about that.
    pub(super) fn everybody_is_believed(&self, findings: &mut Findings) {
        for believed in all_in_force(&self.blocks(), "set_real_ip_from") {
            let network = believed.value().parse::<IpNetwork>();
            if network.is_ok_and(|network| network.holds_strangers()) {
                findings.problems.push(believed.problem(
                    format!(
                        "{} is more than one site can have, and whoever is there can claim any address",
                        believed.value()
                    ),
                    "name the addresses of the proxies only that are in front of this nginx",
                ));
            }
        }
    }
}

/// What leads to a place within `stream` or `http`.
pub(super) struct Targets<'d> {
    part: &'d Directive,
    /// The names of groups of servers, and whether one of these is there.
    upstreams: Vec<(&'d str, Reach)>,
    place: Place,
}

impl<'d> Targets<'d> {
    pub(super) fn of(part: &'d Directive, place: &Place) -> Self {
        let reach = |upstream: &'d Directive| {
            let servers = named(&upstream.block, "server");
            let reached = servers.map(|it| place.reached_by(it.value()));
            (upstream.value(), Reach::nearest(reached))
        };
        Self {
            part,
            upstreams: named(&part.block, "upstream").map(reach).collect(),
            place: place.clone(),
        }
    }

    /// Whether a word means the place, or an upstream that has it.
    pub(super) fn means(&self, word: &str) -> bool {
        self.reach(word).is_there()
    }

    fn reach(&self, word: &str) -> Reach {
        let target = target(word);
        let to = |target: &str| {
            let mut upstreams = self.upstreams.iter();
            let own = upstreams.find(|(name, _reach)| *name == target);
            own.map_or_else(|| self.place.reached_by(target), |(_name, reach)| *reach)
        };
        // What a variable adds behind it is a path, or is not known before nginx runs.
        let before = target.split_once('$').map(|(before, _variable)| before);
        Reach::nearest([target].into_iter().chain(before).map(to))
    }

    /// Whether a `proxy_pass` can lead there.
    fn leads(&self, pass: &str) -> Reach {
        let given = self.givers(pass).into_iter().flat_map(values);
        let words = [pass].into_iter().chain(given);
        Reach::nearest(words.map(|word| self.reach(word)))
    }

    /// Whether one can lead there for all that is known before nginx runs.
    pub(super) fn may_lead(&self) -> bool {
        let mut may = false;
        walk(&mut vec![self.part], &mut |_around, directive| {
            may |=
                directive.name == "proxy_pass" && self.leads(directive.value()) == Reach::Unknown;
        });
        may
    }

    /// The servers that lead there out of groups that a `proxy_pass` can mean, where all that do are marked as down;
    /// each with whether the whole group is.
    pub(super) fn out_of_use(&self, pass: &str) -> Vec<(&'d Directive, bool)> {
        let given = self.givers(pass).into_iter().flat_map(values);
        let words: Vec<_> = [pass].into_iter().chain(given).map(target).collect();
        let is_down = |server: &&Directive| server.arguments.iter().any(|word| word == "down");
        let groups = named(&self.part.block, "upstream");
        let groups = groups.filter(|group| words.contains(&group.value()));
        let found = groups.filter_map(|group| {
            let servers = || named(&group.block, "server");
            let mut leads = servers().filter(|it| self.place.reached_by(it.value()).is_there());
            let first = leads.next().filter(is_down)?;
            let is_out = leads.all(|it| is_down(&it));
            is_out.then(|| (first, servers().all(|it| is_down(&it))))
        });
        found.collect()
    }

    /// Whether something gives this variable its value.
    pub(super) fn gives(&self, variable: &str) -> bool {
        !self.givers(variable).is_empty()
    }

    /// By what a `proxy_pass` with a variable can lead there.
    pub(super) fn chooses(&self, pass: &str) -> Option<&'d Directive> {
        let leads = |giver: &&'d Directive| values(giver).any(|value| self.means(value));
        self.givers(pass).into_iter().find(leads)
    }

    /// What gives the variable its value that a `proxy_pass` consists of.
    fn givers(&self, pass: &str) -> Vec<&'d Directive> {
        let Some(wanted) = variable(target(pass)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        walk(&mut vec![self.part], &mut |around, directive| {
            let given = match (directive.name.as_str(), around.len()) {
                ("map" | "geo" | "split_clients", 1) => directive.arguments.last(),
                ("set", _) => directive.arguments.first(),
                _ => None,
            };
            if given.and_then(|given| variable(given)) == Some(wanted) {
                found.push(directive);
            }
        });
        found
    }

    /// Every `proxy_pass` that can lead there, at whatever depth. Where nobody can tell before nginx runs, that is
    /// said.
    pub(super) fn ways(&self, findings: &mut Findings) -> Vec<Way<'d>> {
        let mut found = Vec::new();
        walk(&mut vec![self.part], &mut |around, directive| {
            if directive.name != "proxy_pass" {
                return;
            }
            let pass = directive.value();
            let by = self.leads(pass);
            if by.is_there() {
                found.push(Way {
                    around: around.to_vec(),
                    pass: directive,
                    by,
                });
            } else if target(pass).contains('$') && self.givers(pass).is_empty() {
                findings.unseen(directive, "where it leads is not known before nginx runs");
            } else if by == Reach::Unknown {
                findings.unseen(
                    directive,
                    "whether the name in it is this machine's is for DNS to say when nginx starts",
                );
            }
        });
        found
    }

    /// The words of this part that name where a connection goes, each where it stands.
    pub(super) fn ends(part: &'d Directive) -> Vec<&'d Directive> {
        let upstreams: Vec<_> = named(&part.block, "upstream").collect();
        let mut found: Vec<_> = upstreams
            .iter()
            .flat_map(|upstream| named(&upstream.block, "server"))
            .collect();
        walk(&mut vec![part], &mut |_around, directive| {
            let target = target(directive.value());
            let is_end = !target.contains('$') && !upstreams.iter().any(|it| it.value() == target);
            if directive.name == "proxy_pass" && is_end {
                found.push(directive);
            }
        });
        found
    }
}

/// What a variable can be, where something gives it its value.
fn values(giver: &Directive) -> impl Iterator<Item = &str> {
    let own = (giver.name == "set").then(|| giver.arguments.get(1));
    let own = own.flatten().map(String::as_str);
    giver.block.iter().map(Directive::value).chain(own)
}

/// Shows every directive within the last of these, with all that is around it.
fn walk<'d>(
    around: &mut Vec<&'d Directive>,
    look: &mut impl FnMut(&[&'d Directive], &'d Directive),
) {
    let Some(last) = around.last().copied() else {
        return;
    };
    for directive in &last.block {
        look(around, directive);
        if !directive.block.is_empty() {
            around.push(directive);
            walk(around, look);
            around.pop();
        }
    }
}

/// Variables that begin with what ends a host and port.
const PATHS: [&str; 4] = ["request_uri", "uri", "document_uri", "is_args"];

/// The host and port of a `proxy_pass`, or what stands for them.
fn target(pass: &str) -> &str {
    let target = pass.split_once("://").map_or(pass, |(_scheme, rest)| rest);
    if target.starts_with("unix:") {
        return target;
    }
    let is_path = |(at, letter): &(usize, char)| match *letter {
        '/' | '?' => true,
        '$' if *at > 0 => {
            let rest = target.get(*at..).unwrap_or_default();
            let name = rest.trim_start_matches(['$', '{']);
            let end = name.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
            PATHS.contains(&name.get(..end.unwrap_or(name.len())).unwrap_or_default())
        }
        _ => false,
    };
    let end = target.char_indices().find(is_path);
    end.and_then(|(end, _)| target.get(..end)).unwrap_or(target)
}

/// The name of a variable, where a text is one and nothing else.
pub(super) fn variable(text: &str) -> Option<&str> {
    let name = text.strip_prefix('$')?;
    let name = name
        .strip_prefix('{')
        .map_or(Some(name), |name| name.strip_suffix('}'))?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (!name.is_empty() && name.bytes().all(is_name)).then_some(name)
}

/// The address from which nginx connects; `None` where that is for the routes of its machine to know, or where there is
/// none.
pub(super) fn comes_from(by: Reach, bound: Option<&str>) -> Option<IpAddr> {
    if let Some(bound) = bound {
        return bound.parse().ok();
    }
    match by {
        Reach::By(IpAddr::V4(ip)) if ip.is_loopback() => Some(Ipv4Addr::LOCALHOST.into()),
        Reach::By(IpAddr::V6(ip)) if ip.is_loopback() => Some(Ipv6Addr::LOCALHOST.into()),
        // To itself a machine speaks from the address that it speaks to.
        Reach::By(ip) => is_of_this_machine(ip).then_some(ip),
        Reach::ByFile | Reach::Unknown | Reach::Elsewhere => None,
    }
}

/// What a request is given in a header, where blocks are one inside the other.
pub(super) fn header<'d>(blocks: &[&'d [Directive]], name: &str) -> Option<&'d str> {
    // Headers of an outer block are in force only where an inner one sets none.
    let mut set = all_in_force(blocks, "proxy_set_header");
    let own = set.find(|header| header.value().eq_ignore_ascii_case(name))?;
    own.arguments.get(1).map(String::as_str)
}

/// The port of a URL of TLS.
pub(super) fn port(url: &str) -> u16 {
    let rest = url.split_once("://").map_or(url, |(_scheme, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let port = authority.rsplit_once(':');
    port.and_then(|(_host, port)| port.parse().ok())
        .unwrap_or(443)
}
