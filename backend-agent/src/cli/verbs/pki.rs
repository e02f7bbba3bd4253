//! `pki`: makes an authority, and lets gateways join.

use std::path::Path;
use std::sync::Arc;

use viworks_common::human;
use viworks_common::id::Tenant;
use viworks_runtime::clock::{Clock, SystemClock};
use viworks_runtime::exit::ExitCode;

use super::super::flags::{PkiCommand, days};
use super::super::views::{print, say};
use super::master_key;
use super::open::{actor, load, open};
use crate::config::Config;
use crate::data::line::take_up;
use crate::listening;
use crate::pki::answer::{Reply, read_request, sign};
use crate::pki::init::{InitRequest, OwnAuthority, OwnKey, init};
use crate::pki::issue::{Delivery, IssueRequest, Office, issue, load_master};
use crate::pki::place::{authority, strange_url};
use crate::pki::request::CertificateRequest;
use crate::pki::{Home, PkiError, crl, site};
use crate::start_error::StartError;

pub(super) async fn execute(command: PkiCommand) -> anyhow::Result<ExitCode> {
    match command {
        PkiCommand::Init {
            dir,
            trust_domain,
            server_names,
            installed,
            ca_certificate,
            ca_key,
            ca_sign_command,
        } => {
            let authority = ca_certificate.map(|certificate| OwnAuthority {
                certificate,
                key: ca_key.map_or(OwnKey::Command(ca_sign_command), OwnKey::File),
            });
            let request = InitRequest {
                folder: dir,
                trust_domain,
                server_names,
                installed,
                authority,
            };
            let made = init(&request, SystemClock.wall())?;
            print(&format!("config  {}", made.config.display()))?;
            print(&format!("pin     {}", made.active))?;
            print(&format!("next    {}", made.next))?;
        }
        PkiCommand::IssueGateway {
            config,
            name,
            out,
            labels,
            url,
            days: life,
            demo,
            installed,
        } => {
            let config = load(&config)?;
            let (url, remark) = url_of_gateway(&config, url, demo)?;
            let delivery = Delivery {
                folder: out,
                url,
                home: match (demo, installed) {
                    (true, _) => Home::Demo,
                    (false, true) => Home::Installed,
                    (false, false) => Home::Folder,
                },
            };
            delivery.check()?;
            let request = IssueRequest {
                name,
                labels: labels.into_iter().collect(),
                life: life.map_or_else(|| config.enrolment.certificate_life(), days),
            };
            issue_gateway(&config, &delivery, request).await?;
            if let Some(remark) = remark {
                say(&remark);
            }
        }
        PkiCommand::SignRequest {
            config,
            request,
            name,
            out,
            labels,
            url,
            days: life,
        } => {
            let config = load(&config)?;
            let (url, remark) = url_of_gateway(&config, url, false)?;
            let reply = Reply {
                out,
                url,
                pin_set_version: config.agents.pin_set_version,
            };
            let wanted = IssueRequest {
                name,
                labels: labels.into_iter().collect(),
                life: life.map_or_else(|| config.enrolment.certificate_life(), days),
            };
            let request = read_request(&request)?;
            sign_request(&config, &request, &wanted, &reply).await?;
            say(
                "the answer holds secrets of the gateway: bring it there over a way that you trust, and remove it here",
            );
            if let Some(remark) = remark {
                say(&remark);
            }
        }
        PkiCommand::Crl { config, out } => return list_withdrawn(&load(&config)?, &out).await,
        PkiCommand::ReplaceMasterKey { config } => replace_master_key(&load(&config)?).await?,
        PkiCommand::RotateMasterKey {
            config,
            dry_run,
            finish,
            force,
            reason,
        } => {
            let wanted = master_key::Wanted {
                dry_run,
                finish,
                force,
                reason,
            };
            return master_key::rotate(&load(&config)?, &wanted).await;
        }
    }
    Ok(ExitCode::Ok)
}

