//! Writes the shipped configuration of nginx with the names, certificates and backends of a site.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{AgentsConfig, TlsEnd};

/// The files that ship: complete, with places that stand for a site's own.
const PASS_THROUGH: &str = include_str!("../../../nginx/nginx.conf");
const TERMINATE: &str = include_str!("../../../nginx/nginx-terminate.conf");

/// What nginx allows to be silent at least: the value that ships.
const SILENCE_MIN: Duration = Duration::from_secs(90);

/// The list of revoked certificates, where a backend keeps none: nginx does not start without the file.
const SHIPPED_LIST: &str = "# ssl_crl /var/lib/viworks-backend/gateways.crl;";

/// Why that list is not gone by, in front of the line that would.
const LEFT_OUT: &str = "\
# Left out: client_ca_file has an authority of which the list is none, and nginx would refuse every gateway that
        # has a certificate of that one. Render this file again once it is taken out of client_ca_file.
        # ";

/// What is particular about a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The name that gateways dial.
    pub agents_name: String,
    /// The name at which machines enrol.
    pub enrolment_name: String,
    /// The name that operators use.
    pub api_name: String,
    /// Where backends take gateways.
    pub agents: Vec<String>,
    /// Where backends have the door for new gateways; what ships when there is none yet.
    pub enrolment: Vec<String>,
    /// Where backends have their API.
    pub api: Vec<String>,
    /// The certificate for operators, with those that lead to its root.
    pub certificate_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// The list of revoked certificates that the backend keeps, if it does.
    pub crl_file: Option<PathBuf>,
    /// Whether it is to be left out, because gateways may have certificates of authorities of which it is none.
    pub crl_is_left_out: bool,
}

/// What cannot stand in a configuration of nginx.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A name that is none.
    #[error("{0:?} is no DNS name in lower case, such as agents.example.org")]
    Name(String),
    /// One name for two purposes: nginx tells them apart by it.
    #[error(
        "{0} is to be the name of two things, which nginx tells apart by their names: give --enrolment-name or \
         --api-name another one"
    )]
    SameName(String),
    /// An address that is none, or has no port that is known.
    #[error("{0:?} is no HOST:PORT of a backend")]
    Address(String),
    /// A path that nginx would read as something else.
    #[error(
        "{what} is {path:?}, which nginx would not read as that file: name one by an absolute path of letters, digits \
         and / . _ - + @"
    )]
    Path {
        /// The flag or the key that names it.
        what: &'static str,
        /// What it names.
        path: PathBuf,
    },
}

/// The whole file, for TLS of gateways that ends there.
///
/// # Errors
///
/// When something of the site cannot stand in it.
pub fn render(end: TlsEnd, site: &Site, agents: &AgentsConfig) -> Result<String, RenderError> {
    site.check(end)?;
    let shipped = match end {
        TlsEnd::Backend => PASS_THROUGH,
        TlsEnd::Proxy => {
            are_plain([
                ("certificate_file in [agents]", &agents.certificate_file),
                ("key_file in [agents]", &agents.key_file),
                ("client_ca_file in [agents]", &agents.client_ca_file),
            ])?;
            if let Some(list) = &site.crl_file {
                are_plain([("crl_file in [keys]", list)])?;
            }
            TERMINATE
        }
    };
    let file = |path: &PathBuf| path.display().to_string();
    let servers = |addresses: &[String]| {
        let server = |address: &String| format!("server {address} max_fails=1 fail_timeout=5s;");
        addresses
            .iter()
            .map(server)
            .collect::<Vec<_>>()
            .join("\n        ")
    };
    let shipped_door = "server 127.0.0.1:8082 max_fails=1 fail_timeout=5s;";
    let door = if site.enrolment.is_empty() {
        shipped_door.to_owned()
    } else {
        servers(&site.enrolment)
    };
    let list = site.crl_file.as_ref();
    let list = list.map_or_else(
        || SHIPPED_LIST.to_owned(),
        |path| {
            let left_out = if site.crl_is_left_out { LEFT_OUT } else { "" };
            format!("{left_out}ssl_crl {};", file(path))
        },
    );
    let silence = agents.silence.as_millis().div_ceil(1_000);
    let timeout = SILENCE_MIN
        .as_secs()
        .max(u64::try_from(silence * 2).unwrap_or(u64::MAX));
    let places = [
        ("agents.example.org", site.agents_name.clone()),
        ("enrol.example.org", site.enrolment_name.clone()),
        ("api.example.org", site.api_name.clone()),
        (
            "server 127.0.0.1:8081 max_fails=1 fail_timeout=5s;",
            servers(&site.agents),
        ),
        (shipped_door, door),
        (
            "server 127.0.0.1:8080 max_fails=1 fail_timeout=5s;",
            servers(&site.api),
        ),
        (
            "/etc/viworks/nginx/api.crt",
            site.certificate_file.display().to_string(),
        ),
        (
            "/etc/viworks/nginx/api.key",
            site.key_file.display().to_string(),
        ),
        (
            "limit_conn viworks_sources 2000;",
            format!("limit_conn viworks_sources {};", agents.per_source_max),
        ),
        (
            "silence_ms in [agents], 45 s.",
            format!("silence_ms in [agents], {silence} s."),
        ),
        ("proxy_timeout 90s;", format!("proxy_timeout {timeout}s;")),
        (
            "/etc/viworks/backend/server.crt",
            file(&agents.certificate_file),
        ),
        ("/etc/viworks/backend/server.key", file(&agents.key_file)),
        ("/etc/viworks/backend/ca.crt", file(&agents.client_ca_file)),
        (SHIPPED_LIST, list),
        (
            "proxy_read_timeout 90s;\n            proxy_send_timeout 90s;",
            format!("proxy_read_timeout {timeout}s;\n            proxy_send_timeout {timeout}s;"),
        ),
    ];
    Ok(filled(shipped, &places))
}

