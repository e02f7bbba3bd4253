//! `nginx`: writes the configuration of the proxy in front of the backend, and checks one.

use std::path::Path;

use anyhow::Context;
use viworks_runtime::checked::Checked;
use viworks_runtime::config::url_host as host;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{files, stdout};

use super::super::flags::{ConfigFlag, NginxCommand};
use super::super::views::{print, say};
use super::check::show;
use super::open::load_to_ask;
use crate::config::{Config, ProxyProtocol, TlsEnd};
use crate::database::pins_in_force;
use crate::nginx::check::{Question, RENEWALS, check, own_pins};
use crate::nginx::render::{Site, reached_at, render};
use crate::pki::crl;

/// More than any configuration of nginx that we write.
const BYTES_MAX: u64 = 1024 * 1024;

pub(super) async fn execute(command: NginxCommand) -> anyhow::Result<ExitCode> {
    match command {
        NginxCommand::Render {
            config,
            mode,
            agents_name,
            enrolment_name,
            api_name,
            agents_backends,
            enrolment_backends,
            api_backends,
            certificate,
            key,
            out,
            force,
        } => {
            let config = load_to_ask(&config)?;
            let public = config.agents.public_url.as_deref().and_then(host);
            let Some(agents_name) = agents_name.or_else(|| public.map(str::to_owned)) else {
                say("error: nothing says which name gateways dial");
                say("  fix: --agents-name NAME, or public_url in [agents]");
                return Ok(ExitCode::Usage);
            };
            let door = &config.enrolment;
            let of_door = door.public_url.as_deref().and_then(host);
            let usual = || {
                let domain = agents_name
                    .split_once('.')
                    .map_or("", |(_first, domain)| domain);
                let domain = if domain.contains('.') {
                    domain
                } else {
                    agents_name.as_str()
                };
                format!("enrol.{domain}")
            };
            let site = Site {
                enrolment_name: enrolment_name
                    .or_else(|| of_door.map(str::to_owned))
                    .unwrap_or_else(usual),
                api_name,
                agents: or_listener(agents_backends, reached_at(config.agents.listen)),
                enrolment: match door.listen {
                    Some(listen) => or_listener(enrolment_backends, reached_at(listen)),
                    None => enrolment_backends,
                },
                api: or_listener(api_backends, reached_at(config.api.listen)),
                // A person means the folder at hand, and nginx has another one.
                certificate_file: std::path::absolute(&certificate).unwrap_or(certificate),
                key_file: std::path::absolute(&key).unwrap_or(key),
                agents_name,
                crl_file: config.keys.crl_file.clone(),
                crl_is_left_out: crl::warning(&config).is_some(),
            };
            let rendered = match render(
                mode.unwrap_or(config.agents.tls_ends_at),
                &site,
                &config.agents,
            ) {
                Ok(rendered) => rendered,
                Err(error) => {
                    say(&format!("error: {error}"));
                    return Ok(ExitCode::Usage);
                }
            };
            let code = match out {
                Some(out) => write(&out, &rendered, force)?,
                None => {
                    stdout::print(&rendered)?;
                    ExitCode::Ok
                }
            };
            if code == ExitCode::Ok {
                tell_rest(mode, &config, &site);
            }
            Ok(code)
        }
        NginxCommand::Check {
            config,
            file,
            renewal,
            output,
        } => {
            let mut checked = Checked::default();
            let ended = look(&config, &file, renewal.as_deref(), &mut checked).await;
            show(checked, ended, &config, output)?;
            Ok(ExitCode::Ok)
        }
    }
}

async fn look(
    flag: &ConfigFlag,
    file: &Path,
    renewal: Option<&Path>,
    checked: &mut Checked,
) -> anyhow::Result<()> {
    let config = load_to_ask(flag)?;
    let in_force = match own_pins(&config) {
        Some(own) => pins_in_force(&config, own).await,
        None => Err("the key that is shown cannot be read".to_owned()),
    };
    let question = Question {
        config: &config,
        file,
        renewal,
        usual_renewal: Path::new(RENEWALS),
        ask_nginx: true,
        in_force: &in_force,
    };
    check(&question, checked)?;
    let fits = format!("{} fits this backend", file.display());
    checked.found.push(fits);
    Ok(())
}

fn or_listener(given: Vec<String>, own: Option<String>) -> Vec<String> {
    if given.is_empty() {
        // Port 0 is told as an address that is none.
        vec![own.unwrap_or_else(|| "port 0".to_owned())]
    } else {
        given
    }
}

