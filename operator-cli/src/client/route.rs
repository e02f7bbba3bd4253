//! How requests reach the backend: directly or through a proxy, and never with a key in clear over a network.
//!
//! The environment is read here and not by a library, so that what is used can be named, and so that a request to this
//! machine stays on it.

use std::io;
use std::net::IpAddr;

use reqwest::Url;
use viworks_runtime::config::Environment;
use viworks_runtime::exit::ExitCode;

use crate::failure::{Failure, chain};

/// A proxy and who named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    /// The variable that names it.
    pub(super) variable: &'static str,
    /// Its address, as the variable has it.
    pub(super) url: String,
}

impl Proxy {
    /// What to do when it does not lead to the backend.
    pub(super) fn fix(&self) -> String {
        let variable = self.variable;
        format!("fix: mend {variable}, or reach the backend without a proxy: NO_PROXY")
    }

    /// The proxy without what must not be printed.
    pub(super) fn shown(&self) -> String {
        let shown = match Url::parse(&self.url) {
            Ok(mut url) => {
                // Only addresses that cannot have them refuse to lose them.
                let _no_password = url.set_password(None);
                let _no_user = url.set_username("");
                url.to_string()
            }
            Err(_not_an_address) => "an address that cannot be read".to_owned(),
        };
        format!("{shown} ({})", self.variable)
    }
}

/// Whether `host` is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else {
        return false;
    };
    let host = host.trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_a_name) => {
            let name = host.trim_end_matches('.').to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

/// Refuses to send a key where everybody on the way can read it.
pub(super) fn check_secrecy(url: &Url, has_key: bool, allowed: bool) -> Result<(), Failure> {
    if !has_key || allowed || url.scheme() == "https" || is_loopback(url) {
        return Ok(());
    }
    let host = url.host_str().unwrap_or_default();
    Err(Failure::new(
        ExitCode::Usage,
        format!("the API key would go to {host} unencrypted; nothing was sent"),
    )
    .with(
        "fix: use https://, or a tunnel to this machine, such as: ssh -L 8080:127.0.0.1:8080 HOST",
    )
    .with("to send it in clear all the same: --allow-http"))
}

/// The proxy that the environment names for `url`.
pub(super) fn proxy(url: &Url, environment: &Environment) -> Option<Proxy> {
    if is_loopback(url) || is_exempt(url, environment) {
        return None;
    }
    // HTTP_PROXY in capitals can be set by who sends a request to a CGI program, so nobody trusts it.
    let variables: &[&'static str] = if url.scheme() == "https" {
        &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    } else {
        &["http_proxy", "all_proxy", "ALL_PROXY"]
    };
    variables.iter().find_map(|variable| {
        let value = environment.get(variable)?.trim();
        let url = if value.contains("://") {
            value.to_owned()
        } else {
            format!("http://{value}")
        };
        (!value.is_empty()).then_some(Proxy { variable, url })
    })
}

/// Whether somebody on the way shows a certificate that has to be verified.
pub(super) fn verifies(url: &Url, proxy: Option<&Proxy>) -> bool {
    let starts_secure = |proxy: &Proxy| proxy.url.to_ascii_lowercase().starts_with("https:");
    url.scheme() == "https" || proxy.is_some_and(starts_secure)
}

/// The variables that replace this machine's certificate authorities, with their values.
pub(super) fn authorities(environment: &Environment) -> Vec<String> {
    ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .into_iter()
        .filter_map(|name| Some(format!("{name}={}", environment.get(name)?)))
        .collect()
}

/// Why there is no client. Where certificates have to be verified it is that nobody is trusted, because that is all
/// that is read from this machine for it.
pub(super) fn not_built(error: &reqwest::Error, verifies: bool, authorities: &[String]) -> Failure {
    if !verifies {
        return Failure::new(ExitCode::Error, chain(error));
    }
    let failure = Failure::new(
        ExitCode::Config,
        format!(
            "there is no certificate authority to verify the server with: {}",
            chain(error)
        ),
    );
    match authorities {
        [] => failure.with("fix: install the package ca-certificates, or name the authority's certificate: SSL_CERT_FILE=ca.crt"),
        named => failure.with(format!(
            "fix: {} holds no certificate that can be read; name the file of an authority in PEM, or unset it to use this machine's",
            named.join(" ")
        )),
    }
}

/// What to do where not even this machine can be reached: its loopback interface is down.
pub(super) fn own_network(server: &str, error: &reqwest::Error) -> Option<&'static str> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    let mut is_cut_off = false;
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        is_cut_off |= matches!(
            kind,
            Some(
                io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::NetworkDown
                    | io::ErrorKind::AddrNotAvailable
            )
        );
        cause = error.source();
    }
    let is_here = Url::parse(server).is_ok_and(|url| is_loopback(&url));
    (is_cut_off && is_here).then_some(
        "fix: this machine cannot reach itself: its loopback interface is down here; ip link set lo up",
    )
}