/// A text with something else in some places. It is gone through once: what is put in is not looked at again.
fn filled(text: &str, places: &[(&str, String)]) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    loop {
        let next = places
            .iter()
            .filter_map(|(place, own)| Some((rest.find(place)?, place, own)));
        let Some((at, place, own)) = next.min_by_key(|(at, ..)| *at) else {
            break;
        };
        let (before, behind) = rest.split_at(at);
        filled.push_str(before);
        filled.push_str(own);
        rest = behind.get(place.len()..).unwrap_or_default();
    }
    filled.push_str(rest);
    filled
}

impl Site {
    fn check(&self, end: TlsEnd) -> Result<(), RenderError> {
        let names = [&self.agents_name, &self.enrolment_name, &self.api_name];
        if let Some(name) = names.iter().find(|name| !is_name(name)) {
            return Err(RenderError::Name((**name).clone()));
        }
        let [agents, enrolment, api] = names;
        // The file that ends TLS has no door: machines enrol past it, at whatever name.
        let has_door = end == TlsEnd::Backend;
        if agents == api || (has_door && (enrolment == api || agents == enrolment)) {
            let twice = if agents == api { api } else { enrolment };
            return Err(RenderError::SameName(twice.clone()));
        }
        let doors = self.enrolment.iter();
        let mut addresses = self.agents.iter().chain(doors).chain(&self.api);
        if let Some(address) = addresses.find(|address| !is_address(address)) {
            return Err(RenderError::Address(address.clone()));
        }
        are_plain([
            ("--certificate", &self.certificate_file),
            ("--key", &self.key_file),
        ])
    }
}

/// Where nginx on the same machine reaches a listener. `None` for port 0, which becomes another one with each start.
#[must_use]
pub fn reached_at(listen: SocketAddr) -> Option<String> {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    (listen.port() != 0).then(|| SocketAddr::new(ip, listen.port()).to_string())
}

fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        let letters = label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        letters
            && !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn is_address(text: &str) -> bool {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return address.port() != 0;
    }
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    text.rsplit_once(':')
        .is_some_and(|(host, number)| is_name(host) && port(number))
}

fn are_plain<const N: usize>(named: [(&'static str, &PathBuf); N]) -> Result<(), RenderError> {
    let mut named = named.into_iter();
    match named.find(|(_what, path)| !is_plain(path)) {
        Some((what, path)) => Err(RenderError::Path {
            what,
            path: path.clone(),
        }),
        None => Ok(()),
    }
}

fn is_plain(path: &Path) -> bool {
    let letters = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@".contains(&byte))
    };
    path.is_absolute() && path.to_str().is_some_and(letters)
}
