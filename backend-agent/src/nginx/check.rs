//! Holds a configuration of nginx against what the backend expects of the proxy in front of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use viworks_common::limits::REQUEST_BODY_BYTES_MAX;
use viworks_common::pin::SpkiPin;
use viworks_runtime::config::{Problem, Problems};

use super::directive::{self, Directive, in_force, named, size, span};
use super::render::reached_at;
use super::renewal;
use crate::config::{Config, ProxyProtocol};
use crate::pki::issue::{is_for, server_pins};

/// After how much silence an event stream says that it is there.
const STREAM_SILENCE: Duration = Duration::from_secs(15);

/// Protocols that no browser and no command line needs any more.
const OLD_TLS: [&str; 4] = ["SSLv2", "SSLv3", "TLSv1", "TLSv1.1"];

/// What is to be checked.
#[derive(Debug, Clone)]
pub struct Question<'q> {
    /// The backend's configuration.
    pub config: &'q Config,
    /// nginx's configuration.
    pub file: &'q Path,
    /// Certbot's folder of renewals, where there is one.
    pub renewal: Option<&'q Path>,
    /// Whether nginx itself is asked.
    pub ask_nginx: bool,
}

/// What was found to be right, a line each.
///
/// # Errors
///
/// Everything that is wrong, each with its place and what to do.
pub fn check(question: &Question<'_>) -> Result<Vec<String>, Problems> {
    let mut findings = Findings::default();
    if question.ask_nginx {
        findings.ask_nginx(question.file);
    }
    match directive::load(question.file) {
        Ok(directives) => {
            let whole = Whole {
                config: question.config,
                file: question.file,
                directives: &directives,
            };
            whole.agents(&mut findings);
            whole.api(&mut findings);
        }
        Err(problem) => findings.problems.push(problem),
    }
    findings.pins(question);
    Problems::refuse(findings.problems).map(|()| findings.right)
}

#[derive(Debug, Default)]
struct Findings {
    right: Vec<String>,
    problems: Vec<Problem>,
}

impl Findings {
    fn ask_nginx(&mut self, file: &Path) {
        // Of a user who is not root, the path does not lead there.
        let programs = ["nginx", "/usr/sbin/nginx"].into_iter();
        let mut asked =
            programs.map(|nginx| Command::new(nginx).arg("-t").arg("-c").arg(file).output());
        let Some(asked) = asked.find_map(Result::ok) else {
            self.right
                .push("nginx is not here to be asked (nginx -t)".to_owned());
            return;
        };
        if asked.status.success() {
            self.right.push("nginx can read it (nginx -t)".to_owned());
            return;
        }
        let said = String::from_utf8_lossy(&asked.stderr);
        let cause = said.lines().find(|line| line.contains("[emerg]"));
        let cause = cause.unwrap_or_else(|| said.trim());
        let (_when, cause) = cause.split_once("[emerg] ").unwrap_or(("", cause));
        let help = if cause.contains("Permission denied") {
            "ask as root, as whom nginx starts"
        } else {
            "see nginx -t -c with this file; for the stream module: apt-get install libnginx-mod-stream"
        };
        let message = format!("nginx refuses it: {cause}");
        self.problems.push(Problem::of_file(file, message, help));
    }

    /// Whether the keys that gateways pin stay.
    fn pins(&mut self, question: &Question<'_>) {
        let agents = &question.config.agents;
        let pins = match server_pins(agents) {
            Ok(pins) => pins,
            Err(error) => return self.problems.push(error.problem(&agents.certificate_file)),
        };
        let shown: Vec<_> = pins.iter().map(SpkiPin::to_string).collect();
        self.right
            .push(format!("gateways pin {}", shown.join(" and ")));
        if let Some(folder) = question.renewal {
            let own = [agents.certificate_file.clone(), agents.key_file.clone()];
            let found = renewal::check(folder, &pins, &own);
            if found.is_empty() {
                self.right.push(format!(
                    "no renewal in {} changes these keys",
                    folder.display()
                ));
            }
            self.problems.extend(found);
        }
    }
}