/// Writes the file, unless somebody has changed the one that is there.
fn write(out: &Path, rendered: &str, force: bool) -> anyhow::Result<ExitCode> {
    let written = match files::read_at_most(out, BYTES_MAX) {
        Err(error) if error.is_missing() => files::write_new(out, rendered.as_bytes(), 0o644),
        Ok(found) if found == rendered.as_bytes() => {
            print(&format!("{} is as it would be written", out.display()))?;
            return Ok(ExitCode::Ok);
        }
        Ok(_) | Err(_) if !force => return Ok(refuse(out)),
        Ok(_) | Err(_) => files::write_atomic(out, rendered.as_bytes()),
    };
    written.with_context(|| format!("failed to write {}", out.display()))?;
    print(&format!("wrote {}", out.display()))?;
    Ok(ExitCode::Ok)
}

fn refuse(out: &Path) -> ExitCode {
    say(&format!(
        "error: {} is there already, with other content",
        out.display()
    ));
    say("  fix: write to another file and compare them, or replace it with --force");
    ExitCode::Conflict
}

/// What the backend has to be told for it to work.
fn tell_rest(mode: Option<TlsEnd>, config: &Config, site: &Site) {
    let own = config.agents.tls_ends_at;
    if !leads_to(config.agents.public_url.as_deref(), &site.agents_name) {
        say(&format!(
            "gateways that are issued are not told to dial {} yet; in [agents] of the backend's configuration:",
            site.agents_name
        ));
        say(&format!("  public_url = \"wss://{}\"", site.agents_name));
    }
    if mode.unwrap_or(own) == TlsEnd::Proxy {
        if let Some(warning) = crl::warning(config) {
            say(&format!("warning: {}", warning.line()));
            say(
                "  ssl_crl is left out of the file for nginx; render it again once that one is out of client_ca_file",
            );
        }
        if own == TlsEnd::Backend {
            say(
                "the backend does not know that TLS ends in a proxy yet; in [agents] of its configuration:",
            );
            say("  tls_ends_at = \"proxy\"");
            say("  binding = \"certificate\"");
            say("  trusted_proxies = [\"127.0.0.1\"]");
        }
    } else if config.agents.proxy_protocol == ProxyProtocol::Off {
        say("the backend does not know of a proxy yet; in [agents] of its configuration:");
        say("  proxy_protocol = \"require\"");
        say("  trusted_proxies = [\"127.0.0.1\"]");
    }
    let door = &config.enrolment;
    let passes = mode.unwrap_or(own) == TlsEnd::Backend;
    if passes
        && door.listen.is_some()
        && !leads_to(door.public_url.as_deref(), &site.enrolment_name)
    {
        say(&format!(
            "tickets do not lead to {} yet; in [enrolment] of the backend's configuration:",
            site.enrolment_name
        ));
        say(&format!(
            "  public_url = \"https://{}\"",
            site.enrolment_name
        ));
    }
    if passes && door.listen.is_some() && door.proxy_protocol == ProxyProtocol::Off {
        say("the door for new gateways does not know of a proxy yet; in [enrolment]:");
        say("  proxy_protocol = \"require\"");
        say("  trusted_proxies = [\"127.0.0.1\"]");
    }
    if config.api.trusted_proxies.is_empty() {
        say("the backend believes no proxy about where operators are yet; in [api]:");
        say("  trusted_proxies = [\"127.0.0.1\"]");
    }
}

/// Whether an address leads to a name at nginx, which has the usual port.
fn leads_to(url: Option<&str>, name: &str) -> bool {
    let rest = url
        .and_then(|url| url.split_once("://"))
        .map(|(_scheme, rest)| rest);
    let place = rest.and_then(|rest| rest.split(['/', '?']).next());
    place.is_some_and(|place| {
        let host = place.strip_suffix(":443").unwrap_or(place);
        host.eq_ignore_ascii_case(name)
    })
}

#[cfg(test)]
mod tests {
    use super::leads_to;

    #[test]
    fn an_address_past_nginx_is_told_from_one_that_leads_there() {
        let name = "agents.example.org";
        for right in [
            "wss://agents.example.org",
            "wss://Agents.example.org:443/agent/v1/connect",
            "https://agents.example.org/",
        ] {
            assert!(leads_to(Some(right), name), "{right}");
        }
        for past in [
            "wss://agents.example.org:8081",
            "wss://backend.example.org",
            "agents.example.org",
        ] {
            assert!(!leads_to(Some(past), name), "{past}");
        }
        assert!(!leads_to(None, name));
    }
}