fn is_exempt(url: &Url, environment: &Environment) -> bool {
    let listed = environment
        .get("no_proxy")
        .or_else(|| environment.get("NO_PROXY"))
        .unwrap_or("");
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    listed
        .split([',', ' '])
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .any(|entry| covers(&entry.to_ascii_lowercase(), &host))
}

/// Whether an entry of `NO_PROXY` means `host`: `*`, an address, a network, or a domain with all that is below it.
fn covers(entry: &str, host: &str) -> bool {
    if entry == "*" || entry == host {
        return true;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return entry
            .split_once('/')
            .and_then(|(network, bits)| Some((network.parse().ok()?, bits.parse().ok()?)))
            .is_some_and(|(network, bits)| is_within(address, network, bits));
    }
    let domain = entry.trim_start_matches("*.").trim_start_matches('.');
    host == domain
        || host
            .strip_suffix(domain)
            .is_some_and(|front| front.ends_with('.'))
}

fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let prefix = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits())
            .checked_shr(32_u32.saturating_sub(bits))
            .unwrap_or(0),
        IpAddr::V6(address) => address
            .to_bits()
            .checked_shr(128_u32.saturating_sub(bits))
            .unwrap_or(0),
    };
    address.is_ipv4() == network.is_ipv4() && prefix(address) == prefix(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn named(target: &str, variables: &[(&str, &str)]) -> Option<&'static str> {
        let environment: Environment = variables.iter().copied().collect();
        proxy(&url(target), &environment).map(|proxy| proxy.variable)
    }

    #[test]
    fn certificates_are_verified_where_somebody_shows_one() {
        let proxy = |url: &str| Proxy {
            variable: "all_proxy",
            url: url.to_owned(),
        };
        assert!(!verifies(&url("http://127.0.0.1:8080"), None));
        assert!(verifies(&url("https://127.0.0.1:8080"), None));
        let plain = url("http://backend.example");
        assert!(!verifies(&plain, Some(&proxy("http://proxy:3128"))));
        assert!(verifies(&plain, Some(&proxy("HTTPS://proxy:3128"))));
    }

    #[test]
    fn this_machine_is_never_reached_through_a_proxy() {
        let all = [
            ("http_proxy", "http://proxy:3128"),
            ("https_proxy", "proxy:3128"),
            ("ALL_PROXY", "socks5://proxy"),
        ];
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "localhost",
            "LOCALHOST.",
        ] {
            for scheme in ["http", "https"] {
                assert_eq!(
                    named(&format!("{scheme}://{host}:8080"), &all),
                    None,
                    "{host}"
                );
            }
        }
        assert_eq!(named("http://gw.example", &all), Some("http_proxy"));
        assert_eq!(named("https://gw.example", &all), Some("https_proxy"));
        assert_eq!(
            named("https://gw.example", &[("ALL_PROXY", "p:1")]),
            Some("ALL_PROXY")
        );
        assert_eq!(named("http://gw.example", &[("HTTP_PROXY", "p:1")]), None);
        assert_eq!(named("http://gw.example", &[("http_proxy", "")]), None);
    }

    #[test]
    fn what_no_proxy_names_is_reached_directly() {
        let direct = |target: &str, list: &str| {
            named(target, &[("https_proxy", "p:1"), ("NO_PROXY", list)]).is_none()
        };
        assert!(direct("https://a.example.com", "x, example.com"));
        assert!(direct("https://a.example.com", ".example.com"));
        assert!(direct("https://example.com", "*.example.com"));
        assert!(direct("https://anything", "*"));
        assert!(direct("https://10.1.2.3", "10.0.0.0/8"));
        assert!(direct("https://10.1.2.3", "0.0.0.0/0"));
        assert!(direct("https://[fd00::1]", "fd00::/8"));
        assert!(!direct("https://badexample.com", "example.com"));
        assert!(!direct("https://11.1.2.3", "10.0.0.0/8"));
        assert!(!direct("https://a.example.com", ""));
    }

    #[test]
    fn a_key_goes_in_clear_to_this_machine_only() {
        assert!(check_secrecy(&url("http://127.0.0.1:8080"), true, false).is_ok());
        assert!(check_secrecy(&url("https://gw.example"), true, false).is_ok());
        assert!(check_secrecy(&url("http://gw.example"), false, false).is_ok());
        assert!(check_secrecy(&url("http://gw.example"), true, true).is_ok());
        let refused = check_secrecy(&url("http://gw.example"), true, false).unwrap_err();
        assert!(
            refused
                .details
                .iter()
                .any(|detail| detail.contains("--allow-http"))
        );
    }

    #[test]
    fn a_proxys_password_is_not_shown() {
        let proxy = Proxy {
            variable: "https_proxy",
            url: "http://me:secret@proxy:3128".to_owned(),
        };
        assert_eq!(proxy.shown(), "http://proxy:3128/ (https_proxy)");
    }
}