/// A configuration with what it is held against.
struct Whole<'w> {
    config: &'w Config,
    file: &'w Path,
    directives: &'w [Directive],
}

impl<'w> Whole<'w> {
    fn blocks(&self, name: &'static str) -> impl Iterator<Item = &'w [Directive]> + use<'w> {
        named(self.directives, name).map(|directive| directive.block.as_slice())
    }

    /// How gateways come to the agents' listener.
    fn agents(&self, findings: &mut Findings) {
        let agents = &self.config.agents;
        let Some(address) = reached_at(agents.listen) else {
            return;
        };
        let mut found = false;
        for stream in self.blocks("stream") {
            let upstreams = leading_to(stream, &address);
            for server in named(stream, "server") {
                let blocks = [stream, server.block.as_slice()];
                let Some(pass) = in_force(&blocks, "proxy_pass") else {
                    continue;
                };
                let Some(map) = reaches(stream, pass.value(), &upstreams, &address) else {
                    continue;
                };
                found = true;
                self.pass_through(&blocks, pass, &address, findings);
                if let Some(map) = map {
                    self.names(
                        &blocks,
                        map,
                        |target| is_upstream(target, &upstreams, &address),
                        findings,
                    );
                }
            }
        }
        if found {
            findings
                .right
                .push(format!("gateways are passed through to {address}"));
        } else {
            let message =
                format!("no server in a stream block leads to {address}, where gateways are taken");
            let help = "viworks-backend-agent nginx render writes one that does";
            findings
                .problems
                .push(Problem::of_file(self.file, message, help));
        }
    }

    fn pass_through(
        &self,
        blocks: &[&[Directive]],
        pass: &Directive,
        address: &str,
        findings: &mut Findings,
    ) {
        let agents = &self.config.agents;
        let problems = &mut findings.problems;
        let header = in_force(blocks, "proxy_protocol").filter(|it| it.value() == "on");
        match (agents.proxy_protocol, header) {
            (ProxyProtocol::Require, None) => problems.push(pass.problem(
                "the backend requires a header of the PROXY protocol, and none is sent: no gateway could connect",
                "write proxy_protocol on; in this server",
            )),
            (ProxyProtocol::Off, Some(header)) => problems.push(header.problem(
                "a header of the PROXY protocol is sent, and the backend takes none: no gateway could connect",
                "set proxy_protocol = \"require\" and trusted_proxies in [agents], or remove this line",
            )),
            (ProxyProtocol::Off, None) => problems.push(pass.problem(
                "the backend would take all gateways for one, at the address of nginx: its limits for each address are for all of them",
                "write proxy_protocol on; here, and set proxy_protocol = \"require\" and trusted_proxies in [agents]",
            )),
            (ProxyProtocol::Require, Some(_)) => {
                let from = in_force(blocks, "proxy_bind").map(Directive::value);
                if let Some(from) = comes_from(address, from)
                    && !agents.trusted_proxies.iter().any(|network| network.contains(from))
                {
                    problems.push(pass.problem(
                        format!("nginx connects from {from}, which is not among trusted_proxies in [agents]: no gateway could connect"),
                        format!("add \"{from}\" to trusted_proxies"),
                    ));
                }
            }
        }
        if let Some(timeout) = in_force(blocks, "proxy_timeout")
            && let Some(found) = span(timeout.value())
            && found <= agents.silence
        {
            problems.push(timeout.problem(
                format!(
                    "a session may be silent for {} s (silence_ms), and nginx cuts it after {}",
                    agents.silence.as_secs_f64(),
                    timeout.value()
                ),
                format!(
                    "write proxy_timeout {}s;",
                    agents.silence.as_secs().saturating_mul(2)
                ),
            ));
        }
        let own = blocks.last().copied().unwrap_or_default();
        for listen in named(own, "listen") {
            if listen.arguments.iter().any(|word| word == "ssl") {
                problems.push(listen.problem(
                    "TLS of gateways would end here, and with it their certificates",
                    "remove ssl: it is passed through, and told apart by ssl_preread on;",
                ));
            }
        }
    }

