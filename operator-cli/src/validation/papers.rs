//! What a gateway's folder holds: where it dials, whom it trusts, and who it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reqwest::Url;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::key::{BindingMode, Identity, Secret};
use viworks_common::pin::SpkiPin;
use viworks_runtime::config::{Document, Environment};
use viworks_runtime::exit::ExitCode;
use viworks_runtime::files::read_private;
use viworks_runtime::{settings, tls};

use crate::failure::{Failure, chain};

/// Everything that a gateway knows before it dials for the first time.
#[derive(Debug)]
pub(super) struct Papers {
    pub(super) folder: PathBuf,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) path: String,
    pub(super) server_name: String,
    pub(super) pins: BTreeSet<SpkiPin>,
    pub(super) binding: BindingMode,
    pub(super) door_url: Option<String>,
    pub(super) authority: Vec<CertificateDer<'static>>,
    pub(super) shown: tls::Identity,
    pub(super) identity: Identity,
    pub(super) agent_key: Secret,
    pub(super) token: String,
}

settings! {
    /// Where the gateway dials, and whom it trusts there.
    [outbound]
    #[derive(Debug)]
    struct Outbound from section {
        /// Where the backend listens for agents.
        url: String = required_url(&["wss"]),
        /// The name in its certificate; the URL's host when left out.
        server_name: Option<String> = optional_str(),
        /// Where machines become gateways.
        door_url: Option<String> = optional_str(),
        /// What sessions are bound to.
        binding: BindingMode = one_of("exporter", &BINDINGS),
        /// Keys the backend may show.
        pins: Vec<SpkiPin> = required_parsed_list("sha256/…"),
        /// The authority of its certificate, PEM.
        ca_file: PathBuf = file(),
    }
}

settings! {
    /// The files that make the gateway who it is.
    [identity]
    #[derive(Debug)]
    struct Files from section {
        /// Its certificate chain, PEM.
        certificate_file: PathBuf = file(),
        /// Its private key, PEM.
        key_file: PathBuf = secret_file(),
        /// Agent id, agent key and first token, JSON.
        identity_file: PathBuf = secret_file(),
    }
}

const BINDINGS: [(&str, BindingMode); 2] = [
    ("exporter", BindingMode::Exporter),
    ("certificate", BindingMode::Certificate),
];

#[derive(Deserialize)]
struct IdentityDocument {
    tenant: Tenant,
    agent_id: AgentId,
    agent_key: String,
    token: String,
}

impl Papers {
    /// Reads a gateway's folder.
    pub(super) fn read(folder: &Path) -> Result<Self, Failure> {
        let folder = std::path::absolute(folder)?;
        Self::parts(&folder).map_err(|why| {
            Failure::new(
                ExitCode::Config,
                format!("{} is no gateway's folder: {why}", folder.display()),
            )
            .with(
                "fix: name the folder of a gateway that never ran: one in which `viworks-gateway-agent enroll --out DIR` made \
                 it, or that `viworks-backend-agent pki issue-gateway NAME --out DIR` wrote",
            )
        })
    }

    fn parts(folder: &Path) -> Result<Self, String> {
        // As the agent reads it, with what lies in `conf.d` beside it; the agent is given no variable either.
        let mut document = Document::load(&folder.join("gateway.toml"), &Environment::default())
            .map_err(|problems| problems.in_one_line())?;
        let (outbound, files) = (Outbound::read(&mut document), Files::read(&mut document));
        document
            .finish_part()
            .map_err(|problems| problems.in_one_line())?;
        let url = Url::parse(&outbound.url)
            .ok()
            .filter(|url| url.scheme() == "wss");
        let url = url.ok_or_else(|| format!("{} is no wss URL", outbound.url))?;
        let host = url.host_str().ok_or("the URL names no host")?;
        // An address of the sixth version stands between brackets in a URL, and nowhere else.
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let secret = read_private(&files.identity_file).map_err(|error| chain(&error))?;
        let who: IdentityDocument =
            serde_json::from_slice(&secret).map_err(|error| format!("the identity: {error}"))?;
        Ok(Self {
            port: url.port().unwrap_or(443),
            path: match url.path() {
                "/" | "" => viworks_common::wire::CONNECT_PATH.to_owned(),
                path => path.to_owned(),
            },
            server_name: outbound.server_name.unwrap_or_else(|| host.clone()),
            host,
            pins: outbound.pins.into_iter().collect(),
            binding: outbound.binding,
            door_url: outbound.door_url,
            authority: tls::load_certificates(&outbound.ca_file).map_err(|error| chain(&error))?,
            shown: tls::Identity::load(&files.certificate_file, &files.key_file)
                .map_err(|error| chain(&error))?,
            identity: Identity {
                tenant: who.tenant,
                agent_id: who.agent_id,
            },
            agent_key: Secret::from_hex(&who.agent_key).ok_or("the agent key is no key")?,
            token: who.token,
            folder: folder.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_none_of_a_gateway_is_told_of_in_one_line() {
        let root = tempfile::tempdir().unwrap();
        let told = |folder: &Path| {
            let failure = Papers::read(folder).err().unwrap();
            assert_eq!(failure.exit, ExitCode::Config);
            assert!(!failure.what.contains('\n'), "{failure:?}");
            failure.what
        };
        let missing = told(&root.path().join("nodir"));
        assert!(missing.contains("gateway.toml"), "{missing}");
        // Several problems as well.
        let file = root.path().join("gateway.toml");
        viworks_runtime::files::write_new(&file, b"[outbound]\nurl = 7\n", 0o600).unwrap();
        let wrong = told(root.path());
        assert!(wrong.contains("url"), "{wrong}");
    }
}
