//! What a gateway's folder holds: where it dials, whom it trusts, and who it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use reqwest::Url;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use viworks_common::id::{AgentId, Tenant};
use viworks_common::key::{BindingMode, Identity, Secret};
use viworks_common::pin::SpkiPin;
use viworks_runtime::exit::ExitCode;
use viworks_runtime::{files, tls};

use crate::failure::{Failure, chain};

/// Bytes of a file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

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
    pub(super) authority: Vec<CertificateDer<'static>>,
    pub(super) shown: tls::Identity,
    pub(super) identity: Identity,
    pub(super) agent_key: Secret,
    pub(super) token: String,
}

#[derive(Deserialize)]
struct Document {
    outbound: Outbound,
    identity: Files,
}

#[derive(Deserialize)]
struct Outbound {
    url: String,
    server_name: Option<String>,
    binding: Option<String>,
    pins: BTreeSet<SpkiPin>,
    ca_file: PathBuf,
}

#[derive(Deserialize)]
struct Files {
    certificate_file: PathBuf,
    key_file: PathBuf,
    identity_file: PathBuf,
}

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
            .with("fix: name the folder that `viworks-backend-agent pki issue-gateway NAME --out DIR` wrote")
        })
    }

    fn parts(folder: &Path) -> Result<Self, String> {
        let file = folder.join("gateway.toml");
        let bytes = files::read_trusted(&file, FILE_BYTES_MAX).map_err(|error| chain(&error))?;
        let text = String::from_utf8_lossy(&bytes);
        let document: Document =
            toml::from_str(&text).map_err(|error| format!("gateway.toml: {}", error.message()))?;
        let Document { outbound, identity } = document;
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
        let secret = files::read_private(&folder.join(&identity.identity_file))
            .map_err(|error| chain(&error))?;
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
            pins: outbound.pins,
            binding: match outbound.binding.as_deref() {
                Some("certificate") => BindingMode::Certificate,
                _ => BindingMode::Exporter,
            },
            authority: tls::load_certificates(&folder.join(&outbound.ca_file))
                .map_err(|error| chain(&error))?,
            shown: tls::Identity::load(
                &folder.join(&identity.certificate_file),
                &folder.join(&identity.key_file),
            )
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