    /// Whether the name that gateways dial leads to the backend.
    fn names(
        &self,
        blocks: &[&[Directive]],
        map: &Directive,
        leads_here: impl Fn(&str) -> bool,
        findings: &mut Findings,
    ) {
        let preread = in_force(blocks, "ssl_preread").filter(|it| it.value() == "on");
        if preread.is_none() {
            findings.problems.push(map.problem(
                "the name that a client asks for is not looked at, and every connection goes where the default leads",
                "write ssl_preread on; in the server",
            ));
        }
        let url = self.config.agents.public_url.as_deref();
        let Some(host) = url.and_then(host) else {
            return;
        };
        let default = named(&map.block, "default");
        let own = map
            .block
            .iter()
            .find(|entry| entry.name.eq_ignore_ascii_case(host));
        let leads = own.or_else(|| default.last());
        if !leads.is_some_and(|entry| leads_here(entry.value())) {
            findings.problems.push(map.problem(
                format!("gateways dial {host} (public_url in [agents]), and that name does not lead to the backend"),
                format!("write a line {host} with the upstream of the backend's agents"),
            ));
        }
    }

    /// How operators come to the API.
    fn api(&self, findings: &mut Findings) {
        let Some(address) = reached_at(self.config.api.listen) else {
            return;
        };
        let mut found = false;
        for http in self.blocks("http") {
            let upstreams = leading_to(http, &address);
            for server in named(http, "server") {
                let leads = |location: &&Directive| {
                    let pass = named(&location.block, "proxy_pass").next();
                    pass.is_some_and(|pass| is_upstream(pass.value(), &upstreams, &address))
                };
                let locations: Vec<_> = named(&server.block, "location").filter(leads).collect();
                if locations.is_empty() {
                    continue;
                }
                found = true;
                self.server(http, server, findings);
                events(http, server, &locations, findings);
            }
        }
        if found {
            findings
                .right
                .push(format!("operators reach the API at {address}"));
        } else {
            let message =
                format!("no location in an http block leads to {address}, where the API is");
            let help = "viworks-backend-agent nginx render writes one that does";
            findings
                .problems
                .push(Problem::of_file(self.file, message, help));
        }
    }

    fn server(&self, http: &[Directive], server: &Directive, findings: &mut Findings) {
        let blocks = [http, server.block.as_slice()];
        let problems = &mut findings.problems;
        let encrypted = named(&server.block, "listen")
            .any(|listen| listen.arguments.iter().any(|word| word == "ssl"));
        if !encrypted {
            problems.push(server.problem(
                "API keys would cross the network in plain text",
                "write listen with ssl, and serve nothing at a port without it but a redirection",
            ));
        }
        if let Some(protocols) = in_force(&blocks, "ssl_protocols")
            && let Some(old) = protocols
                .arguments
                .iter()
                .find(|it| OLD_TLS.contains(&it.as_str()))
        {
            problems.push(protocols.problem(
                format!("{old} is broken"),
                "write ssl_protocols TLSv1.2 TLSv1.3;",
            ));
        }
        if let Some(limit) = in_force(&blocks, "client_max_body_size")
            && size(limit.value())
                .is_some_and(|size| size != 0 && size < REQUEST_BODY_BYTES_MAX as u64)
        {
            problems.push(limit.problem(
                "a run for many gateways has up to 1 MiB",
                "write client_max_body_size 1m;",
            ));
        }
        let names = in_force(&blocks, "server_name")
            .map(|it| it.arguments.as_slice())
            .unwrap_or_default();
        if let Some(certificate) = in_force(&blocks, "ssl_certificate") {
            for name in names
                .iter()
                .filter(|name| !name.contains(['*', '~', '$', '_']))
            {
                let path = PathBuf::from(certificate.value());
                // Only root may be able to look.
                let Ok(path) = path.canonicalize() else {
                    continue;
                };
                if is_for(&path, name).is_ok_and(|is_for| !is_for) {
                    problems.push(certificate.problem(
                        format!("the certificate in {} is not for {name}", path.display()),
                        "name the certificate of this server, or have one made for its name",
                    ));
                }
            }
        }
    }
}