/// Writes the list of certificates that are withdrawn.
async fn list_withdrawn(config: &Config, out: &Path) -> anyhow::Result<ExitCode> {
    if out == Path::new("-") {
        say("error: --out names a file, and - stands for the standard output elsewhere");
        say("  fix: name a file; one of that name is ./-");
        return Ok(ExitCode::Usage);
    }
    let store = open(config).await?;
    let now = SystemClock.wall();
    let listed = store
        .withdrawn_certificates(&Tenant::default_tenant(), now)
        .await;
    store.close().await;
    let listed = listed?;
    crl::write(config, &listed, out, now)?;
    print(&format!(
        "{}  {}, until {}",
        out.display(),
        human::counted(listed.len(), "certificate", "certificates"),
        now.saturating_add(crl::LIFE)
    ))?;
    if let Some(warning) = crl::warning(config) {
        say(&format!("warning: {warning}"));
    }
    Ok(ExitCode::Ok)
}

/// Ties the database to the master key that is configured now.
async fn replace_master_key(config: &Config) -> anyhow::Result<()> {
    let master = load_master(&config.keys.master_key_file)?;
    let store = open(config).await?;
    let replaced = site::replace(&*store, &master).await;
    store.close().await;
    replaced?;
    print(&format!(
        "the database belongs to {}",
        config.keys.master_key_file.display()
    ))?;
    say("gateways that were issued with another master key have to be issued again");
    Ok(())
}

/// Where a gateway is to look for this backend, as it was typed or as it is known here, and what there is to say about
/// that once the gateway was issued.
fn url_of_gateway(
    config: &Config,
    typed: Option<String>,
    demo: bool,
) -> Result<(String, Option<String>), PkiError> {
    let Some(url) = typed else {
        return url_for_gateways(config, demo);
    };
    let remark = remark_on(config, &url, "--url");
    Ok((url, remark))
}

/// Where gateways reach this backend, as far as it is known here, and what there is to say about it once a gateway was
/// issued.
fn url_for_gateways(config: &Config, demo: bool) -> Result<(String, Option<String>), PkiError> {
    if let Some(url) = &config.agents.public_url {
        let remark = remark_on(config, url, "public_url in [agents]");
        return Ok((url.clone(), remark));
    }
    // A port may be another one than is configured.
    let address = listening::agents(&config.data.state_folder).unwrap_or(config.agents.listen);
    let port = address.port();
    let say = |host: &str| format!("--url wss://{host}:{port}, or public_url in [agents]");
    let place = authority(address, &config.agents.certificate_file, say)?;
    let remark = (address.ip().is_loopback() && !demo).then(|| {
        format!(
            "the gateway will look for the backend on its own machine, at {place}; for another one: --url wss://HOST:PORT, or public_url in [agents]"
        )
    });
    Ok((format!("wss://{place}/agent/v1/connect"), remark))
}

/// That the gateway will refuse what it finds there.
fn remark_on(config: &Config, url: &str, called: &str) -> Option<String> {
    let strange = strange_url(&config.agents, url, called)?;
    Some(format!("warning: {strange}"))
}

async fn issue_gateway(
    config: &Config,
    delivery: &Delivery,
    request: IssueRequest,
) -> anyhow::Result<()> {
    let mut office = Office::open(config)?;
    let store = open(config).await?;
    let settled = site::settle(&*store, office.master, &config.keys.master_key_file);
    office.master = settled.await.map_err(StartError::from)?;
    let tenant = Tenant::default_tenant();
    let name = request.name.clone();
    let clock = take_up(&*store, Arc::new(SystemClock)).await?;
    let issued = issue(
        &*store,
        &tenant,
        &office,
        request,
        delivery,
        &actor(),
        &clock,
    )
    .await;
    store.close().await;
    print(&format!(
        "{name}  {}  {}",
        issued?,
        delivery.folder.display()
    ))
}

async fn sign_request(
    config: &Config,
    request: &CertificateRequest,
    wanted: &IssueRequest,
    reply: &Reply,
) -> anyhow::Result<()> {
    let mut office = Office::open(config)?;
    let store = open(config).await?;
    let settled = site::settle(&*store, office.master, &config.keys.master_key_file);
    office.master = settled.await.map_err(StartError::from)?;
    let tenant = Tenant::default_tenant();
    let clock = take_up(&*store, Arc::new(SystemClock)).await?;
    let signed = sign(
        &*store,
        &tenant,
        &office,
        (request, wanted),
        reply,
        &actor(),
        &clock,
    )
    .await;
    store.close().await;
    print(&format!(
        "{}  {}  {}",
        wanted.name,
        signed?,
        reply.out.display()
    ))
}