/// Whether events of a run arrive as they happen.
fn events(
    http: &[Directive],
    server: &Directive,
    locations: &[&Directive],
    findings: &mut Findings,
) {
    const PATH: &str = "events";
    let own = locations
        .iter()
        .find(|location| location.arguments.iter().any(|it| it.contains(PATH)));
    let location = own.or_else(|| locations.first());
    let Some(location) = location else {
        return;
    };
    let blocks = [http, server.block.as_slice(), location.block.as_slice()];
    let is_off = |name| in_force(&blocks, name).is_some_and(|it| it.value() == "off");
    if !is_off("proxy_buffering") {
        findings.problems.push(location.problem(
            "events of a run are kept back until a buffer is full",
            "write a location ~ ^/v1/runs/[^/]+/events$ with proxy_buffering off;",
        ));
    }
    if let Some(gzip) = in_force(&blocks, "gzip").filter(|it| it.value() == "on") {
        findings.problems.push(gzip.problem(
            "events of a run are kept back until there are enough of them to be compressed",
            "write gzip off; in the location of event streams",
        ));
    }
    if let Some(timeout) = in_force(&blocks, "proxy_read_timeout")
        && span(timeout.value()).is_some_and(|found| found < STREAM_SILENCE * 2)
    {
        findings.problems.push(timeout.problem(
            format!(
                "a silent event stream is heard of every {} s, and nginx cuts it after {}",
                STREAM_SILENCE.as_secs(),
                timeout.value()
            ),
            "write proxy_read_timeout 90s;",
        ));
    }
}

/// The upstreams that have this server.
fn leading_to<'d>(block: &'d [Directive], address: &str) -> Vec<&'d str> {
    let has =
        |upstream: &&Directive| named(&upstream.block, "server").any(|it| it.value() == address);
    named(block, "upstream")
        .filter(has)
        .map(Directive::value)
        .collect()
}

/// Whether a `proxy_pass` means one of these upstreams, or the address itself.
fn is_upstream(pass: &str, upstreams: &[&str], address: &str) -> bool {
    let target = pass.split_once("://").map_or(pass, |(_scheme, rest)| rest);
    let target = target.split_once('/').map_or(target, |(host, _path)| host);
    target == address || upstreams.contains(&target)
}

/// Whether a stream's `proxy_pass` can lead there, and by which map.
fn reaches<'d>(
    stream: &'d [Directive],
    pass: &str,
    upstreams: &[&str],
    address: &str,
) -> Option<Option<&'d Directive>> {
    if is_upstream(pass, upstreams, address) {
        return Some(None);
    }
    let sets = |map: &&Directive| {
        pass.starts_with('$') && map.arguments.get(1).is_some_and(|it| it == pass)
    };
    let map = named(stream, "map").find(sets)?;
    let leads = |entry: &Directive| is_upstream(entry.value(), upstreams, address);
    map.block.iter().any(leads).then_some(Some(map))
}

/// The address from which nginx connects; `None` where that is for the routes of its machine to know.
fn comes_from(address: &str, bound: Option<&str>) -> Option<IpAddr> {
    if let Some(bound) = bound {
        return bound.parse().ok();
    }
    let address: SocketAddr = address.parse().ok()?;
    match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Some(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_loopback() => Some(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The host of a URL.
pub fn host(url: &str) -> Option<&str> {
    let (_scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next()?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}
